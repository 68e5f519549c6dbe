# The make targets of a chapter, whose Makefile includes this file; `make` lists its patterns.

SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# The last word, because the path of the clone may contain spaces.
CHAPTER := $(lastword $(notdir $(CURDIR)))

.PHONY: help
help: # Lists the patterns and the targets.
	@sed -n '1s/^# //p' README.md
	@echo
	@for readme in */README.md; do \
	  printf '  %-24s %s\n' "$${readme%/*}" "$$(sed -n 3p "$$readme")"; done
	@echo
	@awk -F ':.*## ' '/^[a-z_]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "In a pattern's directory, make lists the targets of that pattern."

.PHONY: test
test: ## Run the tests of this chapter and play its READMEs
	@$(MAKE) -C .. test CHAPTER=$(CHAPTER)
