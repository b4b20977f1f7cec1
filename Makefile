# Atoll's tasks. `make` or `make help` lists them.
SHELL := /bin/sh
PYTHON := .venv/bin/python
# As root, pytest starts itself again in the isolation (tests/conftest.py); CGROUP chooses its layout.
CGROUP ?= auto
TESTS ?=
PYTEST := $(PYTHON) -m pytest --cgroup=$(CGROUP)
LXC ?= atoll
FUZZ_SECONDS ?= 60
FUZZ_CORPUS ?=

.DEFAULT_GOAL := help
.PHONY: help run setup test check fix unit fault conformance bench coverage keys fuzz clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## run a command in a new container made from this machine (nothing is downloaded or changed)
	@tools/setup run
	.venv/bin/atoll run -- sh -c 'echo "hello from $$(hostname)"; id; echo "processes: $$(ls /proc | grep -c "^[0-9]")"; ls /'

setup: ## make .venv with everything for development; installs Debian packages as root
	@tools/setup dev

test: setup check ## lint, types and all tests, as root in an isolation of their own (TESTS=… for some)
	$(PYTEST) $(if $(TESTS),$(TESTS),--ignore=tests/conformance)
	$(if $(TESTS),,$(PYTEST) tests/conformance)

check: setup ## formatting, lint and types
	$(PYTHON) -m ruff format --check --quiet .
	$(PYTHON) -m ruff check --quiet .
	$(PYTHON) -m mypy

fix: setup ## format, and apply the lint's safe fixes
	$(PYTHON) -m ruff check --fix --quiet . || true
	$(PYTHON) -m ruff format --quiet .

unit: setup ## the tests that need no privilege: seconds
	$(PYTEST) --no-isolation tests/unit tests/plan tests/contract

fault: setup ## the fault sweeps: every step, every kernel call, kill -9 at every step
	$(PYTEST) tests/fault $(TESTS)

conformance: setup ## black-box tests of the lxc-* tools (LXC=system: Debian's own, to prove the tests)
	ATOLL_CONFORMANCE=$(LXC) $(PYTEST) tests/conformance $(TESTS)

bench: setup ## measure speed and memory beside lxc-execute, bwrap and runc
	$(PYTHON) bench/bench.py

coverage: setup ## all tests with coverage of forked and exec'd children; prints the table
	$(PYTHON) -m coverage erase
	$(PYTHON) tests/isolation --cgroup=$(CGROUP) -- $(PYTHON) -m coverage run -m pytest $(TESTS)
	$(PYTHON) -m coverage combine --quiet
	$(PYTHON) -m coverage report

keys: setup ## write docs/keys.md from the declarations of the keys
	$(PYTHON) -m atoll.config.document >docs/keys.md.new && mv docs/keys.md.new docs/keys.md

fuzz: setup ## arbitrary bytes for the configuration's reader, FUZZ_SECONDS long (60)
	@$(PYTHON) -c 'import atheris' 2>/dev/null || $(PYTHON) -m pip install -q --disable-pip-version-check atheris
	$(PYTHON) tests/fuzz/fuzz_config.py -max_total_time=$(FUZZ_SECONDS) $(FUZZ_CORPUS)

clean: ## remove what these tasks made in the tree
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist .coverage .coverage.*
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
