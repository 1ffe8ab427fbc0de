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

.PHONY: demo test lint clean

demo: $(VENV)/.installed
	$(BIN)/microdiffusion-fast demo -o demo_out --overwrite

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q

# Types are checked on the installed layout, in which kernels/ lies inside the package.
lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	rm -rf build/layout && mkdir -p build/layout
	cp -rs $(CURDIR)/microdiffusion_fast build/layout/
	ln -s $(CURDIR)/kernels build/layout/microdiffusion_fast/kernels
	cd build/layout && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p microdiffusion_fast

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

# Leaves .venv and every result alone; the next make installs again.
clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
	rm -f microdiffusion_fast/_native*.so $(VENV)/.installed $(VENV)/.installed-dev
	find kernels microdiffusion_fast tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
