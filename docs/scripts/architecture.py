"""Draw docs/images/architecture-*.svg: `python docs/scripts/architecture.py`."""

from __future__ import annotations

import argparse
from pathlib import Path

from svg import Drawing, Theme, write

IMAGES = Path(__file__).parents[1] / "images"

HOSTS = (
    ("LLaMA-Factory", "cold-start SFT", "formatter, chat templates"),
    ("verl", "RL (GRPO)", "data set, agent loop, reward"),
    ("VLMEvalKit", "evaluation", "model adapter, data sets"),
    ("Python", "your program", "any OpenAI-compatible server"),
)
CORE = (
    ("Task", "question, images,", "reference answer"),
    ("rollout", "the one loop: policy", "and environment in turns"),
    ("Trajectory", "turns, tool calls,", "observations, answer"),
    ("Reward", "a score made of", "named parts"),
)
SERVICES = (
    ("Code sandbox", "isolated Jupyter-style sessions,", "snapshots, one server per node"),
    ("Search", "text and image providers,", "cache, quotas, local index"),
    ("Judge", "rules, math-verify, or an LLM", "with cached verdicts"),
)


def draw(theme: Theme) -> Drawing:
    drawing = Drawing(theme, 960, "Three frameworks drive one agent core; plugins extend it")
    drawing.text(20, 26, "Upstream packages, unmodified", colour=theme.soft, bold=True)
    for number, (name, stage, what) in enumerate(HOSTS):
        x = 20 + number * 235
        drawing.box(x, 38, 215, 78)
        drawing.text(x + 14, 61, name, size=15, bold=True)
        drawing.text(x + 14, 81, stage, colour=theme.accent)
        drawing.text(x + 14, 101, what, size=11, colour=theme.soft)
        drawing.arrow((x + 107, 116), (x + 107, 148))

    drawing.box(20, 150, 920, 150, fill=theme.panel, stroke=theme.accent)
    drawing.text(34, 174, "Agent core", size=15, colour=theme.accent, bold=True)
    drawing.text(136, 174, "asyncio Python, no framework; the same in training and evaluation")
    for number, (name, *lines) in enumerate(CORE):
        x = 36 + number * 229
        drawing.box(x, 190, 200, 92)
        drawing.text(x + 14, 216, name, size=15, bold=True)
        for row, line in enumerate(lines):
            drawing.text(x + 14, 240 + 20 * row, line, colour=theme.soft)
        if number:
            drawing.arrow((x - 27, 236), (x - 3, 236))

    for number, (name, *lines) in enumerate(SERVICES):
        x = 20 + number * 235
        drawing.arrow((x + 107, 302), (x + 107, 334))
        drawing.box(x, 336, 215, 92)
        drawing.text(x + 14, 361, name, size=15, bold=True)
        for row, line in enumerate(lines):
            drawing.text(x + 14, 384 + 18 * row, line, size=12, colour=theme.soft)

    x = 20 + 3 * 235
    drawing.arrow((x + 107, 334), (x + 107, 302))
    drawing.box(x, 336, 215, 92, stroke=theme.accent)
    drawing.text(x + 14, 361, "Your plugin", size=15, colour=theme.accent, bold=True)
    for row, line in enumerate(("tools, environments, rewards,", "formatters, search providers")):
        drawing.text(x + 14, 384 + 18 * row, line, size=12, colour=theme.soft)
    drawing.height = 440
    return drawing


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=IMAGES)
    write(draw, parser.parse_args().output, "architecture")
