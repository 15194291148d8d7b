"""A small file that unpacks to a large one is refused before it fills the memory."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
from pathlib import Path

import pytest

from sailkit.errors import UserError
from sailkit.files import unpacking
from sailkit.files.tables import read_table
from sailkit.retrieval.corpus import read_passages

SMALL, LARGE = 2**20, 4 * 2**20
WHY = r"unpacks to more than .* bytes; if it should, allow more with SAILKIT_MAX_UNPACKED, such as .*=20GB"


@pytest.fixture
def small(monkeypatch):
    """What any file may unpack to, for quick tests."""
    assert unpacking._SMALL == 64 * SMALL
    monkeypatch.setattr(unpacking, "_SMALL", SMALL)


def member(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def bomb(path: Path, size: int = LARGE) -> Path:
    """A file of little that unpacks to much."""
    line = b"word " * 2000 + b"\n"
    text = line * (size // len(line))
    if ".tar" in path.suffixes:
        pack = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(path.suffix, gzip.open)
        with pack(path, "wb") as stream, tarfile.open(fileobj=stream, mode="w|") as archive:
            member(archive, "large.txt", text)
        return path
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        words = ["word " * 2000] * (size // 10_000)
        parquet.write_table(pyarrow.table({"text": words}), path)
        return path
    head, row, tail = {
        ".jsonl": (b"", b'{"text": "%s"}\n' % line[:-1], b""),
        ".json": (b"[1", b', "%s"' % line[:-1], b"]"),
        ".csv": (b"id,text\n", b"1,%s\n" % line[:-1], b""),
        ".tsv": (b"id\ttext\n", b"1\t%s\n" % line[:-1], b""),
    }[path.suffixes[0]]
    with gzip.open(path, "wb") as stream:
        stream.write(head + row * (size // len(row)) + tail)
    return path


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["c.tar.gz", "c.tar.xz", "c.tar.bz2"])
def test_an_archive_that_unpacks_to_much_more_is_refused(tmp_path, name, monkeypatch):
    archive = bomb(tmp_path / name).rename(tmp_path / "corpus.tar")  # what it is shows in its first bytes
    assert archive.stat().st_size < LARGE / 100
    with pytest.raises(UserError, match=WHY):
        read_passages([archive])
    monkeypatch.setenv("SAILKIT_MAX_UNPACKED", "0.1 GB")
    assert read_passages([archive])


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["t.jsonl.gz", "t.json.gz", "t.csv.gz", "t.tsv.gz", "t.parquet"])
def test_a_table_that_unpacks_to_much_more_is_refused(tmp_path, name, monkeypatch):
    path = bomb(tmp_path / name)
    with pytest.raises(UserError, match=WHY) as error:
        for _ in read_table(path):
            pass
    assert str(path) in str(error.value)
    monkeypatch.setenv("SAILKIT_MAX_UNPACKED", "1000")
    small = bomb(tmp_path / f"small-{name}", 20_000)
    with pytest.raises(UserError, match="more than 1,000 bytes"):
        list(read_table(small))
    monkeypatch.setenv("SAILKIT_MAX_UNPACKED", "1MB")
    if ".json" not in path.suffixes:
        assert list(read_table(small))


def test_a_header_that_promises_much_reserves_nothing(tmp_path, monkeypatch):
    info = tarfile.TarInfo("large.txt")
    info.size = 10**12
    with gzip.open(tmp_path / "c.tar.gz", "wb") as stream:
        stream.write(info.tobuf() + b"\0" * 1024)
    with pytest.raises(UserError, match=WHY):
        read_passages([tmp_path / "c.tar.gz"])
    long_name = tarfile.TarInfo("name")
    long_name.size, long_name.type = 10**12, tarfile.GNUTYPE_LONGNAME
    (tmp_path / "d.tar").write_bytes(long_name.tobuf() + b"\0" * 1024)
    with pytest.raises(UserError):
        read_passages([tmp_path / "d.tar"])


def test_a_sparse_member_counts_in_full(tmp_path):
    """Ten kilobytes on the disk, and a hole of a terabyte in what they stand for."""
    headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "hole.txt"}
    headers |= {"GNU.sparse.size": str(10**12), "GNU.sparse.numblocks": "1", "GNU.sparse.map": "0,5"}
    info = tarfile.TarInfo("hole.txt")
    info.size, info.pax_headers = 5, headers
    with tarfile.open(tmp_path / "c.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(b"words"))
    with tarfile.open(tmp_path / "c.tar") as archive:
        assert archive.next().size == 10**12
    with pytest.raises(UserError, match=WHY):
        read_passages([tmp_path / "c.tar"])


@pytest.mark.parametrize("value", ["much", "-1", "1PB", "nan"])
def test_a_setting_that_is_no_size_is_named(tmp_path, monkeypatch, value):
    monkeypatch.setenv("SAILKIT_MAX_UNPACKED", value)
    with pytest.raises(UserError, match="SAILKIT_MAX_UNPACKED should be a size, such as 20GB"):
        list(read_table(bomb(tmp_path / "t.jsonl.gz", 20_000)))


def test_a_byte_order_mark_is_no_part_of_the_first_word(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffParis is large.".encode())
    (tmp_path / "b.md").write_text("Rome is old.", "utf-16")
    (tmp_path / "c.json").write_bytes(b"\xef\xbb\xbf" + json.dumps([{"text": "Bonn is small."}]).encode())
    with tarfile.open(tmp_path / "d.tar.gz", "w:gz") as archive:
        member(archive, "e.txt", "\ufeffOslo is cold.".encode())
    found = [one.body for path in sorted(tmp_path.iterdir()) for one in read_passages([path])]
    assert found == ["Paris is large.", "Rome is old.", "Bonn is small.", "Oslo is cold."]
