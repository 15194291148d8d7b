"""Where a prompt ends and an answer begins: the same in training, scoring and generation, for every family."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoTokenizer, LlamaTokenizer

from chat_families import CLOSING, TEMPLATES, TRAINABLE, network, save, tokenizer
from sailkit.errors import UserError
from sailkit.evaluation.evaluate import evaluate
from sailkit.evaluation.evidence import EvidenceStyle
from sailkit.models.base import ModelOptions
from sailkit.models.load import load_model
from sailkit.models.local import LocalModel
from sailkit.prompts.render import Message, Part, Renderer, step_prompt
from sailkit.prompts.safety import guarded
from sailkit.prompts.sail import ExampleRenderer, completion, conversation
from sailkit.records import SearchResult, TrainingExample
from sailkit.training.finetune import finetune
from small_models import TRAINED, changed, trained
from small_rows import write

ANSWERS = ("Supported", "Refuted", "Correct", "not enough info", "1", "(2)", "é")
DATE = "2025-03-09"


def example(response: str = "Ice melts.", style: str = "chat") -> TrainingExample:
    return TrainingExample(
        "7", "What does ice do?", "", (SearchResult("Cold.", "Ice"),), ("informative",), response, style
    )


def ask(text: str = "Ice is cold."):
    return step_prompt("Claim: {text}\nIs it right?", text, [])


@pytest.mark.parametrize("kind", TRAINED)
@pytest.mark.parametrize("family", TRAINABLE)
def test_a_model_is_trained_behind_the_very_prompt_that_it_is_asked(family, kind):
    made = tokenizer(family, kind)
    asked = Renderer(made, chat=True, context=9999, date=DATE)
    for response in ("Ice melts.", *ANSWERS):
        one = example(response)
        found = ExampleRenderer(made, DATE).render(one)
        prompt = asked.render(conversation(one), 8)
        assert found.ids[: found.completion_mask.index(True)] == prompt.ids
        said = made.decode([i for i in found.supervised if i != found.supervised[-1]])
        assert said.strip() == completion(one)


@pytest.mark.parametrize("kind", TRAINED)
@pytest.mark.parametrize("family", TEMPLATES)
def test_an_answer_is_scored_as_the_tokens_of_its_own_words(family, kind):
    made = tokenizer(family, kind)
    renderer = Renderer(made, chat=True, context=9999)
    prompt = renderer.render(ask(), 8)
    for word in ANSWERS:
        ids = renderer.answer_ids(prompt, word)
        assert made.decode(ids).strip() == word
        whole = made(prompt.text + renderer.border.gap + word, add_special_tokens=False)["input_ids"]
        assert prompt.ids + ids == tuple(whole)


@pytest.mark.parametrize(
    ("family", "text", "gap"),
    [
        ("chatml", "<|im_start|>assistant\n", ""),
        ("no-generation-prompt", "<|im_start|>assistant\n", ""),
        ("qwen3", "<|im_start|>assistant\n<think>\n\n</think>\n\n", ""),
        ("qwen3-thinking", "<|im_start|>assistant\n<think>\n\n</think>\n\n", ""),
        ("smollm3", "<|im_start|>assistant\n<think>\n\n</think>\n", ""),
        ("llama2", "[/INST]", " "),
        ("llama2-space", "[/INST]", " "),
        ("plain-words", "assistant:", " "),
        ("llama3", "<|start_header_id|>assistant<|end_header_id|>\n\n", ""),
        ("mistral", "[/INST]", " "),
        ("phi3", "<|assistant|>\n", ""),
        ("gemma3", "<start_of_turn>model\n", ""),
        ("gpt-oss", "<|start|>assistant<|channel|>final<|message|>", ""),
        ("r1", "<|Assistant|><think>\n", ""),
    ],
)
def test_what_a_template_writes_before_an_answer_is_given(family, text, gap):
    renderer = Renderer(tokenizer(family, "byte-fallback"), chat=True, context=9999)
    assert renderer.render(ask(), 8).text.endswith(text)
    assert renderer.border.gap == gap


@pytest.mark.parametrize("family", TEMPLATES)
def test_the_token_that_closes_a_turn_is_the_templates_own(family):
    made = tokenizer(family)
    expected = CLOSING[family]
    if family == "r1":
        expected = "</s>"
    found = Renderer(made, chat=True, context=9999).border.closing_id
    assert found == (made.convert_tokens_to_ids(expected) if expected else None)


def test_line_breaks_that_would_be_cut_in_another_way_go_with_the_answer():
    """Two line breaks are one token alone, and two before a word, where words are split as GPT-2 splits them."""
    made = changed(tokenizer("chatml"), merge_line_breaks)
    made.chat_template = "{% for m in messages %}{{ m.role }}:\n\n{{ m.content }}{% endfor %}"
    made.chat_template += "{% if add_generation_prompt %}assistant:\n\n{% endif %}"
    renderer = Renderer(made, chat=True, context=9999)
    merged = made.convert_tokens_to_ids("ĊĊ")
    assert made("a:\n\n")["input_ids"][-1] == merged
    assert merged not in made("a:\n\nthe")["input_ids"]
    assert renderer.border.gap == "\n\n"
    prompt = renderer.render(ask(), 8)
    assert prompt.text.endswith("assistant:")
    whole = tuple(made(f"{prompt.text}\n\nCorrect", add_special_tokens=False)["input_ids"])
    assert prompt.ids + renderer.answer_ids(prompt, "Correct") == whole


def merge_line_breaks(spec):
    spec["model"]["vocab"]["ĊĊ"] = len(spec["model"]["vocab"]) + 50
    spec["model"]["merges"].append(["Ċ", "Ċ"])


def test_a_special_token_that_a_normalizer_writes_into_stays_one():
    """An added token that is normalised matches at the beginning of a text alone where a normalizer prepends to it."""
    made = trained("byte-fallback")
    made.add_tokens(["<think>"])
    ids = [guarded(made).encode((Part("a\n<think>\nb"),), add_special_tokens=False) for _ in range(2)]
    assert ids[0].count(made.convert_tokens_to_ids("<think>")) == 1
    assert len(ids[0]) < 9
    plain = guarded(made).encode((Part("a\n<think>\nb", trusted=False),), add_special_tokens=False)
    assert made.convert_tokens_to_ids("<think>") not in plain


# The tokenizers of real models


@pytest.fixture(scope="module")
def llama(shared):
    def load(**more):
        return LlamaTokenizer.from_pretrained(shared / "tokenizers" / "llama", add_bos_token=True, **more)

    return load


@pytest.mark.parametrize("chat", [False, True])
def test_a_tokenizer_that_ends_every_text_ends_no_prompt(llama, chat):
    usual, ending = llama(), llama(add_eos_token=True)
    assert ending("a")["input_ids"][-1] == ending.eos_token_id
    usual.chat_template = ending.chat_template = TEMPLATES["llama2"]
    one, other = (Renderer(made, chat=chat, context=9999) for made in (usual, ending))
    assert other.render(ask(), 8) == one.render(ask(), 8)
    for word in ANSWERS:
        assert other.answer_ids(other.render(ask(), 8), word) == one.answer_ids(one.render(ask(), 8), word)
    for style in ("sail", "sail-fixed", "chat"):
        found = ExampleRenderer(ending).render(example(style=style))
        assert found == ExampleRenderer(usual).render(example(style=style))
        assert found.ids.count(ending.eos_token_id) == 1


def test_the_first_token_of_an_answer_is_not_lost_behind_a_space(llama):
    made = llama()
    made.chat_template = TEMPLATES["llama2-space"]
    renderer = Renderer(made, chat=True, context=9999)
    ids = renderer.answer_ids(renderer.render(ask(), 8), "Supported")
    assert made.convert_ids_to_tokens(ids) == ["▁Support", "ed"]


def test_an_answer_that_has_begun_is_scored_as_alone_beside_one_that_has_not():
    made = tokenizer("chatml")
    model = LocalModel("chatml", network(made), made, ModelOptions(dtype="float32"), {})
    prompts = [ask(), EvidenceStyle.behind(ask(), "Search result (1) is informative."), ask("Snow is white.")]
    answers = {"A": "Supported", "B": "Refuted"}
    alone = [model.score([prompt], answers)[0] for prompt in prompts]
    assert [made.decode(reply.answers["Refuted"].ids) for reply in alone] == ["Refuted", " Refuted", "Refuted"]
    for order in ([0, 1, 2], [1, 2, 0]):
        together = model.score([prompts[i] for i in order], answers)
        for i, reply in zip(order, together, strict=True):
            for word, score in reply.answers.items():
                assert score.ids == alone[i].answers[word].ids
                assert score.logprob == pytest.approx(alone[i].answers[word].logprob, abs=1e-3)


def test_qwens_empty_thought_is_given_in_training_and_when_asked(shared):
    made = AutoTokenizer.from_pretrained(shared / "tokenizers" / "qwen")
    found = ExampleRenderer(made).render(example())
    assert made.decode(found.supervised) == completion(example()) + "<|im_end|>"
    given = found.ids[: found.completion_mask.index(True)]
    assert made.decode(given).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert given == Renderer(made, chat=True, context=9999).render(conversation(example()), 8).ids


# Thoughts


def test_labels_are_not_scored_within_a_thought():
    made = tokenizer("r1")
    model = LocalModel("r1", network(made), made, ModelOptions(dtype="float32"), {})
    with pytest.raises(UserError, match=r"opens a thought \(<think>\).*`answer='generate'`") as caught:
        model.score([ask()], {"A": "Yes"})
    assert "\n" not in str(caught.value)


def test_a_thought_that_the_prompt_opens_is_part_of_what_was_written():
    made = tokenizer("r1")
    model = LocalModel("r1", network(made), made, ModelOptions(dtype="float32"), {})
    seen = []
    (reply,) = model.generate([ask()], 5, lambda text: seen.append(text) or False)
    assert reply.prompt.endswith("<|Assistant|><think>\n")
    assert reply.text.startswith("<think>\n")
    assert seen[-1] == reply.text


@pytest.mark.parametrize(
    ("family", "opened"), [("r1", "<think>\n"), ("qwen3-thinking", ""), ("qwen3", ""), ("chatml", "")]
)
def test_a_closed_thought_is_no_open_one(family, opened):
    assert Renderer(tokenizer(family), chat=True, context=9999).border.thought == opened


def test_a_template_whose_answers_stand_elsewhere_is_not_trained_on():
    with pytest.raises(UserError, match=r"style 'chat'.*asks for an answer behind.*sail-fixed") as caught:
        ExampleRenderer(tokenizer("r1")).render(example())
    assert "\n" not in str(caught.value)
    assert ExampleRenderer(tokenizer("r1")).render(example(style="sail-fixed")).supervised


def test_prompts_of_the_usual_templates_are_described_as_ever():
    assert Renderer(tokenizer("chatml"), chat=True, context=9).border.describe() == {}
    assert Renderer(tokenizer("llama2"), chat=True, context=9).border.describe() == {}
    assert Renderer(tokenizer("chatml"), chat=False, context=9).border.describe() == {}
    assert "<think>" in Renderer(tokenizer("qwen3"), chat=True, context=9).border.describe()["answer_opening"]


# The end of a turn


@pytest.mark.parametrize("family", ["chatml", "phi3", "gemma3"])
def test_the_templates_own_end_of_turn_stops_an_answer(family):
    made = tokenizer(family)
    end = made.convert_tokens_to_ids(CLOSING[family])
    assert end != made.eos_token_id
    net = network(made)
    model = LocalModel("m", net, made, ModelOptions(dtype="float32"), {})
    net.lm_head.weight.data[made.eos_token_id] = 0  # does not end by itself
    ids = torch.tensor([model.renderer.render(ask(), 24).ids])
    written = net.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0, eos_token_id=-1)[0, ids.shape[1] :]
    assert made.eos_token_id not in written
    # What it writes fifth becomes the end of the turn, by a change of rows in its output layer.
    swapped = [end, written[4].item()]
    net.lm_head.weight.data[swapped] = net.lm_head.weight.data[swapped[::-1]]
    (reply,) = model.generate([ask()], 24, lambda _: False)
    assert reply.completion_tokens == written.tolist().index(written[4]) > 0
    assert not reply.cut_off


# Templates that fail


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('Only system and tool roles are\nsupported') }}",
        "{% for m in messages %}{{ m.content }",
        "{% for m in messages %}{{ m.content",
        "{{ messages[7].content.nothing.at.all }}",
        "{{ 1 / 0 }}",
    ],
)
def test_a_template_that_fails_is_one_line_with_the_mend(template):
    made = tokenizer("chatml")
    made.chat_template = template
    with pytest.raises(UserError, match=r"chat template of .* fails on a conversation of user.*`chat='off'`") as caught:
        LocalModel("m", network(made), made, ModelOptions(dtype="float32"), {})
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="chat template"):
        ExampleRenderer(made).render(example())
    assert LocalModel("m", network(made), made, ModelOptions(chat="off", dtype="float32"), {}).score(
        [ask()], {"A": "a"}
    )


@pytest.mark.parametrize(
    "template", ["Hello.", "{% for m in messages %}{{ m.content | upper }}{% endfor %}", "{{ messages[0].role }}:"]
)
def test_a_template_that_does_not_show_the_text_is_one_line(template):
    made = tokenizer("chatml")
    made.chat_template = template
    with pytest.raises(UserError, match=r"leaves out or rewrites 1 of 1 texts.*`chat='off'`") as caught:
        Renderer(made, chat=True, context=9999).render(ask(), 8)
    assert "\n" not in str(caught.value)


def test_roles_that_a_template_refuses_are_named():
    made = tokenizer("chatml")
    made.chat_template = (
        "{% if messages|length > 2 %}{{ raise_exception('one question') }}{% endif %}" + TEMPLATES["chatml"]
    )
    renderer = Renderer(made, chat=True, context=9999)
    assert renderer.render(ask(), 8).ids
    with pytest.raises(UserError, match="a conversation of user, assistant, user: one question"):
        renderer.render((*ask(), Message("assistant", (Part("Yes"),)), *ask()), 8)


def test_a_template_without_the_assistants_role_can_ask_and_is_not_trained_on():
    made = tokenizer("chatml")
    refusal = "{% for m in messages %}{% if m.role == 'assistant' %}{{ raise_exception('no') }}{% endif %}{% endfor %}"
    made.chat_template = refusal + TEMPLATES["chatml"]
    assert Renderer(made, chat=True, context=9999).render(ask(), 8).ids
    with pytest.raises(UserError, match=r"style 'chat'.*fails on a conversation of user, assistant: no"):
        ExampleRenderer(made).render(example())


# What a model's folder lacks, or brings


def test_code_that_a_model_carries_is_one_line_with_the_mend(tmp_path):
    folder = save(tmp_path / "model", tokenizer("chatml"))
    config = json.loads((folder / "config.json").read_text())
    own = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}}
    (folder / "config.json").write_text(json.dumps(config | own))
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'it-ran')!r}, 'w')")
    data = write(tmp_path / "data", [example(style="sail-fixed")])
    for act in (
        lambda: load_model(str(folder), ModelOptions(dtype="float32")),
        lambda: finetune(out=tmp_path / "run", model=str(folder), data=[str(data)]),
    ):
        with pytest.raises(UserError, match=r"`trust_remote_code`") as caught:
            act()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "it-ran").exists()
    assert not (tmp_path / "run").exists()


def test_a_model_without_a_chat_template_is_one_line_in_chat(tmp_path):
    made = tokenizer("chatml")
    made.chat_template = None
    folder = save(tmp_path / "model", made)
    asked = {
        "model": str(folder),
        "task": "sample-claims",
        "out": tmp_path / "run",
        "limit": 2,
        "search": "none",
        "wording": "bare",
    }
    for chat in ("auto", "off"):
        with pytest.raises(UserError, match=r"`style\b.*`(style='sail-fixed'|chat='on')`") as caught:
            evaluate(**asked, style="chat", options=ModelOptions(chat=chat))
        assert "\n" not in str(caught.value)
    data = write(tmp_path / "data", [example()])
    with pytest.raises(UserError, match=r"style 'chat' needs a tokenizer with a chat template; choose style 'sail'"):
        finetune(out=tmp_path / "run", model=str(folder), data=[str(data)])
    assert not (tmp_path / "run").exists()


def test_a_model_without_a_generation_config_ends_with_its_tokenizers_token(tmp_path):
    folder = save(tmp_path / "model", tokenizer("chatml"))
    (folder / "generation_config.json").unlink()
    model = load_model(str(folder), ModelOptions(dtype="float32"))
    assert {model.tokenizer.eos_token_id, model.renderer.border.closing_id} <= model.stop_ids
    model.model.generation_config = None
    assert model.tokenizer.eos_token_id in LocalModel("m", model.model, model.tokenizer, ModelOptions(), {}).stop_ids


def test_an_evaluation_that_would_score_within_a_thought_is_refused_before_it_writes(tmp_path):
    folder = save(tmp_path / "model", tokenizer("r1"))
    asked = {
        "model": str(folder),
        "task": "sample-claims",
        "out": tmp_path / "run",
        "limit": 2,
        "options": ModelOptions(dtype="float32"),
    }
    with pytest.raises(UserError, match="opens a thought"):
        evaluate(**asked)
    assert not (tmp_path / "run").exists()
    figures = evaluate(**asked, answer="generate", max_new_tokens=8).to_json()
    assert figures["n"] == 2
