"""Experiment trackers, through Transformers' own callbacks; they write into the run folder and close with the run."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from sailkit.errors import UserError, missing_extra, nearest
from sailkit.training.distributed import is_main_process

FOLDER = "tracking"
EXTRA = ("tensorboard", "trackio", "wandb")  # those of the extra `track`; others that Transformers knows work too


def check_trackers(names: Sequence[str]) -> None:
    """Find out before anything is loaded that a tracker cannot be used.

    Args:
        names: The trackers of `report_to`.

    Raises:
        UserError: Transformers does not know it, its library is not installed, or W&B has no key to send with.
    """
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            known = ["none", *INTEGRATION_TO_CALLBACK]
            raise UserError(f"training.report_to: no tracker {name!r}: {nearest(name, known)}")
        if name in EXTRA and importlib.util.find_spec(name) is None:
            raise missing_extra("track", f"report_to: {name}")
    if "wandb" in names and is_main_process() and not _wandb_can_start():
        raise UserError(
            "training.report_to: W&B has no key; run  wandb login, set WANDB_API_KEY, or WANDB_MODE=offline to keep "
            "its files here"
        )


def _wandb_can_start() -> bool:
    """Whether W&B has a key or needs none; otherwise it would ask or fail once the weights are loaded."""
    import wandb
    from wandb.sdk.lib.wbauth import read_netrc_auth

    settings = wandb.Settings()
    settings.update_from_system_settings()
    settings.update_from_env_vars(dict(os.environ))
    keys = settings.api_key or settings.identity_token_file or read_netrc_auth(host=settings.base_url)
    return bool(keys) or settings.mode in ("offline", "dryrun", "disabled")


@contextlib.contextmanager
def tracking(names: Sequence[str], run: Path, id: str) -> Iterator[None]:
    """Let trackers write below a run folder, unless the user's environment says where.

    Args:
        names: The trackers of `report_to`.
        run: The run folder.
        id: Of the run; a run that is resumed keeps it, and continues its run in W&B.

    Yields:
        Nothing.
    """
    if not names:
        yield
        return
    folder = run / FOLDER
    variables = {
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
        folder.mkdir(exist_ok=True)  # W&B takes another folder where this one does not exist
    unset = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(unset)
    try:
        yield
        _finish_wandb(0)
    except BaseException as error:
        _finish_wandb(1)
        if type(error).__module__.startswith("wandb."):  # such as a key that its server refuses
            why = " ".join(str(error).split())[:300]
            raise UserError(f"training.report_to: W&B: {why}; WANDB_MODE=offline keeps its files here") from None
        raise
    finally:
        for name in unset:
            os.environ.pop(name, None)


def _finish_wandb(code: int) -> None:
    """Finish W&B's run, which belongs to the process: the next training run would write into it."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish(exit_code=code)
