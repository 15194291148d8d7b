"""Load a labeler by its name."""

from __future__ import annotations

from typing import cast

from sailkit.errors import UserError, nearest
from sailkit.labeling.base import Labeler
from sailkit.labeling.options import LabelerOptions
from sailkit.models.sources import ENCODER
from sailkit.plugins import LABELERS, checked_plugin, is_plugin, load_plugin, split_labelers


def member_names(name: str) -> list[str]:
    """The labelers that are joined by `+` in a name; usually the name alone.

    Raises:
        UserError: A labeler is named twice.
    """
    members = split_labelers(name)
    if len({*members}) < len(members):
        raise UserError(f"`labeler` {name}: the mean of a labeler with itself is that labeler; name it once")
    return members


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
    if kind not in LABELERS and is_plugin(name):
        return cast(Labeler, load_plugin(name, Labeler))
    if kind not in LABELERS:
        raise UserError(f"no labeler {name!r}: {nearest(kind, LABELERS)}")
    if kind in ("entailment", "judge") and not model:
        raise UserError(f"`labeler` {kind} needs a model: write {kind}:MODEL")
    if kind == "overlap" and model:
        raise UserError(f"`labeler` {name}: overlap has no model; write overlap alone")
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
