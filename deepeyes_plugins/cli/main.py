"""The ``deepeyes`` command; each subcommand is imported when it is called."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperArgument, TyperCommand

from deepeyes_plugins import __version__

_EXTRAS = {
    "quickstart": "all",
    "sandbox": "sandbox",
    "search": "search",
    "reward": "rl",
    "data": "sft",
    "eval": "eval",
}
"""Extra to install if a module is missing, by the first word of the command."""

# Plain-text help: rich would interpret words in brackets as markup and truncate long texts.
_typer = partial(typer.Typer, rich_markup_mode=None, pretty_exceptions_show_locals=False)


class _Command(TyperCommand):
    """A command whose help gives arguments by their metavar alone, without a Python type."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for parameter in self.params:
            if isinstance(parameter, TyperArgument):
                parameter.display_type_rich = lambda ctx: None  # type: ignore[method-assign]


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
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an unexpected error.")
    ] = False,
) -> None:
    del version, debug


def _mount(
    group: typer.Typer,
    name: str,
    summary: str,
    home: str,
    *,
    passes_on: bool = False,
    instead: str = "",
) -> None:
    """Add a command whose module is imported when the command is called.

    Args:
        group: The group to add it to.
        name: Name of the command.
        summary: One line for the list of commands.
        home: ``module:function``; its signature and docstring give the ``--help``.
        passes_on: Pass unknown options on as arguments of another program.
        instead: The new name of the command, if this is an old one, which works with a warning.
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
        from deepeyes_plugins.renamed import warn_renamed

        if instead:
            warn_renamed(context.command_path, instead)
        module, _, function = home.partition(":")
        inner = _typer(add_completion=False)
        try:
            inner.command(cls=_Command, context_settings={"ignore_unknown_options": passes_on})(
                getattr(import_module(f"deepeyes_plugins.cli.{module}"), function)
            )
            inner(context.args, prog_name=context.command_path)
        except ImportError as error:
            extra = _EXTRAS.get(context.command_path.split()[1])
            own = (error.name or "").startswith(("deepeyes_plugins", "eval_plugins"))
            if context.find_root().params.get("debug"):
                raise
            if extra is None or own:
                complain(f"{error}. `deepeyes --debug …` shows the traceback.")
            complain(f"{error}: {install_command(extra)}")
        except OSError as error:  # A full disk, a missing folder: no traceback.
            complain(str(error))
        except Exception as error:
            if context.find_root().params.get("debug"):
                raise
            complain(
                f"{type(error).__name__}: {error}\nThis is unexpected: please report it with the "
                "traceback, which `deepeyes --debug …` shows."
            )


_mount(app, "quickstart", "Train and evaluate a tiny agent, GPU or not.", "quickstart:quickstart")
_mount(app, "doctor", "Check installation, settings, services and machine.", "doctor:doctor")

plugins = _typer(help="Plugins: list what is registered; write one.", invoke_without_command=True)
app.add_typer(plugins, name="plugins")
_mount(plugins, "new", "Write a package with a tool, an environment and a reward.", "plugins:new")


@plugins.callback()
def _plugins(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    if context.invoked_subcommand is None:
        from deepeyes_plugins.cli.plugins import plugins as list_plugins

        list_plugins(as_json)


data = _group(app, "data", "Datasets: prepare, check, select and synthesize.")
prepare = _group(data, "prepare", "Convert published data for the recipes.")
_mount(prepare, "sft", "Write an SFT dataset for LLaMA-Factory.", "data_prepare:sft")
_mount(prepare, "rl", "Write RL parquet files for verl.", "data_prepare:rl")
_mount(prepare, "search-cache", "Write a cache of image searches.", "data_prepare:search_cache")
_mount(data, "check", "Check SFT and RL data and search caches.", "data_check:check")
_mount(data, "stats", "Show statistics of datasets.", "data_check:stats")
_mount(data, "prompt", "Write the system prompt of a dataset, byte for byte.", "data_prompt:prompt")
_mount(data, "merge", "Merge files, with an amount per source.", "data_combine:merge")
_mount(data, "split", "Split off validation rows by source.", "data_combine:split")
_mount(data, "filter", "Select questions on which tools help.", "data_selection:filter_questions")
_mount(data, "synthesize", "Generate SFT rows with a teacher model.", "data_selection:synthesize")
_mount(
    data,
    "from-trajectories",
    "Write SFT rows from the best logged trajectories.",
    "data_selection:from_trajectories",
)

model = _group(app, "model", "Checkpoints.")
_mount(model, "export", "Copy a checkpoint with the published names of tensors.", "model:export")

reward = _group(app, "reward", "Rewards of stored trajectories.")
_mount(reward, "score", "Score stored trajectories as in training.", "reward:score")

sandbox = _group(app, "sandbox", "Code sandbox servers.")
_mount(sandbox, "serve", "Run a sandbox server.", "sandbox:serve")
_mount(sandbox, "up", "Start a server on every node of a Ray cluster.", "sandbox_ray:up")
_mount(sandbox, "status", "Show the servers of a Ray cluster.", "sandbox_ray:status")
_mount(sandbox, "down", "Stop the servers of a Ray cluster.", "sandbox_ray:down")

search = _group(app, "search", "Text and image search: service, indices and caches.")
_mount(search, "query", "Run a search with the configured provider.", "search:query")
_mount(search, "serve", "Run a search service for a cluster.", "search:serve")
_mount(search, "record", "Run the service and record every response.", "search:record")
_mount(search, "replay", "Run the service on recorded responses only.", "search:replay")
index = _group(search, "index", "Index of the provider `local`.")
_mount(index, "build", "Build an index of a corpus.", "search_index:build")
_mount(index, "info", "Show the contents of an index.", "search_index:info")
_mount(index, "query", "Search an index.", "search_index:query")
image_cache = _group(search, "image-cache", "Cache of the image provider `cache`.")
_mount(
    image_cache,
    "convert",
    "Old name of `deepeyes data prepare search-cache`.",
    "data_prepare:search_cache",
    instead="deepeyes data prepare search-cache",
)
_mount(image_cache, "info", "Show the contents of a cache.", "search_images:info")

evaluation = _group(app, "eval", "Evaluation: run and report.")
_mount(evaluation, "run", "Evaluate with VLMEvalKit.", "evaluation:run", passes_on=True)
_mount(evaluation, "report", "Report on a run, or compare two runs.", "eval_report:report")
_mount(
    evaluation,
    "prepare",
    "Write VLMEvalKit's table of FVQA-test, InfoSeek or MMSearch.",
    "eval_datasets:prepare",
)
_mount(evaluation, "shuffle", "Shuffle the options of a benchmark.", "eval_datasets:shuffle")
_mount(evaluation, "rescore", "Rescore results as published.", "eval_datasets:rescore")
