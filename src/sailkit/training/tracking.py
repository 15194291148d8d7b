"""Set up experiment trackers: Transformers' callbacks write into the run folder, and are closed with the run."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from sailkit.distributed import is_main_process
from sailkit.errors import UserError, missing_extra, nearest

FOLDER = "tracking"
EXTRA = ("tensorboard", "trackio", "wandb")  # installed by the extra `track`; other trackers of Transformers work too


def check_trackers(names: Sequence[str]) -> None:
    """Check, before anything is loaded, that the trackers can be used.

    Args:
        names: The trackers of `report_to`.

    Raises:
        UserError: A tracker is unknown to Transformers or not installed, or W&B has no API key.
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
    """Whether W&B has a key or needs none; otherwise it would prompt or fail after the weights are loaded."""
    import wandb
    from wandb.sdk.lib.wbauth import read_netrc_auth

    settings = wandb.Settings()
    settings.update_from_system_settings()
    settings.update_from_env_vars(dict(os.environ))
    keys = settings.api_key or settings.identity_token_file or read_netrc_auth(host=settings.base_url)
    return bool(keys) or settings.mode in ("offline", "dryrun", "disabled")


@contextlib.contextmanager
def tracking(names: Sequence[str], run: Path, id: str) -> Iterator[None]:
    """Direct trackers into the run folder, unless environment variables name other folders.

    Args:
        names: The trackers of `report_to`.
        run: The run folder.
        id: Id of the run, kept on resumption, so that W&B continues the same run.

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
        "WANDB_DIR": str(folder),  # W&B adds a subfolder
        "WANDB_CACHE_DIR": str(folder / "wandb" / "cache"),
        "WANDB_DATA_DIR": str(folder / "wandb" / "data"),
        "WANDB_PROJECT": "sailkit",
        "WANDB_RUN_ID": id,
        "WANDB_RESUME": "allow",
    }
    if "wandb" in names:
        folder.mkdir(exist_ok=True)  # W&B uses another folder if this one does not exist
    unset = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(unset)
    try:
        yield
        _finish_wandb(0)
    except BaseException as error:
        _finish_wandb(1)
        if type(error).__module__.startswith("wandb."):  # for example a rejected key
            why = " ".join(str(error).split())[:300]
            raise UserError(f"training.report_to: W&B: {why}; WANDB_MODE=offline keeps its files here") from None
        raise
    finally:
        for name in unset:
            os.environ.pop(name, None)


def _finish_wandb(code: int) -> None:
    """Finish W&B's run, which is global: the next training run in this process would write into it."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish(exit_code=code)
