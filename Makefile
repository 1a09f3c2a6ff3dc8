# Builds, tests and runs a checkout; needs only python3 (3.11 or newer). `make` without a target lists the targets.

PYTHON ?= python3
VENV ?= .venv
# The tested set of dependency versions to install, newest or oldest (see constraints/).
PINS ?= newest
DEMO_WORKDIR ?= runs/demo
# The PyTorch that `make benchmark` and `make parity` install.
TORCH ?= torch==2.13.0
# The folder that `make parity` writes its fixtures to.
PARITY_FIXTURES ?= build/parity
# Further arguments of pytest, for example: make test PYTEST_ARGS='-k beam -x'
PYTEST_ARGS ?=
# EVERYTHING=1 adds the cases that only `make everything` runs, for example: make slow EVERYTHING=1
EVERYTHING ?=
# COVERAGE=1 measures which lines and branches of the library the tests run; `make coverage` prints the figures.
COVERAGE ?=
COVERAGE_FOLDER = build/coverage
# A file for the results and seconds of each test, as JUnit's XML.
REPORT ?=

PY = $(VENV)/bin/python
INSTALL_INPUTS := setup.cfg pyproject.toml $(wildcard constraints/*.txt)
FORMATTED := $(wildcard transformer_jax experiments launch benchmarks tests)

ifeq ($(filter newest oldest,$(PINS)),)
  $(error PINS=$(PINS) is not a tested set of versions: use newest or oldest)
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test slow smoke slurm slurm-tests everything coverage lint format types benchmark parity plan \
  plan-env pins pinned clean distclean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' \
	  | while IFS='|' read -r name text; do printf '  make %-10s %s\n' "$$name" "$$text"; done

demo: $(VENV)/installed-$(PINS)-core  ## train the default experiment and print its score and some translations
	$(PY) -m transformer_jax.train --config=experiments/number_words.py --workdir=$(DEMO_WORKDIR)

# Pytest of an environment, with what COVERAGE and REPORT ask for, and the tests that a target chooses by markers:
# $(call marked,EXPRESSION[,MARKER]), where files that never mention MARKER are not even imported.
# Two compilers at a time fill two cores; JAX itself uses every core.
FAST = not slow and not live and not plan and not slurm
marked = -m '($(1))$(if $(EVERYTHING),, and not everything)' $(if $(2),--marked=$(2))
covered = $(if $(COVERAGE),--cov --cov-report=)
PYTEST = $(if $(COVERAGE),COVERAGE_FILE=$(abspath $(COVERAGE_FOLDER))/$@-$(notdir $(VENV))) $(PY) -m pytest \
  $(covered) $(if $(REPORT),--junitxml=$(REPORT))
TWO = -n auto --maxprocesses=2 --dist=worksteal

# XLA's optimizations would take most of the time of the fast tests, whose programs run once. `make parity` and those
# slow tests that do not compare runs with one another keep them, as a user's runs do.
test: $(VENV)/installed-$(PINS)-dev  ## run all fast tests
	JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(PYTEST) $(call marked,$(FAST)) -n auto --maxprocesses=4 --dist=worksteal $(PYTEST_ARGS)

smoke: $(VENV)/installed-$(PINS)-dev  ## run the fast tests that fail first if a version does not fit
	JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(PYTEST) $(call marked,smoke and $(FAST),smoke) $(TWO) $(PYTEST_ARGS)

slow: $(VENV)/installed-$(PINS)-dev  ## run the tests that take minutes
	$(PYTEST) $(call marked,slow and not live and not plan and not slurm,slow) $(TWO) $(PYTEST_ARGS)

# What is stored are the sources from before the tests, because one may be edited while they run.
slurm: $(VENV)/installed-$(PINS)-dev  ## submit jobs to a Slurm cluster that the tests start on this machine
	@[ -z '$(PYTEST_ARGS)' ] || { \
	  echo "make: \`make slurm\` stores that all of its tests passed; use \`make slurm-tests\` with PYTEST_ARGS" >&2; exit 2; }
	digest=$$($(PY) -m tests.launch.slurm_sources --digest) && $(MAKE) slurm-tests && \
	  echo $$digest > tests/launch/slurm_tried.txt

slurm-tests: $(VENV)/installed-$(PINS)-dev
	$(PYTEST) $(call marked,slurm,slurm) $(TWO) $(PYTEST_ARGS)

everything:  ## run all tests with all sets of versions, before a release
	bash .ci/run everything

coverage: $(VENV)/installed-$(PINS)-dev  ## print the lines and branches that targets with COVERAGE=1 covered
	$(VENV)/bin/coverage combine --quiet --keep --data-file=$(COVERAGE_FOLDER)/combined $(filter-out %/combined,$(wildcard $(COVERAGE_FOLDER)/*))
	$(VENV)/bin/coverage report --data-file=$(COVERAGE_FOLDER)/combined --skip-covered

lint: $(VENV)/installed-$(PINS)-dev  ## check style and formatting
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(VENV)/installed-$(PINS)-dev  ## fix the style problems that ruff can fix by itself
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

types: $(VENV)/installed-$(PINS)-dev  ## check static types
	$(VENV)/bin/pyright --pythonpath $(PY)

benchmark: $(VENV)/installed-$(PINS)-torch  ## compare the speed of a train step with PyTorch's on this machine
	$(PY) benchmarks/train_step.py

# The fixtures come from pinned versions of PyTorch and transformers, so a change of the library cannot change
# them; with EVERYTHING=1 they are computed anew.
parity: VENV := .venv-parity
parity:  ## compare with Hugging Face models in PyTorch
	@$(MAKE) --no-print-directory VENV=$(VENV) $(VENV)/installed-parity
ifdef EVERYTHING
	rm -rf $(PARITY_FIXTURES)
	$(PY) -m tests.parity.make_fixtures $(PARITY_FIXTURES)
	TRANSFORMER_JAX_PARITY_FIXTURES=$(abspath $(PARITY_FIXTURES)) $(PYTEST) $(call marked,parity or live) tests/parity $(TWO) $(PYTEST_ARGS)
else
	$(PYTEST) $(call marked,live,live) tests/parity $(TWO) $(PYTEST_ARGS)
endif

plan-env: VENV := .venv-plan
plan-env:  ## make .venv-plan, an environment that compiles for TPUs and GPUs that are not present
	@$(MAKE) --no-print-directory VENV=$(VENV) $(VENV)/installed-plan

# One process at a time: a compilation takes more than one core.
plan: VENV := .venv-plan
plan: plan-env  ## compile the families' training steps for TPUs and GPUs and check the programs
	$(PYTEST) $(call marked,plan,plan) -s $(PYTEST_ARGS)

clean:  ## remove caches and build products; keep runs/, data/ and environments
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find $(FORMATTED) -type d -name __pycache__ -prune -exec rm -rf {} +

distclean: clean  ## also remove the environments that this Makefile created
	rm -rf .venv .venv-oldest .venv-newer .venv-parity .venv-plan .venv-pins

# Environments. Stamp files ensure that an installation is repeated only when its inputs have changed.

$(PY):
	@command -v $(PYTHON) >/dev/null || { \
	  echo "make: '$(PYTHON)' was not found. Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: $$($(PYTHON) --version 2>&1) is too old; use Python 3.11 or newer, for example: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "make: $(PYTHON) cannot create environments. On Debian or Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@rm -f $(VENV)/installed-*

# Python 3.11 has its own newest set, because JAX 0.11 and later need 3.12. The oldest set fits every Python.
pins_oldest = constraints/oldest.txt
pins_newest = $$($(PY) -c 'import sys; print(f"constraints/newest-py3{min(max(sys.version_info[1], 11), 12)}.txt")')
PIP_INSTALL = $(PY) -m pip install --quiet --disable-pip-version-check --no-input

# All that a set pins, without the package itself: two installations of the package at a time would write the same
# files. `.ci/run` installs the sets side by side in this way, and the targets below then find them there.
# JAX's CUDA plugin has a place of its own: see below. Python compiles what tests import when they import it,
# which is a small part of what is installed.
SET ?= $(pins_$(PINS))
pinned: $(PY)
	sed '/^jax-cuda/d' $(SET) > $(VENV)/pinned.txt
	$(PIP_INSTALL) --no-compile --requirement $(VENV)/pinned.txt

# An environment holds one set, so installing one removes the stamps of the other.
$(VENV)/installed-$(PINS)-core: $(INSTALL_INPUTS) | $(PY)
	@echo "Installing the pinned dependencies into $(VENV): one to three minutes."
	@rm -f $(VENV)/installed-*
	$(PIP_INSTALL) --constraint $(pins_$(PINS)) --editable .
	@touch $@

$(VENV)/installed-$(PINS)-dev: $(INSTALL_INPUTS) | $(PY)
	@echo "Installing the pinned dependencies and tools into $(VENV): one to three minutes."
	@rm -f $(VENV)/installed-*
	$(PIP_INSTALL) --constraint $(pins_$(PINS)) --editable '.[dev]'
	@touch $(VENV)/installed-$(PINS)-core $@

$(VENV)/installed-$(PINS)-torch: $(VENV)/installed-$(PINS)-core
	@echo "Installing $(TORCH) into $(VENV): it is large."
	$(PIP_INSTALL) --constraint $(pins_$(PINS)) $(TORCH)
	@touch $@

# PyTorch is installed first and alone, as for the benchmark, so that the other packages do not influence which
# build of it is installed.
$(VENV)/installed-parity: $(INSTALL_INPUTS) | $(PY)
	@echo "Installing $(TORCH), transformers and the pinned tools into $(VENV): they are large."
	@rm -f $(VENV)/installed-*
	$(PIP_INSTALL) --constraint constraints/parity.txt $(TORCH)
	$(PIP_INSTALL) --constraint constraints/parity.txt --editable '.[dev,parity]'
	@touch $@

# JAX's CUDA plugin without NVIDIA's libraries. It is installed outside Python's import path; on the path, JAX would
# load it at every start and print errors.
CUDA_PLUGIN = $(VENV)/cuda-plugin
$(VENV)/installed-plan: $(INSTALL_INPUTS) | $(PY)
	@echo "Installing the compilers for TPUs and GPUs into $(VENV): they are large."
	@rm -rf $(VENV)/installed-* $(CUDA_PLUGIN)
	$(PIP_INSTALL) --constraint constraints/plan.txt --editable '.[dev,tpu]'
	$(PIP_INSTALL) --constraint constraints/plan.txt --no-deps --target $(CUDA_PLUGIN) jax-cuda12-plugin jax-cuda12-pjrt
	@touch $@

pins: VENV := .venv-pins
pins:  ## renew this Python's newest set with the package index's current versions
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP_INSTALL) --editable '.[dev]'
	file=$(pins_newest) && { grep '^#' $$file; $(PY) -m pip freeze --exclude-editable; } > $$file.renewed \
	  && mv $$file.renewed $$file
