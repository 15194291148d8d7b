"""sailkit that notes what each process does, slowly if so told; started by distillation/test_processes.py."""

import os
import time
from datetime import timedelta
from pathlib import Path

from sailkit import distributed
from sailkit.cli import main
from sailkit.distillation import steps
from sailkit.distillation.teacher import LocalTeacher
from sailkit.distillation.trainer import DistillTrainer
from sailkit.errors import UserError
from sailkit.models.local import LocalModel

RANK, NOTES = os.environ.get("RANK", "0"), Path(os.environ["NOTES"])
slow, alone, fails = (float(os.environ.get(name, "0")) for name in ("SLOW", "ALONE", "FAILS"))
rows, describe, loss = LocalTeacher.rows, LocalTeacher.describe, DistillTrainer._loss
generate = LocalModel.generate


def note(name: str, text: str) -> None:
    with (NOTES / f"{name}-{RANK}").open("a") as file:
        file.write(f"{text}\n")


def slow_rows(self, pairs):
    note("rows", " ".join(pair.key.hex() for pair in pairs))
    time.sleep(slow)
    if fails and RANK == "1":
        raise UserError("the second process has no luck")
    return rows(self, pairs)


def noted_generate(self, prompts, *args, **more):
    note("answers", str(len(prompts)))
    return generate(self, prompts, *args, **more)


def other_describe(self):
    return {**describe(self), **({"torch": "0.0"} if RANK == "1" else {})}


def noted_loss(self, *args, **more):
    note("maps", Path("/proc/self/maps").read_text())
    return loss(self, *args, **more)


def later(step):
    def wait(*args):
        time.sleep(alone)
        return step(*args)

    return wait


LocalTeacher.rows, DistillTrainer._loss, LocalModel.generate = slow_rows, noted_loss, noted_generate
if os.environ.get("UNLIKE"):
    LocalTeacher.describe = other_describe
if alone and RANK == "0":
    steps.write_data, steps.align = later(steps.write_data), later(steps.align)
if "TIMEOUT" in os.environ:
    distributed._TIMEOUT = timedelta(seconds=float(os.environ["TIMEOUT"]))
main()
