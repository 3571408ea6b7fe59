"""Probe of a model's server before a run: what it refuses, ignores or shows in another order.

The requests are those of the run, made by its policy and settings, with a small picture and a few
tokens. What a server refuses stops a run; what it does differently is a warning.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from deepeyes_plugins.files import read_json
from deepeyes_plugins.hosts.openai.client import ChatClient
from deepeyes_plugins.hosts.openai.policy import OpenAIPolicy
from deepeyes_plugins.hosts.openai.settings import OpenAISettings
from deepeyes_plugins.protocol.content import EncodedImage, Message, Part
from deepeyes_plugins.protocol.dialect import DEEPEYES_V2, Dialect
from deepeyes_plugins.remote.chat import ChatEndpoint, Completion, ContextLengthError
from deepeyes_plugins.remote.errors import RemoteError, RemoteUnavailableError
from deepeyes_plugins.remote.service import RemoteService
from deepeyes_plugins.rollout.contracts import InfrastructureError, Task

logger = logging.getLogger(__name__)

_FIRST_SECONDS = 15.0
_SECONDS = 120.0
_FEW_TOKENS = 16
QUESTION = "What colour is the picture?"
"""Question of every request of a probe."""
_BARE = Dialect(forbidden=())
_LETTERS = tuple("aeioutnsrhld. \n0123456789")
"""Stop strings of which one comes soon, whatever a model says."""
_ORDER = (
    "for vLLM --chat-template-content-format openai, or a chat template that loops over the parts "
    "(`for part in message.content`)"
)


@dataclass(frozen=True, slots=True)
class Shortcoming:
    """Something that a server does not do as the run needs it.

    Attributes:
        what: What is missing, in the server's own words where it says so.
        action: The setting that mends it.
        stops: Whether no trajectory can be played; else trajectories differ from training.
    """

    what: str
    action: str
    stops: bool = True

    def __str__(self) -> str:
        return f"{self.what}. To mend it: {self.action}."


@dataclass(frozen=True, slots=True)
class ServerReport:
    """Result of the probe of one server.

    Attributes:
        url: Its base URL.
        model: The model's name; empty if it is not known.
        found: What it does not do.
        reached: Whether anything answers there.
    """

    url: str
    model: str = ""
    found: tuple[Shortcoming, ...] = ()
    reached: bool = True


async def require_server(settings: OpenAISettings) -> None:
    """Probe the servers before a run, and log what they do differently from training.

    Raises:
        InfrastructureError: A server cannot play trajectories; the message says why.
    """
    stopping = []
    for report in await probe(settings):
        for one in report.found:
            if one.stops:
                stopping.append(f"{report.url}: {one}")
            else:
                logger.warning("%s: %s", report.url, one)
    if stopping:
        raise InfrastructureError("\n".join(stopping))


async def probe(settings: OpenAISettings) -> list[ServerReport]:
    """Probe every server of the settings."""
    return await asyncio.gather(*(_probe(settings, url) for url in settings.servers))


async def _probe(settings: OpenAISettings, url: str) -> ServerReport:
    seconds = min(settings.timeout, _FIRST_SECONDS)
    quick = settings.model_copy(update={"timeout": seconds, "retries": 0})
    endpoint = ChatEndpoint(
        url,
        quick,
        model=settings.model,
        key_env=settings.api_key_env,
        model_hint="setting 'model' or DEEPEYES_OPENAI_MODEL",
    )
    try:
        listed = await endpoint.models()
        model = await endpoint.model()
        lengths = await _context_lengths(endpoint)
    except RemoteUnavailableError as error:
        action = "start the server, or correct the setting 'url' or DEEPEYES_OPENAI_URL"
        return ServerReport(url, found=(Shortcoming(str(error), action),), reached=False)
    except RemoteError as error:
        action = "correct the settings 'url' and 'model', or the API key"
        return ServerReport(url, found=(Shortcoming(str(error), action),))
    finally:
        await endpoint.aclose()
    if listed and model not in listed:
        what = f"it has no model {model!r}; it has: {', '.join(listed)}"
        return ServerReport(
            url, model, (Shortcoming(what, "the setting 'model' or DEEPEYES_OPENAI_MODEL"),)
        )
    seconds = min(settings.timeout, _SECONDS)
    own = {"url": url, "model": model, "temperature": 0.0, "retries": 1, "timeout": seconds}
    probed = _Probe(settings.model_copy(update=own))
    try:
        found = [*await probed.find(), *_context(settings, lengths.get(model))]
    finally:
        await probed.aclose()
    return ServerReport(url, model, tuple(found))


async def _context_lengths(endpoint: ChatEndpoint) -> dict[str, int]:
    """Return the context length of each model that the server states, as vLLM does."""
    with suppress(RemoteError, LookupError, TypeError, AttributeError):
        models = (await endpoint.fetch("GET", "/models")).json()["data"]
        return {one["id"]: one["max_model_len"] for one in models if one.get("max_model_len")}
    return {}


def _context(settings: OpenAISettings, length: int | None) -> list[Shortcoming]:
    if length is None or (settings.max_tokens or 0) < length:
        return []
    what = f"its context is {length} tokens, and max_tokens of a turn {settings.max_tokens}"
    action = "serve a longer context (--max-model-len), or lower max_tokens: turns are cut"
    return [Shortcoming(what, action, stops=False)]


class _Probe:
    """Requests to one server, each as the policy of a run makes them."""

    def __init__(self, settings: OpenAISettings) -> None:
        self._settings = settings
        self._client = ChatClient(settings)
        url = settings.servers[0]
        self._services = [
            (RemoteService(base, settings, key_env=settings.api_key_env), path)
            for base, path in (
                (url, "/chat/completions/render"),
                (url.removesuffix("/v1"), "/tokenize"),
            )
        ]
        self._picture = EncodedImage.from_pil(Image.new("RGB", (56, 56), "red"))

    async def aclose(self) -> None:
        await self._client.aclose()
        for service, _ in self._services:
            await service.aclose()

    async def find(self) -> list[Shortcoming]:
        """Return what the server refuses; if it refuses nothing, what it does differently."""
        try:
            await self._ask(self._picture, QUESTION, dialect=DEEPEYES_V2, limit=_FEW_TOKENS)
        except (InfrastructureError, ContextLengthError) as error:
            return [one async for one in self._refused()] or [
                Shortcoming(str(error), "see the server's log")
            ]
        found = [*await self._order(), *await self._stops(), *await self._forbidden()]
        return [*found, *await self._prefill()]

    async def _ask(
        self,
        *parts: Part,
        dialect: Dialect = _BARE,
        limit: int = 1,
        settings: OpenAISettings | None = None,
    ) -> Completion:
        client = self._client if settings is None else ChatClient(settings)
        try:
            policy = OpenAIPolicy(client, dialect)
            await policy.begin(Task("probe", (Message("user", parts),)))
            return await policy.complete(limit)
        finally:
            if settings is not None:
                await client.aclose()

    async def _count(self, *parts: Part, dialect: Dialect = _BARE) -> int:
        """Return the tokens of a prompt as the server counts them; 0 if it does not."""
        completion = await self._ask(*parts, dialect=dialect)
        return max(0, completion.total_tokens - completion.tokens)

    async def _refused(self) -> Any:
        """Yield which part of a request is refused, in the server's words."""
        plain = self._settings.model_copy(update={"profile": "generic", "prefill": False})
        parts: list[tuple[str, str, Sequence[Part], Dialect, OpenAISettings | None]] = [
            ("", "see the server's log", (QUESTION,), _BARE, plain),
            (
                f"the fields of profile {self._settings.profile}",
                "the profile of this server, or generic (DEEPEYES_OPENAI_PROFILE)",
                (QUESTION,),
                _BARE,
                None,
            ),
            (
                "a picture",
                "serve a vision-language model (for vLLM see --limit-mm-per-prompt)",
                (self._picture, QUESTION),
                _BARE,
                plain,
            ),
            (
                "a prefill, as the final message to continue",
                "prefill: false (DEEPEYES_OPENAI_PREFILL=0)",
                (QUESTION,),
                replace(_BARE, prefill=DEEPEYES_V2.prefill),
                None,
            ),
            (
                "stop strings",
                "send_stop: false (DEEPEYES_OPENAI_SEND_STOP=0); turns are then cut afterwards",
                (QUESTION,),
                replace(_BARE, stop=DEEPEYES_V2.stop),
                plain,
            ),
            (
                "forbidden tokens",
                "the profile of this server, or generic (DEEPEYES_OPENAI_PROFILE)",
                (QUESTION,),
                replace(_BARE, forbidden=DEEPEYES_V2.forbidden),
                None,
            ),
        ]
        for name, action, content, dialect, settings in parts:
            try:
                await self._ask(*content, dialect=dialect, settings=settings)
            except (InfrastructureError, ContextLengthError) as error:
                yield Shortcoming(f"it refuses {name}: {error}" if name else str(error), action)
                if dialect is _BARE and content == (QUESTION,):
                    return  # So is everything else.

    async def _order(self) -> list[Shortcoming]:
        """Compare prompts whose parts differ in order, or only in their number."""
        short = await self._count(QUESTION)
        with_picture = await self._count(self._picture, QUESTION)
        counts = await self._count(f"{QUESTION} {QUESTION}") > short > 0
        if counts and with_picture <= short:
            what = f"the picture is lost: the prompt has {short} tokens with it and without it"
            action = "serve a vision-language model with its own chat template"
            return [Shortcoming(what, action)]
        before = await self._rendered(self._picture, QUESTION, QUESTION)
        if before is not None:
            moved = before == await self._rendered(QUESTION, self._picture, QUESTION)
        else:  # Servers that move images join the texts by line breaks.
            apart = await self._count(self._picture, *[QUESTION] * 8)
            moved = counts and apart != await self._count(self._picture, QUESTION * 8)
        what = "it moves images ahead of the text of their message, unlike training"
        return [Shortcoming(what, _ORDER, stops=False)] if moved else []

    async def _rendered(self, *parts: Part) -> list[int] | None:
        """Return the tokens of a prompt, from a server that has an endpoint for them."""
        policy = OpenAIPolicy(self._client, _BARE)
        await policy.begin(Task("probe", (Message("user", parts),)))
        return await self._tokens({"messages": [*map(read_json, policy.messages)]})

    async def _tokens(self, fields: dict[str, Any]) -> list[int] | None:
        for service, path in self._services:
            with suppress(RemoteError, AttributeError):
                body = {"model": self._settings.model, **fields}
                reply = (await service.fetch("POST", path, json=body)).json()
                tokens = reply.get("token_ids") or reply.get("tokens")
                if isinstance(tokens, list):
                    return tokens
        return None

    async def _stops(self) -> list[Shortcoming]:
        if self._settings.profile == "generic" or not self._settings.send_stop:
            return []  # Turns are completed or cut afterwards.
        dialect = replace(_BARE, stop=_LETTERS)
        said = await self._ask(QUESTION, dialect=dialect, limit=_FEW_TOKENS)
        action = "profile: generic (DEEPEYES_OPENAI_PROFILE), which restores and cuts afterwards"
        # Of several stop strings in one token, a server may cut at any.
        if said.finish_reason == "stop" and said.text.endswith(_LETTERS):
            return []
        if said.finish_reason == "stop":
            what = "it removes the stop string from its output"
        elif any(letter in said.text for letter in _LETTERS):
            what = f"it goes on after a stop string: {said.text[:40]!r}"
        else:
            return []
        return [Shortcoming(what, action, stops=False)]

    async def _forbidden(self) -> list[Shortcoming]:
        """Let the model want a forbidden token more than anything else."""
        if self._settings.profile != "vllm":
            return []
        token = DEEPEYES_V2.forbidden[0]
        tokens = await self._tokens({"prompt": token, "add_special_tokens": False})
        if tokens is None or len(tokens) != 1:
            return []
        wants = {**self._settings.extra_body, "logit_bias": {str(tokens[0]): 100.0}}
        eager = self._settings.model_copy(update={"extra_body": wants})
        forbidding = replace(_BARE, forbidden=DEEPEYES_V2.forbidden)
        free = await self._ask(QUESTION, settings=eager)
        if free.text != (await self._ask(QUESTION, dialect=forbidding, settings=eager)).text:
            return []
        what = f"it generates the forbidden token {token}"
        action = "a server that obeys bad_words; turns are cut at such tokens"
        return [Shortcoming(what, action, stops=False)]

    async def _prefill(self) -> list[Shortcoming]:
        """Compare what a prefill adds to a prompt with what its text adds to a question."""
        if not self._settings.sends_prefill:
            return []
        prefill = DEEPEYES_V2.prefill
        short = await self._count(QUESTION)
        text = await self._count(QUESTION + prefill) - short
        opened = await self._count(QUESTION, dialect=replace(_BARE, prefill=prefill)) - short
        if not short or text <= 0 or opened <= text + 2:
            return []
        what = f"it closes the prefill {prefill} instead of continuing it"
        action = "prefill: false (DEEPEYES_OPENAI_PREFILL=0), or the profile of this server"
        return [Shortcoming(what, action, stops=False)]
