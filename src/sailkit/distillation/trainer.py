"""Training a student on a teacher's distributions: the machinery of fine-tuning, with the loss of distillation."""

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

from sailkit.distillation.loss import Figures, TargetTable, causal_lm, distillation_loss, plain_head
from sailkit.distillation.records import IntArray, Targets
from sailkit.errors import UserError
from sailkit.training.tokenise import IGNORED, Prepared
from sailkit.training.trainer import Trainer

# From the inputs, matrix and bias of an output layer to a summed loss and its parts.
LossOfHead = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], tuple[torch.Tensor, Figures]]


@dataclass
class LossOutput(ModelOutput):  # type: ignore[misc]
    """What a pass returns that was told of a loss.

    Attributes:
        loss: Summed over the positions; a scalar.
        figures: Its parts.
    """

    loss: torch.Tensor | None = None
    figures: tuple[torch.Tensor, ...] | None = None


class DistillTrainer(Trainer):
    """Trainer whose loss at a position is that of its target.

    TRL collates and packs what it takes for labels: here they are the numbers of positions in the targets, from which
    the token and the target are looked up.
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
            train: What is learned.
            held_out: What is evaluated on.
            targets: The targets of `train`: a position for each supervised token.
            held_out_targets: Those of `held_out`.
            ce_weight: Weight of the cross-entropy at positions with a target.
            columns: Tokens of the student; the rest of its output layer is padding.
            more: See `Trainer`.

        Raises:
            UserError: The model's logits are not those of a plain output layer, or the recipe asks for another loss.
            ValueError: Targets do not fit their rows.
        """
        check_loss(more["args"])
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

    def _loss(self, model: Any, inputs: Any, return_outputs: bool, items: Any) -> Any:
        following = functional.pad(inputs["labels"][:, 1:], (0, 1), value=IGNORED)
        keep = following != IGNORED
        told = {name: value for name, value in inputs.items() if name != "labels"}
        loss_of = functools.partial(self._loss_of, wanted=self._table.at(following[keep]))
        # In one pass through the wrapped model: what averages or shards gradients sees nothing else.
        output = model(**told, use_cache=False, keep=keep, loss_of=loss_of)
        count = keep.sum()
        self._parts = Figures(*output.figures)
        sums = {"predicted": count, "correct": self._parts.right, "aimed": self._parts.aimed}
        sums |= {"kl": self._parts.kl, "cross_entropy": self._parts.cross_entropy}
        self._note(inputs, following, sums)
        if self.model.training:
            self._metrics["train"]["kl"] = [self._sums["kl"] / max(self._sums["aimed"], 1)]
            self._metrics["train"]["cross_entropy"] = [self._sums["cross_entropy"] / max(self._sums["predicted"], 1)]
        loss = self._for_each_token(output.loss, count, items)
        return (loss, output) if return_outputs else loss

    def _held_out_sums(self, model: Any, batch: Any) -> torch.Tensor:
        sums = super()._held_out_sums(model, batch)
        return torch.stack([*sums, self._parts.kl, self._parts.aimed, self._parts.cross_entropy])

    def _held_out_means(self, sums: list[float]) -> dict[str, float]:
        """Loss and cross-entropy for each supervised token, divergence for each that has a target."""
        total, count, kl, aimed, ce = sums
        return {"loss": total / max(count, 1), "kl": kl / max(aimed, 1), "cross_entropy": ce / max(count, 1)}


def check_loss(args: Any) -> None:
    """Refuse settings of a loss that is not that of distillation.

    Args:
        args: See `sailkit.training.arguments.sft_config`.

    Raises:
        UserError: There are such.
    """
    if args.loss_type != "nll" or args.label_smoothing_factor:
        raise UserError("training: loss_type and label_smoothing_factor are not for distillation; leave them out")


def _numbered(prepared: Prepared, targets: Targets, begin: int) -> tuple[IntArray, tuple[tuple[int, ...], ...]]:
    """The supervised tokens of all rows, and rows whose labels are the numbers of their positions."""
    found = [[token for token in row if token != IGNORED] for row in prepared.labels]
    if [len(row) for row in found] != np.diff(targets.rows).tolist():
        raise ValueError("the targets were not made for these rows")
    numbers: Iterator[int] = iter(range(begin, begin + prepared.supervised))
    rows = tuple(tuple(IGNORED if one == IGNORED else next(numbers) for one in row) for row in prepared.labels)
    return np.concatenate([np.asarray(row, dtype=np.int64) for row in found]), rows


def _add_loss(model: Any) -> None:
    """Let a causal language model compute a loss at some positions instead of the logits at all; else it is as it was.

    The loss is computed within the output layer's own pass, where its matrix is whole even if it is sharded.
    """
    head: Any = model.get_output_embeddings()
    if hasattr(head, "modules_to_save"):  # a copy that is trained beside adapters
        head = head.modules_to_save[head.active_adapter]
    plain = isinstance(head, torch.nn.Linear)
    if not plain:  # its matrix is not what the adapter makes of it
        raise UserError("cannot distill into a model whose output layer is in an adapter; leave it out of lora")
    whole, layer = model.forward, head.forward

    def head_forward(inputs: torch.Tensor, loss_of: LossOfHead | None = None) -> Any:
        return layer(inputs) if loss_of is None else loss_of(inputs, head.weight, head.bias)

    @functools.wraps(type(model).forward)  # generate() reads the parameters
    def forward(
        self: Any, *args: Any, keep: torch.Tensor | None = None, loss_of: LossOfHead | None = None, **kwargs: Any
    ) -> Any:
        if loss_of is None:
            return whole(*args, **kwargs)
        hidden = self.base_model(*args, **kwargs).last_hidden_state
        loss, parts = self.get_output_embeddings()(hidden[keep].to(head.weight.device), loss_of=loss_of)
        return LossOutput(loss=loss, figures=(parts.kl, parts.cross_entropy, parts.aimed, parts.right))

    head.forward = head_forward
    model.forward = types.MethodType(forward, model)
