"""Evaluates a table of red squares: `python driver.py THREADS MARK…`, the last is its length.

Prints as JSON the seconds from the first question to the last answer on disk, and the resident
memory of this process when as many samples were answered as each mark says. The settings come from
the environment variables.
"""

from __future__ import annotations

import base64
import io
import json
import os
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from PIL import Image
from vlmeval.inference import infer_data_api
from vlmeval.smp import LMUDataRoot

from deepeyes_plugins.rollout.log import read_log
from eval_plugins.vlmevalkit.adapter import DeepEyesV2
from eval_plugins.vlmevalkit.dataset import DeepEyesQuickstart

MODEL = "DeepEyesV2"
NAME = "DeepEyesQuickstart"


class CountingAgent(DeepEyesV2):
    """Knows when it was first asked, and takes the resident memory at some numbers of answers."""

    def __init__(self, marks: list[int]) -> None:
        super().__init__()
        self.resident: dict[str, float] = {}
        self.began: float | None = None
        self._marks = marks
        self._answered = 0
        self._counting = threading.Lock()

    def generate(self, message: Any, dataset: str | None = None, **more: Any) -> str:
        """Answer, and count."""
        with self._counting:
            if self.began is None:
                self.began = time.perf_counter()
        answer = super().generate(message, dataset, **more)
        with self._counting:
            self._answered += 1
            if self._answered in self._marks:
                resident = psutil.Process().memory_info().rss / 1e6
                self.resident[f"resident after {self._answered} [MB]"] = resident
        return answer


def write_table(samples: int) -> None:
    """Write the table where VLMEvalKit looks for it."""
    buffer = io.BytesIO()
    Image.new("RGB", (448, 448), "red").save(buffer, "PNG")
    image = base64.b64encode(buffer.getvalue()).decode()
    rows = "".join(f"{index}\t{image}\tWhich colour?\tred\n" for index in range(samples))
    path = Path(LMUDataRoot()) / f"{NAME}.tsv"
    path.write_text("index\timage\tquestion\tanswer\n" + rows, encoding="utf-8")


def main() -> None:
    """Answer one sample, which starts everything, and then all of them."""
    threads, *marks = (int(argument) for argument in sys.argv[1:])
    samples = marks[-1]
    write_table(samples)
    dataset = DeepEyesQuickstart(NAME)
    first = CountingAgent([])
    infer_data_api(first, ".", "warming_up", dataset, index_set={dataset.data["index"][0]})
    model = CountingAgent(marks)
    called, before = time.perf_counter(), time.process_time()
    answers = infer_data_api(model, ".", MODEL, dataset, api_nproc=threads)
    ended, busy = time.perf_counter(), time.process_time() - before
    assert model.began is not None
    if set(answers.values()) != {"red"} or len(answers) != samples:
        raise RuntimeError(f"not every sample was answered: {set(answers.values())}")
    turns = {len(played.turns) for played in read_log(Path(os.environ["DEEPEYES_TRAJECTORIES"]))}
    if turns != {3}:
        raise RuntimeError(f"episodes had {turns} turns")
    figures = {
        "seconds": ended - model.began,
        "writing the images before [s]": model.began - called,
        "samples": samples,
        "CPU of the driver [s]": busy,
        "largest resident memory [MB]": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        **model.resident,
    }
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
