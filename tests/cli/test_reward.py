"""``deepeyes reward score``, as it is typed, with a judge that is a real server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from deepeyes_plugins.cli import reward
from deepeyes_plugins.rewards.offline import score_log
from deepeyes_plugins.rewards.scorer import Scorer
from deepeyes_plugins.rewards.settings import RewardSettings
from deepeyes_plugins.rollout import EndReason, Trajectory, TurnRecord
from tests.cli.test_cli import deepeyes


def line(task: str, answer: str, **fields: Any) -> str:
    fields = {"data_source": "perception", "ground_truth": "red", "question": "Colour?", **fields}
    return Trajectory(
        task_id=task,
        turns=[TurnRecord(text=f"<think></think><answer>{answer}</answer>")],
        **{"end_reason": EndReason.ANSWER, **fields},
    ).model_dump_json()


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{text}\n" for text in lines))
    return path


def scores(path: Path) -> dict[str, float]:
    return {
        record["task_id"]: record["score"]
        for record in map(json.loads, path.read_text().splitlines())
    }


class JudgeServer(ThreadingHTTPServer):
    """An OpenAI-compatible server whose judge accepts crimson; it can fall silent."""

    away = False
    asked = 0


class Handler(BaseHTTPRequestHandler):
    server: JudgeServer

    def log_message(self, *arguments: object) -> None: ...

    def do_GET(self) -> None:
        self._reply({"object": "list", "data": [{"id": "judge", "object": "model"}]})

    def do_POST(self) -> None:
        request = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.asked += 1
        verdict = r"\boxed{Yes}" if "crimson" in request else r"\boxed{No}"
        message = {"role": "assistant", "content": verdict}
        self._reply({"choices": [{"index": 0, "finish_reason": "stop", "message": message}]})

    def _reply(self, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(503 if self.server.away else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def judge() -> Iterator[JudgeServer]:
    server = JudgeServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def config(judge: JudgeServer, tmp_path: Path) -> Path:
    path = tmp_path / "agent.yaml"
    path.write_text(
        f"judge:\n  endpoints: [{{url: 'http://127.0.0.1:{judge.server_address[1]}/v1'}}]\n"
        "  outage: mark\n  retries: 0\n"
    )
    return path


def test_a_log_with_bad_lines_is_scored_by_rules_and_summed_up(tmp_path: Path) -> None:
    log = tmp_path / "trajectories.jsonl"
    log.write_bytes(
        "\n".join(
            [
                line("1", "red"),
                line("2", "blue"),
                line("3", "red", data_source="search"),
                '{"task_id": "torn',
                line("4", "red", ground_truth=""),
                line("5", "red", data_source="unheard-of"),
                line("6", "red", end_reason=EndReason.INFRASTRUCTURE, error="no sandbox"),
            ]
        ).encode()
        + b"\n\xff\xfe\n"
    )

    answer = deepeyes("reward", "score", str(tmp_path), "--json")

    assert answer.returncode == 0, answer.stderr
    summary = json.loads(answer.stdout)
    assert (summary["scored"], summary["bad"], summary["unplayed"]) == (3, 4, 1)
    assert summary["sources"]["perception"]["trajectories"] == 2
    assert summary["sources"]["perception"]["score"] == pytest.approx(0.6)
    assert summary["sources"]["perception"]["parts"]["acc"] == pytest.approx(0.5)
    reasons = {entry["where"][-1]: entry["reason"] for entry in summary["lines_without_score"]}
    assert "not a trajectory" in reasons["4"]
    assert "'4': give its data set (--data)" in reasons["5"]
    assert "unheard-of" in reasons["6"]
    assert "no sandbox" in reasons["7"]
    assert "not a trajectory" in reasons["8"]
    assert scores(tmp_path / "scores.jsonl") == pytest.approx({"1": 1.0, "2": 0.2, "3": 1.0})
    assert "decided by rules: no judge is configured" in answer.stderr


def test_a_table_for_people(tmp_path: Path) -> None:
    log = write(tmp_path / "log.jsonl", line("1", "red"), "nonsense")
    answer = deepeyes("reward", "score", str(log))
    assert answer.returncode == 0, answer.stderr
    assert "perception" in answer.stdout
    assert "scored 1, bad lines 1" in answer.stdout
    assert f"bad: {log}:2: not a trajectory" in answer.stderr
    assert (tmp_path / "log.scores.jsonl").exists()


def test_the_judge_of_the_settings_is_asked_and_a_failed_request_retried(
    tmp_path: Path, config: Path, judge: JudgeServer
) -> None:
    log = write(tmp_path / "log.jsonl", line("1", "red"), line("2", "crimson"), line("3", "navy"))
    command = ("reward", "score", str(log), "--config", str(config), "--json")

    judge.away = True
    without = deepeyes(*command)
    assert without.returncode == 1
    assert (json.loads(without.stdout)["scored"], json.loads(without.stdout)["failed"]) == (1, 2)

    judge.away, judge.asked = False, 0
    again = deepeyes(*command)
    assert again.returncode == 0, again.stderr
    assert judge.asked == 2
    assert scores(tmp_path / "log.scores.jsonl") == pytest.approx({"1": 1.0, "2": 1.0, "3": 0.2})

    judge.asked = 0
    assert deepeyes(*command).returncode == 0
    assert judge.asked == 0


class TestResuming:
    def test_what_is_there_is_kept_and_the_rest_is_scored(self, tmp_path: Path) -> None:
        log = write(tmp_path / "log.jsonl", line("1", "red"), line("2", "red"))
        assert score(log) == 0
        output = tmp_path / "log.scores.jsonl"
        first = output.read_text().splitlines()[0].replace('"score":1.0', '"score":0.75')
        output.write_text(first + '\n{"trajectory": "to')  # Killed while it wrote.
        write(log, line("1", "red"), line("2", "red"), line("3", "blue"))

        assert score(log) == 0
        assert scores(output) == pytest.approx({"1": 0.75, "2": 1.0, "3": 0.2})

        assert score(log, "--restart") == 0
        assert scores(output)["1"] == 1.0

    def test_scores_by_other_settings_are_not_kept(self, tmp_path: Path) -> None:
        log = write(tmp_path / "log.jsonl", line("1", "red"))
        assert score(log) == 0
        config = tmp_path / "agent.yaml"
        config.write_text("rewards: {perception: {accuracy: 0.5}}")
        assert score(log, "--config", str(config)) == 0
        assert scores(tmp_path / "log.scores.jsonl") == pytest.approx({"1": 0.7})


def score(log: Path, *options: str) -> int:
    """The same command without a process of its own."""
    app = typer.Typer()
    app.command()(reward.score)
    return CliRunner().invoke(app, [str(log), *options]).exit_code


class TestReferencesOfADataSet:
    def write_data(self, path: Path, rows: list[tuple[str, str]]) -> Path:
        table = pa.Table.from_pylist(
            [
                {
                    "data_source": "perception",
                    "prompt": [{"role": "user", "content": "Colour?"}],
                    "reward_model": {"ground_truth": truth, "style": "rule"},
                    "extra_info": {"index": index},
                }
                for index, truth in rows
            ]
        )
        pq.write_table(table, path, row_group_size=1)
        return path

    def test_join_logs_that_have_none(self, tmp_path: Path) -> None:
        log = write(tmp_path / "log.jsonl", line("1", "red", ground_truth=""), line("2", "red"))
        data = self.write_data(tmp_path / "data.parquet", [("1", "red"), ("2", "green")])
        assert score(log, "--data", str(data)) == 0
        assert scores(tmp_path / "log.scores.jsonl") == pytest.approx({"1": 1.0, "2": 0.2})

    def test_two_rows_of_one_name_are_refused(self, tmp_path: Path) -> None:
        log = write(tmp_path / "log.jsonl", line("1", "red"))
        data = self.write_data(tmp_path / "data.parquet", [("1", "red"), ("1", "green")])
        assert score(log, "--data", str(data)) == 1

    def test_what_is_missing_is_named(self, tmp_path: Path) -> None:
        assert score(tmp_path / "absent.jsonl") == 1
        assert score(tmp_path) == 1


async def test_concurrency_is_bounded_and_nothing_is_lost(tmp_path: Path) -> None:
    log = write(tmp_path / "log.jsonl", *(line(str(n), "red") for n in range(300)))
    scorer = Scorer(RewardSettings())
    left, records = await score_log([log], tmp_path / "out.jsonl", scorer, "", concurrency=7)
    await scorer.aclose()
    assert not left
    assert sorted(int(record.task_id) for record in records) == list(range(300))
