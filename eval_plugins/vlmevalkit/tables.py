"""VLMEvalKit's tables give back the texts that were written to them.

pandas reads a prediction ``None`` or ``N/A`` as nothing and ``007`` as a number, and a spreadsheet
changes what :mod:`eval_plugins.cells` names. ``vlmeval.smp.file`` writes and reads all of
VLMEvalKit's tables, so that what is scored, by upstream's rules or by ours, is what a model said.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import pandas as pd

from eval_plugins.cells import decoded, encoded
from eval_plugins.vlmevalkit.shuffling import PASS

PREDICTION, ANSWER = "prediction", "answer"
_NOTHING = ("", "nan", "NaN", "-nan", "-NaN")
"""Cells without a right answer; programs write "nan" for one that is missing."""
_READERS: dict[str, Callable[..., pd.DataFrame]] = {
    "xlsx": pd.read_excel,
    "csv": pd.read_csv,
    "tsv": lambda path, **keywords: pd.read_csv(path, sep="\t", **keywords),
}


def keep_texts(file: Any) -> None:
    """Let ``dump`` and ``load`` keep texts; called when ``vlmeval.smp.file`` has been imported.

    That is before any other module of VLMEvalKit has taken the two from there. They change, for
    whatever model:

    * ``dump`` encodes texts of a table of predictions that a spreadsheet would change.
    * ``load`` decodes them, reads predictions and the options of shuffled passes as texts, and
      right answers where one of them is a word such as ``None``. Empty cells stay empty.
    * ``load`` returns a dataset's rows with their predictions as a table from JSON, too: upstream's
      scoring expects one.

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
    wanted = {PREDICTION, *(string.ascii_uppercase if PASS.search(path.stem) else ())}
    if ANSWER in data and data[ANSWER].isna().any():
        wanted.add(ANSWER)
    # Where pandas has found nothing but texts in a column, they are as written.
    columns = [name for name in data if name in wanted and not _holds_texts(data[name])]
    if columns:
        texts = _READERS[kind](path, usecols=columns, dtype=str, na_filter=False)
        for name in columns:
            filled = ~texts[name].isin(_NOTHING if name == ANSWER else [""])
            if name != ANSWER or (filled & data[name].isna()).any():
                data[name] = texts[name].where(filled, data[name])
    return _each_text(data, decoded) if PREDICTION in data else data


def _holds_predictions(data: Any) -> bool:
    """Whether it is what ``dump`` has made of a dataset's rows and their predictions."""
    expected = {"index", "question", PREDICTION}
    return (
        isinstance(data, list)
        and bool(data)
        and all(isinstance(row, dict) and expected <= row.keys() for row in data)
    )


def _holds_texts(column: pd.Series) -> bool:
    return all(isinstance(cell, str) for cell in column)


def _each_text(table: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    """A table with every text changed."""
    changed = table.copy(deep=False)
    for name in table.select_dtypes(["object", "string"]):
        cells = [change(cell) if isinstance(cell, str) else cell for cell in table[name]]
        changed[name] = pd.Series(cells, table.index, object)
    return changed


def _suffix(path: str) -> str:
    return path.rpartition(".")[2]
