"""How far projected targets are from an ideal student's, on a language of real words whose every conditional is known.

    python benchmarks/projection.py --shared ../shared/data

The language is the bigram model of Climate-FEVER's claims: maximum likelihood over words between white space, without
smoothing, with a beginning and an end. A word's tokens do not depend on its neighbours in either tokenizer (checked for
every sentence), so the distribution of the next token behind any beginning is a finite sum over words, for the teacher
(LLaMA's real tokenizer) and for the student (Qwen's). Sentences are drawn from the language. The teacher knows it: its
rows are the exact conditionals. An ideal student knows it too; at each student position that has a target,

    TV = (sum over tokens of |ideal - target| + the target's tail) / 2

and the mean over all of these positions is printed, with the 95 % interval of a bootstrap over sentences. A tail is an
error in full, as in the tests' grammar: it says of no token how likely it is. The last row is what `distill` does by
default: at most 64 entries up to a probability of 0.999, in float16, then all of the projection. What is cut off there
is no token's, so its error is also given with the tail as one more token, on both sides, as the loss takes it.
"""

from __future__ import annotations

import argparse
import random
import time
import unicodedata
from collections import Counter, defaultdict
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer, LlamaTokenizer

from sailkit.distillation.align import Vocabulary, byte_stream
from sailkit.distillation.project import Projection
from sailkit.distillation.records import NONE
from sailkit.distillation.teacher import TopK
from sailkit.files import jsonl

BEFORE = "x\n"  # a prompt's last characters: the tokenizers cut at the end of the line
EDGE = ""  # the word before the first, and behind the last
WHOLE = TopK(10**6, 1.0, "float64")
SHIPPED = TopK(64, 0.999, "float16")
WAYS = {  # name: path expansion, habits, what is kept of the teacher
    "first token only": (False, False, WHOLE),
    "with learnt habits": (False, True, WHOLE),
    "with path expansion": (True, False, WHOLE),
    "with both": (True, True, WHOLE),
    "with both, from the default cache (64, 0.999, float16)": (True, True, SHIPPED),
}


class Bigrams:
    """A language of words, each of which depends on the one before."""

    def __init__(self, claims):
        counts = defaultdict(Counter)
        for claim in claims:
            for word, after in pairwise([EDGE, *unicodedata.normalize("NFC", claim).split(), EDGE]):
                counts[word][after] += 1
        self.following = {word: {after: n / seen.total() for after, n in seen.items()} for word, seen in counts.items()}

    def draw(self, n, seed):
        """Sentences, each a list of words."""
        rng = random.Random(seed)
        sentences = []
        for _ in range(n):
            words = [EDGE]
            while len(words) == 1 or words[-1] != EDGE:
                following = self.following[words[-1]]
                words += rng.choices(list(following), weights=list(following.values()))
            sentences.append(words[1:-1])
        return sentences


class Side:
    """The language in the tokens of one tokenizer."""

    def __init__(self, language, tokenizer):
        self.language, self.vocabulary, self.end = language, Vocabulary(tokenizer), tokenizer.eos_token_id

        def tokens_behind(text, words):
            head = tokenizer(text, add_special_tokens=False)["input_ids"]
            rows = [tokenizer(text + word, add_special_tokens=False)["input_ids"] for word in words]
            assert all(row[: len(head)] == head for row in rows)
            return {word: tuple(row[len(head) :]) for word, row in zip(words, rows, strict=True)}

        words = [word for word in language.following if word != EDGE]
        spaced = tokens_behind(BEFORE + "a", [" " + word for word in words])
        self.within = {word.removeprefix(" "): tokens for word, tokens in spaced.items()}
        self.first = tokens_behind(BEFORE, language.following[EDGE])
        self.tokenizer = tokenizer
        self.table, self.leads = cache(self._table), cache(self._leads)

    def words(self, before):
        """Tokens of each word that may follow, and its probability; the end is left out."""
        tokens = self.first if before == EDGE else self.within
        return [(word, tokens[word], p) for word, p in self.language.following[before].items() if word != EDGE]

    def _leads(self, word):
        """Behind a whole word: the first token of the next one, or the end."""
        leads = defaultdict(float)
        for after, p in self.language.following[word].items():
            leads[self.end if after == EDGE else self.within[after][0]] += p
        return leads

    def _table(self, before):
        """Behind a word: beginning of what follows -> next token -> probability."""
        mass = defaultdict(lambda: defaultdict(float))
        for word, tokens, p in self.words(before):
            for n in range(len(tokens)):
                mass[tokens[:n]][tokens[n]] += p
            for token, q in self.leads(word).items():
                mass[tokens][token] += p * q
        return {begun: {t: p / sum(row.values()) for t, p in row.items()} for begun, row in mass.items()}

    def lay(self, words):
        """A sentence's tokens with the end, and what a model that knows the language thinks at each."""
        row, lists = [], [self.table(EDGE)[()]]
        for before, word in pairwise([EDGE, *words]):
            tokens = (self.first if before == EDGE else self.within)[word]
            lists += [self.table(before)[tokens[:n]] for n in range(1, len(tokens) + 1)]
            row += tokens
        whole = self.tokenizer(BEFORE + " ".join(words), add_special_tokens=False)["input_ids"]
        assert whole[-len(row) :] == row
        return [*row, self.end], lists

    def stream(self, words):
        """A sentence laid out in bytes."""
        return byte_stream(self.vocabulary, self.lay(words)[0], " ".join(words))


def teacher_row(tokens, lists, kept):
    """What a teacher that knows the language has in a cache."""
    width = max(map(len, lists))
    ids, logprobs = np.zeros((len(lists), width), np.int64), np.full((len(lists), width), -np.inf)
    for i, row in enumerate(lists):
        ordered = sorted(row.items(), key=lambda item: -item[1])
        ids[i, : len(row)], logprobs[i, : len(row)] = [t for t, _ in ordered], np.log([p for _, p in ordered])
    observed = np.log([row[token] for row, token in zip(lists, tokens, strict=True)])
    return kept.row(tokens, ids, logprobs, np.zeros(len(lists)), observed)


def errors(projection, teacher, student, sentences, kept):
    """Of each sentence: summed TV, the same with the tail as a token, positions with a target, all positions."""
    rows = []
    for words in sentences:
        (tokens, lists), (_, ideals) = teacher.lay(words), student.lay(words)
        cached = teacher_row(tokens, lists, kept)
        targets = projection.targets(cached, teacher.stream(words), student.stream(words))
        sums = np.zeros(4)
        for ideal, target in zip(ideals, targets.unpack(), strict=True):
            sums[3] += 1
            if target.kind != NONE:
                listed = sum(abs(ideal.get(token, 0.0) - p) for token, p in target.probs.items())
                others = sum(p for token, p in ideal.items() if token not in target.probs)
                sums[:3] += (listed + others + target.tail) / 2, (listed + abs(others - target.tail)) / 2, 1
        rows.append(sums)
    return np.array(rows)


def interval(rows, column):
    n = len(rows)
    weights = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), 2000)
    drawn = (weights @ rows[:, column]) / (weights @ rows[:, 2])
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"{rows[:, column].sum() / rows[:, 2].sum():.4f} [{low:.4f}, {high:.4f}]"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="the shared data")
    parser.add_argument("--sentences", type=int, default=300, help="to measure on")
    parser.add_argument("--learn", type=int, default=1000, help="sentences of another draw, to learn habits from")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    claims = [row["claim"] for _, row in jsonl.read_rows(options.shared / "climate-fever" / "climate-fever.jsonl")]
    language = Bigrams(claims)
    teacher = Side(language, LlamaTokenizer.from_pretrained(options.shared / "tokenizers" / "llama"))
    student = Side(language, AutoTokenizer.from_pretrained(options.shared / "tokenizers" / "qwen"))
    sentences = language.draw(options.sentences, options.seed)
    known = [(teacher.stream(words), student.stream(words)) for words in language.draw(options.learn, options.seed + 1)]
    print(
        f"{len(claims):,} claims, {len(language.following) - 1:,} words; {len(sentences)} sentences of "
        f"{np.mean([len(words) for words in sentences]):.1f} words, habits from {len(known):,} of another draw\n"
    )
    print("| | TV | with the tail as a token | positions with a target | seconds |\n| --- | --- | --- | --- | --- |")
    for name, (expand, learn, kept) in WAYS.items():
        begun = time.perf_counter()
        projection = Projection(teacher.vocabulary, student.vocabulary, frozenset([teacher.end]), expand=expand)
        if learn:
            projection.learn_habits(known)
        rows = errors(projection, teacher, student, sentences, kept)
        share = rows[:, 2].sum() / rows[:, 3].sum()
        cells = [name, interval(rows, 0), interval(rows, 1), f"{share:.4f} of {rows[:, 3].sum():,.0f}"]
        print("| " + " | ".join([*cells, f"{time.perf_counter() - begun:.0f}"]) + " |", flush=True)


if __name__ == "__main__":
    main()
