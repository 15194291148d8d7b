"""The informative share corrected by an audit, against the truth of simulated data and through a build's card."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sailkit.errors import UserError
from sailkit.labeling.audit import audit
from sailkit.labeling.labels_file import Labels
from sailkit.labeling.load import load_labeler
from sailkit.labeling.ppi import corrected_share, ppi_mean
from sailkit.records import Judgement


def draw(rng, claims):
    """Groups of three results: what people say, and a labeler that calls far too many informative."""
    rates = np.repeat(rng.beta(1, 2, claims), 3)
    human = rng.random(3 * claims) < rates
    labeler = human | (rng.random(3 * claims) < 0.3)
    return human.astype(float), labeler.astype(float), [str(i // 3) for i in range(3 * claims)]


def test_the_corrected_share_covers_the_truth_where_the_labelers_own_share_does_not():
    rng = np.random.default_rng(0)
    covered, own = 0, []
    for _ in range(400):
        human, labeler, groups = draw(rng, 150)
        _, unlabelled, more = draw(rng, 600)
        estimate = ppi_mean((unlabelled, more), (human - labeler, groups))
        covered += estimate.low <= 1 / 3 <= estimate.high
        own.append(unlabelled.mean())
    assert 0.92 <= covered / 400 <= 0.98
    assert min(own) > 0.45


def test_few_claims_that_agree_leave_more_open_than_many():
    unlabelled = np.ones(2000), [str(i) for i in range(2000)]

    def corrected(claims, pairs):
        return ppi_mean(unlabelled, (np.zeros(claims * pairs), [str(i // pairs) for i in range(claims * pairs)]))

    one, five, many = corrected(1, 4), corrected(5, 1), corrected(500, 1)
    assert one.value == five.value == many.value == one.high == five.high == many.high == 1
    assert 0 <= one.low < 0.05 < 0.4 < five.low < 0.6 < 0.98 < many.low < 1


@pytest.fixture
def audited(tmp_path):
    rows = [
        {"claim": f"Bay {i} rises", "evidence": f"bay {i} rises {kind}", "stance": kind}
        for i in range(60)
        for kind in ("irrelevant", "refute")
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    audit(data=path, labeler=["overlap"], out=tmp_path / "audit")
    return tmp_path / "audit" / "audit.json"


def test_an_audit_corrects_the_labels_of_its_labeler_only(audited):
    judgement = Judgement(0.9, "informative", "judged", 0, None)
    labels = Labels({"labeler": "overlap"}, 0.5, ((judgement,) * 2,) * 50)
    estimate = corrected_share(audited, labels, 0.5)
    assert estimate.value == pytest.approx(0.5), "it calls all informative, and half of the audited are"
    assert corrected_share(audited, labels, 1.01).value == pytest.approx(0.5), "and none at a threshold above all"
    assert corrected_share(audited, Labels({"labeler": "similarity"}, 0.5, labels.judgements), 0.5) is None


def test_an_audit_of_the_same_name_with_another_measure_is_refused(audited, capsys):
    judgement = Judgement(0.9, "informative", "judged", 0, None)
    (scores,) = audited.parent.glob("overlap-*/manifest.json")
    manifest = json.loads(scores.read_text("utf-8"))
    description = manifest["settings"]["labeler"]
    assert corrected_share(audited, Labels(description, 0.5, ((judgement,),)), 0.5) is not None
    assert capsys.readouterr().err == ""
    other = Labels({**description, "version": 0, "dtype": "bfloat16"}, 0.5, ((judgement,),))
    with pytest.raises(UserError, match="overlap was audited with another version than it labelled with"):
        corrected_share(audited, other, 0.5)
    assert corrected_share(audited, Labels({"labeler": "overlap"}, 0.5, ((judgement,),)), 0.5) is not None
    assert "cannot check that overlap was audited with the same version" in capsys.readouterr().err


def test_an_audit_of_a_mean_corrects_its_labels(audited, capsys):
    """It is recognised on a machine with another number format, and not if a member changed."""
    folder = audited.parent.parent / "mean"
    name = "overlap+similarity"
    audit(data=audited.parent.parent / "pairs.jsonl", labeler=[name], out=folder)
    described = {"labeler": name, **load_labeler(name).describe()}
    overlap, similarity = described["members"]
    judgement = Judgement(0.9, "informative", "judged", 0, None)

    def corrected(**changes: object) -> object:
        members = [overlap, {**similarity, **changes}]
        return corrected_share(
            folder / "audit.json", Labels({**described, "members": members}, 0.5, ((judgement,),)), 0.5
        )

    assert corrected().value == corrected(dtype="bfloat16").value == pytest.approx(0.5)
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match="was audited with another similarity: weights_sha256 than it labelled with"):
        corrected(weights_sha256="b")
