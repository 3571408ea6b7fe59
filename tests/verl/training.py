"""Real training runs of the tiny model, with rows of :mod:`tests.verl.drill`."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from deepeyes_plugins.quickstart.stages import json_lines
from deepeyes_plugins.quickstart.task import split_examples

ROOT = Path(__file__).parents[2]
ROLLOUTS = 4


def write_rows(path: Path, drills: Mapping[str, str]) -> None:
    """Write one question per drill; the value is its env_name."""
    rows = []
    for (drill, environment), example in zip(
        drills.items(), split_examples("train", len(drills)), strict=True
    ):
        picture = io.BytesIO()
        example.picture.save(picture, "PNG")
        rows.append(
            {
                "data_source": "drill",
                "env_name": environment,
                "prompt": [{"role": "user", "content": f"<image>{example.question}"}],
                "images": [{"bytes": picture.getvalue(), "path": None}],
                "reward_model": {"ground_truth": "red", "style": "rule"},
                "extra_info": {"index": drill, "split": "train", "drill": drill},
            }
        )
    pq.write_table(pa.Table.from_pylist(rows), path)


def install_drill(folder: Path) -> None:
    """Make :mod:`tests.verl.drill` a plugin of every process that has ``folder`` on its path."""
    info = folder / "drill-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: drill\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[deepeyes_plugins]\ndrill = tests.verl.drill\n")


def family(pid: int) -> list[psutil.Process]:
    """Return a process and all that it has started."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


class Training:
    """A folder with everything that a run needs."""

    def __init__(
        self, folder: Path, model: Path, drills: Mapping[str, str], prompts: int | None = None
    ) -> None:
        """Prepare the folder.

        Args:
            folder: Where; everything that the run leaves is in it.
            model: A tiny model.
            drills: Drills of the rows and their environments.
            prompts: Rows in a step; by default all.
        """
        self.folder = folder
        self._model = model
        self._agent = folder / "agent.yaml"
        agent = {"failures": {"retries": 0}, "sandbox": {"circuit_seconds": 0.5}}
        self._agent.write_text(yaml.safe_dump(agent))
        write_rows(folder / "rows.parquet", drills)
        self._prompts = prompts or len(drills)
        self._ray = tempfile.mkdtemp(prefix="ray-")
        install_drill(folder / "plugin")

    @contextmanager
    def run(
        self, mode: str, steps: int, *overrides: str, **variables: str
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Start a run; it is ended, with all processes of its cluster, when the block is left."""
        command = [
            *(sys.executable, "-m", "verl.trainer.main_ppo"),
            *("--config-path", str(ROOT / "recipes/tiny"), "--config-name", "rl"),
            f"deepeyes.run={self.folder}",
            f"deepeyes.agent_config={self._agent}",
            "deepeyes.turn_tokens=24",
            f"data.train_files={self.folder / 'rows.parquet'}",
            f"data.val_files={self.folder / 'rows.parquet'}",
            "data.shuffle=false",
            f"data.train_batch_size={self._prompts}",
            "data.max_response_length=900",
            f"actor_rollout_ref.model.path={self._model}",
            "actor_rollout_ref.actor.checkpoint.save_contents=[model,optimizer,extra]",
            f"actor_rollout_ref.actor.ppo_mini_batch_size={self._prompts}",
            f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={self._prompts * ROLLOUTS}",
            f"actor_rollout_ref.rollout.n={ROLLOUTS}",
            "trainer.val_before_train=false",
            "trainer.test_freq=-1",
            "trainer.save_freq=1",
            f"trainer.v1.trainer_mode={mode}",
            f"trainer.total_training_steps={steps}",
            # Sockets have short paths only; everything else of Ray goes there, too.
            f"+ray_kwargs.ray_init._temp_dir={self._ray}",
            *overrides,
        ]
        if mode != "sync":
            command += ["trainer.v1.sampler.custom_sampler.name=EagerReplayBufferAsync"]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(self.folder / "plugin"), str(ROOT)]),
            "VERL_FILE_LOGGER_PATH": str(self.folder / "metrics.jsonl"),
            "RAY_worker_niceness": "0",
            **variables,
        }
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            yield process
        finally:
            for member in family(process.pid):
                member.kill()
            process.wait()
            shutil.rmtree(self._ray, ignore_errors=True)

    @property
    def checkpoint(self) -> int:
        """Step of the last checkpoint; 0 without one."""
        path = self.folder / "rl/latest_checkpointed_iteration.txt"
        return int(path.read_text() or 0) if path.exists() else 0

    @property
    def log(self) -> str:
        """What the runs have printed."""
        return (self.folder / "log").read_text(errors="replace")

    @property
    def metrics(self) -> dict[int, dict[str, float]]:
        """Metrics by step."""
        return {line["step"]: line["data"] for line in json_lines(self.folder / "metrics.jsonl")}
