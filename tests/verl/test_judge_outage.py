"""A training run without its judge: it does not start, or it stops with a checkpoint."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from deepeyes_plugins.errors import SettingsError
from deepeyes_plugins.hosts.verl.judge_preflight import check_judge
from deepeyes_plugins.judge.contracts import JudgeUnavailableError
from deepeyes_plugins.quickstart.task import split_examples
from tests.judge.scripts import honest
from tests.openai.server import Body, ChatServer, Reply

ROOT = Path(__file__).parents[2]
ENDS_WITHIN = 900


def write_agent(folder: Path, url: str, **judge: Any) -> Path:
    path = folder / "agent.yaml"
    settings = {"environment": "none", "judge": {"endpoints": [{"url": url}], **judge}}
    path.write_text(yaml.safe_dump(settings))
    return path


def write_rows(path: Path) -> None:
    rows = []
    for number, example in enumerate(split_examples("train", 4)):
        picture = io.BytesIO()
        example.picture.save(picture, "PNG")
        rows.append(
            {
                "data_source": "perception",
                "env_name": "none",
                "prompt": [{"role": "user", "content": f"<image>{example.question}"}],
                "images": [{"bytes": picture.getvalue(), "path": None}],
                "reward_model": {"ground_truth": "red", "style": "rule"},
                "extra_info": {"index": str(number), "split": "train"},
            }
        )
    pq.write_table(pa.Table.from_pylist(rows), path)


def training(folder: Path, model: Path, agent: Path) -> list[str]:
    rows = folder / "rows.parquet"
    write_rows(rows)
    return [
        *(sys.executable, "-m", "verl.trainer.main_ppo"),
        *("--config-path", str(ROOT / "recipes/tiny"), "--config-name", "rl"),
        f"deepeyes.run={folder}",
        f"deepeyes.agent_config={agent}",
        "deepeyes.turn_tokens=16",
        f"data.train_files={rows}",
        f"data.val_files={rows}",
        "data.train_batch_size=2",
        f"actor_rollout_ref.model.path={model}",
        "actor_rollout_ref.actor.ppo_mini_batch_size=2",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4",
        "actor_rollout_ref.actor.checkpoint.save_contents=[model,optimizer,extra]",
        "actor_rollout_ref.rollout.n=2",
        "actor_rollout_ref.rollout.name=transformers",  # the second choice trains, too
        "reward.custom_reward_function.path=pkg://tests.verl.judged_reward",
        "trainer.logger=[file]",
        "trainer.val_before_train=false",
        "trainer.test_freq=-1",
        "trainer.save_freq=-1",
        "trainer.total_training_steps=100000",
    ]


def test_when_the_judge_stays_away_the_run_stops_with_a_checkpoint(
    tmp_path: Path, tiny_model: Path
) -> None:
    down = threading.Event()

    def until_it_fails(body: Body) -> Reply:
        return Reply(status=500, body="no GPU left") if down.is_set() else honest(body)

    metrics = tmp_path / "metrics.jsonl"
    with ChatServer(until_it_fails) as server:
        # Every answer is asked for, so that none is known when the judge is gone.
        agent = write_agent(tmp_path, server.url, cache_size=0, outage_patience=1)
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "VERL_FILE_LOGGER_PATH": str(metrics),
            "RAY_worker_niceness": "0",
        }
        with (tmp_path / "log").open("wb") as log:
            command = training(tmp_path, tiny_model, agent)
            run = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            pause = threading.Event()
            while run.poll() is None and not (metrics.exists() and metrics.stat().st_size):
                pause.wait(0.2)
            down.set()
            code = run.wait(ENDS_WITHIN)
        finally:
            if run.poll() is None:
                for process in (
                    *psutil.Process(run.pid).children(recursive=True),
                    psutil.Process(run.pid),
                ):
                    process.kill()

    said = (tmp_path / "log").read_text(errors="replace")
    assert code == 1
    assert "RunStoppedError" in said, said[-3000:]
    assert "no judge has answered for 1 s" in said
    assert "HTTP 500: no GPU left" in said
    saved = int((tmp_path / "rl/latest_checkpointed_iteration.txt").read_text())
    assert saved >= 1
    assert f"Step {saved} is saved in {tmp_path}/rl" in said
    assert list((tmp_path / f"rl/global_step_{saved}/actor").glob("model_*.pt"))


async def test_the_judge_is_tried_before_training(tmp_path: Path) -> None:
    """Also from within an event loop, as the trainer's process has one."""
    with ChatServer(honest) as server:
        check_judge(str(write_agent(tmp_path, server.url)))
    assert len(server.requests) == 4

    agent = write_agent(tmp_path, server.url, retry_wait=0)
    with pytest.raises(JudgeUnavailableError, match=f"not fit for training.*\n  {server.url}"):
        check_judge(str(agent))
    check_judge(str(write_agent(tmp_path, server.url, preflight=False)))


def test_a_wrong_variable_is_a_wrong_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_AS_A_JUDGE_BASE", "judge:8000")
    with pytest.raises(SettingsError, match="LLM_AS_A_JUDGE_BASE: 'judge:8000' is not"):
        check_judge(None)
