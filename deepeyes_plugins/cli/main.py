"""The ``deepeyes`` command: its subcommands, each imported when it is called."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated

import typer

from deepeyes_plugins import __version__

app = typer.Typer(
    name="deepeyes",
    help="Train and evaluate agents that think with images.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)
sandbox = typer.Typer(help="The code sandbox.", no_args_is_help=True)
app.add_typer(sandbox, name="sandbox")
search = typer.Typer(help="Text and image search.", no_args_is_help=True)
app.add_typer(search, name="search")
index = typer.Typer(help="The index that the provider `local` searches.", no_args_is_help=True)
search.add_typer(index, name="index")
image_cache = typer.Typer(
    help="The answers that the image provider `cache` gives.", no_args_is_help=True
)
search.add_typer(image_cache, name="image-cache")
reward = typer.Typer(help="Rewards.", no_args_is_help=True)
app.add_typer(reward, name="reward")
data = typer.Typer(help="Data sets: check, prepare, select and make.", no_args_is_help=True)
app.add_typer(data, name="data")
prepare = typer.Typer(help="Make of published data what the recipes read.", no_args_is_help=True)
data.add_typer(prepare, name="prepare")
evaluation = typer.Typer(help="Evaluation: run and report.", no_args_is_help=True)
app.add_typer(evaluation, name="eval")


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
        module, _, function = home.partition(":")
        inner = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)
        inner.command(context_settings={"ignore_unknown_options": passes_on})(
            getattr(import_module(f"deepeyes_plugins.cli.{module}"), function)
        )
        inner(context.args, prog_name=context.command_path)


_mount(
    app,
    "quickstart",
    "Train and evaluate a tiny agent on this machine, GPU or not.",
    "quickstart:quickstart",
)
_mount(
    app,
    "doctor",
    "Check this installation: versions, registrations, sandbox, settings, machine.",
    "doctor:doctor",
)
_mount(
    app,
    "plugins",
    "List tools, environments, rewards, formatters and search providers, and who provides them.",
    "plugins:plugins",
)
_mount(sandbox, "serve", "Run a sandbox server for other machines or jobs.", "sandbox:serve")
_mount(sandbox, "up", "Run a server on every node of a Ray cluster.", "sandbox_ray:up")
_mount(sandbox, "status", "Show the servers of a Ray cluster.", "sandbox_ray:status")
_mount(sandbox, "down", "End the servers of a Ray cluster.", "sandbox_ray:down")
_mount(index, "build", "Make an index of a corpus.", "search_index:build")
_mount(index, "info", "Show what an index holds.", "search_index:info")
_mount(index, "query", "Search an index.", "search_index:query")
_mount(image_cache, "convert", "Make a cache of those that are published.", "search_images:convert")
_mount(image_cache, "info", "Show what a cache holds.", "search_images:info")
_mount(prepare, "sft", "A data set for LLaMA-Factory.", "data_prepare:sft")
_mount(prepare, "rl", "Parquet files for verl.", "data_prepare:rl")
_mount(prepare, "search-cache", "Answers of image searches.", "data_prepare:search_cache")
_mount(data, "prompt", "The system prompt of a data set, byte for byte.", "data_prompt:prompt")
_mount(data, "merge", "One file of several, by source.", "data_combine:merge")
_mount(data, "split", "Hold out rows for validation, by source.", "data_combine:split")
_mount(search, "serve", "Run one search service for a whole cluster.", "search:serve")
_mount(search, "record", "Run the service and write down every answer.", "search:record")
_mount(search, "replay", "Run the service on recorded answers only.", "search:replay")
_mount(search, "query", "Ask the search of the settings from here.", "search:query")
_mount(reward, "score", "Score stored trajectories as in training.", "reward:score")
_mount(
    data, "check", "Check SFT and RL data and search caches, for people and CI.", "data_check:check"
)
_mount(data, "stats", "Count what data sets hold.", "data_check:stats")
_mount(
    data,
    "filter",
    "Keep questions that are neither trivial nor hopeless, and where tools help.",
    "data_models:filter_questions",
)
_mount(
    data,
    "synthesize",
    "Make SFT rows with a teacher model and our tools.",
    "data_models:synthesize",
)
_mount(
    data,
    "from-trajectories",
    "Make SFT rows of the best logged trajectories.",
    "data_models:from_trajectories",
)
_mount(
    evaluation,
    "run",
    "Evaluate DeepEyesV2 with VLMEvalKit, a checkout or the installed one.",
    "evaluation:run",
    passes_on=True,
)
_mount(
    evaluation,
    "prepare",
    "Make VLMEvalKit's table of FVQA-test, InfoSeek or MMSearch.",
    "benchmarks:prepare",
)
_mount(evaluation, "shuffle", "Make passes with options in another order.", "benchmarks:shuffle")
_mount(evaluation, "rescore", "Score results as published, by a judge.", "benchmarks:rescore")
_mount(
    evaluation,
    "report",
    "Report on a run: scores, what to distrust, every trajectory; compare two runs.",
    "eval_report:report",
)
