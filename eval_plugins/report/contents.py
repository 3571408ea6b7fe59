"""Schema of ``report.json``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from deepeyes_plugins.protocol.content import encodable
from eval_plugins.report.published import SOURCE, Published
from eval_plugins.report.results import Scoring
from eval_plugins.report.statistics import Interval, Paired

Level = Literal["distrust", "caution", "note"]


ROUNDING = 0.051
"""Largest difference, in percentage points, between two scores rounded to one decimal."""


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Finding(_Content):
    """A problem that affects how far the results can be trusted."""

    level: Level = Field(
        description="`distrust`: the results do not measure the model; `caution`: they may be "
        "off; `note`: they are right, but worth a look."
    )
    benchmark: str = Field("", description="Name of the dataset; empty for the whole run.")
    message: Annotated[str, AfterValidator(encodable)]
    advice: str = ""


class AgentMetrics(_Content):
    """Metrics of the agent on one benchmark, computed from its trajectories."""

    trajectories: int
    calls: dict[str, float] = Field(description="Calls per sample, by tool.")
    calls_failed: dict[str, float] = Field(
        description="Share of a tool's calls that failed with a model error."
    )
    samples_with_calls: float = Field(description="Share of samples with a call, 0 to 1.")
    infrastructure_errors: float = Field(
        description="Share of all calls that failed with an infrastructure error, such as a "
        "sandbox or search service that is down."
    )
    turns: float = Field(description="Mean turns per sample.")
    tokens: float = Field(description="Mean generated tokens per sample.")
    prompt_tokens: float | None = Field(
        description="Mean prompt tokens per sample, summed over all requests; unset if the "
        "trajectories do not record them."
    )
    seconds_p50: float
    seconds_p95: float
    end_reasons: dict[str, int]
    cut: int = Field(description="Samples with a turn that was truncated at its length limit.")
    cost: float | None = Field(
        None, description="Total cost in the currency of the prices; unset without prices."
    )


class Category(_Content):
    """Accuracy on one category of a benchmark."""

    name: str
    samples: int
    accuracy: float = Field(description="Percent.")


class Benchmark(_Content):
    """Results of one dataset."""

    name: str = Field(description="VLMEvalKit's name of the dataset.")
    title: str
    group: str
    model: str
    folder: str
    samples: int
    scored: int
    failed: int = Field(
        description="Samples that failed with an infrastructure error; not counted as wrong."
    )
    value: float | None = Field(description="VLMEvalKit's score, in percent or `out_of`.")
    metric: str = Field(description="VLMEvalKit's name of that score; empty: `accuracy` is shown.")
    out_of: float = Field(100.0, description="The best possible score.")
    accuracy: float | None = Field(description="Mean score of the scored samples, percent.")
    interval: Interval | None = Field(
        description="95 % bootstrap confidence interval of `accuracy`, percent."
    )
    same: bool = Field(
        description="`value` equals `accuracy` up to its unit, so `interval` applies to it."
    )
    scoring: Scoring
    reconstructed: bool = Field(
        description="Scores of samples were recomputed with the benchmark's rule."
    )
    published: Published | None = None
    shuffled_from: str | None = Field(None, description="Benchmark whose options are shuffled.")
    agent: AgentMetrics | None = None
    categories: list[Category] = []

    @property
    def shown(self) -> float | None:
        """The score to show in a table."""
        return self.value if self.value is not None else self.accuracy

    @property
    def shown_interval(self) -> Interval | None:
        """The confidence interval of :attr:`shown`, in the same unit."""
        if self.interval is None or (self.value is not None and not self.same):
            return None
        return self.interval.scaled(self.out_of / 100)

    @property
    def plotted(self) -> float | None:
        """The score to plot: the accuracy if VLMEvalKit counts failed samples as wrong."""
        if self._counts_failed and self.accuracy is not None:
            return self.accuracy * self.out_of / 100
        return self.shown

    @property
    def plotted_interval(self) -> Interval | None:
        """The confidence interval of :attr:`plotted`, in the same unit."""
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
    """Aggregate of several passes of one benchmark with shuffled options."""

    name: str = Field(description="VLMEvalKit's name of the benchmark.")
    title: str
    passes: list[str]
    mean: float = Field(description="Mean over the passes, percent.")
    spread: float = Field(description="Standard deviation over the passes, percentage points.")
    low: float
    high: float
    interval: Interval | None = Field(
        None, description="95 % bootstrap interval of the mean; all passes of a sample together."
    )
    published: Published | None = None


class ComparedBenchmark(_Content):
    """One dataset in two runs."""

    name: str
    title: str
    paired: Paired = Field(description="Comparison on the samples that both runs scored.")
    new: float = Field(description="Accuracy on those samples, percent.")
    old: float
    p_corrected: float = Field(
        description="p-value after Holm's correction for the number of benchmarks."
    )
    moved: bool = Field(description="The difference is significant: `p_corrected` is below 0.05.")
    only_new: int = Field(description="Samples that only the new run scored.")
    only_old: int = Field(description="Samples that only the old run scored.")
    gained: list[str] = Field(description="Indices of samples that are right in the new run only.")
    lost: list[str] = Field(description="Indices of samples that are right in the old run only.")


class Comparison(_Content):
    """Comparison of two runs, sample by sample."""

    old_folders: list[str]
    old_model: str
    benchmarks: list[ComparedBenchmark]
    only_new: list[str] = Field(description="Benchmarks that only the new run has.")
    only_old: list[str] = Field(description="Benchmarks that only the old run has.")


class Prices(_Content):
    """Prices for the cost estimate of a run."""

    input: float | None = Field(None, ge=0, description="Price per million prompt tokens.")
    output: float | None = Field(None, ge=0, description="Price per million generated tokens.")

    def cost(self, read: float | None, generated: float) -> float | None:
        """Return the cost; ``None`` without prices, or if a priced token count is unknown."""
        if self.input is None and self.output is None:
            return None
        if self.input is not None and read is None:
            return None
        return ((self.input or 0) * (read or 0) + (self.output or 0) * generated) / 1e6


class Report(_Content):
    """The whole report."""

    title: str
    created: str = Field(description="ISO 8601, UTC.")
    version: str = Field(description="Version of this package.")
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
        """Whether no finding of level ``distrust`` exists."""
        return all(finding.level != "distrust" for finding in self.findings)
