"""A tiny student with random targets; and one of two processes that train it, started by test_distill_trainer."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sailkit.distillation.records import ALIGNED, NONE, Targets
from sailkit.distillation.trainer import DistillTrainer
from sailkit.distributed import Processes, process_group
from sailkit.records import TrainingExample
from sailkit.training import trainer as trl
from sailkit.training.arguments import sft_config
from sailkit.training.recipe import Recipe
from sailkit.training.tokenise import IGNORED, Prepared

TOKENS, PADDED, END = 60, 64, 1
QUICK = {"bf16": False, "eval_strategy": "no", "save_strategy": "no", "max_length": 64, "max_grad_norm": 0.0,
         "learning_rate": 0.5, "optim": "sgd", "lr_scheduler_type": "constant", "logging_steps": 1}  # fmt: skip


def student(seed: int = 0, rows: int = PADDED, tied: bool = False):
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=rows, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                         num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=128, pad_token_id=0,
                         bos_token_id=None, eos_token_id=END, tie_word_embeddings=tied,
                         initializer_range=0.2)  # fmt: skip
    return LlamaForCausalLM(config)


def tokenizer():
    words = {"<pad>": 0, "</s>": END, **{f"w{i}": i for i in range(2, TOKENS)}}
    made = Tokenizer(WordLevel(words, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>")


def rows(count: int, seed: int = 0) -> Prepared:
    """Prompts of some random tokens, completions of some more and the end of text."""
    dice = random.Random(seed)
    examples, ids, labels = [], [], []
    for i in range(count):
        prompt, answer = ([dice.randrange(2, TOKENS) for _ in range(dice.randint(2, n))] for n in (9, 7))
        ids.append((*prompt, *answer, END))
        labels.append((*[IGNORED] * len(prompt), *answer, END))
        examples.append(TrainingExample(f"row {seed}.{i}", "?", "", (), (), "!", "sail-fixed"))
    return Prepared(tuple(examples), tuple(ids), tuple(labels), (), 0, 0)


def aims(prepared: Prepared, seed: int = 0, none: float = 0.25) -> Targets:
    """Up to five random tokens for each position, and no target at some."""
    dice = np.random.default_rng(seed)
    sizes = [sum(one != IGNORED for one in row) for row in prepared.labels]
    kind = np.where(dice.random(sum(sizes)) < none, NONE, ALIGNED)
    counts = np.where(kind == NONE, 0, dice.integers(1, 6, len(kind)))
    mass = [dice.dirichlet(np.ones(count + 1)) for count in counts]
    ids = [dice.permutation(TOKENS)[:count] for count in counts]
    tail = np.array([one[-1] for one in mass], np.float32) * (kind != NONE)
    probs = np.concatenate([one[:-1] for one in mass]).astype(np.float32)
    return Targets(np.cumsum([0, *sizes]), np.cumsum([0, *counts]), np.concatenate(ids), probs, tail, kind)


def trainer(out: Path, train: Prepared, model=None, targets=None, held_out=None, ce_weight=0.3, columns=TOKENS,
            lora=None, processes=trl.ALONE, **training):  # fmt: skip
    args = sft_config(Recipe("m", ("d",), training={**QUICK, **training}), out, held_out=held_out is not None)
    return DistillTrainer(
        model=model or student(), tokenizer=tokenizer(), args=args, train=train, held_out=held_out,
        targets=targets or aims(train), held_out_targets=aims(held_out, 1) if held_out else None,
        ce_weight=ce_weight, columns=columns, lora=lora, processes=processes,
    )  # fmt: skip


def weights(model) -> dict[str, torch.Tensor]:
    return {name: one.detach().clone() for name, one in model.named_parameters()}


def train_and_shard(out: Path, processes: Processes) -> None:
    """Some steps together, then the loss and the gradients of a model in pieces: figures and tensors go to a folder."""
    out.mkdir(exist_ok=True)
    train, aside = rows(11), rows(5, 1)
    cut = {"per_device_train_batch_size": 1, "per_device_eval_batch_size": 2, "num_train_epochs": 1}
    cut["gradient_accumulation_steps"] = 4 // processes.count
    one = trainer(out / "run", train, held_out=aside, processes=processes, **cut)
    one.train()
    kept = {f"trained.{name}": value for name, value in weights(one.model).items()}
    names = "loss", "kl", "cross_entropy", "mean_token_accuracy", "num_tokens", "grad_norm"
    figures = {f"{row['step']} {name}": row[name] for row in one.state.log_history for name in names if name in row}
    figures |= one.evaluate()

    model = student()
    one = trainer(out / "run", train, model=model, held_out=aside, processes=processes, **cut)
    if processes.count > 1:
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model.lm_head)
        fully_shard(model)
    figures |= one.evaluate(metric_key_prefix="sharded")
    mine = range(processes.rank, len(train.ids), processes.count)
    batch = one.data_collator([one.train_dataset[i] for i in mine])
    model.train()
    loss = one.compute_loss(model, batch, num_items_in_batch=torch.tensor(train.supervised))
    loss.backward()
    figures["whole loss"] = sum(processes.gather([loss.item()])) / processes.count
    figures["sharded"] = sum(type(one).__name__ == "DTensor" for one in model.parameters())
    for name, one in model.named_parameters():
        kept[f"grad.{name}"] = getattr(one.grad, "full_tensor", lambda one=one: one.grad)().contiguous()
    if processes.is_main:
        save_file(kept, out / "kept.safetensors")
        (out / "figures.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    with process_group() as everyone:
        train_and_shard(Path(sys.argv[1]), everyone)
