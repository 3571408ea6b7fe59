"""``deepeyes eval prepare``, ``shuffle`` and ``rescore``: data sets, and how they are scored."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from deepeyes_plugins.cli.errors import complain
from eval_plugins.vlmevalkit.benchmarks import (
    SourceError,
    read_fvqa,
    read_infoseek,
    read_mmsearch,
    table_root,
    write_table,
)
from eval_plugins.vlmevalkit.shuffling import shuffle_table

Folder = Annotated[
    Path | None,
    typer.Option(help="Folder of VLMEvalKit's tables. [default: $LMUData, or ~/LMUData]"),
]


class Benchmark(StrEnum):
    """The benchmarks that VLMEvalKit does not have."""

    FVQA_TEST = "fvqa-test"
    INFOSEEK = "infoseek"
    MMSEARCH = "mmsearch"


def prepare(
    benchmark: Annotated[Benchmark, typer.Argument(help="Which one.")],
    source: Annotated[
        Path,
        typer.Argument(
            help="Its published file: fvqa_test.parquet; infoseek_val.jsonl or "
            "mmsearch_r1_infoseek_sub_2k.parquet; end2end.parquet."
        ),
    ],
    output: Folder = None,
    images: Annotated[
        Path | None, typer.Option(help="infoseek, jsonl: the folder with OVEN's images.")
    ] = None,
    sample: Annotated[
        int | None, typer.Option(min=1, help="infoseek: draw that many questions at random.")
    ] = None,
    seed: Annotated[int, typer.Option(help="infoseek: decides which.")] = 0,
    only_with_image: Annotated[
        bool,
        typer.Option("--only-with-image", help="mmsearch: leave out the questions without image."),
    ] = False,
) -> None:
    """Make VLMEvalKit's table of FVQA-test, InfoSeek or MMSearch from the published file."""
    match benchmark:
        case Benchmark.FVQA_TEST:
            name, questions = "FVQA-test", read_fvqa(source)
        case Benchmark.INFOSEEK:
            name, questions = "InfoSeek", read_infoseek(source, images, sample, seed)
        case Benchmark.MMSEARCH:
            name, questions = "MMSearch", read_mmsearch(source, only_with_image)
    try:
        table, rows = write_table(name, questions, output or table_root())
    except (OSError, SourceError) as error:
        complain(str(error))
    typer.echo(f"{table}: {rows} questions. Evaluate it with --data {name}")


def shuffle(
    benchmarks: Annotated[
        list[str], typer.Argument(help="Multiple-choice tables, for instance VStarBench.")
    ],
    seeds: Annotated[
        str, typer.Option(help="Seeds, separated by commas: one pass for each.")
    ] = "0,1,2",
    output: Folder = None,
) -> None:
    """Make passes of multiple-choice benchmarks with their options in another order."""
    folder = output or table_root()
    if not all(seed.strip().isdecimal() for seed in seeds.split(",")):
        complain(f"--seeds {seeds!r}: give whole numbers, separated by commas")
    try:
        for name in benchmarks:
            for number, seed in enumerate(map(int, seeds.split(","))):
                done = shuffle_table(name, seed, folder)
                if number == 0:
                    typer.echo(f"{name}: {done.rows} rows; right: {_letters(done.before)}")
                typer.echo(
                    f"{done.path}: right: {_letters(done.after)}; {done.kept} rows kept their order"
                )
    except (OSError, ValueError) as error:
        complain(str(error))


def rescore(
    results: Annotated[Path, typer.Argument(help="The --work-dir of an evaluation.")],
    config: Annotated[
        Path | None,
        typer.Option(help="agent.yaml with the judge. [default: $DEEPEYES_AGENT_CONFIG]"),
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="Model of the judge, instead of agent.yaml's.")
    ] = None,
    judge_base_url: Annotated[
        str | None, typer.Option(help="Base URL of the judge's server, likewise.")
    ] = None,
) -> None:
    """Score finished results as the published figures were: with the authors' judge fallback.

    Multiple choice in which no option is found, and ChartQA after its relaxed match fails. What
    VLMEvalKit wrote stays; the exit code is 1 if samples are left that could not be scored now.
    """
    try:
        from eval_plugins.vlmevalkit.published import prediction_files
        from eval_plugins.vlmevalkit.published import rescore as score_again
    except ImportError as error:
        complain(f"VLMEvalKit cannot be imported: {error}; `deepeyes doctor` says what to install")
    left = 0
    try:
        if not prediction_files(results):
            raise SourceError(f"{results} holds no predictions that this scoring is defined for")
        for done in score_again(results, config, judge, judge_base_url):
            left += done.scoring.judge_failures
            typer.echo(
                f"{done.path.relative_to(results)}: {done.overall:.2f} % as published; decided by "
                f"the judge: {done.scoring.fallback_used}; not scored: {done.not_scored}, of them "
                f"without a verdict: {done.scoring.judge_failures}"
            )
    except (OSError, ValueError) as error:
        complain(str(error))
    if left:
        raise typer.Exit(1)


def _letters(counts: Counter[str]) -> str:
    return ", ".join(f"{letter} {count}" for letter, count in sorted(counts.items()))
