"""The house rules that no other test would notice: who imports whom, what stays out, how long a file may grow."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sailkit

ROOT = Path(sailkit.__file__).parent
MOST_LINES = 350
# Data flows downward: a module imports only from those above it.
ORDER = (
    "errors",
    "cleaning",
    "addresses",
    "terminal",
    "unpacking",
    "records",
    "jsonl",
    "yaml_files",
    "runs",
    "intervals",
    "formats",
    "metrics",
    "cluster",
    "guard",
    "thoughts",
    "chat_template",
    "border",
    "messages",
    "prompts",
    "answers",
    "tables",
    "hub",
    "instructions",
    "task_spec",
    "task_rows",
    "tasks",
    "models",
    "models.sources",
    "models.rope",
    "models.loading",
    "models.encoder",
    "models.deberta",
    "models.decoding",
    "models.checks",
    "models.passes",
    "models.selftest",
    "models.local",
    "models.masking",
    "models.bounded",
    "models.completions",
    "models.exchange",
    "models.endpoint",
    "search",
    "search.corpus",
    "search.local",
    "search.recorded",
    "search.web",
    "search.stage",
    "label",
    "label.chunks",
    "label.similarity",
    "label.entailment",
    "label.judge",
    "label.load",
    "label.cluster",
    "label.stage",
    "label.humans",
    "label.fit",
    "label.audit",
    "label.audited",
    "styles",
    "exports",
    "leaks",
    "card",
    "build",
    "build_task",
    "page",
    "finetune",
    "finetune.recipe",
    "finetune.data",
    "finetune.batches",
    "finetune.processes",
    "finetune.flagging",
    "finetune.loading",
    "finetune.packing",
    "finetune.callbacks",
    "finetune.checkpoints",
    "finetune.tracking",
    "finetune.arguments",
    "finetune.trainer",
    "finetune.held_out",
    "finetune.plan",
    "finetune.plots",
    "finetune.effective",
    "finetune.publish",
    "finetune.merge",
    "finetune.stage",
    "distill",
    "distill.rows",
    "distill.align",
    "distill.project",
    "distill.pairs",
    "distill.shards",
    "distill.teacher",
    "distill.echo",
    "distill.load",
    "distill.cluster",
    "distill.teacher_cache",
    "distill.sides",
    "distill.answers",
    "distill.compile",
    "distill.loss",
    "distill.trainer",
    "distill.fidelity",
    "distill.recipe",
    "distill.students",
    "distill.plan",
    "distill.work",
    "distill.stage",
    "distill.results",
    "logs",
    "recording_layouts",
    "predictions",
    "recordings",
    "summary",
    "few_shot",
    "reference",
    "evidence",
    "asking",
    "noise",
    "evaluate",
    "compare",
    "rescore",
    "audit_page",
    "tuned_page",
    "distilled_page",
    "report",
    "show",
    "show_training",
    "cli",
    "__main__",
    "testing",
)


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(file): file for file in sorted(ROOT.rglob("*.py"))}
TREES = {name: ast.parse(file.read_text("utf-8")) for name, file in FILES.items()}


def imports(tree: ast.AST, inside_function: bool = False) -> Iterator[tuple[str, bool]]:
    """Every module of the package that is imported, and whether only when a function is called."""
    for node in ast.iter_child_nodes(tree):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        known = {name.removeprefix("sailkit.") for name in names if name.startswith("sailkit.")} & FILES.keys()
        yield from ((name, inside_function) for name in known)
        yield from imports(node, inside_function or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def test_every_module_has_its_place():
    assert sorted(ORDER) == sorted(FILES.keys() - {""})
    assert len(set(ORDER)) == len(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_a_module_imports_only_from_above(name):
    place = {module: number for number, module in enumerate(ORDER)}
    for imported, deferred in imports(TREES[name]):
        # A package may pick one of its own members when it is called; that is what the package is for.
        if not (deferred and imported.startswith(f"{name}.")):
            assert place[imported] < place[name], f"{name} imports {imported}, which comes after it"


def test_the_package_itself_imports_nothing_of_its_own():
    assert list(imports(TREES[""])) == []


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("sailkit", ["torch", "transformers", "sklearn", "numpy", "pydantic"]),
        ("sailkit.cli", ["torch", "transformers", "sklearn", "openai", "scipy.stats", "pyarrow", "matplotlib"]),
    ],
)
def test_importing_is_light(module, absent):
    code = f"import sys, {module}; print(*[name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("name", FILES)
def test_a_file_does_one_job(name):
    assert len(FILES[name].read_text("utf-8").splitlines()) <= MOST_LINES


def dangers(tree: ast.AST) -> Iterator[str]:
    """What could run code that somebody else wrote."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {(node.module or "").split(".")[0]}
        elif isinstance(node, ast.Call):
            names = {ast.unparse(node.func)}
            names |= {
                f"{k.arg}=True" for k in node.keywords if isinstance(k.value, ast.Constant) and k.value.value is True
            }
        elif isinstance(node, (ast.AnnAssign, ast.Assign)):
            targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets
            true = isinstance(node.value, ast.Constant) and node.value.value is True
            names = {f"{ast.unparse(target)}=True" for target in targets} if true else set()
        elif isinstance(node, ast.arguments):
            pairs = [*zip([*node.posonlyargs, *node.args][::-1], node.defaults[::-1], strict=False)]
            pairs += [*zip(node.kwonlyargs, node.kw_defaults, strict=True)]
            names = {f"{a.arg}=True" for a, d in pairs if isinstance(d, ast.Constant) and d.value is True}
        else:
            continue
        yield from names & {
            *("pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"),
            *("eval", "exec", "compile", "torch.load", "yaml.load", "yaml.unsafe_load", "numpy.load", "np.load"),
            *("os.system", "trust_remote_code=True", "shell=True", "allow_pickle=True"),
        }


@pytest.mark.parametrize("name", FILES)
def test_nothing_runs_code_of_others(name):
    assert list(dangers(TREES[name])) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "def f():\n    from pickle import loads",
        "torch.load('x')",
        "eval('1')",
        "load(x, trust_remote_code=True)",
        "def f(a, trust_remote_code=True): ...",
        "def f(*, trust_remote_code: bool = True): ...",
        "class Options:\n    trust_remote_code: bool = True",
        "subprocess.run('ls', shell=True)",
    ],
)
def test_such_code_would_be_noticed(code):
    assert list(dangers(ast.parse(code)))


@pytest.mark.parametrize("code", ["model.eval()", "re.compile('x')", "load(trust_remote_code=flag)", "import torch"])
def test_other_code_is_left_alone(code):
    assert list(dangers(ast.parse(code))) == []


@pytest.mark.parametrize("name", FILES)
def test_no_model_is_spread_over_devices(name):
    """Under a launcher each process has a device of its own, and the trainer puts the model there."""
    assert "device_map" not in FILES[name].read_text("utf-8")
