"""The projection entry by entry, as it is defined; `sailkit.distillation.project` computes the same bits in arrays."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np

from sailkit.distillation.project import Target
from sailkit.distillation.records import ALIGNED, CONDITIONED, NONE
from sailkit.errors import UserError

END, NO_TOKEN = -1, -2


class SlowProjection:
    """See `sailkit.distillation.project.Projection`."""

    def __init__(self, teacher, student, ends, min_mass=0.1, expand=True):
        self.teacher, self.student, self.ends = teacher, student, ends
        self.min_mass, self.expand = min_mass, expand
        self.habits = {}

    def learn_habits(self, pairs):
        counts = defaultdict(Counter)
        for teacher, student in pairs:
            at = dict(zip(student.starts.tolist(), student.tokens.tolist(), strict=True))
            for start, token in zip(teacher.starts[:-1].tolist(), teacher.tokens[:-1].tolist(), strict=True):
                if start in at and token not in self.ends:
                    counts[token][at[start]] += 1
        for token, observed in counts.items():
            observed[self.token(b"", token)] += 0.5
            self.habits[token] = [(other, n / observed.total()) for other, n in observed.items()]

    def piece(self, token):
        return self.teacher.pieces[token] or b""

    def token(self, prefix, token):
        text = prefix + self.piece(token)
        return self.first(text) if text else END if token in self.ends else NO_TOKEN

    def first(self, text):
        try:
            return self.student.first_token(text)
        except UserError:
            return NO_TOKEN

    def targets(self, row, teacher, student):
        self.lists, self.stream, self.observed = distributions(row), teacher, teacher.tokens.tolist()
        return [self.target(i, teacher, student) for i in range(len(student.tokens))]

    def target(self, i, teacher, student):
        start, is_last = int(student.starts[i]), i == len(student.tokens) - 1
        trailing = len(teacher.data) + int(teacher.starts[0]) > teacher.length
        if start >= student.length and (trailing or not is_last or start > student.length):
            return Target({}, 1.0, NONE)
        j = max(int(np.searchsorted(teacher.starts, start, side="right")) - 1, 0)
        at = int(teacher.starts[j])
        seen = teacher.between(at, start) if at < start else b""
        before = student.between(start, at) if start < at else b""
        end = start if is_last else int(student.starts[i + 1])
        mass, agreeing = defaultdict(float), 0.0
        entries, tail = self.lists[j]
        for token, p in entries:
            piece = self.piece(token)
            if seen:
                if len(piece) <= len(seen) or not piece.startswith(seen):
                    continue
                agreeing += p
            if token == self.observed[j] and self.expand and piece:
                self.follow(mass, p, j + 1, before + piece[len(seen) :], start, end)
            elif seen:
                mass[self.first(piece[len(seen) :])] += p
            elif not before and token in self.habits:
                for other, share in self.habits[token]:
                    mass[other] += p * share
            else:
                mass[self.token(before, token)] += p
        if seen and agreeing < self.min_mass:
            return Target({}, 1.0, NONE)
        scale = (1 - tail) / agreeing if seen else 1.0
        last = int(student.tokens[-1])
        probs = {last if token == END else token: p * scale
                 for token, p in mass.items() if token != NO_TOKEN and p * scale > 1e-6}  # fmt: skip
        return Target(probs, max(1 - in_order(probs.values()), 0.0), CONDITIONED if seen else ALIGNED)

    def follow(self, mass, p, j, text, start, end):
        so_far = self.first(text)
        if start + len(text) > end or len(text) > 256:
            mass[so_far] += p
            return
        entries, tail = self.lists[j]
        mass[so_far] += p * tail
        for token, q in entries:
            if token == self.observed[j] and self.piece(token):
                self.follow(mass, p * q, j + 1, text + self.piece(token), start, end)
            else:
                mass[self.token(text, token)] += p * q


def distributions(row):
    lists = []
    for i, token in enumerate(row.tokens.tolist()):
        here = slice(row.starts[i], row.starts[i + 1])
        ids, probs = row.ids[here].tolist(), np.exp(row.logprobs[here].astype(np.float64)).tolist()
        tail = float(row.tail[i])
        if token not in ids:
            p = min(float(np.exp(np.float64(row.observed[i]))), tail)
            ids, probs, tail = [*ids, token], [*probs, p], tail - p
        total = in_order(probs) + tail
        lists.append(([(i, p / total) for i, p in zip(ids, probs, strict=True)], tail / total))
    return lists


def in_order(values):
    """The plain sum in floating point; the `sum` of later Pythons corrects its rounding."""
    total = 0.0
    for value in values:
        total += value
    return total
