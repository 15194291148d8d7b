"""What the stages that train tell the person at the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from sailkit.console import console
from sailkit.rendering.numbers import decimals, machine
from sailkit.rendering.show import Result, places


def _in(found: Mapping[str, Any]) -> str:
    how = machine(found)
    return f" in {how}" if how else ""


def finetuned(found: Result) -> None:
    """What `finetune` did, beside the model as it was; or what it would take."""
    assert isinstance(found, dict)
    out = console()
    if found.get("dry_run"):
        _planned(found)
        return
    out.print(
        f"[bold]{escape(found['model'])}[/]{_in(found)}: {found['steps']} steps on {found['rows']} examples "
        f"({found['supervised_tokens']} supervised tokens), {found['dropped']} dropped"
    )
    table = Table(box=None, pad_edge=False)
    for heading in ("held out", "before", "after"):
        table.add_column(heading)
    names = {"loss": "loss for each supervised token", "flagging_mcc": "flagging: MCC", "flagging_auroc": "AUROC"}
    names |= {"flagging_precision": "precision of distracting", "flagging_recall": "recall of distracting"}
    for name, title in names.items():
        if f"tuned_{name}" in found:
            table.add_row(title, *(places(found.get(f"{prefix}_{name}")) for prefix in ("base", "tuned")))
    if table.row_count:
        out.print(table)
    if "loss_change" in found:
        low, high = (found[f"loss_change_{end}"] for end in ("low", "high"))
        digits = decimals(low, high)
        span = f"[{low:+.{digits}f}, {high:+.{digits}f}]"
        out.print(f"change of the loss: {found['loss_change']:+.4f} {escape(span)} (95 % interval over held-out rows)")
    out.print(f"model: {escape(found['saved'])}")
    if "pushed" in found:
        out.print(f"pushed: {escape(found['pushed'])}")


def _planned(found: Mapping[str, Any]) -> None:
    out = console()
    about = "about " if found["tokens_estimated"] else ""
    out.print(f"[bold]{escape(found['model'])}[/], dry run: nothing was loaded or trained")
    out.print(
        f"{found['rows']:,} rows, {found['dropped']} dropped; {about}{found['tokens']:,} tokens a pass, "
        f"{found['supervised_tokens']:,} of them supervised; the longest row has {about}{found['longest']:,}"
    )
    out.print(
        f"{found['steps']:,} steps of {found['rows_per_step']} rows, {found['epochs']:.2f} epochs, "
        f"{about}{found['tokens_in_all']:,} tokens in all; {found['held_out_rows']:,} rows held out"
    )
    if found["memory"]:
        every, trained = found["parameters"], found["trainable_parameters"]
        out.print(f"{every:,} parameters, {trained:,} of them trained ({trained / every:.2%})")
        table = Table(box=None, pad_edge=False)
        table.add_column("memory of a step")
        table.add_column("GB", justify="right")
        for name, size in found["memory"].items():
            table.add_row(name, f"{size / 1e9:.2f}")
        out.print(table)
    if found["seconds"]:
        hours = found["seconds"] / 3600
        out.print(f"time: {hours:.1f} hours" if hours >= 1 else f"time: {60 * hours:.1f} minutes")
    for sentence in found["missing"]:
        out.print(f"[bold yellow]![/] {escape(sentence)}")


def merged(found: Result) -> None:
    """Where `merge` wrote."""
    assert isinstance(found, dict)
    console().print(f"merged into {escape(found['base'])}: {escape(found['model'])}")


def cached(found: Result) -> None:
    """What `teacher-cache` keeps."""
    assert isinstance(found, dict)
    out = console()
    out.print(
        f"[bold]{escape(found['teacher'])}[/]{_in(found)}: {found['pairs']:,} completions of {found['n']:,} examples"
    )
    if not found["finished"]:
        left = len(found["missing_files"])
        out.print(f"this part is done; {left} files are still to come from the others")
        return
    entries, size = found["entries_per_token"], found["bytes_per_token"]
    out.print(
        f"{found['tokens']:,} tokens, {entries:.1f} entries and {size:.0f} bytes each; "
        f"{found['dropped']} examples dropped, {found['cut_tokens']} tokens of search results left out"
    )
    out.print(f"the teacher's own loss for each token: {found['loss']:.3f}; probability left out: {found['tail']:.5f}")
    out.print(f"cache: {escape(found['cache'])}")


def distilled(found: Result) -> None:
    """How near a student came to its teacher; or what it would take."""
    assert isinstance(found, dict)
    out = console()
    if found.get("dry_run"):
        _planned(found)
        same = found["same_tokenizer"]
        sides = {True: "the same tokenizer", False: "another tokenizer", None: "a tokenizer that cannot be had here"}
        out.print(f"teacher: {escape(found['teacher'])}, {sides[same]}; {found['teacher_tokens']:,} tokens to read")
        if found["teacher_answers"]:
            out.print(f"its answers: {found['teacher_answers']:,}")
        out.print(f"its cache: at most {found['cache_bytes'] / 1e6:,.1f} MB")
        if found["without_teacher"]:
            why = "; ".join(f"{reason}: {count:,}" for reason, count in found["without_teacher"].items())
            rows, apart = found["rows_without_teacher"], found["held_out_rows_without_teacher"]
            out.print(
                f"[bold yellow]![/] {rows:,} rows and {apart:,} held-out ones without the teacher, for cross-entropy "
                f"alone ({escape(why)})"
            )
        return
    trained = found["training"]
    layers = f", {found['student_layers']} layers" if found["student_layers"] else ""
    out.print(
        f"[bold]{escape(found['teacher'] or 'recorded answers')}[/] into {escape(found['student'])}{layers} "
        f"({found['method']}){_in(trained)}: {trained['steps']} steps on {trained['rows']} examples"
    )
    if targets := found.get("training_targets") or found.get("held_out_targets"):
        out.print(
            f"positions: {targets['aligned']:.1%} aligned, {targets['conditioned']:.1%} within a teacher's token, "
            f"{targets['without_target']:.1%} without a target; {places(targets['captured_mass'])} of the teacher's "
            "probability listed"
        )
    if "tuned" in found:
        table = Table(box=None, pad_edge=False)
        for heading in ("held out", "before", "after"):
            table.add_column(heading)
        names = {
            "kl": "KL to the teacher, nats a token",
            "agreement": "same likeliest token as the teacher",
            "cross_entropy": "cross-entropy of the words, nats a token",
            "verification_agreement": "search results flagged as the teacher does",
        }
        for name, title in names.items():
            if name in found["tuned"]:
                table.add_row(title, *(places(found[who].get(name)) for who in ("base", "tuned")))
        out.print(table)
    out.print(f"model: {escape(trained['saved'])}")
    if "pushed" in found:
        out.print(f"pushed: {escape(found['pushed'])}")
