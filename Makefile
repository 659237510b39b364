# `make demo` and `make test` set everything up by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check

.PHONY: demo test lint stress bench clean

demo: $(READY)
	$(BIN)/esad-med demo --out demo-run

test: lint
	$(BIN)/pytest -m "not slow"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

stress: $(READY)
	$(BIN)/pytest --full --timeout 14400 tests/stress

bench: $(READY)
	$(BIN)/python -m benchmarks.bench_start
	$(BIN)/python -m benchmarks.bench_stain
	$(BIN)/python -m benchmarks.bench_tiling
	$(BIN)/python -m benchmarks.bench_workers
	$(BIN)/python -m benchmarks.bench_scoring
	$(BIN)/python -m benchmarks.bench_scoring --width 0.25 0.125 --batch 32 256
	$(BIN)/python -m benchmarks.bench_scoring --auc
	$(BIN)/python -m benchmarks.bench_training --width 1 0.25
	$(BIN)/python -m benchmarks.bench_ranks
	$(BIN)/python -m benchmarks.bench_screening
	$(BIN)/python -m benchmarks.bench_screening --width 0.125 --grow 8192 28672 53248 100000 163840
	$(BIN)/python -m benchmarks.bench_profile
	$(BIN)/python -m benchmarks.bench_viewer
	$(BIN)/python -m benchmarks.bench_exports

# torch first: asked for alone it takes the build that fits the machine, and nothing replaces it.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt torch
	$(PIP) -c constraints.txt -e '.[reference,dicom,onnx,parquet,dev]'
# staintools asks for opencv-python, which needs a desktop's libGL; the headless build does not. Both
# are one folder, so removing the one takes files of the other, which is written again.
	$(BIN)/python -m pip uninstall -q -y opencv-python
	$(PIP) -c constraints.txt --no-deps --force-reinstall opencv-python-headless
# OpenSeadragon, for the pages of `view`, comes inside a source archive that pip can fetch.
	$(BIN)/python -m pip download -q --disable-pip-version-check -d $(VENV) --no-deps --no-binary openslide-python openslide-python==1.4.7
	$(BIN)/python -m esad_med.outputs.openseadragon $(VENV)/openslide_python-1.4.7.tar.gz
	touch $(READY)

clean:
	rm -rf $(VENV) build demo-run *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
