# Everything a person or a CI machine runs. `make demo` and `make test` need Python 3.11 and nothing else.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

export RAY_USAGE_STATS_ENABLED := 0
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

FAST := not cluster and not chaos and not guide and not slow and not typing and not browser

.DEFAULT_GOAL := help
.PHONY: help setup demo quickstart test test-fast test-cluster test-browser lint format types imports bench docs clean

help:                ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

setup: $(STAMP)      ## the virtual environment .venv, with the versions of constraints.txt

# The pins are tested on Python 3.11; a newer one is used only where 3.11 is missing.
$(STAMP): pyproject.toml constraints.txt
	@set -e; \
	if [ ! -x $(BIN)/python ]; then \
	    for python in python3.11 python3 python3.12 python3.13; do \
	        if $$python -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; \
	        then found=$$python; break; fi; \
	    done; \
	    if [ -z "$$found" ]; then \
	        echo "make: needs Python 3.11 with venv (python3.11, or python3 up to 3.13); found: $$(python3 --version 2>&1)" >&2; \
	        exit 1; \
	    fi; \
	    echo "Setting up $(VENV) with $$($$found --version), about two minutes ..."; \
	    $$found -m venv $(VENV); \
	fi
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt pip setuptools hatchling editables
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation \
	    -e '.[torch,otel,notebook]' --group dev --group bench --group docs --group examples
	$(BIN)/python -m compileall -q gworker # where PYTHONDONTWRITEBYTECODE is set, each worker would compile it again
	@touch $@

demo: $(STAMP)       ## embed 3,437 sentences with all-MiniLM-L6-v2 on a local Ray
	$(BIN)/python examples/embedder.py

quickstart: $(STAMP) ## the example of the README that needs no model
	$(BIN)/python examples/quickstart.py

test: test-fast test-cluster ## every test: the fast ones first

test-fast: $(STAMP)  ## the tests that need no Ray
	$(BIN)/python -m pytest -m "$(FAST)"

# Most of their time the tests on a Ray wait for processes to start, so two halves run side by side, each on its own Ray:
# the contract and the faults of what calls travel by and to, and all the rest. They take about as long.
SLOW := not ($(FAST)) and not browser
FAULTS := $(addprefix tests/chaos/, test_crashes.py test_direct.py test_express.py test_lent_memory.py test_unhealthy.py) \
    tests/cluster/test_nodes.py

test-cluster: $(STAMP) ## the tests on a real local Ray, the guide, the typing tests and the slow ones
	@mkdir -p build; \
	{ failed=0; \
	$(BIN)/python -m pytest -m "$(SLOW)" tests/contract || failed=1; \
	$(BIN)/python -m pytest -m "$(SLOW)" $(FAULTS) --durations=10 || failed=1; \
	exit $$failed; } > build/contract.log 2>&1 & contract=$$!; \
	failed=0; \
	$(BIN)/python -m pytest -m "$(SLOW)" --ignore tests/contract $(FAULTS:%=--ignore %) --durations=10 || failed=1; \
	wait $$contract || failed=1; \
	cat build/contract.log; \
	exit $$failed

test-browser: $(STAMP) ## the status page in headless chromium, which has to be installed; not part of `make test`
	$(BIN)/python -m pytest -m browser tests/http

lint: $(STAMP)       ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)     ## let ruff repair and format what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)      ## mypy strict and pyright
	$(BIN)/mypy
	$(BIN)/pyright

imports: $(STAMP)    ## the floors of the architecture
	$(BIN)/lint-imports --no-cache

bench: $(STAMP)      ## every benchmark, beside its peers, into benchmarks/RESULTS.md; QUICK=1, ONLY=calls,control
	$(BIN)/python benchmarks $(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY))

docs: $(STAMP)       ## the documentation, in docs/_build/html
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

clean:               ## remove what make made, the virtual environment included
	rm -rf $(VENV) docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
