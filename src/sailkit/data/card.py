"""Compute and write the data card: counts, lengths and settings of a training set, and reasons to doubt it."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.labeling.audit_file import names_in_audit
from sailkit.records import TrainingExample, Verdict
from sailkit.rendering.markdown import escape
from sailkit.stats.shortcut_items import as_table
from sailkit.stats.shortcuts import ShortcutBaseline, telling_views

CARD, CARD_PAGE = "card.json", "card.md"
LEAST_SHARE = 0.2
_AUDITED = {"AUROC": "auroc", "balanced accuracy": "balanced_accuracy", "kappa": "kappa"}


def card_of(
    train: Sequence[TrainingExample],
    counts: Mapping[str, Any],
    settings: Mapping[str, Any],
    baselines: Mapping[str, Sequence[ShortcutBaseline]],
    *,
    constructed: bool,
) -> dict[str, Any]:
    """The data card: counts, shares, lengths, flags, and the settings.

    Args:
        train: The training set.
        counts: Row counts of each file, and similar counts; copied as they are.
        settings: The settings of the run.
        baselines: The shortcut baselines of the training set.
        constructed: Whether the rows were constructed, so that a shortcut is a fault of the data.

    Returns:
        The card as JSON; shares refer to the judgements of the training set, lengths are in words.
    """
    verdicts = Counter(verdict for example in train for verdict in example.judgements)
    total = sum(verdicts.values())
    numbers = Counter(len(example.results) for example in train)
    shares = {name: round(verdicts[name] / total, 4) if total else None for name in get_args(Verdict)}
    messages: dict[str, list[str]] = {}
    for name, share in shares.items():
        if share is not None and share < LEAST_SHARE:
            option = "--supported or --shares" if constructed else "--threshold"
            text = f"only {share:.1%} of the judgements in the training set are {name}; choose another {option}"
            messages.setdefault("one-sided-judgements", []).append(text)
    share = settings.get("held_out", 0)
    if share and not counts["n_held_out"]:
        messages["nothing-held-out"] = [
            f"a held-out share of {share:g} gave none of {counts['n_train']:,} rows, and training will have nothing to "
            "measure on; choose a larger --held-out-share"
        ]
    audited = {row["labeler"] for row in (settings.get("audit") or {}).get("audits", ())}
    for name in (labeler.get("labeler") for labeler in settings.get("labelers", ())):
        if settings.get("audit") and name not in audited:
            messages.setdefault("unaudited-labeler", []).append(f"the audit that is quoted does not measure {name}")
    if total == 0:
        messages["no-judgements"] = ["no training row has a search result; a model cannot learn to verify from these"]
    if constructed:
        messages |= telling_views(baselines)
    answers = {f"{row.view}_auroc": row.auroc for row in baselines.get("answer", ())}
    return {
        **counts,
        **{key: round(value, 4) for name, auroc in answers.items() for key, value in auroc.flat(name).items()},
        **({"shortcuts": as_table(baselines)} if baselines else {}),
        "judgement_shares": shares,
        "judgements": {name: verdicts[name] for name in get_args(Verdict)},
        "rows_by_results": {str(number): count for number, count in sorted(numbers.items())},
        "rows_by_judgements": dict(sorted(Counter(_kind(example.judgements) for example in train).items())),
        "words": {
            "instruction": _words(example.instruction for example in train),
            "input": _words(example.input for example in train if example.input),
            "response": _words(example.response for example in train),
            "search result": _words(result.body for example in train for result in example.results),
        },
        **{name: value for name, value in settings.items() if name != "export"},
        "flags": list(messages),
        "flag_messages": messages,
    }


def write_card(folder: Path, card: Mapping[str, Any]) -> None:
    """Write the data card as Markdown and JSON; the JSON comes last, because it marks the run as finished."""
    jsonl.write_atomic(folder / CARD_PAGE, page_of(card))
    jsonl.write_json(folder / CARD, card)


def audit_figures(path: Path, labelers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Read what a card quotes of an audit: the figures of the labelers that were used, without examples.

    Args:
        path: The JSON that `sailkit audit` wrote.
        labelers: Descriptions of the labelers that were used.

    Raises:
        UserError: The file cannot be read, or is not an audit.
    """
    audit = jsonl.read_json(path)
    rows = audit.get("audits")
    if not isinstance(rows, list) or not all(isinstance(row, dict) and _is_named(row) for row in rows):
        raise UserError(f"{path} is not what  sailkit audit  writes: it has no figures of labelers")
    about = {name: audit.get(name) for name in ("data", "data_sha256", "seed", "human_kappa")}
    used = {key: labeler["labeler"] for labeler in labelers for key in names_in_audit(audit, labeler)}
    return about | {"audits": [{**row, "labeler": used[row["labeler"]]} for row in rows if row["labeler"] in used]}


def _is_named(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("labeler"), str) and isinstance(row.get("stratum"), str)


def _words(texts: Iterable[str]) -> dict[str, float | int] | None:
    """Lengths in words; None where there are no texts."""
    sizes = sorted(len(text.split()) for text in texts)
    if not sizes:
        return None
    middle = statistics.median(sizes)
    return {"mean": round(statistics.fmean(sizes), 1), "median": middle, "p95": sizes[int(0.95 * (len(sizes) - 1))],
            "max": sizes[-1]}  # fmt: skip


def _kind(judgements: Sequence[Verdict]) -> str:
    if not judgements:
        return "none"
    return "mixed" if len(set(judgements)) > 1 else f"all {judgements[0]}"


def page_of(card: Mapping[str, Any]) -> str:
    """The card as Markdown: a table of all entries, and the figures of the audit."""
    lines = ["# Data card", ""]
    for sentences in card["flag_messages"].values():
        lines += [f"> {escape(sentence)}" for sentence in sentences] + [""]
    lines += ["| | |", "|---|---|"]
    audit = card.get("audit") or {}
    rows = audit.get("audits", ())
    for name, value in {**card, "audit": {k: v for k, v in audit.items() if k != "audits"}}.items():
        if name in ("flags", "flag_messages", "shortcuts"):
            continue
        if isinstance(value, dict):
            lines += [f"| {name.replace('_', ' ')}: {_cell(key)} | {_cell(entry)} |" for key, entry in value.items()]
        else:
            lines.append(f"| {name.replace('_', ' ')} | {_cell(value)} |")
    if shortcuts := card.get("shortcuts"):
        lines += ["", "How well parts of a row predict its answer and its judgements:", ""]
        lines += ["| target | part | rows | AUROC | macro-F1 |", "|---|---|---|---|---|"]
        for entry in shortcuts:
            part = f"{entry['view']} alone ({entry['features']})"
            numbers = " | ".join(_estimate(entry, name) for name in ("auroc", "macro_f1"))
            lines.append(f"| {entry['target']} | {part} | {entry['n']} | {numbers} |")
    if rows:
        lines += ["", "The labelers against people:", "", f"| | stratum | pairs | {' | '.join(_AUDITED)} |"]
        lines.append("|---" * (len(_AUDITED) + 3) + "|")
    for row in rows:
        figures = [_estimate(row, name) for name in _AUDITED.values()]
        cells = [*(_cell(row.get(name)) for name in ("labeler", "stratum", "n")), *figures]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _estimate(row: Mapping[str, Any], name: str) -> str:
    value, low, high = (row.get(name + end) for end in ("", "_low", "_high"))
    texts = [f"{number:.3f}" if isinstance(number, (int, float)) else "-" for number in (value, low, high)]
    return f"{texts[0]} [{texts[1]}, {texts[2]}]"


def _cell(value: object) -> str:
    return escape(value if isinstance(value, str) else jsonl.dumps(value))
