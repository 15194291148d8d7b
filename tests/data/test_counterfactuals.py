"""Counterfactual pairs: neither the claim nor the passage alone tells the label."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sailkit.data.build_task import build_task
from sailkit.data.counterfactuals import counterfactual_examples
from sailkit.data.exports import read_examples
from sailkit.errors import UserError
from sailkit.records import Example, SearchResult, original_id

TOWNS = ["Arles", "Bergen", "Cadiz", "Delft", "Esbjerg", "Faro", "Ghent", "Hamm", "Ulm"]


def example(number: int, claim: str, passage: str, label: str = "yes") -> Example:
    return Example(str(number), claim, label, (SearchResult(passage, title="Chapel"),), (label,), f"group {number}")


def chapels(years: list[int]) -> list[Example]:
    return [
        example(n, f"Chapel number {n} was built in {year}.", f"Masons finished it in {year}; in {year} it opened.")
        for n, year in enumerate(years)
    ]


def labels_by(pairs: list[tuple[str, str, str | None]], column: int) -> dict[str, set[str | None]]:
    labels = defaultdict(set)
    for pair in pairs:
        labels[pair[column]].add(pair[2])
    return labels


def triples(made: list[Example]) -> list[list[Example]]:
    return [made[start : start + 3] for start in range(0, len(made), 3)]


def pairs_of(examples: list[Example]) -> list[tuple[str, str, str | None]]:
    return [(item.text, item.evidence[0].body, item.label) for item in examples]


@given(st.lists(st.integers(1000, 2029), min_size=1, max_size=8))
def test_each_claim_is_true_with_one_passage_and_false_with_another(years):
    originals = chapels(years)
    made = counterfactual_examples(originals, "yes", "no", seed=0)
    assert len(made) == 3 * len(originals)
    for original, others in zip(originals, triples(made), strict=True):
        square = pairs_of([original, *others])
        for column in (0, 1):
            assert [*labels_by(square, column).values()] == [{"yes", "no"}, {"yes", "no"}]
        assert {item.group for item in others} == {original.group}
        assert {original_id(item.id) for item in others} == {original.id}


def test_the_label_follows_from_the_replaced_span():
    (original,) = chapels([1650])
    claim, passage, both = counterfactual_examples([original], "yes", "no", seed=0)
    year = claim.text.split()[-1].rstrip(".")
    assert 1 <= abs(int(year) - 1650) <= 30
    assert (claim.evidence[0].body, claim.label) == (original.evidence[0].body, "no")
    assert (passage.text, passage.label) == (original.text, "no")
    assert (both.text, both.label) == (claim.text, "yes")
    assert both.evidence == passage.evidence
    assert passage.evidence[0].body == f"Masons finished it in {year}; in {year} it opened."
    assert all(item.stances == (item.label,) for item in (claim, passage, both))


def test_a_name_is_replaced_by_one_seen_after_the_same_word():
    originals = [example(n, f"Her chapel stands in {t}.", f"It is found in {t} today.") for n, t in enumerate(TOWNS)]
    for claim, _, _ in triples(counterfactual_examples(originals, "yes", "no", seed=0)):
        assert claim.text.removeprefix("Her chapel stands in ").rstrip(".") in TOWNS
    assert not counterfactual_examples(originals[:3], "yes", "no", seed=0)  # too few to choose from


def test_claims_without_a_shared_span_and_refuted_claims_are_left_out():
    originals = [
        example(1, "Chapel bells rang in 1650.", "Masons finished it in 1651."),
        example(2, "Chapel bells rang in 1650.", "Bells rang in 1650.", label="no"),
        example(3, "Chapel bells rang in 165.", "Bells rang in 1650."),  # a part of a number is no match
        example(4, "1650 is a year.", "A year: 1650."),  # the subject of a claim stays
    ]
    assert not counterfactual_examples(originals, "yes", "no", seed=0)


def test_replacements_depend_on_the_seed_and_the_id_alone():
    originals = chapels(list(range(1600, 1630)))
    made = counterfactual_examples(originals, "yes", "no", seed=0)
    again = counterfactual_examples(originals[::-1], "yes", "no", seed=0)
    assert sorted(made, key=lambda item: item.id) == sorted(again, key=lambda item: item.id)
    assert made != counterfactual_examples(originals, "yes", "no", seed=1)


@pytest.mark.long
def test_fever_gives_claims_that_need_their_passage(shared: Path, tmp_path: Path):
    built = build_task(
        "fever",
        data=shared / "stance/fever.jsonl",
        out=tmp_path / "rows",
        shares="0,1",
        supported=1,
        counterfactuals="added",
        limit=1500,
    )
    assert built.card["claim_auroc"] < 0.6
    rows = read_examples(tmp_path / "rows" / "train.jsonl")
    made = [row for row in rows if "counterfactual" in row.id]
    assert 0.2 < len(made) / len(rows) < 0.7
    assert {row.judgements for row in made} == {("informative",)}


def test_counterfactuals_alone_need_no_balancing(shared: Path, tmp_path: Path):
    data = tmp_path / "fever.jsonl"
    rows = (shared / "stance/fever.jsonl").read_text("utf-8").splitlines(keepends=True)
    data.write_text("".join(rows[:1500]), "utf-8")
    options = {"shares": "0,1", "supported": 1.0, "match_wording": False, "held_out": 0.0}
    built = build_task("fever", data=data, out=tmp_path / "rows", counterfactuals="only", **options)
    kinds = Counter(row.id.split("/")[1] for row in read_examples(tmp_path / "rows" / "train.jsonl"))
    dropped = (tmp_path / "rows" / "dropped.jsonl").read_text("utf-8").splitlines()
    assert {json.loads(line)["reason"] for line in dropped} == {"not drawn"}  # people judged the evidence of all
    assert kinds["SUPPORTS"] > 50
    assert len(set(kinds.values())) == 1, kinds  # each original with its three counterfactuals
    assert len(set(built.card["labels"].values())) == 1


def test_the_order_of_the_labels_does_not_matter(tmp_path: Path):
    rows = [
        {"id": f"{town}{year}", "claim": f"The bridge of {town} opened in {year}.", "label": stance.upper(),
         "evidence": [{"text": f"{town} opened its bridge in {year}.", "stance": stance}]}
        for town in TOWNS for year, stance in ((1940, "supports"), (1951, "refutes"))
    ]  # fmt: skip
    data, task = tmp_path / "fever.jsonl", tmp_path / "own.yaml"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    own = "extends: fever\nlabels: {REFUTES: {answer: Wrong}, SUPPORTS: {answer: Correct}}\ndefault_labels: []\n"
    own += "undecided_label: null\nprotocols: {direct: {wordings: {plain: '{text} {answers}?'}}}\n"
    task.write_text(own)
    options = {"counterfactuals": "only", "match_wording": False, "shares": "0,1", "supported": 1.0, "held_out": 0.0}
    build_task(str(task), data=data, out=tmp_path / "rows", **options)
    originals = [row for row in read_examples(tmp_path / "rows" / "train.jsonl") if "counterfactual" not in row.id]
    assert {row.response for row in originals} == {"Correct"}
    assert {row.id.split("/")[0][-4:] for row in originals} == {"1940"}
    fields = "id: id, text: claim, label: label, evidence: {list: evidence, body: text, stance: stance, stances: "
    task.write_text(own + f"data: {{fields: {{{fields}{{yes: SUPPORTS, unsupported: REFUTES}}}}}}}}\n")
    with pytest.raises(UserError, match="let the `stances` of its YAML map `supports` to REFUTES or SUPPORTS"):
        build_task(str(task), data=data, out=tmp_path / "unnamed", **options)


def test_a_rewritten_claim_is_on_the_side_of_the_claim_that_it_equals(tmp_path: Path):
    rows = []
    for town in ("Lunden", "Marow", "Tessin", "Orby", "Calm", "Varn", "Ebb", "Nost"):
        for year, stance in ((1940, "supports"), (1951, "supports"), (1962, "refutes"), (1973, "refutes")):
            claim, passage = f"The bridge of {town} opened in {year}.", f"{town} opened its bridge in {year}."
            evidence = [{"text": passage, "stance": stance}]
            rows.append({"id": f"{town}{year}", "claim": claim, "label": stance.upper(), "evidence": evidence})
    data = tmp_path / "fever.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    options = {"shares": "0,1", "supported": 1.0, "match_wording": False, "held_out": 0.5, "distractors": ["random"]}
    build_task("fever", data=data, out=tmp_path / "rows", counterfactuals="added", **options)
    claims = []
    for name in ("train.jsonl", "held_out.jsonl"):
        asked = (row.instruction for row in read_examples(tmp_path / "rows" / name))
        claims.append({re.search(r"The \w+ of \w+ opened in \d+", text)[0] for text in asked})
    assert min(map(len, claims)) > 5
    assert not claims[0] & claims[1]


def test_a_task_without_such_claims_is_refused(tmp_path: Path):
    data = tmp_path / "fever.jsonl"
    rows = [
        {
            "id": stance,
            "claim": f"Otters {verb}.",
            "label": stance.upper(),
            "evidence": [{"text": "x", "stance": stance}],
        }
        for verb, stance in (("swim", "supports"), ("fly", "refutes"))
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    with pytest.raises(UserError, match="no claim shares a name, number or year"):
        build_task("fever", data=data, out=tmp_path / "rows", counterfactuals="added")


def test_collected_claims_stay_on_their_side_of_the_split(tmp_path: Path):
    """A claim that is rewritten into another one, as is frequent where the years are dense, joins no groups."""
    words = ["in", "by"]
    rows = [
        {"id": f"{year}", "claim": f"The mill was built in {year}.", "label": label, "evidence": [
            {"text": f"Masons built it {words[year % 2]} {year}.", "stance": label.lower()}]}
        for year in range(1700, 1780) for label in ["SUPPORTS" if year % 3 else "REFUTES"]
    ]  # fmt: skip
    (tmp_path / "mills.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"data": tmp_path / "mills.jsonl", "shares": "0,1", "match_wording": False, "held_out": 0.2}
    groups = {}
    for kind in ("none", "added"):
        build_task("fever", counterfactuals=kind, out=tmp_path / kind, **options)
        groups[kind] = json.loads((tmp_path / kind / "groups.json").read_text())
    for row, group in groups["added"].items():
        assert group == original_id(row.split("/")[0])
    assert any("counterfactual" in row for row in groups["added"])
