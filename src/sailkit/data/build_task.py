"""The verb `build-task`: build training data from a task's examples and human judgements of their evidence.

Labels are balanced among claims of similar wording; the data card reports how well wording alone still predicts them.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from sailkit import runs
from sailkit.arguments import checked, renamed
from sailkit.data.balance import SupportedLabel, balance_labels, wording_auroc
from sailkit.data.build import read_shares
from sailkit.data.card import CARD, card_of, write_card
from sailkit.data.counterfactuals import COUNTERFACTUALS_VERSION, counterfactual_examples, without_copies
from sailkit.data.draw import Distractor, ExampleDrawer, Unsupported, undecided_label
from sailkit.data.exports import DROPPED, HELD_OUT, TRAIN, example_row
from sailkit.data.leaks import REMOVED, LeakCheck, removed_row, words_of
from sailkit.data.results import BuiltTask
from sailkit.data.rows import SPLIT_SEED
from sailkit.errors import UserError, at_least_one, between_zero_and_one
from sailkit.files import jsonl
from sailkit.prompts.styles import wording
from sailkit.records import Example, Instruction, TrainingExample, original_id
from sailkit.stats.shortcut_items import GROUPS, training_baselines
from sailkit.tasks.groups import grouped_with_same_text
from sailkit.tasks.task import Half, Task, in_half, load_task

_VERSION = 5  # of the rules by which rows are drawn
_SUPPORT = re.compile(r"(?<!not )\bsupport", re.IGNORECASE)


@checked
def build_task(
    task: str,
    *,
    out: Path,
    data: Path | None = None,
    half: Half | None = None,
    first_share: float = 0.5,
    style: Literal["sail", "sail-fixed", "chat"] = "chat",
    shares: str = "0.1,0.3,0.4,0.2",
    supported: float = 0.75,
    distractors: list[Distractor] | None = None,
    unsupported: Unsupported = "label",
    undecided_claims: bool = False,
    counterfactuals: Literal["none", "added", "only"] = "none",
    match_wording: bool = True,
    protocol: str = "direct",
    max_words: int | None = None,
    held_out_share: Annotated[float, renamed("held_out")] = 0.1,
    limit: int | None = None,
    seed: int = 0,
) -> BuiltTask:
    """Build training data from a task's human-judged evidence.

    Each row asks the task's question in one of its wordings, shows search results, and answers with the label that the
    informative results support.

    Args:
        task: A built-in task or a YAML file; its evidence needs a `stance`.
        out: Run folder to write, as `build` writes it.
        data: The task's data: a file, a folder, or OWNER/NAME[:SPLIT] on the hub.
        half: Only the examples of this half; `evaluate --half` measures on the other. Claims that are nearly the same
            in the other half are removed.
        first_share: Share of the examples in the first half, from 0.5; evaluate then takes the same.
        style: Prompt format of the rows; see build.
        shares: Shares of rows with no, one, two, three ... search results; they sum to 1.
        supported: Of the rows with search results, the share with at least one informative result.
        distractors: Where distracting results come from: random (other examples), near (results of other examples on
            the same subject, by BM25, that do not decide this one), own (this example's evidence that supports no
            label); random results fill up near and own; random and near by default.
        unsupported: The answer of rows without an informative result: the label that the claim's own evidence supports
            (label); the task's label for claims that nothing decides (undecided), which all rows then offer as an
            answer; or either label at random (random), so that no wording of a claim predicts it.
        undecided_claims: Also draw a row of each claim that nothing decides (of the task's label for them), with
            distracting results alone, of its own among them if `distractors` has own. Needs another `unsupported` than
            label.
        counterfactuals: Draw from counterfactual pairs too (added), or from these and their originals alone (only):
            in a supported claim, a name, number or year that it shares with its passage is replaced in the claim, in
            the passage, or in both, so that neither alone tells the label.
        match_wording: Balance labels among claims of similar wording, not only overall.
        protocol: Protocol of the task from which wordings are drawn.
        max_words: Leave out search results with more words.
        held_out_share: Share of examples to hold out.
        limit: Use only the first LIMIT rows.
        seed: Random seed; each row is drawn from the seed and its id.

    Returns:
        The data card; `wording_auroc` is how well words alone predict the label of decided claims, before and after
        balancing, and `shortcuts` how well claims, search results, lengths or sources alone predict answers and
        judgements.

    Raises:
        UserError: Bad options, or a task without judged evidence.
    """
    at_least_one(limit=limit, max_words=max_words)
    result_shares = read_shares(shares)
    kinds = list(dict.fromkeys(distractors or ("random", "near")))
    between_zero_and_one(supported=supported, held_out_share=held_out_share)
    chosen = load_task(task)
    if undecided_claims:
        _check_undecided(chosen, unsupported, counterfactuals)
    dataset = load_task(task, ["all"]).load(data)
    settings = {
        "version": _recorded(out, "version") or _VERSION,
        "task": chosen.name,
        "task_sha256": jsonl.fingerprint(chosen.spec.model_dump()),
        "data_sha256": dataset.fingerprint,
        "half": half,
        "style": style,
        "styles_sha256": jsonl.fingerprint(wording()),
        "shares": result_shares,
        "supported": supported,
        "distractors": kinds,
        "match_wording": match_wording,
        "protocol": protocol,
        "held_out": held_out_share,
        "limit": limit,
        "seed": seed,
        **({} if first_share == 0.5 else {"first_share": first_share}),
        **({} if max_words is None else {"max_words": max_words}),
        **({} if unsupported == "label" else {"unsupported": unsupported}),
        **({"undecided_claims": True} if undecided_claims else {}),
        **(_undecided_setting(chosen, out) if undecided_claims or unsupported == "undecided" else {}),
        **({} if counterfactuals == "none" else {"counterfactuals": [counterfactuals, _rules(out)]}),
    }
    with runs.open_run(out, "build-task", settings) as run:
        if run.path(CARD).exists():  # the card is written last, so the run is finished
            return BuiltTask.load(out)
        inside = [_shortened(e, max_words) for e in dataset.examples if in_half(e, half, first_share)]
        outside = [example for example in dataset.examples if not in_half(example, half, first_share)]
        check = LeakCheck((chosen.name, example.id, example.text) for example in outside)
        examples, added, removed = _kept_examples(chosen, inside, check, counterfactuals != "none", seed)
        items = _supported_labels(chosen, examples)
        judged = {item.example.id for item in items}
        if added:
            originals = {original_id(example.id) for example in added}
            items = [item for item in items if counterfactuals == "added" or item.example.id in originals]
            items += _supported_labels(chosen, added)
        drawn = balance_labels(items, chosen.labels, match_wording, seed)
        if not drawn:
            none = "claims of different labels are worded alike; use `match_wording=False`"
            raise UserError(f"no {none if items else 'counterfactual claims can be made'}")
        if counterfactuals != "none":
            drawn = _families(drawn)
        undecided = _undecided(chosen, dataset.examples, examples) if undecided_claims else {}
        if undecided:
            drawn = _mixed(drawn, undecided.values(), seed)
        drawn = drawn[:limit]
        drawer = ExampleDrawer(
            chosen,
            protocol,
            examples,
            [item for item, _ in drawn if item.example.id not in undecided],
            labels=sorted({item.label for item in items}),
            shares=result_shares,
            supported=supported,
            distractors=kinds,
            unsupported=unsupported,
            style=style,
            seed=seed,
        )
        rows = [(item, drawer.draw(item, copy)) for item, copy in drawn]
        train: list[tuple[SupportedLabel, TrainingExample]] = []
        held: list[tuple[SupportedLabel, TrainingExample]] = []
        for item, row in rows:
            side = held if runs.seed_for(SPLIT_SEED, "held out", item.group) < held_out_share * 2**64 else train
            side.append((item, row))
        if not train:
            raise UserError(f"no row is left to train on; use a smaller `held_out_share` than {held_out_share}")
        dropped = _dropped(examples, judged | undecided.keys(), {item.example.id for item, _ in rows})
        for name, part in ((TRAIN, train), (HELD_OUT, held)):
            jsonl.write_rows(run.path(name), (example_row(row) for _, row in part))
        jsonl.write_json(run.path(GROUPS), {row.id: item.group for item, row in train})
        jsonl.write_rows(run.path(DROPPED), dropped)
        jsonl.write_rows(run.path(REMOVED), removed)
        decided = [item for item, _ in train if item.example.id not in undecided]
        counts = {
            "n_in": len(inside),
            "n_train": len(train),
            "n_held_out": len(held),
            "n_dropped": len(dropped),
            "n_removed": len(removed),
            "claims": len({item.group for item, _ in train}),
            "labels": dict(
                sorted(Counter(drawer.label(item, row.id, _is_supported(row)) for item, row in train).items())
            ),
            "wording_auroc": {"of the claims": _auroc(items, seed), "of the training rows": _auroc(decided, seed)},
        }
        baselines = training_baselines([(item.group, row) for item, row in train], seed)
        card = card_of([row for _, row in train], counts, settings, baselines, constructed=True)
        write_card(run.folder, card)
        return BuiltTask.from_card(out, card)


def _recorded(out: Path, name: str) -> Any:
    """A setting of a finished run, which keeps the versions of its rules; None for any other run."""
    return runs.setting_of(out, name) if (out / CARD).exists() else None


def _rules(out: Path) -> int:
    return int((_recorded(out, "counterfactuals") or [None, COUNTERFACTUALS_VERSION])[1])


def _undecided_setting(task: Task, out: Path) -> dict[str, str | None]:
    """The label that the task's fingerprint leaves out; a finished run of earlier versions does not record it."""
    recorded = not (out / CARD).exists() or runs.setting_of(out, "undecided_label") is not None
    return {"undecided_label": task.spec.undecided_label} if recorded else {}


def _check_undecided(task: Task, unsupported: Unsupported, counterfactuals: str) -> None:
    if unsupported == "label" or counterfactuals != "none":
        raise UserError(
            "`undecided_claims`: such claims have neither a label nor counterfactual pairs; choose another "
            "`unsupported` than label, and no `counterfactuals`"
        )
    undecided_label(task, "`undecided_claims`")


def _is_supported(row: TrainingExample) -> bool:
    return "informative" in row.judgements


def _shortened(example: Example, max_words: int | None) -> Example:
    """The example without search results of more words."""
    if max_words is None:
        return example
    short = [index for index, result in enumerate(example.evidence) if len(result.text.split()) <= max_words]
    return replace(
        example,
        evidence=tuple(example.evidence[index] for index in short),
        stances=tuple(example.stances[index] for index in short if example.stances),
    )


def _families(drawn: Sequence[tuple[SupportedLabel, int]]) -> list[tuple[SupportedLabel, int]]:
    """Items with each claim's counterfactual ones beside it: in one batch, what they share cancels out."""
    families: dict[str, list[tuple[SupportedLabel, int]]] = {}
    for item, copy in drawn:
        families.setdefault(original_id(item.example.id), []).append((item, copy))
    return [pair for family in families.values() for pair in family]


def _dropped(examples: Sequence[Example], judged: set[str], used: set[str]) -> list[jsonl.JsonObject]:
    """The examples without a row, each with the reason."""
    return [
        {"id": example.id, "reason": "not drawn" if example.id in judged else "no judged evidence"}
        for example in examples
        if example.id not in used
    ]


def _kept_examples(
    task: Task, inside: Sequence[Example], check: LeakCheck, counterfactuals: bool, seed: int
) -> tuple[list[Example], list[Example], list[jsonl.JsonObject]]:
    """The examples, their counterfactual ones and rows of `removed.jsonl`; examples of the same words are one group."""
    examples, removed = _without_leaks(inside, check)
    examples = grouped_with_same_text(examples, words_of)
    added, leaked = _without_leaks(_counterfactuals(task, examples, seed) if counterfactuals else [], check)
    return examples, without_copies(examples, added), removed + leaked


def _without_leaks(inside: Sequence[Example], check: LeakCheck) -> tuple[list[Example], list[jsonl.JsonObject]]:
    """Split examples into those whose text is not in the other half, and a row of `removed.jsonl` for each that is."""
    kept, removed = [], []
    for example in inside:
        leak = check.find(Instruction(example.id, example.text))
        if leak is None:
            kept.append(example)
        else:
            removed.append(removed_row(example.id, leak))
    return kept, removed


def _counterfactuals(task: Task, examples: Sequence[Example], seed: int) -> list[Example]:
    """The counterfactual examples of a task with two labels."""
    if len(task.labels) != 2:
        raise UserError(f"`counterfactuals` needs a task with two labels, and {task.name} has {len(task.labels)}")
    supported = _supporting_label(task)
    (refuted,) = set(task.labels) - {supported}
    rewritten = counterfactual_examples(examples, supported, refuted, seed=seed)
    if not rewritten:
        raise UserError(
            f"task {task.name}: no claim shares a name, number or year with its passage; omit `counterfactuals`"
        )
    return rewritten


def _supporting_label(task: Task) -> str:
    """The label of claims that their evidence supports: that of the stances that speak of support."""
    labels = {label for stance, label in task.stances.items() if _SUPPORT.search(str(stance))} & {*task.labels}
    if len(labels) != 1:
        raise UserError(
            f"task {task.name}: `counterfactuals` needs the label of supported claims; let the `stances` of its YAML "
            f"map `supports` to {' or '.join(task.labels)}"
        )
    return labels.pop()


def _supported_labels(task: Task, examples: Sequence[Example]) -> list[SupportedLabel]:
    """Every label that the evidence of an example supports."""
    items = [
        SupportedLabel(example, label) for example in examples for label in task.labels if label in example.stances
    ]
    if not items:
        mend = "use another `half` or a higher `max_words`" if task.stances else "give its YAML a `stance`"
        raise UserError(f"task {task.name}: no evidence that people judged; {mend}")
    if len({item.label for item in items}) < 2:
        raise UserError(f"task {task.name}: all judged evidence speaks for {items[0].label}; nothing to balance")
    return items


def _mixed(
    drawn: Sequence[tuple[SupportedLabel, int]], more: Iterable[SupportedLabel], seed: int
) -> list[tuple[SupportedLabel, int]]:
    """All items in random order."""
    mixed = [*drawn, *((item, 0) for item in more)]
    random.Random(seed).shuffle(mixed)  # noqa: S311 - not for cryptography
    return mixed


def _undecided(task: Task, whole: Sequence[Example], kept: Sequence[Example]) -> dict[str, SupportedLabel]:
    """The kept claims that nothing decides, by their ids; some evidence may decide such a claim all the same.

    Args:
        task: The task.
        whole: All examples, with all of their evidence.
        kept: The examples to draw from.

    Raises:
        UserError: There are none.
    """
    label = undecided_label(task, "`undecided_claims`")
    open_ = {e.id for e in whole if e.label == label and len(e.stances) == len(e.evidence) and not any(e.stances)}
    items = {example.id: SupportedLabel(example, label) for example in kept if example.id in open_}
    if not items:
        raise UserError(f"`undecided_claims`: the data have no claim of label {label} with judged evidence")
    return items


def _auroc(items: Sequence[SupportedLabel], seed: int) -> float | None:
    return wording_auroc([item.example for item in items], [item.label for item in items], seed)
