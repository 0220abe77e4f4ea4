# `make` lists the targets. Override on the command line: PYTHON=python3.12, EXTRAS= (core only),
# ARGS='-k name' and WORKERS=1 (for pytest), ROW=name (for bench).
PYTHON ?= python3
EXTRAS = dev
ARGS =
ROW =
# Number of processes that run the tests; each takes one file at a time.
WORKERS = auto
# For fuzz: the number of inputs, which sequence of them, or the id of one to repeat; processes.
COUNT = 10000
SEED = 1
ONLY =
FUZZERS = 2
# For soak: the number of kills, and of requests to stop.
KILLS = 50
STOPS = 30

BIN := .venv/bin
# One stamp per set of extras, touched last, so that an interrupted install is repeated.
stamp = .venv/.installed-$(or $(1),core)
STAMP := $(call stamp,$(EXTRAS))
# The quickstart needs matplotlib only, not the development tools. If those are installed, they do.
QUICK := $(if $(filter-out file,$(origin EXTRAS)),$(STAMP),$(or \
	$(wildcard $(call stamp,dev)),$(call stamp,plots)))

# Constrain the build environment too: newer versions of pip read the second name for it.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt

.DEFAULT_GOAL := help
# Two pips at once would break .venv.
.NOTPARALLEL:
.PHONY: help install quickstart test fuzz soak lint bench walkthrough dist format clean

help: ## Print this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1|\2/p' Makefile | \
		while IFS='|' read -r name text; do printf '%-16s %s\n' "$$name" "$$text"; done

install: $(STAMP) ## Install into .venv (EXTRAS= installs the core only)

.venv/.installed-%: pyproject.toml constraints.txt Makefile
	@rm -f $@
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
		command -v '$(PYTHON)' >/dev/null || \
			{ echo 'makemoe needs Python 3.11 or newer: no $(PYTHON) found (try PYTHON=...)' >&2; exit 1; }; \
		'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
			{ echo "makemoe needs Python 3.11 or newer: $(PYTHON) is" \
				"$$('$(PYTHON)' -V 2>&1) (try PYTHON=...)" >&2; exit 1; }; \
		'$(PYTHON)' -c 'import venv, ensurepip' 2>/dev/null || \
			{ echo '$(PYTHON) lacks the venv module: install it' \
				'(on Debian and Ubuntu: python3-venv)' >&2; exit 1; }; \
		'$(PYTHON)' -m venv --clear .venv; }
	@$(BIN)/python .ci/install.py '$*'
	@touch $@

quickstart: $(QUICK) ## Train a small model on the sample text, then write some text with it
	$(BIN)/makemoe fit --config configs/quickstart.yaml
	$(BIN)/makemoe predict --ckpt_path last

test: lint ## Run every check, then the tests (ARGS='-k name' goes to pytest)
	@echo '== pytest'
	@$(BIN)/pytest -n $(WORKERS) --maxprocesses 4 --dist loadfile -m 'not slow' $(ARGS)

fuzz: $(STAMP) ## Try many odd inputs (COUNT=10000, SEED=1; ONLY=id repeats one)
	@PYTHONPATH=tests $(BIN)/python -m fuzz $(if $(ONLY),--only $(ONLY),--count $(COUNT) \
		--seed $(SEED) --workers $(FUZZERS) $(if $(filter 10000,$(COUNT)),--keep docs/reliability.json))

soak: $(STAMP) ## The slow tests; then kill and stop runs at random moments (KILLS=50, STOPS=30)
	@$(BIN)/pytest -m slow $(ARGS)
	@PYTHONPATH=tests $(BIN)/python -m soak --kills $(KILLS) --stops $(STOPS) --seed $(SEED) \
		$(if $(filter 50-30,$(KILLS)-$(STOPS)),--keep docs/reliability.json)

lint: $(STAMP) ## Check style, formatting, types and import layers
	@echo '== ruff check'
	@$(BIN)/ruff check --quiet
	@echo '== ruff format'
	@$(BIN)/ruff format --check --quiet
	@echo '== mypy'
	@$(BIN)/mypy
	@echo '== import layers'
	@$(BIN)/lint-imports --no-logo

bench: $(STAMP) $(call stamp,bench) ## Time it against plain and well-known models (ROW=name for one row)
	@$(BIN)/python -m benchmarks $(if $(ROW),--row $(ROW))

walkthrough: $(STAMP) ## Run the notebooks of docs/walkthrough and save their output
	@$(BIN)/python tests/notebooks.py

dist: $(STAMP) ## Build a wheel and a source distribution into dist/
	@rm -rf build dist
	@$(BIN)/python -c 'import setuptools.build_meta as b; b.build_sdist("dist"); b.build_wheel("dist")' >/dev/null
	@rm -rf build
	@ls dist/*

format: $(STAMP) ## Format the code
	@$(BIN)/ruff check --fix --quiet --exit-zero
	@$(BIN)/ruff format

clean: ## Remove caches and build products (not .venv, not checkpoints)
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .fuzz .soak
	@find . -path ./.venv -prune -o -path ./.git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
