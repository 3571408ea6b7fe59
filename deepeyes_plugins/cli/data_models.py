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
from deepeyes_plugins.data.findings import DataError
from deepeyes_plugins.environments.preflight import check_tools
from deepeyes_plugins.hosts.openai import load_openai_settings
from deepeyes_plugins.jobs import ServiceLostError
from deepeyes_plugins.plugins import PluginError
from deepeyes_plugins.rewards.scoring import Scorer
from deepeyes_plugins.rewards.stored import Line, ScoreRecord, lines_of, log_files, score_log
from deepeyes_plugins.rollout.contracts import InfrastructureError
from deepeyes_plugins.rollout.log import FILE_NAME
from deepeyes_plugins.rollout.trajectory import Trajectory
from deepeyes_plugins.selection.filtering import (
    VARIANTS,
    Thresholds,
    judge_questions,
    write_kept,
)
from deepeyes_plugins.selection.questions import BadRow, places, read_questions, references_of
from deepeyes_plugins.selection.sampling import Sampling, Variant
from deepeyes_plugins.selection.sft import Choice, Made, write_rows
from deepeyes_plugins.settings import AgentSettings, SettingsError, load_settings

_DEFAULTS = Thresholds()
_NAMED = 5

Data = Annotated[list[Path], typer.Argument(help="RL parquet files.", show_default=False)]
Config = Annotated[Path | None, typer.Option(help="agent.yaml. [default: $DEEPEYES_AGENT_CONFIG]")]
Url = Annotated[
    str | None,
    typer.Option(help="The model's OpenAI-compatible server. [default: $DEEPEYES_OPENAI_URL]"),
]
Model = Annotated[str | None, typer.Option(help="Model to ask for, if there are several.")]
Best = Annotated[int, typer.Option(min=1, help="Trajectories to keep per question.")]
LeastFormat = Annotated[
    float, typer.Option(help="Lowest part `format`: DeepEyesV2 1, DeepEyes V1 0.")
]
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
        bad: list[str] = []
        with output.with_suffix(".report.jsonl").open("w", encoding="utf-8") as report:
            for row in write_kept(data, agent.environment, judged, output):
                counts[row["verdict"]] += 1
                if row["verdict"] == "bad":
                    bad.append("{file}, row {row}: {reason}".format(**row))
                report.write(json.dumps(row) + "\n")
        _finish({"verdicts": dict(counts)}, output, bad, failures, console, as_json)


def synthesize(
    data: Data,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the data set.", show_default=False)
    ],
    name: Annotated[str, typer.Option(help="Name of the data set.")] = "synthesized",
    samples: Annotated[int, typer.Option(min=1, help="Trajectories to play per question.")] = 1,
    best: Best = 1,
    least_format: LeastFormat = 1.0,
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
        choice = Choice(best, least_format=least_format)
        made = write_rows(logs, records, questions, output, name, choice)
        _finish(_summary(made), output, made.bad, failures, console, as_json)


def from_trajectories(
    log: Annotated[
        Path, typer.Argument(help="A trajectory log, or a folder: every trajectories.jsonl in it.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the data set.", show_default=False)
    ],
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="RL parquet with the prompts, images and answers that a log of training does not "
            "hold. Repeatable."
        ),
    ] = None,
    results: Annotated[
        list[Path] | None,
        typer.Option(
            help="Work folder of VLMEvalKit, whose verdicts then decide instead of the rewards. "
            "Repeatable."
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the data set.")] = "rejection_sampled",
    best: Best = 1,
    least_score: Annotated[float, typer.Option(help="Lowest score.")] = 0.0,
    least_accuracy: Annotated[float, typer.Option(help="Lowest part `acc`.")] = 1.0,
    least_format: LeastFormat = 1.0,
    config: Config = None,
    concurrency: Concurrency = 64,
    as_json: AsJson = False,
) -> None:
    """Make SFT rows of the best trajectories that a training or an evaluation has logged."""
    console = Console(stderr=True)
    with _complaints(console):
        agent = load_settings(config)
        logs = log_files(log)
        data = data or []
        left: Counter[str] = Counter()
        bad: list[str] = []
        failures: list[str] = []
        if results:
            records = _judged_elsewhere(results, logs)
            left["without a verdict"] = sum(1 for _ in lines_of(logs)) - len(records)
        else:
            references = read_references(data, skip_bad=True)  # Named below.
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
            left.update(outcome.kind for outcome in outcomes)
            bad = [f"{one.line}: {one.reason}" for one in outcomes if one.kind == "bad"]
            failures = [str(one.reason) for one in outcomes if one.kind == "failed"]
        choice = Choice(best, least_score, least_accuracy, least_format)
        questions = read_questions(data, agent.environment)
        made = write_rows(logs, records, questions, output, name, choice)
        made.left += left
        _finish(_summary(made), output, [*bad, *made.bad], failures, console, as_json)


def _judged_elsewhere(results: Sequence[Path], logs: Sequence[Path]) -> list[ScoreRecord]:
    """Return VLMEvalKit's verdicts as scores.

    Raises:
        SettingsError: What reads them is not installed.
    """
    try:
        from eval_plugins.report.verdicts import judged_trajectories
    except ImportError as error:
        raise SettingsError(f"{error}: pip install 'deepeyes-plugins[eval]'") from error
    records = []
    for judged in judged_trajectories(results, logs):
        trajectory = Trajectory.model_validate_json(judged.line)
        line = Line(judged.log, 0, judged.line.decode(errors="replace").rstrip("\n"))
        records.append(
            ScoreRecord(
                trajectory=line.key,
                settings="",
                where=str(judged.log),
                task_id=trajectory.task_id,
                data_source=trajectory.data_source,
                labels=trajectory.labels,
                score=judged.score,
                parts={"acc": judged.score},
            )
        )
    return records


def _sample(
    sampling: Sampling,
    data: Sequence[Path],
    agent: AgentSettings,
    console: Console,
    as_json: bool,
) -> tuple[list[ScoreRecord], list[str]]:
    Scorer(agent).check(references_of(data))
    played = places(data, agent.environment)
    ways = sampling.variants
    check_tools(agent, ((way.environment or own, source) for own, source in played for way in ways))
    total = sum(pq.read_metadata(path).num_rows for path in data)
    questions = partial(read_questions, data, agent.environment)
    with progress("playing", console, show=not as_json) as advance:
        return asyncio.run(sampling.run(questions, total, advance))


def _summary(made: Made) -> dict[str, Any]:
    return {"rows": made.rows, "left_out": dict(made.left), "bad_rows": len(made.bad)}


def _finish(
    summary: dict[str, Any],
    output: Path,
    bad: Sequence[str | BadRow],
    failures: Sequence[str],
    console: Console,
    as_json: bool,
) -> None:
    summary |= {"failed": len(failures), "output": str(output)}
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
    else:
        Console().print_json(data=summary)
    for kind, found in (("bad", bad), ("failed", failures)):
        for one in found[:_NAMED]:
            console.print(f"{kind}: {one}", highlight=False, markup=False, soft_wrap=True)
        if len(found) > _NAMED:
            console.print(f"… and {len(found) - _NAMED} more")
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
    except (OSError, DataError, RowError, SettingsError, PluginError, pa.ArrowException) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG)
        hint = f"\n{kept}" if full else ""
        console.print(f"[red]error:[/] {error}{hint}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
