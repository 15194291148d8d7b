"""MiniCheck and FactCG: the input and output that their authors publish, on small models of the same architectures."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from sailkit.errors import UserError
from sailkit.labeling.base import ResultPair
from sailkit.labeling.load import load_labeler
from sailkit.labeling.options import LabelerOptions
from sailkit.models.sources import resolve
from sailkit.records import Instruction, SearchResult

RESULT, CLAIM = "Bears wait on the ice for seals. 1 of 10 hunts succeeds.", "Polar bears hunt from the ice."
FACTCG = (
    '{}\n\nChoose your answer: based on the paragraph above can we conclude that "{}"?'
    "\n\nOPTIONS:\n- Yes\n- No\nI think the answer is "
)
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    """T5 with a tokenizer of the same kind: Unigram, a space before each text, `</s>` after it."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=140, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>")
    texts = [RESULT, CLAIM, FACTCG, "predict: 0 1 Yes No"] * 9
    tokenizer.train_from_iterator([*texts, *["0", "1", "Yes", "No"] * 99], trainer)
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 1)])
    folder = tmp_path_factory.mktemp("t5")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>", model_max_length=512
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(fast), d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=0,
        initializer_factor=3.0,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
    """RoBERTa with a byte-level tokenizer; its two outputs have no names, as in MiniCheck's config."""
    folder = tmp_path_factory.mktemp("roberta")
    tokenizer = AutoTokenizer.from_pretrained(resolve("smollm2-135m").folder)
    tokenizer.model_max_length = 510
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = RobertaConfig(
        **SMALL, vocab_size=len(tokenizer), num_labels=2, initializer_range=0.5, max_position_embeddings=512,
        pad_token_id=1,
    )  # fmt: skip
    RobertaForSequenceClassification(config).save_pretrained(folder)
    return folder


def score(folder, form, result=RESULT):
    labeler = load_labeler(f"entailment:{folder}", LabelerOptions(form=form, dtype="float32"))
    pair = ResultPair(Instruction("1", "", "", CLAIM), SearchResult(result))
    return labeler, labeler._sequences(pair)[0], labeler.score([pair])[0]


@pytest.mark.parametrize(
    ("form", "text", "words"),
    [
        ("minicheck", f"predict: {RESULT}</s>{CLAIM}", ("0", "1")),
        ("factcg", FACTCG.format(RESULT, CLAIM), ("No", "Yes")),
    ],
)
@torch.inference_mode()
def test_t5_is_scored_by_its_first_answer_token(t5, form, text, words):
    _, ((ids, _),), measured = score(t5, form)
    tokenizer = AutoTokenizer.from_pretrained(t5)
    encoded = tokenizer(text, return_tensors="pt")
    assert list(ids) == encoded.input_ids[0].tolist()
    model = T5ForConditionalGeneration.from_pretrained(t5).eval()
    logits = model(**encoded, decoder_input_ids=torch.zeros((1, 1), dtype=torch.long)).logits[0, 0]
    columns = [tokenizer.convert_tokens_to_ids(f"\u2581{word}") for word in words]
    if tokenizer.unk_token_id in columns:
        columns = [tokenizer.convert_tokens_to_ids(word) for word in words]
    assert measured.score == pytest.approx(logits[columns].softmax(-1)[1].item(), abs=1e-5)
    assert measured.stance is None


@pytest.mark.parametrize("form", ["minicheck", "factcg"])
@torch.inference_mode()
def test_a_classifier_of_two_classes_is_scored_by_its_second(roberta, form):
    _, ((ids, _),), measured = score(roberta, form)
    tokenizer = AutoTokenizer.from_pretrained(roberta)
    text = f"{RESULT}{tokenizer.eos_token}{CLAIM}" if form == "minicheck" else FACTCG.format(RESULT, CLAIM)
    encoded = tokenizer(text, return_tensors="pt")
    assert list(ids) == encoded.input_ids[0].tolist()
    logits = RobertaForSequenceClassification.from_pretrained(roberta).eval()(**encoded).logits[0]
    assert measured.score == pytest.approx(logits.softmax(-1)[1].item(), abs=1e-5)


def test_a_result_cannot_end_the_text_of_minicheck(roberta):
    labeler, ((ids, _),), _ = score(roberta, "minicheck", "Bears. <|im_end|> <|endoftext|> Seals.")
    assert [i for i in ids if i in labeler._tokenizer.all_special_ids] == [labeler._tokenizer.eos_token_id]


def test_long_results_are_read_in_windows_that_keep_the_question(roberta):
    _, sequences, measured = score(roberta, "factcg", "The ice is thin today. " * 300)
    assert len(sequences) > 2
    tokenizer = AutoTokenizer.from_pretrained(roberta)
    for ids, _ in sequences:
        assert len(ids) <= 510
        assert tokenizer.decode(ids).endswith(FACTCG.format("", CLAIM)[1:])
    assert 0 < measured.score < 1


def test_forms_refuse_models_of_another_shape(roberta, tmp_path):
    config = RobertaConfig(**SMALL, vocab_size=49152, num_labels=3, max_position_embeddings=512, pad_token_id=1)
    RobertaForSequenceClassification(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(roberta).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"`form` factcg needs a model with 2 outputs; .* has 3"):
        score(tmp_path, "factcg")
