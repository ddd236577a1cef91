# make demo          environment, sample studies, and the server on 127.0.0.1:8000
# make demo-ohif     the same with a DICOMweb store (Orthanc), and the address to open in a browser
# make test          environment, what the tests need, and the tests
# make help          everything else

PYTHON ?= python3#        base interpreter, 3.10 to 3.12
TORCH ?=#                 cpu or cuda; empty keeps the build that is installed, else takes the CPU build
TORCH_INDEX ?=#           package index to take torch from; empty: pip's own, then PyTorch's (see requirements.txt)
PORT ?= 8000#             of the server
CASES ?= 4#               number of sample studies
PYTEST_ARGS ?=#           for example: make test PYTEST_ARGS="-k geometry -x"; "-n 0" is one process, "-n 8" eight

VENV := .venv
BIN := $(VENV)/bin
SETUP := $(PYTHON) scripts/setup_env.py --venv $(VENV) --torch "$(strip $(TORCH))" --torch-index "$(strip $(TORCH_INDEX))"
SAMPLES := sample-data/out
STUDIES := build/demo-studies

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev sample-data demo demo-ohif debian-packages test fuzz faults lint format doctor clean distclean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo '  variables: PYTHON TORCH=cpu|cuda TORCH_INDEX PORT CASES PYTEST_ARGS (see the top of the Makefile)'

setup:  ## the environment in .venv, with the monailabel command; GPU: make setup TORCH=cuda
	@$(SETUP)

setup-dev:  ## the environment with what the tests and checks need
	@$(SETUP) --dev

# make.py itself leaves alone what is up to date.
sample-data: setup  ## the sample studies: CT phantoms with labels, one of them as DICOM
	@$(BIN)/python sample-data/make.py --out $(SAMPLES) --cases $(strip $(CASES)) --seed 0 --dicom

# The server works on a copy of the images: labels saved by a user leave the samples as they are, and no case is
# labelled before the user begins. Delete the folder to start afresh.
$(STUDIES): | sample-data
	@mkdir -p build && rm -rf $@.part && mkdir $@.part && cp $(SAMPLES)/studies/*.nii.gz $@.part && mv $@.part $@

demo: $(STUDIES)  ## the server with the default model on 127.0.0.1:8000, for 3D Slicer or the API
	@echo "demo: server on http://127.0.0.1:$(strip $(PORT)), studies in $(STUDIES); Ctrl-C stops it"
	@exec $(BIN)/monailabel start_server --app apps/fastsam3d --studies $(STUDIES) --host 127.0.0.1 --port $(strip $(PORT))

demo-ohif: sample-data  ## Orthanc with the DICOM sample, the server on it, and the address of OHIF
	@exec $(BIN)/python scripts/demo_ohif.py --dicom $(SAMPLES) --port $(strip $(PORT))

debian-packages:  ## Orthanc, Chromium and nginx for the end-to-end tests, where root may install them
	@sh scripts/debian_packages.sh

test: setup-dev debian-packages  ## every test (tests that need a missing program say so and skip)
	@$(BIN)/python scripts/run_tests.py $(PYTEST_ARGS)

fuzz: setup-dev  ## 10,000 hostile requests to a server of its own (half an hour)
	@$(BIN)/python scripts/fuzz.py

faults: setup-dev  ## kill -9 of server, training and DICOMweb server under load, 20 times each (an hour)
	@$(BIN)/python scripts/fuzz.py --kills 20

lint: setup-dev  ## ruff: rules and format
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: setup-dev  ## ruff: mend what can be mended
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

doctor: setup  ## what works on this machine, and how to mend what does not
	@$(BIN)/python apps/fastsam3d doctor

clean:  ## remove what the targets made, except the environment
	rm -rf build $(SAMPLES) .pytest_cache .ruff_cache .hypothesis
	find apps tests scripts sample-data -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## remove the environment too
	rm -rf $(VENV)
