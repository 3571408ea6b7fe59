"""Asking a run to stop from another process of it, on a real Ray, and what its trainer then does.

``test_training_run.py`` has a whole run that ends so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import verl.trainer.ppo.v1
from omegaconf import OmegaConf

from deepeyes_plugins.hosts.verl.metrics import RunWatch, WatchSettings
from deepeyes_plugins.hosts.verl.stopping import RunStoppedError, StopRequests, ask_to_stop
from deepeyes_plugins.hosts.verl.trainer import DeepEyesTrainer


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
    assert "was not delivered (the judge is down)" in caplog.text


def test_the_trainers_own_process_needs_no_ray() -> None:
    requests = StopRequests()
    requests.ask("enough")
    assert requests.reason() == "enough"


class Buffer:
    """A replay buffer whose samples never come, or cannot be had."""

    def __init__(self, *, broken: bool = False) -> None:
        self._broken = broken
        self.polls = 0

    def sample(self, **_: Any) -> Any:
        if self._broken:
            raise RuntimeError("no materializable trajectories")
        while True:
            self._wait_for_next_poll("train", 0.0)

    def _wait_for_next_poll(self, partition: str, last: float) -> float:
        self.polls += 1
        assert self.polls < 100
        if self.polls == 3:
            self.on_third_poll()
        return last

    def on_third_poll(self) -> None:
        pass


def waiting_trainer(buffer: Buffer, tmp_path: Path) -> Any:
    """verl's synchronous trainer as far as it is needed to wait for samples."""
    trainer: Any = object.__new__(verl.trainer.ppo.v1.get_trainer_cls("sync"))
    trainer._stop = StopRequests()
    trainer.replay_buffer = buffer
    trainer._hook_replay_buffer(RunWatch(WatchSettings(), tmp_path, None))
    return trainer


@pytest.mark.parametrize("mode", ["sync", "colocate_async", "separate_async"])
def test_every_trainer_of_verl_is_extended(mode: str) -> None:
    assert issubclass(verl.trainer.ppo.v1.get_trainer_cls(mode), DeepEyesTrainer)


def test_a_trainer_that_waits_for_samples_in_vain_can_be_stopped(tmp_path: Path) -> None:
    buffer = Buffer()
    trainer = waiting_trainer(buffer, tmp_path)
    buffer.on_third_poll = lambda: trainer._stop.ask("the judge is down")  # type: ignore[method-assign]
    with pytest.raises(RunStoppedError, match="the judge is down"):
        buffer.sample(partition_id="train")
    assert buffer.polls == 3


def test_samples_that_failed_because_of_it_are_told_apart_from_other_failures(
    tmp_path: Path,
) -> None:
    trainer = waiting_trainer(Buffer(broken=True), tmp_path)
    with pytest.raises(RuntimeError, match="no materializable"):
        trainer.replay_buffer.sample(partition_id="train")
    trainer._stop.ask("the judge is down")
    with pytest.raises(RunStoppedError, match="the judge is down") as failure:
        trainer.replay_buffer.sample(partition_id="train")
    assert "no materializable" in str(failure.value.__cause__)


@pytest.mark.parametrize(
    ("completed", "save_freq", "saved", "says"),
    [
        (7, 4, [7], "Step 7 is saved"),
        (8, 4, [], "Step 8 is saved"),
        (7, -1, [7], "Step 7 is saved"),
        (4, 4, [], "nothing new to save"),
    ],
)
def test_a_checkpoint_is_written_if_the_schedule_has_not_done_it(
    tmp_path: Path, completed: int, save_freq: int, saved: list[int], says: str
) -> None:
    trainer = waiting_trainer(Buffer(), tmp_path)
    trainer.config = OmegaConf.create(
        {"trainer": {"save_freq": save_freq, "default_local_dir": str(tmp_path)}}
    )
    trainer._first_step, trainer._completed_step, trainer.global_steps = 4, completed, completed + 1
    freed: list[str] = []
    trainer.checkpoint_manager = SimpleNamespace(
        abort_replicas=lambda: freed.append("abort"), sleep_replicas=lambda: freed.append("sleep")
    )
    written: list[int] = []
    trainer._save_checkpoint = lambda: written.append(trainer.global_steps)
    assert says in trainer._save_complete_steps()
    assert written == saved
    assert freed == (["abort", "sleep"] if saved else [])


def test_a_checkpoint_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    trainer = waiting_trainer(Buffer(), tmp_path)
    trainer.config = OmegaConf.create(
        {"trainer": {"save_freq": 4, "default_local_dir": str(tmp_path)}}
    )
    trainer._first_step, trainer._completed_step = 0, 3
    trainer.checkpoint_manager = None

    def fail() -> None:
        raise OSError("disk full")

    trainer._save_checkpoint = fail
    assert "Step 3 cannot be saved (OSError('disk full'))" in trainer._save_complete_steps()
