# What there is to do with this repository; README.md says more. Longer recipes lie in scripts/.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory

CARGO ?= cargo
CARGO_TARGET_DIR ?= target
IMAGE := build/test-mandelbox.tar
NEXTEST_PROFILE ?= $(if $(CI),ci,default)

.PHONY: help run runlocaldevwithdb database rundev runstaging runprod build image setup test cgroups check format lint audit bench upload

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1 /p' Makefile | while read -r name does; do printf '%-20s %s\n' "$$name" "$$does"; done

run: ## the service here, for development, with the image that it needs
	@scripts/run.sh localdev

runlocaldevwithdb: ## the same with a database of its own
	@scripts/run.sh localdevwithdb

database: ## that database alone, until Ctrl-C
	@scripts/run.sh database

rundev: ## the service as in the dev environment
	@scripts/run.sh dev

runstaging: ## the service as in the staging environment
	@scripts/run.sh staging

runprod: ## the service as in production
	@scripts/run.sh prod

build: ## build/host-service, the release binary
	@scripts/setup.sh build
	$(CARGO) build --release --package host-service
	@install -D $(CARGO_TARGET_DIR)/release/host-service build/host-service

image: ## build/test-mandelbox.tar, the test mandelbox's images
	@scripts/setup.sh build
	tests/mandelbox/make-image.sh $(IMAGE)

setup: ## installs whatever this machine lacks to build, run, test and check
	@scripts/setup.sh build run engine test lint

test: ## every test, on real engines
	@scripts/setup.sh build run engine test
	@scripts/test.sh --profile $(NEXTEST_PROFILE) $(TEST_ARGS)

cgroups: ## the daemonless runtime with control groups of version 1 and 2, on an emulated machine; takes long
	@scripts/setup.sh build run test vm
	@scripts/cgroups.sh $(TEST_ARGS)

check: ## everything that CI runs
	@$(MAKE) setup
	@$(MAKE) lint
	@$(MAKE) test

format: ## formats the code
	$(CARGO) fmt --all

lint: ## format, clippy, documentation, dependencies, shell scripts; a warning is an error
	@scripts/setup.sh build lint
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- --deny warnings
	RUSTDOCFLAGS='--deny warnings' $(CARGO) doc --workspace --no-deps --quiet
	$(CARGO) fetch --locked --quiet
	$(CARGO) deny --offline --locked check --hide-inclusion-graph bans licenses sources
	shellcheck .ci/run scripts/*.sh scripts/vm/*.sh tests/mandelbox/*.sh tests/src/*/*.sh

audit: ## known vulnerabilities in dependencies; needs the advisory database, which is on GitHub
	@scripts/setup.sh lint
	$(CARGO) deny check advisories

bench: ## what it costs; docs/performance.md
	@scripts/setup.sh build run engine database
	$(CARGO) build --release --package host-service
	$(CARGO) bench --package host-tests
	$(CARGO) bench --package pubsub-postgres
	$(CARGO) bench --package gpu-nvml --bench gpus
	$(CARGO) bench --package telemetry-logzio

upload: ## a release archive, copied to UPLOAD_TARGET: a directory or s3://BUCKET/PREFIX
	@scripts/upload.sh
