"""The probe before a run, on vLLM's real server."""

from __future__ import annotations

import pytest

from deepeyes_plugins.hosts.openai import OpenAISettings
from deepeyes_plugins.hosts.openai.probe import probe


@pytest.mark.parametrize("profile", ["vllm", "generic"])
async def test_vllm_does_everything_that_its_profile_asks_for(url: str, profile: str) -> None:
    settings = {"profile": profile, "max_tokens": 1024}
    (report,) = await probe(OpenAISettings(url=url, **settings))
    assert report.found == ()


async def test_what_vllm_refuses_and_its_context_are_told(url: str) -> None:
    refused = OpenAISettings(
        url=url, profile="vllm", extra_body={"temperature": 3.0}, max_tokens=99
    )
    ((one,),) = [report.found for report in await probe(refused)]
    assert one.stops and "HTTP 400" in one.what and "temperature" in one.what

    (report,) = await probe(OpenAISettings(url=url, profile="vllm", max_tokens=8192))
    (context,) = report.found
    assert "its context is 4096 tokens" in context.what and not context.stops
