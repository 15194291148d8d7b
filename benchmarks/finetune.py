"""How fast a training step of `sailkit finetune` is: side by side with two others, on the same model and rows.

    python benchmarks/finetune.py --shared ../shared/data
    python benchmarks/finetune.py --data data/climate-fever --data data/factcheck --data data/answers

`smollm2-135m`, all weights, 16 rows a step, the same optimizer and the same number format. The rows are made of Natural
Questions with up to four of their passages, or drawn from what `build` and `build-task` wrote. Of the rest, each side does
what it does by itself:

* sailkit, as a recipe that says nothing of batches: four rows at a time, alike in length within a step; logits at supervised
  tokens alone; activations kept.
* (a) the loop of the project that it succeeds: rows in one form, padded to 512 tokens, the prompt supervised too, two rows at
  a time, activations kept.
* (b) TRL's SFTTrainer on prompt and completion: eight rows at a time in random order, each padded to the longest of them;
  activations computed again in the backward pass, which saves memory and costs time; off CUDA, logits at every token, in
  tiles. The template of the model renders the prompt, and rows longer than the limit are cut.

Each side trains in a process of its own, whose peak memory is its own. Supervised tokens are those of the completions, on
every side; seconds are those of CPU time, which a busy machine distorts less. Medians.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sailkit.data.exports import example_row, read_examples, sail_row, trl_row
from sailkit.records import SearchResult, TrainingExample

SIDES = ("sailkit", "padded to 512", "TRL as it comes")
RESULTS = (0, 1, 2, 3)  # how many search results a row has, and how often, as in SAIL
SHARES = (0.2, 0.1, 0.3, 0.4)
ROWS_A_STEP = 16
PADDED, AT_ONCE = 512, 2


def show(name, value, note=""):
    print(f"{name:<46} {value:>9}  {note}", flush=True)


def make_rows(path, count, style):
    """Questions with their own passage and those of others, in random places."""
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        asked = [json.loads(line) for line, _ in zip(stream, range(count))]
    passages = [SearchResult(one["ctxs"][0]["text"], one["ctxs"][0]["title"]) for one in asked]
    chance = random.Random(0)
    rows = []
    for i, one in enumerate(asked):
        (n,) = chance.choices(RESULTS, SHARES)
        chosen = [i, *chance.sample([k for k in range(count) if k != i], n)][:n]
        chance.shuffle(chosen)
        verdicts = tuple("informative" if k == i else "distracting" for k in chosen)
        results = tuple(passages[k] for k in chosen)
        rows.append(TrainingExample(str(i), one["question"], "", results, verdicts, one["answers"][0], style))
    return rows


def draw_rows(folders, count):
    """Rows of training data at hand, in random order."""
    rows = [row for folder in folders for row in read_examples(folder)]
    return random.Random(0).sample(rows, count)


def common(folder, size, **more):
    """What is the same on all sides."""
    return {
        "per_device_train_batch_size": size, "gradient_accumulation_steps": ROWS_A_STEP // size, "max_steps": more["steps"],
        "learning_rate": 1e-5, "optim": "adamw_torch", "bf16": more["bf16"], "report_to": "none", "save_strategy": "no",
        "seed": 0, "logging_steps": 1, "output_dir": str(folder), "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip


def ours(folder, rows, model, tokenizer, most, settings):
    from sailkit.training import trainer as trl
    from sailkit.training.arguments import sft_config
    from sailkit.training.recipe import Recipe
    from sailkit.training.tokenise import prepare

    told = common(folder, 1, **settings)
    for name in ("output_dir", "use_cpu", "disable_tqdm", "per_device_train_batch_size", "gradient_accumulation_steps"):
        del told[name]  # sailkit's own, as a recipe that says nothing of batches gets them
    recipe = Recipe("m", ("d",), training={**told, "max_length": most})
    args = sft_config(recipe, folder, held_out=False)
    assert args.train_batch_size * args.gradient_accumulation_steps == ROWS_A_STEP
    train = prepare(rows, tokenizer, most)
    return trl.Trainer(model=model, tokenizer=tokenizer, args=args, train=train, held_out=None)


def padded(folder, rows, model, tokenizer, most, settings):
    from transformers import Trainer, TrainingArguments

    texts = ["".join(turn["value"] for turn in sail_row(one)["conversations"]) for one in rows]
    train = []
    for text in texts:
        made = tokenizer(text, truncation=True, max_length=PADDED, padding="max_length", return_tensors="pt")
        ids, mask = made["input_ids"][0], made["attention_mask"][0]
        train.append({"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)})
    args = TrainingArguments(**common(folder, AT_ONCE, **settings))
    return Trainer(model=model, args=args, train_dataset=train)


def plain(folder, rows, model, tokenizer, most, settings):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    data = Dataset.from_list([{name: trl_row(one)[name] for name in ("prompt", "completion")} for one in rows])
    args = SFTConfig(**common(folder, min(8, ROWS_A_STEP), **settings), max_length=most)
    return SFTTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer)


def work(side, folder, settings):
    """Train on one side, in a process of its own; prints seconds and the peak of memory."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback

    from sailkit.models.sources import resolve
    from sailkit.models.weights import pick_dtype
    from sailkit.training.tokenise import prepare

    torch.set_num_threads(settings["threads"])
    rows = read_examples(Path(settings["rows"]))
    source = resolve(settings["model"]).folder
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    most = settings["max_length"]
    settings["bf16"] = pick_dtype("auto", torch.device("cpu")) is torch.bfloat16  # where the machine is faster in it
    make = dict(zip(SIDES, (ours, padded, plain)))[side]
    trainer = make(folder, rows, model, tokenizer, most, settings)
    trainer.remove_callback(PrinterCallback)
    start, begun = time.perf_counter(), time.process_time()
    trainer.train()
    seconds, cpu = time.perf_counter() - start, time.process_time() - begun
    peak = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    ready = prepare(rows, tokenizer, most)
    found = {
        "seconds": seconds,
        "cpu": cpu,
        "peak_gb": peak * 1024 / 1e9,
        "supervised": ready.supervised,
        "tokens": ready.tokens,
        "bf16": settings["bf16"],
    }
    print(json.dumps({**found, "loss": trainer.state.log_history[0]["loss"]}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--shared", type=Path, help="the shared data")
    data.add_argument("--data", action="append", help="a folder of training data; several can be given")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--smoke", action="store_true", help="a tiny model and few rows, to see that it runs")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.smoke and options.data:
        parser.error("--smoke goes with --shared")
    if options.work:
        work(options.work[0], Path(options.work[1]), json.loads(options.work[2]))
        return
    model, style, most, rounds = "smollm2-135m", "chat", 1024, options.rounds
    count = options.rows // ROWS_A_STEP * ROWS_A_STEP  # whole steps
    if options.smoke:
        model, style, most = str(options.shared / "models" / "stories260k"), "sail-fixed", 512
        count, rounds = ROWS_A_STEP, 1
    found = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as place:
        if options.data:
            rows = draw_rows(options.data, count)
        else:
            rows = make_rows(options.shared / "corpus" / "nq-open-oracle.jsonl.gz", count, style)
        file = Path(place) / "rows.jsonl"
        file.write_text("".join(json.dumps(example_row(one)) + "\n" for one in rows))
        settings = {"rows": str(file), "model": model, "max_length": most, "steps": count // ROWS_A_STEP}
        settings |= {"threads": options.threads}
        environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "TRANSFORMERS_VERBOSITY": "error"}
        for _ in range(rounds):
            for side in SIDES:  # one after the other, so that a busy moment hits all of them
                command = [sys.executable, __file__, "--data", "", "--work", side, place, json.dumps(settings)]
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
                if done.returncode:
                    sys.exit(f"{side}: {done.stderr[-2000:]}")
                found[side].append(json.loads(done.stdout.strip().splitlines()[-1]))
    first = found[SIDES[0]][0]
    print(
        f"{model}: {count} rows of {first['tokens'] / count:.0f} tokens in the mean, {ROWS_A_STEP} a step, "
        f"{first['supervised']:,} supervised tokens, "
        f"{'bfloat16 autocast' if first['bf16'] else 'float32'}, AdamW, threads {options.threads}, rounds {rounds}"
    )
    speed, memory = {}, {}
    for side in SIDES:
        cpu, seconds, memory[side] = (
            statistics.median(one[name] for one in found[side]) for name in ("cpu", "seconds", "peak_gb")
        )
        speed[side] = first["supervised"] / cpu
        times = f"{cpu:.1f} s of CPU time, {seconds:.1f} s by the clock"
        show(side, f"{speed[side]:.2f}", f"supervised tokens/s; {times}; peak memory {memory[side]:.2f} GB")
    for other, aim in zip(SIDES[1:], (3, 1)):
        show(f"sailkit / {other}: speed", f"{speed[SIDES[0]] / speed[other]:.2f}x", f"aim >= {aim}x")
        show(f"sailkit / {other}: peak memory", f"{memory[SIDES[0]] / memory[other]:.2f}x", "aim <= 1x")


if __name__ == "__main__":
    main()
