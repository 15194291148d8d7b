"""The verb `rescore`: parses recorded outputs again and compares them with recorded and published figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from sailkit.arguments import checked, renamed
from sailkit.errors import UserError, nearest
from sailkit.evaluation.figures import Flag, LabelFigures
from sailkit.evaluation.predictions import PredictionSet, units_of
from sailkit.evaluation.recordings import load_recording
from sailkit.evaluation.results import Rescored
from sailkit.evaluation.summary import constant_flags, label_figures, summarise_predictions
from sailkit.records import Prediction
from sailkit.tasks.task import Task

DEFAULT_CLASS_SHARE = 0.9
DEFAULT_CLASS_LEAST = 6  # fewer errors may all be of one class by chance
_TOLERANCE = 6e-4  # published figures have three or four digits
_F1_KINDS = ("macro_f1", "weighted_f1")


@checked
def rescore(
    *files: Path | str,
    task: str | Path | Task | None = None,
    fields: list[str] | None = None,
    published: list[str] | None = None,
    bootstrap_seed: Annotated[int, renamed("seed")] = 0,
) -> list[Rescored]:
    """Parse recorded outputs again, and check the recorded labels.

    Args:
        files: Recorded outputs: JSON Lines, CSV or parquet, or sample logs of lm-evaluation-harness, inspect_ai or
            lighteval; none, to check published figures alone.
        task: The task whose answer words are used: a name or a YAML file; by default the built-in one with the labels.
        fields: Names of the fields id, text, label, output, prediction, reference, prompt, group in the files, as
            KEY=NAME, repeated or separated by commas, or a YAML file.
        published: Published figures such as `accuracy=0.6461,f1=0.3925`, for each file in order.
        bootstrap_seed: Seed of the bootstrap.

    Returns:
        Figures and flags of each file; without files, the flags of each set of published figures.

    Raises:
        UserError: A file cannot be read, or figures and files do not match.
    """
    claims = [_published(text) for text in published or []]
    if not files and not claims:
        raise UserError("name a file of recorded outputs, or give `published` as accuracy=...,f1=...")
    if not files:
        results = [Rescored(flags=tuple(_aggregate_flags(claim))) for claim in claims]
    else:
        if claims and len(claims) != len(files):
            raise UserError(f"{len(claims)} `published` for {len(files)} files; give one for each, in order")
        for path in files:
            if not isinstance(path, (str, Path)) or Path(path).is_dir():
                what = path if isinstance(path, (str, Path)) else type(path).__name__
                raise UserError(f"rescore reads files of recorded outputs, not {what}; compare and report take runs")
        sets = [load_recording(path, task, fields) for path in files]
        results = [
            rescore_set(s, claim, bootstrap_seed) for s, claim in zip(sets, claims or [{}] * len(sets), strict=True)
        ]
    kinds = [_f1_kinds(result, claim) for result, claim in zip(results, claims, strict=False)]
    if len({kind[0] for kind in kinds if len(kind) == 1}) > 1:
        names = ", ".join(f"{r.name or '?'} {'/'.join(kind)}" for r, kind in zip(results, kinds, strict=True))
        text = f"the published F1 values are of different kinds ({names}); they cannot be compared"
        results = [replace(r, flags=(*r.flags, Flag("mixed-f1-kinds", text))) for r in results]
    return results


def _published(text: str) -> dict[str, float]:
    """Parse `accuracy=0.64,f1=0.39`."""
    known = {"accuracy", "f1", *_F1_KINDS}
    claim: dict[str, float] = {}
    for part in text.replace(" ", "").split(","):
        name, _, value = part.partition("=")
        if name not in known:
            raise UserError(f"`published` knows no figure {name!r}; {nearest(name, known)}")
        try:
            claim[name] = float(value)
        except ValueError:
            raise UserError(f"`published` {name}: {value!r} is not a number") from None
        if not 0 <= claim[name] <= 1:
            raise UserError(f"`published` {name}={value} is not between 0 and 1")
    return claim


def rescore_set(recording: PredictionSet, claim: Mapping[str, float], seed: int = 0) -> Rescored:
    """Figures and flags of one loaded recording; see `rescore`.

    Args:
        recording: The recording.
        claim: Published figures by name; may be empty.
        seed: Seed of the bootstrap.
    """
    rows, labels = recording.predictions, recording.labels
    summary = summarise_predictions(rows, labels, seed=seed)
    flags = [*summary.flags]
    recorded: LabelFigures | None = None
    disagrees: int | None = None
    if any(p.recorded is not None for p in rows):
        truth = [p.reference if summary.against == "reference" else p.gold for p in rows]
        recorded = recorded_figures(rows, truth, labels, seed)
        disagrees = sum(p.recorded != p.label for p in rows)
        decided = [p.recorded or "unreadable" for p in rows]
        constant = constant_flags(decided, labels, "the recorded predictions")
        flags = constant + _parser_flags(rows) + flags
    result = Rescored(
        name=recording.name,
        task=recording.provenance["task"],
        summary=summary,
        recorded=recorded,
        recorded_disagrees=disagrees,
    )
    kinds = _f1_kinds(result, claim)
    flags += _sampled_flags(recording) + _claim_flags(recorded, claim, kinds) + _aggregate_flags(claim)
    return replace(result, published_f1_kinds=tuple(kinds) if "f1" in claim else None, flags=tuple(flags))


def recorded_figures(
    rows: Sequence[Prediction], truth: Sequence[str | None], labels: Sequence[str], seed: int
) -> LabelFigures | None:
    """Figures of the recorded predictions; None if no item has a true label.

    Args:
        rows: The items.
        truth: The true label of each, or None.
        labels: The task's labels.
        seed: Seed of the bootstrap.
    """
    judged = [(p, label) for p, label in zip(rows, truth, strict=True) if label is not None]
    pairs = [(label, p.recorded or "unreadable") for p, label in judged]
    return label_figures(pairs, labels, seed, units_of([p for p, _ in judged])) if pairs else None


def _claim_flags(recorded: LabelFigures | None, claim: Mapping[str, float], kinds: Sequence[str]) -> list[Flag]:
    """The flags for published figures that the recorded predictions contradict or cannot confirm."""
    if not claim:
        return []
    if recorded is None:
        text = "the file has no recorded predictions to hold the published figures against"
        return [Flag("published-unchecked", text)]
    flags = []
    for kind, value in claim.items():
        if kind != "f1" and abs((computed := recorded.figures[kind].value) - value) > _TOLERANCE:
            text = f"published {kind} {value:.4f}, but the recorded predictions give {computed:.4f}"
            flags.append(Flag("published-differs", text))
    if "f1" in claim and not kinds:
        text = f"published F1 {claim['f1']:.4f} is neither the macro, nor the weighted, nor a class's F1"
        flags.append(Flag("published-differs", f"{text} of the recorded predictions"))
    return flags


def _parser_flags(rows: Sequence[Prediction]) -> list[Flag]:
    """The flag for a parser with a default class: nearly all its errors are of the same class."""
    wrong = [p for p in rows if p.recorded is not None and p.recorded != p.label]  # to give no label is no error
    if len(wrong) < DEFAULT_CLASS_LEAST:
        return []
    label, count = Counter(p.recorded for p in wrong).most_common(1)[0]
    if count / len(wrong) < DEFAULT_CLASS_SHARE:
        return []
    unread = sum(p.label is None for p in wrong)
    share = f"{len(wrong)} of {len(rows)} recorded predictions ({len(wrong) / len(rows):.1%})"
    text = (
        f"{share} are not what the answer says ({unread} of those answers give no label), and {count} of these are "
        f"{label}: where the parser fails, it falls back on one class"
    )
    return [Flag("default-class-parser", text)]


def _sampled_flags(recording: PredictionSet) -> list[Flag]:
    """The flag for sampled reference labels: a recorded temperature, or a text with two labels."""
    if all(p.reference is None for p in recording.predictions):
        return []
    flags = []
    temperatures = {
        float(value)
        for row in recording.extra
        for name, value in row.items()
        if "temperature" in name and ("reference" in name or name == "temperature") and _is_positive(value)
    }
    if temperatures:
        how = ", ".join(map(str, sorted(temperatures)))
        text = f"the recording states temperature {how}: a reference sampled so would give other labels if asked again"
        flags.append(Flag("sampled-reference", text))
    by_text: dict[str, set[str]] = {}
    for p in recording.predictions:
        if p.text and p.reference is not None:
            by_text.setdefault(p.text, set()).add(p.reference)
    split = sum(len(labels) > 1 for labels in by_text.values())
    if split and not temperatures:
        flags.append(
            Flag(
                "sampled-reference",
                f"{split} texts occur twice with different reference labels: the reference was sampled",
            )
        )
    return flags


def _is_positive(value: object) -> bool:
    try:
        return float(str(value)) > 0
    except ValueError:
        return False


def _f1_kinds(result: Rescored, claim: Mapping[str, float]) -> list[str]:
    """The kinds of F1 of the recorded predictions that equal a published F1 of unknown kind."""
    if "f1" not in claim:
        return [kind for kind in _F1_KINDS if kind in claim]
    figures = result.recorded.figures if result.recorded else {}
    kinds = [name for name in figures if name in _F1_KINDS or name.startswith("f1_")]
    return [kind for kind in kinds if abs(figures[kind].value - claim["f1"]) <= _TOLERANCE]


def _aggregate_flags(claim: Mapping[str, float]) -> list[Flag]:
    """The flag for a constant predictor on two classes, where macro-F1 = accuracy / (1 + accuracy)."""
    value = claim.get("macro_f1", claim.get("f1"))
    if value is None or "accuracy" not in claim:
        return []
    constant = claim["accuracy"] / (1 + claim["accuracy"])
    if abs(value - constant) > _TOLERANCE:
        return []
    text = (
        f"published accuracy {claim['accuracy']:.4f} with macro-F1 {value:.4f} is what one constant answer gives on "
        f"two classes (accuracy / (1 + accuracy) = {constant:.4f})"
    )
    return [Flag("constant-predictor", text)]
