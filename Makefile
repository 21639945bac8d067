# LLARVA Workbench. `make run` shows the whole workbench at work; `make help` lists the rest.
# Every target prepares what it needs (packages in .venv, the system's OpenGL library) and skips what is current.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

# The first Python of at least 3.11; `make PYTHON=/path/to/python3 …` overrides it.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
SETUP := $(or $(PYTHON),python3) tools/setup.py
BIN := .venv/bin
RUN_DIR ?= runs/quickstart
PORT ?= 8888
# What every command inside the environment gets: its programs, the OpenGL backend that was found, bounded threads.
ENV := export PATH="$(CURDIR)/$(BIN):$$PATH" MUJOCO_GL="$${MUJOCO_GL:-$$(cat .venv/.gl 2>/dev/null)}" \
	TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1;

.NOTPARALLEL:
.PHONY: help run test test-slow lab docs export readme outputs clean-runs lint

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r t d; do printf '  make %-11s %s\n' "$$t" "$$d"; done

run: .venv/.installed-run .venv/.gl  ## demonstrations, traces, training and closed-loop evaluation of one task, with a report
	@$(ENV) python -m llarva.runs quickstart -p out_dir $(RUN_DIR)

test: .venv/.installed-dev .venv/.gl .venv/.browser  ## every check: style, types, notebooks, tests
	@$(ENV) ruff check --output-format concise .
	@$(ENV) mypy llarva
	@$(ENV) nbdev_test --n_workers 0 --timing
	@$(ENV) python -m pytest -q -m "not slow"

test-slow: .venv/.installed-dev .venv/.gl  ## the checks that take long: a hundred unseen scenes for every expert
	@$(ENV) python -m pytest -q -m slow

lab: .venv/.installed-run .venv/.gl  ## JupyterLab at the explorers
	@mkdir -p nbs/explore
	@$(ENV) jupyter lab --port $(PORT) --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/nbs/explore \
		--LabApp.news_url=None $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB_ARGS)

docs: .venv/.installed-docs  ## the documentation site, in _docs
	@$(ENV) python tools/make_site.py

export: .venv/.installed-dev  ## notebooks to package: llarva/*.py, cleaned notebooks, README.md
	@$(ENV) python tools/tidy.py && nbdev_export && nbdev_clean && python tools/readme.py

outputs: .venv/.installed-dev .venv/.gl  ## run the library notebooks and save what they show (NB=… for one)
	@$(ENV) python tools/execute.py $(NB) && python tools/tidy.py && nbdev_clean

clean-runs:  ## delete everything that runs have made
	rm -rf runs

.venv/.installed-run .venv/.installed-dev .venv/.installed-docs: pyproject.toml constraints.txt tools/setup.py
	@$(SETUP) packages $(patsubst .venv/.installed-%,%,$@)

.venv/.gl: tools/gl_probe.py | .venv/.installed-run
	@$(SETUP) gl

.venv/.browser: tools/setup.py | .venv/.installed-dev
	@$(SETUP) browser
