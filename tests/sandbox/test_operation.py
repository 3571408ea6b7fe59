"""What an operator sees and must give: metrics, logs, a token."""

from __future__ import annotations

import json
import subprocess

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deepeyes_plugins.sandbox import SandboxClient, SandboxSettings, start_server

from .conftest import eventually
from .processes import PYTHON, ROOT, server_process


def samples(url: str) -> dict[str, float]:
    """Every sample by its name and labels, without the common prefix."""
    text = httpx.get(f"{url}/metrics", trust_env=False).text
    return {
        " ".join([sample.name.removeprefix("deepeyes_sandbox_"), *sample.labels.values()]): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_metrics_count_what_happened() -> None:
    settings = SandboxSettings(interrupt_grace=0.3)
    with start_server(settings) as server:
        headers = {"Authorization": f"Bearer {server.token}"}
        async with SandboxClient(server.url, token=server.token) as client:
            one, two = [await client.create_session() for _ in range(2)]
            for code, times in (("1", 3), ("1 / 0", 2)):
                for _ in range(times):
                    await one.execute(code, 10)
            await one.execute("while True: pass", 0.2)
            httpx.post(f"{server.url}/v1/sessions/{one.id}/evict", headers=headers, trust_env=False)
            assert eventually(lambda: samples(server.url).get("sessions stored") == 1)
            await one.execute("1", 10)
            await two.execute("import os; os._exit(1)", 10)
            assert eventually(lambda: samples(server.url).get("sessions live") == 1)
            await one.close()
            await two.close()
        counted = samples(server.url)
    expected = {
        **{"cells_total ok": 4, "cells_total error": 2},
        **{"cells_total timeout": 1, "cells_total killed": 1},
        **{"evictions_total asked": 1, "restores_total whole": 1, "sessions_opened_total": 2},
        **{"sessions_closed_total asked": 1, "sessions_closed_total killed": 1},
        **{"cell_seconds_count": 8, "queue_seconds_count": 8, "open_seconds_count": 2},
    }
    assert {name: counted.get(name) for name in expected} == expected
    assert counted["cell_seconds_sum"] > 0.2


async def test_logs_are_one_json_object_a_line() -> None:
    options = ("--log-format", "json", "--log-level", "debug")
    with server_process(options=options) as server:
        async with SandboxClient(server.url) as client, await client.create_session() as session:
            await session.execute("print('for the client, not for the log')", 10)
            httpx.post(f"{server.url}/v1/sessions/{session.id}/evict", trust_env=False)
            await session.execute("1", 10)
        records = [json.loads(line) for line in server.log.read_text().splitlines()]
    messages = [record["message"] for record in records]
    assert {"levelname", "name", "message", "timestamp"} <= set(records[0])
    assert any(message.startswith("isolation of sessions: ") for message in messages)
    assert any("listens on http://127.0.0.1:" in message for message in messages)
    assert any(message.endswith("restored (whole)") for message in messages)
    assert not any("for the client" in message for message in messages)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_server_for_others_wants_a_token(host: str) -> None:
    command = [*PYTHON, "--port", "0", "--host", host]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "bearer token" in done.stderr and "DEEPEYES_TOKEN_SANDBOX" in done.stderr


async def test_a_server_for_others_starts_with_a_token_and_warns_of_an_old_option() -> None:
    environment = {"DEEPEYES_TOKEN_SANDBOX": "secret"}
    options = ("--host", "0.0.0.0", "--workers", "2")
    with server_process(options=options, environment=environment) as server:
        assert "--workers is deprecated" in server.log.read_text()
        refused = httpx.post(f"{server.url}/v1/sessions", json={}, trust_env=False)
        assert refused.status_code == 401 and refused.json()["error"]
        async with (
            SandboxClient(server.url, token="secret") as client,
            await client.create_session() as session,
        ):
            assert (await session.execute("6 * 7", 10)).result == "42"
            hidden = await session.execute("import os; 'secret' in str(os.environ)", 10)
            assert hidden.result == "False"
