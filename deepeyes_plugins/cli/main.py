"""The ``deepeyes`` command: its subcommands, each imported when it is called."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Annotated

import typer

from deepeyes_plugins import __version__

_EXTRAS = {
    "quickstart": "all",
    "sandbox": "sandbox",
    "search": "search",
    "reward": "rl",
    "data": "sft",
    "eval": "eval",
}
"""What to install, by the first word of a command, where a module is missing."""

# Help as plain text: rich's panels take words in brackets for markup, and cut what is too long.
_typer = partial(typer.Typer, rich_markup_mode=None, pretty_exceptions_show_locals=False)

app = _typer(
    name="deepeyes",
    help="Train and evaluate agents that think with images.",
    epilog="Exit status: 0 done, 1 failed, 2 wrong arguments, 130 interrupted.",
    no_args_is_help=True,
)


def _group(parent: typer.Typer, name: str, summary: str) -> typer.Typer:
    group = _typer(help=summary, no_args_is_help=True)
    parent.add_typer(group, name=name)
    return group


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"deepeyes-plugins {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    del version


def _mount(
    group: typer.Typer, name: str, summary: str, home: str, *, passes_on: bool = False
) -> None:
    """Add a command that is imported when it is called.

    Args:
        group: Where to add it.
        name: What the user types.
        summary: One line for the list of commands.
        home: ``module:function``; the function's signature and docstring make its ``--help``.
        passes_on: Options that it does not know are arguments of another program.
    """

    @group.command(
        name,
        help=summary,
        add_help_option=False,
        context_settings={
            "allow_extra_args": True,
            "allow_interspersed_args": False,
            "ignore_unknown_options": True,
        },
    )
    def command(context: typer.Context) -> None:
        from deepeyes_plugins.cli.errors import complain
        from deepeyes_plugins.extras import install_command

        module, _, function = home.partition(":")
        inner = _typer(add_completion=False)
        try:
            inner.command(context_settings={"ignore_unknown_options": passes_on})(
                getattr(import_module(f"deepeyes_plugins.cli.{module}"), function)
            )
            inner(context.args, prog_name=context.command_path)
        except ImportError as error:
            extra = _EXTRAS.get(context.command_path.split()[1])
            if extra is None or (error.name or "").startswith(("deepeyes_plugins", "eval_plugins")):
                raise
            complain(f"{error}: {install_command(extra)}")
        except OSError as error:  # A full disk, a folder for a file: for the user, not for us.
            complain(str(error))


_mount(app, "quickstart", "Train and evaluate a tiny agent, GPU or not.", "quickstart:quickstart")
_mount(app, "doctor", "Check installation, settings, services and machine.", "doctor:doctor")
_mount(app, "plugins", "List tools, rewards and the like, and whose they are.", "plugins:plugins")

data = _group(app, "data", "Data sets: prepare, check, select and make.")
prepare = _group(data, "prepare", "Make of published data what the recipes read.")
_mount(prepare, "sft", "A data set for LLaMA-Factory.", "data_prepare:sft")
_mount(prepare, "rl", "Parquet files for verl.", "data_prepare:rl")
_mount(prepare, "search-cache", "Answers of image searches.", "data_prepare:search_cache")
_mount(data, "check", "Check SFT and RL data and search caches.", "data_check:check")
_mount(data, "stats", "Count what data sets hold.", "data_check:stats")
_mount(data, "prompt", "The system prompt of a data set, byte for byte.", "data_prompt:prompt")
_mount(data, "merge", "One file of several, by source.", "data_combine:merge")
_mount(data, "split", "Hold out rows for validation, by source.", "data_combine:split")
_mount(data, "filter", "Keep questions where tools help.", "data_selection:filter_questions")
_mount(data, "synthesize", "Make SFT rows with a teacher model.", "data_selection:synthesize")
_mount(
    data,
    "from-trajectories",
    "Make SFT rows of the best logged trajectories.",
    "data_selection:from_trajectories",
)

reward = _group(app, "reward", "Rewards of stored trajectories.")
_mount(reward, "score", "Score stored trajectories as in training.", "reward:score")

sandbox = _group(app, "sandbox", "The code sandbox: run servers.")
_mount(sandbox, "serve", "Run a sandbox server for other machines or jobs.", "sandbox:serve")
_mount(sandbox, "up", "Run a server on every node of a Ray cluster.", "sandbox_ray:up")
_mount(sandbox, "status", "Show the servers of a Ray cluster.", "sandbox_ray:status")
_mount(sandbox, "down", "End the servers of a Ray cluster.", "sandbox_ray:down")

search = _group(app, "search", "Text and image search: indices, caches, the service.")
_mount(search, "query", "Ask the search of the settings from here.", "search:query")
_mount(search, "serve", "Run one search service for a whole cluster.", "search:serve")
_mount(search, "record", "Run the service and write down every answer.", "search:record")
_mount(search, "replay", "Run the service on recorded answers only.", "search:replay")
index = _group(search, "index", "The index that the provider `local` searches.")
_mount(index, "build", "Make an index of a corpus.", "search_index:build")
_mount(index, "info", "Show what an index holds.", "search_index:info")
_mount(index, "query", "Search an index.", "search_index:query")
image_cache = _group(search, "image-cache", "The answers that the image provider `cache` gives.")
_mount(image_cache, "convert", "Make a cache of those that are published.", "search_images:convert")
_mount(image_cache, "info", "Show what a cache holds.", "search_images:info")

evaluation = _group(app, "eval", "Evaluation: run and report.")
_mount(evaluation, "run", "Evaluate with VLMEvalKit.", "evaluation:run", passes_on=True)
_mount(evaluation, "report", "Report on a run, or compare two.", "eval_report:report")
_mount(
    evaluation,
    "prepare",
    "Make VLMEvalKit's table of FVQA-test, InfoSeek or MMSearch.",
    "benchmarks:prepare",
)
_mount(evaluation, "shuffle", "Make passes with options in another order.", "benchmarks:shuffle")
_mount(evaluation, "rescore", "Score results as published, by a judge.", "benchmarks:rescore")
