"""How long a client waits between attempts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deepeyes_plugins.remote.retry import Backoff

seconds = st.floats(0, 1e4)


@given(st.integers(1, 10_000), seconds, seconds, seconds, seconds)
def test_the_maximum_holds_whatever_the_failures_and_the_server_request(
    failures: int, first: float, maximum: float, jitter: float, requested: float
) -> None:
    wait = Backoff(first, maximum, jitter).seconds(failures, requested)
    assert min(max(first, requested), maximum) <= wait <= maximum


def test_the_time_doubles_with_each_failure() -> None:
    backoff = Backoff(0.5, 30)
    assert [backoff.seconds(failures) for failures in range(1, 9)] == [0.5, 1, 2, 4, 8, 16, 30, 30]


def test_clients_that_fail_together_do_not_retry_together() -> None:
    backoff = Backoff(1, 30, jitter=1)
    waits = {backoff.seconds(1) for _ in range(64)}
    assert len(waits) > 32
    assert all(1 <= wait <= 2 for wait in waits)
