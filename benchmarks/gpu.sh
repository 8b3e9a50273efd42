#!/bin/bash
# All that only a GPU can tell, in 25 minutes on one GPU with 80 GB. Call it in the checkout:
#   PYTHON=.venv-cuda13/bin/python benchmarks/gpu.sh [FOLDER]
# Each part writes FOLDER/NAME.log as it goes and one line of FOLDER/summary.txt when it ends, so an interrupted call keeps
# what it has measured. A part that fails or exceeds its minutes does not stop the others. Minutes that a part does not need
# are for those after it.
# Exit status: 0 all parts passed; 1 one failed or was cut; 2 it can't begin; 130 interrupted.
set -uo pipefail
set -m # a part in the background does not ignore SIGINT

refuse() {
  echo "error: $1" >&2
  exit 2
}

[[ $# -le 1 && ${1:-} != -* ]] || refuse "usage: PYTHON=.venv-cuda13/bin/python benchmarks/gpu.sh [FOLDER]"
cd "$(dirname "$0")/.."
python="${PYTHON:-python}"
folder="${1:-runs/gpu}"
reason=$("$python" -c "import torch; torch.ones(1, device='cuda')" 2>&1) ||
  refuse "$python computes on no GPU: ${reason##*$'\n'}; see nvidia-smi, or give PYTHON= an environment of make cluster-env"
mkdir -p "$folder" && : >> "$folder/summary.txt" || refuse "can't write to $folder; name another folder"
# As in jobs: slurm/executor.py.
export PYTHONUNBUFFERED=1 PYTHONUTF8=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

stop() {
  kill -INT "$running" 2> /dev/null
  wait "$running"
  exit 130
}
trap stop INT TERM HUP

end=$SECONDS # by which the parts so far are done
failed=0
running=
part() { # NAME MINUTES COMMAND...
  local name=$1 began=$SECONDS status
  end=$((end + $2 * 60))
  shift 2
  timeout --signal=INT --kill-after=20 $((end - SECONDS)) "$@" > "$folder/$name.log" 2>&1 &
  running=$!
  wait "$running"
  status=$?
  [[ $status = 0 ]] || failed=1
  printf '%-12s exit %-3s %5s s  %s\n' "$name" "$status" "$((SECONDS - began))" "$*" | tee -a "$folder/summary.txt"
}

nvidia-smi > "$folder/nvidia-smi.txt" 2>&1
"$python" -m pip list > "$folder/packages.txt" 2>&1
# vLLM first: a broken environment shows here, in a minute.
part vllm 2 "$python" -m core.inference.vllm_check "$folder/checkpoint"
# Tokens/s, MFU and memory of each setting, beside torchtune's recipe in the same call. The lines are in order of their value.
part train-1b 7 "$python" -m benchmarks.training --gpu 1b --rounds 1 --seconds 410 --line-seconds 150 \
  --profile "$folder/profile.json"
# Starts, freed memory, likelihoods beside the trainer's, 780 answers of 1,024 tokens, batch_invariant.
part inference 6 "$python" -m benchmarks.gpu_inference --seconds 350 --folder "$folder/inference"
# Losses and gradients of each setting, beside the CPU's.
part equality 3 "$python" -m benchmarks.gpu_equality --folder "$folder/equality"
part train-8b 4 "$python" -m benchmarks.training --gpu 8b --rounds 1 --seconds 235 --line-seconds 150 \
  --only kit "torchtune's recipe" "kit, selective checkpointing"
# Every stage of the shakedown, without Slurm, on a toy: its own start model is made for minutes. FOLDER/runs goes on later.
part study 3 "$python" -m study run studies/shakedown.yaml --seeds 0 --set models.random.make=recipes/tiny_llama.yaml \
  --gpus 1 --runs "$folder/runs"
cat "$folder/summary.txt"
exit "$failed"
