# make train | test | test-slow | check | bench | tensorboard | clean. `make train ARGS="--set seed=1"`.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

.PHONY: train test test-slow check format bench tensorboard clean

train: .venv/installed
	$(BIN)/python -m trainer.main --strategy=mirrored $(ARGS)

test: .venv/installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" $(ARGS)

test-slow: .venv/installed-dev
	$(BIN)/python -m pytest -m slow $(ARGS)

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/installed
	$(BIN)/python -m benchmarks.step $(ARGS)

tensorboard: .venv/installed
	$(BIN)/tensorboard --logdir runs

.venv/installed: requirements.txt constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install -r requirements.txt
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	$(BIN)/python -m pip install -r requirements-dev.txt
	touch $@

clean:
	rm -rf .venv runs
