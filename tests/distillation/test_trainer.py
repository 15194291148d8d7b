"""Distillation through the real trainer on a tiny student: what carries loss, and what must not change a step."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from sailkit.errors import UserError
from sailkit.training.tokenise import IGNORED

pytest.importorskip("trl")
from peft import LoraConfig
from transformers import LlamaForCausalLM

from distillation.test_loss import plainly
from distilled import END, PADDED, TOKENS, aims, rows, student, train_and_shard, trainer, weights
from sailkit.distillation.records import Targets
from sailkit.distributed import Processes
from training.test_distributed import HERE, finished, free_port

TRAIN = rows(8)
ASIDE = rows(5, 1)


def batches(one):
    return list(one.get_train_dataloader())


def alone(model, prepared, targets: Targets, ce_weight: float):
    """Summed loss of each row by itself, from whole logits and the targets as they were given."""
    from sailkit.distillation.loss import TargetBatch

    total = 0.0
    for row, (ids, labels) in enumerate(zip(prepared.ids, prepared.labels, strict=True)):
        hidden = model.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        number = int(targets.rows[row])
        for place, label in enumerate(labels):
            if label == IGNORED:
                continue
            entries = slice(targets.starts[number], targets.starts[number + 1])
            aim = TargetBatch(
                torch.tensor([label]), torch.tensor(targets.ids[entries])[None],
                torch.tensor(targets.probs[entries])[None], torch.tensor(targets.tail[[number]]),
                torch.tensor(targets.kind[[number]] != 0),
            )  # fmt: skip
            total = total + plainly(hidden[[place - 1]], model.lm_head.weight, None, aim, ce_weight, TOKENS)
            number += 1
    return total


def step(tmp_path, train=TRAIN, **more):
    """How one optimizer step over all rows moves the weights."""
    model = more.pop("model", None) or student()
    before = weights(model)
    one = trainer(tmp_path, train, model=model, max_steps=1, **more)
    one.train()
    return {name: value - before[name] for name, value in weights(model).items()}, one


def assert_same_step(one, other, within=1e-5):
    assert max(value.abs().max() for value in other.values()) > 1e-3
    assert one.keys() == other.keys()
    assert max((one[name] - other[name]).abs().max() for name in other) < within


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A step over all rows at once."""
    return step(tmp_path_factory.mktemp("whole"), per_device_train_batch_size=8, gradient_accumulation_steps=1)


def test_the_loss_is_that_of_each_token_in_its_row(tmp_path):
    one = trainer(tmp_path, TRAIN, per_device_train_batch_size=3)
    model = one.model.eval()
    expected = alone(model, TRAIN, aims(TRAIN), 0.3).item()
    found = sum(one.compute_loss(model, dict(batch), num_items_in_batch=1).item() for batch in batches(one))
    assert found == pytest.approx(expected, rel=1e-5)


def test_prompts_carry_no_gradient_and_the_end_does(tmp_path):
    one = trainer(tmp_path, TRAIN, per_device_train_batch_size=4)
    (batch, *_) = batches(one)
    seen = {}

    def keep(module, inputs, output):
        output.retain_grad()
        seen["hidden"] = output

    one.model.model.norm.register_forward_hook(keep)
    one.compute_loss(one.model, dict(batch)).backward()
    moved = seen["hidden"].grad.abs().sum(-1) > 0
    following = functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)
    assert torch.equal(moved, following != IGNORED)
    for ids, row in zip(batch["input_ids"], moved, strict=True):
        assert ids[int(row.nonzero()[-1]) + 1] == END


def test_a_step_does_not_depend_on_how_its_batch_was_cut_up(whole, tmp_path):
    cut, _ = step(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert_same_step(cut, whole[0])


def test_a_step_does_not_depend_on_the_order_of_rows(whole, tmp_path):
    order = [5, 2, 7, 0, 1, 6, 4, 3]
    turned = replace(TRAIN, **{name: tuple(getattr(TRAIN, name)[i] for i in order) for name in
                               ("examples", "ids", "labels")})  # fmt: skip
    old = aims(TRAIN)
    places = np.concatenate([np.arange(old.rows[i], old.rows[i + 1]) for i in order])
    entries = np.concatenate([np.arange(old.starts[i], old.starts[i + 1]) for i in places])
    new = Targets(np.cumsum([0, *np.diff(old.rows)[order]]), np.cumsum([0, *np.diff(old.starts)[places]]),
                  old.ids[entries], old.probs[entries], old.tail[places], old.kind[places])  # fmt: skip
    found, _ = step(tmp_path, turned, targets=new, per_device_train_batch_size=8, gradient_accumulation_steps=1)
    assert_same_step(found, whole[0])


def test_a_step_over_packed_rows_is_that_over_rows(whole, tmp_path):
    packed, one = step(tmp_path, packing=True, per_device_train_batch_size=1, gradient_accumulation_steps=8)
    assert len(one.train_dataset) < len(TRAIN.ids)
    assert_same_step(packed, whole[0])


def test_padding_on_the_right_means_nothing(tmp_path):
    """Each row alone has none; together the shorter ones have."""
    one = trainer(tmp_path, TRAIN, per_device_train_batch_size=8)
    model = one.model.eval()
    (batch,) = batches(one)
    assert (batch["attention_mask"] == 0).any()
    longer = {"input_ids": 0, "labels": IGNORED, "attention_mask": 0}
    longer = {name: functional.pad(batch[name], (0, 9), value=value) for name, value in longer.items()}
    found = [one.compute_loss(model, dict(given), num_items_in_batch=1) for given in (batch, longer)]
    assert found[1].item() == pytest.approx(found[0].item(), rel=1e-5)


def test_padding_of_the_vocabulary_means_nothing(whole, tmp_path):
    exact = student(rows=TOKENS)
    padded = student()
    kept = {name: value[:TOKENS] if len(value) == PADDED else value for name, value in padded.state_dict().items()}
    exact.load_state_dict(kept)
    found, _ = step(tmp_path, model=exact, per_device_train_batch_size=8, gradient_accumulation_steps=1)
    assert_same_step(found, {name: value[:TOKENS] if len(value) == PADDED else value for name, value in
                             whole[0].items()})  # fmt: skip
    assert not whole[0]["lm_head.weight"][TOKENS:].any()


def test_tied_weights_are_trained_from_both_ends(tmp_path):
    model = student(tied=True)
    one = trainer(tmp_path, TRAIN, model=model, per_device_train_batch_size=8)
    (batch,) = batches(one)
    one.compute_loss(model, dict(batch), num_items_in_batch=1).backward()
    found = model.lm_head.weight.grad.clone()
    model.zero_grad()
    alone(model, TRAIN, aims(TRAIN), 0.3).backward()
    assert (found - model.lm_head.weight.grad).abs().max() < 1e-4
    assert found[:TOKENS].any(1).all()


def test_held_out_figures_are_for_each_token(tmp_path):
    one = trainer(tmp_path, TRAIN, held_out=ASIDE, per_device_eval_batch_size=2)
    model = one.model.eval()
    targets = aims(ASIDE, 1)
    with torch.no_grad():
        loss, bare, twice = (alone(model, ASIDE, targets, weight).item() for weight in (0.3, 0.0, 1.0))
        unaimed = alone(model, ASIDE, replace(targets, kind=targets.kind * 0), 0.0).item()
    aimed = int((targets.kind != 0).sum())
    assert 0 < aimed < ASIDE.supervised
    found = one.evaluate()
    assert found["eval_loss"] == pytest.approx(loss / ASIDE.supervised, rel=1e-5)
    assert found["eval_cross_entropy"] == pytest.approx(unaimed / ASIDE.supervised, rel=1e-5)
    without = unaimed - (twice - bare)  # cross-entropy where there is no target
    assert found["eval_kl"] == pytest.approx((bare - without) / aimed, rel=1e-4)


def test_what_is_logged(whole):
    (row, *_) = whole[1].state.log_history
    model = student()
    loss, bare = (alone(model, TRAIN, aims(TRAIN), weight).item() for weight in (0.3, 0.0))
    assert row["loss"] == pytest.approx(loss / TRAIN.supervised, rel=1e-4)
    aimed, count = int((aims(TRAIN).kind != 0).sum()), TRAIN.supervised
    ce = row["cross_entropy"] * count
    assert row["kl"] * aimed + ce - (loss - bare) / 0.3 == pytest.approx(bare, rel=1e-4)
    assert row["num_tokens"] == TRAIN.tokens
    assert row["tokens_per_second"] > 0
    logits = [model(torch.tensor([ids])).logits[0, :-1, :TOKENS].argmax(-1) for ids in TRAIN.ids]
    right = sum((found == torch.tensor(labels[1:])).sum() for found, labels in zip(logits, TRAIN.labels, strict=True))
    assert row["mean_token_accuracy"] == pytest.approx(right.item() / count)


def test_each_line_of_the_log_is_about_its_own_steps(tmp_path):
    one = trainer(tmp_path, TRAIN, targets=aims(TRAIN, none=0), max_steps=4, gradient_accumulation_steps=4)
    one.train()
    lines = [row for row in one.state.log_history if "kl" in row]
    assert len(lines) > 2
    for row in lines:
        assert row["kl"] + 0.3 * row["cross_entropy"] == pytest.approx(row["loss"], rel=1e-4)


def test_the_student_becomes_its_teacher(tmp_path):
    """Targets from another model, all tokens listed: the divergence falls to almost nothing, and generation works."""
    teacher, model = student(5).eval(), student()
    train = rows(4)
    probs = []
    with torch.no_grad():
        for ids, labels in zip(train.ids, train.labels, strict=True):
            found = teacher(torch.tensor([ids])).logits[0, :-1, :TOKENS].softmax(-1)
            probs.append(found[torch.tensor(labels[1:]) != IGNORED])
    flat = torch.cat(probs).numpy()
    n = len(flat)
    sizes = [len(one) for one in probs]
    targets = Targets(np.cumsum([0, *sizes]), np.arange(0, (n + 1) * TOKENS, TOKENS), np.tile(np.arange(TOKENS), n),
                      flat.flatten(), np.zeros(n, np.float32), np.ones(n, np.int64))  # fmt: skip
    one = trainer(tmp_path, train, model=model, targets=targets, ce_weight=0.0, per_device_train_batch_size=4,
                  gradient_accumulation_steps=1, max_steps=60, optim="adamw_torch", learning_rate=0.02)  # fmt: skip
    one.train()
    lines = [row["kl"] for row in one.state.log_history if "kl" in row]
    assert lines[-1] < 0.05 * lines[0]
    start = list(train.ids[0][: train.labels[0].count(IGNORED)])
    words = model.eval().generate(torch.tensor([start]), max_new_tokens=3, do_sample=False)
    assert words.shape[1] > len(start)


def test_adapters_are_trained_and_saved(tmp_path):
    model = student()
    before = weights(model)
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    one = trainer(tmp_path, TRAIN, model=model, lora=lora, max_steps=4, learning_rate=2.0)
    one.train()
    losses = [row["loss"] for row in one.state.log_history if "loss" in row]
    assert losses[-1] < losses[0]
    after = weights(model)
    assert all(torch.equal(after[name.replace("_proj.", "_proj.base_layer.")], value) for name, value in before.items())
    one.model.save_pretrained(tmp_path / "model")
    saved = load_file(tmp_path / "model" / "adapter_model.safetensors")
    assert {name.rsplit(".", 2)[1] for name in saved} == {"lora_A", "lora_B"}
    assert all(value.any() for name, value in saved.items() if "lora_B" in name)


def test_a_run_goes_on_from_its_checkpoint(tmp_path):
    steps = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": 2}
    one = trainer(tmp_path / "whole", TRAIN, **steps)
    one.train_from(None)
    model = LlamaForCausalLM.from_pretrained(tmp_path / "whole" / "checkpoints" / "checkpoint-2", dtype=torch.float32)
    again = trainer(tmp_path / "again", TRAIN, model=model, **steps)
    again.train_from(tmp_path / "whole" / "checkpoints" / "checkpoint-2")
    assert all(torch.equal(value, weights(again.model)[name]) for name, value in weights(one.model).items())


def test_a_loss_that_is_no_number_stops_with_the_rows_that_made_it(tmp_path):
    model = student()
    one = trainer(tmp_path, TRAIN, model=model, max_steps=1, per_device_train_batch_size=2)
    with torch.no_grad():
        model.model.norm.weight[0] = math.nan
    with pytest.raises(UserError, match=r"loss of step 1 is nan, in the batch of row 0\.\d(, row 0\.\d)*; try"):
        one.train()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"lora": LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "lm_head"])}, "does not fit the model"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
        ({"loss_type": "dft"}, "loss_type"),
    ],
)
def test_what_does_not_go_with_distillation_is_refused(setting, said, tmp_path):
    with pytest.raises(UserError, match=said):
        trainer(tmp_path, TRAIN, **setting)


def test_targets_of_other_rows_are_refused(tmp_path):
    with pytest.raises(ValueError, match="not made for these rows"):
        trainer(tmp_path, TRAIN, targets=aims(rows(8, 3)))


def test_an_output_layer_that_is_trained_whole_beside_adapters(tmp_path):
    model = student()
    old = model.lm_head
    before = old.weight.detach().clone()
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])
    one = trainer(tmp_path, TRAIN, model=model, lora=lora, max_steps=1)
    one.train()
    assert torch.equal(old.weight, before)
    assert not torch.equal(model.lm_head.modules_to_save["default"].weight, before)


def test_an_output_layer_that_shares_a_trained_token_is_refused(tmp_path):
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], trainable_token_indices=[5])
    with pytest.raises(UserError, match="output layer is in an adapter; leave it out of lora"):
        trainer(tmp_path, TRAIN, model=student(tied=True), lora=lora)


def test_the_whole_logits_are_still_there(tmp_path):
    ids = torch.tensor([TRAIN.ids[0]])
    model = student().eval()
    before = model(ids).logits
    one = trainer(tmp_path, TRAIN, model=model)
    assert torch.equal(one.model.eval()(ids).logits, before)
    assert torch.allclose(one.model(ids, logits_to_keep=1).logits, before[:, -1:], atol=1e-5)


@pytest.mark.long
def test_two_processes_train_and_share_what_one_has_alone(tmp_path):
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    done, said = finished(*launcher, "--master-port", str(free_port()), HERE / "distilled.py", tmp_path / "two")
    assert done == 0, said
    train_and_shard(tmp_path / "one", Processes())
    one, two = (json.loads((tmp_path / name / "figures.json").read_text()) for name in ("one", "two"))
    assert one.pop("sharded") == 0
    assert two.pop("sharded") > 20
    assert {"1 kl", "3 loss", "eval_kl", "eval_cross_entropy", "sharded_loss", "whole loss"} <= one.keys()
    assert two == pytest.approx(one, abs=1e-4)
    kept = [load_file(tmp_path / name / "kept.safetensors") for name in ("one", "two")]
    assert kept[0].keys() == kept[1].keys()
    assert max(value.abs().max() for name, value in kept[0].items() if name.startswith("grad")) > 1e-2
    assert max((kept[0][name] - kept[1][name]).abs().max() for name in kept[0]) < 1e-5
