"""Experiment trackers, through Transformers' own callbacks: they write into the run folder and close with the run."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from sailkit.errors import UserError, missing_extra, nearest

FOLDER = "tracking"
EXTRA = ("tensorboard", "trackio", "wandb")  # those of the extra; any other that Transformers knows works too


def check_trackers(names: Sequence[str]) -> None:
    """Find out before anything is loaded that a tracker cannot be used.

    Args:
        names: What `report_to` says.

    Raises:
        UserError: Transformers does not know it, or its library is not installed.
    """
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            known = ["none", *INTEGRATION_TO_CALLBACK]
            raise UserError(f"training.report_to: no tracker {name!r}: {nearest(name, known)}")
        if name in EXTRA and importlib.util.find_spec(name) is None:
            raise missing_extra("track", f"report_to: {name}")


@contextlib.contextmanager
def tracking(names: Sequence[str], run: Path, id: str) -> Iterator[None]:
    """Let trackers write below a run folder, unless the user's environment says where.

    Args:
        names: What `report_to` says.
        run: The run folder.
        id: The same for a run that goes on, which then is one run of W&B's too.

    Yields:
        Nothing.
    """
    if not names:
        yield
        return
    folder = run / FOLDER
    wanted = {
        "TENSORBOARD_LOGGING_DIR": str(folder / "tensorboard"),
        "TRACKIO_DIR": str(folder / "trackio"),
        "WANDB_DIR": str(folder),  # adds a folder of its own
        "WANDB_CACHE_DIR": str(folder / "wandb" / "cache"),
        "WANDB_DATA_DIR": str(folder / "wandb" / "data"),
        "WANDB_PROJECT": "sailkit",
        "WANDB_RUN_ID": id,
        "WANDB_RESUME": "allow",
    }
    if "wandb" in names:
        folder.mkdir(exist_ok=True)  # W&B would take another that exists
    ours = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
        _finish_wandb(0)
    except BaseException:
        _finish_wandb(1)
        raise
    finally:
        for name in ours:
            os.environ.pop(name, None)


def _finish_wandb(code: int) -> None:
    """W&B's run belongs to the process, not to the trainer: the next one would write into it."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish(exit_code=code)
