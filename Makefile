# The two commands of the README, and what the project's own checks need. Everything is made inside .venv, build and runs.
PYTHON ?= python3
PIP := .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Where the examples find their data: folders imdb, cifar10, movielens100k and heart_disease with Parquet files.
DATA ?= data
IMDB = film reviews, train.parquet and test.parquet with the columns text, label and rating (1 to 10)
CIFAR10 = CIFAR-10, train*.parquet and test*.parquet (from the hub: hf download uoft-cs/cifar10 --repo-type dataset)
RATINGS = MovieLens 100k (grouplens.org), ratings.parquet (user_id, item_id, rating, timestamp), users.parquet, items.parquet
HEART = UCI Heart Disease, patients.parquet with a column hospital and the 14 usual columns
need = @ls '$(DATA)/$(1)/'$(2)*.parquet >/dev/null 2>&1 || { echo "There is no $(DATA)/$(1)/$(2).parquet. Needed: $($(3)). If it lies elsewhere: make $@ DATA=FOLDER"; exit 1; }
example = .venv/bin/python examples/$(1).py '$(DATA)/$(2)' --out runs/examples/$(1)

.PHONY: help demo test test-browser test-keras bench examples language vision recommendation medicine clean

help:
	@echo "make demo          set up .venv and run the demonstration (Split MNIST, about a minute)"
	@echo "make test          set up .venv with the test tools; lint, types and tests"
	@echo "make test-browser  open a report in a real headless Chromium (installs Debian's, where it is missing)"
	@echo "make test-keras    .keras files to the real TensorFlow and back, in an environment of its own (2.4 GB in build)"
	@echo "make bench         all benchmarks into BENCHMARKS.md (a quarter of an hour; make bench ONLY=steps: one of them)"
	@echo "make examples      the four fields on real data, some minutes each: language, vision, recommendation, medicine"
	@echo "                   (make examples DATA=FOLDER; make vision: one of them)"
	@echo "make clean         remove what the others made"

demo: .venv/.installed
	.venv/bin/perdure demo

test: .venv/.installed-test
	@echo "== lint"
	.venv/bin/ruff check src tests tools benchmarks examples
	.venv/bin/ruff format --check src tests tools benchmarks examples
	@echo "== types"
	.venv/bin/mypy
	@echo "== tests"
	.venv/bin/python -m pytest --numprocesses 2

test-browser: .venv/.installed-browser
	@command -v chromium >/dev/null || { echo "== installing chromium"; tools/install_chromium; }
	.venv/bin/python -m pytest tests/browser -m browser

test-keras: build/keras-venv/.installed
	KERAS_BACKEND=torch build/keras-venv/bin/python -m pytest tests/keras -m keras --disable-warnings

bench: .venv/.installed-bench
	.venv/bin/python benchmarks/run.py $(ONLY)

examples: language vision recommendation medicine

language: .venv/.installed-data
	$(call need,imdb,train,IMDB)
	$(call example,language,imdb)

# Two scripts of one thread each, beside each other.
vision: .venv/.installed-data
	$(call need,cifar10,train,CIFAR10)
	OMP_NUM_THREADS=1 $(call example,road,cifar10) & \
	OMP_NUM_THREADS=1 $(call example,vision,cifar10); status=$$?; wait $$! && exit $$status

recommendation: .venv/.installed-data
	$(call need,movielens100k,ratings,RATINGS)
	$(call example,recommendation,movielens100k)

medicine: .venv/.installed-data
	$(call need,heart_disease,patients,HEART)
	$(call example,medicine,heart_disease)

.venv/.python:
	@echo "== making .venv"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Perdure needs Python 3.11 or newer; say make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv .venv || { echo "python3 -m venv failed; on Debian: apt-get install python3-venv"; exit 1; }
	@touch $@

.venv/.installed: .venv/.python pyproject.toml constraints.txt
	@echo "== installing perdure and what it needs (once; PyTorch is large)"
	@$(PIP) --editable .
	@touch $@

.venv/.installed-data: .venv/.installed
	@echo "== installing what reads Parquet files and images (once)"
	@$(PIP) --editable '.[data]'
	@touch $@

.venv/.installed-test: .venv/.installed
	@echo "== installing the test tools (once)"
	@$(PIP) --editable '.[test]'
	@touch $@

.venv/.installed-browser: .venv/.installed-test
	@echo "== installing the browser driver (once)"
	@$(PIP) --editable '.[test,browser]'
	@touch $@

# TensorFlow is large, and Perdure needs none: the environment of these tests is no other's.
build/keras-venv/.installed: pyproject.toml constraints.txt
	@echo "== making build/keras-venv and installing PyTorch, Keras and TensorFlow (once; 2.4 GB)"
	@$(PYTHON) -m venv build/keras-venv
	@build/keras-venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	  --editable '.[keras]' tensorflow-cpu 'pytest>=8'
	@touch $@

.venv/.installed-bench: .venv/.installed
	@echo "== installing what draws the benchmarks (once)"
	@$(PIP) --editable '.[bench]'
	@touch $@

clean:
	rm -rf .venv build runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
