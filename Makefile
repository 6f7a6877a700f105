PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# One environment, two amounts of it: what compressing needs, and with it what developers need.
COMPRESS := $(VENV)/.compress-installed
DEV := $(VENV)/.dev-installed

.PHONY: demo dev test test-all check format clean

$(COMPRESS): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) torch
	$(INSTALL) --editable '.[compress]'
	touch $(COMPRESS)

$(DEV): $(COMPRESS)
	$(INSTALL) --editable '.[dev]'
	touch $(DEV)

demo: $(COMPRESS)
	$(BIN)/mtlc run examples/scenes/demo.toml --out runs/demo
	@echo "open runs/demo/report.html"

dev: $(DEV)

test: check
	$(BIN)/pytest -n 2 --dist loadfile -m 'not slow'

test-all: check
	$(BIN)/pytest -n 2 --dist loadfile

check: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) runs
