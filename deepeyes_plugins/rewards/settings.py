"""Settings of the rewards."""

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
        description="Bonus for a correct answer after an effective tool call (vstar, chart: one "
        "that returned an image). Published: 1.2 for vstar and chart; none in DeepEyesV2. A public "
        "port of DeepEyesV2 uses 0.2."
    ),
]
SearchPenalty = Annotated[
    float,
    Field(
        ge=0,
        le=1,
        description="Share of the accuracy that is deducted if the trajectory searched, however "
        "often. Published: 0.1 for search, else 0.",
    ),
]
LongestAnswer = Annotated[
    int | None,
    Field(
        ge=1,
        description="An answer of this many characters or more gets neither accuracy nor format. "
        "Published: 300 for perception and search; 1,000 for vstar and chart; else none.",
    ),
]
MathVerify = Annotated[
    bool,
    Field(
        description="Compare answers with math-verify before asking a judge. Published: on for "
        "thinklite_eureka, else off."
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
        description="Bonus that grows with the effective tool calls before a correct answer: this "
        "weight times min(calls, cumulative_calls) / cumulative_calls. Not in any published score.",
    )
    cumulative_calls: int = Field(
        4, ge=1, description="Effective calls for the full cumulative_tool. Not published."
    )
    search_penalty: SearchPenalty = 0.0
    longest_answer: LongestAnswer = None
    decide: Literal["auto", "rules", "judge"] = Field(
        "auto",
        description="Who decides accuracy. auto: rules if they can, else the judge; without a "
        "judge, rules alone. rules: rules alone. judge: the judge for every answer, as published; "
        "it must be configured.",
    )
    math_verify: MathVerify = False
    math_timeout: float = Field(
        5.0, gt=0, le=60, description="Timeout of math-verify for one answer, in seconds."
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
        description="What scoring does after an infrastructure error, which ended the trajectory "
        "or made the judge unavailable. raise: no score; verl leaves the rollout out of its group. "
        "mark: score 0 with the part infrastructure_failed 1 and all others 0.",
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
