"""Search by meaning, with a real sentence-transformers model that is made here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from deepeyes_plugins.search.contracts import SearchNotConfiguredError, SearchQuery
from deepeyes_plugins.search.corpus import Corpus, LocalIndexError
from deepeyes_plugins.search.index import Index, build
from deepeyes_plugins.search.providers.local import Local
from deepeyes_plugins.testing.search import TEXT_CHECKS, Samples, TextCheck

WORDS = ["panda", "bear", "bamboo", "whale", "sea", "query:"]
MEANING = np.array(
    [[1, 0, 0], [0.9, 0.1, 0], [0.8, 0, 0.2], [0, 1, 0], [0, 0.9, 0.1], [0, 0, 1]], dtype=np.float32
)
TEXTS = ["whale", "bear", "bamboo", "bear", "sea"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A table of word vectors: what is near is known."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    tokenizer = Tokenizer(WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="sea"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    folder = tmp_path_factory.mktemp("model")
    table = StaticEmbedding(tokenizer, embedding_weights=MEANING)
    sentence_transformers.SentenceTransformer(modules=[table]).save(str(folder))
    return str(folder)


@pytest.fixture(scope="module")
def index(model: str, tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("dense")
    corpus = folder / "c.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    build(Corpus([corpus], 1000), folder / "index", model=model)
    return Index(folder / "index")


def test_the_nearest_come_first_and_equal_ones_in_the_order_of_the_corpus(index: Index) -> None:
    hits = index.search_dense("panda", 4)
    assert [hit.number for hit in hits] == [1, 3, 2, 0]
    assert [hit.passage.text for hit in hits] == ["bear", "bear", "bamboo", "whale"]
    assert hits[0].score == pytest.approx(0.9 / np.hypot(0.9, 0.1), abs=1e-3)
    assert index.search("panda", 4) == [], "no passage has the word"


@pytest.mark.parametrize("check", TEXT_CHECKS.values(), ids=list(TEXT_CHECKS))
async def test_the_provider_keeps_the_contract(index: Index, check: TextCheck) -> None:
    provider = Local({"index": str(index.path), "method": "dense"})
    await check(provider, Samples(known="panda"))
    await provider.aclose()


def test_vectors_that_are_gone_are_told(model: str, tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"text": "panda"}\n')
    for replace in (False, True):
        build(Corpus([tmp_path / "c.jsonl"], 1000), tmp_path / "i", model=model, replace=replace)
        if not replace:
            index = Index(tmp_path / "i")
    with pytest.raises(LocalIndexError, match="if the index has been rebuilt, reopen it"):
        index.search_dense("panda", 1)


async def test_an_index_without_vectors_says_so(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"text": "panda"}\n')
    build(Corpus([tmp_path / "c.jsonl"], 1000), tmp_path / "index")
    provider = Local({"index": str(tmp_path / "index"), "method": "dense"})
    with pytest.raises(SearchNotConfiguredError, match="--dense MODEL"):
        await provider.search(SearchQuery(text="panda"))
    await provider.aclose()


def test_a_model_that_is_not_there_is_named_and_nothing_is_left(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "c.jsonl").write_text('{"text": "panda"}\n')
    missing = str(tmp_path / "no-model")
    with pytest.raises(LocalIndexError, match="no-model"):
        build(Corpus([tmp_path / "c.jsonl"], 1000), tmp_path / "index", model=missing)
    assert [one.name for one in (tmp_path / "index").iterdir()] == [".lock"]
