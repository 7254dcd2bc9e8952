# Each target does its own set-up: a virtual environment in .venv with the package and what the target needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find csrc tests/cuda_on_cpu -type f) CMakeLists.txt pyproject.toml constraints.txt
OUT ?= demo_report

.PHONY: demo test bench bench-compare lint clean

demo: $(VENV)/installed
	$(BIN)/bitlens demo --out $(OUT) $(DEMO_FLAGS)

test: $(VENV)/installed
	$(BIN)/python -m pytest

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/installed
	cd benchmarks && ../$(BIN)/asv machine --yes && ../$(BIN)/asv run --python=same --quick --show-stderr

# BASE=revision, KERNELS="names" for some kernels only. It builds what it times itself, so an installation that lags
# behind the sources will do.
bench-compare:
	test -e $(VENV)/installed || $(MAKE) $(VENV)/installed
	$(BIN)/python benchmarks/compare.py --base "$(BASE)" \
	  $(if $(filter undefined,$(origin KERNELS)),,--kernels "$(KERNELS)") $(COMPARE_FLAGS)

# Editable, without build isolation: a change of a C++ file rebuilds only what depends on it.
$(VENV)/installed: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt "scikit-build-core>=0.11" "pybind11>=3.0" "cmake>=3.22" ninja
	BITLENS_TEST_MODULES=ON $(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build demo_report benchmarks/.asv
