"""The shipped samples: complete, free of repetition, and not to be solved by counting letters."""

from __future__ import annotations

import math
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import sailkit
from sailkit.files import jsonl
from sailkit.retrieval.instructions import read_instructions
from sailkit.retrieval.local import LocalSearcher
from sailkit.tasks.task import load_task

SAMPLES = Path(sailkit.__file__).parent / "tasks" / "samples"
CLAIMS = [row for _, row in jsonl.read_rows(SAMPLES / "claims.jsonl")]
STATEMENTS = [row for _, row in jsonl.read_rows(SAMPLES / "statements.jsonl")]
FACTS = {name: [row for _, row in jsonl.read_rows(SAMPLES / f"{name}.jsonl")] for name in ("facts", "facts-train")}
PASSAGES = [(claim, passage) for claim in CLAIMS for passage in claim["passages"]]
STANCE = {"SUPPORTS": "supports", "REFUTES": "refutes"}


def words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.casefold())


def passage_of(row: dict) -> str:
    """The passage of a fact."""
    (passage,) = row["evidence"]
    return passage["text"]


def size(text: str) -> list[int]:
    return [len(text), len(words(text))]


def test_labels_are_balanced():
    assert Counter(c["label"] for c in CLAIMS) == {"SUPPORTS": 75, "REFUTES": 75}
    assert Counter(s["label"] for s in STATEMENTS) == {"respectful": 30, "demeaning": 30}
    for rows in (CLAIMS, STATEMENTS):
        assert len({row["id"] for row in rows}) == len(rows)


def test_every_claim_has_passages_of_its_own_stance_and_distracting_ones():
    for claim in CLAIMS:
        stances = [p["stance"] for p in claim["passages"]]
        assert 3 <= len(stances) <= 6, claim["id"]
        assert {STANCE[claim["label"]], "distracting"} <= set(stances) <= {"supports", "refutes", "distracting"}
        assert all(p["title"].strip() and p["text"].strip() for p in claim["passages"]), claim["id"]


def test_no_two_claims_say_the_same():
    for a, b in combinations(CLAIMS, 2):
        assert len({*words(a["claim"])} & {*words(b["claim"])}) < 8, (a["claim"], b["claim"])


def test_no_two_texts_share_eight_words_in_a_row():
    texts = [p["text"] for _, p in PASSAGES] + [c["claim"] for c in CLAIMS] + [s["text"] for s in STATEMENTS]
    first: dict[tuple[str, ...], int] = {}
    for number, text in enumerate(texts):
        for eight in zip(*(words(text)[i:] for i in range(8)), strict=False):
            assert first.setdefault(eight, number) == number, " ".join(eight)


def aurocs(features: list[list[float]], positive: list[bool], groups: list[str]) -> list[float]:
    """What a linear and a non-linear classifier get out of lengths alone, on claims they have not seen."""
    x, y = np.array(features, dtype=float), np.array(positive)
    models = (
        make_pipeline(StandardScaler(), LogisticRegression()),
        RandomForestClassifier(50, min_samples_leaf=4, random_state=0),
    )
    found = []
    for model in models:
        folds = GroupKFold(5, shuffle=True, random_state=0)
        chances = cross_val_predict(model, x, y, groups=groups, cv=folds, method="predict_proba")[:, 1]
        found.append(float(roc_auc_score(y, chances)))
    return found


def margin(positive: list[bool]) -> float:
    """Two standard deviations of the AUROC of guesses on so many items, and no less than 0.1."""
    yes = sum(positive)
    no = len(positive) - yes
    return max(0.1, 2 * math.sqrt((yes + no + 1) / (12 * yes * no)))


def claim_rows() -> tuple[list[list[float]], list[bool], list[str]]:
    features = []
    for claim in CLAIMS:
        sizes = np.array([size(p["title"]) + size(p["text"]) for p in claim["passages"]])
        spread = np.concatenate([sizes.mean(0), sizes.min(0), sizes.max(0)])
        features.append([*size(claim["claim"]), len(sizes), *spread])
    return features, [c["label"] == "SUPPORTS" for c in CLAIMS], [c["id"] for c in CLAIMS]


def passage_rows(stances: set[str], positive: str) -> tuple[list[list[float]], list[bool], list[str]]:
    chosen = [(c, p) for c, p in PASSAGES if p["stance"] in stances]
    features = [[*size(c["claim"]), *size(p["title"]), *size(p["text"]), len(c["passages"])] for c, p in chosen]
    return features, [p["stance"] == positive for _, p in chosen], [c["id"] for c, _ in chosen]


def statement_rows() -> tuple[list[list[float]], list[bool], list[str]]:
    positive = [s["label"] == "demeaning" for s in STATEMENTS]
    return [size(s["text"]) for s in STATEMENTS], positive, [s["id"] for s in STATEMENTS]


ROWS = {
    "claims": claim_rows(),
    "informative or distracting": passage_rows({"supports", "refutes", "distracting"}, "distracting"),
    "supporting or refuting": passage_rows({"supports", "refutes"}, "supports"),
    "statements": statement_rows(),
}


@pytest.mark.parametrize("what", ROWS)
def test_lengths_give_nothing_away(what):
    features, positive, groups = ROWS[what]
    assert aurocs(features, positive, groups) == pytest.approx([0.5, 0.5], abs=margin(positive))


@pytest.mark.parametrize("what", ROWS)
def test_a_planted_leak_would_be_noticed(what):
    """The texts of one class are made longer by a standard deviation of their length."""
    features, positive, groups = ROWS[what]
    x = np.array(features, dtype=float)
    text = [4, 5] if what.startswith(("informative", "supporting")) else [0, 1]  # after claim and title
    x[np.ix_(positive, text)] += x[:, text].std(0)
    assert max(aurocs(x.tolist(), positive, groups)) > 0.5 + margin(positive)


def test_a_place_in_the_list_gives_nothing_away():
    """Neither the first nor the last passage is more often informative than chance allows."""
    for place in (0, -1):
        hits = sum(c["passages"][place]["stance"] != "distracting" for c in CLAIMS)
        expected = [sum(p["stance"] != "distracting" for p in c["passages"]) / len(c["passages"]) for c in CLAIMS]
        spread = math.sqrt(sum(e * (1 - e) for e in expected))
        assert abs(hits - sum(expected)) < 2.6 * spread


@pytest.mark.parametrize(("name", "passages"), [("facts", 52), ("facts-train", 26)])
def test_every_fact_has_a_right_and_a_wrong_claim_on_one_passage(name, passages):
    rows = FACTS[name]
    assert len({passage_of(row) for row in rows}) == passages
    for passage in {passage_of(row) for row in rows}:
        claims = [row for row in rows if passage_of(row) == passage]
        assert Counter(row["label"] for row in claims) == {"SUPPORTS": 2, "REFUTES": 2}
        assert all(row["evidence"][0]["stance"] == STANCE[row["label"]] for row in claims)


def test_claims_on_one_passage_form_a_group():
    task = load_task("sample-facts")
    examples = task.load().examples
    assert len({example.group for example in examples}) == 52
    assert len({(example.group, example.evidence) for example in examples}) == 52


def test_no_passage_is_in_both_sets_of_facts():
    test, train = ({passage_of(row) for row in rows} for rows in FACTS.values())
    assert not test & train


@pytest.mark.parametrize("name", FACTS)
def test_the_wording_of_a_fact_does_not_give_its_label_away(name):
    rows = FACTS[name]
    labels, groups = [row["label"] == "SUPPORTS" for row in rows], [passage_of(row) for row in rows]
    words_alone = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression())
    probabilities = cross_val_predict(
        words_alone, [row["claim"] for row in rows], labels, groups=groups, cv=GroupKFold(10), method="predict_proba"
    )
    assert roc_auc_score(labels, probabilities[:, 1]) < 0.5 + margin(labels)


@pytest.mark.parametrize("name", FACTS)
def test_facts_are_instructions_in_the_words_of_the_task(name):
    task = load_task("sample-facts")
    question = task.question("direct")
    rows = {row["id"]: row for row in FACTS[name]}
    for instruction in read_instructions(SAMPLES / f"{name}.jsonl"):
        row = rows[instruction.id]
        prompt = question.steps[0].format(text=row["claim"], answers=" or ".join(question.answers.values()))
        assert (instruction.instruction, instruction.input) == (prompt, "")
        assert instruction.output == question.answers[row["label"]]


def test_a_search_finds_the_passage_of_a_fact():
    searcher = LocalSearcher("bm25", [SAMPLES / "facts.jsonl", SAMPLES / "facts-train.jsonl"])
    instructions = read_instructions(SAMPLES / "facts.jsonl")
    passage = {row["id"]: passage_of(row) for row in FACTS["facts"]}
    searched = searcher.search(instructions, 3)
    hits = [
        passage[instruction.id] in [result.body for result in engine.results]
        for instruction, (engine,) in zip(instructions, searched, strict=True)
    ]
    assert sum(hits) >= 0.97 * len(hits)


def test_a_search_with_the_whole_question_is_a_search_for_its_claim():
    question = {*words(FACTS["facts"][0]["instruction"].split("Claim:")[0])} - {"is", "the", "with", "or"}
    for rows in FACTS.values():
        for row in rows:
            assert not question & {*words(passage_of(row))}, row["id"]
