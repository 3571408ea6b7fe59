"""Make a data set for SFT: one JSON line per conversation, images beside it."""

import json
from pathlib import Path

from PIL import Image

from deepeyes_plugins.protocol.prompts import deepeyes_v2_prompt

folder = Path("data/my_sft")
(folder / "images").mkdir(parents=True, exist_ok=True)
# Your own: a photo, a crop that code makes of it, and what is right.
photo = Image.linear_gradient("L").convert("RGB")
photo.save(folder / "images/0.png")
photo.crop((0, 0, 64, 64)).save(folder / "images/0-crop.png")

code = "import matplotlib.pyplot as plt\nplt.imshow(image_1.crop((0, 0, 64, 64)))\nplt.show()"
look = f"<think>The corner is small.</think>\n<code>\n```python\n{code}\n```\n</code>"
seen = "Code execution result:\nstdout:\n```\n\n```\n\nstderr:\n```\n\n```\n\nImages:\n<image>"
messages = [
    {"role": "system", "content": deepeyes_v2_prompt(["python"])},  # the same as in RL
    {"role": "user", "content": "<image>Is the upper left corner dark or bright?"},
    {"role": "assistant", "content": look},
    {"role": "user", "content": seen},
    {"role": "assistant", "content": "<think>It is black.</think>\n<answer>dark</answer>"},
]
rows = [{"messages": messages, "images": ["images/0.png", "images/0-crop.png"]}]
(folder / "my_sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
entry = {"my_sft": {"file_name": "my_sft.jsonl", "formatting": "deepeyes"}}  # for LLaMA-Factory
(folder / "dataset_info.json").write_text(json.dumps(entry))
