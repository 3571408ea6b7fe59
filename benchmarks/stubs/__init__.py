"""Stub model servers in separate processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CODE = "<code>\n```python\nimage_1.crop((0, 0, 64, 64))\n```\n</code>"
ZOOM = (
    '<tool_call>\n{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [0, 0, 64, 64]}}\n'
    "</tool_call>"
)


@contextmanager
def chat_stub(latency: float, tool_turns: int, call: str = CODE) -> Iterator[str]:
    """A chat server that calls a tool in the first turns and then answers; its base URL.

    Args:
        latency: Seconds that every turn takes.
        tool_turns: Turns with `call`, where the request has stop strings: those with tools do.
        call: What a tool turn says after its thinking.
    """
    script = str(Path(__file__).with_name("chat.py"))
    stub = subprocess.Popen(
        [sys.executable, script, f"{latency}", f"{tool_turns}", call],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert stub.stdout is not None
        yield f"http://127.0.0.1:{int(stub.stdout.readline())}/v1"
    finally:
        stub.terminate()
        stub.wait()
