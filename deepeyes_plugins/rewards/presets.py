"""Rewards of DeepEyesV2 and DeepEyes V1 by data source."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from deepeyes_plugins.errors import SettingsError
from deepeyes_plugins.extras import install_command
from deepeyes_plugins.judge.contracts import PromptName
from deepeyes_plugins.rewards import algebra
from deepeyes_plugins.rewards.contracts import RewardResources
from deepeyes_plugins.rewards.correctness import Accuracy, Rules
from deepeyes_plugins.rewards.format import (
    boxed_answer,
    is_well_formed,
    is_well_formed_boxed,
    is_well_formed_toolbox,
)
from deepeyes_plugins.rewards.mathematics import mathematics_verdict
from deepeyes_plugins.rewards.rules import rule_verdict, starts_with_truth
from deepeyes_plugins.rewards.scores import PARTS, DeepEyesScore, Grammar


def prefix_verdict(answer: str, ground_truth: str) -> bool | None:
    """Decide as for ``vstar-test``: an answer that begins with the reference is correct."""
    return starts_with_truth(answer, ground_truth) or rule_verdict(answer, ground_truth)


DEEPEYES_V2 = Grammar()
DEEPEYES_V2_SEARCH = Grammar(well_formed=partial(is_well_formed, tool_calls=True))
DEEPEYES_V1 = Grammar(
    well_formed=is_well_formed_toolbox, malformed=-1.0, formed=0.0, needs_image=True
)
DEEPEYES_V1_BOXED = Grammar(
    answer=boxed_answer, well_formed=is_well_formed_boxed, malformed=-1.0, formed=0.0
)


@dataclass(frozen=True, slots=True)
class _Factory:
    """Creates the reward of one data source."""

    source: str
    grammar: Grammar
    prompt: PromptName = "answer"
    rules: Rules = rule_verdict
    parts = PARTS

    def __call__(self, resources: RewardResources) -> DeepEyesScore:
        """Create the reward.

        Raises:
            SettingsError: The settings require a judge or math-verify that is missing.
        """
        settings = getattr(resources.settings, self.source.replace("-", "_"))
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
            Accuracy(settings, resources.judge, self.prompt, self.rules, resources.algebra),
            self.grammar,
        )


perception = _Factory("perception", DEEPEYES_V2)
reason = _Factory("reason", DEEPEYES_V2, "equivalence", mathematics_verdict)
search = _Factory("search", DEEPEYES_V2_SEARCH)
vstar_test = _Factory("vstar-test", DEEPEYES_V2, rules=prefix_verdict)
vstar = _Factory("vstar", DEEPEYES_V1)
chart = _Factory("chart", DEEPEYES_V1)
thinklite_eureka = _Factory(
    "thinklite_eureka", DEEPEYES_V1_BOXED, "equivalence", mathematics_verdict
)
