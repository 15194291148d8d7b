"""Runs inside lm-evaluation-harness's own environment: times `simple_evaluate` on a generated task.

Reads a JSON job from standard input and writes one JSON object to standard output.
"""

import json
import sys
import time
from pathlib import Path

import torch
import yaml
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager


def main():
    job = json.load(sys.stdin)
    torch.set_num_threads(job["threads"])
    folder = Path(job["folder"])
    task = {
        "task": "sailkit_bench",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "items.jsonl")}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": job["choices"],
        "doc_to_target": "gold",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "sailkit_bench.yaml").write_text(yaml.safe_dump(task))
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    model = HFLM(pretrained=job["model"], dtype=job["dtype"], batch_size=job["batch_size"], device="cpu")
    seconds = []
    for _ in range(job["rounds"] + 1):  # the first warms up
        start = time.perf_counter()
        found = simple_evaluate(
            model, tasks=["sailkit_bench"], task_manager=manager, log_samples=True, bootstrap_iters=0
        )
        seconds.append(time.perf_counter() - start)
    samples = sorted(found["samples"]["sailkit_bench"], key=lambda s: s["doc_id"])
    logprobs = [[float(r[0][0]) for r in s["resps"]] for s in samples]
    print("RESULT" + json.dumps({"seconds": seconds[1:], "logprobs": logprobs}))


main()
