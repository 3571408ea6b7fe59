"""Registering, finding and listing plugins: seen by who writes one and by who misspells one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deepeyes_plugins import hookimpl, plugins
from deepeyes_plugins.data.hooks import formatters
from deepeyes_plugins.environments.hooks import environments
from deepeyes_plugins.plugins import PluginError, UnknownNameError
from deepeyes_plugins.rewards.hooks import rewards
from deepeyes_plugins.rollout import Environment, Tool
from deepeyes_plugins.search.hooks import image_search_providers, search_providers
from deepeyes_plugins.settings import AgentSettings
from deepeyes_plugins.tools.hooks import tools
from deepeyes_plugins.tools.resources import Resources

Register = Callable[[str, Any], None]


@pytest.fixture
def manager() -> Iterator[Any]:
    """The plugin manager; what a test registers is forgotten afterwards."""
    found = plugins.manager()
    before = set(found.get_plugins())
    _forget()
    yield found
    for plugin in set(found.get_plugins()) - before:
        found.unregister(plugin)
    _forget()


def _forget() -> None:
    for registry in (
        tools,
        environments,
        rewards,
        formatters,
        search_providers,
        image_search_providers,
    ):
        registry.cache_clear()


def test_the_built_ins_are_registered_like_any_plugin() -> None:
    assert {"python", "search", "image_search"} <= set(tools())
    assert {"deepeyes_v2", "visual_toolbox_v2", "none"} <= set(environments())
    assert tools().owner("python") == "deepeyes_plugins.tools.builtin"


def test_every_tool_and_environment_can_be_made() -> None:
    resources = Resources(AgentSettings())

    for name, make in tools().items():
        tool = make(resources)
        assert isinstance(tool, Tool)
        assert tool.name == name
        assert tool.schema["type"] == "object"
    for make_environment in environments().values():
        assert isinstance(make_environment(resources), Environment)


def test_a_plugin_is_an_object_with_marked_functions(manager: Any) -> None:
    class Plugin:
        @hookimpl
        def register_tools(self, register: Register) -> None:
            register("compass", lambda resources: "a compass")

    manager.register(Plugin(), "orienteering")

    assert tools()["compass"](Resources(AgentSettings())) == "a compass"
    assert tools().owner("compass") == "orienteering"


def test_two_plugins_with_one_name_are_both_named(manager: Any) -> None:
    class Plugin:
        @hookimpl
        def register_tools(self, register: Register) -> None:
            register("python", SimpleNamespace)

    manager.register(Plugin(), "snake-farm")

    with pytest.raises(PluginError) as caught:
        tools()
    assert "'python' is registered twice" in str(caught.value)
    assert "snake-farm" in str(caught.value)
    assert "deepeyes_plugins.tools.builtin" in str(caught.value)


def test_a_misspelt_name_brings_the_nearest_and_all_others() -> None:
    with pytest.raises(UnknownNameError) as caught:
        environments()["deepeyes_v3"]
    message = str(caught.value)
    assert "unknown environment 'deepeyes_v3'. Did you mean 'deepeyes_v2'?" in message
    assert "visual_toolbox_v2" in message


def test_a_misspelt_hook_is_refused(manager: Any) -> None:
    class Plugin:
        @hookimpl
        def register_tool(self, register: Register) -> None: ...

    manager.register(Plugin(), "typist")

    with pytest.raises(Exception, match="unknown hook 'register_tool'"):
        manager.check_pending()


def installed_package(folder: Path, name: str, source: str) -> None:
    """What pip leaves of a package that has one module and one entry point."""
    (folder / f"{name}.py").write_text(source)
    information = folder / f"{name}-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[deepeyes_plugins]\n{name} = {name}\n")


def list_plugins(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deepeyes_plugins.cli", "plugins", "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=folder,
    )


def test_an_installed_plugin_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    installed_package(tmp_path, "weather_tools", "raise RuntimeError('no barometer')")

    answer = list_plugins(tmp_path)

    assert answer.returncode == 1
    complaint = " ".join(answer.stderr.split())
    assert "weather_tools" in complaint
    assert "no barometer" in complaint
    assert "Traceback" not in complaint


def test_two_installed_packages_with_one_name_are_both_named(tmp_path: Path) -> None:
    source = """
from deepeyes_plugins import hookimpl

@hookimpl
def register_rewards(register):
    register("chess", lambda settings: None)
"""
    installed_package(tmp_path, "white_plugin", source)
    installed_package(tmp_path, "black_plugin", source)

    answer = list_plugins(tmp_path)

    assert answer.returncode == 1
    assert "white_plugin" in answer.stderr
    assert "black_plugin" in answer.stderr
    assert "reward 'chess' is registered twice" in " ".join(answer.stderr.split())


def test_an_installed_plugin_is_listed_with_its_owner(tmp_path: Path) -> None:
    installed_package(
        tmp_path,
        "quiet_plugin",
        "from deepeyes_plugins import hookimpl\n"
        "@hookimpl\n"
        "def register_tools(register):\n"
        "    register('listen', object)\n",
    )

    listed = json.loads(list_plugins(tmp_path).stdout)

    assert {"kind": "tool", "name": "listen", "owner": "quiet_plugin"} in listed
