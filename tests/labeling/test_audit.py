"""Labelers against people: what counts as a judgement, figures checked against scikit-learn, halves that never mix."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    balanced_accuracy_score,
    brier_score_loss,
    cohen_kappa_score,
    matthews_corrcoef,
    roc_auc_score,
)

from little_room import little_room
from sailkit import runs
from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.labeling.audit import audit
from sailkit.labeling.audit_figures import best_threshold, calibration, threshold_figures
from sailkit.labeling.audit_file import differing_facts, score_folder, unshared_facts
from sailkit.labeling.audit_results import Audit
from sailkit.labeling.base import Score
from sailkit.labeling.fit import fit
from sailkit.labeling.fit_trainer import LengthBatches
from sailkit.labeling.human import gold_labels, read_judgements, votes_against_majorities
from sailkit.labeling.load import load_labeler
from sailkit.labeling.options import AuditedLabelerOptions, JudgementColumns, LabelerOptions
from sailkit.labeling.results import FittedLabeler
from sailkit.labeling.similarity import Overlap
from sailkit.rendering import terminal
from sailkit.rendering.numbers import short_names
from sailkit.reporting import report
from sailkit.stats.intervals import bounded, proportion
from sailkit.stats.metrics import kappa, weighted_auroc
from sailkit.tasks.task import in_first_half


@pytest.fixture(scope="module")
def climate(shared):
    return read_judgements(shared / "climate-fever" / "climate-fever.jsonl")


def test_climate_fever_is_read_with_its_votes(climate):
    official = gold_labels(climate.pairs, "official")
    assert len(climate.pairs) + sum(climate.left_out.values()) == 7675
    nei = [one for one, informative in zip(climate.pairs, official, strict=True) if not informative]
    assert len(nei) == 4930
    assert sum(one.share > 0.5 for one in nei) == 685
    assert gold_labels(climate.pairs, "majority").count(None) == sum(one.share == 0.5 for one in climate.pairs)
    unanimous = gold_labels(climate.pairs, "unanimous")
    assert all(
        len({v == "neither" for v in one.votes}) == 1
        for one, said in zip(climate.pairs, unanimous, strict=True)
        if said is not None
    )


def test_one_person_against_the_rest_agrees_as_was_published(climate):
    alone, rest = votes_against_majorities(climate.pairs)
    assert kappa([str(v) for v in alone], [str(v) for v in rest]) == pytest.approx(0.398, abs=0.001)


def test_factcheck_pairs_that_contradict_themselves_are_left_out(shared):
    found = read_judgements(shared / "factcheckgpt" / "subtask3_claim_evidence_stance.jsonl")
    assert found.name == "factcheck-gpt"
    assert len(found.pairs) + sum(found.left_out.values()) == 3305
    assert found.left_out["contradicting"] > 0
    assert len({(one.claim, one.pair.result.body) for one in found.pairs}) == len(found.pairs)


def test_a_pair_that_both_supports_and_refutes_is_left_out(tmp_path):
    table = "claim,evidence,verdict\nBees fly.,They do.,supports\nBees fly.,They do.,refutes\nBees sing.,No.,refutes\n"
    (tmp_path / "x.csv").write_text(table)
    found = read_judgements(tmp_path / "x.csv", JudgementColumns(judgement="verdict"))
    assert [pair.claim for pair in found.pairs] == ["Bees sing."]
    assert found.left_out == {"doubled": 0, "contradicting": 2}


def test_other_files_are_refused(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"claim": "c", "text": "t"}\n')
    with pytest.raises(UserError, match="line 1: neither Climate-FEVER"):
        read_judgements(tmp_path / "x.jsonl")
    (tmp_path / "y.jsonl").write_text('{"claim": "c", "evidence": "t", "stance": "maybe"}\n')
    with pytest.raises(UserError, match="stance 'maybe' is not one of"):
        read_judgements(tmp_path / "y.jsonl")
    rows = ['{"claim": "c", "evidences": []}', '{"claim": "c", "evidence": "t", "stance": "refute"}']
    (tmp_path / "z.jsonl").write_text("\n".join(rows))
    with pytest.raises(UserError, match="line 2: a row of factcheck-gpt among those of climate-fever"):
        read_judgements(tmp_path / "z.jsonl")


@pytest.mark.parametrize(
    ("fields", "entry", "message"),
    [
        ({"claim": None}, {}, "line 1: field 'claim' should be text"),
        ({"claim": "half \ud800"}, {}, "line 1: field 'claim' holds half a surrogate pair"),
        ({}, {"votes": ["SUPPORTS", "maybe"]}, r"line 1: evidences\[0\]: 'maybe' is no vote; there are SUPPORTS"),
        ({}, {"evidence_label": 2}, r"evidences\[0\]: 2 is no vote"),
        ({}, {"evidence": None}, r"evidences\[0\]: field 'evidence' should be text"),
    ],
)
def test_votes_in_other_words_are_refused(tmp_path, fields, entry, message):
    """They would count as informative: whatever is not NOT_ENOUGH_INFO."""
    known = {"votes": ["SUPPORTS", None], "evidence": "e", "article": "a", "evidence_label": "SUPPORTS"}
    row = {"claim_id": 1, "claim": "c", "evidences": [known | entry]} | fields
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=message):
        read_judgements(tmp_path / "x.jsonl")


def test_texts_without_words_have_a_bm25_score_of_nothing(votes, tmp_path):
    text = re.sub(r"The sea rises in bay \d+\"", 'it is"', votes.read_text())
    votes.write_text(re.sub(r"A street in town \d+", "is it", text))
    found = audit(data=votes, labeler=["overlap"], out=tmp_path / "a")
    assert (found.rows[0].labeler, found.rows[0].figures["auroc"].value) == ("bm25 score", 0.5)


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 0},
        {"epochs": float("nan")},
        {"learning_rate": -1},
        {"batch_size": 0},
        {"max_length": 0},
        {"limit": -1},
    ],
)
def test_numbers_that_cannot_be_are_refused(votes, tmp_path, options):
    (name,) = options
    with pytest.raises(UserError, match=f"`{name}` should be"):
        fit(data=votes, out=tmp_path / "f", **options)
    if name == "limit":
        with pytest.raises(UserError, match="`limit` should be at least 1, not -1"):
            audit(data=votes, labeler=["overlap"], out=tmp_path / "a", limit=-1)


def test_fit_refuses_what_its_base_cannot_take(votes, tmp_path):
    with pytest.raises(UserError, match="`max_length` 5000: minilm-l6-v2 takes at most 512 tokens"):
        fit(data=votes, out=tmp_path / "f", max_length=5000)
    empty = tmp_path / "empty.jsonl"
    empty.write_text(re.sub(r'"evidence": "[^"]*"', '"evidence": ""', votes.read_text()))
    with pytest.raises(UserError, match="no evidence with text to learn from"):
        fit(data=empty, out=tmp_path / "f")
    with pytest.raises(UserError, match="to learn from; use more data"):
        fit(data=votes, out=tmp_path / "f", limit=1)
    assert not (tmp_path / "f").exists()


def test_fit_reads_special_tokens_as_text_and_saves_them_by_their_names(votes, tmp_path, monkeypatch):
    from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer

    seen = []
    train = CrossEncoderTrainer.train

    def spied(trainer, **options):
        def see(module, given):
            seen.extend(given[0]["input_ids"].tolist() if module.training else ())

        trainer.model[0].register_forward_pre_hook(see)
        return train(trainer, **options)

    monkeypatch.setattr(CrossEncoderTrainer, "train", spied)
    votes.write_text(votes.read_text().replace("rises", "[SEP] rises").replace("The sea", "[CLS] sea [MASK]"))
    options = {"data": votes, "out": tmp_path / "f", "limit": 8, "batch_size": 8, "epochs": 1, "max_length": 64}
    with little_room(100_000), pytest.raises(UserError, match=r"^cannot write .*/f: .*free some space"):
        fit(**options)
    assert not list(tmp_path.glob(".f.*"))
    seen.clear()
    fit(**options)
    tokenizer = CrossEncoder(str(tmp_path / "f"), local_files_only=True).tokenizer
    assert tokenizer.sep_token == "[SEP]"
    frame = [tokenizer.cls_token_id, *[tokenizer.sep_token_id] * 2]
    special = set(tokenizer.all_special_ids) - {tokenizer.pad_token_id}
    assert len(seen) == 8
    assert all([i for i in row if i in special] == frame for row in seen)


def test_batches_of_fit_hold_each_row_once_and_like_lengths(votes):
    sampler = LengthBatches(range(1000), batch_size=32, drop_last=False, seed=0)
    first = list(sampler)
    assert len(first) == len(sampler)
    assert sorted(row for batch in first for row in batch) == list(range(1000))
    assert sum(max(batch) - min(batch) for batch in first) / len(first) < 200, "rows are sorted by length"
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first


def test_the_halves_depend_on_claim_and_seed_alone():
    first = [in_first_half(f"claim {i}", 0) for i in range(400)]
    assert 150 < sum(first) < 250
    assert first != [in_first_half(f"claim {i}", 1) for i in range(400)]


@st.composite
def judged(draw):
    n = draw(st.integers(4, 40))
    gold = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    gold[:2] = [True, False]
    scores = np.array(draw(st.lists(st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.7, 1.0]), min_size=n, max_size=n)))
    weights = np.array(draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)), dtype=float)
    weights[:2] = 1
    return gold, scores, weights


@given(judged())
def test_figures_are_those_of_scikit_learn_on_the_drawn_pairs(data):
    gold, scores, weights = data
    times = weights.astype(int)
    y, s = np.repeat(gold, times), np.repeat(scores, times)
    assert weighted_auroc(gold, scores, weights[None])[0] == pytest.approx(roc_auc_score(y, s))
    found = threshold_figures(0.4, gold, scores, weights[None])
    said = s >= 0.4
    assert found["balanced_accuracy"][0] == pytest.approx(balanced_accuracy_score(y, said))
    assert found["mcc"][0] == pytest.approx(matthews_corrcoef(y, said), abs=1e-9)
    assert found["kappa"][0] == pytest.approx(cohen_kappa_score(y, said), abs=1e-9)
    assert calibration(gold, scores, weights[None])["brier"][0] == pytest.approx(brier_score_loss(y, s))


def test_a_calibration_error_of_nothing_lies_within_its_interval():
    """Each draw has some error, because the errors of its bins do not cancel out."""
    scores = np.repeat(np.arange(0.05, 1, 0.1), 20)
    gold = np.tile(np.arange(20), 10) < np.round(20 * scores)
    drawn = np.random.default_rng(0).multinomial(200, np.full(200, 1 / 200), 1000)
    errors = calibration(gold, scores, drawn)["ece"]
    found = bounded(float(calibration(gold, scores, np.ones((1, 200)))["ece"][0]), errors, 200)
    assert errors.min() > found.value == found.low == pytest.approx(0)
    assert found.high < 0.2


@given(judged())
def test_no_other_threshold_would_have_been_better(data):
    gold, scores, _ = data
    found = balanced_accuracy_score(gold, scores >= best_threshold(gold, scores))
    assert found == pytest.approx(max(balanced_accuracy_score(gold, scores >= cut) for cut in (*scores, 0.0)))


def test_an_audit_reports_on_the_half_that_chose_nothing(shared, tmp_path):
    path = shared / "climate-fever" / "climate-fever.jsonl"
    found = audit(data=path, labeler=["overlap"], out=tmp_path / "a", limit=300)
    first = {(row.labeler, row.stratum): row for row in found.rows}
    assert set(first) == {(n, s) for n in ("bm25 score", "overlap") for s in ("unanimous", "majority", "official")}
    row = first["overlap", "unanimous"]
    auroc = found.figures["overlap"]["unanimous"]["auroc"]
    assert auroc.low < auroc.value < auroc.high
    assert auroc.value == pytest.approx(0.62, abs=0.08)
    # Turning every vote of the half that is reported on must not move the threshold.
    rows = [json.loads(line) for line in path.read_text().splitlines()[:300]]
    turn = {"NOT_ENOUGH_INFO": "SUPPORTS"}
    for one in rows:
        if not in_first_half(one["claim_id"], 0):
            for entry in one["evidences"]:
                entry["votes"] = [turn.get(vote, "NOT_ENOUGH_INFO") for vote in entry["votes"] if vote]
    turned = tmp_path / "turned.jsonl"
    turned.write_text("".join(json.dumps(one) + "\n" for one in rows))
    again = audit(data=turned, labeler=["overlap"], out=tmp_path / "b").row("overlap", "unanimous")
    assert again.threshold == row.threshold
    assert again.figures["auroc"].value == pytest.approx(1 - auroc.value)


@pytest.fixture
def votes(tmp_path):
    """Forty claims, each with a result that all call informative and one that none does."""
    rows = [
        {
            "claim_id": str(i),
            "claim": f"The sea level of bay {i} rises",
            "evidences": [
                {"votes": [vote] * 3, "evidence": f"{text} {i}", "article": "", "evidence_label": vote}
                for vote, text in (("SUPPORTS", "The sea rises in bay"), ("NOT_ENOUGH_INFO", "A street in town"))
            ],
        }
        for i in range(40)
    ]
    path = tmp_path / "votes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_folder_holds_one_audit_and_names_what_another_would_change(votes, tmp_path):
    out = tmp_path / "a"
    first = audit(data=votes, labeler=["overlap"], out=out)
    settings = runs.read_manifest(out)["settings"]
    assert settings["data_sha256"] == first.data_sha256 == jsonl.file_fingerprint([votes])
    assert (settings["data"], settings["labelers"], settings["limit"]) == ("climate-fever", ["overlap"], None)
    found = runs.overview(tmp_path).runs
    assert [run.stage for run in found] == ["audit", "labeler scores"]
    assert found[1].folder.startswith(f"{out}/overlap-")
    assert audit(data=votes, labeler=["overlap"], out=out) == first
    with pytest.raises(UserError, match=r"another run \(seed: 0 there, 1 now\)"):
        audit(data=votes, labeler=["overlap"], out=out, seed=1)
    options = AuditedLabelerOptions(dtype="float32")
    with pytest.raises(UserError, match=r"another run \(limit: null there, 30 now; dtype: \"auto\" there"):
        audit(data=votes, labeler=["overlap"], out=out, limit=30, options=options)
    with pytest.raises(UserError, match="no labeler 'lap'"):
        audit(data=votes, labeler=["overlap", "lap"], out=tmp_path / "b")
    with pytest.raises(UserError, match="`labeler` overlap:x: overlap has no model"):
        audit(data=votes, labeler=["overlap:x"], out=tmp_path / "b")
    for more in ({"scores": out}, {"options": options}, {"columns": JudgementColumns(judgement="verdict")}):
        with pytest.raises(UserError, match="have no effect without `labeler`"):
            audit(task="sample-facts", out=tmp_path / "b", **more)
    assert not (tmp_path / "b").exists(), "a typo leaves nothing that the next command would trip over"


def test_an_audit_is_read_back_from_its_folder_as_it_was_written(votes, tmp_path):
    written = audit(data=votes, labeler=["overlap"], out=tmp_path / "a")
    assert Audit.load(tmp_path / "a") == written
    content = jsonl.read_json(tmp_path / "a" / "audit.json")
    assert json.dumps(written.to_json()) == json.dumps({**content, "audit": str(tmp_path / "a" / "audit.json")})
    frame = written.to_frame()
    assert list(frame["labeler"]) == ["bm25 score"] * 3 + ["overlap"] * 3
    assert frame["auroc_low"][3] == written.figures["overlap"]["unanimous"]["auroc"].low
    with pytest.raises(UserError, match="b is not finished"):
        Audit.load(tmp_path / "b")


def test_a_labeler_that_errs_on_no_claim_of_twenty_is_not_certain_never_to(votes, tmp_path):
    found = audit(data=votes, labeler=["overlap"], out=tmp_path / "a")
    row = next(row for row in found.to_json()["audits"] if row["labeler"] == "overlap")
    claims = found.claims_reported
    assert row["n"] == 2 * claims
    low = proportion(claims, claims).low
    for name in ("auroc", "balanced_accuracy", "precision_distracting", "recall_distracting"):
        assert (row[name], row[f"{name}_low"], row[f"{name}_high"]) == (1.0, pytest.approx(low), 1.0)
    for name in ("kappa", "mcc"):
        assert (row[name], row[f"{name}_low"]) == (1.0, pytest.approx(2 * low - 1))


@pytest.mark.parametrize(("first", "does"), [(True, "chooses the threshold"), (False, "is reported on")])
def test_both_halves_need_both_kinds_of_judgement(votes, tmp_path, first, does):
    rows = [row for _, row in jsonl.read_rows(votes)]
    for row in rows:
        if in_first_half(row["claim_id"], 0) == first:
            del row["evidences"][1]
    votes.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=f"only one kind of judgement in the half that {does}"):
        audit(data=votes, labeler=["overlap"], out=tmp_path / "a")


def test_a_labeler_without_any_score_is_named(votes, tmp_path, monkeypatch):
    monkeypatch.setattr(Overlap, "score", lambda self, pairs: [Score(None, "unreadable") for _ in pairs])
    with pytest.raises(UserError, match=r"overlap scored none of the \d+ pairs; leave it out"):
        audit(data=votes, labeler=["overlap"], out=tmp_path / "a")


def test_scores_are_taken_over_where_labeler_and_data_are_the_same(votes, tmp_path, capsys):
    first = audit(data=votes, labeler=["overlap"], out=tmp_path / "a")
    (kept,) = (tmp_path / "a").glob("overlap-*/scores.jsonl")
    kept.write_text(re.sub(r'"score":0\.\d+', '"score":0.125', kept.read_text()))
    again = audit(data=votes, labeler=["overlap"], out=tmp_path / "b", scores=tmp_path / "a")
    (taken,) = (tmp_path / "b").glob("overlap-*/scores.jsonl")
    assert taken.read_bytes() == kept.read_bytes()
    assert again.rows != first.rows, "they were not scored again"
    audit(data=votes, labeler=["overlap"], out=tmp_path / "c", limit=30, scores=tmp_path / "a")
    (other,) = (tmp_path / "c").glob("overlap-*/scores.jsonl")
    assert "0.125" not in other.read_text(), "of other pairs"
    manifest = kept.with_name("manifest.json")
    content = json.loads(manifest.read_text())
    content["settings"]["pairs_sha256"] = "of others"
    manifest.write_text(json.dumps(content))
    capsys.readouterr()
    audit(data=votes, labeler=["overlap"], out=tmp_path / "e", scores=tmp_path / "a")
    assert "of other pairs: they are computed again" in capsys.readouterr().err
    del content["settings"]["pairs_sha256"]  # as earlier versions wrote it
    manifest.write_text(json.dumps(content))
    audit(data=votes, labeler=["overlap"], out=tmp_path / "f", scores=tmp_path / "a")
    assert "does not record its pairs" in capsys.readouterr().err
    (taken,) = (tmp_path / "f").glob("overlap-*/scores.jsonl")
    assert taken.read_bytes() == kept.read_bytes()
    with pytest.raises(UserError, match="nowhere is not a run folder"):
        audit(data=votes, labeler=["overlap"], out=tmp_path / "d", scores=tmp_path / "nowhere")


def test_the_mean_of_two_labelers_is_taken_from_their_scores(votes, tmp_path):
    """Whatever the order in which they are named."""
    mean = "overlap+similarity"
    both = audit(data=votes, labeler=[mean, "overlap", "similarity"], out=tmp_path / "both")
    alone = audit(data=votes, labeler=[mean], out=tmp_path / "alone")

    def of(result: Audit, name: str) -> list[float]:
        path = result.folder / score_folder(name) / "scores.jsonl"
        rows = {int(row["id"]): row["score"] for _, row in jsonl.read_rows(path)}
        return [score for _, score in sorted(rows.items())]

    halves = [(a + b) / 2 for a, b in zip(of(both, "overlap"), of(both, "similarity"), strict=True)]
    assert of(both, mean) == pytest.approx(halves)
    assert of(alone, mean) == of(both, mean), "alone, its members are scored for it"
    assert list(both.labelers) == [mean, "overlap", "similarity"]
    assert list(alone.labelers) == [mean]
    assert Audit.load(both.folder) == both
    (alone.folder / score_folder("overlap") / "scores.jsonl").unlink()  # stopped there
    (alone.folder / score_folder(mean) / "scores.jsonl").unlink()
    assert audit(data=votes, labeler=[mean], out=alone.folder) == alone
    page = report(both.folder, out=tmp_path / "page.html").markdown.read_text()
    assert "Similarity: version" in page


def test_a_labeler_is_the_same_on_another_machine():
    def described(**facts: object) -> dict[str, object]:
        member = {"labeler": "entailment:m", "weights_sha256": "a", "dtype": "float32", **facts}
        return {"labeler": "overlap+entailment:m", "members": [{"labeler": "overlap"}, member]}

    assert differing_facts(described(), described(dtype="bfloat16", batch_tokens=4096)) == []
    assert differing_facts(described(), described(weights_sha256="b")) == ["entailment:m: weights_sha256"]
    assert unshared_facts(described(), described(form="esp")) == ["entailment:m: form"]


def test_long_names_are_shortened_to_what_tells_them_apart():
    long = "entailment:/srv/models/labelers/climate/epoch-1"
    names = {
        "similarity": "similarity",
        "judge:smollm2-135m": "judge:smollm2-135m",
        long: "entailment:climate/epoch-1",
        "entailment:/srv/models/labelers/facts/epoch-1": "entailment:facts/epoch-1",
        "entailment:/srv/models/labelers/facts/epoch-2": "entailment:epoch-2",
        "judge:endpoint:meta/llama-8b@http://localhost:8000/v1": "judge:llama-8b",
        "judge:endpoint:small@http://localhost:8000/v1": "judge:endpoint:small",
        f"similarity+{long}": "similarity+entailment:climate/epoch-1",
        "judge:endpoint:meta/llama-8b@http://localhost:8000/v1+similarity": "judge:llama-8b+similarity",
    }
    assert short_names(names) == names
    same = ["judge:endpoint:m/n@http://localhost:8000/v1", "judge:endpoint:m/n@http://localhost:8001/v1"]
    assert short_names(same) == {name: name for name in same}


@given(
    st.lists(st.text("ab/:@.", max_size=60) | st.text("ab/+").map("overlap+judge:{}".format), unique=True, max_size=6)
)
def test_short_names_stay_distinct(names):
    assert len(set(short_names(names).values())) == len(names)


def test_the_terminal_shows_only_the_differences_that_matter(votes, tmp_path, capsys):
    found = audit(data=votes, labeler=["overlap"], out=tmp_path / "a")
    name = "entailment:/srv/models/labelers/climate/epoch-1"
    (tmp_path / "a" / "audit.json").write_text(json.dumps(found.to_json()).replace('"overlap"', json.dumps(name)))
    terminal.write(Audit.load(tmp_path / "a").report())
    shown = capsys.readouterr().out
    assert shown.startswith("80 pairs of 40 claims, 26 of them reported on")
    assert len(re.findall("^AUROC ", shown, re.M)) == 3, "a row in each stratum"
    assert shown.count("agreement (kappa)") == 1
    assert re.search(r"^BM25 score minus entailment:epoch-1 +[+-]\d\.\d{4} \[[+-]", shown, re.M)
    assert f"sailkit report {tmp_path / 'a'}" in " ".join(shown.split())


@pytest.mark.long
def test_a_fitted_labeler_is_a_model_that_entailment_loads(shared, tmp_path):
    path = shared / "climate-fever" / "climate-fever.jsonl"
    figures = fit(data=path, out=tmp_path / "fitted", limit=48, batch_size=8, max_length=64)
    assert figures.pairs == 48
    assert FittedLabeler.load(tmp_path / "fitted") == figures
    assert figures.to_json()["model"] == str(tmp_path / "fitted")
    fitted = load_labeler(figures.name, LabelerOptions(dtype="float32"))
    pairs = [one.pair for one in read_judgements(path).pairs[:6]]
    scores = [one.score for one in fitted.score(pairs)]
    assert all(0 < score < 1 for score in scores)
    assert len(set(scores)) == 6
    assert not list(tmp_path.glob(".fitted*"))
    with pytest.raises(UserError, match="choose another `out`"):
        fit(data=path, out=tmp_path / "fitted", limit=48)
    for name in (figures.name, f"overlap+{figures.name}"):
        with pytest.raises(UserError, match="fitted with `seed` 0: other halves"):
            audit(data=path, labeler=[name], out=tmp_path / "a", seed=1, limit=20)
