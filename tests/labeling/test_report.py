"""The page of an audit: it says what the figures say, no more, and nothing in it becomes markup or a broken table."""

from __future__ import annotations

import json
import re
import tempfile
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sailkit import runs
from sailkit.errors import UserError
from sailkit.labeling.audit import audit
from sailkit.labeling.audit_file import AUDIT, AUDIT_FIGURES
from sailkit.labeling.audit_results import Audit
from sailkit.rendering.numbers import figure, signed
from sailkit.reporting import WrittenReport, report
from test_reporting import HOSTILE, Page, good, run_folder

BM25 = "bm25 score"


def found(areas: dict[str, float], noise: float = 0.01, texts: tuple[str, str] = ("a claim", "a result")) -> dict:
    """An audit in two strata; labelers have the given AUROC, and all intervals the same width."""
    areas = {BM25: 0.55, **areas}

    def row(name: str, stratum: str, area: float) -> dict:
        values = {key: area + k / 1000 for k, key in enumerate(AUDIT_FIGURES)}
        spans = {f"{key}{end}": x + d for key, x in values.items() for end, d in (("_low", -noise), ("_high", noise))}
        head = {"labeler": name, "stratum": stratum, "n": 1200, "without_score": 0, "informative_share": 0.6}
        rest = {"threshold": 0.4, "default_threshold": None if name == BM25 else 0.5, "majority_accuracy": 0.6}
        return {**head, **rest, **values, **spans}

    def difference(first: str, second: str, stratum: str) -> dict:
        gap = areas[second] - areas[first]
        case = {"claim": texts[0], "result": texts[1], "human_share": 1.0, "first": 0.123, "second": 0.987}
        return {
            "first": first, "second": second, "stratum": stratum, "agreement_kappa": 0.321, "examples": [case],
            "auroc_difference": gap, "auroc_difference_low": gap - noise, "auroc_difference_high": gap + noise,
        }  # fmt: skip

    strata = ("unanimous", "official")
    return {
        "data": "climate-fever",
        "data_sha256": "c0ffee" * 10 + "c0ff",
        "pairs_in_all": 2500,
        "claims": 500,
        "left_out": {"doubled": 3, "contradicting": 7},
        "audits": [row(name, stratum, area) for name, area in areas.items() for stratum in strata],
        "differences": [difference(*pair, stratum) for pair in combinations(areas, 2) for stratum in strata],
        "human_kappa": 0.398,
        "labelers": {name: {"labeler": name, "version": 1} for name in areas if name != BM25},
        "seed": 0,
    }


def folder_of(folder: Path, content: dict) -> Path:
    folder.mkdir(parents=True)
    (folder / AUDIT).write_text(json.dumps(content))
    return folder


def made(tmp_path: Path, *contents: dict, **options) -> tuple[Page, str, WrittenReport]:
    folders = [folder_of(tmp_path / f"audit-{i}", content) for i, content in enumerate(contents)]
    told = report(*folders, out=tmp_path / "out.html", **options)
    return Page(told.html), told.markdown.read_text("utf-8"), told


@pytest.mark.parametrize(
    ("areas", "words"),
    [
        ({"overlap": 0.6, "similarity": 0.7}, "similarity judges better than overlap"),
        ({"overlap": 0.6, "similarity": 0.605}, "Cannot tell whether similarity or overlap judges better"),
        ({"judge:a": 0.7, "judge:b": 0.699, "similarity": 0.6}, "judge:a judges better than similarity"),
        ({"judge:a": 0.7, "judge:b": 0.6}, "judge:a judges better than judge:b"),
        ({"overlap": 0.6}, "overlap judges better than a BM25 score"),
        ({"overlap": 0.53}, "overlap judges worse than a BM25 score"),
        ({"overlap": 0.55}, "Cannot tell whether overlap or a BM25 score judges better"),
        ({"overlap": 0.505, "similarity": 0.4}, "Cannot tell whether overlap judges better than chance"),
        ({"overlap": 0.4, "similarity": 0.3}, "overlap judges worse than chance"),
    ],
)
def test_the_headline_claims_no_more_than_the_interval(tmp_path, areas, words):
    page, markdown, told = made(tmp_path, found(areas))
    assert told.verdict == words
    assert f"Verdict {words}" in page.text
    assert f"**{words}**." in markdown


def test_what_the_best_cannot_be_told_from_is_named(tmp_path):
    page, _, _ = made(tmp_path, found({"judge:a": 0.7, "judge:b": 0.699, "similarity": 0.6}))
    words = (
        "judge:a is better than a BM25 score. judge:a cannot be told apart from judge:b. It was chosen as the best of 3"
    )
    assert words in page.text


def test_few_claims_get_no_verdict_and_the_machine_is_named(tmp_path):
    content = found({"good": 0.9, "poor": 0.6})
    machines = {"good": {"device": "cpu", "dtype": "float32"}, "poor": {}}
    for claims, words in (
        (19, "19 claims are too few to tell how well good judges"),
        (20, "good judges better than poor"),
    ):
        page, markdown, told = made(
            tmp_path / str(claims), {**content, "claims_reported": claims, "machines": machines}
        )
        assert told.verdict == words
        of_stratum = [{**row, "n_claims": claims} for row in content["audits"]]
        _, _, told = made(tmp_path / f"stratum-{claims}", {**content, "claims_reported": 500, "audits": of_stratum})
        assert told.verdict == words
        assert "good in float32 on cpu" in page.text
        assert "good in float32 on cpu" in markdown


def test_every_figure_is_that_of_the_file(tmp_path):
    content = found({"overlap": 0.62, "similarity": 0.73})
    page, markdown, _ = made(tmp_path, content)
    for words in (page.text, markdown):
        for row in content["audits"]:
            for name in AUDIT_FIGURES:
                assert figure(row[name]) in words
                assert f"{figure(row[f'{name}_low'])} to {figure(row[f'{name}_high'])}" in words
        for value in ("0.400", "0.500", "0.321", "0.398", "0.123", "0.987", "1,200", "2,500", "c0ffeec0ffee"):
            assert value in words
        assert "doubled 3, contradicting 7" in words
    assert f"| AUROC | {figure(0.73)} ({figure(0.72)} to {figure(0.74)}) | {figure(0.62)} (" in markdown
    gap = f"**{signed(0.11)}** ({signed(0.1)} to {signed(0.12)})"
    assert f"| similarity minus overlap | {gap} | {gap} |" in markdown
    # The best comes first, whatever the order of the file; so its score does in the examples.
    assert "| a claim | a result | 1.000 | 0.987 | 0.123 |" in markdown


def test_a_difference_is_turned_with_its_interval_and_its_examples(tmp_path):
    content = found({"similarity": 0.73, "overlap": 0.62})
    read = Audit.load(folder_of(tmp_path / "a", content))
    gap = read.difference("similarity", "overlap", "unanimous")
    assert (gap.auroc.value, gap.auroc.low, gap.auroc.high) == pytest.approx((0.11, 0.10, 0.12))
    assert gap.sign == 1
    assert (gap.first, gap.second) == ("overlap", "similarity")
    assert (gap.examples[0].second, gap.examples[0].first) == (0.123, 0.987)
    back = read.difference("overlap", "similarity", "unanimous")
    assert back == gap.swapped()
    assert back.sign == -1


def test_audits_of_several_data_sets_stand_below_each_other(tmp_path):
    other = {**found({"overlap": 0.6}), "data": "factcheck-gpt"}
    page, markdown, told = made(tmp_path, found({"similarity": 0.7}), other, title="Two & more")
    assert told.verdict == "similarity judges better than a BM25 score; overlap judges better than a BM25 score"
    assert "Two & more" in page.text
    assert page.text.index("Figures climate-fever") < page.text.index("Figures factcheck-gpt")
    assert markdown.count("\n## factcheck-gpt\n") == 1
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(set(ids)) == len(ids)


def hostile(texts: list[str]) -> dict:
    names = [f"{text}{i}" for i, text in enumerate((texts * 2)[:2])]
    return found({names[0]: 0.7, names[1]: 0.6}, texts=(texts[-1], texts[len(texts) // 2]))


def check_nothing_escapes(folder: Path, texts: list[str]) -> None:
    plain, _, _ = made(folder / "plain", hostile(["word"]))
    page, markdown, _ = made(folder / "hostile", hostile(texts))
    assert page.tags == plain.tags
    assert [a[:2] for a in page.attributes] == [a[:2] for a in plain.attributes]
    for table in re.findall(r"(?:^\|.*\n)+", markdown, re.M):
        assert len({len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in table.splitlines()}) == 1, table
    body = markdown.split("-->", 1)[1]
    assert "<" not in body
    assert not re.search(r"(?<!\\)(?:\\\\)*[`\[\]]", body)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_stay_texts(tmp_path, text):
    check_nothing_escapes(tmp_path, [text])


@settings(max_examples=15, deadline=None)
@given(texts=st.lists(st.text(st.characters(), max_size=60), min_size=1, max_size=4))
def test_any_text_stays_text(texts):
    with tempfile.TemporaryDirectory() as folder:
        check_nothing_escapes(Path(folder), texts)


def test_the_file_loads_nothing_and_runs_nothing(tmp_path):
    page, _, _ = made(tmp_path, found({"overlap": 0.6}))
    assert page.tags["script"] == 0
    assert not [a for a in page.attributes if a[1] in ("src", "href", "style", "action") or a[1].startswith("on")]
    policy = next(v for _, name, v in page.attributes if name == "content" and v.startswith("default-src"))
    assert re.fullmatch(r"default-src 'none'; style-src 'sha256-[^']+'; base-uri 'none'; form-action 'none'", policy)


def damage(content: dict, what: str) -> str:
    """Spoil it; the whole file as text."""
    if what == "cut":
        return json.dumps(content)[:-40]
    if what == "list":
        return "[]"
    if what == "no labelers":
        content["labelers"] = {}
    elif what == "figure":
        del content["audits"][1]["ece_low"]
    elif what == "text":
        content["audits"][2]["kappa"] = "0.9"
    elif what == "nan":
        content["audits"][2]["auroc"] = float("nan")
    elif what == "row":
        content["audits"].pop()
    elif what == "difference":
        content["differences"].pop(0)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("cut", r"audit\.json: not valid JSON"),
        ("list", r"audit\.json: expected a JSON object, found list"),
        ("no labelers", r"not what sailkit audit writes: labelers: .*at least 1 item"),
        ("figure", r"audits\.1: ece_low is missing; run the audit again"),
        ("text", r"audits\.2\.kappa: .*valid number"),
        ("nan", r"audit\.json: not valid JSON \(NaN is not a JSON number\)"),
        ("row", "no figures of 'similarity' in stratum 'official'"),
        ("difference", "no difference of 'bm25 score' and 'overlap' in stratum 'unanimous'"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, what, words):
    folder = folder_of(tmp_path / "a", {})
    (folder / AUDIT).write_text(damage(found({"overlap": 0.6, "similarity": 0.7}), what))
    with pytest.raises(UserError, match=words) as told:
        report(folder, out=tmp_path / "out.html")
    assert "\n" not in str(told.value)
    assert not (tmp_path / "out.html").exists()


def test_an_audit_goes_with_audits_only_and_has_no_options_of_sets(tmp_path):
    folder = folder_of(tmp_path / "a", found({"overlap": 0.6}))
    run = run_folder(tmp_path / "run", good())
    for sets in ((folder, run), (run, folder)):
        with pytest.raises(UserError, match=r"a is an audit and .*run is none"):
            report(*sets, out=tmp_path / "out.html")
    with pytest.raises(UserError, match=r"`task` is for sets of predictions; .*a is an audit"):
        report(folder, out=tmp_path / "out.html", task="hsd")
    with runs.open_run(tmp_path / "b", "audit", {}), pytest.raises(UserError, match="b is not finished"):
        report(tmp_path / "b", out=tmp_path / "out.html")


def test_what_audit_writes_is_what_the_page_reads(tmp_path):
    pytest.importorskip("bm25s")
    votes = [["SUPPORTS"] * 3, ["NOT_ENOUGH_INFO"] * 3, ["REFUTES", "REFUTES", "NOT_ENOUGH_INFO"]]
    rows = [
        {
            "claim_id": str(i),
            "claim": f"The sea level of bay {i} rises quickly",
            "evidences": [
                {"votes": v, "evidence": f"{'Sea level in bay' if k == i % 2 else 'A street near'} {i}, {k}",
                 "article": "Bay", "evidence_label": v[0]}
                for k, v in enumerate(votes)
            ],
        }
        for i in range(40)
    ]  # fmt: skip
    data = tmp_path / "votes.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    written = audit(data=data, labeler=["overlap"], out=tmp_path / "a")
    told = report(tmp_path / "a", out=tmp_path / "out.html")
    page = Page(told.html)
    assert figure(written.rows[3].figures["auroc"].value) in page.text
    assert written.data_sha256[:12] in page.text
    assert "Versions sailkit" in page.text
