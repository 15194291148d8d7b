"""JSON Lines: every fault named with its place, whole files or none, fingerprints that hold everything."""

from __future__ import annotations

import json
import os
import stat

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from little_room import little_room
from sailkit.errors import UserError
from sailkit.files import jsonl
from small_models import trained

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
ROWS = st.lists(st.dictionaries(st.text(), VALUES, max_size=4), max_size=5)


@given(ROWS)
def test_rows_come_back_as_they_were_written(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    jsonl.write_atomic(path, "".join(jsonl.dumps(row) + "\n" for row in rows))
    assert list(jsonl.read_rows(path)) == list(enumerate(rows, start=1))


def test_lines_are_numbered_as_an_editor_does(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a":1}\r\n\n  \n{"a":2}')
    assert list(jsonl.read_rows(path)) == [(1, {"a": 1}), (4, {"a": 2})]


def test_a_line_separator_inside_a_text_does_not_end_a_line(tmp_path):
    row = {"text": "one\u2028two\x85three\x0bfour"}
    jsonl.write_atomic(tmp_path / "rows.jsonl", jsonl.dumps(row) + "\n")
    assert list(jsonl.read_rows(tmp_path / "rows.jsonl")) == [(1, row)]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"a": }\n', "not valid JSON"),
        (b'{"a": 1', "the file may be truncated"),
        (b"[1, 2]\n", "expected a JSON object, found list"),
        (b'"text"\n', "expected a JSON object, found str"),
        (b'{"a": NaN}\n', "NaN is not a JSON number"),
        (b'{"a": -Infinity}\n', "-Infinity is not a JSON number"),
        (b'{"a": "\xff"}\n', "not UTF-8 text"),
        (b'{"a": ' + b"[" * 200_000 + b"\n", "nested too deeply"),
        (b'{"a": ' + b"9" * 5_000 + b"}\n", "not valid JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, complaint):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line)
    with pytest.raises(UserError, match=complaint) as caught:
        list(jsonl.read_rows(path))
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert "\n" not in str(caught.value)


def test_only_a_file_that_ends_early_is_said_to_be_truncated(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": \n{"a": 1}\n')
    with pytest.raises(UserError) as caught:
        list(jsonl.read_rows(path))
    assert "truncated" not in str(caught.value)


@pytest.mark.parametrize(
    "read", [lambda path: list(jsonl.read_rows(path)), jsonl.read_json, lambda p: jsonl.file_fingerprint([p])]
)
def test_a_missing_file_and_a_folder_are_named(tmp_path, read):
    for path, reason in ((tmp_path / "none", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(UserError) as caught:
            read(path)
        assert str(caught.value) == f"cannot read {path}: {reason}"


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b'{"a": "\xff"}'])
def test_a_bad_json_file_is_named(tmp_path, content):
    path = tmp_path / "manifest.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        jsonl.read_json(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_field_must_be_there_and_be_text():
    assert jsonl.text_field({"id": 7}, "id", "f", 1) == "7"
    for row, complaint in (
        ({"b": 1, "a": 2}, "f, line 3: no field 'id' (found: a, b)"),
        ({}, "f, line 3: no field 'id' (found: nothing)"),
        ({"id": None}, "f, line 3: field 'id' should be text, found NoneType"),
        ({"id": True}, "f, line 3: field 'id' should be text, found bool"),
        ({"id": 1.5}, "f, line 3: field 'id' should be text, found float"),
        ({"id": "\ud83d"}, "f, line 3: field 'id' holds half a surrogate pair, which is no character"),
    ):
        with pytest.raises(UserError) as caught:
            jsonl.text_field(row, "id", "f", 3)
        assert str(caught.value) == complaint


def test_half_a_surrogate_pair_survives_a_round_trip(tmp_path):
    """A server may send one in an answer; what was said is kept."""
    row = {"raw_output": "cut emoji \ud83d", "whole": "😀"}
    jsonl.write_atomic(tmp_path / "rows.jsonl", jsonl.dumps(row) + "\n")
    assert list(jsonl.read_rows(tmp_path / "rows.jsonl")) == [(1, row)]
    assert jsonl.fingerprint(row) != jsonl.fingerprint({**row, "raw_output": "cut emoji "})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_has_not_are_never_written(tmp_path, value):
    for write in (jsonl.dumps, lambda v: jsonl.write_json(tmp_path / "x.json", v)):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write({"a": value})
    assert not (tmp_path / "x.json").exists()


def test_a_file_is_replaced_whole_or_left_alone(tmp_path):
    path = tmp_path / "new" / "result.json"
    jsonl.write_json(path, {"a": 1})
    before = path.read_bytes()
    with pytest.raises(TypeError):
        jsonl.write_json(path, {"a": object()})
    assert path.read_bytes() == before
    jsonl.write_json(path, {"a": "é"})
    assert json.loads(path.read_text("utf-8")) == {"a": "é"}
    assert [p.name for p in path.parent.iterdir()] == ["result.json"]


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    jsonl.write_json(tmp_path / "pipe", {"a": 1})
    assert json.loads(os.read(reader, 100)) == {"a": 1}
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()


def test_a_failed_write_leaves_no_litter(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(UserError, match=r"^cannot write .*taken: Is a directory$"):
        jsonl.write_atomic(tmp_path / "taken", "text")
    with pytest.raises(UserError, match="cannot write "):
        jsonl.write_atomic("/proc/none/x", "text")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def test_results_follow_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        jsonl.write_atomic(tmp_path / "x", "text")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640


@given(st.dictionaries(st.text(), VALUES, max_size=4), st.randoms())
def test_a_fingerprint_ignores_order_of_keys_only(value, random):
    keys = list(value)
    random.shuffle(keys)
    assert jsonl.fingerprint({key: value[key] for key in keys}) == jsonl.fingerprint(value)
    assert jsonl.fingerprint({**value, "one more": None}) != jsonl.fingerprint(value)


def test_a_fingerprint_of_files_tells_where_one_ends(tmp_path):
    a, b, c, d = (tmp_path / name for name in "abcd")
    for path, text in ((a, "xy"), (b, "z"), (c, "x"), (d, "yz")):
        path.write_text(text)
    assert jsonl.file_fingerprint([a, b]) != jsonl.file_fingerprint([c, d])
    assert jsonl.file_fingerprint([a, b]) != jsonl.file_fingerprint([b, a])
    assert jsonl.file_fingerprint([a]) == jsonl.file_fingerprint([a])


def test_what_a_library_cannot_write_is_one_line(tmp_path):
    """Those in Rust raise errors of their own, of no common kind."""
    tokenizer = trained("byte-level").backend_tokenizer
    weights = {"w": np.zeros(20_000, np.float32)}
    for write in (tokenizer.save, lambda path: save_file(weights, path)):
        why = r"^cannot write .*there: File too large; free some space .*again, it continues where it stopped; or so$"
        with little_room(5_000), pytest.raises(UserError, match=why), jsonl.writing(tmp_path / "there", "; or so"):
            write(str(tmp_path / "there"))
    with pytest.raises(ZeroDivisionError), jsonl.writing(tmp_path):
        1 / 0  # noqa: B018


@pytest.mark.parametrize("value", ["half \ud83d a pair", None, 3, ["text"]])
def test_a_value_that_is_no_text_is_named(value):
    problem = "holds half a surrogate pair" if isinstance(value, str) else "should be text, found"
    with pytest.raises(UserError, match=rf"^a.jsonl, line 2: field 'title' {problem}"):
        jsonl.check_text(value, "title", "a.jsonl, line 2")


def test_an_id_that_occurs_again_is_named_with_both_lines():
    ids = jsonl.UniqueIds()
    ids.add("a", "line 1")
    ids.add("b", "line 2")
    with pytest.raises(UserError, match=r"^line 3: id 'a' was used before, at line 1; ids must be unique$"):
        ids.add("a", "line 3")
