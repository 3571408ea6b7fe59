"""Judge calls for groups of sixteen trajectories, against one call for each.

    python benchmarks/judge.py [--groups 64] [--workers 8] [--json]

The real judge client, its cache and a real HTTP server on loopback; the server's verdicts are
instant, so only calls are measured here. Nobody has published which answers the sixteen rollouts of
a question give, so they are drawn from a model of them:

- how likely the policy gives its i-th best answer falls off like a Chinese restaurant process with
  concentration `alpha`. Three kinds of question: settled (alpha 0.3: 1.9 different answers in
  sixteen are expected), open (1.5: 4.2) and lost (6: 8.2, the policy guesses). Their shares are
  those of a run that still learns: GRPO gets nothing from a group that all agrees, and data sets
  are filtered by pass rate.
- wording: an answer is an option or a value ("B", "1984") on most questions, and repeats letter by
  letter; of free text a share is worded anew and shares nothing.
- a share of the trajectories has no answer (cut off, or malformed) and is never judged.

The mixes below span what that leaves open, and each is reported. The goal is asked of the first
three; the last is beyond what its author believes. Calls that rules save before a judge is asked,
and verdicts that are known from earlier steps, come on top. The comparison is with one call for
each answer that there is; the reference implementation asks even where there is none.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from deepeyes_plugins.judge.contracts import Comparison
from deepeyes_plugins.judge.judge import LLMJudge
from deepeyes_plugins.judge.settings import JudgeSettings
from tests.judge.scripts import YES
from tests.openai.server import ChatServer, Reply

GROUP = 16
GOAL = 0.40
"""Share of the calls that is to be saved."""


@dataclass(frozen=True)
class Mix:
    """How answers of a group repeat.

    Attributes:
        settled: Share of questions on which the policy nearly always says the same.
        lost: Share of questions on which it guesses.
        worded: Share of answers that are free text, worded anew each time.
        silent: Share of trajectories without an answer.
    """

    name: str
    settled: float
    lost: float
    worded: float
    silent: float = 0.05


MIXES = (
    Mix("perception: options and short values", settled=0.4, lost=0.1, worded=0.10),
    Mix("reason: numbers and formulas", settled=0.3, lost=0.2, worded=0.20),
    Mix("search: names and free text", settled=0.3, lost=0.2, worded=0.35),
    Mix("pessimist: most guess, half is free text", settled=0.1, lost=0.6, worded=0.50),
)
_CONCENTRATION = {"settled": 0.3, "open": 1.5, "lost": 6.0}


@dataclass(frozen=True)
class Saving:
    """What a mix costs."""

    mix: str
    answers: int
    calls: int
    saved: float
    different_per_group: float


def answers_of(mix: Mix, chance: random.Random) -> Iterator[str]:
    """The answers of one group."""
    kind = chance.choices(
        ["settled", "lost", "open"], [mix.settled, mix.lost, 1 - mix.settled - mix.lost]
    )[0]
    alpha = _CONCENTRATION[kind]
    known: list[int] = []
    for at in range(GROUP):
        is_new = chance.random() < alpha / (alpha + at)
        choice = len(set(known)) if is_new else chance.choice(known)
        known.append(choice)
        if chance.random() < mix.silent:
            continue
        if chance.random() < mix.worded:
            yield f"answer {choice}, in words of its own: {chance.getrandbits(64):x}"
        else:
            yield f"answer {choice}"


async def measure(mix: Mix, groups: int, workers: int) -> Saving:
    """Judge groups whose trajectories arrive at reward workers at random, as verl sends them."""
    chance = random.Random(1)
    with (
        ChatServer(lambda body: Reply(YES)) as server,
        tempfile.TemporaryDirectory() as folder,
    ):
        settings = JudgeSettings(endpoints=[{"url": server.url, "model": "m"}], cache_folder=folder)
        judges = [LLMJudge(settings) for _ in range(workers)]
        answers = 0
        for group in range(groups):
            said = list(answers_of(mix, chance))
            answers += len(said)
            question = f"question {group}"
            await asyncio.gather(
                *(
                    chance.choice(judges).compare("answer", Comparison(question, "truth", answer))
                    for answer in said
                )
            )
        for judge in judges:
            await judge.aclose()
        calls = len(server.requests)
    return Saving(mix.name, answers, calls, 1 - calls / answers, calls / groups)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--groups", type=int, default=64)
    parser.add_argument("--workers", type=int, default=8, help="reward workers; verl has 8")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    savings = [asyncio.run(measure(mix, arguments.groups, arguments.workers)) for mix in MIXES]
    if arguments.json:
        print(json.dumps([asdict(saving) for saving in savings], indent=2))
    else:
        print(f"{arguments.groups} groups of {GROUP}, {arguments.workers} reward workers")
        for saving in savings:
            print(
                f"{saving.mix:<42} {saving.calls:>6,} calls for {saving.answers:>6,} answers: "
                f"{saving.saved:>4.0%} saved ({saving.different_per_group:.1f} calls a group)"
            )
    return 0 if all(saving.saved >= GOAL for saving in savings[:-1]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
