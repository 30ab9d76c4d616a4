# make demo | test | test-portable | test-readme | fuzz | check | bench | bench-peers
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
PEERS := .venv-peers
BIN := $(VENV)/bin
PIP_FLAGS := --quiet --disable-pip-version-check

.PHONY: demo test test-portable test-readme fuzz check bench bench-peers compare-peers models clean

demo: $(VENV)/.run
	HF_HUB_OFFLINE=1 $(BIN)/encoderlens demo

test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 -q

# Tests whose numbers depend on how kernels round, on the kernels that every processor has.
PORTABLE := tests/test_linearised.py tests/test_layer_norm.py tests/families/test_parity.py \
	tests/families/test_eurobert.py tests/families/test_audio_parity.py

test-portable: $(VENV)/.test
	ATEN_CPU_CAPABILITY=default $(BIN)/python -m pytest -n 2 -q $(PORTABLE)

# The README, pasted into a fresh shell: it installs the package three times over.
test-readme: $(VENV)/.test
	$(BIN)/python -m pytest -q -m shell tests/test_documents.py

fuzz: $(VENV)/.test
	HYPOTHESIS_PROFILE=fuzz $(BIN)/python -m pytest -n 2 -q --hypothesis-seed=0 tests/test_audio_fuzz.py tests/test_text_fuzz.py

check: $(VENV)/.check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python tools/check_imports.py

bench: $(VENV)/.run
	$(BIN)/python benchmarks/bench_hf.py
	$(BIN)/python benchmarks/bench_import.py
	$(BIN)/python benchmarks/bench_memory.py
	$(BIN)/python benchmarks/bench_additive.py
	$(BIN)/python benchmarks/bench_audio.py
	$(BIN)/python benchmarks/bench_align.py
	$(BIN)/python benchmarks/bench_scoring.py

bench-peers: $(PEERS)/.peers
	$(PEERS)/bin/python benchmarks/bench_peers.py
	$(PEERS)/bin/python benchmarks/bench_audio_peers.py

compare-peers: $(PEERS)/.peers
	$(PEERS)/bin/python tools/compare_transformer_lens.py --out docs/compared-with-transformer-lens.md

models: $(VENV)/.run
	$(BIN)/python tools/supported_models.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e .
	touch $@

$(VENV)/.test: $(VENV)/.run realweights.txt
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[test]'
	$(BIN)/python -m pip install $(PIP_FLAGS) --upgrade --no-deps --target $(VENV)/realweights -r realweights.txt
	touch $@

$(VENV)/.check: $(VENV)/.test
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[check]'
	touch $@

$(PEERS)/.peers: pyproject.toml constraints-peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install $(PIP_FLAGS) -c constraints-peers.txt -e . transformer-lens
	touch $@

clean:
	rm -rf $(VENV) $(PEERS) .pytest_cache .ruff_cache
