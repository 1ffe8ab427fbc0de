# The two commands of a new user are `make demo` and `make test`. Each makes .venv if there is none.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What an installation depends on; Python sources are used in place (editable install).
BUILD_INPUTS := pyproject.toml setup.py CMakeLists.txt constraints.txt \
	$(wildcard kernels/*.h kernels/*.cpp kernels/*/*.h kernels/*/*.cpp)
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
REPORT_NATIVE := $(BIN)/python -c "from microdiffusion_fast.kernels import _backend as b; \
	print('native CPU kernels:', b.native_missing or 'built')"

.PHONY: demo test lint layout docs wheel napari bench gpu clean

demo: $(VENV)/.installed
	$(BIN)/microdiffusion-fast demo -o demo_out --overwrite

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q

# The installed layout, in which kernels/ lies inside the package: for types and for the reference.
layout:
	rm -rf build/layout && mkdir -p build/layout
	cp -rs $(CURDIR)/microdiffusion_fast build/layout/
	ln -sn $(CURDIR)/kernels build/layout/microdiffusion_fast/kernels

lint: $(VENV)/.installed-dev layout
	$(BIN)/ruff check .
	cd build/layout && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p microdiffusion_fast

# The site, in build/site; a warning is an error.
docs: $(VENV)/.installed-dev layout
	$(BIN)/mkdocs build --strict --quiet

# Builds the wheel from the source distribution, installs it where no source lies, and uses it.
wheel: $(VENV)/.installed-dev
	.ci/wheel

# The tests of the plugin, with Qt in an environment of its own.
napari: $(VENV)/.installed-dev layout
	.ci/napari

# The suites on the CPU, then every bar: holds or misses.
bench: $(VENV)/.installed-bench
	rm -f bench/results/cpu.json
	$(BIN)/python -m pytest -q bench --benchmark-columns=min,median,max,rounds \
		--benchmark-json=bench/results/cpu.json; rows=$$?; \
	$(BIN)/python -m bench.bars bench/results/cpu.json && exit $$rows

# For a machine with CUDA: the kernel tests there, the suites and the bars. `make gpu PY=python3` takes
# an interpreter that has torch and pytest-benchmark as it is, and the package in place: the layout
# that is installed elsewhere is linked together in build/gpu.
PY := $(CURDIR)/$(BIN)/python
GPU_NAME := import torch; assert torch.cuda.is_available(), 'make gpu needs a CUDA device'; \
	print(torch.cuda.get_device_name().lower().replace(' ', '-'))
gpu: $(if $(filter $(CURDIR)/$(BIN)/python,$(PY)),$(VENV)/.installed-bench)
	rm -rf build/gpu && mkdir -p build/gpu
	cp -rs $(CURDIR)/microdiffusion_fast build/gpu/
	ln -sfn $(CURDIR)/kernels build/gpu/microdiffusion_fast/kernels
	ln -s $(CURDIR)/bench build/gpu/bench
	cd build/gpu && results=$(CURDIR)/bench/results/gpu-$$($(PY) -c "$(GPU_NAME)").json && \
	rm -f $$results && \
	{ env -u TRITON_INTERPRET $(PY) -m pytest -q $(CURDIR)/tests/kernels; tests=$$?; \
	MDF_BENCH_DEVICE=cuda $(PY) -m pytest -q $(CURDIR)/bench \
		--benchmark-columns=min,median,max,rounds --benchmark-json=$$results; rows=$$?; \
	$(PY) -m bench.bars $$results && exit $$((tests + rows)); }

$(BIN)/python:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is \
	needed, this is ' + sys.version.split()[0] + '; set PYTHON=python3.x')"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BUILD_INPUTS) | $(BIN)/python
	$(INSTALL) -e .
	@$(REPORT_NATIVE)
	@touch $@

$(VENV)/.installed-dev: $(BUILD_INPUTS) | $(BIN)/python
	$(INSTALL) -e '.[dev]'
	@$(REPORT_NATIVE)
	@touch $(VENV)/.installed $@

$(VENV)/.installed-bench: $(BUILD_INPUTS) | $(BIN)/python
	$(INSTALL) -e '.[bench]'
	@$(REPORT_NATIVE)
	@touch $(VENV)/.installed $@

# Leaves .venv and every result alone; the next make installs again.
clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
	rm -f microdiffusion_fast/_native*.so $(VENV)/.installed $(VENV)/.installed-*
	find kernels microdiffusion_fast tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

# Robustness; docs/reliability.md. FUZZ=1000 for a quick look.
.PHONY: fuzz sanitize
FUZZ := 100000
fuzz: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.fuzz --cases $(FUZZ) --json bench/results/fuzz.json

# The native kernels under AddressSanitizer and UBSan.
sanitize: $(VENV)/.installed-dev
	$(BIN)/python -m bench.sanitize
