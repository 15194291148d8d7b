"""The model card and the push: what the hub reads, what a reader reads, and that no token is left anywhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard

from local_hub import TOKEN, local_hub
from sailkit import runs
from sailkit.errors import UserError
from sailkit.models.sources import Source
from sailkit.training.publish import check_repository, model_card
from sailkit.training.recipe import Recipe
from test_reporting import HOSTILE
from training.test_finetune import SET, data, folder, tune  # noqa: F401 - fixtures
from training.test_report import CARD, FIGURES, effective

pytest.importorskip("trl")
QUICK = ("training.max_steps=1", "training.eval_strategy=no", "lora={r: 2}", "dtype=float32")


def card(model: str = "owner/base", base: Path = Path("nowhere"), text: str = "", **recipe) -> tuple[ModelCard, str]:
    told = Recipe(model, (f"runs/a{text}",), about=f"A small run.{text}", **recipe)
    own = {**CARD, "style": f"chat{text}", "flag_messages": {"x": [f"only 12.0% are informative{text}"]}}
    settings = {
        "model": model,
        "data": [f"runs/a{text}"],
        "lora": recipe.get("lora"),
        "training": {"run_name": f"x{text}"},
    }
    manifest = {"settings": {"recipe": settings}, "effective": effective(text), "environment": runs.environment()}
    made = model_card(told, Source(base), FIGURES, [{"data": f"runs/a{text}", "card": own}], manifest)
    return ModelCard(made), made


def test_the_hub_reads_the_front_matter():
    read, _ = card()
    assert read.data.base_model == "owner/base"
    assert (read.data.library_name, read.data.base_model_relation) == ("transformers", "finetune")
    assert {"sailkit", "search-augmented"} <= set(read.data.tags)
    assert read.data.license is None
    read, _ = card("smollm2-135m", lora={"r": 8})
    assert (read.data.base_model, read.data.license) == ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")
    assert (read.data.library_name, read.data.base_model_relation) == ("peft", "adapter")


def test_a_licence_is_that_of_the_base_or_left_to_the_user(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    _, text = card(str(base), base)
    assert "Add the key license above before you share" in text
    (base / "README.md").write_text("---\nlicense: llama2\n---\n")
    read, text = card(str(base), base)
    assert read.data.license == "llama2"
    assert "Add `license`" not in text
    assert read.data.base_model is None  # a folder is nothing that the hub knows
    assert str(tmp_path) not in text
    assert "All weights of base, fine-tuned" in text
    (base / "README.md").write_text("---\nlicense: [\n---\n")
    assert card(str(base), base)[0].data.license is None


def test_a_reader_is_told_figures_data_and_limits():
    _, text = card()
    for words in ("| Loss for each supervised token | 3.214 | 1.106 |",
                  "| Flagging: Matthews correlation | −0.031 | 0.622 |",
                  "informative 0.12, distracting 0.88", "| Supervised tokens of a pass | 2,150 |", "A small run.",
                  "only 12.0% are informative", "an MCC up to 0.10 can be luck", "| Steps | 80 |",
                  f"trl {version('trl')}", f"peft {version('peft')}"):  # fmt: skip
        assert words in text
    assert "| training.weight_decay | 0.0 |" in text.replace("\\", "")
    told = Recipe("owner/base", ("a",))
    old = {"settings": {"recipe": {}}, "environment": {"versions": {"sailkit": "1"}}}
    blind = model_card(
        told, Source(Path("nowhere")), {"rows": 3, "held_out_rows": 0}, [{"data": "a", "card": None}], old
    )
    assert "## Settings in effect" not in blind
    assert "no held-out rows: nothing is known" in blind
    assert "a has no data card." in blind
    assert 'sailkit.ask("' in blind[blind.index("\n## Use\n") :]


def test_several_data_sets_have_their_names_and_those_of_their_flags():
    flags = {"flag_messages": {"shortcut": ["the question tells"], "x": ["few rows"]}}
    cards = [
        {"data": "runs/mine/a", "card": {**CARD, "flag_messages": {"x": ["few rows"]}}},
        {"data": "runs/mine/b", "card": {**CARD, "flag_messages": {"x": ["no titles"]}}},
        {"data": "runs/other/b", "card": {**CARD, "flag_messages": {}}},
        {"data": "all of these together", "card": flags},
    ]
    settings = {"settings": {"recipe": {}}, "environment": {"versions": {"sailkit": "1"}}}
    text = model_card(Recipe("owner/base", ("a", "b")), Source(Path("nowhere")), FIGURES, cards, settings)
    assert "| | a |" in text
    assert "| | b |" in text
    assert "- a, all of these together: few rows" in text
    assert "- b: no titles" in text
    assert "- all of these together: the question tells" in text
    assert "no data card" not in text
    assert "mine" not in text


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_stay_texts(text):
    read, made = card(text=text)
    assert read.data.to_dict() == card()[0].data.to_dict()
    body = made.split("---", 2)[2]
    assert "<" not in body
    assert body.count("\n## ") == card()[1].count("\n## ")
    for table in re.findall(r"(?:^\|.*\n)+", body, re.M):
        assert len({len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in table.splitlines()}) == 1, table


@pytest.mark.parametrize("name", ["name", "a/b/c", "a b/c", "owner/..", "https://x/y", "-a/b"])
def test_a_name_that_is_none_is_refused_before_training(name):
    with pytest.raises(UserError, match="`push`"):
        check_repository(name)


class Hub(BaseHTTPRequestHandler):
    """Refuses whoever asks, as the hub does where a token may not write; echoes what it got, as some proxies do."""

    asked: list[tuple[str, dict]] = []  # noqa: RUF012

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        Hub.asked.append((self.path, json.loads(body)))
        said = json.dumps({"error": f"not for {self.headers.get('authorization')}"}).encode()
        self.send_response(403)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_):
        pass


def environment(home: Path, endpoint: str) -> dict[str, str]:
    """Of a command that finds this hub and the token, and uploads over HTTP: Xet is another protocol."""
    told = {"PYTHONPATH": os.pathsep.join(sys.path), "HF_ENDPOINT": endpoint, "HF_TOKEN": TOKEN, "HF_HOME": str(home)}
    return {**os.environ, **told, "HF_HUB_DISABLE_XET": "1"}


def contents(place: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(place)): path.read_bytes()
        for path in place.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


PUSH = """
import pathlib, sys
from sailkit.training.publish import push
print(push(pathlib.Path(sys.argv[1]), "owner/name"))
"""


def test_a_push_makes_a_private_repository_of_the_whole_folder_once(tmp_path):
    """huggingface_hub itself against a hub on this machine; weights go the way of large files."""
    from safetensors.numpy import save_file

    model = tmp_path / "model"
    model.mkdir()
    save_file({"a": np.arange(1000, dtype=np.float32)}, model / "model.safetensors")
    (model / "README.md").write_text(card()[1])
    (model / "config.json").write_text("{}")
    before = contents(model)
    with local_hub() as hub:
        told = environment(tmp_path / "hf", hub.address)
        for commits in (1, 1, 2):
            if commits == 2:  # only what is new is sent
                (model / "config.json").write_text('{"a": 1}')
            words = [sys.executable, "-c", PUSH, str(model)]
            done = subprocess.run(words, capture_output=True, text=True, env=told, check=False)
            assert done.returncode == 0, done.stderr
            assert done.stdout.strip() == f"{hub.address}/owner/name"
            assert TOKEN not in done.stdout + done.stderr
            repository = hub.repositories["owner/name"]
            assert len(repository.commits) == hub.count("POST", "/commit/") == commits
            assert repository.files == contents(model)
    assert before.keys() == {"model.safetensors", "README.md", "config.json"}
    assert repository.visibility == "private"
    assert repository.commits[0].startswith("Trained with sailkit")
    assert hub.count("PUT", "/storage/") == 1
    asked = [(path, sent) for _, path, sent in hub.asked if "owner/name" in path or path == "/api/repos/create"]
    assert len(asked) >= 2 + 3 * 2
    assert {sent for _, sent in asked} == {f"Bearer {TOKEN}"}
    # A signed address of the storage is on its own, and may be another's.
    assert {sent for _, path, sent in hub.asked if path.startswith("/storage/")} == {None}
    assert all(TOKEN not in path for _, path, _ in hub.asked)
    assert not [name for name, content in contents(tmp_path).items() if TOKEN.encode() in content]


@pytest.mark.long
def test_the_command_trains_and_pushes_and_the_same_command_uploads_nothing_again(folder, data, tmp_path):  # noqa: F811
    out = tmp_path / "run"
    words = [sys.executable, "-m", "sailkit", "finetune", "--out", out, "--model", folder, "--data", data,
             "--push", "owner/name", *(word for one in (*SET, *QUICK) for word in ("--set", one))]  # fmt: skip
    with local_hub() as hub:
        for _ in range(2):
            told = environment(tmp_path / "hf", hub.address)
            done = subprocess.run(words, capture_output=True, text=True, env=told, check=False)
            assert done.returncode == 0, done.stderr
            assert f"{hub.address}/owner/name" in done.stdout
            assert TOKEN not in done.stdout + done.stderr
    repository = hub.repositories["owner/name"]
    assert repository.visibility == "private"
    assert repository.files == contents(out / "model")
    assert {"adapter_model.safetensors", "README.md"} <= repository.files.keys()
    assert ModelCard(repository.files["README.md"].decode()).data.library_name == "peft"
    assert (len(repository.commits), hub.count("PUT", "/storage/")) == (1, 1)
    assert "No files have been modified" in done.stderr
    assert not [name for name, content in contents(tmp_path).items() if TOKEN.encode() in content]


@pytest.mark.long
def test_a_hub_that_refuses_or_is_not_there_costs_one_line_and_nothing_that_was_saved(folder, data, tmp_path):  # noqa: F811
    out = tmp_path / "run"
    tune(folder, data, out, *QUICK)
    before = contents(out)
    assert "model/README.md" in before
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    refusing = f"http://127.0.0.1:{server.server_address[1]}"
    words = [sys.executable, "-m", "sailkit", "finetune", "--out", out, "--model", folder, "--data", data,
             "--push", "owner/name", *(word for one in (*SET, *QUICK) for word in ("--set", one))]  # fmt: skip
    hubs = {refusing: "the hub answers 403; set HF_TOKEN", "http://127.0.0.1:9": "cannot reach the hub (ConnectError)"}
    for endpoint, said in hubs.items():
        told = environment(tmp_path / "hf", endpoint)
        done = subprocess.run(words, capture_output=True, text=True, env=told, check=False)
        assert done.returncode == 2, done.stderr
        (line,) = done.stderr.strip().splitlines()
        assert f"model is saved, but was not pushed to owner/name: {said}" in line
        assert TOKEN not in done.stderr + done.stdout
    server.shutdown()
    server.server_close()
    path, body = Hub.asked[0]
    assert path == "/api/repos/create"
    assert body["visibility"] == "private"
    assert (body["name"], body["organization"]) == ("name", "owner")
    assert contents(out) == before
    assert not [name for name, content in contents(tmp_path).items() if TOKEN.encode() in content]
