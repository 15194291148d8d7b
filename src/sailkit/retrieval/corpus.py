"""Read documents in common file formats, and split them into overlapping passages."""

from __future__ import annotations

import codecs
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from sailkit import runs
from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.files.tables import is_companion, read_table, table_kind
from sailkit.files.unpacking import ERRORS, Limit, open_archive
from sailkit.text import without_markup, without_surrogates

_TEXTS = (".txt", ".md")
_CELLS = (".csv", ".tsv", ".parquet")
_WIKI = re.compile(r"wiki_\d+")  # as WikiExtractor names its files
_BODIES = ("text", "body", "contents", "passage", "evidence")


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage of a document.

    Attributes:
        title: The document's heading.
        body: The text.
        url: The URL that the document gives; may be empty.
    """

    title: str
    body: str
    url: str = ""


def read_passages(paths: Sequence[Path], words: int = 120, overlap: int = 20) -> list[Passage]:
    """Read documents and split them into passages.

    Args:
        paths: Tables (.jsonl, .json, .csv, .parquet) of documents `{title, text}`, of questions with `ctxs`, or of
            claims with `evidence`; .txt and .md files; folders of texts, tables and .json files, or WikiExtractor's;
            .tar.gz archives of .txt, .md or .json files.
        words: Maximum words in a passage.
        overlap: Words shared by consecutive passages.

    Returns:
        Passages in the order of the documents, without duplicates.

    Raises:
        UserError: A file cannot be read or parsed, or there is no text.
    """
    if not 0 <= overlap < words:
        raise UserError(f"`passage_overlap` should be from 0 to less than `passage_words` ({words}), not {overlap}")
    passages: dict[tuple[str, str], Passage] = {}
    for path in paths:
        for document in _documents(path):
            title, text, url = map(without_surrogates, (document.title, document.body, document.url))
            for part in split_words(without_markup(text), words, overlap):
                passages.setdefault((title, part), Passage(title, part, url))
    if not passages:
        raise UserError(f"no text in {', '.join(map(str, paths))}")
    return list(passages.values())


def split_words(text: str, words: int, overlap: int) -> list[str]:
    """Split a text into overlapping spans of words; a short text is one span, an empty text none."""
    tokens = text.split()
    if len(tokens) <= words:
        return [" ".join(tokens)] if tokens else []
    return [" ".join(tokens[i : i + words]) for i in range(0, len(tokens) - overlap, words - overlap)]


def corpus_fingerprint(paths: Sequence[Path]) -> str:
    """sha256 of the bytes of a corpus and of the file names that become titles, 64 hex digits."""
    named = [
        (str(file.relative_to(path)) if path.is_dir() else path.name, file)
        for path in paths
        for file in (_files(path) if path.is_dir() else [path])
    ]
    return jsonl.fingerprint([[name, jsonl.file_fingerprint([file])] for name, file in named])


def _documents(path: Path) -> Iterator[Passage]:
    try:
        if path.is_dir():
            for file in _files(path):
                if _is_table(file):
                    yield from _documents(file) if _has_texts(file) else ()
                else:
                    yield from _file_documents(str(file.relative_to(path)), file.read_bytes(), str(file))
        elif path.name.endswith((".tar.gz", ".tgz", ".tar")):
            yield from _archive_documents(path)
        elif path.suffix.lower() in _TEXTS:
            yield from _file_documents(path.name, path.read_bytes(), str(path))
        else:
            for line, row in read_table(path):
                yield from _row_documents(row, f"{path}, line {line}")
    except RecursionError:
        raise UserError(f"{path}: JSON nested too deeply") from None
    except (*ERRORS, tarfile.TarError) as error:
        raise jsonl.reading_failed(path, error) from None


def _archive_documents(path: Path) -> Iterator[Passage]:
    """Read the texts in an archive without extracting it: names in it never become paths on this machine."""
    limit, size = Limit(path), 0
    with open_archive(path, limit) as unpacked, tarfile.open(fileobj=unpacked, mode="r:") as archive:
        for member in archive:
            name = PurePosixPath(member.name)
            if not member.isfile() or not _is_text(name):
                continue
            size += member.size  # includes the holes of a sparse file, which are read as zeros
            limit.check(size)
            if stream := archive.extractfile(member):
                yield from _file_documents(member.name, stream.read(), f"{path}: {member.name}")


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if (_is_text(file) or _is_table(file)) and file.is_file())


def _has_texts(table: Path) -> bool:
    """Whether a table in a folder has texts; one with cells may be about the other files, such as their authors."""
    if table_kind(table) not in _CELLS:
        return True
    _, row = next(read_table(table), (0, {}))
    known = any(name in row for name in (*_BODIES, "ctxs"))
    if not known:
        runs.notice(f"{table}: no column of texts ({', '.join(_BODIES)}); left out")
    return known


def _is_text(path: PurePath) -> bool:
    return path.suffix.lower() in (*_TEXTS, ".json") and not is_companion(path)


def _is_table(path: Path) -> bool:
    named = table_kind(path) in (".jsonl", *_CELLS) or _WIKI.fullmatch(path.name) is not None
    return named and not is_companion(path)


def _file_documents(name: str, data: bytes, where: str) -> Iterator[Passage]:
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text ({error.reason})") from None
    title = str(PurePosixPath(name).with_suffix(""))
    if not name.lower().endswith(".json"):
        yield Passage(title, text)
        return
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({error})") from None
    if isinstance(tree, list) and tree and all(_is_document(entry) for entry in tree):
        for number, row in enumerate(tree, start=1):
            yield from _row_documents(row, f"{where}, row {number}")
    else:
        yield from _leaves(tree, [title])


def _is_document(entry: Any) -> bool:
    return isinstance(entry, dict) and ("ctxs" in entry or any(isinstance(entry.get(name), str) for name in _BODIES))


def _leaves(tree: Any, path: list[str]) -> Iterator[Passage]:
    """Every text in a JSON tree, titled with its path."""
    if isinstance(tree, str) and tree.strip():
        yield Passage(" > ".join(path), tree)
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaves(value, path if key in _BODIES else [*path, str(key)])
    elif isinstance(tree, list):
        for value in tree:
            yield from _leaves(value, path)


def _row_documents(row: dict[str, Any], where: str) -> Iterator[Passage]:
    body = next((row[name] for name in _BODIES if isinstance(row.get(name), str)), None)
    name = "ctxs" if row.get("ctxs") or (body is None and "ctxs" in row) else "evidence"
    passages = row.get(name)
    # Of a question, or of a claim, whose text is no document; a document may have `evidence` of another kind.
    if isinstance(passages, list) and (name == "ctxs" or body is None or "label" in row):
        for entry in passages:
            if isinstance(entry, dict):
                yield from _row_documents(entry, where)
            elif isinstance(entry, str):
                yield Passage("", entry)
            else:
                raise UserError(f"{where}: {name} should be a list of texts or of search results, not of {entry!r:.40}")
        return
    if body is None:
        raise UserError(f"{where}: no text field (one of {', '.join(_BODIES)}; found: {', '.join(sorted(row))})")
    title, url = (row.get(name) for name in ("title", "url"))
    yield Passage(str(title or ""), body, str(url or ""))
