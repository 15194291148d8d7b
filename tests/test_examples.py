"""The scripts that people run: what they make is what the tasks beside them read."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

import pytest

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
