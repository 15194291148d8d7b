"""Read the samples that a training run generated; the module that generates them loads torch."""

from __future__ import annotations

from pathlib import Path

from sailkit.files import jsonl
from sailkit.rendering.model import Block, Heading, SideBySide, Text

SAMPLES = "samples-{}.jsonl"  # of the base and of the tuned model


def sample_blocks(folder: Path) -> list[Block]:
    """The samples before and after training beside the completion in the data; empty for runs without samples.

    Args:
        folder: The run folder.
    """
    files = [folder / SAMPLES.format(prefix) for prefix in ("base", "tuned")]
    if not all(file.exists() for file in files):
        return []
    before, after = ({str(row["id"]): row for _, row in jsonl.read_rows(file)} for file in files)
    blocks: list[Block] = [Text("Greedy answers to held-out prompts, cut after a few dozen tokens.")]
    for row_id, row in after.items():
        earlier = before.get(row_id, {}).get("text")
        texts = (("in the data", row["label"]), ("before training", earlier), ("after training", row["text"]))
        question = "\n".join(filter(None, (str(row["instruction"]), str(row["input"]))))
        blocks += [Heading(row_id), Text(question), SideBySide([(name, str(text or "–")) for name, text in texts])]
    return blocks
