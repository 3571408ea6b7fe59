#!/usr/bin/env bash
# verl 0.9.1's extra "sglang" on Python 3.11.
# Expected: pip install "verl[sglang]==0.9.1" finds a solution, as it does for "verl[vllm]==0.9.1".
# Observed: there is none. The extra pins sglang 0.5.12 and transformers 5.9.0, sglang 0.5.12 pins
#   transformers 5.6.0, and verl itself excludes 5.6.0.
# What helps: install SGLang with --no-deps, or train with vLLM.
# Nothing is installed: pip only resolves, some minutes.
# Exit status 0: this is still so; 1: the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/v"
if "$work/v/bin/pip" install --dry-run --quiet "verl[sglang]==0.9.1" 2> "$work/log"; then
  echo "verl[sglang]==0.9.1: expected a solution, found one: the behaviour has changed"
  exit 1
fi
grep ResolutionImpossible "$work/log"
echo "verl[sglang]==0.9.1: expected a solution, observed none"
