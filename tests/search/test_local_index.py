"""The local index against BM25 written out in a few lines, on the same text."""

from __future__ import annotations

import gzip
import json
import math
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from deepeyes_plugins.cli.main import app
from deepeyes_plugins.search.contracts import SearchNotConfiguredError, SearchQuery
from deepeyes_plugins.search.corpus import Corpus, CorpusError, Passage, split_passages
from deepeyes_plugins.search.index import (
    K1,
    MANIFEST,
    MOST_TERMS,
    B,
    Index,
    LocalIndexError,
    Manifest,
    build,
)
from deepeyes_plugins.search.providers.local import Local
from deepeyes_plugins.search.segmentation import document_terms, query_terms
from deepeyes_plugins.testing.search import TEXT_CHECKS, Samples, TextCheck

Write = Callable[..., Path]


def corpus(folder: Path, texts: list[str], name: str = "corpus.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def build_of(folder: Path, texts: list[str], **options: object) -> Index:
    build(Corpus([corpus(folder, texts)], 1000), folder / "index", replace=True, **options)  # type: ignore[arg-type]
    return Index(folder / "index")


def rounded_length(terms: int) -> int:
    """What a length counts as that is kept in one byte: four significant bits above 24."""
    step = max(0, (terms - 24).bit_length() - 4)
    return terms if terms < 40 else 24 + ((terms - 24) >> step << step)


class BruteForce:
    """BM25 of every passage."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts
        self.passages = [Counter(document_terms(text)) for text in texts]
        self.lengths = [sum(passage.values()) for passage in self.passages]

    def search(self, query: str) -> list[tuple[int, float]]:
        """Every passage that has a term of the query, and its score; best first."""
        many, mean = len(self.texts), sum(self.lengths) / len(self.texts)
        scores: Counter[int] = Counter()
        for term in set(query_terms(query)):
            having = [number for number in range(many) if self.passages[number][term]]
            idf = math.log(1 + (many - len(having) + 0.5) / (len(having) + 0.5))
            for number in having:
                often, length = self.passages[number][term], rounded_length(self.lengths[number])
                norm = K1 * (1 - B + B * length / mean)
                scores[number] += idf * often * (K1 + 1) / (often + norm)
        return sorted(scores.items(), key=lambda item: (-item[1], item[0]))

    def assert_same(self, index: Index, query: str, count: int) -> None:
        expected = self.search(query)
        found = index.search(query, count)
        assert len(found) == min(count, len(expected))
        exact = dict(expected)
        for hit, (_, score) in zip(found, expected, strict=False):
            assert hit.score == pytest.approx(score, rel=1e-4), (query, hit)
            assert hit.score == pytest.approx(exact[hit.number], rel=1e-4), "of another passage"
            assert hit.passage.text == self.texts[hit.number]
        # Equal scores in the order of the corpus.
        for one, other in pairwise(found):
            assert one.score > other.score or one.number < other.number


WORDS = [
    "panda",
    "red",
    "whale",
    "blue",
    "the",
    "bamboo",
    "猫",
    "東京タワー",
    "한국어",
    "café",
    "42",
]
TEXTS = st.lists(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=60).map(" ".join), min_size=1
)


class TestScores:
    @given(
        texts=TEXTS, query=st.lists(st.sampled_from(WORDS), max_size=4), count=st.integers(1, 20)
    )
    @settings(
        max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    def test_are_those_of_brute_force(
        self, tmp_path: Path, texts: list[str], query: list[str], count: int
    ) -> None:
        BruteForce(texts).assert_same(build_of(tmp_path, texts), " ".join(query), count)

    def test_are_those_of_brute_force_in_thousands_of_passages(self, tmp_path: Path) -> None:
        # Enough for several blocks of postings, of which whole ones are skipped.
        chance = random.Random(0)
        words = [f"w{rank}" for rank in range(2000)]
        weights = [1 / (rank + 2.7) for rank in range(2000)]
        texts = [
            " ".join(chance.choices(words, weights, k=chance.randint(3, 200))) for _ in range(3000)
        ]
        index, oracle = build_of(tmp_path, texts), BruteForce(texts)
        for _ in range(20):
            query = " ".join(chance.choices(words, weights, k=chance.randint(1, 8)))
            oracle.assert_same(index, query, 10)

    def test_equal_passages_come_in_the_order_of_the_corpus(self, tmp_path: Path) -> None:
        index = build_of(tmp_path, ["red panda"] * 500)
        assert [hit.number for hit in index.search("panda", 20)] == list(range(20))

    def test_equal_passages_of_several_segments_too(self, tmp_path: Path) -> None:
        # More than fits into the least memory, so that the index has several segments.
        chance = random.Random(0)
        texts = [
            f"{'panda' if number % 20 == 7 else 'fox'} "
            + " ".join(f"x{chance.getrandbits(60)}" for _ in range(30))
            for number in range(20_000)
        ]
        index = build_of(tmp_path, texts, memory_mb=16)
        assert index._searcher.num_segments > 1
        assert [hit.number for hit in index.search("panda", 20)] == list(range(7, 400, 20))

    def test_are_the_same_after_another_build(self, tmp_path: Path) -> None:
        texts = [f"red panda {number % 7}" for number in range(300)]
        first = build_of(tmp_path, texts).search("panda 3 5", 50)
        assert build_of(tmp_path, texts).search("panda 3 5", 50) == first

    def test_common_words_count_only_where_there_is_no_other(self, tmp_path: Path) -> None:
        texts = ["the cat"] * 30 + ["the the panda"]
        index = build_of(tmp_path, texts, common_share=0.5, common_least=10)
        assert [hit.passage.text for hit in index.search("the panda", 5)] == ["the the panda"]
        assert len(index.search("the", 5)) == 5

    def test_of_a_long_query_the_rarest_words_count(self, tmp_path: Path) -> None:
        common, rare = [f"c{n}" for n in range(20)], [f"r{n}" for n in range(MOST_TERMS)]
        index = build_of(tmp_path, [*common, *common, *rare])
        found = index.search(" ".join(common + rare), 100)
        assert [hit.passage.text for hit in found] == rare

    def test_a_stemmer_finds_other_forms(self, tmp_path: Path) -> None:
        texts = ["He eats pandas", "A whale"]
        assert not build_of(tmp_path, texts).search("panda eating", 5)
        assert len(build_of(tmp_path, texts, stemmer="english").search("panda eating", 5)) == 1


class TestSegmentation:
    @pytest.mark.parametrize(
        ("text", "query", "terms"),
        [
            ("Don't PANIC, x_y!", "panic", ["don", "t", "panic", "x", "y"]),
            ("Café ĲSSEL ﬁne Ｆｕｌｌ", "cafe", ["cafe", "ijssel", "fine", "full"]),
            ("東京塔", "東京", ["東", "京", "塔", "東京", "京塔"]),
            ("ｶﾞｷﾞ", "ガギ", ["ガ", "ギ", "ガギ"]),
            ("한국어 말", "한국", ["한", "국", "어", "한국", "국어", "말"]),
            ("हिन्दी में", "हिन्दी", ["हिन्दी", "में"]),
            ("ไทย", "ไท", ["ไ", "ท", "ย", "ไท", "ทย"]),
            ("GPT4猫cat", "猫", ["gpt4", "猫", "cat"]),
            ("Привет, ΟΔΟΣ", "οδοσ", ["привет", "οδοσ"]),
        ],
    )
    def test_terms(self, text: str, query: str, terms: list[str]) -> None:
        assert document_terms(text) == terms
        assert set(query_terms(query)) <= set(terms)

    def test_a_single_character_finds_the_word_it_is_in(self, tmp_path: Path) -> None:
        index = build_of(tmp_path, ["吾輩は猫である", "犬の生活"])
        assert [hit.number for hit in index.search("猫", 5)] == [0]

    def test_a_word_is_found_within_text_without_spaces(self, tmp_path: Path) -> None:
        index = build_of(tmp_path, ["日本の首都は東京です", "京都は古い都市です"])
        assert [hit.number for hit in index.search("東京", 5)] == [0]

    @given(st.text())
    def test_any_text_has_terms_that_text_with_spaces_can_hold(self, text: str) -> None:
        for term in document_terms(text):
            assert term and term == "".join(term.split())


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("small")
    return build_of(folder, ["The red panda eats bamboo", "One red fox", "Two pandas, red"])


ODD = ["AND", "red AND", "title:red", "red^2", "re*", "/red/", "[a TO b]", "-red", "red\ud800"]
ODD += ['"', "(", "*", "+", "\\", "\x00", "👨\u200d👩", "\ud800"]
ODD += ["a" * 10_000, "red " * 3000, "é" * 10_000]


class TestQueries:
    @pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
    def test_have_no_syntax(self, small: Index, text: str) -> None:
        has_word = "red" in query_terms(text)
        assert bool(small.search(text, 5)) == has_word

    @given(st.text())
    def test_never_fail(self, small: Index, text: str) -> None:
        small.search(text, 5)


@pytest.mark.parametrize("check", TEXT_CHECKS.values(), ids=list(TEXT_CHECKS))
async def test_the_provider_keeps_the_contract(small: Index, check: TextCheck) -> None:
    provider = Local({"index": str(small.path), "threads": 2})
    await check(provider, Samples(known="red panda", unknown="qzxj"))
    await provider.aclose()


class TestProvider:
    async def test_without_an_index_it_says_how_to_make_one(self, tmp_path: Path) -> None:
        with pytest.raises(SearchNotConfiguredError, match="search index build"):
            await Local({}).search(SearchQuery(text="x"))
        with pytest.raises(SearchNotConfiguredError, match="no index"):
            await Local({"index": str(tmp_path)}).search(SearchQuery(text="x"))

    async def test_finds_an_index_that_was_made_later(self, tmp_path: Path) -> None:
        provider = Local({"index": str(tmp_path / "index")})
        with pytest.raises(SearchNotConfiguredError):
            await provider.search(SearchQuery(text="panda"))
        build_of(tmp_path, ["panda"])
        assert (await provider.search(SearchQuery(text="panda"))).results
        await provider.aclose()


class TestBuild:
    def test_reads_the_forms_of_corpora(self, tmp_path: Path) -> None:
        folder = tmp_path / "corpus"
        folder.mkdir()
        row = {"id": 7, "contents": '"Red panda"\nIt eats jsonword.', "url": "http://a.test"}
        (folder / "a.jsonl").write_text(json.dumps(row) + "\n\n")
        (folder / "b.jsonl.gz").write_bytes(gzip.compress(b'{"_id": "g", "text": "gzword"}\n'))
        pyarrow.parquet.write_table(
            pyarrow.table({"title": ["T"], "text": ["parquetword"], "image": [b"x"]}),
            folder / "c.parquet",
        )
        (folder / "d.md").write_text("# Heading\n\nmarkdownword here.\n")
        (folder / "e.html").write_text(
            "<html><head><title>Page</title></head><body><nav>menuword</nav><article><p>"
            + "An htmlword that is in the main text of the page. " * 5
            + "</p></article></body></html>"
        )
        (folder / "ignored.bin").write_bytes(b"\0")
        build(Corpus([folder], 1000), tmp_path / "index")
        index = Index(tmp_path / "index")

        def passage(word: str) -> tuple[str, str, str]:
            (hit,) = index.search(word, 5)
            return hit.passage.id, hit.passage.title, hit.passage.link

        assert passage("jsonword") == ("7", "Red panda", "http://a.test")
        assert passage("gzword") == ("g", "", "")
        assert passage("parquetword") == ("c.parquet#1", "T", "")
        assert passage("markdownword")[1] == "Heading"
        assert passage("htmlword")[1] == "Page"
        assert index.search("menuword", 5) == []
        assert len(index.search("panda", 5)) == 1, "titles are searched"

    @pytest.mark.parametrize("empty", ["", " \n", None, float("nan")])
    def test_takes_the_first_column_that_is_not_empty(
        self, tmp_path: Path, empty: str | float | None
    ) -> None:
        rows = [
            {"id": empty, "docid": "d", "title": empty, "name": "N", "text": empty, "body": "zeta"},
            {
                "id": 2,
                "title": "U",
                "text": "other",
                "contents": "unread",
                "link": empty,
                "url": "u",
            },
            {"id": 3, "text": empty, "contents": empty},
        ]
        lines = "\n".join(map(json.dumps, rows))
        (tmp_path / "c.jsonl").write_text(lines)
        corpus = Corpus([tmp_path / "c.jsonl"], 500)
        assert list(corpus) == [
            Passage("d", "zeta", "N"),
            Passage("2", "other", "U", "u"),
        ]
        assert (corpus.skipped, "row 3: no text" in corpus.first_fault) == (1, True)

    def test_leaves_out_odd_rows_and_says_so(self, tmp_path: Path) -> None:
        path = tmp_path / "c.jsonl"
        path.write_bytes(
            b'{"text": "panda"}\n{"broken\n[1]\n{"text": " "}\n\xff\n{"text": 5}\n' + b"[" * 9999
        )
        manifest = build(Corpus([path], 1000), tmp_path / "index")
        assert (manifest.passages, manifest.skipped) == (2, 5)
        assert manifest.first_fault.startswith(f"{path}, row 2: not valid JSON")

    @pytest.mark.parametrize("name", ["x.parquet", "missing.jsonl", "x.unknown"])
    def test_names_a_file_that_cannot_be_read(self, tmp_path: Path, name: str) -> None:
        if not name.startswith("missing"):
            (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(CorpusError, match=name):
            build(Corpus([tmp_path / name], 1000), tmp_path / "index")
        with pytest.raises(LocalIndexError, match="no index"):
            Index(tmp_path / "index")

    def test_refuses_an_empty_corpus(self, tmp_path: Path) -> None:
        (tmp_path / "c.jsonl").write_text("{}\n")
        with pytest.raises(LocalIndexError, match="no text in any of the columns text, contents"):
            build(Corpus([tmp_path / "c.jsonl"], 1000), tmp_path / "index")
        with pytest.raises(CorpusError, match="no corpus"):
            Corpus([tmp_path / "index"], 1000)

    def test_keeps_to_folders_of_its_own(self, tmp_path: Path) -> None:
        path = corpus(tmp_path, ["panda"])
        with pytest.raises(
            LocalIndexError, match=r"contains 'corpus\.jsonl', which is not part of"
        ):
            build(Corpus([path], 1000), tmp_path, replace=True)
        assert path.exists()

    def test_replaces_only_when_told(self, tmp_path: Path) -> None:
        old = build_of(tmp_path, ["panda"])
        with pytest.raises(LocalIndexError, match="--replace"):
            build(Corpus([corpus(tmp_path, ["fox"])], 1000), tmp_path / "index")
        new = build_of(tmp_path, ["fox"])
        assert new.search("fox", 5) and not new.search("panda", 5)
        assert old.search("panda", 5), "an open index goes on"

    def test_a_killed_build_leaves_what_was_there(self, tmp_path: Path) -> None:
        build_of(tmp_path, ["panda"])
        path = corpus(tmp_path, ["fox"] * 3000, "other.jsonl")
        place = tmp_path / "index"
        program = f"""
import sys
from pathlib import Path
from deepeyes_plugins.search.corpus import Corpus
from deepeyes_plugins.search.index import build
def stop(passages, share):
    print(passages, flush=True)
    sys.stdin.read()
corpus = Corpus([Path({str(path)!r})], 1000)
build(corpus, Path({str(place)!r}), replace=True, progress=stop)
"""
        with subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "1000\n"
            with pytest.raises(LocalIndexError, match="another build"):
                build(Corpus([path], 1000), tmp_path / "index", replace=True)
            process.send_signal(signal.SIGKILL)
        assert Index(tmp_path / "index").search("panda", 5)
        assert len(list((tmp_path / "index").glob("data-*"))) == 2
        assert build_of(tmp_path, ["fox"]).search("fox", 5)
        assert len(list((tmp_path / "index").glob("data-*"))) == 1

    def test_a_folder_without_its_data_says_so(self, tmp_path: Path) -> None:
        manifest: Manifest = build_of(tmp_path, ["panda"]).manifest
        place = tmp_path / "index"
        for file in (place / manifest.data).iterdir():
            file.unlink()
        with pytest.raises(LocalIndexError, match="cannot be opened"):
            Index(place)
        (place / MANIFEST).write_text(manifest.model_copy(update={"format": 9}).model_dump_json())
        with pytest.raises(LocalIndexError, match="format 9"):
            Index(place)

    def test_an_unknown_stemmer_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(LocalIndexError, match="klingon"):
            build_of(tmp_path, ["panda"], stemmer="klingon")


@given(
    st.text(alphabet=st.sampled_from("ab .。\n猫"), max_size=300),
    st.integers(min_value=5, max_value=60),
)
def test_passages_hold_all_of_a_document(text: str, characters: int) -> None:
    pieces = split_passages(text, characters)
    assert all(0 < len(piece) <= characters for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join(text.split())


def test_passages_end_where_sentences_do() -> None:
    text = "One short.\n\nThe second paragraph is long. It has two sentences, and no more.\n\nLast."
    assert split_passages(text, 50) == [
        "One short.",
        "The second paragraph is long.",
        "It has two sentences, and no more.\n\nLast.",
    ]


def test_the_command(tmp_path: Path) -> None:
    def run(*arguments: object) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, ["search", "index", *map(str, arguments)])
        return result.exit_code, result.stdout, result.stderr

    path, place = corpus(tmp_path, ["The red panda [x]", "A fox"]), tmp_path / "index"
    status, output, _ = run("build", path, "-o", place, "--json")
    assert status == 0
    assert json.loads(output)["passages"] == 2
    assert json.loads(run("info", place, "--json")[1])["corpus"] == [str(path)]
    found = json.loads(run("query", place, "panda", "--json")[1])
    assert [one["text"] for one in found] == ["The red panda [x]"]
    assert "red panda [x]" in run("query", place, "panda")[1]
    status, _, complaint = run("build", path, "-o", place)
    assert status == 1
    assert "--replace" in complaint
    assert run("query", tmp_path / "nothing", "x")[0] == 1
    status, _, complaint = run("build", path, "-o", path / "below")
    assert status == 1
    assert "Not a directory" in complaint
