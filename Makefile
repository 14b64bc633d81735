# make demo    a search on scanned digits, about two minutes after installation
# make test    all tests
# make lint    formats, types
# make bench   measurements: the operators, one cell, the weight step
# Everything happens in .venv; nothing else on the machine is touched.

PYTHON ?= python3
BIN := .venv/bin
SOURCES := $(wildcard csrc/* csrc/*/*) CMakeLists.txt setup.py
# population and search_epoch take long in plain torch: make bench BENCHMARKS="population search_epoch"
BENCHMARKS ?= ops cell supernet_step
# One thread per test process: several processes that each start a thread per core wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8

.PHONY: demo test lint format bench env install clean

demo: install
	$(BIN)/python -m fastnas.search

test: install
	$(PYTEST)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(wildcard csrc/*.cpp csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu)
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(wildcard csrc/*.cpp csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu)

bench: install
	$(BIN)/python -m benchmarks $(BENCHMARKS) --out runs/benchmarks

env: install
	$(BIN)/python -m fastnas.env

install: .venv/installed

# torch and the build tools come first: fastnas is then built against the torch of this environment.
.venv/tools: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch torchvision
	$(BIN)/pip install --quiet --disable-pip-version-check "setuptools>=77" "cmake>=3.26" ninja "pybind11>=3.0,<4"
	touch $@

.venv/installed: .venv/tools pyproject.toml $(SOURCES)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf .venv build dist *.egg-info fastnas/_C.*.so
