"""Asking a run to stop from another process of it, on a real Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from deepeyes_plugins.hosts.verl.stopping import StopRequests, ask_to_stop


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        _temp_dir=str(tmp_path_factory.mktemp("ray")),
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parents[2])}},
    )
    yield
    ray.shutdown()


def worker_asks(reason: str) -> bool:
    return asyncio.run(ask_to_stop(reason))


@pytest.mark.usefixtures("cluster")
def test_a_worker_asks_and_the_first_reason_stays() -> None:
    requests = StopRequests()
    requests.open()
    ask = ray.remote(num_cpus=0)(worker_asks)
    assert requests.reason() is None

    assert ray.get(ask.remote("the judge is down"))
    assert ray.get(ask.remote("so it is"))
    assert requests.reason() == "the judge is down"

    requests.close()
    assert requests.reason() == "the judge is down"
    assert not ray.get(ask.remote("anybody there?"))


async def test_without_a_run_nobody_is_asked_and_nothing_is_raised(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert not await ask_to_stop("the judge is down")
    assert "cannot be asked to stop (the judge is down)" in caplog.text


def test_the_trainers_own_process_needs_no_ray() -> None:
    requests = StopRequests()
    requests.ask("enough")
    assert requests.reason() == "enough"
