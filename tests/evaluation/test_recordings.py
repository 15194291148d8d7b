"""Sample logs that other tools wrote are read with no field map; `tests/fixtures/logs/README.md` describes them."""

from __future__ import annotations

import gzip
import json
import shutil
import zipfile
from pathlib import Path

import pytest

from sailkit.errors import UserError
from sailkit.evaluation import logs
from sailkit.evaluation.compare import compare
from sailkit.evaluation.logs import chosen_letter, read_sample_log
from sailkit.evaluation.recordings import load_recording
from sailkit.evaluation.rescore import rescore
from sailkit.records import Prediction
from sailkit.reporting import report

pytestmark = pytest.mark.filterwarnings("ignore:.*the answers of filter 'first-word':RuntimeWarning")

LOGS = Path(__file__).parents[1] / "fixtures" / "logs"
GENERATED = ["lm-eval-generate.jsonl", "inspect.eval", "inspect.json", "lighteval-generate.parquet"]
CHOICES = ["lm-eval-choice.jsonl", "lighteval-choice.parquet"]


def rescored(*files: Path, **settings: object) -> list[dict]:
    return [result.to_json() for result in rescore(*files, **settings)]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def score_of(name: str) -> float:
    """Accuracy as the tool itself scored the samples."""
    path = LOGS / name
    if name.startswith("lm-eval"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        metric = rows[0]["metrics"][0]
        return mean([row[metric] for row in rows if row["filter"] == rows[0]["filter"]])
    if name.startswith("lighteval"):
        import pyarrow.parquet

        rows = pyarrow.parquet.read_table(path).to_pylist()
        (metric,) = rows[0]["metric"]
        return mean([row["metric"][metric] for row in rows])
    log = json.loads((LOGS / "inspect.json").read_text())
    return mean([float(next(iter(s["scores"].values()))["value"] == "C") for s in log["samples"]])


def test_a_choice_without_any_probability_is_read_and_nan_is_refused(tmp_path):
    rows = [json.loads(line) for line in (LOGS / "lm-eval-choice.jsonl").read_text().splitlines()]
    path = tmp_path / "samples_choice.jsonl"

    def write(*values: str) -> Path:
        rows[0]["resps"] = [[[value, "False"]] for value in values]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    report(write("-inf", "-1.0"), task="sample-claims", out=tmp_path / "page.html")
    assert "Infinity" not in (tmp_path / "page.html").read_text()
    for values in (("nan", "-1.0"), ("-inf", "-inf")):
        with pytest.raises(UserError, match="line 1: not a sample as lm-evaluation-harness writes it"):
            rescore(write(*values), task="sample-claims")


@pytest.mark.parametrize(
    "change",
    [
        {"eval": "x"},
        {"samples": ["x"]},
        {"samples": {"a": 1}},
        {"eval": {"dataset": [1]}},
        {"eval": {"dataset": {"sample_ids": 3}}},
    ],
)
def test_a_log_of_another_structure_is_one_line(tmp_path, change):
    path = tmp_path / "odd.json"
    path.write_text(json.dumps(json.loads((LOGS / "inspect.json").read_text()) | change))
    with pytest.raises(UserError, match="not a sample as inspect_ai writes it"):
        rescore(path, task="sample-claims")


@pytest.mark.parametrize("name", GENERATED)
def test_answers_of_other_tools_are_read_again(name):
    (figures,) = rescored(LOGS / name, task="sample-claims")
    assert (figures["n"], figures["task"]) == (8, "sample-claims")
    assert figures["labels"] == ["SUPPORTS", "REFUTES"]
    read = load_recording(LOGS / name, "sample-claims").predictions
    assert all(p.raw_output for p in read)
    # "The claim is not entirely correct. The claim is incorrect because": the first sentence that speaks decides.
    assert figures["unreadable"] == sum(p.label is None for p in read)
    assert {p.gold for p in read} == {"SUPPORTS", "REFUTES"}


@pytest.mark.parametrize("name", ["lm-eval-generate.jsonl", "inspect.eval", "inspect.json"])
def test_what_the_tool_extracted_is_the_recorded_prediction(name):
    (figures,) = rescored(LOGS / name, task="sample-claims")
    assert figures["recorded_accuracy"] == pytest.approx(score_of(name))


@pytest.mark.parametrize("name", CHOICES)
def test_scored_choices_give_the_accuracy_of_the_tool(name):
    (figures,) = rescored(LOGS / name, task="sample-claims")
    assert figures["accuracy"] == pytest.approx(score_of(name))
    assert figures["auroc"] is not None
    assert all(
        sum(p.scores.values()) == pytest.approx(1) for p in load_recording(LOGS / name, "sample-claims").predictions
    )


@pytest.mark.parametrize("name", ["lm-eval-generate.jsonl", "lm-eval-choice.jsonl", "inspect.eval", "inspect.json"])
def test_items_bear_the_ids_of_the_data_set(name):
    ids = [p.id for p in load_recording(LOGS / name, "sample-claims").predictions]
    assert ids[:3] == ["science-01", "health-04", "climate-07"]


def test_logs_of_two_tools_are_compared_item_by_item():
    pair = compare(LOGS / "lm-eval-generate.jsonl", LOGS / "inspect.eval", task="sample-claims").to_json()
    assert pair["n"] == 8


def test_the_archive_and_the_json_of_a_log_are_the_same_set():
    archive, plain = (load_recording(LOGS / f"inspect.{kind}", "sample-claims") for kind in ("eval", "json"))
    assert archive.predictions == plain.predictions
    assert archive.provenance["model"] == "hf/local"


@pytest.mark.parametrize("ending", [".gz", ".GZ", "upper"])
@pytest.mark.parametrize("name", GENERATED)
def test_logs_under_other_endings_are_logs_too(name, ending, tmp_path):
    """As tables are: gzipped, and in capitals."""
    path, data = tmp_path / name.upper(), (LOGS / name).read_bytes()
    if ending != "upper":
        if not name.endswith((".json", ".jsonl")):
            pytest.skip("compressed by itself")
        path, data = tmp_path / (name + ending), gzip.compress(data)
    path.write_bytes(data)
    assert load_recording(path, "sample-claims").predictions == load_recording(LOGS / name, "sample-claims").predictions


@pytest.mark.parametrize(
    ("target", "acc", "label"), [("1", None, "2"), ("0", 1.0, "1"), ("1", 1.0, "1"), ("2", 1.0, "2")]
)
def test_a_target_among_choices_that_are_numbers_is_read_as_acc_says(target, acc, label):
    """Of the choices 1 and 2 the first is the likeliest; lm-evaluation-harness names the right one by index or text."""
    best = "2" if target == "2" else "1"
    sample = {"target": target, **({} if acc is None else {"acc": acc})}
    assert logs._target(sample, ["1", "2"], best) == label


def test_choices_that_are_scored_without_the_question_too_are_no_further_choices(tmp_path):
    """For `acc_mutual_info` lm-evaluation-harness scores each choice a second time, behind nothing."""
    rows = [json.loads(line) for line in (LOGS / "lm-eval-choice.jsonl").read_text().splitlines()]
    for row in rows:
        alone = [{"arg_0": "", "arg_1": call["arg_1"]} for call in row["arguments"].values()]
        row["arguments"] |= {f"gen_args_{len(alone) + i}": call for i, call in enumerate(alone)}
        row["resps"] += [[["-0.5", "True"]] for _ in alone]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = load_recording(LOGS / "lm-eval-choice.jsonl", "sample-claims").predictions
    assert load_recording(tmp_path / "samples.jsonl", "sample-claims").predictions == plain


def test_samples_in_a_json_list_are_a_log(tmp_path):
    rows = [json.loads(line) for line in (LOGS / "lm-eval-choice.jsonl").read_text().splitlines()]
    (tmp_path / "samples.json").write_text(json.dumps(rows))
    assert len(load_recording(tmp_path / "samples.json", "sample-claims").predictions) == 8


def test_the_task_is_recognised_by_the_words_of_the_targets():
    assert {p.gold for p in load_recording(LOGS / "lm-eval-generate.jsonl").predictions} == {"SUPPORTS", "REFUTES"}


def test_one_filter_is_read_and_the_others_are_named():
    note = "the answers of filter 'first-word' are the recorded ones; the log also has filter 'none'"
    with pytest.warns(RuntimeWarning, match=note):
        load_recording(LOGS / "lm-eval-generate.jsonl", "sample-claims")


def test_an_archive_with_the_older_compression_is_read(tmp_path):
    """Logs before Zstandard are ordinary zip files."""
    log = json.loads((LOGS / "inspect.json").read_text())
    with zipfile.ZipFile(tmp_path / "old.eval", "w", zipfile.ZIP_DEFLATED) as archive:
        for sample in log.pop("samples"):
            archive.writestr(f"samples/{sample['id']}_epoch_1.json", json.dumps(sample))
        archive.writestr("header.json", json.dumps(log))
    read = load_recording(tmp_path / "old.eval", "sample-claims").predictions
    assert read == load_recording(LOGS / "inspect.json", "sample-claims").predictions


def with_output(tmp_path: Path, output: dict[str, object]) -> Prediction:
    """The prediction of a sample of inspect_ai's that ended with this output."""
    log = json.loads((LOGS / "inspect.json").read_text())
    sample = log["samples"][0] | {"output": output}
    (tmp_path / "edited.json").write_text(json.dumps(log | {"samples": [sample]}))
    (prediction,) = load_recording(tmp_path / "edited.json", "sample-claims").predictions
    return prediction


def test_a_filtered_answer_is_refused_and_reasoning_is_no_part_of_an_answer(tmp_path):
    message = {"role": "assistant", "content": ""}
    filtered = with_output(tmp_path, {"choices": [{"message": message, "stop_reason": "content_filter"}]})
    assert filtered.outcome == "refused"
    parts = [{"type": "reasoning", "reasoning": "Is it wrong?"}, {"type": "text", "text": "Correct."}]
    message = {"role": "assistant", "content": parts}
    assert with_output(tmp_path, {"choices": [{"message": message, "stop_reason": "stop"}]}).label == "SUPPORTS"


def test_a_sample_that_failed_is_unreadable(tmp_path):
    assert with_output(tmp_path, {"choices": []}).outcome == "unreadable"


def test_an_unfinished_run_says_so(tmp_path):
    log = json.loads((LOGS / "inspect.json").read_text()) | {"status": "cancelled"}
    (tmp_path / "cancelled.json").write_text(json.dumps(log))
    with pytest.warns(RuntimeWarning, match="status 'cancelled': 8 samples"):
        load_recording(tmp_path / "cancelled.json", "sample-claims")


def test_an_absent_answer_is_none_of_the_labels_even_if_one_is_called_none(tmp_path):
    (tmp_path / "own.yaml").write_text(
        "name: own\n"
        "data: {fields: {id: id, text: claim, label: label}}\n"
        "labels: {some: {answer: Correct}, none: {answer: Wrong}}\n"
        "protocols: {direct: {wordings: {plain: '{text} {answers}'}}}\n"
    )
    read = load_recording(LOGS / "lm-eval-choice.jsonl", tmp_path / "own.yaml").predictions
    assert {p.gold for p in read} == {"some", "none"}
    assert {p.recorded for p in read} == {None}


def test_epochs_of_one_sample_are_items_of_one_group(tmp_path):
    log = json.loads((LOGS / "inspect.json").read_text())
    log["samples"] += [sample | {"epoch": 2} for sample in log["samples"]]
    (tmp_path / "twice.json").write_text(json.dumps(log))
    read = load_recording(tmp_path / "twice.json", "sample-claims").predictions
    assert len({p.id for p in read}) == 16
    assert len({p.group for p in read}) == 8


@pytest.mark.parametrize(
    ("text", "choice"),
    [("B", "wrong"), ("I think.\nANSWER: B", "wrong"), ("(A)", "right"), ("A claim like this is", None), ("C", None)],
)
def test_a_letter_stands_for_a_choice_only_by_itself(text, choice):
    assert chosen_letter(text, ["right", "wrong"]) == choice


@pytest.mark.parametrize(
    ("text", "label"),
    [("<think>\nIs it A or B?\nB", None), ("<think>It is A.</think>\nB", "REFUTES"), ("B", "REFUTES")],
)
def test_a_letter_within_an_open_thought_is_no_answer(tmp_path, text, label):
    log = json.loads((LOGS / "inspect.json").read_text())
    message = {"role": "assistant", "content": text}
    sample = log["samples"][0] | {"choices": ["Correct", "Wrong"], "target": "A"}
    sample["output"] = {"choices": [{"message": message, "stop_reason": "max_tokens"}]}
    (tmp_path / "thought.json").write_text(json.dumps(log | {"samples": [sample]}))
    (read,) = load_recording(tmp_path / "thought.json", "sample-claims").predictions
    assert (read.label, read.outcome) == (label, "answered" if label else "unreadable")


@pytest.mark.parametrize("cut", [100, 2000])
def test_a_damaged_archive_is_one_line(tmp_path, cut):
    shutil.copy(LOGS / "inspect.eval", path := tmp_path / "cut.eval")
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(UserError, match=r"cut\.eval: not a readable log of inspect_ai"):
        load_recording(path, "sample-claims")


def test_a_damaged_member_is_noticed(tmp_path):
    data = bytearray((LOGS / "inspect.eval").read_bytes())
    with zipfile.ZipFile(LOGS / "inspect.eval") as archive:
        info = next(i for i in archive.infolist() if i.filename.startswith("samples/"))
    data[info.header_offset + 30 + len(info.filename) + info.compress_size // 2] ^= 0xFF
    (tmp_path / "spoilt.eval").write_bytes(data)
    with pytest.raises(UserError, match="not a readable log of inspect_ai"):
        load_recording(tmp_path / "spoilt.eval", "sample-claims")


def test_a_line_that_is_no_sample_is_named(tmp_path):
    rows = (LOGS / "lm-eval-choice.jsonl").read_text().splitlines()
    broken = json.loads(rows[2]) | {"arguments": {}}
    (tmp_path / "samples.jsonl").write_text("\n".join([*rows[:2], json.dumps(broken)]))
    with pytest.raises(UserError, match=r"samples\.jsonl, line 3: not a sample as lm-evaluation-harness writes it"):
        load_recording(tmp_path / "samples.jsonl", "sample-claims")


def test_choices_that_are_no_answers_of_the_task_are_refused(tmp_path):
    text = (LOGS / "lm-eval-choice.jsonl").read_text().replace('"arg_1": "Wrong"', '"arg_1": "Banana"')
    (tmp_path / "samples.jsonl").write_text(text)
    with pytest.raises(UserError, match="'Banana' is neither a label of task sample-claims"):
        load_recording(tmp_path / "samples.jsonl", "sample-claims")


def test_an_ordinary_table_is_no_log(tmp_path):
    (tmp_path / "own.jsonl").write_text('{"id": 1, "output": "Correct", "label": "SUPPORTS"}\n')
    (tmp_path / "own.json").write_text('[{"id": 1, "output": "Correct", "label": "SUPPORTS"}]')
    for name in ("own.jsonl", "own.json"):
        assert read_sample_log(tmp_path / name) is None
        assert load_recording(tmp_path / name).predictions[0].label == "SUPPORTS"


def altered(tmp_path: Path, **changes: object) -> list[Prediction]:
    """Predictions of a log with two choices whose first sample is changed."""
    log = json.loads((LOGS / "inspect.json").read_text())
    sample = log["samples"][0] | {"choices": ["Correct", "Wrong"], "target": "B"} | changes
    (tmp_path / "log.json").write_text(json.dumps(log | {"samples": [sample]}))
    return list(load_recording(tmp_path / "log.json", "sample-claims").predictions)


@pytest.mark.parametrize(
    "end",
    [
        "\n\nANSWER: B",
        "\nAnswer: B",
        "\n**ANSWER: B**",
        " So ANSWER: B",
        "\nANSWER: A\nANSWER: (b).",
        "\nANSWER: B\n\nYes.",
    ],
)
def test_reasoning_that_names_another_choice_does_not_decide_before_the_stated_one(tmp_path, end):
    text = f"At first sight the claim looks correct. However, the passage gives another year.{end}"
    (read,) = altered(tmp_path, output={"choices": [{"message": {"content": text}}]})
    assert (read.label, read.gold) == ("REFUTES", "REFUTES")


def test_samples_with_a_system_prompt_alone_and_odd_digits_are_read(tmp_path):
    (read,) = altered(tmp_path, input=[{"role": "system", "content": "Judge: ice floats."}], metadata={})
    assert read.text == "Judge: ice floats."
    log = json.loads((LOGS / "inspect.json").read_text())
    log["eval"]["dataset"] = None
    (tmp_path / "no-set.json").write_text(json.dumps(log))
    assert len(load_recording(tmp_path / "no-set.json", "sample-claims").predictions) == 8
    (read,) = altered(tmp_path, scores={"pattern": {"answer": "²"}})  # no digit that counts a choice
    assert read.recorded is None


def test_the_task_is_the_one_without_labels_that_do_not_occur(tmp_path):
    """Climate-FEVER has a fourth label, whose F1 of 0 would lower a macro-F1 over the three of FEVER."""
    labels = ["SUPPORTS", "REFUTES", "NOT_ENOUGH_INFO"]
    rows = [{"id": i, "label": labels[i % 3], "prediction_recorded": labels[i % 3], "output": "?"} for i in range(30)]
    (tmp_path / "three.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (figures,) = rescored(tmp_path / "three.jsonl", published=["accuracy=1,macro_f1=1"])
    assert {*figures["labels"]} == {*labels}
    assert figures["recorded_macro_f1"] == 1.0
    assert "published-differs" not in figures["flags"]
