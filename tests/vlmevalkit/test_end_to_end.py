"""``python -m vlmeval``, unmodified, finds the agent and the table and repairs what failed."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pandas as pd
import pytest

from deepeyes_plugins.rollout import EndReason
from deepeyes_plugins.rollout.log import read_log
from tests.openai.server import Body, ChatServer, Reply, agent_script, question
from tests.vlmevalkit.conftest import Vlmeval, write_table
from tests.vlmevalkit.official import CHOICES, write_tables

QUESTIONS = {
    "red": ("q-red: which colour?", "red"),
    "blue": ("q-blue: which colour?", "blue"),
    "lime": ("q-lime: what does the first pixel hold?", "(0, 255, 0)"),
    "white": ("q-white: how bright?", "1.0"),
}
ANSWERS = {"q-red": "Red.", "q-blue": "green", "q-lime": "{stdout}", "q-white": "1"}


def test_a_run_that_fails_in_part_and_its_repair(tmp_path: Path, vlmeval: Vlmeval) -> None:
    write_table(tmp_path / "data", QUESTIONS)
    agent = agent_script(ANSWERS)
    repaired = False

    def script(body: Body) -> Reply:
        broken = "q-white" in question(body) and not repaired
        return Reply(status=500, body="overloaded") if broken else agent(body)

    arguments = ["--model", "DeepEyesV2", "--data", "DeepEyesQuickstart", "--api-nproc", "4"]
    settings = {
        "DEEPEYES_OPENAI_RETRY_WAIT": "0.01",
    }
    with ChatServer(script) as server:
        settings["DEEPEYES_OPENAI_URL"] = server.url
        first = vlmeval(*arguments, "--retry", "2", "--verbose", **settings)
        asked_first = len(server.requests)
        result = tmp_path / "out" / "DeepEyesV2" / "DeepEyesV2_DeepEyesQuickstart.xlsx"
        broken = pd.read_excel(result).set_index("index")["prediction"]
        scores = pd.read_csv(result.with_name(f"{result.stem}_acc.csv"))

        repaired = True
        vlmeval(*arguments, "--reuse", **settings)
        retried = server.requests[asked_first:]

    # The failed sample is a failure with its reason, not a wrong answer.
    assert list(broken.loc[[0, 1, 2]]) == ["Red.", "green", "(0, 255, 0)"]
    assert broken[3].startswith("Failed to obtain answer via API.")
    assert "HTTP 500: overloaded" in broken[3]
    assert scores.loc[0].to_dict() == pytest.approx(
        {"Overall": 200 / 3, "answered": 3, "failed": 1, "not_scored": 0}
    )
    assert re.search(r"DeepEyesQuickstart\s+25.00% \(1/4\)", first.stdout)
    # --retry and --verbose reached the model: one episode, its request sent twice.
    assert sum("q-white" in question(body) for body in server.requests[:asked_first]) == 2
    assert "after 2 turns" not in first.stdout  # answers are printed, log lines only for failures
    assert "2 attempts" in first.stdout

    # --reuse asks for nothing else.
    assert {question(body) for body in retried} == {QUESTIONS["white"][0]}
    scores = pd.read_csv(result.with_name(f"{result.stem}_acc.csv"))
    assert scores.loc[0, ["Overall", "answered", "failed"]].to_list() == [75, 4, 0]

    trajectories = list(read_log(tmp_path / "log"))
    ended = [trajectory.end_reason for trajectory in trajectories]
    assert ended.count(EndReason.ANSWER) == 4
    assert ended.count(EndReason.INFRASTRUCTURE) == 1
    for trajectory in trajectories:
        assert trajectory.task_id.startswith("DeepEyesQuickstart/")
        if trajectory.end_reason is EndReason.ANSWER:
            code, answer = trajectory.turns
            assert (code.action, code.tool, answer.action) == ("code", "python", "answer")
            shown = [part.image for part in code.observation or [] if part.image]
            assert len(shown) == 1
            assert (tmp_path / "log" / "images" / f"{shown[0]}.png").exists()


def test_api_mode_with_two_datasets_and_the_settings_file(tmp_path: Path, vlmeval: Vlmeval) -> None:
    write_tables(tmp_path / "data")
    write_table(tmp_path / "data", QUESTIONS)
    agent_config = tmp_path / "agent.yaml"
    agent_config.write_text("environment: none\n", encoding="utf-8")
    both = threading.Event()

    def script(body: Body) -> Reply:
        choices = any(choice in question(body) for choice in CHOICES)
        names.add("VStarBench_small" if choices else "DeepEyesQuickstart")
        if len(names) == 2:
            both.set()
        # Nobody is answered before both are asked: they run at once.
        return Reply(f"<answer>{'B' if choices else 'red'}</answer>", until=both)

    names: set[str] = set()
    with ChatServer(script) as server:
        vlmeval(
            *["--model", "DeepEyesV2", "--data", "DeepEyesQuickstart", "VStarBench_small"],
            *["--api-mode", "--api-nproc", "32", "--judge", "exact_matching"],
            DEEPEYES_AGENT_CONFIG=str(agent_config),
            DEEPEYES_OPENAI_URL=server.url,
        )
        assert len(server.requests) == len(QUESTIONS) + len(CHOICES)
        # Nothing but the question: this environment has no prompt of its own.
        assert [m["role"] for m in server.requests[0]["messages"]] == ["user"]

    def overall(name: str) -> float:
        scores = next((tmp_path / "out" / "DeepEyesV2").rglob(f"*_{name}_acc.csv"))
        return float(pd.read_csv(scores).loc[0, "Overall"])

    assert (overall("DeepEyesQuickstart"), overall("VStarBench_small")) == (25.0, 1.0)
    logged = {trajectory.data_source for trajectory in read_log(tmp_path / "log")}
    assert logged == {"DeepEyesQuickstart", "VStarBench_small"}
