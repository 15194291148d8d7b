"""Tasks: the built-in ones, a user's own, and what is said when either cannot be used."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import yaml

from sailkit.errors import UserError
from sailkit.files.tables import read_table
from sailkit.files.yaml_files import parse_yaml
from sailkit.prompts.render import as_text, step_prompt
from sailkit.records import Example
from sailkit.stats.overlap import passage_parts
from sailkit.tasks.spec import DataSpec
from sailkit.tasks.task import builtin_tasks, in_half, load_task

OWN = {
    "name": "fruit",
    "data": {"file": "fruit.csv", "fields": {"id": "no", "text": "what", "label": "kind"}, "label_values": {1: "sour"}},
    "labels": {"sweet": {"answer": "Sweet", "also": ["sugary"]}, "sour": {"answer": "Sour"}},
    "protocols": {"direct": {"wordings": {"plain": "How does {text} taste? {answers}"}}},
}
ROW = {"claim_id": "0", "claim": "Ice floats.", "claim_label": "SUPPORTS", "evidences": []}


def own(tmp_path: Path, text: str | None = None, **changes: object) -> Path:
    path = tmp_path / "fruit.yaml"
    path.write_text(yaml.safe_dump({**OWN, **changes}, sort_keys=False) if text is None else text, "utf-8")
    return path


def wording(value: object) -> dict[str, object]:
    return {"protocols": {"p": {"wordings": {"w": value}}}}


def complaint(call, *arguments: object) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert "Traceback" not in message
    return message


def test_a_label_that_is_in_use_twice_and_a_word_of_signs_are_refused(tmp_path):
    twice = complaint(load_task, own(tmp_path, default_labels=["sour", "sour"]))
    assert "default_labels: a label is there twice" in twice
    signs = {"sweet": {"answer": "+"}, "sour": {"answer": "Sour"}}
    assert "'+' of sweet has no letter or digit" in complaint(load_task, own(tmp_path, labels=signs))


def test_a_row_without_a_group_is_none_of_the_group_of_its_name(tmp_path):
    fields = {"id": "id", "text": "text", "label": "label", "group": "group"}
    rows = [{"id": str(n), "text": f"t{n}", "label": "sour", "group": g} for n, g in enumerate(["", "", "1", "1"])]
    (tmp_path / "fruit.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = load_task(own(tmp_path, data={"file": "fruit.jsonl", "fields": fields}))
    groups = [example.group for example in task.load().examples]
    assert len({*groups}) == 3
    assert groups[2:] == ["1", "1"]


@pytest.mark.parametrize("name", builtin_tasks())
def test_built_in_tasks_have_three_protocols_in_three_wordings(name):
    task = load_task(name)
    assert list(task.spec.protocols) == ["direct", "fair", "think-twice"]
    for protocol, spec in task.spec.protocols.items():
        questions = [task.question(protocol, wording) for wording in spec.wordings]
        own = [question for question in questions if not question.wording.startswith("published")]
        assert len(own) >= 3
        for question in own:
            assert len(question.steps) == (3 if protocol == "think-twice" else 1)
            assert set(question.answers) == set(task.labels)
            assert len(set(question.answers.values())) == len(task.labels)
            assert all("{text}" in step for step in question.steps)
            assert "{answers}" in question.steps[-1]
            assert all("{previous}" in step for step in question.steps[1:])


def test_the_samples_load_without_being_told_where_they_are():
    assert len(load_task("sample-claims").load().examples) == 150
    assert len(load_task("sample-statements").load().examples) == 60


def test_climate_fever(shared):
    path = shared / "climate-fever" / "climate-fever.jsonl"
    found = load_task("climate-fever").load(path)
    labels = [e.label for e in found.examples]
    assert (len(labels), labels.count("SUPPORTS"), labels.count("REFUTES")) == (907, 654, 253)
    assert found.left_out == 1535 - 907
    everything = load_task("climate-fever", ["all"]).load(path)
    assert (len(everything.examples), everything.left_out) == (1535, 0)
    assert everything.fingerprint == found.fingerprint
    first = everything.examples[0]
    assert first.text == "Global warming is driving polar bears toward extinction"
    assert [e.rank for e in first.evidence] == [1, 2, 3, 4, 5]
    assert first.evidence[0].title == "Extinction risk from global warming"


@pytest.mark.parametrize(
    ("name", "data", "labels", "left_out", "stances"),
    [
        ("fever", "stance/fever.jsonl", {"SUPPORTS": 5993, "REFUTES": 6007}, 0, {"SUPPORTS": 6033, "REFUTES": 6041}),
        ("scifact", "stance/scifact.jsonl", {"SUPPORTS": 455, "REFUTES": 237}, 0, {"SUPPORTS": 506, "REFUTES": 265}),
        (
            "factcheck", "factcheckgpt", {"SUPPORTS": 472, "REFUTES": 159}, 30,
            {"SUPPORTS": 1082, "REFUTES": 159, None: 1914},
        ),
    ],
)  # fmt: skip
def test_claims_with_the_stance_of_each_passage(shared, name, data, labels, left_out, stances):
    task = load_task(name)
    dataset = task.load(shared / data)
    assert Counter(example.label for example in dataset.examples) == labels
    assert dataset.left_out == left_out
    assert Counter(stance for example in dataset.examples for stance in example.stances) == stances
    of_sentence = defaultdict(set)
    for example in dataset.examples:
        assert len(example.stances) == len(example.evidence) > 0
        for part in set().union(*(passage_parts(result.body) for result in example.evidence)):
            of_sentence[part].add(example.group)
    assert {len(groups) for groups in of_sentence.values()} == {1}
    sizes = Counter(example.group for example in dataset.examples)
    assert len(sizes) > 200
    assert max(sizes.values()) < 100
    halves = Counter(in_half(example, "first") for example in dataset.examples)
    assert 0.4 < halves[True] / halves.total() < 0.6


def test_a_larger_first_part_takes_from_the_second_half_alone():
    examples = [Example(str(i), str(i), "yes", group=str(i)) for i in range(2000)]
    parts = {share: {e.id for e in examples if in_half(e, "first", share)} for share in (0.5, 0.7, 0.9)}
    assert parts[0.5] < parts[0.7] < parts[0.9]
    assert all(abs(len(part) / 2000 - share) < 0.04 for share, part in parts.items())
    assert {e.id for e in examples if in_half(e, "second", 0.9)} == {e.id for e in examples} - parts[0.9]
    for half, share in (("first", 0.4), ("first", 1.0), (None, 0.9)):
        with pytest.raises(UserError, match="first_share"):
            in_half(examples[0], half, share)


def test_the_tasks_of_claims_ask_what_climate_fever_asks():
    of_climate, *others = (load_task(name, ["all"]) for name in ("climate-fever", "fever", "scifact", "factcheck"))
    for task in others:
        assert "climate" not in json.dumps(task.spec.model_dump()["protocols"]).lower()
        assert task.spec.protocols == others[0].spec.protocols
        assert load_task(task.name).labels == load_task("climate-fever").labels
        assert task.spec.labels == {label: of_climate.spec.labels[label] for label in task.labels}
        for protocol, spec in task.spec.protocols.items():
            published = of_climate.spec.protocols[protocol]
            assert (spec.answers, spec.also) == (published.answers, published.also)
            assert list(spec.wordings) == [name for name, wording in published.wordings.items() if wording.train]


def test_a_task_extends_another(tmp_path):
    base = own(tmp_path)
    (tmp_path / "fruit.csv").write_text("no,what,kind\n1,lemon,sour\n")
    (tmp_path / "sub").mkdir()
    path = tmp_path / "sub" / "kiwi.yaml"
    path.write_text("extends: ../fruit.yaml\nname: kiwi\nlabels: {sweet: {answer: Nice}, sour: {answer: Harsh}}\n")
    task = load_task(path)
    assert task.name == "kiwi"
    assert task.question("direct").answers == {"sweet": "Nice", "sour": "Harsh"}
    assert task.spec.protocols == load_task(base).spec.protocols
    assert [example.text for example in task.load().examples] == ["lemon"]  # beside the YAML that names them
    path.write_text("extends: sample-claims\nname: mine\n")
    assert len(load_task(path).load().examples) == 150
    for text, expected in (
        ("extends: fewer\n", "no task 'fewer': did you mean 'fever'?"),
        ("extends: 1\n", f"{path}: extends: should be the name of a task or the path of a .yaml file, not 1"),
        ("extends: kiwi.yaml\n", "extends: the tasks extend each other in a circle"),
        ("extends: ../sub/kiwi.yaml\n", "extends: the tasks extend each other in a circle"),
        ("extends: none.yaml\n", f"cannot read {tmp_path / 'sub' / 'none.yaml'}: No such file"),
        ("extends: ../fruit.yaml\nlables: {}\n", f"{path}: lables: unknown key; did you mean 'labels'?"),
    ):
        path.write_text(text)
        assert expected in complaint(load_task, path)


def test_search_results_in_a_second_table(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "claims.csv").write_text("no,what,kind\n1,lemon,sour\n2,apple,sweet\n3,plum,sweet\n")
    (tmp_path / "data" / "passages.csv").write_text("of,text\napple,A\nlemon,B\nlemon,A\n")
    evidence = {"list": "passages", "table": {"path": "passages.csv", "key": "of"}, "body": "text"}
    fields = {"id": "no", "text": "what", "label": "kind", "evidence": evidence, "group": "passages"}
    task = load_task(own(tmp_path, data={"table": "claims.csv", "fields": fields}))
    lemon, apple, plum = task.load(tmp_path / "data").examples
    assert [result.body for result in lemon.evidence] == ["B", "A"]
    assert [result.body for result in apple.evidence] == ["A"]
    assert plum.evidence == ()
    assert [lemon.group, apple.group, plum.group] == ["1", "1", "3"]
    file = tmp_path / "data" / "claims.csv"
    assert complaint(task.load, file) == f"{file} is a file; this task reads claims.csv in a folder"
    (tmp_path / "data" / "passages.csv").unlink()
    assert complaint(task.load, tmp_path / "data").startswith(f"cannot read {tmp_path / 'data' / 'passages.csv'}: ")
    message = complaint(load_task, own(tmp_path, data={"fields": fields}))
    assert "data: fields.evidence.table: give the `table` of the rows too" in message


@pytest.mark.parametrize("kind", [int, str])
def test_climate_fever_as_parquet_with_labels_as_numbers(tmp_path, kind):
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    evidence = [{"article": "Ice", "evidence": "It floats.", "votes": ["SUPPORTS", None]}]
    rows = [
        {"claim_id": kind(n), "claim": f"Claim {n}", "claim_label": n % 4, "evidences": evidence * (n % 3)}
        for n in range(8)
    ]
    path = tmp_path / "test.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    found = load_task("climate-fever", ["all"]).load(path).examples
    assert [e.id for e in found] == [str(n) for n in range(8)]
    assert [e.label for e in found[:4]] == ["SUPPORTS", "REFUTES", "NOT_ENOUGH_INFO", "DISPUTED"]
    assert [(e.title, e.body) for e in found[5].evidence] == [("Ice", "It floats.")] * 2
    path.write_bytes(path.read_bytes()[:-20])
    assert complaint(load_task("climate-fever").load, path).startswith(f"cannot read {path}: ")


def test_hate_speech_sentences_in_their_original_layout(shared):
    found = load_task("hsd").load(shared / "hsd").examples
    labels = [e.label for e in found]
    assert (len(labels), labels.count("hate"), labels.count("noHate")) == (478, 239, 239)
    file = shared / "hsd" / "sampled_test" / f"{found[0].id}.txt"
    assert found[0].text == file.read_text("utf-8").strip()


def test_a_task_of_ones_own(tmp_path):
    (tmp_path / "fruit.csv").write_text(
        '\ufeffno,what,kind\n1,"A lemon, ""raw""",1\n2,Ein süßer Apfel,sweet\n', "utf-8"
    )
    task = load_task(own(tmp_path))
    lemon, apple = task.load().examples
    assert (lemon.id, lemon.text, lemon.label) == ("1", 'A lemon, "raw"', "sour")
    assert (apple.id, apple.text, apple.label) == ("2", "Ein süßer Apfel", "sweet")
    question = task.question("direct")
    assert question.answers == {"sweet": "Sweet", "sour": "Sour"}
    assert question.words == {"sweet": "sweet", "Sweet": "sweet", "sugary": "sweet", "sour": "sour", "Sour": "sour"}
    assert task.load(tmp_path / "fruit.csv").fingerprint == task.load().fingerprint


def test_a_row_without_a_group_is_one_of_its_own(tmp_path):
    (tmp_path / "fruit.csv").write_text(
        "no,what,kind,tree\n1,lemon,sour,\n2,lime,sour, \n3,pear,sweet,a\n4,fig,sweet,a\n"
    )
    fields = {"id": "no", "text": "what", "label": "kind", "group": "tree"}
    found = load_task(own(tmp_path, data={"file": "fruit.csv", "fields": fields})).load().examples
    assert [each.group for each in found] == ["1", "2", "a", "a"]


def test_more_words_of_a_wording_leave_the_answers_of_its_protocol(tmp_path):
    words = {"prompt": "{text}? {answers}", "also": {"sweet": ["sure"]}}
    protocol = {"answers": {"sweet": "Yes", "sour": "No"}, "wordings": {"w": words}}
    question = load_task(own(tmp_path, protocols={"p": protocol})).question("p", "w")
    assert question.answers == {"sweet": "Yes", "sour": "No"}
    assert question.words == {"Yes": "sweet", "sure": "sweet", "No": "sour"}


def test_a_second_table_is_joined_by_a_nested_field(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"id": "1", "doc": {"text": "Limes."}, "kind": "sour"}) + "\n")
    (tmp_path / "more.csv").write_text("key,passage\nLimes.,They are green.\n")
    evidence = {"list": "passages", "body": "passage", "table": {"path": "more.csv", "key": "key"}}
    fields = {"id": "id", "text": "doc.text", "label": "kind", "evidence": evidence}
    task = load_task(own(tmp_path, data={"table": "rows.jsonl", "fields": fields}))
    assert [result.body for result in task.load(tmp_path).examples[0].evidence] == ["They are green."]


def test_evidence_without_text_is_none_and_joins_no_claims(tmp_path):
    fields = {"id": "id", "text": "claim", "label": "label", "group": "found", "evidence": {
        "list": "found", "body": "text", "stance": "says", "stances": {"for": "sweet"}}}  # fmt: skip
    found = [[{"text": text, "says": "for"} for text in (" ", f"Passage {i}.")] for i in range(3)]
    rows = [{"id": str(i), "claim": f"Claim {i}.", "label": "sweet", "found": found[i]} for i in range(3)]
    rows.append({"id": "3", "claim": "Claim 3.", "label": "sour", "found": []})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples = load_task(own(tmp_path, data={"fields": fields})).load(tmp_path / "rows.jsonl").examples
    assert [[result.body for result in each.evidence] for each in examples] == [
        ["Passage 0."], ["Passage 1."], ["Passage 2."], []]  # fmt: skip
    assert [each.stances for each in examples] == [("sweet",)] * 3 + [()]
    assert len({each.group for each in examples}) == 4


def test_words_that_yaml_takes_for_numbers_are_text(tmp_path):
    labels = "labels: {low: {answer: 1}, high: {answer: 2, also: [2.5]}}"
    text = yaml.safe_dump({k: v for k, v in OWN.items() if k not in ("labels", "data")}) + labels
    text += "\ndata: {fields: {id: a, text: b, label: c}}"
    question = load_task(own(tmp_path, text)).question("direct")
    assert question.answers == {"low": "1", "high": "2"}
    assert question.words["2.5"] == "high"


def test_the_example_in_the_docs_is_a_task(tmp_path):
    """Every block of YAML in the docs but recipes is read by our loader, and the whole task among them is used."""
    root = Path(__file__).resolve().parents[2]
    docs = sorted([*root.glob("*.md"), *root.glob("docs/*.md")])
    blocks = [block for page in docs for block in re.findall(r"```yaml\n(.*?)```", page.read_text("utf-8"), re.S)]
    blocks = [block for block in blocks if "steps" not in parse_yaml(block, "docs")]  # tests/test_pipeline.py has these
    tasks = [block for block in blocks if {"labels", "protocols"} <= parse_yaml(block, "docs").keys()]
    assert len(blocks) > len(tasks) > 0
    for block in blocks:
        DataSpec.model_validate(parse_yaml(block, "docs")["data"])
    for block in tasks:
        path = own(tmp_path, block)
        task = load_task(path)
        (tmp_path / "capitals.csv").write_text("key,statement,verdict\n1,Paris is in France.,1\n2,Rome is in Peru.,0\n")
        assert [(e.id, e.text, e.label) for e in task.load().examples] == [
            ("1", "Paris is in France.", "right"),
            ("2", "Rome is in Peru.", "wrong"),
        ]
        assert task.words() | {"yes": "right", "no": "wrong", "True": "right"} == task.words()
        for protocol, spec in task.spec.protocols.items():
            for wording in spec.wordings:
                task.question(protocol, wording)


def test_yaml_has_the_numbers_of_yaml_1_2():
    text = "a: [010, 0o17, 0x1F, -3, 1:30, 1_000, 089, 1., .5, -1.5e3, .inf, 1.2.3, +7]"
    expected = [10, 15, 31, -3, "1:30", "1_000", 89, 1.0, 0.5, -1500.0, float("inf"), "1.2.3", 7]
    values = parse_yaml(text, "x")["a"]
    assert values == expected
    assert [type(value) for value in values] == [type(value) for value in expected]
    for damaged in ("!!int x", "!!float x", "!!float ''", "!!bool x", "!!timestamp x"):
        with pytest.raises(UserError, match=r"^x: not valid YAML: "):
            parse_yaml(f"a: {damaged}", "x")


def test_labels_that_are_booleans_in_json_are_those_of_yaml(tmp_path):
    rows = [{"no": i, "what": f"fruit {i}", "kind": kind} for i, kind in enumerate((True, False))]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for right, wrong in (("true", "false"), ("True", "False")):
        path = own(tmp_path, data=OWN["data"] | {"label_values": {right: "sweet", wrong: "sour"}})
        examples = load_task(path).load(tmp_path / "rows.jsonl").examples
        assert [example.label for example in examples] == ["sweet", "sour"]


def test_braces_around_a_number_are_text(tmp_path):
    question = load_task(own(tmp_path, **wording("Is x^{2} or {0} in {text}? {answers}"))).question("p")
    (message,) = step_prompt(question.steps[0], "five", [*question.answers.values()])
    assert as_text(message.parts).startswith("Is x^{2} or {0} in five?")


def test_yaml_has_the_booleans_of_yaml_1_2(tmp_path):
    text = "a: [yes, No, on, off, y, true, False, 1e-5, 2020-01-01, 7]"
    assert parse_yaml(text, "x") == {"a": ["yes", "No", "on", "off", "y", True, False, 1e-5, "2020-01-01", 7]}
    labels = {"good": {"answer": "Fine"}, "bad": {"answer": "Poor"}}
    path = own(
        tmp_path,
        yaml.safe_dump({**OWN, "labels": labels, "data": OWN["data"] | {"label_values": {}}}).replace("Fine", "yes"),
    )
    assert load_task(path).question("direct").answers == {"good": "yes", "bad": "Poor"}


@pytest.mark.parametrize("text", ["[" * 100_000, "a: " + "[" * 20_000 + "]" * 20_000, "{a: " * 5_000])
def test_deeply_nested_yaml_is_one_line(tmp_path, text):
    assert complaint(load_task, own(tmp_path, text)).endswith("YAML nested too deeply")


@pytest.mark.parametrize(
    ("value", "prompts", "systems", "limits"),
    [
        ("{text}", ("{text}",), ("",), (16,)),
        (["{text}", "{previous}"], ("{text}", "{previous}"), ("", ""), (16, 16)),
        ({"prompt": "{text}", "system": "S", "max_new_tokens": 3}, ("{text}",), ("S",), (3,)),
        ({"steps": "{text}", "system": "S"}, ("{text}",), ("S",), (16,)),
        (
            {"system": "S", "max_new_tokens": 4, "steps": ["{text}", {"prompt": "{reply_1}", "system": "T"}]},
            ("{text}", "{reply_1}"), ("S", "T"), (4, 4),
        ),
        ([{"prompt": "{text}", "max_new_tokens": 2}, "{previous}"], ("{text}", "{previous}"), ("", ""), (2, 16)),
    ],
)  # fmt: skip
def test_a_wording_is_a_prompt_or_steps_with_what_is_theirs(tmp_path, value, prompts, systems, limits):
    question = load_task(own(tmp_path, **wording(value))).question("p")
    assert (question.steps, question.systems, question.new_tokens) == (prompts, systems, limits)


def test_labels_are_chosen_in_the_tasks_order():
    assert load_task("climate-fever", ["DISPUTED", "SUPPORTS"]).labels == ("SUPPORTS", "DISPUTED")
    assert complaint(load_task, "climate-fever", ["SUPPORTS"]).endswith("choose at least two labels")


def test_what_is_not_known_is_answered_with_the_nearest_that_is():
    task = load_task("climate-fever", ["all"])
    assert "no task 'climate-fewer': did you mean 'climate-fever'? (known:" in complaint(load_task, "climate-fewer")
    assert "has no label 'SUPORTS'; did you mean 'SUPPORTS'?" in complaint(load_task, "climate-fever", ["SUPORTS"])
    assert "has no protocol 'fiar'; did you mean 'fair'?" in complaint(task.question, "fiar")
    assert "has no wording 'plane'; did you mean 'plain'?" in complaint(task.question, "direct", "plane")
    assert "no answer for NOT_ENOUGH_INFO, DISPUTED; use `label_set`" in complaint(task.question, "fair")
    assert complaint(task.load).endswith("say where they are with `data`")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (json.dumps(ROW)[:-10], "line 1: not valid JSON (Unterminated string starting at); the file may be truncated"),
        (json.dumps(ROW) + "\n{oops}\n", "line 2: not valid JSON"),
        (json.dumps({"claim_id": "0", "claim": "x"}), "line 1: no field 'claim_label' (found: claim, claim_id)"),
        (json.dumps({**ROW, "claim": None}), "line 1: field 'claim' should be text, found NoneType"),
        (json.dumps({**ROW, "claim": "\ud83d"}), "line 1: field 'claim' holds half a surrogate pair"),
        (json.dumps({**ROW, "claim_label": "MAYBE"}), "line 1: label 'MAYBE' is not one of SUPPORTS, REFUTES, "),
        (json.dumps({**ROW, "claim_label": None}), "line 1: label None is not one of"),
        (json.dumps(ROW) + "\n\n" + json.dumps(ROW), "line 3: id '0' was used before, at "),
        (json.dumps({**ROW, "evidences": None}), "line 1: field 'evidences' should be a list of search results"),
        (json.dumps({**ROW, "evidences": [{}]}), "line 1: evidences[0] has no text field 'evidence'"),
        (json.dumps({**ROW, "claim_label": "DISPUTED"}), "no examples with the labels SUPPORTS, REFUTES"),
        ("", "no examples with the labels SUPPORTS, REFUTES"),
    ],
)
def test_bad_data_are_named(tmp_path, content, expected):
    path = tmp_path / "claims.jsonl"
    path.write_text(content)
    message = complaint(load_task("climate-fever").load, path)
    assert message.startswith(str(path))
    assert expected in message


def test_data_that_are_not_there(tmp_path):
    task = load_task("climate-fever")
    path = tmp_path / "none.jsonl"
    assert complaint(task.load, path) == f"cannot read {path}: No such file or directory"
    assert "is a folder; this task reads one" in complaint(task.load, tmp_path)
    path = tmp_path / "none.parquet"
    assert complaint(task.load, path) == f"cannot read {path}: No such file or directory"


def test_a_csv_may_hold_long_texts_and_nobody_else_is_changed(tmp_path):
    before = csv.field_size_limit()
    for name in ("one", "two"):
        (tmp_path / f"{name}.csv").write_text(f"title,text\n{name},{'x' * 5_000_000}\n{name},short\n")
    both = zip(read_table(tmp_path / "one.csv"), read_table(tmp_path / "two.csv"), strict=True)
    seen = [(a["title"], b["title"], len(b["text"]), csv.field_size_limit()) for (_, a), (_, b) in both]
    assert seen == [("one", "two", 5_000_000, before), ("one", "two", 5, before)]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"no,what,kind\n1,lemon\n", "line 2: not as many fields as the header has"),
        (b"no,what,kind\n1,lemon,sour,x\n", "line 2: not as many fields as the header has"),
        (b"no,what\n1,lemon\n", "line 2: no field 'kind' (found: no, what)"),
        (b"no,what,kind\n1,lemon,salty\n", "line 2: label 'salty' is not one of sweet, sour"),
        (b"no,what,kind\n1,\xff,sour\n", "not readable as UTF-8 CSV"),
        (b'no,what,kind\n1,"lemon,sour\n', "not readable as UTF-8 CSV (unexpected end of data)"),
        (b"no,what,kind\n", "no examples with the labels sweet, sour"),
        (b"", "no examples with the labels sweet, sour"),
    ],
)
def test_bad_csv_is_named(tmp_path, content, expected):
    (tmp_path / "fruit.csv").write_bytes(content)
    message = complaint(load_task(own(tmp_path)).load)
    assert message.startswith(str(tmp_path / "fruit.csv"))
    assert expected in message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"lables": {}}, "lables: unknown key; did you mean 'labels'?"),
        ({"labels": {"sweet": {"answer": "Sweet"}}}, "at least two are needed"),
        (
            {"labels": {"sweet": {"anser": "Sweet"}, "sour": {"answer": "Sour"}}},
            "labels.sweet.anser: unknown key; did you mean 'answer'?",
        ),
        (
            {"labels": {"sweet": {"answer": True}, "sour": {"answer": False}}},
            "labels.sweet.answer: should be text, not True; put it in quotes",
        ),
        ({"labels": {"a": {"answer": "Yes"}, "b": {"answer": "yes"}}}, "labels: 'yes' stands for both a and b"),
        ({"labels": {"a": {"answer": "A"}, "b": {"answer": "B", "also": ["a"]}}}, "'a' stands for both a and b"),
        ({"labels": {"a": {"answer": 1}, "b": {"answer": -1}}}, "labels: '1' of a and '-1' of b differ in signs alone"),
        ({"labels": {"a": {"answer": "C"}, "b": {"answer": "C++"}}}, "use words of letters and digits"),
        ({"labels": {"refused": {"answer": "A"}, "b": {"answer": "B"}}}, "'refused' is what an answer without a label"),
        ({"undecided_label": "sower"}, "undecided_label: 'sower' is no label; did you mean 'sour'?"),
        ({"default_labels": ["sweat"]}, "default_labels: 'sweat' is no label; did you mean 'sweet'?"),
        ({"data": {**OWN["data"], "label_values": {1: "sauer"}}}, "data.label_values: 'sauer' is no label"),
        ({"data": {"file": "fruit.csv"}}, "data: give either fields, or folder with label_file"),
        ({"data": {**OWN["data"], "folder": "texts"}}, "data: give either fields, or folder with label_file"),
        ({"data": {"folder": "texts"}}, "data: give either fields, or folder with label_file"),
        ({"protocols": {"direct": {"wordings": {}}}}, "protocols.direct: no wordings"),
        (wording("{text } {answers}?"), "step 1 has no field {text }; did you mean 'text'?"),
        (wording("{text.x} {answers}?"), "step 1 has no field {text.x}; did you mean 'text'?"),
        (wording("{text} {text!r}"), "step 1 has no field {text!r}; did you mean 'text'?"),
        (wording("{Text} {answers}?"), "step 1 has no field {Text}; did you mean 'text'?"),
        (wording("{text} {reply_1}"), "step 1 has no field {reply_1}"),
        (wording("{text} {claim}"), "step 1 has no field {claim}"),
        (wording("Hello {answers}?"), "protocols.p.wordings.w: step 1 does not show the item"),
        (wording("Claim: {text {answers}?"), "step 1 does not show the item"),
        (wording(["{text}", "Right? {answers}"]), "step 2 does not show the item: every item would get one prompt"),
        (wording(["{text}", "{previous} {reply_2}"]), "step 2 has no field {reply_2}; did you mean 'reply_1'?"),
        (wording({"prompt": "{text}", "system": "Judge {text}."}), "the system text of step 1 has no field {text}"),
        (wording({"promt": "{text}"}), "wordings.w.promt: unknown key; did you mean 'prompt'?"),
        (
            wording({"prompt": "{text}", "sistem": "x"}),
            "wordings.w.sistem: unknown key; did you mean 'system'?",
        ),
        (wording({"prompt": "{text}", "max_new_tokens": 0}), "w.steps.0.max_new_tokens: Input should be greater"),
        (wording([]), "protocols.p.wordings.w.steps: Tuple should have at least 1 item"),
        (wording({"prompt": "{text}", "answers": {"swet": "x"}}), "protocols.p.wordings.w: 'swet' is no label"),
        ({"protocols": {"p": {"wordings": {"w": "?"}, "answers": {"swet": "S"}}}}, "did you mean 'sweet'?"),
        (
            {"protocols": {"p": {"wordings": {"w": "?"}, "answers": {"sweet": "Yes"}, "also": {"sour": ["yes"]}}}},
            "protocols.p: 'yes' stands for both sweet and sour",
        ),
        ({"protocols": {"p": {"wordings": {"w": "?"}, "max_new_tokens": 0}}}, "protocols.p.max_new_tokens: Input"),
    ],
)
def test_a_bad_task_is_named(tmp_path, changes, expected):
    message = complaint(load_task, own(tmp_path, **changes))
    assert message.startswith(f"{tmp_path / 'fruit.yaml'}: ")
    assert expected in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: [\n", "not valid YAML: while parsing a flow node"),
        ("a: !!python/object/apply:os.system [ls]", "not valid YAML: could not determine a constructor"),
        ("", "the file: Input should be a valid dictionary"),
        ("- a\n- b", "the file: Input should be a valid dictionary"),
    ],
)
def test_a_file_that_is_no_task(tmp_path, text, expected):
    path = own(tmp_path, text)
    message = complaint(load_task, path)
    assert message.startswith(f"{path}: ")
    assert expected in message
    path.write_bytes(b"\xff\xfe")
    assert "not valid YAML" in complaint(load_task, path)
    path.unlink()
    assert complaint(load_task, path) == f"cannot read {path}: No such file or directory"


@pytest.fixture
def posts(tmp_path) -> Path:
    """A folder of texts with its label file, and a text outside it that no id may reach."""
    (tmp_path / "posts" / "sampled_test").mkdir(parents=True)
    (tmp_path / "secret.txt").write_text("SECRET")
    (tmp_path / "posts" / "sampled_test" / "a.txt").write_text("A post.\n")
    (tmp_path / "posts" / "annotations_metadata.csv").write_text("file_id,label\na,noHate\n")
    return tmp_path / "posts"


def test_an_id_in_a_label_file_never_becomes_a_path(posts):
    wanted = ["../../secret", "../../../../../../etc/passwd", str(posts.parent / "secret"), "~/secret"]
    lines = "".join(f"{item},hate\n" for item in wanted)
    (posts / "annotations_metadata.csv").write_text(f"file_id,label\na,noHate\n{lines}")
    (found,) = load_task("hsd").load(posts).examples
    assert (found.id, found.text, found.label) == ("a", "A post.", "noHate")


def test_the_companions_that_macos_adds_to_texts_are_no_posts(posts):
    (posts / "sampled_test" / "._a.txt").write_bytes(b"\x00\x05\x16\x07\xff")
    assert [example.id for example in load_task("hsd").load(posts).examples] == ["a"]


def test_a_folder_of_texts_that_cannot_be_used(posts):
    load = load_task("hsd").load
    labels, texts = posts / "annotations_metadata.csv", posts / "sampled_test"
    assert "has no folder sampled_test; `data` should name" in complaint(load, posts.parent)
    (texts / "b.txt").write_bytes(b"\xff")
    assert complaint(load, posts).endswith(f"no row with file_id 'b' in {labels}")
    labels.write_text("file_id,label\na,noHate\nb,hate\n")
    assert complaint(load, posts) == f"{texts / 'b.txt'}: not UTF-8 text (invalid start byte)"
    labels.write_text("file_id,label\na,noHate\na,hate\n")
    assert complaint(load, posts) == (
        f"{labels}, line 3: id 'a' was used before, at {labels}, line 2; ids must be unique"
    )
    (texts / "b.txt").unlink()
    labels.write_text("file_id,label\na,unsure\n")
    assert complaint(load, posts) == f"{texts / 'a.txt'}: label 'unsure' is not one of hate, noHate"
    (texts / "a.txt").unlink()
    assert complaint(load, posts) == f"{posts}: no examples with the labels hate, noHate"
    labels.unlink()
    assert complaint(load, posts) == f"cannot read {labels}: No such file or directory"
