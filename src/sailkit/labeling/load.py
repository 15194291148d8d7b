"""Load a labeler by its name."""

from __future__ import annotations

import re
from typing import cast

from sailkit.errors import UserError, nearest
from sailkit.labeling.base import Labeler
from sailkit.labeling.options import LabelerOptions
from sailkit.models.sources import ENCODER
from sailkit.plugins import checked_plugin, is_plugin, load_plugin

KINDS = ("similarity", "overlap", "entailment", "judge")
_PLUS = re.compile(rf"\+(?=(?:{'|'.join(KINDS)})(?:[:+]|$))")  # not a plus in the name of a model


def member_names(name: str) -> list[str]:
    """The labelers whose mean a name such as `similarity+entailment:MODEL` asks for; usually the name alone."""
    return _PLUS.split(name)


def load_labeler(name: str | Labeler, options: LabelerOptions | None = None) -> Labeler:
    """Load a labeler by name.

    Args:
        name: `similarity` or `similarity:ENCODER`, `overlap`, `entailment:MODEL`, `judge:MODEL`, or `module:attribute`
            for a plug-in; several joined by `+` for the mean of their scores; or a labeler.
        options: How to load and run it.

    Raises:
        UserError: The labeler is unknown, or its model is unusable.
    """
    if not isinstance(name, str):
        return cast(Labeler, checked_plugin(name, Labeler, type(name).__name__))
    options = options or LabelerOptions()
    if len(members := member_names(name)) == 1:
        return _load_single(name, options)
    from sailkit.labeling.ensemble import Ensemble

    return Ensemble(name, [_load_single(member, options) for member in members])


def _load_single(name: str, options: LabelerOptions) -> Labeler:
    kind, _, model = name.partition(":")
    if kind not in KINDS and is_plugin(name):
        return cast(Labeler, load_plugin(name, Labeler))
    if kind not in KINDS:
        raise UserError(f"no labeler {name!r}: {nearest(kind, KINDS)}")
    if kind in ("entailment", "judge") and not model:
        raise UserError(f"`labeler` {kind} needs a model: write {kind}:MODEL")
    if kind == "overlap":
        from sailkit.labeling.similarity import Overlap

        return Overlap()
    if kind == "similarity":
        from sailkit.labeling.similarity import Similarity

        return Similarity(model or ENCODER, options.device)
    if kind == "judge":
        from sailkit.labeling.judge import Judge

        return Judge(model, options)
    from sailkit.labeling.entailment import Entailment

    return Entailment(
        model, options.direction, options.measure, options.form, dtype=options.dtype, device=options.device
    )
