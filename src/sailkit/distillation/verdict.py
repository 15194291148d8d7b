"""Sentences on what the figures of distillations show, and on their limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sailkit.distillation.results import WHO, Distillation, StudentComparison
from sailkit.rendering.numbers import change, signed
from sailkit.stats.intervals import LEAST_ROWS, Estimate

_MANY_ROWS = 50  # with fewer, intervals of the bootstrap are too narrow


def fidelity_headline(run: Distillation, figures: Mapping[str, Mapping[str, Estimate | None]]) -> str:
    """Whether the student came nearer to its teacher, in one sentence that says no more than the intervals do.

    Args:
        run: The run.
        figures: See `sailkit.distillation.results.estimates`.
    """
    rows = len(run.ids)
    before, after = (run.mean(who, "kl") for who in WHO)
    if before is None or after is None:
        return "It is not known how near the student came: nothing was held out, or there was no teacher to ask"
    words = f"{change(before, after)} nats a token"
    kl = figures["change"]["kl"]
    if kl is None:
        return f"{rows} held-out rows are too few to tell whether the student came nearer (KL to the teacher {words})"
    sentence = {
        -1: f"KL to the teacher fell ({words})",
        0: f"It cannot be told whether KL to the teacher fell ({words})",
        1: f"KL to the teacher rose ({words})",
    }[kl.sign]
    first, last = (run.mean(who, "agreement") for who in WHO)
    agreement = figures["change"]["agreement"]
    if first is not None and last is not None and agreement is not None:
        more = {1: "more often", 0: "as often, as far as can be told", -1: "less often"}[agreement.sign]
        sentence += f", and the student agrees with its likeliest token {more} ({change(first, last)})"
    return f"{sentence}, on {rows:,} held-out rows"


def ranking_headline(first: str, other: str, pair: StudentComparison) -> str:
    """Which of two students is nearer to the teacher, in one sentence.

    Args:
        first: Name of one run.
        other: Name of the other run.
        pair: Their comparison.
    """
    gap = pair.differences["kl"]
    if pair.other_settings:
        why = "and with fewer entries KL is lower by construction"
        return f"{first} and {other} cannot be ranked by KL: their targets differ in {pair.other_settings}, {why}"
    if pair.unlike or gap is None:
        return f"{first} and {other} cannot be compared: {pair.unlike or 'no position has a target'}"
    words = f"difference of KL {signed(gap.value)}, on {pair.rows:,} held-out rows of both"
    if not gap.sign:
        return f"Cannot tell whether {first} or {other} is nearer to the teacher ({words})"
    return f"{first} is {'nearer to' if gap.value < 0 else 'further from'} the teacher than {other} ({words})"


def limits(distillations: Sequence[Distillation], seed: int) -> list[str]:
    """Sentences on the limits of the figures.

    Args:
        distillations: The runs.
        seed: Seed of the bootstrap.
    """
    measured = [run for run in distillations if run.ids]
    always = [
        "Near to the teacher is not right: nothing here says whether answers are right, or better with search results "
        "than without; measure that with sailkit evaluate and compare.",
        "Each run is one training with one seed.",
    ]
    if not measured:
        return ["There were no held-out rows, or no teacher to ask: nothing is known of what was learnt.", *always]
    few = min(len(run.ids) for run in measured)
    narrow = f"; with {few} rows they are narrower than they should be" if LEAST_ROWS <= few < _MANY_ROWS else ""
    sometimes = {
        "Teacher and student have different tokens: the targets are the teacher's distributions mapped onto the "
        "student's tokens, which is an approximation.":
            any(run.metrics["held_out_targets"]["identical_tokens"] < 1 for run in measured),
        "A student that was cut out of its teacher says next to nothing before training: that it came nearer shows "
        "little; set it beside another student.": any(run.metrics["student_layers"] for run in measured),
        "The kappa of verification is not defined where both always say the same; such draws are left out of its "
        "interval.": any(run.mean("tuned", "verification_agreement") is not None for run in measured),
    }  # fmt: skip
    return [
        f"Intervals are over held-out rows (bootstrap, seed {seed}): they say nothing of another training{narrow}.",
        "All tokens that a target does not list count as one, so KL over the whole vocabulary is at least as large.",
        *(sentence for sentence, applies in sometimes.items() if applies),
        "Held-out rows are the data's own words, read by both: what a student writes by itself can be further off.",
        "The checkpoint that was kept is the one with the lowest loss on the same held-out rows.",
        *always,
    ]
