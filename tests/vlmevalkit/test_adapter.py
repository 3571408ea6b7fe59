"""The model class that VLMEvalKit calls, in its threads, against a real server."""

from __future__ import annotations

import base64
import hashlib
import io
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from deepeyes_plugins.errors import SettingsError
from deepeyes_plugins.plugins import UnknownNameError
from deepeyes_plugins.protocol.content import EncodedImage
from deepeyes_plugins.rollout import EndReason, InfrastructureError, Trajectory, TurnRecord
from deepeyes_plugins.rollout.log import read_log
from eval_plugins.cells import LONGEST_TEXT
from eval_plugins.vlmevalkit.adapter import UNANSWERED, DeepEyesV2, prediction
from eval_plugins.vlmevalkit.dataset import DeepEyesQuickstart
from tests.openai.server import ChatServer, Reply, question, text_of
from tests.pictures import unusual_pictures
from tests.vlmevalkit.conftest import png

ZOOM = (
    '<tool_call>\n{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [0, 0, 40, 40]}}\n'
    "</tool_call>"
)
MakeModel = Callable[..., DeepEyesV2]


@pytest.fixture
def make_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeModel]:
    """Makes a model with an agent.yaml of its own and closes it in the end."""
    models: list[DeepEyesV2] = []

    def make(url: str, environment: str = "none", **keywords: Any) -> DeepEyesV2:
        monkeypatch.delenv("DEEPEYES_OPENAI_URL", raising=False)
        config = tmp_path / "agent.yaml"
        config.write_text(f"environment: {environment}\ntrajectories: {tmp_path / 'log'}\n")
        keywords = {"retry_wait": 0.01, "retries": 0, "retry": 1, **keywords}
        models.append(DeepEyesV2(agent_config=str(config), url=url, **keywords))
        return models[-1]

    yield make
    for model in models:
        model.close()


def noise_jpeg(seed: int) -> bytes:
    """A picture that changes when it is encoded a second time."""
    picture = Image.frombytes("RGB", (32, 24), random.Random(seed).randbytes(32 * 24 * 3))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def pixels(data: bytes) -> str:
    return hashlib.sha256(Image.open(io.BytesIO(data)).convert("RGB").tobytes()).hexdigest()


def sample(folder: Path, text: str, *colours: str) -> list[dict[str, str]]:
    """A question as VLMEvalKit hands it over: images as files, then the text."""
    parts = []
    for number, colour in enumerate(colours):
        path = folder / f"7_{number}.png"
        path.write_bytes(png(colour))
        parts.append({"type": "image", "value": str(path)})
    return [*parts, {"type": "text", "value": text}]


def test_images_reach_the_model_unchanged_and_in_order(
    tmp_path: Path, make_model: MakeModel
) -> None:
    with ChatServer.saying("<answer>two</answer>") as server:
        model = make_model(server.url)
        inputs = sample(tmp_path, "How many?", "red", "blue")
        assert model.generate(inputs, dataset="Pairs") == "two"

    content = server.requests[0]["messages"][0]["content"]
    urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    assert [base64.b64decode(url.partition(",")[2]) for url in urls] == [png("red"), png("blue")]
    (trajectory,) = read_log(tmp_path / "log")
    assert trajectory.task_id.startswith("Pairs/7_0-")
    assert trajectory.data_source == "Pairs"


def test_code_has_every_image_as_the_dataset_holds_it(
    tmp_path: Path, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    originals = [noise_jpeg(seed) for seed in range(3)]
    row = ["7", str([base64.b64encode(one).decode() for one in originals]), "Which?", "0"]
    paths = ["a.jpg", "b.jpg", "c.jpg"]
    (tmp_path / "DeepEyesQuickstart.tsv").write_text(
        "index\timage\tquestion\tanswer\timage_path\n" + "\t".join([*row, str(paths)]) + "\n"
    )
    monkeypatch.setenv("LMUData", str(tmp_path))
    dataset = DeepEyesQuickstart("DeepEyesQuickstart")
    code = (
        "import hashlib\n"
        "for image in (image_1, image_2, image_3):\n"
        "    print(hashlib.sha256(image.convert('RGB').tobytes()).hexdigest())"
    )
    replies = [f"<code>\n```python\n{code}\n```\n</code>", "<answer>0</answer>"]
    with ChatServer.saying(*replies) as server:
        model = make_model(server.url, "deepeyes_v2")
        model.set_dump_image(dataset.dump_image)
        prompt = model.build_prompt(dataset.data.iloc[0], dataset="DeepEyesQuickstart")
        assert model.generate(prompt, dataset="DeepEyesQuickstart") == "0"

    printed = text_of(server.requests[1]["messages"][-1]["content"]).split("```")[1].split()
    assert printed == [pixels(one) for one in originals]
    # VLMEvalKit's own files of them have lost some.
    written = [Path(dataset.img_root, name).read_bytes() for name in paths]
    assert not {pixels(one) for one in written} & set(printed)


def test_the_server_decodes_the_pixels_that_training_sees(
    tmp_path: Path, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of palettes, transparency, EXIF rotation and 16 bits, which VLMEvalKit's files have lost."""
    paths = unusual_pictures(tmp_path)
    stored = [base64.b64encode(path.read_bytes()).decode() for path in paths]
    row = ["7", str(stored), "Which?", "0", str([path.name for path in paths])]
    (tmp_path / "DeepEyesQuickstart.tsv").write_text(
        "index\timage\tquestion\tanswer\timage_path\n" + "\t".join(row) + "\n"
    )
    monkeypatch.setenv("LMUData", str(tmp_path))
    dataset = DeepEyesQuickstart("DeepEyesQuickstart")
    with ChatServer.saying("<answer>0</answer>") as server:
        model = make_model(server.url)
        model.set_dump_image(dataset.dump_image)
        prompt = model.build_prompt(dataset.data.iloc[0], dataset="DeepEyesQuickstart")
        assert model.generate(prompt, dataset="DeepEyesQuickstart") == "0"

    content = server.requests[0]["messages"][0]["content"]
    urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    for path, url in zip(paths, urls, strict=True):
        trained = EncodedImage(path.read_bytes()).pil()
        sent = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")
        assert (sent.size, sent.tobytes()) == (trained.size, trained.tobytes()), path.name


def test_a_question_without_images(make_model: MakeModel) -> None:
    with ChatServer.saying("<answer>hi</answer>") as server:
        assert make_model(server.url).generate("hello") == "hi"


def test_tools_act_on_the_image_and_their_images_are_kept(
    tmp_path: Path, make_model: MakeModel
) -> None:
    with ChatServer.saying(ZOOM, "<answer>red</answer>") as server:
        model = make_model(server.url, "visual_toolbox_v2")
        assert model.generate(sample(tmp_path, "Colour?", "red"), dataset="V") == "red"

    (trajectory,) = read_log(tmp_path / "log")
    (image,) = [part.image for part in trajectory.turns[0].observation or [] if part.image]
    assert (tmp_path / "log" / "images" / f"{image}.png").exists()


def test_the_system_prompt_describes_the_tools_or_comes_from_a_file(
    tmp_path: Path, make_model: MakeModel
) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_bytes(b" As it was\r\ntrained.\n")
    with ChatServer(lambda body: Reply("<answer>1</answer>")) as server:
        make_model(server.url, "deepeyes_v2").generate("x")
        make_model(server.url, system_prompt_file=str(prompt)).generate("x")
        make_model(server.url, "deepeyes_v2", system_prompt="").generate("x")

    own, given, none = (body["messages"] for body in server.requests)
    assert "<code>\n```python" in own[0]["content"]
    assert "search" not in own[0]["content"]
    assert given[0] == {"role": "system", "content": " As it was\r\ntrained.\n"}
    assert [message["role"] for message in none] == ["user"]


def test_search_is_described_on_the_search_benchmarks_only(make_model: MakeModel) -> None:
    with ChatServer(lambda body: Reply("<answer>1</answer>")) as server:
        model = make_model(server.url, "deepeyes_v2")
        for dataset in ("MMSearch", "HRBench4K"):
            model.generate("x", dataset=dataset)

    searching, looking = (body["messages"][0]["content"] for body in server.requests)
    assert '{"name": "search"' in searching and '{"name": "image_search"}' in searching
    assert "search" not in looking


def test_roles_are_kept_and_no_sample_hears_of_another(make_model: MakeModel) -> None:
    parts = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "2 x 2?")]
    message = [{"role": role, "type": "text", "value": text} for role, text in parts]
    with ChatServer(lambda body: Reply("<answer>4</answer>")) as server:
        model = make_model(server.url)
        model.generate(message)
        model.generate("alone")
        model.chat([{"role": role, "content": text} for role, text in parts[1:]], dataset="Talk")

    told, alone, chat = (
        [(m["role"], m["content"]) for m in body["messages"]] for body in server.requests
    )
    assert told == parts
    assert alone == [("user", "alone")]
    assert chat == parts[1:]


def test_a_request_that_fails_is_sent_again_within_its_trajectory(
    tmp_path: Path, make_model: MakeModel
) -> None:
    replies = [ZOOM, Reply(status=503), Reply(status=500), "<answer>red</answer>"]
    with ChatServer.saying(*replies) as server:
        model = make_model(server.url, "visual_toolbox_v2", retries=2)
        assert model.generate(sample(tmp_path, "Colour?", "red"), dataset="V") == "red"

    assert len(server.requests) == 4
    (trajectory,) = read_log(tmp_path / "log")
    assert len(trajectory.turns) == 2


def test_new_conversations_pass_by_a_server_that_keeps_failing(make_model: MakeModel) -> None:
    with (
        ChatServer(lambda body: Reply(status=500, body="down")) as down,
        ChatServer(lambda body: Reply("<answer>1</answer>")) as up,
    ):
        model = make_model(f"{down.url},{up.url}", circuit_failures=2, circuit_seconds=600)
        answers = [model.generate("x") for _ in range(10)]
    assert len(down.requests) == 2 and len(up.requests) == 8
    assert answers[4:] == ["1"] * 6


def test_a_sample_whose_image_is_gone_fails_alone(make_model: MakeModel) -> None:
    with ChatServer(lambda body: Reply("<answer>1</answer>")) as server:
        gone = [{"type": "image", "value": "/nowhere/1.png"}, {"type": "text", "value": "?"}]
        answer = make_model(server.url).generate(gone)
    assert answer.startswith("Failed to obtain answer via API.") and not server.requests


def test_the_model_sees_a_smaller_image_and_the_log_keeps_the_original(
    tmp_path: Path, make_model: MakeModel
) -> None:
    with ChatServer.saying("<answer>red</answer>") as server:
        make_model(server.url, max_pixels=1024).generate(sample(tmp_path, "Colour?", "red"))

    content = server.requests[0]["messages"][0]["content"]
    sent = base64.b64decode(content[0]["image_url"]["url"].partition(",")[2])
    assert EncodedImage(sent).size == (32, 32)
    (trajectory,) = read_log(tmp_path / "log")
    (image,) = trajectory.question_images
    assert EncodedImage((tmp_path / "log" / "images" / f"{image}.png").read_bytes()).size == (
        64,
        64,
    )


def test_a_failure_of_ours_is_reported_as_one(make_model: MakeModel) -> None:
    with ChatServer(lambda body: Reply(status=500, body="down")) as server:
        code, text, log = make_model(server.url).generate_inner([{"type": "text", "value": "x"}])

    assert code != 0
    assert text.startswith("Failed to obtain answer via API.")
    assert "HTTP 500: down" in text and "HTTP 500: down" in log


def test_many_threads_share_one_event_loop(tmp_path: Path, make_model: MakeModel) -> None:
    together = threading.Event()

    def script(body: dict[str, Any]) -> Reply:
        if len(server.requests) == 32:
            together.set()
        return Reply(f"<answer>{question(body)}</answer>", until=together)

    with ChatServer(script) as server, ThreadPoolExecutor(32) as threads:
        model = make_model(server.url)
        questions = [str(number) for number in range(32)]
        assert list(threads.map(model.generate, questions)) == questions

    assert len(list(read_log(tmp_path / "log"))) == 32


def test_a_wrong_setting_fails_before_the_first_sample(
    tmp_path: Path, make_model: MakeModel
) -> None:
    with ChatServer.saying() as server:
        gone = server.url
    with pytest.raises(InfrastructureError, match=gone):
        make_model(gone, model="m")
    with pytest.raises(SettingsError, match="temprature"):
        make_model(gone, temprature=1)
    with pytest.raises(UnknownNameError, match="Did you mean 'deepeyes_v2'"):
        make_model(gone, "deepeyes_v3")
    with pytest.raises(SettingsError, match="system_prompt_file cannot be read"):
        make_model(gone, system_prompt_file=str(tmp_path / "missing"))


def test_a_search_key_is_missed_before_the_first_sample_of_a_benchmark_that_searches(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SERPER_API_KEY", raising=False)

    @dataclass
    class Dataset:
        dataset_name: str

        def dump_image(self, line: Any) -> list[str]:
            return []

    with ChatServer.saying() as server:
        model = make_model(server.url, "deepeyes_v2", search={"provider": "serper"})
        model.set_dump_image(Dataset("VStarBench").dump_image)
        with pytest.raises(SettingsError, match="SERPER_API_KEY is not set"):
            model.set_dump_image(Dataset("MMSearch").dump_image)
        plain = make_model(server.url, "none", search={"provider": "serper"})
        plain.set_dump_image(Dataset("MMSearch").dump_image)


@pytest.mark.parametrize(
    ("answer", "turns", "expected"),
    [
        ("red", ["<think>a</think><answer>red</answer>"], "red"),
        (None, ["<think>a</think>", "<think>b</think>\nIt is red.\n"], "It is red."),
        (None, ["<think>cut"], "<think>cut"),
        ("", ["<answer></answer>"], UNANSWERED),
        (" =5\r\n", [], "=5"),
        (None, [], UNANSWERED),
        ("x" * 40_000 + "end", [], "x" * (LONGEST_TEXT - 3) + "end"),
        ("a \ud800", [], "a ?"),
    ],
)
def test_what_is_scored(answer: str | None, turns: list[str], expected: str) -> None:
    trajectory = Trajectory(
        task_id="t",
        turns=[TurnRecord(text=text) for text in turns],
        answer=answer,
        end_reason=EndReason.NO_ACTION,
    )
    assert prediction(trajectory) == expected
