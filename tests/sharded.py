"""One of two processes that share a model through torch's fully_shard; started by test_finetune_distributed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, AutoTokenizer

from sailkit.data.exports import read_examples
from sailkit.distributed import Processes, process_group
from sailkit.models.base import ModelOptions
from sailkit.models.local import LocalModel
from sailkit.training import trainer as trl
from sailkit.training.arguments import sft_config
from sailkit.training.flagging import flagging
from sailkit.training.recipe import Recipe
from sailkit.training.tokenise import prepare


def run(model_folder: Path, data: Path, out: Path, processes: Processes) -> None:
    """Evaluate, then one backward pass: the figures and the gradients of the whole go to a folder."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    train, aside = (prepare(read_examples(data / f"{name}.jsonl"), tokenizer, 512) for name in ("train", "held_out"))
    settings = {"bf16": False, "report_to": "none", "per_device_eval_batch_size": 2}
    args = sft_config(Recipe("m", ("d",), training=settings), out / "run", held_out=True)

    def measure(now):
        wrapped = LocalModel("m", now, tokenizer, ModelOptions(batch_tokens=400), {})
        return flagging(wrapped, aside.examples, 512, processes)

    trainer = trl.Trainer(
        model=model, tokenizer=tokenizer, args=args, train=train, held_out=aside, measure=measure, processes=processes
    )
    if processes.count > 1:
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
    figures = trainer.evaluate()
    rows = train.dataset()
    mine = range(processes.rank, len(rows), processes.count)
    batch = trainer.data_collator([rows[i] for i in mine])
    items = torch.tensor(sum(label != -100 for row in train.labels for label in row[1:]))
    model.train()
    loss = trainer.compute_loss(model, batch, num_items_in_batch=items)
    loss.backward()
    figures["loss"] = sum(processes.gather([loss.item()])) / processes.count
    figures["sharded"] = sum(type(one).__name__ == "DTensor" for one in model.parameters())
    grads = {
        name: getattr(one.grad, "full_tensor", lambda one=one: one.grad)().contiguous()
        for name, one in model.named_parameters()
    }
    if processes.is_main:
        out.mkdir(exist_ok=True)
        save_file(grads, out / "grads.safetensors")
        (out / "figures.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    with process_group() as everyone:
        run(*map(Path, sys.argv[1:]), everyone)
