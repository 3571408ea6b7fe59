"""Preflight check of tools, before a run."""

from __future__ import annotations

from collections.abc import Iterable

from deepeyes_plugins.environments.hooks import environments
from deepeyes_plugins.settings import AgentSettings
from deepeyes_plugins.tools.resources import Resources


def check_tools(settings: AgentSettings, played: Iterable[tuple[str, str]]) -> None:
    """Check the settings, keys and files of environments, without requests or new processes.

    Args:
        settings: Settings of the tools.
        played: Names of environments, each with a data source of its tasks.

    Raises:
        SettingsError: A tool that is in use lacks something; key or variable are named.
        UnknownNameError: An environment is not registered.
    """
    resources = Resources(settings)
    for name, data_source in dict.fromkeys(played):
        environments()[name](resources).preflight(data_source)
