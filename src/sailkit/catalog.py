"""The verbs `recipes` and `samples`: list the files that come with the package, and copy them."""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sailkit.arguments import checked
from sailkit.errors import UserError, nearest
from sailkit.files import jsonl
from sailkit.files.yaml_files import read_yaml
from sailkit.packaged import project_folder, sample_files
from sailkit.rendering.model import Block, Cell, Group, Heading, Report, Row, Table, Text, short
from sailkit.rendering.result import Result

# Other files of the same folder that a recipe or a script uses.
_USES = re.compile(r"^extends: *(\S+\.yaml)|\$here/([\w./-]+\w)", re.MULTILINE)
_KINDS = {
    "run": "Pipelines: sailkit run NAME --out DIR",
    "finetune": "Training: sailkit finetune NAME --data DATA --out DIR",
    "distill": "Distillation: sailkit distill NAME --data DATA --out DIR",
    "accelerate": "Processes: accelerate launch --config_file FILE -m sailkit finetune ...",
    "example": "Examples",
    "sample": "Samples: a path may be sample:NAME, as in sailkit rescore sample:keyword-parser.jsonl",
}


@dataclass(frozen=True)
class PackagedFile:
    """A file or run folder that comes with the package.

    Attributes:
        name: The name that selects it.
        kind: The command that it is for, or `example` or `sample`.
        about: What it is.
        needs: Data and hardware that it needs; may be empty.
        path: Where it is.
    """

    name: str
    kind: str
    about: str
    needs: str
    path: Path


@dataclass(frozen=True)
class Catalog(Result):
    """Files that come with the package.

    Attributes:
        files: The selected files.
        copies: Where they were copied to, with the files that they use; empty if they were only listed.
    """

    files: tuple[PackagedFile, ...]
    copies: tuple[Path, ...] = ()

    def to_json(self) -> dict[str, object]:
        """As `--json` writes it."""
        files = [{**asdict(file), "path": str(file.path)} for file in self.files]
        return {"files": files, "copies": [str(path) for path in self.copies]}

    def report(self) -> Report:
        """The files by kind; or the paths of the copies."""
        if self.copies:
            return short("", "", *(Text(f"copied: {path}") for path in self.copies))
        blocks: list[Block] = []
        for kind, heading in _KINDS.items():
            rows = [Row(f.name, [Cell(_described(f))]) for f in self.files if f.kind == kind]
            blocks += [Heading(heading), Table([""], [Group("", rows)])] if rows else []
        return short("", "", *blocks)


def _described(file: PackagedFile) -> str:
    return f"{file.about.rstrip('.')}." + (f" Needs {file.needs}." if file.needs else "")


@checked
def recipes(*names: str, to: Path | str | None = None) -> Catalog:
    """List or copy the recipes and examples of the package.

    `sailkit run quickstart --out DIR` runs a recipe without copying it.

    Args:
        names: Recipes and examples; all by default.
        to: Copy them into this folder, with the files that they use, as recipes/... and examples/...

    Raises:
        UserError: There is no such recipe, or the folder has another file of that name.
    """
    roots = {name: project_folder(name).resolve() for name in ("recipes", "examples")}
    entries = [*_recipes(roots["recipes"]), *_examples(roots["examples"])]
    chosen = _select(entries, names, "recipe or example")
    if to is None:
        return Catalog(chosen)
    files = {file: Path(to) / name / file.relative_to(roots[name]) for name, file in _with_uses(chosen, roots)}
    return Catalog(chosen, _copy(files))


@checked
def samples(*names: str, to: Path | str | None = None) -> Catalog:
    """List or copy the sample data and recordings of the package.

    Every command reads `sample:NAME` as a path: `sailkit compare sample:base-own sample:base-random`.

    Args:
        names: Samples; all by default.
        to: Copy them into this folder.

    Raises:
        UserError: There is no such sample, or the folder has another file of that name.
    """
    abouts = read_yaml(Path(__file__).parent / "resources" / "samples.yaml")
    entries = [PackagedFile(name, "sample", abouts[name], "", path) for name, path in sample_files().items()]
    chosen = _select(entries, names, "sample")
    if to is None:
        return Catalog(chosen)
    listed = [(sample, file) for sample in chosen for file in _files_of(sample.path)]
    return Catalog(chosen, _copy({file: Path(to) / file.relative_to(sample.path.parent) for sample, file in listed}))


def _recipes(folder: Path) -> Iterable[PackagedFile]:
    for file in sorted(folder.glob("*.yaml")):
        tree = _with_base(file)
        kind = "run" if "steps" in tree else "distill" if "method" in tree else "finetune"
        yield PackagedFile(file.stem, kind, tree.get("about", ""), tree.get("needs", ""), file)
    for file in sorted(folder.glob("accelerate/*.yaml")):
        yield PackagedFile(f"accelerate/{file.stem}", "accelerate", _first_comment(file), "", file)


def _with_base(file: Path) -> dict[str, str]:
    tree = read_yaml(file)
    return {**(_with_base(file.parent / tree["extends"]) if "extends" in tree else {}), **tree}


def _examples(folder: Path) -> Iterable[PackagedFile]:
    about = {".py": _docstring, ".sh": _first_comment, ".yaml": _about, ".ipynb": _heading}
    for file in sorted(folder.rglob("*")):
        if file.suffix in about and not file.name.startswith("."):
            yield PackagedFile(file.relative_to(folder).as_posix(), "example", about[file.suffix](file), "", file)


def _about(file: Path) -> str:
    return str(read_yaml(file)["about"])


def _docstring(file: Path) -> str:
    return (ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "").split("\n")[0]


def _heading(file: Path) -> str:
    """The title of a notebook."""
    return "".join(json.loads(file.read_text("utf-8"))["cells"][0]["source"]).split("\n")[0].removeprefix("# ")


def _first_comment(file: Path) -> str:
    """The first sentence of the comment at the top of a file."""
    lines = [line for line in file.read_text("utf-8").splitlines() if not line.startswith("#!")]
    text = " ".join(line[2:] for line in lines if line.startswith("# "))
    return text.partition(". ")[0]


def _select(entries: Sequence[PackagedFile], names: Sequence[str], what: str) -> tuple[PackagedFile, ...]:
    known = {entry.name: entry for entry in entries}
    for name in names:
        if name not in known:
            raise UserError(f"no {what} {name!r}; {nearest(name, known)}")
    return tuple(known[name] for name in names) or tuple(entries)


def _with_uses(chosen: Iterable[PackagedFile], roots: Mapping[str, Path]) -> list[tuple[str, Path]]:
    """The folder's name and the path of each file, and of all files that they use."""
    files = [entry.path for entry in chosen]
    for file in files:  # grows while it is read
        for names in _USES.findall(file.read_text("utf-8")):
            used = (file.parent / (names[0] or names[1])).resolve()
            files += [used] if used.is_file() and used not in files else []
    return [(name, file) for file in files for name, root in roots.items() if file.is_relative_to(root)]


def _files_of(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _copy(files: Mapping[Path, Path]) -> tuple[Path, ...]:
    for source, target in files.items():
        if target.exists() and (not target.is_file() or target.read_bytes() != source.read_bytes()):
            raise UserError(f"{target} exists and differs; choose another `to`, or move it away")
    for source, target in files.items():
        if target.exists():  # a clone has them where they belong
            continue
        with jsonl.writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    return tuple(files.values())
