"""Answers of held-out rows are scored against their responses, with and without an informative search result."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from sailkit.distributed import Processes
from sailkit.models.base import ModelOptions
from sailkit.models.load import load_model
from sailkit.models.local import LocalModel
from sailkit.prompts.sail import Order
from sailkit.training.answering import answering
from small_rows import example


@pytest.fixture(scope="module")
def model(shared):
    return load_model(str(shared / "models" / "stories260k"), options=ModelOptions(chat="off"))


def test_the_answer_that_the_model_scores_highest_is_its_answer(model):
    rows = [replace(example(i), response=("yes", "no")[i // 2 % 2]) for i in range(12)]
    figures = answering(model, rows, 512, Processes())
    always = {a: answering(model, [replace(r, response=a) for r in rows[1:]] + [replace(rows[0], response=b)], 512,
                           Processes())["accuracy"] for a, b in (("yes", "no"), ("no", "yes"))}  # fmt: skip
    assert {"accuracy", "macro_f1", "auroc"} <= figures.keys()
    assert sum(always.values()) == pytest.approx(1, abs=2 / 12)  # the scores do not depend on the label
    assert 0 <= figures["auroc"] <= 1
    informative = [row for row in rows if "informative" in row.judgements]
    parts = answering(model, informative, 512, Processes())
    assert [figures[f"{name}_informative"] for name in parts if "_inf" not in name] == [
        parts[name] for name in parts if "_inf" not in name
    ]
    assert 0 < len(informative) < len(rows)


def test_with_answer_first_the_judgements_come_too_late_to_matter(model):
    rows = [replace(example(i), response=("yes", "no")[i // 2 % 2]) for i in range(12)]
    other = {"informative": "distracting", "distracting": "informative"}
    turned = [replace(row, judgements=tuple(other[j] for j in row.judgements)) for row in rows]
    scored: dict[str, list[float]] = {}

    class Recorded(LocalModel):
        def score_ids(self, prompts, continuations):
            scores = super().score_ids(prompts, continuations)
            scored.setdefault(name, []).extend(round(score, 3) for row in scores for score in row)
            return scores

    recorded = Recorded(model.name, model.model, model.tokenizer, ModelOptions(chat="off"), {})
    for order in get_args(Order):
        for kind, each in (("rows", rows), ("turned", turned)):
            name = f"{kind}, {order}"
            answering(recorded, each, 512, Processes(), order)
    assert sorted(scored["rows, answer-first"]) == pytest.approx(sorted(scored["turned, answer-first"]), abs=0.01)
    assert sorted(scored["rows, verify-first"]) != pytest.approx(sorted(scored["turned, verify-first"]), abs=0.1)


def test_macro_f1_of_some_rows_is_that_of_the_answers_among_them(model):
    rows = [replace(example(i), instruction=f"Question {i}?") for i in range(12)]
    rows = [replace(row, response=("yes", "no")[i // 2 % 2] if i % 2 else "maybe") for i, row in enumerate(rows)]
    answers = {row.instruction: ["maybe", "no", "yes"].index(row.response) for row in rows}

    class Perfect(LocalModel):
        def score_ids(self, prompts, continuations):
            texts = map(self.tokenizer.decode, prompts)
            right = [next(i for asked, i in answers.items() if asked in text) for text in texts]
            return [[0.0 if i == one else -9.0 for i in range(len(continuations))] for one in right]

    perfect = Perfect(model.name, model.model, model.tokenizer, ModelOptions(chat="off"), {})
    figures = answering(perfect, rows, 512, Processes())
    assert [figures[f"macro_f1{part}"] for part in ("", "_informative", "_distracting")] == [1, 1, 1]


def test_free_text_is_not_scored(model):
    assert answering(model, [replace(example(i), response=f"answer {i}") for i in range(11)], 512, Processes()) == {}
    assert answering(model, [replace(example(i), response="same") for i in range(3)], 512, Processes()) == {}
