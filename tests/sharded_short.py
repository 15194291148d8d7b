"""One of two processes that share a model through fully_shard or hold it whole; started by test_distributed.

The second has memory for a single row in the flagging of held-out rows.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, AutoTokenizer

from sailkit.data.exports import read_examples
from sailkit.distributed import Processes, process_group
from sailkit.models.base import ModelOptions
from sailkit.models.local import LocalModel
from sailkit.training.flagging import flagging


def run(how: str, model_folder: Path, data: Path, processes: Processes) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    if how == "sharded":
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
    wrapped = LocalModel("m", model, tokenizer, ModelOptions(batch_tokens=2000), {})

    def run_out(_, inputs):
        if processes.rank == 1 and len(inputs[0]) > 1:
            torch.empty(2**58)

    model.model.layers[1].mlp.register_forward_pre_hook(run_out)
    examples = [*read_examples(data / "train.jsonl"), *read_examples(data / "held_out.jsonl")]
    print(how, flagging(wrapped, examples, 512, processes)["results"])


if __name__ == "__main__":
    with process_group() as everyone:
        run(sys.argv[1], *map(Path, sys.argv[2:]), everyone)
