# The same words as in CI. `make ci` is CI.
# PYTHON is a virtual environment's: python3 -m venv .venv && .venv/bin/pip install -e '.[dev]'

BIN ?= .venv/bin

.PHONY: test lint types imports reference clients proof abuse benchmarks ci settings parameters models

test:  ## The tests that need nothing but the test extra.
	$(BIN)/pytest

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec deploy/compose.yaml

types:
	$(BIN)/mypy

imports:  ## Who may import whom.
	$(BIN)/lint-imports

reference:  ## Against transformers and torch: pip install -e '.[test,reference]'
	$(BIN)/pytest tests/reference_live

clients:  ## Other clients of the API, each in an environment of its own: needs npm and the network.
	$(BIN)/pytest tests/clients_external

proof:  ## Same answers as transformers and alone as in a crowd, and the price of each weight format in perplexity.
	PROOF=1 $(BIN)/pytest tests/fidelity tests/runners tests/reference_live
	$(BIN)/python benchmarks/quality.py

abuse:  ## Load, faults and attacks for as long as they prove something (docs/proofs.md): pip install -e '.[proof]'
	PROOF=1 $(BIN)/pytest tests/abuse tests/proof
	$(BIN)/python benchmarks/soak.py
	$(BIN)/python benchmarks/soak.py --clients 64 --seconds 300 --patience 60 -- SmolLM2-135M-Instruct

benchmarks:  ## The figures of speed in benchmarks/RESULTS.md, with plots, beside llama.cpp; ONLY=compare,start for some.
	$(BIN)/python benchmarks/all.py $(if $(ONLY),--only $(ONLY))

settings:  ## Write the settings table of the README anew.
	$(BIN)/python scripts/settings_table.py

parameters:  ## Write docs/parameters.md anew.
	$(BIN)/python scripts/parameters_page.py

models:  ## Write docs/models.md anew, with the errors measured.
	$(BIN)/python scripts/models_page.py --measure

ci:
	bash .ci/run
