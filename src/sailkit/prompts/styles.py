"""The literals of the styles of training examples, from `styles.yaml`."""

from __future__ import annotations

from typing import Any

from sailkit.files.yaml_files import packaged_yaml


def wording() -> dict[str, Any]:
    """All literals."""
    return packaged_yaml("prompts/styles.yaml")
