"""Shows the command lines that made runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sailkit.rendering.model import Code, Heading


def command_blocks(manifests: Mapping[str, Mapping[str, Any]]) -> list[Heading | Code]:
    """The command of each run whose manifest records one.

    Args:
        manifests: Name of a run -> its manifest; a single name is left out.
    """
    known = {name: str(command) for name, manifest in manifests.items()
             if (command := manifest.get("environment", {}).get("command"))}  # fmt: skip
    blocks: list[Heading | Code] = []
    for name, command in known.items():
        blocks += [Heading(name)] if len(manifests) > 1 else []
        blocks.append(Code(command))
    return blocks
