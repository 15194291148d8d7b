"""The verb `report`: write results of any stage as an HTML file and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from sailkit import runs
from sailkit.arguments import checked, renamed
from sailkit.distillation import report as distillation_report
from sailkit.errors import UserError
from sailkit.evaluation import report as evaluation_report
from sailkit.files import jsonl
from sailkit.labeling import report as labeling_report
from sailkit.labeling.audit_file import AUDIT
from sailkit.overview import leaderboard, report_of_runs
from sailkit.rendering import html, markdown
from sailkit.rendering.model import Cell, Group, Headline, Report, Row, Table, Text, short
from sailkit.rendering.result import Result
from sailkit.training import report as training_report
from sailkit.training import runs_report, seed_report
from sailkit.training.seeds import is_group as is_training_group

# Stage -> name of its runs; other inputs are sets of predictions.
_STAGES = {"finetune": "a training run", "distill": "a distillation", "audit": "an audit"}


@dataclass(frozen=True)
class WrittenReport(Result):
    """A report that was written.

    Attributes:
        html: The HTML file.
        markdown: The Markdown file.
        verdict: The verdicts in words.
    """

    html: Path
    markdown: Path
    verdict: str

    def to_json(self) -> dict[str, str]:
        """As `--json` writes it."""
        return {"html": str(self.html), "markdown": str(self.markdown), "verdict": self.verdict}

    def report(self) -> Report:
        """The verdict and the paths of the files."""
        return short("", "", Headline(self.verdict), Text(f"report: {self.html}"), Text(f"Markdown: {self.markdown}"))


@checked
def report(
    *sets: Path | str | Result,
    out: Path | str = Path("report.html"),
    against: Literal["human", "reference"] = "human",
    task: str | None = None,
    fields: list[str] | None = None,
    title: str | None = None,
    bootstrap_seed: Annotated[int, renamed("seed")] = 0,
) -> WrittenReport:
    """Write a report on results as an HTML and a Markdown file.

    The HTML file is self-contained. For sets of predictions it shows the verdict, reasons to doubt it, figures with
    intervals, and each item with prompt and raw output; for audits, the best labeler, the figures, and pairwise
    comparisons with the largest disagreements; for training runs, the change in held-out figures, curves, recipe and
    data; for distillations, how closely each student matches its teacher.

    Args:
        sets: Run folders of evaluate, folders with a run for each seed, or files of recorded outputs; or run folders of
            audit; or a folder of finetune with several seeds; or run folders of finetune or of distill, of which the
            first is compared with each of the others.
        out: The HTML file, or a folder for report.html; the Markdown file has the same name with .md.
        against: The data set's own labels (human), or those of a reference model.
        task: For files: the task that defines the answer words.
        fields: For files: their names of the fields id, text, label, output, prediction, reference, prompt, group:
            KEY=NAME, repeated, or a YAML file.
        title: Title of the report; by default names of sets and task.
        bootstrap_seed: Seed of the bootstrap.

    Returns:
        The paths of both files, and the verdict.

    Raises:
        UserError: A set is unreadable or lacks the labels, sets do not match, an option does not apply, or a file at
            `out` is not a report.
    """
    if not sets:
        raise UserError("report needs one or more run folders or files of recorded outputs")
    folders = [Path(_folder(result) if isinstance(result, Result) else result) for result in sets]
    stage = _stage_of(folders, {"against": against != "human", "task": task, "fields": fields})
    files = _output_files(Path(out))
    if len(folders) == 1 and is_training_group(folders[0]):
        content = seed_report.page(folders[0], title)
    elif stage == "finetune" and len(folders) > 1:
        content = runs_report.report_on(folders, title, bootstrap_seed)
    elif stage == "finetune":
        content = training_report.report_on(folders[0], title)
    elif stage == "distill":
        content = distillation_report.report_on(folders, title, bootstrap_seed)
    elif stage == "audit":
        content = labeling_report.report_on(folders, title)
    else:
        content = evaluation_report.report_on(folders, against, task, fields, title, bootstrap_seed)
    return _write(content, files)


def _folder(result: Result) -> Path:
    """Return the folder of a stage's result."""
    folder: Path | None = getattr(result, "folder", None)
    if folder is None:
        raise UserError(f"a {type(result).__name__} has no folder to report on; give the results that it was made from")
    return folder


def _stage_of(sets: Sequence[Path], options: dict[str, Any]) -> str:
    """Return the common stage of the sets; empty for sets of predictions.

    Raises:
        UserError: The sets come from different stages, or an option does not apply.
    """
    stages = [_stage(path) for path in sets]
    for stage, name in _STAGES.items():
        if stage not in stages:
            continue
        first = sets[stages.index(stage)]
        if others := [path for path, other in zip(sets, stages, strict=True) if other != stage]:
            raise UserError(f"{first} is {name} and {others[0]} is none; report on them one after the other")
        if given := [option for option, value in options.items() if value]:
            raise UserError(f"`{given[0]}` is for sets of predictions; {first} is {name}")
        return stage
    return ""


def _stage(path: Path) -> str:
    if (path / AUDIT).is_file():  # audits of early versions have no manifest
        return "audit"
    manifest = path / runs.MANIFEST
    return str(jsonl.read_json(manifest).get("stage")) if manifest.is_file() else ""


def _output_files(out: Path, argument: str = "out") -> tuple[Path, Path]:
    """Return the paths of HTML and Markdown; refuse to overwrite files other than reports.

    Raises:
        UserError: The name is not that of an HTML file, or another file exists at a path.
    """
    page = out / "report.html" if out.is_dir() or not out.suffix else out
    if page.suffix not in (".html", ".htm"):
        raise UserError(f"`{argument}` {out} should end in .html, or be a folder")
    for path, mark in ((page, html.MARK), (page.with_suffix(".md"), markdown.MARK)):
        try:
            if path.exists():
                with path.open("rb") as stream:
                    ours = mark.encode() in stream.read(300)
                if not ours:
                    raise UserError(
                        f"{path} exists and is not a sailkit report; move it or choose another `{argument}`"
                    )
        except OSError as error:
            raise jsonl.reading_failed(path, error) from None
    return page, page.with_suffix(".md")


def _write(report: Report, files: tuple[Path, Path]) -> WrittenReport:
    page, text = files
    jsonl.write_atomic(text, markdown.page(report))
    jsonl.write_atomic(page, html.page(report))
    return WrittenReport(page, text, report.verdict)


def report_of(result: Result | runs.RunList | runs.RunDifference) -> Report:
    """What a person reads of a verb's result."""
    if isinstance(result, Result):
        return result.report()
    if isinstance(result, runs.RunList):
        return report_of_runs(result)
    rows = [Row(name, [Cell(str(value)) for value in pair]) for name, pair in result.differences.items()]
    table = Table(result.names, [Group("setting", rows)])
    return short("", "", table if rows else Text("the two runs have the same settings"))


@checked
def list_runs(*folders: Path, html: Path | None = None) -> runs.RunList | runs.RunDifference:
    """List runs, or show how two of them differ.

    Args:
        folders: Folders to search (`runs` by default), or two run folders whose settings to compare.
        html: Also write the list to this HTML file, and as Markdown beside it; for each task, the best runs first.

    Returns:
        A summary of each run; or the settings in which two runs differ, with both values.

    Raises:
        UserError: A folder does not exist, `html` is no report that may be replaced, or two runs are compared.
    """
    files = None if html is None else _output_files(html, "html")
    listed = runs.overview(*folders)
    if files is not None:
        if not isinstance(listed, runs.RunList):
            raise UserError("`html` is for a list of runs; for two runs write a report")
        _write(leaderboard(listed), files)
        runs.notice(f"sailkit: written to {files[0]}")
    return listed
