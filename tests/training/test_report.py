"""The page of a training run: it says what metrics.json says, no more, and nothing in it becomes markup."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sailkit import runs
from sailkit.errors import UserError
from sailkit.provenance import command_line
from sailkit.rendering.model import Series
from sailkit.rendering.numbers import figure
from sailkit.reporting import WrittenReport, report
from sailkit.training.plots import plots_of
from sailkit.training.report import headline
from test_reporting import HOSTILE, Page, good, run_folder

FIGURES = {
    "model": "tiny", "about": "A small run.", "rows": 60, "dropped": 1, "tokens": 7000, "supervised_tokens": 2150,
    "cut_tokens": 3, "headings_left": 0, "held_out_rows": 40, "steps": 80, "best_step": 60, "epochs": 4.0,
    "seconds": 12.5, "saved": "run/model", "dtype": "bfloat16", "device": "cuda",
    "loss_change": -2.1084, "loss_change_low": -2.3, "loss_change_high": -1.9,
    "base_loss": 3.2141, "base_flagging_mcc": -0.0312, "base_flagging_auroc": 0.5171, "base_flagging_results": 400,
    "base_flagging_accuracy": 0.4812, "base_flagging_recall": 0.9033,
    "tuned_loss": 1.1057, "tuned_flagging_mcc": 0.6218, "tuned_flagging_auroc": 0.8442, "tuned_flagging_results": 400,
    "tuned_flagging_accuracy": 0.8119, "tuned_flagging_precision": 0.7925, "tuned_flagging_recall": 0.7716,
}  # fmt: skip
CARD = {"n_train": 60, "judgement_shares": {"informative": 0.12, "distracting": 0.88}, "style": "chat",
        "flag_messages": {"one-sided-judgements": ["only 12.0% are informative"]}}  # fmt: skip


def history() -> list[dict]:
    rows: list[dict] = [
        {"step": step, "loss": 3.0 - step / 50, "learning_rate": 1e-4 * (1 - step / 80), "tokens_per_second": 90 + step}
        for step in range(1, 81)
    ]
    rows += [
        {"step": s, "eval_loss": loss, "eval_flagging_mcc": mcc, "eval_flagging_auroc": 0.5 + mcc / 2}
        for s, loss, mcc in ((20, 1.9, 0.2), (40, 1.4, 0.5), (60, 1.1057, 0.6218), (80, 1.15, 0.6))
    ]
    return [*rows, {"step": 80, "train_loss": 1.5}]


def effective(text: str = "") -> dict:
    training = {"learning_rate": 1e-4, "weight_decay": 0.0, "optim": f"adamw{text}", "max_steps": -1, "debug": []}
    return {"training": training, "lora": {"r": 16, "target_modules": ["q_proj"]}, "quantization": None, "steps": 80}


def tuned(folder: Path, text: str = "", **changes) -> Path:
    """A finished run as finetune leaves it, with a text in every place that takes one from outside."""
    recipe = {"model": f"tiny{text}", "data": [f"runs/a{text}"], "style": "chat", "lora": {"r": 16},
              "training": {"learning_rate": 1e-4, "run_name": f"x{text}"}}  # fmt: skip
    settings = {"recipe": recipe, "weights_sha256": "c0ffee" * 10 + "c0ff", "tokenizer_sha256": "ab" * 32,
                "train_sha256": "cd" * 32, "held_out_sha256": None, "seed": 42}  # fmt: skip
    with runs.open_run(folder, "finetune", settings) as run:
        run.describe("effective", effective(text))
    figures = {**FIGURES, "model": f"tiny{text}", "about": f"A small run.{text}", **changes}
    card = {**CARD, "style": f"chat{text}", "flag_messages": {"x": [f"only 12.0% are informative{text}"]}}
    run.path("metrics.json").write_text(json.dumps(figures))
    run.path("data.json").write_text(
        json.dumps({"data": [{"data": f"runs/a{text}", "card": card}, {"data": f"b.jsonl{text}", "card": None}]})
    )
    run.path("dropped.jsonl").write_text(json.dumps({"id": f"7{text}", "reason": f"no response{text}"}) + "\n")
    run.path("history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history()))
    return folder


def made(folder: Path, out: Path) -> tuple[Page, str, WrittenReport]:
    told = report(folder, out=out)
    return Page(told.html), told.markdown.read_text("utf-8"), told


def test_figures_are_those_of_the_run(tmp_path):
    page, markdown, told = made(tuned(tmp_path / "run"), tmp_path / "out.html")
    for words in (page.text, markdown):
        for name, value in FIGURES.items():
            if name.startswith(("base_", "tuned_")) and not name.endswith("results"):
                assert figure(value) in words
        for said in ("60", "2,150", "step 60 kept", "c0ffeec0ffee", "training.run", "lora.r", "A small run.",
                     "informative 0.12, distracting 0.88", "only 12.0% are informative", "no response",
                     "b.jsonl", "Trained in bfloat16 on cuda."):  # fmt: skip
            assert said in words
        assert "training.weight_decay" in words.replace("\\", "")
        assert "adamw" in words
        assert "max_steps" not in words.replace("\\", "")
    assert "| Flagging: Matthews correlation | −0.031 | 0.622 |" in markdown
    assert "| Flagging: precision for distracting | – | 0.792 |" in markdown
    assert told.verdict in page.text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "Held-out loss fell (3.214 → 1.106; change −2.108, −2.300 to −1.900); search results are flagged as the "
             "labels do, better than by chance (MCC −0.031 → 0.622)"),
        ({"tuned_loss": 4.0, "loss_change": 0.7859, "loss_change_low": 0.0004, "loss_change_high": 0.9},
         "Held-out loss rose (3.214 → 4.000; change +0.786, +0.0004 to +0.900); "),
        ({"tuned_loss": 3.2142, "loss_change": 0.0001, "loss_change_low": -0.012, "loss_change_high": 0.013},
         "It cannot be told whether held-out loss fell (3.2141 → 3.2142; change +0.0001, −0.012 to +0.013); "),
        ({"held_out_rows": 4, "loss_change": None}, "4 held-out rows are too few to tell whether held-out loss fell"),
        ({"loss_change": None}, "No losses of single rows are kept to tell whether held-out loss fell (3.214 → 1.106)"),
        # 24 results: up to 1.96 / sqrt(24) = 0.40 can be luck; with fewer than 20 that is no approximation.
        ({"tuned_flagging_results": 24, "tuned_flagging_mcc": 0.39},
         "cannot be told whether search results are flagged better than by chance (MCC −0.031 → 0.390)"),
        ({"tuned_flagging_results": 24, "tuned_flagging_mcc": 0.41}, "better than by chance (MCC −0.031 → 0.410)"),
        ({"tuned_flagging_results": 19, "tuned_flagging_mcc": 1.0},
         "19 search results are too few to tell whether they are flagged as the labels do (MCC −0.031 → 1.000)"),
        ({"tuned_flagging_mcc": -0.3}, "flagged against the labels"),
        ({"tuned_flagging_mcc": None}, "flagging cannot be measured"),
        ({"base_loss": None, "tuned_loss": None}, "Nothing was held out"),
    ],
)  # fmt: skip
def test_the_headline_claims_no_more_than_the_figures(changes, words):
    assert words in headline({**FIGURES, **changes})


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_stay_texts(tmp_path, text):
    plain, _, _ = made(tuned(tmp_path / "plain", "word"), tmp_path / "plain.html")
    page, markdown, _ = made(tuned(tmp_path / "run", text), tmp_path / "out.html")
    assert page.tags == plain.tags
    assert [a[:2] for a in page.attributes] == [a[:2] for a in plain.attributes]
    body = markdown.split("-->", 1)[1]
    assert "<" not in body
    for table in re.findall(r"(?:^\|.*\n)+", markdown, re.M):
        assert len({len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in table.splitlines()}) == 1, table


def test_the_file_loads_nothing_and_runs_nothing(tmp_path):
    page, _, _ = made(tuned(tmp_path / "run"), tmp_path / "out.html")
    assert page.tags["script"] == 0
    assert page.tags["svg"] == 4
    assert not [a for a in page.attributes if a[1] in ("src", "href", "style", "action") or a[1].startswith("on")]


def test_only_what_was_logged_is_plotted():
    assert [plot.file for plot in plots_of(history(), FIGURES)] == ["loss", "flagging", "learning_rate", "speed"]
    bare = [{"step": 1, "loss": 2.0, "learning_rate": 1e-4}, {"step": 2, "loss": 1.0}, {"step": 2, "train_loss": 1.5}]
    (plot,) = plots_of(bare, {})
    assert plot.series == (Series("training", ((1.0, 2.0), (2.0, 1.0))),)
    (loss, *_) = plots_of(history(), FIGURES)
    assert loss.series[1].points[0] == (0.0, FIGURES["base_loss"])
    assert plots_of([], {}) == []


def test_a_run_of_one_step_has_its_values_in_words_and_no_chart(tmp_path):
    folder = tuned(tmp_path / "run", base_loss=None, base_flagging_mcc=None, base_flagging_auroc=None)
    (folder / "history.jsonl").write_text(json.dumps({"step": 1, "loss": 2.25, "learning_rate": 1e-4}) + "\n")
    page, markdown, _ = made(folder, tmp_path / "out.html")
    assert page.tags["svg"] == 0
    for words in (page.text, markdown):
        assert "Logged at one step only: training loss 2.25 at step 1; learning rate 0.0001 at step 1." in words


def test_the_rows_with_the_highest_loss_after_training_are_shown(tmp_path):
    folder = tuned(tmp_path / "run")
    for prefix, losses in (
        ("base", (9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0)),
        ("tuned", (1.0, 6.0, 2.0, 3.0, 0.5, 4.0, 5.0)),
    ):
        rows = [{"id": f"row-{i}<b>", "loss": 2 * loss, "tokens": 2} for i, loss in enumerate(losses)]
        (folder / f"held_out-{prefix}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page, markdown, _ = made(folder, tmp_path / "out.html")
    shown = re.findall(r"\| row-(\d)&lt;b&gt; \| (\S+) \| (\S+) \|", markdown)
    assert shown == [("1", "8.000", "6.000"), ("6", "3.000", "5.000"), ("5", "4.000", "4.000"), ("3", "6.000", "3.000"),
                     ("2", "7.000", "2.000")]  # fmt: skip
    assert page.tags["b"] == 0
    assert "Hardest held-out rows" not in made(tuned(tmp_path / "old"), tmp_path / "old.html")[1]


@pytest.mark.parametrize("text", ["", *HOSTILE])
def test_samples_before_and_after_are_shown_beside_the_data(tmp_path, text):
    folder = tuned(tmp_path / "run")
    for prefix in ("base", "tuned"):
        row = {"id": f"r1{text}", "instruction": f"Is it so?{text}", "input": "", "label": f"Correct.{text}",
               "text": f"from {prefix}{text}"}  # fmt: skip
        (folder / f"samples-{prefix}.jsonl").write_text(json.dumps(row) + "\n")
    page, markdown, _ = made(folder, tmp_path / "out.html")
    for words in ("Is it so?", "Correct.", "from base", "from tuned", "before training", "after training"):
        assert words in page.text
        assert words in markdown
    assert not {"img"} & {*page.tags}
    assert page.tags["script"] == 0
    assert "<" not in markdown.split("-->", 1)[1]
    (folder / "samples-base.jsonl").unlink()
    assert "Samples before and after" not in made(folder, tmp_path / "out.html")[1]


def test_the_command_is_shown_as_it_was_typed(tmp_path):
    with command_line(["finetune", "--set", "lora={r: 2, bias: none}", "--out", "it's"]):
        folder = tuned(tmp_path / "run")
    page, markdown, _ = made(folder, tmp_path / "out.html")
    command = """sailkit finetune --set 'lora={r: 2, bias: none}' --out 'it'"'"'s'"""
    assert command in page.text
    assert command in markdown.replace("\\", "")


def test_a_training_run_stands_alone_and_must_be_finished(tmp_path):
    folder = tuned(tmp_path / "run")
    evaluation = run_folder(tmp_path / "e", good())
    for other, why in ((evaluation, "is a training run and .* is none"), (folder, "given twice")):
        with pytest.raises(UserError, match=why):
            report(folder, other, out=tmp_path / "out.html")
    with pytest.raises(UserError, match=r"`task` is for sets of predictions; .* is a training run"):
        report(folder, out=tmp_path / "out.html", task="hsd")
    (folder / "data.json").write_text('{"data": [1]}')
    with pytest.raises(UserError, match="does not hold what finetune writes"):
        report(folder, out=tmp_path / "out.html")
    (folder / "metrics.json").unlink()
    with pytest.raises(UserError, match="is not finished"):
        report(folder, out=tmp_path / "out.html")
