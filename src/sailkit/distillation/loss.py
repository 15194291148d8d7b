"""How far a student is from its targets: sparse forward KL with a tail, and cross-entropy, chunk by chunk."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.autograd.function import once_differentiable

from sailkit.distillation.records import NONE, IntArray, Targets
from sailkit.errors import UserError

PADDING = -1  # in place of a token id
CHUNK = 128  # positions whose logits exist at the same time
INFINITY = float("inf")


@dataclass(frozen=True)
class TargetBatch:
    """What is wanted of a student at n positions.

    Attributes:
        labels: The token that is there; int64, shape (n,).
        ids: Tokens that the target lists, then `PADDING`; int64, shape (n, k).
        probs: Their probabilities, 0 in padding; float32, shape (n, k).
        tail: Probability of all other tokens together; float32, shape (n,).
        has: Whether there is a target at all; bool, shape (n,).
    """

    labels: torch.Tensor
    ids: torch.Tensor
    probs: torch.Tensor
    tail: torch.Tensor
    has: torch.Tensor

    def part(self, which: slice) -> TargetBatch:
        """Some of the positions."""
        return TargetBatch(self.labels[which], self.ids[which], self.probs[which], self.tail[which], self.has[which])


class TargetTable:
    """The targets of one or more data sets, whose positions are numbered on."""

    def __init__(self, *parts: tuple[Targets, IntArray]) -> None:
        """Hold them as tensors.

        Args:
            parts: Targets, and the student's token at each of their positions.

        Raises:
            ValueError: They are not equally many.
        """
        targets = [part for part, _ in parts]
        for part, labels in parts:
            if not len(labels) == len(part.tail) == len(part.kind) == len(part.starts) - 1:
                raise ValueError(f"{len(labels)} tokens, but targets for {len(part.tail)} positions")
        sizes = [np.diff(part.starts) for part in targets]
        self._starts = torch.from_numpy(np.concatenate([[0], *sizes]).cumsum().astype(np.int64))
        self._ids = torch.from_numpy(np.concatenate([part.ids for part in targets]).astype(np.int32))
        self._probs = torch.from_numpy(np.concatenate([part.probs for part in targets]))  # as compact as they came
        self._tail = torch.from_numpy(np.concatenate([part.tail for part in targets]).astype(np.float32))
        self._has = torch.from_numpy(np.concatenate([part.kind for part in targets]) != NONE)
        self._labels = torch.from_numpy(np.concatenate([labels for _, labels in parts]).astype(np.int64))

    def __len__(self) -> int:
        return len(self._labels)

    def at(self, places: torch.Tensor) -> TargetBatch:
        """What is wanted at some positions, on their device.

        Args:
            places: Numbers of positions; integers, shape (n,).
        """
        device, places = places.device, places.cpu()
        has = self._has[places]
        begin = self._starts[places]
        count = (self._starts[places + 1] - begin) * has
        slots = torch.arange(int(count.max()) if len(places) else 0)
        listed = slots < count[:, None]
        entries = (begin[:, None] + slots)[listed]
        ids = torch.full(listed.shape, PADDING).masked_scatter_(listed, self._ids[entries].long())
        probs = torch.zeros(listed.shape).masked_scatter_(listed, self._probs[entries].float())
        made = self._labels[places], ids, probs, self._tail[places] * has, has
        return TargetBatch(*(one.to(device) for one in made))


@dataclass(frozen=True)
class Figures:
    """Sums over the positions of a batch, without gradients; scalars.

    Attributes:
        kl: Forward KL in nats, over the positions with a target.
        cross_entropy: Of the tokens that are there, in nats, over all positions.
        aimed: Positions with a target.
        right: Positions whose token is the student's likeliest.
    """

    kl: torch.Tensor
    cross_entropy: torch.Tensor
    aimed: torch.Tensor
    right: torch.Tensor


def distillation_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    wanted: TargetBatch,
    *,
    ce_weight: float,
    columns: int,
    chunk: int = CHUNK,
) -> tuple[torch.Tensor, Figures]:
    """The summed loss of some positions: KL(target || student) + weight x cross-entropy, or cross-entropy alone.

    All tokens that a target does not list count as one, for teacher and student alike.

    Args:
        hidden: What the student's output layer is given; shape (n, d).
        weight: Its matrix; shape (rows, d).
        bias: Its bias; shape (rows,), or None.
        wanted: For the same n positions.
        ce_weight: Weight of the cross-entropy where there is a target; elsewhere it is 1.
        columns: Tokens of the student; rows of the matrix beyond them are padding, which is never predicted.
        chunk: Positions at a time; it changes memory and speed, not the loss.

    Returns:
        The loss, a sum with gradients, computed in float32 at least; and its parts.
    """
    grads = torch.is_grad_enabled()
    loss, figures = _Walk.apply(hidden, weight, bias, wanted, ce_weight, columns, chunk, grads)  # type: ignore[no-untyped-call]
    return loss, Figures(*figures.unbind())


def loss_parts(logits: torch.Tensor, wanted: TargetBatch, columns: int) -> Figures:
    """The parts of the loss, from logits that are there already, in float32 at least; they are overwritten.

    Args:
        logits: Of n positions; shape (n, rows).
        wanted: For the same positions.
        columns: See `distillation_loss`.
    """
    return Figures(*_chunk(logits, wanted, 0.0, columns, False)[1].unbind())


class _Walk(torch.autograd.Function):
    """Loss and gradients of one chunk after the other, in one walk: the logits of all never exist."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        wanted: TargetBatch,
        ce_weight: float,
        columns: int,
        chunk: int,
        grads: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum the loss, and keep its gradients."""
        device = hidden.device.type
        # What autocast would do; it does not reach operations that write into a given buffer.
        narrow = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        wide = torch.promote_types(hidden.dtype, torch.float32)
        needed = [need and grads for need in ctx.needs_input_grad[:3]]
        to_hidden = torch.empty_like(hidden) if needed[0] else None
        to_weight = torch.zeros_like(weight, dtype=wide) if needed[1] else None
        to_bias = torch.zeros_like(bias, dtype=wide) if needed[2] and bias is not None else None
        with torch.autocast(device, enabled=False):
            matrix = weight.detach().to(narrow)
            offset = None if bias is None else bias.detach().to(narrow)
            buffer = hidden.new_empty(min(chunk, len(hidden)), len(weight), dtype=narrow)
            total, figures = hidden.new_zeros((), dtype=wide), hidden.new_zeros(4, dtype=wide)
            for begin in range(0, len(hidden), chunk):
                part = slice(begin, begin + chunk)
                inputs = hidden[part].detach().to(narrow)
                logits = torch.mm(inputs, matrix.T, out=buffer[: len(inputs)])
                if offset is not None:
                    logits += offset
                loss, found, slope = _chunk(logits.to(wide), wanted.part(part), ce_weight, columns, any(needed))
                total += loss
                figures += found
                if slope is None:
                    continue
                thin = slope.to(narrow)
                if to_hidden is not None:
                    to_hidden[part] = thin @ matrix
                if to_weight is not None and narrow == wide:
                    to_weight.addmm_(thin.T, inputs)
                elif to_weight is not None:
                    to_weight += thin.T @ inputs
                if to_bias is not None:
                    to_bias += slope.sum(0)
        ctx.grads = to_hidden, to_weight, to_bias
        ctx.dtypes = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
        ctx.mark_non_differentiable(figures)
        return total, figures

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients, once: they are as large as the matrix, so they are scaled where they are and handed on."""
        if ctx.grads is None:
            raise RuntimeError("distillation_loss: a second backward pass through the same loss")
        held, ctx.grads = ctx.grads, None
        scaled = (None if one is None else one.mul_(factor.to(one.dtype)) for one in held)
        pairs = zip(scaled, ctx.dtypes, strict=True)
        return *(None if one is None else one.to(dtype) for one, dtype in pairs), *itertools.repeat(None, 5)


def _chunk(
    logits: torch.Tensor,
    wanted: TargetBatch,
    ce_weight: float,
    columns: int,
    slope: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Summed loss, figures, and the gradient with respect to the logits, which are overwritten with it."""
    logits[:, columns:] = -INFINITY  # not zero: that would be a token that competes
    labels, ids, has = wanted.labels, wanted.ids, wanted.has
    probs, tail = wanted.probs.to(logits.dtype), wanted.tail.to(logits.dtype)
    listed, places = ids != PADDING, ids.clamp(min=0)
    at_label = logits.gather(1, labels[:, None])[:, 0]
    at_listed = logits.gather(1, places).masked_fill_(~listed, -INFINITY)
    # The tail's own log-sum-exp: 1 minus what is listed has no digits left where the tail is small. Padding is
    # looked up in column 0 and has to leave that as it is.
    logits.scatter_reduce_(1, places, torch.where(listed, -INFINITY, INFINITY).to(logits.dtype), "amin")
    top = logits.amax(1)
    top_listed = at_listed.amax(1) if at_listed.shape[1] else torch.full_like(top, -INFINITY)
    base = top.masked_fill(top == -INFINITY, 0)  # nothing is left in the tail
    weights = logits.sub_(base[:, None]).exp_()
    mass = weights.sum(1)
    log_tail = base + mass.log()
    log_all = torch.logaddexp(log_tail, at_listed.logsumexp(1)) if at_listed.shape[1] else log_tail
    log_p, log_p_tail = at_listed - log_all[:, None], log_tail - log_all
    tail = tail * (has & (mass > 0))  # a student without a tail cannot differ in it
    terms = torch.where(probs > 0, torch.xlogy(probs, probs) - probs * log_p, 0).sum(1)
    kl = (terms + torch.where(tail > 0, torch.xlogy(tail, tail) - tail * log_p_tail, 0)) * has
    ce = log_all - at_label
    share = torch.ones_like(ce).masked_fill_(has, ce_weight)
    right = at_label >= torch.maximum(top, top_listed)
    figures = torch.stack([kl.sum(), ce.sum(), has.sum().to(ce.dtype), right.sum().to(ce.dtype)])
    loss = kl.sum() + (share * ce).sum()
    if not slope:
        return loss, figures, None
    # KL: p - q where listed, p - q_tail x p / p_tail elsewhere, p times the mass of q (1, but for rounding);
    # cross-entropy: p - 1 at the label, p elsewhere.
    pull = share + (probs.sum(1) + tail) * has
    rest = (pull * log_p_tail.exp() - tail) / mass.where(mass > 0, 1)
    weights.mul_(rest[:, None])
    weights.scatter_add_(1, places, torch.where(listed, pull[:, None] * log_p.exp() - probs * has[:, None], 0))
    weights.scatter_add_(1, labels[:, None], -share[:, None])
    return loss, figures, weights


def causal_lm(model: Any) -> Any:
    """The causal language model itself, below adapters."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def plain_head(model: Any) -> nn.Linear:
    """The output layer of a model, whose logits are its matrix times the last hidden state and nothing else.

    Raises:
        UserError: They are something else, as where an architecture scales or caps them.
    """
    inner = causal_lm(model)
    head = inner.get_output_embeddings()
    name = type(inner).__name__
    if not isinstance(head, nn.Linear) or not head.weight.is_floating_point():
        raise UserError(
            f"cannot distill into {name}: its output layer is a {type(head).__name__}, where a plain matrix is needed; "
            "leave it out of lora and quantization"
        )
    ids = torch.arange(1, 5, device=inner.get_input_embeddings().weight.device)[None]
    was_training = inner.training
    inner.eval()
    # A cap hardly shows in small logits.
    louder = head.register_forward_pre_hook(lambda _, inputs: (inputs[0] * 64,))
    try:
        with torch.no_grad():
            hidden = inner.base_model(input_ids=ids, use_cache=False).last_hidden_state.to(head.weight.device)
            found = inner(input_ids=ids, use_cache=False).logits.float()
            expected = nn.functional.linear(hidden * 64, head.weight, head.bias).float()
    finally:
        louder.remove()
        inner.train(was_training)
    off = (found - expected).abs().max() if found.shape == expected.shape else torch.tensor(INFINITY)
    if not bool(off <= (1e-4 if hidden.dtype in (torch.float32, torch.float64) else 2e-2) * expected.abs().max()):
        raise UserError(f"cannot distill into {name}: it changes its logits behind the output layer")
    return head
