"""Shortcut baselines: how well a label is predicted without reading what should decide it.

Each baseline is a logistic regression on one view of the items, cross-validated by group: the claim alone, the search
results alone, their lengths, or where they come from. A model that scores no higher need not have read anything
(Gururangan et al. 2018; Poliak et al. 2018).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from sailkit.records import SearchResult
from sailkit.runs import notice, seed_for
from sailkit.stats import metrics
from sailkit.stats.folds import Folds, grouped_folds, vary, words_vary
from sailkit.stats.intervals import Estimate, Floats, Units, bounded, resample

MOST_ITEMS = 4000  # a sample of whole groups is enough for an interval of a few hundredths
TELLING = 0.6  # AUROC above which a view tells the label
NEAR = 0.05  # lead in macro-F1 within which a baseline comes near a model
_FEWEST = 10  # items of a label, without which it is left out
_RESAMPLES = 1000

Encode = Callable[[Sequence[str]], npt.NDArray[np.floating[Any]]]


@dataclass(frozen=True)
class ShortcutItem:
    """An item with a label.

    Attributes:
        id: Its id.
        label: The label to predict.
        group: Items of one group are in the same fold.
        claim: What is asked.
        results: The search results.
    """

    id: str
    label: str
    group: str
    claim: str
    results: tuple[SearchResult, ...]


@dataclass(frozen=True)
class ShortcutBaseline:
    """A baseline on one view of the items.

    Attributes:
        view: `claim`, `evidence`, `length` (of both), `source` (engine, host and title of the search results), or
            `question` (the claim and what is asked about it).
        features: `tf-idf`, `minilm`, `words` (counts of words and results) or `names`.
        n: Number of items.
        groups: Number of their groups.
        macro_f1: Macro-F1 of its out-of-fold predictions.
        auroc: AUROC of its out-of-fold probabilities; macro one-against-rest for more than two labels.
        predicted: Id of an item -> the predicted label.
    """

    view: str
    features: str
    n: int
    groups: int
    macro_f1: Estimate
    auroc: Estimate
    predicted: dict[str, str] = field(repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """A row of a table, without the predictions."""
        names = {"view": self.view, "features": self.features, "n": self.n, "groups": self.groups}
        return {**names, **self.macro_f1.flat("macro_f1"), **self.auroc.flat("auroc")}

    @property
    def name(self) -> str:
        """View and features in words."""
        return f"{self.view} alone ({self.features})"


def sampled(
    items: Sequence[ShortcutItem], seed: int, most: int = MOST_ITEMS, first: Collection[str] = ()
) -> list[ShortcutItem]:
    """Sample whole groups, and leave out labels that are too rare to be predicted.

    A group that no longer fits is skipped; one with more items than `most` is drawn only where there is no other.

    Args:
        items: The items.
        seed: Seed of the order in which groups are drawn.
        most: Number of items to draw.
        first: Ids of items that are drawn first.
    """
    sizes = Counter(item.group for item in items)
    needed = {item.group for item in items if item.id in first}
    kept: set[str] = set()
    total = 0
    order = sorted(sizes, key=lambda name: (name not in needed, seed_for(seed, "shortcut audit", name)))
    for group in order:
        if total + sizes[group] <= most:
            kept.add(group)
            total += sizes[group]
    kept = kept or set(order[:1])
    chosen = [item for item in items if item.group in kept]
    counts = Counter(item.label for item in chosen)
    spread = Counter(label for label, _ in {(item.label, item.group) for item in chosen})
    return [item for item in chosen if counts[item.label] >= _FEWEST and spread[item.label] >= 2]


def shortcut_baselines(
    items: Sequence[ShortcutItem], seed: int = 0, encode: Encode | None = None
) -> list[ShortcutBaseline]:
    """Cross-validate all baselines that the items allow.

    There are none if fewer than two labels are frequent enough, or, with a notice, if no split into folds by group
    leaves every label to train on.

    Args:
        items: The items; see `sampled`.
        seed: Seed of the folds and the bootstrap.
        encode: Embeds texts, for baselines on sentence embeddings; None to leave these out.
    """
    from sklearn.feature_extraction import DictVectorizer
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MaxAbsScaler, StandardScaler

    if len({item.label for item in items}) < 2:
        return []
    folds = grouped_folds([item.label for item in items], [item.group for item in items], seed)
    if not folds:
        notice(
            f"without shortcut baselines of {len(items):,} items: their {len({item.group for item in items})} groups "
            "cannot be split so that every label can be learned"
        )
        return []
    texts = {
        "claim": [item.claim for item in items],
        "evidence": [_text(item) for item in items],
    }
    baselines = []
    for view, column in texts.items():
        if not words_vary(column, folds):
            continue
        words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        baselines.append(_baseline(view, "tf-idf", items, column, words, folds, seed))
        if encode is not None:
            baselines.append(_baseline(view, "minilm", items, encode(column), StandardScaler(), folds, seed))
    lengths = [_lengths(item) for item in items]
    if vary(lengths, folds):
        baselines.append(_baseline("length", "words", items, np.array(lengths), StandardScaler(), folds, seed))
    names = [_names(item.results) for item in items]
    if vary([tuple(sorted(row.items())) for row in names], folds):
        origins = make_pipeline(DictVectorizer(), MaxAbsScaler())
        baselines.append(_baseline("source", "names", items, names, origins, folds, seed))
    return baselines


def lead(
    gold: Sequence[str], model: Sequence[str], baseline: Sequence[str], groups: Sequence[str], seed: int
) -> Estimate:
    """Macro-F1 of a model minus that of a baseline on the same items, resampled by group.

    Args:
        gold: The label of each item.
        model: The model's label, `unreadable` or `refused`.
        baseline: The baseline's label.
        groups: The group of each item.
        seed: Seed of the bootstrap.
    """
    labels = sorted({*gold, *baseline})
    columns = {name: i for i, name in enumerate((*labels, *metrics.NOT_ANSWERED))}
    # A label that the baseline never met counts as unreadable, which is wrong in either case.
    cells = [
        [columns[g], columns.get(m, len(labels)), columns[b]] for g, m, b in zip(gold, model, baseline, strict=True)
    ]
    shape = (len(labels), len(columns), len(columns))
    units = Units.of_cells(np.array(cells, dtype=np.int64), shape, groups)
    return resample(units, seed, _RESAMPLES).estimate(
        lambda table: metrics.macro_f1(table.sum(-1)) - metrics.macro_f1(table.sum(-2))
    )


def telling_views(baselines: Mapping[str, Sequence[ShortcutBaseline]]) -> dict[str, list[str]]:
    """The flag `shortcut`: for each baseline that surely tells the target, a sentence that says so."""
    sentences = [
        f"the {row.view} alone tells the {target} with AUROC {row.auroc.value:.3f} [{row.auroc.low:.3f}, "
        f"{row.auroc.high:.3f}] ({row.features}); a model can learn that instead of reading"
        for target, rows in baselines.items()
        for row in rows
        if row.auroc.low > TELLING
    ]
    return {"shortcut": sentences} if sentences else {}


def _baseline(
    view: str, features: str, items: Sequence[ShortcutItem], column: Any, vectorizer: Any, folds: Folds, seed: int
) -> ShortcutBaseline:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline

    gold, groups = [item.label for item in items], [item.group for item in items]
    # Balanced classes: a shortcut should not be hidden by a frequent label that macro-F1 does not reward.
    classifier = LogisticRegression(C=10 if features == "tf-idf" else 1, class_weight="balanced", max_iter=1000)
    probabilities = cross_val_predict(
        make_pipeline(vectorizer, classifier), column, gold, cv=folds, method="predict_proba"
    )
    labels = sorted(set(gold))
    predicted = [labels[index] for index in probabilities.argmax(1)]
    units = metrics.confusion_units(gold, predicted, labels, groups)
    return ShortcutBaseline(
        view=view,
        features=features,
        n=len(items),
        groups=len(set(groups)),
        macro_f1=resample(units, seed, _RESAMPLES).estimate(metrics.macro_f1),
        auroc=_auroc(gold, cast(Floats, probabilities), labels, groups, seed),
        predicted={item.id: label for item, label in zip(items, predicted, strict=True)},
    )


def _auroc(
    gold: Sequence[str], probabilities: Floats, labels: Sequence[str], groups: Sequence[str], seed: int
) -> Estimate:
    numbers = np.unique(np.array(groups), return_inverse=True)[1]
    number = int(numbers.max()) + 1
    rng = np.random.default_rng(seed_for(seed, "shortcut audit"))
    weights = np.concatenate([np.ones((1, number)), rng.standard_exponential((_RESAMPLES, number))])[:, numbers]
    truth = np.array(gold)
    columns = range(1, 2) if len(labels) == 2 else range(len(labels))
    areas = [metrics.weighted_auroc(truth == labels[i], probabilities[:, i], weights) for i in columns]
    values = np.mean(areas, axis=0)
    return bounded(float(values[0]), values[1:], number)


def _text(item: ShortcutItem) -> str:
    return "\n".join(result.text for result in item.results)


def _lengths(item: ShortcutItem) -> list[float]:
    words = [len(item.claim.split()), sum(len(result.body.split()) for result in item.results)]
    return [float(len(item.results)), *np.log1p([*words, len(item.claim)]).tolist()]


def _names(results: Sequence[SearchResult]) -> dict[str, int]:
    """Counts of engines, hosts and titles."""
    names: Counter[str] = Counter()
    for result in results:
        host: str | None = ""
        with suppress(ValueError):  # an address from outside may be malformed
            host = urlsplit(result.url).hostname
        for kind, value in (("engine", result.source), ("host", host), ("title", result.title)):
            if value:
                names[f"{kind} {value}"] += 1
    return dict(names)
