"""The rows, teachers and students of `benchmarks/distill.py`."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import replace

from transformers import AutoConfig, AutoTokenizer, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from sailkit.data.build_task import build_task
from sailkit.data.exports import HELD_OUT, TRAIN, example_row
from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.models.sources import resolve
from sailkit.records import TrainingExample
from sailkit.retrieval.instructions import read_instructions
from sailkit.training.tokenise import prepare, read_data

CONTEXT = 512  # of stories260k


def tiny_teacher(place):
    """A random model with the tokenizer of smollm2-135m, to see that all runs."""
    folder = place / "tiny-teacher"
    if not (folder / "tokenizer_config.json").exists():
        tokenizer = AutoTokenizer.from_pretrained(resolve("smollm2-135m").tokenizer_folder)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=True,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return str(folder)


def qwen_shaped(options, place):
    """A random student of Qwen's shape with its real tokenizer and padded output layer."""
    folder = place / "qwen-shaped"
    if not (folder / "tokenizer_config.json").exists():
        import torch

        torch.manual_seed(0)
        wide = 16 if options.smoke else 64
        config = Qwen2Config(
            vocab_size=151_936, hidden_size=wide, intermediate_size=4 * wide, num_hidden_layers=2 if options.smoke else 4,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=True,
        )  # fmt: skip
        Qwen2ForCausalLM(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(options.shared / "tokenizers" / "qwen").save_pretrained(folder)
    return folder


def fits(one, tokenizer, whole):
    """Whether the student with the shortest context can take a row, and whole if so asked."""
    with contextlib.suppress(UserError):
        prepared = prepare([replace(one, style="sail-fixed")], tokenizer, CONTEXT)
        return not whole or not prepared.cut_tokens
    return False


def write_rows(folder, parts):
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in parts.items():
        jsonl.write_atomic(folder / name, "".join(jsonl.dumps(example_row(one)) + "\n" for one in rows))
    return folder


def rows_of(options, place):
    """A folder of rows whose search results every student can read to the end."""
    folder = place / "rows"
    if (folder / HELD_OUT).exists():
        return folder
    data = options.data
    if data is None:
        data = place / "build"
        build_task(
            "climate-fever", out=data, data=options.shared / "climate-fever" / "climate-fever.jsonl", half="first",
            style="sail-fixed", shares="0.1,0.4,0.5", distractors=["random"], held_out=0.2,
        )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(options.shared / "models" / "stories260k")
    parts = {}
    for name, count in ((TRAIN, options.rows), (HELD_OUT, max(options.rows // 4, 4))):
        parts[name] = [one for one in read_data([str(data)], name, "sail-fixed") if fits(one, tokenizer, True)][:count]
    return write_rows(folder, parts)


def instruction_rows(options, parent):
    """A folder of everyday instructions without search results: words of people, whatever a teacher would say."""
    folder = parent / "instructions"
    if (folder / HELD_OUT).exists():
        return folder
    tokenizer = AutoTokenizer.from_pretrained(options.shared / "models" / "stories260k")
    items = read_instructions(options.shared / "instructions" / "dolpaca_prompt_completion_dev.jsonl")
    rows = (TrainingExample(x.id, x.instruction, x.input, (), (), x.output, "sail-fixed") for x in items)
    fitting = (row for row in rows if fits(row, tokenizer, False))
    train, held_out = (list(itertools.islice(fitting, n)) for n in (options.rows, max(options.rows // 4, 4)))
    return write_rows(folder, {TRAIN: train, HELD_OUT: held_out})


def answered(options, place, style):
    """Rows that the teacher answered, so that both methods have the same ones; its answers, as a user would give them."""
    from sailkit.distillation.teacher_answers import teacher_answers
    from sailkit.models.load import load_model
    from sailkit.prompts.render import as_text
    from sailkit.prompts.sail import completion, conversation

    folder, file = place / "data", place / "teacher-outputs.json"
    if file.exists():
        return folder, file
    rows = rows_of(options, place)
    asked, out = str(rows / TRAIN), place / "answers"
    train = read_data([asked])
    if options.smoke:  # a tiny teacher does not know when to stop; the data's own words stand in for its answers
        said = {one.id: completion(one) for one in train}
    else:
        limit = options.max_new_tokens
        found = teacher_answers(load_model(options.teacher), [asked], out, style=style, max_new_tokens=limit)
        tokenizer = AutoTokenizer.from_pretrained(options.shared / "models" / "stories260k")
        kept = {one.id for one in read_data([str(out)]) if fits(one, tokenizer, False)}
        print(f"the teacher's answers: {len(kept)} of {found.n} kept, dropped: {found.dropped}")
        said = {row["id"]: row["text"] for _, row in jsonl.read_rows(out / "answers.jsonl") if row["id"] in kept}
        train = [one for one in train if one.id in kept]
    write_rows(folder, {TRAIN: train, HELD_OUT: read_data([str(rows)], HELD_OUT)})
    prompts = [as_text(conversation(replace(one, style=style))[0].parts) for one in train]
    jsonl.write_json(file, [{"prompt": p, "response": said[one.id]} for p, one in zip(prompts, train)])
    return folder, file


def own_style(teacher):
    """How a teacher is asked: as it was trained, else in its chat template if it has one."""
    from sailkit.prompts.sail import trained_style

    source = resolve(teacher)
    chat = AutoTokenizer.from_pretrained(source.tokenizer_folder).chat_template
    return trained_style(source.trained()) or ("chat" if chat else "sail-fixed")


def students(options, place, style):
    """The arguments of `distill` for each student, and its longest row."""
    source = resolve(options.teacher)
    layers = AutoConfig.from_pretrained((source.base or source).folder).num_hidden_layers
    stories = str(options.shared / "models" / "stories260k")
    yield "stories260k", {"model": stories, "style": "sail-fixed"}, CONTEXT
    yield "qwen-shaped", {"model": str(qwen_shaped(options, place)), "style": "sail-fixed"}, CONTEXT
    yield "half", {"student_layers": layers // 2, "style": style}, CONTEXT if options.smoke else 1024
