"""The stage `audit`: how good labelers are against people, on claims that were not used to choose or fit anything."""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sailkit import runs
from sailkit.errors import UserError, at_least_one, missing_extra
from sailkit.files import jsonl
from sailkit.files.batch_log import write_batches
from sailkit.labeling.base import ResultPair, machine_of, score_batch, statement
from sailkit.labeling.human import HumanJudgements, HumanPair, gold_labels, human_kappa, read_judgements
from sailkit.labeling.label import SCORES
from sailkit.labeling.load import LabelerOptions, load_labeler
from sailkit.models.base import ModelOptions
from sailkit.stats import metrics
from sailkit.stats.intervals import Floats, bounded, interval
from sailkit.tasks.task import in_first_half

AUDIT = "audit.json"
STAGE = "audit"
BM25 = "bm25 score"
STRATA = {"climate-fever": ("unanimous", "majority", "official"), "factcheck-gpt": ("official",)}
AUDIT_RESAMPLES = 1000
_BINS = 10
_LEAST = {"kappa": -1.0, "mcc": -1.0, "default_kappa": -1.0}  # what figures can be at least; others 0. At most 1


def audit(
    *,
    data: Path,
    labeler: list[str],
    out: Path,
    seed: int = 0,
    limit: int | None = None,
    scores: Path | None = None,
    direction: Literal["result-first", "response-first", "both"] = "result-first",
    measure: Literal["entailment", "relevance"] = "entailment",
    form: Literal["pair", "esp"] = "pair",
    chat: Literal["auto", "on", "off"] = "auto",
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device: str = "auto",
) -> dict[str, Any]:
    """Measure labelers against human judgements.

    The threshold of each labeler is chosen on one half of the claims; every figure is of the other half, with 95 %
    intervals over claims.

    Args:
        data: Climate-FEVER's JSONL, or Factcheck-GPT's claim-evidence-stance JSONL.
        labeler: similarity, overlap, entailment:MODEL, judge:MODEL; repeated for several.
        out: The run folder; one that was stopped goes on.
        seed: Seed of the halves and the bootstrap.
        limit: Only the first so many claims.
        scores: An earlier audit, whose scores are taken over where labeler and data are the same.
        direction: For entailment; see label.
        measure: For entailment.
        form: For entailment.
        chat: For judge.
        dtype: Number format.
        device: Where to run.

    Returns:
        `audits`, one for each labeler and stratum; `pairs`, what two labelers say of each other; baselines.

    Raises:
        UserError: Anything that the user can mend.
    """
    at_least_one(limit=limit)
    judged = read_judgements(data)
    people = _first(judged.pairs, limit)
    half = np.array([in_first_half(one.claim, seed) for one in people])
    if half.all() or not half.any():
        raise UserError(f"{data}: too few claims to choose a threshold on one half and report on the other")
    names = list(dict.fromkeys(labeler))
    day = next(filter(None, (runs.setting_of(out / _score_folder(name), "labeler", "date") for name in names)), None)
    options = LabelerOptions(direction, measure, form, ModelOptions(chat=chat, dtype=dtype, device=device, date=day))
    for name in names:
        _not_fitted_on_the_other_half(name, judged, seed)
        load_labeler(name, options)  # a mistake in the last shows before the first has scored anything
    if scores is not None:
        runs.read_manifest(scores)
    asked = {"data": judged.name, "data_sha256": judged.sha256, "limit": limit, "seed": seed, "labelers": names}
    asked |= {"direction": direction, "measure": measure, "form": form, "chat": chat, "dtype": dtype, "device": device}
    pairs = [one.pair for one in people]
    columns = {BM25: _bm25(pairs)}
    thresholds: dict[str, float | None] = {BM25: None}
    told: dict[str, Any] = {}
    machines: dict[str, Any] = {}
    with runs.open_run(out, STAGE, asked) as whole:
        for name in names:
            judge = load_labeler(name, options)
            thresholds[name], told[name], machines[name] = judge.threshold, judge.describe(), machine_of(judge)
            settings = {"labeler": told[name], "data_sha256": judged.sha256, "n": len(people)}
            folder = _score_folder(name)
            with runs.open_run(whole.path(folder), "labeler scores", settings) as run:
                if scores is not None:
                    _take_over(run, scores / folder)
                columns[name] = _scores(run, judge, pairs)
        weights = _claim_weights(people, ~half, seed)
        audits = [
            {"labeler": name, "stratum": stratum, **_figures(people, column, stratum, half, weights, thresholds[name])}
            for name, column in columns.items()
            for stratum in STRATA[judged.name]
        ]
        found = {
            "data": judged.name,
            "data_sha256": judged.sha256,
            "pairs_in_all": len(people),
            "claims": len({one.claim for one in people}),
            "left_out": judged.left_out,
            "audits": audits,
            "differences": _differences(people, columns, STRATA[judged.name], half, weights),
            "human_kappa": human_kappa(people),
            "labelers": told,
            "machines": machines,
            "claims_reported": len({one.claim for one, first in zip(people, half, strict=True) if not first}),
            "seed": seed,
            "limit": limit,
        }
        jsonl.write_json(whole.path(AUDIT), found)
    return {**found, "audit": str(out / AUDIT)}


def _score_folder(name: str) -> str:
    """Where a labeler's scores are kept in the folder of an audit: the same in every audit."""
    return f"{re.sub('[^a-z0-9]+', '-', name.lower())[-40:].strip('-')}-{jsonl.fingerprint(name)[:6]}"


def _take_over(run: runs.Run, earlier: Path) -> None:
    """Copy the scores of an earlier audit, if they are of the same labeler and data."""
    known = (earlier / runs.MANIFEST).exists() and runs.read_manifest(earlier)["settings"] == run.manifest["settings"]
    if known and (earlier / SCORES).exists() and not run.path(SCORES).exists():
        jsonl.write_atomic(run.path(SCORES), (earlier / SCORES).read_bytes())


def _first(pairs: Sequence[HumanPair], limit: int | None) -> list[HumanPair]:
    claims = list(dict.fromkeys(one.claim for one in pairs))
    wanted = set(claims[:limit])
    return [one for one in pairs if one.claim in wanted]


def _not_fitted_on_the_other_half(name: str, judged: HumanJudgements, seed: int) -> None:
    """A labeler that saw the claims that are reported on would be praised for its memory."""
    path = Path(name.partition(":")[2]) / "fitted.json"
    if name.startswith("entailment:") and path.exists():
        told = jsonl.read_json(path)
        if told["data_sha256"] == judged.sha256 and told["seed"] != seed:
            raise UserError(f"{name} was fitted with `seed` {told['seed']}: other halves; give the same `seed`")


def _scores(run: runs.Run, judge: Any, pairs: Sequence[ResultPair]) -> Floats:
    """Scores of all pairs, NaN where there is none; kept in the run folder."""
    batches = judge.plan(pairs)

    def compute(remaining: Sequence[Sequence[int]]) -> Generator[list[jsonl.JsonObject], None, None]:
        for batch in remaining:
            batch_scores = score_batch(judge, [pairs[i] for i in batch])
            yield [
                {"id": str(i), "score": score.score, "outcome": score.outcome}
                for i, score in zip(batch, batch_scores, strict=True)
            ]

    write_batches(run.path(SCORES), batches, str, compute, f"auditing {judge.name}")
    scores = np.full(len(pairs), np.nan)
    for _, row in jsonl.read_rows(run.path(SCORES)):
        scores[int(row["id"])] = np.nan if row["score"] is None else row["score"]
    return scores


def _bm25(pairs: Sequence[ResultPair]) -> Floats:
    """BM25 of claim and result among all results, squeezed into [0, 1): what a search engine knows already."""
    try:
        import bm25s
    except ImportError:
        raise missing_extra("search", "the BM25 baseline") from None
    words = bm25s.tokenize([pair.result.text for pair in pairs], show_progress=False)
    if not any(words.ids):
        return np.zeros(len(pairs))
    index = bm25s.BM25()
    index.index(words, show_progress=False)
    asked = [statement(pair.instruction) for pair in pairs]
    tokens = dict(
        zip(asked, bm25s.tokenize(asked, return_ids=False, show_progress=False), strict=True)
    )  # pairs of one claim share it
    scores = np.zeros(len(pairs))
    last, every = "", np.zeros(len(pairs))
    for i, text in enumerate(asked):
        if text != last:
            known = [token for token in tokens[text] if token in index.vocab_dict]
            last, every = text, index.get_scores(known) if known else np.zeros(len(pairs))
        scores[i] = every[i]
    return scores / (1 + scores)


def _claim_weights(people: Sequence[HumanPair], used: npt.NDArray[np.bool_], seed: int) -> Floats:
    """How often each pair is drawn in each resample of whole claims, shape (AUDIT_RESAMPLES, pairs)."""
    names = dict.fromkeys(one.claim for one, use in zip(people, used, strict=True) if use)
    claims = {claim: i for i, claim in enumerate(names)}
    rng = np.random.default_rng(runs.seed_for(seed, "bootstrap of claims"))
    drawn = rng.multinomial(len(claims), np.full(len(claims), 1 / len(claims)), size=AUDIT_RESAMPLES)
    place = [claims.get(one.claim, 0) for one in people]
    return (drawn[:, place] * used).astype(np.float64)


def _figures(
    people: Sequence[HumanPair],
    scores: Floats,
    stratum: str,
    half: npt.NDArray[np.bool_],
    weights: Floats,
    threshold: float | None,
) -> dict[str, Any]:
    said = gold_labels(people, stratum)
    known = np.array([value is not None for value in said]) & ~np.isnan(scores)
    gold = np.array([bool(value) for value in said])
    choice, test = known & half, known & ~half
    for part, does in ((choice, "chooses the threshold"), (test, "is reported on")):
        if gold[part].all() or not gold[part].any():
            raise UserError(f"stratum {stratum}: only one kind of judgement in the half that {does}; use more data")
    chosen = best_threshold(gold[choice], scores[choice])
    y, s, w = gold[test], scores[test], weights[:, test]
    many = np.concatenate([np.ones((1, len(y))), w])  # the first row is the sample itself
    figures: dict[str, Any] = {
        "n": int(test.sum()),
        "without_score": int(((~half) & np.isnan(scores)).sum()),
        "informative_share": float(y.mean()),
        "threshold": chosen,
        "default_threshold": threshold,
        "majority_accuracy": float(max(y.mean(), 1 - y.mean())),
    }
    claims = len({one.claim for one, use in zip(people, test, strict=True) if use})
    rows = {**_at(chosen, y, s, many), "auroc": weighted_auroc(y, s, many), **_calibration(y, s, many)}
    if threshold is not None:
        default = _at(threshold, y, s, many)
        rows |= {f"default_{name}": default[name] for name in ("balanced_accuracy", "kappa")}
    for name, values in rows.items():
        figures |= _estimate(name, values, claims, _LEAST.get(name, 0.0))
    return figures


def _estimate(name: str, values: Floats, claims: int, least: float) -> dict[str, float | None]:
    """A figure of the sample, which comes first, and its interval; None where a class is missing from it."""
    good = values[1:][np.isfinite(values[1:])]
    if np.isfinite(values[0]) and len(good):
        return {**bounded(float(values[0]), good, claims, least).flat(name)}
    low, high = interval(good, claims) if len(good) else (None, None)
    return {name: None, f"{name}_low": low, f"{name}_high": high}


def best_threshold(gold: npt.NDArray[np.bool_], scores: Floats) -> float:
    """The threshold with the best balanced accuracy, halfway between two scores."""
    order = np.unique(scores)
    cuts = np.concatenate([[0.0], (order[1:] + order[:-1]) / 2]) if len(order) > 1 else np.array([0.5])
    high, low = np.sort(scores[gold]), np.sort(scores[~gold])
    hits = 1 - np.searchsorted(high, cuts) / max(len(high), 1)
    rejects = np.searchsorted(low, cuts) / max(len(low), 1)
    return float(cuts[int(np.argmax(hits + rejects))])


def _at(threshold: float, gold: npt.NDArray[np.bool_], scores: Floats, weights: Floats) -> dict[str, Floats]:
    """Figures of the verdicts at a threshold, one for each row of weights."""
    said = scores >= threshold
    cell = {(g, p): weights @ ((gold == g) & (said == p)) for g in (True, False) for p in (True, False)}
    tp, fn, fp, tn = cell[True, True], cell[True, False], cell[False, True], cell[False, False]
    table = np.stack([np.stack([tp, fn], -1), np.stack([fp, tn], -1)], -2)
    counts = np.concatenate([table, np.zeros((*table.shape[:-1], 2))], -1)  # no unreadable, none refused
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "balanced_accuracy": metrics.balanced_accuracy(counts),
            "mcc": metrics.mcc(counts),
            "kappa": metrics.kappa_of(table),
            "precision_distracting": tn / (tn + fn),
            "recall_distracting": tn / (tn + fp),
        }


def weighted_auroc(gold: npt.NDArray[np.bool_], scores: Floats, weights: Floats) -> Floats:
    """Area under the ROC curve for each row of weights, ties counted half (Mann-Whitney)."""
    values, place = np.unique(scores, return_inverse=True)
    high, low = (np.zeros((len(weights), len(values))) for _ in range(2))
    for table, kind in ((high, gold), (low, ~gold)):
        order = np.argsort(place[kind], kind="stable")
        where, starts = np.unique(place[kind][order], return_index=True)
        table[:, where] = np.add.reduceat(weights[:, kind][:, order], starts, axis=1)
    below = np.cumsum(low, 1) - low / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        areas: Floats = (high * below).sum(1) / (high.sum(1) * low.sum(1))
    return areas


def _calibration(gold: npt.NDArray[np.bool_], scores: Floats, weights: Floats) -> dict[str, Floats]:
    """Brier score (Brier 1950), and expected calibration error of P(informative) over equal-width bins."""
    total = weights.sum(1)
    place = np.minimum((scores * _BINS).astype(int), _BINS - 1)
    gaps = np.stack([weights @ ((gold - scores) * (place == b)) for b in range(_BINS)], 1)
    return {"brier": weights @ (gold - scores) ** 2 / total, "ece": np.abs(gaps).sum(1) / total}


def _differences(
    people: Sequence[HumanPair],
    columns: dict[str, Floats],
    strata: Sequence[str],
    half: npt.NDArray[np.bool_],
    weights: Floats,
) -> list[dict[str, Any]]:
    """For each two labelers: difference of AUROC on the same claims, agreement, and where they differ most."""
    found = []
    for (first, a), (second, b) in combinations(columns.items(), 2):
        for stratum in strata:
            said = gold_labels(people, stratum)
            known = np.array([value is not None for value in said]) & ~np.isnan(a) & ~np.isnan(b)
            gold = np.array([bool(value) for value in said])
            test = known & ~half
            many = np.concatenate([np.ones((1, int(test.sum()))), weights[:, test]])
            gaps = weighted_auroc(gold[test], b[test], many) - weighted_auroc(gold[test], a[test], many)
            verdicts = [
                (column[test] >= best_threshold(gold[known & half], column[known & half])).astype(str).tolist()
                for column in (a, b)
            ]
            order = np.flatnonzero(test)[np.argsort(-np.abs(a[test] - b[test]), kind="stable")][:5]
            found.append(
                {
                    "first": first,
                    "second": second,
                    "stratum": stratum,
                    **_estimate(
                        "auroc_difference", gaps, len({people[int(j)].claim for j in np.flatnonzero(test)}), -1.0
                    ),
                    "agreement_kappa": metrics.kappa(*verdicts),
                    "examples": [_example(people[j], a[j], b[j]) for j in order],
                }
            )
    return found


def _example(one: HumanPair, first: float, second: float) -> dict[str, Any]:
    body = one.pair.result.body
    shown = body if len(body) <= 200 else body[:197] + "..."
    claim = one.pair.instruction.output
    return {"claim": claim, "result": shown, "human_share": one.share, "first": float(first), "second": float(second)}
