"""From a labeler's name to the labeler."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from sailkit.errors import UserError, nearest
from sailkit.label import Labeler
from sailkit.models import ModelOptions
from sailkit.models.sources import ENCODER

KINDS = ("similarity", "overlap", "entailment", "judge")
_LONG = 32


@dataclass(frozen=True)
class LabelerOptions:
    """How to load and run a labeler.

    Attributes:
        direction: For entailment; see `Entailment`.
        measure: For entailment.
        form: For entailment.
        model: How to run the model behind it.
    """

    direction: str = "result-first"
    measure: str = "entailment"
    form: str = "pair"
    model: ModelOptions = field(default_factory=ModelOptions)


def load_labeler(name: str, options: LabelerOptions | None = None) -> Labeler:
    """Load a labeler by name.

    Args:
        name: `similarity` or `similarity:ENCODER`, `overlap`, `entailment:MODEL`, `judge:MODEL`.
        options: How to load and run it.

    Raises:
        UserError: There is no such labeler, or its model cannot be used.
    """
    options = options or LabelerOptions()
    kind, _, model = name.partition(":")
    if kind not in KINDS:
        raise UserError(f"no labeler {name!r}: {nearest(kind, KINDS)}")
    if kind in ("entailment", "judge") and not model:
        raise UserError(f"--labeler {kind} needs a model: write {kind}:MODEL")
    if kind == "overlap":
        from sailkit.label.similarity import Overlap

        return Overlap()
    if kind == "similarity":
        from sailkit.label.similarity import Similarity

        return Similarity(model or ENCODER, options.model.device)
    if kind == "judge":
        from sailkit.label.judge import Judge

        return Judge(model, options.model)
    from sailkit.label.entailment import Entailment

    how = options.model
    return Entailment(model, options.direction, options.measure, options.form, how.dtype, how.device)  # type: ignore[arg-type]


def short_names(names: Iterable[str]) -> dict[str, str]:
    """What to call labelers where there is little room: a long name keeps its kind and the end of its model's path.

    Args:
        names: Any number of them.

    Returns:
        Name -> the shortest such form that no other of the names shares; the name itself where there is none.
    """
    forms = {name: [*_ends(name), name] for name in names}
    taken = [form for own in forms.values() for form in own]
    return {name: next((form for form in own if taken.count(form) == 1), name) for name, own in forms.items()}


def _ends(name: str) -> list[str]:
    kind, _, model = name.partition(":")
    if len(name) <= _LONG or not model:
        return []
    steps = re.sub("@https?://.*", "", model).rstrip("/").split("/")
    return [f"{kind}:{'/'.join(steps[-count:])}" for count in range(1, len(steps) + 1)]
