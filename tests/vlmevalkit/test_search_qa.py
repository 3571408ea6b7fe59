"""FVQA-test, InfoSeek and MMSearch: rules first, then the judge; no verdict is never wrong."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from deepeyes_plugins.errors import SettingsError
from deepeyes_plugins.judge.settings import BASE_VARIABLE
from deepeyes_plugins.settings import SETTINGS_VARIABLE
from eval_plugins.vlmevalkit.benchmarks import Question, write_table
from eval_plugins.vlmevalkit.dataset import DeepEyesSearchQA
from tests.judge.scripts import NO, YES, block
from tests.openai.server import Body, ChatServer, Reply
from tests.serving import LocalServer
from tests.vlmevalkit.conftest import png

QUESTIONS = (
    Question("by-rule", "Which country?", "Spain", ("ESP", "Kingdom of Spain"), (png("red"),)),
    Question("number", "Which year?", "1998", (), (png("blue"),)),
    Question("range", "How tall?", "8.85 km", ({"range": [7.9, 9.8]},), (png("lime"),)),
    Question("text", "Who won?", "Lando Norris"),
    Question("loose", "Who built it?", "the Knights of Malta"),
    Question("lost", "Where is it?", "NA"),
)
ESTIMATED = [
    "esp",
    "1999",
    "8.9",
    "It was Norris.",
    "The Romans did",
    "Failed to obtain answer via API.",
]
"""Right by a rule, surely wrong, in the range, and two that need a judge; one failed."""


def judge(body: Body) -> Reply:
    right = (block(body, "reference"), block(body, "answer")) == ("Lando Norris", "It was Norris.")
    return Reply(YES if right else NO)


Evaluate = Callable[..., tuple[dict[str, Any], pd.DataFrame, dict[str, Any]]]


@pytest.fixture
def evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Evaluate:
    """Scores predictions; returns the summary, the single scores, and how it was done."""
    write_table("MMSearch", QUESTIONS, tmp_path)
    monkeypatch.setenv("LMUData", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["run.py", "--data", "MMSearch"])
    monkeypatch.delenv(BASE_VARIABLE, raising=False)
    config = tmp_path / "agent.yaml"
    config.write_text("judge: {retries: 0, retry_wait: 0.01, answer: {tries: 2}}\n")
    monkeypatch.setenv(SETTINGS_VARIABLE, str(config))

    def run(
        url: str | None = None, predictions: list[str] = ESTIMATED, **arguments: Any
    ) -> tuple[dict[str, Any], pd.DataFrame, dict[str, Any]]:
        if url is not None:
            monkeypatch.setenv(BASE_VARIABLE, url)
        dataset = DeepEyesSearchQA("MMSearch")
        # VLMEvalKit's --api-mode sends it to another process.
        dataset = pickle.loads(pickle.dumps(dataset))
        results = tmp_path / "out" / "model" / "model_MMSearch.xlsx"
        results.parent.mkdir(parents=True, exist_ok=True)
        dataset.data.assign(prediction=predictions).to_excel(results, index=False)
        summary = dataset.evaluate(str(results), **arguments).iloc[0].to_dict()
        single = pd.read_excel(results.with_name("model_MMSearch_results.xlsx")).set_index("index")
        how = json.loads(results.with_name("model_MMSearch_scoring.json").read_text())
        assert pd.read_csv(results.with_name("model_MMSearch_acc.csv")).iloc[0].to_dict() == summary
        return summary, single, how

    return run


def test_rules_decide_what_is_sure_and_the_judge_the_rest(evaluate: Evaluate) -> None:
    with ChatServer(judge) as server:
        summary, single, how = evaluate(server.url)

    assert summary == {"Overall": 60.0, "answered": 5, "failed": 1, "not_scored": 0}
    assert dict(single["scored_by"]) == {
        "by-rule": "rule",
        "number": "rule",
        "range": "rule",
        "text": "judge",
        "loose": "judge",
        "lost": "failed",
    }
    assert list(single["score"].dropna()) == [1, 0, 1, 1, 0]
    assert how == {
        "scoring": "upstream",
        "judge": "tiny",
        "judge_calls": 2,
        "judge_failures": 0,
        "fallback_used": 0,
    }


def test_the_judge_sees_every_accepted_answer(evaluate: Evaluate) -> None:
    with ChatServer(judge) as server:
        predictions = ["Somewhere in Iberia", "x", "tall", "", "Unanswered.", "NA"]
        _, single, _ = evaluate(server.url, predictions)

    asked = {block(body, "question"): block(body, "reference") for body in server.requests}
    assert asked["Which country?"] == "Spain\nAlso accepted: ESP; Kingdom of Spain"
    assert asked["How tall?"] == "8.85 km\nAlso accepted: any value from 7.9 to 9.8"
    # Nobody is asked about silence, and NA is an answer like any other.
    assert "Who won?" not in asked and "Who built it?" not in asked
    assert single.loc["lost", ["score", "scored_by"]].to_list() == [1, "rule"]


def test_samples_without_a_verdict_are_not_scored_and_asked_about_again(evaluate: Evaluate) -> None:
    def unreadable(body: Body) -> Reply:
        return Reply("Perhaps.") if block(body, "question") == "Who won?" else judge(body)

    with ChatServer(unreadable) as server:
        summary, single, how = evaluate(server.url)
        assert summary == {"Overall": 50.0, "answered": 5, "failed": 1, "not_scored": 1}
        assert single.loc["text", "scored_by"] == "no verdict"
        assert single.loc["text", "judge_log"].startswith("No verdict of the judge: ")
        assert "Perhaps." in single.loc["text", "judge_log"]
        assert (how["judge_calls"], how["judge_failures"]) == (2, 1)

    # Another evaluation asks for nothing that is known.
    with ChatServer(judge, port=server.port) as server:
        summary, _, how = evaluate(server.url)
        assert [block(body, "question") for body in server.requests] == ["Who won?"]
    assert (summary["Overall"], summary["not_scored"]) == (60.0, 0)
    assert (how["judge_calls"], how["judge_failures"]) == (2, 0)


def test_a_judge_that_is_away_makes_nothing_wrong(evaluate: Evaluate) -> None:
    with LocalServer() as gone:
        url = gone.root
    summary, single, how = evaluate(url, model="big")
    assert summary == {
        "Overall": pytest.approx(200 / 3),
        "answered": 5,
        "failed": 1,
        "not_scored": 2,
    }
    assert list(single["scored_by"]).count("no verdict") == 2
    assert (how["judge"], how["judge_failures"]) == ("big", 2)


def test_vlmevalkits_own_judge_options_win(
    evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["run.py", "--judge-base-url", "http://judge"])
    with ChatServer(judge, models=("a", "b")) as server:
        _, _, how = evaluate(
            api_base=f"{server.url}/chat/completions", model="b", key="secret", nproc=2
        )
    assert {body["model"] for body in server.requests} == {"b"}
    assert {headers["authorization"] for headers in server.headers} == {"Bearer secret"}
    assert how["judge"] == "b"


def test_without_a_judge_nothing_begins(
    evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError, match=r"judge\.endpoints.*--judge exact_matching"):
        DeepEyesSearchQA("MMSearch")
    monkeypatch.setattr("sys.argv", ["run.py", "--judge", "gpt-4o"])
    with pytest.raises(SettingsError, match="no judge is configured"):
        DeepEyesSearchQA("MMSearch")
    monkeypatch.setattr("sys.argv", ["run.py", "--mode", "infer"])
    DeepEyesSearchQA("MMSearch")


def test_rules_alone_only_if_asked_for_by_name(
    evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["run.py", "--judge", "exact_matching"])
    summary, single, how = evaluate(model="exact_matching")
    assert summary == {"Overall": 40.0, "answered": 5, "failed": 1, "not_scored": 0}
    assert set(single["scored_by"]) == {"rule", "failed"}
    assert (how["judge"], how["judge_calls"]) == (None, 0)

    monkeypatch.setattr("sys.argv", ["run.py", "--config", "eval.json"])
    DeepEyesSearchQA("MMSearch", scoring="rules")
    with pytest.raises(ValueError, match="must be 'judge' or 'rules'"):
        DeepEyesSearchQA("MMSearch", scoring="none")  # type: ignore[arg-type]


def test_an_image_that_is_missing_or_elsewhere_is_named(evaluate: Evaluate, tmp_path: Path) -> None:
    image = tmp_path / "images" / "MMSearch" / "number.png"
    image.unlink()
    with pytest.raises(FileNotFoundError, match=r"1 images are missing: .*number\.png"):
        DeepEyesSearchQA("MMSearch", scoring="rules")
    image.symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match=r"row \d: image_file: a symbolic link .* LMUData"):
        DeepEyesSearchQA("MMSearch", scoring="rules")
