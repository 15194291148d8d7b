"""Computes figures with intervals, and flags that question them, from predictions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from sailkit.evaluation.figures import Baselines, ConfusionTable, Flag, LabelFigures, ReferenceLabels, Summary, Truth
from sailkit.evaluation.flagging import flagging
from sailkit.evaluation.predictions import units_of
from sailkit.evaluation.selective import Selective, selective
from sailkit.prompts.thoughts import thought_is_open
from sailkit.records import Prediction
from sailkit.stats import metrics
from sailkit.stats.intervals import LEAST_UNITS, Counts, proportion, share

CONSTANT_SHARE = 0.98
UNREADABLE_SHARE = 0.02
GOOD_KAPPA = 0.8
# How much a margin between two log-probabilities depends on its batch, in nats, for runs that did not measure it; a
# smaller margin is a tie.
USUAL_NOISE = {"bfloat16": 0.25, "float16": 0.03, "float32": 1e-5}


def summarise_predictions(
    predictions: Sequence[Prediction],
    labels: Sequence[str],
    dtype: str | None = None,
    seed: int = 0,
    *,
    scored: bool = False,
    noise: float | None = None,
) -> Summary:
    """Figures and flags of one set of predictions.

    With labels of a reference model, the main figures are against those, and separate figures are against the data
    set's labels; otherwise both are the same.

    Args:
        predictions: The answers; none of them is left out.
        labels: The task's labels.
        dtype: Number format of the scores, for the noise of ties.
        seed: The bootstrap's seed.
        scored: Whether answer words should have been scored; if so, answers parsed from their text are flagged.
        noise: The largest change of a margin with its batch, in nats; None for the usual value of `dtype`.
    """
    flags = constant_flags([p.predicted for p in predictions], labels, "the answers")
    with_gold = [p for p in predictions if p.gold is not None]
    with_reference = [p for p in predictions if p.reference is not None]
    gold = [(str(p.gold), p.predicted) for p in with_gold]
    reference = [(str(p.reference), p.predicted) for p in with_reference]
    groups = units_of(predictions)
    main = human = base = reference_labels = confusion = auroc = ece = None
    chosen: Selective | None = None
    truth: Truth | None = "reference" if reference else "human" if gold else None
    if truth:
        pairs, judged = (reference, with_reference) if reference else (gold, with_gold)
        units = units_of(judged)
        main = label_figures(pairs, labels, seed, units)
        base = baseline_figures(gold or reference, labels)
        confusion = _confusion(pairs, labels)
        auroc, ece = _score_figures(predictions, labels, truth)
        chosen = selective(judged, [label for label, _ in pairs], labels, seed)
        flags += few_items(len(pairs), len({*units}) if units else None)
    if gold and base:
        human = main if main and truth == "human" else label_figures(gold, labels, seed, units_of(with_gold))
        flags += _baseline_flags(human, base, "human")
    if reference and main:
        reference_labels, more = _reference_labels(with_reference, labels, seed)
        flags += _baseline_flags(main, reference_labels.baselines, "reference") + more
    flags += _silence_flags(predictions, main) + _reading_flags(predictions, scored) + _equal_prompts(predictions)
    within = USUAL_NOISE.get(dtype or "", 0.0) if noise is None else noise
    ties = sum(_is_tie(p, within) for p in predictions)
    if ties:
        measured = "" if noise is None else f" ({noise:.2g} nats, measured on items of this run)"
        what = f"a difference within the numerical noise of {dtype or 'their scores'}{measured}"
        flags.append(Flag("near-ties", f"{ties} of {len(predictions)} answers hang on {what}"))
    return Summary(
        n=len(predictions),
        labels=tuple(labels),
        groups=len({*groups}) if groups else None,
        against=truth,
        main=main,
        human=human,
        baselines=base,
        reference=reference_labels,
        confusion=confusion,
        auroc=auroc,
        ece=ece,
        unreadable=sum(p.outcome == "unreadable" for p in predictions),
        refused=sum(p.outcome == "refused" for p in predictions),
        near_ties=ties,
        noise=noise,
        flagging=flagging(predictions, seed),
        selective=chosen,
        flags=tuple(flags),
    )


def _reference_labels(
    predictions: Sequence[Prediction], labels: Sequence[str], seed: int
) -> tuple[ReferenceLabels, list[Flag]]:
    """The figures of a reference's labels, and the flag for disagreement with the data set's labels."""
    base = baseline_figures([(str(p.reference), p.predicted) for p in predictions], labels)
    both = [p for p in predictions if p.gold is not None]
    if not both:
        return ReferenceLabels(len(predictions), base), []
    kappa = metrics.kappa([str(p.reference) for p in both], [str(p.gold) for p in both])
    agreement = share([p.reference == p.gold for p in both], units_of(both), seed)
    flags = []
    # Kappa is not defined if both give the same label to all items, which is no disagreement.
    if kappa is not None and kappa < GOOD_KAPPA:
        text = f"the reference agrees with the human labels on {agreement.value:.1%} of the items (kappa {kappa:.3f})"
        flags.append(Flag("reference-disagrees", f"{text}; read the human figures first"))
    return ReferenceLabels(len(predictions), base, kappa, agreement), flags


def _reading_flags(predictions: Sequence[Prediction], scored: bool) -> list[Flag]:
    """The flags for answers that were parsed instead of scored, or that end within a thought."""
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


Pairs = Sequence[tuple[str, str]]


def _counts(pairs: Pairs, labels: Sequence[str]) -> Counts:
    return metrics.confusion([truth for truth, _ in pairs], [answer for _, answer in pairs], labels)


def _confusion(pairs: Pairs, labels: Sequence[str]) -> ConfusionTable:
    counts = _counts(pairs, labels).tolist()
    return ConfusionTable(tuple(labels), (*labels, *metrics.NOT_ANSWERED), tuple(map(tuple, counts)))


def counted(items: int, groups: int | None) -> str:
    """The size of a sample as text, in items or in groups."""
    return f"{items} items" if groups is None else f"{groups} groups of items"


def few_items(items: int, groups: int | None, of: str = "") -> list[Flag]:
    """The flag for fewer items, or groups, than a verdict requires.

    Args:
        items: Number of items.
        groups: Number of groups, if groups are declared.
        of: Name of the sample for the message; may be empty.
    """
    number = items if groups is None else groups
    if number >= LEAST_UNITS:
        return []
    half = proportion(number / 2, number)
    text = f"{counted(items, groups)}{of} are too few for a verdict, which takes {LEAST_UNITS}"
    return [Flag("few-items", f"{text}: an accuracy of 0.5 could be anything from {half.low:.2f} to {half.high:.2f}")]


def label_figures(
    pairs: Pairs, labels: Sequence[str], seed: int = 0, groups: Sequence[str] | None = None
) -> LabelFigures:
    """Figures of predicted labels against true labels.

    Args:
        pairs: The true label, and the predicted label or outcome, of each item.
        labels: The task's labels.
        seed: The bootstrap's seed.
        groups: The group of each item, if groups are resampled; None if items are.
    """
    truths, answers = [truth for truth, _ in pairs], [answer for _, answer in pairs]
    units = metrics.confusion_units(truths, answers, labels, groups)
    return LabelFigures(metrics.confusion_estimates(units, labels, seed), *metrics.bounds(units.table))


def baseline_figures(pairs: Pairs, labels: Sequence[str]) -> Baselines:
    """Figures of answers that do not depend on the items."""
    counts = _counts(pairs, labels)
    return Baselines(
        majority_label=labels[int(counts.sum(-1).argmax())],
        majority_accuracy=metrics.majority_accuracy(counts),
        majority_macro_f1=metrics.majority_macro_f1(counts),
        prior_accuracy=metrics.prior_accuracy(counts),
    )


def constant_flags(answers: Sequence[str], labels: Sequence[str], what: str) -> list[Flag]:
    """The flag for answers that are nearly all of one class."""
    if not answers:
        return []
    label, count = Counter(answers).most_common(1)[0]
    if label not in labels or count / len(answers) < CONSTANT_SHARE:
        return []
    share = f"{count} of {len(answers)} items ({count / len(answers):.1%})"
    text = f"{what} are {label} for {share}: a constant, whatever its accuracy"
    return [Flag("constant-predictor", text)]


def _baseline_flags(figures: LabelFigures, base: Baselines, name: str) -> list[Flag]:
    accuracy, always = figures.figures["accuracy"], base.majority_accuracy
    interval = f"accuracy against the {name} labels, 95 % interval {accuracy.low:.4f} to {accuracy.high:.4f}"
    constant = f"always answering the most frequent label ({always:.4f})"
    if accuracy.high < always:
        return [Flag("below-baseline", f"{interval}, is below {constant}")]
    if accuracy.low <= always:
        return [Flag("baseline-within-interval", f"{interval}, includes {constant}")]
    return []


def _silence_flags(predictions: Sequence[Prediction], main: LabelFigures | None) -> list[Flag]:
    """The flag for answers without a label, with the bounds of the accuracy."""
    silent = sum(p.label is None for p in predictions)
    if not predictions or silent / len(predictions) <= UNREADABLE_SHARE:
        return []
    text = f"{silent} of {len(predictions)} answers ({silent / len(predictions):.1%}) give no label"
    if main:
        ends = f"{main.if_unanswered_wrong:.4f} or {main.if_unanswered_right:.4f}"
        text += f"; were all of them wrong or all right, the accuracy would be {ends}"
    return [Flag("unreadable-answers", text)]


def _equal_prompts(predictions: Sequence[Prediction]) -> list[Flag]:
    """The flag for items with different texts and the same prompt."""
    texts: dict[str, set[str]] = {}
    for p in predictions:
        texts.setdefault(p.prompt_fingerprint or p.prompt, set()).add(p.text)
    several = {prompt for prompt, different in texts.items() if prompt and len(different) > 1}
    count = sum((p.prompt_fingerprint or p.prompt) in several for p in predictions)
    if not count:
        return []
    text = f"{count} of {len(predictions)} items have the prompt of an item with another text"
    return [Flag("equal-prompts", f"{text}: their answers cannot depend on what differs")]


def _score_figures(
    predictions: Sequence[Prediction], labels: Sequence[str], truth: Truth
) -> tuple[float | None, float | None]:
    """AUROC and expected calibration error, if every item has probabilities."""
    if not all(p.scores for p in predictions):
        return None, None
    pairs = [(p, p.reference if truth == "reference" else p.gold) for p in predictions]
    known = [(p, str(label)) for p, label in pairs if label is not None]
    scores = [p.scores for p, _ in known]
    auroc = metrics.auroc([label for _, label in known], scores, labels)
    right = [p.label == label for p, label in known]
    return auroc, metrics.expected_calibration_error([max(s.values()) for s in scores], right)


def _is_tie(prediction: Prediction, noise: float) -> bool:
    # The margin is that of the probabilities, which include calibration, unlike the log-probabilities of the answers.
    first, second, *_ = [*sorted(prediction.scores.values(), reverse=True), 0.0, 0.0]
    return second > 0 and math.log(first / second) <= noise
