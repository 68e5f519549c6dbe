# One more verb for a pattern with jobs, the services that run on demand; `pattern.mk` includes this.

ifeq ($(RUN),docker)
# Compose lists the containers of jobs only with --all, and does not take them down.
STOP_RUNS = runs="$$($(COMPOSE) ps --all --quiet $(JOBS))"; [ -z "$$runs" ] || \
  { docker stop $$runs; docker rm --force $$runs; } >/dev/null 2>&1;
# With the input of a terminal, Compose would be stopped in the background.
RUN_JOB = [ -n "$$($(COMPOSE) ps --quiet)" ] || \
  { echo "error: $(PATTERN) is not up: run \`make up\` first" >&2; exit 1; }; \
  exec $(COMPOSE) run --rm --no-deps --interactive=false
else
RUN_JOB = $(LOCAL) run $(HERE)
endif

.PHONY: run
run: ## Run a job in the foreground: make run SERVICE=job
	@[ -n "$(filter $(SERVICE),$(JOBS))" ] || { echo "error: which job? SERVICE= is one of: \
	$(JOBS); make up starts the other services" >&2; exit 2; }
	@$(RUN_JOB) $(SERVICE)
