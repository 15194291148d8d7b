"""Searching: documents of many forms, an index built once, outcomes that stay apart, the same bytes after a kill."""

from __future__ import annotations

import json
import signal
import tarfile
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import forked
from little_room import little_room
from sailkit import runs
from sailkit.errors import UserError
from sailkit.records import Instruction
from sailkit.retrieval.base import EngineResults
from sailkit.retrieval.corpus import Passage, read_passages, split_words
from sailkit.retrieval.instructions import read_searched
from sailkit.retrieval.local import LocalSearcher, fuse
from sailkit.retrieval.results import SearchRun
from sailkit.retrieval.search import search

DOCUMENTS = {
    "Polar bear": "Polar bears hunt seals from the sea ice in the Arctic.",
    "Stock market": "Shares rose on Monday, and banks led the market.",
    "Photosynthesis": "Plants make sugar from light, water and carbon dioxide.",
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAILKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"title": t, "text": x}) + "\n" for t, x in DOCUMENTS.items()))
    return path


def ask(tmp_path, *rows):
    path = tmp_path / "asked.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@given(st.lists(st.text("abc", min_size=1, max_size=3), max_size=200), st.integers(1, 30), st.data())
def test_passages_cover_a_text_and_overlap(words, size, data):
    overlap = data.draw(st.integers(0, size - 1))
    parts = [part.split() for part in split_words(" ".join(words), size, overlap)]
    assert all(len(part) <= size for part in parts)
    rebuilt = [*parts[:1], *(part[overlap:] for part in parts[1:])]
    assert [word for part in rebuilt for word in part] == words


def test_documents_of_every_form(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("First text.")
    (tmp_path / "texts" / "b.json").write_text('{"Land": {"Area": {"text": "Large.<br><br>Very."}, "n": 3}}')
    (tmp_path / "q.jsonl").write_text('{"question": "q", "ctxs": [{"title": "T", "text": "Gold."}]}\n' * 2)
    with tarfile.open(tmp_path / "c.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "texts" / "b.json", "../../escape.json")
    found = read_passages([tmp_path / "texts", tmp_path / "q.jsonl", tmp_path / "c.tar.gz"])
    assert found == [
        Passage("a", "First text."),
        Passage("b > Land > Area", "Large. Very."),
        Passage("T", "Gold."),
        Passage("../../escape > Land > Area", "Large. Very."),
    ]


def test_a_corpus_that_cannot_be_used_is_an_error_in_one_line(tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe text")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "cut.tar.gz").write_bytes(b"\x1f\x8b\x08")
    (tmp_path / "other.jsonl").write_text('{"x": 1}\n')
    wrong = {"bad.txt": "not UTF-8", "empty.jsonl": "no text in", "cut.tar.gz": "cannot read", "other.jsonl": "line 1"}
    for name, message in {**wrong, "absent.jsonl": "cannot read"}.items():
        with pytest.raises(UserError, match=message):
            read_passages([tmp_path / name])
    with pytest.raises(UserError, match="`passage_overlap`"):
        read_passages([tmp_path / "bad.txt"], words=5, overlap=5)


def test_a_corpus_without_words_is_an_error_in_one_line(tmp_path, corpus):
    (tmp_path / "silent.jsonl").write_text('{"text": "of the"}\n{"text": "a b c"}\n')
    with pytest.raises(UserError, match=r"no words to search for in .*silent.jsonl"):
        LocalSearcher("bm25", [tmp_path / "silent.jsonl"])


@pytest.mark.parametrize("engine", ["bm25", "dense", "hybrid"])
def test_the_best_passage_comes_first(tmp_path, corpus, engine):
    asked = ask(tmp_path, {"instruction": "Where do polar bears hunt?"}, {"instruction": "How do plants make sugar?"})
    run = search(instructions=asked, out=tmp_path / "run", engine=engine, corpus=[corpus], k=2)
    rows = read_searched(tmp_path / "run")
    assert [row.results[0].title for row in rows] == ["Polar bear", "Photosynthesis"]
    assert [result.rank for result in rows[0].results] == list(range(1, len(rows[0].results) + 1))
    assert {result.source for row in rows for result in row.results} == {engine}
    assert run.outcomes["found"] == run.n == 2


def test_dense_reads_special_tokens_as_text(tmp_path, corpus):
    searcher = LocalSearcher("dense", [corpus])
    ids = searcher._encoder.tokenize(["seals [SEP] ice"])["input_ids"][0].tolist()
    assert ids.count(searcher._encoder.tokenizer.sep_token_id) == 1


def test_an_untitled_passage_is_embedded_as_its_text_alone(tmp_path):
    texts = ["Paris is the capital of France.", "Bears eat fish."]
    corpus = tmp_path / "corpus.jsonl"
    rows = [{"text": texts[0]}, {"title": " ", "text": texts[1]}, {"title": "Seals", "text": "They swim."}]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    searcher = LocalSearcher("dense", [corpus])
    right = searcher._encoder.encode([*texts, "Seals. They swim."], normalize_embeddings=True)
    np.testing.assert_allclose(searcher._vectors, right, atol=1e-5)
    ((found,),) = searcher.search([Instruction("1", "Paris is the capital of France.")], 1)
    assert found.results[0].title == ""
    assert searcher.describe()["embedded_text"] == 2  # a run on the embeddings of other texts does not go on


def test_embeddings_of_other_texts_are_not_used(tmp_path, corpus):
    searcher = LocalSearcher("dense", [corpus])
    (folder,) = (tmp_path / "cache" / "indexes").glob("bm25-*-*[!k]")
    # Where the embeddings were kept when an untitled passage began with a full stop.
    earlier = folder.with_name(folder.name.rpartition("-")[0])
    assert earlier.name.endswith(searcher.describe()["encoder_sha256"][:16])
    folder.rename(earlier)
    LocalSearcher("dense", [corpus])
    assert folder.is_dir()


@pytest.mark.parametrize(("engine", "size"), [("bm25", 300), ("bm25", 9_000), ("dense", 40_000)])
def test_a_full_disk_under_the_index_is_one_line_and_leaves_none(tmp_path, engine, size):
    """The first limit is met by numpy, the second by the corpus, the third by safetensors."""
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": f"bear {i}: {'text ' * 20}"}) + "\n" for i in range(100)))
    why = r"^cannot write .*indexes/bm25-\w+(-\w+-\d)?: .*free some space.*; SAILKIT_CACHE names another folder"
    with little_room(size), pytest.raises(UserError, match=why):
        LocalSearcher(engine, [corpus])
    assert [path.name for path in (tmp_path / "cache" / "indexes").glob(".*")] == []
    searcher = LocalSearcher(engine, [corpus])
    assert searcher.search([Instruction("1", "bear 7")], 1)[0][0].outcome == "found"


def test_outcomes_stay_apart(tmp_path, corpus):
    asked = ask(
        tmp_path, {"instruction": "zzz"}, {"instruction": " "}, {"instruction": "seals"}, {"instruction": "the"}
    )
    search(instructions=asked, out=tmp_path / "run", corpus=[corpus])
    rows = read_searched(tmp_path / "run")
    assert [row.searches["bm25"] for row in rows] == ["empty", "left_out", "found", "empty"]
    assert len(rows[2].results) == 1  # no passage without a word of the question


def test_a_run_is_read_again_and_written_under_the_names_of_its_files(tmp_path, corpus):
    asked = ask(tmp_path, {"instruction": "seals"}, {"instruction": ""})
    run = search(instructions=asked, out=tmp_path / "run", corpus=[corpus], k=1)
    assert SearchRun.load(tmp_path / "run") == run
    assert [len(row.results) for row in run.rows()] == [1, 0]
    (frame_row,) = run.to_frame().to_dict("records")
    assert frame_row["instruction"] == "seals"
    assert (frame_row["body"], frame_row["rank"]) == (run.rows()[0].results[0].body, 1)
    assert run.to_json() == {
        "engine": "bm25",
        "n": 2,
        "found": 1,
        "empty": 0,
        "unavailable": 0,
        "left_out": 1,
        "results_in_all": 1,
        "dropped_results": 0,
        "results": str(tmp_path / "run" / "results.jsonl"),
        "unfinished": None,
    }
    assert "2 instructions: found 1, empty 0, unavailable 0, left_out 1" in str(run)


def test_a_run_of_another_stage_is_not_read_as_a_search(tmp_path):
    with runs.open_run(tmp_path / "run", "label", {}):
        pass
    with pytest.raises(UserError, match="holds a run of 'label', not of 'search'"):
        SearchRun.load(tmp_path / "run")


def test_an_index_is_built_once_and_never_used_for_another_corpus(tmp_path, corpus, capsys):
    asked = ask(tmp_path, {"instruction": "seals"})
    for name in ("one", "two"):
        search(instructions=asked, out=tmp_path / name, corpus=[corpus])
    assert capsys.readouterr().err.count("indexing 3 passages") == 1
    corpus.write_text(corpus.read_text().replace("seals", "walrus"))
    run = search(instructions=asked, out=tmp_path / "three", corpus=[corpus])
    assert (run.outcomes["found"], run.outcomes["empty"]) == (0, 1)
    with pytest.raises(UserError, match="corpus_sha256"):
        search(instructions=asked, out=tmp_path / "one", corpus=[corpus])


def test_what_a_killed_build_left_in_the_cache_is_removed(tmp_path, corpus):
    LocalSearcher("bm25", [corpus])
    (index,) = (tmp_path / "cache" / "indexes").glob("bm25-*[!k]")
    left = index.with_name(f".{index.name}.killed")
    index.rename(left)
    LocalSearcher("bm25", [corpus])
    assert index.is_dir()
    assert not left.exists()


def test_recorded_searches_keep_their_outcomes(tmp_path):
    asked = ask(tmp_path, *({"instruction": f"ask {i}"} for i in range(3)))
    path = tmp_path / "recorded.json"
    web = [{"title": "T", "body": "Web text."}, {"title": "no body"}, {"body": "\x01\x02 \x00"}]
    path.write_text(json.dumps([[web, {"title": "B", "body": "Found."}], [None, []], [[], [{"body": "x"}]]]))
    run = search(instructions=asked, out=tmp_path / "run", engine="recorded", recorded=path)
    rows = read_searched(tmp_path / "run")
    assert [row.searches for row in rows] == [
        {"web": "found", "bm25": "found"},
        {"web": "unavailable", "bm25": "empty"},
        {"web": "empty", "bm25": "found"},
    ]
    assert [(r.source, r.rank, r.title) for r in rows[0].results] == [("web", 1, "T"), ("bm25", 1, "B")]
    assert run.dropped_results == 2
    path.write_text("[[null, []]]")
    with pytest.raises(UserError, match="has 1 entries and there are 3 instructions"):
        search(instructions=asked, out=tmp_path / "other", engine="recorded", recorded=path)


def test_a_limit_cuts_a_recording_too(tmp_path):
    asked = ask(tmp_path, *({"instruction": f"ask {i}"} for i in range(5)))
    path = tmp_path / "recorded.json"
    path.write_text(json.dumps([[None, [{"body": f"text {i}"}]] for i in range(5)]))
    search(instructions=asked, out=tmp_path / "run", engine="recorded", recorded=path, limit=3)
    assert [row.results[0].body for row in read_searched(tmp_path / "run")] == ["text 0", "text 1", "text 2"]
    path.write_text(json.dumps([[None, []]] * 3))
    with pytest.raises(UserError, match="has 3 entries and there are 5 instructions"):
        search(instructions=asked, out=tmp_path / "other", engine="recorded", recorded=path, limit=3)


@given(st.lists(st.lists(st.integers(0, 20), unique=True), min_size=1, max_size=3))
def test_fusion_keeps_every_candidate_and_puts_agreement_first(rankings):
    found = fuse(rankings)
    assert sorted(found) == sorted({place for ranking in rankings for place in ranking})
    if rankings[0] and all(ranking[:1] == rankings[0][:1] for ranking in rankings):
        assert found[0] == rankings[0][0]


def test_bad_options(tmp_path, corpus):
    asked = ask(tmp_path, {"instruction": "seals"})
    for options, message in (
        ({"corpus": [corpus], "k": 0}, "`k` should be"),
        ({"engine": "recorded", "limit": 0}, "`limit` should be"),
        ({}, "needs `corpus`"),
        ({"engine": "recorded"}, "needs `recorded`"),
    ):
        with pytest.raises(UserError, match=message):
            search(instructions=asked, out=tmp_path / "run", **options)
    assert EngineResults("bm25", "empty").results == ()


@pytest.mark.long
def test_ten_kills_change_nothing(tmp_path, corpus):
    asked = ask(tmp_path, *({"instruction": f"seals {i} market plants {i % 7}"} for i in range(2400)))
    command = ["search", "--instructions", asked, "--corpus", str(corpus), "--out"]
    forked.run(*command, tmp_path / "whole", check=True)
    expected = (tmp_path / "whole" / "results.jsonl").read_bytes()
    killed = 0
    for number in range(10):
        child = forked.Command(*command, tmp_path / "killed")
        log = tmp_path / "killed" / "results.jsonl"
        while child.poll() is None and (not log.exists() or log.stat().st_size < len(expected) * (number + 1) / 12):
            time.sleep(0.001)
        child.send_signal(signal.SIGKILL)
        killed += child.wait().returncode == -signal.SIGKILL
    assert killed
    forked.run(*command, tmp_path / "killed", check=True)
    assert (tmp_path / "killed" / "results.jsonl").read_bytes() == expected


def test_a_damaged_index_is_named_and_not_a_fault(corpus, tmp_path):
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"instruction": "Where do polar bears hunt?", "output": "On the ice."}\n')
    search(instructions=str(asked), corpus=[corpus], out=tmp_path / "a")
    (index,) = (path for path in (tmp_path / "cache" / "indexes").iterdir() if path.is_dir())
    (index / "data.csc.index.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(UserError, match=r"the index .*bm25-.* cannot be read .*; remove it, it will be built again"):
        search(instructions=str(asked), corpus=[corpus], out=tmp_path / "b")


def test_a_limit_below_one_is_refused(corpus, tmp_path):
    with pytest.raises(UserError, match="`limit` should be at least 1, not -1"):
        search(instructions=str(corpus), corpus=[corpus], out=tmp_path / "a", limit=-1)


class Silent:
    """A plug-in that never has an answer."""

    name, batch, live = "silent", 8, False

    def describe(self):
        return {"engine": self.name}

    def search(self, instructions, k):
        return [[EngineResults(self.name, "unavailable")] for _ in instructions]

    def close(self):
        pass


class SilentServer(Silent):
    """One that may answer later."""

    live = True


@pytest.mark.parametrize("searcher", [Silent, SilentServer])
def test_a_run_that_is_read_again_is_unfinished_only_if_its_searcher_may_answer_later(tmp_path, searcher):
    (tmp_path / "q.jsonl").write_text('{"instruction": "Where?"}\n')
    engine = f"{__name__}:{searcher.__name__}"
    run = search(instructions=tmp_path / "q.jsonl", engine=engine, out=tmp_path / "run")
    assert (run.unfinished is not None) == searcher.live
    assert SearchRun.load(tmp_path / "run") == run
