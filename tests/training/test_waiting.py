"""A GPU is not waited for within a step: values are read, and tokens are looked for, only where the log asks."""

from __future__ import annotations

import collections
import contextlib
import math

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from distilled import rows as distilled_rows
from distilled import trainer as distilling_trainer
from sailkit.errors import UserError
from sailkit.training.loss_weights import LossWeights
from sailkit.training.recipe import Recipe
from sailkit.training.tokenise import prepare
from small_rows import example

trl = pytest.importorskip("sailkit.training.trainer")
token_loss = pytest.importorskip("sailkit.training.token_loss")
sft_config = pytest.importorskip("sailkit.training.arguments").sft_config
QUICK = {"bf16": False, "eval_strategy": "no", "save_strategy": "no", "max_length": 512, "learning_rate": 1e-3}
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "tolist", "numpy", "cpu")


class Operations(TorchDispatchMode):
    """Counts the operations that wait for a GPU, if the tensors are there: those whose result the CPU has to know."""

    def __init__(self, counts):
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        self.counts[name] += by_mask or name in WAITS
        return func(*args, **(kwargs or {}))


class Methods(TorchFunctionMode):
    """The same for methods of tensors that are no operations on a CPU."""

    def __init__(self, counts):
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.counts[func.__name__] += func.__name__ in WAITS
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def waits():
    counts = collections.Counter()
    with Operations(counts), Methods(counts):
        yield counts


def waits_of(trainer, batch):
    """Of a forward and backward pass, without what the model itself does."""
    model = trainer.model.train()
    batch = trainer._prepare_inputs(batch)
    with waits() as alone, torch.no_grad():
        inputs = {name: value for name, value in batch.items() if name in ("input_ids", "attention_mask")}
        model(**inputs, use_cache=False, logits_to_keep=1)
    with waits() as all_of_it:
        trainer.compute_loss(model, batch, num_items_in_batch=torch.tensor(7)).backward()
    return all_of_it - alone


@pytest.fixture(scope="module")
def rows(tokenizer):
    return prepare([example(i) for i in range(16)], tokenizer, 512)


def trainer(folder, tokenizer, rows, out, loss_weights=None, **training):
    args = sft_config(Recipe("m", ("d",), training={**QUICK, **training}), out, held_out=False)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return trl.Trainer(
        model=model, tokenizer=tokenizer, args=args, train=rows, held_out=None, loss_weights=loss_weights
    )


def as_on_a_gpu(monkeypatch):
    """The loss that a GPU takes."""
    monkeypatch.setattr(token_loss, "_from_supervised_logits", token_loss._from_fused_layer)


@pytest.mark.parametrize("weights", [None, LossWeights(verification=1.0, answer=3.0)])
def test_the_loss_of_a_gpu_is_that_of_a_cpu_and_reads_nothing(folder, tokenizer, rows, tmp_path, monkeypatch, weights):
    one = trainer(folder, tokenizer, rows, tmp_path, weights)
    (batch, *_) = one.get_train_dataloader()
    expected = one.compute_loss(one.model.train(), dict(batch))
    figures = one._batches.figures(0)
    one._batches.sums.clear()
    as_on_a_gpu(monkeypatch)
    one._most_unread = 9
    assert not waits_of(one, dict(batch))
    one._batches.read(one.accelerator.gather)
    one._batches.sums.clear()
    found = one.compute_loss(one.model, dict(batch))
    one.read_batches()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert figures.items() <= one._batches.figures(0).items()
    assert one._batches.figures(0)["entropy"] > 0


def test_a_batch_of_distillation_reads_nothing(tmp_path):
    one = distilling_trainer(tmp_path, distilled_rows(8), per_device_train_batch_size=4)
    one._most_unread = 9
    (batch, *_) = one.get_train_dataloader()
    assert not waits_of(one, dict(batch))
    assert len(one._batches) == 1


def test_reading_each_batch_is_noticed(tmp_path):
    one = distilling_trainer(tmp_path, distilled_rows(8), per_device_train_batch_size=4)
    one._most_unread = 1
    (batch, *_) = one.get_train_dataloader()
    assert waits_of(one, dict(batch))


def test_the_log_is_the_same_whenever_batches_are_read(folder, tokenizer, rows, tmp_path):
    logs = []
    for most in (1, 64):
        one = trainer(
            folder, tokenizer, rows, tmp_path, max_steps=4, logging_steps=2, per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
        )  # fmt: skip
        one._most_unread = most
        one.train()
        assert not len(one._batches)
        assert one.speed() > 0
        times = ("tokens_per_second", "train_runtime", "train_samples_per_second", "train_steps_per_second")
        logs.append([{k: v for k, v in row.items() if k not in times} for row in one.state.log_history])
    assert logs[0] == logs[1]
    assert [row["num_tokens"] for row in logs[0] if "loss" in row] == sorted(
        row["num_tokens"] for row in logs[0] if "loss" in row
    )


def test_a_loss_that_is_no_number_is_noticed_before_it_is_saved(folder, tokenizer, rows, tmp_path):
    """However late it is read, the message names its step and its rows."""
    one = trainer(
        folder, tokenizer, rows, tmp_path, max_steps=8, logging_steps=8, logging_first_step=False, save_steps=3,
        save_strategy="steps", per_device_train_batch_size=2, gradient_accumulation_steps=1,
    )  # fmt: skip
    one._most_unread = 64
    loss = one._loss

    def broken(model, inputs, *more):
        value = loss(model, inputs, *more)
        return value * math.nan if one.state.global_step == 1 else value

    one._loss = broken
    with pytest.raises(UserError, match=r"loss of step 2 is nan, in the batch of \d+, \d+; try"):
        one.train()
    assert one.state.global_step == 3
    assert not list(tmp_path.rglob("checkpoint-3"))


def test_batches_stay_on_the_cpu_until_their_turn(folder, tokenizer, rows, tmp_path):
    one = trainer(folder, tokenizer, rows, tmp_path)
    assert one.get_train_dataloader().device is None
