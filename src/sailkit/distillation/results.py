"""The result of a distillation, read from its run folder, with intervals over its held-out rows."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sailkit import runs
from sailkit.data.exports import HELD_OUT
from sailkit.distillation.fidelity import FLAGS, SUMS, flag_counts, flags_kappa, means
from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.rendering.result import Result
from sailkit.stats.intervals import LEAST_ROWS, Estimate, Floats, bounded, interval, resampled_sums
from sailkit.training.results import MODEL, TrainingPlan, TrainingRun

# Folders and files of a run.
PROMPTS, ANSWERS = "asked", "answers"  # the rows whose prompts the teacher answers, and its answers
DATA = "data"  # what the student reads: rows whose completions are the teacher's text, in the student's style
CACHE = "teacher"
CUT_MODEL = "cut"  # the student before training, if it is created from the teacher's layers
STUDENT = "student"  # the training run
TARGETS = "targets-{}.safetensors"
FIDELITY = "fidelity.jsonl"  # a row for each held-out example, before and after training

SUM_NAMES = (*SUMS, *FLAGS)  # columns of a held-out row in fidelity.jsonl
# Figure -> the sums in its numerator, and those in its denominator; kappa uses the same flags.
_SHARES = {
    "kl": (("kl",), ("aimed",)),
    "agreement": (("agreeing",), ("aimed",)),
    "cross_entropy": (("cross_entropy",), ("positions",)),
    "verification_agreement": (("both", "neither"), FLAGS),
}
KAPPA = "verification_kappa"
_BOUNDED = {"agreement": 0.0, "verification_agreement": 0.0, KAPPA: -1.0}  # the least that they can be; the most is 1
FIGURE_NAMES = (*_SHARES, KAPPA)
WHO = ("base", "tuned")
_OF_TARGETS = ("k", "top_p", "precision", "min_mass", "max_length", "teacher_style")  # settings that decide targets


@dataclass(frozen=True)
class Distillation(Result):
    """A finished distillation.

    Attributes:
        folder: The run folder.
        metrics: The content of metrics.json.
        pushed: URL of the student on the hub, if it was uploaded.
    """

    folder: Path
    metrics: dict[str, Any]
    pushed: str | None = None

    @classmethod
    def load(cls, folder: str | Path) -> Distillation:
        """Read a run folder.

        Raises:
            UserError: The run is not finished, or its files do not fit together.
        """
        folder = Path(folder)
        runs.read_finished(folder, runs.METRICS)
        run = cls(folder, jsonl.read_json(folder / runs.METRICS))
        _ = run.sums
        return run

    @property
    def model(self) -> Path:
        """The folder of the trained student; it holds adapters if the recipe has lora."""
        return self.folder / STUDENT / MODEL

    @property
    def training(self) -> TrainingRun:
        """The student's training run."""
        return TrainingRun.from_json(self.folder / STUDENT, self.metrics["training"])

    @functools.cached_property
    def figures(self) -> dict[str, Estimate]:
        """The figures of the trained student with an interval over held-out rows, such as `kl` and `agreement`."""
        return {name: estimate for name, estimate in estimates(self)["tuned"].items() if estimate is not None}

    @functools.cached_property
    def manifest(self) -> dict[str, Any]:
        """The manifest of the run."""
        return runs.read_manifest(self.folder)

    @functools.cached_property
    def sums(self) -> dict[str, dict[str, tuple[float, ...]]]:
        """`base` and `tuned` -> id of a held-out row -> its sums, in the order of `SUM_NAMES`.

        Empty if the student was not compared with its teacher.
        """
        return _read_sums(self.folder, self.metrics) if "tuned" in self.metrics else {}

    @property
    def ids(self) -> tuple[str, ...]:
        """The held-out rows, in order."""
        return tuple(self.sums.get("base", ()))

    def mean(self, who: str, name: str) -> float | None:
        """A figure of metrics.json: of the student before (`base`) or after training (`tuned`)."""
        value: float | None = self.metrics.get(who, {}).get(name)
        return value

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values, as in metrics.json and with `--json`."""
        return self.metrics | ({} if self.pushed is None else {"pushed": self.pushed})


@dataclass(frozen=True)
class DistillationPlan(Result):
    """The estimated cost of a distillation: the result of a dry run.

    Attributes:
        training: The plan of the student's training, with the memory of the distillation loss.
        method: `sequence`, `logits` or `both`.
        teacher: The teacher's name in the recipe.
        student_layers: Number of the teacher's layers that form the student, or None.
        teacher_tokens: Tokens that the teacher reads.
        teacher_answers: Answers that the teacher writes.
        cache_bytes: Most bytes of the teacher's cache.
        same_tokenizer: Whether teacher and student have the same tokenizer; this and the next three are None if a
            tokenizer is missing.
        rows_without_teacher: Number of training rows that are trained with cross-entropy alone.
        held_out_rows_without_teacher: Number of held-out rows that the teacher cannot read.
        without_teacher: Reason -> number of both kinds of rows.
        teacher_memory: Bytes of a local teacher by part, see `teacher_memory`; None for a server or without its config.
        teacher_seconds: Time of its passes at the student's operations a second, without writing answers; or None.
        compile_seconds: Time to move the distributions to the student's tokens, on one core.
    """

    training: TrainingPlan
    method: str
    teacher: str
    student_layers: int | None
    teacher_tokens: int
    teacher_answers: int
    cache_bytes: int
    same_tokenizer: bool | None
    rows_without_teacher: int | None
    held_out_rows_without_teacher: int | None
    without_teacher: dict[str, int] | None
    teacher_memory: dict[str, int] | None = None
    teacher_seconds: float | None = None
    compile_seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values, as with `--json`."""
        values = self.training.to_json()
        del values["columns"]
        own = (field.name for field in dataclasses.fields(self) if field.name != "training")
        return values | {name: getattr(self, name) for name in own}


@dataclass(frozen=True)
class StudentComparison:
    """Two runs on the same held-out rows.

    Attributes:
        rows: Number of shared rows.
        unlike: Why their figures cannot be compared; empty if they can.
        other_targets: Why their targets are not identical; empty if they are.
        differences: Figure -> the trained first student minus the trained other one; KL is None if settings differ.
        other_settings: Settings of the targets that differ; a coarser tail lowers KL by construction.
    """

    rows: int
    unlike: str
    other_targets: str
    differences: dict[str, Estimate | None]
    other_settings: str = ""


def _read_sums(folder: Path, metrics: Mapping[str, Any]) -> dict[str, dict[str, tuple[float, ...]]]:
    sums: dict[str, dict[str, tuple[float, ...]]] = {}
    rows = [row for _, row in jsonl.read_rows(folder / FIDELITY)]
    try:
        for who in WHO:
            own = [row for row in rows if row["model"] == who]
            sums[who] = {str(row["id"]): _sums(row) for row in own}
            _check(metrics[who], means(own), folder)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / FIDELITY}: damaged ({type(error).__name__}: {error})") from None
    if list(sums["base"]) != list(sums["tuned"]):
        raise UserError(f"{folder / FIDELITY}: the rows before and after training are not the same")
    return sums


def _sums(row: Mapping[str, Any]) -> tuple[float, ...]:
    return tuple(float(row[name]) for name in SUMS) + flag_counts(row)


def _check(metrics: Mapping[str, Any], means_of_rows: Mapping[str, float | None], folder: Path) -> None:
    for name, value in means_of_rows.items():
        written = metrics.get(name)
        if (written is None) != (value is None) or (written is not None and not math.isclose(written, value or 0.0)):
            raise UserError(
                f"{folder / runs.METRICS} does not fit {FIDELITY} beside it; remove both, and distill again"
            )


def estimates(run: Distillation, seed: int = 0) -> dict[str, dict[str, Estimate | None]]:
    """The figures before and after training, and their change on the same rows.

    Args:
        run: The run.
        seed: Seed of the bootstrap.

    Returns:
        `base`, `tuned` and `change` -> figure -> value and 95 % interval; None if there is none, as with fewer than
        `LEAST_ROWS` rows.
    """
    if len(run.ids) < LEAST_ROWS:
        return {who: dict.fromkeys(FIGURE_NAMES) for who in (*WHO, "change")}
    table = np.array([[run.sums[who][name] for name in run.ids] for who in WHO])
    return {**_each(table, seed), "change": _gap(table[::-1], seed)}


def compare_students(first: Distillation, other: Distillation, seed: int = 0) -> StudentComparison:
    """Compare two students on the held-out rows that both were measured on.

    Args:
        first: One run.
        other: The other.
        seed: Of the bootstrap.
    """
    texts = [_held_out(run) for run in (first, other)]
    shared = [name for name in first.ids if name in other.sums.get("tuned", {}) and _same(name, *texts)]
    nothing: dict[str, Estimate | None] = dict.fromkeys(FIGURE_NAMES)
    if _teacher(first) != _teacher(other):
        return StudentComparison(len(shared), "their teachers differ", "", nothing)
    if len(shared) < LEAST_ROWS:
        return StudentComparison(len(shared), f"they share {len(shared)} held-out rows, too few to tell", "", nothing)
    table = np.array([[run.sums["tuned"][name] for name in shared] for run in (first, other)])
    if not np.array_equal(*table[:, :, SUM_NAMES.index("positions")]):
        why = "their students cut the held-out words into other tokens, and figures for each token do not compare"
        return StudentComparison(len(shared), why, "", nothing)
    gaps, settings = _gap(table, seed), _other_settings(first, other)
    return StudentComparison(
        len(shared), "", _other_targets(first, other), gaps | ({"kl": None} if settings else {}), settings
    )


def _each(table: Floats, seed: int) -> dict[str, dict[str, Estimate | None]]:
    """Figures of tables of sums; shape (2, rows, sums)."""
    drawn = resampled_sums(table, seed)
    return {
        who: {
            name: _estimate(name, _figure(table[i].sum(0), name), _figure(drawn[i], name), table.shape[1])
            for name in FIGURE_NAMES
        }
        for i, who in enumerate(WHO)
    }


def _gap(table: Floats, seed: int) -> dict[str, Estimate | None]:
    """The first minus the second, with the same resampled rows for both."""
    drawn = resampled_sums(table, seed)
    whole = table.sum(1)
    return {
        name: _estimate(
            name,
            _figure(whole[0], name) - _figure(whole[1], name),
            _figure(drawn[0], name) - _figure(drawn[1], name),
            table.shape[1],
            difference=True,
        )
        for name in FIGURE_NAMES
    }


def _figure(sums: Floats, name: str) -> Any:
    """A figure from sums over rows, shape (..., columns) to (...); NaN if it is not defined."""

    def counted(columns: Sequence[str]) -> Floats:
        return np.asarray(sums[..., [SUM_NAMES.index(column) for column in columns]])

    if name == KAPPA:
        return flags_kappa(counted(FLAGS))
    over, under = (counted(columns).sum(-1) for columns in _SHARES[name])
    return np.divide(over, under, out=np.full(np.shape(over), np.nan), where=under > 0)


def _estimate(name: str, value: Any, drawn: Floats, rows: int, *, difference: bool = False) -> Estimate | None:
    known = drawn[np.isfinite(drawn)]
    if not np.isfinite(value) or not len(known):
        return None
    if name in _BOUNDED:
        least, most = (_BOUNDED[name] - 1, 1 - _BOUNDED[name]) if difference else (_BOUNDED[name], 1.0)
        return bounded(float(value), known, rows, least, most)
    return Estimate(float(value), *interval(known, rows))


def _held_out(run: Distillation) -> dict[str, dict[str, Any]]:
    """The held-out rows in the student's data, by id."""
    file = run.folder / DATA / HELD_OUT
    return {str(row.get("id")): row for _, row in jsonl.read_rows(file)} if file.exists() else {}


def _same(name: str, first: Mapping[str, dict[str, Any]], other: Mapping[str, dict[str, Any]]) -> bool:
    """Whether a row has the same text in two runs; the prompt style may differ."""
    rows = [{**texts[name], "style": None} if name in texts else None for texts in (first, other)]
    return rows[0] is not None and rows[0] == rows[1]


def _teacher(run: Distillation) -> tuple[Any, ...]:
    settings = run.manifest["settings"]
    digests = tuple(settings.get(f"teacher_{what}_sha256") for what in ("weights", "tokenizer", "config"))
    return digests if any(digests) else (settings["recipe"]["teacher"],)


def _other_targets(first: Distillation, other: Distillation) -> str:
    if (digest := _targets(first)) is not None and digest == _targets(other):
        return ""
    if settings := _other_settings(first, other):
        return f"the targets were made with another {settings}"
    return (
        "the targets are not the same to the byte, as where the teacher read the rows in other batches, or the habits "
        "of the student's tokenizer were learnt from other rows"
    )


def _other_settings(first: Distillation, other: Distillation) -> str:
    """The settings of the targets that differ, with both values."""
    recipes = [run.manifest["settings"]["recipe"] for run in (first, other)]
    settings = [
        {**recipe["settings"], "teacher_style": recipe["teacher_style"], **run.metrics.get("cache_settings", {})}
        for recipe, run in zip(recipes, (first, other), strict=True)
    ]
    differ = [name for name in settings[0] if name in _OF_TARGETS and settings[0][name] != settings[1].get(name)]
    return ", ".join(f"{name} ({settings[0][name]} and {settings[1].get(name)})" for name in differ)


def _targets(run: Distillation) -> str | None:
    """sha256 of the held-out targets without the header, which describes how they were computed."""
    file = run.folder / TARGETS.format(HELD_OUT.removesuffix(".jsonl"))
    if not file.exists():
        return None
    data = file.read_bytes()
    return hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
