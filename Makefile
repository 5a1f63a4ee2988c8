# Everything that needs the environment makes it first. Nothing but Python >= 3.11 and make is assumed.

PYTHON ?= python3
SCALE ?= small
CORES ?= all
ENVIRONMENT ?= envs/cpu.txt
WORKERS ?= 2

BIN := .venv/bin
PAPERS := $(patsubst %/workflow.smk,%,$(wildcard papers/*/workflow.smk))

.PHONY: help .venv $(PAPERS) $(PAPERS:=/) all-papers test test-fast lint benchmarks lock

help:
	@echo 'make papers/<id> [SCALE=small]   prepare, train, evaluate and report one paper: $(notdir $(PAPERS))'
	@echo 'make all-papers                  every paper'
	@echo 'make test                        all tests; make test-fast leaves out those that run pipelines'
	@echo 'make lint benchmarks             style checks; speed measurements'
	@echo 'make .venv                       the environment alone (ENVIRONMENT=envs/cuda.txt for GPUs)'
	@echo 'make lock                        pin the newest versions that pyproject.toml allows'

.venv: .venv/complete

.venv/complete: $(ENVIRONMENT)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement $(ENVIRONMENT)
	@touch $@

$(PAPERS) $(PAPERS:=/): .venv/complete
	$(BIN)/snakemake $(patsubst %/,%,$@) --cores $(CORES) --config scale=$(SCALE)

all-papers: .venv/complete
	$(BIN)/snakemake --cores $(CORES) --config scale=$(SCALE)

test test-fast: .venv/complete
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(if $(filter test-fast,$@),-m 'not slow') \
	  --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: .venv/complete
	$(BIN)/ruff check
	$(BIN)/ruff format --check

benchmarks: .venv/complete
	for file in tests/benchmarks/[a-z]*.py; do $(BIN)/python -m tests.benchmarks.$$(basename $$file .py) || exit; done

# The pins are made for CPUs; envs/cuda.txt says what differs on GPUs.
lock: .venv/complete
	$(BIN)/python -m piptools compile --quiet --strip-extras --no-annotate --no-header --upgrade \
	  --no-emit-index-url --no-emit-trusted-host --no-emit-find-links \
	  --extra test --extra slurm --extra s3 --extra dev --output-file envs/cpu.txt pyproject.toml
	sed -i -e "s/^torch==\(.*\)+cpu/torch==\1/" -e "/^#/d" envs/cpu.txt

.PHONY: restore publish verify
restore publish: .venv/complete
	$(BIN)/python -m shared.$@ $(TARGET)

verify: .venv/complete
	$(BIN)/python -m shared.verify
