# make demo: from nothing to a trained federation and its report. make test: everything that must hold.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
EXTRAS := dev,decoders,ray

# Real data sets for the tests and experiments that use them; those tests skip where there are none.
ifeq ($(origin FEDMED_DATA),undefined)
FEDMED_DATA := $(abspath $(wildcard ../shared/data))
endif
ifneq ($(FEDMED_DATA),)
export FEDMED_DATA
endif

.PHONY: demo rehearse install test test-models test-faults test-hostile lint format bench bench-overhead bench-scale bench-engines bench-real bench-simulators bench-round bench-load bench-models bench-published clean

demo: $(INSTALLED)
	$(BIN)/fedmed phantom demo/federation --sites 4 --seed 1
	$(BIN)/fedmed simulate simulations/fedmed_simulations/experiments/demo.toml --runs demo/runs
	@echo "Report: $$(ls -td $(CURDIR)/demo/runs/*/report.html | head -n 1)"

# A whole consortium on loopback: certificates, a server, three hospitals, five rounds; compared with a simulation.
rehearse: $(INSTALLED)
	rm -rf rehearsal
	$(BIN)/fedmed rehearse --sites 3 --rounds 5 --folder rehearsal

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: fedmed needs Python 3.11 or newer, and $(PYTHON) is older; say make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[$(EXTRAS)]"
	@touch $@

# Many tests wait for processes of their own, so that three at a time keep two cores busy; one thread of arithmetic each.
TESTS_AT_ONCE ?= 3
test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(TESTS_AT_ONCE) --dist loadfile --no-loadscope-reorder --durations 15

# Every architecture as ONNX, and every one in every dimension for a round.
test-models: $(INSTALLED)
	$(BIN)/python benchmarks/every_model.py --at-once $(TESTS_AT_ONCE)

test-hostile: $(INSTALLED)
	$(BIN)/python benchmarks/hostile_replies.py --examples 10000
	$(BIN)/python benchmarks/mutated_dicom.py --files 10000

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What fedmed costs, alone and beside others; benchmarks/results.md shows the newest of everything. Leave the machine idle meanwhile.
bench: bench-overhead bench-simulators bench-round bench-real
	$(BIN)/python benchmarks/results.py

bench-overhead: $(INSTALLED)
	$(BIN)/python benchmarks/simulation_overhead.py --mlflow --sites 8 10 1000 8 --models small small small large \
	  --rounds 5 5 1 2 --steps 15 10 10 4

bench-scale: $(INSTALLED)
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/aggregation.py

bench-engines: $(INSTALLED)
	$(BIN)/python benchmarks/engines.py --workers 2

bench-real: $(INSTALLED)
	$(BIN)/python benchmarks/real_data.py nuclei retina hippocampus --seeds 1 2 3

# Beside pfl, Flower on Ray, NVFlare and a plain loop, each installed into an environment of its own below .bench.
bench-simulators: $(INSTALLED)
	$(BIN)/python benchmarks/simulators.py --sites 8 100 --rounds 3 1 --steps 10 5 --repeats 5

bench-round: $(INSTALLED)
	$(BIN)/python benchmarks/deployed_round.py

bench-models: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/models.py

# FLamby's published numbers, where FEDMED_DATA has its files: docs/how-to/published-numbers.md.
bench-published: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/tcga_brca.py

# Every way to end every process at every point, a long run under random faults, and invented secrets that must stay.
test-faults: $(INSTALLED)
	$(BIN)/python benchmarks/kill_matrix.py
	$(BIN)/python benchmarks/chaos.py
	$(BIN)/python benchmarks/canaries.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/ledger_kills.py

bench-load: $(INSTALLED)
	$(BIN)/python benchmarks/load.py
	$(BIN)/python benchmarks/calls.py
	$(BIN)/python benchmarks/warm_order.py

clean:
	rm -rf $(VENV) .bench demo rehearsal build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
