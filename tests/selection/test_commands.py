"""``deepeyes data filter | synthesize | from-trajectories`` with a scripted model and a sandbox."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepeyes_plugins.data.check.sft import check_sft_file
from deepeyes_plugins.data.rl_rows import task_from_row
from deepeyes_plugins.quickstart.datasets import write_rl
from deepeyes_plugins.quickstart.task import Example, crop_turn, split_examples
from deepeyes_plugins.rollout import EndReason, Trajectory
from deepeyes_plugins.rollout.log import FILE_NAME, TrajectoryLog
from deepeyes_plugins.rollout.trajectory import TurnRecord
from deepeyes_plugins.sandbox.embedded import URL_VARIABLE, start_server
from deepeyes_plugins.sandbox.settings import SandboxSettings
from tests.cli.test_cli import DEEPEYES, deepeyes
from tests.data.test_prepare import full_disk
from tests.openai.server import Body, ChatServer, Reply, text_of

COUNT = 3


@pytest.fixture(scope="module", autouse=True)
def sandbox() -> Iterator[None]:
    """One for all commands; those that start their own remove the variable."""
    with start_server() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv(URL_VARIABLE, server.url)
        patch.setenv(SandboxSettings().token_env, server.token)
        yield


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return list(split_examples("train", COUNT))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, examples: list[Example]) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.parquet"
    write_rl(examples, path, "train")
    return path


def asked_about(body: Body, data: Path) -> dict[str, Any]:
    """The row whose image a request shows."""
    import base64

    shown = next(
        part["image_url"]["url"]
        for message in body["messages"]
        if isinstance(message["content"], list)
        for part in message["content"]
        if part["type"] == "image_url"
    )
    picture = base64.b64decode(shown.partition(",")[2])
    rows = pq.read_table(data).to_pylist()
    found: dict[str, Any] = next(row for row in rows if row["images"][0]["bytes"] == picture)
    return found


def teacher(data: Path, *, wrong: str = "", plain: str = "purple") -> Any:
    """Crops and then answers; without tools it says ``plain``, and once it is wrong."""

    def script(body: Body) -> Reply:
        row = asked_about(body, data)
        last = text_of(body["messages"][-1]["content"])
        if "</code>" not in str(body.get("stop")):
            return Reply(f"<think>So.</think><answer>{plain}</answer>")
        if not last.startswith("Code execution result:"):
            return Reply(crop_turn(0).removesuffix("</code>"))
        truth = row["reward_model"]["ground_truth"]
        answer = "purple" if row["extra_info"]["index"] == wrong else truth
        return Reply(f"<think>It is {answer}.</think>\n<answer>{answer}</answer>")

    return script


def test_a_teachers_right_trajectories_become_rows_and_nothing_is_played_twice(
    data: Path, tmp_path: Path, examples: list[Example]
) -> None:
    output = tmp_path / "made"
    with ChatServer(teacher(data, wrong=str(examples[0].seed))) as server:
        command = ("data", "synthesize", str(data), "-o", str(output), "--url", server.url)
        answer = deepeyes(*command, "--json")
        assert answer.returncode == 0, answer.stderr
        assert json.loads(answer.stdout)["rows"] == COUNT - 1
        asked = len(server.requests)
        first = (output / "synthesized.json").read_bytes()
        strict = deepeyes(*command, "--least-format", "2", "--json")
        assert json.loads(strict.stdout)["rows"] == 0
        assert deepeyes(*command).returncode == 0
        assert len(server.requests) == asked
    assert (output / "synthesized.json").read_bytes() == first
    assert json.loads((output / "dataset_info.json").read_text())["synthesized"]
    report = check_sft_file(output / "synthesized.json")
    assert (report.rows, report.problems) == (COUNT - 1, [])
    row = json.loads(first)[0]
    assert len(row["images"]) == 2  # The question's and the crop.
    assert row["provenance"]["teacher"] == "tiny"

    again = tmp_path / "again"
    answer = deepeyes(
        *("data", "from-trajectories", str(output / "work" / FILE_NAME)),
        *("--data", str(data), "-o", str(again), "--json"),
    )
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["rows"] == COUNT - 1
    rows = json.loads((again / "rejection_sampled.json").read_text())
    assert [one["messages"] for one in rows] == [one["messages"] for one in json.loads(first)]


def test_questions_where_tools_help_are_kept(
    data: Path, tmp_path: Path, examples: list[Example]
) -> None:
    output = tmp_path / "kept.parquet"
    with ChatServer(teacher(data, wrong=str(examples[1].seed))) as server:
        answer = deepeyes(
            *("data", "filter", str(data), "-o", str(output), "--url", server.url),
            *("--samples", "2", "--json"),
            DEEPEYES_OPENAI_URL="http://127.0.0.1:9/v1",  # The option wins.
        )
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["verdicts"] == {"kept": COUNT - 1, "hopeless": 1}
    whole, kept = pq.read_table(data), pq.read_table(output)
    assert kept.schema == whole.schema
    assert kept.to_pylist() == [row for at, row in enumerate(whole.to_pylist()) if at != 1]
    report = [json.loads(line) for line in (tmp_path / "kept.report.jsonl").open()]
    assert [(row["tools"], row["plain"]) for row in report] == [(1, 0), (0, 0), (1, 0)]


def test_an_interrupted_run_keeps_what_is_finished(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(URL_VARIABLE)  # Its own sandbox ends with it.
    output, reached, release = tmp_path / "made", threading.Event(), threading.Event()
    play = teacher(data)

    def script(body: Body) -> Reply:
        if len(server.requests) > 2:  # The second question: it hangs.
            reached.set()
            return Reply(until=release)
        reply: Reply = play(body)
        return reply

    options = ("data", "synthesize", str(data), "-o", str(output), "--concurrency", "1")
    with ChatServer(script) as server:
        command = [*DEEPEYES, *options, "--url", server.url]
        with subprocess.Popen(command, stderr=subprocess.PIPE, env=os.environ) as process:
            assert reached.wait(60)
            process.send_signal(signal.SIGINT)
            _, complaint = process.communicate(timeout=60)
        release.set()
    assert process.returncode == 130
    assert b"same command resumes" in complaint
    with ChatServer(teacher(data)) as server:
        answer = deepeyes(*options, "--url", server.url, "--json")
        assert json.loads(answer.stdout)["rows"] == COUNT
        assert len(server.requests) == 2 * (COUNT - 1)


def test_a_server_that_is_away_is_named(data: Path, tmp_path: Path) -> None:
    answer = deepeyes(
        *("data", "synthesize", str(data), "-o", str(tmp_path)),
        *("--url", "http://127.0.0.1:9/v1"),
        DEEPEYES_OPENAI_RETRIES="0",
    )
    assert answer.returncode == 1
    assert "127.0.0.1:9" in answer.stderr


def test_the_input_is_never_written_over_and_named_as_it_is(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows[old].parquet"
    shutil.copy(data, file)
    answer = deepeyes(
        *("data", "filter", str(file), "-o", str(file), "--url", "http://127.0.0.1:9/v1")
    )
    assert answer.returncode == 1
    assert f"{file} is, or is inside of, the input {file}" in answer.stderr
    assert file.read_bytes() == data.read_bytes()


def test_trajectories_of_a_validation_make_no_rows(data: Path, tmp_path: Path) -> None:
    rows = pq.read_table(data).to_pylist()
    for row, split in zip(rows, ("train", "test", None), strict=True):
        task = task_from_row(row)
        truth = task.ground_truth
        trajectory = Trajectory(
            task_id=task.id,
            data_source=task.data_source,
            question=task.question,
            turns=[TurnRecord(text=f"<think>So.</think><answer>{truth}</answer>")],
            answer=truth,
            end_reason=EndReason.ANSWER,
            labels={"step": 1} | ({"split": split} if split else {}),
        )
        TrajectoryLog(tmp_path).write(trajectory, [])
    with (tmp_path / FILE_NAME).open("a") as file:
        file.write('{"task_id": "tor')
    command = ("data", "from-trajectories", str(tmp_path), "--data", str(data), "--json")
    answer = deepeyes(*command, "-o", str(tmp_path / "sft"))
    assert answer.returncode == 0, answer.stderr
    summary = json.loads(answer.stdout)
    assert (summary["rows"], summary["left_out"]) == (2, {"of split 'test'": 1, "bad": 1})
    assert f"bad: {tmp_path / FILE_NAME}:4: not a trajectory" in answer.stderr
    answer = deepeyes(*command, "-o", str(tmp_path / "other"), "--split", "test")
    assert json.loads(answer.stdout)["rows"] == 2
    assert json.loads(answer.stdout)["left_out"]["of split 'train'"] == 1

    answer = deepeyes(*command, "-o", str(tmp_path / "none"), "--least-accuracy", "2")
    assert answer.returncode == 1
    assert "no trajectory can be used: 2 not right or not well formed" in answer.stderr
    assert not (tmp_path / "none/rejection_sampled.json").exists()


def test_a_missing_search_key_is_named_before_the_first_question(
    data: Path, tmp_path: Path
) -> None:
    with ChatServer(teacher(data)) as server:
        command = ("data", "synthesize", str(data), "-o", str(tmp_path), "--url", server.url)
        search = {"DEEPEYES_SEARCH_PROVIDER": "serper", "SERPER_API_KEY": ""}
        answer = deepeyes(*command, **search)
        assert answer.returncode == 1
        assert "SERPER_API_KEY is not set" in answer.stderr
        assert not server.requests
        without = {"DEEPEYES_TOOLS": '{"deepeyes_v2": ["python"]}'}
        assert deepeyes(*command, **search, **without).returncode == 0


def test_a_server_that_goes_away_ends_the_run_and_what_was_played_is_kept(
    data: Path, tmp_path: Path
) -> None:
    output, play = tmp_path / "made", teacher(data)

    def script(body: Body) -> Reply:
        reply: Reply = play(body) if len(server.requests) <= 2 else Reply(status=503)
        return reply

    options = ("data", "synthesize", str(data), "-o", str(output), "--samples", "4")
    with ChatServer(script) as server:
        answer = deepeyes(
            *options, "--concurrency", "1", "--url", server.url, DEEPEYES_OPENAI_RETRIES="0"
        )
    assert answer.returncode == 1
    assert "8 consecutive failures" in answer.stderr
    assert "same command resumes" in answer.stderr
    assert len((output / "work" / FILE_NAME).read_text().splitlines()) == 1


def test_a_missing_judge_is_told_before_anything_is_played(data: Path, tmp_path: Path) -> None:
    table = pq.read_table(data)
    rows = table.to_pylist()
    for row in rows:
        row["reward_model"]["ground_truth"] = "Because the light comes from the left. " * 9
    wordy = tmp_path / "wordy.parquet"
    pq.write_table(pa.Table.from_pylist(rows, table.schema), wordy)
    with ChatServer(teacher(data)) as server:
        answer = deepeyes(
            *("data", "synthesize", str(wordy), "-o", str(tmp_path / "made")),
            *("--url", server.url),
        )
        assert not server.requests
    assert answer.returncode == 1
    assert "name a judge" in answer.stderr


def test_a_sandbox_that_cannot_be_started_is_not_waited_for(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(URL_VARIABLE)
    with ChatServer(teacher(data)) as server:
        answer = deepeyes(
            *("data", "synthesize", str(data), "-o", str(tmp_path), "--url", server.url),
            DEEPEYES_SANDBOX='{"kernel": "no_such_module:factory"}',
        )
    assert answer.returncode == 1
    assert "the embedded sandbox did not start" in answer.stderr
    assert "run the command again" in answer.stderr


def test_a_full_disk_ends_the_run_and_what_is_finished_is_kept(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "made"
    with ChatServer(teacher(data)) as server:
        command = ("data", "synthesize", str(data), "-o", str(output), "--url", server.url)
        command = (*command, "--samples", "4", "--concurrency", "1", "--json")
        with full_disk(output, 32 << 10):
            answer = deepeyes(*command)
            assert answer.returncode == 1
            assert "The same command resumes" in answer.stderr
        played = len((output / "work" / FILE_NAME).read_text().splitlines())
        asked = len(server.requests)
        assert 0 < played < 4 * COUNT
        answer = deepeyes(*command)
        assert answer.returncode == 0, answer.stderr
        assert json.loads(answer.stdout)["rows"] == COUNT
        assert len(server.requests) - asked == 2 * (4 * COUNT - played)
