"""Make the recordings that come with the package, with smollm2-135m on sample-facts; a minute on two cores.

    python benchmarks/recordings.py [FOLDER]

FOLDER is src/sailkit/resources/recordings by default. base-own and base-random are runs of `sailkit evaluate` with each
claim's own search results and with those of other claims. keyword-parser.jsonl holds the answers of base-own, labelled
by a parser with a default class: an answer with "not correct" or "incorrect" is REFUTES, all others are SUPPORTS.
"""

from __future__ import annotations

import sys
from pathlib import Path

import sailkit
from sailkit.files import jsonl

RECORDINGS = Path(sailkit.__file__).parent / "resources" / "recordings"
CLAIMS = 104
RUNS = {"base-own": "evidence", "base-random": "random"}


def record(folder: Path) -> None:
    for name, search in RUNS.items():
        sailkit.evaluate(
            model="smollm2-135m", task="sample-facts", search=search, answer="generate", limit=CLAIMS, out=folder / name
        )
        (folder / name / ".lock").unlink(missing_ok=True)
    rows = [row for _, row in jsonl.read_rows(folder / "base-own" / "predictions.jsonl")]
    jsonl.write_rows(folder / "keyword-parser.jsonl", map(labelled, sorted(rows, key=lambda row: row["index"])))


def labelled(row: dict) -> dict:
    words = row["raw_output"].lower()
    prediction = "REFUTES" if "not correct" in words or "incorrect" in words else "SUPPORTS"
    return {
        **{"id": row["id"], "text": row["text"], "label": row["gold"], "output": row["raw_output"]},
        **{"prediction_recorded": prediction, "group": row.get("group", row["id"])},
    }


if __name__ == "__main__":
    record(Path(sys.argv[1]) if len(sys.argv) > 1 else RECORDINGS)
