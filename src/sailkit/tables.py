"""Tables as people keep them: JSON Lines, CSV, parquet, and YAML."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from sailkit import jsonl
from sailkit.errors import UserError, missing_extra


def read_table(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a JSON Lines, CSV or parquet file with their numbers from 1 (the header of a CSV is line 1)."""
    if path.suffix == ".csv":
        try:
            with path.open(encoding="utf-8-sig", newline="") as stream:
                reader = csv.DictReader(stream, strict=True)
                for row in reader:
                    if None in row or None in row.values():
                        raise UserError(f"{path}, line {reader.line_num}: not as many fields as the header has")
                    yield reader.line_num, row
        except OSError as error:
            raise jsonl.reading_failed(path, error) from None
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not readable as UTF-8 CSV ({error})") from None
    elif path.suffix == ".parquet":
        try:
            import pyarrow.parquet
        except ImportError:
            raise missing_extra("parquet", f"reading {path}") from None
        try:
            with path.open("rb") as stream:
                yield from enumerate(pyarrow.parquet.read_table(stream).to_pylist(), start=1)
        except (OSError, pyarrow.ArrowException) as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise UserError(f"cannot read {path}: {reason}") from None
    else:
        yield from jsonl.read(path)


def read_yaml(path: str | Path) -> Any:
    """What a YAML file holds.

    Raises:
        UserError: The file cannot be read or is not YAML.
    """
    try:
        return yaml.safe_load(Path(path).read_text("utf-8"))
    except OSError as error:
        raise jsonl.reading_failed(path, error) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
