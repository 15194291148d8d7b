"""Recorded outputs read again: two real models, the same under other names, and small made-up files."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from sklearn import metrics as sk

from sailkit.cli import main
from sailkit.errors import UserError
from sailkit.evaluation.compare import compare
from sailkit.evaluation.predictions import field_names
from sailkit.evaluation.rescore import rescore
from sailkit.reporting import report

FIELDS = {
    "id": "number",
    "text": "claim",
    "label": "truth",
    "output": "said",
    "prediction": "parsed",
    "reference": "gpt",
}
LABELS = ("SUPPORTS", "REFUTES")
COMMON = ["published-differs", "sampled-reference", "default-class-parser", "constant-predictor", "mixed-f1-kinds"]


def rescored(*files: Path, **settings: object) -> list[dict]:
    return [result.to_json() for result in rescore(*files, **settings)]


def figures_of(truth: list[str], said: list[str], labels: tuple[str, str], prefix: str) -> dict[str, float]:
    """What scikit-learn makes of one labelling against another."""
    settings = {"labels": labels, "zero_division": 0}
    each = sk.f1_score(truth, said, average=None, **settings)
    return {
        f"{prefix}accuracy": sk.accuracy_score(truth, said),
        f"{prefix}macro_f1": sk.f1_score(truth, said, average="macro", **settings),
        f"{prefix}weighted_f1": sk.f1_score(truth, said, average="weighted", **settings),
        f"{prefix}balanced_accuracy": sk.recall_score(truth, said, labels=labels, average="macro", zero_division=0),
        f"{prefix}mcc": sk.matthews_corrcoef(truth, said),
        **{f"{prefix}f1_{label}": value for label, value in zip(labels, each, strict=True)},
    }


def row(number: int, label: str = "SUPPORTS", output: str = "Correct", **more: object) -> dict[str, object]:
    return {"id": number, "text": f"Claim {number}", "label": label, "output": output, **more}


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def flags(rows: list[dict[str, object]], path: Path, **settings: object) -> list[str]:
    (found,) = rescored(write(path, rows), task="climate-fever", **settings)
    return [code for code in found["flags"] if code in COMMON]


def complaint(*files: Path, **settings: object) -> str:
    with pytest.raises(UserError) as caught:
        rescore(*files, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_columns_that_are_called_like_settings_may_hold_anything(tmp_path):
    paths = []
    for name in ("bm25", "dense"):
        rows = [row(n, LABELS[n % 2], search={"engine": name}, protocol=["x"]) for n in range(30)]
        paths.append(write(tmp_path / f"{name}.jsonl", rows))
    assert "search" in str(compare(*paths))
    report(paths[0], out=tmp_path / "page.html")


def test_the_terminal_says_against_which_labels(recordings, capsys):
    main(["rescore", str(recordings.llama), *(["--task", recordings.task] if recordings.task else [])])
    shown = " ".join(capsys.readouterr().out.split())
    assert "as recorded, reference labels read again, reference labels read again, human labels" in shown
    assert f"always answering {recordings.yes}: accuracy 0.7211 against the human labels" in shown
    assert re.search(rf"always answering {recordings.yes}: accuracy 0\.\d+ against the reference labels", shown)


@pytest.mark.parametrize("model", ["llama", "sail"])
def test_recorded_models_against_scikit_learn(recordings, model):
    path = getattr(recordings, model)
    (found,) = rescored(path, task=recordings.task)
    human, reference, recorded, said = recordings.columns(path)
    labels = (recordings.yes, recordings.no)
    expected = {
        **figures_of(reference, said, labels, ""),
        **figures_of(human, said, labels, "human_"),
        **figures_of(reference, recorded, labels, "recorded_"),
        "reference_kappa": sk.cohen_kappa_score(reference, human),
        "reference_agreement": sk.accuracy_score(reference, human),
        "majority_accuracy": human.count(recordings.yes) / 907,
        "reference_majority_accuracy": reference.count(recordings.yes) / 907,
        "unreadable": said.count("unreadable"),
        "recorded_disagrees": sum(a != b for a, b in zip(recorded, said, strict=True)),
        "n": 907,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    order = [*found["labels"], "unreadable"]
    assert [r[:3] for r in found["confusion"]["counts"]] == sk.confusion_matrix(reference, said, labels=order)[
        :2
    ].tolist()


def test_what_was_published_of_llama_was_its_parser(recordings):
    (found,) = rescored(recordings.llama, task=recordings.task, published=["accuracy=0.6461, f1=0.3925"])
    assert (found["recorded_accuracy"], found["recorded_macro_f1"]) == pytest.approx((0.6461, 0.3925), abs=5e-5)
    assert (found["accuracy"], found["macro_f1"]) == pytest.approx((0.7365, 0.7342), abs=5e-5)
    assert (found["human_accuracy"], found["majority_accuracy"]) == pytest.approx((0.6527, 0.7211), abs=5e-5)
    assert (found["against"], found["published_f1_kind"], found["majority_label"]) == (
        "reference",
        "macro_f1",
        recordings.yes,
    )
    assert found["flags"] == ["constant-predictor", "default-class-parser", "below-baseline", "reference-disagrees"]
    by_file, by_aggregates = found["flag_messages"]["constant-predictor"]
    assert f"the recorded predictions are {recordings.yes} for 907 of 907 items" in by_file
    assert "accuracy / (1 + accuracy) = 0.3925" in by_aggregates
    (parser,) = found["flag_messages"]["default-class-parser"]
    assert parser.startswith(
        "502 of 907 recorded predictions (55.3%) are not what the answer says (0 of those answers give no label)"
    )


def test_what_was_published_of_sail_was_another_f1(recordings):
    (found,) = rescored(recordings.sail, task=recordings.task, published=["accuracy=0.6240,f1=0.6230"])
    names = ("recorded_accuracy", "recorded_weighted_f1", "recorded_macro_f1")
    assert [found[name] for name in names] == pytest.approx([0.6240, 0.6230, 0.6240], abs=5e-5)
    assert found["published_f1_kind"] == "weighted_f1"
    assert not {"constant-predictor", "published-differs", "mixed-f1-kinds"} & {*found["flags"]}
    (parser,) = found["flag_messages"]["default-class-parser"]
    assert parser.startswith(
        "13 of 907 recorded predictions (1.4%) are not what the answer says (3 of those answers give no label)"
    )


def test_published_values_of_two_kinds_are_not_compared(recordings):
    published = ["accuracy=0.6461,f1=0.3925", "accuracy=0.6240,f1=0.6230"]
    for found in rescored(recordings.llama, recordings.sail, task=recordings.task, published=published):
        (text,) = found["flag_messages"]["mixed-f1-kinds"]
        assert "climate-fever.llama2-7b-chat macro_f1, climate-fever.sail-7b weighted_f1" in text
    published[1] = "accuracy=0.6240,f1=0.6240"
    for found in rescored(recordings.llama, recordings.sail, task=recordings.task, published=published):
        assert "mixed-f1-kinds" not in found["flags"]


def test_a_value_that_may_be_of_either_kind_is_not_accused(tmp_path):
    """Where both classes are as frequent, macro and weighted F1 are one value."""

    def recorded(name: str, yes: int, no: int) -> tuple[Path, str]:
        rows = [row(n, prediction_recorded=("wrong", "correct")[n > 3]) for n in range(yes)]
        rows += [row(100 + n, "REFUTES", "Wrong", prediction_recorded=("correct", "wrong")[n > 9]) for n in range(no)]
        (found,) = rescored(write(tmp_path / name, rows), task="climate-fever")
        return tmp_path / name, f"f1={found['recorded_macro_f1']:.4f}"

    (even, first), (uneven, second) = recorded("even.jsonl", 30, 30), recorded("uneven.jsonl", 50, 20)
    found = rescored(even, uneven, task="climate-fever", published=[first, second])
    assert [figures["published_f1_kind"] for figures in found] == ["macro_f1/weighted_f1", "macro_f1"]
    assert not any("mixed-f1-kinds" in figures["flags"] for figures in found)


def test_published_values_that_the_file_does_not_give(recordings):
    (found,) = rescored(recordings.llama, task=recordings.task, published=["accuracy=0.70,macro_f1=0.3925"])
    assert found["flag_messages"]["published-differs"] == [
        "published accuracy 0.7000, but the recorded predictions give 0.6461"
    ]


def test_several_fields_between_commas_are_several():
    assert field_names(["output=answer,prediction=parsed", "id=key"]) == {
        "output": "answer",
        "prediction": "parsed",
        "id": "key",
    }


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
@pytest.mark.parametrize("by_yaml", [True, False])
def test_fields_by_any_name(recordings, tmp_path, suffix, by_yaml):
    kept = ("id", "text", "label", "output", "prediction_recorded", "reference_recorded")
    names = dict(zip(kept, FIELDS.values(), strict=True))
    rows = [json.loads(line) for line in recordings.sail.read_text("utf-8").splitlines()]
    path = write(tmp_path / f"mapped{suffix}", [{names[k]: r[k] for k in kept} for r in rows])
    mapping = [f"{key}={name}" for key, name in FIELDS.items()]
    if by_yaml:
        (tmp_path / "fields.yaml").write_text("".join(f"{key}: {name}\n" for key, name in FIELDS.items()))
        mapping = [str(tmp_path / "fields.yaml")]
    (found,) = rescored(path, task=recordings.task, fields=mapping)
    (expected,) = rescored(recordings.sail, task=recordings.task)
    assert found == {**expected, "name": "mapped"}


def test_a_reference_is_read_from_its_raw_answer_where_nothing_else_is_recorded(tmp_path):
    rows = [row(n, reference_output=f"{'Wrong' if n % 2 else 'It is correct'}.") for n in range(10)]
    (found,) = rescored(write(tmp_path / "r.jsonl", rows), task="climate-fever")
    assert (found["against"], found["accuracy"], found["human_accuracy"]) == ("reference", 0.5, 1.0)


@pytest.mark.parametrize(
    ("published", "constant"),
    [
        ("accuracy=0.6461,f1=0.3925", True),
        ("accuracy=0.5,macro_f1=0.333", True),
        ("accuracy=0.9,macro_f1=0.474", True),
        ("accuracy=0.6461,f1=0.41", False),
        ("accuracy=0.624,f1=0.623", False),
        ("accuracy=0.6461", False),
        ("f1=0.3925", False),
    ],
)
def test_a_constant_predictor_shows_in_its_aggregates_alone(published, constant):
    (found,) = rescored(published=[published])
    assert found["flags"] == (["constant-predictor"] if constant else [])


@pytest.mark.parametrize("wrong", [5, 6])
def test_a_parser_with_a_default_needs_more_than_chance(tmp_path, wrong):
    """Five of five to one side is what a coin does once in sixteen; six of six once in thirty-two."""
    rows = [row(n, prediction_recorded="correct") for n in range(60)]
    rows += [row(100 + n, "REFUTES", "Wrong", prediction_recorded="wrong") for n in range(60)]
    rows += [row(200 + n, "REFUTES", "Hm.", prediction_recorded="correct") for n in range(wrong)]
    assert flags(rows, tmp_path / "r.jsonl") == (["default-class-parser"] if wrong == 6 else [])


def test_a_parser_that_gives_no_label_has_no_default(tmp_path):
    rows = [row(n, prediction_recorded="correct" if n > 9 else "") for n in range(60)]
    rows += [row(100 + n, "REFUTES", "Wrong", prediction_recorded="wrong") for n in range(60)]
    assert flags(rows, tmp_path / "r.jsonl") == []


def test_a_parser_that_errs_to_both_sides_has_no_default(tmp_path):
    rows = [
        row(n, output=("Wrong", "Correct")[n % 2], prediction_recorded=("right", "false")[n % 2]) for n in range(60)
    ]
    assert flags(rows, tmp_path / "r.jsonl") == []


@pytest.mark.parametrize(
    ("more", "sampled"),
    [
        ({"reference_recorded": "correct", "reference_temperature": 0.7}, True),
        ({"reference_recorded": "correct", "temperature": "0.7"}, True),
        ({"reference_recorded": "correct", "reference_temperature": 0}, False),
        ({"reference_recorded": "correct", "reference_temperature": None}, False),
        ({"reference_recorded": "correct", "room_temperature": 21}, False),
        ({"temperature": 0.7}, False),  # the model's own; there is no reference
    ],
)
def test_a_sampled_reference_by_its_temperature(tmp_path, more, sampled):
    rows = [row(n, **more) for n in range(30)] + [row(100 + n, "REFUTES", "Wrong", **more) for n in range(30)]
    assert flags(rows, tmp_path / "r.jsonl") == (["sampled-reference"] if sampled else [])
    texts = [{k: "" if v is None else v for k, v in r.items()} for r in rows]
    assert flags(texts, tmp_path / "r.csv") == (["sampled-reference"] if sampled else [])


@pytest.mark.parametrize("second", ["correct", "wrong"])
def test_a_sampled_reference_by_one_text_with_two_labels(tmp_path, second):
    rows = [row(1, reference_recorded="correct"), row(2, "REFUTES", "Wrong", reference_recorded=second)]
    rows[1]["text"] = rows[0]["text"]
    assert flags(rows, tmp_path / "r.jsonl") == (["sampled-reference"] if second == "wrong" else [])


def test_outputs_alone_can_be_read(tmp_path):
    path = write(tmp_path / "r.jsonl", [{"id": n, "output": ("Correct", None, "Hm")[n % 3]} for n in range(9)])
    (found,) = rescored(path, task="climate-fever")
    assert (found["n"], found["unreadable"]) == (9, 6)
    assert "accuracy" not in found


def test_all_four_labels_are_used_where_the_data_have_them(tmp_path):
    rows = [row(1), row(2, "DISPUTED", "Disputed")]
    (found,) = rescored(write(tmp_path / "r.jsonl", rows))
    assert found["labels"] == ["SUPPORTS", "REFUTES", "NOT_ENOUGH_INFO", "DISPUTED"]
    assert found["accuracy"] == 1.0


def test_a_recorded_prediction_of_a_label_that_the_data_do_not_have_is_wrong(tmp_path):
    rows = [row(1), row(2, "REFUTES", "Wrong"), row(3, output="Undecided")]
    for one, recorded in zip(rows, ("SUPPORTS", "REFUTES", "NOT_ENOUGH_INFO"), strict=True):
        one["prediction_recorded"] = recorded
    (found,) = rescored(write(tmp_path / "r.jsonl", rows))
    assert found["labels"] == ["SUPPORTS", "REFUTES"]
    assert found["accuracy"] == found["recorded_accuracy"] == pytest.approx(2 / 3)


def test_labels_may_be_given_by_their_words(tmp_path):
    (found,) = rescored(write(tmp_path / "r.jsonl", [row(1, "true"), row(2, "Untrue", "wrong")]), task="climate-fever")
    assert (found["accuracy"], found["human_f1_REFUTES"]) == (1.0, 1.0)


def test_words_for_labels_bring_no_further_labels_into_use(tmp_path):
    """Answers in words are the same data: macro-F1 is the mean over the two labels that there are."""
    named = [row(n, ("SUPPORTS", "REFUTES")[n % 2], ("Correct", "Wrong")[(n % 2) ^ (n < 5)]) for n in range(40)]
    spelled = [{**r, "label": {"SUPPORTS": "Correct", "REFUTES": " wrong"}[str(r["label"])]} for r in named]
    (by_name,) = rescored(write(tmp_path / "r.jsonl", named), task="climate-fever")
    for path in ("r.jsonl", "r.csv"):
        (by_word,) = rescored(write(tmp_path / path, spelled), task="climate-fever")
        assert by_word == by_name
    assert by_name["labels"] == ["SUPPORTS", "REFUTES"]
    assert by_name["macro_f1"] == pytest.approx(0.875, abs=0.001)


def test_groups_of_a_recording_widen_its_intervals(tmp_path):
    rows = [row(n, output=("Correct", "Wrong")[n % 25 < 5], claim=n // 5) for n in range(150)]
    path = write(tmp_path / "r.jsonl", rows)
    (single,), (grouped,) = (rescored(path, task="climate-fever", fields=f) for f in ([], ["group=claim"]))
    assert (grouped["groups"], "groups" in single) == (30, False)
    width, narrow = (f["accuracy_high"] - f["accuracy_low"] for f in (grouped, single))
    assert width > 1.8 * narrow
    for r in rows:
        r["prediction_recorded"] = r["output"]
    (grouped,) = rescored(write(path, rows), task="climate-fever", fields=["group=claim"])
    assert grouped["recorded_accuracy_high"] - grouped["recorded_accuracy_low"] == pytest.approx(width)


@pytest.mark.parametrize(
    ("rows", "settings", "expected"),
    [
        ([row(1), row(1)], {}, "r.jsonl, line 1; ids must be unique"),
        (
            [{"id": 1, "label": "SUPPORTS"}],
            {},
            "line 1: no field 'output' (found: id, label); map it with `fields` out",
        ),
        ([row(1, output=[])], {}, "line 1: field 'output' should be text, found list"),
        ([row(1, "MAYBE")], {}, "no built-in task has its labels (MAYBE); name the task"),
        ([row(1), row(2, "MAYBE")], {"task": "climate-fever"}, "line 2: label 'MAYBE' is neither a label of task"),
        ([row(1, prediction_recorded="dunno")], {}, "line 1: prediction_recorded 'dunno' is neither"),
        ([row(1)], {"fields": ["output=answer"]}, "line 1: no field 'answer'"),
        ([row(1)], {"fields": ["outptu=said"]}, "`fields` has no field 'outptu'; did you mean 'output'?"),
        ([row(1)], {"fields": ["output"]}, "`fields` takes KEY=NAME or a YAML file, not 'output'"),
        ([row(1)], {"fields": ["none.yaml"]}, "cannot read none.yaml: No such file"),
        ([row(1)], {"task": "climate-fewer"}, "did you mean 'climate-fever'?"),
        ([row(1)], {"published": ["f1=0.5", "f1=0.6"]}, "2 `published` for 1 files"),
        ([row(1)], {"published": ["macro-f1=0.5"]}, "`published` knows no figure 'macro-f1'; did you mean 'macro_f1'?"),
        ([row(1)], {"published": ["f1=half"]}, "`published` f1: 'half' is not a number"),
        ([row(1)], {"published": ["f1=39.25"]}, "`published` f1=39.25 is not between 0 and 1"),
        ([row(1)], {"published": ["f1=nan"]}, "`published` f1=nan is not between 0 and 1"),
        ([], {}, "no rows"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, rows, settings, expected):
    assert expected in complaint(write(tmp_path / "r.jsonl", rows), **settings)


def test_nothing_to_rescore():
    assert complaint().startswith("name a file of recorded outputs")
    assert complaint(Path("none.jsonl")) == "cannot read none.jsonl: No such file or directory"


def test_a_run_folder_is_no_recording(tmp_path):
    assert (
        complaint(tmp_path) == f"rescore reads files of recorded outputs, not {tmp_path}; compare and report take runs"
    )
