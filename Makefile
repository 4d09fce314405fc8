# make demo · make test · make lint · make bench-op : each sets up .venv by itself, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Processes that run the tests: auto is one for each core.
WORKERS ?= auto

# Tests whose numbers could depend on the processor, once more with the instructions of an old one.
ISA_TESTS := tests/ops/test_cpu.py tests/ops/test_ms_deform_attn.py tests/ops/test_winograd.py tests/model/test_parity.py \
	tests/criterion/test_losses.py tests/acceleration/test_model.py::test_predictor_options \
	tests/export/test_files.py::test_a_file_that_computes_something_else_is_not_kept
OLD_PROCESSOR := ONEDNN_MAX_CPU_ISA=SSE41 ATEN_CPU_CAPABILITY=default DEFORMABLE_DETR_CPU_ISA=portable

# One form of the native kernels with AddressSanitizer and UndefinedBehaviorSanitizer, which must be loaded before Python's own
# libraries.
ASAN := build/asan
ASAN_TESTS := tests/ops/test_cpu.py tests/ops/test_winograd.py tests/ops/test_ms_deform_attn.py tests/ops/test_defaults.py

.PHONY: owner install demo test test-isa test-asan test-others lint format bench-op notebook docs live coverage wheel clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev,docs]'
	touch $@

demo: $(STAMP)
	$(BIN)/deformable-detr demo

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-isa: $(STAMP)
	$(OLD_PROCESSOR) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal $(ISA_TESTS)

test-asan: $(STAMP)
	DEFORMABLE_DETR_SANITIZE=1 $(BIN)/python setup.py -q build_ext --build-lib $(ASAN) --build-temp $(ASAN)/objects
	DEFORMABLE_DETR_CPU_LIBRARY=$(CURDIR)/$(ASAN)/deformable_detr/ops/_cpu_kernels.so OMP_NUM_THREADS=1 \
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so):$$(gcc -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0:detect_odr_violation=0 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
	$(BIN)/python -m pytest -q -x -p no:cacheprovider $(ASAN_TESTS)

# Libraries that are no part of .venv, in an environment of their own on top of it (200 MB, from a package registry). sahi asks for
# an OpenCV that would take the place of the one in use.
test-others: $(STAMP)
	$(BIN)/python -m venv build/others
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > \
		"$$(build/others/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/below.pth"
	build/others/bin/python -m pip install -q wandb==0.31.0 mlflow-skinny==3.17.2
	build/others/bin/python -m pip install -q --no-deps sahi==0.12.8 shapely fire termcolor
	PYTHONPATH=src OMP_NUM_THREADS=1 build/others/bin/python -m pytest -q -p no:cacheprovider tests/training/test_trackers.py \
		tests/test_integrations.py::test_sahi

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/codespell

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-op: $(STAMP)
	$(BIN)/deformable-detr benchmark op

# The notebook from its first cell to its last, with a small network; a warning that a reader would see ends it, too.
notebook: $(STAMP)
	rm -rf build/notebook && mkdir -p build/notebook
	OMP_NUM_THREADS=1 PYTHONWARNINGS="error::UserWarning,ignore:This DataLoader will create:UserWarning" \
	$(BIN)/papermill notebooks/quickstart.ipynb build/notebook/quickstart.ipynb --cwd build/notebook -f notebooks/tiny.yaml \
		--kernel python3 --no-progress-bar
	test -s build/notebook/detector.onnx && test -s build/notebook/why.html && test -s build/notebook/runs/first/weights/best.safetensors

# The site in site/, strictly: a broken link, a missing anchor or a name without a docstring's home ends it (with --quiet, warnings
# would not be counted, and nothing would). Then every page in Chromium.
docs: $(STAMP)
	$(BIN)/python website/generate.py
	PYTHONPATH=website NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	$(BIN)/python website/look.py

# The detector of `make demo` as a page of the site, for the next `make docs`.
live: $(STAMP)
	$(BIN)/python website/live.py demo/run

coverage: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --cov --cov-report=term --cov-report=html:coverage

# The wheel, tried where nothing but it is installed and no compiler is to be found; what it depends on comes from .venv.
wheel: $(STAMP)
	rm -rf build/wheel dist/*.whl
	$(BIN)/python -m build --wheel
	$(PYTHON) -m venv build/wheel
	env -i build/wheel/bin/python -m pip install -q --no-deps dist/*.whl
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > \
		"$$(build/wheel/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/dependencies.pth"
	cd build/wheel && env -i bin/python $(CURDIR)/.ci/try_wheel.py

# Whose repository this is, in every file that names its address: make owner NAME=someone
owner:
	$(PYTHON) .ci/set_owner.py $(NAME)

clean:
	rm -rf $(VENV) build dist demo site coverage docs/live
