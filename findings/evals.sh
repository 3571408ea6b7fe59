#!/bin/bash
# What a spreadsheet makes of texts: pandas 2.3.3 writing with xlsxwriter 3.3.1, reading with openpyxl 3.1.5.
# Expected: each text comes back as it was written, as both libraries escape what XML cannot hold.
# Observed: "x005F_" is deleted wherever it stands, so that an escaped underscore is lost ("_x005F_" comes back as "_");
# a text that begins with <r> and ends with </r> is written as XML and comes back as another text; a carriage return
# and the seven letters _x000D_ come back as the same text, so that no reader can tell them apart.
# Exit 0: as observed; 1: the behaviour has changed.
set -eu
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv v
v/bin/pip install -q pandas==2.3.3 XlsxWriter==3.3.1 openpyxl==3.1.5
v/bin/python - <<'P'
import sys

import pandas as pd

OBSERVED = {
    "ax005F_b": "ab",
    "_x005F_": "_",
    "<r><t>red</t></r>": "red",
    "a\rb": "a_x000D_b",
    "a_x000D_b": "a_x000D_b",
}
pd.DataFrame({"text": [*OBSERVED]}).to_excel("t.xlsx", index=False, engine="xlsxwriter")
found = dict(zip(OBSERVED, pd.read_excel("t.xlsx", dtype=str, na_filter=False)["text"]))
for text, read in found.items():
    print(f"written {text!r}, read {read!r}, expected {text!r}")
sys.exit(found != OBSERVED)
P
