# make demo  the whole chain on an embedded data set, report in runs/demo/
# make test  the tests (under 10 minutes on 2 cores: two workers, each with one thread)
# make bench MobileNets and ResNet-50 at 224x224, 1x4 blocks at 50, 75 and 90 %, against the dense engines
# make fuzz  spoiled files by the thousand against every command, for MINUTES=30, and a table of what was not right
# PIP_OPTIONS passes index options through, e.g. to take a CPU-only torch from an index of your choice.
PYTHON ?= python3
MINUTES ?= 30
PIP_OPTIONS ?=
VENV := .venv
RUN := $(abspath $(VENV))/bin/python

.PHONY: demo check test lint types format bench fuzz clean

$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV) || (rm -rf $(VENV); false)
	$(RUN) -m pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) --constraint constraints.txt --editable '.[train,peers,baselines,hdf5,rpc,dev]'
	touch $@

demo: $(VENV)/installed
	$(RUN) scripts/demo.py

test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile

check: $(VENV)/installed
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile -m "quick and not slow and not gpu and not peers"

fuzz: $(VENV)/installed
	OMP_NUM_THREADS=1 $(RUN) -m tests.fuzz.campaign --minutes $(MINUTES)

bench: $(VENV)/installed
	$(RUN) scripts/bench/bench_networks.py

lint: $(VENV)/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(MAKE) --no-print-directory types

# mypy looks for kerf.compress in kerf/, where it lies when installed: a folder of links shows it so
types: $(VENV)/installed
	rm -rf build/types/kerf && mkdir -p build/types/kerf
	ln -s $(CURDIR)/kerf/*.py $(CURDIR)/kerf/py.typed $(addprefix $(CURDIR)/,compress deploy kernels tune) build/types/kerf/
	cd build/types && $(RUN) -m mypy --config-file ../../pyproject.toml -p kerf

format: $(VENV)/installed
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:
	rm -rf $(VENV) build *.egg-info
