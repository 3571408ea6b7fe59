#!/bin/bash
# math-verify 0.9.0 on valid LaTeX that a reward would send it, one expression on each side.
#
#   answer   reference   expected   observed
#   2(3)     6           equal      different: a number and a number in brackets are added ...
#   2(3)     5           different  equal     ... but 2(3)x is 6x and 2(3+4) is 14
#   3x+C     3x+c        different  equal: letters that differ in case only are one variable
#   x'       x           different  equal: a prime is dropped
#   (1+i)^2  2i          equal      different: i is a variable
#
# Exit 0: observed as above; 1: the behaviour changed. Needs Python 3.11 or 3.12 and a package index.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'math-verify[antlr4-9-3]==0.9.0' 'latex2sympy2_extended==1.11.0' 'sympy==1.14.0'
"$folder/venv/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version

from math_verify import parse, verify

OBSERVED = [
    ("2(3)", "6", True, False),
    ("2(3)", "5", False, True),
    ("3x+C", "3x+c", False, True),
    ("x'", "x", False, True),
    ("(1+i)^{2}", "2i", True, False),
]
print("math-verify", version("math-verify"))
changed = 0
for answer, reference, expected, observed in OBSERVED:
    now = bool(verify(parse(f"${reference}$"), parse(f"${answer}$")))
    changed += now != observed
    print(f"{answer:12} {reference:6} expected {expected!s:5} observed {now}")
sys.exit(1 if changed else 0)
PYTHON
