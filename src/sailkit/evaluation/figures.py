"""Figures of a set of predictions, with intervals, baselines and flags, and their conversion to and from JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from sailkit.evaluation.flagging import Flagging
from sailkit.evaluation.selective import Selective
from sailkit.stats import metrics
from sailkit.stats.intervals import Estimate, read_estimates

Truth = Literal["human", "reference"]


@dataclass(frozen=True, slots=True)
class Flag:
    """A reason to doubt a result: a code for programs and a sentence for people."""

    code: str
    message: str


def flags_to_json(flags: Sequence[Flag]) -> dict[str, Any]:
    """Convert flags to JSON: the codes as a list, and the sentences by code."""
    messages: dict[str, list[str]] = {}
    for flag in flags:
        messages.setdefault(flag.code, []).append(flag.message)
    return {"flags": list(messages), "flag_messages": messages}


def flags_from_json(flat: Mapping[str, Any]) -> tuple[Flag, ...]:
    """The inverse of `flags_to_json`."""
    return tuple(Flag(code, message) for code, messages in flat["flag_messages"].items() for message in messages)


@dataclass(frozen=True, slots=True)
class LabelFigures:
    """The agreement of answers with one set of true labels.

    Attributes:
        figures: Accuracy, balanced accuracy, macro-F1, weighted F1, Matthews correlation and `f1_LABEL` of each label.
        if_unanswered_wrong: The accuracy if all answers without a label count as wrong.
        if_unanswered_right: The accuracy if all answers without a label count as right.
    """

    figures: dict[str, Estimate]
    if_unanswered_wrong: float
    if_unanswered_right: float

    def flat(self, prefix: str) -> dict[str, float]:
        """The figures by their JSON keys."""
        flat: dict[str, float] = {}
        for name, estimate in self.figures.items():
            flat |= estimate.flat(prefix + name)
        return flat | {
            f"{prefix}accuracy_if_unanswered_wrong": self.if_unanswered_wrong,
            f"{prefix}accuracy_if_unanswered_right": self.if_unanswered_right,
        }

    @classmethod
    def from_flat(cls, flat: Mapping[str, Any], labels: Sequence[str], prefix: str) -> LabelFigures | None:
        """The inverse of `flat`; None if there are no such figures."""
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
        """The baselines by their JSON keys."""
        return {prefix + f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_flat(cls, flat: Mapping[str, Any], prefix: str) -> Baselines | None:
        """The inverse of `flat`; None if there are no such baselines."""
        names = [f.name for f in fields(cls)]
        return cls(*(flat[prefix + name] for name in names)) if prefix + names[0] in flat else None


@dataclass(frozen=True, slots=True)
class ConfusionTable:
    """Counts of items: one row for each true label, one column for each label and each outcome without a label."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]

    def to_json(self) -> dict[str, Any]:
        """The table as JSON values."""
        return {"rows": list(self.rows), "columns": list(self.columns), "counts": [list(row) for row in self.counts]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ConfusionTable:
        """The inverse of `to_json`."""
        return cls(tuple(value["rows"]), tuple(value["columns"]), tuple(map(tuple, value["counts"])))


@dataclass(frozen=True, slots=True)
class ReferenceLabels:
    """The labels of a reference model, compared with those of the data set.

    Attributes:
        n: Items with such a label.
        baselines: Baselines against these labels.
        kappa: Cohen's kappa with the human labels; None if it is not defined.
        agreement: Share of items on which they agree with the human labels; None if there are no human labels.
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
        groups: Groups of items, if the task declares them.
        against: The labels of the main figures: those of a reference model if there are any.
        main: The figures against those labels; None if there are no labels at all.
        human: The figures against the data set's labels; None if there are none.
        baselines: Baselines against the data set's labels, or the reference's if there are no others.
        reference: The reference's labels; None if there is no reference.
        confusion: Answers against the labels of `against`.
        auroc: Area under the ROC curve; None unless every item has scores.
        ece: Expected calibration error; None unless every item has scores.
        unreadable: Answers without a label.
        refused: Items without an answer.
        flagging: Agreement of the model's verdicts on search results with their labels; None without both.
        selective: The figures where the model calls a search result informative, and elsewhere; None if it verifies
            nothing.
        near_ties: Answers whose margin is within the numerical noise.
        noise: That noise in nats, if it was measured.
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
    flagging: Flagging | None = None
    selective: Selective | None = None
    flags: tuple[Flag, ...] = ()

    @property
    def figures(self) -> dict[str, Estimate]:
        """All figures with their intervals; `human_...` are against the data set's labels."""
        main = self.main.figures if self.main else {}
        human = self.human.figures if self.human else {}
        agreement = self.reference.agreement if self.reference else None
        return {
            **main,
            **{f"human_{name}": estimate for name, estimate in human.items()},
            **({"reference_agreement": agreement} if agreement else {}),
            **({"flag_mcc": self.flagging.mcc} if self.flagging and self.flagging.mcc else {}),
            **(self.selective.figures if self.selective else {}),
        }

    def flat(self) -> dict[str, Any]:
        """The figures by their JSON keys, without the flags."""
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
        if self.flagging:
            flat |= self.flagging.flat()
        if self.selective:
            flat |= self.selective.flat()
        flat |= {"unreadable": self.unreadable, "refused": self.refused, "near_ties": self.near_ties}
        return flat if self.noise is None else {**flat, "noise": self.noise}

    def to_json(self) -> dict[str, Any]:
        """Figures and flags as JSON values; an estimate `x` becomes `x`, `x_low` and `x_high`."""
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
            "flagging": Flagging.from_flat(flat),
            "selective": Selective.from_flat(flat),
            "flags": flags_from_json(flat),
        }
