"""Settings of the rewards. This module imports nothing of ours: the settings file is above it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Accuracy = Annotated[
    Weight,
    Field(description="Weight of acc. Published: 0.8; 1 for vstar-test; 1.2 for thinklite_eureka."),
]
Format = Annotated[
    Weight,
    Field(
        description="Weight of the format part. Published: 0.2; 0 for vstar-test; 0.4 for "
        "thinklite_eureka."
    ),
]
Tool = Annotated[
    Weight,
    Field(
        description="Bonus for a right answer after a tool was used to some effect (vstar, chart: "
        "after an image came back). Published: 1.2 for vstar and chart; none in DeepEyesV2, where "
        "its variable is dead code. A public port of DeepEyesV2 uses 0.2."
    ),
]
SearchPenalty = Annotated[
    float,
    Field(
        ge=0,
        le=1,
        description="Share of the accuracy that searching costs, however many calls there are. "
        "Published: 0.1 for search, else 0.",
    ),
]
LongestAnswer = Annotated[
    int | None,
    Field(
        ge=1,
        description="An answer of this many characters or more earns neither accuracy nor format. "
        "Published: 300 for perception and search; 1,000 for vstar and chart; else none.",
    ),
]
MathVerify = Annotated[
    bool,
    Field(
        description="Let math-verify find an answer equal before a judge is asked. Published: on "
        "for thinklite_eureka, else off."
    ),
]


class ScoreSettings(BaseModel):
    """Weights and options of one score.

    ``accuracy · acc · (1 − search_penalty) + format · format part + tool · tool part
    + cumulative_tool · cumulative_tool part``. "Published" are the values of
    Visual-Agent/DeepEyesV2 (perception, reason, search, vstar-test) and of Visual-Agent/DeepEyes
    (vstar, chart, thinklite_eureka).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    accuracy: Accuracy = 0.8
    format: Format = 0.2
    tool: Tool = 0.0
    cumulative_tool: Weight = Field(
        0.0,
        description="Bonus that grows with the effective tool calls before a right answer: this "
        "weight times min(calls, cumulative_calls) / cumulative_calls. Our own formula; off in "
        "every published score.",
    )
    cumulative_calls: int = Field(
        4, ge=1, description="Effective calls from which cumulative_tool pays in full. Ours."
    )
    search_penalty: SearchPenalty = 0.0
    longest_answer: LongestAnswer = None
    decide: Literal["auto", "rules", "judge"] = Field(
        "auto",
        description="Who decides accuracy. auto: rules where they are sure, else the judge; "
        "without a judge, rules alone. rules: rules alone. judge: the judge for every answer, as "
        "published; one must be configured then.",
    )
    math_verify: MathVerify = False
    math_timeout: float = Field(
        5.0, gt=0, le=60, description="Seconds that math-verify may take for one answer. Ours."
    )


class PerceptionSettings(ScoreSettings):
    """The score of ``perception``."""

    longest_answer: LongestAnswer = 300


class SearchSettings(ScoreSettings):
    """The score of ``search``."""

    search_penalty: SearchPenalty = 0.1
    longest_answer: LongestAnswer = 300


class ValidationSettings(ScoreSettings):
    """The score of ``vstar-test``: accuracy alone."""

    accuracy: Accuracy = 1.0
    format: Format = 0.0


class VisualToolboxSettings(ScoreSettings):
    """The score of ``vstar`` and ``chart``."""

    tool: Tool = 1.2
    longest_answer: LongestAnswer = 1000


class ThinkLiteSettings(ScoreSettings):
    """The score of ``thinklite_eureka``."""

    accuracy: Accuracy = 1.2
    format: Format = 0.4
    math_verify: MathVerify = True


class RewardSettings(BaseModel):
    """Rewards."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    sources: dict[str, str] = Field(
        default_factory=dict,
        description="Reward to use for a data_source that has none of its own name.",
    )
    infrastructure_failure: Literal["raise", "mark"] = Field(
        "raise",
        description="What scoring does with a trajectory that a failure of ours ended, and with "
        "one for which no judge could be reached. raise: no score, so that verl leaves the session "
        "out of its group. mark: score 0, all parts 0 but infrastructure_failed, which is 1.",
    )
    perception: PerceptionSettings = Field(
        default_factory=PerceptionSettings, description="The score of perception."
    )
    reason: ScoreSettings = Field(default_factory=ScoreSettings, description="The score of reason.")
    search: SearchSettings = Field(
        default_factory=SearchSettings, description="The score of search."
    )
    vstar_test: ValidationSettings = Field(
        default_factory=ValidationSettings,
        alias="vstar-test",
        description="The score of vstar-test.",
    )
    vstar: VisualToolboxSettings = Field(
        default_factory=VisualToolboxSettings, description="The score of vstar."
    )
    chart: VisualToolboxSettings = Field(
        default_factory=VisualToolboxSettings, description="The score of chart."
    )
    thinklite_eureka: ThinkLiteSettings = Field(
        default_factory=ThinkLiteSettings, description="The score of thinklite_eureka."
    )
