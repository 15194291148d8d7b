"""The format of a teacher's cache: shards of its distributions along completions, their index, and their reader.

A shard is a safetensors file. The positions of all rows and the entries of all positions are concatenated, with counts
or offsets (CSR). An entry usually takes four bytes: two for a token's id and two for its log-probability.
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
from sailkit.prompts.styles import wording

TEACHER_CACHE_STAGE = "teacher-cache"
INDEX = "index.jsonl"  # a row for each shard; written last, so a cache with an index is complete
SHARD_FORMAT = 1  # version of shards; raise it when the tensors below change
_MOST_MASS = 1.001  # most total probability of a position, apart from rounding of its entries
_MEND = "; remove that file and run the same  sailkit teacher-cache  again, it is made again"


def shard_name(number: int) -> str:
    """The file name of a shard, numbered from 0."""
    return f"teacher-{number + 1:05d}.safetensors"


def pack(keys: Sequence[bytes], rows: Sequence[TeacherRow]) -> bytes:
    """Serialise a shard.

    Args:
        keys: The key of each row, 32 bytes.
        rows: The teacher's distributions; the log-probabilities keep their type.

    Returns:
        A safetensors file with, for r rows, p positions and e entries: `keys` (r, 32); the offsets `row_positions` and
        `row_entries` (r + 1,); `tokens`, `counts` (entries of each position), `tail` and `observed` (p,); `ids` and
        `logprobs` (e,).
    """
    from safetensors.numpy import save

    counts = np.concatenate([np.diff(row.starts) for row in rows])
    ids = np.concatenate([row.ids for row in rows])
    tokens = np.concatenate([row.tokens for row in rows])
    tensors = {
        "keys": np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), 32),
        "row_positions": _ends([len(row.tokens) for row in rows]),
        "row_entries": _ends([len(row.ids) for row in rows]),
        "tokens": _smallest(tokens),
        "counts": _smallest(counts),
        "tail": np.concatenate([row.tail for row in rows]).astype(np.float32),
        "observed": np.concatenate([row.observed for row in rows]).astype(np.float32),
        "ids": _smallest(ids),
        "logprobs": np.concatenate([row.logprobs for row in rows]),
    }
    return save(tensors, metadata={"format": str(SHARD_FORMAT)})


def _ends(lengths: Sequence[int]) -> Any:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _smallest(values: Any) -> Any:
    """Integers in the smallest type that holds them."""
    return values.astype(np.min_scalar_type(int(values.max(initial=0))))


class Shard:
    """An open shard; its rows are read from the disk one at a time."""

    def __init__(self, path: Path) -> None:
        """Open a shard.

        Raises:
            UserError: The file is missing, truncated, or not a shard.
        """
        from safetensors import SafetensorError, safe_open

        self.path = path
        try:
            self._file = opened = cast(Any, safe_open(path, "numpy"))
            version = (opened.metadata() or {}).get("format")
            if version != str(SHARD_FORMAT):
                raise UserError(f"{path} is no shard of a teacher's cache of format {SHARD_FORMAT}{_MEND}")
            self.keys = [bytes(key) for key in opened.get_tensor("keys")]
            self._positions, self._entries = (opened.get_tensor(f"row_{n}") for n in ("positions", "entries"))
        except (SafetensorError, OSError) as error:
            why = "cut off or damaged" if path.exists() else "missing"
            raise UserError(f"{path}: this shard is {why} ({' '.join(str(error).split())}){_MEND}") from None

    def row(self, index: int) -> TeacherRow:
        """The teacher's distributions along one completion."""
        first, last = self._positions[index : index + 2]
        positions = (self._part(n, first, last) for n in ("counts", "tokens", "tail", "observed"))
        counts, tokens, tail, observed = positions
        first, last = self._entries[index : index + 2]
        ids, logprobs = (self._part(n, first, last) for n in ("ids", "logprobs"))
        return TeacherRow(tokens.astype(np.int64), _ends(counts), ids.astype(np.int64), logprobs, tail, observed)

    def index_row(self) -> dict[str, Any]:
        """The entry of this shard in the index."""
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
    """Read the index of a cache, with one row for each shard.

    Raises:
        UserError: The index is missing or damaged.
    """
    index = []
    for line, row in jsonl.read_rows(folder / INDEX):
        if not isinstance(row.get("file"), str) or not isinstance(row.get("sha256"), str) or "rows" not in row:
            raise UserError(f"{folder / INDEX}, line {line}: damaged; remove it and run {TEACHER_CACHE_STAGE} again")
        index.append(row)
    return index


class CacheReader:
    """Reads a teacher's cache: its distributions along every completion of a data set.

    Attributes:
        folder: The run folder of teacher-cache.
        settings: The settings of that run.
        index: One row for each shard.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], index: Sequence[Mapping[str, Any]]) -> None:
        """Open every shard; see `open`."""
        self.folder = folder
        self.settings = settings
        self.index = tuple(index)
        self._locations: dict[bytes, tuple[int, int]] = {}  # key -> shard and row
        self._shards: list[Shard] = []
        self._checked: set[int] = set()
        for number, row in enumerate(self.index):
            shard = Shard(folder / str(row["file"]))
            if len(shard.keys) != row["rows"]:
                raise UserError(f"{shard.path} is not the shard that {folder / INDEX} lists{_MEND}")
            self._shards.append(shard)
            self._locations.update((key, (number, i)) for i, key in enumerate(shard.keys))

    @classmethod
    def open(cls, folder: str | Path) -> CacheReader:
        """Open a finished cache.

        Args:
            folder: The run folder of teacher-cache.

        Raises:
            UserError: It is not a cache, not finished, or a shard is missing, truncated or damaged.
        """
        folder = Path(folder)
        manifest = runs.read_finished(folder, INDEX, TEACHER_CACHE_STAGE)
        return cls(folder, manifest["settings"], read_index(folder))

    def __len__(self) -> int:
        """Number of completions."""
        return len(self._locations)

    def __contains__(self, key: object) -> bool:
        """Whether a completion is in the cache, by its key."""
        return key in self._locations

    def check(self, source: Source | None = None, **expected: Any) -> None:
        """Check the teacher and the rendering of this cache; the literals of the prompt styles are always checked.

        Args:
            source: The teacher's files; for an endpoint, those of its tokenizer.
            expected: Further settings and their expected values.

        Raises:
            UserError: Settings differ; the message names them.
        """
        digests = source.digests() if source else {}
        required = {name: value for name, value in digests.items() if self.settings.get(name) is not None}
        required |= {"styles_sha256": jsonl.fingerprint(wording()), **expected}
        differ = [name for name, value in required.items() if self.settings.get(name) != value]
        if differ:
            values = ((name, str(self.settings.get(name))[:16], str(required[name])[:16]) for name in differ)
            differences = "; ".join(f"{name}: {there} there, {here} now" for name, there, here in values)
            raise UserError(f"{self.folder} is the cache of another teacher, tokenizer or template ({differences})")

    def find(self, prompt_ids: Sequence[int], completion: str) -> tuple[int, int]:
        """The shard and row of a completion, without reading the shard; for arguments and errors see `get`."""
        location = self._locations.get(completion_key(prompt_ids, completion))
        if location is None:
            raise UserError(
                f"{self.folder} is a cache of other completions: {completion[:40]!r} is not there behind this prompt; "
                f"run  sailkit {TEACHER_CACHE_STAGE}  on these data"
            )
        return location

    def get(self, prompt_ids: Sequence[int], completion: str) -> TeacherRow:
        """The teacher's distributions along a completion.

        Args:
            prompt_ids: Token ids of the prompt, by the teacher's tokenizer.
            completion: Text of the completion, in the teacher's style.

        Raises:
            UserError: The completion is not in the cache, or its shard is damaged.
        """
        number, row = self.find(prompt_ids, completion)
        shard = self._shards[number]
        if number not in self._checked:
            if jsonl.file_fingerprint([shard.path]) != self.index[number]["sha256"]:
                raise UserError(f"{shard.path}: this shard is damaged, its bytes have changed{_MEND}")
            self._checked.add(number)
        distributions = shard.row(row)
        check_mass(distributions, f"{shard.path}, row {row}")
        return distributions


def check_mass(row: TeacherRow, where: str) -> None:
    """Check that the probabilities of no position sum to more than 1.

    Raises:
        UserError: The listed probabilities and the tail of a position sum to more than 1.001.
    """
    listed = row.logprobs.astype(np.float64)
    # Rounding may have raised each log-probability by up to half the spacing of its number format.
    least = np.exp(listed - np.spacing(np.abs(row.logprobs)).astype(np.float64) / 2)
    sums = np.add.reduceat(np.append(least, 0.0), row.starts[:-1]) * (np.diff(row.starts) > 0) + row.tail
    if len(sums) and not float(sums.max()) <= _MOST_MASS:  # written so that NaN is refused, too
        position = int(np.argmax(np.where(np.isnan(sums), np.inf, sums)))
        raise UserError(f"{where}: the probabilities of position {position} sum to {sums[position]:.4f}, more than 1")
