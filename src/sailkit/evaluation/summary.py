"""From predictions to figures and flags: what a set of answers is worth, and why one might doubt it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sailkit.prompts.thoughts import thought_is_open
from sailkit.records import Prediction
from sailkit.stats import metrics
from sailkit.stats.intervals import LEAST_UNITS, Counts, proportion, share

CONSTANT_SHARE = 0.98
UNREADABLE_SHARE = 0.02
GOOD_KAPPA = 0.8
# Two log-probabilities closer than this may change places with the batch that they were computed in, where a run did
# not measure its own: the most that was seen to move.
NOISE = {"bfloat16": 0.25, "float16": 0.03, "float32": 1e-5}


@dataclass(frozen=True, slots=True)
class Flag:
    """A reason to doubt a result: a code for programs and a sentence for people."""

    code: str
    message: str


def summarise(
    predictions: Sequence[Prediction],
    labels: Sequence[str],
    dtype: str | None = None,
    seed: int = 0,
    *,
    scored: bool = False,
    noise: float | None = None,
) -> tuple[dict[str, Any], list[Flag]]:
    """Figures and flags of one set of predictions.

    Where a model gave reference labels, `accuracy` and its like are against those and the same figures against
    the data set's own labels stand beside them as `human_...`; otherwise both are the same.

    Args:
        predictions: What was said; none of them is left out.
        labels: The task's labels.
        dtype: What the scores were computed in, for the noise of ties.
        seed: The bootstrap's seed.
        scored: Scores of the answer words were wanted: an answer that was read from its text is counted.
        noise: The most that a margin was seen to move with its batch, in nats; None takes what is usual for `dtype`.

    Returns:
        Flat figures with intervals as `*_low` and `*_high`, and the flags.
    """
    said = [p.predicted for p in predictions]
    outcomes = Counter(p.outcome for p in predictions)
    figures: dict[str, Any] = {"n": len(predictions), "labels": list(labels)}
    flags = constant_flags(said, labels, "the answers")
    gold = [(p.gold, p.predicted) for p in predictions if p.gold is not None]
    gold_units = units_of([p for p in predictions if p.gold is not None])
    asked = [(p.reference, p.predicted) for p in predictions if p.reference is not None]
    asked_units = units_of([p for p in predictions if p.reference is not None])
    twice = [p for p in predictions if p.reference is not None and p.gold is not None]
    both = [(str(p.reference), str(p.gold)) for p in twice]
    if groups := units_of(predictions):
        figures["groups"] = len({*groups})
    if gold or asked:
        figures["against"] = "reference" if asked else "human"
        main = asked or gold
        units = asked_units if asked else gold_units
        figures |= against(main, labels, "", seed, units) | baselines(gold or asked, labels, "")
        figures |= _score_figures(predictions, labels, figures["against"])
        figures["confusion"] = {
            "rows": list(labels),
            "columns": [*labels, *metrics.NOT_ANSWERED],
            "counts": _counts(main, labels).tolist(),
        }
        flags += few_items(len(main), len({*units}) if units else None)
    if gold:
        figures |= against(gold, labels, "human_", seed, gold_units)
        flags += _baseline_flags(figures, "human_", "", "human")
    if asked:
        figures |= baselines(asked, labels, "reference_") | {"reference_n": len(asked)}
        flags += _baseline_flags(figures, "", "reference_", "reference")
    if both:
        kappa = metrics.kappa(*zip(*both, strict=True))
        agreement = share([a == b for a, b in both], units_of(twice), seed)
        figures |= {"reference_kappa": kappa, **agreement.flat("reference_agreement")}
        # It is undefined where both give one and the same label to all, which is no disagreement.
        if kappa is not None and kappa < GOOD_KAPPA:
            text = (
                f"the reference agrees with the human labels on {agreement.value:.1%} of the items (kappa {kappa:.3f})"
            )
            flags.append(Flag("reference-disagrees", f"{text}; read the human figures first"))
    figures |= {"unreadable": outcomes["unreadable"], "refused": outcomes["refused"]}
    flags += _silence_flags(predictions, figures)
    flags += _reading_flags(predictions, scored)
    flags += _equal_prompts(predictions)
    within = NOISE.get(dtype or "", 0.0) if noise is None else noise
    ties = sum(_is_tie(p, within) for p in predictions)
    figures |= {"near_ties": ties} | ({} if noise is None else {"noise": noise})
    if ties:
        measured = "" if noise is None else f" ({noise:.2g} nats, measured on items of this run)"
        what = f"a difference within the numerical noise of {dtype or 'their scores'}{measured}"
        text = f"{ties} of {len(predictions)} answers hang on {what}"
        flags.append(Flag("near-ties", text))
    return figures, flags


def _reading_flags(predictions: Sequence[Prediction], scored: bool) -> list[Flag]:
    """The flags for how answers were come by: read although scores were wanted, or never given."""
    flags = []
    read = sum(p.answered_by == "text" and p.reason is None for p in predictions)
    if scored and read:
        text = f"{read} of {len(predictions)} answers were read from the text, without scores"
        why = "the probabilities of the first token did not decide between the answer words, or were not given"
        flags.append(Flag("read-from-text", f"{text}: {why}"))
    mend = "use --answer generate with a higher --max-new-tokens"
    if unfinished := sum(p.label is None and _is_unfinished(p.raw_output, p.thought) for p in predictions):
        text = f"{unfinished} of {len(predictions)} answers end within a thought, before any answer"
        flags.append(Flag("open-thoughts", f"{text}; {mend}"))
    if earlier := sum(any(_is_unfinished(t["raw_output"], t.get("thought")) for t in p.turns) for p in predictions):
        text = f"{earlier} of {len(predictions)} items have an earlier reply that ends within a thought"
        flags.append(Flag("open-thoughts", f"{text}: the next question was asked without it; {mend}"))
    return flags


def _is_unfinished(text: str | None, thought: str | None) -> bool:
    return thought_is_open(text or "") or bool(thought and not (text or "").strip())


def with_flags(figures: dict[str, Any], flags: Sequence[Flag]) -> dict[str, Any]:
    """Figures with their flags, as written to JSON: the codes as a list, the sentences by code."""
    messages: dict[str, list[str]] = {}
    for flag in flags:
        messages.setdefault(flag.code, []).append(flag.message)
    return {**figures, "flags": list(messages), "flag_messages": messages}


Pairs = Sequence[tuple[str, str]]


def _counts(pairs: Pairs, labels: Sequence[str]) -> Counts:
    return metrics.confusion([truth for truth, _ in pairs], [said for _, said in pairs], labels)


def units_of(predictions: Sequence[Prediction]) -> list[str] | None:
    """What is drawn and tested as one, for each prediction; None where no groups are declared."""
    return [p.unit for p in predictions] if any(p.group for p in predictions) else None


def counted(items: int, groups: int | None) -> str:
    """How much was measured on, in the units that count."""
    return f"{items} items" if groups is None else f"{groups} groups of items"


def few_items(items: int, groups: int | None, of: str = "") -> list[Flag]:
    """The flag for fewer items, or groups of them, than a verdict takes.

    Args:
        items: How many there are.
        groups: How many groups they are in, where groups are declared.
        of: What has so few, where that is to be named.
    """
    number = items if groups is None else groups
    if number >= LEAST_UNITS:
        return []
    half = proportion(number / 2, number)
    text = f"{counted(items, groups)}{of} are too few for a verdict, which takes {LEAST_UNITS}"
    return [Flag("few-items", f"{text}: an accuracy of 0.5 could be anything from {half.low:.2f} to {half.high:.2f}")]


def against(
    pairs: Pairs, labels: Sequence[str], prefix: str, seed: int = 0, groups: Sequence[str] | None = None
) -> dict[str, Any]:
    """Figures of one labelling against one truth, with a prefix to every name.

    Args:
        pairs: The true label, and the label or outcome, of each item.
        labels: The task's labels.
        prefix: Put before every name.
        seed: The bootstrap's seed.
        groups: The group of each item, which is then drawn whole; None where items are drawn.
    """
    units = metrics.confusion_units([truth for truth, _ in pairs], [said for _, said in pairs], labels, groups)
    counts = units.table
    figures: dict[str, Any] = {}
    for name, estimate in metrics.confusion_estimates(units, labels, seed).items():
        figures |= estimate.flat(f"{prefix}{name}")
    low, high = metrics.bounds(counts)
    return figures | {
        f"{prefix}accuracy_if_unanswered_wrong": low,
        f"{prefix}accuracy_if_unanswered_right": high,
    }


def baselines(pairs: Pairs, labels: Sequence[str], prefix: str) -> dict[str, Any]:
    """What answering without looking reaches against one truth."""
    counts = _counts(pairs, labels)
    return {
        f"{prefix}majority_label": labels[int(counts.sum(-1).argmax())],
        f"{prefix}majority_accuracy": metrics.majority_accuracy(counts),
        f"{prefix}majority_macro_f1": metrics.majority_macro_f1(counts),
        f"{prefix}prior_accuracy": metrics.prior_accuracy(counts),
    }


def constant_flags(said: Sequence[str], labels: Sequence[str], what: str) -> list[Flag]:
    """The flag for a labelling that is one class throughout."""
    if not said:
        return []
    label, count = Counter(said).most_common(1)[0]
    if label not in labels or count / len(said) < CONSTANT_SHARE:
        return []
    share = f"{count} of {len(said)} items ({count / len(said):.1%})"
    text = f"{what} are {label} for {share}: a constant, whatever its accuracy"
    return [Flag("constant-predictor", text)]


def _baseline_flags(figures: dict[str, Any], prefix: str, base_prefix: str, name: str) -> list[Flag]:
    low, high = (figures[f"{prefix}accuracy_{end}"] for end in ("low", "high"))
    base = figures[f"{base_prefix}majority_accuracy"]
    interval = f"accuracy against the {name} labels, 95 % interval {low:.4f} to {high:.4f}"
    if high < base:
        return [
            Flag(
                "below-baseline",
                f"{interval}, is below always answering the most frequent label ({base:.4f})",
            )
        ]
    if low <= base:
        return [
            Flag(
                "baseline-within-interval",
                f"{interval}, includes always answering the most frequent label ({base:.4f})",
            )
        ]
    return []


def _silence_flags(predictions: Sequence[Prediction], figures: Mapping[str, Any]) -> list[Flag]:
    """The flag for answers without a label, with what they could be worth."""
    silent = sum(p.label is None for p in predictions)
    if not predictions or silent / len(predictions) <= UNREADABLE_SHARE:
        return []
    text = f"{silent} of {len(predictions)} answers ({silent / len(predictions):.1%}) give no label"
    if "against" in figures:
        ends = (figures[f"accuracy_if_unanswered_{end}"] for end in ("wrong", "right"))
        text += "; were all of them wrong or all right, the accuracy would be {:.4f} or {:.4f}".format(*ends)
    return [Flag("unreadable-answers", text)]


def _equal_prompts(predictions: Sequence[Prediction]) -> list[Flag]:
    """The flag for a prompt that was given for items with different texts."""
    texts: dict[str, set[str]] = {}
    for p in predictions:
        texts.setdefault(p.prompt_fingerprint or p.prompt, set()).add(p.text)
    several = {prompt for prompt, own in texts.items() if prompt and len(own) > 1}
    count = sum((p.prompt_fingerprint or p.prompt) in several for p in predictions)
    if not count:
        return []
    text = f"{count} of {len(predictions)} items have the prompt of an item with another text"
    return [Flag("equal-prompts", f"{text}: their answers cannot depend on what differs")]


def _score_figures(predictions: Sequence[Prediction], labels: Sequence[str], truth: str) -> dict[str, Any]:
    """AUROC and calibration, where every item has probabilities."""
    if not all(p.scores for p in predictions):
        return {"auroc": None, "ece": None}
    pairs = [(p, p.reference if truth == "reference" else p.gold) for p in predictions]
    known = [(p, str(label)) for p, label in pairs if label is not None]
    scores = [p.scores for p, _ in known]
    right = [p.label == label for p, label in known]
    return {
        "auroc": metrics.auroc([label for _, label in known], scores, labels),
        "ece": metrics.expected_calibration_error([max(s.values()) for s in scores], right),
    }


def _is_tie(prediction: Prediction, noise: float) -> bool:
    # The probabilities decided, and calibration is in them; the answers' own log-probabilities are from before it.
    first, second, *_ = [*sorted(prediction.scores.values(), reverse=True), 0.0, 0.0]
    return second > 0 and math.log(first / second) <= noise
