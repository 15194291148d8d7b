"""Training examples in the forms of others: written, and read back."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sailkit.data.exports import example_row, export, in_text, read_examples, read_row, sail_row, trl_row
from sailkit.errors import UserError
from sailkit.prompts.sail import STYLES
from sailkit.records import SearchResult, TrainingExample

LINES = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=12)
TEXT = st.lists(LINES | st.sampled_from(["", "### Response:", "(7) Ice", "The sun\nis hot."]), max_size=4).map(
    "\n".join
)


@st.composite
def examples(draw) -> TrainingExample:
    n = draw(st.integers(0, 4))
    results = tuple(SearchResult(draw(TEXT), draw(LINES), "http://a", "bm25", i + 1) for i in range(n))
    judgements = tuple(draw(st.sampled_from(["informative", "distracting"])) for _ in range(n))
    texts = [draw(TEXT) for _ in range(2)]
    return TrainingExample("7", *texts, results, judgements, draw(TEXT) + "x", draw(st.sampled_from(STYLES)))


@given(one=examples())
def test_structured_rows_lose_nothing(one):
    assert read_row(json.loads(json.dumps(example_row(one))), "") == one


@given(one=examples())
def test_the_text_forms_read_back(one):
    assert read_row(json.loads(json.dumps(trl_row(one))), "") == in_text(one)
    assert read_row(json.loads(json.dumps(sail_row(one))), "") == in_text(replace(one, style="sail"))


@given(some=st.lists(examples(), min_size=1, max_size=3))
def test_files_read_back(some):
    some = [replace(one, id=str(place)) for place, one in enumerate(some)]
    published = [replace(one, style="sail") for one in some]
    with tempfile.TemporaryDirectory() as folder:
        for form, expected in (("trl", some), ("sail", published)):
            found = export(some, form, Path(folder) / "train")
            assert found["rows"] == len(some)
            assert found["ambiguous"] == 0
            assert read_examples(Path(folder) / found["file"]) == [in_text(one) for one in expected]


def test_a_body_that_counts_to_three_hundred_thousand_is_read_back_at_once():
    body = "".join(f"\n\n({number}) " for number in range(2, 300_000))
    one = TrainingExample("7", "Do", "it", (SearchResult(body, "T"),), ("distracting",), "Done.", "sail")
    start = time.process_time()
    with pytest.raises(UserError, match="does not have the form"):  # counted as ambiguous by the writer
        read_row(sail_row(one), "")
    assert time.process_time() - start < 10


@pytest.mark.parametrize("style", STYLES)
def test_parquet_reads_back(tmp_path, style):
    pytest.importorskip("pyarrow")
    one = TrainingExample("7", "Do", "it", (SearchResult("a\n\nb", "T"),), ("distracting",), "Done.", style)
    found = export([one], "trl-parquet", tmp_path / "train")
    assert read_examples(tmp_path / found["file"]) == [one]


def test_the_published_rows_are_read_and_written_again(shared, tmp_path):
    cases = json.loads((shared / "sail_format" / "cases.json").read_text("utf-8"))
    rows = [
        {"id": str(i), "conversations": [{"from": who, "value": case[who]} for who in ("human", "gpt")]}
        for i, case in enumerate(cases)
    ]
    (tmp_path / "SAIL_train.json").write_text(json.dumps(rows))
    found = read_examples(tmp_path / "SAIL_train.json")
    for case, one in zip(cases, found, strict=True):
        assert [{"title": r.title, "body": r.body} for r in one.results] == case["results"]
        assert list(one.judgements) == case["judgements"]
        assert (one.instruction, one.input, one.response) == tuple(case[n] for n in ("instruction", "input", "output"))
    again = export(found, "sail", tmp_path / "again")
    assert json.loads((tmp_path / again["file"]).read_text("utf-8")) == rows


def test_a_text_that_looks_like_the_form_is_counted(tmp_path):
    one = TrainingExample("7", "Do", "", (SearchResult("a\n\n(2) b\nc", "T"),), ("informative",), "x", "sail")
    assert export([one, replace(one, id="8", results=(SearchResult("a"),))], "sail", tmp_path / "t")["ambiguous"] == 1


WITH_RESULT = example_row(TrainingExample("1", "", "", (SearchResult("b"),), ("informative",), "", "sail"))


def test_a_result_may_have_null_where_something_is_unknown(tmp_path):
    result = {"body": "b", "title": "t", "url": None, "rank": None, "retrieved_at": None}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({**WITH_RESULT, "results": [result]}) + "\n")
    assert read_examples(path)[0].results == (SearchResult("b", "t"),)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "1"}, "no field 'instruction'"),
        ({"conversations": [{"from": "human", "value": "x"}]}, "one turn of human and one of gpt"),
        ({"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]}, "does not have the form"),
        ({"prompt": "Say it", "completion": " No"}, "not a prompt and completion of sailkit's"),
        ({"prompt": None, "completion": None}, "not a prompt and completion of sailkit's"),
        ({**example_row(TrainingExample("1", "", "", (), (), "", "sail")), "style": "x"}, "style should be one of"),
        (
            {**example_row(TrainingExample("1", "", "", (), (), "", "sail")), "judgements": ["informative"]},
            "per result",
        ),
        (
            {**example_row(TrainingExample("1", "", "", (), (), "", "sail")), "results": [{"x": 1}]},
            r"no field 'results\.0\.body'",
        ),
        ({**WITH_RESULT, "results": [{"body": "b", "titel": "t"}]}, r"unknown field 'results\.0\.titel'"),
        (
            {**WITH_RESULT, "results": [{"body": "b", "title": 3}]},
            r"field 'results\.0\.title' should be text, found int",
        ),
        ({**WITH_RESULT, "results": [{"body": "\ud83d"}]}, r"field 'results\.0\.body' holds half a surrogate pair"),
        ({**WITH_RESULT, "results": ["b"]}, r"field 'results\.0' should be a JSON object, found str"),
        (
            {**WITH_RESULT, "judgements": ["good"]},
            "field 'judgements.0' should be 'informative' or 'distracting', not 'good'",
        ),
        ({**WITH_RESULT, "response": None}, "field 'response' should be text, found NoneType"),
        ({**example_row(TrainingExample("1", "", "", (), (), "", "sail")), "results": None}, "should be a list, found"),
    ],
)
def test_a_row_that_is_none_of_the_forms_is_named(tmp_path, row, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=f"rows.jsonl, line 1.*{message}"):
        read_examples(path)


def test_empty_files_and_ids_used_twice_are_errors(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("")
    with pytest.raises(UserError, match="no training examples"):
        read_examples(path)
    path.write_text(json.dumps(example_row(TrainingExample("1", "", "", (), (), "", "sail"))) + "\n")
    path.write_text(path.read_text() * 2)
    with pytest.raises(UserError, match=r"line 2: id '1' was used before, at .*line 1"):
        read_examples(path)
