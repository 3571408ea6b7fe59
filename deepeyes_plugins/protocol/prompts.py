"""Default system prompts for instruction-following models.

A released checkpoint was trained with one exact prompt: extract that from its training data
(``deepeyes data prompt``) instead.
"""

from __future__ import annotations

from collections.abc import Sequence

from deepeyes_plugins.protocol.coordinates import Coordinates

_OPENING = """\
You answer questions about images. Think first, inside <think> and </think>. Then do exactly one \
thing: {actions}. What a tool returns comes back to you as the next message; then think again, and \
go on until you can answer."""

_ANSWER = """\
## Answer
When you are sure, write the final answer, short and without explanation:
<answer>
your answer
</answer>"""

_CODE = """\
## Python
<code>
```python
# your code
```
</code>
The images of the question are loaded as Pillow images: image_1 is the first, image_2 the second, \
and so on. Import what else you use. Variables stay alive from one block to the next. Use print() \
for text, and matplotlib's plt.imshow(...) with plt.show() to look at a crop, an enlargement or a \
drawing. Coordinates in code are pixels of the original image, whose size is image_1.size. Files \
and the network are out of reach."""

_THOUSANDTHS = """\
You see positions in thousandths of an image's width and height, from 0 to 1000. In code, x in \
pixels is x * image_1.width / 1000, and y in pixels is y * image_1.height / 1000."""

_SEARCH = """\
## Text search
<tool_call>
{"name": "search", "arguments": {"query": "what to search for"}}
</tool_call>"""

_IMAGE_SEARCH = """\
## Image search
Finds web pages that show the first image of the question. It takes no arguments; use it once at \
most.
<tool_call>
{"name": "image_search"}
</tool_call>"""

_READ_PAGE = """\
## Reading a page
<tool_call>
{"name": "read_page", "arguments": {"url": "address of a web page"}}
</tool_call>"""

_SECTIONS = {
    "python": ("run Python", _CODE),
    "search": ("search the web", _SEARCH),
    "image_search": ("search by image", _IMAGE_SEARCH),
    "read_page": ("read a web page", _READ_PAGE),
}


def deepeyes_v2_prompt(
    tools: Sequence[str] = ("python",), coordinates: Coordinates = Coordinates.PIXELS
) -> str:
    """Describe the wire format of DeepEyesV2 to a model.

    Args:
        tools: The agent's tools, of ``python``, ``search``, ``image_search`` and ``read_page``.
        coordinates: Unit of the model's positions in an image.

    Raises:
        ValueError: A tool without a description here.
    """
    unknown = [tool for tool in tools if tool not in _SECTIONS]
    if unknown:
        raise ValueError(
            f"no description of the tools {', '.join(unknown)}: write a system prompt of your own"
        )
    actions = [_SECTIONS[tool][0] for tool in tools] + ["answer"]
    listed = " or ".join([", ".join(actions[:-1]), actions[-1]] if tools else actions)
    sections = [_SECTIONS[tool][1] for tool in tools]
    if "python" in tools and coordinates is Coordinates.THOUSANDTHS:
        sections.insert(tools.index("python") + 1, _THOUSANDTHS)
    return "\n\n".join([_OPENING.format(actions=listed), *sections, _ANSWER])
