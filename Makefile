# Start with `make demo` or `make test`. Both first install what they need into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
EXTRAS := s3 gs drive kaggle dicom dashboard onnx mlflow
PACKAGES := --requirements pyproject.toml $(EXTRAS:%=--extra %)
INSTALL := $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes
# Two test files at a time: many tests wait for processes that start, end or lose their lease.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: install install-user demo check test test-slow test-gpu bench docs pictures chart sbom lock clean
.DEFAULT_GOAL := help

help:
	@echo "make install     .venv with the nightshift command in it, and with the tools of developers"
	@echo "make install-user  the same without the tools of developers"
	@echo "make demo        an end-to-end run on sample data: pack, queue, train on 2 workers, evaluate, report"
	@echo "make check       style, types and layers"
	@echo "make test        the tests; make test-slow also runs the slow ones"
	@echo "make test-gpu    the tests that need NVIDIA GPUs; writes gpu-report.json"
	@echo "make bench       the benchmarks against their peers"
	@echo "make docs        the user guide as pages, in build/docs"
	@echo "make pictures    take the pictures of the user guide again; needs Chromium"
	@echo "make chart       rebuild the Helm chart k8s/chart from the kustomize manifests"
	@echo "make sbom        a bill of materials (CycloneDX) of the packages in requirements.lock, in build/sbom.json"
	@echo "make lock        rebuild requirements.lock from pyproject.toml"

install: $(READY)

# uv installs torch in seconds, where pip takes minutes. It also compiles all bytecode at install time, so that processes
# that may not write to the environment still load compiled modules.
$(READY): pyproject.toml requirements.lock $(BIN)/uv
	$(INSTALL) --requirements requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

# TORCH=cpu or TORCH=cu126 installs that build of torch. It is not in the lock, so it is installed last and without hashes.
install-user: $(BIN)/uv
ifdef TORCH
	printf 'torch\ntorchvision\n' > $(VENV)/other-torch.txt
	$(INSTALL) --constraint requirements.lock $(PACKAGES) --excludes $(VENV)/other-torch.txt
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --requirements pyproject.toml \
		--torch-backend $(TORCH) --reinstall-package torch --reinstall-package torchvision
else
	$(INSTALL) --constraint requirements.lock $(PACKAGES)
endif
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Nightshift needs Python 3.11 or newer; set PYTHON=python3.x"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv

demo: $(READY)
	$(BIN)/nightshift demo

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(READY)
	$(PYTEST) -m "not slow"

test-slow: $(READY)
	$(PYTEST) -m slow

test-gpu: $(READY)
	$(BIN)/python -m tests.gpu

bench: $(READY)
	$(BIN)/python -m tests.bench

# -W makes a broken link an error.
docs: $(READY)
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "build/docs/index.html"

pictures: $(READY)
	$(BIN)/python -m tests.pictures

chart: $(READY)
	$(BIN)/python -m k8s.make_chart

sbom: $(READY)
	$(BIN)/python -m k8s.make_sbom build/sbom.json
	@echo "build/sbom.json"

lock:
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --all-extras pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV)
