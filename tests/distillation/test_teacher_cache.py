"""A teacher's cache: the values of a plain dense pass, the same bytes after every stop, a line for each fault."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import forked
from sailkit.data.exports import HELD_OUT
from sailkit.distillation.cache import INDEX, CacheReader, Shard, check_mass, pack
from sailkit.distillation.load import TeacherModelOptions
from sailkit.distillation.records import TeacherExample, TeacherRow, teacher_examples
from sailkit.distillation.teacher import LocalTeacher, TopK
from sailkit.distillation.teacher_cache import render_for_teacher, teacher_cache
from sailkit.errors import UserError
from sailkit.models.base import ModelOptions
from sailkit.models.local import LocalModel
from sailkit.models.sources import resolve
from sailkit.prompts.sail import completion
from sailkit.records import SearchResult, TrainingExample
from sailkit.testing import MisbehavingServer
from sailkit.training.tokenise import held_out_of, read_data
from small_rows import THINGS, write

FLOAT32 = TeacherModelOptions(dtype="float32")

NOISE = 1e-4  # of a log-probability in fp32


def example(i: int, name: str = "") -> TrainingExample:
    thing = THINGS[i % len(THINGS)]
    good = SearchResult(f"{thing.title()} like {i} red balls very much.", thing)
    bad = SearchResult("It was a sunny day and the girl went out." + " She ran." * (i % 5), "Day")
    results, verdicts = ((good, bad), ("informative", "distracting")) if i % 2 else ((bad,), ("distracting",))
    said = f"{i} red balls." + " They ran." * (i % 7)
    return TrainingExample(name or str(i), f"What do {thing} like?", "", results, verdicts, said, "sail-fixed")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    train, held_out = map(example, range(14)), map(example, range(14, 20))
    return write(tmp_path_factory.mktemp("cache") / "build", train, held_out)


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    return shared / "models" / "stories260k"


@pytest.fixture(scope="module")
def padded(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random teacher whose matrix has 64 rows that are no token."""
    made = tmp_path_factory.mktemp("padded")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=576, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=512, initializer_range=0.5, tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(made)
    AutoTokenizer.from_pretrained(folder).save_pretrained(made)
    return made


def keep(teacher: Path, data: Path, out: Path, **more):
    return teacher_cache(teacher=str(teacher), data=[str(data)], out=out, **{"options": FLOAT32, **more})


def pairs(teacher: Path, data: Path, max_length: int = 512):
    examples = read_data([str(data)]) + read_data(held_out_of([str(data)]), HELD_OUT)
    return teacher_examples(render_for_teacher(examples, AutoTokenizer.from_pretrained(teacher), max_length, None))


def dense(teacher: Path, pair, tokens: int = 512) -> np.ndarray:
    """Log-probabilities of every token at every supervised position, from one plain pass; shape (n, tokens)."""
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    with torch.inference_mode():
        logits = model(torch.tensor([pair.prompt + pair.tokens])).logits[0, len(pair.prompt) - 1 : -1, :tokens]
    return torch.log_softmax(logits, -1).numpy()


def entries(row: TeacherRow):
    """Ids and log-probabilities of each position."""
    return list(zip(*(np.split(part, row.starts[1:-1]) for part in (row.ids, row.logprobs)), strict=True))


@pytest.fixture(scope="module")
def whole(folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    keep(folder, data, out, shard_tokens=500)
    return out


@pytest.mark.parametrize("teacher", ["folder", "padded"])
def test_values_are_those_of_a_dense_pass(teacher, data, tmp_path, request):
    teacher = request.getfixturevalue(teacher)
    figures = keep(
        teacher,
        data,
        tmp_path / "run",
        k=100,
        top_p=0.9,
        precision="float32",
        options=replace(FLOAT32, batch_tokens=1500),
    )
    cache = CacheReader.open(tmp_path / "run")
    assert (figures.n, figures.pairs, len(cache), figures.finished) == (20, 20, 20, True)
    seen, losses = 0, []
    for pair in pairs(teacher, data):
        row, expected = cache.get(pair.prompt, pair.completion), dense(teacher, pair)
        assert row.tokens.tolist() == list(pair.tokens)
        np.testing.assert_allclose(row.observed, expected[range(len(pair.tokens)), pair.tokens], atol=NOISE)
        losses += list(row.observed)
        for place, (ids, logprobs) in enumerate(entries(row)):
            probs = np.exp(expected[place].astype(np.float64))
            best = np.sort(probs)[::-1]
            count = min(100, int(np.searchsorted(np.cumsum(best), 0.9)) + 1)
            # Where the sum is 0.9 within rounding, one more or fewer is right too.
            assert abs(len(ids) - count) <= (abs(np.cumsum(best) - 0.9).min() < NOISE)
            assert len(set(ids)) == len(ids)
            np.testing.assert_allclose(logprobs, expected[place][ids], atol=NOISE)
            np.testing.assert_allclose(np.exp(logprobs), best[: len(ids)], atol=NOISE)
            assert row.tail[place] == pytest.approx(np.delete(probs, ids).sum(), rel=1e-3)
            seen += 1
    assert seen == figures.tokens == figures.to_json()["tokens"]
    assert len(figures.open()) == figures.pairs
    assert figures.loss == pytest.approx(-np.mean(losses), rel=1e-5)


def test_what_half_precision_loses_is_bounded(folder, data, whole):
    cache = CacheReader.open(whole)
    worst = 0.0
    for pair in pairs(folder, data)[::4]:
        row, expected = cache.get(pair.prompt, pair.completion), dense(folder, pair).astype(np.float64)
        for place, (ids, logprobs) in enumerate(entries(row)):
            exact = np.append(np.exp(expected[place][ids]), np.exp(np.delete(expected[place], ids)).sum())
            stored = np.append(np.exp(logprobs.astype(np.float64)), row.tail[place])
            worst = max(worst, float((exact * np.log(exact / (stored / stored.sum()))).sum()))
            assert stored.sum() == pytest.approx(1, abs=2e-3)
    assert 0 <= worst < 1e-5


@pytest.mark.parametrize(("k", "expected"), [(511, 511), (512, 512), (10**6, 512), (1, 1)])
def test_k_has_no_cap(folder, data, tmp_path, k, expected):
    keep(folder, data, tmp_path / "run", k=k, top_p=1.0, precision="float32")
    pair = pairs(folder, data)[0]
    row = CacheReader.open(tmp_path / "run").get(pair.prompt, pair.completion)
    assert set(np.diff(row.starts)) == {expected}
    least = np.exp(np.sort(dense(folder, pair).astype(np.float64), 1)[:, : 512 - expected]).sum(1)
    np.testing.assert_allclose(row.tail, least, rtol=1e-3)


def test_rows_of_the_matrix_that_are_no_token_have_no_probability(padded, data, tmp_path):
    keep(padded, data, tmp_path / "run", k=576, top_p=1.0)
    pair = pairs(padded, data)[0]
    row = CacheReader.open(tmp_path / "run").get(pair.prompt, pair.completion)
    assert row.ids.max() < 512
    assert not row.tail.any()
    assert np.exp(dense(padded, pair, 576)[:, :512]).sum(1).mean() < 0.95  # they would have had some


def test_each_completion_is_stored_once(folder, tmp_path):
    data = write(tmp_path / "data", [example(1), example(2), example(1, "again")], [example(1, "and again")])
    figures = keep(folder, data, tmp_path / "run")
    assert (figures.n, figures.pairs) == (4, 2)
    assert len({pair.key for pair in pairs(folder, data)}) == len(CacheReader.open(tmp_path / "run")) == 2


def test_the_same_completion_behind_another_prompt_is_another_row(folder, tmp_path):
    both = [replace(example(1), id=name, instruction=name) for name in ("What do cats like?", "Count the balls.")]
    data = write(tmp_path / "data", both)
    figures = keep(folder, data, tmp_path / "run", precision="float32")
    assert (figures.n, figures.pairs) == (2, 2)
    cache = CacheReader.open(tmp_path / "run")
    observed = []
    for pair in pairs(folder, data):
        row, expected = cache.get(pair.prompt, pair.completion), dense(folder, pair)
        np.testing.assert_allclose(row.observed, expected[range(len(pair.tokens)), pair.tokens], atol=NOISE)
        observed.append(row.observed)
    assert abs(observed[0] - observed[1]).max() > 100 * NOISE


@pytest.fixture(scope="module")
def wide(folder: Path) -> LocalTeacher:
    """A teacher with an output layer of 50,000 rows, and room for a million tokens in a batch."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=50_000, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                         num_attention_heads=2, max_position_embeddings=512)  # fmt: skip
    model, tokenizer = LlamaForCausalLM(config).eval(), AutoTokenizer.from_pretrained(folder)
    options = ModelOptions(dtype="float32", batch_tokens=10**6)
    return LocalTeacher(LocalModel("wide", model, tokenizer, options, {}), TopK(8, 1.0, "float32"))


def test_a_pass_has_no_more_logits_than_its_budget(wide):
    """Logits are there for every column that any row of the batch needs: from the shortest prompt to the last end."""
    dice = random.Random(0)
    lengths = [(dice.randint(10, 200), dice.randint(100, 250)) for _ in range(60)]
    some = [TeacherExample(str(i), (5,) * a, (7,) * b, "") for i, (a, b) in enumerate(lengths)]
    batches = wide.plan(some)
    assert sorted(i for batch in batches for i in batch) == list(range(len(some)))

    def logits(batch):
        columns = {column for i in batch for column in range(len(some[i].prompt) - 1, len(some[i].inputs))}
        return len(batch) * len(columns) * 50_000

    assert max(map(logits, batches)) <= 2**28
    # Nor is a batch smaller than it has to be.
    assert all(logits([*batch, after[0]]) > 2**28 for batch, after in itertools.pairwise(batches))
    assert len(batches) > 2


def test_a_shortened_prompt_keeps_its_completion(folder, tmp_path):
    body = "The sun was hot and the sea was blue. " * 60
    longest = TrainingExample(
        "long", "Say it.", "", (SearchResult(body, "Sea"),), ("distracting",), "Hot.", "sail-fixed"
    )
    data = write(
        tmp_path / "data", [longest, TrainingExample("no", "Say it. " * 200, "", (), (), "Hot.", "sail-fixed")]
    )
    figures = keep(folder, data, tmp_path / "run", max_length=400)
    assert figures.cut_tokens > 100
    assert json.loads((tmp_path / "run" / "dropped.jsonl").read_text())["id"] == "no"
    (pair,) = pairs(folder, data, 400)
    row = CacheReader.open(tmp_path / "run").get(pair.prompt, pair.completion)
    said = AutoTokenizer.from_pretrained(folder).decode(row.tokens, skip_special_tokens=True)
    assert said.strip() == pair.completion == completion(longest)


def test_a_tuned_teacher_is_asked_in_the_style_of_its_training(folder, tmp_path):
    teacher = tmp_path / "teacher"
    shutil.copytree(folder, teacher, copy_function=shutil.copyfile)
    teacher.chmod(0o755)
    (teacher / "sailkit.json").write_text(json.dumps({"styles": ["sail"]}))
    data = write(tmp_path / "data", [example(2)])
    keep(teacher, data, tmp_path / "run")
    assert CacheReader.open(tmp_path / "run").settings["style"] == "sail"
    with pytest.raises(UserError, match="needs a tokenizer with a chat template"):
        keep(teacher, data, tmp_path / "other", style="chat")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".safetensors", ".jsonl")}


def test_two_shards_are_one(folder, data, whole, tmp_path):
    first = keep(folder, data, tmp_path / "run", shard_tokens=500, shard="1/2")
    assert first.to_json()["finished"] is False
    assert first.missing_files[0] == "teacher-00002.safetensors"
    with pytest.raises(UserError, match="not finished; run the same"):
        CacheReader.open(tmp_path / "run")
    assert keep(folder, data, tmp_path / "run", shard_tokens=500, shard="2/2").finished
    assert files(tmp_path / "run") == files(whole)


@pytest.mark.long
def test_ten_kills_change_nothing(folder, tmp_path):
    data = write(tmp_path / "data", map(example, range(80)))
    told = {"teacher": str(folder), "data": [str(data)], "options": FLOAT32, "shard_tokens": 500}
    teacher_cache(**told, out=tmp_path / "whole")
    count = len(list((tmp_path / "whole").glob("*.safetensors")))
    chance = random.Random(5)
    killed = 0
    for share in sorted(chance.uniform(0.05, 0.9) for _ in range(10)):
        child = forked.start(partial(teacher_cache, **told, out=tmp_path / "killed"))
        while child.is_alive() and len(list((tmp_path / "killed").glob("*.safetensors"))) < share * count:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.02))
        child.kill()
        child.join()
        killed += child.exitcode == -signal.SIGKILL
    assert killed
    (tmp_path / "killed" / ".teacher-00001.safetensors.torn").write_bytes(b"left behind by a kill")
    teacher_cache(**told, out=tmp_path / "killed")
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert not list((tmp_path / "killed").glob(".teacher*"))


# What can be wrong with a cache


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def read_all(cache: Path, folder: Path, data: Path) -> None:
    found = CacheReader.open(cache)
    for pair in pairs(folder, data):
        found.get(pair.prompt, pair.completion)


def test_a_damaged_shard_is_told_and_made_anew(folder, data, whole, copy):
    shard = sorted(copy.glob("*.safetensors"))[1]
    good = shard.read_bytes()
    spoilt = good[:-100] + bytes(8) + good[-92:]
    for content, message in (
        (good[:-100], "cut off or damaged"),
        (b"", "cut off or damaged"),
        (spoilt, "have changed"),
    ):
        shard.write_bytes(content)
        before = files(copy)
        with pytest.raises(UserError, match=message) as error:
            read_all(copy, folder, data)
        assert str(shard) in str(error.value)
        assert "\n" not in str(error.value)
        with pytest.raises(UserError, match="damaged"):
            keep(folder, data, copy, shard_tokens=500)
        assert files(copy) == before
    shard.unlink()
    with pytest.raises(UserError, match="this shard is missing"):
        read_all(copy, folder, data)
    keep(folder, data, copy, shard_tokens=500)
    assert files(copy) == files(whole)


def test_a_cache_of_another_teacher_or_template_is_named(folder, padded, whole):
    cache = CacheReader.open(whole)
    cache.check(resolve(str(folder)), k=64, max_length=512)
    with pytest.raises(UserError, match=r"another teacher.*weights_sha256"):
        cache.check(resolve(str(padded)))
    with pytest.raises(UserError, match=r"max_length: 512 there, 400 now"):
        cache.check(max_length=400)
    cache.settings["styles_sha256"] = "0"
    with pytest.raises(UserError, match=r"template \(styles_sha256"):
        cache.check()


def test_other_completions_are_told(folder, whole, tmp_path):
    other = write(tmp_path / "other", [example(77)])
    with pytest.raises(UserError, match="cache of other completions"):
        read_all(whole, folder, other)
    with pytest.raises(UserError, match=r"holds another run \(data_sha256"):
        keep(folder, other, whole, shard_tokens=500)


def row(probs, tail) -> TeacherRow:
    probs = np.asarray(probs, np.float64)
    n = len(tail)
    return TeacherRow(
        np.zeros(n, np.int64), np.linspace(0, len(probs), n + 1).astype(int), np.arange(len(probs)),
        np.log(probs).astype(np.float16), np.asarray(tail, np.float32), np.zeros(n, np.float32),
    )  # fmt: skip


def test_more_probability_than_there_is_is_told():
    check_mass(row([0.5, 0.25, 0.6, 0.4], [0.25, 0.0]), "here")
    check_mass(row(np.full(30000, 1 / 30000), [0.0]), "rounding alone adds up to this")
    with pytest.raises(UserError, match=r"here: the probabilities of position 1 sum to 1\.09"):
        check_mass(row([0.5, 0.25, 0.6, 0.4], [0.25, 0.1]), "here")
    with pytest.raises(UserError, match="position 0"):
        check_mass(row([0.5], [np.nan]), "here")


def test_a_shard_gives_back_what_was_packed(tmp_path):
    rows = [row([0.5, 0.25, 0.6, 0.4], [0.25, 0.0]), row([0.7], [0.3]), row([0.1] * 400, [0.1, 0.2])]
    (tmp_path / "x").write_bytes(pack([bytes([i]) * 32 for i in range(3)], rows))
    shard = Shard(tmp_path / "x")
    assert shard.keys == [bytes([i]) * 32 for i in range(3)]
    for i, one in enumerate(rows):
        for name in ("tokens", "starts", "ids", "logprobs", "tail", "observed"):
            np.testing.assert_array_equal(getattr(shard.row(i), name), getattr(one, name))


def test_no_cache_at_all(tmp_path, data, folder):
    with pytest.raises(UserError, match="not a run folder"):
        CacheReader.open(tmp_path)
    mistakes: list[dict] = [{"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}, {"precision": "int8"}, {"shard": "3/2"}]
    for bad in (*mistakes, {"max_length": 513}):
        with pytest.raises(UserError, match=f"`{next(iter(bad))}`"):
            keep(folder, data, tmp_path / "run", **bad)
    assert not (tmp_path / "run").exists()


def test_a_damaged_index_is_told(copy):
    (copy / INDEX).write_text('{"file": "teacher-00001.safetensors"}\n')
    with pytest.raises(UserError, match="line 1: damaged"):
        CacheReader.open(copy)


# A teacher behind a server


class Served:
    """What a server that gives a prompt's log-probabilities says, from a real model."""

    def __init__(self, folder: Path, form: str, most: int = 10**6) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.form, self.most = form, most

    def __call__(self, asked):
        ids, k = asked["prompt"], min(asked["prompt_logprobs"], self.most)
        with torch.inference_mode():
            logprobs = torch.log_softmax(self.model(torch.tensor([ids])).logits[0], -1)
        best = logprobs.topk(k)
        places = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        top = [None] + [dict(zip(*place, strict=True)) for place in places]
        seen = [None] + [logprobs[i, token].item() for i, token in enumerate(ids[1:])]
        if self.form == "text":
            texts = [None] + [{f"piece {token}": value for token, value in one.items()} for one in top[1:]]
            said = {"tokens": ["piece"] * len(ids), "token_logprobs": seen, "top_logprobs": texts[: len(ids)]}
            return {"logprobs": said}
        if self.form == "token ids":
            names = [None] + [{f"token_id:{token}": value for token, value in one.items()} for one in top[1:]]
            tokens = [f"token_id:{token}" for token in ids]
            said = {"tokens": tokens, "token_logprobs": seen, "top_logprobs": names[: len(ids)]}
            said = {name: [*given, "token_id:5" if name == "tokens" else None] for name, given in said.items()}
            return {"logprobs": said}  # with the token that it generated
        for one, token, value in zip(top[1:], ids[1:], seen[1:], strict=False):
            one.setdefault(token, value)
        listed = [one and {str(token): {"logprob": value, "rank": 1} for token, value in one.items()} for one in top]
        return {"prompt_logprobs": listed[: len(ids)]}


def ask(server, folder, data, out, **more):
    return teacher_cache(
        teacher=f"endpoint:any@{server.url}",
        data=[str(data)],
        out=out,
        teacher_tokenizer=folder,
        max_length=400,
        **more,
    )


@pytest.mark.parametrize("form", ["prompt_logprobs", "token ids"])
def test_a_server_is_asked_for_the_same_values(folder, data, tmp_path, form):
    keep(folder, data, tmp_path / "here", max_length=400, k=20, top_p=0.9)
    with MisbehavingServer({2: 503}, echo=Served(folder, form)) as server:
        figures = ask(server, folder, data, tmp_path / "there", k=20, top_p=0.9)
    assert server.requests[0].path == "/v1/completions"
    assert figures.finished
    here, there = (CacheReader.open(tmp_path / name) for name in ("here", "there"))
    there.check(resolve(str(folder)))
    for pair in pairs(folder, data, 400):
        a, b = (cache.get(pair.prompt, pair.completion) for cache in (here, there))
        np.testing.assert_array_equal(a.tokens, b.tokens)
        np.testing.assert_allclose(a.observed, b.observed, atol=NOISE)
        np.testing.assert_allclose(a.tail, b.tail, atol=NOISE)
        for (_, first), (_, second) in zip(entries(a), entries(b), strict=True):
            assert abs(len(first) - len(second)) <= 1
            np.testing.assert_allclose(first[: len(second)], second[: len(first)], atol=5e-3)


@pytest.mark.parametrize(
    ("echo", "message"),
    [
        (("prompt_logprobs", 19), r"gives (19|20) log-probabilities at a position, and 30 were asked for; use `top_k`"),
        (("text", 30), "no log-probabilities of a prompt's tokens by token id"),
        (None, "no log-probabilities of a prompt's tokens by token id"),
        ("lists", "no log-probabilities of a prompt's tokens by token id"),
        ("refuses", "refuses to give log-probabilities: Parameter top_logprobs is not supported"),
        ("filters", "refuses example '1': status 400: It was filtered.; take that row out of the data"),
        ("others", "reads other tokens than were sent"),
        ("too much", "sum to .* more than 1"),
    ],
)
def test_a_server_that_does_not_give_what_is_needed_is_told(folder, tmp_path, echo, message):
    data = write(tmp_path / "data", [example(1)])
    answers = {
        "others": lambda asked: {
            "prompt_logprobs": [None] + [{"9999": {"logprob": -1.0}}] * (len(asked["prompt"]) - 1)
        },
        "lists": lambda _: {"logprobs": {"top_logprobs": [[["token_id:1", -1.0]]]}},
        "too much": lambda asked: {"prompt_logprobs": [{str(i): {"logprob": -0.1} for i in range(512)}] * 400},
    }
    say = Served(folder, *echo) if isinstance(echo, tuple) else answers.get(echo)
    filtered = 400, {"error": {"message": "It was filtered.", "code": "content_filter"}}
    refuse = (lambda _: filtered) if echo == "filters" else None
    with (
        MisbehavingServer({1: "no_logprobs"} if echo == "refuses" else {}, echo=say, refuse=refuse) as server,
        pytest.raises(UserError, match=message),
    ):
        ask(server, folder, data, tmp_path / "run", k=30)
    assert len(server.requests) == 1


def test_an_endpoint_needs_its_tokenizer(folder, data, tmp_path):
    told = {"data": [str(data)], "out": tmp_path / "run"}
    with pytest.raises(UserError, match="an endpoint needs `teacher_tokenizer`"):
        teacher_cache(teacher="endpoint:x@http://127.0.0.1:9/v1", **told)
    with pytest.raises(UserError, match="no such folder"):
        teacher_cache(teacher="endpoint:x@http://127.0.0.1:9/v1", teacher_tokenizer=tmp_path / "no", **told)
    with pytest.raises(UserError, match="goes with an endpoint"):
        teacher_cache(teacher=str(folder), teacher_tokenizer=folder, **told)
