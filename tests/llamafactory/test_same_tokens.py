"""One trajectory in SFT, in reinforcement learning and on the way to a server: the same tokens.

Every difference that remains is in an assertion here and in a line of docs/sft.md.
"""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import AutoProcessor
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

from deepeyes_plugins.hosts.openai import ChatClient, OpenAIPolicy, OpenAISettings
from deepeyes_plugins.protocol.content import EncodedImage, Message, Part
from deepeyes_plugins.protocol.dialect import DEEPEYES_V2
from deepeyes_plugins.protocol.observations import code_observation, text_search_observation
from deepeyes_plugins.quickstart.task import task_texts
from deepeyes_plugins.quickstart.tiny_model import make_tiny_qwen2_5_vl
from deepeyes_plugins.rollout import Observation, Task
from tests.llamafactory.conftest import tokenized, train_arguments, write_dataset
from tests.openai.server import ChatServer
from tests.verl.conftest import ScriptedEngine, make_policy

IGNORED = -100
TURN_END = "<|im_end|>"

CODE = "Crop it.</think>\n<code>\n```python\nimage_1.crop((0, 0, 9, 9))\n```\n</code>"
SEARCH = (
    'Who?</think>\n\n<tool_call>\n{"name": "search", "arguments": {"query": "é\\n"}}\n</tool_call>'
)
ANSWER = "It is red.</think>\n<answer>red</answer>"


@pytest.fixture(scope="module")
def joining_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its tokenizer joins ``>`` and a line break, as Qwen's does."""
    folder = tmp_path_factory.mktemp("joining") / "model"
    corpus = [*task_texts(), *[">\n"] * 2000]
    make_tiny_qwen2_5_vl(folder, corpus, hidden_size=64, layers=2, vision_hidden_size=64)
    return folder


@pytest.fixture(scope="module")
def processor(joining_model: Path) -> Any:
    loaded = AutoProcessor.from_pretrained(joining_model)
    assert len(loaded.tokenizer.encode(">\n")) == 1
    return loaded


def picture(side: int) -> EncodedImage:
    return EncodedImage.from_pil(Image.new("RGB", (side, side), "red"))


SYSTEM = "Use code to zoom in, then answer."
QUESTION: tuple[Part, ...] = (picture(448), "What colour is the <b>dot</b>?")
OBSERVATIONS = (
    code_observation("a <image> and <|im_end|>\n", "", [picture(224), picture(112)]),
    text_search_observation("é\n", []),
)


def sft(model: Path, folder: Path, turns: Sequence[str], template: str) -> dict[str, Any]:
    """The sample as LLaMA-Factory trains on it."""
    images: list[str] = []

    def text(parts: Sequence[Part]) -> str:
        pieces = []
        for part in parts:
            if isinstance(part, EncodedImage):
                images.append(f"{len(images)}.png")
                (folder / images[-1]).write_bytes(part.data)
            pieces.append(part if isinstance(part, str) else "<image>")
        return "".join(pieces)

    messages = [{"role": "system", "content": SYSTEM}]
    for parts, turn in zip((QUESTION, *OBSERVATIONS), turns, strict=True):
        messages.append({"role": "user", "content": text(parts)})
        messages.append({"role": "assistant", "content": DEEPEYES_V2.prefill + turn})
    data = write_dataset(folder / f"data_{template}", [{"messages": messages, "images": images}])
    arguments = train_arguments(model, data, folder, folder / "out")
    (example,) = tokenized({**arguments, "template": template})
    return example


def task() -> Task:
    return Task(id="1", messages=(Message("system", (SYSTEM,)), Message("user", QUESTION)))


async def verl(processor: Any, turns: Sequence[str]) -> tuple[list[int], list[int]]:
    """Ids and mask as verl trains on them, from an engine that stops at tags."""
    builder = create_continuous_token_builder(
        processor.tokenizer, hf_model_type="qwen2_5_vl", processor=processor
    )
    generated = [*turns[:-1], turns[-1] + TURN_END]
    encode = processor.tokenizer.encode
    policy = make_policy(builder, ScriptedEngine([encode(turn) for turn in generated]))
    await policy.begin(task())
    for number in range(len(turns)):
        await policy.act()
        if number < len(OBSERVATIONS):
            assert await policy.observe(Observation(OBSERVATIONS[number]))
    stream = policy.stream
    return stream.ids, [0] * len(stream.prompt_ids) + stream.response_mask


async def server(processor: Any, turns: Sequence[str]) -> list[int]:
    """Ids of the last request, as a server's chat template makes them, and of the last turn."""
    with ChatServer.saying(*turns) as chat:
        async with ChatClient(OpenAISettings(url=chat.url, profile="vllm")) as client:
            policy = OpenAIPolicy(client, DEEPEYES_V2)
            await policy.begin(task())
            for number in range(len(turns)):
                await policy.act()
                if number < len(OBSERVATIONS):
                    await policy.observe(Observation(OBSERVATIONS[number]))
        request = chat.requests[-1]
    options = {key: request[key] for key in ("add_generation_prompt", "continue_final_message")}
    inputs = processor.apply_chat_template(
        [with_pictures(message) for message in request["messages"]],
        tokenize=True,
        return_dict=True,
        **options,
    )
    return [*inputs["input_ids"][0], *processor.tokenizer.encode(turns[-1] + TURN_END)]


def with_pictures(message: dict[str, Any]) -> dict[str, Any]:
    """The form of transformers for what goes over the wire."""
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return {
        "role": message["role"],
        "content": [
            part
            if part["type"] == "text"
            else {"type": "image", "image": _decoded(part["image_url"]["url"])}
            for part in parts
        ],
    }


def _decoded(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def differences(
    tokenizer: Any, left: Sequence[int], right: Sequence[int]
) -> list[tuple[list[str], list[str]]]:
    """The runs of tokens that differ."""
    tokens = [[tokenizer.decode([one]) for one in ids] for ids in (left, right)]
    codes = SequenceMatcher(None, *tokens, autojunk=False).get_opcodes()
    return [(tokens[0][a:b], tokens[1][c:d]) for kind, a, b, c, d in codes if kind != "equal"]


def loss_in_one_only(
    tokenizer: Any, ids: Sequence[int], labels: Sequence[int], mask: Sequence[int]
) -> list[str]:
    """The tokens that carry loss in only one of SFT and reinforcement learning."""
    pairs = zip(ids, labels, mask, strict=True)
    return [tokenizer.decode([one]) for one, label, mine in pairs if (label != IGNORED) != mine]


@pytest.mark.parametrize("start", ["", "\n"], ids=["thinking", "line break, thinking"])
async def test_one_trajectory_in_three_places(
    joining_model: Path, processor: Any, tmp_path: Path, start: str
) -> None:
    turns = [start + turn for turn in (CODE, SEARCH, ANSWER)]
    tokenizer = processor.tokenizer
    example = sft(joining_model, tmp_path, turns, "deepeyes_qwen2_vl")
    ids, mask = await verl(processor, turns)

    # SFT and reinforcement learning: the same ids, and loss on the same but for the ends of turns
    # that a stop string makes.
    assert example["input_ids"] == ids
    assert loss_in_one_only(tokenizer, ids, example["labels"], mask) == [TURN_END, TURN_END]
    assert len(example["images"]) == 3

    # Over a server: the same, unless thinking begins with a line break: a server encodes earlier
    # turns as one text, in which Qwen's tokenizer joins it to the > before it.
    joined = differences(tokenizer, ids, await server(processor, turns))
    assert joined == ([([">", "\n"], [">\n"])] * 2 if start else [])


async def test_what_the_models_own_template_does_otherwise(
    joining_model: Path, processor: Any, tmp_path: Path
) -> None:
    """``template: qwen2_vl``, as the authors trained: why there is one of ours."""
    turns = ["\n" + turn for turn in (CODE, SEARCH, ANSWER)]
    tokenizer = processor.tokenizer
    example = sft(joining_model, tmp_path, turns, "qwen2_vl")
    ids, _ = await verl(processor, turns)

    found = differences(tokenizer, ids, example["input_ids"])
    assert found == [([">", "\n"], [">\n"])] * 3 + [([], ["\n"])]

    trained = itertools.compress(
        example["input_ids"], [label != IGNORED for label in example["labels"]]
    )
    text = tokenizer.decode(list(trained))
    assert text.count("<think>") == 3 and text.count(TURN_END + "\n") == 3
