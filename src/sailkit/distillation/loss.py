"""The distillation loss: sparse forward KL with a tail bucket plus cross-entropy, computed in chunks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.autograd.function import once_differentiable

from sailkit.distillation.records import NONE, IntArray, Targets
from sailkit.errors import UserError

PADDING = -1  # marks unused entries instead of a token id
CHUNK = 128  # positions whose logits are in memory at the same time
INFINITY = float("inf")


@dataclass(frozen=True)
class TargetBatch:
    """The targets of n positions.

    Attributes:
        labels: The tokens of the text; int64, shape (n,).
        ids: Tokens that the target lists, padded with `PADDING`; int64, shape (n, k).
        probs: Their probabilities, 0 in padding; float32, shape (n, k).
        tail: Probability of all other tokens together; float32, shape (n,).
        has: Whether the position has a target; bool, shape (n,).
    """

    labels: torch.Tensor
    ids: torch.Tensor
    probs: torch.Tensor
    tail: torch.Tensor
    has: torch.Tensor

    def __getitem__(self, positions: slice) -> TargetBatch:
        """Select a slice of the positions."""
        labels, ids, probs = self.labels[positions], self.ids[positions], self.probs[positions]
        return TargetBatch(labels, ids, probs, self.tail[positions], self.has[positions])


class TargetTable:
    """The targets of one or more data sets, whose positions are numbered consecutively."""

    def __init__(self, *parts: tuple[Targets, IntArray]) -> None:
        """Convert targets to tensors; their entries, most of the data, are not copied.

        Args:
            parts: The targets of each data set, and the student's tokens at their positions.

        Raises:
            ValueError: The numbers of tokens and of positions differ.
        """
        targets = [part for part, _ in parts]
        for part, labels in parts:
            if not len(labels) == len(part.tail) == len(part.kind) == len(part.starts) - 1:
                raise ValueError(f"{len(labels)} tokens, but targets for {len(part.tail)} positions")
        sizes = [np.diff(part.starts) for part in targets]
        self._starts = torch.from_numpy(np.concatenate([[0], *sizes]).cumsum().astype(np.int64))
        self._ids = [torch.from_numpy(part.ids) for part in targets]
        self._probs = [torch.from_numpy(part.probs) for part in targets]
        self._tail = torch.from_numpy(np.concatenate([part.tail for part in targets]).astype(np.float32))
        self._has = torch.from_numpy(np.concatenate([part.kind for part in targets]) != NONE)
        self._labels = torch.from_numpy(np.concatenate([labels for _, labels in parts]).astype(np.int64))

    def __len__(self) -> int:
        return len(self._labels)

    def at(self, positions: torch.Tensor) -> TargetBatch:
        """Look up the targets at some positions, on their device.

        Args:
            positions: Indices of positions; integers, shape (n,).
        """
        device, positions = positions.device, positions.cpu()
        has = self._has[positions]
        begin = self._starts[positions]
        count = (self._starts[positions + 1] - begin) * has
        slots = torch.arange(int(count.max()) if len(positions) else 0)
        listed = slots < count[:, None]
        entries = (begin[:, None] + slots)[listed]
        ids = torch.full(listed.shape, PADDING).masked_scatter_(listed, _select(self._ids, entries, torch.int64))
        probs = torch.zeros(listed.shape).masked_scatter_(listed, _select(self._probs, entries, torch.float32))
        tensors = self._labels[positions], ids, probs, self._tail[positions] * has, has
        return TargetBatch(*(tensor.to(device) for tensor in tensors))


def _select(parts: Sequence[torch.Tensor], indices: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The values at some indices of the concatenation of several vectors, which is never in memory."""
    values = torch.empty(len(indices), dtype=dtype)
    begin = 0
    for part in parts:
        within = (indices >= begin) & (indices < begin + len(part))
        values[within] = part[indices[within] - begin].to(dtype)
        begin += len(part)
    return values


@dataclass(frozen=True)
class LossParts:
    """Sums over the positions of a batch: scalars without gradients.

    Attributes:
        kl: Forward KL in nats, over the positions with a target.
        cross_entropy: Cross-entropy of the text's own tokens in nats, over all positions.
        targeted: Number of positions with a target.
        correct: Number of positions whose token is the student's likeliest.
    """

    kl: torch.Tensor
    cross_entropy: torch.Tensor
    targeted: torch.Tensor
    correct: torch.Tensor


def distillation_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: TargetBatch,
    *,
    ce_weight: float,
    columns: int,
    chunk: int = CHUNK,
) -> tuple[torch.Tensor, LossParts]:
    """The summed loss of some positions: KL(target || student) + weight x cross-entropy, or cross-entropy alone.

    All tokens that a target does not list form a single outcome, the tail, for teacher and student alike.

    Args:
        hidden: Inputs of the student's output layer; shape (n, d).
        weight: Weight matrix of that layer; shape (rows, d).
        bias: Bias of that layer; shape (rows,), or None.
        targets: Targets of the same n positions.
        ce_weight: Weight of the cross-entropy at positions with a target; elsewhere it is 1.
        columns: Size of the student's vocabulary; further rows of the matrix are padding, which is never predicted.
        chunk: Positions computed at a time; affects memory and speed, not the loss.

    Returns:
        The summed loss, computed in at least float32, and its parts.
    """
    grads = torch.is_grad_enabled()
    loss, parts = _ChunkedLoss.apply(hidden, weight, bias, targets, ce_weight, columns, chunk, grads)  # type: ignore[no-untyped-call]
    return loss, LossParts(*parts.unbind())


def loss_parts(logits: torch.Tensor, targets: TargetBatch, columns: int) -> LossParts:
    """Compute the parts of the loss from given logits, in at least float32; the logits are overwritten.

    Args:
        logits: Logits of n positions; shape (n, rows).
        targets: Targets of the same positions.
        columns: See `distillation_loss`.
    """
    return LossParts(*_loss_of_chunk(logits, targets, 0.0, columns, False)[1].unbind())


class _ChunkedLoss(torch.autograd.Function):
    """Computes loss and gradients together in chunks, so that the logits of all positions are never in memory."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: TargetBatch,
        ce_weight: float,
        columns: int,
        chunk: int,
        grads: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum the loss, and store its gradients."""
        device = hidden.device.type
        # Autocast casts the inputs of matrix products, except of those with a preallocated output.
        autocast = torch.is_autocast_enabled(device)
        low_precision = torch.get_autocast_dtype(device) if autocast else hidden.dtype
        float32 = torch.promote_types(hidden.dtype, torch.float32)  # float64 for a model in float64
        needed = [need and grads for need in ctx.needs_input_grad[:3]]
        # A loss scaler multiplies in the backward pass: until then, float16 would lose what the scaler is to save.
        in_float16 = low_precision is torch.float16
        grad_hidden = torch.empty_like(hidden, dtype=float32 if in_float16 else None) if needed[0] else None
        grad_weight = torch.zeros_like(weight, dtype=float32) if needed[1] else None
        grad_bias = torch.zeros_like(bias, dtype=float32) if needed[2] and bias is not None else None
        with torch.autocast(device, enabled=False):
            matrix = weight.detach().to(low_precision)
            offset = None if bias is None else bias.detach().to(low_precision)
            buffer = hidden.new_empty(min(chunk, len(hidden)), len(weight), dtype=low_precision)
            total, parts = hidden.new_zeros((), dtype=float32), hidden.new_zeros(4, dtype=float32)
            for begin in range(0, len(hidden), chunk):
                here = slice(begin, begin + chunk)
                inputs = hidden[here].detach().to(low_precision)
                logits = torch.mm(inputs, matrix.T, out=buffer[: len(inputs)])
                if offset is not None:
                    logits += offset
                logits = logits.to(float32)
                loss, added, grad_logits = _loss_of_chunk(logits, targets[here], ce_weight, columns, any(needed))
                total += loss
                parts += added
                if grad_logits is None:
                    continue
                grad_low = grad_logits if in_float16 else grad_logits.to(low_precision)
                product = _scaled_product if in_float16 else torch.mm
                if grad_hidden is not None:
                    grad_hidden[here] = product(grad_low, matrix)
                if grad_weight is not None and low_precision == float32:
                    grad_weight.addmm_(grad_low.T, inputs)
                elif grad_weight is not None:
                    grad_weight += product(grad_low.T, inputs)
                if grad_bias is not None:
                    grad_bias += grad_logits.sum(0)
                del logits, grad_logits, grad_low  # else the next chunk is computed beside them
        ctx.grads = grad_hidden, grad_weight, grad_bias
        ctx.dtypes = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
        ctx.mark_non_differentiable(parts)
        return total, parts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients, only once: they are as large as the matrix, so they are scaled in place and freed."""
        if ctx.grads is None:
            raise RuntimeError("distillation_loss: a second backward pass through the same loss")
        grads, ctx.grads = ctx.grads, None
        scaled = (None if grad is None else grad.mul_(factor.to(grad.dtype)) for grad in grads)
        pairs = zip(scaled, ctx.dtypes, strict=True)
        return *(None if grad is None else grad.to(dtype) for grad, dtype in pairs), *itertools.repeat(None, 5)


def _scaled_product(grads: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """The product of float32 gradients with a float16 matrix, computed in float16 and returned in float32.

    The gradients are scaled by a power of two, the largest with which no sum can overflow: unscaled, most of those of a
    large vocabulary are below 6e-8, where float16 ends.
    """
    most = torch.linalg.vector_norm(grads, 1, dim=1).amax() * matrix.abs().amax().float().clamp(min=1)
    scale = torch.exp2(torch.floor(torch.log2(2.0**15 / most.clamp(min=2.0**-24))))
    return ((grads * scale).to(matrix.dtype) @ matrix).float() / scale


def _loss_of_chunk(
    logits: torch.Tensor,
    targets: TargetBatch,
    ce_weight: float,
    columns: int,
    with_grad: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Summed loss, its parts, and the gradient with respect to the logits, which overwrites the logits."""
    logits[:, columns:] = -INFINITY  # a logit of 0 would give padding a probability
    labels, ids, has = targets.labels, targets.ids, targets.has
    probs, tail = targets.probs.to(logits.dtype), targets.tail.to(logits.dtype)
    listed, indices = ids != PADDING, ids.clamp(min=0)
    at_label = logits.gather(1, labels[:, None])[:, 0]
    at_listed = logits.gather(1, indices).masked_fill_(~listed, -INFINITY)
    # The log-sum-exp of the tail's logits, because 1 minus the listed probabilities loses all precision if the tail is
    # small. It is written out because the gradient needs the exponentials again. Padding of `ids` points at column 0
    # and must leave it unchanged.
    logits.scatter_reduce_(1, indices, torch.where(listed, -INFINITY, INFINITY).to(logits.dtype), "amin")
    top = logits.amax(1)
    top_listed = at_listed.amax(1) if at_listed.shape[1] else torch.full_like(top, -INFINITY)
    base = top.masked_fill(top == -INFINITY, 0)  # all tokens are listed: the tail is empty
    exp_tail = logits.sub_(base[:, None]).exp_()
    mass = exp_tail.sum(1)
    log_tail = base + mass.log()
    log_all = torch.logaddexp(log_tail, at_listed.logsumexp(1)) if at_listed.shape[1] else log_tail
    log_p, log_p_tail = at_listed - log_all[:, None], log_tail - log_all
    tail = tail * (has & (mass > 0))  # if the student has no tail, it does not contribute to KL
    terms = torch.where(probs > 0, torch.xlogy(probs, probs) - probs * log_p, 0).sum(1)
    kl = (terms + torch.where(tail > 0, torch.xlogy(tail, tail) - tail * log_p_tail, 0)) * has
    ce = log_all - at_label
    weight = torch.ones_like(ce).masked_fill_(has, ce_weight)
    correct = at_label >= torch.maximum(top, top_listed)
    parts = torch.stack([kl.sum(), ce.sum(), has.sum().to(ce.dtype), correct.sum().to(ce.dtype)])
    loss = kl.sum() + (weight * ce).sum()
    if not with_grad:
        return loss, parts, None
    # The gradient. Let z be the logits, p = softmax(z), T the tokens of the tail, p_T the sum of p over T; let q_i be
    # the target of a listed token, q_T that of the tail, and m = sum(q_i) + q_T (1, but for rounding). Then
    #   KL = const - sum(q_i log p_i) - q_T log p_T,   d log p_i / dz_j = [i = j] - p_j,   and of the tail
    #   d log p_T / dz_j = [j in T] p_j / p_T - p_j,   so that   dKL/dz_j = m p_j - q_j           where j is listed,
    #                                                             dKL/dz_j = m p_j - q_T p_j / p_T  where j is in T.
    # Cross-entropy with label y adds w (p_j - [j = y]). With c = w + m all of the tail has one factor of exp(z_j):
    #   c p_j - q_T p_j / p_T = (c p_T - q_T) exp(z_j) / sum over T of exp(z), as p_j / p_T is a softmax over T alone.
    scale = weight + (probs.sum(1) + tail) * has
    factor = (scale * log_p_tail.exp() - tail) / mass.where(mass > 0, 1)
    grad_logits = exp_tail.mul_(factor[:, None])
    grad_listed = scale[:, None] * log_p.exp() - probs * has[:, None]
    grad_logits.scatter_add_(1, indices, torch.where(listed, grad_listed, 0))
    grad_logits.scatter_add_(1, labels[:, None], -weight[:, None])
    return loss, parts, grad_logits


def causal_lm(model: Any) -> Any:
    """The causal language model without the wrapper of adapters."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def plain_head(model: Any) -> nn.Linear:
    """The output layer of a model whose logits are exactly that layer's output.

    Raises:
        UserError: They are not, as in architectures that scale or cap logits.
    """
    inner = causal_lm(model)
    head = inner.get_output_embeddings()
    name = type(inner).__name__
    if not isinstance(head, nn.Linear) or not head.weight.is_floating_point():
        raise UserError(
            f"cannot distill into {name}: its output layer is a {type(head).__name__}, where a plain matrix is needed; "
            "leave it out of lora and quantization"
        )
    if head.weight.is_meta:  # the main process has the weights, and checks them
        return head
    ids = torch.arange(1, 5, device=inner.get_input_embeddings().weight.device)[None]
    was_training = inner.training
    inner.eval()
    # Scale the input up, because a cap (tanh) is nearly the identity on small logits.
    hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0] * 64,))
    try:
        with torch.no_grad():
            hidden = inner.base_model(input_ids=ids, use_cache=False).last_hidden_state.to(head.weight.device)
            actual = inner(input_ids=ids, use_cache=False).logits.float()
            expected = nn.functional.linear(hidden * 64, head.weight, head.bias).float()
    finally:
        hook.remove()
        inner.train(was_training)
    error = (actual - expected).abs().max() if actual.shape == expected.shape else torch.tensor(INFINITY)
    if not bool(error <= (1e-4 if hidden.dtype in (torch.float32, torch.float64) else 2e-2) * expected.abs().max()):
        raise UserError(f"cannot distill into {name}: it changes its logits after the output layer")
    return head
