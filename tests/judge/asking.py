"""One of several processes that judge the same: ``python -m tests.judge.asking URL FOLDER``."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict

from deepeyes_plugins.judge.contracts import Comparison
from deepeyes_plugins.judge.judge import LLMJudge
from deepeyes_plugins.judge.settings import JudgeSettings


async def main(url: str, folder: str) -> None:
    settings = JudgeSettings(endpoints=[{"url": url, "model": "tiny"}], cache_folder=folder)
    async with LLMJudge(settings) as judge:
        comparison = Comparison("What colour?", "red", "red")
        verdicts = await asyncio.gather(*(judge.compare("answer", comparison) for _ in range(4)))
    print(json.dumps([asdict(verdict) for verdict in verdicts]))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
