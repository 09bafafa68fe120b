# fm_storage: every command of the project. Each does its own set-up: it finds a
# Python, makes .venv and installs what it needs, once.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules --no-print-directory
export PIP_ROOT_USER_ACTION := ignore
# Byte code is kept, in build/: without it each worker and each program that a test
# starts compiles the libraries anew, which takes longer than the test.
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX := $(CURDIR)/build/pycache

VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9

# The first that is 3.11 or newer; make PYTHON=/path/to/python chooses another.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
  if "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
  then command -v "$$p"; break; fi; done)

# uv where it could be had, else pip; the lock file pins what either chooses. Where
# the machine has a certificate authority of its own, uv asks the system for it.
RUNTIME := --editable ".[embedded]"
INSTALL = if [ -x $(BIN)/uv ]; \
  then $(BIN)/uv pip install -q --python $(BIN)/python -c requirements.lock $(1) 2>/dev/null || \
    $(BIN)/uv pip install -q --system-certs --python $(BIN)/python -c requirements.lock $(1); \
  else $(BIN)/python -m pip install -q --disable-pip-version-check -c requirements.lock $(1); fi

SOURCES := fm_storage tests
NOT_LONG := not torture and not bench
# Tests wait more than they work, so two cores serve three at a time.
WORKERS ?= 3
# A program before that of the tests, such as .ci/tests, which runs again alone what failed.
RUNNER ?=

.PHONY: help
help:  ## this list
	@echo "fm_storage: make demo shows it at work, make test runs its tests."
	@echo
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | sort | \
	  awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

# --- set-up -----------------------------------------------------------------

$(VENV)/.made:
	@if [ -z "$(PYTHON)" ]; then \
	  echo "fm_storage needs Python 3.11 or newer, and none was found." >&2; \
	  echo "Install one (Debian: apt-get install python3 python3-venv), or name it: make PYTHON=/path/to/python3" >&2; \
	  exit 1; fi
	@echo "once: making $(VENV) with $(PYTHON) and fetching uv, which installs the rest (seconds) …"
	@rm -rf $(VENV) build/bootstrap
	@"$(PYTHON)" -m venv $(VENV) >/dev/null 2>&1 || { \
	  rm -rf $(VENV) && \
	  "$(PYTHON)" -m pip install -q --disable-pip-version-check --target build/bootstrap virtualenv && \
	  PYTHONPATH=build/bootstrap "$(PYTHON)" -m virtualenv -q $(VENV); } || { \
	  echo "No virtual environment could be made with $(PYTHON)." >&2; \
	  echo "It lacks both ensurepip and pip (Debian: apt-get install python3-venv)." >&2; \
	  rm -rf $(VENV); exit 1; }
	@rm -rf build/bootstrap
	@$(BIN)/python -m pip install -q --disable-pip-version-check "uv==$(UV_VERSION)" || \
	  { echo "uv cannot be had here; pip installs instead, which takes longer."; \
	    $(BIN)/python -m pip install -q --disable-pip-version-check --upgrade "pip>=25.1"; }
	@touch $@

$(VENV)/.runtime: $(VENV)/.made pyproject.toml requirements.lock
	@echo "once: installing fm_storage with PostgreSQL and Qdrant's engine into $(VENV) (about 200 MB on disk; 5 s on a fast line, minutes on a slow one) …"
	@$(call INSTALL,$(RUNTIME))
	@touch $@

$(VENV)/.dev: $(VENV)/.made pyproject.toml requirements.lock
	@echo "once: installing fm_storage, its engines and the tools of its development into $(VENV) (about 900 MB on disk; 10 s on a fast line, minutes on a slow one) …"
	@$(call INSTALL,$(RUNTIME) --group dev)
	@touch $(VENV)/.runtime $@

$(VENV)/.bench: $(VENV)/.dev
	@echo "once: installing what is measured against into $(VENV) (about 80 MB on disk; seconds) …"
	@$(call INSTALL,$(RUNTIME) --group dev --group bench)
	@touch $@

$(VENV)/.docs: $(VENV)/.runtime
	@echo "once: installing what builds the site into $(VENV) (about 60 MB on disk; seconds) …"
	@$(call INSTALL,$(RUNTIME) --group docs)
	@touch $@

.PHONY: install
install: $(VENV)/.dev  ## set up .venv with everything that development needs

# --- use --------------------------------------------------------------------

.PHONY: demo migrate rollback migrate-status
demo: $(VENV)/.runtime  ## the whole system at work; LOG=path reads your own log file
	@$(BIN)/fm-storage demo $(if $(LOG),-- "$(LOG)")

migrate: $(VENV)/.runtime  ## apply the migrations to FM_STORAGE_POSTGRES__DSN, or the embedded server
	@$(BIN)/fm-storage migrate

rollback: $(VENV)/.runtime  ## take back the last migration
	@$(BIN)/fm-storage rollback

migrate-status: $(VENV)/.runtime  ## which migrations are applied
	@$(BIN)/fm-storage status

# --- develop ----------------------------------------------------------------

.PHONY: fmt lint types imports
fmt: $(VENV)/.dev  ## format, and fix what can be fixed automatically
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

lint: $(VENV)/.dev  ## format check, ruff, words, and squawk over the migrations
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/codespell fm_storage README.md .docs .github tests/README.md tests/bench/README.md migrations/README.md
	$(BIN)/squawk migrations/*.sql

types: $(VENV)/.bench  ## mypy strict; pyright over the public names as users see them
	$(BIN)/mypy
	$(BIN)/pyright

imports: $(VENV)/.dev  ## imports point down, clients stay in their rooms
	$(BIN)/lint-imports

.PHONY: test fast cover test-containers torture torture-outbox bench
test: $(VENV)/.dev  ## all tests, on containers where they can be had, else embedded (≤ 15 min)
	$(BIN)/pytest -n $(WORKERS) -m "$(NOT_LONG)" $(ARGS)

fast: $(VENV)/.dev  ## the quick tests (a minute)
	$(BIN)/pytest -q -n $(WORKERS) --quick -m "$(NOT_LONG) and not slow and not lengthy and not cluster" tests/unit tests/integration $(ARGS)

cover: $(VENV)/.dev  ## all tests, with the coverage of branches
	$(BIN)/coverage erase
	$(RUNNER) $(BIN)/coverage run -m pytest -n $(WORKERS) -m "$(NOT_LONG)" $(ARGS)
	$(BIN)/coverage combine -q
	$(BIN)/coverage report --skip-covered

test-containers: $(VENV)/.dev  ## the tests that use a server, on containers; fails without a Docker engine
	$(RUNNER) $(BIN)/pytest -n $(WORKERS) --containers -m "$(NOT_LONG) and postgres" $(ARGS)

torture: $(VENV)/.dev  ## the long sweeps: kills, cancellations, storms, at full size
	$(BIN)/pytest -m torture --timeout=1800 tests/torture $(ARGS)

torture-outbox: $(VENV)/.dev  ## kill the outbox and the usual dual write, 20 times each; then its sweeps
	$(BIN)/python -m tests.torture.outbox_crash $(ARGS)
	$(BIN)/pytest -m torture --timeout=1800 tests/torture -k outbox

bench: $(VENV)/.bench  ## measure against the peers (ratios; minutes)
	@for b in tests/bench/bench_*.py; do echo "== $$b"; $(BIN)/python "$$b" $(ARGS) || exit 1; done

.PHONY: docs
docs: $(VENV)/.docs  ## the site in build/docs: pages, API reference, errors; broken links end it
	@$(BIN)/python .docs/build.py

.PHONY: build smoke check clean
build: $(VENV)/.dev  ## wheel and source archive in dist/
	@rm -rf dist
	@if [ -x $(BIN)/uv ]; then $(BIN)/uv build -q --python $(BIN)/python; \
	  else $(BIN)/python -m pip wheel -q --no-deps --wheel-dir dist .; fi
	@ls dist

smoke: build  ## the wheel, installed into an environment of its own, does its work
	@set -e; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; chmod 755 "$$folder"; \
	wheel=$$(ls "$$PWD"/dist/*.whl); here=$$PWD; \
	if [ -x $(BIN)/uv ]; then \
	  $(BIN)/uv venv -q --python $(BIN)/python "$$folder/venv"; \
	  install="$(BIN)/uv pip install -q --python $$folder/venv/bin/python"; \
	else \
	  $(BIN)/python -m venv --without-pip "$$folder/venv"; \
	  install="$(BIN)/python -m pip --python $$folder/venv/bin/python install -q --no-compile"; fi; \
	$$install -c requirements.lock "$$wheel"; \
	"$$folder/venv/bin/python" -I tests/smoke.py --size; \
	$$install -c requirements.lock "$$wheel[embedded]"; \
	cd "$$folder"; "$$folder/venv/bin/python" -I "$$here/tests/smoke.py"

check: lint types imports docs cover smoke  ## what CI runs
	@echo "check: all well"

clean:  ## remove .venv, caches and what was built; the data in .fm_storage stays
	rm -rf $(VENV) build dist .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
