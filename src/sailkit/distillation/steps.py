"""The steps of a distillation: what comes before the student is trained, what it is to learn, and how near it came."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sailkit import runs
from sailkit.data.card import CARD
from sailkit.data.exports import HELD_OUT, TRAIN, example_row
from sailkit.distillation.completions import TokenizerPair, WithoutTeacher, check_any_taught, notify, save

from sailkit.distillation.completions import with_teacher_wording, without_teacher  # isort: skip
from sailkit.distillation.estimate import fitting
from sailkit.distillation.fidelity import add_flags, fidelity, means
from sailkit.distillation.load import check_tokenizer
from sailkit.distillation.recipe import DistillationRecipe
from sailkit.distillation.teacher_answers import teacher_answers
from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.models.base import is_endpoint
from sailkit.models.endpoint import read_name
from sailkit.models.sources import Source, resolve
from sailkit.prompts.sail import trained_style
from sailkit.records import TrainingExample
from sailkit.training.checks import check_rows, require_gpu
from sailkit.training.distributed import is_main_process
from sailkit.training.finetune import Objective
from sailkit.training.publish import data_cards
from sailkit.training.recipe import Recipe
from sailkit.training.results import MODEL
from sailkit.training.tokenise import Prepared, held_out_paths, no_held_out_warning, prepare, read_data

DATA = "data"  # what the student reads: rows whose completions are the teacher's words, in its wording
ASKED, ANSWERS = "asked", "answers"
CACHE = "teacher"
CUT = "cut"  # the student that was made from the teacher
STUDENT = "student"  # the training run
TARGETS = "targets-{}.safetensors"
FIDELITY = "fidelity.jsonl"  # a row for each held-out example


class Work:
    """The steps of a distillation, each in its own folder, each gone on with where it stopped."""

    def __init__(self, told: DistillationRecipe, out: Path, cache: Path | None) -> None:
        self.told, self.out = told, out
        self.date = told.student.date
        self.logits = told.method != "sequence"
        self.cache = cache or out / CACHE
        self.own_cache = cache is None
        self.in_order = False  # whether given answers were told apart by their order alone
        self.sides: TokenizerPair | None = None
        self.without_teacher: dict[str, list[WithoutTeacher]] = {}  # of train.jsonl and held_out.jsonl
        self.readable = True  # whether the teacher can read any of the held-out rows

    def check(self) -> None:
        """Refuse, while nothing is written, what training would refuse when the teacher has been asked."""
        from sailkit.distillation.trainer import check_loss
        from sailkit.training.arguments import sft_config

        told = self.told
        require_gpu(told.student)
        rows, aside = self._read()
        args = sft_config(told.student, self.out / STUDENT, held_out=bool(aside))
        if self.logits:
            check_loss(args)
        if not self.own_cache and (self.logits or (aside and told.teacher)):
            self._opened()
        source = resolve(told.student.model)
        tokenizer = fitting(told, source.folder)
        if told.method != "logits":  # what the teacher will say nobody knows; a word has to fit
            rows = [replace(one, judgements=(), response="Yes.") for one in rows]
        longest = told.student.max_length
        parts = {
            name: prepare([self._worded(one) for one in part], tokenizer, longest, self.date, held_out=name == HELD_OUT)
            for name, part in ((TRAIN, rows), (HELD_OUT, aside))
            if part
        }
        check_rows(told.student, source, list(parts.values()))
        self._check_sides(parts, tokenizer)

    def _check_sides(self, parts: Mapping[str, Prepared], tokenizer: Any) -> None:
        """Find the rows that teacher and student cannot both read, from their tokenizers alone."""
        read = {name: part for name, part in parts.items() if self.logits or name == HELD_OUT}
        if not self.told.teacher or not read:
            return
        if self.own_cache or is_endpoint(self.told.teacher):
            check_tokenizer(self.told.teacher, self.told.teacher_tokenizer)
        settings = {} if self.own_cache else self._opened().settings
        room, style = settings.get("max_length", self._room()), settings.get("style", self.teacher_style)
        self.sides = TokenizerPair(self._teacher_tokenizer, tokenizer, room, style, settings.get("date", self.date))
        rows = {name: self.sides.read(part) for name, part in read.items()}
        check_any_taught(rows.get(TRAIN, ()))
        if self.told.method == "both":
            rows.pop(TRAIN)  # a word in place of answers that are not known yet
        self.without_teacher = {name: without_teacher(part) for name, part in rows.items()}
        self.readable = len(self.without_teacher.get(HELD_OUT, ())) < len(rows.get(HELD_OUT, ()))

    def make(self) -> None:
        """What comes before training: the student's model, the data with the teacher's words, the teacher's cache."""
        told, out = self.told, self.out
        if not self._read()[1]:
            runs.notice(no_held_out_warning(told.student))
        notify(self.without_teacher)
        if told.student_layers is not None:
            from sailkit.distillation.layers import with_fewer_layers

            with_fewer_layers(resolve(told.teacher), told.student_layers, out / CUT)
        self._data()
        if told.method == "both":
            assert self.sides is not None
            self.without_teacher[TRAIN] = without_teacher(self.sides.read(self.prepared(TRAIN)))
            notify({TRAIN: self.without_teacher[TRAIN]})
        save(self.without_teacher, out)
        if self.own_cache and told.teacher:
            self._cache()
        if self.logits:
            self.compiled(TRAIN)
        if self._measured():
            self.compiled(HELD_OUT)

    def _data(self) -> None:
        told, folder = self.told, self.out / DATA
        rows, aside = self._read()
        if told.method != "logits":
            rows = self._answered(rows)
        folder.mkdir(exist_ok=True)
        for name, part in ((TRAIN, rows), (HELD_OUT, aside)):
            jsonl.write_rows(folder / name, (example_row(self._worded(one)) for one in part))
        cards = data_cards(told.student.data)
        if len(cards) == 1 and cards[0]["card"]:
            jsonl.write_json(folder / CARD, cards[0]["card"])

    def _read(self) -> tuple[list[TrainingExample], list[TrainingExample]]:
        """The rows to learn and those to measure on, as the data have them."""
        told = self.told.student
        apart = held_out_paths(told)
        rows = read_data(told.data, style=told.style)
        aside = read_data(apart, HELD_OUT, told.style) if apart else []
        return rows, [one for one in aside if one.response.strip()]  # prompts alone are nothing to measure on

    def _answered(self, rows: Sequence[TrainingExample]) -> list[TrainingExample]:
        """The same rows, with what the teacher says in place of their words."""
        from sailkit.models.base import ModelOptions
        from sailkit.models.load import load_model

        told, asked = self.told, self.out / ASKED
        asked.mkdir(exist_ok=True)
        jsonl.write_rows(asked / TRAIN, (example_row(self._worded(one)) for one in rows))
        said = told.teacher_outputs or load_model(told.teacher, ModelOptions(date=self.date))
        style, longest = self.teacher_style, told.settings.max_new_tokens
        found = teacher_answers(said, [str(asked)], self.out / ANSWERS, style=style, max_new_tokens=longest)
        self.in_order = found["in_order"]
        styles = {one.id: one.style for one in rows}
        return [replace(one, style=styles[one.id]) for one in read_data([str(self.out / ANSWERS)])]

    def _worded(self, one: TrainingExample) -> TrainingExample:
        return with_teacher_wording(one, self.told.student.style, self.teacher_style)

    @functools.cached_property
    def teacher_style(self) -> str | None:
        """How the teacher is asked; None for each row's own style."""
        if self.told.teacher_style or self._teacher is None:
            return self.told.teacher_style
        return trained_style(self._teacher.trained())

    @functools.cached_property
    def _teacher(self) -> Source | None:
        """The teacher's files; of one behind an endpoint, its tokenizer's."""
        given = self.told.teacher_tokenizer
        if given is not None:
            if not given.is_dir():
                raise UserError(f"no folder {given}: teacher_tokenizer should hold the teacher's tokenizer")
            return Source(given)
        named = self.told.teacher and not is_endpoint(self.told.teacher)
        return resolve(self.told.teacher) if named else None

    def _cache(self) -> None:
        from sailkit.distillation.teacher_cache import teacher_cache

        told, folder = self.told, self.out / DATA
        read = [str(folder)] if self.logits else [str(folder / HELD_OUT)]
        if not self.logits and not self._measured():
            return
        teacher_cache(
            teacher=told.teacher, data=read, out=self.cache, style=self.teacher_style,  # type: ignore[arg-type]
            max_length=self._room(), k=told.settings.k, top_p=told.settings.top_p,
            precision=told.settings.precision, teacher_tokenizer=told.teacher_tokenizer, date=self.date,
        )  # fmt: skip

    def _room(self) -> int:
        """Tokens of a row as the teacher reads it."""
        from transformers import AutoConfig

        from sailkit.distillation.teacher import room
        from sailkit.models.weights import pretrained

        config = None
        if not is_endpoint(self.told.teacher):
            assert self._teacher is not None
            config = pretrained(AutoConfig, (self._teacher.base or self._teacher).folder)
        return min(self.told.settings.max_length, room(config, self._teacher_tokenizer))

    def _held_out(self) -> bool:
        return (self.out / DATA / HELD_OUT).stat().st_size > 0

    def _measured(self) -> bool:
        """Whether it can be said how near the student comes: there are held-out rows, and a teacher that reads them."""
        return self._held_out() and bool(self.told.teacher) and (self.logits or self.readable)

    def student(self) -> Recipe:
        """The student's recipe, on the data with the teacher's words."""
        told, folder = self.told, self.out / DATA
        model = str(self.out / CUT) if told.student_layers is not None else told.student.model
        apart = (str(folder),) if self._held_out() else ()
        return replace(told.student, model=model, data=(str(folder),), held_out=apart, style=None)

    @functools.cached_property
    def _teacher_tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        from sailkit.models.weights import pretrained

        given = self.told.teacher_tokenizer or resolve(self.told.teacher).tokenizer_folder
        return pretrained(AutoTokenizer, given)

    @functools.cached_property
    def _student_tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        from sailkit.models.weights import pretrained

        return pretrained(AutoTokenizer, resolve(self.student().model).tokenizer_folder)

    def _opened(self) -> Any:
        """The teacher's cache, where it is the one that the recipe asks for."""
        from sailkit.distillation.cache import CacheReader

        opened = CacheReader.open(self.cache)
        asked = {name: getattr(self.told.settings, name) for name in ("k", "top_p", "precision")}
        if opened.settings.get("date"):
            asked["date"] = self.date
        if is_endpoint(self.told.teacher):
            asked["served_model"] = read_name(self.told.teacher)[0]  # its weights nobody sees
        elif self._teacher is not None:
            asked["weights_sha256"] = self._teacher.digests()["weights_sha256"]
        opened.check(self._teacher, style=self.teacher_style, **asked)
        return opened

    @functools.cached_property
    def _compiler(self) -> Any:
        from sailkit.distillation.targets import TargetCompiler

        tokenizers = self._teacher_tokenizer, self._student_tokenizer
        made = TargetCompiler(self._opened(), *tokenizers, self.told.settings.min_mass)
        if is_main_process():
            same = "the same tokenizer: nothing to align" if made.same else "another tokenizer: aligned by bytes"
            runs.notice(f"teacher and student have {same}")
        return made

    @functools.lru_cache(maxsize=3)  # noqa: B019 - as long-lived as the command
    def prepared(self, name: str, folder: str = DATA) -> Prepared:
        """Rows as the student reads them."""
        examples = read_data([str(self.out / folder / name)])
        return prepare(examples, self._student_tokenizer, self.told.student.max_length, self.date)

    @functools.lru_cache(maxsize=2)  # noqa: B019
    def compiled(self, name: str) -> Any:
        """The targets of the training or of the held-out rows."""
        # The yardstick is the same for all methods: habits as they are in the data's own words.
        asked = self.out / ASKED / TRAIN
        words = ASKED if asked.exists() and any(one.response.strip() for one in read_data([str(asked)])) else DATA
        learn = self.prepared(TRAIN, words) if name == HELD_OUT else None
        file = self.out / TARGETS.format(name.removesuffix(".jsonl"))
        return self._compiler.compile(self.prepared(name), file, learn)

    @property
    def columns(self) -> int:
        """The student's tokens; what its output layer has beyond them is padding."""
        return 1 + int(max(self._student_tokenizer.get_vocab().values()))  # ids may have gaps

    def objective(self) -> Objective:
        """What the student's training run is to learn."""
        if not self.logits:
            return Objective()
        from sailkit.distillation.trainer import DistillTrainer

        more = {
            "targets": self.compiled(TRAIN).targets,
            "held_out_targets": self.compiled(HELD_OUT).targets if self._held_out() else None,
            "ce_weight": self.told.ce_weight,
            "columns": self.columns,
        }
        settings = {"method": self.told.method, "ce_weight": self.told.ce_weight, **self._compiler.settings()}
        return Objective(functools.partial(DistillTrainer, **more), settings)

    def figures(self, trained: dict[str, Any]) -> dict[str, Any]:
        """How near the student came to the teacher, beside what it was."""
        told = self.told
        about = {
            "method": told.method,
            "teacher": told.teacher,
            "student": told.student.model,
            "student_layers": told.student_layers,
        }
        found: dict[str, Any] = {"answers_in_order": self.in_order} if told.teacher_outputs else {}
        if self.logits:
            found["training_targets"] = self.compiled(TRAIN).figures
        if self._measured():
            found["held_out_targets"] = self.compiled(HELD_OUT).figures
            found |= self._fidelity()
        return {**about, **found, "training": trained}

    def _fidelity(self) -> dict[str, Any]:
        from sailkit.models.base import ModelOptions
        from sailkit.models.local import LocalModel
        from sailkit.models.weights import free_memory
        from sailkit.training.flagging import verdicts

        rows: list[dict[str, Any]] = []
        figures: dict[str, Any] = {}
        aside, targets = self.prepared(HELD_OUT), self.compiled(HELD_OUT).targets
        # Of the rows that all else is measured on, as the data have them: with their judgements.
        measured = {one.id for one in aside.examples}
        asked = read_data(held_out_paths(self.told.student), HELD_OUT, self.told.student.style)
        asked = [one for one in asked if one.id in measured]
        flags: dict[str, tuple[bool, ...]] | None = None
        if not is_endpoint(self.told.teacher):
            wording = [replace(one, style=self.teacher_style or one.style) for one in asked]
            # Not kept: a large teacher leaves the room to the students.
            teacher = LocalModel.from_name(self.told.teacher, ModelOptions(chat="off", date=self.date))
            flags = verdicts(teacher, wording, self._compiler.cache.settings["max_length"])
            del teacher
            free_memory()
        for who, name in (("base", self.student().model), ("tuned", str(self.out / STUDENT / MODEL))):
            model = LocalModel.from_name(name, ModelOptions(chat="off", dtype="float32", date=self.date))
            found = fidelity(model.model, aside, targets, self.columns)
            if flags is not None:
                found = add_flags(found, flags, verdicts(model, asked, self.told.student.max_length))
            del model
            rows += [{"model": who, **row} for row in found]
            figures[who] = means(found)
        jsonl.write_rows(self.out / FIDELITY, rows)
        return figures
