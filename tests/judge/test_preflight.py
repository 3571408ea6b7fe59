"""A judge that is not there, or does not judge, is noticed before training."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from typer.testing import CliRunner

from deepeyes_plugins.cli.main import app
from deepeyes_plugins.judge.contracts import JudgeUnavailableError
from deepeyes_plugins.judge.preflight import preflight
from deepeyes_plugins.judge.settings import BASE_VARIABLE, JudgeSettings
from tests.judge.scripts import FALSE, NO, TRUE, YES, honest
from tests.openai.server import Body, ChatServer, Reply


def settings(*endpoints: dict[str, Any], **values: Any) -> JudgeSettings:
    return JudgeSettings(endpoints=endpoints, **{"retry_wait": 0.01, **values})


async def test_a_good_judge_passes() -> None:
    with ChatServer(honest) as server:
        (report,) = await preflight(settings({"url": server.url}))
    assert (report.url, report.model, report.problem) == (server.url, "tiny", "")
    assert len(server.requests) == 4  # A right and a wrong answer to either prompt.


async def test_no_judge_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(BASE_VARIABLE, raising=False)
    assert await preflight(settings()) == []


async def test_nobody_there(unused_port: int) -> None:
    url = f"http://127.0.0.1:{unused_port}/v1"
    # An outage is not waited for: whoever starts a run wants to know now.
    with pytest.raises(JudgeUnavailableError, match=f"not fit for training.*\n  {url}: GET .*Conn"):
        await preflight(settings({"url": url}, outage="wait", outage_patience=3600))


async def test_a_model_that_is_not_there_is_named_with_those_that_are() -> None:
    with ChatServer(honest, models=("qwen-72b", "qwen-7b")) as server:
        with pytest.raises(
            JudgeUnavailableError, match="no model 'gpt'; it has: qwen-72b, qwen-7b"
        ):
            await preflight(settings({"url": server.url, "model": "gpt"}))
        with pytest.raises(
            JudgeUnavailableError, match=r"name the one.*judge\.endpoints\[\]\.model"
        ):
            await preflight(settings({"url": server.url}))


async def test_a_key_that_is_refused_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with ChatServer(lambda body: Reply(status=401, body="bad key")) as server:
        endpoint = {"url": server.url, "api_key_env": "MY_JUDGE_KEY"}
        with pytest.raises(
            JudgeUnavailableError, match=r"bad key The key is read from.*MY_JUDGE_KEY"
        ):
            await preflight(settings(endpoint))


def always(answer: str, equivalence: str) -> Any:
    def script(body: Body) -> Reply:
        mathematics = "Equivalence Judgement" in body["messages"][0]["content"]
        return Reply(equivalence if mathematics else answer)

    return script


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        (always(YES, TRUE), "calls the answer 'The car is green.' right"),
        (always(NO, FALSE), "calls the answer 'The car is red.' wrong"),
        (always("I like cars.", TRUE), "no clear verdict in 4 tries"),
    ],
    ids=["yes-man", "no-man", "chatter"],
)
async def test_a_judge_that_cannot_judge(script: Any, complaint: str) -> None:
    with ChatServer(script) as server, pytest.raises(JudgeUnavailableError, match=complaint):
        await preflight(settings({"url": server.url}))


async def test_one_of_several_may_be_away(
    unused_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    away = {"url": f"http://127.0.0.1:{unused_port}/v1"}
    with ChatServer(honest) as server, caplog.at_level(logging.WARNING):
        reports = await preflight(settings({"url": server.url}, away))
    assert [report.reachable for report in reports] == [True, False]
    assert f"the judge at {away['url']} cannot be reached" in caplog.text


async def test_one_of_several_may_not_be_wrong() -> None:
    with (
        ChatServer(honest) as good,
        ChatServer(always(YES, TRUE)) as bad,
        pytest.raises(JudgeUnavailableError, match=f"{bad.url}: tiny calls"),
    ):
        await preflight(settings({"url": good.url}, {"url": bad.url}))


def doctor(*options: str) -> tuple[int, list[dict[str, str]]]:
    result = CliRunner().invoke(app, ["doctor", "--only", "judge", "--json", *options])
    return result.exit_code, json.loads(result.stdout)


def test_doctor_shows_the_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEEPEYES_AGENT_CONFIG", raising=False)
    monkeypatch.delenv(BASE_VARIABLE, raising=False)
    assert doctor()[1][0]["status"] == "absent"
    assert doctor("--require", "judge")[0] == 1

    with ChatServer(honest) as server:
        monkeypatch.setenv(BASE_VARIABLE, server.url)
        code, (finding,) = doctor()
    assert (code, finding["status"]) == (0, "ok")
    assert "tiny judges right" in finding["text"]

    code, (finding,) = doctor()  # The server is gone.
    assert (code, finding["status"]) == (1, "problem")
    assert server.url in finding["text"]

    monkeypatch.setenv(BASE_VARIABLE, "localhost:8000")
    code, (finding,) = doctor()
    assert code == 1 and BASE_VARIABLE in finding["text"]
