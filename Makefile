# The two commands a newcomer needs are `make ablation` and `make test`; both install what they need.
SCALE   ?= tiny
CLUSTER ?= local
SEEDS   ?= 0
SWEEP   ?= ablation
RETRY   ?=
STUDENT ?=
MINUTES ?= 9
RUNS    ?= $(or $(RUNS_DIR),runs)
PYTHON  ?= python3

VENV   := .venv
PY     := $(VENV)/bin/python
# A file of tests stays in one process, whose fixtures it shares, and files come as tests/conftest.py sorts them.
# One process more than there are cores, since some tests wait; more than four only cost memory.
CORES   = $(shell env -u OMP_NUM_THREADS nproc)
WORKERS = $(shell echo $$(($(CORES) < 4 ? $(CORES) + 1 : 4)))
PYTEST  = $(PY) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
READY  := $(VENV)/.installed
SWEEPS  = $(PY) -m sweeps
# A word of a command, whatever letters it has.
quoted  = '$(subst ','\'',$(1))'
FOLDER  = $(call quoted,$(RUNS))
CHOICE  = $(call quoted,$(SWEEP)) --scale $(SCALE) --seeds $(call quoted,$(SEEDS)) --runs $(FOLDER)

.DEFAULT_GOAL := help
.PHONY: help ablation theory world live test test-numeric test-all plan table status tensorboard benchmark gpu-check lint clean

help:  ## this list
	@echo $(call quoted,Options (defaults): SCALE=$(SCALE) CLUSTER=$(CLUSTER) SEEDS=$(SEEDS) SWEEP=$(SWEEP) RUNS=$(RUNS))
	@echo "  SEEDS takes several, separated by commas: make ablation SEEDS=0,1,2; RETRY=1 tries failed runs again"
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

ablation: $(READY)  ## run the whole sweep (SWEEP, SCALE, SEEDS), then print its table; continues where it stopped
	@$(SWEEPS) run $(CHOICE) --cluster $(CLUSTER) $(if $(RETRY),--retry)
	@$(SWEEPS) table $(CHOICE)

theory: SEEDS = 0,1,2
theory: $(READY)  ## the paper's theory in worlds whose law is known (three seeds): all sweeps, then the report
	@$(SWEEPS) run theory_switching --scale switching --seeds $(call quoted,$(SEEDS)) --runs $(FOLDER) --cluster $(CLUSTER) $(if $(RETRY),--retry)
	@$(SWEEPS) run theory_gaussian --scale gaussian --seeds $(call quoted,$(SEEDS)) --runs $(FOLDER) --cluster $(CLUSTER) $(if $(RETRY),--retry)
	@$(SWEEPS) run theory_updates --scale switching --seeds $(call quoted,$(SEEDS)) --runs $(FOLDER) --cluster $(CLUSTER) $(if $(RETRY),--retry)
	@$(SWEEPS) run theory_updates --scale gaussian --seeds $(call quoted,$(SEEDS)) --runs $(FOLDER) --cluster $(CLUSTER) $(if $(RETRY),--retry)
	@$(SWEEPS) theory --seeds $(call quoted,$(SEEDS)) --runs $(FOLDER)

world: $(READY)  ## a room one can walk through: the world model of few-step students (SEEDS), then its table; first says what it will cost
	@$(SWEEPS) plan world_model --scale room --seeds $(call quoted,$(SEEDS)) --runs $(FOLDER)
	@$(SWEEPS) run world_model --scale room --seeds $(call quoted,$(SEEDS)) --runs $(FOLDER) --cluster $(CLUSTER) $(if $(RETRY),--retry)
	@$(SWEEPS) table world_model --scale room --seeds $(call quoted,$(SEEDS)) --runs $(FOLDER)

live: $(READY)  ## a page to walk through the room of make world, or to watch another student: make live STUDENT=runs/...
	@student=$(if $(STUDENT),$(call quoted,$(STUDENT)),"$$($(SWEEPS) students world_model --scale room --seeds 0 --runs $(FOLDER) --cell 'setting=1 frame, 2 steps' --cell init=causal_cd --paths)") \
	&& $(PY) -m experiments live "$$student" --open

test: $(READY)  ## run the test suite
	@$(PYTEST) -m "not slow and not gpu"

test-numeric: $(READY)  ## the tests that ask for numbers, in the plainest arithmetic that the libraries offer
	@ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2 $(PYTEST) -m "numeric and not slow and not gpu" \
		$$(grep -rl 'mark.numeric' tests --include=*.py)

test-all: $(READY)  ## run the slow tests too; says which take longest
	@$(PYTEST) --durations 30

plan: $(READY)  ## what would run, what is done already, what it will cost; starts nothing
	@$(SWEEPS) plan $(CHOICE)

status: $(READY)  ## the state of every run of the sweep
	@$(SWEEPS) status $(CHOICE)

table: $(READY)  ## the table from what has been run so far; blanks say "not run"
	@$(SWEEPS) table $(CHOICE)

tensorboard: $(READY)  ## TensorBoard over all runs
	@$(VENV)/bin/tensorboard --logdir $(FOLDER)

benchmark: $(READY)  ## run the sweep into a fresh folder; report wall time, peak memory and disk
	@mkdir -p $(FOLDER); folder=$$(mktemp -d $(FOLDER)/benchmark-$$(date +%Y%m%d-%H%M%S)-XXXX); \
	echo "measuring in $$folder"; \
	$(SWEEPS) run $(call quoted,$(SWEEP)) --scale $(SCALE) --seeds $(call quoted,$(SEEDS)) --runs "$$folder" --measure

gpu-check: $(READY)  ## on a GPU: the tests that need it and the bench, within MINUTES; without one, a rehearsal
	@$(PY) -m experiments.bench.gpu_check --minutes $(MINUTES)

lint: $(READY)  ## check style
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

clean:  ## remove caches and the environment; runs are kept
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis .coverage htmlcov

$(READY): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python >= 3.11 is needed, this is " + sys.version.split()[0] + "; name another one: make PYTHON=python3.12 ...")'
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet -c constraints.txt -e '.[eval,deepspeed,slurm,dev]'
	@touch $@
