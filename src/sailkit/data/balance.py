"""Balance labels among claims of similar wording, and measure how well wording alone predicts them.

The wording of a claim often gives its label away: a model can learn to answer without reading any search result.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sailkit import runs
from sailkit.records import Example
from sailkit.stats.folds import grouped_folds, words_vary
from sailkit.stats.intervals import Floats

_BINS = 8  # quantile bins of claims, by the label score of their wording
_MOST_COPIES = 3  # of one claim and label: a rare label is oversampled at most this often
_FITTING_STEPS, _DAMPING = 20, 0.7  # of `match_frequencies`
_FEWEST = 10  # claims of each label, without which the wording is not scored


@dataclass(frozen=True)
class SupportedLabel:
    """An example and a label that some of its evidence supports."""

    example: Example
    label: str

    @property
    def group(self) -> str:
        """The example's group."""
        return self.example.group


def balance_labels(
    items: Sequence[SupportedLabel], labels: Sequence[str], match_wording: bool, seed: int
) -> list[tuple[SupportedLabel, int]]:
    """Draw items so that each label is as frequent as the others, in random order.

    Args:
        items: The items to draw from.
        labels: All labels; those without items are ignored.
        match_wording: Balance within bins of claims of similar wording, if there are two labels; bins without one of
            the labels are left out.
        seed: The run's seed.

    Returns:
        The drawn items, each with the number of its earlier draws.
    """
    labels = [label for label in labels if any(item.label == label for item in items)]
    if len(labels) < 2:  # nothing to balance
        return []
    first = np.array([item.label == labels[0] for item in items])
    bins = np.zeros(len(items), dtype=int)
    examples = [item.example for item in items]
    scores = _wording_scores(examples, first, seed) if match_wording and len(labels) == 2 else None
    if scores is not None:
        edges = np.quantile(scores, np.linspace(0, 1, _BINS + 1)[1:-1])
        bins = np.searchsorted(edges, scores)
    drawn = []
    for bin_ in np.unique(bins):
        pools: dict[str, list[SupportedLabel]] = {label: [] for label in labels}
        for index in np.flatnonzero(bins == bin_):
            item = items[int(index)]
            pools[item.label].append(item)
        sizes = [len(pool) for pool in pools.values() if pool]
        if match_wording and len(sizes) < len(labels):
            continue
        count = min(max(sizes), _MOST_COPIES * min(sizes))
        for label, pool in pools.items():
            random.Random(runs.seed_for(seed, "balance", f"{bin_} {label}")).shuffle(pool)  # noqa: S311
            drawn += [(pool[i % len(pool)], i // len(pool)) for i in range(count if pool else 0)]
    random.Random(runs.seed_for(seed, "order")).shuffle(drawn)  # noqa: S311
    return drawn


def match_frequencies(candidates: Sequence[Sequence[str]], targets: Mapping[str, float]) -> dict[str, float]:
    """Weights with which texts are drawn from lists of candidates about as often as their target frequencies say.

    Iterative proportional fitting (Deming and Stephan 1940), damped because a list rarely allows an exact fit.

    Args:
        candidates: The candidates of each draw.
        targets: Text -> its frequency; other texts are not drawn.

    Returns:
        Text -> its weight among the candidates of a draw.
    """
    from scipy.sparse import csr_array

    column = {text: index for index, text in enumerate(sorted({text for texts in candidates for text in texts}))}
    if not column:
        return {}
    rows = [(index, column[text]) for index, texts in enumerate(candidates) for text in texts]
    ends = np.array(rows, dtype=np.intp).reshape(-1, 2)
    lists = csr_array((np.ones(len(rows)), (ends[:, 0], ends[:, 1])), shape=(len(candidates), len(column)))
    target = np.array([targets.get(text, 0.0) for text in column])
    weights = (target > 0).astype(float)
    for _ in range(_FITTING_STEPS):
        totals = lists @ weights
        expected = weights * (lists.T @ np.divide(1.0, totals, out=np.zeros_like(totals), where=totals > 0))
        ratio = np.divide(target, expected, out=np.zeros_like(target), where=expected > 0)
        weights = weights * ratio**_DAMPING
        weights = weights / (weights.max() or 1.0)
    return dict(zip(column, weights.tolist(), strict=True))


def _wording_scores(examples: Sequence[Example], positive: npt.NDArray[np.bool_], seed: int) -> Floats | None:
    """Out-of-fold log-odds of the first label from the words of the text alone; None if there are too few claims."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline

    if min(positive.sum(), (~positive).sum()) < _FEWEST:
        return None
    texts = [example.text for example in examples]
    folds = grouped_folds(positive.tolist(), [example.group for example in examples], seed)
    if not folds or not words_vary(texts, folds):
        return None
    words = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10, max_iter=1000)
    )
    scores: Floats = cross_val_predict(words, texts, positive, cv=folds, method="decision_function")
    return scores


def wording_auroc(examples: Sequence[Example], labels: Sequence[str], seed: int = 0) -> float | None:
    """Out-of-fold AUROC of predicting the label from words alone; None without two frequent enough labels."""
    from sklearn.metrics import roc_auc_score

    positive = np.array([label == min(labels) for label in labels])
    scores = _wording_scores(examples, positive, seed) if len(set(labels)) == 2 else None
    return None if scores is None else round(float(roc_auc_score(positive, scores)), 4)
