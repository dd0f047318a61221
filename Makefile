# `make PYTHON=python3.12 ...` chooses the interpreter, `make test ARGS="-k matcher -x"` passes arguments to pytest,
# `make demo ARGS="OUTPUT_DIR output/other"` to the demo. `make test WORKERS=0` runs the tests in one process.
PYTHON ?= python3
ARGS ?=
WORKERS ?= auto

# A worker takes up to 2 GB of memory. One thread each: more would compete for the same processors.
PYTEST = -m pytest -n $(WORKERS) --maxprocesses=8 --dist=worksteal
test test-slow test-compiled: export OMP_NUM_THREADS = 1

.DEFAULT_GOAL := help
.PHONY: help env env-compiled demo demo-photos test test-slow test-compiled lint format docs clean

help:  ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

env:  ## Make .venv unless it is ready
	@$(PYTHON) tools/setup_env.py newest

env-compiled:  ## Make .venv-compiled (Python 3.10, torch 2.3.1, Detectron2's compiled ops) unless it is ready
	@$(PYTHON) tools/setup_env.py compiled

demo: env  ## Train a small DETR in minutes, and write a report with images of its results
	.venv/bin/python tools/demo.py $(ARGS)

demo-photos: env  ## The same with your own images: make demo-photos JSON=train.json IMAGES=photos/
	.venv/bin/python tools/demo.py --train-json $(JSON) --train-images $(IMAGES) --output output/photos $(ARGS)

test: env  ## Run the tests in .venv, except the slow ones
	.venv/bin/python $(PYTEST) -m "not slow" $(ARGS)

test-slow: env  ## Run the slow tests in .venv: several processes, compiling, exporting, installing
	.venv/bin/python $(PYTEST) -m slow $(ARGS)

test-compiled: env-compiled  ## Run all tests in .venv-compiled
	.venv-compiled/bin/python $(PYTEST) $(ARGS)

lint: env  ## Check style and format
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

format: env  ## Fix what ruff can fix, and format
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

docs: env  ## Build the documentation site: build/docs/index.html
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build -f docs/site/mkdocs.yml

clean:  ## Remove both environments, builds and caches
	rm -rf .venv .venv-compiled build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
