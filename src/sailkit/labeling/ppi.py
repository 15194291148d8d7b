"""Correct the share of informative results that a labeler reports by its audit: prediction-powered inference.

The estimator of a mean of Angelopoulos et al. 2023 (Science 382): the labeler's mean on the unlabelled data, plus the
mean difference of human and labeler where both are known. It holds if the audited pairs are drawn like the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sailkit import runs
from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.labeling.audit_file import JUDGEMENTS, differing_facts, names_in_audit, score_folder, unshared_facts
from sailkit.labeling.label import SCORES
from sailkit.labeling.labels_file import Labels
from sailkit.stats.intervals import LEVEL, Estimate, Floats, proportion
from sailkit.tasks.task import in_first_half

_ROUNDING = 1e-9


def corrected_share(audit: Path, labels: Labels, threshold: float) -> Estimate | None:
    """The share of informative results in labelled data, corrected by the claims that an audit reports on.

    Args:
        audit: The `audit.json`.
        labels: The labeler's judgements of data without human judgements.
        threshold: Least score of an informative result.

    Returns:
        The share with its interval; None if the audit does not hold what it takes, or added results of its own.

    Raises:
        UserError: The audit measured the labeler with other settings or another model.
    """
    content = jsonl.read_json(audit)
    names = names_in_audit(content, labels.labeler)
    if not names:
        return None
    judged, scored = audit.parent / JUDGEMENTS, audit.parent / score_folder(names[0]) / SCORES
    if not judged.exists() or not scored.exists():
        return None
    _check_labeler(audit, labels, runs.setting_of(scored.parent, "labeler") or {})
    people = [row for _, row in jsonl.read_rows(judged)]
    if any(row["origin"] != "judged" for row in people):
        return None
    seed = int(content["seed"])
    scores = {int(row["id"]): row["score"] for _, row in jsonl.read_rows(scored)}
    if len(scores) != len(people):
        raise UserError(f"{scored} has {len(scores)} scores for {len(people)} judgements; run the audit again")
    known = [
        (row["share"] - (scores[i] >= threshold), str(row["claim"]))
        for i, row in enumerate(people)
        if scores[i] is not None and not in_first_half(row["claim"], seed)
    ]
    given = [
        (float(judgement.score >= threshold), str(number))
        for number, row in enumerate(labels.judgements)
        for judgement in row
        if judgement.score is not None
    ]
    if not known or not given:
        return None
    return ppi_mean(*map(_columns, (given, known)))


def _check_labeler(audit: Path, labels: Labels, audited: Mapping[str, Any]) -> None:
    """Refuse an audit of the same labeler with another measure, form or model; number formats may differ."""
    given = labels.labeler
    if differ := differing_facts(given, audited):
        raise UserError(
            f"`audit` {audit}: {given['labeler']} was audited with another {', '.join(differ)} than it labelled with; "
            "audit it as it labelled"
        )
    if unknown := unshared_facts(given, audited):
        runs.notice(f"{audit}: cannot check that {given['labeler']} was audited with the same {', '.join(unknown)}")


def ppi_mean(predictions: tuple[Floats, Sequence[str]], differences: tuple[Floats, Sequence[str]]) -> Estimate:
    """A mean in [0, 1] by prediction-powered inference, with an interval over groups.

    Args:
        predictions: The labeler's values on the unlabelled data, and the group of each.
        differences: Human value minus the labeler's on the audited data, and the group of each.
    """
    (mean, half), (shift, more) = _mean(*predictions, least=0.0), _mean(*differences, least=-1.0)
    value, half = mean + shift, math.hypot(half, more)
    return Estimate(*(min(max(each, 0.0), 1.0) for each in (value, value - half, value + half)))


def _mean(values: Floats, groups: Sequence[str], least: float) -> tuple[float, float]:
    """The mean of values from `least` to 1, and half the length of its t interval over groups."""
    from scipy.special import stdtrit  # scipy.stats would cost a second to import

    _, index = np.unique(np.array(groups), return_inverse=True)
    mean, units = float(values.mean()), int(index.max()) + 1
    sums = np.bincount(index, values - mean)
    if np.abs(sums).max() < _ROUNDING:  # a group of another kind may be missing from the sample; see `bounded`
        return mean, proportion(0, units).high * max(1 - mean, mean - least)
    error = math.sqrt(units / (units - 1) * float((sums**2).sum())) / len(values)
    return mean, float(stdtrit(units - 1, (1 + LEVEL) / 2)) * error


def _columns(rows: Sequence[tuple[float, str]]) -> tuple[Floats, list[str]]:
    return np.array([value for value, _ in rows]), [group for _, group in rows]
