"""Read data sets of the Hugging Face hub by name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sailkit import runs
from sailkit.errors import UserError, nearest, required_extra

_NAME = re.compile(r"(?P<name>[\w-][\w.-]*/[\w.-]+)(?::(?P<split>[\w.-]+))?")
_FILE = re.compile(r".*\.(jsonl?|ndjson|csv|tsv|tab|txt|parquet|yaml|xlsx?|gz)", re.IGNORECASE)


def is_hub_name(source: str | Path) -> bool:
    """Whether a name has the form of a data set on the hub, `OWNER/NAME[:SPLIT]`, and no file has that name."""
    return bool(_NAME.fullmatch(str(source))) and not _FILE.fullmatch(str(source)) and not Path(source).exists()


def hub_rows(source: str, preferred: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of one split of a data set, numbered from 1.

    Args:
        source: `OWNER/NAME`, or `OWNER/NAME:SPLIT`.
        preferred: Default splits, best first; a data set with a single split needs none.

    Raises:
        UserError: The data set or the split does not exist.
    """
    name, _, split = source.partition(":")
    with required_extra("hub", f"reading {name} from the hub"):
        import datasets
    try:
        loaded = datasets.load_dataset(name)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"no file {name}, and the hub does not give it as a data set: {reason}") from None
    splits = list(loaded)
    if not split:
        candidates = [name for name in preferred if name in splits] or (splits if len(splits) == 1 else [])
        if not candidates:
            raise UserError(f"{name} has several splits ({', '.join(splits)}); choose one: {name}:{splits[0]}")
        split = candidates[0]
        if len(splits) > 1:
            runs.notice(f"{name}: split {split} of {', '.join(splits)}; another is {name}:SPLIT")
    if split not in splits:
        raise UserError(f"{name} has no split {split!r}; {nearest(split, splits)}")
    return enumerate(loaded[split], start=1)
