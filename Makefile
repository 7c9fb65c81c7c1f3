# make demo       set up, answer a question about a bundled clip, and show how
# make test       set up and run the tests
# make ray        install Ray Serve and test replicas in it (about a minute)
# make lmms-eval  install lmms-eval in build/lmms-eval, and evaluate the bundled pair by it in three ways
# make setup      set up alone: .venv/bin/pvlm is the command
# make accuracy   how often the bundled pair answers exactly, on 200 unseen clips (about 5 minutes)
# make pruning    the table and picture of docs/evidence/pruning.md (some minutes for each of six pruners)
# make speed      the figures of docs/evidence about speed (hours; on idle cores); writes build/evidence
# make evidence   all measurements of docs/evidence: accuracy, pruning, speed, chaos, soak (hours)
# make soak       answers of every kind for half an hour while workers are killed; writes build/soak (see docs/evidence/robustness.md)
# make chaos      faults, damaged videos and fuzzing (about 10 minutes; see docs/evidence/robustness.md)
# make generic    other model families by transformers' video processors, in an environment of its own in build/generic
# make lint       style and types
# make docs       the site, in build/site; a dead link or an undocumented public name fails it
# make clean      remove what set-up made
#
# PYTHON=python3.12            another interpreter
# SOAK_MINUTES=5               another duration of the soak
# TORCH_INDEX=URL              a package index to take torch from, for instance one with CPU-only or CUDA builds

PYTHON ?= python3
TORCH_INDEX ?=
SOAK_MINUTES ?= 30
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
GENERIC_INSTALL := build/generic/bin/python -m pip install --quiet --disable-pip-version-check \
    --constraint build/generic/constraints.txt

LMMS := build/lmms-eval
LMMS_INSTALL := $(LMMS)/bin/python -m pip install --quiet --disable-pip-version-check
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)

.PHONY: demo test ray generic lmms-eval setup accuracy pruning speed evidence soak chaos lint docs clean

demo: setup
	@$(BIN)/pvlm demo

test: setup
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

# The extra is large and needed by few, so only this target installs it; without it `make test` skips these tests.
ray: setup
	@$(BIN)/python -c 'import ray' 2>/dev/null || $(INSTALL) --editable '.[ray]'
	$(BIN)/python -m pytest tests/serving/test_ray.py

# lmms-eval asks for an older PyAV than pvlm, which it needs for other models alone: hence an environment of its own,
# and pvlm after it. A torchvision that does not fit this torch would break transformers; nothing here needs one.
lmms-eval: $(LMMS)/.installed
	$(LMMS)/bin/python -m benchmarks lmms-eval

$(LMMS)/.installed: pyproject.toml constraints.txt
	@test -x $(LMMS)/bin/python || $(PYTHON) -m venv $(LMMS)
	@echo "installing lmms-eval (once; this may take some minutes) ..."
	@$(LMMS_INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==$(TORCH) torchvision
	@$(LMMS_INSTALL) torch==$(TORCH) lmms-eval==0.7.3
	@$(LMMS)/bin/python -c 'import torchvision' 2>/dev/null || $(LMMS)/bin/python -m pip uninstall --quiet --yes torchvision
	@$(LMMS_INSTALL) --constraint constraints.txt --editable '.[serve]'
	@touch $@

setup: $(VENV)/.installed

# torch comes first and by itself: where TORCH_INDEX is given, nothing else may be taken from there.
$(VENV)/.installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing torch (once; this may take some minutes) ..."
	@$(INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@echo "installing pvlm and what it needs ..."
	@$(INSTALL) --editable '.[hf,plot,recipes,test,lint,docs]'
	@touch $@

accuracy: setup
	PYTHONPATH=recipes $(BIN)/python -m shapes evaluate --clips 200 --draft pvlm/bundled/draft

pruning: setup
	@mkdir -p build/clips
	@for seed in $$(seq 1001 1040); do scenes=$$((4 + seed % 5)); \
	    PYTHONPATH=recipes $(BIN)/python -m shapes clip --seed $$seed --scenes $$scenes --frames $$((8 * scenes)) \
	        --out build/clips/$$seed.mp4 >/dev/null; \
	done
	$(BIN)/pvlm bench pruning build/clips/*.mp4 --threads 1 --draft-threads 1 \
	    --json build/pruning.json --plot build/pruning.png

# Each table of docs/evidence that shows speed. The lossy methods are in the first.
speed: setup
	@mkdir -p build/evidence
	for number in 1 2 3 4 5; do $(BIN)/pvlm demo; done
	$(BIN)/pvlm bench --prune novelty --json build/evidence/methods.json --plot build/evidence/methods.png
	for backend in torch native; do $(BIN)/pvlm bench --backend $$backend --prune novelty --rounds 3 \
	    --methods ar ar-all-cores sd parallel --json build/evidence/methods-$$backend.json; done
	$(BIN)/pvlm bench scaling --prune novelty --rounds 1 --max-tokens 128 --json build/evidence/scaling.json \
	    --plot build/evidence/scaling.png
	for backend in torch native; do $(BIN)/pvlm bench passes --backend $$backend --tokens 1 2 5 8 12 24 48 \
	    --json build/evidence/passes-$$backend.json; done
	for number in 1 2 3; do $(BIN)/pvlm bench emulated --tokens 512 --json build/evidence/emulated-$$number.json; done
	$(BIN)/pvlm bench emulated --time-scale 1 --tokens 512 --json build/evidence/emulated.json
	$(BIN)/pvlm bench adaptive --time-scale 0.5 --json build/evidence/adaptive.json
	$(BIN)/pvlm bench sessions --json build/evidence/sessions.json --plot build/evidence/sessions.png
	$(BIN)/pvlm bench sessions --pairs bundled --json build/evidence/sessions-bundled.json
	$(BIN)/pvlm bench repeats --json build/evidence/repeats.json
	MALLOC_MMAP_THRESHOLD_=131072 $(BIN)/python -m benchmarks kept --json build/evidence/kept.json
	$(BIN)/python -m benchmarks never-slower --prune none --json build/evidence/never-slower.json
	$(BIN)/python -m benchmarks never-slower --prune none --draft pvlm/bundled/target \
	    --json build/evidence/never-slower-equal.json
	$(BIN)/python -m benchmarks never-slower --prune none --target tests/pair/target --draft tests/pair/draft \
	    --json build/evidence/never-slower-small.json
	$(BIN)/python -m benchmarks hit-rate --prune none --json build/evidence/hit-rate.json
	$(BIN)/python -m benchmarks load --json build/evidence/load.json

evidence: accuracy pruning speed chaos soak

soak: setup
	OMP_NUM_THREADS=1 MALLOC_MMAP_THRESHOLD_=131072 $(BIN)/python -m tests.soak --minutes $(SOAK_MINUTES) --out build/soak

chaos: setup
	rm -rf build/chaos
	@$(BIN)/python -c 'import atheris' 2>/dev/null || echo "NOT FUZZED: atheris is not installed ($(BIN)/pip install atheris)"
	@$(BIN)/python -m pytest -m chaos --numprocesses 2 --dist loadfile tests/chaos tests/engine/test_kept.py; status=$$?; \
	    $(BIN)/python -m tests.chaos.report; exit $$status

generic: build/generic/.installed
	build/generic/bin/python -m pytest -m generic tests/backends/hf

# transformers' video processors need torchvision, which has no release for the torch of constraints.txt.
build/generic/.installed: pyproject.toml constraints.txt
	@test -x build/generic/bin/python || $(PYTHON) -m venv build/generic
	@grep -v '^torch==' constraints.txt > build/generic/constraints.txt
	@echo "installing another torch with torchvision (once; 5 GB, this may take some minutes) ..."
	@$(GENERIC_INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.14.1 torchvision==0.29.1
	@$(GENERIC_INSTALL) --editable '.[hf,recipes,test]' num2words
	@touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:
	rm -rf $(VENV) build/generic
