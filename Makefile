# `make demo` and `make test` work from a fresh clone: Python 3.11 and a package registry are all they need.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# The exact release of which registries hold a CPU build; pyproject allows a range.
TORCH := torch==2.13.0

.PHONY: demo test slow lint install clean

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev,oracle]'
	touch $@

install: $(VENV)/.installed

demo: install
	$(BIN)/worldline demo

test: install
	$(BIN)/pytest

slow: install
	$(BIN)/pytest -m slow

lint: install
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

clean:
	rm -rf $(VENV) runs
