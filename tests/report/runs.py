"""Runs as VLMEvalKit and the trajectory log leave them, in the layouts of its own code."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from deepeyes_plugins.protocol.content import EncodedImage
from deepeyes_plugins.rollout.log import TrajectoryLog
from deepeyes_plugins.rollout.trajectory import (
    EndReason,
    MessageRecord,
    PartRecord,
    Trajectory,
    TurnRecord,
)

MODEL = "DeepEyesV2"
FAILED = "Failed to obtain answer via API. the server is away"


def picture(colour: str, size: tuple[int, int] = (96, 64)) -> EncodedImage:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return EncodedImage(buffer.getvalue())


@dataclass
class RunFolder:
    """A work folder that fills as VLMEvalKit would fill it.

    Attributes:
        root: The work folder.
        run: Folder inside the model's, as upstream's checkout makes one for each start; without it
            results lie in the model's folder, as ms-vlmeval leaves them.
    """

    root: Path
    run: str = ""
    status: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        path = self.root / MODEL / self.run
        path.mkdir(parents=True, exist_ok=True)
        return path

    def table(self, name: str, rows: Sequence[dict[str, Any]], suffix: str = "xlsx") -> Path:
        path = self.folder / f"{MODEL}_{name}.{suffix}"
        frame = pd.DataFrame(rows)
        if suffix == "xlsx":
            frame.to_excel(path, index=False, engine="xlsxwriter")
        elif suffix == "json":
            path.write_text(json.dumps(frame.to_dict("records")))
        else:
            frame.to_csv(path, index=False, sep="\t" if suffix == "tsv" else ",")
        return path

    def done(self, name: str, **fields: Any) -> None:
        """Write ``status.json``."""
        self.status[name] = {"status": "done"} | fields
        status = {"model_name": MODEL, "datasets": self.status}
        (self.folder / "status.json").write_text(json.dumps(status))

    def multiple_choice(
        self, name: str, rows: Sequence[dict[str, Any]], judge: str = "exact_matching"
    ) -> None:
        """Predictions, verdicts and scores as ``ImageMCQDataset`` writes them.

        Each row has index, question, A, B, answer, prediction and hit; perhaps log.
        """
        self.table(name, [_without(row, "hit", "log") for row in rows])
        self.table(f"{name}_{judge}_result", rows)
        accuracy = sum(row["hit"] for row in rows) / len(rows)
        self.table(f"{name}_acc", [{"split": "none", "Overall": accuracy}], "csv")
        self.done(name, judge_model=judge, metrics={"split=none|Overall": accuracy})


def _without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}


def choice(
    index: int, *, right: bool, prediction: str | None = None, **more: Any
) -> dict[str, Any]:
    return {
        "index": index,
        "question": f"What colour is the mug on shelf {index}?",
        "A": "red",
        "B": "blue",
        "answer": "A",
        "prediction": prediction or ("A" if right else "B"),
        "hit": int(right),
        "log": "Prefetch succeed",
    } | more


def play(
    log: TrajectoryLog,
    benchmark: str,
    row: dict[str, Any],
    *,
    code: str = "image_1.crop((0, 0, 32, 32))",
    printed: str = "",
    thought: str = "Look closer.",
    tool: str | None = "python",
    end: EndReason = EndReason.ANSWER,
    infrastructure_error: bool = False,
    answer: str | None = None,
) -> None:
    """Log the trajectory that led to a row of a table."""
    question, shown = picture("white"), picture("red", (32, 32))
    turns = []
    if tool is not None:
        turns.append(
            TurnRecord(
                text=f"<think>{thought}</think>\n<code>\n```python\n{code}\n```\n</code>",
                tokens=40,
                prompt_tokens=900,
                action="code",
                tool=tool,
                observation=[
                    PartRecord(
                        text=f"Code execution result:\nstdout:\n```\n{printed}\n```\n\n"
                        "stderr:\n```\n\n```\n\nImages:\n"
                    ),
                    PartRecord(image=shown.sha256),
                ],
                error="the sandbox is away" if infrastructure_error else None,
                infrastructure_error=infrastructure_error,
                generate_seconds=2.0,
                tool_seconds=0.5,
            )
        )
    said = row["prediction"] if answer is None else answer
    if end is EndReason.ANSWER:
        turns.append(
            TurnRecord(
                text=f"<think>Now I know.</think>\n<answer>{said}</answer>",
                tokens=20,
                prompt_tokens=1000,
                action="answer",
                generate_seconds=1.0,
            )
        )
    prompt = [
        MessageRecord(role="system", parts=[PartRecord(text="You can run Python.")]),
        MessageRecord(
            role="user",
            parts=[PartRecord(image=question.sha256), PartRecord(text=row["question"])],
        ),
    ]
    trajectory = Trajectory(
        task_id=f"{benchmark}/{row['index']}-0123456789ab",
        data_source=benchmark,
        question=row["question"],
        prompt=prompt,
        turns=turns,
        answer=said if end is EndReason.ANSWER else None,
        end_reason=end,
        seconds=3.5,
        labels={"benchmark": benchmark, "index": str(row["index"])},
    )
    log.append(trajectory, [question, shown])
