# Needs Python 3.11 or newer and make; everything else is installed into .venv, at the versions in constraints.txt.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test lint wheel bench examples chromium clean

PYTHON ?= python3 python3.14 python3.13 python3.12 python3.11# the first of them that is new enough is taken
VENV ?= .venv
OUT ?= likely-distill# where the demo writes
PYTEST_ARGS ?=

python := $(VENV)/bin/python
# The build backend is installed and pinned like everything else, so that no build fetches one of its own.
install := $(python) -m pip install --quiet --disable-pip-version-check --no-build-isolation --constraint constraints.txt
inputs := pyproject.toml constraints.txt setup.py $(wildcard src/likely/kernels/native/*.cpp src/likely/kernels/native/*.h)

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.demo  ## install, then distil a teacher into a student on handwritten digits; writes a report
	$(VENV)/bin/likely distill --out $(OUT) --overwrite

# One thread: the tests' tensors are small, and on a busy machine the threads would wait for each other.
test: $(VENV)/.test chromium  ## install, then run every test, doctest and documentation block
	OMP_NUM_THREADS=1 $(python) -m pytest -rfEs $(PYTEST_ARGS)

lint: $(VENV)/.test  ## check style, format and types
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy

wheel: $(VENV)/.test  ## build the wheel, install it into a venv of its own and try it from another folder
	rm -rf build dist
	$(python) -m build --quiet --no-isolation
	$(python) tests/smoke_wheel.py dist/*.whl

bench: $(VENV)/.test  ## measure the fused head against the peers that are installed; writes benchmark-results/
	$(python) -m benchmarks head

examples: $(VENV)/.test  ## run the demonstrations in full, about an hour and a half; writes example-results/
	$(python) -m examples.faulty_losses
	$(python) -m examples.truncation
	$(python) -m examples.languages
	$(python) -m examples.file_types
	$(python) -m examples.language_model

clean:  ## remove what the other targets made
	rm -rf build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis example-results $(OUT) $(VENV)

# A stamp per set of extras: each is installed once, and again only when the requirements change.
$(VENV)/.demo: extra := report
$(VENV)/.test: extra := test
$(VENV)/.demo $(VENV)/.test: $(inputs) | $(python)
	@echo "installing likely[$(extra)] into $(VENV), a few minutes the first time"
	@$(install) setuptools
	@$(install) --editable '.[$(extra)]'
	@touch $@

$(python):
	@found=; for candidate in $(PYTHON); do \
	    if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$candidate; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "likely needs Python 3.11 or newer; tried: $(PYTHON). Name one: make PYTHON=/path/to/python3.11" >&2; exit 1; \
	fi; \
	"$$found" -m venv --clear $(VENV) || { rm -rf $(VENV); \
	    echo "$$found cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }

# The reports are opened in a browser. Root on Debian gets one; elsewhere its tests skip aloud, and fail where CI is set.
chromium:
	@for name in chromium chromium-browser google-chrome google-chrome-stable; do command -v $$name >/dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ] && grep -qx 'ID=debian' /etc/os-release 2>/dev/null; then \
	    echo "installing Chromium for the tests of the reports"; \
	    export DEBIAN_FRONTEND=noninteractive; \
	    { apt-get -qq update; apt-get -qq install --yes --no-install-recommends chromium; } >/dev/null </dev/null \
	        || echo "Chromium could not be installed; the tests that need it will say so" >&2; \
	fi
