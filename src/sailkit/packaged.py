"""Locate the files that come with the package: recipes, examples and samples."""

from __future__ import annotations

import re
from pathlib import Path

from sailkit.errors import UserError, nearest

_PACKAGE = Path(__file__).parent
_RESOURCES = _PACKAGE / "resources"
_SAMPLE = re.compile(r"sample:(.*[.-].*)")  # a name without . or - is an attribute of a plug-in module `sample`


def project_folder(name: str) -> Path:
    """The folder `recipes` or `examples`: part of an installed package, or at the top of a checkout."""
    installed = _RESOURCES / name
    return installed if installed.is_dir() else _PACKAGE.parents[1] / name


def sample_files() -> dict[str, Path]:
    """The sample data and recordings: name -> file or run folder."""
    folders = (_PACKAGE / "tasks" / "samples", _RESOURCES / "recordings")
    return {path.name: path for folder in folders for path in sorted(folder.iterdir()) if path.name[0] not in "._"}


def is_sample(path: str | Path) -> bool:
    """Whether a path has the form `sample:NAME`."""
    return _SAMPLE.fullmatch(str(path)) is not None


def sample_path(path: str | Path) -> Path:
    """Resolve `sample:NAME`; any other path is returned as it is.

    Raises:
        UserError: There is no such sample.
    """
    match = _SAMPLE.fullmatch(str(path))
    if match is None:
        return Path(path)
    samples, name = sample_files(), match[1]
    if name not in samples:
        raise UserError(f"no sample {name!r}; {nearest(name, samples)}")
    return samples[name]


def recipe_path(recipe: str | Path) -> Path:
    """Resolve the name of a recipe that comes with the package, such as `quickstart`; files of the user go first.

    Raises:
        UserError: It is neither a path nor such a name.
    """
    path = Path(recipe)
    if path.is_file() or len(path.parts) > 1 or path.suffix in (".yaml", ".yml"):
        return path
    recipes = {file.stem: file for file in project_folder("recipes").glob("*.yaml")}
    if path.name not in recipes:
        raise UserError(f"no file {recipe}, and no recipe of that name; {nearest(path.name, recipes)}")
    return recipes[path.name]
