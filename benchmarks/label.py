"""How fast `sailkit label` is: side by side with the loops of the project that it succeeds, on the same pairs.

    python benchmarks/label.py --shared ../shared/data

An NLI model of the size of DeBERTa-v3-small with seeded random weights (speed does not depend on them) against one row
at a time in batches of three; `smollm2-135m` as a judge by log-probability against generating the judgement. Medians.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoTokenizer, DebertaV2Config, DebertaV2ForSequenceClassification
from transformers.utils import logging

from sailkit.labeling.entailment import Entailment
from sailkit.labeling.human import read_judgements
from sailkit.labeling.judge import Judge
from sailkit.models.base import SCORE_RESERVE, ModelOptions
from sailkit.models.sources import resolve_encoder

LABELS = ["entailment", "neutral", "contradiction"]
DATA = {
    "Climate-FEVER": "climate-fever/climate-fever.jsonl",
    "Factcheck-GPT": "factcheckgpt/subtask3_claim_evidence_stance.jsonl",
}
THEIR_BATCH = 3


def timed(work, rounds):
    """Median seconds of a call, and its last result."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), result


def show(name, value, note=""):
    print(f"{name:<66} {value:>9}  {note}", flush=True)


def read_rows(path, count):
    """Claims with their search results: lists of pairs."""
    every = read_judgements(path).pairs
    rows = [[one.pair for one in group] for _, group in itertools.groupby(every, key=lambda one: one.claim)]
    return rows[:count]


def make_nli(folder):
    """A classifier as large as microsoft/deberta-v3-small, with a real tokenizer."""
    torch.manual_seed(0)
    config = DebertaV2Config(
        vocab_size=128100, hidden_size=768, num_hidden_layers=6, num_attention_heads=12, intermediate_size=3072,
        max_position_embeddings=512, relative_attention=True, position_buckets=256, norm_rel_ebd="layer_norm",
        share_att_key=True, pos_att_type="p2c|c2p", type_vocab_size=0, position_biased_input=False,
        max_relative_positions=-1, layer_norm_eps=1e-7, id2label=dict(enumerate(LABELS)),
        label2id={name: i for i, name in enumerate(LABELS)},
    )  # fmt: skip
    DebertaV2ForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(resolve_encoder("minilm-l6-v2").folder, model_max_length=512).save_pretrained(folder)


def ours_entailing(labeler, rows):
    labeler._sequences.cache_clear()
    pairs = [pair for row in rows for pair in row]
    found = [0.0] * len(pairs)
    for batch in labeler.plan(pairs):
        for i, score in zip(batch, labeler.score([pairs[i] for i in batch])):
            found[i] = score.score
    return found


@torch.inference_mode()
def theirs_entailing(labeler, rows):
    """One row at a time, three at a time, padded to the longest; the published forward pass on the same tokens."""
    labeler._sequences.cache_clear()
    found = []
    for row in rows:
        made = [labeler._sequences(pair)[0] for pair in row]
        every = [list(ids) for sequences in made for ids, _ in sequences]
        values = []
        for start in range(0, len(every), THEIR_BATCH):
            batch = labeler._tokenizer.pad({"input_ids": every[start : start + THEIR_BATCH]}, return_tensors="pt")
            values += labeler._model(**batch).logits.float().softmax(-1)[:, 0].tolist()
        each = iter(values)
        found += [max(next(each) for _ in sequences) for sequences in made]
    return found


def entailing(shared, folder, count, rounds):
    for dtype in ("auto", "float32"):
        labeler = Entailment(str(folder), dtype=dtype)
        name = str(labeler._model.dtype).removeprefix("torch.")
        for data, path in DATA.items():
            rows = read_rows(shared / path, count)
            pairs = [pair for row in rows for pair in row]
            lengths = [len(ids) for pair in pairs for ids, _ in labeler._sequences(pair)[0]]
            ours_entailing(labeler, rows[:2])
            theirs_entailing(labeler, rows[:2])
            seconds, found = timed(lambda: ours_entailing(labeler, rows), rounds)
            theirs, expected = timed(lambda: theirs_entailing(labeler, rows), rounds)
            n = len(pairs)
            show(
                f"{name}, NLI, {data}: one row at a time / sailkit",
                f"{theirs / seconds:.2f}x",
                f"aim >= 3x; {n / seconds:.1f} against {n / theirs:.1f} pairs/s, {sum(lengths) / n:.0f} tokens a pair",
            )
            apart = max(abs(a - b) for a, b in zip(found, expected))
            spread = f"scores from {min(expected):.2f} to {max(expected):.2f}"
            show(f"{name}, NLI, {data}: largest difference of a score", f"{apart:.1e}", spread)


@torch.inference_mode()
def generate_each(model, every, count, **limits):
    """Median seconds of one pair, generated one at a time, and the median of tokens generated."""
    seconds, made = [], []
    for ids in every[:count]:
        start = time.perf_counter()
        inputs = torch.tensor([ids])
        out = model.model.generate(
            inputs, attention_mask=torch.ones_like(inputs), do_sample=False, pad_token_id=0, **limits
        )
        model.tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)
        seconds.append(time.perf_counter() - start)
        made.append(out.shape[1] - len(ids))
    return statistics.median(seconds), statistics.median(made)


def judging(shared, count, slow, rounds):
    judge = Judge("smollm2-135m", ModelOptions())
    model = judge._model
    dtype = str(model.dtype).removeprefix("torch.")
    rows = read_rows(shared / DATA["Climate-FEVER"], count)
    pairs = [pair for row in rows for pair in row]

    def ours():
        model._rendered.cache_clear()
        model.shared_prefix._prefixes.clear()
        for batch in judge.plan(pairs):
            judge.score([pairs[i] for i in batch])

    ours()
    seconds = timed(ours, rounds)[0] / len(pairs)
    every = [model.render(judge.prompt(pair), SCORE_RESERVE).ids for pair in pairs]
    generate_each(model, every, 1, max_new_tokens=8)
    for what, few, aim, limits in (
        ("up to 512 tokens, stopping by itself", 4 * slow, "", {"max_new_tokens": 512}),
        ("512 tokens, all of them", slow, "aim >= 20x; ", {"max_new_tokens": 512, "min_new_tokens": 512}),
        ("8 tokens, all of them", 4 * slow, "", {"max_new_tokens": 8, "min_new_tokens": 8}),
    ):
        theirs, made = generate_each(model, every, few, **limits)
        show(
            f"{dtype}, judge: generating {what} / sailkit",
            f"{theirs / seconds:.1f}x",
            f"{aim}{1 / seconds:.1f} against {1 / theirs:.2f} pairs/s; {made:.0f} tokens generated (median)",
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="the folder of the shared data")
    parser.add_argument("--rows", type=int, default=40, help="claims of each data set, with five results each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="few pairs, one round: does it run")
    options = parser.parse_args()
    slow = 4
    if options.smoke:
        options.rows, options.rounds, slow = 2, 1, 1
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    print(f"{options.rows} claims, medians of {options.rounds}, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as folder:
        make_nli(Path(folder))
        entailing(options.shared, Path(folder), options.rows, options.rounds)
    judging(options.shared, options.rows, slow, options.rounds)


if __name__ == "__main__":
    main()
