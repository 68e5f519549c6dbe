# The make targets of a pattern, whose Makefile includes this file; `make` lists them.
#
# This also works with GNU make 3.81 and bash 3.2 from macOS. That make ignores .SHELLFLAGS, so
# recipes cannot rely on `set -e`.

SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Paths are relative, because the path of the clone may contain spaces and dollar signs, and the
# functions below see a path with spaces as several words.
ROOT := $(patsubst %/,%,$(dir $(lastword $(MAKEFILE_LIST))))
BIN := $(ROOT)/.venv/bin
PATTERN := $(lastword $(notdir $(CURDIR)))
CHAPTER := $(lastword $(notdir $(patsubst %/,%,$(dir $(CURDIR)))))
# A pattern may include this file for directories below it; WITHIN is then the path to theirs.
WITHIN ?=
HERE := $(WITHIN)$(CHAPTER)/$(PATTERN)
SERVICE ?=
ARGS ?=
WITH ?=
# The servers with this profile are started as well; Compose reads the variable.
PROFILE ?= $(COMPOSE_PROFILES)
export COMPOSE_PROFILES := $(PROFILE)
KUBECTL ?= kubectl

ifneq ($(wildcard $(BIN)/python),)
PYTHON ?= .venv/bin/python
endif
include $(ROOT)/machine.mk
# The function `shell` ignores export and unexport.
READ = cd $(ROOT) && COMPOSE_PROFILES="$(PROFILE)" PYTHONPATH= PYTHONSAFEPATH= "$(PYTHON)" -m

# Prints why Docker cannot be used, or nothing.
NO_DOCKER = $(READ) tools.read.engine
# The default is Docker if it can be used, unless the pattern is already up without Docker.
ifndef RUN
RUN := $(if $(wildcard .local/supervisord.pid),local,$(if $(shell $(NO_DOCKER)),local,docker))
# A make that this one starts does not ask again.
export DOCKER_WORKS := $(filter docker,$(RUN))
endif
ifeq ($(filter $(RUN),docker local),)
$(error RUN is "$(RUN)": it must be docker or local)
endif
export RUN

# Read from the pattern's files: the CATEGORIES to install, its SERVICES, those of them that are
# JOBS, the PROFILES of others, whether one TRAINS, the directories BELOW that some are built from, and
# what they have MOUNTED. The environment may not exist yet.
CATEGORIES :=
SERVICES :=
JOBS :=
PROFILES :=
TRAINS :=
BELOW :=
MOUNTED :=
$(foreach line,$(shell $(READ) tools.read $(HERE)),$(eval $(line)))
ifndef SERVICES
$(error the files of $(HERE) cannot be read, see above)
endif

ENVIRONMENT = $(MAKE) -C $(ROOT) environment CATEGORIES="$(1)"
# The directories with a trainer. What serves needs a model first, unless a service trains it.
TRAINERS := $(patsubst %/train,%,$(wildcard $(addsuffix /train,. $(BELOW))))
MODEL_IN = $(patsubst ./%,%,$(1)/models/metadata.json)
MODEL := $(if $(TRAINS),,$(foreach each,$(TRAINERS),$(call MODEL_IN,$(each))))

# The two ways to run the processes.
COMPOSE := docker compose
# With the servers of every profile.
WHOLE := $(if $(PROFILES),COMPOSE_PROFILES='*' )$(COMPOSE)
# Compose cannot start a paused service, and one that goes on counts as unhealthy for a while.
WAKE = paused="$$($(COMPOSE) ps --services --status paused $(1))"; \
  [ -z "$$paused" ] || $(COMPOSE) restart $$paused;
LOCAL := cd $(ROOT) && exec .venv/bin/python -m tools.run
ifeq ($(RUN),docker)
WAY := with Docker: see its logs with make logs, stop it with make down
BUILD = $(COMPOSE) build
# Says who holds a port before the images are built. The user of a container has to read what is
# mounted, whatever the umask of the clone.
UP = (cd $(ROOT) && "$(PYTHON)" -m tools.run.ports $(HERE)) && \
  $(if $(MOUNTED),chmod -R a+rX $(MOUNTED) && )$(if $(JOBS),$(COMPOSE) build $(JOBS) && ){ $(WAKE) $(COMPOSE) up --detach --build --wait --quiet-pull || \
  { $(COMPOSE) logs --tail 30; $(COMPOSE) down; exit 1; }; }
DOWN = $(if $(JOBS),$(STOP_RUNS) )$(WHOLE) down --remove-orphans
STOP = $(COMPOSE) stop
START_ONE = $(COMPOSE) up --detach --no-recreate --no-deps --wait
START = $(call WAKE,$(SERVICE)) $(START_ONE)
RESTART = $(COMPOSE) restart $(SERVICE) && $(START_ONE)
KILL = $(COMPOSE) kill
PAUSE = $(COMPOSE) pause
UNPAUSE = $(COMPOSE) unpause
PS = $(WHOLE) ps --all
LOGS = $(WHOLE) logs
else
WAY := without Docker
# Only the model has to be built.
BUILD = true
UP = $(call ENVIRONMENT,$(CATEGORIES)) && $(LOCAL) up $(HERE)
DOWN = $(LOCAL) down $(HERE)
STOP = $(LOCAL) stop $(HERE)
START = $(LOCAL) start $(HERE)
RESTART = $(LOCAL) restart $(HERE)
KILL = $(LOCAL) kill $(HERE)
PAUSE = $(LOCAL) pause $(HERE)
UNPAUSE = $(LOCAL) unpause $(HERE)
PS = $(LOCAL) ps $(HERE)
LOGS = $(LOCAL) logs $(HERE)
up: $(MODEL)
build: $(if $(TRAINS),models/metadata.json,$(MODEL))
endif

TRAIN = $(call ENVIRONMENT,$(CATEGORIES)) && python="$$PWD/$(BIN)/python" && \
  for each in $(TRAINERS); do (cd $$each && "$$python" -m train $(ARGS)) || exit; done

.PHONY: engine
engine: # Fails if Docker is needed and cannot be used.
ifeq ($(RUN)$(DOCKER_WORKS),docker)
	@why="$$($(NO_DOCKER))" && [ -z "$$why" ] || { echo "error: $$why" >&2; exit 2; }
endif
build up down stop start restart kill pause unpause ps logs: engine

.PHONY: profile
profile: # Fails if no server has the PROFILE.
	@[ -z "$(filter-out $(PROFILES),$(PROFILE))" ] || { echo "error: there is no profile \
	$(PROFILE)$(if $(PROFILES),; PROFILE= is one of: $(PROFILES))" >&2; exit 2; }
up build: profile

.PHONY: help
help: # Lists the targets.
	@echo "$(PATTERN): $$(sed -n '3p' README.md)"
	@echo
	@awk -F ':.*## ' '/^[a-z_]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  RUN=docker|local   with Docker or without (now: $(RUN))"
	@$(foreach profile,$(PROFILES),printf '  %-18s %s\n' PROFILE=$(profile) "servers on demand: make up PROFILE=$(profile)";)
	@echo "  PORT=8123          another port than 8000 (UI_PORT: than 5000), as in PORT=8123 make up"

.PHONY: train
train: ## Train the model into models/
	@$(TRAIN)

define MODEL_OF
$(call MODEL_IN,$(1)): $(wildcard $(1)/train/*.py)
	@$$(MAKE) train TRAINERS=$(1) ARGS=
endef
$(foreach each,$(TRAINERS),$(eval $(call MODEL_OF,$(each))))

# A training pattern has more targets, and can also train with Docker.
ifdef TRAINS
include $(ROOT)/training.mk
train ui: engine
endif

ifdef JOBS
include $(ROOT)/jobs.mk
run: engine
endif

.PHONY: build
build: ## Build the images
	@$(BUILD)

.PHONY: up
up: ## Start, and wait until every service is ready
	@$(UP)
	@echo "$(PATTERN) is up $(WAY)"

.PHONY: down
down: ## Stop everything; ARGS=--volumes also deletes the data
	@$(DOWN) $(ARGS)

.PHONY: service
service: # Fails without SERVICE; the book's make stop has none.
	@[ -n "$(SERVICE)" ] || { echo "error: which service? SERVICE= is one of: $(SERVICES)$(if \
	  $(filter stop,$(MAKECMDGOALS)),; make down stops all)" >&2; exit 2; }

.PHONY: of_up
of_up: service # Fails for a job, which `make up` does not start.
	@[ -z "$(filter $(SERVICE),$(JOBS))" ] || { echo "error: $(SERVICE) runs on demand: make \
	run SERVICE=$(SERVICE) starts it, make kill ends it" >&2; exit 2; }

.PHONY: stop
stop: of_up ## Stop one service: make stop SERVICE=api
	@$(STOP) $(SERVICE)

.PHONY: start
start: of_up ## Start a stopped service and wait until it is ready
	@$(START) $(SERVICE)

.PHONY: restart
restart: of_up ## Stop one service, start it again and wait until it is ready
	@$(RESTART) $(SERVICE)

.PHONY: kill
kill: service ## Kill one service with SIGKILL
	@$(KILL) $(SERVICE)

.PHONY: pause
pause: of_up ## Suspend one service: it hangs, but is not dead
	@$(PAUSE) $(SERVICE)

.PHONY: unpause
unpause: of_up ## Let a paused service go on
	@$(UNPAUSE) $(SERVICE)

.PHONY: ps
ps: ## List what runs, since when, and on which port
	@$(PS)

.PHONY: logs
logs: ## Show the logs: make logs ARGS=--follow
	@$(LOGS) $(SERVICE) $(ARGS)

.PHONY: readme
readme: ## Play the README: run each command and compare its output
	@$(call ENVIRONMENT,$(if $(filter local,$(RUN)),$(CATEGORIES),packages))
	@cd $(ROOT) && exec .venv/bin/python -m tools.play.readme $(HERE) --run $(RUN)

.PHONY: measure
measure: $(MODEL) ## Measure the claim: make measure ARGS=--quick takes seconds
	@$(call ENVIRONMENT,$(CATEGORIES) measure serving training)
	@cd $(ROOT) && exec .venv/bin/python -m tools.measure $(CHAPTER).$(PATTERN).measure $(ARGS)

.PHONY: test
test: ## Run the tests of this pattern and the contract test of its servers
	@$(MAKE) -C $(ROOT) environment CATEGORIES=
	@unset ARGS MAKEFLAGS MAKEOVERRIDES MFLAGS && \
	cd $(ROOT) && exec .venv/bin/python -m pytest --only=$(CHAPTER)/$(PATTERN) \
	  tests/$(CHAPTER)/test_$(PATTERN).py tests/test_contract.py $(ARGS)

.PHONY: diff
diff: ## Show how this pattern differs from another: make diff WITH=web_single_pattern
	@cd $(ROOT) && "$(PYTHON)" -m tools.generate.diff $(HERE) "$(WITH)"

.PHONY: deploy
deploy: ## Apply the manifests to the cluster of the current kubectl context
	@$(KUBECTL) apply -k manifests/

.PHONY: delete
delete: ## Delete what `make deploy` has created
	@$(KUBECTL) delete -k manifests/ --ignore-not-found

# The book's targets.
IN_PATTERN := make
IN_ROOT := make -C $(ROOT)
include $(ROOT)/book.mk
