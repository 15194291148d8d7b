"""The short reports that `distill` and `teacher-cache` print."""

from __future__ import annotations

from sailkit.distillation.results import STUDENT, WHO, Distillation, DistillationPlan, estimates
from sailkit.distillation.teacher_cache import TeacherCache
from sailkit.rendering import model
from sailkit.rendering.model import Cell, Flags, Group, Interval, Intervals, Report, Row, Table, Text
from sailkit.rendering.numbers import machine
from sailkit.training import report as training_report
from sailkit.training.report import duration

FIGURES = {
    "kl": "KL to the teacher, nats a token",
    "agreement": "Same likeliest token as the teacher",
    "cross_entropy": "Cross-entropy of the words, nats a token",
    "verification_agreement": "Search results flagged as the teacher does",
    "verification_kappa": "The same, beyond chance (Cohen's kappa)",
}


def distillation_report(run: Distillation) -> Report:
    """The distance of the student to its teacher."""
    metrics, training = run.metrics, run.training
    figures = training.to_json()
    layers = f", {metrics['student_layers']} layers" if metrics["student_layers"] else ""
    how = f" in {machine(figures)}" if machine(figures) else ""
    blocks: list[model.Block] = []
    if targets := metrics.get("training_targets") or metrics.get("held_out_targets"):
        mass = targets["captured_mass"]
        shares = (
            f"{targets['aligned']:.1%} aligned, {targets['conditioned']:.1%} within a teacher's token, "
            f"{targets['without_target']:.1%} without a target"
        )
        listed = "-" if mass is None else f"{mass:.3f}"
        blocks.append(Text(f"positions: {shares}; {listed} of the teacher's probability listed"))
    if "tuned" in metrics:
        rows = [
            Row(title, [Cell(run.mean(who, name)) for who in WHO])
            for name, title in FIGURES.items()
            if name in metrics["tuned"] and name != "verification_kappa"
        ]
        blocks += [*agreement(run), Table(["before", "after"], [Group("held out", rows)])]
    blocks += [*training_report.learning_curves(run.folder / STUDENT), Text(f"model: {training.saved}")]
    if run.pushed is not None:
        blocks.append(Text(f"pushed: {run.pushed}"))
    about = (
        f"into {metrics['student']}{layers} ({metrics['method']}){how}: {training.steps} steps on {training.rows} "
        "examples"
    )
    return model.short(metrics["teacher"] or "recorded answers", about, *blocks)


def agreement(run: Distillation) -> list[Intervals]:
    """How often teacher and student have the same likeliest token, before and after training."""
    figures = estimates(run)
    before, after = (figures[who]["agreement"] for who in WHO)
    if before is None or after is None:
        return []
    return [Intervals({FIGURES["agreement"]: [Interval("the student", after, "before training", before.value)]})]


def plan_report(plan: DistillationPlan) -> Report:
    """The estimated cost of a distillation."""
    if not plan.teacher:
        return training_report.plan_report(plan.training, Text(f"teacher: {plan.teacher_answers:,} recorded answers"))
    tokenizer = {True: "the same tokenizer", False: "another tokenizer", None: "a tokenizer that cannot be had here"}
    lines = [f"teacher: {plan.teacher}, {tokenizer[plan.same_tokenizer]}; {plan.teacher_tokens:,} tokens to read"]
    if plan.teacher_seconds:
        lines[0] += f" in {duration(plan.teacher_seconds)}, at the student's operations a second"
    if plan.teacher_answers:
        lines.append(f"its answers: {plan.teacher_answers:,}")
    lines.append(
        f"its cache: at most {plan.cache_bytes / 1e6:,.1f} MB, compiled for the student in "
        f"{duration(plan.compile_seconds)} on one core"
    )
    blocks: list[model.Block] = list(map(Text, lines))
    if plan.teacher_memory:
        blocks.append(training_report.memory_table("the teacher, before the student is loaded", plan.teacher_memory))
    if plan.without_teacher:
        why = "; ".join(f"{reason}: {count:,}" for reason, count in plan.without_teacher.items())
        rows, held_out = plan.rows_without_teacher or 0, plan.held_out_rows_without_teacher or 0
        text = f"{rows:,} rows and {held_out:,} held-out ones without the teacher, for cross-entropy alone ({why})"
        blocks.append(Flags("", {"": [text]}))
    return training_report.plan_report(plan.training, *blocks)


def cache_report(cache: TeacherCache) -> Report:
    """The size of a teacher's cache, and the probability that it covers."""
    where = {"dtype": cache.dtype, "device": cache.device}
    how = f" in {machine(where)}" if machine(where) else ""
    lines = [f"this part is done; {len(cache.missing_files)} files are still to come from the others"]
    if cache.finished:
        lines = [
            f"{cache.tokens:,} tokens, {cache.entries_per_token:.1f} entries and {cache.bytes_per_token:.0f} bytes "
            f"each; {cache.dropped} examples dropped, {cache.cut_tokens} tokens of search results left out",
            f"the teacher's own loss for each token: {cache.loss:.3f}; probability left out: {cache.tail:.5f}",
            f"cache: {cache.folder}",
        ]
    return model.short(f"{cache.teacher}{how}", f"{cache.pairs:,} completions of {cache.n:,} examples",
                       *map(Text, lines))  # fmt: skip
