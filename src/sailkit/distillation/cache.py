"""A teacher's cache on the disk: shards of what it thinks of completions, their index, and reading them again.

A shard is a safetensors file. Rows hold positions and positions hold entries, one behind the other, each level with its
counts or ends (CSR). An entry takes four bytes: a token's id in two, its log-probability in two more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from sailkit import runs
from sailkit.distillation.records import TeacherRow, completion_key
from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.models.sources import Source
from sailkit.prompts.sail import wording

TEACHER_CACHE_STAGE = "teacher-cache"
INDEX = "index.jsonl"  # a row for each shard, written last: where it is, the cache is whole
SHARD_FORMAT = 1  # of a shard; raise it when the tensors below change
_MOST_MASS = 1.001  # of a position's probabilities, rounding apart
_AGAIN = "; remove that file and run the same  sailkit teacher-cache  again, it is made anew"


def shard_name(number: int) -> str:
    """The file of a shard, from 0."""
    return f"teacher-{number + 1:05d}.safetensors"


def pack(keys: Sequence[bytes], rows: Sequence[TeacherRow]) -> bytes:
    """The bytes of a shard.

    Args:
        keys: Of each row, 32 bytes.
        rows: What the teacher thinks; the type of the log-probabilities is kept.

    Returns:
        A safetensors file with, for r rows, p positions and e entries: `keys` (r, 32); `row_positions` (r + 1,) and
        `row_entries` (r + 1,), where the rows begin and the last one ends; `tokens`, `counts` (entries of each
        position), `tail` and `observed` (p,); `ids` and `logprobs` (e,).
    """
    from safetensors.numpy import save

    counts = np.concatenate([np.diff(row.starts) for row in rows])
    ids = np.concatenate([row.ids for row in rows])
    tokens = np.concatenate([row.tokens for row in rows])
    tensors = {
        "keys": np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), 32),
        "row_positions": _ends([len(row.tokens) for row in rows]),
        "row_entries": _ends([len(row.ids) for row in rows]),
        "tokens": _small(tokens),
        "counts": _small(counts),
        "tail": np.concatenate([row.tail for row in rows]).astype(np.float32),
        "observed": np.concatenate([row.observed for row in rows]).astype(np.float32),
        "ids": _small(ids),
        "logprobs": np.concatenate([row.logprobs for row in rows]),
    }
    return save(tensors, metadata={"format": str(SHARD_FORMAT)})


def _ends(lengths: Sequence[int]) -> Any:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _small(values: Any) -> Any:
    """Whole numbers in the smallest type that holds them."""
    return values.astype(np.min_scalar_type(int(values.max(initial=0))))


class Shard:
    """An open shard; its rows are read from the disk one at a time."""

    def __init__(self, path: Path) -> None:
        """Open a shard.

        Raises:
            UserError: Not there, cut off, or no shard.
        """
        from safetensors import SafetensorError, safe_open

        self.path = path
        try:
            self._file = opened = cast(Any, safe_open(path, "numpy"))
            found = (opened.metadata() or {}).get("format")
            if found != str(SHARD_FORMAT):
                raise UserError(f"{path} is no shard of a teacher's cache of format {SHARD_FORMAT}{_AGAIN}")
            self.keys = [bytes(key) for key in opened.get_tensor("keys")]
            self._positions, self._entries = (opened.get_tensor(f"row_{n}") for n in ("positions", "entries"))
        except (SafetensorError, OSError) as error:
            why = "cut off or damaged" if path.exists() else "missing"
            raise UserError(f"{path}: this shard is {why} ({' '.join(str(error).split())}){_AGAIN}") from None

    def row(self, place: int) -> TeacherRow:
        """What the teacher thinks of one completion."""
        a, b = self._positions[place : place + 2]
        c, d = self._entries[place : place + 2]
        counts, tokens, tail, observed = (self._part(n, a, b) for n in ("counts", "tokens", "tail", "observed"))
        ids, logprobs = (self._part(n, c, d) for n in ("ids", "logprobs"))
        return TeacherRow(tokens.astype(np.int64), _ends(counts), ids.astype(np.int64), logprobs, tail, observed)

    def figures(self) -> dict[str, Any]:
        """What the index says of this shard."""
        observed, tail = (self._file.get_tensor(name).astype(np.float64) for name in ("observed", "tail"))
        return {
            "file": self.path.name,
            "rows": len(self.keys),
            "positions": int(self._positions[-1]),
            "entries": int(self._entries[-1]),
            "surprise": -float(observed.sum()),
            "tail": float(tail.sum()),
            "bytes": self.path.stat().st_size,
            "sha256": jsonl.file_fingerprint([self.path]),
        }

    def _part(self, name: str, start: int, end: int) -> Any:
        return self._file.get_slice(name)[int(start) : int(end)]


def read_index(folder: Path) -> list[dict[str, Any]]:
    """The rows of a cache's index, one for each shard.

    Raises:
        UserError: It is not there, or damaged.
    """
    found = []
    for line, row in jsonl.read_rows(folder / INDEX):
        if not isinstance(row.get("file"), str) or not isinstance(row.get("sha256"), str) or "rows" not in row:
            raise UserError(f"{folder / INDEX}, line {line}: damaged; remove it and run {TEACHER_CACHE_STAGE} again")
        found.append(row)
    return found


class CacheReader:
    """What a teacher thinks of every completion of a data set; read only, nothing is ever changed.

    Attributes:
        folder: The run folder of teacher-cache.
        settings: How it was made.
        index: A row for each shard.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], index: Sequence[Mapping[str, Any]]) -> None:
        """Open every shard; see `open`."""
        self.folder = folder
        self.settings = settings
        self.index = tuple(index)
        self._places: dict[bytes, tuple[int, int]] = {}  # key -> shard and row
        self._shards: list[Shard] = []
        self._checked: set[int] = set()
        for number, said in enumerate(self.index):
            shard = Shard(folder / str(said["file"]))
            if len(shard.keys) != said["rows"]:
                raise UserError(f"{shard.path} is not the shard that {folder / INDEX} lists{_AGAIN}")
            self._shards.append(shard)
            self._places.update((key, (number, place)) for place, key in enumerate(shard.keys))

    @classmethod
    def open(cls, folder: str | Path) -> CacheReader:
        """Open a finished cache.

        Args:
            folder: The run folder of teacher-cache.

        Raises:
            UserError: It is none, not finished, or a shard is missing, cut off or damaged.
        """
        folder = Path(folder)
        manifest = runs.read_manifest(folder)
        if manifest["stage"] != TEACHER_CACHE_STAGE:
            raise UserError(f"{folder} holds a run of {manifest['stage']!r}, not of {TEACHER_CACHE_STAGE}")
        if not (folder / INDEX).exists():
            raise UserError(
                f"{folder}: the teacher's cache is not finished; run the same  sailkit {TEACHER_CACHE_STAGE}  again"
            )
        return cls(folder, manifest["settings"], read_index(folder))

    def __len__(self) -> int:
        """How many completions there are."""
        return len(self._places)

    def __contains__(self, key: object) -> bool:
        """Whether a completion is there, by the key of its pair."""
        return key in self._places

    def check(self, source: Source | None = None, **expected: Any) -> None:
        """Make sure that this is the cache of a certain teacher and rendering; the wording is always checked.

        Args:
            source: The teacher's files; of a teacher behind an endpoint, its tokenizer's.
            expected: Further settings of the cache that have to be these.

        Raises:
            UserError: Something differs; it is named.
        """
        digests = source.digests() if source else {}
        wanted = {name: value for name, value in digests.items() if self.settings.get(name) is not None}
        wanted |= {"styles_sha256": jsonl.fingerprint(wording()), **expected}
        differ = [name for name, value in wanted.items() if self.settings.get(name) != value]
        if differ:
            values = ((name, str(self.settings.get(name))[:16], str(wanted[name])[:16]) for name in differ)
            told = "; ".join(f"{name}: {there} there, {here} now" for name, there, here in values)
            raise UserError(f"{self.folder} is the cache of another teacher, tokenizer or template ({told})")

    def find(self, prompt_ids: Sequence[int], completion: str) -> tuple[int, int]:
        """Where a completion is: its shard and row; no shard is read. Arguments and errors are those of `get`."""
        place = self._places.get(completion_key(prompt_ids, completion))
        if place is None:
            raise UserError(
                f"{self.folder} is a cache of other completions: {completion[:40]!r} is not there behind this prompt; "
                f"run  sailkit {TEACHER_CACHE_STAGE}  on these data"
            )
        return place

    def get(self, prompt_ids: Sequence[int], completion: str) -> TeacherRow:
        """What the teacher thinks of a completion.

        Args:
            prompt_ids: Token ids of its prompt, as the teacher's tokenizer gives them.
            completion: Its text, in the teacher's style.

        Raises:
            UserError: It is not there, or its shard is damaged.
        """
        number, row = self.find(prompt_ids, completion)
        shard, said = self._shards[number], self.index[number]
        if number not in self._checked:
            if jsonl.file_fingerprint([shard.path]) != said["sha256"]:
                raise UserError(f"{shard.path}: this shard is damaged, its bytes have changed{_AGAIN}")
            self._checked.add(number)
        found = shard.row(row)
        check_mass(found, f"{shard.path}, row {row}")
        return found


def check_mass(row: TeacherRow, where: str) -> None:
    """Make sure that no position has more probability than there is.

    Raises:
        UserError: The listed probabilities and the tail of a position sum to more than 1.001.
    """
    listed = row.logprobs.astype(np.float64)
    # Rounding alone can add a share to each: half the step between two numbers of this type.
    least = np.exp(listed - np.spacing(np.abs(row.logprobs)).astype(np.float64) / 2)
    sums = np.add.reduceat(np.append(least, 0.0), row.starts[:-1]) * (np.diff(row.starts) > 0) + row.tail
    if len(sums) and not float(sums.max()) <= _MOST_MASS:  # nor may it be no number
        place = int(np.argmax(np.where(np.isnan(sums), np.inf, sums)))
        raise UserError(f"{where}: the probabilities of position {place} sum to {sums[place]:.4f}, more than 1")
