#!/usr/bin/env bash
# model-hosting-container-standards 0.1.16, a dependency of vLLM 0.24.0's server, sets the root
# logger to ERROR when it is imported, and every handler of it that would show more.
# Expected: importing a library leaves the application's logging as it is.
# Observed: warnings of all other modules in the process are lost, without a word. vLLM's API
#   server module imports it, and verl 0.9.1 imports that in each process of a run with
#   rollout.name=vllm: verl's own warnings are lost, too.
# What helps: SAGEMAKER_CONTAINER_LOG_LEVEL=WARNING (or LOG_LEVEL) before the import.
# Exit status 0: this is still so; 1: the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  model-hosting-container-standards==0.1.16 fastapi==0.163.2 starlette==0.52.1 httpx==0.28.1 \
  jmespath==1.1.0 pydantic==2.12.3 setuptools==77.0.3 supervisor==4.3.0
cat > "$work/warn.py" <<'PYTHON'
import logging
import sys

logging.basicConfig(stream=sys.stdout, level=logging.WARNING)
logging.getLogger("mine").warning("before the import")
import model_hosting_container_standards.sagemaker  # noqa: E402, F401

logging.getLogger("mine").warning("after the import")
PYTHON
seen=$(env -u LOG_LEVEL -u SAGEMAKER_CONTAINER_LOG_LEVEL "$work/venv/bin/python" "$work/warn.py")
helped=$(SAGEMAKER_CONTAINER_LOG_LEVEL=WARNING "$work/venv/bin/python" "$work/warn.py")
echo "model-hosting-container-standards 0.1.16"
echo "expected: both warnings; observed:"
echo "$seen"
echo "with SAGEMAKER_CONTAINER_LOG_LEVEL=WARNING:"
echo "$helped"
[[ $seen == *"before the import"* && $seen != *"after the import"* ]] || exit 1
[[ $helped == *"after the import"* ]] || exit 1
