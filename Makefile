# Every target works on its own in a fresh checkout: it needs Python 3.10+ with pip and venv, nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_STAMP := $(VENV)/.installed-demo
TEST_STAMP := $(VENV)/.installed-test
BENCH_STAMP := $(VENV)/.installed-bench
DOCS_STAMP := $(VENV)/.installed-docs

# Scripts start through this so that they can import torchvision where its compiled operators don't load.
RUN := $(BIN)/python -m tests.torchvision_stub
PAGES = $(wildcard README.md docs/*.md docs/*/*.md)

.PHONY: test demo lint types docs docs-check examples page bench zoo ci clean

test: $(TEST_STAMP)
	$(BIN)/python -m pytest -n auto

demo: $(DEMO_STAMP)
	$(RUN) examples/digits_demo.py
	$(RUN) examples/resnet50_demo.py

lint: $(TEST_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(TEST_STAMP)
	$(BIN)/mypy

# The site goes to site/index.html. A warning is an error.
docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	$(BIN)/python -m tests.check_site site

docs-check: $(TEST_STAMP)
	$(BIN)/python -m tests.run_code_blocks $(PAGES)

examples: $(TEST_STAMP)
	set -e; for script in $(wildcard examples/*.py); do echo "== $$script"; $(RUN) $$script; done
	$(BIN)/python -m tests.run_notebooks $(wildcard examples/*.ipynb)

# The page of the HTML report, from web/ into surgeon/report/page. Only this target needs Node.js (20 or newer).
page:
	cd web && npm ci --no-fund --no-audit && node build.mjs

bench: $(BENCH_STAMP)
	set -e; for script in $(filter-out %/zoo.py,$(wildcard benchmarks/*.py)); do echo "== $$script"; $(RUN) $$script; done

zoo: $(BENCH_STAMP)
	$(RUN) benchmarks/zoo.py

ci:
	bash .ci/run

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch goes first and alone, at its pinned version: asked for together with packages that depend on it, pip may settle
# on the newest release, whose default build brings several gigabytes of CUDA libraries.
$(DEMO_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing torch and what the demonstration needs into $(VENV); this happens once and takes some minutes."
	$(BIN)/python -m pip install -qq -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install -qq -c constraints.txt -e '.[demo]'
	touch $@

$(TEST_STAMP): $(DEMO_STAMP)
	@echo "Installing what the tests need into $(VENV); this happens once and takes some minutes."
	$(BIN)/python -m pip install -qq -c constraints.txt -e '.[test]'
	touch $@

$(BENCH_STAMP): $(TEST_STAMP)
	$(BIN)/python -m pip install -qq -c constraints.txt -e '.[bench]'
	touch $@

$(DOCS_STAMP): $(TEST_STAMP)
	$(BIN)/python -m pip install -qq -c constraints.txt -e '.[docs]'
	touch $@
