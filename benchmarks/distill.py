"""How `sailkit distill` compares: its loss with dense logits, its methods with each other, and it with TRL's GOLD.

    python benchmarks/distill.py --shared ../shared/data [--only loss,quality,control,gold,end-to-end]

- `loss`: memory and time of the chunked sparse loss against the same loss on whole logits.
- `quality`: a teacher into three students, on sequences and on logits, with the same rows, order and steps: how near
  each comes to the teacher on held-out rows.
- `control`: what the teacher adds: logits against plain fine-tuning of stories260k on the same words, which a person
  wrote (everyday instructions), with the same rows, order, steps and learning rate.
- `gold`: against TRL's GOLD trainer on two byte-level tokenizers, with the same prompts (the teacher reads the student's
  text, as GOLD has it), completions, steps, batch, number format and learning rate.
- `end-to-end`: three epochs, the time of the teacher's cache included, against the teacher online.

Whatever is measured by time or memory runs in a process of its own; times are CPU times, which a busy machine distorts
less, the clock beside them; medians. Finished parts are kept under --out, and the same command goes on from there.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np

from distill_data import CONTEXT, answered, instruction_rows, own_style, qwen_shaped, rows_of, students, tiny_teacher
from distill_worker import GOLD
from sailkit.data.exports import HELD_OUT, TRAIN
from sailkit.files import jsonl
from sailkit.training.tokenise import read_data

SECTIONS = ("loss", "quality", "control", "gold", "end-to-end")
WORKER = Path(__file__).with_name("distill_worker.py")
EPOCHS = 3
RESAMPLES = 10_000
RATES = {"stories260k": 3e-3, "qwen-shaped": 3e-3, "half": 1e-4}
MEASURES = {"agreement": ("agreeing", "aimed"), "KL": ("kl", "aimed"), "cross-entropy": ("cross_entropy", "positions")}


def table(head, rows):
    for cells in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    print()


def ratio(ours, theirs, aim):
    return f"{ours / theirs:.2f}x (aim <= {aim}x)"


def ask(options, what, told, keep=None):
    """The figures of a worker; from a file where they are there already."""
    if keep is not None and keep.exists():
        return jsonl.read_json(keep)
    told = {"threads": options.threads, **told}
    threads = str(options.threads)
    quiet = {"OMP_WAIT_POLICY": "PASSIVE", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    environment = {**os.environ, "OMP_NUM_THREADS": threads, **quiet}
    command = [sys.executable, WORKER, what, json.dumps(told)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-2000:])
    found = json.loads(done.stdout.strip().splitlines()[-1])
    if keep is not None:
        jsonl.write_json(keep, found)
    return found


def loss(options):
    told = {"columns": 151_936, "positions": 1024, "hidden": 896, "k": 64, "ce_weight": 0.1}
    if options.smoke:
        told |= {"columns": 4096, "positions": 256, "hidden": 32}
    text = "{columns:,} columns, {positions:,} positions, hidden {hidden}, k={k}".format(**told)
    print(f"## loss: {text}, forward and backward, medians of {options.rounds}\n")
    rows = []
    for dtype in ("float32", "autocast", "bfloat16"):  # autocast: weights in float32, computing in bfloat16
        found = {"sailkit": [], "dense": []}
        for _ in range(options.rounds):
            for side, each in found.items():  # in turns, so that a busy moment hits both
                each.append(ask(options, "loss", {**told, "side": side, "dtype": dtype}))
        of = {
            side: {name: statistics.median(one[name] for one in each) for name in each[0]}
            for side, each in found.items()
        }
        ours, dense = of["sailkit"], of["dense"]
        rows += [
            [dtype, side, f"{one['peak'] / 1e6:.0f}", f"{one['cpu']:.2f}", f"{one['seconds']:.2f}"]
            for side, one in of.items()
        ]
        aims = {"peak": 0.35, "cpu": 1.25, "seconds": 1.25}
        rows.append([dtype, "ratio", *(ratio(ours[name], dense[name], aim) for name, aim in aims.items())])
        apart = (
            f"{name} {abs(ours[key] / dense[key] - 1):.0e}"
            for name, key in (("loss", "loss"), ("gradient's norm", "slope"))
        )
        rows.append([dtype, f"relative difference: {', '.join(apart)}", "", "", ""])
    table(["dtype", "", "extra peak memory, MB", "CPU time, s", "clock, s"], rows)


def quality(options, place):
    from sailkit.distillation.distill import distill
    from sailkit.distillation.fidelity import fidelity
    from sailkit.distillation.recipe import read_distillation_recipe
    from sailkit.distillation.setup import check_run, set_up
    from sailkit.distillation.steps import align
    from sailkit.distillation.teacher_cache import teacher_cache
    from sailkit.models.base import ModelOptions
    from sailkit.models.local import LocalModel

    style = own_style(options.teacher)
    data, outputs = answered(options, place, style)
    cache = place / "cache"
    teacher_cache(teacher=options.teacher, data=[str(data)], out=cache, style=style)
    n, apart = (len(read_data([str(data)], name)) for name in (TRAIN, HELD_OUT))
    print(
        f"\n## quality: {options.teacher}, asked in {style}; {n} rows, {apart} held out, {options.steps} steps of {options.batch}, {options.seeds} seeds\n"
    )
    steps = options.steps
    for student, told, longest in students(options, place, style):
        if options.students and student not in options.students.split(","):
            continue
        found = {"sequence": [], "logits": [], "base": []}
        for seed in range(options.seeds):
            sets = {
                "max_steps": steps, "seed": seed, "learning_rate": options.learning_rate or RATES[student],
                "max_length": longest, "eval_strategy": "'no'", "save_strategy": "'no'",  # quoted: no is false in YAML
                "gradient_accumulation_steps": options.batch, "bf16": str(options.bf16).lower(),
            }  # fmt: skip
            sets = [f"training.{name}={value}" for name, value in sets.items()]
            for method in ("logits", "sequence"):
                out = place / student / f"{method}-{seed}-{jsonl.fingerprint(sets)[:8]}"
                out.parent.mkdir(exist_ok=True)
                more = {"teacher_outputs": outputs} if method == "sequence" else {}
                same = {**told, "teacher": options.teacher, "data": [str(data)], "teacher_style": style}
                distill(out=out, method=method, cache=cache, set=sets, **same, **more)
                if method == "logits":
                    setup = set_up(read_distillation_recipe(None, {**same, "method": method}, sets), out, cache)
                    targets = align(setup, check_run(setup))
                    rows = [row for _, row in jsonl.read_rows(out / "fidelity.jsonl")]
                    found["logits"].append([row for row in rows if row["model"] == "tuned"])
                    found["base"].append([row for row in rows if row["model"] == "base"])
                    continue
                # The targets of `sequence` are aligned by other data; one yardstick for all: those of `logits`.
                if not (file := out / "fidelity-same-targets.jsonl").exists():
                    model = LocalModel.from_name(str(out / "student" / "model"), ModelOptions(dtype="float32")).model
                    rows = fidelity(model, targets.held_out_rows, targets.held_out.targets, targets.columns)
                    jsonl.write_atomic(file, "".join(jsonl.dumps(row) + "\n" for row in rows))
                found["sequence"].append([row for _, row in jsonl.read_rows(file)])
        print(f"### {student}, learning rate {options.learning_rate or RATES[student]:g}\n")
        table(
            ["", *MEASURES],
            [[way, *(f"{mean(found[way], one):.4f}" for one in MEASURES)] for way in ("base", "sequence", "logits")],
        )
        pairs = [("logits", "sequence"), ("sequence", "base"), ("logits", "base")]
        table(
            ["difference, 95 % interval", *MEASURES],
            [[f"{a} - {b}", *(difference(found[a], found[b], one) for one in MEASURES)] for a, b in pairs],
        )


def sums(runs, measure):
    """Numerators and denominators; shape (2, seeds, rows)."""
    return np.array([[[row[name] for row in run] for run in runs] for name in MEASURES[measure]], dtype=float)


def mean(runs, measure):
    top, below = sums(runs, measure).sum(2)
    return float((top / below).mean())


def difference(ours, theirs, measure):
    """How far two ways are apart, with a bootstrap interval over the held-out rows, which are the same for both."""
    assert [row["id"] for row in ours[0]] == [row["id"] for row in theirs[0]]
    n = len(ours[0])
    weights = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), RESAMPLES)  # how often each row is drawn

    def drawn(runs):
        top, below = sums(runs, measure) @ weights.T
        return (top / np.maximum(below, 1)).mean(0)

    low, high = np.quantile(drawn(ours) - drawn(theirs), [0.025, 0.975])
    return f"{mean(ours, measure) - mean(theirs, measure):+.4f} [{low:+.4f}, {high:+.4f}]"


def contest(options, folder, setup, sides, steps, seeds):
    """The cache's figures, and those of each side's runs; a text in place of them where a peer failed."""
    folder.mkdir(exist_ok=True)
    setup = {**setup, "cache": str(folder / "cache"), "max_length": CONTEXT}
    cached = ask(options, "cache", setup, folder / "cache.json")
    setup |= {"steps": steps, "batch": options.batch, "at_once": options.at_once, "bf16": options.bf16}
    setup |= {"folder": str(folder / "trainer"), "threads": options.threads}
    runs = {side: [] for side in sides}
    for seed in range(seeds):
        for side, each in runs.items():
            if isinstance(each, str):
                continue
            run = {**setup, "seed": seed, "side": side}
            try:
                each.append(ask(options, "train", run, folder / f"run-{jsonl.fingerprint(run)[:16]}.json"))
            except RuntimeError as error:
                if side not in GOLD:
                    raise
                runs[side] = f"failed: {str(error).splitlines()[-1]}"
    return cached, runs


def beside_gold(options, folder, steps, seeds):
    """A contest with GOLD."""
    from sailkit.models.sources import resolve

    setup = {
        "teacher": options.gold_teacher, "teacher_tokenizer": str(resolve(options.gold_teacher).tokenizer_folder),
        "student": str(qwen_shaped(options, folder)), "data": str(rows_of(options, folder)), "style": "sail-fixed",
        "learning_rate": options.learning_rate or RATES["qwen-shaped"],
    }  # fmt: skip
    return contest(options, folder / "gold", setup, ("sailkit", *GOLD), steps, seeds)


def control(options, folder):
    from sailkit.models.sources import resolve

    student, rate = options.shared / "models" / "stories260k", options.learning_rate or RATES["stories260k"]
    data = instruction_rows(options, folder)
    setup = {
        "teacher": options.teacher, "teacher_tokenizer": str(resolve(options.teacher).tokenizer_folder),
        "student": str(student), "data": str(data), "style": own_style(options.teacher), "learning_rate": rate,
    }  # fmt: skip
    sides = {"logits": "sailkit", "plain fine-tuning": "plain"}
    _, runs = contest(options, folder / "control", setup, sides.values(), options.steps, options.seeds)
    _, base = contest(options, folder / "control", setup, ["base"], 0, 1)
    n, held_out = (len(read_data([str(data)], name)) for name in (TRAIN, HELD_OUT))
    print(
        f"\n## control: {options.teacher} into stories260k, {n} rows, {held_out} held out, {options.steps} steps of "
        f"{options.batch}, learning rate {rate:g}, {options.seeds} seeds\n"
    )
    rows = {name: [run["rows"] for run in runs[side]] for name, side in sides.items()}
    table(["", *(f"{measure}, mean (each seed)" for measure in MEASURES)], [
        [name, *(f"{mean(each, m):.4f} ({', '.join(f'{mean([run], m):.4f}' for run in each)})" for m in MEASURES)]
        for name, each in rows.items()
    ])  # fmt: skip
    base_rows = [run["rows"] for run in base["base"]]
    table(["", *MEASURES], [["base", *(f"{mean(base_rows, measure):.4f}" for measure in MEASURES)]])
    differences = [difference(*rows.values(), measure) for measure in MEASURES]
    table(["difference, 95 % interval", *MEASURES], [["logits - plain fine-tuning", *differences]])


def epochs(options, place):
    """Steps of three epochs; the last batch of an epoch may be smaller."""
    n = len(read_data([str(rows_of(options, place))]))
    return EPOCHS * -(-n // options.batch)


def gold(options, place):
    steps = options.steps
    cached, found = beside_gold(options, place, steps, options.seeds)
    how = f"{options.at_once} at once, {'bfloat16 autocast' if options.bf16 else 'float32'}"
    print(
        f"\n## gold: {options.gold_teacher} into the Qwen-shaped student, {steps} steps of {options.batch}, {how}, {options.seeds} seeds\n"
    )
    names = {"cpu_step": (1, ".2f"), "seconds_step": (1, ".2f"), "extra": (1e6, ".0f"), "peak": (1e6, ".0f")}
    ran = {side: each for side, each in found.items() if not isinstance(each, str)}
    of = {side: {name: statistics.median(run[name] for run in each) for name in names} for side, each in ran.items()}
    runs = {side: [run["rows"] for run in each] for side, each in ran.items()}
    rows = []
    for side, each in found.items():
        if side not in ran:
            rows.append([side, each, *[""] * 7])
            continue
        costs = (f"{of[side][name] / unit:{form}}" for name, (unit, form) in names.items())
        rows.append([side, *(f"{mean(runs[side], name):.4f}" for name in MEASURES), *costs, each[0]["same_tokens"]])
    head = ["CPU s a step", "clock s a step", "MB above the models", "MB in all", "rows with sailkit's tokens"]
    table(["", *MEASURES, *head], rows)
    rows = []
    for side in of.keys() & GOLD:
        costs = (("extra", 0.5), ("cpu_step", 1.0), ("seconds_step", 1.0))
        ratios = (ratio(of["sailkit"][name], of[side][name], aim) for name, aim in costs)
        rows.append([side, f"{difference(runs['sailkit'], runs[side], 'agreement')} (aim >= 0)", *ratios])
    table(["sailkit against", "agreement, difference", "memory", "CPU time a step", "clock a step"], sorted(rows))
    print(
        f"sailkit's cache, made once, the teacher's loading included: {cached['cpu']:.1f} s of CPU time, {cached['seconds']:.1f} s by the clock\n"
    )


def end_to_end(options, place):
    steps = epochs(options, place)
    cached, found = beside_gold(options, place, steps, 1)
    print(
        f"\n## end-to-end: {EPOCHS} epochs, {steps} steps of {options.batch}; GOLD without the loading of its models\n"
    )
    run = found["sailkit"][0]
    ours = {name: cached[name] + run[name] for name in ("cpu", "seconds")}
    rows = [["sailkit", *(f"{ours[n]:.1f} (cache {cached[n]:.1f} + training {run[n]:.1f})" for n in ours), "", ""]]
    for side in GOLD:
        if isinstance(each := found[side], str):
            rows.append([side, each, "", "", ""])
            continue
        one = each[0]
        rows.append([side, *(f"{one[n]:.1f}" for n in ours), *(f"{ours[n] / one[n]:.2f}x" for n in ours)])
    table(["", "CPU time, s", "clock, s", "sailkit / it: CPU time", "clock"], rows)


def prepare(options):
    """Choose the teachers; the folder of all that goes back to the same teacher and rows."""
    from sailkit.models.sources import resolve

    teacher = options.teacher or "smollm2-135m"
    files = [options.data / name for name in (TRAIN, HELD_OUT)] if options.data else []
    decides = [resolve(teacher).digests(), jsonl.file_fingerprint(files), options.max_new_tokens, options.smoke]
    place = options.out.resolve() / f"{options.rows}-rows-{jsonl.fingerprint(decides)[:8]}"
    place.mkdir(parents=True, exist_ok=True)
    options.teacher = str(options.shared / "models" / "stories260k") if options.smoke else teacher
    options.gold_teacher = tiny_teacher(place) if options.smoke else teacher
    return place


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="the shared data")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-distill"), help="where finished parts are kept")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, separated by commas")
    parser.add_argument("--teacher", help="smollm2-135m, or any model that evaluate takes")
    parser.add_argument("--data", type=Path, help="a run folder of build, instead of Climate-FEVER's first half")
    parser.add_argument("--students", help="quality: only these of " + ",".join(RATES))
    parser.add_argument("--rows", type=int, default=256, help="most training rows; a quarter more are held out")
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--batch", type=int, default=16, help="rows a step")
    parser.add_argument("--at-once", type=int, default=1, help="control, gold, end-to-end: rows in a pass")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, help="for every student; else " + str(RATES))
    parser.add_argument("--max-new-tokens", type=int, default=96, help="of a teacher's answer")
    parser.add_argument("--rounds", type=int, default=3, help="loss: how often each side is measured")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--float32", action="store_true", help="no bfloat16, also where the machine is fast in it")
    parser.add_argument("--smoke", action="store_true", help="tiny models and few rows, to see that it runs")
    options = parser.parse_args()
    chosen = options.only.split(",")
    if unknown := set(chosen) - set(SECTIONS):
        parser.error(f"no section {unknown.pop()!r}; there are {', '.join(SECTIONS)}")
    if options.smoke:
        options.rows, options.steps, options.batch, options.seeds, options.rounds = 8, 2, 4, 1, 1
    import torch

    from sailkit.models.weights import pick_device, pick_dtype

    torch.set_num_threads(options.threads)
    options.bf16 = not options.float32 and pick_dtype("auto", pick_device("auto")) is torch.bfloat16
    works = {"quality": quality, "control": control, "gold": gold, "end-to-end": end_to_end}
    place = None if chosen == ["loss"] else prepare(options)
    for name in chosen:
        if name == "loss":
            loss(options)
        else:
            works[name](options, place)


if __name__ == "__main__":
    main()
