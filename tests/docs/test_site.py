"""The documentation as a site: built as `make docs` builds it, and read without a network."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect, sync_playwright
from pydantic import BaseModel

from deepeyes_plugins.settings import AgentSettings

ROOT = Path(__file__).parents[2]


def build(config: Path, output: Path) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "mkdocs", "build", "--strict", "-f", config)
    return subprocess.run(
        [*map(str, command), "--site-dir", str(output)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = build(ROOT / "mkdocs.yml", folder)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])


def test_a_broken_link_or_anchor_fails_the_build(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    page = "# Page\n\n[gone](gone.md) [here](#nowhere)\n"
    (tmp_path / "docs" / "index.md").write_text(page)
    config = f"INHERIT: {ROOT / 'mkdocs.yml'}\ndocs_dir: docs\nnav: [index.md]\n"
    config += "plugins: []\nhooks: []\ntheme: {name: mkdocs}\n"
    (tmp_path / "mkdocs.yml").write_text(config)

    built = build(tmp_path / "mkdocs.yml", tmp_path / "site")

    assert built.returncode != 0
    assert "'gone.md'" in built.stderr
    assert "#nowhere" in built.stderr


def keys(model: type[BaseModel]) -> set[str]:
    """Every key of a settings model that holds no section, its sections' included."""
    found = set()
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found |= keys(inner)
        else:
            found.add(field.alias or name)
    return found


def test_the_settings_page_has_every_key(site: Path) -> None:
    page = (site / "settings.html").read_text()
    found = keys(AgentSettings) - {"endpoints", "budgets"}  # Several sections: each has a heading.
    assert {key for key in found if f"<code>{key}</code>" not in page} == set()
    assert "<code>--allow-unisolated</code>" in page, "an option of `deepeyes sandbox serve`"
    assert "<code>SERPER_API_KEY</code>" in page, "an option of a search provider"


def test_the_api_page_shows_the_docstrings_without_markup_of_sphinx(site: Path) -> None:
    page = (site / "api.html").read_text()
    assert "Something the agent can do, for the length of one trajectory." in page
    assert ":class:" not in page
    assert ":meth:" not in page


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_reader_without_a_network_gets_whole_pages_and_the_search(
    site: Path, browser: Browser, scheme: str
) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
    requests: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))

    page.goto((site / "index.html").as_uri())
    expect(page.locator(f'img[src*="architecture-{scheme}.svg"]')).to_be_visible()
    page.get_by_placeholder("Search").fill("tool-use collapse")
    expect(page.locator(".md-search-result__item").first).to_be_visible()

    local = (site.as_uri(), "data:", "blob:", "about:")
    assert [url for url in requests if not url.startswith(local)] == []
    assert errors == []
    page.close()


def test_pages_with_tables_and_code_are_not_wider_than_a_phone(
    site: Path, browser: Browser
) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 800})
    wide = []
    for name in ("index", "install", "settings", "api", "extend-tool", "performance"):
        page.goto((site / f"{name}.html").as_uri())
        if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            wide.append(name)
    assert wide == []
    page.close()
