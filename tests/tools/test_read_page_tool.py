"""Reading pages: off unless asked for, within limits, and never from private places."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deepeyes_plugins.environments.hooks import environments
from deepeyes_plugins.extras import install_command
from deepeyes_plugins.protocol.actions import ToolCallAction
from deepeyes_plugins.rollout import Observation, Task
from deepeyes_plugins.search.pages import truncated
from deepeyes_plugins.settings import AgentSettings
from deepeyes_plugins.tools.read_page import ReadPageTool
from deepeyes_plugins.tools.resources import Resources
from tests.serving import LocalServer

PARAGRAPH = "The red panda lives in the mountains and eats bamboo, which is told here at length. "
BODIES = {
    "page": f"""<html><head><title>Red panda</title>
        <meta property="article:published_time" content="2024-05-06"></head>
        <body><nav><a href="/">Home</a> menuword</nav><script>scriptword</script>
        <article><h1>Red panda</h1><p>{PARAGRAPH * 3}</p><p>{PARAGRAPH * 3}</p>
        <p>Literal &lt;|im_start|&gt; and &lt;image&gt; stay text in this paragraph of the page.</p>
        </article><footer>cookies</footer></body></html>""",
    "empty": "<html><body></body></html>",
    "broken": "<html><p" + "<div>" * 2000 + PARAGRAPH,
    "long": "<html><body><article>"
    + "".join(f"<p>{number}: {PARAGRAPH * 4}</p>" for number in range(100))
    + "</article></body></html>",
}
asked: Counter[str] = Counter()


async def page(request: Request) -> Response:
    name = request.path_params["name"]
    asked[name] += 1
    if name == "plain":
        return Response("Käse\n".encode("latin-1"), media_type="text/plain; charset=latin-1")
    if name == "japanese":
        body = f"<html><body><p>{'東京の塔です。' * 40}</p></body></html>"
        body = f'<?xml version="1.0" encoding="utf-8"?>{body}'
        return Response(body.encode("shift_jis"), media_type="text/html; charset=Shift_JIS")
    if name == "odd":
        return Response(BODIES["page"], media_type="text/html; charset=idna")
    if name == "paper":
        return Response(b"%PDF", media_type="application/pdf")
    if name not in BODIES:
        return Response(status_code=404)
    return Response(BODIES[name], media_type="text/html")


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with LocalServer(Route("/{name}", page)) as running:
        yield running


def settings(**pages: Any) -> AgentSettings:
    pages = {"ports": (), "allowed_networks": ["127.0.0.1/32"], **pages}
    return AgentSettings(search={"pages": pages})  # type: ignore[arg-type]


@pytest.fixture
async def resources(request: pytest.FixtureRequest) -> AsyncIterator[Resources]:
    shared = Resources(settings(**getattr(request, "param", {})))
    yield shared
    await shared.aclose()


async def read(resources: Resources, arguments: Mapping[str, Any]) -> Observation:
    tool = ReadPageTool(resources)
    await tool.open(Task("q", ()))
    return await tool.call(arguments)


def text(observation: Observation) -> str:
    return "".join(part for part in observation.parts if isinstance(part, str))


async def test_the_model_reads_the_main_text(resources: Resources, server: LocalServer) -> None:
    observation = await read(resources, {"url": f" {server.root}/page "})
    found = text(observation)
    assert observation.error is None
    assert found.startswith(f"<tool_response>\nRed panda\n{server.root}/page\n2024-05-06\n\n")
    assert PARAGRAPH.strip() in found
    assert "menuword" not in found and "scriptword" not in found
    assert "< |im_start|> and < image>" in found, "control strings are text"


@pytest.mark.parametrize("resources", [{"tokens": 250}], indirect=True)
async def test_a_long_page_is_cut(resources: Resources, server: LocalServer) -> None:
    found = text(await read(resources, {"url": f"{server.root}/long"}))
    assert len(found) < 1300
    assert "more characters]" in found


@pytest.mark.parametrize("letter", ["a", "東"])
def test_the_budget_is_in_tokens_whatever_the_script(letter: str) -> None:
    kept = truncated(f"{letter} " * 5000, 100).partition("\n\n[")[0]
    assert 380 <= len(kept.encode()) <= 400
    assert set(kept) == {letter, " "}, "no character is cut in two"
    assert truncated(letter * 100, 100) == letter * 100


async def test_plain_text_is_read_too(resources: Resources, server: LocalServer) -> None:
    assert "Käse" in text(await read(resources, {"url": f"{server.root}/plain"}))


async def test_the_server_says_how_a_page_is_encoded(
    resources: Resources, server: LocalServer
) -> None:
    assert "東京の塔です。" in text(await read(resources, {"url": f"{server.root}/japanese"}))


async def test_a_character_set_that_is_none_does_no_harm(
    resources: Resources, server: LocalServer
) -> None:
    assert PARAGRAPH.strip() in text(await read(resources, {"url": f"{server.root}/odd"}))


async def test_a_page_is_fetched_once(resources: Resources, server: LocalServer) -> None:
    asked.clear()
    first, second = [await read(resources, {"url": f"{server.root}/page"}) for _ in range(2)]
    assert (first, asked["page"]) == (second, 1)


async def test_a_broken_page_is_read_or_refused(resources: Resources, server: LocalServer) -> None:
    assert (await read(resources, {"url": f"{server.root}/broken"})).infrastructure is False


@pytest.mark.parametrize(
    ("name", "reason"),
    [("empty", "the page has no text"), ("paper", "'application/pdf'"), ("gone", "HTTP 404")],
)
async def test_what_is_no_page_is_explained(
    resources: Resources, server: LocalServer, name: str, reason: str
) -> None:
    observation = await read(resources, {"url": f"{server.root}/{name}"})
    assert observation.error is not None and reason in observation.error
    assert not observation.infrastructure


@pytest.mark.parametrize("url", ["http://localhost:{port}/page", "http://127.0.0.1:{port}/page",
                                 "file:///etc/passwd", "no"])  # fmt: skip
async def test_private_places_are_refused_by_default(server: LocalServer, url: str) -> None:
    shared = Resources(settings(allowed_networks=()))
    observation = await read(shared, {"url": url.format(port=server.port)})
    await shared.aclose()
    assert observation.error is not None and observation.error.startswith("the page is not read:")


@pytest.mark.parametrize("arguments", [{}, {"url": ""}, {"url": 5}, {"url": None}])
async def test_wrong_arguments_are_explained(
    resources: Resources, arguments: Mapping[str, Any]
) -> None:
    assert (await read(resources, arguments)).error == (
        "the argument 'url' must be the address of a page"
    )


async def test_a_missing_library_is_ours_and_the_model_need_not_try_again(
    resources: Resources, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trafilatura", None)
    observation = await read(resources, {"url": f"{server.root}/page"})
    assert "the tool read_page is not configured; answer without it" in str(observation.parts)
    assert observation.infrastructure
    assert observation.error is not None and install_command("search") in observation.error


@pytest.mark.parametrize("wanted", [False, True])
async def test_no_environment_has_it_unless_told(wanted: bool, server: LocalServer) -> None:
    chosen = {"deepeyes_v2": ["read_page"]} if wanted else {"deepeyes_v2": ["search"]}
    base = settings()
    shared = Resources(base.model_copy(update={"tools": chosen}))
    environment = environments()["deepeyes_v2"](shared)
    await environment.open(Task("q", ()))
    step = await environment.step(ToolCallAction("read_page", {"url": f"{server.root}/page"}))
    await environment.close()
    await shared.aclose()
    assert step.observation is not None
    assert (step.observation.error is None) is wanted
