"""What verbs print at 80 columns: every figure of the JSON that a person is to read, and tables that fit."""

from __future__ import annotations

import re
import shutil
from collections import Counter

import pytest

from labeling.test_report import folder_of, found
from sailkit.evaluation.compare import compare
from sailkit.evaluation.rescore import rescore
from sailkit.labeling.audit_results import Audit
from sailkit.rendering import terminal
from sailkit.stats.intervals import read_estimates
from sailkit.training.results import TrainingRun
from training.test_report import FIGURES

RECORDED = "climate-fever.{}.jsonl"


def printed(result) -> str:
    """As in a wide terminal; in one of 80 columns all the same words and figures are there, and only sentences wrap."""
    wide, text = (terminal.text(result.report(), width) for width in (240, 80))
    for line in text.splitlines():
        assert len(line) <= 80 or "   " not in line, line
    assert Counter(re.findall(r"[+-]?\d[\d.,]*\d", wide)) <= Counter(re.findall(r"[+-]?\d[\d.,]*\d", text))
    assert "…" not in text
    return wide


def shows(text: str, flat: dict, names: list[str], sign: str = "") -> None:
    estimates = read_estimates(flat)
    for name in names:
        e = estimates[name]
        assert f"{e.value:{sign}.4f} [{e.low:{sign}.3f}, {e.high:{sign}.3f}]" in text, name


@pytest.fixture
def recorded(shared):
    return [shared / "recorded" / RECORDED.format(name) for name in ("llama2-7b-chat", "sail-7b")]


def test_rescore(recorded):
    (result,) = rescore(recorded[1])
    flat, text = result.to_json(), printed(result)
    figures = ["accuracy", "macro_f1", "balanced_accuracy", "weighted_f1", "mcc", "f1_SUPPORTS", "f1_REFUTES"]
    shows(text, flat, [prefix + name for prefix in ("", "recorded_", "human_") for name in figures])
    for name in ("majority_accuracy", "reference_majority_accuracy"):
        assert f"accuracy {flat[name]:.4f} against" in text
    for row in flat["confusion"]["counts"]:
        assert "  ".join(map(str, row)) in " ".join(text.split()).replace(" ", "  ")
    for code, messages in flat["flag_messages"].items():
        for message in messages:
            assert f"! {code}: {message}" in text


def test_compare(recorded, tmp_path):
    result = compare(*recorded)
    flat, text = result.to_json(), printed(result)
    shows(text, flat, ["accuracy_difference", "macro_f1_difference"], "+")
    for name in ("a_accuracy", "b_accuracy", "a_macro_f1", "b_macro_f1"):
        assert f"{flat[name]:.4f}" in text
    assert flat["verdict_text"] in text
    assert f"p = {flat['p_value']:.3g}\n" in text
    several = compare(*recorded, shutil.copy(recorded[0], tmp_path / "again.jsonl"))
    adjusted = f"p = {several.pairs[0].p_value:.3g}, {several.pairs[0].p_value_holm:.3g} after Holm's adjustment for 3"
    assert adjusted in printed(several)


def test_audit(tmp_path):
    areas = {"overlap": 0.62, "similarity": 0.73, "entailment:MoritzLaurer/DeBERTa-v3-base-mnli-fever-anli": 0.75}
    content = found(areas)
    text = printed(Audit.load(folder_of(tmp_path / "a", content)))
    for row in content["audits"]:
        shows(text, row, ["auroc", "balanced_accuracy", "kappa"])
        for name in ("mcc", "precision_distracting", "recall_distracting", "brier", "ece"):
            assert f"{row[name]:.4f}" in text
    assert "entailment:DeBERTa-v3-base-mnli-fever-anli minus similarity" in " ".join(text.split())


def test_training(tmp_path):
    text = printed(TrainingRun.from_json(tmp_path, {**FIGURES, "pushed": "https://hub/owner/name"}))
    for name, value in FIGURES.items():
        if name.startswith(("base_", "tuned_")) and not name.endswith("results"):
            assert f"{value:.4f}" in text, name
    shows(text, FIGURES, ["loss_change"], "+")
    for words in ("80 steps on 60 examples (2150 supervised tokens), 1 dropped", "model: run/model", "pushed: https:"):
        assert words in text
