"""What a report says; ``report.json`` is this, as JSON."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from deepeyes_plugins.protocol.content import encodable
from eval_plugins.report.published import SOURCE, Published
from eval_plugins.report.results import Scoring
from eval_plugins.report.statistics import Interval, Paired

Level = Literal["distrust", "caution", "note"]


ROUNDING = 0.051
"""Percent points by which figures may differ that are written with one decimal."""


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Finding(_Content):
    """Something that a reader has to know before believing a figure."""

    level: Level = Field(
        description="`distrust`: the figures are not those of the model; `caution`: they may be "
        "off; `note`: they are right, but look at it."
    )
    benchmark: str = Field("", description="Empty: the whole run.")
    message: Annotated[str, AfterValidator(encodable)]
    advice: str = ""


class AgentFigures(_Content):
    """What the agent did, from its trajectories."""

    trajectories: int
    calls: dict[str, float] = Field(description="Calls per sample, by tool.")
    calls_failed: dict[str, float] = Field(
        description="Share of a tool's calls that failed by the model's mistake."
    )
    samples_with_calls: float = Field(description="Share of the samples, 0 to 1.")
    infrastructure_errors: float = Field(
        description="Share of all calls that failed on our side: sandbox or search down."
    )
    turns: float = Field(description="Mean.")
    tokens: float = Field(description="Generated tokens per sample, mean.")
    prompt_tokens: float | None = Field(
        description="Tokens that the server read per sample, over all requests; unset where the "
        "trajectories do not tell."
    )
    seconds_p50: float
    seconds_p95: float
    end_reasons: dict[str, int]
    cut: int = Field(description="Samples of which a turn was cut at its length limit.")
    cost: float | None = Field(
        None, description="Of all samples, in the currency of the prices; unset without prices."
    )


class Category(_Content):
    """A part of a benchmark."""

    name: str
    samples: int
    accuracy: float = Field(description="Percent.")


class Benchmark(_Content):
    """One dataset."""

    name: str = Field(description="VLMEvalKit's name.")
    title: str
    group: str
    model: str
    folder: str
    samples: int
    scored: int
    failed: int = Field(description="Samples that our side failed: no wrong answers.")
    value: float | None = Field(description="VLMEvalKit's figure, in percent or `out_of`.")
    metric: str = Field(description="VLMEvalKit's name of that figure; empty: the accuracy here.")
    out_of: float = 100.0
    accuracy: float | None = Field(description="Mean score of the scored samples, percent.")
    interval: Interval | None = Field(description="95 % of `accuracy`, by bootstrap; percent.")
    same: bool = Field(
        description="`value` is `accuracy` in another unit, so that the interval is its own."
    )
    scoring: Scoring
    reconstructed: bool = Field(description="Scores of samples follow the rule as written here.")
    published: Published | None = None
    shuffled_from: str | None = Field(None, description="Benchmark whose options are shuffled.")
    agent: AgentFigures | None = None
    categories: list[Category] = []

    @property
    def shown(self) -> float | None:
        """The figure to stand in a table."""
        return self.value if self.value is not None else self.accuracy

    @property
    def shown_interval(self) -> Interval | None:
        """Its interval, in its unit."""
        if self.interval is None or (self.value is not None and not self.same):
            return None
        return self.interval.scaled(self.out_of / 100)

    @property
    def plotted(self) -> float | None:
        """The figure to draw: where VLMEvalKit counts failed samples as wrong, the accuracy."""
        if self._counts_failed and self.accuracy is not None:
            return self.accuracy * self.out_of / 100
        return self.shown

    @property
    def plotted_interval(self) -> Interval | None:
        """Its interval, in its unit."""
        if self._counts_failed and self.interval is not None:
            return self.interval.scaled(self.out_of / 100)
        return self.shown_interval

    @property
    def _counts_failed(self) -> bool:
        if not self.failed or self.value is None or self.accuracy is None or self.same:
            return False
        share = self.accuracy * self.scored / (self.scored + self.failed)
        return abs(100 * self.value / self.out_of - share) < ROUNDING


class Passes(_Content):
    """Several passes of one benchmark with shuffled options."""

    name: str = Field(description="VLMEvalKit's name of the benchmark.")
    title: str
    passes: list[str]
    mean: float = Field(description="Percent.")
    spread: float = Field(description="Standard deviation between the passes, percent points.")
    low: float
    high: float
    interval: Interval | None = Field(
        None, description="95 % of the mean, samples drawn together with all their passes."
    )
    published: Published | None = None


class ComparedBenchmark(_Content):
    """One dataset in two runs."""

    name: str
    title: str
    paired: Paired = Field(description="On the samples that both runs have scored.")
    new: float = Field(description="Accuracy on those samples, percent.")
    old: float
    p_corrected: float = Field(description="By Holm, for the number of benchmarks.")
    moved: bool = Field(description="`p_corrected` is below 0.05: beyond noise.")
    only_new: int = Field(description="Samples that only the new run has scored.")
    only_old: int
    gained: list[str] = Field(description="Indexes of samples that only the new run has right.")
    lost: list[str]


class Comparison(_Content):
    """Two runs, sample by sample."""

    old_folders: list[str]
    old_model: str
    benchmarks: list[ComparedBenchmark]
    only_new: list[str] = Field(description="Benchmarks that the old run lacks.")
    only_old: list[str]


class Prices(_Content):
    """For the estimate of what a run costs."""

    input: float | None = Field(None, ge=0, description="Per million tokens that are read.")
    output: float | None = Field(None, ge=0, description="Per million tokens that are generated.")

    def cost(self, read: float | None, generated: float) -> float | None:
        """Price of some tokens; ``None`` without prices, or where what is priced is not known."""
        if self.input is None and self.output is None:
            return None
        if self.input is not None and read is None:
            return None
        return ((self.input or 0) * (read or 0) + (self.output or 0) * generated) / 1e6


class Report(_Content):
    """Everything."""

    title: str
    created: str = Field(description="ISO 8601, UTC.")
    version: str = Field(description="Of this package.")
    model: str
    folders: list[str]
    benchmarks: list[Benchmark]
    passes: list[Passes]
    findings: list[Finding]
    comparison: Comparison | None = None
    prices: Prices = Prices()
    published_source: str = SOURCE

    @property
    def trusted(self) -> bool:
        """Whether nothing was found that spoils the figures."""
        return all(finding.level != "distrust" for finding in self.findings)
