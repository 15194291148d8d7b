"""One measurement of `benchmarks/distill.py`, in a process of its own: arguments as JSON in, figures as JSON out."""

from __future__ import annotations

import copy
import ctypes
import gc
import itertools
import json
import shutil
import statistics
import sys
import time
from pathlib import Path

GOLD = {
    "GOLD as it comes": {},
    # The right chain rule, tokens of the same name compared directly, and as much cross-entropy as sailkit adds.
    "GOLD bayesian, hybrid, CE": {
        "uld_token_merge_strategy": "bayesian",
        "uld_use_hybrid_loss": True,
        "uld_crossentropy_weight": 0.1,
    },
}


def memory(name):
    """VmRSS or VmHWM in bytes; unlike ru_maxrss it holds nothing of the process that started this one."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if name in line)


def forget_peak():
    """Give back what is free, and let the peak begin anew; what is resident now."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def loss(told):
    """Memory of one pass forward and backward through an output layer and its loss, and seconds of a second one."""
    import torch
    from torch.nn import functional

    from sailkit.distillation.loss import TargetBatch, distillation_loss

    torch.manual_seed(0)
    torch.set_num_threads(told["threads"])
    columns, k, share = told["columns"], told["k"], told["ce_weight"]
    autocast = told["dtype"] == "autocast"  # as `bf16: true` trains: weights in float32, computing in bfloat16
    dtype = torch.float32 if autocast else getattr(torch, told["dtype"])
    weight = (torch.randn(columns, told["hidden"]) * 0.02).to(dtype).requires_grad_()

    def given(n):
        hidden = torch.randn(n, told["hidden"]).to(weight.dtype).requires_grad_()
        ids = torch.arange(k) * (columns // k) + torch.randint(columns // k, (n, k))  # no token twice
        masses = torch.softmax(3 * torch.randn(n, k + 1), -1)
        has = torch.ones(n, dtype=torch.bool)
        return hidden, TargetBatch(ids[:, 0].clone(), ids, masses[:, :k].clone(), masses[:, k].clone(), has)

    def ours(hidden, wanted):
        found, _ = distillation_loss(hidden, weight, None, wanted, ce_weight=share, columns=columns)
        found.backward()
        return float(found)

    def dense(hidden, wanted):
        log_q = torch.log_softmax((hidden @ weight.T).float(), -1)
        listed = log_q.gather(1, wanted.ids)
        log_tail = torch.log1p(-listed.exp().sum(1).clamp(max=1 - 1e-7))
        terms = torch.xlogy(wanted.probs, wanted.probs) - wanted.probs * listed
        kl = terms.sum() + (torch.xlogy(wanted.tail, wanted.tail) - wanted.tail * log_tail).sum()
        found = kl + share * functional.nll_loss(log_q, wanted.labels, reduction="sum")
        found.backward()
        return float(found)

    side = {"sailkit": ours, "dense": dense}[told["side"]]

    def work(hidden, wanted):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return side(hidden, wanted)

    work(*given(2))
    weight.grad = None
    hidden, wanted = given(told["positions"])
    before = forget_peak()
    work(hidden, wanted)
    peak = memory("VmHWM") - before
    hidden.grad = weight.grad = None
    begun, start = time.process_time(), time.perf_counter()
    found = work(hidden, wanted)
    cpu, seconds = time.process_time() - begun, time.perf_counter() - start
    slope = float(weight.grad.float().norm())
    return {"peak": peak, "cpu": cpu, "seconds": seconds, "loss": found, "slope": slope}


def targets(told):
    """The teacher's word on a folder's rows in the student's tokens: prepared rows and targets of each part."""
    from transformers import AutoTokenizer

    from sailkit.data.exports import HELD_OUT
    from sailkit.distillation.cache import CacheReader
    from sailkit.distillation.targets import TargetCompiler
    from sailkit.training.tokenise import prepare, read_data

    tokenizer = AutoTokenizer.from_pretrained(told["student"])
    theirs = AutoTokenizer.from_pretrained(told["teacher_tokenizer"])
    compiler = TargetCompiler(CacheReader.open(Path(told["cache"])), theirs, tokenizer, 0.1)
    train = prepare(read_data([told["data"]]), tokenizer, told["max_length"])
    aside = prepare(read_data([told["data"]], HELD_OUT), tokenizer, told["max_length"])
    files = [Path(told["cache"]).with_name(f"targets-{name}.safetensors") for name in ("train", "held-out")]
    made = compiler.compile(train, files[0]), compiler.compile(aside, files[1], train)
    return tokenizer, (train, made[0].targets), (aside, made[1].targets)


def cache(told):
    """Ask the teacher once, and say it in the student's tokens; its loading is within the seconds."""
    from sailkit.distillation.teacher_cache import teacher_cache
    from sailkit.models.sources import resolve
    from sailkit.models.weights import load_pretrained  # noqa: F401 - what is imported is not what is measured

    resolve(told["teacher"])  # a GGUF file is unpacked once
    shutil.rmtree(told["cache"], ignore_errors=True)  # of a run that was stopped: half of it would be free
    begun, start = time.process_time(), time.perf_counter()
    teacher_cache(teacher=told["teacher"], data=[told["data"]], out=Path(told["cache"]), style=told["style"])
    targets(told)
    return {"cpu": time.process_time() - begun, "seconds": time.perf_counter() - start}


def train(told):
    """Train the student on one side; time, memory, and how near it comes to the teacher on the held-out rows."""
    import torch
    from transformers import AutoModelForCausalLM, PrinterCallback, TrainerCallback

    from sailkit.distillation.fidelity import fidelity

    torch.set_num_threads(told["threads"])
    tokenizer, ours, (aside, aims) = targets(told)
    columns = len(tokenizer)
    model = AutoModelForCausalLM.from_pretrained(told["student"], dtype=torch.float32)
    if told["side"] == "base":
        return {"rows": fidelity(model.eval(), aside, aims, columns)}
    common = {
        "per_device_train_batch_size": told["at_once"],
        "gradient_accumulation_steps": told["batch"] // told["at_once"],
        "max_steps": told["steps"], "learning_rate": told["learning_rate"], "optim": "adamw_torch",
        "bf16": told["bf16"], "report_to": "none", "save_strategy": "no", "eval_strategy": "no", "seed": told["seed"],
        "logging_steps": 1000, "gradient_checkpointing": False, "max_length": told["max_length"],
    }  # fmt: skip
    make = {"sailkit": _ours, "plain": _plain}.get(told["side"], _gold)
    before, trainer = make(told, model, tokenizer, ours, common)
    times = []

    class Clock(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            times.append((time.process_time(), time.perf_counter()))

        def on_step_end(self, args, state, control, **kwargs):
            times.append((time.process_time(), time.perf_counter()))

    trainer.add_callback(Clock())
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    top = memory("VmHWM")
    steps = [[b - a for a, b in itertools.pairwise(one)] for one in zip(*times)]
    steps = [one[1:] if len(one) > 1 else one for one in steps]  # the first one warms up
    measured = AutoModelForCausalLM.from_config(copy.deepcopy(model.config), dtype=torch.float32)
    measured.load_state_dict(model.state_dict())
    rows = fidelity(measured.eval(), aside, aims, columns)
    cpu, seconds = (times[-1][side] - times[0][side] for side in (0, 1))
    medians = {"cpu_step": statistics.median(steps[0]), "seconds_step": statistics.median(steps[1])}
    figures = {**medians, "cpu": cpu, "seconds": seconds, "extra": top - before, "peak": top, "rows": rows}
    return {**figures, "same_tokens": told.get("same_tokens", "")}


def _ours(told, model, tokenizer, part, common):
    from sailkit.distillation.trainer import DistillTrainer
    from sailkit.training.arguments import sft_config
    from sailkit.training.recipe import Recipe

    before = forget_peak()
    recipe = Recipe("m", ("d",), training=common)
    args = sft_config(recipe, Path(told["folder"]), held_out=False)
    more = {"targets": part[1], "held_out_targets": None, "ce_weight": 0.1, "columns": len(tokenizer)}
    made = DistillTrainer(model=model, tokenizer=tokenizer, args=args, train=part[0], held_out=None, **more)
    return before, made


def _plain(setup, model, tokenizer, part, common):
    """Fine-tuning on the same words, as the control: cross-entropy alone."""
    from sailkit.training import trainer as trl
    from sailkit.training.arguments import sft_config
    from sailkit.training.recipe import Recipe

    before = forget_peak()
    args = sft_config(Recipe("m", ("d",), training=common), Path(setup["folder"]), held_out=False)
    return before, trl.Trainer(model=model, tokenizer=tokenizer, args=args, train=part[0], held_out=None)


def _gold(told, model, tokenizer, part, common):
    import torch
    from datasets import Dataset
    from trl.experimental.gold import GOLDConfig, GOLDTrainer

    from sailkit.data.exports import trl_row
    from sailkit.models.sources import resolve
    from sailkit.models.weights import load_pretrained

    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    teacher, _ = load_pretrained(resolve(told["teacher"]), torch.float32, trust_remote_code=False)
    before = forget_peak()
    data = Dataset.from_list([{n: trl_row(one)[n] for n in ("prompt", "completion")} for one in part[0].examples])
    args = GOLDConfig(
        **common, output_dir=told["folder"], use_cpu=True, disable_tqdm=True, lmbda=0.0, use_uld_loss=True,
        teacher_tokenizer_name_or_path=told["teacher_tokenizer"], **GOLD[told["side"]],
    )  # fmt: skip
    made = GOLDTrainer(model=model, teacher_model=teacher, args=args, train_dataset=data, processing_class=tokenizer)
    pairs = zip(made.train_dataset["input_ids"], part[0].ids, strict=True)
    told["same_tokens"] = f"{sum(list(a) == list(b) for a, b in pairs)} of {len(part[0].ids)}"
    return before, made


if __name__ == "__main__":
    print(json.dumps({"loss": loss, "cache": cache, "train": train}[sys.argv[1]](json.loads(sys.argv[2]))))
