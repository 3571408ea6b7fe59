"""What VLMEvalKit wrote is found and read, whichever build and format it is in."""

from __future__ import annotations

import json
import os
import pickle
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from deepeyes_plugins.rollout.log import TrajectoryLog
from deepeyes_plugins.rollout.trajectory import EndReason
from eval_plugins.report.building import NoResultsError, build, read_run
from eval_plugins.report.contents import Benchmark, Prices, Report
from eval_plugins.report.writing import write
from tests.report.runs import FAILED, MODEL, RunFolder, choice, play


def report_on(*folders: Path) -> Report:
    return build(read_run(folders))


def only(report: Report) -> Benchmark:
    (benchmark,) = report.benchmarks
    return benchmark


def said(report: Report, level: str) -> str:
    return "\n".join(finding.message for finding in report.findings if finding.level == level)


@pytest.mark.parametrize("run", ["", "T20261124_G0123abcd"], ids=["ms-vlmeval", "checkout"])
def test_a_multiple_choice_benchmark(tmp_path: Path, run: str) -> None:
    work = RunFolder(tmp_path, run)
    work.multiple_choice("VStarBench", [choice(index, right=index < 8) for index in range(10)])

    benchmark = only(report_on(tmp_path))

    assert (benchmark.samples, benchmark.scored, benchmark.failed) == (10, 10, 0)
    assert benchmark.value == pytest.approx(80)
    assert benchmark.same and benchmark.accuracy == pytest.approx(80)
    assert benchmark.shown_interval is not None
    assert benchmark.shown_interval.low < 80 < benchmark.shown_interval.high
    assert benchmark.published is not None and benchmark.published.deepeyes_v2 == 81.8
    assert benchmark.scoring.scoring == "upstream"


@pytest.mark.parametrize("suffix", ["tsv", "json"])
def test_predictions_in_another_format_and_without_a_status(tmp_path: Path, suffix: str) -> None:
    work = RunFolder(tmp_path)
    rows = [{"index": at, "question": "?", "answer": "None", "prediction": "None"} for at in (1, 2)]
    work.table("Mine", rows, suffix)
    work.table("Mine_results", [row | {"score": 1.0} for row in rows], suffix)
    work.table("Mine_acc", [{"Overall": 100.0}], "csv")

    report = report_on(tmp_path)

    assert only(report).value == 100
    assert only(report).scored == 2
    # All right in two samples is no certainty.
    interval = only(report).shown_interval
    assert interval is not None and interval.low < 20 and interval.high == 100


def test_benchmarks_that_are_scored_in_other_ways(tmp_path: Path) -> None:
    work = RunFolder(tmp_path)
    vista = [
        {"index": 1, "question": "How many?", "answer": "3", "prediction": "three, so 3"},
        {"index": 2, "question": "How much?", "answer": "1.5", "prediction": "2"},
    ]
    work.table("MathVista_MINI", vista)
    judged = [row | {"res": row["prediction"][-1], "log": "Succeed"} for row in vista]
    work.table("MathVista_MINI_gpt-4o-mini", judged)
    scores = [{"Task&Skill": "Overall", "tot": 2, "prefetch": 0, "hit": 1, "acc": 50.0}]
    work.table("MathVista_MINI_gpt-4o-mini_score", scores, "csv")
    work.done("MathVista_MINI", judge_model="gpt-4o-mini")

    dyna = [
        {"index": at, "qid": at // 2, "question": "?", "answer": "1", "prediction": "1"}
        for at in range(4)
    ]
    work.table("DynaMath", dyna)
    work.table("DynaMath_gpt-4o-mini", [row | {"correct": row["qid"] == 0} for row in dyna])
    settings = [{"Setting": "Average", "Overall": 0.5}, {"Setting": "Worst Case", "Overall": 0.5}]
    work.table("DynaMath_gpt-4o-mini_score", settings, "csv")
    work.done("DynaMath", judge_model="gpt-4o-mini")

    text = {"category": "Doc-oriented VQA", "question": "?"}
    ocr = [
        text | {"index": 1, "answer": "['STOP', 'Stop sign']", "prediction": "It says stop."},
        text | {"index": 2, "answer": "['42']", "prediction": "forty"},
    ]
    work.table("OCRBench", ocr)
    (work.folder / f"{MODEL}_OCRBench_score.json").write_text(json.dumps({"Final Score": 1}))
    work.done("OCRBench")

    turned = [
        choice(at, right=at < 4, cycle_category=at % 4, category="single", question="Which?")
        for at in range(8)
    ]
    work.table("HRBench4K", turned)
    work.table("HRBench4K_exact_matching_result", turned)
    cycles = [
        {"cycle": cycle, "type": kind, "accuracy": share}
        for cycle, share in ((0, 0.75), (1, 0.5), (2, 0.5), (3, 0.25), ("Average", 0.5))
        for kind in ("all", "single")
    ]
    work.table("HRBench4K_acc", cycles, "csv")
    work.done("HRBench4K")

    work.table("SimpleVQA", [row | {"index": at} for at, row in enumerate(vista)])
    verdicts = [
        {"judge_res": {"model_response": {"conclusion": word}}} for word in ("正确", "错误")
    ]
    (work.folder / "gpt_eval.json").write_text(json.dumps(verdicts))
    rows = [{"0": "LVLM_name", "1": "model_response"}, {"0": "is_correct", "1": 0.5}]
    work.table("SimpleVQA_acc", rows, "csv")
    work.done("SimpleVQA")

    by_name = {one.name: one for one in report_on(tmp_path).benchmarks}

    assert by_name["MathVista_MINI"].value == by_name["MathVista_MINI"].accuracy == 50
    assert by_name["MathVista_MINI"].reconstructed
    assert by_name["DynaMath"].value == 50
    # Two questions, of which each has two variants: as sure as two samples.
    assert by_name["DynaMath"].interval is not None
    assert (by_name["DynaMath"].interval.low, by_name["DynaMath"].interval.high) == (0, 100)
    assert by_name["HRBench4K"].value == by_name["HRBench4K"].accuracy == 50
    assert by_name["HRBench4K"].metric == "cycle=Average|type=all|accuracy"
    assert by_name["OCRBench"].value == 1 and by_name["OCRBench"].out_of == 1000
    assert by_name["OCRBench"].accuracy == 50
    assert by_name["SimpleVQA"].value == by_name["SimpleVQA"].accuracy == 50


@pytest.mark.parametrize("suffix", ["xlsx", "tsv"])
def test_verdicts_and_figures_of_one_name_are_both_read(tmp_path: Path, suffix: str) -> None:
    """MathVerse: ``…_<judge>_score.xlsx`` has the verdicts, ``…_<judge>_score.csv`` the figures."""
    work = RunFolder(tmp_path)
    rows = [
        {"index": at, "problem_index": at // 5, "question": "?", "answer": "1", "prediction": "1"}
        for at in range(10)
    ]
    work.table("MathVerse_MINI", rows, suffix)
    extracted = [row | {"extract": "1", "log_extract": "Succeed"} for row in rows]
    work.table("MathVerse_MINI_gpt-4o-mini_extract", extracted, suffix)
    scored = [
        row | {"score": row["index"] < 7, "log_score": "Prefetch succeed"} for row in extracted
    ]
    work.table("MathVerse_MINI_gpt-4o-mini_score", scored, suffix)
    versions = [{"split": "Text Lite", "Overall": 80.0}, {"split": "Vision Only", "Overall": 60.0}]
    work.table("MathVerse_MINI_gpt-4o-mini_score", versions, "csv")
    work.done("MathVerse_MINI", judge_model="gpt-4o-mini")

    run = read_run([tmp_path])

    assert run.results[0].metrics == {
        "split=Text Lite|Overall": 80,
        "split=Vision Only|Overall": 60,
    }
    benchmark = only(build(run))
    assert (benchmark.scored, benchmark.shown) == (10, 70)
    assert benchmark.shown_interval is not None


def test_the_published_scoring_is_taken_where_it_was_used(tmp_path: Path) -> None:
    work = RunFolder(tmp_path)
    rows = [choice(index, right=False, prediction="It is red.") for index in range(4)]
    work.multiple_choice("VStarBench", rows)
    work.table(
        "VStarBench_published_results",
        [row | {"hit": 1, "scored_by": "judge"} for row in rows[:3]]
        + [rows[3] | {"hit": "", "scored_by": "failed"}],
    )
    work.table(
        "VStarBench_published_acc",
        [{"Overall": 100.0, "answered": 3, "failed": 0, "not_scored": 1}],
        "csv",
    )
    scoring = {"scoring": "published", "judge": "qwen", "judge_calls": 4, "judge_failures": 1}
    path = work.folder / f"{MODEL}_VStarBench_scoring.json"
    path.write_text(json.dumps(scoring | {"fallback_used": 3}))
    work.multiple_choice("VStarBench", rows)  # Upstream's files are the newer ones.

    report = report_on(tmp_path)

    assert only(report).scoring.scoring == "published"
    assert only(report).value == 100
    assert only(report).scored == 3
    assert "the judge failed for 1 of 4 answers" in said(report, "distrust")


def test_an_older_run_is_no_cover_for_a_newest_one_that_failed(tmp_path: Path) -> None:
    rows = [choice(index, right=True) for index in range(3)]
    older = RunFolder(tmp_path, "T20260101_G0123abc")
    older.multiple_choice("VStarBench", rows)
    assert report_on(tmp_path).trusted
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    for run, when in (("T20250101_G0", "2025-01-01T00:00:00"), ("T20270101_G1", str(tomorrow))):
        failed = RunFolder(tmp_path, run)
        failed.done("VStarBench", error_message="the server is away", updated_at=when)

    report = report_on(tmp_path)

    assert report.benchmarks[0].value == 100
    assert not report.trusted
    told = [finding.message for finding in report.findings if finding.level == "distrust"]
    assert len(told) == 1 and "the server is away" in told[0] and "T20270101_G1" in told[0]


def test_an_entry_of_the_status_may_be_empty(tmp_path: Path) -> None:
    work = RunFolder(tmp_path)
    work.multiple_choice("VStarBench", [choice(0, right=True)])
    status = json.loads((work.folder / "status.json").read_text())
    status["datasets"]["ChartQA_TEST"] = None
    (work.folder / "status.json").write_text(json.dumps(status))
    assert {one.name for one in report_on(tmp_path).benchmarks} == {"VStarBench", "ChartQA_TEST"}


def test_of_two_scorings_the_newer_one_counts(tmp_path: Path) -> None:
    work = RunFolder(tmp_path)
    for judge, right, age in (("a", 0, 0), ("b", 4, 60), ("c", 2, 120)):
        rows = [choice(index, right=True) | {"hit": int(index < right)} for index in range(4)]
        work.multiple_choice("VStarBench", rows, judge=judge)
        when = time.time() - age
        os.utime(work.folder / f"{MODEL}_VStarBench_{judge}_result.xlsx", (when, when))

    assert only(report_on(tmp_path)).accuracy == 0


@pytest.mark.parametrize("status", [True, False])
def test_passes_with_shuffled_options(tmp_path: Path, status: bool) -> None:
    work = RunFolder(tmp_path)
    for name, right in (("VStarBench", 9), ("VStarBench_shuffled_0", 6)):
        work.multiple_choice(name, [choice(index, right=index < right) for index in range(10)])
    other = [choice(index, right=index < 8) for index in range(10)]
    work.multiple_choice("VStarBench_shuffled_1", other)
    if not status:
        (work.folder / "status.json").unlink()

    report = report_on(tmp_path)

    assert [one.value for one in report.benchmarks] == [pytest.approx(90), 60, 80]
    (passes,) = report.passes

    assert (passes.name, passes.mean, passes.low, passes.high) == ("VStarBench", 70, 60, 80)
    assert passes.spread == pytest.approx(14.1, abs=0.1)
    assert passes.published is not None and passes.published.deepeyes_v2 == 81.8


def test_a_pickle_is_never_read(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (tmp_path / "sprung",)

    work = RunFolder(tmp_path)
    (work.folder / f"{MODEL}_VStarBench.pkl").write_bytes(pickle.dumps(Trap()))
    work.done("VStarBench")

    report = report_on(tmp_path)

    assert not (tmp_path / "sprung").exists()
    assert "only as a pickle" in said(report, "distrust")


def test_what_the_agent_did(tmp_path: Path) -> None:
    work, log = RunFolder(tmp_path / "work"), TrajectoryLog(tmp_path / "log")
    rows = [choice(index, right=True) for index in range(4)]
    work.multiple_choice("VStarBench", rows)
    for index, row in enumerate(rows):
        play(log, "VStarBench", row, tool="python" if index else None)

    run = read_run([tmp_path])
    agent = only(build(run, prices=Prices(input=1, output=10))).agent

    assert agent is not None
    assert agent.calls == {"python": 0.75}
    assert agent.turns == 1.75
    assert agent.tokens == (20 + 3 * 60) / 4
    assert agent.end_reasons == {"answer": 4}
    read, generated = 4 * 1000 + 3 * 900, 20 + 3 * 60
    assert agent.cost == pytest.approx((read + 10 * generated) / 1e6)
    assert not run.findings


def test_a_sample_that_was_played_again_has_its_last_trajectory(tmp_path: Path) -> None:
    work, log = RunFolder(tmp_path / "work"), TrajectoryLog(tmp_path / "log")
    row = choice(0, right=True)
    work.multiple_choice("VStarBench", [row])
    play(log, "VStarBench", row, end=EndReason.INFRASTRUCTURE)
    play(log, "VStarBench", row)
    play(log, "VStarBench", row, tool="search")
    play(log, "VStarBench", row, answer="B")

    report = report_on(tmp_path)

    agent = only(report).agent
    assert agent is not None and agent.end_reasons == {"answer": 1}
    assert agent.calls == {"search": 1}  # The last one that gave the recorded answer.
    assert "3 earlier trajectories" in said(report, "note")


class TestDistrust:
    """A run that cannot be believed says so."""

    def test_a_dataset_that_failed(self, tmp_path: Path) -> None:
        work = RunFolder(tmp_path)
        work.done("ChartQA_TEST", error_message="no such file", status="infer")
        # Once: that it has no predictions then goes without saying.
        assert said(report_on(tmp_path), "distrust") == "the dataset failed: no such file"

    def test_a_dataset_of_which_nothing_is_left(self, tmp_path: Path) -> None:
        work = RunFolder(tmp_path)
        work.multiple_choice("VStarBench", [choice(0, right=True)])
        path = work.folder / "status.json"
        argv = ["run.py", "--data", "VStarBench", "ChartQA_TEST", "--model", MODEL]
        path.write_text(json.dumps(json.loads(path.read_text()) | {"argv": argv}))
        report = report_on(tmp_path)
        assert [one.name for one in report.benchmarks] == ["VStarBench", "ChartQA_TEST"]
        assert "the run wrote nothing for it" in said(report, "distrust")

    def test_a_run_that_was_not_finished(self, tmp_path: Path) -> None:
        RunFolder(tmp_path).done("ChartQA_TEST", status="infer")
        assert "not finished" in said(report_on(tmp_path), "distrust")

    def test_failed_samples_are_no_wrong_answers(self, tmp_path: Path) -> None:
        work = RunFolder(tmp_path)
        rows = [choice(index, right=True) for index in range(9)]
        work.multiple_choice("VStarBench", [*rows, choice(9, right=False, prediction=FAILED)])

        report = report_on(tmp_path)

        assert (only(report).failed, only(report).value, only(report).accuracy) == (1, 90, 100)
        assert only(report).plotted == 100
        found = said(report, "distrust")
        assert "1 of 10 samples (10.0%) failed with an infrastructure error" in found

    def test_answers_without_an_option_and_without_a_judge(self, tmp_path: Path) -> None:
        mark = "Failed in Prefetch, no GPT-based answer matching under `exact_matching` policy."
        rows = [choice(0, right=False, prediction="red", log=mark), choice(1, right=True)]
        RunFolder(tmp_path).multiple_choice("VStarBench", rows)
        assert "no judge was asked" in said(report_on(tmp_path), "distrust")

    def test_a_judge_that_was_never_called(self, tmp_path: Path) -> None:
        rows = [choice(index, right=True) for index in range(3)]
        RunFolder(tmp_path).multiple_choice("LogicVista", rows, judge="gpt-4o-mini")
        assert "the judge was never called" in said(report_on(tmp_path), "caution")

    @pytest.mark.parametrize(
        "log",
        [
            FAILED,
            "Try 4: output is 12, failed to parse.\nAll 5 retries failed.\n",
            "Failed to predict, thus randomly generate one. ",
        ],
    )
    def test_a_judge_that_failed(self, tmp_path: Path, log: str) -> None:
        rows = [choice(0, right=False, log=log), choice(1, right=True, log="Succeed")]
        RunFolder(tmp_path).multiple_choice("LogicVista", rows, judge="gpt-4o-mini")
        assert "the judge failed for 1 of 2 answers" in said(report_on(tmp_path), "distrust")

    def test_a_sandbox_that_was_down(self, tmp_path: Path) -> None:
        work, log = RunFolder(tmp_path / "work"), TrajectoryLog(tmp_path / "log")
        rows = [choice(index, right=True) for index in range(2)]
        work.multiple_choice("VStarBench", rows)
        for index, row in enumerate(rows):
            play(log, "VStarBench", row, infrastructure_error=index == 0)
        assert "1 of 2 calls of python (50.0%) failed" in said(report_on(tmp_path), "distrust")

    def test_answers_that_a_limit_cut(self, tmp_path: Path) -> None:
        work, log = RunFolder(tmp_path / "work"), TrajectoryLog(tmp_path / "log")
        row = choice(0, right=False, prediction="image_1.crop((0, 0, 32, 32))")
        work.multiple_choice("VStarBench", [row])
        play(log, "VStarBench", row, end=EndReason.TURNS)
        assert "ended at the limit of turns" in said(report_on(tmp_path), "distrust")

    def test_trajectories_of_another_run(self, tmp_path: Path) -> None:
        work, log = RunFolder(tmp_path / "work"), TrajectoryLog(tmp_path / "log")
        row = choice(0, right=True)
        work.multiple_choice("VStarBench", [row])
        play(log, "VStarBench", row, answer="B")
        play(log, "VStarBench", choice(7, right=True))
        found = said(report_on(tmp_path), "distrust")
        assert "differ from the answer of their trajectory (samples 0)" in found
        assert "1 of 2 trajectories (50.0%) belong to no sample" in found

    def test_no_trajectories(self, tmp_path: Path) -> None:
        RunFolder(tmp_path).multiple_choice("VStarBench", [choice(0, right=True)])
        assert "there are no trajectories" in said(report_on(tmp_path), "caution")


def test_of_several_runs_in_one_folder_each_keeps_its_own_trajectories(tmp_path: Path) -> None:
    rows = [choice(at, right=True) for at in range(4)]
    for name in ("new", "without_tools"):  # Written in this order: the other log is the later one.
        for row in rows:
            tool = "python" if name == "new" else None
            play(TrajectoryLog(tmp_path / name / "log"), "VStarBench", row, tool=tool)
    for name, age in (("without_tools", 60), ("new", 0)):
        work = RunFolder(tmp_path / name / "work")
        work.multiple_choice("VStarBench", rows)
        for path in work.folder.iterdir():
            os.utime(path, (time.time() - age, time.time() - age))

    agent = only(report_on(tmp_path)).agent

    assert agent is not None and agent.calls == {"python": 1.0}


def test_an_empty_folder_is_refused_with_advice(tmp_path: Path) -> None:
    with pytest.raises(NoResultsError, match="give its --work-dir"):
        read_run([tmp_path])


def test_two_runs_are_compared_sample_by_sample(tmp_path: Path) -> None:
    for name, right in (("old", 20), ("new", 34)):
        work = RunFolder(tmp_path / name)
        work.multiple_choice("VStarBench", [choice(at, right=at < right) for at in range(40)])
        noise = [choice(at, right=at != (name == "new")) for at in range(40)]
        work.multiple_choice("TreeBench", noise)

    comparison = build(read_run([tmp_path / "new"]), read_run([tmp_path / "old"])).comparison

    assert comparison is not None
    star, tree = comparison.benchmarks
    assert (star.old, star.new, star.moved) == (50, 85, True)
    assert star.gained == [str(at) for at in range(20, 34)] and star.lost == []
    assert (tree.gained, tree.lost, tree.moved) == (["0"], ["1"], False)


def test_runs_that_were_scored_in_different_ways(tmp_path: Path) -> None:
    for name, judge in (("old", "exact_matching"), ("new", "gpt-4o-mini")):
        work = RunFolder(tmp_path / name)
        work.multiple_choice("VStarBench", [choice(0, right=True)], judge=judge)
        work.multiple_choice("TreeBench", [choice(0, right=True)])

    told = said(build(read_run([tmp_path / "new"]), read_run([tmp_path / "old"])), "caution")

    assert told.count("scored in different ways") == 1
    assert "gpt-4o-mini_result, and exact_matching_result in the old one" in told


def test_text_that_utf8_cannot_hold_is_written_all_the_same(tmp_path: Path) -> None:
    work = RunFolder(tmp_path)
    half = "half of a pair: \ud800"
    rows = [choice(0, right=True, category=half), choice(1, right=False, prediction=half)]
    work.table("VStarBench", rows, "json")
    work.table("VStarBench_exact_matching_result", rows, "json")
    work.done("VStarBench", error_message=half)

    run = read_run([tmp_path])
    write(build(run), run, tmp_path / "report")

    assert "the dataset failed: half of a pair: \ufffd" in (
        tmp_path / "report/report.md"
    ).read_text(encoding="utf-8")
