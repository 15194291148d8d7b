"""The verb `run`: execute a pipeline, whose recipe lists steps, each a stage with its arguments."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from sailkit import runs
from sailkit.arguments import checked
from sailkit.data.build import build
from sailkit.data.build_task import build_task
from sailkit.distillation.distill import distill
from sailkit.distillation.teacher_cache import teacher_cache
from sailkit.errors import UserError
from sailkit.evaluation.compare import compare
from sailkit.evaluation.evaluate import evaluate
from sailkit.evaluation.rescore import rescore
from sailkit.journal import Journal, PipelineRun, StepRun, continued_without
from sailkit.labeling.audit import audit
from sailkit.labeling.fit import fit
from sailkit.labeling.label import label
from sailkit.provenance import command_line
from sailkit.reporting import report
from sailkit.retrieval.search import search
from sailkit.steps.recipe import check_inputs, estimate, position_of, read_recipe
from sailkit.training.finetune import finetune
from sailkit.training.merge import merge

STAGES = {
    stage.__name__.replace("_", "-"): stage
    for stage in (
        *(search, label, fit, audit, build, build_task),
        *(finetune, merge, teacher_cache, distill),
        *(evaluate, rescore, compare, report),
    )
}


@checked
def run(
    recipe: Path | str,
    *,
    out: Path | str,
    set: list[str] | None = None,
    from_: Annotated[str | None, Parameter(name="--from")] = None,
    until: str | None = None,
    dry_run: bool = False,
) -> PipelineRun:
    """Run the steps of a recipe in order.

    Finished steps are skipped, changed ones and their dependents run again. A step is identified by everything that
    affects its result: stage, arguments, content of input files, and the steps that it reads. The same command
    continues a stopped pipeline. The folder of a changed step is kept in OUT/earlier.

    Args:
        recipe: The pipeline, a YAML file; or the name of one that comes with the package (see `sailkit recipes`).
        out: The folder of the pipeline.
        set: NAME=VALUE to override a variable of the recipe; repeated.
        from_: Rerun this step and all after it, even if unchanged; earlier steps must be finished.
        until: Stop after this step.
        dry_run: Check all steps; show what would run, and the sizes and durations of finished steps.

    Raises:
        UserError: The recipe is invalid, or a stage fails.
    """
    out = Path(out)
    steps = read_recipe(recipe, out, set or (), STAGES)
    first, last = (position_of(steps, name) for name in (from_, until))
    chosen = steps[: None if last is None else last + 1]
    if not dry_run:
        check_inputs(chosen)
    steps_run: list[StepRun] = []
    with Journal(out, read_only=dry_run) as journal:
        journal.notice_lost(steps)
        for number, step in enumerate(chosen):
            step_run = journal.look_up(step, again=first is not None and number >= first)
            if first is not None and number < first and step_run.state != "finished":
                raise UserError(f"step {step.name} has not finished; leave out `from`")
            if number == first and not dry_run:
                journal.run_again(steps[number:])
            if dry_run and step_run.state != "finished":
                step_run = replace(step_run, estimate=estimate(step))
            elif step_run.state != "finished":
                position = f"step {number + 1} of {len(steps)}"
                runs.notice(f"sailkit: {position}, {step.name} ({step_run.state}): {step.command}")
                start = time.monotonic()
                with command_line([step.verb, *step.words]), continued_without(from_), journal.begin(step, step_run):
                    result = step.stage(*step.bound.args, **step.bound.kwargs)
                step_run = journal.finish(step, time.monotonic() - start, result)
            steps_run.append(step_run)
            if step_run.state == "interrupted" and not dry_run:
                break  # some queries had no answer; the same command repeats them
    return PipelineRun(out, tuple(steps_run), dry_run, again=from_ is not None)
