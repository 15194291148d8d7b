"""Read compressed files up to a limit: a few megabytes can unpack to many gigabytes."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

from sailkit.errors import UserError

SETTING = "SAILKIT_MAX_UNPACKED"
ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)  # what truncated or damaged files raise
_MOST = 4 * 2**30  # bytes; the default upper limit
_MOST_TIMES = 100  # ratio to the file's size; texts compress by a factor of 3 to 10, seldom 30
_SMALL = 64 * 2**20  # bytes; never limit a file to less
_MAGIC: dict[bytes, Callable[[Path], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)b?", re.IGNORECASE)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_PIECE = 2**20


class Limit:
    """How many bytes a file may unpack to: `SAILKIT_MAX_UNPACKED`, else a hundred times its size, at most 4 GiB."""

    def __init__(self, path: Path) -> None:
        """Read the setting and the file's size.

        Raises:
            UserError: The setting is not a size.
        """
        self._path = path
        self._packed = path.stat().st_size
        self.size = min(_MOST, max(_SMALL, _MOST_TIMES * self._packed))
        if chosen := os.environ.get(SETTING):
            match = _SIZE.fullmatch(chosen.strip())
            if match is None:
                raise UserError(f"{SETTING} should be a size, such as 20GB, not {chosen!r}")
            self.size = int(float(match[1]) * _UNITS[match[2].lower()])

    def check(self, size: int) -> None:
        """Raise an error if the unpacked size exceeds the limit.

        Args:
            size: Bytes unpacked so far.

        Raises:
            UserError: The limit is exceeded; file and setting are named.
        """
        if size > self.size:
            raise UserError(
                f"{self._path} ({self._packed:,} bytes) unpacks to more than {self.size:,} bytes; "
                f"if it should, allow more with {SETTING}, such as {SETTING}=20GB"
            )


class _Limited(io.RawIOBase):
    """A stream that raises an error beyond a limit."""

    def __init__(self, stream: BinaryIO, limit: Limit) -> None:
        self._stream = stream
        self._limit = limit

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        self._limit.check(self._stream.tell())
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int = -1, /) -> bytes:
        # Read in pieces: a header within a file may claim any size, which would be allocated at once.
        parts = []
        while size and (part := self._stream.read(_PIECE if size < 0 else min(size, _PIECE))):
            self._limit.check(self._stream.tell())
            parts.append(part)
            size -= len(part) if size > 0 else 0
        return b"".join(parts)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if whence == io.SEEK_SET:
            self._limit.check(offset)
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def close(self) -> None:
        self._stream.close()
        super().close()


def open_gzip(path: Path) -> BinaryIO:
    """Open a file for reading, unpacked if its name ends in .gz.

    Raises:
        UserError: Raised on reading, beyond the limit.
    """
    if path.suffix.lower() != ".gz":
        return path.open("rb")
    limit = Limit(path)
    return io.BufferedReader(_Limited(cast(BinaryIO, gzip.open(path)), limit), _PIECE)


def open_archive(path: Path, limit: Limit) -> BinaryIO:
    """Open an archive for reading, unpacked if its first bytes are those of gzip, bzip2 or xz; unbuffered.

    Args:
        path: The file.
        limit: Limit of the unpacked size.
    """
    with path.open("rb") as stream:
        start = stream.read(8)
    unpack = next((way for magic, way in _MAGIC.items() if start.startswith(magic)), None)
    return cast(BinaryIO, _Limited(unpack(path) if unpack else path.open("rb"), limit))
