"""Write such run folders with the sailkit that is installed: `python tests/data/runs/make.py NEW_FOLDER`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))
# Ends the process, as a kill would, at the first write to the disk at which so many files match a pattern.
KILLED = """
import os, pathlib, re, sys
pattern, least = sys.argv[1], int(sys.argv[2])
def ends(call):
    def wrapped(*given, **more):
        done = call(*given, **more)
        found = list(pathlib.Path().glob(pattern))
        if (found[0].read_bytes().count(b"\\n") if pattern.endswith(".jsonl") and found else len(found)) >= least:
            os._exit(9)
        return done
    return wrapped
os.fsync = ends(os.fsync)
if "checkpoint" in pattern:
    import transformers
    transformers.Trainer._save_checkpoint = ends(transformers.Trainer._save_checkpoint)
from sailkit.cli import main
main(sys.argv[3:])
"""


def models(folder: Path) -> None:
    """Two causal models of about 4,000 weights with tokenizers of two kinds, an encoder and an entailment model."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        BertModel,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )  # fmt: skip

    from chat_families import TEMPLATES
    from small_models import trained

    for seed, (name, kind, spread) in enumerate((("small", "byte-level", 0.3), ("teacher", "byte-fallback", 1.0))):
        tokenizer = trained(kind)
        if name == "small":
            tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
            tokenizer.chat_template = TEMPLATES["chatml"]
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=max(tokenizer.get_vocab().values()) + 1, hidden_size=8, intermediate_size=8,
            num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=4096,
            bos_token_id=None, eos_token_id=tokenizer.eos_token_id, tie_word_embeddings=False, initializer_range=spread,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            model.lm_head.weight[tokenizer.eos_token_id] *= 4  # so that its answers end
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "a", "of", "is", "in", "and", "not", "ice", "moon", "bears"]
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,?'"
    table = {word: i for i, word in enumerate([*words, *letters[1:], *(f"##{letter}" for letter in letters)])}
    made = Tokenizer(WordPiece(table, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = BertNormalizer(), BertPreTokenizer()
    ends = [(name, table[name]) for name in ("[CLS]", "[SEP]")]
    made.post_processor = TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ends)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=128,
    )  # fmt: skip
    names = ["contradiction", "neutral", "entailment"]
    shape = BertConfig(
        vocab_size=len(table), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=128, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(2)
    BertModel(shape).save_pretrained(folder / "encoder")
    shape.id2label, shape.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
    BertForSequenceClassification(shape).save_pretrained(folder / "nli")
    for name in ("encoder", "nli"):
        tokenizer.save_pretrained(folder / name)


def commands(server: str) -> dict[str, list[str]]:
    """The command of each finished run, in order."""
    here = ["--dtype", "float32", "--device", "cpu"]
    ask = [
        "evaluate",
        "--task",
        "sample-claims",
        "--limit",
        "4",
        "--max-new-tokens",
        "8",
        *here,
        "--batch-tokens",
        "3500",
    ]
    small, tuned = ["--model", "models/small"], ["--model", "runs/finetune/model"]
    steps = ["training.bf16=false", "training.max_length=768", "training.max_steps=4", "training.eval_steps=2",
             "training.per_device_train_batch_size=2", "training.gradient_accumulation_steps=2",
             "training.learning_rate=1e-2", "training.logging_steps=1", "training.save_total_limit=1",
             "lora={r: 2, target_modules: [q_proj, v_proj]}", "dtype=float32"]  # fmt: skip
    train = [word for step in steps for word in ("--set", step)]
    distill = ["distill", "--teacher", "models/teacher", *small, "--data", "runs/build-task", *train]
    found = {
        "search": ["search", "--instructions", "data/instructions.jsonl", "--corpus", "data/corpus.jsonl", "--k", "3"],
        "label-overlap": ["label", "--results", "runs/search", "--labeler", "overlap"],
        "label-entailment": ["label", "--results", "runs/search", "--labeler", "entailment:models/nli", *here],
        "label-judge": ["label", "--results", "runs/search", "--labeler", "judge:models/small", *here,
                        "--batch-tokens", "1000"],
        "fit": ["fit", "--data", "data/judgements.jsonl", "--base", "models/encoder", "--epochs", "1",
                "--max-length", "64"],
        "audit": ["audit", "--data", "data/judgements.jsonl", "--labeler", "overlap", "--labeler",
                  "entailment:models/nli", *here],
        "build": ["build", "--results", "runs/search", "--labels", "runs/label-overlap", "--labels",
                  "runs/label-judge", "--held-out", "0.3", "--exclude-task", "sample-claims", "--export", "trl",
                  "--export", "sail"],
        "build-task": ["build-task", "sample-claims", "--limit", "8", "--half", "first", "--held-out", "0.4",
                       "--style", "sail-fixed"],
        "finetune": ["finetune", *small, "--data", "runs/build-task", *train],
        "teacher-cache": ["teacher-cache", "--teacher", "models/teacher", "--data", "runs/build-task", "--k", "4",
                          "--shard-tokens", "300", "--max-length", "1500", *here],
        "distill-logits": [*distill, "--cache", "runs/teacher-cache", "--set", "distillation.k=4",
                           "--set", "distillation.max_length=1500"],
        "distill-sequence": [*distill, "--method", "sequence", "--set", "distillation.max_new_tokens=48",
                             "--set", "distillation.max_length=1500", "--set", "distillation.k=4"],
        "evaluate-logprob": [*ask, *small, "--reference", "models/teacher"],
        "evaluate-generate": [*ask, *small, "--answer", "generate", "--protocol", "think-twice"],
        "evaluate-calibrated": [*ask, *small, "--protocol", "fair", "--calibrate", "--chat", "off"],
        "evaluate-verified": [*ask, *tuned, "--wording", "bare", "--search", "evidence", "--results", "2"],
        "evaluate-random": [*ask, *small, "--wording", "bare", "--search", "random", "--style", "sail-fixed"],
        "evaluate-endpoint": ["evaluate", "--task", "sample-claims", "--limit", "4", "--model",
                              f"endpoint:tiny@{server}", "--concurrency", "1"],
    }  # fmt: skip
    return {name: [*words, "--out", f"runs/{name}"] for name, words in found.items()}


# Where a run was killed: as soon as so many files (or lines of one file) match the pattern.
KILLS = {
    "search": ("runs/search/results.jsonl", 1),
    "label-judge": ("runs/label-judge/scores.jsonl", 5),
    "finetune": ("runs/finetune/checkpoints/checkpoint-*/trainer_state.json", 1),
    "teacher-cache": ("runs/teacher-cache/*.safetensors", 2),
    "distill-logits": ("runs/distill-logits/student/checkpoints/checkpoint-*/trainer_state.json", 1),
    "distill-sequence": ("runs/distill-sequence/answers/*.jsonl", 2),
    "evaluate-logprob": ("runs/evaluate-logprob/predictions.jsonl", 2),
    "evaluate-generate": ("runs/evaluate-generate/predictions.jsonl", 2),
    "evaluate-verified": ("runs/evaluate-verified/predictions.jsonl", 2),
}
# What reads finished runs, and no folder of its own.
READS = {
    "rescore": ["rescore", "data/recorded.jsonl", "--published", "accuracy=0.75,f1=0.74"],
    "compare": ["compare", "runs/evaluate-verified", "runs/evaluate-random"],
    "compare-wordings": ["compare", "runs/evaluate-logprob", "runs/evaluate-generate"],
    "differences": ["runs", "runs/evaluate-verified", "runs/evaluate-random"],
    "runs": ["runs", "runs"],
}


def command(arguments: list[str], *kill: str) -> None:
    """Run sailkit to its end, or in a process of its own until it is killed."""
    from sailkit.cli import main

    if not kill:
        main(arguments)
    elif (done := subprocess.run([sys.executable, "-c", KILLED, *kill, *arguments], check=False)).returncode != 9:
        raise SystemExit(f"{arguments}: exit status {done.returncode}")


def in_lines(value: object, depth: int = 0) -> str:
    """JSON with objects in lines down to the fourth level, so that a difference is seen."""
    if depth == 4 or not isinstance(value, dict) or not value:
        return json.dumps(value, ensure_ascii=False)
    margin = "\n" + " " * (depth + 1)
    rows = (f"{json.dumps(name, ensure_ascii=False)}: {in_lines(part, depth + 1)}" for name, part in value.items())
    return "{" + margin + f",{margin}".join(rows) + margin[:-1] + "}"


def main(folder: Path) -> None:
    """Write everything to a new folder."""
    import prompt_record
    from sailkit.testing import MisbehavingServer

    shutil.copytree(HERE / "data", folder / "data")
    os.chdir(folder)
    cache = folder / "cache"
    os.environ |= {"SAILKIT_CACHE": str(cache), "SAILKIT_PROGRESS": "off", "OPENAI_API_KEY": "none"}
    models(Path("models"))
    with MisbehavingServer(text="Correct.", logprobs={"Correct": -0.2, "Wrong": -1.9}) as server:
        finished = commands(server.url)
        for words in finished.values():
            command(words)
        for name, (pattern, least) in KILLS.items():
            kept, out = folder / f"{name}.finished", Path("runs") / name
            out.rename(kept)
            command(finished[name], pattern, str(least))
            if pattern.endswith(".jsonl"):  # and in the middle of a row: the next one, or the last
                (torn,) = folder.glob(pattern)
                whole, rows = (kept / torn.relative_to(out.resolve())).read_bytes(), torn.read_bytes()
                torn.write_bytes(whole[: len(rows) + 30] if len(rows) < len(whole) else rows[:-30])
            Path("killed").mkdir(exist_ok=True)
            out.rename(Path("killed") / name)
            kept.rename(out)
    shutil.rmtree("cache/indexes")
    for large in [*folder.glob("runs/**/checkpoints"), *folder.glob("runs/**/plots"), folder / "models" / "encoder"]:
        shutil.rmtree(large)  # which no test reads
    Path("read").mkdir()
    for name, words in READS.items():
        command([*words, "--json", f"read/{name}.json"])
    Path("commands.json").write_text(in_lines({"finished": finished, "read": READS}) + "\n", "utf-8")
    record = {name: getattr(prompt_record, name)() for name in ("tasks", "styles", "families", "embedded")}
    Path("prompts.json").write_text(in_lines({**record, "keys": prompt_record.keys(folder)}) + "\n", "utf-8")
    for lock in folder.rglob("*.lock"):
        lock.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
