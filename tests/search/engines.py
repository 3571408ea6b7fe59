"""A local server that speaks the documented API of every engine, faults included."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from deepeyes_plugins.search.providers.web import WebProvider

KEY = "secret-key-0123"
KEY_VARIABLE = "DEEPEYES_TEST_SEARCH_KEY"

PAGES = [
    {
        "title": f"Red panda {number}",
        "link": f"https://example.org/{number}",
        "snippet": f"The red panda, fact {number}.",
        "date": "2024-05-01",
        "score": 1.0 - number / 100,
    }
    for number in range(40)
]


def found(text: str, count: int) -> list[dict[str, Any]]:
    """The engine's index: it knows of red pandas only."""
    return PAGES[:count] if "panda" in text else []


@dataclass
class Asked:
    """One request as the engine saw it."""

    method: str
    path: str
    params: dict[str, str]
    headers: dict[str, str]
    body: Any

    @classmethod
    async def of(cls, request: Request) -> Asked:
        data = await request.body()
        return cls(
            request.method,
            f"/{request.path_params['path']}",
            dict(request.query_params),
            dict(request.headers),
            json.loads(data) if data else None,
        )


@dataclass(frozen=True)
class Engine:
    """How one engine's API looks.

    Attributes:
        name: Of the provider.
        answer: The documented answer to a request.
        key: Where the request carries the key; empty if it does not.
        options: Of the provider, besides URL and key.
        empty: Keys that the answer has even where nothing was found.
    """

    name: str
    answer: Callable[[Asked], Any]
    key: Callable[[Asked], str] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def make(self, provider: Callable[[Mapping[str, Any]], Any], url: str, **options: Any) -> Any:
        """The provider, pointed at a local server and quick to try again."""
        fast = {"retry_wait": 0.01, "retry_wait_maximum": 0.3, "retries": 2, "timeout": 5}
        key = {"key_env": KEY_VARIABLE} if self.key is not None else {}
        made = provider({"url": url, **self.options, **key, **fast, **options})
        assert isinstance(made, WebProvider)
        return made


def _renamed(pages: list[dict[str, Any]], **names: str) -> list[dict[str, Any]]:
    return [{new: page[old] for new, old in names.items()} for page in pages]


def _serper(asked: Asked) -> Any:
    assert (asked.method, asked.path) == ("POST", "/search")
    pages = found(asked.body["q"], asked.body.get("num", 10))
    organic = [{**page, "position": n} for n, page in enumerate(pages, 1)]
    return {
        "searchParameters": {**asked.body, "type": "search", "engine": "google"},
        "organic": organic,
        "peopleAlsoAsk": [],
        "credits": 1,
    }


def _serpapi(asked: Asked) -> Any:
    assert (asked.method, asked.path) == ("GET", "/search.json")
    assert asked.params["engine"] == "google"
    pages = found(asked.params["q"], int(asked.params["num"]))
    document: dict[str, Any] = {
        "search_metadata": {"id": "1", "status": "Success"},
        "search_information": {"organic_results_state": "Results for exact spelling"},
    }
    if pages:
        document["organic_results"] = [{**page, "position": n} for n, page in enumerate(pages, 1)]
    else:
        document["error"] = "Google hasn't returned any results for this query."
    return document


def _brave(asked: Asked) -> Any:
    assert (asked.method, asked.path) == ("GET", "/res/v1/web/search")
    pages = found(asked.params["q"], int(asked.params["count"]))
    document: dict[str, Any] = {"type": "search", "query": {"original": asked.params["q"]}}
    if pages:
        results = _renamed(pages, title="title", url="link", description="snippet", age="date")
        for result in results:
            result["description"] = result["description"].replace("red", "<strong>red</strong>")
            result["title"] += " &amp; co"
        document["web"] = {"type": "search", "results": results}
    return document


def _tavily(asked: Asked) -> Any:
    assert (asked.method, asked.path) == ("POST", "/search")
    pages = found(asked.body["query"], asked.body["max_results"])
    results = _renamed(
        pages, title="title", url="link", content="snippet", score="score", published_date="date"
    )
    return {"query": asked.body["query"], "answer": None, "images": [], "results": results}


def _exa(asked: Asked) -> Any:
    assert (asked.method, asked.path) == ("POST", "/search")
    pages = found(asked.body["query"], asked.body["numResults"])
    results = _renamed(pages, title="title", url="link", id="link")
    for result, page in zip(results, pages, strict=True):
        result["publishedDate"] = f"{page['date']}T00:00:00.000Z"
        result["highlights"] = [page["snippet"]]
        result["author"] = None
    return {"requestId": "1", "results": results, "costDollars": {"total": 0.005}}


def _google(asked: Asked) -> Any:
    assert (asked.method, asked.path) == ("GET", "/customsearch/v1")
    assert asked.params["cx"] == "engine-1"
    pages = found(asked.params["q"], int(asked.params["num"]))
    document: dict[str, Any] = {"kind": "customsearch#search", "queries": {"request": []}}
    if pages:
        document["items"] = [{"kind": "customsearch#result", **page} for page in pages]
    return document


def _searxng(asked: Asked) -> Any:
    assert (asked.method, asked.path) == ("GET", "/search")
    assert asked.params["format"] == "json"
    pages = found(asked.params["q"], 20)
    results = _renamed(pages, title="title", url="link", content="snippet", score="score")
    return {
        "query": asked.params["q"],
        "number_of_results": 0,
        "results": results,
        "unresponsive_engines": [],
    }


def _retriever(asked: Asked) -> Any:
    assert (asked.method, asked.path) == ("POST", "/retrieve")
    assert asked.body["return_scores"] is True
    return {
        "result": [
            [
                {
                    "document": {
                        "id": page["link"],
                        "contents": f'"{page["title"]}"\n{page["snippet"]}',
                    },
                    "score": page["score"],
                }
                for page in found(query, asked.body["topk"])
            ]
            for query in asked.body["queries"]
        ]
    }


def _http(asked: Asked) -> Any:
    assert (asked.method, asked.path) == ("POST", "/api/find")
    assert asked.headers["x-client"] == "deepeyes"
    assert asked.body["options"]["safe"] is True
    pages = found(asked.body["text"], asked.body["options"]["limit"])
    hits = _renamed(pages, url="link", rank="score")
    for hit, page in zip(hits, pages, strict=True):
        hit["page"] = {"headline": page["title"], "extracts": [page["snippet"]]}
    return {"data": {"hits": hits}}


ENGINES = [
    Engine("serper", _serper, lambda asked: asked.headers.get("x-api-key", "")),
    Engine("serpapi", _serpapi, lambda asked: asked.params.get("api_key", "")),
    Engine("brave", _brave, lambda asked: asked.headers.get("x-subscription-token", "")),
    Engine(
        "tavily",
        _tavily,
        lambda asked: asked.headers.get("authorization", "").removeprefix("Bearer "),
    ),
    Engine("exa", _exa, lambda asked: asked.headers.get("x-api-key", "")),
    Engine(
        "google_cse",
        _google,
        lambda asked: asked.headers.get("x-goog-api-key", ""),
        {"engine_id": "engine-1"},
    ),
    Engine("searxng", _searxng),
    Engine("retriever", _retriever),
    Engine(
        "http",
        _http,
        lambda asked: asked.headers.get("x-token", ""),
        {
            "path": "/api/find",
            "method": "POST",
            "key_header": "X-Token",
            "headers": {"X-Client": "deepeyes"},
            "body": {
                "text": "{query}",
                "options": {"limit": "{count}", "safe": True, "lang": "{language}"},
                "only": "{sites}",
            },
            "results": "data.hits",
            "fields": {
                "title": "page.headline",
                "link": "url",
                "snippet": "page.extracts.0",
                "score": "rank",
            },
        },
    ),
]

Fault = Callable[[], Response]


def says(body: Any, status: int = 200, **headers: str) -> Fault:
    """A fault: another answer than the documented one."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    text = body if isinstance(body, str) else json.dumps(body)
    return lambda: Response(text, status, named)


def endless() -> Response:
    """50 MiB."""

    async def chunks() -> Any:
        for _ in range(50 * 16):
            yield b"x" * (1 << 16)

    return StreamingResponse(chunks())


class Script:
    """What the server does with the next requests; after them it answers as documented.

    Attributes:
        requests: What it was asked.
        faults: Answers for the next requests; the last one for ever if ``stuck``.
        holds: Holds every answer back until it is set, if it is an event.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.requests: list[Asked] = []
        self.faults: list[Fault] = []
        self.stuck = False
        self.holds: threading.Event | None = None

    def say(self, *faults: Fault, stuck: bool = False) -> None:
        self.faults = list(faults)
        self.stuck = stuck

    async def handle(self, request: Request) -> Response:
        if request.method == "HEAD":
            return Response(status_code=404)
        asked = await Asked.of(request)
        self.requests.append(asked)
        if self.holds is not None:
            await asyncio.to_thread(self.holds.wait)
        if self.faults:
            fault = self.faults[0] if self.stuck else self.faults.pop(0)
            return fault()
        if self.engine.key is not None and self.engine.key(asked) != KEY:
            return Response(json.dumps({"message": "Unauthorized."}), 401)
        return Response(json.dumps(self.engine.answer(asked)), media_type="application/json")


class Engines:
    """All scripts behind one server: an engine's base URL ends with its name."""

    def __init__(self) -> None:
        self.scripts: dict[str, Script] = {}

    async def handle(self, request: Request) -> Response:
        return await self.scripts[request.path_params["engine"]].handle(request)

    def routes(self) -> list[Route]:
        return [Route("/{engine}/{path:path}", self.handle, methods=["GET", "POST"])]
