SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.PHONY: help serve test bench lint types clean
# Debian keeps nginx where only root's PATH looks.
export PATH := $(PATH):/usr/sbin

# A virtual environment works only where it was made and as long as the system's Python stays: after a move or an
# upgrade it is made anew. One without our stamp is somebody's own and is used as it is.
$(shell [ ! -e .venv/.made ] || { [ -x .venv/bin/python ] && [ "$$(cat .venv/.made)" = "$(CURDIR)" ]; } || rm -rf .venv)

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-7s %s\n", $$1, $$2 }' Makefile

serve: .venv/.serve  ## install what is missing and start onepx (settings: ONEPX_… in the environment)
	@exec .venv/bin/onepx serve

test: .venv/.dev  ## run the tests, with the PostgreSQL and Chromium they need; ARGS="-k journal -x" goes to pytest
	@missing=()
	compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || missing+=(postgresql)
	command -v chromium >/dev/null || missing+=(chromium)
	[ "$${#missing[@]}" = 0 ] || .ci/apt-install "$${missing[@]}" ||
	  echo "Without $${missing[*]} the tests that need it are skipped; the summary names them." >&2
	# As many at once as there are cores; those that measure what a server does wait for one another.
	.venv/bin/pytest -n auto $(ARGS)

bench: .venv/.dev  ## measure against nginx with wrk, print a table and write it to benchmarks/results.md
	@missing=()
	for program in nginx wrk; do command -v "$$program" >/dev/null || missing+=("$$program"); done
	[ "$${#missing[@]}" = 0 ] || .ci/apt-install "$${missing[@]}"
	.venv/bin/python -m benchmarks $(ARGS)

lint: .venv/.dev  ## ruff: rules and formatting
	.venv/bin/ruff check
	.venv/bin/ruff format --check

types: .venv/.dev  ## pyright, strict
	@export PYRIGHT_PYTHON_IGNORE_WARNINGS=1  # else it asks npm's registry for a newer release
	.venv/bin/pyright

clean:  ## remove what these commands made; the data folder stays
	rm -rf .venv build dist ./*.egg-info .pytest_cache .ruff_cache .hypothesis benchmarks/.work web/static/vendor tests/browser/vendor tests/browser/screenshots
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.made:
	@for python in python3 python3.14 python3.13 python3.12 python3.11 none; do
	  "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break
	done
	if [ "$$python" = none ]; then
	  echo "onepx needs Python 3.11 or newer; found: $$(python3 --version 2>&1 || true). Install one, for example: apt-get install python3" >&2
	  exit 1
	fi
	# Debian and Ubuntu leave ensurepip, and with it a working venv, to a package of their own.
	"$$python" -c 'import ensurepip, venv' 2>/dev/null ||
	  .ci/apt-install "$$("$$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
	"$$python" -m venv .venv
	echo "$(CURDIR)" >$@

# pip takes seconds to find out that there is nothing to do: it is asked when pyproject.toml changed, or what pages load.
.venv/.serve: pyproject.toml package-lock.json .venv/.made
	@echo "Installing what onepx needs into .venv (about a minute, only the first time)"
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/.dev: pyproject.toml package-lock.json .venv/.made
	@echo "Installing onepx and its development tools into .venv"
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch .venv/.serve $@
