"""``deepeyes eval prepare``, ``shuffle`` and ``rescore``: benchmark tables and rescoring."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from deepeyes_plugins.cli.console import echo
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
    typer.Option(
        metavar="DIR", help="Folder of VLMEvalKit's tables. [default: $LMUData, or ~/LMUData]"
    ),
]


class Benchmark(StrEnum):
    """Benchmarks that VLMEvalKit lacks."""

    FVQA_TEST = "fvqa-test"
    INFOSEEK = "infoseek"
    MMSEARCH = "mmsearch"


def prepare(
    benchmark: Annotated[Benchmark, typer.Argument(help="The benchmark.")],
    source: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="Published file: fvqa_test.parquet; infoseek_val.jsonl or "
            "mmsearch_r1_infoseek_sub_2k.parquet; end2end.parquet.",
        ),
    ],
    output: Folder = None,
    images: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="infoseek_val.jsonl: folder of OVEN's images."),
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="infoseek: number of questions to draw at random."),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="infoseek: random seed of --sample.")] = 0,
    only_with_image: Annotated[
        bool,
        typer.Option("--only-with-image", help="mmsearch: skip questions without an image."),
    ] = False,
) -> None:
    """Write VLMEvalKit's table of FVQA-test, InfoSeek or MMSearch from the published file."""
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
    echo(f"{table}: {rows} questions. Evaluate it with --data {name}")


def shuffle(
    benchmarks: Annotated[
        list[str],
        typer.Argument(metavar="NAME", help="Multiple-choice benchmarks, for instance VStarBench."),
    ],
    seeds: Annotated[
        str, typer.Option(metavar="SEEDS", help="Comma-separated seeds, one pass each.")
    ] = "0,1,2",
    output: Folder = None,
) -> None:
    """Write copies of multiple-choice benchmarks with shuffled options."""
    folder = output or table_root()
    if not all(seed.strip().isdecimal() for seed in seeds.split(",")):
        complain(f"--seeds {seeds!r}: give whole numbers, separated by commas")
    try:
        for name in benchmarks:
            for number, seed in enumerate(map(int, seeds.split(","))):
                done = shuffle_table(name, seed, folder)
                if number == 0:
                    echo(f"{name}: {done.rows} rows; right: {_letters(done.before)}")
                echo(f"{done.path}: right: {_letters(done.after)}; {done.unchanged} rows unchanged")
    except (OSError, ValueError) as error:
        complain(str(error))


def rescore(
    results: Annotated[
        Path, typer.Argument(metavar="DIR", help="The --work-dir of an evaluation.")
    ],
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="agent.yaml with the judge. [default: $DEEPEYES_AGENT_CONFIG]"
        ),
    ] = None,
    judge: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Model of the judge. [default: agent.yaml]")
    ] = None,
    judge_base_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Base URL of the judge. [default: agent.yaml]"),
    ] = None,
) -> None:
    """Rescore finished results with the scoring of the published results.

    As in the authors' code, a judge is asked about multiple-choice answers without an option and
    ChartQA answers that fail the relaxed match. VLMEvalKit's scores stay unchanged. The exit
    status is 1 if samples have no verdict.
    """
    try:
        from eval_plugins.vlmevalkit.published import prediction_files
        from eval_plugins.vlmevalkit.published import rescore as score_again
    except ImportError as error:
        complain(f"VLMEvalKit cannot be imported: {error}; `deepeyes doctor` says what to install")
    left = 0
    try:
        if not prediction_files(results):
            raise SourceError(f"{results} has no predictions of benchmarks with this scoring")
        for done in score_again(results, config, judge, judge_base_url):
            left += done.scoring.judge_failures
            echo(
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
