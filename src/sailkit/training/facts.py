"""Describe data, settings, held-out figures and their limits, for training reports and model cards."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from sailkit.files import jsonl
from sailkit.rendering.model import Bullets, Cell, Facts, Flags, Row, Text
from sailkit.rendering.numbers import capitalised, fact
from sailkit.training.effective import EFFECTIVE, main_settings

# Figure of an evaluation -> its label.
FIGURE_TITLES = {
    "loss": "Loss for each supervised token",
    "weighted_loss": "Loss with the weights of training",
    "flagging_mcc": "Flagging: Matthews correlation",
    "flagging_auroc": "Flagging: AUROC of P(distracting)",
    "flagging_accuracy": "Flagging: accuracy",
    "flagging_precision": "Flagging: precision for distracting",
    "flagging_recall": "Flagging: recall for distracting",
    "answer_accuracy": "Answers: accuracy",
    "answer_macro_f1": "Answers: macro-F1",
    "answer_auroc": "Answers: AUROC",
    "answer_macro_f1_informative": "Answers: macro-F1, with an informative result",
    "answer_macro_f1_distracting": "Answers: macro-F1, without an informative result",
}
_TRAINED = {
    "rows": "training rows",
    "dropped": "rows left out",
    "supervised_tokens": "supervised tokens of a pass",
    "cut_tokens": "tokens of search results cut to fit",
    "headings_left": "headings in search results",
    "held_out_rows": "held-out rows",
    "steps": "steps",
    "best_step": "step that was kept",
    "epochs": "epochs",
}
_QUOTED = ("judgement_shares", "rows_by_results", "style", "threshold", "seed")  # entries of a data card, in this order
Fact = tuple[str, str]


def quoted(card: Mapping[str, Any] | None) -> list[Fact]:
    """The entries of a data card that a model's user needs: counts, shares, settings and flags."""
    if card is None:
        return []
    names = [name for name in card if name.startswith("n_")] + [name for name in _QUOTED if name in card]
    return [(_title(name), fact(name, card) or "none") for name in names]


def trained_on(figures: Mapping[str, Any]) -> list[Fact]:
    """Counts of a run, with labels."""
    return [
        (title, f"{value:.2f}" if isinstance(value, float) else f"{value:,}")
        for name, title in _TRAINED.items()
        if (value := figures.get(name)) is not None
    ]


def before_and_after(figures: Mapping[str, Any]) -> list[Row]:
    """Held-out figures before and after training; figures without any value are left out."""
    rows = [
        Row(title, [Cell(figures.get(f"{when}_{name}")) for when in ("base", "tuned")])
        for name, title in FIGURE_TITLES.items()
    ]
    return [row for row in rows if row.known]


def chance_level(results: int) -> float:
    """The 95 % quantile of |MCC| between independent judgements and labels.

    The squared MCC of a 2 x 2 table times its count is chi-squared with one degree of freedom.
    """
    return 1.96 / math.sqrt(results)


def limits(figures: Mapping[str, Any]) -> list[str]:
    """Sentences on what the figures of a run do not show."""
    texts = [
        "Held-out rows come from the same source as the training rows, and the labels from the same labeler: the "
        "figures say how well its judgements were learnt, not how right they are.",
        "Flagging is scored by comparing every possible verification sentence; what the model writes by itself can "
        "differ.",
        "Nothing here says whether answers are right, or better with search results than without; measure that with "
        "sailkit evaluate and compare.",
        "It was one run with one seed.",
    ]
    if results := figures.get("tuned_flagging_results"):
        luck = f"an MCC up to {chance_level(results):.2f} can be luck"
        texts.insert(0, f"Flagging was measured on {results:,} results; {luck}.")
    if not figures.get("held_out_rows"):
        texts = ["There were no held-out rows: nothing is known of what the model learnt.", *texts[2:]]
    return texts


def recipe_rows(settings: Mapping[str, Any]) -> list[Fact]:
    """The settings of a recipe as dotted keys and values, without unset ones."""
    rows: list[Fact] = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            rows += [(f"{name}.{key}", text) for key, text in recipe_rows(value)]
        elif value not in (None, "", [], ()):
            rows.append((name, value if isinstance(value, str) else jsonl.dumps(value)))
    return rows


def effective_rows(manifest: Mapping[str, Any]) -> list[Fact]:
    """The effective settings of a run, including defaults; empty for old runs that did not record them."""
    rows = recipe_rows(main_settings(manifest.get(EFFECTIVE, {})))
    changes = manifest.get(f"{EFFECTIVE}_when_resumed", ())
    return [*rows, *(("when it was resumed", str(change)) for change in changes)]


def doubts(cards: Iterable[Mapping[str, Any]]) -> list[Flags]:
    """The distinct flags of data cards, with the names of the data sets if there are several."""
    cards = list(cards)
    several = len({card["data"] for card in cards}) > 1
    names: dict[str, dict[str, None]] = {}  # text -> names of data sets, in order and each once
    for card in cards:
        for text in chain.from_iterable((card["card"] or {}).get("flag_messages", {}).values()):
            names.setdefault(str(text), {})[str(card["data"])] = None
    texts = [f"{', '.join(of)}: {text}" if several else text for text, of in names.items()]
    return [Flags("", {"": texts})] if texts else []


def sentences(texts: Iterable[str]) -> Bullets:
    """A list of sentences."""
    return Bullets([("", text) for text in texts])


def card_facts(cards: Iterable[tuple[str, Mapping[str, Any] | None]]) -> list[Facts | Text]:
    """The figures of data cards; the flags of a mixture have none."""
    facts = [(name, card, quoted(card)) for name, card in cards]
    return [
        column(name, rows) if rows else Text(f"{name} has no data card.")
        for name, card, rows in facts
        if rows or card is None
    ]


def column(name: str, rows: Sequence[Fact], *, literal: bool = False) -> Facts:
    """A table with one column of facts.

    Args:
        name: Heading of the column.
        rows: Names and values.
        literal: Whether names are keys of a file, shown unchanged.
    """
    return Facts([name], [(key if literal else capitalised(key), [value]) for key, value in rows])


def side_by_side(names: Sequence[str], columns: Sequence[Sequence[Fact]], title: Callable[[str], str] = str) -> Facts:
    """Settings of several runs side by side; a dash if a run has none.

    Args:
        names: Names of the runs.
        columns: The settings of each run.
        title: Turns the name of a setting into its title.
    """
    known = [dict(rows) for rows in columns]
    keys = dict.fromkeys(name for rows in columns for name, _ in rows)
    rows = [(title(key), [str(values.get(key, "–")) for values in known]) for key in keys]
    return Facts(names, rows, [name for name, _ in rows])


def _title(name: str) -> str:
    return f"rows {name[2:]}".replace("_", " ") if name.startswith("n_") else name.replace("_", " ")
