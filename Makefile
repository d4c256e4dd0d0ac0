PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

.PHONY: quickstart test check format

quickstart: $(VENV)/.linked
	$(PY) -m talk2dino quickstart

# Two at a time: most tests of the commands wait for a process to start. A file stays together.
test: $(VENV)/.installed-dev
	$(PY) -m pytest -n 2 --dist loadfile

check: $(VENV)/.installed-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(MAKE) test

format: $(VENV)/.installed-dev
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# numpy and the rest of the pins come from requirements.txt; the package itself is linked.
$(VENV)/.installed: requirements.txt requirements-benchmark.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet -r requirements.txt
	PYTHONPATH="$(CURDIR)/build_support" $(PY) -m pip install --quiet --no-build-isolation --no-deps -r requirements-benchmark.txt
	touch $@

$(VENV)/.linked: $(VENV)/.installed pyproject.toml
	$(PY) -m pip install -qq --no-deps --editable .  # -q would show a build warning
	touch $@

$(VENV)/.installed-dev: $(VENV)/.linked requirements-dev.txt requirements-app.txt
	$(PY) -m pip install --quiet -r requirements-dev.txt
	touch $@
