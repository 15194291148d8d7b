"""How fast `sailkit evaluate` is: side by side with its peers, in one run, on the same items.

    python benchmarks/evaluate.py --data climate-fever.jsonl

Every ratio is of medians over rounds, with the same model, dtype, items, labels and threads. lm-evaluation-harness
runs in a virtual environment of its own, which is made on first use.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

import torch

from sailkit.models.base import ModelOptions
from sailkit.models.local import LocalModel
from sailkit.models.sources import resolve
from sailkit.prompts.render import step_prompt
from sailkit.tasks.task import load_task

HERE = Path(__file__).parent
PEER = HERE.parent / ".venv-lm-eval"
PEER_PINS = ["torch==2.13.0", "lm-eval[hf]==0.4.13", "transformers==5.23.0"]
SINGLE = {"SUPPORTS": "Yes", "REFUTES": "No"}
MULTI = {"SUPPORTS": "supported by the evidence", "REFUTES": "contradicted by the evidence"}
OUTPUT_CAP = 5


def timed(work, rounds):
    """Median seconds of a call, after one that warms up, and its last result."""
    result = work()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), result


def ours_scoring(model, prompts, answers):
    model._rendered.cache_clear()
    model.shared_prefix._prefixes.clear()
    found = [None] * len(prompts)
    for batch in model.plan(prompts, 8):
        for i, reply in zip(batch, model.score([prompts[i] for i in batch], answers)):
            found[i] = [reply.answers[word].logprob for word in answers.values()]
    return found


def ours_generating(model, prompts):
    model._rendered.cache_clear()
    model.shared_prefix._prefixes.clear()
    for batch in model.plan(prompts, OUTPUT_CAP):
        model.generate([prompts[i] for i in batch], OUTPUT_CAP, lambda _: False)


@torch.inference_mode()
def generate_loop(model, texts, batch_size):
    """The usual loop: tokenise, `generate`, decode; left-padded where batched."""
    tokenizer = model.tokenizer
    tokenizer.padding_side = "left"
    for start in range(0, len(texts), batch_size):
        batch = tokenizer(texts[start : start + batch_size], return_tensors="pt", padding=True)
        out = model.model.generate(**batch, max_new_tokens=OUTPUT_CAP, do_sample=False)
        tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


@torch.inference_mode()
def bare_forward(model, ids, batch_size):
    """Nothing but the forward pass: tokenised before, sorted by length, last position only."""
    ordered = sorted(ids, key=len)
    for start in range(0, len(ordered), batch_size):
        rows = ordered[start : start + batch_size]
        inputs, keep, _ = model.shared_prefix.left_pad(rows)
        model.model(input_ids=inputs, attention_mask=keep, use_cache=False, logits_to_keep=1)


def peer_scoring(texts, choices, dtype, rounds, threads):
    if not PEER.exists():
        print("making an environment for lm-evaluation-harness", file=sys.stderr)
        venv.create(PEER, with_pip=True)
        for pins in (PEER_PINS[:1], PEER_PINS):
            subprocess.run([PEER / "bin" / "pip", "install", "-q", *pins], check=True)
    best = None
    for batch_size in (16, 64):
        with tempfile.TemporaryDirectory() as folder:
            items = "".join(json.dumps({"prompt": text, "gold": 0}) + "\n" for text in texts)
            (Path(folder) / "items.jsonl").write_text(items)
            job = {
                "folder": folder, "model": str(resolve("smollm2-135m").folder), "dtype": dtype, "threads": threads,
                "choices": choices, "batch_size": batch_size, "rounds": rounds,
            }  # fmt: skip
            quiet = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
            done = subprocess.run(
                [PEER / "bin" / "python", HERE / "lm_eval_worker.py"],
                input=json.dumps(job), capture_output=True, text=True, env=quiet, cwd=folder,
            )  # fmt: skip
        lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
        if not lines:
            sys.exit(done.stderr[-3000:])
        found = json.loads(lines[0].removeprefix("RESULT"))
        found["batch_size"] = batch_size
        if best is None or statistics.median(found["seconds"]) < statistics.median(best["seconds"]):
            best = found
    return best


def show(name, value, note=""):
    print(f"{name:<66} {value:>9}  {note}", flush=True)


def scoring(model, examples, dtype, rounds):
    """Scoring against lm-evaluation-harness and against a bare forward pass."""
    threads = torch.get_num_threads()
    for kind, answers, aim in (("single-token labels", SINGLE, 2), ("multi-token labels", MULTI, 3)):
        template = load_task("climate-fever").question("direct").steps[0]
        prompts = [step_prompt(template, e.text, list(answers.values())) for e in examples]
        texts = ["".join(part.text for part in model.renderer.segments(p)) for p in prompts]
        seconds, found = timed(lambda: ours_scoring(model, prompts, answers), rounds)
        peer = peer_scoring(texts, [f" {a}" for a in answers.values()], dtype, rounds, threads)
        theirs = statistics.median(peer["seconds"])
        apart = max(abs(a - b) for x, y in zip(found, peer["logprobs"], strict=True) for a, b in zip(x, y))
        n = len(examples)
        show(
            f"{dtype}, {kind}: lm-eval / sailkit",
            f"{theirs / seconds:.2f}x",
            f"aim >= {aim}x; {n / seconds:.0f} against {n / theirs:.0f} items/s, its best batch {peer['batch_size']}",
        )
        show(f"{dtype}, {kind}: largest difference of a log-probability", f"{apart:.1e}", "aim <= 1e-4 in float32")
        if kind.startswith("single"):
            ids = [model.renderer.render(p, 8).ids for p in prompts]
            bare = min(timed(lambda size=size: bare_forward(model, ids, size), rounds)[0] for size in (8, 16, 32, 64))
            show(
                f"{dtype}, {kind}: share of a bare forward pass",
                f"{bare / seconds:.2f}",
                f"aim >= 0.9; bare {n / bare:.0f} items/s",
            )


def generating(model, examples, dtype, rounds):
    """Generating against the usual loops."""
    question = load_task("climate-fever").question("direct")
    prompts = [step_prompt(question.steps[0], e.text, list(question.answers.values())) for e in examples]
    texts = ["".join(part.text for part in model.renderer.segments(p)) for p in prompts]
    seconds, _ = timed(lambda: ours_generating(model, prompts), rounds)
    single, _ = timed(lambda: generate_loop(model, texts, 1), 1)
    batched = min(timed(lambda size=size: generate_loop(model, texts, size), rounds)[0] for size in (16, 64))
    n = len(examples)
    show(
        f"{dtype}, generate: one-at-a-time loop / sailkit",
        f"{single / seconds:.1f}x",
        f"aim >= 10x; {n / seconds:.0f} against {n / single:.1f} items/s",
    )
    show(
        f"{dtype}, generate: the same loop batched / sailkit", f"{batched / seconds:.1f}x", f"{n / batched:.0f} items/s"
    )


def rest(folder, smoke):
    """Metrics, rescore, report, --help, memory."""
    import numpy as np

    from sailkit.stats import intervals, metrics

    counts = np.array([[376, 210, 0, 0], [29, 292, 0, 0]])
    seconds, _ = timed(lambda: intervals.resample(intervals.Units.of_counts(counts), 0).estimate(metrics.macro_f1), 5)
    show("interval of macro-F1, n = 907, 10,000 resamples", f"{seconds:.4f} s", "aim <= 0.1 s")
    rows = folder / "rows.jsonl"
    with rows.open("w") as stream:
        for i in range(10_000):
            said, gold = ("Correct", "SUPPORTS") if i % 3 else ("Wrong.", "REFUTES")
            row = {
                "id": str(i),
                "text": f"Claim number {i} on the weather",
                "label": gold,
                "output": f" {said}",
                "prediction_recorded": "correct",
            }
            stream.write(json.dumps(row) + "\n")
    for name, command in (
        ("rescore, 10,000 rows", ["rescore", str(rows)]),
        ("report, 10,000 rows", ["report", str(rows), "--out", str(folder / "report.html")]),
        ("sailkit --help", ["--help"]),
    ):
        run = lambda command=command: subprocess.run(
            [sys.executable, "-m", "sailkit", *command], check=True, capture_output=True
        )
        seconds, _ = timed(run, 2 if smoke else 5)
        show(name, f"{seconds:.2f} s", "aim <= 0.5 s" if "help" in name else "aim <= 2 s")


def memory(data, dtype, items):
    """Peak resident memory of a whole `evaluate`, above the weights."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "sailkit", "evaluate", "--model", "smollm2-135m", "--task", "climate-fever",
                   "--data", str(data), "--out", f"{folder}/run", "--limit", str(items), "--dtype", dtype]  # fmt: skip
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # The kernel's own figure for an ended child includes this process's memory from before the exec.
        peak = 0.0
        while child.poll() is None:
            with contextlib.suppress(OSError, StopIteration, ValueError):
                lines = Path(f"/proc/{child.pid}/status").read_text().splitlines()
                peak = int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**10
            time.sleep(0.02)
        assert child.returncode == 0
    weights = 134_515_008 * (2 if dtype == "bfloat16" else 4) / 2**20
    show(
        f"{dtype}: peak memory of evaluate above the weights",
        f"{peak - weights:.0f} MB",
        f"aim <= 1024 MB; {peak:.0f} MB in all",
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="climate-fever.jsonl")
    parser.add_argument("--items", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--only", nargs="+", default=["scoring", "generating", "memory", "rest"])
    parser.add_argument("--smoke", action="store_true", help="few items, one round: does it run")
    args = parser.parse_args()
    if args.smoke:
        args.items, args.rounds, args.dtype = 8, 1, ["float32"]
    examples = load_task("climate-fever").load(args.data).examples[: args.items]
    print(f"smollm2-135m, {len(examples)} claims, medians of {args.rounds}, {torch.get_num_threads()} threads")
    for dtype in args.dtype:
        model = None
        if {"scoring", "generating"} & set(args.only):
            model = LocalModel.from_name("smollm2-135m", ModelOptions(chat="off", dtype=dtype))
        if "scoring" in args.only:
            scoring(model, examples, dtype, args.rounds)
        if "generating" in args.only:
            generating(model, examples, dtype, args.rounds)
        del model
        if "memory" in args.only:
            memory(args.data, dtype, args.items)
    if "rest" in args.only:
        with tempfile.TemporaryDirectory() as folder:
            rest(Path(folder), args.smoke)


if __name__ == "__main__":
    main()
