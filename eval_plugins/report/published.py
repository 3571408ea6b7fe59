"""Published results for comparison. None of them was measured with this package."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

SOURCE = (
    "DeepEyesV2's project page, https://visual-agent.github.io, tables real_world, reason and "
    "search (the page's source at fd14bab); both models as its authors measured them"
)
"""Source of every score below."""

SHUFFLED = re.compile(r"(?P<base>.+)_shuffled_(?P<seed>\d+)")
"""Pattern of a dataset's name with shuffled options: the benchmark's name and the seed."""

Group = Literal["real world", "OCR and charts", "mathematics", "search"]


class Published(BaseModel):
    """Published scores of one benchmark, as reported by the authors of DeepEyesV2."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str = Field(description="The benchmark's usual name.")
    group: Group
    deepeyes_v2: float = Field(description="DeepEyesV2-7B, in percent or the unit of `out_of`.")
    qwen2_5_vl: float = Field(description="Qwen2.5-VL-7B without tools, in the same unit.")
    qwen2_5_vl_search: float | None = Field(None, description="Qwen2.5-VL-7B with search.")
    out_of: float = Field(100.0, description="The best possible score.")


def _published(
    title: str,
    group: Group,
    deepeyes_v2: float,
    qwen2_5_vl: float,
    search: float | None = None,
    out_of: float = 100.0,
) -> Published:
    return Published(
        title=title,
        group=group,
        deepeyes_v2=deepeyes_v2,
        qwen2_5_vl=qwen2_5_vl,
        qwen2_5_vl_search=search,
        out_of=out_of,
    )


PUBLISHED: dict[str, Published] = {
    "VStarBench": _published("V*", "real world", 81.8, 78.5),
    "HRBench4K": _published("HRBench 4K", "real world", 77.9, 71.6),
    "HRBench8K": _published("HRBench 8K", "real world", 73.8, 67.9),
    "MME-RealWorld": _published("MME-RealWorld", "real world", 64.9, 57.3),
    "TreeBench": _published("TreeBench", "real world", 42.5, 37.0),
    "OCRBench": _published("OCRBench", "OCR and charts", 882, 864, out_of=1000.0),
    "SEEDBench2_Plus": _published("SEEDBench2-Plus", "OCR and charts", 70.5, 70.4),
    "CharXiv_descriptive_val": _published("CharXiv, descriptive", "OCR and charts", 78.6, 72.7),
    "CharXiv_reasoning_val": _published("CharXiv, reasoning", "OCR and charts", 48.9, 40.2),
    "ChartQA_TEST": _published("ChartQA", "OCR and charts", 88.4, 86.2),
    "MathVista_MINI": _published("MathVista", "mathematics", 71.9, 68.3),
    "MathVerse_MINI": _published("MathVerse", "mathematics", 52.7, 45.6),
    "MathVision": _published("MathVision", "mathematics", 28.9, 25.6),
    "WeMath": _published("WeMath", "mathematics", 38.1, 34.6),
    "DynaMath": _published("DynaMath", "mathematics", 57.2, 53.3),
    "LogicVista": _published("LogicVista", "mathematics", 48.7, 45.9),
    "FVQA-test": _published("FVQA-test", "search", 60.6, 20.3, search=52.9),
    "InfoSeek": _published("InfoSeek", "search", 51.1, 20.1, search=53.7),
    "MMSearch": _published("MMSearch", "search", 63.7, 12.8, search=52.2),
    "SimpleVQA": _published("SimpleVQA", "search", 59.4, 38.4, search=51.6),
}
"""Published scores by VLMEvalKit's name of the dataset. The page does not name the splits of
MathVerse and MathVision; those of the recipes are assumed."""


def base_name(dataset: str) -> str:
    """Return the benchmark of a shuffled dataset; other names are returned unchanged."""
    match = SHUFFLED.fullmatch(dataset)
    return match["base"] if match else dataset
