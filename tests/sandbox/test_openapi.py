"""What the server says of its interface is true: schemathesis tries it on a live server."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from deepeyes_plugins.sandbox import EmbeddedServer, SandboxSettings, api, start_server

SETTINGS = SandboxSettings(max_sessions=12, memory_mb=256, cell_timeout=1, interrupt_grace=0.5)
# All checks but one, for one operation: no schema can say that the digest must be the body's, and
# that the body must be an image, so nearly all of the bytes that are made up are refused.
CONFIGURATION = """
[[operations]]
include-name = "PUT /v1/images/{digest}"
checks.positive_data_acceptance.enabled = false
"""


@pytest.mark.parametrize(
    ("with_token", "phases", "examples"),
    [(True, "coverage,fuzzing,stateful", 10), (False, "coverage", 1)],
    ids=["token", "no token"],
)
def test_the_interface_is_what_its_document_says(
    tmp_path: Path, with_token: bool, phases: str, examples: int
) -> None:
    configuration = tmp_path / "schemathesis.toml"
    configuration.write_text(CONFIGURATION)
    with start_server(SETTINGS) as server:
        token = ["--header", f"Authorization: Bearer {server.token}"] if with_token else []
        done = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli"),
                *("--config-file", str(configuration), "run", f"{server.url}/openapi.json"),
                *("--phases", phases, "--continue-on-failure", "--no-shrink", "--no-color"),
                *("--max-examples", str(examples), "--seed", "7", "--max-time", "15"),
                *("--generation-database", "none", "--suppress-health-check", "all"),
                *token,
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        # All but the document itself.
        assert f"Tested: {len(api.ENDPOINTS) - 1}" in done.stdout
        assert server.alive


def test_the_document_names_every_endpoint_and_defines_every_schema() -> None:
    described = api.document("1")
    references = re.findall(r'"#/components/schemas/(\w+)"', json.dumps(described))
    assert set(references) == set(described["components"]["schemas"])
    named = {
        operation["operationId"]
        for operations in described["paths"].values()
        for operation in operations.values()
    }
    assert named == set(api.ENDPOINTS)


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        (f"/v1/images/{'0' * 64}", {"GET", "HEAD", "PUT"}),
        ("/v1/sessions", {"POST"}),
        ("/v1/sessions/x", {"DELETE"}),
        ("/health", {"GET", "HEAD"}),
    ],
)
def test_other_methods_are_told_which_are_allowed(
    server: EmbeddedServer, path: str, allowed: set[str]
) -> None:
    answer = httpx.request("PATCH", server.url + path, trust_env=False)
    assert answer.status_code == 405 and answer.json()["error"]
    assert set(answer.headers["allow"].replace(" ", "").split(",")) == allowed
