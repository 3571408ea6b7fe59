"""SGLang's server as verl's rollout engine uses it: token ids in and out, new weights."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor
from verl.utils.model import convert_weight_keys

from deepeyes_plugins.checkpoints import export
from deepeyes_plugins.hosts.verl.engines import engine_params
from deepeyes_plugins.protocol.content import Message
from deepeyes_plugins.quickstart.task import task_texts
from deepeyes_plugins.quickstart.tiny_model import make_tiny_qwen2_5_vl
from tests.sglang.conftest import most_likely, serve
from tests.verl.tiny_qwen3_vl import make_tiny_qwen3_vl
from tests.vllm.test_same_prompt import pictures, processed

# verl 0.9.1 sets it; with a tokenizer, SGLang 0.5.12 does not read placeholders that are expanded.
AS_VERL = ("--skip-tokenizer-init",)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server") / "log"


@pytest.fixture(scope="module")
def url(exported: Path, log: Path) -> Iterator[str]:
    with serve(exported, log, *AS_VERL) as url:
        yield url


def generate(url: str, ids: list[int], images: Any = (), **params: Any) -> Any:
    body = {
        "input_ids": ids,
        "image_data": [
            f"data:image/png;base64,{base64.b64encode(image.data).decode()}" for image in images
        ],
        "sampling_params": {"temperature": 0, "max_new_tokens": 4, **params},
        "return_logprob": True,
    }
    return httpx.post(f"{url}/generate", json=body, timeout=120).raise_for_status().json()


def prompt(processor: Any, count: int) -> tuple[Any, Any]:
    images = pictures(count)
    return images, processed(processor, [Message("user", (*images, "What colour?"))])


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_token_ids_with_expanded_placeholders_are_read_as_they_are(
    url: str, processor: Any, model: Any, count: int
) -> None:
    images, inputs = prompt(processor, count)
    ids = inputs["input_ids"][0].tolist()

    output = generate(url, ids, images)

    assert output["meta_info"]["prompt_tokens"] == len(ids)
    log_probability = output["meta_info"]["output_token_logprobs"][0][0]
    assert log_probability == pytest.approx(most_likely(model, inputs), abs=1e-4)


def test_our_sampling_parameters_stop_at_a_tag_and_forbid_tokens(url: str, processor: Any) -> None:
    tokenizer = processor.tokenizer
    stop, forbidden = tokenizer.convert_tokens_to_ids(["</tool_call>", "<|image_pad|>"])
    params = engine_params(
        "sglang", {}, limit=4, stop=("</tool_call>",), stop_ids={stop}, forbidden={forbidden}
    )
    ids = tokenizer.encode("x")
    wanted = {str(forbidden): -100.0, str(stop): 100.0}

    stopped = generate(url, ids, **{**params, "logit_bias": wanted})

    assert stopped["output_ids"] == [stop]
    assert stopped["meta_info"]["finish_reason"]["type"] == "stop"
    assert params["logit_bias"] == {str(forbidden): -100.0}
    assert forbidden not in generate(url, ids, **params)["output_ids"]


def test_unusual_tokens_beside_an_image_are_read_as_others(url: str, processor: Any) -> None:
    """SGLang 0.5.12 decodes the ids of a request with images and encodes the text: 0.5.13 does not.

    If this fails, docs/rollout.md has to say so.
    """
    tokenizer = processor.tokenizer
    images, inputs = prompt(processor, 1)
    spelled = tokenizer.convert_tokens_to_ids(list("Ġtop"))
    assert len(tokenizer.encode(" top")) == 1

    ids = inputs["input_ids"][0].tolist() + spelled
    assert generate(url, ids, images)["meta_info"]["prompt_tokens"] == len(ids) - 3
    assert generate(url, spelled)["meta_info"]["prompt_tokens"] == len(spelled)


def load(url: str, folder: Path) -> None:
    """Load new weights into the running server, by the same function as verl's weight sync."""
    body = {"model_path": str(folder)}
    reply = httpx.post(f"{url}/update_weights_from_disk", json=body, timeout=120)
    assert reply.raise_for_status().json()["success"]


def synced(saved: Path, folder: Path) -> Path:
    """A checkpoint with the names that verl's weight sync sends."""
    model = AutoModelForImageTextToText.from_pretrained(saved)
    shutil.copytree(saved, folder)
    sent = convert_weight_keys(model.state_dict(), model)
    tensors = {name: tensor.clone() for name, tensor in sent.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_published_names_can_be_sent_and_those_of_verl_end_the_server(
    url: str, log: Path, saved: Path, exported: Path, tmp_path: Path
) -> None:
    make_tiny_qwen2_5_vl(tmp_path / "other", task_texts(), seed=1)
    export(tmp_path / "other", tmp_path / "published")
    before = generate(url, [1, 2, 3])

    load(url, tmp_path / "published")
    after = generate(url, [1, 2, 3])
    assert first_log_probability(after) != first_log_probability(before)
    load(url, exported)

    with pytest.raises(httpx.HTTPError):
        load(url, synced(saved, tmp_path / "synced"))
    assert "KeyError: 'model.language_model.layers" in log.read_text(encoding="utf-8")


def first_log_probability(output: Any) -> float:
    return float(output["meta_info"]["output_token_logprobs"][0][0])


def test_qwen3_vl_is_loaded_and_synced_under_the_names_of_transformers(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("qwen3_vl")
    make_tiny_qwen3_vl(folder / "one", task_texts())
    make_tiny_qwen3_vl(folder / "two", task_texts(), seed=1)
    processor = AutoProcessor.from_pretrained(folder / "one")
    inputs = processed(processor, [Message("user", ("What colour?",))])
    with serve(folder / "one", folder / "log", *AS_VERL) as url:
        for name in ("one", "two"):
            load(url, synced(folder / name, folder / f"synced_{name}"))
            model = AutoModelForImageTextToText.from_pretrained(folder / name).eval()
            output = generate(url, inputs["input_ids"][0].tolist())
            assert first_log_probability(output) == pytest.approx(
                most_likely(model, inputs), abs=1e-4
            )
