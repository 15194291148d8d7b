"""Which bytes each token stands for, so that two tokenizers can be laid side by side.

Byte ends come from the pieces themselves, never from character offsets: `▁` is a space, `<0xNN>` a byte, and the
letters of byte-level BPE map back to bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from sailkit.distillation.records import IntArray
from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.prompts.safety import rename_pieces

_MOST_KNOWN = 500_000  # texts whose first token is remembered
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class NotRepresentableError(UserError):
    """A completion that the tokens of a tokenizer do not spell."""


class Vocabulary:
    """The bytes of every token of a tokenizer.

    Attributes:
        pieces: By token id; None for special tokens and for numbers that no token has.
        ids: Bytes -> token id; of several tokens with the same bytes the plainest.
        fingerprint: sha256 of what decides all of this, 16 hex digits.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Read a tokenizer.

        Args:
            tokenizer: A transformers tokenizer with a `tokenizer.json` of the BPE or Unigram kind.

        Raises:
            UserError: Its tokens do not stand for bytes.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UserError(f"{type(tokenizer).__name__} is not a fast tokenizer; sailkit needs a tokenizer.json")
        import tokenizers

        spec = json.loads(backend.to_str())
        if spec["model"]["type"] not in ("BPE", "Unigram"):
            raise UserError(
                f"{type(tokenizer).__name__} is of the {spec['model']['type']} kind, whose tokens do not stand for "
                "bytes; distillation across tokenizers takes BPE and Unigram"
            )
        self.by_bytes = _has(spec, "ByteLevel")
        added = {token["id"]: token for token in spec["added_tokens"]}
        pieces: list[bytes | None] = [None] * (max([*backend.get_vocab().values(), *added]) + 1)
        plain: set[int] = set()
        vocabulary = spec["model"]["vocab"]
        own_pieces = set(vocabulary if isinstance(vocabulary, dict) else (piece for piece, _ in vocabulary))
        for piece, i in backend.get_vocab().items():
            token = added.get(i)
            if token is None:
                pieces[i] = _from_letters(piece) if self.by_bytes else _from_piece(piece)
                plain |= set() if _BYTE.fullmatch(piece) else {i}
            elif not token["special"] and not re.search(r"[<\[|]", piece):  # as the guard takes structure
                # A piece of the vocabulary itself (a run of spaces) reads as such; what was added reads as it stands.
                own = not self.by_bytes and piece in own_pieces
                pieces[i] = _from_piece(piece) if own else piece.encode()
        self.pieces = tuple(pieces)
        self.ids: dict[bytes, int] = {}
        # A byte written as itself yields to the piece that BPE would choose.
        for i in sorted(range(len(pieces)), key=lambda i: (i not in plain, i)):
            if (said := pieces[i]) is not None:
                self.ids.setdefault(said, i)
        self.fingerprint = jsonl.fingerprint([spec["model"], spec["added_tokens"], self.by_bytes])[:16]
        structure = {token["content"]: f"<{i}:structure>" for i, token in added.items() if pieces[i] is None}
        rename_pieces(spec["model"], structure)
        self._copy = tokenizers.Tokenizer.from_str(json.dumps(_bare(spec)))
        self._first: dict[bytes, int] = {}

    def first(self, text: bytes) -> int:
        """The token that a text begins with: the one with the very same bytes, else the first of its tokens.

        Args:
            text: At least one byte; need not be whole characters.

        Raises:
            UserError: The tokenizer has no token for it.
        """
        found = self._first.get(text)
        if found is None:
            if len(self._first) > _MOST_KNOWN:
                self._first.clear()
            found = self._first[text] = self._find(text)
        return found

    def _find(self, text: bytes) -> int:
        if (same := self.ids.get(text)) is not None:
            return same
        try:
            whole = text
            said = text.decode()
        except UnicodeDecodeError as error:  # a token may end within a character
            whole = text[: error.start]
            said = whole.decode()
        if said:
            ids = self._copy.encode(said, add_special_tokens=False).ids
            if ids and self._piece(ids[0]) and whole.startswith(self._piece(ids[0])):
                return int(ids[0])
        for length in range(len(text), 0, -1):
            if (begun := self.ids.get(text[:length])) is not None:
                return begun
        raise UserError(f"the tokenizer has no token that begins like {text[:20]!r}")

    def _piece(self, i: int) -> bytes:
        return self.pieces[i] or b""


@dataclass(frozen=True)
class ByteStream:
    """A completion as the tokens of one tokenizer.

    Attributes:
        tokens: Its supervised token ids; the last one ends the text; shape (n,).
        starts: Where each begins, in bytes from the beginning of the completion; negative where a token takes in what
            the template writes before it (a space); the last is where the end of text stands; shape (n,).
        data: The bytes of all tokens but the last, from `starts[0]` on.
        length: Bytes of the completion alone.
    """

    tokens: IntArray
    starts: IntArray
    data: bytes
    length: int

    def between(self, start: int, end: int) -> bytes:
        """The bytes from one place to another, counted from the beginning of the completion."""
        first = int(self.starts[0])
        return self.data[start - first : end - first]


def stream(vocabulary: Vocabulary, tokens: Sequence[int] | IntArray, completion: str | None) -> ByteStream:
    """Lay a completion out in bytes.

    Args:
        vocabulary: Of the tokenizer that made the tokens.
        tokens: The supervised ids, the end of text among them.
        completion: The text that they stand for, but for white space around it; None for whatever they spell.

    Raises:
        NotRepresentableError: The tokens do not spell the completion, or do not end with a special token.
    """
    pieces = [vocabulary.pieces[i] if i < len(vocabulary.pieces) else None for i in tokens]
    if len(pieces) == 0 or pieces[-1] is not None or any(piece is None for piece in pieces[:-1]):
        raise NotRepresentableError("its tokens should be text and one token that ends it")
    data = b"".join(piece for piece in pieces if piece)
    text = data.strip() if completion is None else completion.encode()
    lead = data.find(text)
    if lead < 0 or data[:lead].strip() or data[lead + len(text) :].strip():
        raise NotRepresentableError("the tokenizer cannot represent the completion")
    lengths = [len(piece) if piece else 0 for piece in pieces]
    starts = np.concatenate([[0], np.cumsum(lengths[:-1])]).astype(np.int64) - lead
    return ByteStream(np.asarray(tokens, dtype=np.int32), starts, data, len(text))


def end_tokens(tokenizer: Any, streams: Iterable[ByteStream]) -> frozenset[int]:
    """All tokens that end a text: the tokenizer's own, and those that completions end with."""
    own = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    return frozenset([*own, *(int(one.tokens[-1]) for one in streams)])


@cache
def _letters() -> dict[str, int]:
    """The letter of each byte in byte-level BPE (Radford et al. 2019): printable ones are themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(rest)}


def _from_letters(piece: str) -> bytes:
    letters = _letters()
    return bytes(letters[c] for c in piece) if all(c in letters for c in piece) else piece.encode()


def _from_piece(piece: str) -> bytes:
    byte = _BYTE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode()


def _has(part: object, kind: str) -> bool:
    """Whether a part of a tokenizer's specification is of a kind, or holds one that is."""
    if isinstance(part, dict):
        return part.get("type") == kind or any(_has(value, kind) for key, value in part.items() if key != "vocab")
    return isinstance(part, list) and len(part) < 100 and any(_has(value, kind) for value in part)


def _bare(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A specification that tokenises text as it stands within a longer one: nothing is added, nothing normalised."""
    bare = {**spec, "added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    bare["normalizer"] = _kept(spec["normalizer"])
    bare["pre_tokenizer"] = _unprefixed(spec["pre_tokenizer"])
    return bare


def _kept(normalizer: Any) -> Any:
    if normalizer is None:
        return None
    if normalizer["type"] == "Sequence":
        kept = [one for one in map(_kept, normalizer["normalizers"]) if one]
        return {"type": "Sequence", "normalizers": kept} if kept else None
    return normalizer if normalizer["type"] == "Replace" else None


def _unprefixed(splitter: Any) -> Any:
    if splitter is None:
        return None
    if splitter["type"] == "Sequence":
        return {**splitter, "pretokenizers": [_unprefixed(one) for one in splitter["pretokenizers"]]}
    if splitter["type"] == "ByteLevel":
        return {**splitter, "add_prefix_space": False}
    return {**splitter, "prepend_scheme": "never"} if splitter["type"] == "Metaspace" else splitter
