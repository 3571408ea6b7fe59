"""The judge in verl: tried before GPUs are taken, and ending the run when it stays away."""

from __future__ import annotations

import asyncio
import logging
import threading

from deepeyes_plugins.errors import SettingsError
from deepeyes_plugins.hosts.verl.stopping import ask_to_stop
from deepeyes_plugins.judge.contracts import (
    Comparison,
    Judge,
    JudgeOutageError,
    PromptName,
    Verdict,
)
from deepeyes_plugins.judge.preflight import preflight
from deepeyes_plugins.judge.settings import JudgeSettings
from deepeyes_plugins.rewards.scoring import configured_judge
from deepeyes_plugins.settings import load_settings

logger = logging.getLogger(__name__)


class StoppingJudge:
    """A judge whose outage ends the run, whatever becomes of the trajectory that met it.

    Attributes:
        judge: The judge that is asked.
    """

    def __init__(self, judge: Judge) -> None:
        """Ask ``judge``."""
        self.judge = judge

    async def compare(self, prompt: PromptName, comparison: Comparison) -> Verdict:
        """Judge one answer.

        Raises:
            JudgeOutageError: The judge's patience is at its end; the trainer knows it by then.
            JudgeUnavailableError: No verdict could be had.
        """
        try:
            return await self.judge.compare(prompt, comparison)
        except JudgeOutageError as error:
            await ask_to_stop(str(error))
            raise

    async def aclose(self) -> None:
        """Close every connection."""
        await self.judge.aclose()


def stopping_judge(settings: JudgeSettings) -> StoppingJudge | None:
    """Return the judge of the settings, for a reward worker; ``None`` where none is set up.

    Raises:
        SettingsError: It cannot be made of what they say.
    """
    judge = configured_judge(settings)
    return StoppingJudge(judge) if judge is not None else None


def check_judge(agent_config: str | None) -> None:
    """Try the judge, if there is one and ``judge.preflight`` is on.

    Works in any thread, also in one whose event loop is running.

    Args:
        agent_config: An agent.yaml, or ``None`` for ``DEEPEYES_AGENT_CONFIG`` or the defaults.

    Raises:
        JudgeUnavailableError: It does not work, or not well; the reasons are for people.
        SettingsError: The settings are wrong.
    """
    settings = load_settings(agent_config).judge
    if not settings.preflight:
        return
    failures: list[Exception] = []

    def run() -> None:
        try:
            for report in asyncio.run(preflight(settings)):
                logger.info("the judge at %s (%s) judges right", report.url, report.model)
        except ValueError as error:
            failures.append(SettingsError(str(error)))
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="deepeyes-judge-preflight")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
