#!/bin/bash
# All that only a GPU can tell, in 25 minutes on one GPU with 80 GB. Call it in the checkout:
#   PYTHON=.venv-cuda13/bin/python benchmarks/gpu.sh [FOLDER]
# Each part writes FOLDER/NAME.log as it goes and one line of FOLDER/summary.txt when it ends, so an interrupted call keeps
# what it has measured. A part that fails or exceeds its minutes does not stop the others.
set -uo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python}"
folder="${1:-runs/gpu}"
mkdir -p "$folder"
# As in jobs: slurm/executor.py.
export PYTHONUNBUFFERED=1 PYTHONUTF8=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

part() { # NAME MINUTES COMMAND...
  local name=$1 minutes=$2 status began=$SECONDS
  shift 2
  timeout --signal=INT --kill-after=30 "${minutes}m" "$@" > "$folder/$name.log" 2>&1
  status=$?
  printf '%-12s exit %-3s %5s s  %s\n' "$name" "$status" "$((SECONDS - began))" "$*" | tee -a "$folder/summary.txt"
}

nvidia-smi > "$folder/nvidia-smi.txt" 2>&1
"$python" -m pip list > "$folder/packages.txt" 2>&1
# vLLM first: a broken environment shows here, in a minute.
part vllm 2 "$python" -m core.inference.vllm_check "$folder/checkpoint"
# Losses and gradients of each setting, beside the CPU's.
part equality 4 "$python" -m benchmarks.gpu_equality --folder "$folder/equality"
# Tokens/s, MFU and memory of each setting, beside torchtune's recipe in the same call.
part train-1b 6 "$python" -m benchmarks.training --gpu 1b --rounds 1 --seconds 320
part train-8b 4 "$python" -m benchmarks.training --gpu 8b --rounds 1 --seconds 210
# Every path of the shakedown, without Slurm: trainings, exports, answers and likelihoods by vLLM.
part study 9 "$python" -m study run studies/shakedown.yaml --seeds 0 --jobs 1 --runs "$folder/runs"
cat "$folder/summary.txt"
