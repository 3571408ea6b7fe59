"""The stub tool as verl's stock loop wants it: ``rollout.multi_turn.function_tool_path``."""

from __future__ import annotations

from verl.tools.function_tool import function_tool

from rollouts.stub import NAME, result


@function_tool(NAME)
async def look_up(query: str) -> str:
    """Find something about everything.

    Args:
        query: What to look up.
    """
    return result()
