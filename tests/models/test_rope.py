"""Models whose RoPE depends on the length: each row means what it means alone, whatever shares its pass."""

from __future__ import annotations

import copy
import math
import random

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from sailkit.distillation.fidelity import fidelity
from sailkit.distillation.records import ALIGNED, Targets, TeacherExample
from sailkit.distillation.teacher import LocalTeacher, TopK
from sailkit.errors import UserError
from sailkit.models.base import ModelOptions
from sailkit.models.local import LocalModel
from sailkit.models.rope import EACH_LENGTH, RopeLengths, rope_lengths
from sailkit.models.sources import Source
from sailkit.prompts.render import step_prompt
from sailkit.records import TrainingExample
from sailkit.training import trainer as trl
from sailkit.training.arguments import sft_config
from sailkit.training.checks import check_rows
from sailkit.training.recipe import Recipe
from sailkit.training.tokenise import IGNORED, Prepared
from small_models import trained

FP32 = ModelOptions(dtype="float32")
SHORT = 40  # tokens up to which the frequencies are the usual ones
SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_theta": 10000.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 8.0, "rope_theta": 10000.0}
KINDS = {
    "longrope": ("phi3", {"max_position_embeddings": 512, "original_max_position_embeddings": SHORT}, LONG),
    "dynamic": ("llama", {"max_position_embeddings": SHORT}, DYNAMIC),
}
LENGTHS = (100, 70, SHORT + 1, SHORT, SHORT - 1, SHORT - 2, 20, 6)
ANSWERS = [(5,), (6, 7), (6, 8, 9)]


def network(kind: str):
    architecture, limits, rope = KINDS[kind]
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, vocab_size=512, rope_parameters=dict(rope), **SIZES, **limits)
    made = AutoModelForCausalLM.from_config(config)
    for weights in made.parameters():
        if weights.dim() > 1:
            weights.data.normal_(0, 0.3)
    return made.float().eval()


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def plain(kind):
    """Logits of one row alone, by a model that has read nothing before."""
    pristine = network(kind)

    def logits(ids) -> torch.Tensor:
        with torch.inference_mode():
            return copy.deepcopy(pristine)(input_ids=torch.tensor([list(ids)])).logits[0]

    return logits


@pytest.fixture
def model(kind) -> LocalModel:
    return LocalModel(kind, network(kind), trained("byte-level"), FP32, {})


def rows(lengths=LENGTHS) -> list[tuple[int, ...]]:
    dice = random.Random(0)
    beginning = tuple(dice.randrange(3, 300) for _ in range(4))  # that all of them share
    return [(*beginning, *(dice.randrange(3, 300) for _ in range(n - 4))) for n in lengths]


def test_scores_are_those_of_each_row_alone(model, plain):
    def expected(prompt, answer):
        logs = plain(prompt + answer).log_softmax(-1)
        return sum(logs[len(prompt) - 1 + n, token].item() for n, token in enumerate(answer))

    right = torch.tensor([[expected(prompt, answer) for answer in ANSWERS] for prompt in rows()])
    assert model.shared
    assert (torch.tensor(model.score_ids(rows(), ANSWERS)) - right).abs().max() < 1e-4
    for prompt, scores in zip(rows(), right, strict=True):
        assert (torch.tensor(model.score_ids([prompt], ANSWERS)[0]) - scores).abs().max() < 1e-4
    longer = [plain((*prompt, *rows((60,))[0])).log_softmax(-1)[len(prompt) - 1, 5].item() for prompt in rows()]
    changed = [abs(a - b) > 0.1 for a, b in zip(longer, right[:, 0].tolist(), strict=True)]
    assert sum(changed) > 3, "the length means something to this model"


def test_texts_are_those_of_each_row_alone(model, plain):
    """Prompts that become long, were long, and stay short, written on together."""
    texts = ["the quick brown fox " * n for n in (9, 6, 3, 1)]
    prompts = [step_prompt("{text}", text, []) for text in texts]
    model.renderer.context = 512
    rendered = [model.renderer.render(prompt, 12).ids for prompt in prompts]
    assert len(rendered[0]) > SHORT > len(rendered[1]) > SHORT - 12
    for reply, ids in zip(model.generate(prompts, 12, lambda _: False), rendered, strict=True):
        made: list[int] = []
        while len(made) < 12:
            made.append(int(plain((*ids, *made))[-1].argmax()))
            if made[-1] == model.tokenizer.eos_token_id:
                made.pop()
                break
        assert reply.text == model.tokenizer.decode(made, skip_special_tokens=True)
        assert reply.completion_tokens == len(made)


def test_a_likely_answer_is_followed_only_where_it_stays_short(model):
    model.renderer.context = 512
    prompts = [step_prompt("{text}", "the quick brown fox " * n, []) for n in (9, 5, 1)]
    plainly = [reply.text for reply in model.generate(prompts, 8, lambda _: False)]
    likely = [text.strip() for text in plainly]
    assert [reply.text for reply in model.generate(prompts, 8, lambda _: False, likely)] == plainly


def test_a_teacher_gives_what_it_thinks_of_each_row_alone(model, plain):
    teacher = LocalTeacher(model, TopK(4, 1.0, "float32"))
    pairs = [TeacherExample(str(i), ids[: len(ids) // 2], ids[len(ids) // 2 :], "") for i, ids in enumerate(rows())]
    for pair, row in zip(pairs, teacher.rows(pairs), strict=True):
        logits = plain(pair.prompt + pair.tokens)[len(pair.prompt) - 1 : -1]
        known = sorted(set(model.tokenizer.get_vocab().values()))
        logs = torch.full_like(logits, -torch.inf)
        logs[:, known] = logits[:, known]
        logs = logs.log_softmax(-1)
        right = logs.gather(1, torch.tensor(pair.tokens)[:, None])[:, 0]
        assert np.abs(row.observed - right.numpy()).max() < 1e-4
        assert np.abs(row.logprobs.reshape(-1, 4) - logs.topk(4).values.numpy()).max() < 1e-4


def prepared(lengths=LENGTHS) -> Prepared:
    ids = tuple(rows(lengths))
    labels = tuple((*[IGNORED] * (len(row) // 2), *row[len(row) // 2 :]) for row in ids)
    examples = tuple(TrainingExample(str(i), "?", "", (), (), "!", "sail-fixed") for i in range(len(ids)))
    return Prepared(examples, ids, labels, (), 0, 0)


def test_fidelity_reads_each_row_as_it_is_alone(model, plain):
    aside = prepared()
    sizes = [sum(label != IGNORED for label in row) for row in aside.labels]
    n = sum(sizes)
    targets = Targets(np.cumsum([0, *sizes]), np.arange(n + 1), np.full(n, 7), np.full(n, 0.5), np.full(n, 0.5),
                      np.full(n, ALIGNED))  # fmt: skip
    found = fidelity(model.model, aside, targets, 512)
    for row, ids, labels in zip(found, aside.ids, aside.labels, strict=True):
        ce = functional.cross_entropy(plain(ids)[:-1], torch.tensor(labels[1:]), ignore_index=IGNORED, reduction="sum")
        assert row["cross_entropy"] == pytest.approx(ce.item(), rel=1e-4)


def test_held_out_loss_is_that_of_each_row_alone(kind, plain, tmp_path):
    aside, learn = prepared(), prepared((10, 12))
    training = {"bf16": False, "max_length": 512, "per_device_eval_batch_size": 4, "max_steps": 1}
    args = sft_config(Recipe("m", ("d",), training=training), tmp_path, held_out=True)
    one = trl.Trainer(model=network(kind), tokenizer=trained("byte-level"), args=args, train=learn, held_out=aside)
    if kind == "dynamic":  # a model that is loaded has this done
        from sailkit.models.rope import forget_lengths

        forget_lengths(one.model)
    total, count = 0.0, 0
    for ids, labels in zip(aside.ids, aside.labels, strict=True):
        following = torch.tensor(labels[1:])
        total += functional.cross_entropy(plain(ids)[:-1], following, ignore_index=IGNORED, reduction="sum").item()
        count += int((following != IGNORED).sum())
    assert one.evaluate()["eval_loss"] == pytest.approx(total / count, rel=1e-4)


def test_rows_that_would_change_each_other_are_not_trained_in_one_batch(kind, tmp_path):
    made = network(kind)
    made.config.save_pretrained(tmp_path)
    if kind == "dynamic":  # whose longer rows no context has room for
        made.config.get_text_config().max_position_embeddings = SHORT
    parts = [prepared((30, 20))], [prepared((SHORT + 1, 20))]
    for training, mixed in (({}, True), ({"packing": True, "per_device_train_batch_size": 1}, True),
                            ({"per_device_train_batch_size": 1}, False)):  # fmt: skip
        recipe = Recipe("phi", ("d",), training=training)
        check_rows(recipe, Source(tmp_path), parts[0])
        if kind == "dynamic":
            continue
        if mixed:
            with pytest.raises(UserError, match=r"set training.max_length to 40, or training.per_device_train_batch"):
                check_rows(recipe, Source(tmp_path), parts[1])
        else:
            check_rows(recipe, Source(tmp_path), parts[1])


def test_the_manifest_says_where_the_length_begins_to_mean_something(model):
    assert model.describe()["rope_threshold"] == SHORT


@pytest.mark.parametrize("kind", KINDS)
def test_a_config_that_does_not_say_it_is_found_out_by_the_self_test(kind):
    """As of models whose code is their own: no two lengths share a pass."""
    made = network(kind)
    for module in made.modules():
        if hasattr(module, "rope_type"):
            module.config = copy.deepcopy(made.config)
    made.config.rope_parameters = {"rope_type": "default", "rope_theta": 10000.0}
    made.config.max_position_embeddings = 512
    model = LocalModel(kind, made, trained("byte-level"), FP32, {})
    assert model.lengths == EACH_LENGTH
    together = torch.tensor(model.score_ids(rows(), ANSWERS))
    alone = torch.tensor([model.score_ids([row], ANSWERS)[0] for row in rows()])
    assert (together - alone).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("rope", "found"),
    [
        (None, RopeLengths()),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64}, RopeLengths()),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, RopeLengths()),
        ({"type": "su", "original_max_position_embeddings": 64}, RopeLengths(64)),
        ({"rope_type": "dynamic", "factor": 2.0}, RopeLengths(512, each=True)),
        ({"full_attention": {"rope_type": "longrope", "original_max_position_embeddings": 64},
          "sliding_attention": {"rope_type": "default"}}, RopeLengths(64)),
    ],
)  # fmt: skip
def test_what_configs_say(rope, found):
    class Config:
        max_position_embeddings = 512
        rope_scaling = rope

        def get_text_config(self):
            return self

    assert rope_lengths(Config()) == found


def test_groups_keep_their_order():
    lengths = [9, 3, 7, 12, 5, 12]
    assert RopeLengths().groups(lengths) == [[0, 1, 2, 3, 4, 5]]
    assert RopeLengths(6).groups(lengths) == [[0, 2, 3, 5], [1, 4]]
    assert RopeLengths(6, each=True).groups(lengths) == [[0], [1, 4], [2], [3, 5]]
    assert RopeLengths(6).batches(lengths, 3) == [[1, 4], [2, 0, 3], [5]]
    assert math.isclose(sum(len(batch) for batch in EACH_LENGTH.batches(lengths, 2)), 6)
