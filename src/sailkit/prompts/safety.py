"""A tokenizer that never produces special tokens from untrusted text."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

from sailkit.errors import UserError


class Piece(Protocol):
    """Text, and whether it may hold special tokens."""

    @property
    def text(self) -> str:
        """The text."""

    @property
    def trusted(self) -> bool:
        """True for templates."""


class GuardedTokenizer:
    """A copy of a tokenizer whose special tokens have secret names that only the template uses.

    Untrusted text that spells a special token is then ordinary text. The whole prompt is still tokenised at once, so
    benign text gets the same ids as without the guard.
    """

    def __init__(self, tokenizer: Any) -> None:
        import tokenizers

        backend = fast_backend(tokenizer)
        spec = json.loads(backend.to_str())
        nonce = uuid.uuid4().hex
        # Added tokens that are white space or words are vocabulary, not markup.
        special = [t for t in spec["added_tokens"] if t["special"] or re.search(r"[<\[|]", t["content"])]
        self._names = {token["content"]: f"<{nonce}:{token['id']}>" for token in special}
        for token in special:
            token["content"] = self._names[token["content"]]
        rename_pieces(spec["model"], self._names)
        spec["truncation"] = spec["padding"] = None
        self._copy = tokenizers.Tokenizer.from_str(json.dumps(spec))
        # A normalizer that prepends to a text also prepends to these tokens, which then no longer match.
        lost = [t for t in special if t["normalized"] and t["id"] not in self._copy.encode(f"a{t['content']}").ids]
        if lost:
            for token in lost:
                token["normalized"] = False
            self._copy = tokenizers.Tokenizer.from_str(json.dumps(spec))
        assert all(self._copy.token_to_id(new) == backend.token_to_id(old) for old, new in self._names.items())
        self._appended = self._count_appended()
        names = sorted(map(re.escape, self._names), key=len, reverse=True)
        self._pattern = re.compile("|".join(names) or "(?!)")

    def _count_appended(self) -> int:
        """Number of tokens that the tokenizer appends to every text (an end of text with `add_eos_token`)."""
        for text in "a0.":  # a small vocabulary may lack one of them
            mask = self._copy.encode(text).special_tokens_mask  # marks only tokens that the tokenizer adds
            if not all(mask):
                return mask[::-1].index(0)
        return 0

    def encode(self, parts: Sequence[Piece], *, add_special_tokens: bool) -> tuple[int, ...]:
        """Token ids of the whole text, tokenised at once; special tokens come from trusted pieces only."""
        return tuple(self._encode(self._texts(parts), add_special_tokens)[0])

    def encode_with_starts(
        self, parts: Sequence[Piece], border: int, *, add_special_tokens: bool
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Like `encode`, but also return for each part the index of the first token that extends into it.

        Args:
            parts: The text.
            border: The part before which the tokens are counted if their offsets are ambiguous, as those of the bytes
                of one character may be.
            add_special_tokens: As in `encode`.
        """
        texts = self._texts(parts)
        ids, offsets = self._encode(texts, add_special_tokens)
        starts, token, begin = [], 0, 0
        for index, text in enumerate(texts):
            while token < len(offsets) and offsets[token][1] <= begin:
                token += 1
            start = token
            if index == border and start < len(offsets) and offsets[start][0] < begin:
                before, _ = self._encode(texts[:border], add_special_tokens)
                start = len(before) if ids[: len(before)] == before else start
            starts.append(start)
            begin += len(text)
        return tuple(ids), tuple(starts)

    def special_end(self, text: str) -> int | None:
        """Character offset at which the first special token of a template's text ends."""
        match = self._pattern.search(text)
        return match.end() if match else None

    def _texts(self, parts: Sequence[Piece]) -> list[str]:
        return [self._secret(part.text) if part.trusted else part.text for part in parts]

    def _encode(self, texts: Sequence[str], add_special_tokens: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and offsets without the tokens that the tokenizer appends, because every text here is continued."""
        try:
            encoded = self._copy.encode("".join(texts), add_special_tokens=add_special_tokens)
        except TypeError:
            raise UserError("the text holds half a surrogate pair, which is no character; mend the data") from None
        end = len(encoded.ids) - (self._appended if add_special_tokens else 0)
        return encoded.ids[:end], encoded.offsets[:end]

    def offsets(self, text: str) -> list[int]:
        """Character offset at which each token of a text ends."""
        return [end for _, end in self._copy.encode(text, add_special_tokens=False).offsets]

    def as_transformers(self, tokenizer: Any) -> Any:
        """The guarded copy as a transformers tokenizer; its special tokens have the secret names."""
        from transformers import PreTrainedTokenizerFast

        kinds = {kind: self._names.get(token, token) for kind, token in tokenizer.special_tokens_map.items()}
        return PreTrainedTokenizerFast(
            tokenizer_object=self._copy,
            model_max_length=tokenizer.model_max_length,
            padding_side=tokenizer.padding_side,
            truncation_side=tokenizer.truncation_side,
            model_input_names=tokenizer.model_input_names,
            **kinds,
        )

    def _secret(self, text: str) -> str:
        return self._pattern.sub(lambda match: self._names[match.group()], text)


def fast_backend(tokenizer: Any) -> Any:
    """The backend of a fast tokenizer; other tokenizers are refused."""
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is None:
        raise UserError(f"{type(tokenizer).__name__} is not a fast tokenizer; sailkit needs a tokenizer.json")
    return backend


def guarded(tokenizer: Any) -> GuardedTokenizer:
    """The guarded copy of a tokenizer, cached because a large vocabulary takes a second."""
    return _guarded(tokenizer, len(tokenizer))  # the length is in the cache key because tokens may be added


def for_texts(tokenizer: Any) -> Any:
    """A tokenizer for libraries that tokenise untrusted texts: no text becomes a special token.

    Do not save it: its special tokens have other names.
    """
    return GuardedTokenizer(tokenizer).as_transformers(tokenizer)


@lru_cache(maxsize=4)
def _guarded(tokenizer: Any, tokens: int) -> GuardedTokenizer:
    return GuardedTokenizer(tokenizer)


def rename_pieces(model: dict[str, Any], names: Mapping[str, str]) -> None:
    """Rename special tokens in the vocabulary of a tokenizer's model.

    Converted SentencePiece models could otherwise build them from text: BPE by merges (`</` + `s>`), Unigram as pieces.
    """
    vocabulary = model["vocab"]
    pieces = vocabulary.items() if isinstance(vocabulary, dict) else vocabulary
    model["vocab"] = type(vocabulary)((names.get(piece, piece), value) for piece, value in pieces)
    if unknown := model.get("unk_token"):
        model["unk_token"] = names.get(unknown, unknown)
    pairs = [merge if isinstance(merge, list) else merge.split(" ", 1) for merge in model.get("merges", ())]
    model["merges"] = [pair for pair in pairs if names.keys().isdisjoint((*pair, "".join(pair)))]


# A single character class between the brackets keeps the search linear in a long text without a closing bracket.
