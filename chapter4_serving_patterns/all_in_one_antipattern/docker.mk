# Copied from chapter4_serving_patterns/web_single_pattern/docker.mk
# The make targets of a copy of this directory alone, which needs only Docker; `make` lists them.
# In the repository, the Makefile includes pattern.mk instead.

SHELL := /bin/bash
.DEFAULT_GOAL := help
COMPOSE := docker compose
RUN := docker
# Empty here, and the root of the repository in pattern.mk.
ROOT :=
PATTERN := $(lastword $(notdir $(CURDIR)))
# The services that run on demand.
JOBS := $(shell awk '/^  [^ ]/ {sub(":", ""); name = $$1} /^    profiles:/ {job[name]} \
  /^    healthcheck:/ {server[name]} \
  END {for (name in job) if (!(name in server)) print name}' docker-compose.yml)
# With a healthcheck, a service with a profile is a server: make up PROFILE=name starts it, too.
PROFILE ?= $(COMPOSE_PROFILES)
export COMPOSE_PROFILES := $(PROFILE)
# Compose lists the containers of jobs only with --all, and does not take them down.
STOP_RUNS = runs="$$($(COMPOSE) ps --all --quiet $(JOBS))"; [ -z "$$runs" ] || \
  { docker stop $$runs; docker rm --force $$runs; } >/dev/null 2>&1;

.PHONY: help
help:
	@echo "$(PATTERN): $$(sed -n '3p' README.md)"
	@echo
	@awk -F ':.*## ' '/^[a-z ]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: up
up: ## Build, start, and wait until every service is ready
	$(COMPOSE) up --detach --build --wait

.PHONY: down
down: ## Stop everything; ARGS=--volumes also deletes the data
	$(if $(JOBS),$(STOP_RUNS) )COMPOSE_PROFILES='*' $(COMPOSE) down --remove-orphans $(ARGS)

.PHONY: build logs ps
build logs ps: ## Build the images, show the logs, list the services
	$(COMPOSE) $@ $(SERVICE) $(ARGS)

.PHONY: service
service:
	@[ -n "$(SERVICE)" ] || { echo "error: which service? make ps lists them" >&2; exit 2; }

.PHONY: run
run: service ## Run a job in the foreground, if the pattern has one: make run SERVICE=job
	$(COMPOSE) run --rm --no-deps --interactive=false $(SERVICE)

.PHONY: stop kill
stop kill: service ## Stop or kill one service: make kill SERVICE=api
	$(COMPOSE) $@ $(SERVICE)

.PHONY: pause unpause
pause unpause: service ## Suspend one service, so that it hangs; let it go on
	$(COMPOSE) $@ $(SERVICE)

.PHONY: start
start: service ## Start a stopped or paused service and wait until it is ready
	@[ -z "$$($(COMPOSE) ps --quiet --status paused $(SERVICE))" ] || $(COMPOSE) restart $(SERVICE)
	$(COMPOSE) up --detach --no-deps --wait --no-recreate $(SERVICE)

.PHONY: restart
restart: stop start ## Stop one service, start it again and wait until it is ready

.PHONY: deploy
deploy: ## Apply the manifests to the cluster of the current kubectl context
	kubectl apply -k manifests/

.PHONY: delete
delete: ## Delete what `make deploy` has created
	kubectl delete -k manifests/ --ignore-not-found
