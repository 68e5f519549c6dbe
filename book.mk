# The make targets that the book prints and that have another name here: each says which one.
#
# Makefile and pattern.mk include this file last, and set IN_PATTERN and IN_ROOT to the command that
# runs make in the directory of a pattern and in the root.

build_all c_build d_build: INSTEAD = $(IN_PATTERN) build
build_%: INSTEAD = $(IN_PATTERN) build
c_up run_all: INSTEAD = $(IN_PATTERN) up
c_down: INSTEAD = $(IN_PATTERN) down
push_all: INSTEAD = $(IN_PATTERN) build, then load the image: see README.md, On Kubernetes
push_%: INSTEAD = $(IN_PATTERN) build, then load the image: see README.md, On Kubernetes
req: INSTEAD = $(IN_ROOT) lock
sync: INSTEAD = $(IN_ROOT) dev_sync
fmt: INSTEAD = $(IN_ROOT) fix
lint vet: INSTEAD = $(IN_ROOT) check
PRINTED := build_all c_build d_build c_up run_all c_down push_all req sync fmt lint vet

# In the root, these are targets.
ifeq ($(IN_PATTERN),make)
dev: INSTEAD = $(IN_PATTERN) up, which installs what the pattern needs
PRINTED += dev
ifndef JOBS
run: INSTEAD = $(IN_PATTERN) up
PRINTED += run
endif
endif

.PHONY: $(PRINTED) of_the_book
$(PRINTED):
	@echo "error: instead of the book's make $@, run $(INSTEAD)" >&2; exit 2
# A file of the name changes nothing.
build_% push_%: of_the_book
	@echo "error: instead of the book's make $@, run $(INSTEAD)" >&2; exit 2
of_the_book:
