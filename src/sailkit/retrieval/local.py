"""Search a local corpus with BM25, sentence embeddings or both; indexes are kept in the user's cache folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sailkit import runs
from sailkit.errors import UserError, required_extra
from sailkit.files import jsonl
from sailkit.files.folders import cache_once
from sailkit.models.encoder import load_encoder
from sailkit.models.sources import ENCODER
from sailkit.records import Instruction, SearchOutcome, result_text
from sailkit.retrieval.base import EngineResults
from sailkit.retrieval.corpus import corpus_fingerprint, read_passages
from sailkit.retrieval.instructions import make_result

CorpusEngine = Literal["bm25", "dense", "hybrid"]
QUERY_WORDS = 64  # words of instruction and input in a query: more would dilute it
_FUSION = 60  # k of reciprocal rank fusion (Cormack et al. 2009)
_DEPTH = 100  # results of each engine before fusion
_CHUNK = 2048
_VECTORS = "vectors.safetensors"
_RULES = 3  # version of how texts are cleaned, split and encoded; an index of another version is rebuilt
_EMBEDDED_TEXT = 2  # version of how title and body are joined for the encoder


class LocalSearcher:
    """Searches a corpus; its index, for given passage lengths, is built once and then memory-mapped."""

    batch = 64
    live = False

    def __init__(self, engine: CorpusEngine, corpus: Sequence[Path], words: int = 120, overlap: int = 20) -> None:
        """Open the index, or build it.

        Args:
            engine: `bm25`, `dense` (cosine of MiniLM embeddings) or `hybrid` (reciprocal rank fusion of both).
            corpus: Files and folders; see `read_passages`.
            words: Maximum words in a passage.
            overlap: Words shared by consecutive passages.

        Raises:
            UserError: A library is not installed, or the corpus cannot be read.
        """
        with required_extra("search", "searching a corpus"):
            import bm25s
        self.name: str = engine
        self._facts = {"corpus_sha256": corpus_fingerprint(corpus), "passage_words": words, "passage_overlap": overlap}
        settings = {**self._facts, "bm25s": bm25s.__version__, "version": _RULES}
        folder = runs.cache_folder() / "indexes" / f"bm25-{jsonl.fingerprint(settings)[:32]}"
        cache_once(folder, lambda target: _build_bm25(corpus, words, overlap, target))
        self._bm25 = _load_index(folder, lambda: bm25s.BM25.load(folder, load_corpus=True, mmap=True))
        self._passages = self._bm25.corpus
        if engine != "bm25":
            self._open_embeddings(folder)

    def describe(self) -> dict[str, Any]:
        """Everything that affects the results."""
        return {"engine": self.name, "version": _RULES, **self._facts, "passages": len(self._passages)}

    def search(self, instructions: Sequence[Instruction], k: int) -> list[list[EngineResults]]:
        """The best k passages for each instruction."""
        queries = [query(instruction) for instruction in instructions]
        k = min(k, len(self._passages))
        if self.name == "bm25":
            ranked = self._ranked_bm25(queries, k)
        elif self.name == "dense":
            ranked = self._ranked_dense(queries, k)
        else:
            depth = min(max(_DEPTH, k), len(self._passages))
            both = zip(self._ranked_bm25(queries, depth), self._ranked_dense(queries, depth), strict=True)
            ranked = [fuse(lists)[:k] for lists in both]
        rows = []
        for text, indices in zip(queries, ranked, strict=True):
            passages = [self._passages[i] for i in indices]
            results = tuple(
                make_result(self.name, rank, passage["title"], passage["text"], passage["url"])
                for rank, passage in enumerate(passages, start=1)
            )
            outcome: SearchOutcome = "found" if results else "empty" if text else "left_out"
            rows.append([EngineResults(self.name, outcome, results)])
        return rows

    def close(self) -> None:
        """Do nothing: no lock is held."""

    def _ranked_bm25(self, queries: Sequence[str], k: int) -> list[list[int]]:
        import bm25s

        tokens = bm25s.tokenize(list(queries), return_ids=False, show_progress=False)
        known = [[token for token in of_query if token in self._bm25.vocab_dict] for of_query in tokens]
        searchable = [i for i, of_query in enumerate(known) if of_query]
        ranked: list[list[int]] = [[] for _ in queries]
        if not searchable:
            return ranked
        indices, scores = self._bm25.retrieve(
            [known[i] for i in searchable], corpus=np.arange(len(self._passages)), k=k, show_progress=False
        )
        for i, row, values in zip(searchable, indices, scores, strict=True):
            pairs = sorted(zip(-values, row, strict=True))  # ties are broken by the order of the corpus
            ranked[i] = [int(passage) for value, passage in pairs if value < 0]
        return ranked

    def _ranked_dense(self, queries: Sequence[str], k: int) -> list[list[int]]:
        searchable = [i for i, text in enumerate(queries) if text]
        ranked: list[list[int]] = [[] for _ in queries]
        if searchable:
            vectors = self._encoder.encode(
                [queries[i] for i in searchable], normalize_embeddings=True, show_progress_bar=False
            )
            scores = vectors @ self._vectors.T
            for i, row in zip(searchable, scores, strict=True):
                best = np.argpartition(-row, k - 1)[:k]
                ranked[i] = best[np.lexsort((best, -row[best]))].tolist()
        return ranked

    def _open_embeddings(self, index: Path) -> None:
        with required_extra("label", f"`engine` {self.name}"):
            from safetensors.numpy import load_file
        self._encoder, source = load_encoder(ENCODER, f"`engine` {self.name}")
        self._facts["encoder_sha256"] = weights = jsonl.file_fingerprint(source.files()["weights"])
        self._facts["embedded_text"] = _EMBEDDED_TEXT
        folder = index.with_name(f"{index.name}-{weights[:16]}-{_EMBEDDED_TEXT}")
        cache_once(folder, self._build_embeddings)
        self._vectors = _load_index(folder, lambda: load_file(folder / _VECTORS)["vectors"])

    def _build_embeddings(self, target: Path) -> None:
        from safetensors.numpy import save_file

        texts = [result_text(passage["title"], passage["text"]) for passage in self._passages]
        parts = []
        with runs.progress("embedding passages, once", len(texts)) as tick:
            for start in range(0, len(texts), _CHUNK):
                part = texts[start : start + _CHUNK]
                parts.append(self._encoder.encode(part, normalize_embeddings=True, show_progress_bar=False))
                tick(len(part))
        save_file({"vectors": np.concatenate(parts)}, target / _VECTORS)


def query(instruction: Instruction) -> str:
    """The query of an instruction: the first words of instruction and input."""
    return " ".join(f"{instruction.instruction} {instruction.input}".split()[:QUERY_WORDS])


def fuse(rankings: Sequence[Sequence[int]]) -> list[int]:
    """Reciprocal rank fusion: the sum of 1 / (60 + rank) over rankings (Cormack et al. 2009, equation 1)."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, passage in enumerate(ranking, start=1):
            scores[passage] = scores.get(passage, 0.0) + 1 / (_FUSION + rank)
    return sorted(scores, key=lambda passage: (-scores[passage], passage))


def _build_bm25(corpus: Sequence[Path], words: int, overlap: int, target: Path) -> None:
    import bm25s

    passages = read_passages(corpus, words, overlap)
    runs.notice(f"indexing {len(passages)} passages, once")
    tokens = bm25s.tokenize([result_text(passage.title, passage.body) for passage in passages], show_progress=False)
    if not any(tokens.ids):
        raise UserError(f"no words to search for in {', '.join(map(str, corpus))}, only ones like 'the', or letters")
    index = bm25s.BM25(backend="numba")
    index.index(tokens, show_progress=False)
    rows = [{"title": passage.title, "text": passage.body, "url": passage.url} for passage in passages]
    index.save(target, corpus=rows, allow_pickle=False, show_progress=False)


def _load_index(folder: Path, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except Exception as error:  # exceptions of damaged files have no common base class
        why = " ".join(str(error).split())[:200]
        raise UserError(f"the index {folder} cannot be read ({why}); remove it, it will be built again") from None
