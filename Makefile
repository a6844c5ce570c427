# Artifact Bus. Needs: make, Python 3.11 or newer with venv, and a package registry; the tests need
# Node 20 as well. No Redis, no Docker, no root. Everything is installed into .venv and node_modules.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test test-all soak lint types node bench up lock lock-node clean

VENV := .venv
BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip --quiet --no-input --disable-pip-version-check
# One file per state of the two inputs; removing it installs anew.
READY := $(VENV)/.installed

OLDEST := $(VENV)-oldest/.installed

# The TypeScript package, which needs Node 20 or newer.
NODE := bus/producers/typescript
NODE_READY := $(NODE)/node_modules/.installed

# A lake or a Redis named in the caller's environment is theirs: neither tests nor demo touch it.
OWN := env -u BUS_LAKE -u BUS_REDIS_URL -u BUS_REDIS_PREFIX

help:  ## what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-6s %s\n", $$1, $$2}' Makefile

demo: $(READY)  ## a whole bus in ./demo-lake: submit, query, reject, kill, rebuild (under a minute)
	$(OWN) BUS_LAKE="$(CURDIR)/demo-lake" $(BIN)/bus demo

test: lint types node  ## style, types and every test
	$(OWN) $(BIN)/python -m pytest

# The oldest releases that pyproject.toml allows: files must open in DuckDB 1.5, and hashes agree.
test-all: $(OLDEST)  ## what `make test` leaves out: the core with the oldest duckdb and pyarrow
	$(OWN) $(VENV)-oldest/bin/python -m pytest tests/unit tests/contract tests/hostile tests/crash

# SOAK_ONLY=kills leaves the campaigns out. Figures go to soak-results.jsonl, a line for each test.
SOAK_S ?= 600
SOAK_SEED ?= 1
# Kills a second: of processes without Celery, and of real ones (SOAK_KILLS="7 0.3").
SOAK_KILLS ?=
soak: $(READY)  ## the long campaigns, then SOAK_S seconds of random kills (default 600)
	@[ "$(SOAK_ONLY)" = kills ] || $(OWN) $(BIN)/python -m pytest tests/crash tests/faults tests/hostile \
	  tests/unit/test_state_machine.py --long --timeout=7200 --seed $(SOAK_SEED) --results soak-results.jsonl
	@$(OWN) $(BIN)/python -m tests.soak --seconds $(SOAK_S) --seed $(SOAK_SEED) $(if $(SOAK_KILLS),--kills $(SOAK_KILLS))

lint: $(READY)  ## ruff: all rules, and the format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)  ## mypy --strict
	$(BIN)/mypy

node: $(NODE_READY)  ## the TypeScript package: types, its own tests, what it would publish
	cd $(NODE) && $(OWN) npm run --silent check

bench: $(READY)  ## measure against the limits of this machine (up to 15 minutes; exit 1 if a goal is missed)
	$(OWN) $(BIN)/python -m benchmarks

up: $(READY)  ## run a bus on ./data (or BUS_LAKE) until Ctrl-C
	$(BIN)/bus up

# ── installation ─────────────────────────────────────────────────────────────────────────────────

# The interpreter is chosen by running it: a version manager's shim may exist and not work, and
# Debian's python3 may come without venv.
SUITS := import sys, venv, ensurepip; print(sys.executable); sys.exit(sys.version_info < (3, 11))

$(READY): pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (once, about a minute) ..."
	@found=; for candidate in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
	  found=$$("$$candidate" -c '$(SUITS)' 2>/dev/null) && break; found=; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "No Python 3.11 or newer with venv among: $(or $(PYTHON),python3 python3.13 python3.12 python3.11)." >&2; \
	  echo "Install one (Debian: apt install python3 python3-venv) or name it: make $(or $(MAKECMDGOALS),test) PYTHON=/path/to/python3.12" >&2; \
	  exit 1; \
	fi; \
	"$$found" -m venv --clear $(VENV)
	@$(PIP) install --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

$(NODE_READY): $(NODE)/package.json $(NODE)/package-lock.json
	@node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' 2>/dev/null || \
	  { echo "The TypeScript package needs Node 20 or newer on PATH (https://nodejs.org)." >&2; exit 1; }
	@echo "Installing into $(NODE)/node_modules (once, half a minute) ..."
	@cd $(NODE) && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $(NODE_READY)

$(OLDEST): $(READY)
	$(BIN)/python -m venv --clear $(VENV)-oldest
	grep -vE '^(duckdb|pyarrow)==' constraints.txt > $(VENV)-oldest/constraints.txt
	@$(VENV)-oldest/bin/python -m pip --quiet --no-input --disable-pip-version-check install \
	  --constraint $(VENV)-oldest/constraints.txt --editable '.[dev]' duckdb==1.5.0 pyarrow==24.0.0
	@touch $(OLDEST)

# Resolves anew with the bounds of pyproject.toml, in an environment that is thrown away.
# async-timeout is what redis wants on Python 3.11.0 to 3.11.2 only: pinned for those.
lock:  ## write constraints.txt: the newest versions that pyproject.toml allows
	rm -rf .venv-lock
	$(or $(PYTHON),python3) -m venv .venv-lock
	.venv-lock/bin/python -m pip --quiet --no-input --disable-pip-version-check install --editable '.[dev]' async-timeout
	{ sed -n '/^#/p' constraints.txt; \
	  .venv-lock/bin/python -m pip freeze --exclude-editable | sort -f; } > .venv-lock/constraints.txt
	! grep -nE '://|@' .venv-lock/constraints.txt
	cp .venv-lock/constraints.txt constraints.txt
	rm -rf .venv-lock

lock-node:  ## write package-lock.json: the same for the TypeScript package
	cd $(NODE) && rm -rf node_modules package-lock.json && npm install --package-lock-only --ignore-scripts --no-audit --no-fund
	cd $(NODE) && npm run --silent tidy-lock

clean:  ## remove what make created; never ./data, which is your lake
	rm -rf $(VENV) $(VENV)-oldest .venv-lock demo-lake .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	rm -rf $(NODE)/node_modules $(NODE)/dist
	rm -rf $(NODE)/node_modules $(NODE)/dist soak-*
	rm -f benchmarks/latest.json
	find bus tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
