"""The command line: the only place that parses arguments, prints and exits."""

from __future__ import annotations

import functools
import inspect
import json as jsonlib
import os
import sys
import typing
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sailkit import __version__, compare, evaluate, jsonl, report, rescore, runs
from sailkit.errors import UserError

Result = dict[str, Any] | list[dict[str, Any]]
JsonFlag = Annotated[
    Path | None,
    Parameter(
        name="--json",
        allow_leading_hyphen=True,
        help="Also write the result as JSON: a file, or - for standard output alone.",
    ),
]

# Name of a figure -> what a person reads.
_FIGURES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro-F1",
    "weighted_f1": "weighted F1",
    "mcc": "Matthews correlation",
}


def _out() -> Console:
    # A pipe or a log has no width; tables should not be squeezed there.
    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 140)


def _show_flags(figures: Mapping[str, Any]) -> None:
    for code, sentences in figures.get("flag_messages", {}).items():
        for sentence in sentences:
            _out().print(f"[bold yellow]![/] [bold]{escape(code)}[/]: {escape(sentence)}")


def _interval(figures: Mapping[str, Any], name: str) -> str:
    if name not in figures:
        return "-"
    return f"{figures[name]:.4f} [{figures[f'{name}_low']:.3f}, {figures[f'{name}_high']:.3f}]"


def _figure_table(figures: Mapping[str, Any], columns: Mapping[str, str]) -> Table:
    """Figures with intervals; columns are given as heading -> prefix of the names."""
    table = Table(box=None, pad_edge=False)
    table.add_column("95 % intervals")
    for heading in columns:
        table.add_column(heading)
    names = {**_FIGURES, **{f"f1_{label}": f"F1 of {label}" for label in figures["labels"]}}
    for name, title in names.items():
        table.add_row(escape(title), *(_interval(figures, prefix + name) for prefix in columns.values()))
    return table


def _show_confusion(figures: Mapping[str, Any]) -> None:
    matrix = figures["confusion"]
    table = Table(box=None, pad_edge=False)
    table.add_column(f"{figures['against']} label, then answers")
    for column in matrix["columns"]:
        table.add_column(escape(column), justify="right")
    for row, counts in zip(matrix["rows"], matrix["counts"], strict=True):
        table.add_row(escape(row), *map(str, counts))
    _out().print(table)


def _show_evaluation(figures: Result) -> None:
    assert isinstance(figures, dict)
    out = _out()
    what = f"{figures['model']} on {figures['task']} ({figures['protocol']}, {figures['wording']}, {figures['answer']})"
    out.print(f"\n[bold]{escape(what)}[/]: {figures['n']} items")
    if "against" in figures:
        columns = (
            {"human labels": "human_"} if figures["against"] == "human" else {"reference": "", "human labels": "human_"}
        )
        out.print(_figure_table(figures, columns))
        out.print(f"always answering {escape(figures['majority_label'])}: accuracy {figures['majority_accuracy']:.4f}")
        if figures.get("auroc") is not None:
            out.print(f"AUROC {figures['auroc']:.4f}, expected calibration error {figures['ece']:.4f}")
        _show_confusion(figures)
    _show_flags(figures)


def _show_rescored(found: Result) -> None:
    for figures in found if isinstance(found, list) else [found]:
        out = _out()
        if "name" in figures:
            out.print(
                f"\n[bold]{escape(figures['name'])}[/]: {figures['n']} recorded answers, "
                f"read as task {escape(figures['task'])}"
            )
        if "against" in figures:
            columns = {"as recorded": "recorded_", f"read again, {figures['against']}": ""}
            if "human_accuracy" in figures and figures["against"] != "human":
                columns["read again, human labels"] = "human_"
            out.print(_figure_table(figures, columns))
            out.print(
                f"always answering {escape(figures['majority_label'])}: accuracy {figures['majority_accuracy']:.4f}"
            )
            _show_confusion(figures)
        _show_flags(figures)


def _show_comparison(found: Result) -> None:
    assert isinstance(found, dict)
    out = _out()
    for pair in found["comparisons"]:
        table = Table(box=None, pad_edge=False)
        for heading in (
            f"on {pair['n']} items, {found['against']} labels",
            pair["a"],
            pair["b"],
            "difference (95 % interval)",
        ):
            table.add_column(escape(heading))
        for name in ("accuracy", "macro_f1"):
            low, high = (pair[f"{name}_difference_{end}"] for end in ("low", "high"))
            difference = f"{pair[f'{name}_difference']:+.4f}  [{low:+.3f}, {high:+.3f}]"
            table.add_row(_FIGURES[name], f"{pair[f'a_{name}']:.4f}", f"{pair[f'b_{name}']:.4f}", difference)
        out.print()
        out.print(table)
        out.print(
            f"right alone: {escape(pair['a'])} {pair['only_a']}, {escape(pair['b'])} {pair['only_b']}; exact McNemar "
            f"p = {pair['p_value']:.3g}, after Holm {pair['p_value_holm']:.3g}"
        )
        remark = f" ({pair['remark']})" if pair["remark"] else ""
        out.print(f"[bold]{escape(pair['verdict_text'])}[/]{escape(remark)}")
    _show_flags(found)


def _show_report(found: Result) -> None:
    assert isinstance(found, dict)
    lines = [found["verdict"], f"report: {found['html']}", f"Markdown: {found['markdown']}"]
    _out().print("\n".join(map(escape, lines)))


def _show_runs(found: Result) -> None:
    assert isinstance(found, dict)
    rows = found.get("runs")
    if rows is None:
        rows = [
            {"setting": name, **dict(zip(found["names"], map(str, pair), strict=True))}
            for name, pair in found["differences"].items()
        ]
    if not rows:
        _out().print("no runs" if "runs" in found else "the two runs have the same settings")
        return
    table = Table(box=None, pad_edge=False)
    for heading in rows[0]:
        table.add_column(escape(heading))
    for row in rows:
        table.add_row(*(escape("-" if value is None else str(value)) for value in row.values()))
    _out().print(table)


VERBS: dict[str, tuple[Callable[..., Any], Callable[[Result], None]]] = {
    "evaluate": (evaluate.evaluate, _show_evaluation),
    "rescore": (rescore.rescore, _show_rescored),
    "compare": (compare.compare, _show_comparison),
    "report": (report.report, _show_report),
    "runs": (runs.overview, _show_runs),
}


def _command(stage: Callable[..., Any], show: Callable[[Result], None]) -> Callable[..., None]:
    """A stage function with its own flags and `--json`, that prints instead of returning."""

    @functools.wraps(stage)
    def run(*args: Any, json: Path | None = None, **kwargs: Any) -> None:
        found = stage(*args, **kwargs)
        if isinstance(found, list) and len(found) == 1:
            found = found[0]
        if json is not None and str(json) == "-":
            print(jsonlib.dumps(found, ensure_ascii=False, indent=2, allow_nan=False))
            return
        show(found)
        if json is not None:
            jsonl.write_atomic(json, jsonlib.dumps(found, ensure_ascii=False, indent=2, allow_nan=False) + "\n")

    hints = typing.get_type_hints(stage, include_extras=True)
    signature = inspect.signature(stage)
    parameters = [p.replace(annotation=hints[p.name]) for p in signature.parameters.values()]
    flag = inspect.Parameter("json", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=JsonFlag)
    whole = signature.replace(parameters=[*parameters, flag], return_annotation=None)
    run.__signature__ = whole  # type: ignore[attr-defined]
    run.__annotations__ = {**{p.name: p.annotation for p in parameters}, "json": JsonFlag, "return": None}
    return run


def build_app() -> App:
    """The command-line application; verbs and flags come from the stage functions."""
    app = App(
        name="sailkit",
        help="Search-augmented language models whose measurements survive an audit.",
        version=__version__,
        suppress_keyboard_interrupt=False,
    )
    for name, (stage, show) in VERBS.items():
        app.command(_command(stage, show), name=name)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        arguments: Words of the command; those of this process by default.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    warnings.showwarning = lambda message, *_, **__: runs.notice(f"sailkit: {message}")
    try:
        build_app()(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()  # a reader that has gone shows here, not at exit
    except UserError as error:
        _fail(str(error))
    except CycloptsError as error:
        _fail(str(error).strip())
    except KeyboardInterrupt:
        runs.notice("sailkit: stopped; the same command goes on where it stopped")
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read the output has gone; Python would complain once more on closing it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _fail(message: str) -> None:
    runs.notice(f"sailkit: error: {' '.join(message.split())}")
    sys.exit(2)
