# The two commands: `make run` and `make test`. Both work on a fresh checkout, and without a network once installed.
# Extra arguments go in ARGS: make run ARGS="--size 4GiB", make test ARGS="-k ranges". JOBS is how many processes share the
# tests, whole files each, the slow ones first; JOBS=0 runs them in pytest's own, for a debugger.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --quiet --disable-pip-version-check
ARGS   ?=
JOBS   ?= 3
DURATION ?= 1h
SEED   ?=

# Tests start hundreds of processes; without byte code each would compile all of Damselfly first.
unexport PYTHONDONTWRITEBYTECODE

export PIP_ROOT_USER_ACTION := ignore

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run bench test fuzz torture lint format stubs clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST)

run: $(VENV)/installed-run ## install, then measure direct, cold, remote and local downloads on a local cluster
	@$(BIN)/damselfly bench hits $(ARGS)

bench: $(VENV)/installed-run ## install, then run the benchmarks (ten minutes) and write docs/benchmarks.md
	@$(BIN)/python -m bench.whole $(ARGS)

test: $(VENV)/installed-dev ## install, then run every test, in JOBS processes
	@$(BIN)/pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

fuzz: $(VENV)/installed-dev ## attack the proxy's front with hostile requests until Ctrl-C; prints the seeds
	@$(BIN)/python -m tests.fuzz $(ARGS)

torture: $(VENV)/installed-dev ## kill, stop, damage and fill daemons while clients read, for DURATION; SEED sees one again
	@$(BIN)/python -m tests.torture --duration $(DURATION) $(if $(SEED),--seed $(SEED)) $(ARGS)

lint: $(VENV)/installed-dev ## check style, types, the import contracts and the generated stubs
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python tools/generate_stubs.py --check

format: $(VENV)/installed-dev ## let ruff sort imports and format
	@$(BIN)/ruff check --select I --fix
	@$(BIN)/ruff format

stubs: $(VENV)/installed-dev ## regenerate p2p/v1 from proto/
	@$(BIN)/python tools/generate_stubs.py

clean: ## remove .venv and everything that was generated
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -f bench-hits.json bench-hits.png bench-hits.svg bench-data-plane.json bench-data-plane.png bench-data-plane.svg
	rm -f bench-proxy.json bench-origin.json bench-scheduler.json
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ensurepip puts pip there last, so that an environment that was interrupted half-way is made again.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Damselfly needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) --version 2>&1 || true)." \
	       "Install one (Debian: apt-get install python3 python3-venv) or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make a virtual environment: the venv or the ensurepip module is missing." \
	       "Debian: apt-get install python3-venv" >&2; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV)

# Without build isolation pip asks no index for what is there already, so a changed pyproject.toml needs no network.
$(VENV)/installed-run: pyproject.toml | $(BIN)/pip
	@echo "Installing what a run needs (the first time takes a minute)"
	@$(PIP) install 'setuptools>=77'
	@$(PIP) install --no-build-isolation --editable '.[charts]'
	@touch $@

$(VENV)/installed-dev: pyproject.toml | $(BIN)/pip
	@echo "Installing what the tests need (the first time takes a minute or two)"
	@$(PIP) install 'setuptools>=77'
	@$(PIP) install --no-build-isolation --editable '.[dev]'
	@touch $(VENV)/installed-run $@
