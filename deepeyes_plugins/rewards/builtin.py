"""The rewards of this package, registered like anybody else's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from deepeyes_plugins.extras import install_command
from deepeyes_plugins.hookspecs import hookimpl
from deepeyes_plugins.judge.contracts import PromptName
from deepeyes_plugins.rewards import algebra
from deepeyes_plugins.rewards.accuracy import rule_verdict, starts_with_truth
from deepeyes_plugins.rewards.contracts import RewardFactory, RewardResources
from deepeyes_plugins.rewards.form import (
    boxed_answer,
    is_well_formed,
    is_well_formed_boxed,
    is_well_formed_toolbox,
)
from deepeyes_plugins.rewards.judging import Accuracy, Rules
from deepeyes_plugins.rewards.mathematics import mathematics_verdict
from deepeyes_plugins.rewards.scores import PARTS, DeepEyesScore, Grammar
from deepeyes_plugins.settings import SettingsError


def prefix_verdict(answer: str, ground_truth: str) -> bool | None:
    """As for ``vstar-test``: an answer that begins with the reference is right as well."""
    return starts_with_truth(answer, ground_truth) or rule_verdict(answer, ground_truth)


DEEPEYES_V2 = Grammar()
DEEPEYES_V2_SEARCH = Grammar(well_formed=partial(is_well_formed, tool_calls=True))
DEEPEYES_V1 = Grammar(
    well_formed=is_well_formed_toolbox, malformed=-1.0, formed=0.0, needs_image=True
)
DEEPEYES_V1_BOXED = Grammar(
    answer=boxed_answer, well_formed=is_well_formed_boxed, malformed=-1.0, formed=0.0
)

_KINDS: Mapping[str, tuple[Grammar, PromptName, Rules]] = {
    "perception": (DEEPEYES_V2, "answer", rule_verdict),
    "reason": (DEEPEYES_V2, "equivalence", mathematics_verdict),
    "search": (DEEPEYES_V2_SEARCH, "answer", rule_verdict),
    "vstar-test": (DEEPEYES_V2, "answer", prefix_verdict),
    "vstar": (DEEPEYES_V1, "answer", rule_verdict),
    "chart": (DEEPEYES_V1, "answer", rule_verdict),
    "thinklite_eureka": (DEEPEYES_V1_BOXED, "equivalence", mathematics_verdict),
}


@dataclass(frozen=True, slots=True)
class _Factory:
    """Makes the score of one data source."""

    source: str
    parts = PARTS

    def __call__(self, resources: RewardResources) -> DeepEyesScore:
        """Make it.

        Raises:
            SettingsError: The settings ask for a judge or for math-verify, and there is none.
        """
        grammar, prompt, rules = _KINDS[self.source]
        settings = getattr(resources.settings.rewards, self.source.replace("-", "_"))
        if settings.decide == "judge" and resources.judge is None:
            raise SettingsError(
                f"rewards.{self.source}.decide is 'judge', but no judge is configured: name one "
                "under judge in agent.yaml, or let rules decide (auto or rules)"
            )
        if settings.math_verify and not algebra.available():
            raise SettingsError(
                f"rewards.{self.source}.math_verify is on, but math-verify is not installed: "
                f"{install_command('math')}, or turn it off"
            )
        return DeepEyesScore(
            Accuracy(settings, resources.judge, prompt, rules, resources.algebra), grammar
        )


@hookimpl
def register_rewards(register: Callable[[str, RewardFactory], None]) -> None:
    """Register the rewards of DeepEyesV2 and of DeepEyes under their data sources."""
    for source in _KINDS:
        register(source, _Factory(source))
