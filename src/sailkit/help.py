"""The help of the command line: verbs in the order of a pipeline, flags in groups, and an example for each verb."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from cyclopts import Group
from cyclopts.help import DefaultFormatter, HelpEntry, HelpPanel

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions

_OTHER = "Other"

VERB_GROUPS: Mapping[str, Sequence[str]] = {
    "Data": ("search", "label", "fit", "audit", "build", "build-task"),
    "Training": ("finetune", "merge"),
    "Distillation": ("teacher-cache", "distill"),
    "Measuring": ("evaluate", "rescore", "compare", "report"),
    "Answering": ("ask", "demo", "serve"),
    "Pipelines": ("run", "runs", "recipes", "samples", "doctor"),
}

FLAG_GROUPS: Mapping[str, Sequence[str]] = {
    "Input": (
        "--question",
        "--instructions",
        "--engine",
        "--corpus",
        "--recorded",
        "--results",
        "--labels",
        "--recipe",
        "--task",
        "--data",
        "--held-out",
        "--adapter",
        "--fields",
        "--label-set",
        "--half",
        "--first-share",
        "--limit",
        "--against",
        "--published",
        "--scores",
        "--model-runs",
        "--audit",
    ),
    "Model": (
        "--model",
        "--compare-with",
        "--labeler",
        "--base",
        "--teacher",
        "--teacher-tokenizer",
        "--teacher-outputs",
        "--teacher-style",
        "--cache",
        "--student-layers",
        "--dtype",
        "--device",
        "--chat",
        "--batch-tokens",
        "--attn-implementation",
        "--trust-remote-code",
        "--date",
        "--direction",
        "--measure",
        "--form",
    ),
    "Prompts": (
        "--protocol",
        "--wording",
        "--answer",
        "--style",
        "--search",
        "--search-run",
        "--max-results",
        "--verify",
        "--few-shot",
        "--shots",
        "--calibrate",
        "--max-new-tokens",
    ),
    "Search": ("--k", "--passage-words", "--passage-overlap"),
    "Web search": ("--searxng-url", "--snapshot", "--offline", "--interval", "--web-timeout", "--tries"),
    "Rows": (
        "--shares",
        "--top",
        "--threshold",
        "--mix",
        "--supported",
        "--distractors",
        "--unsupported",
        "--undecided-claims",
        "--counterfactuals",
        "--match-wording",
        "--max-words",
        "--held-out-share",
        "--exclude-task",
    ),
    "Training": (
        "--method",
        "--epochs",
        "--learning-rate",
        "--batch-size",
        "--max-length",
        "--share",
        "--seeds",
    ),
    "Cached distributions": ("--top-k", "--top-p", "--precision", "--shard-tokens"),
    "Running": ("--set", "--from", "--until", "--dry-run", "--for-gpu", "--tokens-per-second"),
    "Reference model": ("--reference", "--repeats", "--reference-api-key-env"),
    "Seeds and statistics": ("--metric", "--seed", "--bootstrap-seed"),
    "Endpoint": (
        "--api-key-env",
        "--timeout",
        "--concurrency",
        "--max-requests",
        "--max-response-mb",
        "--price",
    ),
    "Server": ("--host", "--port", "--open", "--key-env", "--max-request-kb", "--queue", "--time-limit"),
    "Several machines": ("--shard", "--ray", "--ray-address", "--ray-actors", "--ray-cpus", "--ray-gpus"),
    "Columns of other tables": (
        "--judgement-column",
        "--claim-column",
        "--result-column",
        "--title-column",
        "--supports",
        "--refutes",
        "--informative",
        "--distracting",
    ),
    _OTHER: (),
    "Output": ("--out", "--to", "--title", "--export", "--save-dtype", "--csv-out", "--push", "--html", "--json"),
}

EXAMPLES: Mapping[str, str] = {
    "search": "sailkit search --instructions questions.jsonl --corpus articles/ --engine bm25 --out runs/search",
    "label": "sailkit label --results runs/search --labeler similarity --out runs/label",
    "fit": "sailkit fit --data climate-fever.jsonl --out runs/labeler",
    "audit": "sailkit audit --data climate-fever.jsonl --labeler similarity --labeler overlap --out runs/audit",
    "build": "sailkit build --results runs/search --labels runs/label --out runs/build",
    "build-task": "sailkit build-task climate-fever --data climate-fever.jsonl --half first --out runs/build",
    "finetune": "sailkit finetune --model smollm2-135m --data runs/build --out runs/tuned",
    "merge": "sailkit merge runs/tuned/model --out runs/merged",
    "teacher-cache": "sailkit teacher-cache --teacher runs/teacher/model --data runs/build --out runs/cache",
    "distill": "sailkit distill --teacher runs/teacher/model --model smollm2-135m --data runs/build --out runs/student",
    "evaluate": "sailkit evaluate --model smollm2-135m --task sample-claims --out runs/base",
    "rescore": "sailkit rescore recorded.jsonl --published accuracy=0.6461,f1=0.3925",
    "compare": "sailkit compare runs/base runs/tuned",
    "report": "sailkit report runs/base runs/tuned --out report.html",
    "ask": "sailkit ask 'Does ice melt above 0 degrees?' --corpus articles/",
    "demo": "sailkit demo --corpus articles/ --open",
    "serve": "sailkit serve --model runs/tuned/model --corpus articles/ --port 8000",
    "run": "sailkit run recipe.yaml --out runs/pipeline --dry-run",
    "runs": "sailkit runs runs/",
    "recipes": "sailkit recipes quickstart --to .",
    "samples": "sailkit samples --to data/",
    "doctor": "sailkit doctor --json -",
}

# Cyclopts takes only one object for each group.
_GROUPS = {title: Group(title, sort_key=number) for number, title in enumerate([*VERB_GROUPS, _OTHER, "Flags"])}
FLAGS = _GROUPS["Flags"]
_VERB_NUMBER = {verb: number for number, verb in enumerate(chain.from_iterable(VERB_GROUPS.values()))}
_FLAG_GROUP = {flag: title for title, flags in FLAG_GROUPS.items() for flag in flags}
_FLAG_NUMBER = {flag: number for number, flag in enumerate(chain.from_iterable(FLAG_GROUPS.values()))}


def verb_group(verb: str) -> Group:
    """The group in which the help lists a verb."""
    return next((_GROUPS[title] for title, verbs in VERB_GROUPS.items() if verb in verbs), _GROUPS[_OTHER])


def verb_number(verb: str) -> int:
    """The position of a verb in the help."""
    return _VERB_NUMBER.get(verb, len(_VERB_NUMBER))


def example(verb: str) -> str:
    """The line below the help of a verb; empty for a verb without an example."""
    return f"Example: {EXAMPLES[verb]}" if verb in EXAMPLES else ""


class GroupedFlags(DefaultFormatter):
    """Shows the flags of a verb in groups, without the flags that only restore a default or keep an earlier name."""

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        """Print a panel, or one panel for each group of flags."""
        if panel.format == "command":
            super().__call__(console, options, panel)
            return
        for group in by_group(panel):
            super().__call__(console, options, group)


def by_group(panel: HelpPanel) -> Iterator[HelpPanel]:
    """Split a panel of flags into a panel for each group, without flags that only restore a default."""
    entries = sorted((_readable(entry) for entry in panel.entries), key=_number)
    for title in FLAG_GROUPS:
        if of_group := [entry for entry in entries if _group(entry) == title]:
            yield panel.copy(title=title, entries=of_group)


def _flag(entry: HelpEntry) -> str:
    return entry.positive_names[0] if entry.positive_names else entry.positional_label or ""


def _group(entry: HelpEntry) -> str:
    return _FLAG_GROUP.get(_flag(entry), _OTHER if _flag(entry).startswith("-") else "Input")


def _number(entry: HelpEntry) -> int:
    """The position of a flag in its group; required flags come first."""
    return _FLAG_NUMBER.get(_flag(entry), 0) - (entry.required and len(_FLAG_NUMBER))


def _readable(entry: HelpEntry) -> HelpEntry:
    on = entry.default == "True"
    default = None if entry.default in ("True", "False", "()", '""') else entry.default
    if default is not None and default.endswith(".0"):
        default = default.removesuffix(".0")
    return entry.copy(
        positive_names=entry.positive_names[:1],  # others are earlier names
        negative_names=entry.negative_names[:1] if on else (),
        default="on" if on else default,
    )
