# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PEERS  := .venv-peers
DOCTOR := .venv-doctors
CURVES := tests/data/curves

.PHONY: demo test check bench prove docs clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

$(PEERS)/.installed: pyproject.toml constraints.txt benchmarks/requirements-peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -r benchmarks/requirements-peers.txt -e .
	touch $@

$(DOCTOR)/.installed: constraints.txt benchmarks/requirements-doctors.txt
	$(PYTHON) -m venv $(DOCTOR)
	$(DOCTOR)/bin/pip install --quiet --disable-pip-version-check -r benchmarks/requirements-doctors.txt
	touch $@

demo: $(STAMP)   ## real ImageNet weights onto real digits: freeze, train, get killed, resume, compare
	$(BIN)/torchkeep demo

test: $(STAMP)   ## the whole suite; two processes of one thread each, which do not wait for each other's
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(STAMP)  ## style, types, direction of the imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP) $(PEERS)/.installed $(DOCTOR)/.installed  ## beside other savers, loaders and the pickle scanners; writes the tables of the docs
	$(PEERS)/bin/python -m benchmarks.disk --write docs/benchmarks-disk.md
	$(BIN)/python benchmarks/opening.py --write docs/benchmarks-opening.md
	$(BIN)/python -m benchmarks.editing --write docs/benchmarks-editing.md
	$(BIN)/python -m benchmarks.sweeping --write docs/benchmarks-sweeping.md
	$(BIN)/python benchmarks/peers.py --write docs/peers.md
	$(PEERS)/bin/python -m benchmarks.loading --write docs/benchmarks-loading.md
	$(BIN)/python -m benchmarks.doctors $(CURVES)/tuning $(CURVES)/scoring $(CURVES)/confirming $(CURVES)/final $(CURVES)/fresh \
		$(CURVES)/sixth --python $(DOCTOR)/bin/python --write docs/benchmarks-doctors.md

prove: $(STAMP)  ## the long proofs; writes docs/proofs.md and docs/proofs-transfer.md
	$(BIN)/python tests/prove.py

docs: $(STAMP)   ## run every example in README and docs
	$(BIN)/python -m pytest tests/test_docs.py

clean:
	rm -rf $(VENV) $(PEERS) $(DOCTOR) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
