"""The stage as a whole on a tiny real model: what it leaves behind, and that no kill changes it."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoTokenizer

import forked
from little_room import little_room
from sailkit.errors import UserError
from sailkit.evaluation.evaluate import evaluate
from sailkit.models.base import ModelOptions
from sailkit.models.local import LocalModel
from sailkit.models.sources import local_folder, resolve
from sailkit.reporting import report
from sailkit.training.checkpoints import find_best_again
from sailkit.training.finetune import finetune
from sailkit.training.merge import merge
from sailkit.training.samples import generate_samples
from sailkit.training.seeds import TrainingGroup
from sailkit.training.tokenise import prepare
from small_rows import example, write

pytest.importorskip("trl")
SET = ["training.bf16=false", "training.learning_rate=2e-3", "training.max_length=512", "training.logging_steps=1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("build"), map(example, range(24)), map(example, range(24, 32)))


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    return shared / "models" / "stories260k"


def tune(folder, data, out, *more):
    return finetune(out=out, model=str(folder), data=[str(data)], set=[*SET, *more]).to_json()


def test_a_model_learns_to_flag_and_is_kept_at_its_best(folder, data, tmp_path):
    steps = ("training.num_train_epochs=6", "training.gradient_accumulation_steps=2")
    figures = tune(folder, data, tmp_path / "run", *steps)
    assert figures["tuned_loss"] < 0.7 * figures["base_loss"]
    assert (figures["dtype"], figures["device"]) == ("float32", "cuda" if torch.cuda.is_available() else "cpu")
    # Its fall is told from chance by the losses of single rows, which come to the same mean.
    change = figures["tuned_loss"] - figures["base_loss"]
    assert figures["loss_change"] == pytest.approx(change, abs=1e-4)
    assert figures["loss_change_low"] < change < figures["loss_change_high"] < 0
    for who in ("base", "tuned"):
        rows = [json.loads(line) for line in (tmp_path / "run" / f"held_out-{who}.jsonl").read_text().splitlines()]
        assert [row["id"] for row in rows] == [example(i).id for i in range(24, 32)]
        mean = sum(row["loss"] for row in rows) / sum(row["tokens"] for row in rows)
        assert mean == pytest.approx(figures[f"{who}_loss"], abs=1e-4)
    assert figures["tuned_flagging_results"] == figures["base_flagging_results"] == 12
    history = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    evaluated = {row["step"]: row["eval_loss"] for row in history if "eval_loss" in row}
    assert len(evaluated) == 6
    assert figures["best_step"] == min(evaluated, key=evaluated.get)
    assert figures["tuned_loss"] == pytest.approx(min(evaluated.values()))
    facts = json.loads((tmp_path / "run" / "model" / "sailkit.json").read_text())
    assert facts == {"styles": ["sail-fixed"], "max_length": 512, "base": str(folder)}
    tuned = LocalModel.from_name(str(tmp_path / "run" / "model"), ModelOptions(dtype="float32"))
    assert tuned.tokenizer.eos_token == AutoTokenizer.from_pretrained(folder).eos_token
    # The samples after training are what the saved model writes.
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples-tuned.jsonl").read_text().splitlines()]
    earlier = [json.loads(line) for line in (tmp_path / "run" / "samples-base.jsonl").read_text().splitlines()]
    assert [row["id"] for row in samples] == [row["id"] for row in earlier] == [example(i).id for i in (24, 26, 29)]
    assert [row["text"] for row in samples] != [row["text"] for row in earlier]
    held_out = prepare([example(i) for i in range(24, 32)], tuned.tokenizer, 512)
    assert generate_samples(tuned, held_out) == samples
    # Finished: nothing is done again.
    before = (tmp_path / "run" / "metrics.json").stat().st_mtime_ns
    assert tune(folder, data, tmp_path / "run", *steps) == figures
    assert (tmp_path / "run" / "metrics.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="holds another run"):
        tune(folder, data, tmp_path / "run", "training.num_train_epochs=7")


def test_a_run_that_keeps_its_last_weights_has_no_best_step(folder, data, tmp_path):
    steps = ("training.max_steps=1", "training.load_best_model_at_end=false")
    assert tune(folder, data, tmp_path / "run", *steps)["best_step"] is None


STEPS = ("lora={r: 4, lora_alpha: 8}", "training.max_steps=3", "dtype=float32")


def test_adapters_find_their_base_by_the_name_that_was_given(folder, data, tmp_path):
    figures = tune(
        folder, data, tmp_path / "run", "lora={r: 4, lora_alpha: 8}", "training.max_steps=3", "dtype=float32"
    )
    adapter = tmp_path / "run" / "model"
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(folder)
    assert not (adapter / "model.safetensors").exists()
    assert figures["steps"] == 3
    merged, plain = (LocalModel.from_name(str(path), ModelOptions(dtype="float32")) for path in (adapter, folder))
    ids = torch.tensor([[1, 300, 301, 302]])
    with torch.no_grad():
        assert not torch.equal(merged.model(ids).logits, plain.model(ids).logits)


def test_a_model_that_answers_first_is_measured_without_a_verification(folder, data, tmp_path):
    out = tmp_path / "run"
    finetune(out=out, model=str(folder), data=[str(data)], set=[*SET, "order=answer-first", "training.max_steps=1"])
    assert json.loads((out / "model" / "sailkit.json").read_text())["order"] == "answer-first"
    measured = evaluate(model=out, task="sample-facts", out=tmp_path / "own", search="evidence", limit=2, max_results=1)
    settings = json.loads((tmp_path / "own" / "manifest.json").read_text())["settings"]
    assert (settings["verify"], settings["style"]) == (False, "sail-fixed")
    assert measured.to_json()["n"] == 2


def test_merged_adapters_answer_as_they_did(folder, data, tmp_path):
    tune(folder, data, tmp_path / "run", *STEPS)
    merged = merge(tmp_path / "run" / "model", out=tmp_path / "merged")
    assert merged.to_json() == {"model": str(tmp_path / "merged"), "base": str(folder)}
    ids = torch.tensor([[1, 300, 301, 302]])
    with torch.no_grad():
        first, second = (
            LocalModel.from_name(str(path), ModelOptions(dtype="float32")).model(ids).logits
            for path in (tmp_path / "run" / "model", tmp_path / "merged")
        )
    assert torch.equal(first, second)
    assert (tmp_path / "merged" / "sailkit.json").exists()
    adapter, whole = (ModelCard.load(path / "README.md") for path in (tmp_path / "run" / "model", tmp_path / "merged"))
    assert (adapter.data.library_name, whole.data.library_name) == ("peft", "transformers")
    assert adapter.text.replace("Adapters on", "Adapters merged into") == whole.text
    with pytest.raises(UserError, match="choose another `out`"):
        merge(tmp_path / "run" / "model", out=tmp_path / "merged")
    with pytest.raises(UserError, match="it is a model already"):
        merge(tmp_path / "merged", out=tmp_path / "again")


def test_adapters_on_adapters_are_loaded_and_merged_in_their_order(folder, data, tmp_path):
    first = finetune(out=tmp_path / "first", model=str(folder), data=[str(data)], set=[*SET, *STEPS]).model
    second = finetune(out=tmp_path / "second", model=str(first), data=[str(data)], set=[*SET, *STEPS]).model
    merged = merge(second, out=tmp_path / "merged")
    assert merged.base == str(first)
    ids = torch.tensor([[1, 300, 301, 302]])
    with torch.no_grad():
        logits = [
            LocalModel.from_name(str(path), ModelOptions(dtype="float32")).model(ids).logits
            for path in (folder, first, second, tmp_path / "merged")
        ]
    torch.testing.assert_close(logits[2], logits[3], atol=1e-4, rtol=1e-4)
    assert not any(torch.allclose(logits[2], other, atol=1e-3) for other in logits[:2])


def test_adapters_of_the_package_are_merged_by_their_name(tmp_path):
    if local_folder("smollm2-135m") is None:
        pytest.skip("needs the wheel of smollm2-135m")
    merged = merge("smollm2-135m-sail", out=tmp_path / "merged", save_dtype="bfloat16")
    assert merged.base == "smollm2-135m"
    assert resolve(str(merged.model)).trained() == resolve("smollm2-135m-sail").trained()
    assert (tmp_path / "merged" / "sailkit.json").exists()


@pytest.mark.long
def test_a_quantised_base_trains_adapters_after_it_was_evaluated(folder, data, tmp_path):
    pytest.importorskip("bitsandbytes")
    four = "{load_in_4bit: true, bnb_4bit_quant_type: nf4, bnb_4bit_use_double_quant: true}"
    steps = ("training.max_steps=8", "training.learning_rate=1e-2", "lora={r: 16, target_modules: all-linear}")
    figures = tune(folder, data, tmp_path / "run", *steps, f"quantization={four}")
    assert figures["tuned_loss"] < figures["base_loss"]
    assert LocalModel.from_name(str(tmp_path / "run" / "model"), ModelOptions(dtype="float32"))


@pytest.mark.long
def test_adapters_on_a_quantised_base_follow_a_small_learning_rate(folder, data, tmp_path):
    """In bfloat16, a step of 2e-5 is nothing beside most weights."""
    pytest.importorskip("bitsandbytes")
    steps = ("training.max_steps=5", "training.learning_rate=2e-5", "training.lr_scheduler_type=constant")
    adapters = ("lora={r: 16, target_modules: all-linear}", "quantization={load_in_4bit: true}")
    kept = ("training.save_strategy=steps", "training.save_steps=1", "training.save_total_limit=5")
    tune(folder, data, tmp_path / "run", *steps, *adapters, *kept, "training.eval_strategy=no")
    first, last = (
        load_file(tmp_path / "run" / "checkpoints" / f"checkpoint-{step}" / "adapter_model.safetensors")
        for step in (1, 5)
    )
    assert {weights.dtype for weights in last.values()} == {torch.float32}
    changed = [(first[name] != last[name]).float().flatten() for name in last if "lora_A" in name]
    assert torch.cat(changed).mean() > 0.99


def test_adapters_on_nothing_are_an_error(folder, data, tmp_path):
    with pytest.raises(UserError, match=r"does not fit the model: Target modules .*nowhere"):
        tune(folder, data, tmp_path / "run", "lora={target_modules: [nowhere]}", "dtype=float32")
    with pytest.raises(UserError, match=r"lora: missing \), unterminated"):
        tune(folder, data, tmp_path / "again", "lora={target_modules: (}")


def test_a_token_that_the_model_has_no_row_for_is_an_error(folder, data, tmp_path):
    larger = shutil.copytree(folder, tmp_path / "larger")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"eos_token": "<end>"})  # and the embeddings were not resized
    tokenizer.save_pretrained(larger)
    with pytest.raises(UserError, match=r"example '0' has a token that .* has no row for \(512\)"):
        tune(larger, data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


KILLED = ("training.num_train_epochs=4", "training.gradient_accumulation_steps=2", "training.eval_strategy=steps",
          "training.eval_steps=5", "lora={r: 4, lora_dropout: 0.1}", "dtype=float32")  # fmt: skip


def losses(out: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    names = ("loss", "eval_loss", "learning_rate", "num_tokens")
    return [(row["step"], row[name]) for row in rows for name in names if name in row]


@pytest.mark.long
def test_a_run_that_was_stopped_behind_its_last_step_makes_no_step_more(folder, data, tmp_path):
    steps = ("training.max_steps=3", "training.save_steps=1", 'training.eval_strategy="steps"',
             'training.save_strategy="steps"', "training.eval_steps=1", "training.lr_scheduler_type=constant",
             "training.gradient_accumulation_steps=2")  # fmt: skip
    whole = tune(folder, data, tmp_path / "run", *steps)
    weights = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    (tmp_path / "run" / "metrics.json").unlink()
    again = tune(folder, data, tmp_path / "run", *steps)
    assert (again["steps"], again["tuned_loss"]) == (whole["steps"], whole["tuned_loss"]) == (3, whole["tuned_loss"])
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == weights


@pytest.mark.long
def test_a_run_that_goes_on_from_another_working_directory_keeps_its_best_weights(folder, data, tmp_path, monkeypatch):
    steps = ("training.max_steps=2", "training.eval_steps=1", "training.learning_rate=1",
             "training.lr_scheduler_type=constant")  # fmt: skip
    monkeypatch.chdir(tmp_path)
    first = tune(folder, data, Path("run"), *steps)
    assert first["best_step"] == 1
    (tmp_path / "run" / "metrics.json").unlink()
    monkeypatch.chdir(folder)
    again = tune(folder, data, tmp_path / "run", *steps)
    assert (again["best_step"], again["tuned_loss"]) == (1, first["tuned_loss"])


def test_a_best_checkpoint_that_was_removed_is_not_named_as_the_best(tmp_path, capsys):
    checkpoint = tmp_path / "checkpoint-2"
    checkpoint.mkdir()
    best = {"best_model_checkpoint": str(tmp_path / "checkpoint-1"), "best_global_step": 1, "best_metric": 0.1}
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": 2, **best}))
    find_best_again(checkpoint)
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    assert state == {"global_step": 2, **dict.fromkeys(best)}
    assert "checkpoint-1, the best so far, is gone" in capsys.readouterr().err


@pytest.mark.long
def test_training_stops_where_the_loss_falls_no_longer_killed_or_not(folder, data, tmp_path):
    steps = ("patience=2", "training.learning_rate=0", "training.num_train_epochs=8", "training.save_total_limit=9")
    whole = tune(folder, data, tmp_path / "run", *steps)
    assert (whole["epochs"], whole["best_step"]) == (3, 2)
    before = losses(tmp_path / "run")
    for lost in ((), ("checkpoint-6",)):
        (tmp_path / "run" / "metrics.json").unlink()
        for name in lost:
            shutil.rmtree(tmp_path / "run" / "checkpoints" / name)
        assert tune(folder, data, tmp_path / "run", *steps)["steps"] == whole["steps"]
        assert losses(tmp_path / "run") == before


@pytest.mark.long
def test_five_kills_change_nothing(folder, data, tmp_path):
    whole = tune(folder, data, tmp_path / "whole", *KILLED)
    out = tmp_path / "killed"
    steps = whole["steps"]
    for number in range(5):
        # Up to some step of this part of the run, then a moment longer.
        wanted = steps * (number + 0.2 + 0.6 * random.random()) / 5
        words = [
            "--out",
            out,
            "--model",
            folder,
            "--data",
            data,
            *(word for one in (*SET, *KILLED) for word in ("--set", one)),
        ]
        child = forked.Command("finetune", *words)
        while child.poll() is None:
            history = out / "history.jsonl"
            if history.exists() and max((step for step, _ in losses(out)), default=0) >= wanted:
                break
            time.sleep(0.002)
        time.sleep(random.random() * 0.05)
        child.send_signal(signal.SIGKILL)
        done = child.wait()
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    again = tune(folder, data, out, *KILLED)
    assert losses(out) == losses(tmp_path / "whole")
    assert abs(again["tuned_loss"] - whole["tuned_loss"]) < 1e-6
    weights = [(path / "model" / "adapter_model.safetensors").read_bytes() for path in (out, tmp_path / "whole")]
    assert weights[0] == weights[1]


@pytest.mark.long
def test_a_full_disk_at_the_end_is_one_line_and_costs_nothing(folder, data, tmp_path):
    steps = (*STEPS, "training.eval_strategy=no", "training.save_strategy=no")
    with little_room(16_000), pytest.raises(UserError, match=r"^cannot write .*model: .*free some space"):
        tune(folder, data, tmp_path / "run", *steps)
    assert tune(folder, data, tmp_path / "run", *steps)["steps"] == 3
    with little_room(200_000), pytest.raises(UserError, match=r"^cannot write .*merged: .*free some space"):
        merge(tmp_path / "run" / "model", out=tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.long
def test_a_full_disk_keeps_the_checkpoint_before(folder, data, tmp_path):
    """The second checkpoint's optimizer state does not fit."""
    out = tmp_path / "run"
    steps = ("training.max_steps=4", "training.eval_strategy=steps", "training.eval_steps=2")
    from sailkit.training import callbacks

    class Full(callbacks.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == 3:
                limit(200_000)

    with little_room() as limit, pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks, "History", lambda path: Full())
        with pytest.raises(UserError, match=r"cannot write .*checkpoint-4: .*checkpoint-2 is kept"):
            tune(folder, data, out, *steps)
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["checkpoint-2"]
    assert tune(folder, data, out, *steps)["steps"] == 4


@pytest.mark.long
def test_several_seeds_are_several_runs_each_as_if_alone(folder, data, tmp_path):
    call = {"model": str(folder), "data": [str(data)], "set": [*SET, *STEPS]}
    group = finetune(out=tmp_path / "group", seeds=2, **call)
    alone = finetune(out=tmp_path / "alone", **{**call, "set": [*call["set"], "training.seed=1"]})
    first, second = (load_file(path / "adapter_model.safetensors") for path in group.models)
    expected = load_file(alone.model / "adapter_model.safetensors")
    assert all(torch.equal(second[name], expected[name]) for name in expected)
    assert not all(torch.equal(first[name], second[name]) for name in expected)
    assert [path.parent.name for path in group.models] == ["seed-0", "seed-1"]
    losses = [run.after["loss"] for run in group.runs]
    loss = group.after["loss"]
    assert loss.value == pytest.approx(sum(losses) / 2)
    assert loss.high - loss.value == pytest.approx(12.706 * abs(losses[0] - losses[1]) / 2, rel=1e-3)  # t of one degree
    values = group.to_json()
    assert (values["seeds"], values["tuned_loss_low"]) == (["seed-0", "seed-1"], loss.low)
    assert "2 seeds: 3 steps on 24 examples each" in str(group)
    assert TrainingGroup.load(tmp_path / "group").to_json() == values
    page = report(tmp_path / "group", out=tmp_path / "page.html").markdown.read_text()
    assert all(text in page for text in ("2 seeds", "seed-1", "95 % interval over seeds", "Curves"))
    # A third seed is added to the two, which are not trained again.
    before = (tmp_path / "group" / "seed-1" / "metrics.json").stat().st_mtime_ns
    assert len(finetune(out=tmp_path / "group", seeds=3, **call).runs) == 3
    assert (tmp_path / "group" / "seed-1" / "metrics.json").stat().st_mtime_ns == before
    for out, more, message in (
        ("alone", {}, "has no runs of several seeds"),
        ("group", {"style": "chat"}, r"seed-0 is of another recipe \(style: null there, .chat. now\)"),
        ("group", {"push": "me/model"}, "`push` uploads a single model"),
    ):
        with pytest.raises(UserError, match=message):
            finetune(out=tmp_path / out, seeds=2, **call, **more)
    with pytest.raises(UserError, match="is not a run folder"):
        finetune(out=tmp_path / "group", **call)
