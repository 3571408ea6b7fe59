"""Real runs of verl with the tiny model, in each trainer mode, while things go wrong."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deepeyes_plugins.rollout import EndReason, Trajectory
from deepeyes_plugins.rollout.log import read_log
from deepeyes_plugins.sandbox.embedded import EmbeddedServer, start_server
from deepeyes_plugins.sandbox.settings import SandboxSettings
from tests.verl.training import ROLLOUTS, Training, family

TOKEN_VARIABLE = SandboxSettings.model_fields["token_env"].default
EXCLUDED = "training/infrastructure/excluded_trajectories"
LONGEST_RUN = 900.0


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "of these tests")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 32 KiB; a user who may not mount gets one without any room."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(folder)]
    if shutil.which("mount") and subprocess.run(mount, capture_output=True).returncode == 0:
        yield folder
        subprocess.run(["umount", str(folder)], check=True)
        return
    folder.rmdir()
    folder.touch()
    yield folder


def until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Look until something is so; the run must go on meanwhile."""
    deadline = time.monotonic() + LONGEST_RUN
    while not condition():
        assert process.poll() is None, "the run has ended"
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.1)


def cells_that_ended(server: EmbeddedServer) -> float:
    """Return how many cells the server has run."""
    text = httpx.get(f"{server.url}/metrics").text
    return sum(
        float(sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "deepeyes_sandbox_cells_total"
    )


def kill(server: EmbeddedServer) -> None:
    """End a server and everything that it has started, with no time for anything."""
    for process in family(server.pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def kill_trainer(pid: int) -> None:
    for process in family(pid):
        if process.name().startswith("ray::WorkerDict"):
            os.kill(process.pid, signal.SIGKILL)


def by_task(folder: Path) -> dict[str, list[Trajectory]]:
    found: dict[str, list[Trajectory]] = {}
    for trajectory in read_log(folder):
        found.setdefault(trajectory.task_id, []).append(trajectory)
    return found


def test_a_run_outlives_the_sandbox_and_resumes_after_the_trainer_is_killed(
    tmp_path: Path, tiny_model: Path, small_disk: Path
) -> None:
    drills = {"pictures": "drill", "slow": "drill", "one_lost": "drill", "plain": ""}
    training = Training(tmp_path, tiny_model, drills)
    trajectories = tmp_path / "trajectories"
    server = start_server()
    url = {"DEEPEYES_SANDBOX_URL": server.url}
    try:
        with training.run("sync", 50, **url, DEEPEYES_TRAJECTORIES=str(trajectories)) as process:
            # Some have run their first cell, none has slept to the end of its second.
            until(lambda: cells_that_ended(server) >= 12, process)
            kill(server)
            server = start_server(port=int(server.url.rpartition(":")[2]))
            until(lambda: training.checkpoint > 0 and 1 in training.metrics, process)
            metrics = training.metrics[1]
            kill_trainer(process.pid)
            assert process.wait(LONGEST_RUN) != 0
        step = training.checkpoint

        first = {
            task: [one for one in played if one.labels["step"] == 1]
            for task, played in by_task(trajectories).items()
        }
        assert {len(played) for played in first.values()} == {ROLLOUTS}
        assert [one.images_returned for one in first["pictures"]] == [10] * ROLLOUTS
        assert {one.environment for one in first["plain"]} == {"none"}
        ends = [one.end_reason for one in first["one_lost"]]
        assert sorted(ends) == [EndReason.ANSWER] * 3 + [EndReason.INFRASTRUCTURE]
        # Some of them lost their variables with the server, which is tolerated once.
        assert {one.end_reason for one in first["slow"]} == {EndReason.ANSWER}
        assert sum(one.infrastructure_errors for one in first["slow"]) >= 1
        assert metrics[EXCLUDED] == 1
        assert metrics["actor/grad_norm"] > 0

        with training.run(
            "colocate_async", step + 2, **url, DEEPEYES_TRAJECTORIES=str(small_disk)
        ) as process:
            assert process.wait(LONGEST_RUN) == 0, training.log[-3000:]
    finally:
        kill(server)

    assert training.checkpoint == step + 2
    assert f"global_step_{step}" in training.log
    metrics = training.metrics[step + 2]
    assert metrics["training/off_policy/trajectory_spans/max"] <= 2
    assert metrics["actor/grad_norm"] > 0
    assert "trajectories cannot be written" in training.log
    if small_disk.is_dir():
        assert all(trajectory.task_id in drills for trajectory in read_log(small_disk))


def test_trainer_and_rollout_may_be_separate(tmp_path: Path, tiny_model: Path) -> None:
    drills = {"all_lost": "drill", "one_lost": "drill", "pictures": "drill", "plain": ""}
    training = Training(tmp_path, tiny_model, drills, prompts=2)
    server = start_server()
    try:
        with training.run(
            "separate_async",
            3,
            "trainer.v1.separate_async.parameter_sync_step=1",
            "actor_rollout_ref.rollout.nnodes=1",
            "actor_rollout_ref.rollout.n_gpus_per_node=1",
            "actor_rollout_ref.rollout.checkpoint_engine.backend=queue",
            "actor_rollout_ref.rollout.checkpoint_engine.custom_backend_module="
            "tests.verl.weights_by_queue",
            "ray_kwargs.ray_init.num_gpus=2",
            "ray_kwargs.ray_init.num_cpus=14",
            DEEPEYES_SANDBOX_URL=server.url,
        ) as process:
            assert process.wait(LONGEST_RUN) == 0, training.log[-3000:]
        assert training.checkpoint == 3
    finally:
        kill(server)

    steps = training.metrics.values()
    replaced = sum(step.get("training/rollout_failure/evicted_samples", 0) for step in steps)
    assert replaced >= 1
    assert sum(step.get(EXCLUDED, 0) for step in steps) >= 1
    assert max(step["training/off_policy/trajectory_staleness/max"] for step in steps) >= 1
    assert any(step["actor/grad_norm"] > 0 for step in steps)
