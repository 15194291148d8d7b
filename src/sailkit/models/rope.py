"""Decides which sequences may share a batch if RoPE frequencies depend on the sequence length.

Up to a threshold the frequencies are those of pretraining. Beyond it, `longrope` switches to a second set, and
`dynamic` scaling computes a set for each length. transformers uses the longest sequence of a forward pass for all of
its rows, so a short row in a batch with a long one would get the long row's frequencies, and cached keys would not
fit new queries. Sequences therefore share a forward pass, or a cache, only if their frequencies are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_LONG = ("longrope", "su")  # "su" is its name in the first Phi-3 models
_DYNAMIC = "dynamic"  # also as a part of the type's name


@dataclass(frozen=True)
class RopeLengths:
    """How the frequencies of a model depend on the length of a sequence.

    Attributes:
        threshold: Length in tokens up to which the frequencies are constant; None if they always are.
        each: Whether the frequencies differ between any two lengths beyond the threshold.
    """

    threshold: int | None = None
    each: bool = False

    def regime(self, tokens: int) -> int:
        """The regime of a length: sequences of a regime have the same frequencies; short sequences have regime 0.

        Args:
            tokens: Length of the sequence.
        """
        if self.threshold is None or tokens <= self.threshold:
            return 0
        return tokens if self.each else self.threshold + 1

    def groups(self, lengths: Sequence[int]) -> list[list[int]]:
        """Indices of the sequences that may share a forward pass, in order.

        Args:
            lengths: Tokens of each sequence.
        """
        groups: dict[int, list[int]] = {}
        for i, length in enumerate(lengths):
            groups.setdefault(self.regime(length), []).append(i)
        return list(groups.values())

    def batches(self, lengths: Sequence[int], size: int) -> list[list[int]]:
        """Batches of sequences that may share a forward pass, the shortest first, each of a fixed number of sequences.

        Args:
            lengths: Tokens of each sequence.
            size: Most sequences of a batch.
        """
        order = sorted(range(len(lengths)), key=lambda i: lengths[i])
        groups = [[order[i] for i in group] for group in self.groups([lengths[i] for i in order])]
        return [group[start : start + size] for group in groups for start in range(0, len(group), size)]

    def describe(self) -> dict[str, Any]:
        """The threshold, for the manifest; nothing if the frequencies are constant."""
        return {} if self.threshold is None else {"rope_threshold": self.threshold}


EACH_LENGTH = RopeLengths(0, each=True)  # the safe assumption: no two lengths share a forward pass


def rope_lengths(config: Any) -> RopeLengths:
    """How the frequencies of a model depend on the length, by its config.

    Args:
        config: A transformers config.
    """
    text = config.get_text_config()
    parameters = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    # One dictionary for each type of layer, or one for all layers.
    layers = [rope for rope in parameters.values() if isinstance(rope, dict)] or [parameters]
    kinds = {lengths for rope in layers if (lengths := _lengths(rope, text)).threshold is not None}
    if not kinds:
        return RopeLengths()
    if len(kinds) == 1:
        return kinds.pop()
    return RopeLengths(min(lengths.threshold for lengths in kinds if lengths.threshold is not None), each=True)


def _lengths(rope: dict[str, Any], config: Any) -> RopeLengths:
    kind = str(rope.get("rope_type") or rope.get("type") or "")
    most = getattr(config, "max_position_embeddings", None)
    if kind in _LONG:
        original = rope.get("original_max_position_embeddings")
        return RopeLengths(original or getattr(config, "original_max_position_embeddings", None) or most or 0)
    return RopeLengths(most or 0, each=True) if _DYNAMIC in kind else RopeLengths()


def forget_lengths(model: Any) -> None:
    """Make each forward pass compute its frequencies from its length.

    `dynamic` scaling caches the frequencies of the longest sequence so far, so scores would depend on earlier batches.

    Args:
        model: A transformers model; a hook is added to its RoPE modules, once.
    """
    for module in model.modules():
        kinds = getattr(module, "rope_type", "")
        kinds = kinds.values() if isinstance(kinds, dict) else [kinds]
        dynamic = any(_DYNAMIC in str(kind) for kind in kinds) and hasattr(module, "max_seq_len_cached")
        if dynamic and _forget not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_forget)


def _forget(module: Any, inputs: Any) -> None:
    for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
        setattr(module, name, 0)
