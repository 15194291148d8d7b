"""Training for real on a tiny real model: what carries loss, what leaks, what stops, what goes on."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import replace

import pytest
import torch
import transformers
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from sailkit.errors import UserError
from sailkit.training import checkpoints
from sailkit.training.batches import example_ids
from sailkit.training.checkpoints import newest
from sailkit.training.held_out import row_losses
from sailkit.training.recipe import Recipe
from sailkit.training.tokenise import IGNORED, prepare
from training.test_finetune import example

trl = pytest.importorskip("sailkit.training.trainer")
sft_config = pytest.importorskip("sailkit.training.arguments").sft_config
QUICK = {"bf16": False, "eval_strategy": "no", "save_strategy": "no", "learning_rate": 1e-3, "max_length": 512}


@pytest.fixture(scope="module")
def rows(tokenizer):
    return prepare([example(i) for i in range(16)], tokenizer, 512)


def trainer(folder, tokenizer, rows, out, held_out=None, model=None, measure=None, **training):
    recipe = Recipe("stories260k", ("d",), training={**QUICK, **training})
    model = model or AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    args = sft_config(recipe, out, held_out=held_out is not None)
    return trl.Trainer(model=model, tokenizer=tokenizer, args=args, train=rows, held_out=held_out, measure=measure)


def rates(one):
    """The learning rate of each step as a share of its peak."""
    schedule = one.create_scheduler(steps := one.planned_steps(), one.create_optimizer())
    return [schedule.lr_lambdas[0](step) for step in range(steps)]


def batches(one):
    return list(one.get_train_dataloader())


def alone(model, ids, labels):
    """Summed loss of one row by itself, from the whole vocabulary at every place."""
    logits = model(torch.tensor([ids])).logits[0, :-1]
    return functional.cross_entropy(logits, torch.tensor(labels[1:]), ignore_index=IGNORED, reduction="sum")


@pytest.mark.parametrize("decay", [0.25, 4])
def test_the_decay_of_the_learning_rate_is_a_number_or_a_share_of_all_steps(folder, tokenizer, rows, tmp_path, decay):
    kwargs = {"num_decay_steps": decay, "decay_type": "linear"}
    schedule = {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": kwargs, "warmup_steps": 0.125}
    one = trainer(folder, tokenizer, rows, tmp_path, max_steps=16, **schedule)
    assert rates(one) == [0, 0.5, *[1] * 10, 1, 0.75, 0.5, 0.25]
    assert one.args.lr_scheduler_kwargs["num_decay_steps"] == 4


@pytest.mark.parametrize("decay", [17, -1])
def test_a_decay_that_does_not_fit_into_the_run_is_refused(folder, tokenizer, rows, tmp_path, decay):
    schedule = {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": decay}}
    with pytest.raises(UserError, match=f"num_decay_steps {decay} does not fit into 16 steps"):
        trainer(folder, tokenizer, rows, tmp_path, max_steps=16, **schedule)


def test_the_loss_is_that_of_the_completion_and_the_end(folder, tokenizer, rows, tmp_path):
    one = trainer(folder, tokenizer, rows, tmp_path, per_device_train_batch_size=4)
    model = one.model.eval()
    expected = sum(alone(model, ids, labels) for ids, labels in zip(rows.ids, rows.labels, strict=True))
    found = sum(one.compute_loss(model, dict(batch), num_items_in_batch=1) for batch in batches(one))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    supervised = sum(label != IGNORED for labels in rows.labels for label in labels)
    assert sum(int((batch["labels"] != IGNORED).sum()) for batch in batches(one)) == supervised


def test_no_prompt_token_is_predicted(folder, tokenizer, rows, tmp_path):
    """What the loss asks of the logits in front of a prompt token is nothing at all."""
    one = trainer(folder, tokenizer, rows, tmp_path, per_device_train_batch_size=2)
    (batch, *_) = batches(one)
    seen = {}

    def keep(module, inputs, output):
        output.retain_grad()
        seen["hidden"] = output

    handle = one.model.model.norm.register_forward_hook(keep)
    one.compute_loss(one.model, dict(batch)).backward()
    handle.remove()
    moved = seen["hidden"].grad.abs().sum(-1) > 0
    following = functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)
    assert torch.equal(moved, following != IGNORED)
    ends = [int(row.nonzero()[-1]) for row in moved]
    for row, end in zip(batch["input_ids"], ends, strict=True):
        assert row[end + 1] == tokenizer.eos_token_id


def test_packed_rows_do_not_see_each_other(folder, tokenizer, rows, tmp_path):
    one = trainer(folder, tokenizer, rows, tmp_path, packing=True, max_length=512, per_device_train_batch_size=1)
    model = one.model.eval()
    expected = sum(alone(model, ids, labels) for ids, labels in zip(rows.ids, rows.labels, strict=True))
    packed = batches(one)
    assert len(packed) < len(rows.ids)
    found = sum(one.compute_loss(model, dict(batch), num_items_in_batch=1) for batch in packed)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_step_does_not_depend_on_how_its_batch_was_cut_up(folder, tokenizer, rows, tmp_path):
    found = []
    n = len(rows.ids)
    for size, steps in ((n, 1), (1, n), (-(-n // 3), 3), (2, -(-n // 2)), (5, -(-n // 5))):
        one = trainer(
            folder, tokenizer, rows, tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=steps,
            max_steps=1, max_grad_norm=0.0, optim="sgd", learning_rate=1.0, lr_scheduler_type="constant",
        )  # fmt: skip
        before = torch.cat([p.detach().flatten().clone() for p in one.model.parameters()])
        one.train()
        after = torch.cat([p.detach().flatten() for p in one.model.parameters()])
        found.append(before - after)
    assert found[0].abs().max() > 1e-3
    assert max((found[0] - other).abs().max() for other in found[1:]) < 1e-5


def test_rows_grouped_by_length_come_in_the_order_of_seed_and_epoch(folder, tokenizer, rows, tmp_path):
    """Whatever was drawn before: a run that goes on within its second epoch has drawn less."""

    def order(seed, epoch, drawn):
        one = trainer(folder, tokenizer, rows, tmp_path, train_sampling_strategy="group_by_length", seed=seed,
                      per_device_train_batch_size=2, gradient_accumulation_steps=1)  # fmt: skip
        torch.rand(drawn)
        loader = one.get_train_dataloader()
        loader.set_epoch(epoch)
        return [batch["input_ids"].tolist() for batch in loader]

    assert order(1, 1, 0) == order(1, 1, 5)
    assert order(1, 1, 0) != order(1, 0, 0)
    assert order(1, 1, 0) != order(2, 1, 0)


def test_steps_beyond_the_first_epoch_are_on_the_rows_after_the_curriculum(folder, tokenizer, rows, tmp_path):
    one = trainer(folder, tokenizer, replace(rows, curriculum=6), tmp_path, max_steps=7,
                  train_sampling_strategy="sequential", per_device_train_batch_size=4,
                  gradient_accumulation_steps=1)  # fmt: skip
    seen, loss = [], one.compute_loss

    def noted(model, inputs, *more, **named):
        seen.extend(example_ids(inputs, {ids: row.id for row, ids in zip(rows.examples, rows.ids, strict=True)}))
        return loss(model, inputs, *more, **named)

    one.compute_loss = noted
    one.train()
    names = [row.id for row in rows.examples]
    assert (seen[:16], len(seen)) == (names, 28)
    assert set(seen[16:26]) == set(names[6:])
    assert set(seen[26:]) < set(names[6:])


def test_by_default_a_step_is_sixteen_rows_four_at_a_time_in_batches_of_like_rows(folder, tokenizer, rows, tmp_path):
    one = trainer(folder, tokenizer, rows, tmp_path, max_steps=1)
    shapes = []
    loss = one.compute_loss

    def seen(model, inputs, *more, **named):
        shapes.append((tuple(inputs["input_ids"].shape), inputs["attention_mask"].sum(1).tolist()))
        return loss(model, inputs, *more, **named)

    one.compute_loss = seen
    one.train()
    assert len(shapes) == 4
    lengths = [n for _, some in shapes for n in some]
    assert sorted(lengths) == sorted(map(len, rows.ids))
    assert all(shape == (len(some), max(some)) for shape, some in shapes)
    assert max(rows * width for (rows, width), _ in shapes) <= 4 * max(lengths)


@pytest.mark.parametrize(("given", "found"), [({}, (4, 4)), ({"per_device_train_batch_size": 2}, (2, 16)),
                                              ({"gradient_accumulation_steps": 3}, (1, 3))])  # fmt: skip
def test_a_recipe_that_gives_half_of_a_step_means_what_it_meant(given, found, tmp_path):
    args = sft_config(Recipe("m", ("d",), training={"bf16": False, **given}), tmp_path, held_out=False)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == found


def test_a_loss_that_is_no_number_stops_with_the_rows_that_made_it(folder, tokenizer, rows, tmp_path):
    aside = prepare([example(i) for i in (20, 21)], tokenizer, 512)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        model.model.norm.weight[0] = math.nan
    for packing in (False, True):
        one = trainer(folder, tokenizer, rows, tmp_path, model=model, packing=packing, max_steps=1)
        with pytest.raises(UserError, match=r"loss of step 1 is nan, in the batch of \d+(, \d+)*; try"):
            one.train()
    one = trainer(folder, tokenizer, rows, tmp_path, aside, model=model)
    with pytest.raises(UserError, match=r"held-out loss behind step 0 is nan, in the batch of 20, 21; try"):
        one.evaluate()


def test_held_out_loss_is_for_each_token_not_for_each_batch(folder, tokenizer, rows, tmp_path):
    one = trainer(folder, tokenizer, rows, tmp_path, held_out=rows, eval_strategy="epoch", per_device_eval_batch_size=3)
    model = one.model.eval()
    with torch.no_grad():
        total = sum(alone(model, ids, labels).item() for ids, labels in zip(rows.ids, rows.labels, strict=True))
    assert one.evaluate()["eval_loss"] == pytest.approx(total / rows.supervised, rel=1e-5)


@pytest.mark.filterwarnings("ignore:`label_smoothing_factor` is deprecated:FutureWarning")
@pytest.mark.parametrize("training", [{"loss_type": "dft"}, {"label_smoothing_factor": 0.1}])
def test_held_out_loss_is_plain_cross_entropy_whatever_training_lowers(folder, tokenizer, rows, tmp_path, training):
    plain, other = (
        trainer(folder, tokenizer, rows, tmp_path, held_out=rows, **more).evaluate()["eval_loss"]
        for more in ({}, training)
    )
    assert other == pytest.approx(plain, rel=1e-5)


def test_an_evaluation_between_two_lines_of_the_log_takes_no_figure_of_training(folder, tokenizer, rows, tmp_path):
    one = trainer(folder, tokenizer, rows, tmp_path, held_out=rows, eval_strategy="steps", eval_steps=3,
                  logging_steps=2, max_steps=4, per_device_train_batch_size=4,
                  gradient_accumulation_steps=1)  # fmt: skip
    one.train()
    trained, evaluated = ([line for line in one.state.log_history if name in line] for name in ("loss", "eval_loss"))
    assert [line["step"] for line in trained] == [1, 2, 4]
    assert {name for line in evaluated for name in line if not name.startswith("eval_")} == {"epoch", "step"}
    assert all("mean_token_accuracy" in line for line in trained)
    other = trainer(folder, tokenizer, rows, tmp_path / "other", logging_steps=2, max_steps=4,
                    per_device_train_batch_size=4, gradient_accumulation_steps=1)  # fmt: skip
    other.train()
    alone = [line["mean_token_accuracy"] for line in other.state.log_history if "loss" in line]
    assert [line["mean_token_accuracy"] for line in trained] == alone


def test_neither_end_nor_padding_of_the_tokenizer_is_changed(folder, rows, tmp_path):
    bare = AutoTokenizer.from_pretrained(folder)
    bare.pad_token = None
    one = trainer(folder, bare, rows, tmp_path)
    assert (bare.pad_token, bare.eos_token) == (None, AutoTokenizer.from_pretrained(folder).eos_token)
    assert one.compute_loss(one.model, dict(batches(one)[0])).item() > 0


def test_training_lowers_the_loss(folder, tokenizer, rows, tmp_path):
    one = trainer(folder, tokenizer, rows, tmp_path, held_out=rows, num_train_epochs=6, gradient_accumulation_steps=2,
                  eval_strategy="no", learning_rate=3e-3)  # fmt: skip
    before = one.evaluate()["eval_loss"]
    one.train()
    assert one.evaluate()["eval_loss"] < 0.7 * before


def test_a_torn_checkpoint_is_passed_over(tmp_path):
    for step, state in ((10, '{"global_step": 10}'), (20, '{"global_st'), (30, None)):
        place = tmp_path / f"checkpoint-{step}"
        place.mkdir()
        (place / "model.safetensors").touch()
        if state:
            (place / "trainer_state.json").write_text(state)
    assert newest(tmp_path).name == "checkpoint-10"
    assert newest(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("recorded", "found"),
    [
        ("run/checkpoint-10", "{}/checkpoint-10"),  # as seen from another working directory
        ("run/checkpoint-30", None),  # nowhere
        ("{}/checkpoint-20", "{}/checkpoint-20"),  # where it was
        (None, None),
    ],
)
def test_the_best_checkpoint_is_found_beside_the_others(tmp_path, recorded, found):
    recorded, found = (path and path.format(tmp_path) for path in (recorded, found))
    for step in (10, 20):
        (tmp_path / f"checkpoint-{step}").mkdir()
    state = tmp_path / "checkpoint-20" / "trainer_state.json"
    state.write_text(json.dumps({"global_step": 20, "best_model_checkpoint": recorded}))
    checkpoints.find_best_again(tmp_path / "checkpoint-20")
    cleared = {"best_global_step": None, "best_metric": None} if recorded and not found else {}
    assert json.loads(state.read_text()) == {"global_step": 20, "best_model_checkpoint": found, **cleared}


@pytest.mark.parametrize(
    ("training", "evaluated", "saved"),
    [
        ({}, "epoch", "epoch"),
        ({"num_train_epochs": 1}, ("steps", 0.25), ("steps", 0.25)),
        ({"max_steps": 9}, ("steps", 0.25), ("steps", 0.25)),
        ({"eval_steps": 5}, ("steps", 5), ("steps", 5)),
        ({"save_steps": 7}, ("steps", 7), ("steps", 7)),
        ({"eval_strategy": "no"}, "no", "epoch"),
        ({"eval_strategy": "epoch", "save_strategy": "steps", "save_steps": 0.1}, "epoch", ("steps", 0.1)),
    ],
)
def test_a_run_is_saved_before_its_end_whatever_the_recipe_says(tmp_path, training, evaluated, saved):
    for held_out in (True, False):
        made = sft_config(Recipe("m", ("d",), training={"bf16": False, **training}), tmp_path, held_out=held_out)
        found = [
            (how.value, steps) if how == "steps" else how.value
            for how, steps in ((made.eval_strategy, made.eval_steps), (made.save_strategy, made.save_steps))
        ]
        assert found == [evaluated if held_out else "no", saved]
        assert made.load_best_model_at_end == (held_out and evaluated == saved)


def test_patience_needs_evaluations_that_are_saved(tmp_path):
    told = Recipe("m", ("d",), patience=2, training={"bf16": False, "save_strategy": "steps", "eval_strategy": "epoch"})
    with pytest.raises(UserError, match="patience: training is evaluated and saved at the same steps"):
        sft_config(told, tmp_path, held_out=True)


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"learning_rate": -1.0}, "training: Invalid learning rate"),
        ({"weight_decay": -1.0}, "training: Invalid weight_decay"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "training: One of min_lr"),
    ],
)
def test_what_optimizer_and_schedule_would_refuse_is_told_without_a_model(tmp_path, training, said):
    told = Recipe("m", ("d",), training={"bf16": False, **training})
    with pytest.raises(UserError, match=said):
        sft_config(told, tmp_path, held_out=False)


def test_rows_that_make_no_whole_batch_are_not_trained_on_silently(folder, tokenizer, rows, tmp_path):
    with pytest.raises(UserError, match="dataloader_drop_last: 16 rows are no whole batch"):
        trainer(folder, tokenizer, rows, tmp_path, dataloader_drop_last=True, per_device_train_batch_size=17)


def test_a_figure_that_there_is_not_cannot_choose_the_best(folder, tokenizer, rows, tmp_path):
    one = trainer(folder, tokenizer, rows, tmp_path, rows, metric_for_best_model="eval_los")
    with pytest.raises(UserError, match="no figure 'los'; did you mean 'loss'"):
        one.evaluate(metric_key_prefix="base")


@pytest.mark.parametrize(("figure", "greater"), [("loss", False), ("eval_kl", False), ("flagging_mcc", True)])
def test_the_best_is_the_lowest_loss_divergence_or_entropy_and_the_highest_of_all_else(tmp_path, figure, greater):
    told = Recipe("m", ("d",), training={"bf16": False, "metric_for_best_model": figure})
    assert sft_config(told, tmp_path, held_out=True).greater_is_better is greater


@pytest.mark.parametrize(("values", "best"), [([None, 0.5, None], 2), ([None, None, None], None)])
def test_an_evaluation_without_the_figure_that_chooses_is_not_the_best(folder, tokenizer, rows, tmp_path, values, best):
    left = iter(values)  # precision, say, where nothing was flagged
    steps = {
        f"{kind}_{name}": value for kind in ("eval", "save") for name, value in (("strategy", "steps"), ("steps", 1))
    }
    one = trainer(
        folder, tokenizer, rows, tmp_path, rows, measure=lambda _: {"flagging_precision": next(left)},
        metric_for_best_model="flagging_precision", max_steps=3, load_best_model_at_end=True, **steps,
    )  # fmt: skip
    one.train_from(None)
    assert one.state.best_global_step == best
    evaluations = [row for row in one.state.log_history if "eval_loss" in row]
    assert [row.get("eval_flagging_precision") for row in evaluations] == values
    assert newest(tmp_path / checkpoints.CHECKPOINTS).name == "checkpoint-3"  # whole, with or without a best one


def too_much(*_):
    """More than any machine has."""
    torch.empty(2**58)


def test_memory_that_runs_out_in_a_step_is_one_line_with_the_mend(folder, tokenizer, rows, tmp_path):
    one = trainer(folder, tokenizer, rows, tmp_path, max_steps=1)
    one.model.register_forward_hook(too_much)
    why = r"^out of memory while training; set training.per_device_train_batch_size lower .*training.max_length lower"
    with pytest.raises(UserError, match=why):
        one.train_from(None)


def test_memory_that_runs_out_where_the_model_is_moved_is_one_line(folder, tokenizer, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(trl.SFTTrainer, "_move_model_to_device", too_much)
    with pytest.raises(UserError, match=r"^out of memory while moving the model to cpu; set training"):
        trainer(folder, tokenizer, rows, tmp_path)


@pytest.fixture
def two_gpus(monkeypatch):
    """As Transformers counts them on a machine with two, without a launcher."""
    setup = transformers.TrainingArguments._setup_devices.func

    def device(self):
        found = setup(self)
        self._n_gpu = 2
        return found

    counted = functools.cached_property(device)
    counted.__set_name__(transformers.TrainingArguments, "_setup_devices")
    monkeypatch.setattr(transformers.TrainingArguments, "_setup_devices", counted)


def test_of_several_gpus_one_is_used_and_that_is_said_before_weights_are_loaded(
    folder, tokenizer, rows, tmp_path, two_gpus
):
    recipe = Recipe("stories260k", ("d",), training={**QUICK, "max_steps": 1})
    with pytest.warns(RuntimeWarning, match=r"2 GPUs are visible, and one process uses one .*accelerate launch"):
        args = sft_config(recipe, tmp_path, held_out=False)
    assert args.parallel_mode.value == "not_parallel"
    assert args.train_batch_size == args.per_device_train_batch_size == 4
    with pytest.warns(RuntimeWarning, match="2 GPUs"):
        one = trainer(folder, tokenizer, rows, tmp_path, max_steps=1)
    one.train_from(None)
    assert one.state.global_step == 1
    assert not isinstance(one.model_wrapped, torch.nn.DataParallel)


@pytest.mark.parametrize("bf16", [True, False])
def test_held_out_figures_have_the_number_format_of_training(folder, tokenizer, rows, tmp_path, bf16):
    """Before training, during it, after it and row by row; without a learning rate they are all the same."""
    measured = []
    one = trainer(
        folder, tokenizer, rows, tmp_path, rows, bf16=bf16, max_steps=1, learning_rate=0.0, eval_strategy="steps",
        eval_steps=1, per_device_eval_batch_size=1,
    )  # fmt: skip
    one._measure = lambda model: {"format": float(model.lm_head(torch.ones(1, 64)).dtype == torch.bfloat16)}
    measured.append(one.evaluate())
    losses = row_losses(one)
    one.train()
    measured += [
        next(row for row in one.state.log_history if row.get("step") == 1 and "eval_loss" in row),
        one.evaluate(),
    ]
    assert [figures["eval_format"] for figures in measured] == [float(bf16)] * 3
    by_row = sum(row["loss"] for row in losses) / sum(row["tokens"] for row in losses)
    assert [figures["eval_loss"] for figures in measured] == pytest.approx([by_row] * 3, rel=1e-6)
