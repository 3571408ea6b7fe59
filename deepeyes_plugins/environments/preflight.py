"""Have the tools what they need? Asked before a run takes its GPUs or asks its first question."""

from __future__ import annotations

from collections.abc import Iterable

from deepeyes_plugins.environments.hooks import environments
from deepeyes_plugins.settings import AgentSettings
from deepeyes_plugins.tools.resources import Resources


def check_tools(settings: AgentSettings, played: Iterable[tuple[str, str]]) -> None:
    """Look whether environments have what they need; nothing is sent and nothing started.

    Args:
        settings: Settings of the tools.
        played: Names of environments, each with a data source whose tasks are played in it.

    Raises:
        SettingsError: A tool that is in use lacks something; key or variable are named.
        UnknownNameError: An environment is not registered.
    """
    resources = Resources(settings)
    for name, data_source in dict.fromkeys(played):
        environments()[name](resources).preflight(data_source)
