"""Figures of a set of predictions: with intervals, beside baselines and flags, and the way to JSON and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from sailkit.stats import metrics
from sailkit.stats.intervals import Estimate, read_estimates

Truth = Literal["human", "reference"]


@dataclass(frozen=True, slots=True)
class Flag:
    """A reason to doubt a result: a code for programs and a sentence for people."""

    code: str
    message: str


def flags_to_json(flags: Sequence[Flag]) -> dict[str, Any]:
    """The codes as a list, and the sentences by code."""
    messages: dict[str, list[str]] = {}
    for flag in flags:
        messages.setdefault(flag.code, []).append(flag.message)
    return {"flags": list(messages), "flag_messages": messages}


def flags_from_json(flat: Mapping[str, Any]) -> tuple[Flag, ...]:
    """The way back; see `flags_to_json`."""
    return tuple(Flag(code, message) for code, messages in flat["flag_messages"].items() for message in messages)


@dataclass(frozen=True, slots=True)
class LabelFigures:
    """How well answers agree with one set of true labels.

    Attributes:
        figures: Accuracy, balanced accuracy, macro-F1, weighted F1, Matthews correlation and `f1_LABEL` of each label.
        if_unanswered_wrong: The accuracy were all answers without a label wrong.
        if_unanswered_right: The accuracy were all answers without a label right.
    """

    figures: dict[str, Estimate]
    if_unanswered_wrong: float
    if_unanswered_right: float

    def flat(self, prefix: str) -> dict[str, float]:
        """The figures under the names that they have in JSON."""
        flat: dict[str, float] = {}
        for name, estimate in self.figures.items():
            flat |= estimate.flat(prefix + name)
        return flat | {
            f"{prefix}accuracy_if_unanswered_wrong": self.if_unanswered_wrong,
            f"{prefix}accuracy_if_unanswered_right": self.if_unanswered_right,
        }

    @classmethod
    def from_flat(cls, flat: Mapping[str, Any], labels: Sequence[str], prefix: str) -> LabelFigures | None:
        """The way back; None where JSON has no such figures."""
        if f"{prefix}accuracy" not in flat:
            return None
        names, estimates = (*metrics.STATISTICS, *(f"f1_{label}" for label in labels)), read_estimates(flat)
        ends = (flat[f"{prefix}accuracy_if_unanswered_{end}"] for end in ("wrong", "right"))
        return cls({name: estimates[prefix + name] for name in names}, *ends)


@dataclass(frozen=True, slots=True)
class Baselines:
    """Figures of answers that do not depend on the items.

    Attributes:
        majority_label: The most frequent true label.
        majority_accuracy: Accuracy of always answering it.
        majority_macro_f1: Macro-F1 of always answering it.
        prior_accuracy: Expected accuracy of guessing each label as often as it occurs.
    """

    majority_label: str
    majority_accuracy: float
    majority_macro_f1: float
    prior_accuracy: float

    def flat(self, prefix: str) -> dict[str, Any]:
        """The baselines under the names that they have in JSON."""
        return {prefix + f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_flat(cls, flat: Mapping[str, Any], prefix: str) -> Baselines | None:
        """The way back; None where JSON has no such baselines."""
        names = [f.name for f in fields(cls)]
        return cls(*(flat[prefix + name] for name in names)) if prefix + names[0] in flat else None


@dataclass(frozen=True, slots=True)
class ConfusionTable:
    """Counts of items: a row for each true label; a column for each label and for each outcome without one."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]

    def to_json(self) -> dict[str, Any]:
        """As written to JSON."""
        return {"rows": list(self.rows), "columns": list(self.columns), "counts": [list(row) for row in self.counts]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ConfusionTable:
        """The way back."""
        return cls(tuple(value["rows"]), tuple(value["columns"]), tuple(map(tuple, value["counts"])))


@dataclass(frozen=True, slots=True)
class ReferenceLabels:
    """Labels that a reference model gave, beside the data set's own.

    Attributes:
        n: Items with such a label.
        baselines: Figures against them of answers that do not depend on the items.
        kappa: Cohen's kappa with the human labels; None where it is not defined.
        agreement: Share of items on which they agree with the human labels; None where there are no human labels.
    """

    n: int
    baselines: Baselines
    kappa: float | None = None
    agreement: Estimate | None = None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Figures and flags of one set of predictions.

    Attributes:
        n: Items.
        labels: The task's labels.
        groups: Groups of items, where the task declares them.
        against: Which labels the main figures are against: those of a reference model where there are any.
        main: The figures against those labels; None where there are no labels at all.
        human: The figures against the data set's own labels; None where there are none.
        baselines: Against the data set's own labels, or the reference's where there are no others.
        reference: The reference's labels; None where there is no reference.
        confusion: Answers against the labels of `against`.
        auroc: Area under the ROC curve; None where not every item has scores.
        ece: Expected calibration error; None where not every item has scores.
        unreadable: Answers that give no label.
        refused: Items to which there is no answer.
        near_ties: Answers whose margin is within the numerical noise.
        noise: That noise in nats, where it was measured.
        flags: Reasons to doubt the figures.
    """

    n: int
    labels: tuple[str, ...]
    groups: int | None = None
    against: Truth | None = None
    main: LabelFigures | None = None
    human: LabelFigures | None = None
    baselines: Baselines | None = None
    reference: ReferenceLabels | None = None
    confusion: ConfusionTable | None = None
    auroc: float | None = None
    ece: float | None = None
    unreadable: int = 0
    refused: int = 0
    near_ties: int = 0
    noise: float | None = None
    flags: tuple[Flag, ...] = ()

    @property
    def figures(self) -> dict[str, Estimate]:
        """Every figure with its interval; `human_...` are against the data set's own labels."""
        main = self.main.figures if self.main else {}
        human = self.human.figures if self.human else {}
        agreement = self.reference.agreement if self.reference else None
        return {
            **main,
            **{f"human_{name}": estimate for name, estimate in human.items()},
            **({"reference_agreement": agreement} if agreement else {}),
        }

    def flat(self) -> dict[str, Any]:
        """The figures under the names that they have in JSON, without the flags."""
        flat: dict[str, Any] = {"n": self.n, "labels": list(self.labels)}
        if self.groups is not None:
            flat["groups"] = self.groups
        if self.main and self.baselines and self.confusion:
            flat |= {"against": self.against} | self.main.flat("") | self.baselines.flat("")
            flat |= {"auroc": self.auroc, "ece": self.ece, "confusion": self.confusion.to_json()}
        if self.human:
            flat |= self.human.flat("human_")
        if self.reference:
            flat |= self.reference.baselines.flat("reference_") | {"reference_n": self.reference.n}
            if self.reference.agreement:
                flat |= {"reference_kappa": self.reference.kappa}
                flat |= self.reference.agreement.flat("reference_agreement")
        flat |= {"unreadable": self.unreadable, "refused": self.refused, "near_ties": self.near_ties}
        return flat if self.noise is None else {**flat, "noise": self.noise}

    def to_json(self) -> dict[str, Any]:
        """Figures and flags as written to JSON: an estimate `x` as `x`, `x_low` and `x_high`."""
        return self.flat() | flags_to_json(self.flags)

    @staticmethod
    def fields_of(flat: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a summary from its JSON."""
        labels, reference = flat["labels"], Baselines.from_flat(flat, "reference_")
        estimates = read_estimates(flat)
        return {
            "n": flat["n"],
            "labels": tuple(labels),
            "groups": flat.get("groups"),
            "against": flat.get("against"),
            "main": LabelFigures.from_flat(flat, labels, ""),
            "human": LabelFigures.from_flat(flat, labels, "human_"),
            "baselines": Baselines.from_flat(flat, ""),
            "reference": reference
            and ReferenceLabels(
                flat["reference_n"], reference, flat.get("reference_kappa"), estimates.get("reference_agreement")
            ),
            "confusion": ConfusionTable.from_json(flat["confusion"]) if "confusion" in flat else None,
            **{name: flat.get(name) for name in ("auroc", "ece", "noise")},
            **{name: flat[name] for name in ("unreadable", "refused", "near_ties")},
            "flags": flags_from_json(flat),
        }
