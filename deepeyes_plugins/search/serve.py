"""Process of the search service: start, checks and shutdown."""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from deepeyes_plugins.remote.redaction import protect
from deepeyes_plugins.search.cache import user_cache_file
from deepeyes_plugins.search.client import Search
from deepeyes_plugins.search.contracts import SearchNotConfiguredError
from deepeyes_plugins.search.recording import Recording
from deepeyes_plugins.search.server import SearchServer
from deepeyes_plugins.search.settings import KINDS, SearchSettings

logger = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "::1", "localhost")
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
    logging.basicConfig(
        level=options.log_level.upper(), format="%(levelname)s: %(message)s", force=True
    )
    token = os.environ.get(settings.token_env, "").strip() or None  # As clients read it.
    protect(token)
    if token is None and options.host not in LOOPBACK:
        raise SystemExit(
            f"listening on {options.host} requires a bearer token, or anyone who can reach it "
            f"could use up the search quota: set ${settings.token_env}, or listen on 127.0.0.1"
        )
    # `search.url` is for the agents: the service itself asks the providers.
    search = Search(settings.model_copy(update={"url": None}), user_cache_file())
    try:
        # Without any provider in the settings, the default one is checked.
        for kind in [kind for kind in KINDS if settings.chooses(kind)] or KINDS[:1]:
            search.preflight(kind)
        recording = Recording(options.record, writable=True) if options.record else None
        app = SearchServer(search, token, recording).app()
    except SearchNotConfiguredError as error:
        raise SystemExit(str(error)) from None
    try:
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        listener = socket.create_server((options.host, options.port), family=family, backlog=4096)
    except OSError as error:
        raise SystemExit(f"cannot listen on {options.host}:{options.port}: {error}") from None
    with listener:
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            backlog=4096,
            timeout_keep_alive=120,
            timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
        )
        port = listener.getsockname()[1]
        logger.info("the search service listens on http://%s:%d", options.host, port)
        uvicorn.Server(config).run(sockets=[listener])
