"""``deepeyes data from-trajectories`` on the log of an evaluation: no data set is needed."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepeyes_plugins.data.check.sft import check_sft_file
from eval_plugins.vlmevalkit.adapter import DeepEyesV2
from eval_plugins.vlmevalkit.samples import annotate
from tests.cli.test_cli import deepeyes
from tests.openai.server import ChatServer
from tests.report.runs import RunFolder, choice
from tests.vlmevalkit.conftest import png

BENCHMARK = "VStarBench"
ZOOM = (
    "<think>Closer.</think>\n<tool_call>\n"
    '{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [0, 0, 40, 40]}}\n</tool_call>'
)


def say(letter: str) -> str:
    return f"<think>I see.</think>\n<answer>{letter}</answer>"


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three samples: right after zooming in, wrong, and right at once."""
    monkeypatch.delenv("DEEPEYES_OPENAI_URL", raising=False)
    config = tmp_path / "agent.yaml"
    config.write_text(
        f"environment: visual_toolbox_v2\ntrajectories: {tmp_path / 'log'}\n"
        f"rewards: {{sources: {{{BENCHMARK}: perception}}}}\n"
    )
    with ChatServer.saying(ZOOM, say("A"), say("B"), say("A")) as server:
        model = DeepEyesV2(str(config), url=server.url, system_prompt="Look closely.")
        for index, predicted in enumerate("ABA"):
            image = tmp_path / f"{index}.png"
            image.write_bytes(png("red", (64 + index, 64)))
            parts = [
                {"type": "image", "value": str(image)},
                {"type": "text", "value": choice(index, right=True)["question"]},
            ]
            sample = annotate(parts, {"index": index})
            assert model.generate(sample, dataset=BENCHMARK) == predicted
        model.close()
    return tmp_path / "log"


def test_verdicts_of_vlmevalkit_decide(log: Path, tmp_path: Path) -> None:
    other = choice(2, right=True, prediction="It is A.")  # Not what the log has: played again.
    scored = [choice(0, right=True), choice(1, right=False), other]
    RunFolder(tmp_path / "results").multiple_choice(BENCHMARK, scored)
    output = tmp_path / "out"
    answer = deepeyes(
        *("data", "from-trajectories", str(log), "-o", str(output)),
        *("--results", str(tmp_path / "results"), "--json"),
    )
    assert answer.returncode == 0, answer.stderr
    summary = json.loads(answer.stdout)
    assert (summary["rows"], summary["left_out"]) == (
        1,
        {"not right or not well formed": 1, "without a verdict": 1},
    )
    (row,) = json.loads((output / "rejection_sampled.json").read_text())
    assert [message["role"] for message in row["messages"]] == [
        *("system", "user", "assistant", "user", "assistant")
    ]
    assert "shelf 0" in row["messages"][1]["content"]
    asked, zoomed = (output / path for path in row["images"])
    assert asked.read_bytes() == png("red")
    assert zoomed.exists()
    assert row["provenance"]["teacher"] == "tiny"
    assert row["provenance"]["task_id"] == f"{BENCHMARK}/0"
    report = check_sft_file(output / "rejection_sampled.json")
    assert (report.rows, report.problems) == (1, [])


def test_answers_may_come_from_a_data_set_and_what_has_none_is_named(
    log: Path, tmp_path: Path
) -> None:
    rows = [
        {
            "data_source": BENCHMARK,
            "prompt": [{"role": "user", "content": "Only the answer counts."}],
            "reward_model": {"ground_truth": truth},
            "extra_info": {"index": f"{BENCHMARK}/{index}"},
        }
        for index, truth in ((0, "A"), (1, "A"), (2, ""))
    ]
    answers = tmp_path / "answers.parquet"
    pq.write_table(pa.Table.from_pylist(rows), answers)
    output = tmp_path / "out"
    answer = deepeyes(
        *("data", "from-trajectories", str(log), "-o", str(output), "--data", str(answers)),
        *("--config", str(tmp_path / "agent.yaml"), "--least-format", "0", "--json"),
    )
    assert answer.returncode == 0, answer.stderr
    summary = json.loads(answer.stdout)
    assert (summary["rows"], summary["left_out"]["bad"]) == (1, 1)
    assert summary["bad_rows"] == 1
    assert "row 3: no ground truth" in answer.stderr
    assert f"no reference answer for task '{BENCHMARK}/2'" in answer.stderr
    (row,) = json.loads((output / "rejection_sampled.json").read_text())
    assert "shelf 0" in row["messages"][1]["content"]  # As played, not as in the data set.
