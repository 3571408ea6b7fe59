"""The command that installs an extra, by where the package came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deepeyes_plugins.extras import install_command


def installed(folder: Path, origin: dict[str, Any] | None) -> None:
    """Put the metadata of an installed package into ``folder``, as pip writes them."""
    information = folder / "deepeyes_plugins-9.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: deepeyes-plugins\n")
    if origin is not None:
        (information / "direct_url.json").write_text(json.dumps(origin))


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        pytest.param(None, "pip install 'deepeyes-plugins[rl]'", id="from an index"),
        pytest.param(
            {"url": "HERE/my%20clone", "dir_info": {"editable": True}},
            "pip install -e 'PATH/my clone[rl]'",
            id="editable",
        ),
        pytest.param(
            {"url": "HERE/my%20clone", "dir_info": {}},
            "pip install 'deepeyes-plugins[rl] @ HERE/my%20clone'",
            id="from a folder",
        ),
        pytest.param(
            {"url": "HERE/gone.whl", "archive_info": {}},
            "pip install '.[rl]' in a checkout of deepeyes-plugins",
            id="from a wheel that is gone",
        ),
        pytest.param(
            {"url": "https://example.org/x.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            "pip install 'deepeyes-plugins[rl] @ git+https://example.org/x.git@abc'",
            id="from git",
        ),
    ],
)
def test_the_command_names_where_the_package_came_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, origin: dict[str, Any] | None, command: str
) -> None:
    (tmp_path / "my clone").mkdir()
    if origin is not None:
        origin = {**origin, "url": origin["url"].replace("HERE", tmp_path.as_uri())}
    installed(tmp_path, origin)
    monkeypatch.syspath_prepend(tmp_path)

    expected = command.replace("HERE", tmp_path.as_uri()).replace("PATH", str(tmp_path))
    assert install_command("rl") == expected


def test_a_source_tree_that_is_not_installed_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.path", [str(tmp_path)])

    assert install_command("rl") == "pip install '.[rl]' in a checkout of deepeyes-plugins"
