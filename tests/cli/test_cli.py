"""The ``deepeyes`` command, as it is typed."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from typer.testing import CliRunner

from deepeyes_plugins import __version__
from deepeyes_plugins.cli.main import app
from tests.serving import LocalServer

DEEPEYES = (sys.executable, "-m", "deepeyes_plugins.cli")


def deepeyes(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*DEEPEYES, *arguments],
        env={**os.environ, "COLUMNS": "200", **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )


def findings(answer: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(answer.stdout)
    return found


def test_the_version_is_the_packages() -> None:
    assert deepeyes("--version").stdout == f"deepeyes-plugins {__version__}\n"


def test_the_help_names_every_command() -> None:
    text = deepeyes("--help").stdout

    for command in ("quickstart", "doctor", "plugins", "reward", "sandbox"):
        assert re.search(rf"\b{command}\b", text)


def test_a_traceback_needs_debug(monkeypatch: pytest.MonkeyPatch) -> None:
    def new(name: str) -> None:
        raise LookupError(f"no {name}")

    monkeypatch.setattr("deepeyes_plugins.cli.plugins.new", new)

    told = CliRunner().invoke(app, ["plugins", "new", "x"])
    shown = CliRunner().invoke(app, ["--debug", "plugins", "new", "x"])

    assert told.exit_code == 1
    assert told.stderr.startswith("error: LookupError: no x") and "--debug" in told.stderr
    assert isinstance(shown.exception, LookupError)


@pytest.mark.parametrize("group", ["", "data", "sandbox", "search", "search index", "eval"])
def test_no_summary_is_cut_at_80_columns(group: str) -> None:
    text = CliRunner().invoke(app, [*group.split(), "--help"], env={"COLUMNS": "80"}).stdout

    assert "Commands:" in text
    assert "..." not in text.partition("Commands:")[2]


def test_defaults_that_stand_in_brackets_are_shown() -> None:
    text = " ".join(CliRunner().invoke(app, ["data", "check", "--help"]).stdout.split())

    assert "[default: one per processor]" in text


def test_an_error_shows_brackets_as_they_are() -> None:
    answer = deepeyes("eval", "report", "[/runs]/[eval]")

    assert answer.returncode == 1
    assert "[/runs]/[eval]" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_folder_where_a_file_belongs_is_named(tmp_path: Path) -> None:
    answer = deepeyes("search", "replay", "--port", "0", str(tmp_path))

    assert answer.returncode == 1
    assert re.search(rf"error: .*Is a directory: '{tmp_path}'", answer.stderr)
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize(
    ("option", "value"),
    [("--log-level", "loud"), ("--port", "99999"), ("--redis", "redis-host:6379")],
)
@pytest.mark.parametrize("service", ["sandbox", "search"])
def test_a_wrong_option_of_a_server_is_named(service: str, option: str, value: str) -> None:
    answer = CliRunner().invoke(app, [service, "serve", option, value])

    assert answer.exit_code == 2
    assert option in answer.stderr


def commands(command: Any, *path: str) -> Iterator[tuple[str, ...]]:
    """The words of every command below ``command``."""
    below = getattr(command, "commands", {})
    for name, child in below.items():
        yield from commands(child, *path, name)
    if not below:
        yield path


@pytest.mark.parametrize("path", [*commands(typer.main.get_command(app))], ids=" ".join)
def test_every_command_is_there_to_be_imported(path: tuple[str, ...]) -> None:
    answer = CliRunner().invoke(app, [*path, "--help"], catch_exceptions=False)

    assert answer.exit_code == 0
    assert f"{' '.join(path)} [OPTIONS]" in answer.stdout
    assert not re.search(r"<(list|str|int|float|Path)\b", answer.stdout)  # no Python types


def test_the_help_is_quick_because_no_command_is_imported() -> None:
    show = (
        "import sys\n"
        "from deepeyes_plugins.cli.main import app\n"
        "app(['--help'], standalone_mode=False)\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", show], capture_output=True, text=True, timeout=60, check=True
    )

    ours = {name for name in answer.stderr.split() if name.startswith("deepeyes_plugins.")}
    assert ours == {
        "deepeyes_plugins._activation",
        "deepeyes_plugins.cli",
        "deepeyes_plugins.cli.main",
    }
    assert not {"pydantic", "PIL", "numpy", "httpx", "yaml"} & set(answer.stderr.split())


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (("quickstart",), "--fast"),
        (("doctor",), "--require"),
        (("plugins",), "--json"),
        (("sandbox", "serve"), "--port"),
    ],
)
def test_each_command_explains_its_own_options(command: tuple[str, ...], option: str) -> None:
    answer = deepeyes(*command, "--help")

    assert answer.returncode == 0
    assert f"Usage: deepeyes {' '.join(command)} [OPTIONS]" in answer.stdout
    assert option in answer.stdout


def test_an_unknown_option_is_refused() -> None:
    answer = deepeyes("plugins", "--jsn")

    assert answer.returncode == 2
    assert "No such option" in answer.stderr


def test_plugins_are_shown_with_their_owners() -> None:
    assert re.search(r"tool +python +deepeyes_plugins\.tools\.builtin", deepeyes("plugins").stdout)


def test_the_doctor_finds_our_plugins_in_every_framework() -> None:
    answer = deepeyes("doctor", "--json", "--require", "sft,rl,eval,sandbox")

    found = findings(answer)
    registered = {(row["area"], row["text"]) for row in found if row["status"] == "ok"}
    assert ("sft", "dataset converter 'deepeyes' found") in registered
    assert ("sft", "template 'deepeyes_qwen2_vl' found") in registered
    assert ("sft", "tokenization between turns found") in registered
    assert ("rl", "agent loop 'deepeyes' found") in registered
    assert ("eval", "model 'DeepEyesV2' found") in registered
    assert ("engine", "general plugin 'deepeyes' found") in registered
    assert ("engine", version("vllm")) in registered
    assert ("eval", "texts of predictions found") in registered
    assert [row for row in found if row["status"] == "problem"] == []
    assert answer.returncode == 0


def test_the_doctor_sees_that_a_framework_does_not_find_us() -> None:
    answer = deepeyes("doctor", "--json", "--only", "activation,sft", DEEPEYES_ACTIVATION="0")

    activation, *registrations = findings(answer)
    assert activation["status"] == "warning"
    for registration in registrations:
        assert registration["status"] == "problem"
        assert "DEEPEYES_ACTIVATION=0" in registration["text"]
    assert answer.returncode == 1


def test_the_doctor_says_why_verl_did_not_load_us() -> None:
    answer = deepeyes("doctor", "--json", "--only", "rl", VERL_USE_EXTERNAL_PLUGINS="none")

    assert {row["status"] for row in findings(answer)} == {"problem"}
    assert "VERL_USE_EXTERNAL_PLUGINS" in findings(answer)[0]["text"]


def test_the_doctor_says_that_vllm_does_not_load_us_and_that_a_named_server_is_down() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    answer = deepeyes(
        *("doctor", "--json", "--only", "engine"), VLLM_PLUGINS="others", DEEPEYES_OPENAI_URL=url
    )

    installed, plugin, server = findings(answer)
    assert server["status"] == "problem" and url in server["text"]
    assert (installed["status"], installed["text"]) == ("ok", version("vllm"))
    assert plugin["status"] == "problem"
    assert "VLLM_PLUGINS=others" in plugin["text"]
    assert answer.returncode == 1


def test_the_doctor_names_file_and_key_of_a_wrong_setting(tmp_path: Path) -> None:
    agent_yaml = tmp_path / "agent.yaml"
    agent_yaml.write_text("limits:\n  turns: many\n")

    answer = deepeyes(
        "doctor", "--json", "--only", "settings", DEEPEYES_AGENT_CONFIG=str(agent_yaml)
    )

    (finding,) = findings(answer)
    assert answer.returncode == 1
    assert str(agent_yaml) in finding["text"]
    assert "limits.turns" in finding["text"]


def test_the_doctor_names_a_tool_that_nobody_registered(tmp_path: Path) -> None:
    agent_yaml = tmp_path / "agent.yaml"
    agent_yaml.write_text("tools:\n  deepeyes_v2: [pythn]\n")

    answer = deepeyes(
        "doctor", "--json", "--only", "settings", DEEPEYES_AGENT_CONFIG=str(agent_yaml)
    )

    assert answer.returncode == 1
    assert "Did you mean 'python'?" in findings(answer)[-1]["text"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("rewards: {sources: {mine: perceptoin}}", "Did you mean 'perception'?"),
        ("evaluation: {limit: {turns: 10}}", "Did you mean 'limits'?"),
        ("evaluation: {sandbox: {cell_timeot: 60}}", "Did you mean 'cell_timeout'?"),
    ],
)
def test_the_doctor_finds_what_only_training_or_evaluation_would_trip_over(
    tmp_path: Path, text: str, told: str
) -> None:
    agent_yaml = tmp_path / "agent.yaml"
    agent_yaml.write_text(f"{text}\n")

    answer = deepeyes(
        "doctor", "--json", "--only", "settings", DEEPEYES_AGENT_CONFIG=str(agent_yaml)
    )

    assert answer.returncode == 1
    assert told in findings(answer)[-1]["text"]


def test_the_doctor_sees_a_variable_that_sets_nothing() -> None:
    answer = deepeyes("doctor", "--json", "--only", "settings", DEEPEYES_LIMIT_TURNS="3")

    warning = findings(answer)[0]
    assert warning["status"] == "warning"
    assert warning["text"] == "DEEPEYES_LIMIT_TURNS sets nothing"
    assert "DEEPEYES_LIMITS" in warning["action"]


def test_the_doctor_sees_that_a_named_sandbox_is_down() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"

    answer = deepeyes("doctor", "--json", "--only", "sandbox", DEEPEYES_SANDBOX_URL=url)

    (finding,) = findings(answer)
    assert answer.returncode == 1
    assert finding["status"] == "problem"
    assert url in finding["action"]


def test_the_doctor_reads_well_for_people() -> None:
    answer = deepeyes("doctor", "--only", "machine,versions,settings")

    assert answer.returncode == 0
    assert re.search(r"^versions +compared with +ok +constraints\.txt", answer.stdout, re.MULTILINE)
    assert re.search(r"^ +torch +ok", answer.stdout, re.MULTILINE)
    assert re.search(r"Nothing to mend, \d+ to know of, \d+ absent\.", answer.stdout)


def test_a_sandbox_is_served_until_it_is_told_to_stop(tmp_path: Path) -> None:
    agent_yaml = tmp_path / "agent.yaml"
    agent_yaml.write_text("sandbox:\n  max_sessions: 3\n")
    with subprocess.Popen(
        [*DEEPEYES, "sandbox", "serve", "--port", "0", "--config", str(agent_yaml)],
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stderr is not None
        url = next(
            match.group()
            for line in server.stderr
            if (match := re.search(r"http://127\.0\.0\.1:\d+", line))
        )
        health = httpx.get(f"{url}/health").json()
        server.send_signal(signal.SIGTERM)
        server.stderr.read()

    assert health["max_sessions"] == 3
    assert server.returncode == -signal.SIGTERM


def test_the_doctor_tells_which_search_key_is_missing() -> None:
    variables = {"DEEPEYES_SEARCH_PROVIDER": "serper", "SERPER_API_KEY": ""}
    answer = deepeyes("doctor", "--only", "search", "--json", **variables)
    text, images = findings(answer)
    assert answer.returncode == 1
    assert (text["area"], text["name"], text["status"]) == ("search", "text", "problem")
    assert "SERPER_API_KEY is not set" in text["text"]
    assert images["status"] in ("absent", "ok")  # Nobody asked for it.


def test_the_doctor_reaches_the_search_provider() -> None:
    with LocalServer() as server:
        options = json.dumps({"retriever": {"url": server.root}})
        variables = {
            "DEEPEYES_SEARCH_PROVIDER": "retriever",
            "DEEPEYES_SEARCH_PROVIDERS": options,
        }
        found = findings(deepeyes("doctor", "--only", "search", "--json", **variables))[0]
        assert (found["status"], found["text"]) == ("ok", f"retriever: {server.root} answers")
        variables["DEEPEYES_SEARCH_FALLBACKS"] = '["serper"]'
        variables["SERPER_API_KEY"] = ""
        lacking = findings(deepeyes("doctor", "--only", "search", "--json", **variables))[0]
        assert lacking["status"] == "problem" and "SERPER_API_KEY is not set" in lacking["text"]
    del variables["DEEPEYES_SEARCH_FALLBACKS"]
    gone = findings(deepeyes("doctor", "--only", "search", "--json", **variables))[0]
    assert gone["status"] == "problem" and "retriever: HEAD" in gone["text"]
