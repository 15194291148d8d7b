"""Estimates of the memory of the distillation loss and of the teacher, against what torch takes."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from peak_memory import PeakMemory
from sailkit.distillation.estimate import plan_distillation
from sailkit.distillation.loss import TargetBatch, distillation_loss
from sailkit.distillation.memory import loss_memory, teacher_memory
from sailkit.distillation.recipe import read_distillation_recipe
from sailkit.distillation.records import TeacherExample
from sailkit.distillation.teacher import LocalTeacher, TopK
from sailkit.models.base import ModelOptions
from sailkit.models.local import LocalModel
from sailkit.models.weights import pick_device, pick_dtype
from sailkit.training.activations import Numerics
from small_rows import example, write


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "autocast"])
def test_the_loss_takes_what_is_estimated(mixed, trained):
    rows, columns, width, k = 300, 20_000, 64, 8
    hidden = torch.randn(rows, width, requires_grad=True)
    weight = torch.randn(columns, width, requires_grad=trained)
    ids = torch.randint(columns, (rows, k))
    targets = TargetBatch(ids[:, 0], ids, torch.full((rows, k), 0.1), torch.full((rows,), 0.2), torch.ones(rows) > 0)
    with PeakMemory() as memory:
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            loss, _ = distillation_loss(hidden, weight, None, targets, ce_weight=0.1, columns=columns)
        loss.backward()
    config = LlamaConfig(vocab_size=columns, hidden_size=width)
    estimate = loss_memory(config, rows, Numerics(gpu=False, autocast=mixed), trained=trained)
    # A product in bfloat16 is converted to float32 within the addition, where the test cannot see it.
    within = 4 * columns * width if mixed and trained else 0
    assert estimate == pytest.approx(memory.peak + within, rel=0.15)


@pytest.mark.parametrize("completion", [4, 150], ids=["states", "logits"])
def test_a_teacher_that_reads_takes_what_is_estimated(shared, completion):
    config = LlamaConfig(vocab_size=20_000, hidden_size=256, intermediate_size=688, num_hidden_layers=3,
                         num_attention_heads=4, max_position_embeddings=512)  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "stories260k")
    options = ModelOptions(dtype="float32", batch_tokens=2048)
    model = LocalModel("wide", LlamaForCausalLM(config).eval(), tokenizer, options, {})
    teacher = LocalTeacher(model, TopK(8, 1.0, "float32"))
    rows = [TeacherExample(str(i), (5,) * (250 - completion), (7,) * completion, "") for i in range(16)]
    (batch, *_) = teacher.plan(rows)
    with PeakMemory() as memory:
        teacher.rows([rows[i] for i in batch])
    weights = sum(weight.nbytes for weight in model.model.parameters())
    estimate = teacher_memory(config, "wide", [250] * 16, completion * 16, stored=4, gpu=False)
    assert estimate["weights"] == weights
    within = 4 * len(batch) * completion * config.vocab_size  # logsumexp's exponentials, which the test cannot see
    assert estimate["total"] == pytest.approx(weights + memory.peak + within, rel=0.15)


def test_a_teacher_that_writes_keeps_keys_and_values(shared):
    config = LlamaConfig()  # of LLaMA-7B
    memory = teacher_memory(config, "m", [1000] * 200, 1, stored=2, gpu=True, new_tokens=500)
    assert memory["keys and values"] == 32_768 * 32 * 2 * 4096 * 2  # a batch has as many tokens on a GPU
    assert "keys and values" not in teacher_memory(config, "m", [1000] * 200, 1, stored=2, gpu=True)


def test_a_dry_run_estimates_the_teacher(shared, tmp_path):
    data, teacher = (
        write(tmp_path, map(example, range(24)), map(example, range(24, 32))),
        shared / "models" / "stories260k",
    )
    flags = {"teacher": str(teacher), "data": [str(data)], "style": "sail"}

    def plan(**changes):
        return plan_distillation(read_distillation_recipe(None, {**flags, **changes}, ["training.bf16=false"]), 1000)

    half = plan(student_layers=2)
    stored = pick_dtype("auto", pick_device("auto")).itemsize
    assert half.teacher_memory["weights"] == pytest.approx(260_032 * stored, rel=0.01)  # all of its five layers
    assert half.training.parameters < 200_000
    # A token read costs one multiplication for each parameter; one trained on, three.
    ratio = 260_032 / (3 * half.training.parameters)
    assert half.teacher_seconds == pytest.approx(half.teacher_tokens / 1000 * ratio, rel=0.01)
    assert half.compile_seconds > 0
    same = plan(model=str(teacher), method="sequence")
    assert same.teacher_memory["keys and values"] > 0
    assert same.teacher_seconds < plan(model=str(teacher)).teacher_seconds  # held-out rows alone
    remote = {"teacher": "endpoint:m@http://localhost:1/v1", "teacher_tokenizer": str(teacher), "model": str(teacher)}
    assert plan(**remote).teacher_memory is None
