"""What a report says, and that nothing from models or data becomes markup, script or a broken table."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sailkit import runs
from sailkit.errors import UserError
from sailkit.evaluation import predictions, recordings, summary
from sailkit.files import jsonl
from sailkit.records import AnswerScore, Prediction
from sailkit.reporting import WrittenReport, report

LABELS = ("SUPPORTS", "REFUTES")
HOSTILE = [
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "<!-- <script> ]]> -->",
    "a\u2028b\u2029c\u202egnirts\u202c \x00\x07\x1b[2J\x9b\u061c \r\n\ttab",
    "  \n lone \ud800 and \udfff \n ",
    "{{ 7 * 7 }} {% raw %} `code` | pipe | [x](javascript:alert(1)) & &lt; \\",
]


def prediction(i: int, **changes) -> Prediction:
    fields = {
        "id": f"item-{i}",
        "index": i,
        "text": f"claim number {i}",
        "gold": LABELS[i % 2],
        "label": LABELS[0],
        "outcome": "answered",
        "answered_by": "text",
        "raw_output": "Correct.",
        "prompt": f"Check this.\nClaim: claim number {i}\nOne word:",
        "prompt_fingerprint": f"{i:016x}",
        "prompt_tokens": 9,
        "completion_tokens": 2,
    }
    return Prediction(**{**fields, **changes})


def run_folder(folder: Path, rows: list[Prediction], figures: bool = True, **more) -> Path:
    """A finished evaluation, as `evaluate` leaves it."""
    asked = {
        "model": "tiny", "weights_sha256": "c0ffee" * 10 + "c0ff", "dtype": "float32", "device": "cpu",
        "task": "sample-claims", "chat_template": None, "protocol": "direct", "wording": "plain", "answer": "generate",
        "labels": LABELS, "n": len(rows), "rules_version": 1, "seed": 0, **more,
    }  # fmt: skip
    with runs.open_run(folder, "evaluate", asked) as run:
        text = "".join(json.dumps(predictions.to_row(p)) + "\n" for p in rows)
        jsonl.write_atomic(run.path(predictions.PREDICTIONS), text)
        if figures:
            jsonl.write_json(run.path(runs.METRICS), summary.summarise_predictions(rows, LABELS).to_json())
    return folder


def recording(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps({"label": LABELS[i % 2], **row}) + "\n" for i, row in enumerate(rows)))
    return path


class Page(HTMLParser):
    """Tags, attributes and the text of scripts and styles of a report."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str | None]] = []
        self.raw: dict[str, str] = {}
        self.words: list[str] = []
        self._in = ""
        self.feed(path.read_text("utf-8"))
        self.close()
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += [(tag, name, value) for name, value in attrs]
        self._in = {"script": dict(attrs).get("id") or "script", "style": "style"}.get(tag, "")
        if self._in:
            self.raw[self._in] = ""

    def handle_endtag(self, tag):
        self._in = ""

    def handle_data(self, data):
        if self._in:
            self.raw[self._in] += data
        else:
            self.words.append(data)

    @property
    def items(self) -> dict:
        return json.loads(self.raw["data"])

    def prompt(self, set_index: int, step: int, i: int) -> str:
        """As the page's script puts it together."""
        part = self.items["sets"][set_index]["prompts"][step]
        middle = part["middles"][i]
        return self.prompt(0, step, i) if middle == 0 else part["head"] + middle + part["tail"]


def made(tmp_path: Path, *sets: Path, **options) -> tuple[Page, str, WrittenReport]:
    found = report(*sets, out=tmp_path / "out", **options)
    return Page(found.html), found.markdown.read_text("utf-8"), found


def good(n: int = 40) -> list[Prediction]:
    return [prediction(i, label=LABELS[i % 2]) for i in range(n)]


def constant(n: int = 40) -> list[Prediction]:
    return [prediction(i) for i in range(n)]


def test_one_set_leads_with_what_it_is_worth(tmp_path):
    page, markdown, found = made(tmp_path, run_folder(tmp_path / "flat", constant()))
    assert found.verdict == "flat is indistinguishable from always answering SUPPORTS"
    assert found.html == tmp_path / "out" / "report.html"
    assert page.text.index("Verdict flat is indistinguishable") < page.text.index("Reasons for doubt")
    assert "constant-predictor" in page.text
    assert "constant-predictor" in markdown
    assert "Accuracy | 0.500 (" in markdown


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (good(), "is better than always answering SUPPORTS"),
        ([prediction(i, label=LABELS[1 - i % 2]) for i in range(40)], "is worse than always answering"),
        ([prediction(i, label=LABELS[1], gold=LABELS[i % 4 == 0]) for i in range(40)], "answers REFUTES to nearly"),
        ([prediction(i, label=None, outcome="unreadable") for i in range(40)], "mostly gives no answer that can be"),
    ],
)
def test_the_sentence_follows_the_figures(tmp_path, rows, words):
    assert words in made(tmp_path, run_folder(tmp_path / "a", rows))[2].verdict


def test_no_code_is_imported_that_a_run_folder_names(tmp_path, monkeypatch):
    """Someone else's run folder may name a task that is code beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("evil.py").write_text("open('ran', 'w')\ntask = {}\n")
    Path("evil.yaml").write_text("extends: evil:task\n")
    silent = replace(prediction(1, label=None, outcome="unreadable", raw_output="Hm."), id="x")
    for number, task in enumerate(("evil:task", "evil.yaml")):
        made(tmp_path, run_folder(tmp_path / f"run{number}", [*good(), silent], task=task))
    assert not Path("ran").exists()


def test_two_sets_are_compared(tmp_path):
    rows = [prediction(i, label=None, outcome="refused", raw_output="I cannot say.") for i in range(3)] + good()[3:]
    sets = run_folder(tmp_path / "flat", constant()), run_folder(tmp_path / "sharp", rows, model="other")
    page, markdown, found = made(tmp_path, *sets, title="A & B")
    assert found.verdict == "flat is worse than sharp"
    for words in (
        "A & B",
        "They differ in model.",
        "only flat right 2",
        "only sharp right 19",
        "sharp is better than always",
    ):
        assert words in page.text
    assert "−0.425" in page.text
    for words in ("| only flat right | 2 |", "| only sharp right | 19 |", "| | of 40 items |"):
        assert words in markdown
    assert "3 of 40 answers (7.5%) give no label" in page.text
    assert "Accuracy if all of them were right – not available" not in page.text
    assert re.search(r"REFUTES 0 19 95% 0 1 5%", page.text), "confusion matrix with unreadable and refused"


def test_three_sets_give_three_verdicts_and_names_stay_distinct(tmp_path):
    for folder in ("x/run", "y/run", "z/run"):
        run_folder(tmp_path / folder, good())
    page, _, found = made(tmp_path, tmp_path / "x/run", tmp_path / "y/run", tmp_path / "z/run")
    assert found.verdict.count("cannot tell") == 3
    assert "Cannot tell whether run (1) or run (3) is better" in page.text


def test_every_f1_is_named(tmp_path):
    page, markdown, _ = made(tmp_path, run_folder(tmp_path / "a", good()))
    for words in (page.text, markdown):
        assert not re.search(r"(?<!acro-)(?<!eighted )F1(?! of )", words)


def test_the_measured_figures_are_used_and_must_fit(tmp_path):
    folder = run_folder(tmp_path / "a", good())
    figures = jsonl.read_json(folder / runs.METRICS)
    figures |= {"human_mcc": 0.4321, "flags": ["odd"], "flag_messages": {"odd": ["the reference wavers", "twice"]}}
    jsonl.write_json(folder / runs.METRICS, figures)
    page = made(tmp_path, folder)[0]
    assert "0.432" in page.text
    assert "The reference wavers. odd twice. odd" in page.text
    figures["confusion"]["counts"][0][0] -= 1
    jsonl.write_json(folder / runs.METRICS, figures)
    with pytest.raises(UserError, match=r"metrics\.json does not fit predictions\.jsonl .* run the same evaluate"):
        made(tmp_path, folder)


def test_a_run_without_figures_is_measured_again(tmp_path):
    words = [made(tmp_path, run_folder(tmp_path / f / "a", good(), f == "with"))[0].text for f in ("with", "without")]
    first, second = (re.sub(r"\S+T\S+Z", "started", text) for text in words)
    assert first == second


def test_no_verdict_on_few_items_and_never_without_a_flag(tmp_path):
    """Three of three right is no proof; the page says so at the top and among the doubts."""
    rows = [prediction(i, label=LABELS[i % 2]) for i in range(3)]
    page, markdown, found = made(tmp_path, run_folder(tmp_path / "a", rows))
    assert found.verdict == "3 items are too few to tell what a is worth"
    for text in (page.text, markdown):
        assert "better than" not in text
        assert "None of the checks raised a flag" not in text
        assert "3 items are too few for a verdict" in text
        assert "0.292 to 1.000" in text
    both, _, found = made(tmp_path, run_folder(tmp_path / "x", rows), run_folder(tmp_path / "y", constant()[:3]))
    assert found.verdict == "cannot tell whether x or y is better"
    assert "3 items are too few." in both.text


def test_groups_and_machine_are_in_the_first_line(tmp_path):
    rows = [prediction(i, label=LABELS[i % 2], group=f"claim-{i // 2}") for i in range(60)]
    other = [prediction(i, group=f"claim-{i // 2}") for i in range(60)]
    page, markdown, _ = made(tmp_path, run_folder(tmp_path / "a", rows), run_folder(tmp_path / "b", other))
    for text in (page.text, markdown):
        assert "60 items in 30 groups; float32 on cpu; judged against the human labels" in text
        assert "p, exact sign-flip test over groups" in text


def test_a_recording_shows_what_was_recorded_and_what_is_not_known(tmp_path):
    rows = [
        {"id": i, "output": "Wrong", "prediction_recorded": "SUPPORTS", "reference_recorded": "REFUTES"}
        for i in range(20)
    ]
    path = recording(tmp_path / "old.jsonl", rows)
    page, _, _ = made(tmp_path, path)
    assert "The recorded predictions are SUPPORTS for 20 of 20 items" in page.text
    assert "As recorded, before reading the answers again" in page.text
    assert re.search("Not recorded for any set: model,.* number format, device, chat template", page.text)
    assert page.items["sets"][0]["recorded"][0] == "SUPPORTS"
    page, _, found = made(tmp_path, path, against="reference")
    assert "judged against the reference labels" in page.text
    assert found.verdict == "old is indistinguishable from always answering REFUTES"


def test_origin_names_what_is_known_and_what_differs(tmp_path):
    sets = run_folder(tmp_path / "a", good()), run_folder(tmp_path / "b", constant(), dtype="bfloat16")
    page, markdown, _ = made(tmp_path, *sets)
    assert "Weights (sha256) c0ffeec0ffee c0ffeec0ffee" in page.text
    assert "Chat template none none" in page.text
    assert "| Number format | float32 | bfloat16 |" in markdown
    assert "Not recorded for any set: revision," in page.text
    assert ("tr", "class", "differs") in page.attributes


def test_scores_and_earlier_turns_reach_the_items(tmp_path):
    turns = ({"prompt": "Think: claim A", "raw_output": "Hm.", "completion_tokens": 2},)
    answers = {"Correct": AnswerScore("SUPPORTS", (1,), -0.25), "Wrong": AnswerScore("REFUTES", (2,), -1.5)}
    scores = {"SUPPORTS": 0.777299861, "REFUTES": 0.222700139}
    rows = [
        prediction(i, turns=turns, raw_output=None, answered_by="logprob", answers=answers, scores=scores)
        for i in range(4)
    ]
    page, _, _ = made(tmp_path, run_folder(tmp_path / "a", rows, answer="logprob"))
    item = page.items["sets"][0]
    assert item["outputs"][0] == ["Hm.", None]
    assert item["words"] == [["Correct", 0], ["Wrong", 1]]
    assert item["logprobs"][0] == [-0.25, -1.5]
    assert item["scores"][0] == [0.7773, 0.2227]
    assert [page.prompt(0, step, 2) for step in (0, 1)] == ["Think: claim A", rows[2].prompt]
    assert "AUROC 0.500" in page.text


def test_sets_are_joined_by_id_and_a_shared_prompt_is_kept_once(tmp_path):
    other = [
        prediction(i, id=f"item-{39 - i}", gold=LABELS[(39 - i) % 2], text=f"claim number {39 - i}") for i in range(40)
    ]
    other = [Prediction(**{**vars_of(p), "prompt": prediction(39 - p.index).prompt}) for p in other]
    page, _, _ = made(tmp_path, run_folder(tmp_path / "a", good()), run_folder(tmp_path / "b", other))
    assert page.items["sets"][1]["prompts"][0]["middles"] == [0] * 40
    assert page.items["sets"][0]["prompts"][0]["head"] == "Check this.\nClaim: claim number "
    assert page.prompt(1, 0, 7) == prediction(7).prompt
    assert page.items["ids"][7] == "item-7"


def test_an_answer_without_a_label_says_why(tmp_path):
    path = recording(tmp_path / "said.jsonl", [
        {"id": 0, "output": "Correct"}, {"id": 1, "output": "I cannot say."}, {"id": 2, "output": "Nice weather."},
        {"id": 3, "output": "Correct or wrong, who knows."}, {"id": 4, "output": "So it is."},
    ])  # fmt: skip
    page, markdown, _ = made(tmp_path, path, task="sample-claims")
    assert page.items["sets"][0]["why"] == [
        "", "declines to answer: i cannot", "has no answer word",
        "gives several labels in a sentence: REFUTES, SUPPORTS", "has no answer word",
    ]  # fmt: skip
    assert "| The reply has no answer word | 2 |" in markdown
    refused = [prediction(0, label=None, outcome="refused", reason="content filter", raw_output=None), *good()[1:]]
    page, markdown, _ = made(tmp_path / "b", run_folder(tmp_path / "run", refused))
    assert page.items["sets"][0]["why"][:2] == ["was refused by the server: content filter", ""]
    assert "Why there is no label" not in made(tmp_path / "c", run_folder(tmp_path / "good", good()))[1]


def vars_of(p: Prediction) -> dict:
    return {name: getattr(p, name) for name in p.__dataclass_fields__}


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        ("no sets", "needs one or more"),
        ("no reference", r"has no reference labels; use `against='human'`"),
        ("no human labels", r"has no human labels; use `against='reference'`"),
        ("suffix", r"should end in \.html, or be a folder"),
        ("not there", "cannot read"),
        ("other labels", "differ in the gold label"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, problem, words):
    folder = run_folder(tmp_path / "a", good())
    out = tmp_path / "out.html"
    if problem == "no human labels":
        folder = recording(
            tmp_path / "r.jsonl", [{"id": 1, "label": None, "output": "Wrong", "reference_recorded": "REFUTES"}]
        )
        arguments = {"sets": [folder], "task": "sample-claims"}
    elif problem == "other labels":
        arguments = {"sets": [folder, run_folder(tmp_path / "b", [prediction(i, gold=LABELS[0]) for i in range(40)])]}
    else:
        arguments = {
            "no sets": {"sets": []},
            "no reference": {"sets": [folder], "against": "reference"},
            "suffix": {"sets": [folder], "out": tmp_path / "report.txt"},
            "not there": {"sets": [tmp_path / "nothing.jsonl"]},
        }[problem]
    with pytest.raises(UserError, match=words) as told:
        report(*arguments.pop("sets"), **{"out": out, **arguments})
    assert "\n" not in str(told.value)
    assert not out.exists()


def test_only_a_report_is_overwritten(tmp_path):
    folder = run_folder(tmp_path / "a", good())
    out = tmp_path / "README.html"
    for foreign in (out, tmp_path / "README.md"):
        foreign.write_text("<p>about sailkit report</p>")
        with pytest.raises(UserError, match=f"{foreign.name} exists and is not a sailkit report"):
            report(folder, out=out)
        assert foreign.read_text() == "<p>about sailkit report</p>"
        foreign.unlink()
    report(folder, out=out)
    first = out.read_bytes()
    report(folder, out=out)
    assert out.read_bytes() == first, "the same sets give the same bytes"


def hostile_sets(folder: Path, texts: list[str]) -> list[Path]:
    """Two recordings of eight items, every text of which is somebody else's."""

    def row(i: int, k: int) -> dict:
        first, second, third, fourth = (texts[(i + n) % len(texts)] for n in range(4))
        said = f"{third}{i}{'Correct' if i % 3 else 'Wrong'} {fourth}{k}"
        # An id may be any text; half a surrogate pair is none.
        name = first.encode("utf-8", "replace").decode()
        return {"id": f"{i}{name}", "text": second, "prompt": f"{third}{i}", "output": said}

    return [recording(folder / f"{name}.jsonl", [row(i, k) for i in range(8)]) for k, name in enumerate("ab")]


def check_nothing_escapes(sets: list[Path], out: Path) -> Page:
    page = Page(report(*sets, out=out, task="sample-claims").html)
    loaded = [recordings.load_predictions(path, "sample-claims").predictions for path in sets]
    assert page.tags["script"] == 2
    assert page.items["ids"] == shown(p.id for p in loaded[0])
    assert page.items["texts"] == shown(p.text for p in loaded[0])
    for k, rows in enumerate(loaded):
        assert [row[-1] for row in page.items["sets"][k]["outputs"]] == shown(p.raw_output for p in rows)
        assert [page.prompt(k, 0, i) for i in range(len(rows))] == shown(p.prompt for p in rows)
    return page


def shown(texts: Iterable[str]) -> list[str]:
    """Texts as the page shows them: without what acts on what stands beside it."""
    return ["".join("\ufffd" if acts(c) else c for c in text.replace("\r\n", "\n")) for text in texts]


def acts(c: str) -> bool:
    """By Unicode's word: control characters, separators of lines, lone surrogates, marks and overrides of direction."""
    directions = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    category = unicodedata.category(c)
    return c not in "\n\t" and (
        category in ("Cc", "Cs", "Zl", "Zp")
        or unicodedata.bidirectional(c) in directions
        or c in "\u061c\u200e\u200f"
        or "\u206a" <= c <= "\u206f"  # deprecated: symmetric swapping, Arabic form shaping, national digits
    )


def shape(page: Page) -> Counter[str]:
    """Tags without those that stand for something counted: flags, notes and the parts of the bar."""
    return page.tags - Counter(
        {tag: page.tags[tag] for tag in ("li", "code", "rect", "title", "p", "small", "h3", "ul")}
    )


def test_hostile_texts_stay_texts(tmp_path):
    plain = check_nothing_escapes(hostile_sets(tmp_path, ["word"]), tmp_path / "plain.html")
    hostile = check_nothing_escapes(hostile_sets(tmp_path, HOSTILE), tmp_path / "hostile.html")
    assert shape(plain) == shape(hostile)
    data = (tmp_path / "hostile.html").read_text("utf-8").split('id="data">')[1].split("</script>")[0]
    assert data.isascii()
    assert "<" not in data


@settings(max_examples=25, deadline=None)
@given(texts=st.lists(st.text(st.characters(), max_size=30), min_size=1, max_size=5))
def test_any_text_comes_back_clean(texts):
    with tempfile.TemporaryDirectory() as folder:
        check_nothing_escapes(hostile_sets(Path(folder), texts), Path(folder) / "report.html")


def test_hostile_names_stay_names(tmp_path):
    name = "x<img src=y onerror=alert(1)>|`b`\n*_[l](u)\u202e\udcff"
    sets = run_folder(tmp_path / os.fsdecode(os.fsencode(name)), good()), run_folder(tmp_path / "plain", constant())
    page, markdown, _ = made(tmp_path, *sets, title="</title><script>1</script>")
    plain, _, _ = made(tmp_path, run_folder(tmp_path / "w" / "x", good()), sets[1])
    assert page.tags == plain.tags
    assert "x<img src=y onerror=alert(1)>|`b` *_[l](u)\ufffd\ufffd" in page.text
    assert "<img" not in markdown
    assert "</title" not in markdown
    for table in re.findall(r"(?:^\|.*\n)+", markdown, re.M):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table
    assert not re.search(r"(?<!\\)[`\[\]]", markdown)


def test_the_file_loads_nothing_and_runs_only_its_own_script(tmp_path):
    page, _, found = made(tmp_path, run_folder(tmp_path / "a", good()))
    source = found.html.read_text("utf-8")
    assert not [a for a in page.attributes if a[1] in ("src", "href", "style", "action") or a[1].startswith("on")]
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", source)
    policy = next(v for _, name, v in page.attributes if name == "content" and v.startswith("default-src"))
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    for kind in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(page.raw[kind].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "innerHTML" not in page.raw["script"]


def test_reporting_loads_no_heavy_library(tmp_path):
    sets = [str(run_folder(tmp_path / name, rows)) for name, rows in (("a", good()), ("b", constant()))]
    code = (
        "import sys; from pathlib import Path; from sailkit.reporting import report\n"
        f"report(*map(Path, {sets!r}), out=Path({str(tmp_path / 'r.html')!r}))\n"
        "print([m for m in ('torch', 'transformers', 'sklearn', 'scipy.stats', 'openai') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
