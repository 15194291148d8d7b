"""Tables as spreadsheets, editors and the hub give them: read, or named for what they are."""

from __future__ import annotations

import codecs
import gzip
import json
from pathlib import Path

import pytest

from sailkit.errors import UserError
from sailkit.evaluation.predictions import field_names, load_table
from sailkit.files import jsonl
from sailkit.files.hub import hub_rows, is_hub_name
from sailkit.files.tables import read_table, with_nested
from sailkit.retrieval.instructions import read_instructions
from sailkit.tasks.task import load_task

ROWS = [
    {"id": "1", "text": 'A "lemon", raw; sour', "kind": "sour"},
    {"id": "2", "text": "Süß\tund\nrot", "kind": "sweet"},
]
TASK = """
name: fruit
data: {fields: {id: id, text: text, label: kind, evidence: EVIDENCE}}
labels: {sweet: {answer: Sweet}, sour: {answer: Sour}}
protocols: {direct: {wordings: {plain: "{text} {answers}?"}}}
"""


def separated(mark: str) -> str:
    cells = [list(ROWS[0]), *(list(row.values()) for row in ROWS)]
    return "".join(mark.join('"' + cell.replace('"', '""') + '"' for cell in row) + "\r\n" for row in cells)


LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
LIST = json.dumps(ROWS, ensure_ascii=False)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("t.csv", separated(",").encode()),
        ("t.CSV", separated(",").encode("utf-8-sig")),
        ("t.csv", separated(";").encode("utf-8-sig")),
        ("t.csv", separated("\t").encode()),
        ("t.tsv", separated("\t").encode()),
        ("t.TAB", separated("\t").encode("utf-16")),
        ("t.csv", separated(";").encode("utf-16")),
        ("t.csv", codecs.BOM_UTF16_BE + separated(",").encode("utf-16-be")),
        ("t.txt", separated("\t").encode("utf-16")),
        ("t.csv.gz", gzip.compress(separated(";").encode("utf-8-sig"))),
        ("t.tsv.gz", gzip.compress(separated("\t").encode("utf-16"))),
        ("t.jsonl", LINES.encode()),
        ("t.jsonl", LINES.encode("utf-8-sig")),
        ("t.JSONL.GZ", gzip.compress(LINES.encode("utf-8-sig"))),
        ("t.json", LIST.encode()),
        ("t.JSON", LIST.encode("utf-8-sig")),
        ("t.json", LIST.encode("utf-16")),
        ("t.json.gz", gzip.compress(LIST.encode("utf-8-sig"))),
        ("t.json", LINES.encode()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # gzip's bytes hold the time
)
def test_one_table_in_every_form(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    assert [row for _, row in read_table(tmp_path / name)] == ROWS


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("t.xlsx", b"PK\x03\x04", "t.xlsx is a spreadsheet; save it as CSV UTF-8"),
        ("t.zip", b"PK\x03\x04", "t.zip is an archive; unpack it"),
        ("t.jsonl.zst", b"(\xb5/\xfd", "t.jsonl.zst is compressed in another way than gzip"),
        ("t.jsonl", LINES.encode("utf-16"), "t.jsonl: UTF-16 text; save it as UTF-8"),
        ("t.csv", separated(",").encode("cp1252"), "t.csv: not readable as UTF-8 CSV"),
        (
            "t.csv",
            b'id,text\n1,a\n2,"No" it says\n',
            "t.csv, after line 2: not readable as UTF-8 CSV (',' expected after '\"'); a",
        ),
        ("t.tsv", b'id\ttext\n1\t"a\n2\tb\n', "t.tsv, after line 1: not readable"),
        ("t.csv", b"id,text,id\n1,a,2\n", "t.csv, line 1: column 'id' is given twice; rename one of them"),
        ("t.csv", separated(",").encode("cp1252"), "; save it as UTF-8"),
        ("t.csv", separated(",").encode("utf-16")[:-1], "t.csv: not readable as UTF-16 CSV"),
        ("t.csv.gz", gzip.compress(b"id,text\n" * 9999)[:40], "cannot read "),
        ("t.csv.gz", b"id,text\n", "cannot read "),
        ("t.json", b'{"rows":\n[]}', "t.json: expected a JSON list of rows, found dict"),
        ("t.json", LIST.encode("utf-16")[:-1], "t.json: not valid JSON"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_table_is_named(tmp_path, name, data, expected):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as caught:
        list(read_table(tmp_path / name))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def task_of(folder: Path, evidence: str = "null"):
    (folder / "fruit.yaml").write_text(TASK.replace("EVIDENCE", evidence))
    return load_task(folder / "fruit.yaml")


@pytest.mark.parametrize(("row", "field"), [(",A lemon,sour", "id"), ("7,,sour", "text"), ("7,  ,sour", "text")])
def test_an_empty_id_or_text_is_refused_with_its_line(tmp_path, row, field):
    path = tmp_path / "t.csv"
    path.write_text(f"id,text,kind\n1,An apple,sweet\n{row}\n")
    with pytest.raises(UserError) as caught:
        task_of(tmp_path).load(path)
    assert str(caught.value) == f"{path}, line 3: field {field!r} is empty; fill it, or remove the row"


def test_a_text_that_json_spells_as_empty_is_one(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"id": 1, "text": "", "kind": "sour"}\n')
    (found,) = task_of(tmp_path).load(tmp_path / "t.jsonl").examples
    assert found.text == ""


def test_an_empty_id_of_an_instruction_or_recording_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("id,instruction,output\n1,Sing.,La\n,Dance.,Hop\n")
    with pytest.raises(UserError, match="line 3: field 'id' is empty"):
        read_instructions(tmp_path / "t.csv")
    (tmp_path / "r.csv").write_text("id,output\n1,Correct\n,Wrong\n")
    with pytest.raises(UserError, match="line 3: field 'id' is empty"):
        load_table(tmp_path / "r.csv", "climate-fever")


def test_rows_without_an_id_get_their_number_and_one_line_says_so(tmp_path, capsys):
    path = tmp_path / "t.csv"
    path.write_text('text,kind\n"An\napple",sweet\nA lemon,sour\n')
    assert [(e.id, e.group) for e in task_of(tmp_path).load(path).examples] == [("1", "1"), ("2", "2")]
    assert capsys.readouterr().err == f"{path}: no field 'id'; the number of each row, from 1, is its id\n"
    (tmp_path / "t.jsonl").write_text('{"id": 1, "text": "x", "kind": "sweet"}\n{"text": "y", "kind": "sour"}\n')
    with pytest.raises(UserError, match="line 2: no field 'id'"):
        task_of(tmp_path).load(tmp_path / "t.jsonl")


@pytest.mark.parametrize(
    ("evidence", "bodies"),
    [
        ("first", [["Sour."], []]),
        ("[first, second]", [["Sour.", "Yellow."], ["Red."]]),
        ("{columns: [second, first]}", [["Yellow.", "Sour."], ["Red."]]),
    ],
)
def test_evidence_in_columns(tmp_path, evidence, bodies):
    path = tmp_path / "t.csv"
    path.write_text("id,text,kind,first,second\n1,A lemon,sour,Sour.,Yellow.\n2,An apple,sweet,,Red.\n")
    found = task_of(tmp_path, evidence).load(path).examples
    assert [[result.body for result in e.evidence] for e in found] == bodies
    assert [result.rank for result in found[0].evidence] == list(range(1, len(bodies[0]) + 1))
    path.write_text("id,text,kind\n1,A lemon,sour\n")
    with pytest.raises(UserError, match=r"line 2: no field '(first|second)'"):
        task_of(tmp_path, evidence).load(path)


def test_nested_fields_and_lists_of_texts(tmp_path):
    text = TASK.replace(
        "id: id, text: text, label: kind", "id: doc.key, text: doc.claim, label: target, group: doc.g.n"
    )
    (tmp_path / "fruit.yaml").write_text(text.replace("EVIDENCE", "{list: doc.found}"))
    row = {"doc": {"key": 5, "claim": "A lemon", "found": ["Sour.", "Yellow."], "g": {"n": "a"}}, "target": "sour"}
    (tmp_path / "t.jsonl").write_text(json.dumps(row) + "\n")
    (found,) = load_task(tmp_path / "fruit.yaml").load(tmp_path / "t.jsonl").examples
    assert (found.id, found.text, found.label, found.group) == ("5", "A lemon", "sour", "a")
    assert [result.body for result in found.evidence] == ["Sour.", "Yellow."]
    assert with_nested({"a.b": 1, "a": {"b": 2, "c": None}}, ["a.b", "a.c", "a.d", "x.y", None]) == {
        "a.b": 1, "a": {"b": 2, "c": None}, "a.c": None,
    }  # fmt: skip
    (tmp_path / "r.jsonl").write_text(json.dumps({"doc": {"id": 3}, "said": {"text": "Wrong."}}) + "\n")
    recording = load_table(tmp_path / "r.jsonl", "climate-fever", ["id=doc.id,output=said.text"])
    assert [(p.id, p.label) for p in recording.predictions] == [("3", "REFUTES")]


@pytest.mark.parametrize(
    ("evidence", "expected"),
    [
        ("{list: a, columns: [b]}", "give either `list`, or one or several `columns`"),
        ("{columns: [b], title: c}", "`title`, `url` and `stance` are fields of the entries"),
        ("{list: a, stance: c}", "`title`, `url` and `stance` are fields of the entries"),
        ("[]", "give either `list`, or one or several `columns`"),
    ],
)
def test_evidence_has_one_form(tmp_path, evidence, expected):
    with pytest.raises(UserError) as caught:
        task_of(tmp_path, evidence)
    assert expected in str(caught.value)


def test_what_is_a_name_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_name("owner/name")
    assert is_hub_name(Path("owner/name:test"))
    for name in (
        "claims.jsonl",
        "data/claims.jsonl",
        "data/claims.csv.gz",
        "data/c.CSV",
        "/a/b",
        "a/b/c",
        "name",
        "../x",
    ):
        assert not is_hub_name(name)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert not is_hub_name("owner/name")


def test_data_of_the_hub(tmp_path, monkeypatch, capsys):
    """The library itself reads a data set with splits; only that it stands in a folder differs from the hub."""
    pytest.importorskip("datasets", reason="needs the extra hub")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for split in ("train", "test"):
        rows = [{**row, "id": f"{split}-{row['id']}"} for row in ROWS]
        path = tmp_path / "owner" / "name" / "data" / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = task_of(tmp_path).load("owner/name:test").examples
    texts = [row["text"] for row in ROWS]
    assert [(e.id, e.text, e.label) for e in found] == [("test-1", texts[0], "sour"), ("test-2", texts[1], "sweet")]
    assert "another is" not in capsys.readouterr().err
    assert [row["id"] for _, row in hub_rows("owner/name", ("validation", "test"))] == ["test-1", "test-2"]
    assert "owner/name: split test of " in capsys.readouterr().err
    assert [row["id"] for _, row in hub_rows("owner/name:train", ("test",))] == ["train-1", "train-2"]
    with pytest.raises(UserError, match="owner/name has no split 'tset'; did you mean 'test'"):
        hub_rows("owner/name:tset", ())
    with pytest.raises(UserError, match=r"owner/name has several splits .*; choose one: owner/name:"):
        hub_rows("owner/name", ("validation",))


def test_a_data_set_that_the_hub_does_not_give_is_one_line(tmp_path, monkeypatch):
    pytest.importorskip("datasets", reason="needs the extra hub")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as caught:
        task_of(tmp_path).load("nobody/nothing")
    assert str(caught.value).startswith("no file nobody/nothing, and the hub does not give it as a data set: ")
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path):
    (tmp_path / "sampled_test").mkdir()
    (tmp_path / "sampled_test" / "a.txt").write_text("A post.\n", "utf-8-sig")
    (tmp_path / "annotations_metadata.csv").write_text("file_id,label\na,noHate\n", "utf-8-sig")
    (found,) = load_task("hsd").load(tmp_path).examples
    assert (found.id, found.text) == ("a", "A post.")
    (tmp_path / "sampled_test" / "a.txt").write_text(" \n", "utf-8-sig")
    with pytest.raises(UserError, match=r"a\.txt: empty; a text is needed"):
        load_task("hsd").load(tmp_path)
    (tmp_path / "x.json").write_text('{"a": 1}', "utf-8-sig")
    assert jsonl.read_json(tmp_path / "x.json") == {"a": 1}
    (tmp_path / "fields.yaml").write_text("id: key\n", "utf-8-sig")
    assert field_names([str(tmp_path / "fields.yaml")]) == {"id": "key"}


def test_a_built_in_task_says_where_its_data_are():
    for name, address in (
        ("climate-fever", "https://www.sustainablefinance.uzh.ch/en/research/climate-fever.html"),
        ("hsd", "https://github.com/Vicomtech/hate-speech-dataset"),
    ):
        with pytest.raises(UserError) as caught:
            load_task(name).load()
        assert address in str(caught.value)
        assert str(caught.value).endswith("say where they are with `data`")
