"""Search results that a run of search recorded: those of the question, and as many of each engine as are asked for."""

from __future__ import annotations

import pytest

from sailkit.asking.retrieve import NotRecordedError, SearchUnavailableError, open_retrieval
from sailkit.files import jsonl
from sailkit.records import Instruction, Searched, SearchResult
from sailkit.retrieval.instructions import searched_row


def recorded(tmp_path, *rows):
    path = tmp_path / "results.jsonl"
    path.write_text("".join(jsonl.dumps(searched_row(row)) + "\n" for row in rows))
    return path


def test_a_question_is_the_row_with_its_text_and_else_the_only_one_with_its_instruction(tmp_path):
    asked = [("1", "Translate.", "Cat"), ("2", "Translate.", ""), ("3", "Sing.", "La"), ("4", "Sing.", "Lo")]
    path = recorded(tmp_path, *(Searched(Instruction(*one)) for one in [*asked, ("5", "Dance.", "Tango")]))
    with open_retrieval("bm25", 3, search_run=path) as retrieve:
        expected = {"Translate.": "2", "Translate. Cat": "1", "Sing.  Lo": "4", "4": "4", "Dance.": "5"}
        assert {question: retrieve(question).instruction.id for question in expected} == expected
        with pytest.raises(NotRecordedError, match=r"this question with 2 inputs; give an id, such as '3' or '4'$"):
            retrieve("Sing.")


def test_the_number_of_results_is_that_of_each_engine(tmp_path):
    results = tuple(SearchResult(f"{name} {n}", source=name, rank=n) for name in ("dense", "bm25") for n in (1, 2, 3))
    searches = {"dense": "found", "bm25": "found"}
    path = recorded(tmp_path, Searched(Instruction("1", "Who sings?"), results, searches))
    with open_retrieval("bm25", 2, search_run=path) as retrieve:
        found = retrieve("Who sings?").results
    assert [result.body for result in found] == ["dense 1", "dense 2", "bm25 1", "bm25 2"]


def test_sources_of_recorded_results_may_be_something_else_than_engines(tmp_path):
    results = tuple(SearchResult(f"Bees {n}.", source=f"{n}.org", rank=n) for n in range(1, 9))
    path = recorded(tmp_path, Searched(Instruction("1", "Who sings?"), results))
    with open_retrieval("bm25", 3, search_run=path) as retrieve:
        assert retrieve("Who sings?").results == results[:3]


def test_a_recorded_search_without_an_answer_is_no_question_without_results(tmp_path):
    path = recorded(
        tmp_path, *(Searched(Instruction(name, name), (), {"web": name}) for name in ("unavailable", "empty"))
    )
    with open_retrieval("bm25", 3, search_run=path) as retrieve:
        assert retrieve("empty").results == ()
        with pytest.raises(SearchUnavailableError, match="got no answer to this question; run the search again"):
            retrieve("unavailable")
