"""The judge in verl: preflight before training, and a stop of the run on a long outage."""

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
from deepeyes_plugins.rewards.scorer import configured_judge
from deepeyes_plugins.settings import load_settings

logger = logging.getLogger(__name__)


class StoppingJudge:
    """A judge whose outage stops the training run.

    Attributes:
        judge: The wrapped judge.
    """

    def __init__(self, judge: Judge) -> None:
        self.judge = judge

    async def compare(self, prompt: PromptName, comparison: Comparison) -> Verdict:
        """Judge one answer.

        Raises:
            JudgeOutageError: The outage lasted too long; the trainer has been asked to stop.
            JudgeUnavailableError: The judge gave no verdict.
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
    """Return the judge for a reward worker; ``None`` if none is configured.

    Raises:
        SettingsError: The settings of the judge are wrong.
    """
    judge = configured_judge(settings)
    return StoppingJudge(judge) if judge is not None else None


def check_judge(agent_config: str | None) -> None:
    """Test the judge if one is configured and ``judge.preflight`` is on.

    Works in any thread, even under a running event loop.

    Args:
        agent_config: An agent.yaml, or ``None`` for ``DEEPEYES_AGENT_CONFIG`` or the defaults.

    Raises:
        JudgeUnavailableError: The judge does not respond or judges test cases wrongly.
        SettingsError: The settings are wrong.
    """
    settings = load_settings(agent_config).judge
    if not settings.preflight:
        return
    failures: list[Exception] = []

    def run() -> None:
        try:
            for report in asyncio.run(preflight(settings)):
                logger.info("the judge at %s (%s) passed its test", report.url, report.model)
        except ValueError as error:
            failures.append(SettingsError(str(error)))
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="deepeyes-judge-preflight")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
