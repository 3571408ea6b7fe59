"""Entry point of the group ``verl.plugins``: loaded by ``import verl`` in every process.

verl is not fully imported at that time, so each registration is deferred until the module of its
registry has been imported.
"""

from __future__ import annotations

import os

from deepeyes_plugins._activation import watch
from deepeyes_plugins.hosts.verl_cpu import activation

watch(
    "verl.experimental.agent_loop.agent_loop",
    "deepeyes_plugins.hosts.verl.register:register_agent_loop",
)
watch(
    "verl.trainer.ppo.core_algos",
    "deepeyes_plugins.hosts.verl.register:register_advantage_estimator",
)
watch(
    "verl.trainer.ppo.v1",
    "deepeyes_plugins.hosts.verl.trainer:extend_trainers",
)
watch(
    "transformers.processing_utils",
    "deepeyes_plugins.hosts.verl.speedups:reuse_equal_schemas",
)
activation.activate()

if "LOG_LEVEL" not in os.environ:
    # A dependency of vLLM (model-hosting-container-standards) sets the root logger to ERROR unless
    # a variable says otherwise; the warnings of the whole process would be lost.
    os.environ.setdefault("SAGEMAKER_CONTAINER_LOG_LEVEL", "WARNING")
