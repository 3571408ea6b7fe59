"""Limits that make no sense are refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from deepeyes_plugins.rollout import Limits


@pytest.mark.parametrize(
    "wrong", [{"turns": 0}, {"wall_time": 0}, {"images": -1}, {"token": 5}, {"turns": "many"}]
)
def test_wrong_limits(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Limits.model_validate(wrong)


def test_defaults_are_those_of_the_training() -> None:
    assert Limits().turns == 9
