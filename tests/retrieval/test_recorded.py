"""SAIL's published search results in the shapes that they come in."""

from __future__ import annotations

import json

import pytest

from sailkit.errors import UserError
from sailkit.records import Instruction
from sailkit.retrieval.recorded import RecordedSearcher

ASKED = [Instruction("a", "ask"), Instruction("b", "ask again")]


def recorded(tmp_path, *entries):
    path = tmp_path / "search_res_only.json"
    path.write_text(json.dumps(entries))
    return RecordedSearcher(path, ASKED)


def test_bm25_results_may_be_texts_objects_or_one_of_them(tmp_path):
    whole = [{"title": "T", "body": "one\ntwo", "href": "https://a.test"}]
    searcher = recorded(tmp_path, [whole, ["T\none\ntwo", "untitled"]], [None, {"title": "T", "body": "x"}])
    found = searcher.search(ASKED, 5)
    assert [[(r.title, r.body, r.url) for r in one.results] for row in found for one in row] == [
        [("T", "one\ntwo", "https://a.test")],
        [("T", "one\ntwo", ""), ("", "untitled", "")],
        [],
        [("T", "x", "")],
    ]
    assert [one.outcome for one in found[1]] == ["unavailable", "found"]


def test_k_is_the_most_of_each_engine(tmp_path):
    searcher = recorded(tmp_path, [[{"body": str(i)} for i in range(9)], ["a", "b", "c"]], [[], []])
    assert [len(one.results) for one in searcher.search(ASKED[:1], 2)[0]] == [2, 2]


@pytest.mark.parametrize("entry", [None, {}, [], [[]], [[], [], []], [3, []], [[3], []], [[], [None]]])
def test_another_shape_is_an_error_that_names_the_entry(tmp_path, entry):
    with pytest.raises(UserError, match=r"search_res_only.json, entry 2: "):
        recorded(tmp_path, [None, None], entry)


@pytest.mark.parametrize("text", [b"", b"\xff[]", b"{}", b"[NaN, NaN]", b"[" * 100_000])
def test_a_file_that_is_no_list_is_an_error(tmp_path, text):
    path = tmp_path / "file.json"
    path.write_bytes(text)
    with pytest.raises(UserError, match=r"file.json"):
        RecordedSearcher(path, ASKED)
    with pytest.raises(UserError, match=r"cannot read .*absent.json"):
        RecordedSearcher(tmp_path / "absent.json", ASKED)


def test_both_lengths_are_named(tmp_path):
    with pytest.raises(UserError, match="has 3 entries and there are 2 instructions"):
        recorded(tmp_path, *[[None, []]] * 3)
