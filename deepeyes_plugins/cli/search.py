"""``deepeyes search``: run the search service, record and replay responses, try a provider."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from deepeyes_plugins.cli.console import Console, echo_json
from deepeyes_plugins.cli.errors import complain
from deepeyes_plugins.cli.options import LogLevel, Port, redis_url
from deepeyes_plugins.errors import SettingsError
from deepeyes_plugins.search.client import Search
from deepeyes_plugins.search.contracts import (
    MAXIMUM_RESULTS,
    SearchError,
    SearchResults,
)
from deepeyes_plugins.search.settings import SearchSettings
from deepeyes_plugins.settings import load_settings

Host = Annotated[str, typer.Option(metavar="HOST", help="Address to listen on.")]
Provider = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Text-search provider, instead of that of the settings."),
]
Config = Annotated[
    Path | None, typer.Option(metavar="PATH", help="An agent.yaml; its section `search` is used.")
]
Cache = Annotated[
    Path | None, typer.Option(metavar="PATH", help="SQLite file of the response cache.")
]
Redis = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        callback=redis_url,
        help="Redis server of the response cache instead, as redis://host:6379/0.",
    ),
]


def serve(
    host: Host = "127.0.0.1",
    port: Port = 8090,
    provider: Provider = None,
    cache: Cache = None,
    redis: Redis = None,
    config: Config = None,
    log_level: LogLevel = LogLevel.INFO,
) -> None:
    """Run a search service for all agents of a cluster, with the providers of the settings.

    Agents use it by `search.url` in agent.yaml or DEEPEYES_SEARCH_URL. On any address but loopback
    it requires a bearer token: set DEEPEYES_TOKEN_SEARCH for the service and for the agents.
    """
    _serve(_settings(config, provider, cache, redis), host, port, log_level)


def record(
    file: Annotated[
        Path, typer.Argument(metavar="PATH", help="The recording; an existing one is extended.")
    ],
    host: Host = "127.0.0.1",
    port: Port = 8090,
    provider: Provider = None,
    cache: Cache = None,
    redis: Redis = None,
    config: Config = None,
    log_level: LogLevel = LogLevel.INFO,
) -> None:
    """Run the service and record every response, for `deepeyes search replay`.

    Recorded queries are answered from the file, so that equal queries get equal responses.
    """
    _serve(_settings(config, provider, cache, redis), host, port, log_level, record=file)


def replay(
    file: Annotated[
        Path, typer.Argument(metavar="PATH", help="A recording of `deepeyes search record`.")
    ],
    host: Host = "127.0.0.1",
    port: Port = 8090,
    config: Config = None,
    log_level: LogLevel = LogLevel.INFO,
) -> None:
    """Run the service on recorded responses only; other queries are errors."""
    options = {"replay": {"path": str(file)}}
    settings = _settings(config, None, None, None).model_copy(
        update={
            "provider": "replay",
            "providers": options,
            "fallbacks": (),
            "image_provider": "replay",
            "image_providers": options,
            "image_fallbacks": (),
        }
    )
    _serve(settings, host, port, log_level)


def query(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="Text of the query.")],
    provider: Provider = None,
    count: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, max=MAXIMUM_RESULTS, help="Maximum number of results."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    config: Config = None,
) -> None:
    """Search with the settings' provider and print the results."""
    settings = _settings(config, provider, None, None)
    if provider is not None:
        settings = settings.model_copy(update={"url": None, "fallbacks": ()})

    async def ask() -> SearchResults:
        search = Search(settings)
        try:
            return await search.text.search(search.query(text, count))
        finally:
            await search.aclose()

    try:
        found = asyncio.run(ask())
    except SearchError as error:
        complain(str(error))
    if as_json:
        echo_json(found.model_dump(mode="json"))
        return
    console = Console()
    for number, result in enumerate(found.results, 1):
        console.print(f"{number}. {result.title}", style="bold", markup=False, highlight=False)
        snippet = " ".join(result.snippet.split())
        for line, style in ((result.link, "blue"), (result.date, "dim"), (snippet, "")):
            if line:
                console.print(line, style=style, markup=False, highlight=False)
    if not found.results:
        console.print("No results.")
    if found.partial:
        console.print(f"[yellow]Results are missing:[/] {escape(found.partial)}", highlight=False)


def _settings(
    config: Path | None, provider: str | None, cache: Path | None, redis: str | None
) -> SearchSettings:
    try:
        settings = load_settings(config).search
    except SettingsError as error:
        raise typer.BadParameter(str(error), param_hint="--config") from error
    update: dict[str, Any] = {}
    if provider is not None:
        update["provider"] = provider
    if cache is not None and redis is not None:
        raise typer.BadParameter("responses are cached in one place: --cache or --redis")
    if cache is not None or redis is not None:
        location = {"path": cache, "redis_url": redis}
        update["cache"] = settings.cache.model_copy(update=location)
    return settings.model_copy(update=update)


def _serve(
    settings: SearchSettings, host: str, port: int, log_level: LogLevel, record: Path | None = None
) -> None:
    from deepeyes_plugins.search.serve import ServerOptions
    from deepeyes_plugins.search.serve import serve as run

    run(settings, ServerOptions(host=host, port=port, log_level=log_level, record=record))
