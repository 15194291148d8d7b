"""Rows of files as records: what is wrong is named by its field."""

from __future__ import annotations

import pytest

from sailkit.errors import UserError
from sailkit.files.rows import parse_row
from sailkit.records import Judgement, Searched, SearchResult


def test_nested_records_and_defaults():
    row = {"instruction": {"id": "1", "instruction": "Say it"}, "results": [{"body": "b", "rank": 2}], "more": 1}
    searched = parse_row(Searched, row, "a.jsonl, line 1")
    assert searched.results == (SearchResult("b", rank=2),)
    assert searched.instruction.output == ""


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, r"no field 'score' \(found: nothing\)"),
        ({"score": 0.5}, r"no field 'verdict' \(found: score\)"),
        ({"score": "high", "verdict": None}, "field 'score' should be a number, found str"),
        ({"score": 1, "verdict": "good"}, "field 'verdict' should be 'informative' or 'distracting', not 'good'"),
        ({"score": 1, "verdict": None, "cut_tokens": 1.5}, "field 'cut_tokens': input should be a valid integer"),
        ({"score": 1, "verdict": None, "cut_tokens": []}, "field 'cut_tokens' should be a whole number, found list"),
    ],
)
def test_the_first_fault_is_named(row, message):
    with pytest.raises(UserError, match=rf"^a.jsonl, line 3: {message}") as caught:
        parse_row(Judgement, row, "a.jsonl, line 3")
    assert "\n" not in str(caught.value)
