"""Playing without tools: what is resumed, what is chosen, and how progress is told."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepeyes_plugins.data.findings import DataError
from deepeyes_plugins.data.output import one_at_a_time
from deepeyes_plugins.hosts.openai import OpenAISettings, ServedModel
from deepeyes_plugins.jobs import Advance
from deepeyes_plugins.quickstart.datasets import write_rl
from deepeyes_plugins.quickstart.task import split_examples
from deepeyes_plugins.rewards.offline import ScoreRecord
from deepeyes_plugins.rollout.log import FILE_NAME
from deepeyes_plugins.selection.filtering import Thresholds, judge_questions
from deepeyes_plugins.selection.questions import read_questions
from deepeyes_plugins.selection.sampling import SCORES, Sampled, Sampling, Variant
from deepeyes_plugins.selection.sft import Choice, Made, write_rows
from deepeyes_plugins.settings import AgentSettings
from tests.openai.server import Body, ChatServer, Reply

PLAIN = Variant("plain", environment="none")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    path = tmp_path_factory.mktemp("data") / "train.parquet"
    write_rl(list(split_examples("train", 2)), path, "train")
    return pq.read_table(path)


@dataclass
class Bench:
    """Plays the questions of a file in a folder."""

    folder: Path
    server: ChatServer
    data: Path

    async def play(
        self,
        agent: dict[str, Any] | None = None,
        openai: dict[str, Any] | None = None,
        advance: Advance | None = None,
        **options: Any,
    ) -> tuple[Sampled, list[tuple[int, int]]]:
        told: list[tuple[int, int]] = []
        sampling = Sampling(
            AgentSettings(**(agent or {})),
            ServedModel(OpenAISettings(url=self.server.url, **(openai or {}))),
            self.folder / "work",
            [PLAIN],
            **{"samples": 1, **options},
        )
        total = pq.read_metadata(self.data).num_rows
        questions = partial(read_questions, [self.data], "deepeyes_v2")
        sampled = await sampling.run(questions, total, advance or (lambda *at: told.append(at)))
        assert not sampled.failures
        return sampled, told

    def write(self, records: Sequence[ScoreRecord], choice: Choice) -> Made:
        log = self.folder / "work" / FILE_NAME
        questions = read_questions([self.data], "deepeyes_v2")
        return write_rows([log], records, questions, self.folder, "made", choice)


def bench(tmp_path: Path, server: ChatServer, rows: pa.Table) -> Bench:
    data = tmp_path / "data.parquet"
    pq.write_table(rows, data)
    return Bench(tmp_path, server, data)


def answering(text: str = "<think>So.</think><answer>red</answer>") -> ChatServer:
    return ChatServer(lambda body: Reply(text))


@pytest.mark.parametrize(
    ("agent", "openai"),
    [
        ({"sandbox": {"cell_timeout": 7}}, {}),
        ({"search": {"count": 3}}, {}),
        ({"environment": "none"}, {}),
        ({}, {"send_stop": False}),
        ({}, {"temperature": 0.5}),
    ],
)
async def test_other_settings_are_played_anew(
    tmp_path: Path, rows: pa.Table, agent: dict[str, Any], openai: dict[str, Any]
) -> None:
    with answering() as server:
        lab = bench(tmp_path, server, rows)
        await lab.play()
        assert len(await _seeds(lab, agent, openai)) == 2
        assert len(server.requests) == 4


async def _seeds(lab: Bench, agent: dict[str, Any], openai: dict[str, Any]) -> set[Any]:
    sampled, _ = await lab.play(agent, openai)
    return {(record.labels["question"], record.labels["seed"]) for record in sampled.records}


async def test_where_servers_stand_and_more_samples_leave_what_was_played(
    tmp_path: Path, rows: pa.Table
) -> None:
    with answering() as server:
        lab = bench(tmp_path, server, rows)
        await lab.play()
        await lab.play({"sandbox": {"url": "http://elsewhere:1", "patience": 1.0}})
        assert len(server.requests) == 2
        more, _ = await lab.play(samples=2)
        assert (len(more.records), len(server.requests)) == (4, 4)
        fewer, told = await lab.play(samples=1)
        assert (len(fewer.records), told[-1]) == (2, (2, 2))
        assert len(server.requests) == 4
    seeds = [body["seed"] for body in server.requests]
    assert len(set(seeds)) == 4


async def test_a_line_that_a_killed_run_left_is_named_and_its_question_played_again(
    tmp_path: Path, rows: pa.Table
) -> None:
    log = tmp_path / "work" / FILE_NAME
    with answering() as server:
        lab = bench(tmp_path, server, rows)
        await lab.play()
        (tmp_path / "work" / SCORES).unlink()
        first, second = log.read_text().splitlines()
        log.write_text(f"{first}\n{second[: len(second) // 2]}")
        sampled, _ = await lab.play()
        assert len(server.requests) == 3
    assert sampled.torn == [f"{log}:2: not a trajectory, perhaps truncated"]
    # The number of a line that was just written is not known.
    assert [record.where for record in sampled.records] == [f"{log}:1", str(log)]


async def test_a_folder_is_for_one_run_at_a_time(tmp_path: Path, rows: pa.Table) -> None:
    with answering() as server, one_at_a_time(tmp_path / "work" / "lock"):
        with pytest.raises(DataError, match=r"another process is writing to .*work"):
            await bench(tmp_path, server, rows).play()
        assert not server.requests


async def test_nothing_is_played_any_more_when_a_run_has_ended(
    tmp_path: Path, rows: pa.Table
) -> None:
    hung, release = threading.Event(), threading.Event()

    def script(body: Body) -> Reply:
        if len(server.requests) == 1:
            hung.set()
            return Reply(until=release)
        assert hung.wait(10)
        return Reply("<think>So.</think><answer>red</answer>")

    before = asyncio.all_tasks()
    with ChatServer(script) as server:
        lab = bench(tmp_path, server, rows)
        with pytest.raises(OSError, match="no more"):
            await lab.play(advance=end_after_one)
        left = asyncio.all_tasks() - before
        release.set()
    assert not left


def end_after_one(done: int, total: int) -> None:
    if done:
        raise OSError("no more")


async def test_bad_and_repeated_rows_are_no_part_of_the_total(
    tmp_path: Path, rows: pa.Table
) -> None:
    spoiled = rows.to_pylist()[0]
    spoiled["reward_model"]["ground_truth"] = ""
    more = pa.Table.from_pylist([spoiled, rows.to_pylist()[0], spoiled], rows.schema)
    with answering() as server:
        lab = bench(tmp_path, server, pa.concat_tables([rows, more]))
        sampled, told = await lab.play()
    assert told[0] == (0, 5)
    assert told[-1] == (2, 2)
    made = lab.write(sampled.records, Choice())
    assert [(bad.row, "ground truth" in bad.reason) for bad in made.bad] == [(3, True), (5, True)]
    report = [json.loads(line) for line in (tmp_path / "made.report.jsonl").open()]
    assert [row.get("verdict") for row in report] == [None, None, "bad", None, "bad"]
    assert sum(row.get("rows", 0) for row in report) == made.rows


async def test_the_best_distinct_trajectories_of_a_question_are_kept(
    tmp_path: Path, rows: pa.Table
) -> None:
    truth = rows.to_pylist()[0]["reward_model"]["ground_truth"]
    thoughts = iter(["One.", "One.", "Two.", "Three.", "Wrong."])

    def script(body: Body) -> Reply:
        thought = next(thoughts)
        answer = "purple" if thought == "Wrong." else truth
        return Reply(f"<think>{thought}</think><answer>{answer}</answer>")

    with ChatServer(script) as server:
        lab = bench(tmp_path, server, rows.slice(0, 1))
        sampled, _ = await lab.play(samples=5, concurrency=1)
    made = lab.write(sampled.records, Choice(best=2))
    assert (made.rows, made.left) == (
        2,
        {
            "not right or not well formed": 1,
            "the same as another one": 1,
            "enough others of the question": 1,
        },
    )
    written = json.loads((tmp_path / "made.json").read_text())
    assert [row["messages"][-1]["content"].count("One.") for row in written] == [1, 0]
    assert lab.write(sampled.records, Choice(best=2, least_format=2)).rows == 0


def test_what_is_in_dataset_info_stays_and_what_is_no_table_is_refused(
    tmp_path: Path, rows: pa.Table
) -> None:
    info = tmp_path / "dataset_info.json"
    info.write_text('{"mine": {"file_name": "mine.json"}}')
    with answering() as server:
        lab = bench(tmp_path, server, rows)
        (tmp_path / "work").mkdir()
        (tmp_path / "work" / FILE_NAME).touch()
        lab.write([], Choice())
        entries = json.loads(info.read_text())
        assert list(entries) == ["mine", "made"]
        assert entries["made"]["formatting"] == "deepeyes"
        info.write_text("[]")
        with pytest.raises(ValueError, match="not a JSON object of data sets"):
            lab.write([], Choice())


@pytest.mark.parametrize(
    ("tools", "plain", "verdict"),
    [
        (1.0, 0.75, "kept"),
        (1.0, 0.8, "trivial"),
        (0.1, 0.0, "hopeless"),
        (0.125, 0.0, "kept"),
        (0.5, 0.4, "no gain"),
        (0.25, 0.5, "no gain"),
    ],
)
def test_a_question_is_judged_by_its_accuracies(tools: float, plain: float, verdict: str) -> None:
    assert Thresholds().verdict(tools, plain) == verdict


def test_a_question_without_all_its_samples_is_not_judged() -> None:
    def record(variant: str) -> ScoreRecord:
        return ScoreRecord(
            trajectory=variant,
            settings="",
            where="",
            task_id="",
            data_source="",
            labels={"question": "q", "variant": variant},
            score=1,
            parts={},
        )

    both = [record("tools"), record("plain")]
    assert judge_questions(both, 2, Thresholds())["q"]["verdict"] == "incomplete"
    assert judge_questions(both, 1, Thresholds())["q"]["verdict"] == "trivial"
