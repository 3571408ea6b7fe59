"""``deepeyes data filter``, ``synthesize`` and ``from-trajectories``."""

from __future__ import annotations

import asyncio
import errno
import json
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
import typer

from deepeyes_plugins.cli.console import Console, echo_json
from deepeyes_plugins.cli.errors import complain
from deepeyes_plugins.cli.progress import progress
from deepeyes_plugins.cli.reward import read_references, score_logs
from deepeyes_plugins.data.contracts import RowError
from deepeyes_plugins.data.findings import DataError
from deepeyes_plugins.data.output import refuse_inputs, whole_file
from deepeyes_plugins.environments.preflight import check_tools
from deepeyes_plugins.errors import SettingsError
from deepeyes_plugins.extras import install_command
from deepeyes_plugins.hosts.openai import OpenAISettings, ServedModel, load_openai_settings
from deepeyes_plugins.hosts.openai.settings import ENVIRONMENT_PREFIX
from deepeyes_plugins.jobs import ServiceLostError
from deepeyes_plugins.plugins import PluginError
from deepeyes_plugins.rewards.offline import (
    Line,
    Place,
    ScoreRecord,
    lines_of,
    log_files,
)
from deepeyes_plugins.rewards.scorer import Scorer, configured_judge
from deepeyes_plugins.rollout.contracts import InfrastructureError
from deepeyes_plugins.rollout.log import FILE_NAME
from deepeyes_plugins.rollout.trajectory import Trajectory
from deepeyes_plugins.selection.filtering import (
    VARIANTS,
    Thresholds,
    common_columns,
    judge_questions,
    write_kept,
)
from deepeyes_plugins.selection.questions import BadRow, places, read_questions, references_of
from deepeyes_plugins.selection.sampling import Sampled, Sampling, Variant
from deepeyes_plugins.selection.sft import Choice, Made, write_rows
from deepeyes_plugins.settings import AgentSettings, load_settings

_DEFAULTS = Thresholds()
_NAMED = 5

Data = Annotated[
    list[Path], typer.Argument(metavar="PATH", help="RL parquet files.", show_default=False)
]
Config = Annotated[
    Path | None,
    typer.Option(metavar="PATH", help="agent.yaml. [default: $DEEPEYES_AGENT_CONFIG]"),
]
Url = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="The model's OpenAI-compatible server.",
        envvar=f"{ENVIRONMENT_PREFIX}URL",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Model, if the server has several.",
        envvar=f"{ENVIRONMENT_PREFIX}MODEL",
    ),
]
DatasetName = Annotated[str, typer.Option(metavar="NAME", help="Name of the data set.")]
Best = Annotated[int, typer.Option(min=1, metavar="N", help="Maximum rows per question.")]
LeastFormat = Annotated[
    float, typer.Option(metavar="X", help="Minimum part `format`: DeepEyesV2 1, DeepEyes V1 0.")
]
Temperature = Annotated[
    float,
    typer.Option(
        metavar="X", min=0, help="Sampling temperature.", envvar=f"{ENVIRONMENT_PREFIX}TEMPERATURE"
    ),
]
Seed = Annotated[
    int, typer.Option(metavar="N", help="Random seed, from which each sample's is derived.")
]
Concurrency = Annotated[
    int, typer.Option(min=1, metavar="N", help="Trajectories played concurrently.")
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the summary as JSON without a progress bar.")
]


def filter_questions(
    data: Data,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="RL parquet file for the selected rows.",
            show_default=False,
        ),
    ],
    samples: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Samples per question, with and without tools."),
    ] = 8,
    most_plain: Annotated[
        float,
        typer.Option(metavar="X", help="Accuracy without tools above which a question is trivial."),
    ] = _DEFAULTS.most_plain,
    least_tools: Annotated[
        float, typer.Option(metavar="X", help="Accuracy with tools below which it is hopeless.")
    ] = _DEFAULTS.least_tools,
    least_gain: Annotated[
        float, typer.Option(metavar="X", help="Minimum gain in accuracy by tools.")
    ] = _DEFAULTS.least_gain,
    url: Url = None,
    model: Model = None,
    temperature: Temperature = 1.0,
    seed: Seed = 0,
    config: Config = None,
    concurrency: Concurrency = 64,
    as_json: AsJson = False,
) -> None:
    """Select the questions that are neither trivial nor hopeless and where tools help.

    Next to the output are a report with the accuracies of each question (.report.jsonl) and the
    trajectories (.work), from which an interrupted run resumes.
    """
    console = Console(stderr=True)
    with _complaints(console):
        agent = load_settings(config)
        report_file = output.with_suffix(".report.jsonl")
        refuse_inputs([output, report_file], data)
        columns = common_columns(data)
        sampling = Sampling(
            agent,
            ServedModel(_server(url, model, temperature)),
            output.with_suffix(".work"),
            VARIANTS,
            samples,
            seed=seed,
            keep_images=False,
            concurrency=concurrency,
        )
        sampled = _sample(sampling, data, agent, console, as_json)
        thresholds = Thresholds(most_plain, least_tools, least_gain)
        judged = judge_questions(sampled.records, samples, thresholds)
        counts: Counter[str] = Counter()
        bad = list(sampled.torn)
        with whole_file(report_file) as partial, partial.open("w", encoding="utf-8") as report:
            for row in write_kept(data, agent.environment, judged, output, columns):
                counts[row["verdict"]] += 1
                if row["verdict"] == "bad":
                    bad.append("{file}, row {row}: {reason}".format(**row))
                report.write(json.dumps(row) + "\n")
        summary = {"verdicts": dict(counts), "torn_lines": len(sampled.torn)}
        _finish(summary, output, bad, sampled.failures, console, as_json)


def synthesize(
    data: Data,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="PATH", help="Folder for the data set.", show_default=False
        ),
    ],
    name: DatasetName = "synthesized",
    samples: Annotated[
        int, typer.Option(min=1, metavar="N", help="Trajectories to play per question.")
    ] = 1,
    best: Best = 1,
    least_format: LeastFormat = 1.0,
    teacher_prompt: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="System prompt of the teacher; rows have that of the data."
        ),
    ] = None,
    url: Url = None,
    model: Model = None,
    temperature: Temperature = 1.0,
    seed: Seed = 0,
    config: Config = None,
    concurrency: Concurrency = 64,
    as_json: AsJson = False,
) -> None:
    """Make SFT rows from correct, well-formed trajectories of a teacher model.

    All trajectories are stored in the folder's `work`, from which an interrupted run resumes.
    """
    console = Console(stderr=True)
    with _complaints(console):
        agent = load_settings(config)
        prompt = _text_of(teacher_prompt) if teacher_prompt else None
        sampling = Sampling(
            agent,
            ServedModel(_server(url, model, temperature)),
            output / "work",
            [Variant("teacher", system_prompt=prompt)],
            samples,
            seed=seed,
            concurrency=concurrency,
        )
        sampled = _sample(sampling, data, agent, console, as_json)
        questions = read_questions(data, agent.environment)
        log = output / "work" / FILE_NAME
        logs = [log] if log.exists() else []
        choice = Choice(best, least_format=least_format)
        made = write_rows(logs, sampled.records, questions, output, name, choice)
        summary = {**_summary(made), "torn_lines": len(sampled.torn)}
        bad: list[str | BadRow] = [*sampled.torn, *made.bad]
        _finish(summary, output, bad, sampled.failures, console, as_json)


def from_trajectories(
    log: Annotated[
        Path,
        typer.Argument(
            metavar="PATH", help="A trajectory log, or a folder with trajectories.jsonl files."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="PATH", help="Folder for the data set.", show_default=False
        ),
    ],
    data: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="RL parquet with the prompts, images and answers that a log of training lacks. "
            "Repeatable.",
        ),
    ] = None,
    results: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="Work folder of VLMEvalKit, whose verdicts replace the rewards. Repeatable.",
        ),
    ] = None,
    split: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Use trajectories of this split (`extra_info.split` of the data) and those "
            "without one, as in an evaluation. Repeatable. [default: train]",
        ),
    ] = None,
    name: DatasetName = "rejection_sampled",
    best: Best = 1,
    least_score: Annotated[float, typer.Option(metavar="X", help="Minimum score.")] = 0.0,
    least_accuracy: Annotated[float, typer.Option(metavar="X", help="Minimum part `acc`.")] = 1.0,
    least_format: LeastFormat = 1.0,
    config: Config = None,
    concurrency: Concurrency = 64,
    as_json: AsJson = False,
) -> None:
    """Make SFT rows from the best trajectories of a training or evaluation log."""
    console = Console(stderr=True)
    with _complaints(console):
        agent = load_settings(config)
        logs = log_files(log)
        data = data or []
        other, torn = _other_splits(logs, split or ["train"])
        left = Counter(f"of split {name!r}" for name in other.values())
        bad: list[str] = []
        failures: list[str] = []
        if results:
            lines = sum(line.key not in other for line in lines_of(logs))
            judged = _judged_elsewhere(results, logs)
            records = [record for record in judged if record.trajectory not in other]
            left["without a verdict"] = lines - len(records) - len(torn)
            left["bad"] = len(torn)
            bad = torn
        else:
            references = read_references(data, skip_bad=True)  # Named below.
            with progress("scoring", console, show=not as_json) as advance:
                outcomes, records = asyncio.run(
                    score_logs(
                        logs,
                        output / "scores.jsonl",
                        agent,
                        references,
                        concurrency=concurrency,
                        leave_out=other,
                        advance=advance,
                    )
                )
            left.update(outcome.kind for outcome in outcomes)
            bad = [f"{one.place}: {one.reason}" for one in outcomes if one.kind == "bad"]
            failures = [str(one.reason) for one in outcomes if one.kind == "failed"]
        choice = Choice(best, least_score, least_accuracy, least_format)
        questions = read_questions(data, agent.environment)
        made = write_rows(
            *(logs, records, questions, output, name, choice),
            left=left,
            allow_empty=bool(failures),
        )
        _finish(_summary(made), output, [*bad, *made.bad], failures, console, as_json)


def _other_splits(logs: Iterable[Path], wanted: Container[str]) -> tuple[dict[str, str], list[str]]:
    """Return other splits by trajectory key, and lines that are not trajectories."""
    other: dict[str, str] = {}
    torn: list[str] = []
    for line in lines_of(logs):
        if (labels := line.labels) is None:
            torn.append(f"{line.place}: not a trajectory, perhaps truncated")
        elif (split := labels.get("split")) and split not in wanted:
            other[line.key] = str(split)
    return other, torn


def _judged_elsewhere(results: Sequence[Path], logs: Sequence[Path]) -> Iterator[ScoreRecord]:
    """Yield VLMEvalKit's verdicts as scores.

    Raises:
        SettingsError: The package that reads them is not installed.
    """
    try:
        from eval_plugins.report.verdicts import judged_trajectories
    except ImportError as error:
        raise SettingsError(f"{error}: {install_command('eval')}") from error
    for judged in judged_trajectories(results, logs):
        trajectory = Trajectory.model_validate_json(judged.line)
        line = Line(Place(judged.log), judged.line.decode(errors="replace").rstrip("\r\n"))
        yield ScoreRecord(
            trajectory=line.key,
            settings="",
            where=str(line.place),
            task_id=trajectory.task_id,
            data_source=trajectory.data_source,
            labels=trajectory.labels,
            score=judged.score,
            parts={"acc": judged.score},
        )


def _sample(
    sampling: Sampling,
    data: Sequence[Path],
    agent: AgentSettings,
    console: Console,
    as_json: bool,
) -> Sampled:
    scorer = Scorer(agent.rewards, configured_judge(agent.judge), agent.plugins)
    scorer.check(references_of(data))
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
        echo_json(summary)
    else:
        Console().print_json(data=summary)
    for kind, found in (("bad", bad), ("failed", failures)):
        for one in found[:_NAMED]:
            console.print(f"{kind}: {one}", highlight=False, markup=False, soft_wrap=True)
        if len(found) > _NAMED:
            console.print(f"… and {len(found) - _NAMED} more")
    if failures:
        console.print(
            f"{len(failures)} failed with an infrastructure error: run the command again."
        )
        raise typer.Exit(1)


def _server(url: str | None, model: str | None, temperature: float) -> OpenAISettings:
    given = {"url": url, "model": model, "temperature": temperature}
    given = {name: value for name, value in given.items() if value is not None}
    return load_openai_settings(values_win=True, **given)


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8: {error}") from error


@contextmanager
def _complaints(console: Console) -> Iterator[None]:
    """Turn errors into a message and an exit code; finished work is on disk by then."""
    kept = "The same command resumes from the finished trajectories."
    try:
        yield
    except KeyboardInterrupt:
        console.print(f"Interrupted. {kept}")
        raise typer.Exit(130) from None
    except (InfrastructureError, ServiceLostError) as error:
        complain(f"{error}\n{kept}")
    except (OSError, DataError, RowError, SettingsError, PluginError, pa.ArrowException) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG)
        hint = f"\n{kept}" if full else ""
        complain(f"{error}{hint}")
