"""Build the documentation as a site that needs no network: python docs/build_site.py FOLDER, or `make docs`.

The pages of the commands are written from the functions behind them, as their help is.
"""

from __future__ import annotations

import inspect
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts.help import MarkdownFormatter
from rich.console import Console

import sailkit
from sailkit.cli import VERBS, build_app
from sailkit.help import EXAMPLES, VERB_GROUPS, by_group

if TYPE_CHECKING:
    from cyclopts.help import HelpPanel
    from rich.console import ConsoleOptions

DOCS = Path(__file__).parent
COMMANDS = "commands/index.md"

# Where a command is explained; pages are separated by spaces.
GUIDES = {
    "search": "data.md#sailkit-search",
    "label": "data.md#sailkit-label",
    "fit": "data.md#sailkit-fit-and-sailkit-audit",
    "audit": "data.md#sailkit-fit-and-sailkit-audit",
    "build": "build.md",
    "build-task": "build.md#claims-with-evidence-that-people-judged-sailkit-build-task",
    "finetune": "finetune.md",
    "merge": "finetune.md#what-is-trained",
    "teacher-cache": "distill.md#what-is-cached",
    "distill": "distill.md",
    "evaluate": "distraction.md tasks.md",
    "rescore": "results.md#recordings",
    "compare": "compare.md",
    "report": "results.md",
    "ask": "ask.md",
    "demo": "demo.md",
    "serve": "ask.md#an-openai-compatible-server",
    "run": "pipeline.md",
    "runs": "pipeline.md",
    "recipes": "pipeline.md",
    "samples": "tutorial.md",
    "doctor": "doctor.md",
}

# A picture, script, style sheet or font from another host.
ELSEWHERE = re.compile(
    r"""<(?:script|img|iframe|source|object|embed)\b[^>]*\b(?:src|data)=["']?(?:https?:)?//[^>]*"""
    r"""|<link\b(?=[^>]*\brel=["']?(?:stylesheet|icon|preconnect|preload))[^>]*\bhref=["']?(?:https?:)?//[^>]*"""
    r"""|(?:@import|url\()\s*["']?(?:https?:)?//[^)"']*""",
    re.IGNORECASE,
)


class FlagLists(MarkdownFormatter):
    """Writes the flags of a command as Markdown, in the groups of its help."""

    def __call__(self, console: Console | None, options: ConsoleOptions | None, panel: HelpPanel) -> None:
        """Write a list for each group."""
        for group in by_group(panel):
            super().__call__(console, options, group)

    def render_usage(self, console: Console | None, options: ConsoleOptions | None, usage: object) -> None:
        """Leave out the usage: it repeats the flags that are required."""

    def render_description(self, console: Console | None, options: ConsoleOptions | None, description: object) -> None:
        """Leave out the description: it is taken from the docstring."""


def flag_lists(verb: str) -> str:
    """The flags of a command, a heading and a list for each group."""
    app = build_app()
    app.help_formatter = formatter = FlagLists(heading_level=2)
    app.help_print([verb], console=Console(file=io.StringIO()))
    return formatter.get_output()


def first_line(verb: str) -> str:
    """What a command does, in a line."""
    return (inspect.getdoc(VERBS[verb]) or "").split("\n")[0]


def title(page: str) -> str:
    """The heading of a page."""
    return (DOCS / page).read_text("utf-8").partition("\n")[0].removeprefix("# ")


def command_page(verb: str) -> str:
    """The page of a command, from the signature and the docstring of its function."""
    stage = VERBS[verb]
    about = re.split(r"^(?:Args|Returns|Raises|Yields):$", inspect.getdoc(stage) or "", flags=re.MULTILINE)[0]
    lines = [f"# `sailkit {verb}`", about.strip()]
    if verb in EXAMPLES:
        lines.append(f"```console\n$ {EXAMPLES[verb]}\n```")
    if verb in GUIDES:
        links = (f"[{title(guide.partition('#')[0])}](../{guide})" for guide in GUIDES[verb].split())
        lines.append(f"Explained in: {', '.join(links)}.")
    lines.append(flag_lists(verb).strip())
    if stage.__name__ in sailkit.__all__:
        returned = inspect.get_annotations(stage).get("return", "")
        lines.append(
            f"## In Python\n\n`sailkit.{stage.__name__}(...)` takes the same arguments, with `_` for `-`"
            + (f", and returns `{returned}`" if returned else "")
            + ". [From Python](../python.md) has examples."
        )
    return "\n\n".join(lines) + "\n"


def command_pages() -> dict[str, str]:
    """The pages of all commands and their list, by path."""
    rest = [verb for verb in VERBS if not any(verb in verbs for verbs in VERB_GROUPS.values())]
    groups = {**VERB_GROUPS, "Other": rest} if rest else VERB_GROUPS
    lines = [
        "# Commands",
        "In the order of a pipeline. These pages are written from the code, like `sailkit COMMAND --help`.",
    ]
    for title, verbs in groups.items():
        lines += [f"## {title}", "\n".join(f"- [`{verb}`]({verb}.md): {first_line(verb)}" for verb in verbs)]
    pages = {COMMANDS: "\n\n".join(lines) + "\n"}
    return pages | {f"commands/{verb}.md": command_page(verb) for verbs in groups.values() for verb in verbs}


def write_source(folder: Path) -> None:
    """Write what Zensical reads: the pages, those of the commands, and the configuration that names them all."""
    source = folder / "source"
    shutil.copytree(DOCS, source, ignore=shutil.ignore_patterns("*.py", "*.toml", "__pycache__"))
    for page in source.glob("*.md"):
        # Files of the repository are not part of the site.
        page.write_text(re.sub(r"\[([^\]]+)\]\(\.\./[^)]+\)", r"\1", page.read_text("utf-8")), "utf-8")
    pages = command_pages()
    for path, text in pages.items():
        (source / path).parent.mkdir(exist_ok=True)
        (source / path).write_text(text, "utf-8")
    config = (DOCS / "zensical.toml").read_text("utf-8")
    (folder / "zensical.toml").write_text(config.replace(json.dumps(COMMANDS), json.dumps([*pages])[1:-1]), "utf-8")


def requests_elsewhere(site: Path) -> list[str]:
    """What the pages of a site would load from other hosts."""
    files = sorted(path for path in site.rglob("*") if path.suffix in (".html", ".css", ".svg"))
    return [f"{path}: {match[0]}" for path in files for match in ELSEWHERE.finditer(path.read_text("utf-8"))]


def main(folder: Path) -> None:
    """Build the site in FOLDER/site; exit with an error on any warning."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_source(folder)
    zensical = Path(sys.executable).with_name("zensical")
    built = subprocess.run([zensical, "build", "--strict", "--config-file", folder / "zensical.toml"], check=False)
    if built.returncode:
        sys.exit("the site has warnings, or could not be built")
    if found := requests_elsewhere(folder / "site"):
        sys.exit("the site would load from other hosts:\n" + "\n".join(found))
    print(folder / "site" / "index.html")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
