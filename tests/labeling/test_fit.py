"""fit: three classes from stance data, mined negatives, resumption, and the claims that audit never reports on."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from sailkit.errors import UserError
from sailkit.labeling import fit_trainer
from sailkit.labeling.audit import audit
from sailkit.labeling.fit import fit
from sailkit.labeling.human import STANCES, read_judgements
from sailkit.labeling.load import load_labeler
from sailkit.labeling.negatives import with_negatives
from sailkit.labeling.options import JudgementColumns, LabelerOptions
from sailkit.labeling.results import FittedLabeler
from sailkit.models.sources import ENCODER, resolve_encoder
from sailkit.tasks.task import in_first_half, in_first_part

TOWNS = ("Aberdeen", "Bergen", "Cadiz", "Dakar", "Esbjerg", "Faro", "Gdansk", "Haifa", "Izmir", "Jaffa")


@pytest.fixture(scope="module")
def small_base(tmp_path_factory):
    """A small BERT with random weights and the tokenizer of MiniLM."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(**sizes, max_position_embeddings=64)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(resolve_encoder(ENCODER).folder).save_pretrained(folder)
    return folder


@pytest.fixture
def stances(tmp_path):
    """Eighty claims of ten towns in FEVER's form: the port opened in the year of the passage, or in another."""
    rows = [
        {
            "id": str(i),
            "claim": f"The port of {TOWNS[i % 10]} opened in {1900 + i + (i // 10) % 2}.",
            "label": ("SUPPORTS", "REFUTES")[(i // 10) % 2],
            "evidence": [
                {
                    "text": f"Ships have called at pier {i} of {TOWNS[i % 10]} since {1900 + i}.",
                    "stance": ("supports", "refutes")[(i // 10) % 2],
                }
            ],
        }
        for i in range(80)
    ]
    path = tmp_path / "ports.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_negatives_are_a_near_miss_and_a_random_passage_of_other_claims(stances):
    judged = read_judgements(stances)
    assert (judged.name, len(judged.pairs), judged.needs_negatives) == ("ports", 80, True)
    pairs = with_negatives(judged.pairs, seed=0)
    assert [pair.origin for pair in pairs] == ["judged", "near", "random"] * 80
    passage = {pair.claim: pair.pair.result.body for pair in judged.pairs}
    for pair in pairs:
        negative = pair.origin != "judged"
        assert (pair.stance == "neither", passage[pair.claim] != pair.pair.result.body) == (negative, negative)
    same_town = [
        pair.pair.instruction.output.split()[3] in pair.pair.result.body for pair in pairs if pair.origin == "near"
    ]
    assert sum(same_town) > 70, "near misses are about the same town"
    half = with_negatives(judged.pairs, seed=0, mix="half")
    assert len(half) == 160
    assert 25 < sum(pair.origin == "near" for pair in half) < 55


def test_no_passage_of_a_claim_is_its_negative(tmp_path):
    """Each claim has two passages as two rows, and each passage is also that of a claim in other words."""
    rows = [
        {"claim": claim, "evidence": evidence, "stance": "completely support"}
        for i, town in enumerate(TOWNS)
        for claim, evidence in (
            (f"Ships call at {town}.", f"{town} has had ships at pier {i} for years."),
            (f"SHIPS  call at {town}.", f"Another ship sails from {town} at {i} every day."),
            (f"The harbour of {town} is in use.", f"{town}  has had ships at pier {i} for years."),
        )
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = with_negatives(read_judgements(path).pairs, seed=0)
    towns = {pair.pair.result.body: town for town in TOWNS for pair in pairs if town in pair.pair.result.body}
    negatives = [pair for pair in pairs if pair.origin != "judged"]
    assert len(negatives) == 60
    for pair in negatives:
        about = towns[pair.pair.result.body]
        harbour = "harbour" in pair.pair.instruction.output
        own = pair.pair.result.body.startswith("Another") if harbour else False
        assert own or about not in pair.pair.instruction.output, pair
    alone = [
        pair
        for pair in read_judgements(path).pairs
        if TOWNS[0] in pair.pair.result.body and "pier" in pair.pair.result.body
    ]
    assert with_negatives(alone, seed=0) == alone, "both claims have the same passage, and there is no other"


def test_votes_are_the_targets_of_fit(shared):
    judged = read_judgements(shared / "climate-fever" / "climate-fever.jsonl")
    split = next(pair for pair in judged.pairs if len(set(pair.votes)) == 3)
    assert sum(split.targets) == pytest.approx(1)
    assert split.targets == tuple(split.votes.count(stance) / len(split.votes) for stance in STANCES)
    assert split.share == pytest.approx(split.targets[0] + split.targets[1])


def test_a_labeler_of_fit_has_three_classes_and_its_score_is_not_neither(stances, small_base, tmp_path):
    fitted = fit(data=stances, out=tmp_path / "f", base=str(small_base), epochs=1, max_length=64, dtype="float32")
    assert fitted == FittedLabeler.load(tmp_path / "f")
    assert 0 < fitted.held_out_f1_macro <= 1
    assert fitted.pairs == 2 * sum(in_first_part(pair.claim, 0) for pair in read_judgements(stances).pairs)
    assert not (tmp_path / "f" / "checkpoints").exists()
    labeler = load_labeler(fitted.name, LabelerOptions(dtype="float32"))
    assert labeler.describe()["measure"] == "relevance"
    supports = load_labeler(fitted.name, LabelerOptions(dtype="float32", measure="entailment"))
    pairs = [pair.pair for pair in read_judgements(stances).pairs[:4]]
    for score, support in zip(labeler.score(pairs), supports.score(pairs), strict=True):
        assert score.stance == pytest.approx(support.score / score.score, abs=1e-6)


def test_a_stopped_fit_ends_with_the_same_weights(stances, small_base, tmp_path, monkeypatch):
    options = {"data": stances, "base": str(small_base), "epochs": 2, "max_length": 64, "dtype": "float32"}
    whole = fit(out=tmp_path / "whole", **options)

    class Stop(Exception):
        pass

    save = fit_trainer.Ticking.on_step_end

    def stopping(self, args, state, control, **kwargs):
        if state.global_step > args.save_steps:
            raise Stop
        save(self, args, state, control, **kwargs)

    monkeypatch.setattr(fit_trainer.Ticking, "on_step_end", stopping)
    with pytest.raises(Stop):
        fit(out=tmp_path / "stopped", **options)
    monkeypatch.undo()
    (checkpoint,) = (tmp_path / "stopped" / "checkpoints").glob("checkpoint-*")
    shutil.copytree(checkpoint, checkpoint.with_name("checkpoint-99"))
    (checkpoint.with_name("checkpoint-99") / "trainer_state.json").unlink()  # as if it was stopped while writing
    with pytest.raises(UserError, match=r"another run \(epochs: 2 there, 3 now"):
        fit(out=tmp_path / "stopped", **{**options, "epochs": 3})
    again = fit(out=tmp_path / "stopped", **options)
    assert again.held_out_f1_macro == whole.held_out_f1_macro
    assert again.train_loss == whole.train_loss > 0
    first, second = (folder / "model.safetensors" for folder in (whole.folder, again.folder))
    assert first.read_bytes() == second.read_bytes()


def test_a_fit_that_was_stopped_before_it_removed_its_checkpoints_repeats_nothing(stances, small_base, tmp_path):
    options = {"data": stances, "base": str(small_base), "epochs": 1, "max_length": 64, "out": tmp_path / "run"}
    whole = fit(**options)
    (tmp_path / "run" / "checkpoints" / "checkpoint-1").mkdir(parents=True)  # with its weights removed already
    (tmp_path / "run" / "checkpoints" / "checkpoint-1" / "trainer_state.json").write_text("{}")
    assert fit(**options) == whole
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("refutes", [0.9, 0.1], ids=["as refutes", "as supports"])
def test_without_stances_a_checkpoint_is_chosen_by_what_is_informative(refutes):
    """Such judgements give supports and refutes half of the weight each, so that either is right."""
    rows = [
        {"result": str(i), "statement": "", "label": (0.0, 0.0, 1.0) if i % 2 else (0.5, 0.5, 0.0)} for i in range(8)
    ]

    class Separates:
        def predict(self, pairs, **_):
            return np.array([(0, 0, 1) if int(result) % 2 else (1 - refutes, refutes, 0) for result, _ in pairs])

    assert fit_trainer.HeldOutF1(rows)(Separates()) == {"held_out_f1_macro": 1.0}


@pytest.mark.parametrize("refutes", [0.51, 0.49], ids=["as refutes", "as supports"])
def test_beside_stances_a_row_without_one_chooses_no_checkpoint_by_it(refutes):
    targets = [(0.5, 0.5, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)]
    rows = [{"result": str(i), "statement": "", "label": targets[i % 4]} for i in range(16)]

    class Reads:
        def predict(self, pairs, **_):
            return np.array([(1 - refutes, refutes, 0) if int(i) % 4 == 0 else targets[int(i) % 4] for i, _ in pairs])

    assert fit_trainer.HeldOutF1(rows)(Reads()) == {"held_out_f1_macro": 1.0}


def test_audit_reports_on_no_claim_of_the_share_that_was_fitted_on(stances, small_base, tmp_path):
    with pytest.raises(UserError, match=r"`share` should be from 0\.5 to below 1, not 1"):
        fit(data=stances, out=tmp_path / "f", share=1.0)
    fitted = fit(data=stances, out=tmp_path / "f", base=str(small_base), epochs=1, max_length=64, share=0.8)
    measured = audit(data=stances, labeler=[fitted.name, "overlap"], out=tmp_path / "a")
    claims = {pair.claim for pair in read_judgements(stances).pairs}
    unseen = {claim for claim in claims if not in_first_part(claim, 0, 0.8)}
    assert 5 < len(unseen) < sum(not in_first_half(claim, 0) for claim in claims)
    assert measured.claims_reported == len(unseen)
    assert measured.strata == ["near", "random"]
    row = measured.row(fitted.name, "near")
    assert (row.n, row.figures["stance_auroc"] is not None) == (2 * len(unseen), True)
    assert "stance_auroc" not in measured.row("overlap", "near").figures
    rows = [json.loads(line) for line in (tmp_path / "a" / "judgements.jsonl").read_text().splitlines()]
    assert [row["origin"] for row in rows[:3]] == ["judged", "near", "random"]
    (tmp_path / "votes.csv").write_text("claim,evidence,verdict\n" + "".join(f"C{i},E{i},{i % 2}\n" for i in range(20)))
    columns = JudgementColumns(judgement="verdict")
    options = {"base": str(fitted.folder), "epochs": 1, "max_length": 64, "columns": columns}
    again = fit(data=tmp_path / "votes.csv", out=tmp_path / "g", **options)
    assert audit(data=stances, labeler=[again.name], out=tmp_path / "b").claims_reported == len(unseen)
    options["base"] = str(again.folder)
    both = fit(data=stances, out=tmp_path / "h", seed=1, **{**options, "columns": JudgementColumns()})
    with pytest.raises(
        UserError, match=r"was fitted on halves of these claims with `seed` \[0, 1\]; no claims are left"
    ):
        audit(data=stances, labeler=[both.name], out=tmp_path / "c")
    with pytest.raises(UserError, match="was fitted with `seed` 0"):
        audit(data=stances, labeler=[again.name], out=tmp_path / "c", seed=1)


def test_judgements_in_json_may_be_numbers_and_truth_values(tmp_path):
    table = tmp_path / "pairs.jsonl"
    rows = [{"claim": f"Claim {i}", "evidence": "Text", "said": said} for i, said in enumerate((0, False, 1, True))]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    judged = read_judgements(table, JudgementColumns(judgement="said"))
    assert [pair.stance for pair in judged.pairs] == ["neither", "neither", "informative", "informative"]


def test_any_table_of_pairs_is_audited_by_its_columns(tmp_path):
    table = tmp_path / "pairs.csv"
    words = ("backs it", "NEI", "contradiction")
    lines = [f"The {town} mill grinds {i},Mill {i},{town} grinds,{words[i % 3]}" for i, town in enumerate(TOWNS * 6)]
    table.write_text("sentence,head,passage,verdict\n" + "\n".join(lines) + "\n")
    names = {"judgement": "verdict", "claim": "sentence", "result": "passage", "title": "head"}
    columns = JudgementColumns(**names, supports=("Backs it",))
    judged = read_judgements(table, columns)
    assert [pair.stance for pair in judged.pairs[:3]] == ["supports", "neither", "refutes"]
    assert judged.pairs[0].pair.result.text == "Mill 0. Aberdeen grinds"
    measured = audit(data=table, labeler=["overlap"], out=tmp_path / "a", columns=columns)
    assert (measured.data, measured.pairs, measured.strata) == ("pairs", 60, ["official"])
    with pytest.raises(UserError, match="line 2: 'backs it' in column 'verdict' has no meaning yet"):
        read_judgements(table, JudgementColumns(**names))
    with pytest.raises(UserError, match="line 2: no column 'claim'"):
        read_judgements(table, JudgementColumns(judgement="verdict"))
    with pytest.raises(UserError, match="for another table say `judgement_column`"):
        read_judgements(table)
