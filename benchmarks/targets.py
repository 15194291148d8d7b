"""How long it takes to compile a teacher's cache into a student's targets, with and without further processes.

    python benchmarks/targets.py --shared ../shared/data

The teacher is smollm2-135m, which reads everyday responses of Dolly and Alpaca; the student has Qwen's tokenizer. The
cache has the default settings (64 entries, up to a probability of 0.999, float16). Each number of processes compiles
the same cache, the targets are compared byte for byte, and the medians of a few rounds are printed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from transformers import AutoTokenizer

from sailkit.data.exports import TRAIN, example_row
from sailkit.distillation.cache import CacheReader
from sailkit.distillation.targets import TargetCompiler
from sailkit.distillation.teacher_cache import teacher_cache
from sailkit.files import jsonl
from sailkit.models.sources import resolve
from sailkit.records import TrainingExample
from sailkit.retrieval.instructions import read_instructions
from sailkit.training.tokenise import prepare, read_data

TEACHER = "smollm2-135m"


def write_data(shared, folder, count):
    """Write everyday instructions with their responses as training data."""
    items = read_instructions(shared / "instructions" / "dolpaca_prompt_completion_dev.jsonl", limit=count)
    rows = (TrainingExample(x.id, x.instruction, x.input, (), (), x.output, "chat") for x in items)
    folder.mkdir(parents=True)
    jsonl.write_rows(folder / TRAIN, map(example_row, rows))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="the shared data")
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="numbers of processes beside the first")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_data(options.shared, folder / "data", options.rows)
        cached = teacher_cache(teacher=TEACHER, data=[str(folder / "data")], out=folder / "cache", max_length=1024)
        teacher = AutoTokenizer.from_pretrained(resolve(TEACHER).tokenizer_folder)
        student = AutoTokenizer.from_pretrained(options.shared / "tokenizers" / "qwen")
        student.chat_template = teacher.chat_template
        rows = prepare(read_data([str(folder / "data")]), student, 1024)
        seconds = {workers: [] for workers in options.workers}
        contents = set()
        for number in range(options.rounds):
            for workers, times in seconds.items():
                file = folder / f"targets-{number}-{workers}"
                compiler = TargetCompiler(CacheReader.open(folder / "cache"), teacher, student, 0.1, workers)
                begun = time.perf_counter()
                compiled = compiler.compile(rows, file)
                times.append(time.perf_counter() - begun)
                contents.add(file.read_bytes())
    if len(contents) != 1:
        raise SystemExit("the targets depend on the number of processes")
    tokens = compiled.figures["positions"]
    print(
        f"{cached.entries_per_token:.0f} entries for each of the teacher's {cached.tokens:,} tokens; {tokens:,} tokens of "
        "the student; the same bytes each time\n"
    )
    print("| further processes | seconds | ms for each token of the student |\n| --- | --- | --- |")
    for workers, times in seconds.items():
        median = statistics.median(times)
        print(f"| {workers} | {median:.1f} | {1000 * median / tokens:.3f} |")


if __name__ == "__main__":
    main()
