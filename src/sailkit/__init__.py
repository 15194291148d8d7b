"""sailkit: build, train, distil and measure small language models that answer with search results.

The stages are functions of the package, and importing it loads neither torch nor transformers:

    import sailkit

    evaluation = sailkit.evaluate(model="smollm2-135m", task="sample-claims", out="runs/a")
    evaluation.figures["accuracy"].low
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sailkit.asking.ask import ask as ask
    from sailkit.asking.demo import demo as demo
    from sailkit.asking.results import Answer as Answer
    from sailkit.asking.serve import ServerRun as ServerRun
    from sailkit.asking.serve import serve as serve
    from sailkit.catalog import Catalog as Catalog
    from sailkit.catalog import recipes as recipes
    from sailkit.catalog import samples as samples
    from sailkit.cluster import RayOptions as RayOptions
    from sailkit.data.build import build as build
    from sailkit.data.build_task import build_task as build_task
    from sailkit.data.results import BuiltTask as BuiltTask
    from sailkit.data.results import TrainingData as TrainingData
    from sailkit.diagnosis import Diagnosis as Diagnosis
    from sailkit.diagnosis import doctor as doctor
    from sailkit.distillation.distill import distill as distill
    from sailkit.distillation.load import TeacherModelOptions as TeacherModelOptions
    from sailkit.distillation.results import Distillation as Distillation
    from sailkit.distillation.results import DistillationPlan as DistillationPlan
    from sailkit.distillation.teacher_cache import TeacherCache as TeacherCache
    from sailkit.distillation.teacher_cache import teacher_cache as teacher_cache
    from sailkit.errors import UserError as UserError
    from sailkit.evaluation.compare import compare as compare
    from sailkit.evaluation.evaluate import evaluate as evaluate
    from sailkit.evaluation.group_results import EvaluationGroup as EvaluationGroup
    from sailkit.evaluation.group_results import GroupComparison as GroupComparison
    from sailkit.evaluation.rescore import rescore as rescore
    from sailkit.evaluation.results import Comparison as Comparison
    from sailkit.evaluation.results import Evaluation as Evaluation
    from sailkit.evaluation.results import Rescored as Rescored
    from sailkit.journal import PipelineRun as PipelineRun
    from sailkit.labeling.audit import audit as audit
    from sailkit.labeling.audit_results import Audit as Audit
    from sailkit.labeling.fit import fit as fit
    from sailkit.labeling.label import label as label
    from sailkit.labeling.options import AuditedLabelerOptions as AuditedLabelerOptions
    from sailkit.labeling.options import LabelerOptions as LabelerOptions
    from sailkit.labeling.results import FittedLabeler as FittedLabeler
    from sailkit.labeling.results import Labeling as Labeling
    from sailkit.labeling.shortcuts import ShortcutAudit as ShortcutAudit
    from sailkit.models.base import ModelOptions as ModelOptions
    from sailkit.models.load import load_model as load_model
    from sailkit.pipeline import run as run
    from sailkit.records import Instruction as Instruction
    from sailkit.records import Judgement as Judgement
    from sailkit.records import SearchResult as SearchResult
    from sailkit.reporting import WrittenReport as WrittenReport
    from sailkit.reporting import report as report
    from sailkit.retrieval.results import SearchRun as SearchRun
    from sailkit.retrieval.search import search as search
    from sailkit.stats.intervals import Estimate as Estimate
    from sailkit.tasks.task import load_task as load_task
    from sailkit.training.finetune import finetune as finetune
    from sailkit.training.merge import merge as merge
    from sailkit.training.results import MergedModel as MergedModel
    from sailkit.training.results import TrainingPlan as TrainingPlan
    from sailkit.training.results import TrainingRun as TrainingRun
    from sailkit.training.seeds import TrainingGroup as TrainingGroup

__version__ = "0.1.0"

# Module -> the public names that it defines.
_MODULES = {
    "asking.ask": "ask",
    "asking.demo": "demo",
    "asking.results": "Answer",
    "asking.serve": "ServerRun serve",
    "catalog": "Catalog recipes samples",
    "cluster": "RayOptions",
    "data.build": "build",
    "data.build_task": "build_task",
    "data.results": "BuiltTask TrainingData",
    "diagnosis": "Diagnosis doctor",
    "distillation.distill": "distill",
    "distillation.results": "Distillation DistillationPlan",
    "distillation.teacher_cache": "teacher_cache TeacherCache",
    "distillation.load": "TeacherModelOptions",
    "errors": "UserError",
    "evaluation.compare": "compare",
    "evaluation.evaluate": "evaluate",
    "evaluation.rescore": "rescore",
    "evaluation.group_results": "EvaluationGroup GroupComparison",
    "evaluation.results": "Comparison Evaluation Rescored",
    "journal": "PipelineRun",
    "labeling.audit": "audit",
    "labeling.audit_results": "Audit",
    "labeling.fit": "fit",
    "labeling.label": "label",
    "labeling.options": "AuditedLabelerOptions LabelerOptions",
    "labeling.results": "FittedLabeler Labeling",
    "labeling.shortcuts": "ShortcutAudit",
    "models.base": "ModelOptions",
    "models.load": "load_model",
    "pipeline": "run",
    "records": "Instruction Judgement SearchResult",
    "reporting": "WrittenReport report",
    "retrieval.results": "SearchRun",
    "retrieval.search": "search",
    "stats.intervals": "Estimate",
    "tasks.task": "load_task",
    "training.finetune": "finetune",
    "training.merge": "merge",
    "training.results": "MergedModel TrainingPlan TrainingRun",
    "training.seeds": "TrainingGroup",
}
_HOME = {name: module for module, names in _MODULES.items() for name in names.split()}
__all__ = ["__version__", *_HOME]  # noqa: PLE0604 - names are those of the table


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sailkit' has no attribute {name!r}")
    return getattr(import_module(f"sailkit.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
