"""Splits items into folds for cross-validation, by group."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FOLDS = 5
_WORD = re.compile(r"\b\w\w+\b")  # as TfidfVectorizer reads words

Folds = list[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]]


def grouped_folds(labels: Sequence[object], groups: Sequence[str], seed: int) -> Folds:
    """Training and test items of up to five folds, as many as leave every label to train on.

    Args:
        labels: The label of each item.
        groups: The group of each item; a group is in a single fold.
        seed: Seed of the folds.

    Returns:
        Indices of the training and test items of each fold; empty if not even two folds leave every label.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    gold = np.array(labels)
    spread = Counter(label for label, _ in {*zip(gold.tolist(), groups, strict=True)})
    for number in range(min(FOLDS, *spread.values()), 1, -1):
        splitter = StratifiedGroupKFold(number, shuffle=True, random_state=seed)
        folds = list(splitter.split(np.zeros(len(gold)), gold, groups))
        if all(len(test) and len({*gold[train].tolist()}) == len(spread) for train, test in folds):
            return folds
    return []


def vary(column: Sequence[object], folds: Folds) -> bool:
    """Whether the values of a feature differ in the training part of every fold."""
    return all(len({str(column[i]) for i in train}) > 1 for train, _ in folds)


def words_vary(texts: Sequence[str], folds: Folds) -> bool:
    """Whether scikit-learn's TfidfVectorizer finds different words in the training part of every fold."""
    return vary([" ".join(_WORD.findall(text)) for text in texts], folds)
