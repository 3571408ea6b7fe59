"""Bad rows stop a run before it starts, named, or are dropped on request."""

from __future__ import annotations

import copy
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from llamafactory.data import converter
from llamafactory.data.parser import get_dataset_list

from deepeyes_plugins import hookimpl, plugins
from deepeyes_plugins.data.contracts import Conversation, RowError
from deepeyes_plugins.data.findings import DataError
from deepeyes_plugins.data.hooks import formatters
from deepeyes_plugins.errors import SettingsError
from deepeyes_plugins.hosts.llamafactory.converter import BAD_ROWS_VARIABLE
from deepeyes_plugins.hosts.llamafactory.register import register_converters
from deepeyes_plugins.plugins import PluginError
from tests.llamafactory.conftest import Rows, tokenized, train_arguments, write_dataset

Arguments = Callable[..., dict[str, Any]]


@pytest.fixture
def arguments(tiny_model_path: Path, demonstrations: Path, tmp_path: Path) -> Arguments:
    def make(rows: Rows, formatting: str = "deepeyes") -> dict[str, Any]:
        data = write_dataset(tmp_path / "data", rows, formatting)
        return train_arguments(tiny_model_path, data, demonstrations, tmp_path / "out")

    return make


@pytest.fixture
def bad_rows(rows: Rows) -> Rows:
    """Row 2 has too many images, row 5 one that does not exist; the others are good."""
    changed = copy.deepcopy(rows)
    changed[1]["images"].append(changed[0]["images"][0])
    changed[4]["images"][0] = "images/gone.png"
    return changed


def test_formatters_are_dataset_converters_without_being_asked() -> None:
    """The package's import hook has registered them; doing it again is harmless."""
    assert "deepeyes" in converter.DATASET_CONVERTERS
    register_converters(converter)


def test_bad_rows_stop_the_run_and_are_named(arguments: Arguments, bad_rows: Rows) -> None:
    with pytest.raises(DataError) as raised:
        tokenized(arguments(bad_rows))

    message = str(raised.value)
    assert "rows.json: 2 of 8 rows cannot be used (counted from 1)" in message
    assert "rows.json, row 2: 2 <image> placeholders but 3 images" in message
    assert "rows.json, row 5: images: image 1 (images/gone.png)" in message
    assert f"{BAD_ROWS_VARIABLE}=drop" in message


def test_bad_rows_are_dropped_on_request(
    arguments: Arguments,
    bad_rows: Rows,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(BAD_ROWS_VARIABLE, "drop")

    with caplog.at_level(logging.WARNING, "deepeyes_plugins"):
        examples = tokenized(arguments(bad_rows))

    assert len(examples) == 6
    assert "dropping 2 row(s)" in caplog.text
    assert "row 2: 2 <image> placeholders but 3 images" in caplog.text


def test_a_file_that_cannot_be_read_is_not_dropped(
    arguments: Arguments, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(BAD_ROWS_VARIABLE, "drop")
    given = arguments(rows)
    file = Path(given["dataset_dir"]) / "rows.json"
    lines = [json.dumps(row).encode() for row in rows * 5]
    file.write_bytes(b"\n".join([*lines, b"\xff"]))
    options = {key: given[key] for key in ("dataset_dir", "media_dir", "template")}
    data = SimpleNamespace(**options, max_samples=None)
    entry = get_dataset_list(["rows"], data.dataset_dir)[0]

    with pytest.raises(DataError, match="is not UTF-8"):
        converter.get_dataset_converter("deepeyes", entry, data)


def test_other_processes_leave_the_file_to_the_first(
    arguments: Arguments, bad_rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should one get to see a bad row nevertheless, it stops there and shows the row."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    given = arguments(bad_rows)
    data = SimpleNamespace(**{key: given[key] for key in ("dataset_dir", "media_dir", "template")})
    entry = get_dataset_list(["rows"], data.dataset_dir)[0]

    convert = converter.get_dataset_converter("deepeyes", entry, data)

    with pytest.raises(
        RowError, match=r"rows\.json: 2 <image> .* but 3 images\. The row is: .*zoom"
    ):
        convert(bad_rows[1])


def test_images_outside_of_the_media_folder_are_named(
    arguments: Arguments, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the check of the file, and in processes that convert single rows."""
    elsewhere = tmp_path / "elsewhere" / "1.png"
    elsewhere.parent.mkdir()
    given = arguments(rows)
    shutil.copy(Path(given["media_dir"]) / rows[0]["images"][0], elsewhere)
    changed = copy.deepcopy(rows)
    changed[0]["images"][0] = str(elsewhere)
    given = arguments(changed)
    data = SimpleNamespace(
        **{key: given[key] for key in ("dataset_dir", "media_dir", "template")},
        max_samples=None,
        streaming=False,
    )
    entry = get_dataset_list(["rows"], data.dataset_dir)[0]
    with pytest.raises(DataError, match=r"rows\.json, row 1: images: .* outside .* in media_dir"):
        converter.get_dataset_converter("deepeyes", entry, data)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(RowError, match=r"1\.png is outside .*media_dir or DEEPEYES_MEDIA_ROOTS"):
        converter.get_dataset_converter("deepeyes", entry, data)(changed[0])

    monkeypatch.setenv("DEEPEYES_MEDIA_ROOTS", str(elsewhere.parent))

    convert = converter.get_dataset_converter("deepeyes", entry, data)
    assert convert(changed[0])["_images"].to_pylist()[0][0] == str(elsewhere)


def test_wrong_choice_is_refused(
    arguments: Arguments, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(BAD_ROWS_VARIABLE, "ignore")

    with pytest.raises(SettingsError, match="DEEPEYES_SFT_BAD_ROWS is 'ignore'"):
        tokenized(arguments(rows))


@pytest.fixture
def colour_plugin() -> Iterator[None]:
    """A third party's formatter with columns of its own."""

    def format_colours(row: Mapping[str, Any]) -> Conversation:
        answer = f"<think>{row['seen']}</think>\n<answer>{row['colour']}</answer>"
        return Conversation(
            (("user", "<image>" + row["asked"]), ("assistant", answer)), (row["file"],)
        )

    class ColourPlugin:
        @hookimpl
        def register_formatters(self, register: Callable[[str, Any], None]) -> None:
            register("colours", format_colours)
            register("alpaca", format_colours)

    plugin = ColourPlugin()
    plugins.manager().register(plugin, "colour-plugin")
    formatters.cache_clear()
    yield
    plugins.manager().unregister(plugin)
    formatters.cache_clear()
    converter.DATASET_CONVERTERS.pop("colours", None)


def test_formatter_of_a_third_party(arguments: Arguments, rows: Rows, colour_plugin: None) -> None:
    with pytest.raises(PluginError, match="'alpaca' of colour-plugin"):
        register_converters(converter)
    own_columns = [
        {"asked": "What colour?", "seen": "red", "colour": "red", "file": rows[0]["images"][0]},
        {"asked": "Which colour?", "seen": "blue", "colour": "blue", "file": rows[1]["images"][0]},
    ]

    assert len(tokenized(arguments(own_columns, "colours"))) == 2
