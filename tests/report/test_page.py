"""The page in a real browser: headless Chromium, opened from the disk as people do."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from deepeyes_plugins.rollout.log import TrajectoryLog
from deepeyes_plugins.rollout.trajectory import EndReason
from eval_plugins.report.building import build, read_run
from eval_plugins.report.writing import segments, write
from tests.report.runs import RunFolder, choice, play

HOSTILE = (
    "</script><script>document.title = 'owned'</script>"
    "<img src=x onerror=\"document.title = 'owned'\"><b>bold</b> {{ 7 * 7 }} </style>"
)
SAMPLES = 230
"""More than one data file and more than one screen of the list."""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    for name, right in (("old", 100), ("new", 150)):
        work, log = RunFolder(root / name), TrajectoryLog(root / name / "trajectories")
        rows = [choice(index, right=index < right) for index in range(SAMPLES)]
        rows[7] |= {"question": f"Is this text? {HOSTILE}", "prediction": HOSTILE, "hit": 0}
        work.multiple_choice("VStarBench", rows)
        searched = [choice(index, right=True, category=HOSTILE) for index in range(3)]
        work.multiple_choice("TreeBench", [*searched, choice(3, right=False, category="plain")])
        for row in rows:
            hostile = row["index"] == 7
            play(
                log,
                "VStarBench",
                row,
                code=f"print({HOSTILE!r})" if hostile else "image_1.crop((0, 0, 9, 9))",
                printed=HOSTILE if hostile else "",
                thought=HOSTILE if hostile else "Look closer.",
                tool="python" if row["index"] % 2 else None,
            )
        play(log, "TreeBench", searched[0], tool="search")
        play(log, "TreeBench", searched[1], tool="search", end=EndReason.TURNS)
    contents = build(read_run([root / "new"]), read_run([root / "old"]), title=HOSTILE)
    write(contents, read_run([root / "new"]), root / "report")
    return root / "report"


@pytest.fixture(scope="module")
def browser_page() -> Iterator[Page]:
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(10_000)
        yield page
        browser.close()


@pytest.fixture
def page(browser_page: Page, report: Path) -> Iterator[Page]:
    errors: list[str] = []
    browser_page.on("pageerror", lambda error: errors.append(str(error)))
    browser_page.on(
        "console", lambda message: errors.append(message.text) if message.type == "error" else None
    )
    browser_page.goto("about:blank")
    browser_page.goto((report / "index.html").as_uri())
    yield browser_page
    assert errors == []


def test_samples_are_filtered_and_opened(page: Page) -> None:
    count, rows = page.locator("#count"), page.locator("#list .row")
    expect(count).to_have_text("234 of 234")
    assert rows.count() < SAMPLES  # The list fills as one scrolls.

    page.select_option("#benchmark", label="V*")
    page.select_option("#verdict", "wrong")
    expect(count).to_have_text("81 of 234")
    page.select_option("#tool", "python")
    expect(count).to_have_text("41 of 234")
    page.fill("#words", "shelf 151?")
    expect(count).to_have_text("1 of 234")

    rows.first.click()
    detail = page.locator("#detail")
    expect(detail.locator("h3")).to_have_text("V* · 151")
    expect(detail.locator("pre.code")).to_have_text("image_1.crop((0, 0, 9, 9))")
    expect(detail.locator(".answer")).to_have_text("B")
    expect(detail.locator("dd.verdict")).to_have_text("wrong")
    expect(detail.locator("img")).to_have_count(2)
    shown = "images => images.every(image => image.complete && image.naturalWidth > 0)"
    page.wait_for_function(f"({shown})([...document.querySelectorAll('#detail img')])")


def test_a_link_leads_to_the_same_sample_again(page: Page) -> None:
    page.select_option("#end", "turns")
    page.locator("#list .row").first.click()
    expect(page.locator("#detail h3")).to_have_text("TreeBench · 1")
    address = page.url
    page.goto("about:blank")
    page.goto(address)
    expect(page.locator("#count")).to_have_text("1 of 234")
    expect(page.locator("#detail h3")).to_have_text("TreeBench · 1")


def test_arrow_keys_go_through_the_list(page: Page) -> None:
    page.locator("#list").focus()
    for expected in ("V* · 0", "V* · 1"):
        page.keyboard.press("ArrowDown")
        expect(page.locator("#detail h3")).to_have_text(expected)


def test_flips_lead_to_their_samples(page: Page) -> None:
    page.locator('[data-flip="gained"]').first.click()
    expect(page.locator("#count")).to_have_text("50 of 234")
    page.locator("#list .row").first.click()
    expect(page.locator("#detail h3")).to_have_text("V* · 100")


def test_hostile_text_stays_text(page: Page) -> None:
    assert page.title() == f"{HOSTILE} · DeepEyesV2"
    expect(page.locator("h1")).to_have_text(HOSTILE)
    page.fill("#words", "is this text")
    page.locator("#list .row").first.click()
    detail = page.locator("#detail")
    expect(detail.locator(".answer")).to_have_text(HOSTILE)
    expect(detail.locator(".think").first).to_have_text(HOSTILE)
    expect(detail.locator(".turn pre:not(.code)")).to_have_text(HOSTILE)
    expect(detail.locator("script, b, [onerror]")).to_have_count(0)
    expect(page.locator("body script")).to_have_count(2)  # The data and ours.
    assert page.title() == f"{HOSTILE} · DeepEyesV2"


def test_the_policy_stops_what_gets_in_all_the_same(browser_page: Page, report: Path) -> None:
    browser_page.goto("about:blank")
    browser_page.goto((report / "index.html").as_uri())
    ran = browser_page.evaluate(
        """() => {
            const box = document.createElement("div");
            document.body.append(box);
            box.innerHTML = `<a href="#" onclick="window.owned = true">x</a>`;
            box.firstChild.click();
            box.remove();
            return Boolean(window.owned);
        }"""
    )
    assert ran is False


def test_a_narrow_page_does_not_scroll_sideways(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 700})
    page.locator("#list .row").first.click()
    expect(page.locator("#detail h3")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    labels = page.locator("#scores ~ .plot .axis text:visible")
    boxes = [label.bounding_box() for label in labels.all()]
    edges = [(box["x"], box["x"] + box["width"]) for box in boxes if box]
    assert all(end < start for (_, end), (start, _) in pairwise(edges))  # None over another.
    page.set_viewport_size({"width": 1280, "height": 900})


def test_a_report_replaces_an_earlier_one_but_nothing_else(report: Path, tmp_path: Path) -> None:
    run = read_run([report.parent / "new"])
    (tmp_path / "images").mkdir()
    with pytest.raises(FileExistsError, match="choose another --output"):
        write(build(run), run, tmp_path)
    (tmp_path / "images").rmdir()
    for side in (1280, 0):
        write(build(run), run, tmp_path, image_side=side)
    assert not list((tmp_path / "images").iterdir())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "<think>a</think>\n<code>\n```python\nx = 1\n```\n</code>",
            [("think", "a"), ("code", "x = 1")],
        ),
        ("<think>cut off", [("think", "cut off")]),
        ("plain <answer>4</answer>", [("text", "plain"), ("answer", "4")]),
    ],
)
def test_a_turn_is_divided_at_its_tags(text: str, expected: list[tuple[str, str]]) -> None:
    assert segments(text) == expected
