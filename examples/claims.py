"""Two tasks built from real data, for `sailkit build-task`: claims that only the shown evidence can decide.

    python examples/claims.py SHARED OUT

SHARED holds factcheckgpt/ and corpus/. Writes OUT/factcheck.jsonl and OUT/answers.jsonl; their tasks are the YAML files
in examples/tasks. In both, claims are grouped with a similarly worded claim that has the other label:

- factcheck: false claims and their corrections, with the passages that refute the claim and so support the correction;
  true claims with the passages that support them.
- answers: a question with its answer, or with the answer of a similar question, and the passage that holds the right
  one.
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
    for number, row in enumerate(lines(shared / "factcheckgpt" / "subtask4_claim_factuality.jsonl")):
        passages = [
            (row["evidence"], "support" if "support" in row["stance"] else row["stance"])
            for row in stances[row["claim"]]
        ]
        group, right = str(number), row["label"] == "true"
        if row["label"] not in ("true", "false"):
            continue
        # Passages that contradict the final label are left out.
        kept = [(text, stance) for text, stance in passages if stance != ("refute" if right else "support")]
        rows.append(claim(group, "own", row["claim"], right, kept))
        corrected = row["revised_claim"].strip()
        if not right and corrected and corrected != row["claim"].strip():
            turned = [(text, "support" if stance == "refute" else stance) for text, stance in kept]
            rows.append(claim(group, "corrected", corrected, True, turned))
    return rows


def answers(shared: Path, limit: int = 1300, seed: int = 0) -> list[Row]:
    """Questions with the right answer, and with the answer of a question that starts with the same words."""
    questions = lines(shared / "corpus" / "nq-open-oracle.jsonl.gz")
    rng = random.Random(seed)  # noqa: S311 - not for secrets
    kinds: defaultdict[str, list[Row]] = defaultdict(list)
    for row in questions:
        kinds[" ".join(row["question"].split()[:2])].append(row)
    rows: list[Row] = []
    for number, row in enumerate(questions):
        title, right = row["ctxs"][0]["title"], row["answers"][0]
        text = around(row["ctxs"][0]["text"], right)
        others = [similar["answers"][0] for similar in kinds[" ".join(row["question"].split()[:2])]]
        wrong = [other for other in others if other.lower() not in text.lower() and other.lower() != right.lower()]
        if right.lower() not in text.lower() or not wrong or len(rows) >= 2 * limit:
            continue
        for name, answer, good in (("right", right, True), ("wrong", rng.choice(wrong), False)):
            text_of_claim = f"{row['question'].strip().rstrip('?').capitalize()}? {answer}"
            rows.append(claim(str(number), name, text_of_claim, good, [(text, "support" if good else "refute")], title))
    return rows


def around(text: str, answer: str, words: int = 40) -> str:
    """A window of words around an answer; small models read short passages better and faster."""
    position = text.lower().find(answer.lower())
    if position < 0:
        return text
    before, after = text[:position].split(), text[position:].split()
    first = max(0, min(len(before) - words // 2, len(before) + len(after) - words))
    return " ".join([*before, *after][first : first + words])


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
    for build in (factcheck, answers):
        try:
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in build(shared))
        except FileNotFoundError as missing:
            print(f"no {missing.filename}: SHARED is the folder that holds factcheckgpt/ and corpus/", file=sys.stderr)
            sys.exit(2)
        # Written atomically: examples/finetune.sh treats an existing file as complete.
        jsonl.write_atomic(out / f"{build.__name__}.jsonl", text)
