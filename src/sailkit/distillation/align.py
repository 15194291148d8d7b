"""Maps tokens to bytes, by which the completions of two tokenizers are aligned.

Byte ends come from the pieces themselves, never from character offsets: `▁` is a space, `<0xNN>` a byte, and the
letters of byte-level BPE map back to bytes. (Offsets count characters, and a token may end within one.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from sailkit.distillation.records import IntArray
from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.prompts.safety import fast_backend, rename_pieces

_MOST_CACHED = 500_000  # texts whose first token is cached
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class NotRepresentableError(UserError):
    """A completion that a tokenizer cannot represent."""


class Vocabulary:
    """The bytes of every token of a tokenizer.

    Attributes:
        pieces: Bytes by token id; None for special tokens and for ids without a token.
        ids: Bytes -> token id; of several tokens with the same bytes, the one that BPE would produce.
        can_merge: Whether a token may contain a byte and, next to it, another; the second is 256 for no byte; shape
            (256, 257). If not, tokenisation never joins a text that ends with the one and a text that begins with the
            other.
        fingerprint: sha256 of everything that determines these, 16 hex digits.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Read a tokenizer.

        Args:
            tokenizer: A transformers tokenizer with a `tokenizer.json` of the BPE or Unigram kind.

        Raises:
            UserError: Its tokens do not stand for bytes.
        """
        import tokenizers

        backend = fast_backend(tokenizer)
        spec = json.loads(backend.to_str())
        if spec["model"]["type"] not in ("BPE", "Unigram"):
            raise UserError(
                f"{type(tokenizer).__name__} is of the {spec['model']['type']} kind, whose tokens do not stand for "
                "bytes; distillation across tokenizers takes BPE and Unigram"
            )
        self.byte_level = _contains(spec, "ByteLevel")
        added = {token["id"]: token for token in spec["added_tokens"]}
        pieces: list[bytes | None] = [None] * (max([*backend.get_vocab().values(), *added]) + 1)
        plain: set[int] = set()
        vocabulary = spec["model"]["vocab"]
        model_pieces = set(vocabulary if isinstance(vocabulary, dict) else (piece for piece, _ in vocabulary))
        for piece, i in backend.get_vocab().items():
            token = added.get(i)
            if token is None:
                pieces[i] = _from_letters(piece) if self.byte_level else _from_piece(piece)
                plain |= set() if _BYTE.fullmatch(piece) else {i}
            elif not token["special"] and not re.search(r"[<\[|]", piece):  # what `prompts.safety` takes for structure
                # Pieces of the model's vocabulary (runs of spaces) use its alphabet; others stand for their text.
                in_model = not self.byte_level and piece in model_pieces
                pieces[i] = _from_piece(piece) if in_model else piece.encode()
        self.pieces = tuple(pieces)
        self.ids: dict[bytes, int] = {}
        # Plain pieces come before byte fallbacks such as <0x41>, which BPE would not choose for the same bytes.
        for i in sorted(range(len(pieces)), key=lambda i: (i not in plain, i)):
            if (piece_bytes := pieces[i]) is not None:
                self.ids.setdefault(piece_bytes, i)
        self.fingerprint = jsonl.fingerprint([spec["model"], spec["added_tokens"], self.byte_level])[:16]
        structure = {token["content"]: f"<{i}:structure>" for i, token in added.items() if pieces[i] is None}
        rename_pieces(spec["model"], structure)
        # A byte piece such as <0x41>, and ▁ for a space, may also be spelled out in a text.
        spelled = () if self.byte_level else (piece.encode() for piece in backend.get_vocab())
        self.can_merge = _can_merge(spec, (*filter(None, pieces), *spelled))
        self._plain = tokenizers.Tokenizer.from_str(json.dumps(_without_additions(spec)))
        self._first: dict[bytes, int] = {}

    def first_token(self, text: bytes) -> int:
        """The first token of a text: the token with exactly these bytes, else the first of its tokenisation.

        Args:
            text: At least one byte; may end within a character.

        Raises:
            UserError: The tokenizer has no token for it.
        """
        token = self._first.get(text)
        if token is None:
            if len(self._first) > _MOST_CACHED:
                self._first.clear()
            token = self._first[text] = self._find_first_token(text)
        return token

    def _find_first_token(self, text: bytes) -> int:
        if (same := self.ids.get(text)) is not None:
            return same
        try:
            decodable = text
            decoded = text.decode()
        except UnicodeDecodeError as error:  # a token may end within a character
            decodable = text[: error.start]
            decoded = decodable.decode()
        if decoded:
            ids = self._plain.encode(decoded, add_special_tokens=False).ids
            if ids and self._piece(ids[0]) and decodable.startswith(self._piece(ids[0])):
                return int(ids[0])
        for length in range(len(text), 0, -1):
            if (token := self.ids.get(text[:length])) is not None:
                return token
        raise UserError(f"the tokenizer has no token that begins like {text[:20]!r}")

    def _piece(self, i: int) -> bytes:
        return self.pieces[i] or b""


@dataclass(frozen=True)
class ByteStream:
    """A completion in the tokens of one tokenizer, with the byte offset of each token.

    Attributes:
        tokens: The supervised token ids; the last one ends the text; shape (n,).
        starts: Byte offset of each token within the completion; negative if the token includes a space that the
            template writes before the completion; the last is that of the end of text; shape (n,).
        data: The bytes of all tokens but the last, from byte `starts[0]` on.
        length: Number of bytes of the completion alone.
    """

    tokens: IntArray
    starts: IntArray
    data: bytes
    length: int

    def between(self, start: int, end: int) -> bytes:
        """The bytes from `start` to `end`, both counted from the beginning of the completion."""
        first = int(self.starts[0])
        return self.data[start - first : end - first]


def byte_stream(vocabulary: Vocabulary, tokens: Sequence[int] | IntArray, completion: str | None) -> ByteStream:
    """Find the byte of a completion at which each of its tokens begins.

    Args:
        vocabulary: The vocabulary of the tokens' tokenizer.
        tokens: The supervised ids, including the end of text.
        completion: The text of the tokens, apart from surrounding white space; None to accept any text.

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
    """All tokens that end a text: the tokenizer's end of text, and the last tokens of the completions."""
    eos = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    return frozenset([*eos, *(int(stream.tokens[-1]) for stream in streams)])


@cache
def _letters() -> dict[str, int]:
    """The byte of each letter of byte-level BPE (Radford et al. 2019), in which printable bytes are themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _from_letters(piece: str) -> bytes:
    letters = _letters()
    return bytes(letters[c] for c in piece) if all(c in letters for c in piece) else piece.encode()


def _from_piece(piece: str) -> bytes:
    byte = _BYTE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode()


def _can_merge(spec: Mapping[str, Any], pieces: Sequence[bytes]) -> npt.NDArray[np.bool_]:
    """Pairs of adjacent bytes in tokens. Only ASCII counts as second byte, so that a text can be cut before it."""
    can_merge = np.ones((256, 257), bool)
    can_merge[:, 256] = False
    model = spec["model"]
    affixes = (model.get("continuing_subword_prefix"), model.get("end_of_word_suffix"))
    if any(affixes) or not _replaces_characters(spec["normalizer"]):
        return can_merge
    can_merge[:, :128] = False
    data, ends = np.frombuffer(b"".join(pieces), np.uint8), np.cumsum([len(piece) for piece in pieces])
    within = np.ones(len(data), bool)
    within[ends - 1] = False
    firsts = np.flatnonzero(within)
    can_merge[data[firsts], data[firsts + 1]] = True
    return can_merge


def _replaces_characters(normalizer: Any) -> bool:
    """Whether the replacements of a normalizer concern single characters."""
    if normalizer is None:
        return True
    if normalizer["type"] == "Sequence":
        return all(map(_replaces_characters, normalizer["normalizers"]))
    return normalizer["type"] != "Replace" or len(normalizer["pattern"].get("String", "")) == 1


def _contains(part: object, kind: str) -> bool:
    """Whether a part of a tokenizer's specification has a type, or contains a part with it."""
    if isinstance(part, dict):
        return part.get("type") == kind or any(_contains(value, kind) for key, value in part.items() if key != "vocab")
    return isinstance(part, list) and len(part) < 100 and any(_contains(value, kind) for value in part)


def _without_additions(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenizer that treats a text as the middle of a longer one, and adds no token or space before it."""
    plain = {**spec, "added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    plain["normalizer"] = _replacements_alone(spec["normalizer"])
    plain["pre_tokenizer"] = _without_prefix(spec["pre_tokenizer"])
    return plain


def _replacements_alone(normalizer: Any) -> Any:
    if normalizer is None:
        return None
    if normalizer["type"] == "Sequence":
        steps = [step for step in map(_replacements_alone, normalizer["normalizers"]) if step]
        return {"type": "Sequence", "normalizers": steps} if steps else None
    return normalizer if normalizer["type"] == "Replace" else None


def _without_prefix(splitter: Any) -> Any:
    if splitter is None:
        return None
    if splitter["type"] == "Sequence":
        return {**splitter, "pretokenizers": [_without_prefix(step) for step in splitter["pretokenizers"]]}
    if splitter["type"] == "ByteLevel":
        return {**splitter, "add_prefix_space": False}
    return {**splitter, "prepend_scheme": "never"} if splitter["type"] == "Metaspace" else splitter
