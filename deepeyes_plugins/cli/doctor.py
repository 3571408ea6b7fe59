"""``deepeyes doctor``: what works on this machine, what does not, and what to do about it."""

from __future__ import annotations

import asyncio
import difflib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Annotated, Literal

import typer
from rich.table import Table
from rich.text import Text

from deepeyes_plugins import _activation
from deepeyes_plugins.cli.console import Console, echo_json
from deepeyes_plugins.cli.probes import MARK, Registration
from deepeyes_plugins.cli.versions import Clash, clashes, fitting_set, installed, version_sets
from deepeyes_plugins.data.hooks import formatters
from deepeyes_plugins.environments.hooks import environments
from deepeyes_plugins.errors import SettingsError
from deepeyes_plugins.extras import install_command
from deepeyes_plugins.plugins import PluginError, UnknownNameError
from deepeyes_plugins.rewards.hooks import rewards
from deepeyes_plugins.settings import SETTINGS_VARIABLE, AgentSettings, load_settings
from deepeyes_plugins.tools.hooks import tools
from eval_plugins.vlmevalkit.settings import SERVER_DEFAULTS, load_evaluation

Status = Literal["ok", "warning", "problem", "absent"]

_COLOURS = {"ok": "green", "warning": "yellow", "problem": "red", "absent": "dim"}
_PURPOSES = {"sft": "llamafactory", "rl": "verl", "eval": "vlmeval"}
"""What each framework is for, and the module that it is imported by."""
_REQUIRABLE = (*_PURPOSES, "sandbox", "judge", "search")
_CHECKS = (
    "machine",
    "versions",
    "settings",
    "activation",
    "sandbox",
    "judge",
    "search",
    *_PURPOSES,
    "engine",
)
_SANDBOX_MODULES = ("IPython", "matplotlib", "starlette", "uvicorn")
_COMPARED = (
    "torch",
    "torchvision",
    "torchaudio",
    "transformers",
    "llamafactory",
    "verl",
    "vllm",
    "ray",
    "tensordict",
    "TransferQueue",
    "ms-vlmeval",
)
_ENGINES = ("vllm", "sglang")
_PROBE_SECONDS = 300.0
_GIB = 1 << 30
_LEAST_MEMORY = 8 * _GIB
_LEAST_DISK = 10 * _GIB


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked.

    Attributes:
        area: ``machine``, ``versions``, ``settings``, ``plugins``, ``activation``, ``sandbox``,
            ``judge``, ``search``, ``engine``, or what a framework is for: ``sft``, ``rl``,
            ``eval``.
        name: What was checked.
        status: ``problem``: something that was asked for cannot work; ``absent``: optional, and
            not installed.
        text: What was found.
        action: What to do; empty where there is nothing to do.
    """

    area: str
    name: str
    status: Status
    text: str
    action: str = ""


Check = Callable[[], Iterable[Finding]]


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    require: Annotated[
        str,
        typer.Option(
            metavar="NAMES", help=f"What must not be absent, of: {', '.join(_REQUIRABLE)}."
        ),
    ] = "",
    only: Annotated[
        str,
        typer.Option(
            metavar="NAMES", help=f"What to check, of: {', '.join(_CHECKS)}. By default all."
        ),
    ] = "",
) -> None:
    """Check this installation: versions, registrations, sandbox, judge, search, settings, machine.

    Frameworks are really imported, each in a process of its own, which takes half a minute. Exits
    with 1 if something that is installed or required cannot work.
    """
    required = _names(require, _REQUIRABLE, "--require")
    chosen = _names(only, _CHECKS, "--only") or list(_CHECKS)
    findings = [
        replace(finding, status="problem")
        if finding.status == "absent" and finding.area in required
        else finding
        for finding in diagnose(chosen, Console(stderr=True, quiet=as_json))
    ]
    if as_json:
        echo_json([asdict(finding) for finding in findings])
    else:
        _show(Console(), findings)
    if any(finding.status == "problem" for finding in findings):
        raise typer.Exit(1)


def _names(option: str, known: Sequence[str], hint: str) -> list[str]:
    names = [name.strip() for name in option.split(",") if name.strip()]
    if unknown := sorted(set(names) - set(known)):
        raise typer.BadParameter(
            f"{', '.join(unknown)}: choose of {', '.join(known)}", param_hint=hint
        )
    return names


def diagnose(chosen: Sequence[str], console: Console) -> list[Finding]:
    """Run checks, all at once.

    Args:
        chosen: Names of checks.
        console: Shows a spinner while they run.

    Returns:
        The findings, in a fixed order.
    """
    checks: dict[str, Check] = {
        "machine": check_machine,
        "versions": check_versions,
        "settings": check_settings,
        "activation": check_activation,
        "sandbox": check_sandbox,
        "judge": check_judge,
        "search": check_search,
        **{purpose: partial(check_framework, purpose) for purpose in _PURPOSES},
        "engine": check_engine,
    }
    findings: dict[str, list[Finding]] = {}
    with ThreadPoolExecutor(len(chosen)) as threads, console.status("") as spinner:
        running = {threads.submit(_finish, checks[name]): name for name in chosen}
        spinner.update(f"checking {', '.join(chosen)}")
        for done in as_completed(running):
            findings[running[done]] = done.result()
            pending = [name for name in chosen if name not in findings]
            spinner.update(f"checking {', '.join(pending)}")
    return [finding for name in checks if name in findings for finding in findings[name]]


def _finish(check: Check) -> list[Finding]:
    return list(check())


def check_machine() -> Iterator[Finding]:
    """Python, processors, memory, disk and GPU."""
    python = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info[:2] < (3, 13):
        yield Finding("machine", "python", "ok", python)
    else:
        yield Finding(
            "machine", "python", "problem", python, "Make an environment with Python 3.11 or 3.12."
        )
    yield Finding("machine", "processors", "ok", f"{len(os.sched_getaffinity(0))} usable")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield _amount("memory", memory, _LEAST_MEMORY, "Training may be killed for want of memory.")
    disk = shutil.disk_usage(".").free
    yield _amount("free disk here", disk, _LEAST_DISK, "Checkpoints may not fit.")
    names = _graphics_cards()
    if not names:
        yield Finding("machine", "gpu", "absent", "none; the recipes in recipes/tiny need none")
        return
    yield Finding("machine", "gpu", "ok", "; ".join(names))
    if find_spec("torch") is not None:
        yield from _probe("machine", "torch", "Install the PyTorch build for your driver.")


def _amount(name: str, size: int, least: int, consequence: str) -> Finding:
    text = f"{size / _GIB:.0f} GiB"
    if size >= least:
        return Finding("machine", name, "ok", text)
    advice = f"{consequence} At least {least // _GIB} GiB are advised."
    return Finding("machine", name, "warning", text, advice)


def _graphics_cards() -> list[str]:
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return answer.stdout.strip().splitlines()


def check_versions() -> Iterator[Finding]:
    """The frameworks' versions against a set that was tested together, and what clashes."""
    tested = fitting_set(version_sets())
    yield Finding("versions", "compared with", "ok", f"{tested.file}: {tested.purpose}")
    for name in _COMPARED:
        wanted, found = tested.version(name), installed(name)
        if wanted is None:
            continue
        if found is None:
            yield Finding("versions", name, "absent", f"tested with {wanted}")
        elif found == wanted:
            yield Finding("versions", name, "ok", found)
        else:
            yield Finding(
                "versions",
                name,
                "warning",
                f"{found}; tested with {wanted}",
                f"If it makes trouble: pip install {name}=={wanted}",
            )
    by_requirer: dict[str, list[Clash]] = {}
    for clash in clashes(tested):
        by_requirer.setdefault(clash.requirer, []).append(clash)
    for requirer, found_clashes in by_requirer.items():
        new = [clash for clash in found_clashes if not clash.known]
        if new:
            pins = " ".join(f"{clash.requirement.name}=={clash.tested}" for clash in new)
            text = "; ".join(map(str, new))
            yield Finding("versions", requirer, "warning", text, f"pip install --no-deps {pins}")
        else:
            text = f"{'; '.join(map(str, found_clashes))}: tested together"
            yield Finding("versions", requirer, "ok", text)


def check_settings() -> Iterator[Finding]:
    """The settings that hosts will use, and whether the plugins that they name exist."""
    try:
        settings = load_settings()
    except SettingsError as error:
        yield Finding(
            "settings", "agent.yaml", "problem", str(error), "Correct the file or the variable."
        )
        return
    for name, field in _misspelt_variables():
        advice = f"Did you mean DEEPEYES_{field.upper()}…?"
        yield Finding("settings", "variables", "warning", f"{name} sets nothing", advice)
    source = os.environ.get(SETTINGS_VARIABLE) or f"defaults; {SETTINGS_VARIABLE} names no file"
    yield Finding("settings", "agent.yaml", "ok", source)
    try:
        counts = (len(tools()), len(environments()), len(rewards()), len(formatters()))
    except PluginError as error:
        yield Finding("plugins", "registered", "problem", str(error), "See `deepeyes plugins`.")
        return
    yield Finding(
        "plugins",
        "registered",
        "ok",
        "{} tools, {} environments, {} rewards, {} formatters".format(*counts),
    )
    try:
        environments().require(settings.environment)
        for name, chosen in settings.tools.items():
            environments().require(name)
            for tool in chosen:
                tools().require(tool)
        for name in settings.rewards.sources.values():
            rewards().require(name)
    except UnknownNameError as error:
        yield Finding(
            "settings", "names", "problem", str(error), "Correct the name, or install its plugin."
        )
    if settings.evaluation:
        try:
            load_evaluation()
        except SettingsError as error:
            yield Finding("settings", "evaluation", "problem", str(error), "Correct the file.")


def _misspelt_variables() -> Iterator[tuple[str, str]]:
    """Variables that nothing reads, each with the field of agent.yaml that its name resembles."""
    fields = AgentSettings.model_fields
    for name in sorted(os.environ):
        if name.startswith("DEEPEYES_"):
            word = name.split("_")[1].lower()
            near = difflib.get_close_matches(word, fields, n=1, cutoff=0.8)
            if near and word not in fields:
                yield name, near[0]


def check_activation() -> Iterator[Finding]:
    """Whether this interpreter waits for the frameworks without a plugin mechanism."""
    if os.environ.get(_activation.SWITCH) == "0":
        yield Finding(
            "activation",
            "at interpreter start",
            "warning",
            f"off: {_activation.SWITCH}=0",
            "LLaMA-Factory and VLMEvalKit do not find our plugins; unset it to change that.",
        )
    elif not _activation.state:
        yield Finding(
            "activation",
            "at interpreter start",
            "warning",
            "off: deepeyes_plugins.pth is not in site-packages",
            "Install the package into this environment, with pip install -e . in a checkout.",
        )
    else:
        yield Finding("activation", "at interpreter start", "ok", "on")


def check_framework(purpose: str) -> Iterator[Finding]:
    """Whether a framework, if it is installed, really finds our plugins.

    Args:
        purpose: ``sft``, ``rl`` or ``eval``.
    """
    framework = _PURPOSES[purpose]
    if find_spec(framework) is None:
        install = install_command(purpose)
        if purpose == "eval":
            install += " && pip install --no-deps ms-vlmeval==0.0.20"
        yield Finding(purpose, framework, "absent", "not installed", install)
        return
    yield from _probe(
        purpose,
        framework,
        "Install deepeyes-plugins again into this environment; if that does not help, report it.",
    )


def check_engine() -> Iterator[Finding]:
    """Which engines are installed, and whether vLLM loads our plugin."""
    installed = [name for name in _ENGINES if find_spec(name) is not None]
    if not installed:
        yield Finding(
            "engine",
            "rollout engine",
            "absent",
            f"none of {', '.join(_ENGINES)}; without one only tiny models are trained and served",
            f"pip install vllm=={version_sets()[0].version('vllm')}; on a CPU, `make install` in a "
            "checkout.",
        )
    for name in installed:
        try:
            yield Finding("engine", name, "ok", version(name))
        except PackageNotFoundError:
            action = "Its commands and verl look for it: `make install` in a checkout mends it."
            yield Finding("engine", name, "problem", f"no distribution named {name}", action)
    if "vllm" in installed:
        yield from _probe("engine", "vllm", "Install deepeyes-plugins again beside vLLM.")
    yield from _check_server()


def _check_server() -> Iterator[Finding]:
    """Whether the server of the settings, if there is one, does what a run needs."""
    from deepeyes_plugins.hosts.openai.probe import probe

    try:
        settings = load_evaluation().server
    except SettingsError:
        return  # None is named, or the check of the settings says so.
    for report in asyncio.run(probe(settings)):
        if not report.reached and settings.url == SERVER_DEFAULTS["url"]:
            text = f"none answers at {settings.url}, where evaluations look by default"
            action = "For an evaluation start one, or name it in DEEPEYES_OPENAI_URL."
            yield Finding("engine", "server", "absent", text, action)
            continue
        for one in report.found:
            status: Status = "problem" if one.stops else "warning"
            yield Finding("engine", "server", status, f"{report.url}: {one.what}", one.action)
        if not report.found:
            text = f"{report.url}: {report.model} does all that a run needs"
            yield Finding("engine", "server", "ok", text)


def _probe(area: str, framework: str, action: str) -> Iterator[Finding]:
    command = [sys.executable, "-m", "deepeyes_plugins.cli.probes", framework]
    try:
        answer = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PROBE_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        text = f"its import took more than {_PROBE_SECONDS:g} s"
        yield Finding(area, framework, "problem", text, f"Try: {' '.join(command)}")
        return
    lines = [line for line in answer.stdout.splitlines() if line.startswith(MARK)]
    if not lines:
        complaint = (answer.stderr.strip().splitlines() or [f"exit status {answer.returncode}"])[-1]
        text = f"cannot be imported: {complaint}"
        yield Finding(area, framework, "problem", text, f"Try: {' '.join(command)}")
        return
    for fields in json.loads(lines[-1].removeprefix(MARK)):
        registration = Registration(**fields)
        if registration.registered:
            yield Finding(area, framework, "ok", f"{registration.what} found")
        else:
            text = f"{registration.what} not found: {registration.reason}"
            yield Finding(area, framework, "problem", text, action)


def check_judge() -> Iterator[Finding]:
    """Whether the judge of the settings tells a right answer from a wrong one."""
    from deepeyes_plugins.judge.preflight import examine
    from deepeyes_plugins.judge.settings import BASE_VARIABLE

    try:
        reports = asyncio.run(examine(load_settings().judge))
    except SettingsError:
        return  # The check of the settings says so.
    except (ValueError, OSError) as error:
        action = f"Correct judge in agent.yaml, or {BASE_VARIABLE}."
        yield Finding("judge", "settings", "problem", str(error), action)
        return
    if not reports:
        action = f"Set judge.endpoints in agent.yaml, or {BASE_VARIABLE}."
        yield Finding("judge", "server", "absent", "none is set up; rules decide", action)
    for report in reports:
        if report.problem:
            action = "See docs/judge.md." if report.reachable else "Is it right and running?"
            yield Finding("judge", "server", "problem", f"{report.url}: {report.problem}", action)
        else:
            text = f"{report.url}: {report.model} judges right, in {report.seconds:.1f} s at most"
            yield Finding("judge", "server", "ok", text)


def check_sandbox() -> Iterator[Finding]:
    """Whether code can be run, and how well it is shut in.

    Asks the server that the settings name; without one an embedded server is started and ended.
    """
    try:
        settings = load_settings().sandbox
    except SettingsError:
        return  # The check of the settings says so.
    missing = [name for name in _SANDBOX_MODULES if find_spec(name) is None]
    given = settings.url or os.environ.get("DEEPEYES_SANDBOX_URL")
    if missing and not given:
        yield Finding(
            "sandbox",
            "server",
            "absent",
            f"not installed: {', '.join(missing)}",
            f"{install_command('sandbox')}, or set DEEPEYES_SANDBOX_URL to a server.",
        )
        return
    from deepeyes_plugins.sandbox.client import SandboxClient
    from deepeyes_plugins.sandbox.contracts import Health, SandboxError
    from deepeyes_plugins.sandbox.embedded import start_server

    async def ask(url: str, token: str | None) -> Health:
        async with SandboxClient(url, token=token) as client:
            return await client.health()

    try:
        with ExitStack() as stack:
            if given:
                url, token = given, os.environ.get(settings.token_env)
            else:
                server = stack.enter_context(start_server(settings))
                url, token = server.url, server.token
            health = asyncio.run(ask(url, token))
    except SandboxError as error:
        action = f"Is {given} right and running?" if given else "See its log above."
        yield Finding("sandbox", "server", "problem", str(error), action)
        return
    place = given or "an embedded server starts and runs code"
    yield Finding("sandbox", "server", "ok", f"{place}; {health.status}")
    weak = {layer: state for layer, state in health.isolation.items() if state != "active"}
    if weak:
        yield Finding(
            "sandbox",
            "isolation",
            "warning",
            "; ".join(f"{layer}: {state}" for layer, state in weak.items()),
            "Code from the model is less shut in: use a newer kernel, or a container.",
        )
    else:
        yield Finding("sandbox", "isolation", "ok", f"active: {', '.join(health.isolation)}")
    for name, note in health.notes.items():
        if note.startswith(("none", "open")):
            action = "See docs/sandbox.md."
            yield Finding("sandbox", name.replace("_", " "), "warning", note, action)
        else:
            yield Finding("sandbox", name.replace("_", " "), "ok", note)


def check_search() -> Iterator[Finding]:
    """Who answers searches: whether its key is there, and whether it can be reached."""
    from deepeyes_plugins.search.client import Search
    from deepeyes_plugins.search.contracts import (
        Provider,
        SearchError,
        SearchNotConfiguredError,
    )
    from deepeyes_plugins.search.settings import Kind

    try:
        settings = load_settings().search
    except SettingsError:
        return  # The check of the settings says so.

    async def look(find: Callable[[Search], Provider]) -> str:
        search = Search(settings)
        try:
            return await find(search).check()
        finally:
            await search.aclose()

    places: list[tuple[str, Kind, Callable[[Search], Provider]]] = [
        ("text", "text", lambda search: search.text),
        ("images", "image", lambda search: search.images),
    ]
    who = f"the service {settings.url}: " if settings.url else ""
    for name, kind, find in places:
        try:
            yield Finding("search", name, "ok", f"{who}{asyncio.run(look(find))}")
        except SearchNotConfiguredError as error:
            # Nobody asked for what is there by default.
            asked_for = settings.url or settings.chooses(kind)
            status: Status = "problem" if asked_for else "absent"
            yield Finding("search", name, status, str(error), "See docs/search.md.")
        except SearchError as error:
            yield Finding("search", name, "problem", str(error), "Is it right and running?")


def _show(console: Console, findings: list[Finding]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("area", "check", "", "finding"):
        table.add_column(column, overflow="fold")
    area = ""
    for finding in findings:
        colour = _COLOURS[finding.status]
        text = Text(finding.text, style="dim" if finding.status == "absent" else "")
        if finding.action:
            text.append(f"\n→ {finding.action}", style="" if finding.status == "absent" else colour)
        table.add_row(
            finding.area if finding.area != area else "",
            finding.name,
            Text(finding.status, style=colour),
            text,
        )
        area = finding.area
    console.print(table)
    problems = sum(finding.status == "problem" for finding in findings)
    warnings = sum(finding.status == "warning" for finding in findings)
    absent = sum(finding.status == "absent" for finding in findings)
    verdict = f"[red]{problems} to mend[/]" if problems else "[green]Nothing to mend[/]"
    console.print()
    console.print(f"{verdict}, {warnings} to know of, {absent} absent.")
