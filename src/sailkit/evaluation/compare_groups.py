"""Compares groups of runs; intervals and tests are over training seeds and items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from sailkit.errors import UserError
from sailkit.evaluation.comparable import (
    check_comparable,
    differing_factors,
    distinct_names,
    independent_factors,
    isolates,
)
from sailkit.evaluation.figures import Flag, Truth
from sailkit.evaluation.flagging import Flagging, flagging_over_seeds
from sailkit.evaluation.group_figures import figures_of_runs, mean_figures, true_labels
from sailkit.evaluation.group_results import GroupComparison, GroupDifference, Measure, Verdict
from sailkit.evaluation.groups import RunGroup
from sailkit.evaluation.selective import OF_PARTS
from sailkit.evaluation.summary import baseline_figures, constant_flags, counted, few_items
from sailkit.rendering.numbers import signed
from sailkit.stats import metrics
from sailkit.stats.intervals import ALPHA, LEAST_UNITS
from sailkit.stats.seeds import MOST_SEEDS, SeedFigures, over_seeds

_NAMES = {"accuracy": "accuracy", "macro_f1": "macro-F1", "balanced_accuracy": "balanced accuracy"}


@dataclass(frozen=True)
class _Difference:
    """A difference before its tests, with the models of the first group and the figures whose sum it is."""

    result: GroupDifference
    models: frozenset[str]
    terms: dict[str, tuple[SeedFigures, ...]]
    most: float = 1.0  # the largest possible difference

    def tested(self, level: float) -> GroupDifference:
        """The difference with its intervals and tests at a level."""
        estimates = {
            name: over_seeds(*groups, level=level, least=-self.most, most=self.most)
            for name, groups in self.terms.items()
        }
        return replace(self.result, differences=estimates)


def compare_groups(
    groups: Sequence[RunGroup], against: Truth = "human", measure: Measure = "macro_f1"
) -> GroupComparison:
    """Compare groups of runs, or groups with single runs; for a single group, only its figures are computed.

    Args:
        groups: The groups; a single run is a group of one.
        against: The data set's own labels (human), or those of a reference model.
        measure: The figure that decides the verdicts.

    Raises:
        UserError: Items, labels or parsing rules differ, or no items have labels.
    """
    groups = distinct_names(groups)
    runs = [run for group in groups for run in group.runs.values()]
    for run in runs[1:]:
        check_comparable(runs[0], run)
    truth = true_labels(groups, against)
    labels = runs[0].labels
    figures = [figures_of_runs(group, truth, labels) for group in groups]
    both = list(combinations(range(len(groups)), 2))
    pairs = [_pair(groups[i], groups[j], figures[i], figures[j]) for i, j in both]
    effects = [effect for pair in pairs if (effect := _search_effect(pair))]
    interactions = [
        _minus(first, second)
        for first, second in combinations(effects, 2)
        if first.models.isdisjoint(second.models)  # else they are not independent
    ]
    family = (*pairs, *interactions)  # of Holm's adjustment; a detectable difference is at its strictest level
    differences = [difference.tested(ALPHA / len(family)) for difference in family]
    adjusted = metrics.holm([difference.differences[measure].p_value for difference in differences])
    units = truth.number if truth.grouped else None
    size = counted(len(truth.labels), units)
    results = [
        _with_verdict(
            replace(difference, p_value_holm=p), measure, size, truth.number < LEAST_UNITS, n >= len(pairs), len(family)
        )
        for n, (difference, p) in enumerate(zip(differences, adjusted, strict=True))
    ]
    comparison = GroupComparison(
        against=against,
        measure=measure,
        n=len(truth.labels),
        units=units,
        left_out=len(runs[0].predictions) - len(truth.labels),
        groups=tuple(mean_figures(group, of) for group, of in zip(groups, figures, strict=True)),
        baselines=baseline_figures([(label, label) for label in truth.labels.values()], labels),
        pairs=tuple(results[: len(pairs)]),
        interactions=tuple(results[len(pairs) :]),
    )
    return replace(comparison, flags=tuple(_flags(comparison, groups)))


def _pair(a: RunGroup, b: RunGroup, of_a: Mapping[str, SeedFigures], of_b: Mapping[str, SeedFigures]) -> _Difference:
    paired = {*a.models} == {*b.models}
    shared = {*a.models} & {*b.models}
    if shared and not paired:
        models = [
            (f"{group.name}/{run}", model)
            for group in (a, b)
            for run, model in zip(group.runs, group.models, strict=True)
        ]
        alone = [name for name, model in models if model not in shared]
        raise UserError(
            f"{a.name} and {b.name} share only some of their models: measure the others too, or leave out "
            f"{', '.join(alone)}"
        )
    order = [b.models.index(model) for model in a.models] if paired else range(len(b.runs))
    both = {
        name: (figures, of_b[name].in_order(order))
        for name, figures in of_a.items()
        if name in of_b and name not in OF_PARTS  # which are of other items in each group
    }
    terms: dict[str, tuple[SeedFigures, ...]]
    if paired or 1 in (len(a.runs), len(b.runs)):  # a single run is compared with each run of the other group
        terms = {name: (first - second,) for name, (first, second) in both.items()}
    else:
        terms = {name: (first, -second) for name, (first, second) in both.items()}
    factors = differing_factors(a.first, b.first)
    if paired:  # the first runs may be of different models
        factors = {name: values for name, values in factors.items() if name not in ("model", "weights_sha256")}
    result = GroupDifference(
        a=a.name,
        b=b.name,
        seeds=(len(a.runs), len(b.runs)),
        paired=paired,
        differences={},
        by_run={name: tuple(map(float, groups[0].figures)) for name, groups in terms.items() if len(groups) == 1},
        factors=factors,
        isolates=isolates(factors, a.first.provenance.get("search")),
        flagging=_flagging(a, b, order) if paired and independent_factors(factors) == ["search"] else None,
    )
    return _Difference(result, frozenset(a.models), terms)


def _flagging(a: RunGroup, b: RunGroup, order: Sequence[int]) -> Flagging | None:
    """The models' verdicts on the search results of both groups against their labels."""
    of_b = list(b.runs.values())
    return flagging_over_seeds(
        [(*run.predictions, *of_b[n].predictions) for run, n in zip(a.runs.values(), order, strict=True)]
    )


def _search_effect(pair: _Difference) -> _Difference | None:
    """Evidence minus random of the same models; None if the pair differs in anything else."""
    result = pair.result
    searches = result.factors.get("search", [])
    if not result.paired or independent_factors(result.factors) != ["search"] or {*searches} != {"evidence", "random"}:
        return None
    if searches[0] == "evidence":
        return pair
    terms = {name: tuple(-group for group in groups) for name, groups in pair.terms.items()}
    return _Difference(replace(result, a=result.b, b=result.a), pair.models, terms)


def _minus(first: _Difference, second: _Difference) -> _Difference:
    """The difference between what search results give two groups of models."""
    terms = {
        name: (*groups, *(-group for group in second.terms[name]))
        for name, groups in first.terms.items()
        if name in second.terms
    }
    result = GroupDifference(
        a=f"{first.result.a} - {first.result.b}",
        b=f"{second.result.a} - {second.result.b}",
        seeds=(first.result.seeds[0], second.result.seeds[0]),
        paired=False,
        differences={},
        by_run={},
        factors={},
        isolates="the difference is what search results give the first models beyond what they give the second",
    )
    return _Difference(result, first.models, terms, most=2.0)


def _with_verdict(
    pair: GroupDifference, measure: Measure, size: str, few: bool, interaction: bool, tests: int
) -> GroupDifference:
    """Add the verdict on a against b, by the deciding figure after Holm's adjustment."""
    difference = pair.differences[measure]
    estimate = difference.estimate
    ends = ", ".join(map(signed, (estimate.low, estimate.high)))
    remarks = [f"{_NAMES[measure]} {signed(estimate.value)} [{ends}], {_seeds(pair)}"]
    if tests > 1:
        remarks.append(f"p = {pair.p_value_holm:.3g} after Holm's adjustment for {tests} differences")
    verdict: Verdict = "cannot tell"
    if few:
        remarks.append(f"{size} are too few")
    elif pair.p_value_holm >= ALPHA:
        remarks.append(_needed(pair, measure, most=2.0 if interaction else 1.0))
    else:
        verdict = "better" if estimate.value > 0 else "worse"
    remarks += [f"they differ in {', '.join(independent_factors(pair.factors))}"] if pair.factors else []
    remarks += [pair.isolates] if pair.isolates else []
    words = ("larger", "smaller") if interaction else ("better", "worse")
    text = f"cannot tell whether {pair.a} or {pair.b} is {words[0]}"
    if verdict != "cannot tell":
        text = f"{pair.a} is {words[verdict == 'worse']} than {pair.b}"
    return replace(pair, verdict=verdict, verdict_text=text, remark="; ".join(remarks))


def _seeds(pair: GroupDifference) -> str:
    first, second = pair.seeds
    if first == second == 1:
        return "one run a side, which says nothing about other seeds"
    if pair.paired:
        return f"{first} seeds"
    return " against ".join("a single run" if runs == 1 else f"{runs} seeds" for runs in pair.seeds)


def _needed(pair: GroupDifference, measure: Measure, most: float) -> str:
    """How large a difference these seeds detect, and how many seeds would detect the one observed."""
    difference = pair.differences[measure]
    if difference.detectable > most:
        return "no possible difference would have been detected with power 0.8"
    detectable = f"a difference of {difference.detectable:.3f} would have been detected with power 0.8"
    if max(pair.seeds) == 1:
        return detectable
    if difference.seeds_needed is None:
        return f"{detectable}; to find the one observed, more than {MOST_SEEDS} seeds would be needed, or more items"
    return f"{detectable}; to find the one observed, about {difference.seeds_needed} seeds would be needed"


def _flags(comparison: GroupComparison, groups: Sequence[RunGroup]) -> list[Flag]:
    flags = []
    base = comparison.baselines
    for group in comparison.groups:
        if (value := group.figures["accuracy"].value) < base.majority_accuracy:
            always = f"always answering {base.majority_label} ({base.majority_accuracy:.4f})"
            flags.append(Flag("below-majority", f"{group.name} ({value:.4f}) is below {always}"))
    flags += few_items(comparison.n, comparison.units)
    for pair in comparison.pairs:
        accuracy, macro_f1 = (pair.differences[name].estimate for name in ("accuracy", "macro_f1"))
        if accuracy.sign * macro_f1.sign < 0:
            gaps = f"accuracy {accuracy.value:+.4f}, macro-F1 {macro_f1.value:+.4f}"
            flags.append(Flag("measures-disagree", f"{pair.a} minus {pair.b}: {gaps}"))
        if len(independent_factors(pair.factors)) > 1:
            text = f"{pair.a} and {pair.b} differ in {', '.join(pair.factors)}"
            flags.append(Flag("several-factors", f"{text}: the verdict is about all of these together"))
    for run_group in groups:
        for name, run in run_group.runs.items():
            what = f"the answers of {name if name == run_group.name else f'{run_group.name}, {name}'}"
            flags += constant_flags([p.predicted for p in run.predictions], run.labels, what)
        if run_group.missing:
            text = f"{run_group.name} does not say its {', '.join(run_group.missing)}"
            flags.append(Flag("missing-provenance", text))
    return flags
