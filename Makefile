# make demo | test | test-slow | lint | docs | lock     on any machine with Python >= 3.11 and make
#   JAX=cuda13, JAX=tpu    install JAX for that accelerator (default: cpu)
#   PYTHON=python3.12      interpreter of a new environment (default: first that fits)
#   VENV=.venv312          folder of the environment (default: .venv)
#   ARGS="--smoke"         further arguments for the demo or for pytest

JAX ?= cpu
VENV ?= .venv
FITS = import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	if $$p -c '$(FITS)' 2>/dev/null; then echo $$p; break; fi; done)

extras = dev$(if $(filter-out cpu,$(JAX)),$(comma)$(JAX))
comma = ,
bin = $(VENV)/bin
installed = $(VENV)/.installed-$(JAX)

.PHONY: demo test test-slow lint docs lock
demo: $(installed)
	$(bin)/python -m experiments.kl_metric $(ARGS)

# test-slow: the tests that test leaves out
test test-slow: $(installed)
	$(bin)/python -m pytest -n auto --maxprocesses 4 --max-worker-restart 0 \
		--dist loadfile $(if $(filter test-slow,$@),-m slow) $(ARGS)

lint: $(installed)
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/pyright

docs: $(installed)
	$(bin)/python -m sphinx -W --keep-going docs build/docs
	@echo build/docs/index.html

# Needs Python 3.11, 3.12 and 3.13 on the path; writes constraints.txt.
lock:
	python3.11 .ci/lock.py python3.11 python3.12 python3.13

$(installed): pyproject.toml constraints.txt
	@$(if $(filter cpu cuda13 tpu,$(JAX)),:,echo "JAX=$(JAX): use cpu, cuda13 or tpu"; exit 1)
	@if command -v uv >/dev/null; then \
		set -ex; \
		test -x $(bin)/python || uv venv --python "$(or $(PYTHON),>=3.11)" $(VENV); \
		uv pip install --python $(bin)/python -c constraints.txt -e '.[$(extras)]'; \
	elif test -n "$(PYTHON)"; then \
		set -ex; \
		test -x $(bin)/pip || $(PYTHON) -m venv $(VENV); \
		$(bin)/python -m pip install -q -c constraints.txt -e '.[$(extras)]'; \
	else \
		echo "robjax needs Python 3.11 or later: make PYTHON=/path/to/python"; exit 1; \
	fi
	@touch $@
