"""Compute the figures of an audit: scores of labelers against human judgements, with a bootstrap over claims.

The claims are split into two halves: thresholds are chosen on one, all figures are computed on the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt

from sailkit import runs
from sailkit.errors import UserError
from sailkit.labeling.audit_results import Disagreement, LabelerDifference, StratumFigures
from sailkit.labeling.human import HumanPair, gold_labels
from sailkit.stats import metrics
from sailkit.stats.intervals import Estimate, Floats, bounded

Mask = npt.NDArray[np.bool_]
AUDIT_RESAMPLES = 1000
_BINS = 10
_EXAMPLES = 5  # disagreements shown for each pair of labelers
_LEAST = {"kappa": -1.0, "mcc": -1.0, "default_kappa": -1.0}  # lower bounds of figures, if not 0; the upper bound is 1


def claim_weights(pairs: Sequence[HumanPair], reported: Mask, seed: int) -> Floats:
    """How often each pair is drawn in each resample of whole claims, shape (AUDIT_RESAMPLES, pairs).

    Args:
        pairs: All pairs.
        reported: Whether each pair's claim is in the reported half; only those are drawn.
        seed: The run's seed.
    """
    names = dict.fromkeys(pair.claim for pair, use in zip(pairs, reported, strict=True) if use)
    index = {claim: i for i, claim in enumerate(names)}
    rng = np.random.default_rng(runs.seed_for(seed, "bootstrap of claims"))
    drawn = rng.multinomial(len(index), np.full(len(index), 1 / len(index)), size=AUDIT_RESAMPLES)
    claims = [index.get(pair.claim, 0) for pair in pairs]
    return (drawn[:, claims] * reported).astype(np.float64)


def stratum_figures(
    labeler: str,
    pairs: Sequence[HumanPair],
    scores: Floats,
    stratum: str,
    choosing: Mask,
    weights: Floats,
    default_threshold: float | None,
    stances: Floats | None = None,
) -> StratumFigures:
    """The figures of one labeler in one stratum.

    Args:
        labeler: The labeler's name.
        pairs: All pairs.
        scores: Score of each pair; NaN where there is none.
        stratum: See `gold_labels`.
        choosing: Whether each pair's claim is in the half on which the threshold is chosen.
        weights: See `claim_weights`.
        default_threshold: The labeler's default threshold.
        stances: The labeler's P(supports) against P(refutes) for each pair, NaN where unknown.

    Raises:
        UserError: The labeler scored nothing, or one half has only one kind of judgement.
    """
    labels = gold_labels(pairs, stratum)
    known = np.array([label is not None for label in labels]) & ~np.isnan(scores)
    if not known.any():
        raise UserError(f"{labeler} scored none of the {len(pairs)} pairs; leave it out, or see why in scores.jsonl")
    gold = np.array([bool(label) for label in labels])
    for part, role in ((known & choosing, "chooses the threshold"), (known & ~choosing, "is reported on")):
        if gold[part].all() or not gold[part].any():
            raise UserError(f"stratum {stratum}: only one kind of judgement in the half that {role}; use more data")
    threshold = best_threshold(gold[known & choosing], scores[known & choosing])
    test = known & ~choosing
    y, s, w = gold[test], scores[test], _with_sample(weights[:, test])
    values = {**threshold_figures(threshold, y, s, w), "auroc": metrics.weighted_auroc(y, s, w), **calibration(y, s, w)}
    if default_threshold is not None:
        default = threshold_figures(default_threshold, y, s, w)
        values |= {f"default_{name}": default[name] for name in ("balanced_accuracy", "kappa")}
    claims = len({pair.claim for pair, use in zip(pairs, test, strict=True) if use})
    figures = {name: _estimate(draws, claims, _LEAST.get(name, 0.0)) for name, draws in values.items()}
    if stances is not None and not np.isnan(stances).all():
        figures["stance_auroc"] = _stance_auroc(pairs, stances, test, weights)
    return StratumFigures(
        labeler=labeler,
        stratum=stratum,
        n=int(test.sum()),
        n_claims=claims,
        without_score=int(((~choosing) & np.isnan(scores)).sum()),
        informative_share=float(y.mean()),
        threshold=threshold,
        default_threshold=default_threshold,
        majority_accuracy=float(max(y.mean(), 1 - y.mean())),
        figures=figures,
    )


def _stance_auroc(pairs: Sequence[HumanPair], stances: Floats, test: Mask, weights: Floats) -> Estimate | None:
    """AUROC of supports against refutes, on the pairs of a stratum that do one or the other."""
    decided = np.array([pair.stance in ("supports", "refutes") for pair in pairs]) & test & ~np.isnan(stances)
    supports = np.array([pair.stance == "supports" for pair in pairs])[decided]
    claims = len({pair.claim for pair, use in zip(pairs, decided, strict=True) if use})
    if not claims:
        return None
    return _estimate(metrics.weighted_auroc(supports, stances[decided], _with_sample(weights[:, decided])), claims, 0.0)


def labeler_differences(
    pairs: Sequence[HumanPair],
    scores: Mapping[str, Floats],
    strata: Sequence[str],
    choosing: Mask,
    weights: Floats,
) -> list[LabelerDifference]:
    """Compare each pair of labelers in each stratum, on the pairs that both scored.

    Args:
        pairs: All pairs.
        scores: Labeler -> score of each pair.
        strata: The strata.
        choosing: See `stratum_figures`.
        weights: See `claim_weights`.
    """
    differences = []
    for (first, a), (second, b) in combinations(scores.items(), 2):
        for stratum in strata:
            labels = gold_labels(pairs, stratum)
            known = np.array([label is not None for label in labels]) & ~np.isnan(a) & ~np.isnan(b)
            gold = np.array([bool(label) for label in labels])
            test, choice = known & ~choosing, known & choosing
            w = _with_sample(weights[:, test])
            gaps = metrics.weighted_auroc(gold[test], b[test], w) - metrics.weighted_auroc(gold[test], a[test], w)
            verdicts = [
                (column[test] >= best_threshold(gold[choice], column[choice])).astype(str).tolist() for column in (a, b)
            ]
            order = np.flatnonzero(test)[np.argsort(-np.abs(a[test] - b[test]), kind="stable")][:_EXAMPLES]
            differences.append(
                LabelerDifference(
                    first,
                    second,
                    stratum,
                    auroc=_estimate(gaps, len({pairs[int(i)].claim for i in np.flatnonzero(test)}), -1.0),
                    agreement_kappa=metrics.kappa(*verdicts),
                    examples=tuple(_disagreement(pairs[i], a[i], b[i]) for i in order),
                )
            )
    return differences


def _with_sample(weights: Floats) -> Floats:
    """Prepend a row of ones to the weights: the sample itself."""
    return np.concatenate([np.ones((1, weights.shape[1])), weights])


def _estimate(values: Floats, claims: int, least: float) -> Estimate | None:
    """The first value, that of the sample, with its bootstrap interval; None where it is undefined."""
    draws = values[1:][np.isfinite(values[1:])]
    if not np.isfinite(values[0]) or not len(draws):
        return None
    return bounded(float(values[0]), draws, claims, least)


def best_threshold(gold: Mask, scores: Floats) -> float:
    """The threshold with the best balanced accuracy, halfway between two scores."""
    order = np.unique(scores)
    cuts = np.concatenate([[0.0], (order[1:] + order[:-1]) / 2]) if len(order) > 1 else np.array([0.5])
    positive, negative = np.sort(scores[gold]), np.sort(scores[~gold])
    hits = 1 - np.searchsorted(positive, cuts) / max(len(positive), 1)
    rejects = np.searchsorted(negative, cuts) / max(len(negative), 1)
    return float(cuts[int(np.argmax(hits + rejects))])


def threshold_figures(threshold: float, gold: Mask, scores: Floats, weights: Floats) -> dict[str, Floats]:
    """Figures of the verdicts at a threshold, one value for each row of weights."""
    predicted = scores >= threshold
    cell = {(g, p): weights @ ((gold == g) & (predicted == p)) for g in (True, False) for p in (True, False)}
    tp, fn, fp, tn = cell[True, True], cell[True, False], cell[False, True], cell[False, False]
    table = np.stack([np.stack([tp, fn], -1), np.stack([fp, tn], -1)], -2)
    counts = np.concatenate([table, np.zeros((*table.shape[:-1], 2))], -1)  # unreadable and refused: none
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "balanced_accuracy": metrics.balanced_accuracy(counts),
            "mcc": metrics.mcc(counts),
            "kappa": metrics.kappa_of(table),
            "precision_distracting": tn / (tn + fn),
            "recall_distracting": tn / (tn + fp),
        }


def calibration(gold: Mask, scores: Floats, weights: Floats) -> dict[str, Floats]:
    """Brier score (Brier 1950), and expected calibration error of P(informative) over equal-width bins."""
    total = weights.sum(1)
    bins = np.minimum((scores * _BINS).astype(int), _BINS - 1)
    gaps = np.stack([weights @ ((gold - scores) * (bins == b)) for b in range(_BINS)], 1)
    return {"brier": weights @ (gold - scores) ** 2 / total, "ece": np.abs(gaps).sum(1) / total}


def _disagreement(pair: HumanPair, first: float, second: float) -> Disagreement:
    body = pair.pair.result.body
    shortened = body if len(body) <= 200 else body[:197] + "..."
    return Disagreement(pair.pair.instruction.output, shortened, pair.share, float(first), float(second))
