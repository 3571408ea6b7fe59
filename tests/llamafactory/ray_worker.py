"""Trains in a Ray worker, as ``USE_RAY=1 llamafactory-cli train`` does, on a machine without GPUs.

LLaMA-Factory 0.9.5 asks Ray for ten CPUs per device; without GPUs every CPU is a device, so its own
launcher waits for ever. This one asks for one, and otherwise starts the same function alike.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

import ray
from llamafactory.extras.misc import find_available_port
from llamafactory.hparams import read_args


@ray.remote(num_cpus=1)
def train(arguments: dict[str, Any]) -> None:
    from llamafactory.train.tuner import _training_function

    _training_function({"args": arguments, "callbacks": []})


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        ray.init(num_cpus=1, include_dashboard=False, _temp_dir=folder)
        variables = {
            **os.environ,
            "RANK": "0",
            "WORLD_SIZE": "1",
            "LOCAL_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(find_available_port()),
            "TORCHELASTIC_USE_AGENT_STORE": "False",
        }
        arguments = read_args(None)
        ray.get(train.options(runtime_env={"env_vars": variables}).remote(arguments))
        ray.shutdown()
