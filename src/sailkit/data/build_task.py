"""Training data from a task's own examples, where people said which evidence speaks for which label.

Claims betray their label by their wording: a model can learn to answer without looking at a single search result. So
labels are balanced among claims of like wording, and the card says how far wording alone still tells them apart.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from sailkit import runs
from sailkit.data.build import REMOVED, read_shares, removed_row
from sailkit.data.card import CARD, CARD_PAGE, card_of, page_of
from sailkit.data.exports import DROPPED, HELD_OUT, TRAIN, example_row
from sailkit.data.leaks import LeakCheck
from sailkit.errors import UserError, at_least_one, nearest
from sailkit.files import jsonl
from sailkit.prompts.render import fill, frames
from sailkit.prompts.sail import as_text, check_style, wording
from sailkit.records import Example, Instruction, SearchResult, TrainingExample, Verdict
from sailkit.tasks.task import Half, Question, Task, in_half, load_task

Distractor = Literal["random", "near", "own"]
_VERSION = 2  # of how rows are drawn
_BINS = 8  # of claims by what their wording alone says of the label
_MOST_COPIES = 3  # draws of one claim and label, so that a rare label keeps up
_FEWEST = 10  # units of each label from which on their wording is compared
_NEAR = slice(2, 20)  # the nearest results of other claims; the very nearest may well be informative


@dataclass(frozen=True)
class _Unit:
    """An example and a label that some of its evidence speaks for."""

    example: Example
    label: str

    @property
    def group(self) -> str:
        return self.example.group


def build_task(
    task: str,
    *,
    out: Path,
    data: Path | None = None,
    half: Half | None = None,
    style: Literal["sail", "sail-fixed", "chat"] = "chat",
    shares: str = "0.1,0.3,0.4,0.2",
    supported: float = 0.75,
    distractors: list[Distractor] | None = None,
    match_wording: bool = True,
    protocol: str = "direct",
    held_out: float = 0.1,
    limit: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Build training data from a task's own examples and the evidence that people judged.

    A row asks the task's question in one of its wordings, shows search results, and answers with the label that the
    informative ones speak for.

    Args:
        task: A built-in task, or your own YAML file; its evidence needs a `stance`.
        out: Run folder to write, as `build` writes it.
        data: The task's data: a file, a folder, or OWNER/NAME[:SPLIT] on the hub.
        half: Only the examples of this half; `evaluate --half` measures on the other. Claims that are nearly the same
            in the other half are removed.
        style: How a row will read.
        shares: Shares of rows with no, one, two, three ... search results; they sum to 1.
        supported: Share of the rows with search results of which at least one is informative.
        distractors: Where distracting results come from: random (other examples), near (other examples, on a like
            subject), own (this example's evidence that speaks for nothing, random where that is too little); random
            and near by default.
        match_wording: Balance the labels among claims of like wording, not only over all.
        protocol: Of the task; its wordings are drawn from.
        held_out: Share of examples that are kept apart.
        limit: Only the first so many rows.
        seed: Each row's draw comes from this and its id.

    Returns:
        The data card; `wording_auroc` says how well words alone predict the label, out of fold, before and after.

    Raises:
        UserError: Bad options, or a task without judged evidence.
    """
    at_least_one(limit=limit)
    check_style(style)
    counts = read_shares(shares)
    kinds = list(dict.fromkeys(distractors or ("random", "near")))
    for kind in kinds:
        if kind not in get_args(Distractor):
            raise UserError(f"no distractors {kind!r}: {nearest(kind, get_args(Distractor))}")
    for name, share in (("`supported`", supported), ("`held_out`", held_out)):
        if not 0 <= share <= 1:
            raise UserError(f"{name} should be between 0 and 1, not {share}")
    chosen = load_task(task)
    dataset = load_task(task, ["all"]).load(data)
    settings = {
        "version": _VERSION,
        "task": chosen.name,
        "task_sha256": jsonl.fingerprint(chosen.spec.model_dump()),
        "data_sha256": dataset.fingerprint,
        "half": half,
        "style": style,
        "styles_sha256": jsonl.fingerprint(wording()),
        "shares": counts,
        "supported": supported,
        "distractors": kinds,
        "match_wording": match_wording,
        "protocol": protocol,
        "held_out": held_out,
        "limit": limit,
        "seed": seed,
    }
    with runs.open_run(out, "build-task", settings) as run:
        if run.path(CARD).exists():  # written last: the run is finished
            return jsonl.read_json(run.path(CARD))
        parts: tuple[list[Example], list[Example]] = ([], [])
        for one in dataset.examples:
            parts[half is not None and not in_half(one, half)].append(one)
        inside, outside = parts
        kept, removed = _without_leaks(chosen, inside, outside)
        usable = [one for one in kept if any(stance in chosen.labels for stance in one.stances)]
        if not usable:
            raise UserError(f"task {chosen.name} has no evidence that people judged; give its YAML a `stance`")
        units = [_Unit(one, label) for one in usable for label in chosen.labels if label in one.stances]
        if len({unit.label for unit in units}) < 2:
            raise UserError(f"task {chosen.name}: all judged evidence speaks for {units[0].label}; nothing to balance")
        drawn = _balanced(units, chosen.labels, match_wording, seed)[:limit]
        drawer = _Drawer(chosen, protocol, kept, counts, supported, kinds, style, seed)
        rows = [(unit, drawer.draw(unit, copy)) for unit, copy in drawn]
        apart = [runs.seed_for(seed, "held out", unit.group) < held_out * 2**64 for unit, _ in rows]
        train = [row for (_, row), aside in zip(rows, apart, strict=True) if not aside]
        aside = [row for (_, row), aside in zip(rows, apart, strict=True) if aside]
        if not train:
            raise UserError(f"no row is left to train on; use a smaller `held_out` than {held_out}")
        judged, used = {one.id for one in usable}, {unit.example.id for unit, _ in rows}
        dropped = [
            {"id": one.id, "reason": "not drawn" if one.id in judged else "no judged evidence"}
            for one in kept
            if one.id not in used
        ]
        for name, part in ((TRAIN, train), (HELD_OUT, aside)):
            jsonl.write_rows(run.path(name), map(example_row, part))
        jsonl.write_rows(run.path(DROPPED), dropped)
        jsonl.write_rows(run.path(REMOVED), removed)
        trained = [unit for (unit, _), aside in zip(rows, apart, strict=True) if not aside]
        card = card_of(
            train,
            {
                "n_in": len(inside),
                "n_train": len(train),
                "n_held_out": len(aside),
                "n_dropped": len(dropped),
                "n_removed": len(removed),
                "claims": len({unit.group for unit in trained}),
                "labels": dict(sorted(Counter(unit.label for unit in trained).items())),
                "wording_auroc": {
                    "of the claims": wording_auroc([unit.example for unit in units], [u.label for u in units], seed),
                    "of the training rows": wording_auroc(
                        [u.example for u in trained], [u.label for u in trained], seed
                    ),
                },
            },
            settings,
        )
        jsonl.write_atomic(run.path(CARD_PAGE), page_of(card))
        jsonl.write_json(run.path(CARD), card)
        return card


def _without_leaks(
    task: Task, inside: Sequence[Example], outside: Sequence[Example]
) -> tuple[list[Example], list[jsonl.JsonObject]]:
    """Examples whose text is in no other part, and a row for each that is."""
    check = LeakCheck((task.name, one.id, one.text) for one in outside)
    kept, removed = [], []
    for one in inside:
        leak = check.find(Instruction(one.id, one.text))
        if leak is None:
            kept.append(one)
        else:
            removed.append(removed_row(one.id, leak))
    return kept, removed


def _balanced(units: Sequence[_Unit], labels: Sequence[str], match: bool, seed: int) -> list[tuple[_Unit, int]]:
    """Units and the number of the draw, each label as often as the others among claims of like wording."""
    told = np.array([unit.label == labels[0] for unit in units])
    bins = np.zeros(len(units), dtype=int)
    scores = _wording_scores([unit.example for unit in units], told, seed) if match and len(labels) == 2 else None
    if scores is not None:
        edges = np.quantile(scores, np.linspace(0, 1, _BINS + 1)[1:-1])
        bins = np.searchsorted(edges, scores)
    found = []
    for bin_ in np.unique(bins):
        pools: dict[str, list[_Unit]] = {label: [] for label in labels}
        for place in np.flatnonzero(bins == bin_):
            pools[units[int(place)].label].append(units[int(place)])
        sizes = [len(pool) for pool in pools.values() if pool]
        if match and len(sizes) < len(labels):
            continue
        wanted = min(max(sizes), _MOST_COPIES * min(sizes))
        for label, pool in pools.items():
            random.Random(runs.seed_for(seed, "balance", f"{bin_} {label}")).shuffle(pool)  # noqa: S311
            found += [(pool[i % len(pool)], i // len(pool)) for i in range(wanted if pool else 0)]
    random.Random(runs.seed_for(seed, "order")).shuffle(found)  # noqa: S311
    return found


def _wording_scores(examples: Sequence[Example], told: Any, seed: int) -> Any:
    """Out-of-fold log-odds of the first label from the words of the text alone; None where there are too few."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline

    groups = np.array([one.group for one in examples])
    several = min(len(set(groups[told])), len(set(groups[~told])))  # each fold is told by both labels of the others
    if several < 2 or min(told.sum(), (~told).sum()) < _FEWEST:
        return None
    folds = StratifiedGroupKFold(min(5, several), shuffle=True, random_state=seed)
    words = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10))
    texts = [one.text for one in examples]
    return cross_val_predict(words, texts, told, groups=groups, cv=folds, method="decision_function")


def wording_auroc(examples: Sequence[Example], labels: Sequence[str], seed: int = 0) -> float | None:
    """How well words alone predict a label, out of fold: 0.5 is chance. None for other than two labels, or too few."""
    from sklearn.metrics import roc_auc_score

    told = np.array([label == sorted(set(labels))[0] for label in labels])
    scores = _wording_scores(examples, told, seed) if len(set(labels)) == 2 else None
    return None if scores is None else round(float(roc_auc_score(told, scores)), 4)


def _trains(question: Question) -> bool:
    """Whether a row can be written in a wording: one call, without what stands beside its prompt in evaluation."""
    beside = question.systems[0] or question.shows_examples or "{evidence}" in question.steps[0]
    return question.train and len(question.steps) == 1 and not beside


class _Drawer:
    """Draws rows; each from its own id and the seed."""

    def __init__(
        self,
        task: Task,
        protocol: str,
        examples: Sequence[Example],
        shares: Sequence[float],
        supported: float,
        kinds: Sequence[str],
        style: str,
        seed: int,
    ) -> None:
        names = task.spec.protocols.get(protocol)
        questions = [task.question(protocol, name) for name in (names.wordings if names else [None])]
        self.questions = [q for q in questions if _trains(q)]
        if not self.questions:
            raise UserError(f"{task.name}/{protocol} has no wording of one step without {{evidence}} to train on")
        self.ends = list(accumulate(shares))[:-1]
        self.supported, self.kinds, self.style, self.seed = supported, kinds, style, seed
        self.pool = [(one.group, result) for one in examples for result in one.evidence]
        self.near = _nearest(examples, self.pool) if "near" in kinds else {}

    def draw(self, unit: _Unit, copy: int) -> TrainingExample:
        one = unit.example
        name = f"{one.id}/{unit.label}/{copy}"
        chance = random.Random(runs.seed_for(self.seed, "draw", name))  # noqa: S311 - a draw, not a secret
        n = bisect_right(self.ends, chance.random())
        own = list(
            dict.fromkeys(r for r, stance in zip(one.evidence, one.stances, strict=True) if stance == unit.label)
        )
        good: list[SearchResult] = []
        if n and chance.random() < self.supported:
            good = chance.sample(own, chance.randint(1, min(n, len(own))))
        shown: list[tuple[SearchResult, Verdict]] = [(result, "informative") for result in good]
        while len(shown) < n:
            result = self._distracting(one, chance, {result.body for result, _ in shown})
            shown.append((result, "distracting"))
        chance.shuffle(shown)
        question = chance.choice(self.questions)
        answers = frames()["answers_join"].join(question.answers.values())
        return TrainingExample(
            id=name,
            instruction=as_text(fill(question.steps[0], {"text": one.text.strip(), "answers": answers})),
            input="",
            results=tuple(result for result, _ in shown),
            judgements=tuple(said for _, said in shown),
            response=question.answers[unit.label],
            style=self.style,
        )

    def _distracting(self, one: Example, chance: random.Random, shown: set[str]) -> SearchResult:
        kind = chance.choice(self.kinds)
        if kind == "own":
            silent = (r for r, stance in zip(one.evidence, one.stances, strict=True) if stance is None)
            if found := [result for result in silent if result.body not in shown]:
                return chance.choice(found)
        taken = shown | {result.body for result in one.evidence}
        near = self.near.get(one.id, ())
        for _ in range(100):
            group, result = self.pool[
                chance.choice(near) if kind == "near" and len(near) else chance.randrange(len(self.pool))
            ]
            if group != one.group and result.body not in taken:
                return result
        raise UserError(f"example {one.id!r}: no other example has a search result that could distract")


def _nearest(examples: Sequence[Example], pool: Sequence[tuple[str, SearchResult]]) -> dict[str, list[int]]:
    """For each example, places in the pool of other examples' results that share most of its words (TF-IDF cosine)."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(sublinear_tf=True, stop_words="english")
    results = words.fit_transform(result.text for _, result in pool)
    mine: defaultdict[str, set[int]] = defaultdict(set)
    for place, (group, _) in enumerate(pool):
        mine[group].add(place)
    found = {}
    for start in range(0, len(examples), 256):
        part = examples[start : start + 256]
        close = (words.transform([one.text for one in part]) @ results.T).toarray()
        for one, row in zip(part, close, strict=True):
            order = [int(i) for i in np.argsort(-row, kind="stable")[:100] if i not in mine[one.group]]
            found[one.id] = order[_NEAR]
    return found
