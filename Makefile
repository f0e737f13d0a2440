# Estat Ingest: `make` lists what there is. Needs GNU make, bash and a Python >= 3.11 with venv; everything else
# comes from the lock files into .venv (to run and to test), .venv-bench (to measure), .venv-api (to check the API),
# .venv-lake (to check Iceberg and Spark), .venv-readers (what reads the objects), .venv-stores (S3 servers) and .venv-sdks
# (to check the SDKs; their Node halves, a store's, and what drives a browser, go into node_modules beside their tests).
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:
.PHONY: help install run-local try quick test coverage lint format properties proof soak guards api manifests browsers sdks stores readers pages-check image-check bench outage micro instructions build push dist lock clean

PYTHON ?=
BIN := .venv/bin
IMAGE ?= estat-ingest
TAG ?= $(shell git describe --always --dirty 2>/dev/null || echo local)
PLATFORM ?= linux/amd64
ECR_REPOSITORY ?= estat-ingest
UV ?= uv
# The locks name all there is: older pips, asked to resolve, take a newer release of what is wanted with an extra.
PIP_INSTALL := -m pip --disable-pip-version-check install -qq --no-deps

# A virtual environment whose Python is gone (an upgrade took it away, or the repository was moved) is removed, so that it is
# made anew. That happens here, and not in a rule, because make looks at the stamps in it before it runs the first rule.
heal = $(shell [[ ! -e $(1) ]] || { $(1)/bin/python -c 'import pip' && head -2 $(1)/bin/pip | grep -qF "$(CURDIR)/$(1)/bin/python"; } \
  >/dev/null 2>&1 || { echo "$(1) does not work any more: making it anew" >&2; rm -rf $(1); })
$(call heal,.venv)$(call heal,.venv-bench)$(call heal,.venv-api)$(call heal,.venv-lake)$(call heal,.venv-sdks)$(call heal,.venv-readers)$(call heal,.venv-stores)

# Which Python: PYTHON if given; else of those that are new enough and have a working venv one built with profile-guided
# optimisation, since it spends 5-12 % less on an event (Debian's and Ubuntu's own are built so but do not say it), else the first.
define pick_python
fits() { "$$1" -c 'import sys, venv, ensurepip; ensurepip.version(); sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }; \
optimised() { [[ -e /etc/debian_version && $$(readlink -f "$$1") == /usr/bin/* ]] || "$$1" -c \
  'import sys, sysconfig; sys.exit("--enable-optimizations" not in str(sysconfig.get_config_var("CONFIG_ARGS")))'; }; \
python=; \
for candidate in $(or $(PYTHON),python3 /usr/bin/python3 python3.13 python3.12 python3.11); do \
  found=$$(command -v "$$candidate") && fits "$$found" || continue; \
  [[ $$python ]] || python=$$found; \
  if optimised "$$found"; then python=$$found; break; fi; \
done; \
if [[ ! $$python ]]; then \
  echo "No Python >= 3.11 with a working venv found (tried: $(or $(PYTHON),python3 /usr/bin/python3 python3.13 python3.12 python3.11))." >&2; \
  echo "python3 here is: $$(python3 --version 2>&1 || true). On Debian or Ubuntu: apt-get install python3-venv; or name one: make PYTHON=/path/to/python3.11" >&2; \
  exit 1; \
fi
endef

help: ## what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: .venv/.installed ## everything that running and testing needs, into .venv

.venv/bin/python:
	@$(pick_python); echo "Making .venv with $$python ($$($$python --version))"; "$$python" -m venv --clear .venv

# The command too, as far as running needs it: installing the package itself takes tools that only testing has.
.venv/.runtime: requirements.lock | .venv/bin/python
	@echo "Installing $<"
	@$(BIN)/python $(PIP_INSTALL) --require-hashes -r $<
	@printf '%s\n' '#!/bin/sh' 'PYTHONPATH="$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}" exec "$(CURDIR)/$(BIN)/python" -m ingest "$$@"' > $(BIN)/estat-ingest
	@chmod +x $(BIN)/estat-ingest
	@touch $@

.venv/.installed: requirements-dev.lock pyproject.toml | .venv/bin/python
	@echo "Installing $<"
	@$(BIN)/python $(PIP_INSTALL) --require-hashes -r $<
	@$(BIN)/python $(PIP_INSTALL) --no-build-isolation --editable .
	@touch .venv/.runtime $@

.venv-%/.installed: requirements-%.lock
	@$(pick_python); echo "Making .venv-$* with $$python ($$($$python --version)) from $<"; "$$python" -m venv --clear .venv-$*
	@.venv-$*/bin/python $(PIP_INSTALL) --require-hashes -r $<
	@touch $@

run-local: .venv/.runtime ## serve on :8080, objects into ./data/objects
	@address="$${HTTP_ADDR:-:8080}"; echo "Try:      curl -i -d '{\"hello\":\"world\"}' http://127.0.0.1:$${address##*:}/collect"
	@echo "Objects:  $${STORE_DIR:-./data/objects}/raw/dt=*/hr=*/*.jsonl.gz, every $${FLUSH_INTERVAL:-5s} and when you stop it (Ctrl-C)"
	@exec env -u RAW_BUCKET HTTP_ADDR="$${HTTP_ADDR:-:8080}" FLUSH_INTERVAL="$${FLUSH_INTERVAL:-5s}" LOG_PRETTY="$${LOG_PRETTY:-true}" \
	  $(BIN)/python -m ingest serve

try: install ## a server on a free port for 1,000 events, and a query over what it stored; leaves nothing
	@$(BIN)/python examples/try.py

quick: install ## what changed since main: ruff, types, and the tests nearest to it (under 10 s)
	@$(BIN)/python -m tests.quick

test: lint ## lint, types, architecture, and every test but the long ones
	@$(BIN)/python -m pytest -n $$(( 2 * $$(nproc) )) --dist worksteal

coverage: install ## the same tests, and what they reach; below 90 % it fails
	@$(BIN)/python -m pytest -n $$(( 2 * $$(nproc) )) --dist worksteal --cov --cov-report=term-missing:skip-covered

lint: install ## ruff, mypy and the one-way imports
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

format: install ## let ruff put the layout right
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

ROUNDS ?= 10
properties: install ## what holds of any input, with examples drawn anew in ROUNDS rounds (5 minutes; `make test` has the same ones each time)
	@for round in $$(seq $(ROUNDS)); do $(BIN)/python -m pytest -q -m hypothesis --hypothesis-profile=anew -n $$(nproc) tests || exit 1; done

proof: coverage guards properties ## all that takes long: coverage, the guards, any input, the soak, and the tests marked as proof
	@$(BIN)/python -m pytest -m "soak or proof" --timeout=0 -o faulthandler_timeout=0 -ra

soak: install ## the long fault-injection rounds
	@$(BIN)/python -m pytest -m soak --timeout=0 -o faulthandler_timeout=0 -ra

guards: install ## take out each guard of the durability in turn and see that its test notices (under 2 minutes)
	@$(BIN)/python -m tests.remove_guards

api: .venv-api/.installed ## what docs/openapi.yaml says, asked of a running server by schemathesis
	@.venv-api/bin/python -m tests.check_api

manifests: .venv-api/.installed ## deploy/kubernetes against the schemas of Kubernetes, old and new
	@.venv-api/bin/python -m tests.check_manifests

lake: .venv-lake/.installed ## hours to Iceberg, and by Spark (needs Java 17 or newer)
	@.venv-lake/bin/python -m pytest -m lake --timeout=0 -o faulthandler_timeout=0 tests/lake

sdks: .venv-sdks/.installed tests/sdks/node_modules/.installed ## every SDK there is a route for, from its registry, against a real server (needs Node, Chromium)
	@.venv-sdks/bin/python -m tests.sdks

tests/sdks/node_modules/.installed: tests/sdks/package-lock.json
	@command -v npm >/dev/null && [[ -x "$${CHROMIUM:-/usr/bin/chromium}" ]] || { echo "Most SDKs are Node's and browsers': npm or Chromium is not there (Debian: apt-get install chromium nodejs npm)." >&2; exit 1; }
	@echo "Installing $<"
	@npm --prefix tests/sdks ci --ignore-scripts --no-audit --no-fund --loglevel error
	@touch $@

stores: .venv-stores/.installed tests/stores/node_modules/.installed ## the S3 servers that install from registries, under a collector: the tables of docs/stores.md (needs Node; Ceph if it is there)
	@.venv-stores/bin/python -m tests.stores $(STORES)

tests/stores/node_modules/.installed: tests/stores/package-lock.json
	@command -v npm >/dev/null || { echo "One of the stores is Node's: npm is not there (Debian: apt-get install nodejs npm)." >&2; exit 1; }
	@echo "Installing $<"
	@npm --prefix tests/stores ci --ignore-scripts --no-audit --no-fund --loglevel error
	@touch $@

readers: .venv-readers/.installed ## what reads the objects, with the recipes of docs/reading.md, on the hardest events (Spark needs Java)
	@.venv-readers/bin/python -m tests.readers $(READERS)

browsers: install tests/browser/node_modules/.installed ## the script for browsers in a real Chromium: closed, cut off, blocked (needs it, and Node)
	@PYTHON="$(CURDIR)/$(BIN)/python" node tests/browser/prove.mjs

tests/browser/node_modules/.installed: tests/browser/package-lock.json
	@command -v npm >/dev/null && [[ -x "$${CHROMIUM:-/usr/bin/chromium}" ]] || { echo "npm or Chromium is not there (Debian: apt-get install chromium nodejs npm)." >&2; exit 1; }
	@echo "Installing $<"
	@npm --prefix tests/browser ci --ignore-scripts --no-audit --no-fund --loglevel error
	@touch $@

pages-check: install ## the commands of the pages, as they stand there, on a Debian with Python, make and curl (needs root, Debian)
	@$(BIN)/python -m tests.check_pages

image-check: install ## the Dockerfile without Docker: laid out, run read-only, killed and started again (needs root, Debian 12)
	@$(BIN)/python -m tests.check_image

bench: ## the figures of docs/benchmarks.md (16 minutes; ./bench.sh --quick: 2)
	@./bench.sh

outage: .venv-bench/.installed ## an outage of the store, run for real and drawn: docs/outage.png (2 minutes)
	@.venv-bench/bin/python loadtest/outage.py

micro: .venv-bench/.installed ## micro-benchmarks of a turn of the hot path, the encoding, the codec and the scan
	@.venv-bench/bin/python -m pytest -c loadtest/micro/pytest.ini loadtest/micro

instructions: .venv-bench/.installed ## how many instructions an event costs, needs valgrind (TREES="before after": of each)
	@.venv-bench/bin/python loadtest/instructions.py $(TREES)

build: ## the container image, under TAG and as latest
	@docker build --platform $(PLATFORM) --tag $(IMAGE):$(TAG) --tag $(IMAGE):latest .

push: build ## the image to ECR (AWS_ACCOUNT_ID, AWS_REGION, TAG)
	@: "$${AWS_ACCOUNT_ID:?is not set: the account whose ECR takes the image}" "$${AWS_REGION:?is not set: the region of that ECR}"; \
	registry="$$AWS_ACCOUNT_ID.dkr.ecr.$$AWS_REGION.amazonaws.com"; \
	aws ecr get-login-password --region "$$AWS_REGION" | docker login --username AWS --password-stdin "$$registry"; \
	docker tag $(IMAGE):$(TAG) "$$registry/$(ECR_REPOSITORY):$(TAG)"; \
	docker push "$$registry/$(ECR_REPOSITORY):$(TAG)"

dist: install ## the wheel, the source and the bill of materials (CycloneDX), into dist/
	@$(BIN)/python -m hatchling build --clean
	@$(BIN)/python deploy/sbom.py dist

# The dev lock comes first and binds the others, so that what is tested is what is shipped and measured.
UV_COMPILE = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
  --no-emit-index-url --no-emit-find-links pyproject.toml
lock: ## write the lock files anew from pyproject.toml and the package.json of tests/sdks and tests/stores (needs uv and npm)
	@$(UV_COMPILE) --extra dev --output-file requirements-dev.lock
	@$(UV_COMPILE) --constraints requirements-dev.lock --output-file requirements.lock
	@$(UV_COMPILE) --constraints requirements-dev.lock --extra bench --output-file requirements-bench.lock
	@$(UV_COMPILE) --constraints requirements-dev.lock --extra api --output-file requirements-api.lock
	@$(UV_COMPILE) --constraints requirements-dev.lock --extra dev --extra lake --extra spark --output-file requirements-lake.lock
	@$(UV_COMPILE) --constraints requirements-dev.lock --extra sdks --output-file requirements-sdks.lock
	@$(UV_COMPILE) --constraints requirements-dev.lock --extra readers --output-file requirements-readers.lock
	@$(UV_COMPILE) --constraints requirements-dev.lock --extra stores --output-file requirements-stores.lock
	@npm --prefix tests/sdks update --package-lock-only --omit-lockfile-registry-resolved --no-audit --no-fund --loglevel error
	@npm --prefix tests/stores update --package-lock-only --omit-lockfile-registry-resolved --no-audit --no-fund --loglevel error

clean: ## remove what the other targets made, never ./data
	@rm -rf .venv .venv-bench .venv-api .venv-lake .venv-sdks .venv-readers .venv-stores tests/sdks/node_modules tests/stores/node_modules tests/browser/node_modules bench-out dist .coverage .coverage.* .mypy_cache .ruff_cache .import_linter_cache .hypothesis
