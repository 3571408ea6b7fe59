"""Lossless texts in VLMEvalKit's tables.

pandas reads a prediction ``None`` or ``N/A`` as missing and ``007`` as a number, and a spreadsheet
changes the texts described in :mod:`eval_plugins.cells`. All of VLMEvalKit's tables are written and
read by ``vlmeval.smp.file``, which is patched here so that the model's exact text is scored.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import pandas as pd

from eval_plugins.cells import decoded, encoded
from eval_plugins.report.published import SHUFFLED

PREDICTION, ANSWER = "prediction", "answer"
_NOTHING = ("", "nan", "NaN", "-nan", "-NaN")
"""Cells without a reference answer; programs write "nan" for a missing value."""
_READERS: dict[str, Callable[..., pd.DataFrame]] = {
    "xlsx": pd.read_excel,
    "csv": pd.read_csv,
    "tsv": lambda path, **keywords: pd.read_csv(path, sep="\t", **keywords),
}


def keep_texts(file: Any) -> None:
    """Patch ``dump`` and ``load`` to preserve texts; called once ``vlmeval.smp.file`` is imported.

    At that time no other module of VLMEvalKit has imported the two. The patch affects all models:

    * ``dump`` encodes the texts of a prediction table that a spreadsheet would change.
    * ``load`` decodes them and reads predictions and the options of shuffled passes as text, and
      also reference answers if one is a word such as ``None``. Empty cells stay empty.
    * ``load`` returns predictions in JSON as a table, as upstream's scoring expects.

    Args:
        file: The module ``vlmeval.smp.file``.
    """
    write, read = file.dump, file.load

    @wraps(write)
    def dump(data: Any, f: str, **keywords: Any) -> Any:
        if isinstance(data, pd.DataFrame) and PREDICTION in data and _suffix(f) in _READERS:
            data = _each_text(data, encoded)
        return write(data, f, **keywords)

    @wraps(read)
    def load(f: str, fmt: str | None = None) -> Any:
        return _as_written(read(f, fmt), Path(f), fmt or _suffix(f))

    file.dump, file.load = dump, load


def _as_written(data: Any, path: Path, kind: str) -> Any:
    if kind == "json" and _holds_predictions(data):
        return pd.DataFrame(data)
    if kind not in _READERS or not isinstance(data, pd.DataFrame) or not path.is_file():
        return data
    wanted = {PREDICTION, *(string.ascii_uppercase if SHUFFLED.search(path.stem) else ())}
    if ANSWER in data and data[ANSWER].isna().any():
        wanted.add(ANSWER)
    # A column that pandas read as texts only is already unchanged.
    columns = [name for name in data if name in wanted and not _holds_texts(data[name])]
    if columns:
        texts = _READERS[kind](path, usecols=columns, dtype=str, na_filter=False)
        for name in columns:
            filled = ~texts[name].isin(_NOTHING if name == ANSWER else [""])
            if name != ANSWER or (filled & data[name].isna()).any():
                data[name] = texts[name].where(filled, data[name])
    return _each_text(data, decoded) if PREDICTION in data else data


def _holds_predictions(data: Any) -> bool:
    """Return whether the data is a prediction table that ``dump`` wrote as JSON."""
    expected = {"index", "question", PREDICTION}
    return (
        isinstance(data, list)
        and bool(data)
        and all(isinstance(row, dict) and expected <= row.keys() for row in data)
    )


def _holds_texts(column: pd.Series) -> bool:
    return all(isinstance(cell, str) for cell in column)


def _each_text(table: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    """Return a copy of the table with a function applied to every text."""
    changed = table.copy(deep=False)
    for name in table.select_dtypes(["object", "string"]):
        cells = [change(cell) if isinstance(cell, str) else cell for cell in table[name]]
        changed[name] = pd.Series(cells, table.index, object)
    return changed


def _suffix(path: str) -> str:
    return path.rpartition(".")[2]
