# More verbs for a pattern that trains; `pattern.mk` includes this file.

# The model registry: chapter2_training/model_db, or another server with the same API.
MODEL_DB_URL ?= http://localhost:8000
# The first experiment of a store, after MLflow's own; without it the page opens on MLflow's assistant.
UI := http://localhost:$(or $(UI_PORT),5000)/\#/experiments/1?workflowType=machine_learning

# For what make starts without Docker. The services have it from the image, in both ways.
export MLFLOW_DISABLE_TELEMETRY := true

ifeq ($(RUN),docker)
# A pattern can define its own command that trains in containers.
TRAIN_WITH_DOCKER ?= $(COMPOSE) run --rm --no-deps train python -m train --output /data/models
TRAIN = set -o pipefail && \
  $(COMPOSE) build train && $(TRAIN_WITH_DOCKER) $(ARGS) && mkdir -p models && \
  $(COMPOSE) run --rm --no-deps -T train tar -c -C /data/models . | tar -x -o -C models
UI_UP = $(COMPOSE) up --detach --build --wait --no-deps ui
else
# The store of the services, so that the page shows every run.
export MLFLOW_TRACKING_URI ?= sqlite:///$(CURDIR)/.local/volumes/tracking/mlflow.db
UI_UP = $(UP)
endif

.PHONY: ui
ui: ## Open the page with the training runs
	@$(UI_UP)
	@echo "the training runs are at $(UI)"
	@if [ "$$(uname)" = Darwin ]; then open "$(UI)"; \
	elif [ -n "$$DISPLAY" ] && command -v xdg-open >/dev/null; then xdg-open "$(UI)"; fi

.PHONY: register
register: models/metadata.json ## Register the trained model in model_db: MODEL_DB_URL=http://...
	@$(call ENVIRONMENT,packages)
	@$(BIN)/python -m train.register --url "$(MODEL_DB_URL)" $(ARGS)
