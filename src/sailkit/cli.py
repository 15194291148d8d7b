"""The command line: build commands from the stage functions, parse arguments, print results and exit."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json as jsonlib
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter, UnusedCliTokensError

from sailkit import __version__, reporting, runs
from sailkit.asking.ask import ask
from sailkit.asking.demo import demo
from sailkit.asking.live import LiveAnswer
from sailkit.asking.serve import serve
from sailkit.catalog import recipes, samples
from sailkit.console import clean_streams, console, show_traceback
from sailkit.diagnosis import Diagnosis, doctor
from sailkit.distributed import is_main_process
from sailkit.errors import ProcessError, UserError
from sailkit.files import jsonl
from sailkit.help import FLAGS, GroupedFlags, example, verb_group, verb_number
from sailkit.overview import resume_point
from sailkit.pipeline import STAGES, run
from sailkit.provenance import command_line
from sailkit.rendering import terminal
from sailkit.rendering.result import to_json
from sailkit.signatures import for_command_line
from sailkit.text import escape_json

_UNFINISHED = 3  # exit status of a stage with unavailable parts, which the same command may complete

JsonFlag = Annotated[
    Path | None,
    Parameter(
        name="--json",
        allow_leading_hyphen=True,
        help="Also write the result as JSON: a file, or - for standard output alone.",
    ),
]

VERBS: dict[str, Callable[..., Any]] = {
    **STAGES,
    "ask": ask,
    "demo": demo,
    "serve": serve,
    "run": run,
    "runs": reporting.list_runs,
    "recipes": recipes,
    "samples": samples,
    "doctor": doctor,
}


def _command(stage: Callable[..., Any]) -> Callable[..., None]:
    """Wrap a stage function as a command with `--json` that prints its result."""

    def command(*args: Any, json: Path | None = None, **kwargs: Any) -> None:
        live = LiveAnswer() if stage is ask and str(json) != "-" and sys.stdout.isatty() else None
        with contextlib.redirect_stdout(sys.stderr), live or contextlib.nullcontext():  # libraries print, too
            returned = _stoppable(stage, args, kwargs | ({"stream": live} if live else {}))
        if not is_main_process():  # all processes have the same result
            return
        result = to_json(returned)
        if isinstance(result, list) and len(result) == 1:
            result = result[0]
        if json is not None and str(json) == "-":
            print(escape_json(jsonlib.dumps(result, ensure_ascii=False, indent=2, allow_nan=False)), flush=True)
        else:
            for each in returned if isinstance(returned, list) else [returned]:
                terminal.write(live.finish(each) if live else reporting.report_of(each))
        if json is not None and str(json) != "-":
            jsonl.write_atomic(json, jsonlib.dumps(result, ensure_ascii=False, indent=2, allow_nan=False) + "\n")
        if json is None and kwargs.get("out") and not kwargs.get("dry_run"):
            sys.stdout.flush()
            runs.notice(f"sailkit: written to {kwargs['out']}")
        if isinstance(result, dict) and (remaining := result.get("unfinished")):
            sys.stdout.flush()
            runs.notice(f"sailkit: unfinished: {remaining}")
            sys.exit(_UNFINISHED)
        if isinstance(returned, Diagnosis) and not returned.complete:
            sys.exit(1)

    flag = inspect.Parameter("json", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=JsonFlag)
    return functools.update_wrapper(command, for_command_line(stage, flag))


def _stoppable(stage: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a stage; if it is stopped, say what the same command continues from."""
    try:
        return stage(*args, **kwargs)
    except KeyboardInterrupt as stop:
        if str(stop) or not (point := resume_point(kwargs.get("out"))):
            raise
        raise KeyboardInterrupt(f"the same command continues from {point}") from None


def build_app() -> App:
    """Build the application; verbs and flags come from the stage functions."""
    app = App(
        name="sailkit",
        help="Build, train, distil and measure small language models that answer with search results.",
        version=__version__,
        suppress_keyboard_interrupt=False,
        console=console(),
        help_formatter=GroupedFlags(),
        default_parameter=Parameter(negative_iterable=()),
    )
    for name, stage in VERBS.items():
        app.command(
            _command(stage),
            name=name,
            group=verb_group(name),
            sort_key=verb_number(name),
            help_epilogue=example(name),
        )
    app.register_install_completion_command(help="Install completion for your shell.")
    for flag in ("--help", "--version", "--install-completion"):
        app[flag].group = FLAGS
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        arguments: Command-line arguments; by default those of this process.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it advertises kernels from the hub
    warnings.showwarning = _show_warning
    if not is_main_process():
        os.environ["SAILKIT_PROGRESS"] = "off"
    sys.excepthook = show_traceback
    with clean_streams():
        _run(arguments)


def _run(arguments: Sequence[str] | None) -> None:
    try:
        with command_line(sys.argv[1:] if arguments is None else arguments):
            build_app()(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()  # raise BrokenPipeError here rather than at exit
        if not is_main_process():
            os._exit(0)  # nothing is left to write, and threads of torch sometimes abort the interpreter's shutdown
    except UserError as error:
        _fail(_with_flags(str(error)), everywhere=isinstance(error, ProcessError))
    except UnusedCliTokensError as error:
        rest = " ".join(error.unused_tokens or ())
        _fail(f"arguments left over: {rest}; a flag takes one value, and is repeated for several (--data A --data B)")
    except CycloptsError as error:
        _fail(str(error).strip())
    except KeyboardInterrupt as stop:
        runs.notice(f"sailkit: stopped; {str(stop) or 'the same command continues where it stopped'}")
        sys.exit(130)
    except BrokenPipeError:
        # The reader closed the pipe; prevent a second error when Python closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Show warnings in one line; skip those that libraries address to programmers."""
    if not issubclass(category, (FutureWarning, DeprecationWarning)):
        runs.notice(f"sailkit: {_with_flags(str(message))}")


@functools.cache
def _flags() -> frozenset[str]:
    """All flags of all verbs, including those of option dataclasses."""
    commands = (build_app()[verb] for verb in VERBS)
    collections = (command.assemble_argument_collection() for command in commands)
    return frozenset(name for arguments in collections for argument in arguments for name in argument.names)


def _with_flags(message: str) -> str:
    """Turn argument names in an error into flags: `max_length` becomes --max-length."""

    def flag(match: re.Match[str]) -> str:
        name = f"--{match[1].replace('_', '-')}"
        return name + (f" {match[2]}" if match[2] else "") if name in _flags() else match[0]

    return re.sub(r"`([a-z]\w*)(?:='([^'`]*)')?`", flag, message)


def _fail(message: str, *, everywhere: bool = False) -> None:
    """End this process with an error, which the main process prints, or whichever process has it."""
    if everywhere and not is_main_process():
        time.sleep(1)  # the main process may have the same error, and a launcher kills all processes once one ends
    runs.notice(f"sailkit: error: {' '.join(message.split())}", everywhere=everywhere)
    sys.exit(2)
