"""The page of distillations: it says what the run folders say, no more, and nothing in them becomes markup."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from sailkit import runs
from sailkit.distillation.fidelity import means
from sailkit.distillation.results import SUM_NAMES, Distillation, compare_students, estimates
from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.rendering.numbers import figure
from sailkit.reporting import WrittenReport, report
from sailkit.stats.intervals import proportion
from test_reporting import HOSTILE, Page, good, run_folder
from training.test_report import FIGURES as TRAINED
from training.test_report import history

TARGETS = {"positions": 4000, "aligned": 0.9312, "conditioned": 0.0515, "without_target": 0.0173,
           "captured_mass": 0.9971, "identical_tokens": 0.8848, "student_bytes_per_token": 4.31,
           "teacher_bytes_per_token": 3.62, "rows_without_teacher": 1}  # fmt: skip


def row(who: str, i: int, kl: float, agreeing: int, positions: int = 50) -> dict:
    aimed = positions - i % 3
    return {
        "model": who, "id": f"r{i}", "kl": kl * aimed * (0.8 + 0.1 * (i % 5)), "aimed": aimed,
        "cross_entropy": (kl + 1 + i % 2) * positions, "positions": positions, "agreeing": agreeing - i % 4,
        "teacher_flags": [True, i % 3 == 0], "flags": [i % (4 if who == "base" else 7) > 0, i % 2 == 0],
    }  # fmt: skip


def distilled(
    folder: Path, text: str = "", *, before: float = 2.0, after: float = 0.9, agreeing: int = 35, rows: int = 20,
    positions: int = 50, teacher: str = "ab", targets: bytes = b"t", words: str = "hot", **changes,
) -> Path:  # fmt: skip
    """A finished run as distill leaves it, with a text in every place that takes one from outside."""
    recipe = {"method": "logits", "teacher": f"big{text}", "student": {"model": f"small{text}", "data": [f"d{text}"]},
              "teacher_style": None, "student_layers": None,
              "settings": {"k": 64, "top_p": 0.999, "min_mass": 0.1}}  # fmt: skip
    settings = {"recipe": recipe, "cache": None, "teacher_weights_sha256": teacher * 32, "data_sha256": "cd" * 32}
    with runs.open_run(folder, "distill", settings):
        pass
    said = [row("base", i, before, 20, positions) for i in range(rows)]
    said += [row("tuned", i, after, agreeing, positions) for i in range(rows)]
    (folder / "fidelity.jsonl").write_text("".join(json.dumps(one) + "\n" for one in said))
    figures = {
        "method": "logits", "teacher": f"big{text}", "student": f"small{text}", "student_layers": None,
        "training_targets": TARGETS, "held_out_targets": {**TARGETS, "positions": 999},
        "base": means(said[:rows]), "tuned": means(said[rows:]),
        "training": {**TRAINED, "about": f"A run.{text}"}, **changes,
    }  # fmt: skip
    jsonl.write_json(folder / "metrics.json", figures)
    (folder / "data").mkdir()
    held_out = [{"id": f"r{i}", "instruction": f"How {words}?", "style": "chat"} for i in range(rows)]
    (folder / "data" / "held_out.jsonl").write_text("".join(json.dumps(one) + "\n" for one in held_out))
    (folder / "targets-held_out.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}" + targets)
    (folder / "student").mkdir()
    (folder / "student" / "history.jsonl").write_text(
        "".join(json.dumps({**one, "kl": 1.0} if "loss" in one else one) + "\n" for one in history())
    )
    jsonl.write_json(folder / "student" / "metrics.json", {**TRAINED, "base_kl": 2.0})
    card = {"n_train": 60, "style": f"chat{text}", "flag_messages": {"x": [f"only 12.0% are informative{text}"]}}
    jsonl.write_json(folder / "student" / "data.json", {"data": [{"data": f"d{text}", "card": card}]})
    return folder


def made(*folders: Path, out: Path, **options) -> tuple[Page, str, WrittenReport]:
    told = report(*folders, out=out, **options)
    return Page(told.html), told.markdown.read_text("utf-8"), told


def test_figures_are_those_of_the_run(tmp_path):
    folder = distilled(tmp_path / "run")
    page, markdown, told = made(folder, out=tmp_path / "out.html")
    figures = json.loads((folder / "metrics.json").read_text())
    for words in (page.text, markdown):
        for who in ("base", "tuned"):
            for value in figures[who].values():
                assert figure(value) in words
        for said in ("0.931", "0.051", "0.017", "0.997", "0.885", "4.31", "3.62", "999", "settings.k".replace("_", "")):
            assert said in words
        for said in ("Distillation of big into small", "abababababab", "only 12.0% are informative",
                     "an approximation", "20 rows they are narrower"):  # fmt: skip
            assert said in words
    assert told.verdict in page.text
    assert page.tags["script"] == 0
    assert not [a for a in page.attributes if a[1] in ("src", "href", "style", "action") or a[1].startswith("on")]


def test_intervals_hold_what_they_are_of_and_change_with_nothing_but_the_seed(tmp_path):
    run = Distillation.load(distilled(tmp_path / "run"))
    found = estimates(run)
    for who in ("base", "tuned"):
        for name, one in found[who].items():
            assert one.low < one.value < one.high
            assert one.value == pytest.approx(run.metrics[who][name])
    change = found["change"]["kl"]
    assert change.value == pytest.approx(run.metrics["tuned"]["kl"] - run.metrics["base"]["kl"])
    # Rows that are hard stay hard: the paired interval is the narrower one.
    widths = [one.high - one.low for one in (change, found["base"]["kl"], found["tuned"]["kl"])]
    assert widths[0] < widths[1] + widths[2]
    assert estimates(run) == found
    assert estimates(run, 1) != found


def test_what_never_differs_leaves_no_more_open_than_there_is(tmp_path):
    """Of shares between 0 and 1 a difference is between -1 and 1; of kappa between -2 and 2."""
    known = {"positions": 10, "aimed": 10, "agreeing": 10, "kl": 1, "cross_entropy": 20, "both": 1, "neither": 1}
    row = tuple(float(known.get(name, 0)) for name in SUM_NAMES)
    rows = {f"row-{n}": row for n in range(6)}
    run = Distillation(tmp_path, {})
    vars(run)["sums"] = {"base": rows, "tuned": rows}
    change = estimates(run)["change"]
    open_ = proportion(0, 6).high
    for name, most in (("agreement", 1), ("verification_agreement", 1), ("verification_kappa", 2)):
        gap = change[name]
        assert (gap.value, gap.low, gap.high) == pytest.approx((0, -2 * most * open_, 2 * most * open_)), name


def test_verification_has_intervals_of_the_very_figures(tmp_path):
    """Against scikit-learn's kappa, on rows that are drawn here one by one."""
    run = Distillation.load(distilled(tmp_path / "run"))
    rows = [json.loads(line) for line in (tmp_path / "run" / "fidelity.jsonl").read_text().splitlines()]

    def kappa(own):
        pairs = [pair for one in own for pair in zip(one["teacher_flags"], one["flags"], strict=True)]
        return cohen_kappa_score(*zip(*pairs, strict=True))

    found = estimates(run)
    dice = np.random.default_rng(0)
    draws = [dice.integers(0, 20, 20) for _ in range(400)]
    for who, own in (("base", rows[:20]), ("tuned", rows[20:])):
        one = found[who]["verification_kappa"]
        assert one.value == pytest.approx(kappa(own)) == pytest.approx(run.metrics[who]["verification_kappa"])
        drawn = [kappa([own[i] for i in draw]) for draw in draws]
        assert [one.low, one.high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.06)
    # Before and after on the same draws.
    gap = found["change"]["verification_kappa"]
    drawn = [kappa([rows[20 + i] for i in draw]) - kappa([rows[i] for i in draw]) for draw in draws]
    assert [gap.low, gap.high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.06)


def test_a_run_whose_teacher_flagged_nothing_has_no_such_figures(tmp_path):
    folder = distilled(tmp_path / "run")
    rows = [json.loads(line) for line in (folder / "fidelity.jsonl").read_text().splitlines()]
    for one in rows:
        del one["teacher_flags"], one["flags"]
    (folder / "fidelity.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    figures = json.loads((folder / "metrics.json").read_text())
    with pytest.raises(UserError, match=r"does not fit fidelity\.jsonl"):
        Distillation.load(folder)
    jsonl.write_json(folder / "metrics.json", figures | {"base": means(rows[:20]), "tuned": means(rows[20:])})
    assert estimates(Distillation.load(folder))["change"]["verification_kappa"] is None
    assert "flagged as the teacher" not in made(folder, out=tmp_path / "out.html")[0].text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, r"KL to the teacher fell \(.*agrees with its likeliest token more often \(.* on 20 held-out rows"),
        ({"after": 4.0, "agreeing": 9}, r"KL to the teacher rose \(.*likeliest token less often"),
        ({"after": 2.0, "agreeing": 20}, r"cannot be told whether KL to the teacher fell.*as often, as far as can be"),
        ({"rows": 4}, "4 held-out rows are too few to tell"),
    ],
)
def test_the_headline_claims_no_more_than_the_intervals(tmp_path, options, words):
    page, _, told = made(distilled(tmp_path / "run", **options), out=tmp_path / "out.html")
    assert re.search(words, told.verdict)
    assert told.verdict in page.text


def test_a_run_that_measured_nothing_says_so(tmp_path):
    folder = distilled(tmp_path / "run")
    figures = json.loads((folder / "metrics.json").read_text())
    for name in ("base", "tuned", "training_targets", "held_out_targets"):
        del figures[name]
    jsonl.write_json(folder / "metrics.json", figures)
    (folder / "fidelity.jsonl").unlink()
    page, _, told = made(folder, out=tmp_path / "out.html")
    assert told.verdict.startswith("It is not known how near the student came")
    assert "Distance to the teacher" not in page.text
    beside = distilled(tmp_path / "other")
    assert "Pairwise comparison" not in made(folder, beside, out=tmp_path / "two.html")[0].text


def test_two_students_are_compared_on_the_rows_of_both(tmp_path):
    first, other = distilled(tmp_path / "a", after=0.5), distilled(tmp_path / "b", after=0.9, rows=15)
    page, markdown, told = made(first, other, out=tmp_path / "out.html")
    assert told.verdict.startswith("a is nearer to the teacher than b (difference of KL −")
    assert "on 15 held-out rows of both" in told.verdict
    gap = compare_students(Distillation.load(first), Distillation.load(other)).differences["kl"]
    assert gap.low < gap.value < gap.high < 0
    back = compare_students(Distillation.load(other), Distillation.load(first)).differences["kl"]
    assert (back.value, back.low, back.high) == pytest.approx((-gap.value, -gap.high, -gap.low))
    assert f"**{figure(gap.value)}**" in markdown
    assert "to the byte" not in page.text
    same = shutil.copytree(first, tmp_path / "c")
    assert made(first, same, out=tmp_path / "out.html")[2].verdict.startswith("Cannot tell whether a or c is nearer")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"teacher": "ef"}, "their teachers differ"),
        ({"positions": 49}, "other tokens"),
        ({"words": "cold"}, "share 0 held-out rows"),
    ],
)
def test_what_does_not_compare_is_not_compared(tmp_path, options, why):
    folders = distilled(tmp_path / "a"), distilled(tmp_path / "b", **options)
    page, markdown, told = made(*folders, out=tmp_path / "out.html")
    assert told.verdict.startswith("a and b cannot be compared")
    assert why in told.verdict
    assert "Pairwise comparison" not in page.text + markdown


def test_other_targets_are_a_reason_to_doubt(tmp_path):
    folders = distilled(tmp_path / "a"), distilled(tmp_path / "b", after=0.5, targets=b"u")
    page, markdown, _ = made(*folders, out=tmp_path / "out.html")
    for words in (page.text, markdown):
        assert "b: the targets are not the same to the byte" in words


def test_students_with_other_targets_are_not_ranked_by_kl(tmp_path):
    """With fewer entries more falls into the tail, and KL is lower whatever the student learnt."""
    folders = [distilled(tmp_path / name, after=after) for name, after in (("a", 0.5), ("b", 0.9))]
    manifest = json.loads((folders[0] / "manifest.json").read_text())
    manifest["settings"]["recipe"]["settings"]["k"] = 4
    jsonl.write_json(folders[0] / "manifest.json", manifest)
    other = json.loads((folders[1] / "manifest.json").read_text())["settings"]["recipe"]["settings"]["k"]
    pair = compare_students(*map(Distillation.load, folders))
    assert pair.differences["kl"] is None
    assert pair.differences["cross_entropy"] is not None
    page, markdown, told = made(*folders, out=tmp_path / "out.html")
    assert told.verdict.startswith(
        f"a and b cannot be ranked by KL: their targets differ in k (4 and {other}), and with fewer entries KL is lower"
    )
    for words in (page.text, markdown):
        assert "nearer to the teacher than" not in words
        assert "KL to the teacher, nats a token −" not in words


def test_a_fall_shows_in_its_digits(tmp_path):
    """Small students of small teachers: a KL that fell from 0.0004 is not said to fall from 0.000 to 0.000."""
    run = distilled(tmp_path / "run", before=0.0004, after=0.0001)
    _, _, told = made(run, out=tmp_path / "out.html")
    said = re.search(r"KL to the teacher fell \((0\.\d+) → (0\.\d+) nats", told.verdict)
    assert float(said[1]) > float(said[2]) > 0


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_stay_texts(tmp_path, text):
    beside = distilled(tmp_path / "beside")
    for n, others in enumerate([(), (beside,)]):
        plain, _, _ = made(distilled(tmp_path / f"{n}a", "word"), *others, out=tmp_path / "plain.html")
        page, markdown, _ = made(distilled(tmp_path / f"{n}b", text), *others, out=tmp_path / "out.html")
        assert page.tags == plain.tags
        assert [a[:2] for a in page.attributes] == [a[:2] for a in plain.attributes]
        assert "<" not in markdown.split("-->", 1)[1]
        for table in re.findall(r"(?:^\|.*\n)+", markdown, re.M):
            assert len({len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in table.splitlines()}) == 1, table


def test_what_is_no_finished_distillation_is_one_line(tmp_path):
    folder = distilled(tmp_path / "run")
    for sets, why in (
        ((folder, run_folder(tmp_path / "e", good())), "is a distillation and .* is none"),
        ((folder, folder), "given twice"),
    ):
        with pytest.raises(UserError, match=why):
            report(*sets, out=tmp_path / "out.html")
    with pytest.raises(UserError, match=r"`task` is for sets of predictions; .* is a distillation"):
        report(folder, out=tmp_path / "out.html", task="hsd")
    lines = (folder / "fidelity.jsonl").read_text().splitlines(keepends=True)
    for broken, why in (
        ("".join(lines[:-1]), "does not fit fidelity.jsonl"),
        ("".join(lines).replace('"aimed"', '"aims"'), "damaged"),
    ):
        (folder / "fidelity.jsonl").write_text(broken)
        with pytest.raises(UserError, match=why):
            report(folder, out=tmp_path / "out.html")
    (folder / "fidelity.jsonl").write_text("".join(lines))
    figures = json.loads((folder / "metrics.json").read_text())
    jsonl.write_json(folder / "metrics.json", {**figures, "training": {}})
    with pytest.raises(UserError, match="does not hold what distill writes"):
        report(folder, out=tmp_path / "out.html")
    (folder / "metrics.json").unlink()
    with pytest.raises(UserError, match="is not finished"):
        report(folder, out=tmp_path / "out.html")


def test_a_real_run_has_its_page(shared, tmp_path):
    pytest.importorskip("trl")
    from distillation.test_distill import SET, example
    from sailkit.data.exports import example_row
    from sailkit.distillation.distill import distill

    for name, numbers in (("train", range(4)), ("held_out", range(4, 10))):
        rows = (json.dumps(example_row(example(i))) + "\n" for i in numbers)
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))
    teacher = str(shared / "models" / "stories260k")
    found = distill(teacher=teacher, data=[str(tmp_path)], out=tmp_path / "run", student_layers=3,
                    set=[*SET, "training.num_train_epochs=1"])  # fmt: skip
    page, markdown, told = made(tmp_path / "run", out=tmp_path / "out.html")
    assert (
        f"({figure(found.metrics['base']['kl'])} → {figure(found.metrics['tuned']['kl'])} nats a token)" in told.verdict
    )
    assert "on 6 held-out rows" in told.verdict
    assert "A student that was cut out of its teacher" in page.text
    assert re.search(
        r"KL to the teacher: training \S+ at step \d; held out from \S+ at step 0 to", page.text
    )  # a curve
    assert page.text.count("before training") >= 3, "samples"
    assert "settings.min\\_mass | 0.1" in markdown
