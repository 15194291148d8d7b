"""FEVER and SciFact, from the files that their authors publish to the form that the tasks `fever` and `scifact` read.

    python examples/published_claims.py fever train.jsonl wiki-pages fever.jsonl
    python examples/published_claims.py scifact claims_train.jsonl corpus.jsonl scifact.jsonl

The arguments: the claims, the texts that they are checked against (FEVER's folder of Wikipedia pages, SciFact's
abstracts), and the file to write. --each 6000 keeps at most 6,000 claims of each label, drawn at random.

Each claim gets one passage: the first set of sentences of a single page or abstract that settles it. Claims without
such a set are left out and counted: those labelled NOT ENOUGH INFO, and those that only several pages together settle.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sailkit.errors import UserError
from sailkit.files import jsonl

STANCES = {"SUPPORTS": "supports", "REFUTES": "refutes"}
SCIFACT_LABELS = {"SUPPORT": "SUPPORTS", "CONTRADICT": "REFUTES"}
# FEVER's pages are tokenised as the Penn Treebank is.
BRACKETS = {"-LRB-": "(", "-RRB-": ")", "-LSB-": "[", "-RSB-": "]", "-COLON-": ":", "``": '"', "''": '"'}


class Judged(NamedTuple):
    """A claim and the sentences that settle it."""

    id: int
    text: str
    label: str
    document: str
    sentences: tuple[int, ...]


def fever_claims(path: Path, left_out: Counter[str]) -> Iterator[Judged]:
    """FEVER's claims: evidence is a list of sets of [annotation, evidence, page, sentence]."""
    for _, row in jsonl.read_rows(path):
        sets = [{(composed(page), number) for *_, page, number in each if page} for each in row.get("evidence", ())]
        on_one_page = [each for each in sets if len({page for page, _ in each}) == 1]
        if row.get("label") not in STANCES:
            left_out["without SUPPORTS or REFUTES"] += 1
        elif not on_one_page:
            left_out["settled by several pages only"] += 1
        else:
            page = next(iter(on_one_page[0]))[0]
            numbers = tuple(sorted(number for _, number in on_one_page[0]))
            yield Judged(row["id"], row["claim"], row["label"], page, numbers)


def scifact_claims(path: Path, left_out: Counter[str]) -> Iterator[Judged]:
    """SciFact's claims: evidence maps an abstract to its rationales, each with a label and numbers of sentences."""
    for _, row in jsonl.read_rows(path):
        labels = {rationale["label"] for each in row.get("evidence", {}).values() for rationale in each}
        if len(labels) != 1:
            left_out["abstracts that disagree" if labels else "without evidence"] += 1
            continue
        abstract, rationales = next(iter(row["evidence"].items()))
        label = SCIFACT_LABELS[labels.pop()]
        yield Judged(row["id"], row["claim"], label, abstract, tuple(sorted(rationales[0]["sentences"])))


def fever_documents(folder: Path, wanted: set[str]) -> dict[str, tuple[str, dict[int, str]]]:
    """Title and sentences of the wanted pages; a line of a page is a sentence's number, text and links, with tabs."""
    documents = {}
    files = sorted(path for path in folder.rglob("wiki-*.jsonl") if not path.name.startswith("._"))
    if not files:
        raise UserError(f"{folder} holds no wiki-*.jsonl: name the folder of FEVER's wiki-pages.zip, unpacked")
    for count, path in enumerate(files, 1):
        print(f"\rreading pages: {count}/{len(files)} files", end="", file=sys.stderr, flush=True)
        for _, row in jsonl.read_rows(path):
            if (page := composed(row["id"])) in wanted:
                fields = [line.split("\t") for line in row["lines"].split("\n")]
                sentences = {int(each[0]): readable(each[1]) for each in fields if len(each) > 1 and each[0].isdigit()}
                documents[page] = (readable(page.replace("_", " ")), sentences)
    print(file=sys.stderr)
    return documents


def scifact_documents(path: Path, wanted: set[str]) -> dict[str, tuple[str, dict[int, str]]]:
    """Title and sentences of the wanted abstracts."""
    return {
        str(row["doc_id"]): (row["title"], {number: text.strip() for number, text in enumerate(row["abstract"])})
        for _, row in jsonl.read_rows(path)
        if str(row["doc_id"]) in wanted
    }


def composed(page: str) -> str:
    """A page's name in one Unicode form: FEVER's claims and pages differ in it."""
    return unicodedata.normalize("NFC", page)


def readable(text: str) -> str:
    """Text without the tokenisation of FEVER's pages."""
    for token, sign in BRACKETS.items():
        text = text.replace(token, sign)
    text = re.sub(r'" ([^"]*) "', r'"\1"', text)
    text = re.sub(r" +([.,;:!?%)\]]|'(?:s|re|ve|ll|d|m)\b|n't\b)", r"\1", text)
    return re.sub(r"([(\[$]) +", r"\1", text).strip()


def sample(claims: list[Judged], each: int | None, seed: int = 0) -> list[Judged]:
    """At most `each` claims of a label, in the order of the file."""
    if each is None:
        return claims
    by_label: defaultdict[str, list[Judged]] = defaultdict(list)
    for claim in claims:
        by_label[claim.label].append(claim)
    rng = random.Random(seed)  # noqa: S311 - not for secrets
    kept = {claim.id for same in by_label.values() for claim in rng.sample(same, min(each, len(same)))}
    return [claim for claim in claims if claim.id in kept]


def convert(source: str, claims: Path, evidence: Path, out: Path, each: int | None) -> None:
    """Write one row for each claim: id, claim, label, and evidence with title, text and stance."""
    read_claims, read_documents = {
        "fever": (fever_claims, fever_documents),
        "scifact": (scifact_claims, scifact_documents),
    }[source]
    left_out: Counter[str] = Counter()
    judged = sample([*read_claims(claims, left_out)], each)
    documents = read_documents(evidence, {claim.document for claim in judged})
    rows = []
    for claim in judged:
        title, sentences = documents.get(claim.document, ("", {}))
        texts = [sentences.get(number, "") for number in claim.sentences]
        if not all(texts):
            left_out["whose page or sentence is not there"] += 1
            continue
        shown = {"title": title, "text": " ".join(texts), "stance": STANCES[claim.label]}
        rows.append({"id": f"{source}-{claim.id}", "claim": claim.text, "label": claim.label, "evidence": [shown]})
    jsonl.write_rows(out, rows)
    print(f"{out}: {len(rows)} claims")
    for reason, count in left_out.items():
        print(f"left out, {reason}: {count}")


def main() -> None:
    """Read the command line and convert."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", choices=["fever", "scifact"])
    parser.add_argument("claims", type=Path)
    parser.add_argument("evidence", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--each", type=int)
    arguments = parser.parse_args()
    try:
        convert(**vars(arguments))
    except KeyError as missing:
        sys.exit(
            f"a row without {missing}: {arguments.claims} and {arguments.evidence} must be {arguments.source}'s files"
        )
    except (OSError, UserError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
