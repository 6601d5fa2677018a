# Verbs of premotor. Everything lives in .venv and build/; `make help` lists what there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
EPISODES ?= 10

.DEFAULT_GOAL := help
.PHONY: help setup demo test check protos train-demo peers clean

help: ## list the verbs
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | expand -t 14

setup: $(VENV)/.ready ## make .venv with all that serving, training and simulating need

demo: $(VENV)/.ready ## serve the shipped checkpoint and let simulated robots use it (EPISODES=10 per task)
	$(BIN)/python scripts/demo.py --episodes $(EPISODES)

test: $(VENV)/.ready-dev ## run all tests
	OMP_NUM_THREADS=1 MUJOCO_GL=egl $(BIN)/python -m pytest -n 2 --dist loadfile

check: $(VENV)/.ready-dev ## ruff, pyright, and generated code up to date
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python protos/generate.py --check
	$(BIN)/pyright

protos: $(VENV)/.ready-dev ## regenerate the code of protos/
	$(BIN)/python protos/generate.py

train-demo: $(VENV)/.ready ## train from nothing, by the shipped recipe with fewer steps (resumable)
	$(BIN)/python -m training demo --recipe cross13-short

peers: $(VENV)/.ready-dev ## environments of openpi's and LeRobot's servers, for the comparison, in build/peers
	PYTHON=$(BIN)/python scripts/make_peers.sh

clean: ## remove build/ (not .venv)
	rm -rf build

$(VENV)/.ready: pyproject.toml constraints.txt scripts/install_debian_packages.sh
	@PYTHON=$(PYTHON) scripts/install_debian_packages.sh
	@echo "setup: making $(VENV) (a few minutes the first time)" >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) --upgrade 'pip>=24'
# torch comes first and alone, so that no later requirement picks another build of it.
	@echo "setup: torch" >&2
	@$(PIP) -c constraints.txt torch
	@echo "setup: serving, training and simulators" >&2
	@$(PIP) -c constraints.txt -e '.[serve,train,sim]'
# Both declare numpy < 2, which neither needs as it is used here.
	@$(PIP) -c constraints.txt --no-deps robosuite nvidia-pytriton
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	@PYTHON=$(PYTHON) scripts/install_debian_packages.sh dev
	@echo "setup: test tools" >&2
	@$(PIP) -c constraints.txt -e '.[serve,train,sim,dev]'
# It declares numpy < 2, which it does not need as it is used here.
	@$(PIP) -c constraints.txt --no-deps openpi-client
	@touch $@
