"""Loss weights by segment: which tokens they weight, and that a step is their weighted mean however it is cut."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from sailkit.errors import UserError
from sailkit.prompts.sail import ExampleRenderer, Order, completion_parts
from sailkit.training.loss_weights import LossWeights, read_loss_weights
from sailkit.training.recipe import check_recipe
from sailkit.training.tokenise import IGNORED, prepare
from training.test_finetune import example

trl = pytest.importorskip("sailkit.training.trainer")
sft_config = pytest.importorskip("sailkit.training.arguments").sft_config
QUICK = {"bf16": False, "eval_strategy": "no", "save_strategy": "no", "max_length": 512, "max_steps": 1,
         "max_grad_norm": 0.0, "optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant"}  # fmt: skip
WEIGHTS = LossWeights(verification=0.5, answer=4.0)


@pytest.fixture(scope="module")
def rows(tokenizer):
    return prepare([example(i) for i in range(9)], tokenizer, 512)


def trainer(folder, tokenizer, rows, out, weights=WEIGHTS, held_out=None, **training):
    from sailkit.training.recipe import Recipe

    args = sft_config(Recipe("m", ("d",), training={**QUICK, **training}), out, held_out=held_out is not None)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return trl.Trainer(model=model, tokenizer=tokenizer, args=args, train=rows, held_out=held_out, loss_weights=weights)


def segment_losses(model, rows):
    """Summed loss and tokens of the verification sentences and of the answers, row by row from the full logits."""
    sums = {"verification": torch.zeros(2), "answer": torch.zeros(2)}
    for ids, labels, (start, end) in zip(rows.ids, rows.labels, rows.verification, strict=True):
        logits = model(torch.tensor([ids])).logits[0, :-1]
        losses = functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
        for position in range(1, len(ids)):
            if labels[position] != IGNORED:
                name = "verification" if start <= position < end else "answer"
                sums[name] += torch.stack([losses[position - 1], torch.tensor(1.0)])
    return sums


def weighted_mean(sums, weights):
    parts = [(getattr(weights, name), loss, count) for name, (loss, count) in sums.items()]
    return sum(w * loss for w, loss, _ in parts) / sum(w * count for w, _, count in parts)


@pytest.mark.parametrize("style", ["sail", "sail-fixed", "chat"])
def test_the_segments_are_the_verification_sentence_and_the_answer(style, shared):
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / "qwen")
    for i in range(4):
        row = replace(example(i), style=style)
        rendered = ExampleRenderer(tokenizer).render(row)
        start, end = rendered.verification
        sentence, response = completion_parts(row)
        assert tokenizer.decode(rendered.ids[start:end]).strip() == sentence.text.strip() != ""
        answer = [token for token, kept in zip(rendered.ids[end:], rendered.completion_mask[end:], strict=True) if kept]
        assert tokenizer.decode(answer[:-1]).strip() == response.text.strip()
        assert all(rendered.completion_mask[start:end])
        assert not any(rendered.completion_mask[:start])
    bare = ExampleRenderer(tokenizer).render(replace(example(0), results=(), judgements=(), style=style))
    assert bare.verification[0] == bare.verification[1]


@pytest.mark.parametrize("style", ["sail", "sail-fixed", "chat"])
def test_answer_first_puts_the_answer_before_the_verification_sentence(style, shared):
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / "qwen")
    for i in range(4):
        row = replace(example(i), style=style)
        verified, rendered = (ExampleRenderer(tokenizer, order=order).render(row) for order in get_args(Order))
        (start, end), n = rendered.verification, verified.verification[0]
        assert rendered.response == n
        assert rendered.ids[:n] == verified.ids[:n]  # the same prompt
        response, sentence = completion_parts(row, "answer-first")
        assert tokenizer.decode(rendered.ids[n:start]).strip() == response.text.strip() == row.response
        assert tokenizer.decode(rendered.ids[start:end]) == sentence.text
        assert sentence.text.strip() == completion_parts(row)[0].text.strip() != ""
        assert all(rendered.completion_mask[n : end + 1])
        assert not any(rendered.completion_mask[:n])
    bare = ExampleRenderer(tokenizer, order="answer-first").render(replace(row, results=(), judgements=()))
    assert bare.verification[0] == bare.verification[1] > bare.response
    assert bare.supervised == ExampleRenderer(tokenizer).render(replace(row, results=(), judgements=())).supervised


def test_a_step_is_the_weighted_mean_however_its_batch_was_cut_up(folder, tokenizer, rows, tmp_path):
    n = len(rows.ids)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    before = torch.cat([p.detach().flatten().clone() for p in plain.parameters()])
    weighted_mean(segment_losses(plain, rows), WEIGHTS).backward()
    expected = torch.cat([p.grad.flatten() for p in plain.parameters()])
    cuts = [{"per_device_train_batch_size": size, "gradient_accumulation_steps": -(-n // size)} for size in (n, 1, 2)]
    packed = {"packing": True, "per_device_train_batch_size": 1, "gradient_accumulation_steps": n}
    for cut in (*cuts, packed):
        one = trainer(folder, tokenizer, rows, tmp_path, **cut)
        one.train()
        after = torch.cat([p.detach().flatten() for p in one.model.parameters()])
        assert (before - after - expected).abs().max() < 1e-5 < 1e-3 < expected.abs().max()
        loss = next(row["loss"] for row in one.state.log_history if "loss" in row)
        with torch.no_grad():
            plain_loss = weighted_mean(segment_losses(plain, rows), WEIGHTS)
        assert loss == pytest.approx(plain_loss.item(), rel=1e-4)


def test_held_out_rows_have_the_plain_mean_and_the_weighted_one(folder, tokenizer, rows, tmp_path):
    one = trainer(folder, tokenizer, rows, tmp_path, held_out=rows, eval_strategy="epoch", per_device_eval_batch_size=4)
    with torch.no_grad():
        sums = segment_losses(one.model.eval(), rows)
    figures = one.evaluate()
    assert figures["eval_loss"] == pytest.approx(weighted_mean(sums, LossWeights()).item(), rel=1e-5)
    assert figures["eval_weighted_loss"] == pytest.approx(weighted_mean(sums, WEIGHTS).item(), rel=1e-5)
    assert abs(figures["eval_loss"] - figures["eval_weighted_loss"]) > 1e-3


def test_weights_of_a_recipe():
    assert read_loss_weights({"answer": 10}, "r: loss_weights") == LossWeights(1.0, 10.0)
    assert read_loss_weights({"verification": 2, "answer": 2.0}, "r") is read_loss_weights(None, "r") is None
    recipe = {"model": "m", "data": "d"}
    assert (
        check_recipe({**recipe, "loss_weights": {"answer": 1}}, "r").settings() == check_recipe(recipe, "r").settings()
    )
    settings = check_recipe({**recipe, "loss_weights": {"answer": 8}}, "r").settings()
    assert settings["loss_weights"] == {"verification": 1.0, "answer": 8.0}
    for value in (0, -1, float("inf"), True, "2", None):
        with pytest.raises(UserError, match=r"r: loss_weights\.answer should be a number above 0"):
            check_recipe({**recipe, "loss_weights": {"answer": value}}, "r")
    with pytest.raises(UserError, match="r: loss_weights has no key 'anser'"):
        check_recipe({**recipe, "loss_weights": {"anser": 2}}, "r")


def test_weights_are_refused_with_another_loss(folder, tokenizer, rows, tmp_path):
    with pytest.raises(UserError, match="loss_type and label_smoothing_factor are not for loss_weights"):
        trainer(folder, tokenizer, rows, tmp_path, label_smoothing_factor=0.1)
