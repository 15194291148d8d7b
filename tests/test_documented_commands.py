"""The command line accepts the commands of README and docs as printed, and they run on small data of the same names."""

from __future__ import annotations

import csv
import gzip
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import forked
import sailkit
from sailkit.cli import build_app
from sailkit.files import jsonl
from sailkit.packaged import sample_files

ROOT = Path(__file__).parents[1]
PAGES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "README.md", *ROOT.glob("docs/*.md")))
PROGRAMS = "sailkit|python|pip|make|git|accelerate"
COMMAND = re.compile(rf"(?:\$ |    |`)((?:{PROGRAMS}) [^`]+)")

# Commands that this file cannot run, and why.
NOT_RUN = {
    r"^(pip|git|make) ": "installs; .ci/run does",
    r"^python benchmarks/": "measures for minutes; tests/test_benchmarks.py runs it on few rows",
    r"^accelerate ": "starts processes; training/test_distributed.py and evaluation/test_processes.py do",
    r"\b(RECIPE|MODEL|FOLDER|DIR|DATA)\b": "has a placeholder",
    r"^sailkit (serve|demo)": "serves until it is stopped; tests/asking has it",
    r"--searxng-url http": "needs a SearXNG server",
    r"--ray\b": "needs a cluster",
    r"--push ": "needs an account on the hub",
    r"vllm:": "needs vLLM; models/test_vllm.py has it",
    r"luohy/SAIL-7b|distill-qwen|--tokens-per-second": "needs a model of 7B parameters",
    r"runs/(logits|sequence|half-random)": "needs further runs that the page describes; tests/distillation has them",
}

# File -> where its rows come from in the shared data, and how many are enough.
DATA = {
    "climate-fever.jsonl": ("climate-fever/climate-fever.jsonl", 120),
    "climate-fever.llama2-7b-chat.jsonl": ("recorded/climate-fever.llama2-7b-chat.jsonl", 1000),
    "climate-fever.sail-7b.jsonl": ("recorded/climate-fever.sail-7b.jsonl", 1000),
    "alpaca.jsonl": ("instructions/dolpaca_prompt_completion_dev.jsonl", 12),
    "nq.jsonl.gz": ("corpus/nq-open-oracle.jsonl.gz", 12),
    "nq-open-oracle.jsonl.gz": ("corpus/nq-open-oracle.jsonl.gz", 60),
    "fever.jsonl": ("stance/fever.jsonl", 80),
    "stance/fever.jsonl": ("stance/fever.jsonl", 80),
    "stance/scifact.jsonl": ("stance/scifact.jsonl", 80),
    "subtask3_claim_evidence_stance.jsonl": ("factcheckgpt/subtask3_claim_evidence_stance.jsonl", 300),
}
SEARCH = "sailkit search --instructions alpaca.jsonl --corpus nq-open-oracle.jsonl.gz --out runs/search"
CLAIMS = "sailkit build-task climate-fever --data climate-fever.jsonl --half first --held-out 0.2 --out"
TUNED = "sailkit finetune smollm2-flags --data runs/nq/build-chat --out runs/tuned"
JUDGED = "sailkit evaluate --model smollm2-135m --task fever --data fever.jsonl --search evidence --limit 4"
# What other pages make, for each page.
BEFORE = {
    "docs/ask.md": [f"{CLAIMS} runs/nq/build-chat", TUNED],
    "docs/build.md": [SEARCH, "sailkit label --results runs/search --labeler similarity --out runs/label"],
    "docs/compare.md": [f"{CLAIMS} runs/built"],
    "docs/data.md": [
        "sailkit build-task fever --data fever.jsonl --half first --out runs/build-fever",
        f"{CLAIMS} runs/build-climate",
        f"{JUDGED} --out runs/tuned-evidence",
    ],
    "docs/distill.md": [f"{CLAIMS} runs/claims", f"{CLAIMS} runs/nq/build-chat", TUNED],
}
# Verb -> arguments that keep it short, where the page does not give them.
SHORT = {
    "ask": ["--max-new-tokens", "8"],
    "evaluate": ["--limit", "4"],
    "build-task": ["--limit", "24"],  # more rows than a step takes, or all seeds give the same model
    "audit": ["--limit", "12"],
    "fit": ["--limit", "24", "--epochs", "1"],
    "finetune": ["--set", "training.max_steps=1"],
    "distill": ["--set", "training.max_steps=1"],
}


@cache
def commands(page: str) -> list[str]:
    """All commands at the beginning of a line, and all lines of blocks of bash."""
    found: list[str] = []
    bash = False
    for line in (ROOT / page).read_text("utf-8").replace("\\\n", " ").splitlines():
        if line.startswith("```"):
            bash = line == "```bash"
        elif bash and line:
            found.append(line)
        elif match := COMMAND.match(line):
            found.append(match[1])
    return [re.sub(r" +", " ", command).strip() for command in found]


def words_of(command: str) -> list[str]:
    return shlex.split(command, comments=True)


def reason(command: str) -> str | None:
    return next((why for pattern, why in NOT_RUN.items() if re.search(pattern, command)), None)


def test_every_reason_applies_to_some_command():
    every = [command for page in PAGES for command in commands(page)]
    assert [pattern for pattern in NOT_RUN if not any(re.search(pattern, command) for command in every)] == []
    assert sum(reason(command) is None for command in every) > 30


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_the_command_line_accepts_what_a_page_prints(page):
    app = build_app()
    for command in commands(page):
        words = words_of(command)
        for word in words:
            if re.match(r"(recipes|examples|benchmarks|docs)/[\w./-]+\.\w+$", word):
                assert (ROOT / word).is_file(), command
        if words[0] == "sailkit":
            app.parse_args(words[1:], print_error=False, exit_on_error=False)


def test_a_flag_that_does_not_exist_would_be_noticed():
    with pytest.raises(Exception, match="--no-such-flag"):
        build_app().parse_args(["runs", "--no-such-flag"], print_error=False, exit_on_error=False)


@pytest.fixture
def workspace(shared, tmp_path, monkeypatch) -> Path:
    """A folder with small files of the names that the pages use, and with the recipes."""
    monkeypatch.chdir(tmp_path)
    for name, (source, count) in DATA.items():
        data = (shared / source).read_bytes()
        rows = (gzip.decompress(data) if source.endswith(".gz") else data).splitlines(keepends=True)[:count]
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(gzip.compress(b"".join(rows)) if name.endswith(".gz") else b"".join(rows))
    shutil.copy(shared / "corpus" / "factbook.tar.gz", ".")
    for name in ("base", "tuned", "a", "b"):
        shutil.copytree(sample_files()["base-own" if name in ("base", "a") else "base-random"], f"runs/{name}")
    recorded = [row for _, row in jsonl.read_rows(sample_files()["keyword-parser.jsonl"])]
    others = [{**row, "answer": row.pop("output"), "parsed": row.pop("prediction_recorded")} for row in recorded]
    jsonl.write_rows("outputs.jsonl", others)
    with Path("pairs.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["sentence", "passage", "verdict"])
        table.writerows([row["text"], row["text"], ("backs it", "unrelated")[i % 2]] for i, row in enumerate(recorded))
    facts = '"Vitamin C cures colds.","cures colds: trials find that it does not cure one."'
    Path("facts.csv").write_text("\n".join(["text,answer", *[facts] * 4]) + "\n")
    for name in ("samples_claims.jsonl", "samples_claims_2026-11-28.jsonl"):
        shutil.copy(ROOT / "tests" / "fixtures" / "logs" / "lm-eval-generate.jsonl", name)
    instruction = {"id": "q1", "instruction": "What is honey?", "input": "", "output": "Honey is made by bees."}
    jsonl.write_rows("questions.jsonl", [instruction])
    jsonl.write_rows("capitals.jsonl", [{"statement": "Paris is the capital of France.", "label": "TRUE"}])
    sailkit.recipes(to=".")
    return tmp_path


def write_blocks(page: str) -> None:
    """Write the files that a page shows: those that begin with their name, and the recipe of a pipeline."""
    text = (ROOT / page).read_text("utf-8")
    for block, name in re.findall(r"```(?:python|yaml)\n(# (\w+\.(?:py|yaml))\n.*?)```", text, re.DOTALL):
        Path(name).write_text(block)
    for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL):
        if "steps:" in block:
            Path("recipe.yaml").write_text(block.replace("limit: 150", "limit: 6"))


def run(command: str, made: dict[str, str]) -> None:
    words = words_of(command)
    if words[0] == "python":
        subprocess.run([sys.executable, *words[1:]], check=True)
        return
    if words[0] != "sailkit":
        subprocess.run(["bash", "-c", command], check=True)
        return
    out = words[words.index("--out") + 1] if "--out" in words else ""
    if out and words[1] not in ("run", "report") and made.get(out) != command:
        shutil.rmtree(out, ignore_errors=True)  # another section of the page begins anew
        made[out] = command
    short = SHORT.get(words[1], [])
    for flag, value in zip(short[::2], short[1::2], strict=True):
        words += [] if flag in words and flag != "--set" else [flag, value]
    done = forked.run(*words[1:])
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr[-2000:]}"


@pytest.mark.long
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page != "docs/distill.md" and any(reason(text) is None for text in commands(page))],
)  # the page on distillation trains on what examples/finetune.sh builds from the whole data; its commands are parsed
@pytest.mark.usefixtures("workspace")
def test_the_commands_of_a_page_run(page):
    write_blocks(page)
    made: dict[str, str] = {}
    for command in [*BEFORE.get(page, []), *commands(page)]:
        if reason(command) is None:
            run(command, made)
