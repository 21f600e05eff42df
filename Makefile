# make train | test | test-slow | test-tf220 | coverage | check | format | docs | docs-serve | parity
# | preflight-env | bench | tensorboard | clean. `make train ARGS="--set seed=1"`.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
# Two test files at a time; with --no-loadscope-reorder in the order of their names, without it
# those with most tests first.
TWO := -n 2 --dist loadfile

.PHONY: train test test-slow test-tf220 coverage check format docs docs-serve parity preflight-env \
  bench samples tensorboard clean

train: .venv/installed
	$(BIN)/python -m trainer.main --strategy=mirrored $(ARGS)

test: .venv/installed-dev
	$(BIN)/python -m pytest $(TWO) --no-loadscope-reorder -m "not slow" $(ARGS)

test-slow: .venv/installed-dev
	$(BIN)/python -m pytest $(TWO) -m slow $(ARGS)

# With TensorFlow 2.20, the version for TPUs: tensorflow-tpu itself, which needs no TPU for this.
# TPU_LOAD_LIBRARY=0 because without a TPU, libtpu would ask a server for one for eight minutes.
test-tf220: .venv-tf220/installed
	TPU_LOAD_LIBRARY=0 .venv-tf220/bin/python -m pytest $(TWO) --no-loadscope-reorder -m "not slow" $(ARGS)

# Line coverage of `make test`, including the processes that it starts.
coverage: .venv/installed-dev
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(TWO) --no-loadscope-reorder -m "not slow" $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Builds the documentation as web pages in site/. Broken links and anchors are errors. Don't add
# --quiet: it would hide them and let them pass.
docs: .venv-docs/installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

# Runs the commands whose output the documentation shows, and writes it and the picture there.
samples: .venv/installed .venv-preflight/installed
	$(BIN)/python -m docs.samples

docs-serve: .venv-docs/installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs serve

# Recomputes tests/parity/golden.json and runs the other checks that need PyTorch and timm, in a
# separate environment.
parity: .venv/installed-dev .venv-parity/installed
	.venv-parity/bin/python -m tests.parity.reference
	rm -rf .venv-parity/exports && mkdir .venv-parity/exports
	$(BIN)/python -m tests.parity.exports .venv-parity/exports
	.venv-parity/bin/python -m tests.parity.check_exports .venv-parity/exports
	rm -rf .venv-parity/exports
	$(BIN)/python -m pytest tests/models/test_parity.py tests/models/test_published.py

# The TPU compiler that trainer.preflight calls.
preflight-env: .venv-preflight/installed

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

.venv-docs/installed: requirements-docs.txt
	$(PYTHON) -m venv --clear .venv-docs
	.venv-docs/bin/python -m pip install --quiet -r requirements-docs.txt
	touch $@

.venv-preflight/installed: requirements-preflight.txt
	$(PYTHON) -m venv --clear .venv-preflight
	.venv-preflight/bin/python -m pip install --quiet -r requirements-preflight.txt
	cp requirements-preflight.txt $@

.venv-parity/installed: tests/parity/requirements.txt
	$(PYTHON) -m venv --clear .venv-parity
	.venv-parity/bin/python -m pip install --quiet -r tests/parity/requirements.txt
	touch $@

.venv-tf220/installed: requirements-tpu.txt tests/requirements-tf220.txt
	$(PYTHON) -m venv --clear .venv-tf220
	.venv-tf220/bin/python -m pip install --quiet --upgrade pip
	.venv-tf220/bin/python -m pip install --quiet --no-deps -r requirements-tpu.txt \
	  -r tests/requirements-tf220.txt
	touch $@

clean:
	rm -rf .venv .venv-docs .venv-parity .venv-preflight .venv-tf220 build site runs .coverage*
