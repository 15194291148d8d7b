"""What a model flags: against every verification sentence scored by itself, in one plain pass each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, get_args

import pytest
import torch
from sklearn.metrics import accuracy_score, matthews_corrcoef, precision_score, recall_score, roc_auc_score
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from sailkit.distributed import Processes
from sailkit.models import local
from sailkit.models.base import ModelOptions
from sailkit.models.load import load_model
from sailkit.models.local import LocalModel
from sailkit.models.shared_prefix import tree_nodes
from sailkit.prompts.sail import ExampleRenderer, Order
from sailkit.records import SearchResult, TrainingExample
from sailkit.training.flagging import _flags_of, flagging, sentence_ids, verdicts
from small_rows import example

EXAMPLES = [example(i) for i in range(12)]
LABELS = [judgement == "distracting" for row in EXAMPLES for judgement in row.judgements]


@pytest.fixture(scope="module")
def model(shared) -> LocalModel:
    """A random model that is sure of itself: it flags some results, and not others."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=512, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=512, initializer_range=0.4,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "stories260k")
    return LocalModel("random", LlamaForCausalLM(config).eval(), tokenizer, ModelOptions(), {})


def deciding(sentences: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Each sentence up to the first token that no other one shares with it."""
    return [next(s[:n] for n in range(1, len(s) + 1) if sum(s[:n] == t[:n] for t in sentences) == 1) for s in sentences]


def logprobs(model: Any, row: Any, cut: Callable[[Any], Any], order: Order) -> dict[tuple[str, ...], float]:
    """The log-probability of each way to judge the search results of an example, in nats."""
    ways = list(product(("informative", "distracting"), repeat=len(row.results)))
    renderer = ExampleRenderer(model.tokenizer, order=order)
    rendered = [renderer.render(replace(row, judgements=way)) for way in ways]
    prompt = rendered[0].ids[: rendered[0].verification[0]]
    assert (len(prompt) == len(rendered[0].ids) - len(rendered[0].supervised)) == (order == "verify-first")
    scores = []
    for tokens in cut([way.ids[way.verification[0] :] for way in rendered]):
        with torch.inference_mode():
            logits = model.model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        scores.append(float(logits.log_softmax(-1)[range(len(tokens)), list(tokens)].sum()))
    return dict(zip(ways, scores, strict=True))


def expected(
    model: Any,
    cut: Callable[[Any], Any] = deciding,
    order: Order = "verify-first",
    rows: Sequence[TrainingExample] = EXAMPLES,
) -> tuple[list[bool], list[float]]:
    """For each search result whether it is flagged, and P(distracting)."""
    decided, likely = [], []
    for row in rows:
        scores = logprobs(model, row, cut, order)
        shares = torch.tensor(list(scores.values()), dtype=torch.float64).softmax(0).tolist()
        for i in range(len(row.results)):
            decided.append(max(scores, key=scores.__getitem__)[i] == "distracting")
            likely.append(sum(p for way, p in zip(scores, shares, strict=True) if way[i] == "distracting"))
    return decided, likely


@pytest.mark.parametrize("order", get_args(Order))
def test_the_likeliest_sentence_decides_and_its_share_is_the_probability(model, order):
    decided, likely = expected(model, order=order)
    assert {"rows": len(EXAMPLES), "results": len(LABELS)} | {
        "mcc": pytest.approx(matthews_corrcoef(LABELS, decided)),
        "auroc": pytest.approx(roc_auc_score(LABELS, likely)),
        "accuracy": pytest.approx(accuracy_score(LABELS, decided)),
        "precision": pytest.approx(precision_score(LABELS, decided)),
        "recall": pytest.approx(recall_score(LABELS, decided)),
    } == flagging(model, EXAMPLES, 512, order=order)
    # By other rules the figures would be others.
    assert roc_auc_score(LABELS, likely) != pytest.approx(0.5)
    assert roc_auc_score(LABELS, expected(model, list, order)[1]) != pytest.approx(roc_auc_score(LABELS, likely))


def test_verdicts_are_those_of_the_likeliest_sentence(model):
    decided = iter(expected(model)[0])
    assert verdicts(model, EXAMPLES, 512) == {row.id: tuple(next(decided) for _ in row.results) for row in EXAMPLES}
    assert list(decided) == []


# Memory


def six_results(i: int) -> TrainingExample:
    results = tuple(SearchResult(f"{thing} are {i}." + " Tom ran." * (i * n % 3), thing) for n, thing in enumerate(SIX))
    judgements = tuple("distracting" if (i + n) % 3 else "informative" for n in range(6))
    return TrainingExample(str(i), "How many?", "", results, judgements, f"{i}.", "sail-fixed")


SIX = ["Dogs", "Cats", "Birds", "Boats", "Trees", "Kings"]
ROWS = [six_results(i) for i in range(9)]


@pytest.fixture(scope="module")
def stories(shared) -> LocalModel:
    return load_model(str(shared / "models" / "stories260k"), ModelOptions(dtype="float32"))


def sentences(model: LocalModel) -> list[tuple[int, ...]]:
    return sentence_ids(ExampleRenderer(model.tokenizer), "sail-fixed", 6)


def flags(model: LocalModel, rows: Sequence[TrainingExample]) -> tuple[list[bool], list[float]]:
    """For each search result whether it is flagged, and P(distracting), in the order of the rows."""
    found = sorted(_flags_of(model, rows, 512, Processes()), key=lambda flag: int(flag.example_id))
    assert [flag.labelled for flag in found] == [judged == "distracting" for row in rows for judged in row.judgements]
    return [flag.predicted for flag in found], [flag.probability for flag in found]


@pytest.mark.parametrize(("tokens", "logits"), [(4000, 2**27), (2**20, 512 * 5000), (1, 2**27)])
def test_the_budget_of_a_pass_counts_every_node_of_the_tree(stories, monkeypatch, tokens, logits):
    monkeypatch.setattr(stories, "batch_tokens", tokens)
    monkeypatch.setattr(local, "_PASS_LOGITS", logits)
    tree = len(tree_nodes(tuple(sentences(stories)))) + 1
    assert 1000 < tree < 2000, "two rows in 4000 tokens, three in 5000 positions"
    at_once: list[int] = []  # positions whose logits a pass computes
    head = stories.model.get_output_embeddings()
    handle = head.register_forward_hook(lambda _, inputs, out: at_once.append(out.shape[:-1].numel()))
    try:
        found = flags(stories, ROWS)
    finally:
        handle.remove()
    assert sum(at_once) == tree * len(ROWS)
    assert max(at_once) <= max(tree, min(tokens, logits // 512))
    if tokens > 1:
        assert max(at_once) > tree, "several rows share a pass"
    decided, likely = expected(stories, rows=ROWS[:2])
    assert (found[0][:12], found[1][:12]) == (decided, pytest.approx(likely, abs=1e-5))


@pytest.mark.parametrize("shared_passes", [True, False], ids=["shared", "unshared"])
def test_a_plan_has_every_prompt_once_and_logits_within_half_a_gigabyte(stories, monkeypatch, shared_passes):
    monkeypatch.setattr(stories, "batch_tokens", 10**9)
    monkeypatch.setattr(stories, "shared", shared_passes)
    lengths = [100 + i % 7 for i in range(100_000)]
    plan = stories.plan_ids(lengths, sentences(stories))
    assert sorted(i for batch in plan for i in batch) == list(range(len(lengths)))
    each = len(tree_nodes(tuple(sentences(stories)))) + 1 if shared_passes else max(map(len, sentences(stories)))
    sizes = [len(batch) * each * 512 * 4 for batch in plan]
    assert max(sizes) <= 2**29
    assert max(sizes) > 0.9 * 2**29
