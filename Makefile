# make grid | make test | make test-slow | make check | make format | make clean
#
# The environment is .venv, made on first use. A CUDA machine gets PyTorch's CUDA build, which is what PyPI serves.
# For a CPU build on a machine without a GPU (saves gigabytes):
#   make install TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
BIN := $(VENV)/bin
TEST := $(BIN)/pytest -n logical --dist worksteal
STAMP := $(VENV)/.installed

.PHONY: install grid test test-slow check format clean

install: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; give one with make PYTHON=/path/to/python3.11"; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "Python's venv module is missing; on Debian: apt install python3-venv"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "torch==2.13.*" $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@

grid: install
	$(BIN)/python sweeps/run_grid.py

test: install
	$(TEST)

test-slow: install
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev,ray]"
	$(BIN)/pytest -m slow -n logical --dist loadgroup

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(TEST)

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist *.egg-info
