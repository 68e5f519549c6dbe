# What the Makefiles have to know about the machine.

# The first Python that is new enough. A name on PATH may be a shim of pyenv for a version that is
# not installed.
ifndef PYTHON
PYTHON = $(or $(shell for name in python3.11 python3.12 python3.13 python3 python; do \
    "$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && \
    echo "$$name" && break; done), \
  $(error there is no Python 3.11 or newer on PATH: name one with make PYTHON=/path/to/python3.11))
endif

# They would hide the modules of this repository.
unexport PYTHONPATH PYTHONSAFEPATH

# What runs on this machine is not behind the proxy. Programs read one name or the other.
THIS_MACHINE := localhost,127.0.0.1
ifeq ($(findstring $(THIS_MACHINE),$(no_proxy)),)
export no_proxy := $(THIS_MACHINE),$(or $(no_proxy),$(NO_PROXY))
export NO_PROXY := $(no_proxy)
endif
