"""The verb `build`: sample training data from labelled search results, as in SAIL (Luo et al. 2023), and split it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from sailkit import runs
from sailkit.arguments import checked, renamed
from sailkit.data import exports
from sailkit.data.card import CARD, audit_figures, card_of, write_card
from sailkit.data.exports import DROPPED, HELD_OUT, TRAIN, example_row
from sailkit.data.leaks import LEAK_RULES_VERSION, REMOVED, LeakCheck
from sailkit.data.results import TrainingData
from sailkit.data.rows import RowBuilder
from sailkit.errors import UserError, at_least_one, between_zero_and_one
from sailkit.files import jsonl
from sailkit.labeling.labels_file import LABELS, read_labels
from sailkit.labeling.ppi import corrected_share
from sailkit.packaged import sample_path
from sailkit.prompts.styles import wording
from sailkit.retrieval.instructions import RESULTS, read_searched
from sailkit.stats.shortcut_items import by_question, training_baselines
from sailkit.tasks.task import load_task

ExportFormat = Literal["trl", "trl-parquet", "sail"]
Mix = Literal["mean", "all", "any"]


@checked
def build(
    *,
    results: Path,
    labels: list[Path],
    out: Path,
    style: Literal["sail", "sail-fixed", "chat"] = "chat",
    shares: str = "0.2,0.1,0.3,0.4",
    top: int = 5,
    threshold: float | None = None,
    mix: Mix = "mean",
    held_out_share: Annotated[float, renamed("held_out")] = 0.05,
    exclude_task: list[str] | None = None,
    export: list[ExportFormat] | None = None,
    audit: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> TrainingData:
    """Build training data from labelled search results.

    Args:
        results: A run folder of search, or its results file.
        labels: Run folder of label; repeated to mix several labelers.
        out: Run folder to write: train.jsonl, held_out.jsonl, dropped.jsonl, removed.jsonl, card.json and card.md.
        style: Prompt format of the rows: the model's chat template, SAIL's published prompt, or the latter corrected.
        shares: Shares of rows with no, one, two, three ... search results; they sum to 1.
        top: How many of the best-ranked results to draw from; with several engines, the best BM25 result is added.
        threshold: Least score of an informative result; by default each labeler's own threshold.
        mix: How to combine several labelers: the mean of their scores, or informative by all or any of them.
        held_out_share: Share of instructions to hold out; rows with the same instruction and input stay together.
        exclude_task: Remove rows that contain an item of this task, exactly or nearly; NAME, or NAME=PATH where the
            task does not include its data.
        export: Also write train and held_out in these formats.
        audit: The audit.json of an audit of the labelers, quoted in the card.
        limit: Use only the first LIMIT rows.
        seed: Random seed; each row is drawn from the seed and its id.

    Returns:
        Counts, flags and the data card.

    Raises:
        UserError: Bad options, or labels that belong to other data.
    """
    result_shares = read_shares(shares)
    forms = list(dict.fromkeys(export or ()))
    _check_options(top, threshold, held_out_share, limit, labels)
    searched = read_searched(results)
    loaded = [read_labels(folder, searched) for folder in labels]
    quoted = audit_figures(audit, [item.labeler for item in loaded]) if audit else None
    if audit and quoted:
        shares_of = [
            (item, corrected_share(audit, item, item.threshold if threshold is None else threshold))
            for item in (replace(item, judgements=item.judgements[:limit]) for item in loaded)
        ]
        quoted |= {
            f"informative share by {item.labeler['labeler']}, corrected (PPI)": [share.value, share.low, share.high]
            for item, share in shares_of
            if share
        }
    check, tasks = _leak_check(exclude_task or ())
    results_file = results / RESULTS if results.is_dir() else results
    settings = {
        "results_sha256": jsonl.file_fingerprint([results_file]),
        "labels_sha256": [jsonl.file_fingerprint([folder / LABELS]) for folder in labels],
        "labelers": [item.labeler for item in loaded],
        "label_thresholds": [item.threshold for item in loaded],
        "style": style,
        "styles_sha256": jsonl.fingerprint(wording()),
        "shares": result_shares,
        "top": top,
        "threshold": threshold,
        "mix": mix if len(labels) > 1 else None,
        "held_out": held_out_share,
        "exclude_task": tasks,
        "leak_rules": LEAK_RULES_VERSION if tasks else None,
        "export": forms,
        "audit": quoted,
        "limit": limit,
        "seed": seed,
    }
    with runs.open_run(out, "build", settings) as run:
        if run.path(CARD).exists():  # the card is written last, so the run is finished
            return TrainingData.load(out)
        builder = RowBuilder(
            style=style,
            shares=result_shares,
            top=top,
            threshold=threshold,
            mix=mix,
            held_out_share=held_out_share,
            seed=seed,
            check=check,
        )
        builder.add_all(searched[:limit], loaded)
        return TrainingData.from_card(out, _write(run, builder, forms))


def read_shares(text: str) -> list[float]:
    """Parse shares, separated by commas, and check that they sum to 1."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"`shares` {text!r}: write numbers between commas, such as 0.2,0.1,0.3,0.4") from None
    if not all(0 <= share <= 1 for share in values) or abs(math.fsum(values) - 1) > 1e-6:
        raise UserError(f"`shares` {text!r}: shares are between 0 and 1, and sum to 1")
    return values


def _check_options(
    top: int,
    threshold: float | None,
    held_out_share: float,
    limit: int | None,
    labels: Sequence[Path],
) -> None:
    at_least_one(top=top, limit=limit)
    between_zero_and_one(threshold=threshold)
    if not 0 <= held_out_share < 1:
        raise UserError(f"`held_out_share` should be at least 0 and below 1, not {held_out_share}")
    if not labels:
        raise UserError("no `labels`; give the run folder of  sailkit label")


def _leak_check(names: Sequence[str]) -> tuple[LeakCheck | None, list[dict[str, Any]]]:
    """Return a check against the examples of the given tasks, and a description of each task for the settings."""
    texts: list[tuple[str, str, str]] = []
    tasks = []
    for text in names:
        name, _, path = text.partition("=")
        task = load_task(name, ["all"])
        data = task.load(sample_path(path) if path else None)
        texts += [(task.name, example.id, example.text) for example in data.examples]
        tasks.append({"task": task.name, "examples": len(data.examples), "data_sha256": data.fingerprint})
    return (LeakCheck(texts) if tasks else None), tasks


def _write(run: runs.Run, built: RowBuilder, forms: Sequence[str]) -> dict[str, Any]:
    """Write all files of the run, the data card last, and return the card.

    Raises:
        UserError: No training row is left.
    """
    if not built.train:
        lost = f"{len(built.dropped)} were dropped, {len(built.removed)} hold an item of an excluded task"
        raise UserError(f"no row is left to train on: of {built.rows}, {lost}, {len(built.held_out)} are held out")
    exported = []
    for name, examples in ((TRAIN, built.train), (HELD_OUT, built.held_out)):
        jsonl.write_rows(run.path(name), map(example_row, examples))
        stem = run.path(name.removesuffix(".jsonl"))
        exported += [exports.export(examples, form, stem) for form in forms]
    jsonl.write_rows(run.path(DROPPED), built.dropped)
    jsonl.write_rows(run.path(REMOVED), built.removed)
    counts = {
        "n_in": built.rows,
        "n_train": len(built.train),
        "n_held_out": len(built.held_out),
        "n_dropped": len(built.dropped),
        "n_removed": len(built.removed),
        "dropped": dict(sorted(Counter(row["reason"] for row in built.dropped).items())),
        "removed": dict(sorted(Counter(f"{row['task']}, {row['kind']}" for row in built.removed).items())),
        "candidates": dict(sorted(built.candidates.items())),
        "fewer_results_than_drawn": built.fewer,
        "results_without_text": built.without_text,
        "cut_tokens_in_labelling": built.cut_tokens,
        "exports": exported,
    }
    baselines = training_baselines(by_question(built.train), built.seed)
    card = card_of(built.train, counts, run.manifest["settings"], baselines, constructed=False)
    write_card(run.folder, card)
    return card
