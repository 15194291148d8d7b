"""The guards of training are guarded: with each fault that a training script has had, one of them must fail."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest

from sailkit.prompts.sail import ExampleRenderer
from sailkit.training import callbacks, checkpoints
from sailkit.training.tokenise import Prepared
from training import test_finetune, test_tokenise, test_trainer
from training.test_finetune import data, folder  # noqa: F401
from training.test_trainer import rows  # noqa: F401

trl = pytest.importorskip("sailkit.training.trainer")
render = ExampleRenderer.render
loss = trl.Trainer.compute_loss
dataset = Prepared.dataset


def masked(change):
    """Rendering with another mask of what is supervised."""

    def changed(self, example, max_length=None):
        found = render(self, example, max_length)
        return replace(found, completion_mask=change(self.tokenizer, found.ids, found.completion_mask))

    return ExampleRenderer, "render", changed


def without_positions(self, model, inputs, *more, **named):
    return loss(self, model, {key: value for key, value in inputs.items() if key != "position_ids"}, *more, **named)


FAULTS = {
    "the prompt is supervised": (
        masked(lambda _, ids, mask: (True,) * len(ids)),
        test_tokenise.test_the_completion_and_the_end_are_supervised_and_nothing_else,
    ),
    "the end is not supervised": (
        masked(lambda _, ids, mask: (*mask[:-1], False)),
        test_tokenise.test_the_completion_and_the_end_are_supervised_and_nothing_else,
    ),
    "the end is masked with the padding": (
        masked(lambda known, ids, mask: tuple(mask[i] and ids[i] != known.pad_token_id for i in range(len(ids)))),
        test_tokenise.test_the_end_is_supervised_where_it_is_the_padding_too,
    ),
    "the trainer supervises the prompt": (
        (Prepared, "dataset", lambda found: dataset(replace(found, labels=found.ids))),
        test_trainer.test_the_loss_is_that_of_the_completion_and_the_end,
    ),
    "packed rows see each other": (
        (trl.Trainer, "compute_loss", without_positions),
        test_trainer.test_packed_rows_do_not_see_each_other,
    ),
    "each batch counts alike": (
        (trl.Trainer, "_for_each_token", lambda self, total, count, items: total / count),
        test_trainer.test_a_step_does_not_depend_on_how_its_batch_was_cut_up,
    ),
    "patience begins anew after a stop": (
        (callbacks.EarlyStopping, "on_train_begin", callbacks.TrainerCallback.on_train_begin),
        test_finetune.test_training_stops_where_the_loss_falls_no_longer_killed_or_not,
    ),
    "a torn checkpoint is taken": (
        (checkpoints, "is_complete", lambda checkpoint: True),
        test_trainer.test_a_torn_checkpoint_is_passed_over,
    ),
    "chance is not restored": (
        (trl.Trainer, "_load_rng_state", lambda self, checkpoint: None),
        test_finetune.test_five_kills_change_nothing,
    ),
}
SLOW = ("each batch counts alike", "chance is not restored", "patience begins anew after a stop")


@pytest.mark.parametrize(
    "fault", [pytest.param(name, marks=pytest.mark.long) if name in SLOW else name for name in FAULTS]
)
def test_a_fault_is_noticed(fault, request, monkeypatch):
    (place, name, faulty), guard = FAULTS[fault]
    given = {key: request.getfixturevalue(key) for key in inspect.signature(guard).parameters}
    monkeypatch.setattr(place, name, faulty)
    with pytest.raises(AssertionError):
        guard(**given)
