"""How long `sailkit build` takes for a data set of SAIL's size, and how much memory.

    python benchmarks/build.py --shared ../shared/data

52,000 instructions with seven labelled candidates each (five of one engine, two of BM25): instructions and responses
of Dolly and Alpaca, passages of Natural Questions and Factcheck-GPT, recombined with a seed so that no two rows are
the same. The leak check against Climate-FEVER is on. One core, in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sailkit import runs
from sailkit.data.build import build
from sailkit.files import jsonl
from sailkit.labeling.base import verdict_for
from sailkit.labeling.labels_file import LABELS, labels_row
from sailkit.records import Instruction, Judgement, Searched, SearchResult
from sailkit.retrieval.instructions import read_instructions, searched_row

CANDIDATES = 7


def make(shared: Path, folder: Path, count: int, seed: int = 0) -> None:
    """Write results and labels for so many instructions."""
    chance = random.Random(seed)
    base = read_instructions(shared / "instructions" / "dolpaca_prompt_completion_dev.jsonl")
    passages = [
        (one["title"], one["text"])
        for _, row in jsonl.read_rows(shared / "corpus" / "nq-open-oracle.jsonl.gz")
        for one in row["ctxs"]
    ]
    claims = jsonl.read_rows(shared / "factcheckgpt" / "subtask3_claim_evidence_stance.jsonl")
    passages += [(row["claim"], row["evidence"]) for _, row in claims]
    with (
        runs.open_run(folder / "labels", "label", {"labeler": {"labeler": "random"}, "threshold": 0.5}) as run,
        (folder / "results.jsonl").open("w") as results,
        run.path(LABELS).open("w") as labels,
    ):
        for i in range(count):
            asked, answered = chance.choice(base), chance.choice(base)
            found = tuple(
                SearchResult(body, title, source="dense" if n < 5 else "bm25", rank=n + 1 if n < 5 else n - 4)
                for n, (title, body) in enumerate(chance.sample(passages, CANDIDATES))
            )
            one = Searched(Instruction(str(i), f"{asked.instruction} ({i})", asked.input, answered.output), found)
            scores = [round(chance.random(), 4) for _ in found]
            results.write(jsonl.dumps(searched_row(one)) + "\n")
            labels.write(jsonl.dumps(labels_row(one, [Judgement(s, verdict_for(s, 0.5)) for s in scores])) + "\n")


def measure(shared: Path, folder: Path) -> None:
    """Build, and print seconds, peak memory and the card's counts as JSON."""
    start = time.perf_counter()
    built = build(
        results=folder / "results.jsonl",
        labels=[folder / "labels"],
        out=folder / "built",
        exclude_task=[f"climate-fever={shared / 'climate-fever' / 'climate-fever.jsonl'}"],
    )
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    counts = {name: built.card[name] for name in ("n_in", "n_train", "n_held_out", "n_dropped", "n_removed")}
    print(json.dumps({"seconds": seconds, "peak_gb": peak, **counts, "shares": built.judgement_shares}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="the folder of the shared data")
    parser.add_argument("--smoke", action="store_true", help="1,000 instructions: does it run")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        measure(options.shared, options.child)
        return
    count = 1_000 if options.smoke else 52_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(options.shared, folder, count)
        size = sum(path.stat().st_size for path in (folder / "results.jsonl", folder / "labels" / LABELS))
        command = [sys.executable, __file__, "--shared", options.shared, "--child", folder]
        core = str(min(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else None
        pinned = (
            ["taskset", "-c", core, *command]
            if core and not subprocess.call(["which", "taskset"], stdout=subprocess.DEVNULL)
            else command
        )
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "SAILKIT_PROGRESS": "off"}
        done = subprocess.run(pinned, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout)
    kept = ", ".join(f"{found[name]:,} {name[2:].replace('_', ' ')}" for name in found if name.startswith("n_"))
    print(f"{count:,} instructions with {CANDIDATES} labelled candidates each ({size / 1e6:,.0f} MB), leak check on")
    print(f"{kept}; informative {found['shares']['informative']:.1%}")
    print(f"seconds: {found['seconds']:.1f} (aim: at most 60)")
    print(f"peak memory: {found['peak_gb']:.2f} GB (aim: at most 2)")


if __name__ == "__main__":
    main()
