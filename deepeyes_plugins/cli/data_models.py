"""``deepeyes data filter``, ``synthesize`` and ``from-trajectories``."""

from __future__ import annotations

import asyncio
import errno
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
import typer
from rich.console import Console

from deepeyes_plugins.cli.progress import progress
from deepeyes_plugins.cli.reward import read_references
from deepeyes_plugins.data.contracts import RowError
from deepeyes_plugins.environments.preflight import check_tools
from deepeyes_plugins.hosts.openai import load_openai_settings
from deepeyes_plugins.jobs import ServiceLostError
from deepeyes_plugins.plugins import PluginError
from deepeyes_plugins.rewards.stored import ScoreRecord, log_files, score_log
from deepeyes_plugins.rollout.contracts import InfrastructureError
from deepeyes_plugins.rollout.log import FILE_NAME
from deepeyes_plugins.selection.filtering import (
    VARIANTS,
    Thresholds,
    judge_questions,
    write_kept,
)
from deepeyes_plugins.selection.questions import places, read_questions
from deepeyes_plugins.selection.sampling import Sampling, Variant
from deepeyes_plugins.selection.sft import Choice, write_rows
from deepeyes_plugins.settings import AgentSettings, SettingsError, load_settings

_DEFAULTS = Thresholds()
_NAMED_FAILURES = 5

Data = Annotated[list[Path], typer.Argument(help="RL parquet files.", show_default=False)]
Config = Annotated[Path | None, typer.Option(help="agent.yaml. [default: $DEEPEYES_AGENT_CONFIG]")]
Url = Annotated[
    str | None,
    typer.Option(help="The model's OpenAI-compatible server. [default: $DEEPEYES_OPENAI_URL]"),
]
Model = Annotated[str | None, typer.Option(help="Model to ask for, if there are several.")]
Temperature = Annotated[float, typer.Option(min=0, help="Sampling temperature.")]
Seed = Annotated[int, typer.Option(help="Of the sampling; every sample has its own, made of it.")]
Concurrency = Annotated[
    int, typer.Option(min=1, help="Trajectories that are played at the same time.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the summary as JSON, and no progress.")]


def filter_questions(
    data: Data,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="RL parquet of what is kept.", show_default=False)
    ],
    samples: Annotated[
        int, typer.Option(min=1, help="Samples of a question, with tools and without each.")
    ] = 8,
    most_plain: Annotated[
        float, typer.Option(help="Accuracy without tools above which a question is trivial.")
    ] = _DEFAULTS.most_plain,
    least_tools: Annotated[
        float, typer.Option(help="Accuracy with tools below which it is hopeless.")
    ] = _DEFAULTS.least_tools,
    least_gain: Annotated[
        float, typer.Option(help="Accuracy that tools have to add.")
    ] = _DEFAULTS.least_gain,
    url: Url = None,
    model: Model = None,
    temperature: Temperature = 1.0,
    seed: Seed = 0,
    config: Config = None,
    concurrency: Concurrency = 64,
    as_json: AsJson = False,
) -> None:
    """Keep the questions that a model finds neither trivial nor hopeless, and where tools help.

    Beside the output stand a report with the accuracies of each question (.report.jsonl) and the
    trajectories (.work), from which an interrupted run goes on.
    """
    console = Console(stderr=True)
    with _complaints(console):
        agent = load_settings(config)
        sampling = Sampling(
            agent,
            load_openai_settings(**_given(url=url, model=model, temperature=temperature)),
            output.with_suffix(".work"),
            VARIANTS,
            samples,
            seed=seed,
            keep_images=False,
            concurrency=concurrency,
        )
        records, failures = _sample(sampling, data, agent, console, as_json)
        judged = judge_questions(records, samples, Thresholds(most_plain, least_tools, least_gain))
        counts: Counter[str] = Counter()
        with output.with_suffix(".report.jsonl").open("w", encoding="utf-8") as report:
            for row in write_kept(data, agent.environment, judged, output):
                counts[row["verdict"]] += 1
                report.write(json.dumps(row) + "\n")
        _finish({"verdicts": dict(counts)}, output, failures, console, as_json)


def synthesize(
    data: Data,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the data set.", show_default=False)
    ],
    name: Annotated[str, typer.Option(help="Name of the data set.")] = "synthesized",
    samples: Annotated[int, typer.Option(min=1, help="Trajectories to play per question.")] = 1,
    best: Annotated[int, typer.Option(min=1, help="Trajectories to keep per question.")] = 1,
    teacher_prompt: Annotated[
        Path | None,
        typer.Option(help="System prompt that the teacher sees; the rows keep that of the data."),
    ] = None,
    url: Url = None,
    model: Model = None,
    temperature: Temperature = 1.0,
    seed: Seed = 0,
    config: Config = None,
    concurrency: Concurrency = 64,
    as_json: AsJson = False,
) -> None:
    """Make SFT rows: a teacher plays the questions; what is right and well formed is kept.

    All trajectories stay in the folder's `work`, from which an interrupted run goes on.
    """
    console = Console(stderr=True)
    with _complaints(console):
        agent = load_settings(config)
        prompt = teacher_prompt.read_text(encoding="utf-8") if teacher_prompt else None
        sampling = Sampling(
            agent,
            load_openai_settings(**_given(url=url, model=model, temperature=temperature)),
            output / "work",
            [Variant("teacher", system_prompt=prompt)],
            samples,
            seed=seed,
            concurrency=concurrency,
        )
        records, failures = _sample(sampling, data, agent, console, as_json)
        questions = read_questions(data, agent.environment)
        log = output / "work" / FILE_NAME
        logs = [log] if log.exists() else []
        rows, left = write_rows(logs, records, questions, output, name, Choice(best))
        _finish({"rows": rows, "left_out": dict(left)}, output, failures, console, as_json)


def from_trajectories(
    log: Annotated[
        Path, typer.Argument(help="A trajectory log, or a folder: every trajectories.jsonl in it.")
    ],
    data: Annotated[
        list[Path],
        typer.Option(help="RL parquet with prompts and images. Repeatable.", show_default=False),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the data set.", show_default=False)
    ],
    name: Annotated[str, typer.Option(help="Name of the data set.")] = "rejection_sampled",
    best: Annotated[int, typer.Option(min=1, help="Trajectories to keep per question.")] = 1,
    least_score: Annotated[float, typer.Option(help="Lowest score.")] = 0.0,
    least_accuracy: Annotated[float, typer.Option(help="Lowest part `acc`.")] = 1.0,
    least_format: Annotated[
        float, typer.Option(help="Lowest part `format`: DeepEyesV2 1, DeepEyes V1 0.")
    ] = 1.0,
    config: Config = None,
    concurrency: Concurrency = 64,
    as_json: AsJson = False,
) -> None:
    """Make SFT rows of the best trajectories that a training or an evaluation has logged."""
    console = Console(stderr=True)
    with _complaints(console):
        agent = load_settings(config)
        logs = log_files(log)
        output.mkdir(parents=True, exist_ok=True)
        references = read_references(data)
        with progress("scoring", console, show=not as_json) as advance:
            outcomes, records = asyncio.run(
                score_log(
                    logs,
                    output / "scores.jsonl",
                    agent,
                    references,
                    concurrency=concurrency,
                    advance=advance,
                )
            )
        choice = Choice(best, least_score, least_accuracy, least_format)
        questions = read_questions(data, agent.environment)
        rows, left = write_rows(logs, records, questions, output, name, choice)
        left.update(outcome.kind for outcome in outcomes)
        failures = [str(one.reason) for one in outcomes if one.kind == "failed"]
        _finish({"rows": rows, "left_out": dict(left)}, output, failures, console, as_json)


def _sample(
    sampling: Sampling,
    data: Sequence[Path],
    agent: AgentSettings,
    console: Console,
    as_json: bool,
) -> tuple[list[ScoreRecord], list[str]]:
    played = places(data, agent.environment)
    ways = sampling.variants
    check_tools(agent, ((way.environment or own, source) for own, source in played for way in ways))
    total = sum(pq.read_metadata(path).num_rows for path in data)
    questions = partial(read_questions, data, agent.environment)
    with progress("playing", console, show=not as_json) as advance:
        return asyncio.run(sampling.run(questions, total, advance))


def _finish(
    summary: dict[str, Any], output: Path, failures: list[str], console: Console, as_json: bool
) -> None:
    summary |= {"failed": len(failures), "output": str(output)}
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
    else:
        Console().print_json(data=summary)
    for failure in failures[:_NAMED_FAILURES]:
        console.print(f"failed: {failure}", highlight=False, markup=False, soft_wrap=True)
    if failures:
        console.print(f"{len(failures)} failed because of our side: run the command again.")
        raise typer.Exit(1)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


@contextmanager
def _complaints(console: Console) -> Iterator[None]:
    """Say what is wrong in a line; finished work is on disk by then."""
    kept = "What is finished is kept: the same command goes on from here."
    try:
        yield
    except KeyboardInterrupt:
        console.print(f"Interrupted. {kept}")
        raise typer.Exit(130) from None
    except (InfrastructureError, ServiceLostError) as error:
        console.print(f"[red]error:[/] {error}\n{kept}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    except (OSError, RowError, SettingsError, PluginError, pa.ArrowException) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG)
        hint = f"\n{kept}" if full else ""
        console.print(f"[red]error:[/] {error}{hint}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
