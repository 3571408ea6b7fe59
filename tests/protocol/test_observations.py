"""What comes back to the model, byte for byte, and why nothing in it can act as a control token."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deepeyes_plugins.protocol.content import EncodedImage, Part
from deepeyes_plugins.protocol.dialect import CONTROL_TOKENS, VISION_TOKENS
from deepeyes_plugins.protocol.observations import (
    MAXIMUM_IMAGES,
    SearchResult,
    code_observation,
    defuse,
    image_search_observation,
    text_search_observation,
    tool_response,
)

CONTROL = [
    *VISION_TOKENS,
    *CONTROL_TOKENS,
    "<|im_end|>",
    "<|box_start|>",
    "<image>",
    "<video>",
    "<audio>",
]
PIECES = [*CONTROL, *"<|> ", "<|", "|>", "im_start", "image", "image>", "<|im_", "\ud800"]
hostile_text = st.lists(st.sampled_from(PIECES) | st.text(max_size=5)).map("".join)


def picture(colour: str = "red") -> EncodedImage:
    return EncodedImage.from_pil(Image.new("RGB", (40, 40), colour))


def rendered(parts: tuple[Part, ...]) -> str:
    """The parts as the reference writes them: one string with a placeholder per image."""
    return "".join(part if isinstance(part, str) else "[image]" for part in parts)


class TestCode:
    def test_streams(self) -> None:
        assert rendered(code_observation("2\n", "warning")) == (
            "Code execution result:\nstdout:\n```\n2\n\n```\n\nstderr:\n```\nwarning\n```"
        )

    def test_nothing_printed(self) -> None:
        assert rendered(code_observation("", "")) == (
            "Code execution result:\nstdout:\n```\n\n```\n\nstderr:\n```\n\n```"
        )

    def test_images_follow_the_streams(self) -> None:
        parts = code_observation("ok", "", [picture(), picture("blue")])
        assert rendered(parts) == (
            "Code execution result:\nstdout:\n```\nok\n```\n\nstderr:\n```\n\n```\n\n"
            "Images:\n[image][image]"
        )
        assert parts[1:] == (picture(), picture("blue"))

    def test_ten_images_at_most(self) -> None:
        parts = code_observation("", "", [picture()] * 12)
        assert len(parts) - 1 == MAXIMUM_IMAGES == 10


class TestTextSearch:
    def test_entries(self) -> None:
        results = [
            SearchResult("Tower", "https://a.example", "330 m high", "2024-01-02"),
            SearchResult("Bare", "https://b.example"),
        ]
        assert rendered(text_search_observation("Eiffel", results)) == (
            "<tool_response>\n"
            "A Google search for 'Eiffel' found 2 results:\n\n"
            "## Web Results\n"
            "1. [Tower](https://a.example)\nDate published: 2024-01-02\n\n330 m high\n\n"
            "2. [Bare](https://b.example)\n"
            "\n</tool_response>"
        )

    def test_nothing_found(self) -> None:
        assert rendered(text_search_observation("q", [])) == (
            "<tool_response>\nA Google search for 'q' found 0 results:\n\n## Web Results\n"
            "\n</tool_response>"
        )


class TestImageSearch:
    def test_entries(self) -> None:
        results = [SearchResult("Cat", image=picture()), SearchResult("Dog", image=picture())]
        assert rendered(image_search_observation(results)) == (
            "<tool_response>\n"
            "A Google image search for the image found 2 results:\n\n"
            "## Web Results\n"
            "1. [image]\n[Cat] \n\n\n"
            "2. [image]\n[Dog] \n"
            "\n</tool_response>"
        )

    def test_an_entry_whose_image_is_missing_keeps_its_title(self) -> None:
        assert "1. \n[Cat] \n" in rendered(image_search_observation([SearchResult("Cat")]))

    def test_ten_images_at_most(self) -> None:
        results = [SearchResult(str(n), image=picture()) for n in range(12)]
        text = rendered(image_search_observation(results))
        assert text.count("[image]") == 10
        assert "12. \n[11] \n" in text

    def test_text_and_images_alternate(self) -> None:
        parts = image_search_observation([SearchResult("Cat", image=picture()), SearchResult("x")])
        assert [type(part) for part in parts] == [str, EncodedImage, str]


class TestDefuse:
    @pytest.mark.parametrize("token", CONTROL)
    def test_a_space_makes_control_strings_plain_text(self, token: str) -> None:
        assert defuse(f"a{token}b") == f"a< {token[1:]}b"

    @pytest.mark.parametrize(
        "text",
        ["", "a < b", "x <| y |> z", "<images>", "<p>", "<tool_response>", "<img>", "é中\n\t\x00"],
    )
    def test_other_text_is_unchanged(self, text: str) -> None:
        assert defuse(text) == text

    @pytest.mark.parametrize(
        ("text", "safe"),
        [
            ("<|im_<|x|>start|>", "<|im_< |x|>start|>"),
            ("<<|image|>image>", "<< |image|>image>"),
            ("<<image>", "<< image>"),
            ("<<image>image>", "<< image>image>"),
            ("<|im_start<|im_start|>|>", "<|im_start< |im_start|>|>"),
        ],
    )
    def test_nested_control_strings_do_not_form_new_ones(self, text: str, safe: str) -> None:
        assert defuse(text) == safe

    def test_lone_surrogates_become_encodable(self) -> None:
        """A sandbox can print them; tokenizers and JSON cannot take them."""
        assert defuse("a\ud800b") == "a\ufffdb"
        assert defuse("\ud83d\ude00") == "😀"

    @given(hostile_text)
    def test_no_control_string_survives(self, text: str) -> None:
        safe = defuse(text)
        assert not any(token in safe for token in CONTROL)
        assert defuse(safe) == safe
        safe.encode()

    @given(st.text(alphabet=st.characters(exclude_characters="<", exclude_categories=["Cs"])))
    def test_ordinary_text_is_untouched(self, text: str) -> None:
        assert defuse(text) == text


class TestHostileResults:
    """Whatever a page or a program prints, only the hosts write control tokens."""

    @given(hostile_text, hostile_text)
    def test_code(self, stdout: str, stderr: str) -> None:
        self.assert_harmless(code_observation(stdout, stderr, [picture()]))

    @given(hostile_text, st.lists(st.tuples(*[hostile_text] * 4), max_size=3))
    def test_text_search(self, query: str, entries: list[tuple[str, str, str, str]]) -> None:
        results = [SearchResult(*entry) for entry in entries]
        self.assert_harmless(text_search_observation(query, results))

    @given(st.lists(hostile_text, max_size=3))
    def test_image_search(self, titles: list[str]) -> None:
        results = [SearchResult(title, image=picture()) for title in titles]
        self.assert_harmless(image_search_observation(results))

    def assert_harmless(self, parts: tuple[Part, ...]) -> None:
        # Joined without the images: pieces on both sides of one must not match up either.
        text = "".join(part for part in parts if isinstance(part, str))
        assert not any(token in text for token in CONTROL)
        for neighbours in itertools.pairwise(parts):
            assert not all(isinstance(part, str) for part in neighbours)


def test_tool_response_merges_neighbouring_text() -> None:
    assert tool_response(["a", "b"]) == ("<tool_response>\nab\n</tool_response>",)
