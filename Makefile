# Everything runs in .venv; `make` alone lists the commands.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

bin := .venv/bin
demo := .capflow/world

# An empty environment is enough.
export PATH := $(if $(PATH),$(PATH),/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin)
export HOME := $(if $(HOME),$(HOME),$(shell getent passwd "$$(id -u)" | cut -d: -f6))
export LANG := $(if $(LANG),$(LANG),C.UTF-8)
# Fetch nothing from a model hub, keep all caches inside the checkout, and give vLLM little memory. Dynamo is off,
# because otherwise the first answer with probabilities waits 20 s for the compiler.
run := HF_HUB_OFFLINE=1 TORCHDYNAMO_DISABLE=1 VLLM_CPU_KVCACHE_SPACE=1 VLLM_NO_USAGE_STATS=1 \
  XDG_CACHE_HOME=$(CURDIR)/.capflow/cache XDG_CONFIG_HOME=$(CURDIR)/.capflow/config
model := $(CURDIR)/deploy/demo/model
domains := $(CURDIR)/deploy/demo/world/domains
world = $(run) OMP_WAIT_POLICY=passive PYTHONPATH=deploy/demo $(bin)/python -W ignore
# A broken link or anchor, or a page missing from the navigation, is an error. With --quiet, none of them would be.
site := $(bin)/mkdocs build --strict

.PHONY: help demo demo-model demo-results test test-unit check fix docs bench chaos soak screenshots clean setup

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

demo: setup $(demo)/plan.jsonl ## caption pictures and videos of known facts with a small model on this machine
	@$(run) CAPFLOW_MODEL=$(model) CAPFLOW_DOMAINS=$(domains) CAPFLOW_HOME=.capflow \
	  $(bin)/capflow caption $(demo)/plan.jsonl --output $(demo)/captions
	@$(run) $(bin)/capflow report $(demo)/plan.jsonl --output $(demo)/report
	@$(run) $(bin)/python deploy/demo/show.py $(demo)/captions

# OMP_WAIT_POLICY lets threads sleep while they wait for each other: much faster beside other work.
demo-model: setup ## train the demo's model from nothing; stop and resume as you like (hours on 2 cores)
	@$(world) -m world.train .capflow/demo-model

demo-results: setup ## measure the demo's model on held-out scenes and write its card (minutes)
	@$(world) -m world.measure $(model) .capflow/demo-results

test: setup ## run every test that needs no GPU
	@deploy/setup-browser.sh
	@$(run) $(bin)/python -m pytest -n 2 tests/unit
	@$(run) $(bin)/python -m pytest -n 2 --dist loadfile --ignore tests/unit

test-unit: setup ## run the unit tests with few random examples, in under a minute
	@$(run) $(bin)/python -m pytest -q -n 2 --hypothesis-profile=quick tests/unit

check: setup ## check lint, formatting, types, import contracts, docs and deployment files
	@$(bin)/ruff check
	@$(bin)/ruff format --check
	@$(bin)/mypy
	@$(bin)/lint-imports --no-logo
	@$(run) $(bin)/python -m pytest -q tests/unit/test_architecture.py tests/unit/test_documentation.py
	@$(site)
	@deploy/check.sh

fix: setup ## fix lint findings and formatting
	@$(bin)/ruff check --fix
	@$(bin)/ruff format

docs: setup ## generate the reference pages and build the site in .capflow/site
	@$(run) $(bin)/python -m deploy.reference
	@$(site)
	@echo "open .capflow/site/index.html"

bench: setup ## measure the fleet against the bare engine and against other tools
	@$(run) $(bin)/python -m tests.benchmarks

chaos: setup ## inject faults into a real fleet, and count what was lost or repeated
	@$(run) $(bin)/python -m tests.chaos

soak: setup ## work for half an hour and draw the memory it takes
	@$(run) $(bin)/python -m tests.chaos.soak --minutes 30

screenshots: setup .capflow/pictures/plan.jsonl ## take the pictures in docs/pictures again
	@deploy/setup-browser.sh fonts-inter
	@$(run) $(bin)/python deploy/screenshots.py .capflow/pictures/plan.jsonl docs/pictures

clean: ## remove the environment, the demo's files, the site and all caches
	rm -rf .venv .capflow build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

setup:
	@deploy/setup-venv.sh

$(demo)/plan.jsonl: $(wildcard deploy/demo/*.py deploy/demo/world/*.py) | setup
	@$(world) -m world.exhibit $(@D) --scenes 27

.capflow/pictures/plan.jsonl: $(wildcard deploy/demo/*.py) | setup
	@$(run) $(bin)/python deploy/demo/pictures.py $(@D)
