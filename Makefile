# make demo      a search on scanned digits, about two minutes after installation; without a GPU it builds for the CPU only
# make test      linters and all tests; those of networks once more as an older processor runs them
# make test-isa  all tests with each instruction set that this processor has
# make lint      formats, types, import rules
# make sanitize  operators and kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer (GCC)
# make emulate   the CUDA kernels, run on the CPU, under the same sanitizers
# make cpu-check   what the compiler made of the CPU kernels, against rules
# make cuda-check  what the compiler made of the CUDA kernels, against rules; needs nvcc, no GPU
# make bench     measurements: the operators, one cell, the weight step
# Everything happens in .venv; nothing else on the machine is touched.

PYTHON ?= python3
BIN := .venv/bin
SOURCES := $(wildcard csrc/* csrc/*/*) CMakeLists.txt setup.py
CXX_SOURCES := $(wildcard csrc/*.cpp csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu \
    tests/sanitize/*.cpp tests/cuda_emulation/*.h tests/cuda_emulation/*.cpp tests/cuda_emulation/include/*)
# population and search_epoch take long in plain torch: make bench BENCHMARKS="population search_epoch"
BENCHMARKS ?= ops cell supernet_step
# One thread per test process: several processes that each start a thread per core wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8
# An older processor: our portable kernels, and oneDNN as on one without AVX-512.
OLDER := FASTNAS_ISA=portable ONEDNN_MAX_CPU_ISA=AVX2
# What any processor shows is left out: kernels of a GPU, what torch.compile records, whole searches, processes, timing.
OLDER_TESTS := tests/nn tests/compat tests/benchmarks -m "not emulated" -k "not fake_cuda and not compile and not loss_curves and not ddp and not harness"
# The instruction sets that the library and this processor share, as FASTNAS_ISA names them.
ISAS = $(shell $(BIN)/python -c "from fastnas.env import instruction_sets; print(*instruction_sets())")
CTEST := $(BIN)/ctest --test-dir build/emulate --output-on-failure --quiet
# Python is not instrumented, so the sanitizer has to be there before it; so does the library that throws exceptions.
PRELOAD = $(shell $(CXX) -print-file-name=libasan.so):$(shell $(CXX) -print-file-name=libstdc++.so)
SANITIZE_TESTS ?= tests/ops
SANITIZED := ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1
UNDER_ADDRESS = LD_PRELOAD=$(PRELOAD) $(SANITIZED) FASTNAS_EMULATED=$(CURDIR)/build/emulate/lib/emulated_address.so
UNDER_THREAD = LD_PRELOAD=$(shell $(CXX) -print-file-name=libtsan.so) FASTNAS_EMULATED=$(CURDIR)/build/emulate/lib/emulated_thread.so
# Cards with less and with more shared memory than the usual 163 KiB of a block, for the kernels that need much of it.
SHARED_MEMORY_TESTS := tests/cuda_emulation tests/ops/test_stage.py tests/ops/test_stage_gradients.py tests/ops/test_edge_sum.py
on_other_cards = for kib in 99 227; do $(1) $(PYTEST) -m emulated --shared-kib $$kib $(2) $(SHARED_MEMORY_TESTS) || exit 1; done
# Empty where no NVIDIA driver is loaded; the last one is that of Windows' Linux.
DRIVER := $(wildcard /proc/driver/nvidia/version /dev/nvidiactl /dev/dxg)
SAY := $(PYTHON) tools/with_progress.py
PIP := $(BIN)/pip install --progress-bar raw --disable-pip-version-check
INSTALL := $(PIP) --verbose --no-build-isolation -c constraints.txt

.PHONY: demo test test-isa emulation emulate cpu-check cuda-check sanitize lint format bench env install clean

demo: $(if $(DRIVER),.venv/installed,.venv/installed-cpu)
	$(BIN)/python -m fastnas.search

test: lint emulation
	$(CTEST)
	$(PYTEST)
	$(OLDER) $(PYTEST) $(OLDER_TESTS)

# Where our kernels are held to less than AVX-512, oneDNN is too.
test-isa: install emulation
	for isa in $(ISAS); do \
	  echo "FASTNAS_ISA=$$isa"; \
	  held=$$([ $$isa = avx512 ] || echo ONEDNN_MAX_CPU_ISA=AVX2); \
	  env FASTNAS_ISA=$$isa $$held $(PYTEST) || exit 1; \
	done

# The CUDA kernels for the CPU, in seconds; the tests that need them skip where they are not there.
emulation: install
	FASTNAS_EMULATE=emulation $(BIN)/python setup.py --quiet build_ext

# All emulated cases, then again with the sanitizers watching. No leaks, no OpenMP: neither is ours.
emulate: install
	FASTNAS_EMULATE=emulation_sanitized $(BIN)/python setup.py --quiet build_ext
	$(CTEST)
	$(PYTEST) -m emulated --all-emulated
	$(call on_other_cards,,--all-emulated)
	$(UNDER_ADDRESS) $(PYTEST) -s -m emulated
	$(call on_other_cards,$(UNDER_ADDRESS),-s)
	$(UNDER_THREAD) $(PYTEST) -s -m emulated
	$(call on_other_cards,$(UNDER_THREAD),-s)

# -s: pytest would lose the report of a process that dies.
sanitize: install
	FASTNAS_SANITIZE=thread $(BIN)/python setup.py --quiet build_ext
	FASTNAS_SANITIZE=address,undefined $(BIN)/python setup.py --quiet build_ext
	build/sanitize-thread/sanitize_threads
	UBSAN_OPTIONS=print_stacktrace=1 build/sanitize-address/sanitize_threads
	LD_PRELOAD=$(PRELOAD) $(SANITIZED) \
	FASTNAS_EXTENSION=$(CURDIR)/build/sanitize-address/lib $(PYTEST) -p tests.sanitize.extension -s $(SANITIZE_TESTS)

cuda-check: install
	FASTNAS_CUDA=1 $(BIN)/python setup.py --quiet build_ext --inplace
	$(BIN)/python -m benchmarks resources --check

cpu-check: install
	$(BIN)/python -m benchmarks instructions --check

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

bench: install
	$(BIN)/python -m benchmarks $(BENCHMARKS) --out runs/benchmarks

env: install
	$(BIN)/python -m fastnas.env

install: .venv/installed

# Only a pip of today says in lines how far a download is.
.venv/pip:
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check "pip>=24.1"
	touch $@

# torch and the build tools come first: fastnas is then built against the torch of this environment.
.venv/tools: .venv/pip constraints.txt
	@$(SAY) "installing torch and torchvision into .venv" $(PIP) -c constraints.txt torch torchvision
	@$(SAY) "installing the build tools" $(PIP) "setuptools>=77" "cmake>=3.26" ninja "pybind11>=3.0,<4"
	touch $@

# It serves the demo as well.
.venv/installed: .venv/tools pyproject.toml $(SOURCES)
	@$(SAY) "building fastnas, and installing what it needs" $(INSTALL) -e ".[dev,dali]"
	touch .venv/installed-cpu $@

.venv/installed-cpu: .venv/tools pyproject.toml $(SOURCES)
	@echo "no NVIDIA driver is loaded, so the demo builds for the CPU only; make install builds everything"
	@FASTNAS_CUDA=$${FASTNAS_CUDA:-0} $(SAY) "building fastnas, and installing what it needs" $(INSTALL) -e .
	touch $@

clean:
	rm -rf .venv build dist *.egg-info fastnas/_C.*.so
