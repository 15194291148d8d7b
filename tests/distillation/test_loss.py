"""The loss of distillation against the same thing written out plainly, and what must not change it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM  # noqa: E402

from sailkit.distillation.loss import PADDING, TargetBatch, TargetTable, distillation_loss, plain_head  # noqa: E402
from sailkit.distillation.records import ALIGNED, CONDITIONED, NONE, Targets  # noqa: E402
from sailkit.errors import UserError  # noqa: E402

D = 6


def layer(seed: int, n: int, columns: int, dtype=torch.float32, scale: float = 1.0):
    """Inputs, matrix and bias of an output layer, with gradients."""
    random = torch.Generator().manual_seed(seed)
    made = [torch.randn(shape, generator=random, dtype=dtype) * scale for shape in ((n, D), (columns, D), (columns,))]
    return [one.requires_grad_() for one in made]


def wanted(seed: int, n: int, columns: int, k: int, dtype=torch.float32, without=()) -> TargetBatch:
    """Random targets that list k tokens each."""
    random = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(columns, generator=random)[:k] for _ in range(n)])
    mass = torch.rand(n, k + 1, generator=random, dtype=dtype) ** 4
    mass /= mass.sum(1, keepdim=True)
    has = torch.tensor([i not in without for i in range(n)])
    labels = torch.randint(columns, (n,), generator=random)
    return TargetBatch(labels, ids, mass[:, :k].contiguous(), mass[:, k].contiguous(), has)


def plainly(hidden, weight, bias, aims: TargetBatch, ce_weight: float, columns: int):
    """The same loss, one position and one token at a time."""
    logits = hidden @ weight.T if bias is None else hidden @ weight.T + bias
    total = hidden.new_zeros(())
    for row, label, ids, probs, tail, has in zip(
        logits[:, :columns].log_softmax(-1), aims.labels, aims.ids, aims.probs, aims.tail, aims.has, strict=True
    ):
        if not has:
            total = total - row[label]
            continue
        listed = {i: q for i, q in zip(ids.tolist(), probs, strict=True) if i != PADDING}
        for i, q in listed.items():
            total = total + (q * (q.log() - row[i]) if q > 0 else 0)
        others = [i for i in range(columns) if i not in listed]
        if others and tail > 0:
            total = total + tail * (tail.log() - row[others].logsumexp(0))
        total = total - ce_weight * row[label]
    return total


def both(inputs, aims: TargetBatch, ce_weight=0.3, columns=None, plain=False, **more):
    """A loss and its gradients."""
    hidden, weight, bias = inputs
    columns = columns or len(weight)
    if plain:
        loss = plainly(hidden, weight, bias, aims, ce_weight, columns)
    else:
        loss, _ = distillation_loss(hidden, weight, bias, aims, ce_weight=ce_weight, columns=columns, **more)
    taking = [one for one in inputs if one is not None and one.requires_grad]
    return loss.detach(), torch.autograd.grad(loss, taking)


def assert_same(one, other, loss=1e-5, grads=1e-6):
    assert one[0].item() == pytest.approx(other[0].item(), rel=loss, abs=loss)
    assert len(one[1]) == len(other[1])
    for a, b in zip(one[1], other[1], strict=True):
        assert (a - b).abs().max() <= grads * max(1.0, b.abs().max().item())


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(3, 12), st.floats(0.1, 2))
def test_all_tokens_but_one_listed_is_the_divergence_from_the_whole(seed, n, columns, scale):
    logits = torch.randn(n, columns, generator=torch.Generator().manual_seed(seed)).mul_(scale).requires_grad_()
    aims = wanted(seed, n, columns, columns - 1)
    dense = torch.zeros(n, columns).scatter_(1, aims.ids, aims.probs)
    dense += (dense == 0) * aims.tail[:, None]  # the one that is not listed
    loss = torch.nn.functional.kl_div(logits.log_softmax(-1), dense, reduction="sum")
    expected = loss.detach(), torch.autograd.grad(loss, logits)
    assert_same(both([logits, torch.eye(columns), None], aims, ce_weight=0.0), expected)


@settings(max_examples=25)
@given(st.data(), st.integers(0, 10**6), st.integers(1, 6), st.integers(2, 12), st.floats(0, 2))
def test_it_is_what_it_says(data, seed, n, columns, ce_weight):
    k = data.draw(st.integers(0, columns))
    inputs = layer(seed, n, columns, torch.float64)
    without = data.draw(st.sets(st.integers(0, n - 1)))
    aims = wanted(seed, n, columns, k, torch.float64, without)
    cut = torch.rand(aims.ids.shape, generator=torch.Generator().manual_seed(seed)) < 0.3
    aims = dataclasses.replace(aims, ids=aims.ids.masked_fill(cut, PADDING), probs=aims.probs.masked_fill(cut, 0))
    chunk = data.draw(st.integers(1, 7))
    expected = both(inputs, aims, ce_weight, plain=True)
    assert_same(both(inputs, aims, ce_weight, chunk=chunk), expected, 1e-9, 1e-9)


class Fresh(torch.autograd.Function):
    """The loss, made anew for each backward pass: gradcheck makes two."""

    @staticmethod
    def forward(ctx, aims, *inputs):
        ctx.aims = aims
        ctx.save_for_backward(*inputs)
        return distillation_loss(*inputs, aims, ce_weight=0.3, columns=8, chunk=2)[0]

    @staticmethod
    def backward(ctx, factor):
        inputs = [one.detach().requires_grad_() for one in ctx.saved_tensors]
        with torch.enable_grad():
            loss = distillation_loss(*inputs, ctx.aims, ce_weight=0.3, columns=8, chunk=2)[0]
            return None, *torch.autograd.grad(loss * factor, inputs)


def test_the_gradient_is_the_slope():
    aims = wanted(3, 5, 8, 3, torch.float64, without=[2])
    assert torch.autograd.gradcheck(lambda *inputs: Fresh.apply(aims, *inputs), layer(3, 5, 9, torch.float64))


def from_student(hidden, weight, bias, k) -> TargetBatch:
    """What the student itself thinks, as a target."""
    probs = (hidden @ weight.T + bias).double().softmax(-1)
    top = probs.topk(k)
    n = len(hidden)
    tail = 1 - top.values.sum(1)
    return TargetBatch(
        top.indices[:, 0], top.indices, top.values.float(), tail.float(), torch.ones(n, dtype=torch.bool)
    )


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    inputs = layer(1, 20, 50)
    with torch.no_grad():
        aims = from_student(*inputs, 8)
        shuffled = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    loss, grads = both(inputs, aims, ce_weight=0.0)
    assert abs(loss / 20) < 1e-6
    assert max(grad.abs().max() for grad in grads) / 20 < 1e-6
    hidden, weight, bias = inputs
    other = [hidden, *(one.detach()[shuffled].requires_grad_() for one in (weight, bias))]
    assert both(other, aims, ce_weight=0.0)[0] > 100 * max(abs(loss), 1e-5)


def test_a_tail_that_is_small_keeps_its_digits():
    """One token has all but e^-30 of the student; from 1 minus that, float32 knows nothing of the rest."""
    weight = torch.zeros(40, D)
    weight[0, 0] = 30 + np.log(39)
    hidden = torch.eye(1, D).requires_grad_()
    aims = TargetBatch(*(torch.tensor(one) for one in ([0], [[0]], [[0.5]], [0.5], [True])))
    loss, (grad,) = both([hidden, weight, None], aims, ce_weight=0.0)
    assert loss.item() == pytest.approx(0.5 * 30 + np.log(0.5), rel=1e-5)
    assert grad[0, 0].item() == pytest.approx(0.5 * weight[0, 0].item(), rel=1e-5)


def test_a_tail_beside_a_huge_logit_is_still_a_number():
    weight = torch.zeros(5, D)
    weight[0, 0] = 500
    aims = TargetBatch(*(torch.tensor(one) for one in ([0], [[0]], [[0.5]], [0.5], [True])))
    loss, (grad,) = both([torch.eye(1, D).requires_grad_(), weight, None], aims, ce_weight=0.0)
    assert loss.item() == pytest.approx(0.5 * (500 - np.log(4)) + np.log(0.5), rel=1e-5)
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("tail", [0.0, 1e-7])
def test_where_all_tokens_are_listed_nobody_has_a_tail(tail):
    inputs = layer(2, 3, 6)
    aims = wanted(2, 3, 6, 6)
    aims = dataclasses.replace(aims, probs=aims.probs / aims.probs.sum(1, keepdim=True), tail=torch.full((3,), tail))
    loss, grads = both(inputs, aims)
    assert torch.isfinite(loss)
    assert all(torch.isfinite(grad).all() for grad in grads)
    assert_same((loss, grads), both(inputs, dataclasses.replace(aims, tail=torch.zeros(3)), plain=True))


def test_tokens_and_tails_without_probability_cost_nothing():
    inputs = layer(4, 2, 7)
    ids, probs = torch.tensor([[0, 3], [5, PADDING]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    aims = TargetBatch(torch.tensor([1, 2]), ids, probs, torch.zeros(2), torch.ones(2, dtype=torch.bool))
    logs = (inputs[0] @ inputs[1].T + inputs[2]).log_softmax(-1)
    loss = -(logs[0, 0] + logs[1, 5])
    assert_same(both(inputs, aims, ce_weight=0.0), (loss.detach(), torch.autograd.grad(loss, inputs)))


def test_the_order_of_entries_and_of_positions_means_nothing():
    inputs = layer(5, 9, 20)
    aims = wanted(5, 9, 20, 6, without=[4])
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    mixed = dataclasses.replace(aims, ids=aims.ids[:, order], probs=aims.probs[:, order])
    expected = both(inputs, aims)
    assert_same(both(inputs, mixed), expected)
    turned = TargetBatch(*(getattr(aims, field.name).flip(0) for field in dataclasses.fields(aims)))
    loss, (hidden, *rest) = both([inputs[0].detach().flip(0).requires_grad_(), *inputs[1:]], turned)
    assert_same((loss, (hidden.flip(0), *rest)), expected)


def test_columns_that_are_no_tokens_are_not_there():
    hidden, weight, bias = layer(6, 8, 24)
    aims = wanted(6, 8, 20, 5, without=[1])
    loss, (to_hidden, to_weight, to_bias) = both([hidden, weight, bias], aims, columns=20)
    narrow = [hidden, weight[:20].detach().requires_grad_(), bias[:20].detach().requires_grad_()]
    assert_same((loss, (to_hidden, to_weight[:20], to_bias[:20])), both(narrow, aims))
    assert not to_weight[20:].any()
    assert not to_bias[20:].any()


@pytest.mark.parametrize("chunk", [1, 3, 8, 100])
def test_the_size_of_a_chunk_changes_nothing(chunk):
    inputs = layer(7, 8, 20)
    aims = wanted(7, 8, 20, 5, without=[0])
    assert_same(both(inputs, aims, chunk=chunk), both(inputs, aims, plain=True))


def test_what_is_frozen_has_no_gradient_and_costs_none():
    hidden, weight, bias = layer(8, 8, 20)
    aims = wanted(8, 8, 20, 5)
    whole = both([hidden, weight, bias], aims)
    frozen = weight.detach()
    loss, (to_hidden, to_bias) = both([hidden, frozen, bias], aims)
    assert_same((loss, (to_hidden, to_bias)), (whole[0], (whole[1][0], whole[1][2])))
    assert frozen.grad is None
    assert_same(both([hidden, weight, None], aims), both([hidden, weight, None], aims, plain=True))
    with torch.no_grad():
        loss, _ = distillation_loss(hidden, weight, bias, aims, ce_weight=0.3, columns=20)
    assert not loss.requires_grad
    assert loss == whole[0]


def test_positions_without_a_target_are_cross_entropy_alone():
    inputs = layer(9, 6, 20)
    aims = wanted(9, 6, 20, 5, without=range(6))
    loss = torch.nn.functional.cross_entropy(inputs[0] @ inputs[1].T + inputs[2], aims.labels, reduction="sum")
    expected = loss.detach(), torch.autograd.grad(loss, inputs)
    assert_same(both(inputs, aims, ce_weight=0.01), expected)


def test_the_figures():
    hidden, weight, bias = layer(10, 9, 12)
    aims = wanted(10, 9, 12, 4, without=[0, 5])
    _, found = distillation_loss(hidden, weight, bias, aims, ce_weight=7.0, columns=12, chunk=4)
    logits = hidden @ weight.T + bias
    ce = torch.nn.functional.cross_entropy(logits, aims.labels, reduction="sum")
    kept = TargetBatch(*(getattr(aims, field.name)[aims.has] for field in dataclasses.fields(aims)))
    kl = plainly(hidden[aims.has], weight, bias, kept, 0.0, 12)
    assert found.cross_entropy.item() == pytest.approx(ce.item(), rel=1e-5)
    assert found.kl.item() == pytest.approx(kl.item(), rel=1e-5)
    assert found.targeted == 7
    assert found.correct == (logits.argmax(-1) == aims.labels).sum()
    assert not any(getattr(found, field.name).requires_grad for field in dataclasses.fields(found))


def test_nothing_to_predict_is_a_loss_of_zero_with_gradients():
    inputs = layer(11, 0, 12)
    loss, grads = both(inputs, wanted(11, 1, 12, 3)[:0])
    assert loss == 0
    assert not any(grad.any() for grad in grads)


def test_autocast_computes_in_few_bits_and_sums_in_many():
    inputs = layer(12, 40, 30)
    aims = wanted(12, 40, 30, 6, without=[3])
    with torch.autocast("cpu", torch.bfloat16):
        loss, grads = both(inputs, aims, chunk=7)
    expected = both(inputs, aims)
    assert {loss.dtype, *(grad.dtype for grad in grads)} == {torch.float32}
    assert abs(loss - expected[0]) > 1e-5 * expected[0]
    assert_same((loss, grads), expected, 2e-2, 2e-2)


def test_half_a_model_gets_gradients_in_its_own_numbers():
    inputs = [one.detach().bfloat16().requires_grad_() for one in layer(13, 40, 30)]
    loss, grads = both(inputs, wanted(13, 40, 30, 6))
    assert loss.dtype == torch.float32
    assert {grad.dtype for grad in grads} == {torch.bfloat16}


@pytest.mark.parametrize("autocast", [True, False])
def test_gradients_in_few_bits_are_summed_in_many(autocast):
    """A thousand equal positions, one by one: in 16 bits a sum stands still where a term is below half a last digit."""
    n, dtype = 1024, torch.float32 if autocast else torch.bfloat16
    inputs = [part.detach().to(dtype).requires_grad_() for part in layer(13, 1, 30)]
    aims = wanted(13, 1, 30, 6)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        _, (_, *alone) = both(inputs, aims)
        hidden = inputs[0].detach().expand(n, -1).clone().requires_grad_()
        many = TargetBatch(*(getattr(aims, part.name).repeat_interleave(n, 0) for part in dataclasses.fields(aims)))
        _, (_, *summed) = both([hidden, *inputs[1:]], many, chunk=1)
    for total, part in zip(summed, alone, strict=True):
        assert torch.allclose(total.float(), n * part.float(), rtol=1e-2, atol=0)


def test_gradients_in_float16_are_cast_after_the_loss_is_scaled():
    """Of unlikely tokens, they are below float16's smallest number, and a loss scaler is there to save them."""
    hidden, weight, bias = (part.detach().half() for part in layer(13, 40, 300))
    inputs = [(hidden * 6).requires_grad_(), weight.requires_grad_(), bias.requires_grad_()]
    aims, scale = wanted(13, 40, 300, 6), 2.0**16
    loss, _ = distillation_loss(*inputs, aims, ce_weight=0.3, columns=300, chunk=16)
    grads = torch.autograd.grad(loss * scale, inputs)
    expected = both([part.detach().float().requires_grad_() for part in inputs], aims)[1]
    assert {grad.dtype for grad in grads} == {torch.float16}
    (_, of_rows, _), (_, exact_rows, _) = grads, expected
    small = (exact_rows.abs().amax(1) < 1e-7) & (exact_rows.abs().amax(1) > 1e-10)
    assert small.sum() > 10
    errors = (of_rows[small].float() / scale - exact_rows[small]).norm(dim=1) / exact_rows[small].norm(dim=1)
    assert errors.median() < 0.1  # 1, where the gradients are gone
    for grad, exact in zip(grads, expected, strict=True):
        finite = torch.isfinite(grad)  # the largest exceed float16's range, at which a loss scaler lowers the scale
        assert (grad.float() / scale - exact)[finite].abs().max() <= 1e-2 * exact.abs().max()


def test_a_second_backward_pass_is_refused_not_wrong():
    hidden, weight, bias = layer(14, 3, 8)
    loss, _ = distillation_loss(hidden, weight, bias, wanted(14, 3, 8, 2), ce_weight=0.3, columns=8)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward"):
        loss.backward()


def test_targets_are_looked_up_by_their_numbers():
    first = Targets(np.array([0, 2]), np.array([0, 2, 3]), np.array([7, 5, 6]), np.array([0.5, 0.25, 0.75]),
                    np.array([0.25, 0.25]), np.array([ALIGNED, CONDITIONED]))  # fmt: skip
    second = Targets(np.array([0, 1, 3]), np.array([0, 0, 0, 3]), np.array([1, 2, 3]), np.array([0.5, 0.25, 0.125]),
                     np.array([0.0, 1.0, 0.125]), np.array([NONE, ALIGNED, ALIGNED]))  # fmt: skip
    table = TargetTable((first, np.array([10, 11])), (second, np.array([12, 13, 14])))
    assert len(table) == 5
    found = table.at(torch.tensor([4, 1, 2, 3, 1]))
    assert found.labels.tolist() == [14, 11, 12, 13, 11]
    assert found.ids.tolist() == [[1, 2, 3], [6, -1, -1], [-1] * 3, [-1] * 3, [6, -1, -1]]
    assert found.probs.tolist() == [[0.5, 0.25, 0.125], [0.75, 0, 0], [0] * 3, [0] * 3, [0.75, 0, 0]]
    assert found.tail.tolist() == [0.125, 0.25, 0.0, 1.0, 0.25]
    assert found.has.tolist() == [True, True, False, True, True]
    assert table.at(torch.tensor([0, 1])).ids.tolist() == [[7, 5], [6, -1]]
    assert table.at(torch.tensor([], dtype=torch.int64)).ids.shape == (0, 0)
    with pytest.raises(ValueError, match="1 tokens"):
        TargetTable((first, np.array([10])))


SMALL = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
         "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}  # fmt: skip


def test_a_plain_output_layer_is_found():
    model = LlamaForCausalLM(LlamaConfig(**SMALL)).train()
    assert plain_head(model) is model.lm_head
    assert model.training
    assert not model.lm_head._forward_pre_hooks


def test_logits_that_are_capped_are_refused():
    with pytest.raises(UserError, match=r"cannot distill into Gemma2ForCausalLM: it changes its logits"):
        plain_head(Gemma2ForCausalLM(Gemma2Config(**SMALL)))
    assert plain_head(Gemma2ForCausalLM(Gemma2Config(**SMALL, final_logit_softcapping=None)))
