"""What all tests share: real data where it is, quiet progress, modest property tests."""

from __future__ import annotations

import json
import os
import random
import re
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("sailkit", deadline=None, max_examples=50, derandomize=bool(os.environ.get("CI")))
settings.load_profile("sailkit")
os.environ["SAILKIT_PROGRESS"] = "off"  # before any test, and for the processes that tests start
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs, and their children, start deaf to it


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data sets and recordings, which are never part of this repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("SAILKIT_SHARED_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"needs the shared data, and {folder} is absent; set SAILKIT_SHARED_DATA")
    return folder


@dataclass(frozen=True)
class Recordings:
    """Two recorded models as files, and what a person reads in them.

    Attributes:
        llama: The first file.
        sail: The second file.
        task: The task to name, or None where it shows from the labels.
        yes: The label for a claim that holds.
        no: The label for one that does not.
    """

    llama: Path
    sail: Path
    task: str | None
    yes: str
    no: str

    def columns(self, path: Path) -> tuple[list[str], list[str], list[str], list[str]]:
        """By item: human label, reference label, recorded label, and what the answer says."""
        words = {"correct": self.yes, "wrong": self.no, "incorrect": self.no, "pravda": self.yes}
        words |= {"klam": self.no, "nepravda": self.no, self.yes: self.yes, self.no: self.no}
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        said = [re.search(r"\b(in)?correct\b|\bwrong\b|\b(ne)?pravda\b|\bklam\b", r["output"].lower()) for r in rows]
        return (
            [words[r["label"]] for r in rows],
            [words[r["reference_recorded"]] for r in rows],
            [words[r["prediction_recorded"]] for r in rows],
            [words[match.group()] if match else "unreadable" for match in said],
        )


@pytest.fixture(params=["as recorded", "renamed"])
def recordings(request: pytest.FixtureRequest, shared: Path, tmp_path: Path) -> Recordings:
    """The recorded models as they are, and with other names for everything and the rows in another order."""
    llama, sail = (shared / "recorded" / f"climate-fever.{name}.jsonl" for name in ("llama2-7b-chat", "sail-7b"))
    if request.param == "as recorded":
        return Recordings(llama, sail, None, "SUPPORTS", "REFUTES")
    # The label that was first comes second, and no word is one that the package knows.
    (tmp_path / "own.yaml").write_text(
        "name: own\n"
        "data: {fields: {id: id, text: text, label: label}}\n"
        "labels: {lie: {answer: Klam, also: [nepravda]}, truth: {answer: Pravda}}\n"
        "protocols: {direct: {wordings: {plain: '{text} {answers}'}}}\n"
    )
    words = {"incorrect": "nepravda", "correct": "pravda", "wrong": "klam", "SUPPORTS": "truth", "REFUTES": "lie"}
    paths = []
    for number, path in enumerate((llama, sail)):
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        for row in rows:
            row["id"] = f"item/{int(row['id']) * 7}"
            for name in ("label", "output", "reference_output", "reference_recorded", "prediction_recorded"):
                for old, new in words.items():
                    row[name] = re.sub(rf"\b{old}\b", new, row[name], flags=re.IGNORECASE)
        random.Random(number).shuffle(rows)
        paths.append(tmp_path / path.name)
        paths[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Recordings(*paths, task=str(tmp_path / "own.yaml"), yes="truth", no="lie")
