"""A formatter for rows with a question, an image's path and a caption."""

from collections.abc import Callable, Mapping
from typing import Any

from deepeyes_plugins import hookimpl
from deepeyes_plugins.data.contracts import Conversation, Formatter, RowError


def caption(row: Mapping[str, Any]) -> Conversation:
    missing = {"question", "caption", "picture"} - set(row)
    if missing:
        raise RowError(f"the row has no {', '.join(sorted(missing))}")
    answer = f"<think>I can see it.</think>\n<answer>{row['caption']}</answer>"
    turns = (("user", f"<image>{row['question']}"), ("assistant", answer))
    return Conversation(turns, (row["picture"],))


@hookimpl
def register_formatters(register: Callable[[str, Formatter], None]) -> None:
    register("caption", caption)
