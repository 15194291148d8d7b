"""Two or more sets of predictions side by side: a verdict that can also be "cannot tell"."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sailkit.errors import UserError
from sailkit.evaluation.predictions import FACTORS, RARE_FACTORS, PredictionSet
from sailkit.evaluation.recordings import load
from sailkit.evaluation.summary import Flag, against, baselines, counted, few_items, with_flags
from sailkit.records import Prediction
from sailkit.rendering.numbers import machine
from sailkit.stats import metrics
from sailkit.stats.intervals import LEAST_UNITS, Floats, Units, resample

ALPHA = 0.05
MCNEMAR = "exact McNemar test"
SIGN_FLIP = "exact sign-flip test over groups"
_MEASURES = {"accuracy": metrics.accuracy, "macro_f1": metrics.macro_f1}
# What goes with another factor, and is no second one beside it.
_IMPLIED = {
    "weights_sha256": {"model"},
    "tokenizer_sha256": {"model"},
    "chat_template": {"model"},
    "max_new_tokens": {"answer", "protocol", "wording"},
    "prompts_sha256": {"protocol", "wording", "task", "style"},
    "results": {"search"},
    "style": {"model"},
    "verify": {"model"},
}


@dataclass(frozen=True)
class Paired:
    """Items that two sets share.

    Attributes:
        rows: Of each item the truth, the outcome of a and that of b.
        left_out: How many items do not count.
        groups: The group of each item; None where there are none.
    """

    rows: list[tuple[str, str, str]]
    left_out: int
    groups: list[str] | None


def compare(
    *sets: Path,
    against: Literal["human", "reference"] = "human",
    task: str | None = None,
    fields: list[str] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare two or more sets of predictions, item by item.

    Args:
        sets: Run folders, or files of recorded outputs.
        against: The data set's own labels (human), or those of a reference model.
        task: For files: the task whose answer words are used.
        fields: For files: what they call the fields id, text, label, output, prediction, reference, prompt, group:
            KEY=NAME, repeated or between commas, or a YAML file.
        seed: Seed of the bootstrap.

    Returns:
        The verdict and what it rests on, for the first pair at the top level, for all pairs in `comparisons`.

    Raises:
        UserError: Items, labels or reading rules differ, or there is nothing to compare.
    """
    if len(sets) < 2:
        raise UserError("compare needs two or more run folders or files")
    return compare_sets([load(path, task, fields) for path in sets], against, seed)


def compare_sets(sets: Sequence[PredictionSet], against: str = "human", seed: int = 0) -> dict[str, Any]:
    """Compare sets of predictions that are read already; see `compare`."""
    loaded = _distinct_names(sets)
    chosen = list(combinations(loaded, 2))
    for a, b in chosen:
        _check_comparable(a, b)
    pairs = [_compare_pair(a, b, against, seed, ALPHA / len(chosen)) for a, b in chosen]
    adjusted = metrics.holm([pair["p_value"] for pair in pairs])
    for pair, p in zip(pairs, adjusted, strict=True):
        pair["p_value_holm"] = p
        pair.update(_verdict(pair))
    flags = _flags(loaded, pairs, against)
    first = pairs[0] if len(pairs) == 1 else {}
    about = {"names": [s.name for s in loaded], "against": against, "comparisons": pairs}
    machines = {s.name: machine(s.provenance) for s in loaded}
    return with_flags({**first, **about, "machines": machines}, flags)


def _distinct_names(sets: Sequence[PredictionSet]) -> list[PredictionSet]:
    """Two folders may have the same name; a verdict must still say which is which."""
    names = [s.name for s in sets]
    return [
        s if names.count(s.name) == 1 else replace(s, name=f"{s.name} ({number})")
        for number, s in enumerate(sets, start=1)
    ]


def _check_comparable(a: PredictionSet, b: PredictionSet) -> None:
    if a.labels != b.labels:
        raise UserError(f"{a.name} and {b.name} have other labels: {', '.join(a.labels)} against {', '.join(b.labels)}")
    if a.rules_version != b.rules_version:
        versions = f"{a.rules_version} against {b.rules_version}"
        raise UserError(
            f"{a.name} and {b.name} were read by other rules (version {versions}); evaluate again with one sailkit"
        )
    ours, theirs = {p.id: p for p in a.predictions}, {p.id: p for p in b.predictions}
    if alone := [*(i for i in ours if i not in theirs), *(i for i in theirs if i not in ours)]:
        raise UserError(
            f"{a.name} and {b.name} have other items: {len(ours)} and {len(theirs)}, "
            f"{len(alone)} in only one of them, such as {alone[0]!r}"
        )
    for what, name in (("text", "text"), ("gold label", "gold")):
        values = [(i, getattr(p, name), getattr(theirs[i], name)) for i, p in ours.items()]
        if differ := [i for i, x, y in values if x and y and x != y]:
            raise UserError(f"{a.name} and {b.name} differ in the {what} of {len(differ)} items, such as {differ[0]!r}")


def _compare_pair(a: PredictionSet, b: PredictionSet, truth: str, seed: int, level: float) -> dict[str, Any]:
    pair = _pair(a, b, truth)
    labels, rows = a.labels, pair.rows
    right = [(x == t, y == t) for t, x, y in rows]
    only_a, only_b = sum(x and not y for x, y in right), sum(y and not x for x, y in right)
    said_a, said_b = [(t, x) for t, x, _ in rows], [(t, y) for t, _, y in rows]
    tested = _tested(right, pair.groups, level)
    figures: dict[str, Any] = {
        "a": a.name,
        "b": b.name,
        "n": len(rows),
        "both_right": sum(x and y for x, y in right),
        "both_wrong": sum(not (x or y) for x, y in right),
        "only_a": only_a,
        "only_b": only_b,
        **tested,
        **_differences(rows, labels, seed, pair.groups),
        **against(said_a, labels, "a_", seed, pair.groups),
        **against(said_b, labels, "b_", seed, pair.groups),
        **baselines(said_a, labels, ""),
        "factors": {
            name: [a.provenance[name], b.provenance[name]]
            for name in (*FACTORS, *RARE_FACTORS)
            if name in a.provenance and name in b.provenance and a.provenance[name] != b.provenance[name]
        },
        "unknown_provenance": {s.name: s.missing for s in (a, b) if s.missing},
    }
    figures["isolates"] = _isolates(figures["factors"], a.provenance.get("search"))
    theirs = {p.id: p.reference for p in b.predictions}
    both = [(p.reference, theirs[p.id]) for p in a.predictions if p.reference and theirs[p.id]]
    figures["reference_disagreements"] = sum(x != y for x, y in both)
    figures["left_out"] = pair.left_out
    return figures


def _pair(a: PredictionSet, b: PredictionSet, truth: str) -> Paired:
    """Join by id; against references, only items on which both recordings have the same one."""
    theirs = {p.id: p for p in b.predictions}
    rows, groups = [], []
    for p in a.predictions:
        q = theirs[p.id]
        label = (p.gold or q.gold) if truth == "human" else _shared_reference(p, q)
        if label is not None:
            rows.append((label, p.predicted, q.predicted))
            groups.append(p.group or q.unit)
    if not rows:
        raise UserError(f"{a.name} and {b.name} share no {truth} labels; see `against`")
    grouped = any(p.group for s in (a, b) for p in s.predictions)
    return Paired(rows, len(a.predictions) - len(rows), groups if grouped else None)


def _shared_reference(p: Prediction, q: Prediction) -> str | None:
    if p.reference is None or q.reference is None:
        return p.reference or q.reference
    return p.reference if p.reference == q.reference else None


def _tested(right: Sequence[tuple[bool, bool]], groups: Sequence[str] | None, level: float) -> dict[str, Any]:
    """Whether one of two is right more often: exactly, by items, or by groups of them where there are any."""
    only_a, only_b = sum(x and not y for x, y in right), sum(y and not x for x, y in right)
    discordant, n = only_a + only_b, len(right)
    if groups is None:
        least = metrics.minimum_detectable_difference(discordant, n, level=level)
        test = {"test": MCNEMAR, "p_value": metrics.mcnemar(only_a, only_b)}
        return {**test, "minimum_detectable_difference": least}
    sizes, differences = Counter(groups), dict.fromkeys(groups, 0)
    for group, (x, y) in zip(groups, right, strict=True):
        differences[group] += x - y
    # How many times an item's variance the mean has, because items of one group go together; all of them where none
    # differs.
    effect = (
        sum(d * d for d in differences.values()) / discordant
        if discordant
        else sum(size * size for size in sizes.values()) / n
    )
    effect = max(1.0, effect)
    least = metrics.minimum_detectable_difference(discordant / effect, n / effect, level=level)
    test = {"test": SIGN_FLIP, "p_value": metrics.sign_flip([*differences.values()]), "groups": len(sizes)}
    return {**test, "minimum_detectable_difference": least}


def _differences(
    rows: Sequence[tuple[str, str, str]], labels: Sequence[str], seed: int, groups: Sequence[str] | None
) -> dict[str, float]:
    """Differences a - b with paired intervals: items, or groups of them, are drawn with both their outcomes."""
    columns = (*labels, *metrics.NOT_ANSWERED)
    at = {name: i for i, name in enumerate(columns)}
    cells = np.array([[at[x] for x in row] for row in rows], dtype=np.int64)
    drawn = resample(Units.of_cells(cells, (len(labels), len(columns), len(columns)), groups), seed)
    found: dict[str, float] = {}
    for name, statistic in _MEASURES.items():
        key, estimate = f"{name}_difference", drawn.estimate(_difference_of(statistic))
        found |= {key: estimate.value, f"{key}_low": estimate.low, f"{key}_high": estimate.high}
    return found


def _difference_of(statistic: Callable[[metrics.Confusion], Floats]) -> Callable[[Floats], Floats]:
    """Of counts by truth, outcome of a and outcome of b."""
    return lambda tables: np.asarray(statistic(tables.sum(-1)) - statistic(tables.sum(-2)))


def _own_factors(factors: Mapping[str, Any]) -> list[str]:
    """Factors that do not merely go with another one."""
    return [name for name in factors if not _IMPLIED.get(name, set()) & factors.keys()]


def _isolates(factors: Mapping[str, Sequence[Any]], search: str | None) -> str:
    """What a difference is the measure of, where the two sets were made to tell one thing apart; else empty."""
    own = _own_factors(factors)
    if own == ["search"]:
        values = set(factors["search"])
        if values == {"evidence", "random"}:
            return "the difference is what the search results give, apart from their mere presence"
        if values == {"random", "none"}:
            return "the difference is what the mere presence of search results does"
    if own == ["model"] and search == "random":
        return "the difference is what training taught by itself: the search results shown help neither"
    return ""


def _verdict(pair: dict[str, Any]) -> dict[str, str]:
    """Better, worse or cannot tell: of a against b, in accuracy, after Holm's adjustment."""
    a, b, difference = pair["a"], pair["b"], pair["accuracy_difference"]
    remarks = [f"they differ in {', '.join(pair['factors'])}"] if pair["factors"] else []
    remarks += [pair["isolates"]] if pair["isolates"] else []
    few = pair.get("groups", pair["n"]) < LEAST_UNITS
    if few or pair["p_value_holm"] >= ALPHA or difference == 0:
        least = pair["minimum_detectable_difference"]
        size = counted(pair["n"], pair.get("groups"))
        why = f"{size} are too few" if few else f"a difference of {least:.3f} would have been found 4 times in 5"
        remarks = [why, *remarks]
        return {
            "verdict": "cannot tell",
            "verdict_text": f"cannot tell whether {a} or {b} is better",
            "remark": "; ".join(remarks),
        }
    word, other = ("better", "worse") if difference > 0 else ("worse", "better")
    text = f"{a} is {word} than {b}"
    if _measures_disagree(pair):
        text += f" in accuracy, {other} in macro-F1"
    return {"verdict": word, "verdict_text": text, "remark": "; ".join(remarks)}


def _measures_disagree(pair: Mapping[str, Any]) -> bool:
    """Whether accuracy and macro-F1 each say for certain what the other denies, as beside a constant answer."""
    sides = []
    for name in _MEASURES:
        low, high = pair[f"{name}_difference_low"], pair[f"{name}_difference_high"]
        sides.append(int(low > 0) - int(high < 0))
    return sides[0] * sides[1] < 0


def _flags(sets: Sequence[PredictionSet], pairs: Sequence[dict[str, Any]], truth: str) -> list[Flag]:
    flags = []
    seen = set()
    for pair in pairs:
        for side in ("a", "b"):
            name, value, base = pair[side], pair[f"{side}_accuracy"], pair["majority_accuracy"]
            if value < base and name not in seen:
                text = f"{name} ({value:.4f}) is below always answering {pair['majority_label']} ({base:.4f})"
                flags.append(Flag("below-majority", text))
            seen.add(name)
        if count := pair["reference_disagreements"]:
            what = "those are left out" if truth == "reference" else "human labels are used"
            who = f"the references of {pair['a']} and {pair['b']}"
            text = f"{who} disagree on {count} of {len(sets[0].predictions)} items; {what}"
            flags.append(Flag("references-disagree", text))
        if _measures_disagree(pair):
            gaps = f"accuracy {pair['accuracy_difference']:+.4f}, macro-F1 {pair['macro_f1_difference']:+.4f}"
            why = "so it is where one answers the more frequent label to most"
            flags.append(Flag("measures-disagree", f"{pair['a']} minus {pair['b']}: {gaps}; {why}"))
        flags += few_items(pair["n"], pair.get("groups"), f" of {pair['a']} and {pair['b']}" if len(pairs) > 1 else "")
        own = _own_factors(pair["factors"])
        if len(own) > 1:
            who = f"{pair['a']} and {pair['b']}"
            text = f"{who} differ in {', '.join(pair['factors'])}: the verdict is about all of these together"
            flags.append(Flag("several-factors", text))
    for s in sets:
        if s.missing:
            what = ", ".join(s.missing) if len(s.missing) < len(FACTORS) - 1 else "model, prompt and settings"
            flags.append(Flag("missing-provenance", f"{s.name} does not say its {what}"))
    return flags
