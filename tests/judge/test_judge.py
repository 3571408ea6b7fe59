"""The judge, against real servers on loopback."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from deepeyes_plugins.judge.contracts import (
    Comparison,
    JudgeOutageError,
    JudgeUnavailableError,
)
from deepeyes_plugins.judge.judge import LLMJudge, open_judge
from deepeyes_plugins.judge.settings import BASE_VARIABLE, JudgeSettings
from deepeyes_plugins.rollout.contracts import InfrastructureError
from tests.judge.scripts import NO, TRUE, YES, block, honest
from tests.openai.server import Body, ChatServer, Reply

RED = Comparison("What colour?", "red", "red")
GREEN = Comparison("What colour?", "red", "green")


def judge(*servers: ChatServer | str, **settings: Any) -> LLMJudge:
    urls = [server if isinstance(server, str) else server.url for server in servers]
    values = {"retry_wait": 0.01, "retry_wait_maximum": 0.05, "outage": "mark", **settings}
    return LLMJudge(
        JudgeSettings(endpoints=[{"url": url, "model": "tiny"} for url in urls], **values)
    )


async def test_right_and_wrong_answers() -> None:
    with ChatServer(honest) as server:
        async with judge(server) as asked:
            right = await asked.compare("answer", RED)
            wrong = await asked.compare("answer", GREEN)
            same = await asked.compare("equivalence", Comparison("1/2 + 1/4?", "3/4", "0.75"))

    assert (right.correct, wrong.correct, same.correct) == (True, False, True)
    assert right.calls == 1 and not right.cached and right.seconds > 0


async def test_the_published_settings_are_the_defaults() -> None:
    with ChatServer(honest) as server:
        async with judge(server, extra_body={"top_k": 5}) as asked:
            await asked.compare("answer", RED)
            await asked.compare("equivalence", RED)

    first, second = server.requests
    assert (first["model"], first["temperature"], first["max_tokens"]) == ("tiny", 0.3, 8192)
    assert second["temperature"] == 0.5
    assert first["top_k"] == 5
    assert [message["role"] for message in first["messages"]] == ["system", "user"]
    assert block(first, "question") == "What colour?"


async def test_equal_comparisons_cost_one_call() -> None:
    release = threading.Event()

    def slowly(body: Body) -> Reply:
        return Reply(YES, until=release)

    with ChatServer(slowly) as server:
        async with judge(server) as asked:
            spaced = Comparison("What colour? ", "red\n", " red")
            calls = [asyncio.create_task(asked.compare("answer", RED)) for _ in range(15)]
            calls.append(asyncio.create_task(asked.compare("answer", spaced)))
            while not server.requests:
                await asyncio.sleep(0)
            release.set()
            verdicts = await asyncio.gather(*calls)
            later = await asked.compare("answer", RED)
            counted = asked.snapshot()

    assert len(server.requests) == 1
    assert all(verdict.correct for verdict in verdicts)
    assert sorted(verdict.calls for verdict in verdicts) == [0] * 15 + [1]
    assert (later.cached, later.calls) == (True, 0)
    assert (counted.comparisons, counted.cached, counted.calls) == (17, 16, 1)
    assert counted.endpoints[server.url].answered == 1


@pytest.mark.parametrize(
    "other",
    [
        Comparison("What color?", "red", "red"),
        Comparison("What colour?", "red.", "red"),
        Comparison("What colour?", "red", "Red"),
        Comparison("What colour?", "re", "dred"),
    ],
)
async def test_what_may_mean_something_else_is_not_served_from_the_cache(other: Comparison) -> None:
    with ChatServer(honest) as server:
        async with judge(server) as asked:
            await asked.compare("answer", RED)
            await asked.compare("answer", other)
    assert len(server.requests) == 2


async def test_the_prompt_is_part_of_what_is_remembered(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "answer.md").write_text("Always \\boxed{Yes}.")
    with ChatServer(honest) as server:
        for prompts in (None, own, own):
            async with judge(server, prompts=prompts, cache_folder=tmp_path / "c") as asked:
                await asked.compare("answer", RED)
    assert [body["messages"][0]["content"][:6] for body in server.requests] == ["You co", "Always"]


async def test_whoever_is_cancelled_leaves_the_others_waiting() -> None:
    release = threading.Event()
    with ChatServer(lambda body: Reply(YES, until=release)) as server:
        async with judge(server) as asked:
            first = asyncio.create_task(asked.compare("answer", RED))
            second = asyncio.create_task(asked.compare("answer", RED))
            while not server.requests:
                await asyncio.sleep(0)
            first.cancel()
            release.set()
            assert (await second).correct
    assert len(server.requests) == 1


async def test_without_a_cache_everything_is_asked() -> None:
    with ChatServer(honest) as server:
        async with judge(server, cache_size=0) as asked:
            await asyncio.gather(*(asked.compare("answer", RED) for _ in range(3)))
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    "trouble",
    [
        Reply(status=500),
        Reply(status=429, headers={"Retry-After": "0.02"}),
        Reply(body="<html>nonsense</html>"),
        Reply(body='{"choices": [{"message": {"content": "\\\\boxed{Yes}"'),
        Reply(""),
        Reply("I cannot say."),
        Reply(r"\boxed{Yes} or \boxed{No}"),
        Reply(r"<think>\boxed{No}", finish_reason="length"),
        Reply(r"\boxed{No}", finish_reason="length"),
    ],
    ids=["500", "429", "html", "half", "empty", "none", "both", "thinking", "cut"],
)
async def test_a_bad_reply_is_retried(trouble: Reply) -> None:
    with ChatServer.saying(trouble, YES) as server:
        async with judge(server) as asked:
            verdict = await asked.compare("answer", RED)
    assert verdict.correct
    assert verdict.calls == len(server.requests) == 2


async def test_a_judge_without_verdicts_is_given_up() -> None:
    with ChatServer(lambda body: Reply("Well, well.")) as server:
        async with judge(server, outage="wait") as asked:
            with pytest.raises(JudgeUnavailableError, match=r"in 4 tries.*Well, well") as caught:
                await asked.compare("answer", RED)
            assert asked.snapshot().unreadable == 4
    assert not isinstance(caught.value, JudgeOutageError)
    assert isinstance(caught.value, InfrastructureError)


async def test_mathematics_is_asked_eight_times() -> None:
    with ChatServer.saying(*["Hm."] * 7, TRUE) as server:
        async with judge(server) as asked:
            verdict = await asked.compare("equivalence", RED)
    assert (verdict.correct, verdict.calls) == (True, 8)


async def test_a_judge_that_never_answers_is_given_up() -> None:
    release = threading.Event()
    with ChatServer(lambda body: Reply(until=release)) as server:
        async with judge(server, timeout=0.1, retries=1) as asked:
            with pytest.raises(JudgeUnavailableError, match=r"no complete response within 0\.1 s"):
                await asked.compare("answer", RED)
            release.set()
    assert len(server.requests) == 2


async def test_a_failure_is_not_remembered() -> None:
    with ChatServer.saying(Reply(status=500), Reply(status=500), YES) as server:
        async with judge(server, retries=1) as asked:
            with pytest.raises(JudgeUnavailableError, match="HTTP 500"):
                await asked.compare("answer", RED)
            assert (await asked.compare("answer", RED)).correct
            assert asked.snapshot().unavailable == 1


async def test_a_question_that_the_judge_cannot_bear_is_marked_and_no_outage() -> None:
    def picky(body: Body) -> Reply:
        return Reply(status=500) if block(body, "answer") == "green" else honest(body)

    with ChatServer(picky) as server:
        async with judge(server, outage="wait", outage_patience=30, retries=2) as asked:
            bad = asyncio.create_task(asked.compare("answer", GREEN))
            number = 0
            while not bad.done():
                number += 1
                await asked.compare("answer", Comparison("Number?", "1", str(number)))
            with pytest.raises(JudgeUnavailableError) as caught:
                await bad
    assert not isinstance(caught.value, JudgeOutageError)


async def test_a_text_beyond_the_context_is_marked_at_once() -> None:
    reply = Reply(
        status=400,
        body="maximum context length is 4096 tokens. However, your request has 5000 input tokens",
    )
    with ChatServer(lambda body: reply) as server:
        async with judge(server, outage="wait") as asked:
            with pytest.raises(
                JudgeUnavailableError, match="refuses the request: maximum context length"
            ):
                await asked.compare("answer", RED)
    assert len(server.requests) == 1


async def test_an_outage_is_waited_for(unused_port: int) -> None:
    settings = {"outage": "wait", "outage_patience": 60, "circuit_seconds": 0.05}
    async with judge(f"http://127.0.0.1:{unused_port}/v1", **settings) as asked:
        waiting = [
            asyncio.create_task(asked.compare("answer", comparison)) for comparison in (RED, GREEN)
        ]
        while asked.snapshot().calls < 12:  # Enough for its circuit to open.
            await asyncio.sleep(0.01)
        with ChatServer(honest, port=unused_port):
            verdicts = await asyncio.gather(*waiting)
    assert [verdict.correct for verdict in verdicts] == [True, False]


async def test_patience_has_an_end(unused_port: int) -> None:
    settings = {"outage": "wait", "outage_patience": 0.3}
    async with judge(f"http://127.0.0.1:{unused_port}/v1", **settings) as asked:
        started = time.monotonic()
        with pytest.raises(JudgeOutageError, match=r"no judge has answered for 0\.3 s"):
            await asked.compare("answer", RED)
    assert time.monotonic() - started >= 0.3


async def test_a_judge_that_is_known_to_be_down_marks_at_once() -> None:
    settings = {"retries": 9, "circuit_failures": 1, "circuit_seconds": 600}
    with ChatServer(lambda body: Reply(status=500)) as server:
        async with judge(server, **settings) as asked:
            for comparison in (RED, GREEN):
                with pytest.raises(JudgeUnavailableError, match="circuit open"):
                    await asked.compare("answer", comparison)
    assert len(server.requests) == 1


async def test_endpoints_share_the_questions_by_weight() -> None:
    with ChatServer(honest) as one, ChatServer(honest) as two:
        settings = JudgeSettings(
            endpoints=[
                {"url": one.url, "model": "tiny", "weight": 4},
                {"url": two.url, "model": "tiny"},
            ]
        )
        async with LLMJudge(settings) as asked:
            numbers = [Comparison("Number?", "1", str(number)) for number in range(200)]
            await asyncio.gather(*(asked.compare("answer", number) for number in numbers))

    assert len(one.requests) + len(two.requests) == 200
    # 160 expected; with 5.7 standard deviations to either side.
    assert 128 <= len(one.requests) <= 192


async def test_when_one_endpoint_dies_the_other_takes_over() -> None:
    with ChatServer(honest) as stays:
        with ChatServer(honest) as dies:
            gone = dies.url
        async with judge(stays, gone, circuit_failures=3, circuit_seconds=600) as asked:
            numbers = [Comparison("Number?", "1", str(number)) for number in range(40)]
            verdicts = [await asked.compare("answer", number) for number in numbers]
            calls = asked.snapshot().endpoints

    assert [verdict.correct for verdict in verdicts] == [number == 1 for number in range(40)]
    assert calls[stays.url].answered == 40
    # Then its circuit was open, and it was not even drawn.
    assert (calls[gone].requests, calls[gone].held_back) == (3, 0)


async def test_an_endpoint_without_the_model_is_passed_over() -> None:
    missing = Reply(status=404, body="no such model")
    with ChatServer(honest) as good, ChatServer(lambda body: missing) as bad:
        async with judge(good, bad) as asked:
            numbers = [Comparison("Number?", "1", str(number)) for number in range(10)]
            for number in numbers:
                await asked.compare("answer", number)
    assert len(good.requests) == 10


async def test_the_authors_variable_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(BASE_VARIABLE, raising=False)
    assert open_judge(JudgeSettings()) is None
    with ChatServer.saying(NO) as server:
        monkeypatch.setenv(BASE_VARIABLE, server.url)
        asked = open_judge(JudgeSettings())
        assert asked is not None
        assert not (await asked.compare("answer", RED)).correct
        await asked.aclose()
    assert server.requests[0]["model"] == "tiny"  # The one that the server lists.


async def test_no_more_questions_at_a_time_than_allowed() -> None:
    release = threading.Event()
    with ChatServer(lambda body: Reply(YES, until=release)) as server:
        async with judge(server, concurrency=2) as asked:
            numbers = [Comparison("Number?", "1", str(number)) for number in range(6)]
            calls = [asyncio.create_task(asked.compare("answer", number)) for number in numbers]
            while len(server.requests) < 2:
                await asyncio.sleep(0)
            # Whatever else could be sent would be sent by now.
            await asyncio.gather(*(asyncio.sleep(0) for _ in range(100)))
            assert len(server.requests) == 2
            release.set()
            await asyncio.gather(*calls)
    assert len(server.requests) == 6
