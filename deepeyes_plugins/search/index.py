"""The local index: BM25 over passages on disk.

Tantivy does the work, a search library in Rust with maintained Python bindings. Its files are
mapped into memory, so an index takes what the operating system has to spare and no more; queries
run outside Python's lock and skip passages that cannot be among the best (block-max WAND). The
others that were looked at: bm25s keeps scores in sparse matrices and adds up every posting of every
query term over all passages (tens of milliseconds for a million); SQLite's FTS5 ranks every match
too, and has no terms for Chinese or Japanese; rank-bm25 holds everything in Python objects.

Scores are BM25 with k1 = 1.2 and b = 0.75, idf = ln(1 + (N - n + 0.5) / (n + 0.5)); Tantivy fixes
these, and keeps the length of a passage in one byte: exact up to 40 terms, then rounded down by an
eighth at most. Equal scores go to the passage that comes first in the corpus. The same files give
the same answers.

On disk: ``manifest.json`` names the folder that holds the data. A build writes a new folder and
replaces the manifest at its very end, so an index is whole or not there; a killed build leaves a
folder that the next one removes. Open indexes go on with the data that they have opened.
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
"""Characters of a query that count."""
MOST_TERMS: Final = 32
"""Different terms of a query that count: the rarest, which decide. More are not meant as one."""

_MIB = 1 << 20
_PROGRESS_PASSAGES = 1000
_MARGIN = 16
_MOST_TIES = 4096
_ANALYZER = "deepeyes"


class Manifest(BaseModel):
    """What an index is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = Field(description="Version of the form on disk.")
    data: str = Field(description="Folder with the data, beside the manifest.")
    passages: int = Field(description="Passages in it.")
    skipped: int = Field(description="Rows and documents that were left out.")
    first_fault: str = Field(description="The first of them: file, row and reason.")
    stemmer: str = Field(description="Language whose endings are removed; empty: none.")
    common: int = Field(description="Passages that have a term, above which it is a common one.")
    corpus: list[str] = Field(description="The files that it was built from.")
    corpus_bytes: int = Field(description="Their size.")
    built: str = Field(description="When, UTC.")
    library: str = Field(description="Version of the search library.")
    model: str = Field("", description="Sentence-transformers model of the vectors; empty: none.")
    query_prompt: str = Field("", description="What that model wants before a query.")


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage and how well it fits."""

    passage: Passage
    score: float
    number: int


class Index:
    """An index that is open for queries. Its methods block; threads may share it."""

    def __init__(self, path: Path) -> None:
        """Open the index in the folder ``path``.

        Raises:
            LocalIndexError: There is none, or it is not whole, or of another version.
        """
        self.path = path
        self.manifest = read_manifest(path)
        try:
            self._index = tantivy.Index.open(str(path / self.manifest.data))
        except ValueError as error:
            raise LocalIndexError(
                f"{path}: the index cannot be opened ({error}); build it again with "
                "`deepeyes search index build --replace`"
            ) from error
        self._schema = self._index.schema
        self._searcher = self._index.searcher()
        self._analyzer = _analyzer(self.manifest.stemmer)
        self._vectors: Vectors | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """The number of passages."""
        return self.manifest.passages

    def search(self, text: str, count: int) -> list[Hit]:
        """Return the ``count`` passages that fit best, best first; those without a term do not.

        Any text is a query: nothing in it has a meaning but its words.
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
        """Return the ``count`` passages that are nearest in meaning, by cosine, the nearest first.

        The first call loads the model.

        Raises:
            LocalIndexError: The index has no vectors, or the model cannot be loaded.
        """
        if not query_terms(text[:LONGEST_QUERY]):
            return []
        nearest = self._opened_vectors().nearest(text[:LONGEST_QUERY], count)
        return [Hit(self._passage(number), score, number) for score, number in nearest]

    def expect_vectors(self) -> None:
        """Look whether it can be searched by meaning.

        Raises:
            LocalIndexError: It has no vectors.
        """
        if not self.manifest.model:
            raise LocalIndexError(
                f"{self.path}: an index without vectors; build it with `--dense MODEL`"
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
        """The terms that are looked up, in a fixed order, which fixes the sum of their scores.

        A common term says next to nothing about a passage and costs the most: it counts only where
        there is no other.
        """
        found = sorted(set(self._analyzer.analyze(" ".join(query_terms(text[:LONGEST_QUERY])))))
        frequency = {term: self._searcher.doc_freq("terms", term) for term in found}
        known = [term for term in found if frequency[term]]
        telling = [term for term in known if frequency[term] <= self.manifest.common] or known
        if len(telling) > MOST_TERMS:
            telling = sorted(sorted(telling, key=frequency.__getitem__)[:MOST_TERMS])
        return telling

    def _hits(self, query: tantivy.Query, count: int) -> list[tuple[float, Any]]:
        """The best, and all that are as good as the last of them.

        Passages of one segment are in the order of the corpus, and so are equal ones among its
        hits; segments have no order. Where there are several, more hits are asked for until the
        equal ones are all there; up to a limit, since a term may be all that millions have.
        """
        limit = count if self._searcher.num_segments == 1 else count + _MARGIN
        while True:
            hits = self._searcher.search(query, limit=limit, count=False).hits
            complete = len(hits) < limit or limit == count or hits[-1][0] < hits[count - 1][0]
            if complete or limit >= _MOST_TIES:
                return hits
            limit *= 4


def read_manifest(path: Path) -> Manifest:
    """Return what the index in the folder ``path`` is.

    Raises:
        LocalIndexError: There is none, or it is of another version.
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
            f"{path}: an index of format {manifest.format}, this version reads {FORMAT}; build it "
            "again with `deepeyes search index build --replace`"
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
        path: Folder for the index; made where it is missing.
        stemmer: Language whose endings are removed from words, for instance ``english``.
        common_share: A term is a common one, like "the", if more than this share of the passages
            have it, 0 to 1 (1: none is) …
        common_least: … and more passages than this: in few passages it costs nothing to look.
        memory_mb: MiB for postings before they are written to disk. A larger corpus than fits
            makes several segments, which are merged.
        model: Sentence-transformers model, a name or a folder, for vectors beside the words.
        query_prompt: What the model wants before a query, for instance ``query: ``.
        passage_prompt: What it wants before a passage.
        replace: Take the place of an index that is there.
        progress: Told the number of passages so far and the share of the corpus behind.

    Raises:
        CorpusError: A file cannot be read.
        LocalIndexError: There is an index already, or another build is going on, or the stemmer is
            unknown, or the model cannot be loaded.
    """
    path.mkdir(parents=True, exist_ok=True)
    with _alone(path):
        if (path / MANIFEST).exists() and not replace:
            raise LocalIndexError(
                f"{path}: there is an index already; say --replace to build it anew"
            )
        if strangers := [one.name for one in path.iterdir() if not _is_ours(one)]:
            raise LocalIndexError(
                f"{path}: holds {strangers[0]!r}, which is none of an index; give it a folder of "
                "its own"
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
                    f"no passage in the corpus: {corpus.first_fault or 'it is empty'}"
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
    # Sorted, a segment has its passages in the order of the corpus however it was merged; one
    # thread, so that the same corpus is cut into the same segments.
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
    """Make the manifest the current one; it is there as a whole or not at all."""
    with whole_file(path / MANIFEST, sync=True) as fresh:
        fresh.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _current(path: Path) -> str:
    try:
        return read_manifest(path).data
    except LocalIndexError:
        return ""


def _is_ours(path: Path) -> bool:
    ours = (MANIFEST, f".{MANIFEST}{PARTIAL}", ".lock")
    return path.name in ours or path.name.startswith("data-")


def _remove_data(path: Path, keep: str) -> None:
    for folder in path.glob("data-*"):
        if folder.name != keep:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other builds out; the lock ends with the process that holds it."""
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive(path / ".lock", wait=False))
        except BlockingIOError as error:
            raise LocalIndexError(f"{path}: another build is going on there") from error
        yield
