"""Make a data set for RL: a parquet file of questions with their reference answers."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from deepeyes_plugins.protocol.content import EncodedImage
from deepeyes_plugins.protocol.prompts import deepeyes_v2_prompt

photo = EncodedImage.from_pil(Image.linear_gradient("L").convert("RGB"))  # or your file's bytes
questions = [(photo, "Is the upper left corner dark or bright?", "dark")]
rows = [
    {
        "data_source": "perception",  # chooses the reward
        "env_name": "deepeyes_v2",  # chooses the tools
        "prompt": [
            {"role": "system", "content": deepeyes_v2_prompt(["python"])},
            {"role": "user", "content": f"<image>{question}"},
        ],
        "images": [{"bytes": image.data, "path": None}],
        "reward_model": {"ground_truth": answer, "style": "rule"},
        "extra_info": {"index": str(number), "question": question, "answer": answer},
    }
    for number, (image, question, answer) in enumerate(questions)
]
path = Path("data/my_rl/train.parquet")
path.parent.mkdir(parents=True, exist_ok=True)
pq.write_table(pa.Table.from_pylist(rows), path)
