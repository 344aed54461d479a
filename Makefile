# Every target sets itself up in .venv; PYTHON picks the interpreter that makes it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-all lint format types bench docs dist clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: pyproject.toml | $(BIN)/python
	@echo "installing into $(VENV): torch is large, this can take some minutes ..."
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	touch $@

$(VENV)/dev.stamp: pyproject.toml | $(BIN)/python
	@echo "installing into $(VENV): torch is large, this can take some minutes ..."
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/demo.stamp

demo: $(VENV)/demo.stamp ## export a pretrained network, explain images, write figures to .demo/
	$(BIN)/python examples/demo.py .demo

# Two processes: each holds torch and, at times, a large network. With more than a thread each they
# would wait for one another; where one dies, the run ends there.
TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --max-worker-restart=0

test: $(VENV)/dev.stamp ## what every change must pass; some eight minutes on two cores
	$(TESTS) -m "not slow" --cpu-limit 2

# Full-size networks, many examples of each property, npm and Chromium, every documented command,
# trainings that are killed and resumed.
test-all: $(VENV)/dev.stamp ## every test, as for a release
	$(TESTS) --hypothesis-profile long

test-slow: $(VENV)/dev.stamp ## the slow tests of FILES
	$(TESTS) -m slow $(FILES)

lint: $(VENV)/dev.stamp ## ruff, format and rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: $(VENV)/dev.stamp ## let ruff rewrite the files
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# What reads sources does not follow setuptools' editable finder; a link gives it the package by name.
$(VENV)/typed/whycam: | $(BIN)/python
	mkdir -p $(@D) && ln -sfn "$(CURDIR)" $@

types: $(VENV)/dev.stamp $(VENV)/typed/whycam ## mypy, strict
	MYPYPATH=$(VENV)/typed $(BIN)/mypy

bench: $(VENV)/dev.stamp ## times against plain classification and other tools, on this machine
	$(BIN)/python benchmarks/overhead.py

$(VENV)/docs.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

docs: $(VENV)/docs.stamp $(VENV)/typed/whycam ## the documentation as a site in build/site, links checked
	PYTHONPATH=$(VENV)/typed NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --site-dir build/site

$(VENV)/dist.stamp: | $(BIN)/python
	$(BIN)/python -m pip install --quiet 'build>=1.4'
	touch $@

# The wheel is built from the archive, so nothing that lies about in a checkout gets into it.
dist: $(VENV)/dist.stamp ## source archive and wheel in dist/
	rm -rf dist
	$(BIN)/python -m build --quiet
	@ls -l dist

clean: ## remove the virtual environment and everything made
	rm -rf $(VENV) .demo build dist *.egg-info
