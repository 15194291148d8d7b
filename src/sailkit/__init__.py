"""sailkit: search-augmented language models whose measurements survive an audit.

The stages are functions of the package, and importing it loads neither torch nor transformers:

    import sailkit

    evaluation = sailkit.evaluate(model="smollm2-135m", task="sample-claims", out="runs/a")
    evaluation.figures["accuracy"].low
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sailkit.cluster import RayOptions as RayOptions
    from sailkit.data.build import build as build
    from sailkit.data.build_task import build_task as build_task
    from sailkit.distillation.distill import distill as distill
    from sailkit.distillation.teacher_cache import teacher_cache as teacher_cache
    from sailkit.errors import UserError as UserError
    from sailkit.evaluation.compare import compare as compare
    from sailkit.evaluation.evaluate import evaluate as evaluate
    from sailkit.evaluation.rescore import rescore as rescore
    from sailkit.labeling.audit import audit as audit
    from sailkit.labeling.fit import fit as fit
    from sailkit.labeling.label import label as label
    from sailkit.models.base import ModelOptions as ModelOptions
    from sailkit.models.load import load_model as load_model
    from sailkit.pipeline import run as run
    from sailkit.records import Instruction as Instruction
    from sailkit.records import Judgement as Judgement
    from sailkit.records import SearchResult as SearchResult
    from sailkit.reporting import report as report
    from sailkit.retrieval.search import search as search
    from sailkit.stats.intervals import Estimate as Estimate
    from sailkit.tasks.task import load_task as load_task
    from sailkit.training.finetune import finetune as finetune
    from sailkit.training.merge import merge as merge

__version__ = "0.1.0"

_MODULES = {
    **{"search": "retrieval.search", "label": "labeling.label", "fit": "labeling.fit", "audit": "labeling.audit"},
    **{"build": "data.build", "build_task": "data.build_task", "finetune": "training.finetune"},
    **{"merge": "training.merge", "teacher_cache": "distillation.teacher_cache", "distill": "distillation.distill"},
    **{"evaluate": "evaluation.evaluate", "rescore": "evaluation.rescore", "compare": "evaluation.compare"},
    **{"report": "reporting", "run": "pipeline", "load_model": "models.load", "load_task": "tasks.task"},
    **{"ModelOptions": "models.base", "RayOptions": "cluster", "Estimate": "stats.intervals", "UserError": "errors"},
    **{"Instruction": "records", "SearchResult": "records", "Judgement": "records"},
}
__all__ = ["__version__", *_MODULES]  # noqa: PLE0604 - names are those of the table


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'sailkit' has no attribute {name!r}")
    return getattr(import_module(f"sailkit.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
