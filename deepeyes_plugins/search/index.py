"""Local index: BM25 over passages on disk.

The index uses Tantivy, a search library in Rust with maintained Python bindings. Its files are
memory-mapped, so that memory use is up to the operating system; queries run without the GIL and
skip passages that cannot rank among the best (block-max WAND). Alternatives that were considered:
bm25s sums the postings of every query term over all passages (tens of milliseconds for a million);
SQLite's FTS5 ranks every match too, and does not tokenise Chinese or Japanese; rank-bm25 stores
everything in Python objects.

Scores are BM25 with k1 = 1.2 and b = 0.75, idf = ln(1 + (N - n + 0.5) / (n + 0.5)). Tantivy fixes
these, and stores the length of a passage in one byte: exact up to 40 terms, then rounded down by an
eighth at most. Passages of equal score are in the order of the corpus. The same files give the same
results.

On disk, ``manifest.json`` names the folder that contains the data. A build writes a new folder and
replaces the manifest at its end, so that an index is complete or absent; a killed build leaves a
folder that the next build removes. An open index continues to use the data that it opened.
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, cast

import tantivy
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deepeyes_plugins.files import PARTIAL, exclusive, whole_file
from deepeyes_plugins.search.corpus import Corpus, LocalIndexError, Passage
from deepeyes_plugins.search.dense import Encoder, Vectors, VectorWriter
from deepeyes_plugins.search.segmentation import document_terms, query_terms

logger = logging.getLogger(__name__)

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
K1: Final = 1.2
B: Final = 0.75

LONGEST_QUERY: Final = 4096
"""Characters of a query that are used; the rest is ignored."""
MOST_TERMS: Final = 32
"""Distinct terms of a query that are used, the rarest ones, which matter most for the ranking."""

_MIB = 1 << 20
_PROGRESS_PASSAGES = 1000
_MARGIN = 16
_MOST_TIES = 4096
_ANALYZER = "deepeyes"


class Manifest(BaseModel):
    """Metadata of an index."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = Field(description="Version of the format on disk.")
    data: str = Field(description="Folder with the data, beside the manifest.")
    passages: int = Field(description="Number of passages.")
    skipped: int = Field(description="Number of rows and documents that were skipped.")
    first_fault: str = Field(description="File, row and reason of the first skipped one.")
    stemmer: str = Field(description="Language of the stemmer; empty for none.")
    common: int = Field(description="Document frequency above which a term is common.")
    corpus: list[str] = Field(description="Files of the corpus.")
    corpus_bytes: int = Field(description="Size of the files.")
    built: str = Field(description="Time of the build, UTC.")
    library: str = Field(description="Version of the search library.")
    model: str = Field("", description="Sentence-transformers model; empty for no vectors.")
    query_prompt: str = Field("", description="Prompt that the model needs before a query.")


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage with its score and its position in the corpus."""

    passage: Passage
    score: float
    number: int


class Index:
    """An index that is open for queries. Its methods block; threads may share it."""

    def __init__(self, path: Path) -> None:
        """Open the index in the folder ``path``.

        Raises:
            LocalIndexError: The index is missing, incomplete, or of another version.
        """
        self.path = path
        self.manifest = read_manifest(path)
        try:
            self._index = tantivy.Index.open(str(path / self.manifest.data))
        except ValueError as error:
            raise LocalIndexError(
                f"{path}: the index cannot be opened ({error}); rebuild it with "
                "`deepeyes search index build --replace`"
            ) from error
        self._schema = self._index.schema
        self._searcher = self._index.searcher()
        self._analyzer = _analyzer(self.manifest.stemmer)
        self._vectors: Vectors | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return the number of passages."""
        return self.manifest.passages

    def search(self, text: str, count: int) -> list[Hit]:
        """Return the ``count`` best passages that contain a term of the query, best first.

        Any text is a valid query; it has no operators.
        """
        terms = self._terms(text)
        if not terms:
            return []
        query = tantivy.Query.boolean_query(
            [
                (
                    tantivy.Occur.Should,
                    tantivy.Query.term_query(self._schema, "terms", term, "freq"),
                )
                for term in terms
            ]
        )
        searcher = self._searcher
        hits = self._hits(query, count)
        numbers = cast(
            list[int], searcher.fast_field_values("number", [address for _, address in hits])
        )
        best = sorted(
            (-score, number, address)
            for (score, address), number in zip(hits, numbers, strict=True)
        )
        return [
            Hit(_load(searcher.doc(address)["passage"][0]), -negative, number)
            for negative, number, address in best[:count]
        ]

    def search_dense(self, text: str, count: int) -> list[Hit]:
        """Return the ``count`` passages nearest to the query by cosine, nearest first.

        The first call loads the model.

        Raises:
            LocalIndexError: The index has no vectors, or the model cannot be loaded.
        """
        if not query_terms(text[:LONGEST_QUERY]):
            return []
        nearest = self._opened_vectors().nearest(text[:LONGEST_QUERY], count)
        return [Hit(self._passage(number), score, number) for score, number in nearest]

    def expect_vectors(self) -> None:
        """Check that the index has vectors.

        Raises:
            LocalIndexError: The index has none.
        """
        if not self.manifest.model:
            raise LocalIndexError(
                f"{self.path}: the index has no vectors; build it with `--dense MODEL`"
            )

    def _opened_vectors(self) -> Vectors:
        self.expect_vectors()
        manifest = self.manifest
        with self._lock:
            if self._vectors is None:
                self._vectors = Vectors(
                    self.path / manifest.data,
                    manifest.passages,
                    Encoder(manifest.model),
                    manifest.query_prompt,
                )
        return self._vectors

    def _passage(self, number: int) -> Passage:
        query = tantivy.Query.term_query(self._schema, "number", number, "basic")
        ((_, address),) = self._searcher.search(query, limit=1, count=False).hits
        return _load(self._searcher.doc(address)["passage"][0])

    def _terms(self, text: str) -> list[str]:
        """Return the terms to look up, sorted, so that the sum of their scores is reproducible.

        Common terms contribute little to the ranking and are the slowest: they are used only if the
        query has no other terms.
        """
        found = sorted(set(self._analyzer.analyze(" ".join(query_terms(text[:LONGEST_QUERY])))))
        frequency = {term: self._searcher.doc_freq("terms", term) for term in found}
        known = [term for term in found if frequency[term]]
        used = [term for term in known if frequency[term] <= self.manifest.common] or known
        if len(used) > MOST_TERMS:
            used = sorted(sorted(used, key=frequency.__getitem__)[:MOST_TERMS])
        return used

    def _hits(self, query: tantivy.Query, count: int) -> list[tuple[float, Any]]:
        """Return the best hits, and all that have the same score as the last of them.

        Hits of equal score are in the order of the corpus within a segment, but not across
        segments. With several segments, the search is therefore repeated with a larger limit until
        it returns all hits of that score, or a maximum.
        """
        limit = count if self._searcher.num_segments == 1 else count + _MARGIN
        while True:
            hits = self._searcher.search(query, limit=limit, count=False).hits
            complete = len(hits) < limit or limit == count or hits[-1][0] < hits[count - 1][0]
            if complete or limit >= _MOST_TIES:
                return hits
            limit *= 4


def read_manifest(path: Path) -> Manifest:
    """Return the metadata of the index in the folder ``path``.

    Raises:
        LocalIndexError: The index is missing, or of another version.
    """
    file = path / MANIFEST
    hint = "build one with `deepeyes search index build`"
    try:
        manifest = Manifest.model_validate_json(file.read_bytes())
    except OSError as error:
        raise LocalIndexError(f"{path}: no index ({error.strerror or error}); {hint}") from error
    except ValidationError as error:
        raise LocalIndexError(f"{file}: not the manifest of an index; {hint}") from error
    if manifest.format != FORMAT:
        raise LocalIndexError(
            f"{path}: the index has format {manifest.format}, this version reads {FORMAT}; rebuild "
            "it with `deepeyes search index build --replace`"
        )
    return manifest


def build(
    corpus: Corpus,
    path: Path,
    *,
    stemmer: str = "",
    common_share: float = 0.1,
    common_least: int = 10_000,
    memory_mb: int = 1000,
    model: str = "",
    query_prompt: str = "",
    passage_prompt: str = "",
    replace: bool = False,
    progress: Callable[[int, float], None] = lambda passages, share: None,
) -> Manifest:
    """Build an index.

    Args:
        corpus: The passages.
        path: Folder of the index; created if missing.
        stemmer: Language of the stemmer, for instance ``english``; empty for none.
        common_share: A term is common, like "the", if it occurs in more than this share of the
            passages, 0 to 1 (1: no term is) …
        common_least: … and in more than this number of passages.
        memory_mb: Memory for postings before they are written to disk, in MiB. A larger corpus
            is written as several segments, which are merged.
        model: Sentence-transformers model, a name or a folder; empty for no vectors.
        query_prompt: Prompt that the model needs before a query, for instance ``query: ``.
        passage_prompt: Prompt that the model needs before a passage.
        replace: Replace an existing index.
        progress: Called with the number of passages and the share of the corpus done.

    Raises:
        CorpusError: A file cannot be read.
        LocalIndexError: An index exists, another build is running, the stemmer is unknown, or the
            model cannot be loaded.
    """
    path.mkdir(parents=True, exist_ok=True)
    with _build_lock(path):
        if (path / MANIFEST).exists() and not replace:
            raise LocalIndexError(f"{path}: an index exists; use --replace to rebuild it")
        if others := [one.name for one in path.iterdir() if not _is_index_file(one)]:
            raise LocalIndexError(
                f"{path}: contains {others[0]!r}, which is not part of an index; use an empty "
                "folder"
            )
        _remove_data(path, keep=_current(path))
        data = path / f"data-{uuid.uuid4().hex[:12]}"
        data.mkdir()
        try:
            with ExitStack() as stack:
                vectors = (
                    stack.enter_context(VectorWriter(data, Encoder(model), passage_prompt))
                    if model
                    else None
                )
                count = _write(corpus, data, stemmer, memory_mb, vectors, progress)
            if count == 0:
                raise LocalIndexError(
                    f"no passages in the corpus: {corpus.first_fault or 'it is empty'}"
                )
        except BaseException:
            shutil.rmtree(data, ignore_errors=True)
            raise
        manifest = Manifest(
            format=FORMAT,
            data=data.name,
            passages=count,
            skipped=corpus.skipped,
            first_fault=corpus.first_fault,
            stemmer=stemmer,
            common=max(int(common_share * count), common_least),
            corpus=[str(file) for file in corpus.files],
            corpus_bytes=corpus.size,
            built=datetime.now(UTC).isoformat(timespec="seconds"),
            model=model,
            query_prompt=query_prompt,
            library=f"tantivy {version('tantivy')}",
        )
        _publish(path, manifest)
        _remove_data(path, keep=data.name)
    return manifest


def _write(
    corpus: Corpus,
    data: Path,
    stemmer: str,
    memory_mb: int,
    vectors: VectorWriter | None,
    progress: Callable[[int, float], None],
) -> int:
    schema = (
        tantivy.SchemaBuilder()
        .add_unsigned_field("number", fast=True, indexed=True)
        .add_text_field("terms", tokenizer_name=_ANALYZER, index_option="freq")
        .add_bytes_field("passage", stored=True)
        .build()
    )
    # Sorting keeps a segment in the order of the corpus after merges; with one thread the same
    # corpus gives the same segments.
    index = tantivy.Index(schema, path=str(data), sort_by_field="number")
    index.register_tokenizer(_ANALYZER, _analyzer(stemmer))
    writer = index.writer(heap_size=memory_mb * _MIB, num_threads=1)
    count = 0
    for passage in corpus:
        document = tantivy.Document()
        document.add_unsigned("number", count)
        text = f"{passage.title}\n{passage.text}".strip()
        document.add_text("terms", " ".join(document_terms(text)))
        if vectors is not None:
            vectors.add(text)
        document.add_bytes("passage", _dump(passage))
        writer.add_document(document)
        count += 1
        if count % _PROGRESS_PASSAGES == 0:
            progress(count, corpus.done / max(1, corpus.size))
    writer.commit()
    writer.wait_merging_threads()
    progress(count, 1.0)
    return count


def _analyzer(stemmer: str) -> tantivy.TextAnalyzer:
    builder = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.whitespace())
    if stemmer:
        try:
            builder = builder.filter(tantivy.Filter.stemmer(stemmer))
        except ValueError as error:
            raise LocalIndexError(f"no stemmer for the language {stemmer!r}: {error}") from error
    return builder.build()


def _dump(passage: Passage) -> bytes:
    return json.dumps(list(asdict(passage).values()), ensure_ascii=False).encode()


def _load(data: bytes) -> Passage:
    return Passage(*json.loads(bytes(data)))


def _publish(path: Path, manifest: Manifest) -> None:
    """Replace the manifest atomically."""
    with whole_file(path / MANIFEST, sync=True) as partial:
        partial.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _current(path: Path) -> str:
    try:
        return read_manifest(path).data
    except LocalIndexError:
        return ""


def _is_index_file(path: Path) -> bool:
    names = (MANIFEST, f".{MANIFEST}{PARTIAL}", ".lock")
    return path.name in names or path.name.startswith("data-")


def _remove_data(path: Path, keep: str) -> None:
    for folder in path.glob("data-*"):
        if folder.name != keep:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _build_lock(path: Path) -> Iterator[None]:
    """Exclude other builds; the lock is released when the process ends."""
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive(path / ".lock", wait=False))
        except BlockingIOError as error:
            raise LocalIndexError(f"{path}: another build is running in this folder") from error
        yield
