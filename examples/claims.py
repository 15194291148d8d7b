"""Two tasks made from real data, for `sailkit build-task`: claims that only the shown evidence can settle.

    python examples/claims.py SHARED OUT

SHARED holds factcheckgpt/ and corpus/. Writes OUT/factcheck.jsonl and OUT/answers.jsonl; their tasks are the YAML files
in examples/tasks. In both every claim has a twin of nearly the same words and the other label, in one group:

- factcheck: claims that people found false beside their corrections, with the passages that refute the one and so
  support the other; true claims with the passages that support them.
- answers: a question with its answer, or with the answer of another question of the same kind, and the passage that
  holds the right one.
"""

from __future__ import annotations

import gzip
import json
import random
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from sailkit.files import jsonl

Row = dict[str, Any]


def lines(path: Path) -> list[Row]:
    """The rows of a JSON Lines file."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    return [json.loads(line) for line in text.split("\n") if line]


def factcheck(shared: Path) -> list[Row]:
    """Claims with the stance of each passage, and false claims' corrections."""
    stances: defaultdict[str, list[Row]] = defaultdict(list)
    for row in lines(shared / "factcheckgpt" / "subtask3_claim_evidence_stance.jsonl"):
        stances[row["claim"]].append(row)
    rows = []
    for number, told in enumerate(lines(shared / "factcheckgpt" / "subtask4_claim_factuality.jsonl")):
        said = [
            (row["evidence"], "support" if "support" in row["stance"] else row["stance"])
            for row in stances[told["claim"]]
        ]
        group, right = str(number), told["label"] == "true"
        if told["label"] not in ("true", "false"):
            continue
        # What speaks against the label that people settled on is left out.
        kept = [(text, stance) for text, stance in said if stance != ("refute" if right else "support")]
        rows.append(claim(group, "own", told["claim"], right, kept))
        corrected = told["revised_claim"].strip()
        if not right and corrected and corrected != told["claim"].strip():
            turned = [(text, "support" if stance == "refute" else stance) for text, stance in kept]
            rows.append(claim(group, "corrected", corrected, True, turned))
    return rows


def answers(shared: Path, limit: int = 1300, seed: int = 0) -> list[Row]:
    """Questions with the right answer and with one that would do for another question of the same kind."""
    questions = lines(shared / "corpus" / "nq-open-oracle.jsonl.gz")
    chance = random.Random(seed)  # noqa: S311 - a draw, not a secret
    kinds: defaultdict[str, list[Row]] = defaultdict(list)
    for row in questions:
        kinds[" ".join(row["question"].split()[:2])].append(row)
    rows: list[Row] = []
    for number, row in enumerate(questions):
        title, right = row["ctxs"][0]["title"], row["answers"][0]
        text = around(row["ctxs"][0]["text"], right)
        others = [other["answers"][0] for other in kinds[" ".join(row["question"].split()[:2])]]
        wrong = [one for one in others if one.lower() not in text.lower() and one.lower() != right.lower()]
        if right.lower() not in text.lower() or not wrong or len(rows) >= 2 * limit:
            continue
        for name, answer, good in (("right", right, True), ("wrong", chance.choice(wrong), False)):
            said = f"{row['question'].strip().rstrip('?').capitalize()}? {answer}"
            rows.append(claim(str(number), name, said, good, [(text, "support" if good else "refute")], title))
    return rows


def around(text: str, answer: str, words: int = 40) -> str:
    """So many words of a text about the place of an answer; small models read short passages better, and faster."""
    place = text.lower().find(answer.lower())
    if place < 0:
        return text
    before, behind = text[:place].split(), text[place:].split()
    first = max(0, min(len(before) - words // 2, len(before) + len(behind) - words))
    return " ".join([*before, *behind][first : first + words])


def claim(group: str, name: str, text: str, right: bool, passages: list[tuple[str, str]], title: str = "") -> Row:
    """A row of a task."""
    shown = [{"title": title, "text": body, "stance": stance} for body, stance in passages]
    return {
        "id": f"{group}-{name}",
        "group": group,
        "claim": text.strip(),
        "label": "SUPPORTS" if right else "REFUTES",
        "passages": shown,
    }


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    shared, out = map(Path, sys.argv[1:])
    out.mkdir(parents=True, exist_ok=True)
    for made in (factcheck, answers):
        try:
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made(shared))
        except FileNotFoundError as missing:
            print(f"no {missing.filename}: SHARED is the folder that holds factcheckgpt/ and corpus/", file=sys.stderr)
            sys.exit(2)
        # A name that is there is a file that is whole: who goes on looks at the name alone.
        jsonl.write_atomic(out / f"{made.__name__}.jsonl", text)
