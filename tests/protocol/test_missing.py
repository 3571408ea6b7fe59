"""What stands for no value, wherever it was read from."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest

from deepeyes_plugins.protocol.missing import is_missing, text_of

MISSING = [
    None,
    float("nan"),
    np.nan,
    np.float32("nan"),
    Decimal("nan"),
    pd.NA,
    pd.NaT,
    np.datetime64("NaT"),
    "",
    " \n\t",
    "\u3000",
]
PRESENT = ["nan", "None", "N/A", "0", 0, 0.0, False, float("inf"), np.int64(3), Decimal(1), [], {}]


@pytest.mark.parametrize("value", MISSING, ids=repr)
def test_no_value(value: Any) -> None:
    assert is_missing(value)
    assert text_of(value) == ""


@pytest.mark.parametrize("value", [*PRESENT, np.array([np.nan]), [None], b""], ids=repr)
def test_a_value(value: Any) -> None:
    assert not is_missing(value)
    assert text_of(value) == str(value)
