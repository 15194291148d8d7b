"""The fine-tuning trainer with the distillation loss."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers.utils import ModelOutput

from sailkit.distillation.loss import LossParts, TargetBatch, TargetTable, causal_lm, distillation_loss, plain_head
from sailkit.distillation.records import IntArray, Targets
from sailkit.errors import UserError
from sailkit.training.loss_weights import check_loss
from sailkit.training.tokenise import IGNORED, Prepared
from sailkit.training.trainer import Trainer

# Takes the inputs, weight and bias of an output layer, and returns a summed loss and its parts.
LossOfHead = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], tuple[torch.Tensor, LossParts]]


@dataclass
class LossOutput(ModelOutput):  # type: ignore[misc]
    """The output of a forward pass with a `loss_of`.

    Attributes:
        loss: Summed over the positions; a scalar.
        parts: Its parts, in the order of `LossParts`.
    """

    loss: torch.Tensor | None = None
    parts: tuple[torch.Tensor, ...] | None = None


class DistillTrainer(Trainer):
    """Trainer whose loss at a position is the divergence from its target.

    TRL collates, packs and shuffles only token ids and labels. So the labels are indices of positions in the target
    table, by which the loss looks up token and target; no position can get the target of another.
    """

    def __init__(
        self,
        *,
        model: Any,
        train: Prepared,
        held_out: Prepared | None,
        targets: Targets,
        held_out_targets: Targets | None,
        ce_weight: float,
        columns: int,
        **more: Any,
    ) -> None:
        """Prepare to train.

        Args:
            model: The student.
            train: Training rows.
            held_out: Rows to evaluate on.
            targets: Targets of `train`, one for each supervised token.
            held_out_targets: Targets of `held_out`.
            ce_weight: Weight of the cross-entropy at positions with a target.
            columns: Size of the student's vocabulary; the rest of its output layer is padding.
            more: See `Trainer`.

        Raises:
            UserError: The model's logits are not those of a plain output layer, or the recipe sets another loss.
            ValueError: Targets do not fit their rows.
        """
        check_loss(vars(more["args"]), "distillation")
        plain_head(model)
        parts = [(targets, *_numbered(train, targets, 0))]
        if held_out is not None:
            assert held_out_targets is not None
            begin = len(parts[0][1])
            parts.append((held_out_targets, *_numbered(held_out, held_out_targets, begin)))
            held_out = replace(held_out, labels=parts[1][2])
        self._table = TargetTable(*((part, labels) for part, labels, _ in parts))
        self._loss_of = functools.partial(distillation_loss, ce_weight=ce_weight, columns=columns)
        super().__init__(model=model, train=replace(train, labels=parts[0][2]), held_out=held_out, **more)
        if self.aux_loss_enabled:
            raise UserError("cannot distill into a mixture of experts that balances its router by a loss of its own")
        _add_loss(causal_lm(self.model))

    def _prepare_inputs(self, inputs: Any) -> Any:
        """Look up the targets of a batch before it moves to a GPU: to find its supervised tokens there is to wait."""
        following = functional.pad(inputs["labels"][:, 1:], (0, 1), value=IGNORED).flatten()
        positions = (following != IGNORED).nonzero()[:, 0]
        targets = vars(self._table.at(following[positions]))
        return super()._prepare_inputs({**inputs, "positions": positions, "targets": targets})

    def _loss(self, model: Any, inputs: Any, return_outputs: bool, items: Any) -> Any:
        if "targets" not in inputs:
            inputs = self._prepare_inputs(inputs)
        added = ("labels", "positions", "targets")
        model_inputs = {name: value for name, value in inputs.items() if name not in added}
        loss_of = functools.partial(self._loss_of, targets=TargetBatch(**inputs["targets"]))
        # The loss is computed within the forward pass of the wrapped model, because DDP, FSDP and DeepSpeed hook into
        # that pass: parameters used outside of it would be neither gathered nor averaged.
        output = model(**model_inputs, use_cache=False, positions=inputs["positions"], loss_of=loss_of)
        count = torch.full((), len(inputs["positions"]), device=inputs["labels"].device)
        self._parts = LossParts(*output.parts)
        sums = {"predicted": count, "correct": self._parts.correct, "targeted": self._parts.targeted}
        sums |= {"kl": self._parts.kl, "cross_entropy": self._parts.cross_entropy}
        self._note(inputs, inputs["labels"][:, 1:], sums)
        loss = self._for_each_token(output.loss, count, items)
        return (loss, output) if return_outputs else loss

    def _held_out_sums(self, model: Any, batch: Any) -> torch.Tensor:
        sums = super()._held_out_sums(model, batch)
        return torch.stack([*sums, self._parts.kl, self._parts.targeted, self._parts.cross_entropy])

    def _held_out_means(self, sums: list[float]) -> dict[str, float]:
        """Mean loss and cross-entropy over supervised tokens, mean divergence over those with a target."""
        total, count, kl, targeted, ce = sums
        return {"loss": total / max(count, 1), "kl": kl / max(targeted, 1), "cross_entropy": ce / max(count, 1)}


def _numbered(prepared: Prepared, targets: Targets, begin: int) -> tuple[IntArray, tuple[tuple[int, ...], ...]]:
    """The supervised tokens of all rows, and rows of labels that index their positions, starting at `begin`."""
    tokens = [[token for token in row if token != IGNORED] for row in prepared.labels]
    if [len(row) for row in tokens] != np.diff(targets.rows).tolist():
        raise ValueError("the targets were not made for these rows")
    numbers: Iterator[int] = iter(range(begin, begin + prepared.supervised))
    rows = tuple(tuple(IGNORED if label == IGNORED else next(numbers) for label in row) for row in prepared.labels)
    return np.concatenate([np.asarray(row, dtype=np.int64) for row in tokens]), rows


def _add_loss(model: Any) -> None:
    """Make a causal language model return a loss at some positions instead of logits if `loss_of` is given.

    The loss is computed within the output layer's own forward pass, where FSDP and DeepSpeed have gathered its matrix.
    """
    head: Any = model.get_output_embeddings()
    if hasattr(head, "modules_to_save"):  # a trained copy next to adapters
        head = head.modules_to_save[head.active_adapter]
    is_linear = isinstance(head, torch.nn.Linear)
    if not is_linear:  # an adapter adds to what its matrix gives
        raise UserError("cannot distill into a model whose output layer is in an adapter; leave it out of lora")
    original, original_head = model.forward, head.forward

    def head_forward(inputs: torch.Tensor, loss_of: LossOfHead | None = None) -> Any:
        return original_head(inputs) if loss_of is None else loss_of(inputs, head.weight, head.bias)

    @functools.wraps(type(model).forward)  # generate() inspects the signature
    def forward(
        self: Any, *args: Any, positions: torch.Tensor | None = None, loss_of: LossOfHead | None = None, **kwargs: Any
    ) -> Any:
        if loss_of is None:
            return original(*args, **kwargs)
        hidden = self.base_model(*args, **kwargs).last_hidden_state.flatten(0, 1).index_select(0, positions)
        loss, parts = self.get_output_embeddings()(hidden.to(head.weight.device), loss_of=loss_of)
        return LossOutput(loss=loss, parts=(parts.kl, parts.cross_entropy, parts.targeted, parts.correct))

    head.forward = head_forward
    model.forward = types.MethodType(forward, model)
