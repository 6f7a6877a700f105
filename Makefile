PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# One environment, two amounts of it: what compressing needs, and with it what developers need.
COMPRESS := $(VENV)/.compress-installed
DEV := $(VENV)/.dev-installed

# How the cells of the comparison of pruners are run: --jobs N, or --ray.
RUN ?= --jobs 2
QUICK := runs/figures-quick

# The networks of others need torchvision, and that a torch of its own kind: a second environment.
CONFORMANCE_VENV := .venv-conformance
CONFORMANCE_READY := $(CONFORMANCE_VENV)/.installed
# Which networks the conformance suite runs; none: all.
CONFORMANCE ?=

.PHONY: demo dev test test-long test-all check format figures figures-quick conformance clean

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

# In ten minutes on two cores: what takes longer than a few seconds is left to test-long.
test: check
	$(BIN)/pytest -n 2 --dist loadfile -m 'not slow and not long'

test-long: $(DEV)
	$(BIN)/pytest -n 2 --dist loadfile -m 'long and not slow'

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

# Hours; what is finished is skipped.
figures: $(DEV)
	$(BIN)/python -m benchmarks.pruning.pruners $(RUN)
	$(BIN)/python -m benchmarks.pruning.collect_pruners
	$(BIN)/python -m benchmarks.pruning.draw_pruners
	$(BIN)/python -m benchmarks.tables.write_tables

# Minutes: every step with a few samples, beside the results and not in them.
figures-quick: $(DEV)
	$(BIN)/python -m benchmarks.pruning.pruners --quick --work $(QUICK) $(RUN)
	$(BIN)/python -m benchmarks.pruning.collect_pruners --quick --work $(QUICK) --out $(QUICK)/pruners.json --show
	$(BIN)/python -m benchmarks.pruning.draw_pruners --results $(QUICK)/pruners.json --out $(QUICK)/pruning.png

$(CONFORMANCE_READY): pyproject.toml
	test -x $(CONFORMANCE_VENV)/bin/python || $(PYTHON) -m venv $(CONFORMANCE_VENV)
	$(CONFORMANCE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[conformance]'
	touch $(CONFORMANCE_READY)

# Hours; what is finished is skipped, in runs/conformance.
conformance: $(CONFORMANCE_READY)
	PYTHONPATH=tests $(CONFORMANCE_VENV)/bin/python -m conformance.whole_suite $(CONFORMANCE)
	PYTHONPATH=tests $(CONFORMANCE_VENV)/bin/python -m conformance.collect; broken=$$?; \
	$(CONFORMANCE_VENV)/bin/python -m benchmarks.tables.write_tables && exit $$broken

clean:
	rm -rf $(VENV) $(CONFORMANCE_VENV) runs
