"""Process of the search service: start, checks and shutdown."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from deepeyes_plugins.search.cache import user_cache_file
from deepeyes_plugins.search.client import Search
from deepeyes_plugins.search.contracts import SearchNotConfiguredError
from deepeyes_plugins.search.recording import Recording
from deepeyes_plugins.search.server import SearchServer
from deepeyes_plugins.search.settings import KINDS, SearchSettings
from deepeyes_plugins.serving.process import (
    bearer_token,
    configuration,
    configure_logging,
    listen,
)

logger = logging.getLogger(__name__)

_SHUTDOWN_SECONDS = 5


@dataclass(frozen=True)
class ServerOptions:
    """Options of the service process.

    Attributes:
        host: Address to listen on.
        port: Port; 0 for a free one.
        log_level: debug, info, warning or error.
        record: File to which responses are recorded; ``None`` for none.
    """

    host: str = "127.0.0.1"
    port: int = 8090
    log_level: str = "info"
    record: Path | None = None


def serve(settings: SearchSettings, options: ServerOptions) -> None:
    """Run the service until SIGTERM or SIGINT.

    Raises:
        SystemExit: The service cannot start; the message says why.
    """
    configure_logging(options.log_level)
    try:
        token = bearer_token(settings.token_env, options.host, "use up the search quota")
    except ValueError as error:
        raise SystemExit(str(error)) from None
    # `search.url` is for the agents: the service itself asks the providers.
    search = Search(settings.model_copy(update={"url": None}), user_cache_file())
    try:
        # Without any provider in the settings, the default one is checked.
        for kind in [kind for kind in KINDS if settings.chooses(kind)] or KINDS[:1]:
            search.preflight(kind)
        recording = Recording(options.record, writable=True) if options.record else None
        app = SearchServer(search, recording).app(token, options.host)
    except SearchNotConfiguredError as error:
        raise SystemExit(str(error)) from None
    try:
        listener = listen(options.host, options.port)
    except OSError as error:
        raise SystemExit(f"cannot listen on {options.host}:{options.port}: {error}") from None
    config = configuration(app, log_level=options.log_level, shutdown_seconds=_SHUTDOWN_SECONDS)
    with listener:
        port = listener.getsockname()[1]
        logger.info("the search service listens on http://%s:%d", options.host, port)
        uvicorn.Server(config).run(sockets=[listener])
