"""The engines that generate for the quickstart: in the RL stage and behind the evaluation."""

from __future__ import annotations

import platform
import sys
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


class EngineName(StrEnum):
    """Name of an engine, as verl knows it (``actor_rollout_ref.rollout.name``)."""

    VLLM = "vllm"
    TRANSFORMERS = "transformers"


@dataclass(frozen=True, slots=True)
class Engine:
    """How an engine is run.

    Attributes:
        name: Its name, which is also that of its distribution and of its command.
        serve: Arguments of ``<name> serve`` behind the model; ``{recipes}`` is the folder of the
            tiny recipes.
        server: Environment variables of the server.
        client: Environment variables of the policy that talks to the server.
        requests: Requests of one evaluation at a time.
    """

    name: EngineName
    serve: tuple[str, ...]
    server: dict[str, str] = field(default_factory=dict)
    client: dict[str, str] = field(default_factory=dict)
    requests: int = 4

    @property
    def version(self) -> str:
        """The installed version; the local part names vLLM's build for a CPU."""
        return version(self.name)

    def command(self, model: Path, recipes: Path, port: str) -> list[str]:
        """The command line of a server of ``model``."""
        arguments = (part.format(recipes=recipes / "tiny") for part in self.serve)
        program = Path(sys.executable).parent / self.name
        return [
            *(str(program), "serve", str(model), "--host", "127.0.0.1", "--port", port),
            *arguments,
        ]


ENGINES = {
    engine.name: engine
    for engine in (
        Engine(
            EngineName.VLLM,
            serve=("--config", "{recipes}/serve.yaml"),
            # One thread for each server: a tiny model gains nothing from more.
            server={"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"},
            client={"DEEPEYES_OPENAI_PROFILE": "vllm"},
            requests=48,  # larger batches, fewer steps of the engine
        ),
        Engine(
            EngineName.TRANSFORMERS,
            serve=("--device", "cpu"),
            server={"OMP_NUM_THREADS": "1"},
            client={"DEEPEYES_OPENAI_SEND_STOP": "0"},
        ),
    )
}


def why_not_vllm() -> str | None:
    """Why vLLM's build for a CPU cannot run here; ``None`` if it can."""
    cpu = Path("/proc/cpuinfo")
    flags = cpu.read_text(encoding="utf-8", errors="replace").split() if cpu.exists() else []
    lack = lacks(f"{platform.system()} {platform.machine()}", flags)
    if lack is None:
        try:
            version(EngineName.VLLM)
        except PackageNotFoundError:
            lack = "it is not installed: make install"
    return lack


def lacks(system: str, cpu_flags: Collection[str]) -> str | None:
    """What a machine lacks for vLLM's build for a CPU; ``None`` for nothing.

    Args:
        system: Operating system and architecture.
        cpu_flags: What the CPU can do, in the words of ``/proc/cpuinfo``.
    """
    if system != "Linux x86_64":
        return f"its build for a CPU needs Linux x86_64, this is {system}"
    return None if "avx2" in cpu_flags else "this CPU lacks AVX2"
