"""How fast `sailkit search` is beside rank-bm25 on the same questions, and how often it finds the gold passage.

    python benchmarks/search.py --shared ../shared/data

100,000 passages (windows of 60 words, 15 words apart, over the World Factbook, the gold passages of Natural Questions
and Climate-FEVER's evidence) are indexed in one process and searched in another; the questions are Natural Questions'.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sailkit.files import jsonl
from sailkit.retrieval.corpus import read_passages, split_words

NQ = "corpus/nq-open-oracle.jsonl.gz"
FIELDS = ["instruction=question", "output=answers"]
K = 5
WINDOW, OVERLAP = 60, 45


def make_corpus(shared: Path, path: Path, count: int) -> None:
    found: dict[tuple[str, str], None] = {}
    for one in read_passages([shared / "corpus" / "factbook.tar.gz", shared / NQ], 10**9, 0):
        found |= dict.fromkeys((one.title, part) for part in split_words(one.body, WINDOW, OVERLAP))
    for _, row in jsonl.read_rows(shared / "climate-fever" / "climate-fever.jsonl"):
        for one in row["evidences"]:
            found |= dict.fromkeys((one["article"], part) for part in split_words(one["evidence"], WINDOW, OVERLAP))
    passages = list(found)
    step = len(passages) / count  # a smoke run takes a little of everything
    chosen = [passages[int(i * step)] for i in range(count)]
    path.write_text("".join(jsonl.dumps({"title": t, "text": x}) + "\n" for t, x in chosen))


def measure(shared: Path, corpus: Path, questions: int, rounds: int, peer: bool) -> dict[str, float]:
    """Open the index (or build it) and, beside the peer, search it; in a process of its own."""
    started = time.perf_counter()
    import bm25s

    from sailkit.retrieval.instructions import read_instructions
    from sailkit.retrieval.local import LocalSearcher, query

    figures = {"imports": time.perf_counter() - started}
    start = time.perf_counter()
    searcher = LocalSearcher("bm25", [corpus])
    figures["open"] = time.perf_counter() - start
    if peer:
        asked = read_instructions(shared / NQ, FIELDS)
        start = time.perf_counter()
        searcher.search(asked[:1], K)
        figures["first"] = time.perf_counter() - start

        def ours(some):
            start = time.perf_counter()
            found = []
            for i in range(0, len(some), searcher.batch):
                found += searcher.search(some[i : i + searcher.batch], K)
            return time.perf_counter() - start, found

        figures["all"] = len(asked) / statistics.median(ours(asked)[0] for _ in range(rounds))
        figures["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        few = asked[:: len(asked) // questions][:questions]
        repeats = 20  # a single one is over in a few milliseconds
        seconds = statistics.median(ours(few * repeats)[0] for _ in range(rounds)) / repeats
        figures["ours"] = len(few) / seconds

        from rank_bm25 import BM25Okapi

        start = time.perf_counter()
        tokens = bm25s.tokenize(
            [f"{one['title']} {one['text']}" for one in searcher._passages], return_ids=False, show_progress=False
        )
        index = BM25Okapi(tokens)
        figures["their_build"] = time.perf_counter() - start
        words = bm25s.tokenize([query(one) for one in few], return_ids=False, show_progress=False)
        places = range(len(tokens))
        took = []
        for _ in range(rounds):
            start = time.perf_counter()
            theirs = [index.get_top_n(one, places, n=K) for one in words]
            took.append(time.perf_counter() - start)
        figures["theirs"] = len(few) / statistics.median(took)
        same = [
            (searcher._passages[place]["text"] == result.body)
            for found, ranked in zip(ours(few)[1], theirs)
            for result, place in zip(found[0].results[:1], ranked)
        ]
        figures["same_first"] = sum(same) / len(same)
    return figures


def child(environment, *arguments):
    command = [sys.executable, __file__, *map(str, arguments)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"a measuring process failed with {done.returncode}")
    return json.loads(done.stdout)


def recall(shared: Path, folder: Path, count: int | None) -> dict[str, float]:
    """Share of questions whose gold passage, or a window of it, is in the top five of each engine."""
    from sailkit.retrieval.instructions import read_searched
    from sailkit.retrieval.search import search

    rows = [row for _, row in jsonl.read_rows(shared / NQ)][:count]
    corpus = folder / "nq.jsonl"
    corpus.write_text("".join(jsonl.dumps(row) + "\n" for row in rows))
    found = {}
    for engine in ("bm25", "dense", "hybrid"):
        out = folder / engine
        search(instructions=str(corpus), fields=FIELDS, out=out, engine=engine, corpus=[corpus], k=K)
        hits = 0
        for row, one in zip(rows, read_searched(out)):
            gold = row["ctxs"][0]
            text = " ".join(gold["text"].split())
            hits += any(r.title == gold["title"] and (text in r.body or r.body in text) for r in one.results)
        found[engine] = hits / len(rows)
    return found


def show(name, value, note=""):
    print(f"{name:<66} {value:>9}  {note}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="the folder of the shared data")
    parser.add_argument("--smoke", action="store_true", help="2,000 passages, few questions: does it run")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    questions, rounds = (8, 1) if options.smoke else (64, 3)
    if options.child:
        print(json.dumps(measure(options.shared, options.child, questions, rounds, options.peer)))
        return
    if importlib.util.find_spec("rank_bm25") is None:
        sys.exit("the benchmark's peer is missing:  pip install rank-bm25")
    count = 2_000 if options.smoke else 100_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = folder / "passages.jsonl"
        environment = {**os.environ, "SAILKIT_CACHE": str(folder / "cache"), "SAILKIT_PROGRESS": "off"}
        os.environ |= environment
        make_corpus(options.shared, corpus, count)
        base = ["--shared", options.shared, "--child", corpus, *(["--smoke"] if options.smoke else [])]
        built = child(environment, *base)
        found = child(environment, *base, "--peer")
        start = time.perf_counter()
        command = ["search", "--instructions", options.shared / NQ, "--corpus", corpus, "--out", folder / "run"]
        fields = [part for field in FIELDS for part in ("--fields", field)]
        subprocess.run(
            [sys.executable, "-m", "sailkit", *command, *fields], env=environment, stdout=subprocess.DEVNULL, check=True
        )
        whole = time.perf_counter() - start
        hits = recall(options.shared, folder, 100 if options.smoke else None)
    print(f"{count:,} passages, k = {K}, medians of {rounds}")
    show(
        f"rank-bm25 / sailkit, the same {questions} questions",
        f"{found['ours'] / found['theirs']:.0f}x",
        f"aim >= 100x; {found['ours']:,.0f} against {found['theirs']:.1f} queries/s",
    )
    show("the same passage first (rank-bm25 weighs words another way)", f"{found['same_first']:.0%}")
    show("every question, in batches as `sailkit search` asks them", f"{found['all']:,.0f}", "queries/s")
    show("first query of a process (compilation)", f"{found['first']:.1f} s")
    show("index, built once", f"{built['open']:.1f} s", f"rank-bm25, in every process: {found['their_build']:.1f} s")
    show(
        "index, opened in a fresh process",
        f"{found['open']:.2f} s",
        f"aim <= 1 s; with the corpus's fingerprint; imports before that {found['imports']:.1f} s",
    )
    show("peak memory with the index open and searched", f"{found['peak']:.0f} MB")
    show("the whole command on 2,655 questions, index at hand", f"{whole:.1f} s", "with imports and compilation")
    for engine, share in hits.items():
        show(f"recall@{K} of the gold passage, Natural Questions: {engine}", f"{share:.3f}")


if __name__ == "__main__":
    main()
