"""The READMEs: their Python runs, and the Chinese one keeps to the English one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.openai.server import ChatServer, agent_script

ROOT = Path(__file__).parents[2]
ENGLISH = (ROOT / "README.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")
ASK = ROOT / "docs" / "examples" / "ask.py"


def code(text: str) -> list[tuple[str, str]]:
    """The code blocks: language and content without comments, which are translated."""
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(language, re.sub(r" *#.*", "", content)) for language, content in blocks]


def targets(text: str) -> list[str]:
    """Where the links and pictures lead, the two READMEs themselves left out."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(([^)]+)\)|(?:src|srcset)=\"([^\"]+)\"", prose)
    found = [first or second for first, second in links]
    return [link for link in found if not link.startswith("README")]


def test_the_python_of_the_readme_asks_an_agent_about_an_image(
    tmp_path: Path,
) -> None:
    photo = tmp_path / "photo.jpg"
    Image.new("RGB", (64, 48), (255, 0, 0)).save(photo, quality=100, subsampling=0)

    with ChatServer(agent_script({"sign": "STOP, on {stdout}"})) as server:
        answer = subprocess.run(
            [sys.executable, str(ASK)],
            cwd=tmp_path,
            env=os.environ | {"DEEPEYES_OPENAI_URL": server.url},
            capture_output=True,
            text=True,
            timeout=120,
        )

    assert answer.stdout == "STOP, on (254, 0, 0) answer {'python': 1}\n", answer.stderr
    first, second = server.requests
    assert first["messages"][1]["content"][0]["type"] == "image_url"
    assert second["messages"][3]["content"][1]["type"] == "image_url", "the figure comes back"


def test_the_readme_shows_the_program_that_is_tested() -> None:
    shown = next(content for language, content in code(ENGLISH) if language == "python")
    program = re.sub(r" *#.*", "", ASK.read_text()).partition('"""\n\n')[2]
    assert shown == program


def test_the_readmes_have_the_same_parts_commands_and_links() -> None:
    levels = [re.findall(r"^(#+) ", text, re.MULTILINE) for text in (ENGLISH, CHINESE)]
    assert levels[0] == levels[1]
    assert code(ENGLISH) == code(CHINESE)
    assert targets(ENGLISH) == targets(CHINESE)
    numbers = [sorted(re.findall(r"\d+(?:\.\d+)? %", text)) for text in (ENGLISH, CHINESE)]
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize("text", [ENGLISH, CHINESE], ids=["English", "Chinese"])
def test_what_a_readme_links_to_is_there(text: str) -> None:
    local = [link.partition("#")[0] for link in targets(text) if "://" not in link]
    assert [link for link in local if link and not (ROOT / link).exists()] == []
    assert {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} <= set(local)
