"""Compares sets of predictions in pairs; a verdict may be "cannot tell"."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Annotated

import numpy as np

from sailkit.arguments import checked, renamed
from sailkit.errors import UserError
from sailkit.evaluation.comparable import (
    check_comparable,
    differing_factors,
    distinct_names,
    independent_factors,
    isolates,
)
from sailkit.evaluation.compare_groups import compare_groups
from sailkit.evaluation.figures import Flag, Truth
from sailkit.evaluation.flagging import flagging
from sailkit.evaluation.group_results import EvaluationGroup, GroupComparison, Measure
from sailkit.evaluation.groups import RunGroup, evaluated_group, is_group, load_group, single_run
from sailkit.evaluation.predictions import FACTORS, PredictionSet
from sailkit.evaluation.recordings import load_predictions
from sailkit.evaluation.results import Comparison, Evaluation, PairComparison
from sailkit.evaluation.summary import baseline_figures, counted, few_items, label_figures
from sailkit.records import Prediction
from sailkit.rendering.numbers import machine
from sailkit.stats import metrics
from sailkit.stats.intervals import ALPHA, LEAST_UNITS, Estimate, Floats, Units, resample
from sailkit.tasks.task import Task

MCNEMAR = "exact McNemar test"
SIGN_FLIP = "exact sign-flip test over groups"
_MEASURES = {"accuracy": metrics.accuracy, "macro_f1": metrics.macro_f1}


@dataclass(frozen=True)
class JoinedItems:
    """Items that two sets share.

    Attributes:
        rows: True label, outcome of a and outcome of b of each item.
        left_out: Number of items that do not count.
        groups: The group of each item; None if the data have no groups.
    """

    rows: list[tuple[str, str, str]]
    left_out: int
    groups: list[str] | None


@checked
def compare(
    *sets: Path | str | Evaluation | EvaluationGroup,
    against: Truth = "human",
    task: str | Path | Task | None = None,
    fields: list[str] | None = None,
    metric: Annotated[Measure | None, renamed("measure")] = None,
    bootstrap_seed: Annotated[int, renamed("seed")] = 0,
) -> Comparison | GroupComparison:
    """Compare two or more sets of predictions, item by item.

    A group of runs is the same evaluation of models trained with different seeds. Groups, and single runs beside them,
    are compared with tests and intervals over seeds and items.

    Args:
        sets: Run folders, or files of recorded outputs; or groups of runs: a folder with a run folder for each seed, or
            run folders separated by commas.
        against: The data set's own labels (human), or those of a reference model.
        task: For files: the task whose answer words are used.
        fields: For files: the names of the fields id, text, label, output, prediction, reference, prompt, group, as
            KEY=NAME, repeated or separated by commas, or a YAML file.
        metric: For groups: the figure that decides the verdicts; by default macro-F1, which a constant answer does not
            win. Single runs are compared by accuracy.
        bootstrap_seed: Seed of the bootstrap.

    Returns:
        The verdict of each pair of sets, and the figures that support it.

    Raises:
        UserError: Items, labels or reading rules differ, or there is nothing to compare.
    """
    if len(sets) < 2:
        raise UserError("compare needs two or more run folders or files")
    if (task is not None or fields) and not any(map(_is_recording, sets)):
        raise UserError("`task` and `fields` are for recorded outputs, and all of these are runs")
    loaded = [_load(source, task, fields) for source in sets]
    if any(isinstance(each, RunGroup) for each in loaded):
        groups = [each if isinstance(each, RunGroup) else single_run(each) for each in loaded]
        return compare_groups(groups, against, metric or "macro_f1")
    if metric not in (None, "accuracy"):
        raise UserError(f"`metric='{metric}'` is for groups of runs; single runs are compared by accuracy")
    return compare_sets([each for each in loaded if isinstance(each, PredictionSet)], against, bootstrap_seed)


def _load(
    source: Path | str | Evaluation | EvaluationGroup, task: str | Path | Task | None, fields: list[str] | None
) -> PredictionSet | RunGroup:
    if isinstance(source, EvaluationGroup):
        return evaluated_group(source)
    return load_group(source) if is_group(source) else load_predictions(source, task, fields)


def _is_recording(source: Path | str | Evaluation | EvaluationGroup) -> bool:
    return isinstance(source, (str, Path)) and not is_group(source) and not Path(source).is_dir()


def compare_sets(sets: Sequence[PredictionSet], against: Truth = "human", seed: int = 0) -> Comparison:
    """Compare loaded sets of predictions; see `compare`."""
    sets = distinct_names(sets)
    both = list(combinations(sets, 2))
    for a, b in both:
        check_comparable(a, b)
    pairs = [_compare_pair(a, b, against, seed, ALPHA / len(both)) for a, b in both]
    adjusted = metrics.holm([pair.p_value for pair in pairs])
    pairs = [_with_verdict(replace(pair, p_value_holm=p)) for pair, p in zip(pairs, adjusted, strict=True)]
    return Comparison(
        names=tuple(s.name for s in sets),
        against=against,
        pairs=tuple(pairs),
        machines={s.name: machine(s.provenance) for s in sets},
        flags=tuple(_flags(sets, pairs, against)),
    )


def _compare_pair(a: PredictionSet, b: PredictionSet, truth: Truth, seed: int, level: float) -> PairComparison:
    """Compare two sets without a verdict, which depends on the p-values of the other pairs."""
    joined = _join(a, b, truth)
    labels, rows = a.labels, joined.rows
    right = [(x == t, y == t) for t, x, y in rows]
    only_a, only_b = sum(x and not y for x, y in right), sum(y and not x for x, y in right)
    answers_a, answers_b = [(t, x) for t, x, _ in rows], [(t, y) for t, _, y in rows]
    test, p_value, least = _tested(right, joined.groups, level)
    factors = differing_factors(a, b)
    one_model = independent_factors(factors) == ["search"]
    references = {p.id: p.reference for p in b.predictions}
    return PairComparison(
        a=a.name,
        b=b.name,
        n=len(rows),
        groups=None if joined.groups is None else len({*joined.groups}),
        left_out=joined.left_out,
        both_right=sum(x and y for x, y in right),
        both_wrong=sum(not (x or y) for x, y in right),
        only_a=only_a,
        only_b=only_b,
        differences=_differences(rows, labels, seed, joined.groups),
        a_figures=label_figures(answers_a, labels, seed, joined.groups),
        b_figures=label_figures(answers_b, labels, seed, joined.groups),
        baselines=baseline_figures(answers_a, labels),
        test=test,
        p_value=p_value,
        p_value_holm=p_value,
        minimum_detectable_difference=least,
        factors=factors,
        unknown_provenance={s.name: s.missing for s in (a, b) if s.missing},
        flagging=flagging([*a.predictions, *b.predictions], seed) if one_model else None,
        isolates=isolates(factors, a.provenance.get("search")),
        reference_disagreements=sum(
            bool(p.reference and references[p.id] and p.reference != references[p.id]) for p in a.predictions
        ),
    )


def _join(a: PredictionSet, b: PredictionSet, truth: Truth) -> JoinedItems:
    """Join by id; against references, keep only items on which both recordings have the same one."""
    of_b = {p.id: p for p in b.predictions}
    rows, groups = [], []
    for p in a.predictions:
        q = of_b[p.id]
        label = (p.gold or q.gold) if truth == "human" else _shared_reference(p, q)
        if label is not None:
            rows.append((label, p.predicted, q.predicted))
            groups.append(p.group or q.unit)
    if not rows:
        raise UserError(f"{a.name} and {b.name} share no {truth} labels; see `against`")
    grouped = any(p.group for s in (a, b) for p in s.predictions)
    return JoinedItems(rows, len(a.predictions) - len(rows), groups if grouped else None)


def _shared_reference(p: Prediction, q: Prediction) -> str | None:
    if p.reference is None or q.reference is None:
        return p.reference or q.reference
    return p.reference if p.reference == q.reference else None


def _tested(right: Sequence[tuple[bool, bool]], groups: Sequence[str] | None, level: float) -> tuple[str, float, float]:
    """Test exactly whether one set is right more often, over items, or over groups if there are any.

    Returns:
        The test's name, its p-value, and the difference in accuracy that it detects with a power of 0.8.
    """
    only_a, only_b = sum(x and not y for x, y in right), sum(y and not x for x, y in right)
    discordant, n = only_a + only_b, len(right)
    if groups is None:
        least = metrics.minimum_detectable_difference(discordant, n, level=level)
        return MCNEMAR, metrics.mcnemar(only_a, only_b), least
    sizes, differences = Counter(groups), dict.fromkeys(groups, 0)
    for group, (x, y) in zip(groups, right, strict=True):
        differences[group] += x - y
    # The design effect (Kish 1965): how many times larger the variance of the mean is than with independent items.
    # Without discordant items it cannot be measured, so the items of a group count as one.
    effect = (
        sum(d * d for d in differences.values()) / discordant
        if discordant
        else sum(size * size for size in sizes.values()) / n
    )
    effect = max(1.0, effect)
    least = metrics.minimum_detectable_difference(discordant / effect, n / effect, level=level)
    return SIGN_FLIP, metrics.sign_flip([*differences.values()]), least


def _differences(
    rows: Sequence[tuple[str, str, str]], labels: Sequence[str], seed: int, groups: Sequence[str] | None
) -> dict[str, Estimate]:
    """Differences a - b with paired intervals: items, or groups, are resampled with both outcomes."""
    columns = (*labels, *metrics.NOT_ANSWERED)
    index = {name: i for i, name in enumerate(columns)}
    cells = np.array([[index[x] for x in row] for row in rows], dtype=np.int64)
    resampled = resample(Units.of_cells(cells, (len(labels), len(columns), len(columns)), groups), seed)
    return {name: resampled.estimate(_difference_of(statistic)) for name, statistic in _MEASURES.items()}


def _difference_of(statistic: Callable[[metrics.Confusion], Floats]) -> Callable[[Floats], Floats]:
    """A function of counts by truth, outcome of a and outcome of b: the statistic of a minus that of b."""
    return lambda tables: np.asarray(statistic(tables.sum(-1)) - statistic(tables.sum(-2)))


def _with_verdict(pair: PairComparison) -> PairComparison:
    """Add the verdict on a against b, by accuracy after Holm's adjustment: better, worse or cannot tell."""
    a, b, difference = pair.a, pair.b, pair.differences["accuracy"].value
    remarks = [f"they differ in {', '.join(independent_factors(pair.factors))}"] if pair.factors else []
    remarks += [pair.isolates] if pair.isolates else []
    few = (pair.n if pair.groups is None else pair.groups) < LEAST_UNITS
    if few or pair.p_value_holm >= ALPHA or difference == 0:
        least = pair.minimum_detectable_difference
        size = counted(pair.n, pair.groups)
        why = f"{size} are too few" if few else f"a difference of {least:.3f} would have been detected with power 0.8"
        text = f"cannot tell whether {a} or {b} is better"
        return replace(pair, verdict="cannot tell", verdict_text=text, remark="; ".join([why, *remarks]))
    better = difference > 0
    text = f"{a} is {'better' if better else 'worse'} than {b}"
    if _measures_disagree(pair):
        text += f" in accuracy, {'worse' if better else 'better'} in macro-F1"
    return replace(pair, verdict="better" if better else "worse", verdict_text=text, remark="; ".join(remarks))


def _measures_disagree(pair: PairComparison) -> bool:
    """Whether the intervals of accuracy and macro-F1 exclude 0 on opposite sides, as against a constant answer."""
    return pair.differences["accuracy"].sign * pair.differences["macro_f1"].sign < 0


def _flags(sets: Sequence[PredictionSet], pairs: Sequence[PairComparison], truth: Truth) -> list[Flag]:
    flags = []
    seen = set()
    for pair in pairs:
        who = f"{pair.a} and {pair.b}"
        for name, figures in ((pair.a, pair.a_figures), (pair.b, pair.b_figures)):
            value, base = figures.figures["accuracy"].value, pair.baselines
            if value < base.majority_accuracy and name not in seen:
                always = f"always answering {base.majority_label} ({base.majority_accuracy:.4f})"
                flags.append(Flag("below-majority", f"{name} ({value:.4f}) is below {always}"))
            seen.add(name)
        if count := pair.reference_disagreements:
            what = "those are left out" if truth == "reference" else "human labels are used"
            text = f"the references of {who} disagree on {count} of {len(sets[0].predictions)} items; {what}"
            flags.append(Flag("references-disagree", text))
        if _measures_disagree(pair):
            accuracy, macro_f1 = (pair.differences[name].value for name in ("accuracy", "macro_f1"))
            gaps = f"accuracy {accuracy:+.4f}, macro-F1 {macro_f1:+.4f}"
            why = "as where one of them answers most items with the more frequent label"
            flags.append(Flag("measures-disagree", f"{pair.a} minus {pair.b}: {gaps}; {why}"))
        flags += few_items(pair.n, pair.groups, f" of {who}" if len(pairs) > 1 else "")
        if len(independent_factors(pair.factors)) > 1:
            text = f"{who} differ in {', '.join(pair.factors)}: the verdict is about all of these together"
            flags.append(Flag("several-factors", text))
    for s in sets:
        if s.missing:
            what = ", ".join(s.missing) if len(s.missing) < len(FACTORS) - 1 else "model, prompt and settings"
            flags.append(Flag("missing-provenance", f"{s.name} does not say its {what}"))
    return flags
