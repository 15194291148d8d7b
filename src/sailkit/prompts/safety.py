"""A tokenizer that text from outside cannot trick into special tokens."""

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
    """A copy of a tokenizer whose special tokens go by secret names that only the template uses.

    Text from outside that spells a special token is then ordinary text, while one pass over the whole prompt
    gives benign text the very ids that it would have had.
    """

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UserError(f"{type(tokenizer).__name__} is not a fast tokenizer; sailkit needs a tokenizer.json")
        import tokenizers

        spec = json.loads(backend.to_str())
        nonce = uuid.uuid4().hex
        # Added tokens that are white space or words are vocabulary, not structure.
        special = [t for t in spec["added_tokens"] if t["special"] or re.search(r"[<\[|]", t["content"])]
        self._names = {token["content"]: f"<{nonce}:{token['id']}>" for token in special}
        for token in special:
            token["content"] = self._names[token["content"]]
        rename_pieces(spec["model"], self._names)
        spec["truncation"] = spec["padding"] = None
        self._copy = tokenizers.Tokenizer.from_str(json.dumps(spec))
        # A normalizer that writes something before a text writes it into such tokens too, and they match no more.
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
        """How many tokens the tokenizer puts behind every text (an end of text, where `add_eos_token` is set)."""
        for text in "a0.":  # a small vocabulary may lack one of them
            mask = self._copy.encode(text).special_tokens_mask  # of what is added; what the text spells is not in it
            if not all(mask):
                return mask[::-1].index(0)
        return 0

    def encode(self, parts: Sequence[Piece], *, add_special_tokens: bool) -> tuple[int, ...]:
        """Token ids of the whole text, tokenised at once; special tokens come from trusted pieces only."""
        return tuple(self._encode(self._texts(parts), add_special_tokens)[0])

    def encode_with_starts(
        self, parts: Sequence[Piece], border: int, *, add_special_tokens: bool
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Token ids as `encode` gives them, and for each part the place of the first token that reaches into it.

        Args:
            parts: The text.
            border: The part whose place is counted where the tokens around it do not say where they are, as bytes of
                several characters may not.
            add_special_tokens: As in `encode`.
        """
        texts = self._texts(parts)
        ids, offsets = self._encode(texts, add_special_tokens)
        starts, token, begin = [], 0, 0
        for place, text in enumerate(texts):
            while token < len(offsets) and offsets[token][1] <= begin:
                token += 1
            start = token
            if place == border and start < len(offsets) and offsets[start][0] < begin:
                before, _ = self._encode(texts[:border], add_special_tokens)
                start = len(before) if ids[: len(before)] == before else start
            starts.append(start)
            begin += len(text)
        return tuple(ids), tuple(starts)

    def special_end(self, text: str) -> int | None:
        """Where the first special token of a template's text ends, in characters."""
        found = self._pattern.search(text)
        return found.end() if found else None

    def _texts(self, parts: Sequence[Piece]) -> list[str]:
        return [self._secret(part.text) if part.trusted else part.text for part in parts]

    def _encode(self, texts: Sequence[str], add_special_tokens: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and their places; what a tokenizer appends of itself is left out, for every text here is gone on with."""
        try:
            encoded = self._copy.encode("".join(texts), add_special_tokens=add_special_tokens)
        except TypeError:
            raise UserError("the text holds half a surrogate pair, which is no character; mend the data") from None
        end = len(encoded.ids) - (self._appended if add_special_tokens else 0)
        return encoded.ids[:end], encoded.offsets[:end]

    def offsets(self, text: str) -> list[int]:
        """Where each token of a text ends, in characters."""
        return [end for _, end in self._copy.encode(text, add_special_tokens=False).offsets]

    def as_transformers(self, tokenizer: Any) -> Any:
        """The same as a tokenizer of transformers, as which it was made: its special tokens bear the secret names."""
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


def guarded(tokenizer: Any) -> GuardedTokenizer:
    """The guarded copy of a tokenizer, made once: of a large vocabulary that takes a second."""
    return _guarded(tokenizer, len(tokenizer))  # tokens may be added to it


def for_texts(tokenizer: Any) -> Any:
    """A tokenizer to hand to a library that reads texts from outside: none of them becomes a special token.

    It is not for saving: its special tokens have other names.
    """
    return GuardedTokenizer(tokenizer).as_transformers(tokenizer)


@lru_cache(maxsize=4)
def _guarded(tokenizer: Any, tokens: int) -> GuardedTokenizer:
    return GuardedTokenizer(tokenizer)


def rename_pieces(model: dict[str, Any], names: Mapping[str, str]) -> None:
    """Give special tokens their secret names in a model's own vocabulary too.

    Converted SentencePiece models can build them from text: BPE by merges (`</` + `s>`), Unigram as pieces.
    """
    vocabulary = model["vocab"]
    pieces = vocabulary.items() if isinstance(vocabulary, dict) else vocabulary
    model["vocab"] = type(vocabulary)((names.get(piece, piece), value) for piece, value in pieces)
    if unknown := model.get("unk_token"):
        model["unk_token"] = names.get(unknown, unknown)
    pairs = [merge if isinstance(merge, list) else merge.split(" ", 1) for merge in model.get("merges", ())]
    model["merges"] = [pair for pair in pairs if names.keys().isdisjoint((*pair, "".join(pair)))]


# One class between the brackets, so that a long text without a closing one costs a single look.
