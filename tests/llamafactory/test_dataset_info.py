"""Entries of dataset_info.json mean to training and the check what they mean to ``sharegpt``."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from llamafactory.data import loader
from llamafactory.hparams import get_train_args
from typer.testing import CliRunner

from deepeyes_plugins.cli.main import app
from deepeyes_plugins.data.findings import DataError
from deepeyes_plugins.data.prepare import prepare_sft
from tests.llamafactory.conftest import Rows, tokenized, train_arguments

SYSTEM = "Look at the picture, then answer."
STANDARD = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
}


class Data:
    """A folder with rows and an entry for them."""

    def __init__(self, folder: Path, model: Path, media: Path) -> None:
        self.folder = folder
        self.model, self.media = model, media
        folder.mkdir()

    def write(self, rows: list[Any], entry: dict[str, Any]) -> None:
        (self.folder / "rows.json").write_text(json.dumps(rows))
        self.enter({"file_name": "rows.json", "formatting": "deepeyes", **entry})

    def enter(self, entry: dict[str, Any]) -> None:
        (self.folder / "dataset_info.json").write_text(json.dumps({"rows": entry}))

    def tokens(self, **options: Any) -> list[dict[str, Any]]:
        given = train_arguments(self.model, self.folder, self.media, self.folder / "out")
        return tokenized({**given, **options})

    def check(self, *options: str) -> tuple[int, str]:
        arguments = ["data", "check", str(self.folder), "--media-root", str(self.media)]
        arguments += ["--state", str(self.folder / "state"), "--json", *options]
        result = CliRunner().invoke(app, arguments)
        return result.exit_code, result.output


@pytest.fixture
def data(
    tmp_path: Path, tiny_model_path: Path, demonstrations: Path, monkeypatch: pytest.MonkeyPatch
) -> Data:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return Data(tmp_path / "data", tiny_model_path, demonstrations)


def renamed(row: dict[str, Any], keys: dict[str, str], roles: dict[str, str]) -> list[Any]:
    """The messages of a row under other keys and roles, without its system turn."""
    return [
        {keys["role"]: roles[turn["role"]], keys["content"]: turn["content"]}
        for turn in row["messages"]
        if turn["role"] != "system"
    ]


ROLES = {"user": "user", "assistant": "assistant"}
KEYS = {"role": "role", "content": "content"}
FORMS: dict[str, tuple[dict[str, str], dict[str, str], dict[str, Any]]] = {
    "columns of other names": (KEYS, ROLES, {"tags": STANDARD}),
    "other keys": (
        {"role": "who", "content": "says"},
        ROLES,
        {"tags": {**STANDARD, "role_tag": "who", "content_tag": "says"}},
    ),
    "the keys of ShareGPT": (
        {"role": "from", "content": "value"},
        {"user": "human", "assistant": "gpt"},
        {},
    ),
    "roles that mean the opposite": (
        KEYS,
        {"user": "assistant", "assistant": "user"},
        {"tags": {**STANDARD, "user_tag": "assistant", "assistant_tag": "user"}},
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_columns_and_tags_train_what_sharegpt_trains(name: str, data: Data, rows: Rows) -> None:
    keys, roles, entry = FORMS[name]
    made = [
        {"dialog": renamed(row, keys, roles), "pictures": row["images"], "rules": SYSTEM}
        for row in rows[:3]
    ]
    columns = {"messages": "dialog", "images": "pictures", "system": "rules"}
    data.write(made, {"columns": columns, **entry})

    ours = data.tokens()
    status, told = data.check()
    data.write(made, {"columns": columns, **entry, "formatting": "sharegpt"})
    theirs = data.tokens()

    assert [one["input_ids"] for one in ours] == [one["input_ids"] for one in theirs]
    assert [one["labels"] for one in ours] == [one["labels"] for one in theirs]
    assert (status, json.loads(told)[0]["dataset"]) == (0, "rows"), told


def test_a_system_turn_goes_ahead_of_the_column_and_what_is_not_named_is_not_read(
    data: Data, rows: Rows
) -> None:
    row = {**rows[0], "system": SYSTEM}
    row["messages"] = [{"role": "system", "content": "Be brief."}, *renamed(row, KEYS, ROLES)]
    plain = {**row, "messages": row["messages"][1:]}
    columns = {"messages": "messages", "images": "images", "system": "system"}
    made: dict[str, list[int]] = {}
    for name, entry in (
        ("named", {"columns": columns}),
        ("not named", {"columns": {"messages": "messages", "images": "images"}}),
        ("any form", {}),
    ):
        data.write([row, plain], entry)
        made[name] = [one["input_ids"] for one in data.tokens()]
    turn, column = made["named"]

    assert turn == made["not named"][0] == made["any form"][0] != column
    assert column == made["any form"][1] != made["not named"][1]


REFUSED = {
    **{f"columns.{name}": {"columns": {"messages": "messages", name: "x"}} for name in (
        "tools", "videos", "audios", "chosen", "rejected", "kto_tag",
    )},
    "'rules', which dataset_info.json names as system": {
        "columns": {"messages": "messages", "images": "images", "system": "rules"}
    },
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(name: str, data: Data, rows: Rows) -> None:
    data.write(rows[:2], REFUSED[name])

    with pytest.raises(DataError) as raised:
        data.tokens()
    status, told = data.check()

    assert name in str(raised.value) and name in told.replace("\\", "")
    assert status in (1, 2)


def test_the_check_says_what_training_cannot(data: Data, rows: Rows) -> None:
    for entry, told in (
        ({"split": "test"}, "split: 'test'"),
        ({"ranking": True}, "ranking: true is for reward models"),
        ({"columns": {"image": "images"}}, "columns.image is unknown to LLaMA-Factory; did"),
        ({"file_name": "gone.json"}, "gone.json: there is no such file"),
        ({"columns": ["messages"]}, "columns is a list"),
    ):
        data.write(rows[:2], entry)
        status, output = data.check()
        assert (status, told in output) == (2, True), output
    data.write(rows[:2], {"split": "train[:50%]", "num_samples": 1})
    assert data.check("--dataset", "rows")[0] == 0
    assert "no dataset_info.json at these paths" in data.check("--dataset", "others")[1]
    data.enter({"hf_hub_url": "someone/something", "formatting": "deepeyes"})
    assert json.loads(data.check()[1])[0]["dataset"] is None


def test_prepare_reads_rows_as_the_entry_says(data: Data, rows: Rows, tmp_path: Path) -> None:
    made = [{"dialog": row["messages"], "pictures": row["images"]} for row in rows[:2]]
    data.write(made, {"columns": {"messages": "dialog", "images": "pictures"}})

    prepared = prepare_sft([data.folder / "rows.json"], tmp_path / "made", media=[data.media])

    assert (prepared.summary.written, prepared.summary.bad) == (2, 0)


def test_types_that_differ_stop_training_with_file_and_row(data: Data, rows: Rows) -> None:
    data.write([{**row, "id": at if at % 2 else str(at)} for at, row in enumerate(rows)], {})

    with pytest.raises(DataError, match=r"rows\.json, row 2: id: a number, but a string in row 1"):
        data.tokens()
    data.write([], {})
    with pytest.raises(DataError, match=r"rows\.json: the file has no rows"):
        data.tokens()


def test_streaming_sets_what_it_needs_and_says_so(
    data: Data, rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    data.write(rows, {})
    given = train_arguments(data.model, data.folder, data.media, data.folder / "out")
    model, options, training, _, _ = get_train_args({**given, "streaming": True})

    with caplog.at_level(logging.WARNING, "deepeyes_plugins"):
        merged = loader._get_merged_dataset(options.dataset, model, options, training, "sft")

    assert len(list(merged)) == len(rows)
    assert training.dataloader_num_workers == 1
    assert training.accelerator_config.dispatch_batches is False
    assert "dataloader_num_workers is set to 1" in caplog.text
    assert "{dispatch_batches: false}" in caplog.text
