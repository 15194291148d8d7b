"""What decides an index, and texts that no file was meant to hold."""

from __future__ import annotations

import gzip
import json
import os
import tarfile

import pytest

from sailkit.errors import UserError
from sailkit.records import Instruction
from sailkit.retrieval.corpus import Passage, corpus_fingerprint, read_passages
from sailkit.retrieval.instructions import read_searched
from sailkit.retrieval.search import search


def test_a_fingerprint_holds_names_that_become_titles(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("Seals.")
    before = corpus_fingerprint([folder])
    assert corpus_fingerprint([folder]) == before
    (folder / "a.txt").rename(folder / "b.txt")
    assert corpus_fingerprint([folder]) != before
    assert read_passages([folder]) == [Passage("b", "Seals.")]


def test_a_table_of_documents_is_the_same_in_a_folder(tmp_path):
    rows = [{"title": "Paris", "text": "On the Seine.", "url": "https://example.org/p"}, {"text": "Bees."}]
    (tmp_path / "docs.json").write_text(json.dumps(rows))
    passages = read_passages([tmp_path / "docs.json"])
    assert passages == [Passage("Paris", "On the Seine.", "https://example.org/p"), Passage("", "Bees.")]
    assert read_passages([tmp_path]) == passages


def test_a_fingerprint_is_of_the_content_and_not_of_the_place_or_the_time(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("Seals.")
    os.utime(tmp_path / "two" / "a.txt", (0, 0))
    assert corpus_fingerprint([tmp_path / "one"]) == corpus_fingerprint([tmp_path / "two"])


def test_characters_that_utf8_cannot_hold_become_a_mark(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text(json.dumps({"title": "\ud800", "text": "half \udfff a pair"}) + "\n")
    assert read_passages([path]) == [Passage("?", "half ? a pair")]


@pytest.mark.parametrize("depth", [10, 900, 985, 100_000])
def test_json_nested_deeply_is_read_or_an_error(tmp_path, depth):
    (tmp_path / "a.json").write_text('{"a":' * depth + '"x"' + "}" * depth)
    try:
        assert read_passages([tmp_path])[0].body == "x"
    except UserError:
        assert depth > 10


@pytest.mark.parametrize(
    "text",
    [
        "Use List<String>, vector<int> and Box<P> here.",
        "if a <b and c> d, #include <stdio.h>, <brown> or <a and b>",
        "</s> <s> <|im_end|> <http://creativecommons.org/publicdomain/zero/1.0/>",
    ],
)
def test_only_markup_is_removed(tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    assert read_passages([tmp_path]) == [Passage("a", text)]


def test_markup_becomes_a_space(tmp_path):
    text = """One<br>two<BR />three <em lang="cs">four</em> <p style="margin: 0in;"><ref name=a>five</ref><h2 id='x'>"""
    (tmp_path / "a.txt").write_text(text)
    assert read_passages([tmp_path]) == [Passage("a", "One two three four five")]


def test_the_companions_that_macos_adds_to_files_are_no_texts(tmp_path):
    (tmp_path / "a.txt").write_text("Bees make honey.")
    (tmp_path / "._a.txt").write_bytes(b"\x00\x05\x16\x07\xff")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        for name in ("a.txt", "._a.txt"):
            archive.add(tmp_path / name, name)
    assert read_passages([tmp_path / "a.tar.gz"]) == [Passage("a", "Bees make honey.")]
    (tmp_path / "a.tar.gz").unlink()
    assert read_passages([tmp_path]) == [Passage("a", "Bees make honey.")]


def test_a_folder_is_read_with_its_tables_and_with_endings_in_capitals(tmp_path):
    (tmp_path / "A.TXT").write_text("one")
    (tmp_path / "b.csv").write_text("title,text\nB,two\n")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'{"title": "C", "text": "three"}\n'))
    (tmp_path / "d.JSON").write_text('{"D": "four"}')
    (tmp_path / "e.png").write_bytes(b"\x89PNG")
    expected = [Passage("A", "one"), Passage("B", "two"), Passage("C", "three"), Passage("d > D", "four")]
    assert read_passages([tmp_path]) == expected
    assert read_passages([tmp_path / "A.TXT"]) == expected[:1]


def test_entries_of_evidence_that_are_no_texts_are_an_error(tmp_path):
    (tmp_path / "raw.jsonl").write_text(json.dumps({"claim": "a", "evidence": [[[1, 2, "Title", 7]]]}) + "\n")
    with pytest.raises(UserError, match="line 1: evidence should be a list of texts or of search results"):
        read_passages([tmp_path / "raw.jsonl"])


def test_a_table_about_the_texts_of_a_folder_is_left_out(tmp_path, capsys):
    (tmp_path / "bees.txt").write_text("Bees make honey.")
    (tmp_path / "authors.csv").write_text("file,author\nbees.txt,Ada\n")
    assert read_passages([tmp_path]) == [Passage("bees", "Bees make honey.")]
    assert "authors.csv: no column of texts" in capsys.readouterr().err


def test_an_archive_with_a_broken_middle_is_an_error(tmp_path):
    path = tmp_path / "a.tar.gz"
    data = bytearray(gzip.compress(os.urandom(20_000)))
    data[5_000:5_100] = bytes(100)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"cannot read .*a.tar.gz"):
        read_passages([path])


def test_a_wikipedia_dump_and_a_table_of_evidence_are_corpora(tmp_path):
    dump, evidence = tmp_path / "wiki.jsonl", tmp_path / "evidence.jsonl"
    page = {"id": "12", "revid": "1", "url": "https://en.wikipedia.org/wiki?curid=12", "title": "Seal"}
    dump.write_text(
        json.dumps(page | {"text": "Seals eat fish.\n\nThey swim."}) + "\n" + json.dumps(page | {"text": ""}) + "\n"
    )
    evidence.write_text(json.dumps({"claim": "c", "evidence": "Found on the web.", "stance": "refute"}) + "\n")
    assert read_passages([dump, evidence]) == [
        Passage("Seal", "Seals eat fish. They swim.", page["url"]),
        Passage("", "Found on the web."),
    ]


def test_folders_of_tables_are_corpora_as_wikiextractor_writes_them(tmp_path):
    (tmp_path / "AA").mkdir()
    (tmp_path / "AA" / "wiki_00").write_text(json.dumps({"title": "Seal", "text": "Seals eat fish."}) + "\n")
    (tmp_path / "more.jsonl").write_text(json.dumps({"title": "Bear", "text": "Bears eat seals."}) + "\n")
    assert read_passages([tmp_path]) == [Passage("Seal", "Seals eat fish."), Passage("Bear", "Bears eat seals.")]
    before = corpus_fingerprint([tmp_path])
    (tmp_path / "AA" / "wiki_00").write_text(json.dumps({"title": "Seal", "text": "Seals swim."}) + "\n")
    assert corpus_fingerprint([tmp_path]) != before


def test_real_corpora(shared):
    found = read_passages([shared / "corpus" / "nq-open-oracle.jsonl.gz", shared / "corpus" / "factbook.tar.gz"])
    assert sum(one.title == "Deadpool 2" for one in found) >= 1
    assert all(len(one.body.split()) <= 120 and "<br>" not in one.body for one in found)
    assert len(found) > 30_000


def test_instructions_and_corpora_as_spreadsheets_save_them(tmp_path, monkeypatch):
    monkeypatch.setenv("SAILKIT_CACHE", str(tmp_path / "cache"))
    asked, corpus = tmp_path / "asked.tsv", tmp_path / "corpus.CSV.gz"
    asked.write_text("id\tinstruction\n7\tWhere do polar bears hunt?\n", "utf-16")
    corpus.write_bytes(gzip.compress("title;text\nBears;Polar bears hunt seals.\n".encode("utf-8-sig")))
    search(instructions=str(asked), out=tmp_path / "run", corpus=[corpus])
    (row,) = read_searched(tmp_path / "run")
    assert row.instruction == Instruction("7", "Where do polar bears hunt?")
    assert [(one.title, one.body) for one in row.results] == [("Bears", "Polar bears hunt seals.")]


def test_claims_with_their_evidence_are_a_corpus(tmp_path):
    file = tmp_path / "claims.jsonl"
    rows = [
        {"claim": "a", "evidence": [{"title": "T", "text": "one"}, {"text": "two"}]},
        {"claim": "b", "evidence": [{"title": "T", "text": "one"}]},
        {"claim": "c", "text": "a document that has evidence", "evidence": [{"text": "three"}]},
        {"text": "a claim in sailkit's form", "label": "REFUTES", "evidence": [{"title": "F", "text": "four"}]},
        {"text": "a document with a label", "label": "geography"},
        {"claim": "d", "evidence": ["six", "seven"]},
        {"text": "a document without passages", "ctxs": []},
        {"question": "e", "ctxs": ["eight"]},
        {"question": "f", "ctxs": []},
        {"text": "a claim without evidence", "label": "NEI", "evidence": []},
        {"title": "T", "text": "a document with a note", "label": 1, "evidence": "see page 3"},
        {"title": "D", "url": "https://a.test", "evidence": "nine", "label": "SUPPORTS"},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [(p.title, p.body) for p in read_passages([file])] == [
        ("T", "one"), ("", "two"), ("", "a document that has evidence"), ("F", "four"),
        ("", "a document with a label"), ("", "six"), ("", "seven"), ("", "a document without passages"), ("", "eight"),
        ("T", "a document with a note"), ("D", "nine"),
    ]  # fmt: skip
