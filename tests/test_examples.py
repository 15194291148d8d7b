"""The scripts that people run: what they make is what the tasks beside them read."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

import pytest

from sailkit.files import jsonl
from sailkit.tasks.task import load_task

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture(scope="module")
def claims(shared, tmp_path_factory):
    out = tmp_path_factory.mktemp("claims")
    subprocess.run([sys.executable, EXAMPLES / "claims.py", shared, out], check=True)
    return {
        name: load_task(EXAMPLES / "tasks" / f"{name}.yaml").load(out / f"{name}.jsonl").examples
        for name in ("factcheck", "answers")
    }


@pytest.mark.parametrize("name", ["factcheck", "answers"])
def test_evidence_speaks_for_no_label_but_the_claims_own(claims, name):
    for one in claims[name]:
        assert {stance for stance in one.stances if stance} <= {one.label}


def test_every_answer_has_a_twin_with_the_same_passage_and_the_other_label(claims):
    groups = defaultdict(list)
    for one in claims["answers"]:
        groups[one.group].append(one)
    assert len(groups) > 1000
    for first, second in groups.values():
        assert {first.label, second.label} == {"SUPPORTS", "REFUTES"}
        assert first.evidence == second.evidence
        right = first if first.label == "SUPPORTS" else second
        said = right.text.split("? ", 1)[1].lower()
        assert said in " ".join(first.evidence[0].body.lower().split()) or len(said.split()) > 20


def test_corrections_stand_in_one_group_with_what_they_correct(claims):
    groups = defaultdict(set)
    for one in claims["factcheck"]:
        groups[one.group].add(one.label)
    assert sum(labels == {"SUPPORTS", "REFUTES"} for labels in groups.values()) > 100


def test_a_folder_without_the_data_is_told_in_one_line(tmp_path):
    call = [sys.executable, EXAMPLES / "claims.py", tmp_path, tmp_path / "out"]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "factcheckgpt" in done.stderr
    assert not list((tmp_path / "out").iterdir())


# Rows in the forms that https://fever.ai and https://github.com/allenai/scifact publish.
HAM = "Ham_-LRB-village-RRB-"
BELL = "Bell -LRB- born 1978 -RRB- , a `` stunt double '' , does n't live inland ."
FEVER_CLAIMS = [
    {"id": 3, "label": "SUPPORTS", "claim": "Zoë Bell lives by the sea.", "evidence": [[[1, 2, "Zoe\u0308_Bell", 2]]]},
    {
        "id": 5,
        "label": "REFUTES",
        "claim": "Ham is a city.",
        "evidence": [[[1, 2, "A", 0], [1, 3, "B", 0]], [[2, 4, HAM, 0], [2, 5, HAM, 1]]],
    },
    {"id": 6, "label": "REFUTES", "claim": "A is older than B.", "evidence": [[[1, 2, "A", 0], [1, 3, "B", 0]]]},
    {"id": 7, "label": "NOT ENOUGH INFO", "claim": "Ham has a lake.", "evidence": [[[8, None, None, None]]]},
    {"id": 8, "label": "SUPPORTS", "claim": "Nowhere is a page.", "evidence": [[[9, 2, "Nowhere", 0]]]},
    {"id": 9, "label": "SUPPORTS", "claim": "Ham is small.", "evidence": [[[9, 2, HAM, 1], [9, 3, HAM, 2]]]},
]
FEVER_PAGES = [
    {"id": "", "text": "", "lines": ""},
    {"id": "Zo\u00eb_Bell", "text": "", "lines": f"0\tShe dives .\tdive\tDiving\n1\t\n2\t{BELL}\tstunt\tStunt"},
    {"id": HAM, "text": "", "lines": "0\tHam is a village .\n1\tIt 's small .\n2\t"},
]
SCIFACT_CLAIMS = [
    {"id": 1, "claim": "Tea cures colds.", "evidence": {"40": [{"sentences": [2, 1], "label": "CONTRADICT"}]}},
    {"id": 2, "claim": "Tea is hot.", "evidence": {}},
    {
        "id": 4,
        "claim": "Tea helps.",
        "evidence": {"40": [{"sentences": [0], "label": "SUPPORT"}], "41": [{"sentences": [0], "label": "CONTRADICT"}]},
    },
]
SCIFACT_ABSTRACTS = [
    {"doc_id": 40, "title": "Tea", "abstract": ["We gave tea. ", "Colds lasted.", "Nobody was cured."]},
    {"doc_id": 41, "title": "Rest", "abstract": ["No help."]},
]


def published(folder, *arguments):
    call = [sys.executable, EXAMPLES / "published_claims.py", *arguments]
    return subprocess.run(call, cwd=folder, capture_output=True, text=True, check=False)


def test_published_fever_is_read_as_the_task_with_the_same_name(tmp_path):
    (tmp_path / "wiki-pages").mkdir()
    jsonl.write_rows(tmp_path / "claims.jsonl", FEVER_CLAIMS)
    jsonl.write_rows(tmp_path / "wiki-pages" / "wiki-001.jsonl", FEVER_PAGES)
    done = published(tmp_path, "fever", "claims.jsonl", "wiki-pages", "fever.jsonl")
    assert done.returncode == 0, done.stderr
    bell, ham = load_task("fever").load(tmp_path / "fever.jsonl").examples
    assert (bell.id, bell.label, bell.stances) == ("fever-3", "SUPPORTS", ("SUPPORTS",))
    assert bell.evidence[0].body == 'Bell (born 1978), a "stunt double", doesn\'t live inland.'
    assert (ham.evidence[0].title, ham.evidence[0].body) == ("Ham (village)", "Ham is a village. It's small.")
    assert (ham.label, ham.stances) == ("REFUTES", ("REFUTES",))
    assert "left out, settled by several pages only: 1" in done.stdout
    assert "left out, without SUPPORTS or REFUTES: 1" in done.stdout
    assert "left out, whose page or sentence is not there: 2" in done.stdout


def test_published_scifact_is_read_as_the_task_with_the_same_name(tmp_path):
    jsonl.write_rows(tmp_path / "claims.jsonl", SCIFACT_CLAIMS)
    jsonl.write_rows(tmp_path / "corpus.jsonl", SCIFACT_ABSTRACTS)
    done = published(tmp_path, "scifact", "claims.jsonl", "corpus.jsonl", "scifact.jsonl")
    assert done.returncode == 0, done.stderr
    (tea,) = load_task("scifact").load(tmp_path / "scifact.jsonl").examples
    assert (tea.label, tea.evidence[0].title, tea.evidence[0].body) == (
        "REFUTES",
        "Tea",
        "Colds lasted. Nobody was cured.",
    )
    assert "left out, abstracts that disagree: 1" in done.stdout


def test_as_many_published_claims_of_each_label_as_wanted(tmp_path):
    claims = [{**SCIFACT_CLAIMS[0], "id": number, "claim": f"Claim {number}."} for number in range(9)]
    jsonl.write_rows(tmp_path / "claims.jsonl", claims)
    jsonl.write_rows(tmp_path / "corpus.jsonl", SCIFACT_ABSTRACTS)
    assert published(tmp_path, "scifact", "claims.jsonl", "corpus.jsonl", "out.jsonl", "--each", "4").returncode == 0
    assert len([*jsonl.read_rows(tmp_path / "out.jsonl")]) == 4


def test_files_in_another_form_than_the_published_are_refused_in_one_line(tmp_path):
    jsonl.write_rows(tmp_path / "claims.jsonl", SCIFACT_CLAIMS)
    for evidence in ("claims.jsonl", "nothing.jsonl"):
        done = published(tmp_path, "scifact", "claims.jsonl", evidence, "out.jsonl")
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert evidence in done.stderr
        assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.sh")), ids=lambda path: path.name)
def test_a_script_says_how_it_is_called(script):
    done = subprocess.run(["bash", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"examples/{script.name}" in done.stderr


@pytest.mark.long
def test_the_picture_of_an_aligned_sentence_is_what_the_tokenizers_say(shared, tmp_path):
    subprocess.run([sys.executable, EXAMPLES / "aligned.py", shared, tmp_path / "aligned.svg"], check=True)
    kept = EXAMPLES.parent / "docs" / "aligned.svg"
    assert (tmp_path / "aligned.svg").read_text("utf-8") == kept.read_text("utf-8")
    ElementTree.parse(kept)
