"""When the circuit breaker opens and closes."""

from __future__ import annotations

import pytest

from deepeyes_plugins.remote.circuit import Circuit
from deepeyes_plugins.remote.errors import CircuitOpenError, RemoteUnavailableError
from deepeyes_plugins.remote.retry import Backoff


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def fail(circuit: Circuit, status: int | None = None) -> None:
    with pytest.raises(RemoteUnavailableError), circuit.attempt():
        raise RemoteUnavailableError("down", status=status)


def succeed(circuit: Circuit) -> None:
    with circuit.attempt():
        pass


def test_it_opens_after_failures_in_a_row() -> None:
    circuit = Circuit(3, Backoff(10, 10), clock=Clock())
    fail(circuit)
    fail(circuit)
    succeed(circuit)
    fail(circuit)
    fail(circuit)
    assert circuit.wait == 0
    fail(circuit)
    assert circuit.wait == 10
    with pytest.raises(CircuitOpenError, match=r"10\.0 s after 3 consecutive failures") as caught:
        succeed(circuit)
    assert caught.value.retry_after == 10


def test_one_request_tries_while_the_others_wait() -> None:
    clock = Clock()
    circuit = Circuit(1, Backoff(10, 10), clock=clock)
    fail(circuit)
    clock.now = 10
    with circuit.attempt(), pytest.raises(CircuitOpenError):
        succeed(circuit)
    assert not circuit.is_open
    succeed(circuit)


def test_a_trial_that_fails_opens_it_again() -> None:
    clock = Clock()
    circuit = Circuit(5, Backoff(10, 10), clock=clock)
    for _ in range(5):
        fail(circuit)
    clock.now = 10
    fail(circuit)
    assert circuit.wait == 10


def test_a_trial_that_was_cancelled_is_repeated_later() -> None:
    clock = Clock()
    circuit = Circuit(1, Backoff(10, 10), clock=clock)
    fail(circuit)
    clock.now = 10
    with pytest.raises(KeyboardInterrupt), circuit.attempt():
        raise KeyboardInterrupt
    assert circuit.wait == 10
    clock.now = 20
    succeed(circuit)


def test_who_asks_for_patience_is_alive() -> None:
    circuit = Circuit(1, Backoff(10, 10), clock=Clock())
    fail(circuit, status=429)
    assert not circuit.is_open


def test_a_refusal_is_an_answer() -> None:
    circuit = Circuit(2, Backoff(10, 10), clock=Clock())
    fail(circuit)
    with pytest.raises(PermissionError), circuit.attempt():
        raise PermissionError
    fail(circuit)
    assert not circuit.is_open


def test_it_stays_open_longer_after_each_trial_that_fails() -> None:
    clock = Clock()
    circuit = Circuit(1, Backoff(1, 4), clock=clock)
    for seconds in (1, 2, 4, 4):
        fail(circuit)
        assert circuit.wait == seconds
        clock.now += seconds
    succeed(circuit)
    fail(circuit)
    assert circuit.wait == 1


def test_a_request_without_another_server_passes_and_its_failure_prolongs_nothing() -> None:
    clock = Clock()
    circuit = Circuit(1, Backoff(10, 40), clock=clock)
    fail(circuit)
    clock.now = 4
    with pytest.raises(RemoteUnavailableError, match="still"), circuit.attempt(even_if_open=True):
        raise RemoteUnavailableError("still down")
    assert circuit.wait == 6
    with circuit.attempt(even_if_open=True):
        pass
    assert not circuit.is_open


def test_an_error_that_names_a_time_opens_it_for_that_time() -> None:
    circuit = Circuit(1, Backoff(10, 10), clock=Clock())
    used_up = PermissionError("no searches are left today")
    circuit.open(used_up, 600)
    assert circuit.wait == 600
    assert circuit.cause is used_up
