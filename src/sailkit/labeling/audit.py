"""The verb `audit`: measure how well labelers agree with people, on claims that no threshold or model was fitted on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter

from sailkit import runs
from sailkit.arguments import checked
from sailkit.errors import UserError, at_least_one, required_extra
from sailkit.files import jsonl
from sailkit.labeling.audit_figures import claim_weights, labeler_differences, stratum_figures
from sailkit.labeling.audit_file import AUDIT, BM25, JUDGEMENTS, score_folder
from sailkit.labeling.audit_results import Audit
from sailkit.labeling.audit_scores import score_all
from sailkit.labeling.base import ResultPair, statement
from sailkit.labeling.ensemble import describe_ensemble
from sailkit.labeling.human import HumanJudgements, HumanPair, human_kappa, read_judgements
from sailkit.labeling.load import load_labeler, member_names
from sailkit.labeling.negatives import with_negatives
from sailkit.labeling.options import AuditedLabelerOptions, JudgementColumns
from sailkit.labeling.results import fitted_on
from sailkit.labeling.shortcuts import ShortcutAudit, audit_shortcuts
from sailkit.stats.intervals import Floats
from sailkit.tasks.task import in_first_half, in_first_part


@checked
def audit(
    *,
    data: list[Path] | None = None,
    labeler: list[str] | None = None,
    out: Path,
    task: str | None = None,
    model_runs: list[Path] | None = None,
    seed: int = 0,
    limit: int | None = None,
    scores: Path | None = None,
    options: Annotated[AuditedLabelerOptions, Parameter(name="*")] = AuditedLabelerOptions(),
    columns: Annotated[JudgementColumns, Parameter(name="*")] = JudgementColumns(),
) -> Audit | ShortcutAudit:
    """Measure labelers, or find shortcuts in data.

    Labelers are measured against human judgements: the threshold of each is chosen on one half of the claims, and all
    figures are computed on the other half, with 95 % intervals over claims. If every judged result is informative
    (FEVER), passages of other claims are added as distracting: near misses by BM25, and random ones.

    Without labelers, baselines that cannot have checked a claim (claim alone, search results alone, lengths, sources)
    predict the labels of a task or of built folders, out of fold, beside models that were measured on the task.

    Args:
        data: Climate-FEVER's JSONL, Factcheck-GPT's claim-evidence-stance JSONL, claims in the form of the task fever,
            or any table (see judgement-column). Without labelers: the task's data, or a run folder of build or
            build-task; repeated for several folders, which are audited as one mixture.
        labeler: similarity, overlap, entailment:MODEL, judge:MODEL, or module:attribute; repeated for several, or
            joined by + for the mean of their scores.
        out: The run folder; a stopped run is continued.
        task: Without labelers: a built-in task or a YAML file, unless data is a run folder.
        model_runs: Run folders of evaluate on the task, to compare with the baselines.
        seed: Seed of the halves and the bootstrap.
        limit: Use only the first LIMIT claims.
        scores: An earlier audit; its scores are reused where labeler and data are the same.
        options: How to load and run the labelers.
        columns: The columns of another table.

    Returns:
        The figures of each labeler and of each pair of labelers, by stratum; or those of each baseline.

    Raises:
        UserError: Any error that the user can fix.
    """
    at_least_one(limit=limit)
    if not labeler:
        if scores is not None or (options, columns) != (AuditedLabelerOptions(), JudgementColumns()):
            raise UserError("`scores`, options of labelers and columns of judgements have no effect without `labeler`")
        return audit_shortcuts(data=data or (), task=task, models=model_runs or (), out=out, seed=seed, limit=limit)
    if data is None or len(data) > 1 or task or model_runs:
        raise UserError("with `labeler`, give human judgements as `data`, and neither `task` nor `model_runs`")
    human = read_judgements(data[0], columns)
    names = list(dict.fromkeys(labeler))
    members = list(dict.fromkeys(member for name in names for member in member_names(name)))
    share = max([0.5, *(_fitted_share(member, human, seed) for member in members)])
    people = _unseen(_first_claims(human.pairs, limit), seed, share)
    if human.needs_negatives:
        halves = [[pair for pair in people if in_first_half(pair.claim, seed) == first] for first in (True, False)]
        people = [pair for half in halves for pair in with_negatives(half, seed)]
    choosing = np.array([in_first_half(pair.claim, seed) for pair in people])
    if choosing.all() or not choosing.any():
        raise UserError(f"{data[0]}: too few claims to choose a threshold on one half and report on the other")
    dates = (runs.setting_of(out / score_folder(name), "labeler", "date") for name in members)
    options = replace(options, date=options.date or next(filter(None, dates), None))
    # Fail early: an error in the last name shows before any scoring.
    descriptions = {member: load_labeler(member, options).describe() for member in members}
    for name in names:
        describe_ensemble([descriptions[member] for member in member_names(name)])
    if scores is not None:
        runs.read_manifest(scores)
    settings: dict[str, Any] = {
        "data": human.name,
        "data_sha256": human.sha256,
        "limit": limit,
        "seed": seed,
        "labelers": names,
    }
    settings |= {name: getattr(options, name) for name in ("direction", "form", "chat", "dtype", "device")}
    settings["measure"] = "entailment" if options.measure == "auto" else options.measure  # the default of old folders
    if columns.judgement:
        settings |= {"columns": asdict(columns)}
    pairs = [pair.pair for pair in people]
    with runs.open_run(out, "audit", settings) as run:
        scored = score_all(run, names, options, pairs, human.sha256, scores)
        score_columns = {BM25: _bm25(pairs)}
        score_columns |= {name: _column(score.score for score in scored[name].scores) for name in names}
        stances = {name: _column(score.stance for score in scored[name].scores) for name in names}
        thresholds: dict[str, float | None] = {name: scored[name].threshold for name in names}
        weights = claim_weights(people, ~choosing, seed)
        strata = _strata(people)
        if not run.path(AUDIT).exists():  # nothing is added to a finished audit
            jsonl.write_rows(run.path(JUDGEMENTS), map(_judgement_row, people))
        result = Audit(
            folder=out,
            data=human.name,
            data_sha256=human.sha256,
            pairs=len(people),
            claims=len({pair.claim for pair in people}),
            claims_reported=len({pair.claim for pair, first in zip(people, choosing, strict=True) if not first}),
            left_out=human.left_out,
            rows=tuple(
                stratum_figures(
                    name, people, column, stratum, choosing, weights, thresholds.get(name), stances.get(name)
                )
                for name, column in score_columns.items()
                for stratum in strata
            ),
            differences=tuple(labeler_differences(people, score_columns, strata, choosing, weights)),
            human_kappa=human_kappa(people),
            labelers={name: scored[name].description for name in names},
            machines={name: scored[name].machine for name in names},
            seed=seed,
            limit=limit,
        )
        content = result.to_json()
        del content["audit"]
        jsonl.write_json(run.path(AUDIT), content)
    return result


def _first_claims(pairs: Sequence[HumanPair], limit: int | None) -> list[HumanPair]:
    claims = set(list(dict.fromkeys(pair.claim for pair in pairs))[:limit])
    return [pair for pair in pairs if pair.claim in claims]


def _fitted_share(name: str, human: HumanJudgements, seed: int) -> float:
    """The share of these claims that a labeler was fitted on, 0 for none; the same seed is needed to know which."""
    fits = fitted_on(Path(name.partition(":")[2])) if name.startswith("entailment:") else []
    fits = [fit for fit in fits if human.sha256 in fit["data_sha256"]]
    seeds = {fit["seed"] for fit in fits}
    if len(seeds) > 1:
        raise UserError(f"{name} was fitted on halves of these claims with `seed` {sorted(seeds)}; no claims are left")
    if seeds - {seed}:
        raise UserError(f"{name} was fitted with `seed` {seeds.pop()}: other halves; give the same `seed`")
    return max((float(fit["share"]) for fit in fits), default=0.0)


def _unseen(pairs: Sequence[HumanPair], seed: int, share: float) -> list[HumanPair]:
    """The pairs of the half that chooses thresholds, and those of the other half that no labeler was fitted on."""
    return [pair for pair in pairs if in_first_half(pair.claim, seed) or not in_first_part(pair.claim, seed, share)]


def _strata(people: Sequence[HumanPair]) -> tuple[str, ...]:
    if any(pair.origin != "judged" for pair in people):
        return ("near", "random")
    return ("unanimous", "majority", "official") if any(len(pair.votes) > 1 for pair in people) else ("official",)


def _judgement_row(pair: HumanPair) -> jsonl.JsonObject:
    return {"claim": pair.claim, "share": pair.share, "stance": pair.stance, "origin": pair.origin}


def _column(values: Iterable[float | None]) -> Floats:
    return np.array([np.nan if value is None else value for value in values])


def _bm25(pairs: Sequence[ResultPair]) -> Floats:
    """BM25 scores x of the results for their claims, as x / (1 + x): the baseline of a plain search engine."""
    with required_extra("search", "the BM25 baseline"):
        import bm25s
    words = bm25s.tokenize([pair.result.text for pair in pairs], show_progress=False)
    if not any(words.ids):
        return np.zeros(len(pairs))
    index = bm25s.BM25()
    index.index(words, show_progress=False)
    queries = [statement(pair.instruction) for pair in pairs]
    tokens = dict(zip(queries, bm25s.tokenize(queries, return_ids=False, show_progress=False), strict=True))
    scores = np.zeros(len(pairs))
    last, query_scores = "", np.zeros(len(pairs))  # pairs of a claim are neighbours and have the same query
    for i, query in enumerate(queries):
        if query != last:
            known = [token for token in tokens[query] if token in index.vocab_dict]
            last, query_scores = query, index.get_scores(known) if known else np.zeros(len(pairs))
        scores[i] = query_scores[i]
    return scores / (1 + scores)
