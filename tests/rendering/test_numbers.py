"""Figures and facts in words: nothing rounded away that a sentence speaks of, and what every result was computed in."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sailkit.evaluation.compare import compare_sets
from sailkit.evaluation.predictions import PredictionSet
from sailkit.evaluation.results import SETTINGS, Evaluation
from sailkit.evaluation.summary import summarise_predictions
from sailkit.records import Prediction
from sailkit.rendering import terminal
from sailkit.rendering.numbers import change, decimals, machine, signed


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (1.5, 0.25, "1.500 → 0.250"),
        (0.5, 0.5, "0.500 → 0.500"),
        (0.00042, 0.00031, "0.0004 → 0.0003"),
        (0.12340001, 0.1234, "0.12340001 → 0.12340000"),
        (0.0, 0.00004, "0.00000 → 0.00004"),
        (-0.0201, -0.0204, "−0.0201 → −0.0204"),
    ],
)
def test_a_change_shows(before, after, words):
    assert change(before, after) == words


@given(st.floats(-2, 2), st.floats(-2, 2))
def test_what_differs_looks_different_and_what_is_not_zero_does_not_look_it(a, b):
    places = decimals(a, b)
    assert 3 <= places <= 9
    if places < 9:
        assert (float(f"{a:.{places}f}") == float(f"{b:.{places}f}")) == (a == b)
        assert all(float(f"{x:.{places}f}") or not x for x in (a, b))


def test_number_format_and_device():
    assert machine({"dtype": "bfloat16", "device": "cuda"}) == "bfloat16 on cuda"
    assert machine({"dtype": None}) == machine({}) == ""


def rows(hits: list[bool], group: int = 0) -> list[Prediction]:
    return [
        Prediction(
            str(i), i, f"Claim {i}", "ab"[i % 2], "ab"[(i % 2) ^ (not hit)], "answered", "text",
            group=f"g{i // group}" if group else "",
        )
        for i, hit in enumerate(hits)
    ]  # fmt: skip


def evaluation(flat: dict) -> Evaluation:
    return Evaluation(folder=Path("run"), **{name: flat.get(name) for name in SETTINGS}, **Evaluation.fields_of(flat))


def test_the_first_line_of_an_evaluation_says_what_it_was_computed_in(capsys):
    figures = summarise_predictions(rows([True] * 40, 2), ("a", "b")).to_json()
    figures |= {"model": "m", "task": "t", "protocol": "direct", "wording": "plain", "answer": "logprob"}
    terminal.write(evaluation({**figures, "dtype": "float32", "device": "cpu"}).report())
    assert capsys.readouterr().out.split("\n")[1] == (
        "m on t (direct, plain, logprob, float32 on cpu): 40 items in 20 groups"
    )
    terminal.write(evaluation({**figures, "dtype": None, "device": None}).report())  # a server's is not known
    assert capsys.readouterr().out.split("\n")[1] == "m on t (direct, plain, logprob): 40 items in 20 groups"


def test_a_comparison_says_its_test_and_what_each_was_computed_in(capsys):
    sets = [
        PredictionSet(name, ("a", "b"), tuple(rows(hits, 2)), {"dtype": dtype, "device": "cpu"})
        for name, hits, dtype in (("x", [True] * 60, "float32"), ("y", [i >= 24 for i in range(60)], "bfloat16"))
    ]
    terminal.write(compare_sets(sets).report())
    printed = capsys.readouterr().out
    assert printed.split("\n")[1] == "x and y: x in float32 on cpu, y in bfloat16 on cpu"
    assert "on 60 items in 30 groups, human labels" in printed
    assert "correct in one run only: x 24, y 0; exact sign-flip test over groups p = 0.000488\n" in printed
    assert "x is better than y" in printed


def test_a_difference_of_nothing_has_no_minus_sign():
    assert {signed(value) for value in (0.0, -0.0, 1e-17, -1e-17)} == {"+0.000"}
    assert (signed(-0.0004), signed(0.12)) == ("−0.0004", "+0.120")
