# One virtual environment with everything, installed once: `make test` and the rest need no more.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# The first interpreter that all frameworks support; `make PYTHON=/path/to/python3.12` to choose.
PYTHON ?= $(shell for name in python3.11 python3.12 python3; do \
	"$$name" -c 'import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' \
	2>/dev/null && { echo "$$name"; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/installed-from.txt
# What decides the content of the environment. The stamp keeps their checksums, not a time: a fresh
# clone over a kept environment installs nothing again.
SOURCES := pyproject.toml constraints.txt constraints-vllm.txt distributions/vllm/pyproject.toml \
	deepeyes_plugins.pth
# vLLM's CPU build needs AVX2; elsewhere the quickstart takes its second engine, transformers.
VLLM := $(shell test "$$(uname -sm)" = "Linux x86_64" && grep -qw avx2 /proc/cpuinfo && echo vllm)
VERSIONS := torch torchvision torchaudio
# Processes; tests/conftest.py says which tests share one. One of them trains, with 8 GB; the others
# often wait for servers, so that three keep two processors busy.
JOBS ?= 3
# Tests that import no training framework and start no browser.
QUICK_TESTS := $(wildcard tests/test_*.py) $(addprefix tests/, \
	environments judge openai protocol remote rewards rollout settings tools)

# Tools that must not decide what the main environment contains have one of their own.
AUDIT := .audit
# SGLang's real server, with transformers of its own and everything else from $(VENV).
SGLANG := $(VENV)-sglang
SGLANG_SOURCES := $(wildcard distributions/sglang-kernel/*)

.PHONY: help install quickstart quickstart-fast test test-sglang test-environments check lint format bench docs audit

help: ## Show what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: ## Make .venv and install everything, once
	@if ! sha256sum --check --status $(STAMP) 2>/dev/null || ! $(BIN)/deepeyes --version >/dev/null 2>&1; \
	then $(MAKE) --no-print-directory reinstall; fi

.PHONY: reinstall
reinstall:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 with venv is needed: install python3.11 and" \
	  "python3.11-venv, or say make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Installing everything into $(VENV), once: about 8 GB and some minutes."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt $(VERSIONS) --editable '.[all,dev]'
	$(PIP) install --quiet --no-deps --constraint constraints.txt ms-vlmeval
ifeq ($(VLLM),vllm)
	$(PIP) install --quiet --no-deps --requirement constraints-vllm.txt
	$(PIP) install --quiet --no-deps --no-build-isolation ./distributions/vllm
endif
	sha256sum $(SOURCES) > $(STAMP)

quickstart: install ## Train and evaluate a tiny agent on this machine, GPU or not
	$(BIN)/deepeyes quickstart

quickstart-fast: install ## The same in its shortest form: every step runs, little is learned
	$(BIN)/deepeyes quickstart --fast --restart

test: install ## Run the tests, the short quickstart among them
	@{ command -v redis-server && command -v chromium chromium-browser google-chrome; } >/dev/null || \
	  { echo "The tests need Redis, a Chinese font and a browser:" \
	  "apt-get install redis-server fonts-wqy-microhei chromium" >&2; exit 1; }
	$(BIN)/python -m pytest --numprocesses $(JOBS)

$(SGLANG)/installed-from.txt: $(SGLANG_SOURCES)
	$(BIN)/python -m venv --clear $(SGLANG)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > "$$($(SGLANG)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/main.pth"
	$(SGLANG)/bin/python -m pip install --quiet --no-deps \
	  --requirement distributions/sglang-kernel/requirements.txt
	$(SGLANG)/bin/python -m pip install --quiet --no-deps --no-build-isolation \
	  ./distributions/sglang-kernel
	sha256sum $(SGLANG_SOURCES) > $@

# The commands below a heading of docs/install.md.
COMMANDS = awk -v heading='\#\#\#\# $(1)' '/^\#/ { found = $$0 == heading } \
	found && /^```/ { code = !code; next } found && code' docs/install.md
# What needs the versions of RL; the trainings, which take 8 GB each, are those of `make test`.
RL_TESTS := tests/verl tests/vllm tests/vlmevalkit
test-environments: ## Install the two environments of docs/install.md and run their tests, 30 min
	set -euxo pipefail; source <($(call COMMANDS,SFT)); source <($(call COMMANDS,RL on a CPU))
	.venv-sft/bin/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	.venv-rl/bin/pip install --quiet --constraint constraints-rl.txt --editable '.[dev]'
	.venv-sft/bin/python -m pytest tests/llamafactory
	.venv-rl/bin/python -m pytest $(RL_TESTS) $(patsubst %,--ignore=%,$(filter %.py,$(TRAININGS)))

test-sglang: install $(SGLANG)/installed-from.txt ## Run the tests of SGLang's server, which it installs
	$(BIN)/python -m pytest tests/sglang

check: lint ## What a working day needs: style, types, and the tests that need no framework
	$(BIN)/python -m pytest --numprocesses $(JOBS) $(QUICK_TESTS)

lint: install ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install ## Format the code and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install ## Measure and print what the documentation claims
	@shopt -s nullglob; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python "$$script" || exit 1; done

audit: ## Compare the pinned versions with published weaknesses; needs the network
	test -x $(AUDIT)/bin/pip-audit || { $(PYTHON) -m venv $(AUDIT) && \
	  $(AUDIT)/bin/python -m pip --disable-pip-version-check install --quiet pip-audit==2.10.1; }
# Without --strict, packages that cannot be looked up count as free of weaknesses.
	$(AUDIT)/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off \
	  --requirement constraints.txt --requirement constraints-vllm.txt

docs: install ## Build the documentation into site/; a broken link or anchor is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "Open site/index.html, or serve it: $(BIN)/python -m http.server --directory site"
