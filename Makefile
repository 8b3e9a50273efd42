# make study    the whole tiny study on this machine, from documents to LaTeX tables
# make study-beyond           past the paper in miniature: a chain of four trainings, what keeps a midtrained value, GRPO
# make class    a lesson on training seeds for a course: the study of studies/class.yaml, then results/class/lesson.html
# make test     linter, type checker and tests
# make test-fast              the tests that start no process, run no model and take less than a second each
# make test-nightly           what takes too long for every day: trainings killed twenty times in a row
# make slurm-packages         what the cluster tests want: Debian's Slurm (root); without it `make test` skips them
# make test-slurm-versions    the cluster tests on Slurm 24.11 and 26.05 too (root; makes two small Debians once)
# make cluster-env [CLUSTER=NAME]    the packages for GPU nodes, by their driver: .venv-cuda12/ or .venv-cuda13/
# make locks                  resolve locks/ from requirements.txt and requirements-cuda12.txt again (needs PyPI)
# make test-locks             whether each lock is complete and all of its files exist (needs PyPI, installs nothing)
# make test-locks INSTALL=all         install each lock of a Python on PATH, import its packages, run the tests that need no GPU
# make test-locks INSTALL=cuda12      the same for the locks with that in their names (20 GB of disk, in TMPDIR)
# make environment            only what the others make first: .venv/ (Linux, x86-64, Python 3.11 to 3.13; 4 GB of disk)
# make clean                  remove .venv/, .venv-cuda*/, runs/, results/ and pooled/
# make PYTHON=/path/to/python3.12 ...    that Python makes the environment, instead of the first fit one on PATH

PYTHON ?= python3 python3.13 python3.12 python3.11
BIN := .venv/bin
# One thread per process: see core/cell/local_executor.py.
export OMP_NUM_THREADS ?= 1
# Variables of a person's shell that change what Python imports or how it runs. Without bytecode each process
# compiles all that it imports.
unexport PYTHONPATH PYTHONHOME PYTHONSAFEPATH PYTHONOPTIMIZE PYTHONINSPECT PYTHONWARNINGS PYTHONPLATLIBDIR PYTHONSTARTUP PYTHONDONTWRITEBYTECODE
# Files are read as UTF-8 in every locale.
export PYTHONUTF8 := 1
# The tests write some GB of temporary files. Where /tmp has no room for them, /var/tmp is used.
ifndef TMPDIR
export TMPDIR := $(shell \
  if [ "$$(df -Pk /tmp | awk 'NR == 2 {print $$4}')" -lt 4000000 ] && [ -w /var/tmp ]; then echo /var/tmp; else echo /tmp; fi)
endif

# Libraries keep caches in the home directory. Where it can't be written, they go to .venv.
ifneq ($(shell [ -w "$$HOME" ] || echo read-only),)
export XDG_CACHE_HOME ?= $(CURDIR)/.venv/home/cache
export XDG_CONFIG_HOME ?= $(CURDIR)/.venv/home/config
export XDG_DATA_HOME ?= $(CURDIR)/.venv/home/data
endif

.PHONY: help environment study study-beyond class test test-fast test-nightly test-slurm-versions slurm-packages cluster-env locks test-locks clean

help:
	@sed -n "s/^# \(make .*\)/\1/p" Makefile

study: environment
	@$(BIN)/python -m study run studies/tiny.yaml

class: environment
	@$(BIN)/python -m study run studies/class.yaml
	@$(BIN)/python -m study report studies/class.yaml --lesson

study-beyond: environment
	@$(BIN)/python -m study run studies/beyond.yaml
	@$(BIN)/python -m study run studies/tiny_grpo.yaml

test: environment
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy & $(BIN)/python -m pytest -n 3 --no-loadscope-reorder && wait $$!  # beside the tests, much of which wait

test-fast: environment
	$(BIN)/python -m pytest -n 2 -m "not (slurm or vllm or multiprocess or e2e or slow or nightly)"

test-nightly: environment
	$(BIN)/python -m pytest -m nightly

test-slurm-versions: environment
	@tests/slurm_versions

# Only when asked for, as .ci/run does: nobody gets daemons by `make test`. policy-rc.d keeps them from being started.
SLURM := slurmctld slurmd slurm-client slurmdbd slurm-wlm-mysql-plugin mariadb-server-core mariadb-client-core
# `update` does not wait for another apt, whatever the time-out: the recipe tries again.
APT := DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=600
INSTALL_SLURM := $(APT) update && $(APT) install -y --no-install-recommends $(SLURM)
POLICY := /usr/sbin/policy-rc.d
slurm-packages:
	@[ "$$(dpkg-query -W -f '$${db:Status-Status}\n' $(SLURM) 2>/dev/null | grep -cx installed)" != $(words $(SLURM)) ] || exit 0; \
	[ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  || { echo "error: needs root and Debian's or Ubuntu's apt-get; sudo make slurm-packages"; exit 1; }; \
	echo "installing $(SLURM)"; policy=$(POLICY); \
	if [ ! -e $$policy ]; then \
	  trap "rm -f $$policy" EXIT; trap "exit 1" INT TERM; printf '#!/bin/sh\nexit 101\n' > $$policy; chmod +x $$policy; \
	fi; \
	tries=120; until said=$$({ $(INSTALL_SLURM); } 2>&1); do \
	  case "$$said" in *[Cc]ould\ not\ get\ lock*) ;; *) tries=0 ;; esac; \
	  [ $$tries -gt 0 ] || { echo "error: apt-get: $$(echo "$$said" | tail -n 1)"; exit 1; }; \
	  [ $$tries -lt 120 ] || echo "another apt is running: waiting for it"; \
	  tries=$$((tries - 1)); sleep 5; \
	done

# The GPU nodes' packages. CUDA=12 or CUDA=13 installs that set without a look at a driver.
cluster-env: $(if $(CLUSTER),environment)
	@for python in $(PYTHON); do \
	  if "$$python" -I -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then \
	    exec "$$python" -E -s tools/cluster_environment.py "$(CLUSTER)" "$(CUDA)"; \
	  fi; \
	done; \
	echo "error: no Python 3.11 to 3.13 among $(PYTHON); name one: make PYTHON=/path/to/python3.12" >&2; exit 2

locks: environment
	@$(BIN)/python tools/locks.py

test-locks: environment
	@$(BIN)/python tools/$(if $(INSTALL),lock_trial.py $(INSTALL),locks.py --check)

# The first of PYTHON that starts and is 3.11 to 3.13 makes the environment, where it is missing or out of date.
environment:
	@for python in $(PYTHON); do \
	  if "$$python" -I -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then \
	    exec "$$python" -I tools/environment.py; \
	  fi; \
	done; \
	echo "error: no Python 3.11 to 3.13 among $(PYTHON); install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 2

clean:
	rm -rf .venv .venv-cuda12 .venv-cuda13 runs results pooled
