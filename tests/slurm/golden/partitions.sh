#!/bin/bash -p

# Parameters
#SBATCH --account=mygroup
#SBATCH --chdir=/shared/runs/tiny/slurm/code-HASH
#SBATCH --comment=tiny-GROUP
#SBATCH --cpus-per-task=2
#SBATCH --error=/shared/runs/tiny/slurm/jobs/%j_0_log.err
#SBATCH --job-name=tiny-model-base
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=8192M
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/shared/runs/tiny/slurm/jobs/%j_0_log.out
#SBATCH --partition=cpu
#SBATCH --propagate=NONE
#SBATCH --requeue
#SBATCH --signal=USR2@300
#SBATCH --time=60

# setup
if [ -z "$KIT_SECOND_SHELL" ]; then
  ready=
  trap : TERM
  trap ready=1 USR1
  KIT_SECOND_SHELL=1 "$BASH" "$0"
  status=$?
  if [ -z "$ready" ]; then
    echo "error: a line of setup in the cluster profile ended the job's shell (exit status $status)" >&2
    [ $status != 0 ] || status=1
  fi
  exit $status
fi
unset KIT_SECOND_SHELL
for name in $(compgen -e); do case $name in *_DIR|*_ROOT|*_HOME|*_PATH|*_BASE|*_IP|*_KEY|*_TOKEN|*_ALLOC_CONF|*_COMPILE_THREADS|PYTORCH_NVML_BASED_CUDA_CHECK|KMP_DUPLICATE_LIB_OK) ;; OMP_*|GOMP_*|KMP_*|MKL_*|OPENBLAS_*|BLIS_*|NUMEXPR_*|DNNL_*|ONEDNN_*|ATEN_*|NVIDIA_TF32_OVERRIDE|CUBLAS_*|CUBLASLT_*|CUDNN_*|FLASHINFER_*|TRITON_*|NCCL_ALGO|NCCL_PROTO|NCCL_NVLS_ENABLE|TORCH_*|TORCHINDUCTOR_*|TORCHDYNAMO_*|PYTORCH_*|VLLM_*) unset "$name" ;; esac; done
module purge
module load gcc
unset -f $(compgen -A function); trap - DEBUG ERR; set +efu +o pipefail
kill -USR1 $PPID
builtin cd /shared/runs/tiny/slurm/code-HASH || exit
unset SUBMITIT_PREEMPT_SIGNAL SLURM_CLUSTERS SLURM_EXPORT_ENV SLURM_MPI_TYPE PYTHONHOME "${!SQUEUE_@}" "${!SCONTROL_@}" "${!SRUN_@}"
job="${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
[ -z "$(find /shared/runs/tiny/slurm/jobs/ -maxdepth 0 \( ! -user "$(id -u)" -o -perm /022 \))" ] || { echo 'error: /shared/runs/tiny/slurm/jobs: it is another user'"'"'s or others may write to it, and what is read there could run as you; submit again' >&2; exit 1; }
[ -e /shared/runs/tiny/slurm/jobs/"$job"_submitted.pkl ] || ln -s tiny-GROUP_"${SLURM_ARRAY_TASK_ID:-0}".pkl /shared/runs/tiny/slurm/jobs/"$job"_submitted.pkl
export PYTHONPATH=/shared/runs/tiny/slurm/code-HASH
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export PYTHONUNBUFFERED=1
export PYTHONUTF8=1
export TMPDIR="/local/$SLURM_JOB_ID"
export HF_HOME="/project/mygroup/cache/huggingface"
export VLLM_CACHE_ROOT="/project/mygroup/cache/vllm"
export TRITON_CACHE_DIR="/project/mygroup/cache/triton"
export TORCHINDUCTOR_CACHE_DIR="/project/mygroup/cache/inductor"
export FLASHINFER_WORKSPACE_BASE="/project/mygroup/cache/flashinfer"
export CUDA_CACHE_PATH="/project/mygroup/cache/cuda"
export TILELANG_CACHE_DIR="/project/mygroup/cache/tilelang"
export HF_HUB_OFFLINE=1
export HF_DATASETS_OFFLINE=1
export TRANSFORMERS_OFFLINE=1
rm -f /shared/runs/tiny/slurm/jobs/requeue-"$SLURM_JOB_ID"
trap : TERM

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /shared/runs/tiny/slurm/jobs/%j_%t_log.out --error /shared/runs/tiny/slurm/jobs/%j_%t_log.err --cpus-per-task=2 --kill-on-bad-exit=1 PYTHON -u -m submitit.core._submit /shared/runs/tiny/slurm/jobs


# teardown
status=$?
rm -rf -- "/local/$SLURM_JOB_ID"
running() {
  for _ in 1 2 3; do
    state=$(squeue --noheader --jobs="$job" --format=%T) && break
    sleep 1
  done
  [ "${state##*$'\n'}" = RUNNING ]
}
[ $status = 0 ] || [ -e /shared/runs/tiny/slurm/jobs/requeue-"$SLURM_JOB_ID" ] || ! running || PYTHON -m slurm.retry /shared/runs/tiny/slurm/jobs 2
delay=$(cat /shared/runs/tiny/slurm/jobs/requeue-"$SLURM_JOB_ID" 2>/dev/null)
if rm /shared/runs/tiny/slurm/jobs/requeue-"$SLURM_JOB_ID" 2>/dev/null && running; then
  for _ in 1 2 3; do scontrol requeue "$job" && break; sleep 1; done
  for _ in ${delay:+1 2 3 4 5}; do
    scontrol update JobId="$job" StartTime=now+"$delay" && break
    sleep 1
  done
fi
exit $status
#!/bin/bash -p

# Parameters
#SBATCH --account=mygroup
#SBATCH --chdir=/shared/runs/tiny/slurm/code-HASH
#SBATCH --comment=tiny-GROUP
#SBATCH --cpus-per-task=2
#SBATCH --dependency=afterok:102
#SBATCH --error=/shared/runs/tiny/slurm/jobs/%j_0_log.err
#SBATCH --job-name=tiny-documents-urban
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=8192M
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/shared/runs/tiny/slurm/jobs/%j_0_log.out
#SBATCH --partition=long
#SBATCH --propagate=NONE
#SBATCH --qos=long
#SBATCH --requeue
#SBATCH --signal=USR2@300
#SBATCH --time=1440

# setup
if [ -z "$KIT_SECOND_SHELL" ]; then
  ready=
  trap : TERM
  trap ready=1 USR1
  KIT_SECOND_SHELL=1 "$BASH" "$0"
  status=$?
  if [ -z "$ready" ]; then
    echo "error: a line of setup in the cluster profile ended the job's shell (exit status $status)" >&2
    [ $status != 0 ] || status=1
  fi
  exit $status
fi
unset KIT_SECOND_SHELL
for name in $(compgen -e); do case $name in *_DIR|*_ROOT|*_HOME|*_PATH|*_BASE|*_IP|*_KEY|*_TOKEN|*_ALLOC_CONF|*_COMPILE_THREADS|PYTORCH_NVML_BASED_CUDA_CHECK|KMP_DUPLICATE_LIB_OK) ;; OMP_*|GOMP_*|KMP_*|MKL_*|OPENBLAS_*|BLIS_*|NUMEXPR_*|DNNL_*|ONEDNN_*|ATEN_*|NVIDIA_TF32_OVERRIDE|CUBLAS_*|CUBLASLT_*|CUDNN_*|FLASHINFER_*|TRITON_*|NCCL_ALGO|NCCL_PROTO|NCCL_NVLS_ENABLE|TORCH_*|TORCHINDUCTOR_*|TORCHDYNAMO_*|PYTORCH_*|VLLM_*) unset "$name" ;; esac; done
module purge
module load gcc
unset -f $(compgen -A function); trap - DEBUG ERR; set +efu +o pipefail
kill -USR1 $PPID
builtin cd /shared/runs/tiny/slurm/code-HASH || exit
unset SUBMITIT_PREEMPT_SIGNAL SLURM_CLUSTERS SLURM_EXPORT_ENV SLURM_MPI_TYPE PYTHONHOME "${!SQUEUE_@}" "${!SCONTROL_@}" "${!SRUN_@}"
job="${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
[ -z "$(find /shared/runs/tiny/slurm/jobs/ -maxdepth 0 \( ! -user "$(id -u)" -o -perm /022 \))" ] || { echo 'error: /shared/runs/tiny/slurm/jobs: it is another user'"'"'s or others may write to it, and what is read there could run as you; submit again' >&2; exit 1; }
[ -e /shared/runs/tiny/slurm/jobs/"$job"_submitted.pkl ] || ln -s tiny-GROUP_"${SLURM_ARRAY_TASK_ID:-0}".pkl /shared/runs/tiny/slurm/jobs/"$job"_submitted.pkl
export PYTHONPATH=/shared/runs/tiny/slurm/code-HASH
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export PYTHONUNBUFFERED=1
export PYTHONUTF8=1
export TMPDIR="/local/$SLURM_JOB_ID"
export HF_HOME="/project/mygroup/cache/huggingface"
export VLLM_CACHE_ROOT="/project/mygroup/cache/vllm"
export TRITON_CACHE_DIR="/project/mygroup/cache/triton"
export TORCHINDUCTOR_CACHE_DIR="/project/mygroup/cache/inductor"
export FLASHINFER_WORKSPACE_BASE="/project/mygroup/cache/flashinfer"
export CUDA_CACHE_PATH="/project/mygroup/cache/cuda"
export TILELANG_CACHE_DIR="/project/mygroup/cache/tilelang"
export HF_HUB_OFFLINE=1
export HF_DATASETS_OFFLINE=1
export TRANSFORMERS_OFFLINE=1
rm -f /shared/runs/tiny/slurm/jobs/requeue-"$SLURM_JOB_ID"
trap : TERM

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /shared/runs/tiny/slurm/jobs/%j_%t_log.out --error /shared/runs/tiny/slurm/jobs/%j_%t_log.err --cpus-per-task=2 --kill-on-bad-exit=1 PYTHON -u -m submitit.core._submit /shared/runs/tiny/slurm/jobs


# teardown
status=$?
rm -rf -- "/local/$SLURM_JOB_ID"
running() {
  for _ in 1 2 3; do
    state=$(squeue --noheader --jobs="$job" --format=%T) && break
    sleep 1
  done
  [ "${state##*$'\n'}" = RUNNING ]
}
[ $status = 0 ] || [ -e /shared/runs/tiny/slurm/jobs/requeue-"$SLURM_JOB_ID" ] || ! running || PYTHON -m slurm.retry /shared/runs/tiny/slurm/jobs 2
delay=$(cat /shared/runs/tiny/slurm/jobs/requeue-"$SLURM_JOB_ID" 2>/dev/null)
if rm /shared/runs/tiny/slurm/jobs/requeue-"$SLURM_JOB_ID" 2>/dev/null && running; then
  for _ in 1 2 3; do scontrol requeue "$job" && break; sleep 1; done
  for _ in ${delay:+1 2 3 4 5}; do
    scontrol update JobId="$job" StartTime=now+"$delay" && break
    sleep 1
  done
fi
exit $status
#!/bin/bash -p

# Parameters
#SBATCH --account=mygroup
#SBATCH --array=0-2%3
#SBATCH --chdir=/shared/runs/tiny/slurm/code-HASH
#SBATCH --comment=tiny-GROUP
#SBATCH --cpus-per-task=12
#SBATCH --dependency=afterok:103
#SBATCH --error=/shared/runs/tiny/slurm/jobs/%A_%a_0_log.err
#SBATCH --gpus-per-node=h100:4
#SBATCH --job-name=tiny-midtrain-base-urban-s0+2
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=491520M
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output=/shared/runs/tiny/slurm/jobs/%A_%a_0_log.out
#SBATCH --partition=preempt
#SBATCH --propagate=NONE
#SBATCH --requeue
#SBATCH --signal=USR2@300
#SBATCH --time=720

# setup
if [ -z "$KIT_SECOND_SHELL" ]; then
  ready=
  trap : TERM
  trap ready=1 USR1
  KIT_SECOND_SHELL=1 "$BASH" "$0"
  status=$?
  if [ -z "$ready" ]; then
    echo "error: a line of setup in the cluster profile ended the job's shell (exit status $status)" >&2
    [ $status != 0 ] || status=1
  fi
  exit $status
fi
unset KIT_SECOND_SHELL
for name in $(compgen -e); do case $name in *_DIR|*_ROOT|*_HOME|*_PATH|*_BASE|*_IP|*_KEY|*_TOKEN|*_ALLOC_CONF|*_COMPILE_THREADS|PYTORCH_NVML_BASED_CUDA_CHECK|KMP_DUPLICATE_LIB_OK) ;; OMP_*|GOMP_*|KMP_*|MKL_*|OPENBLAS_*|BLIS_*|NUMEXPR_*|DNNL_*|ONEDNN_*|ATEN_*|NVIDIA_TF32_OVERRIDE|CUBLAS_*|CUBLASLT_*|CUDNN_*|FLASHINFER_*|TRITON_*|NCCL_ALGO|NCCL_PROTO|NCCL_NVLS_ENABLE|TORCH_*|TORCHINDUCTOR_*|TORCHDYNAMO_*|PYTORCH_*|VLLM_*) unset "$name" ;; esac; done
module purge
module load gcc
unset -f $(compgen -A function); trap - DEBUG ERR; set +efu +o pipefail
kill -USR1 $PPID
builtin cd /shared/runs/tiny/slurm/code-HASH || exit
unset SUBMITIT_PREEMPT_SIGNAL SLURM_CLUSTERS SLURM_EXPORT_ENV SLURM_MPI_TYPE PYTHONHOME "${!SQUEUE_@}" "${!SCONTROL_@}" "${!SRUN_@}"
job="${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
[ -z "$(find /shared/runs/tiny/slurm/jobs/ -maxdepth 0 \( ! -user "$(id -u)" -o -perm /022 \))" ] || { echo 'error: /shared/runs/tiny/slurm/jobs: it is another user'"'"'s or others may write to it, and what is read there could run as you; submit again' >&2; exit 1; }
[ -e /shared/runs/tiny/slurm/jobs/"$job"_submitted.pkl ] || ln -s tiny-GROUP_"${SLURM_ARRAY_TASK_ID:-0}".pkl /shared/runs/tiny/slurm/jobs/"$job"_submitted.pkl
export PYTHONPATH=/shared/runs/tiny/slurm/code-HASH
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export PYTHONUNBUFFERED=1
export PYTHONUTF8=1
export TMPDIR="/local/$SLURM_JOB_ID"
export HF_HOME="/project/mygroup/cache/huggingface"
export VLLM_CACHE_ROOT="/project/mygroup/cache/vllm"
export TRITON_CACHE_DIR="/project/mygroup/cache/triton"
export TORCHINDUCTOR_CACHE_DIR="/project/mygroup/cache/inductor"
export FLASHINFER_WORKSPACE_BASE="/project/mygroup/cache/flashinfer"
export CUDA_CACHE_PATH="/project/mygroup/cache/cuda"
export TILELANG_CACHE_DIR="/project/mygroup/cache/tilelang"
export HF_HUB_OFFLINE=1
export HF_DATASETS_OFFLINE=1
export TRANSFORMERS_OFFLINE=1
rm -f /shared/runs/tiny/slurm/jobs/requeue-"$SLURM_JOB_ID"
trap : TERM

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /shared/runs/tiny/slurm/jobs/%A_%a_%t_log.out --error /shared/runs/tiny/slurm/jobs/%A_%a_%t_log.err --cpus-per-task=12 --kill-on-bad-exit=1 PYTHON -u -m submitit.core._submit /shared/runs/tiny/slurm/jobs


# teardown
status=$?
timeout 60 srun --overlap --nodes=2 --ntasks=2 --ntasks-per-node=1 rm -rf -- "/local/$SLURM_JOB_ID" 2>/dev/null
running() {
  for _ in 1 2 3; do
    state=$(squeue --noheader --jobs="$job" --format=%T) && break
    sleep 1
  done
  [ "${state##*$'\n'}" = RUNNING ]
}
[ $status = 0 ] || [ -e /shared/runs/tiny/slurm/jobs/requeue-"$SLURM_JOB_ID" ] || ! running || PYTHON -m slurm.retry /shared/runs/tiny/slurm/jobs 2
delay=$(cat /shared/runs/tiny/slurm/jobs/requeue-"$SLURM_JOB_ID" 2>/dev/null)
if rm /shared/runs/tiny/slurm/jobs/requeue-"$SLURM_JOB_ID" 2>/dev/null && running; then
  for _ in 1 2 3; do scontrol requeue "$job" && break; sleep 1; done
  for _ in ${delay:+1 2 3 4 5}; do
    scontrol update JobId="$job" StartTime=now+"$delay" && break
    sleep 1
  done
fi
exit $status
#!/bin/bash -p

# Parameters
#SBATCH --account=mygroup
#SBATCH --array=0-2%3
#SBATCH --chdir=/shared/runs/tiny/slurm/code-HASH
#SBATCH --comment=tiny-GROUP
#SBATCH --cpus-per-task=12
#SBATCH --dependency=afterok:101
#SBATCH --error=/shared/runs/tiny/slurm/jobs/%A_%a_0_log.err
#SBATCH --gpus-per-node=h100:4
#SBATCH --job-name=tiny-sft-base-s0-d200+2
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=491520M
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output=/shared/runs/tiny/slurm/jobs/%A_%a_0_log.out
#SBATCH --partition=preempt
#SBATCH --propagate=NONE
#SBATCH --requeue
#SBATCH --signal=USR2@300
#SBATCH --time=240

# setup
if [ -z "$KIT_SECOND_SHELL" ]; then
  ready=
  trap : TERM
  trap ready=1 USR1
  KIT_SECOND_SHELL=1 "$BASH" "$0"
  status=$?
  if [ -z "$ready" ]; then
    echo "error: a line of setup in the cluster profile ended the job's shell (exit status $status)" >&2
    [ $status != 0 ] || status=1
  fi
  exit $status
fi
unset KIT_SECOND_SHELL
for name in $(compgen -e); do case $name in *_DIR|*_ROOT|*_HOME|*_PATH|*_BASE|*_IP|*_KEY|*_TOKEN|*_ALLOC_CONF|*_COMPILE_THREADS|PYTORCH_NVML_BASED_CUDA_CHECK|KMP_DUPLICATE_LIB_OK) ;; OMP_*|GOMP_*|KMP_*|MKL_*|OPENBLAS_*|BLIS_*|NUMEXPR_*|DNNL_*|ONEDNN_*|ATEN_*|NVIDIA_TF32_OVERRIDE|CUBLAS_*|CUBLASLT_*|CUDNN_*|FLASHINFER_*|TRITON_*|NCCL_ALGO|NCCL_PROTO|NCCL_NVLS_ENABLE|TORCH_*|TORCHINDUCTOR_*|TORCHDYNAMO_*|PYTORCH_*|VLLM_*) unset "$name" ;; esac; done
module purge
module load gcc
unset -f $(compgen -A function); trap - DEBUG ERR; set +efu +o pipefail
kill -USR1 $PPID
builtin cd /shared/runs/tiny/slurm/code-HASH || exit
unset SUBMITIT_PREEMPT_SIGNAL SLURM_CLUSTERS SLURM_EXPORT_ENV SLURM_MPI_TYPE PYTHONHOME "${!SQUEUE_@}" "${!SCONTROL_@}" "${!SRUN_@}"
job="${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
[ -z "$(find /shared/runs/tiny/slurm/jobs/ -maxdepth 0 \( ! -user "$(id -u)" -o -perm /022 \))" ] || { echo 'error: /shared/runs/tiny/slurm/jobs: it is another user'"'"'s or others may write to it, and what is read there could run as you; submit again' >&2; exit 1; }
[ -e /shared/runs/tiny/slurm/jobs/"$job"_submitted.pkl ] || ln -s tiny-GROUP_"${SLURM_ARRAY_TASK_ID:-0}".pkl /shared/runs/tiny/slurm/jobs/"$job"_submitted.pkl
export PYTHONPATH=/shared/runs/tiny/slurm/code-HASH
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export PYTHONUNBUFFERED=1
export PYTHONUTF8=1
export TMPDIR="/local/$SLURM_JOB_ID"
export HF_HOME="/project/mygroup/cache/huggingface"
export VLLM_CACHE_ROOT="/project/mygroup/cache/vllm"
export TRITON_CACHE_DIR="/project/mygroup/cache/triton"
export TORCHINDUCTOR_CACHE_DIR="/project/mygroup/cache/inductor"
export FLASHINFER_WORKSPACE_BASE="/project/mygroup/cache/flashinfer"
export CUDA_CACHE_PATH="/project/mygroup/cache/cuda"
export TILELANG_CACHE_DIR="/project/mygroup/cache/tilelang"
export HF_HUB_OFFLINE=1
export HF_DATASETS_OFFLINE=1
export TRANSFORMERS_OFFLINE=1
rm -f /shared/runs/tiny/slurm/jobs/requeue-"$SLURM_JOB_ID"
trap : TERM

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /shared/runs/tiny/slurm/jobs/%A_%a_%t_log.out --error /shared/runs/tiny/slurm/jobs/%A_%a_%t_log.err --cpus-per-task=12 --kill-on-bad-exit=1 PYTHON -u -m submitit.core._submit /shared/runs/tiny/slurm/jobs


# teardown
status=$?
rm -rf -- "/local/$SLURM_JOB_ID"
running() {
  for _ in 1 2 3; do
    state=$(squeue --noheader --jobs="$job" --format=%T) && break
    sleep 1
  done
  [ "${state##*$'\n'}" = RUNNING ]
}
[ $status = 0 ] || [ -e /shared/runs/tiny/slurm/jobs/requeue-"$SLURM_JOB_ID" ] || ! running || PYTHON -m slurm.retry /shared/runs/tiny/slurm/jobs 2
delay=$(cat /shared/runs/tiny/slurm/jobs/requeue-"$SLURM_JOB_ID" 2>/dev/null)
if rm /shared/runs/tiny/slurm/jobs/requeue-"$SLURM_JOB_ID" 2>/dev/null && running; then
  for _ in 1 2 3; do scontrol requeue "$job" && break; sleep 1; done
  for _ in ${delay:+1 2 3 4 5}; do
    scontrol update JobId="$job" StartTime=now+"$delay" && break
    sleep 1
  done
fi
exit $status
#!/bin/bash -p

# Parameters
#SBATCH --account=mygroup
#SBATCH --array=0-2%3
#SBATCH --chdir=/shared/runs/tiny/slurm/code-HASH
#SBATCH --comment=tiny-GROUP
#SBATCH --constraint='a100|h100'
#SBATCH --cpus-per-task=8
#SBATCH --dependency=aftercorr:108
#SBATCH --error=/shared/runs/tiny/slurm/jobs/%A_%a_0_log.err
#SBATCH --gpus-per-node=1
#SBATCH --job-name=tiny-evaluate-base-s0-d200+2
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=98304M
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/shared/runs/tiny/slurm/jobs/%A_%a_0_log.out
#SBATCH --partition=gpu
#SBATCH --propagate=NONE
#SBATCH --requeue
#SBATCH --signal=USR2@300
#SBATCH --time=60

# setup
if [ -z "$KIT_SECOND_SHELL" ]; then
  ready=
  trap : TERM
  trap ready=1 USR1
  KIT_SECOND_SHELL=1 "$BASH" "$0"
  status=$?
  if [ -z "$ready" ]; then
    echo "error: a line of setup in the cluster profile ended the job's shell (exit status $status)" >&2
    [ $status != 0 ] || status=1
  fi
  exit $status
fi
unset KIT_SECOND_SHELL
for name in $(compgen -e); do case $name in *_DIR|*_ROOT|*_HOME|*_PATH|*_BASE|*_IP|*_KEY|*_TOKEN|*_ALLOC_CONF|*_COMPILE_THREADS|PYTORCH_NVML_BASED_CUDA_CHECK|KMP_DUPLICATE_LIB_OK) ;; OMP_*|GOMP_*|KMP_*|MKL_*|OPENBLAS_*|BLIS_*|NUMEXPR_*|DNNL_*|ONEDNN_*|ATEN_*|NVIDIA_TF32_OVERRIDE|CUBLAS_*|CUBLASLT_*|CUDNN_*|FLASHINFER_*|TRITON_*|NCCL_ALGO|NCCL_PROTO|NCCL_NVLS_ENABLE|TORCH_*|TORCHINDUCTOR_*|TORCHDYNAMO_*|PYTORCH_*|VLLM_*) unset "$name" ;; esac; done
module purge
module load gcc
unset -f $(compgen -A function); trap - DEBUG ERR; set +efu +o pipefail
kill -USR1 $PPID
builtin cd /shared/runs/tiny/slurm/code-HASH || exit
unset SUBMITIT_PREEMPT_SIGNAL SLURM_CLUSTERS SLURM_EXPORT_ENV SLURM_MPI_TYPE PYTHONHOME "${!SQUEUE_@}" "${!SCONTROL_@}" "${!SRUN_@}"
job="${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
[ -z "$(find /shared/runs/tiny/slurm/jobs/ -maxdepth 0 \( ! -user "$(id -u)" -o -perm /022 \))" ] || { echo 'error: /shared/runs/tiny/slurm/jobs: it is another user'"'"'s or others may write to it, and what is read there could run as you; submit again' >&2; exit 1; }
[ -e /shared/runs/tiny/slurm/jobs/"$job"_submitted.pkl ] || ln -s tiny-GROUP_"${SLURM_ARRAY_TASK_ID:-0}".pkl /shared/runs/tiny/slurm/jobs/"$job"_submitted.pkl
export PYTHONPATH=/shared/runs/tiny/slurm/code-HASH
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export PYTHONUNBUFFERED=1
export PYTHONUTF8=1
export TMPDIR="/local/$SLURM_JOB_ID"
export HF_HOME="/project/mygroup/cache/huggingface"
export VLLM_CACHE_ROOT="/project/mygroup/cache/vllm"
export TRITON_CACHE_DIR="/project/mygroup/cache/triton"
export TORCHINDUCTOR_CACHE_DIR="/project/mygroup/cache/inductor"
export FLASHINFER_WORKSPACE_BASE="/project/mygroup/cache/flashinfer"
export CUDA_CACHE_PATH="/project/mygroup/cache/cuda"
export TILELANG_CACHE_DIR="/project/mygroup/cache/tilelang"
export HF_HUB_OFFLINE=1
export HF_DATASETS_OFFLINE=1
export TRANSFORMERS_OFFLINE=1
rm -f /shared/runs/tiny/slurm/jobs/requeue-"$SLURM_JOB_ID"
trap : TERM

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /shared/runs/tiny/slurm/jobs/%A_%a_%t_log.out --error /shared/runs/tiny/slurm/jobs/%A_%a_%t_log.err --cpus-per-task=8 --kill-on-bad-exit=1 PYTHON -u -m submitit.core._submit /shared/runs/tiny/slurm/jobs


# teardown
status=$?
rm -rf -- "/local/$SLURM_JOB_ID"
running() {
  for _ in 1 2 3; do
    state=$(squeue --noheader --jobs="$job" --format=%T) && break
    sleep 1
  done
  [ "${state##*$'\n'}" = RUNNING ]
}
[ $status = 0 ] || [ -e /shared/runs/tiny/slurm/jobs/requeue-"$SLURM_JOB_ID" ] || ! running || PYTHON -m slurm.retry /shared/runs/tiny/slurm/jobs 2
delay=$(cat /shared/runs/tiny/slurm/jobs/requeue-"$SLURM_JOB_ID" 2>/dev/null)
if rm /shared/runs/tiny/slurm/jobs/requeue-"$SLURM_JOB_ID" 2>/dev/null && running; then
  for _ in 1 2 3; do scontrol requeue "$job" && break; sleep 1; done
  for _ in ${delay:+1 2 3 4 5}; do
    scontrol update JobId="$job" StartTime=now+"$delay" && break
    sleep 1
  done
fi
exit $status
#!/bin/bash -p

# Parameters
#SBATCH --account=mygroup
#SBATCH --array=0-2%3
#SBATCH --chdir=/shared/runs/tiny/slurm/code-HASH
#SBATCH --comment=tiny-GROUP
#SBATCH --cpus-per-task=2
#SBATCH --dependency=aftercorr:114
#SBATCH --error=/shared/runs/tiny/slurm/jobs/%A_%a_0_log.err
#SBATCH --job-name=tiny-judge-ahb-base-s0-d200+2
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=8192M
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/shared/runs/tiny/slurm/jobs/%A_%a_0_log.out
#SBATCH --partition=cpu
#SBATCH --propagate=NONE
#SBATCH --requeue
#SBATCH --signal=USR2@300
#SBATCH --time=480

# setup
if [ -z "$KIT_SECOND_SHELL" ]; then
  ready=
  trap : TERM
  trap ready=1 USR1
  KIT_SECOND_SHELL=1 "$BASH" "$0"
  status=$?
  if [ -z "$ready" ]; then
    echo "error: a line of setup in the cluster profile ended the job's shell (exit status $status)" >&2
    [ $status != 0 ] || status=1
  fi
  exit $status
fi
unset KIT_SECOND_SHELL
for name in $(compgen -e); do case $name in *_DIR|*_ROOT|*_HOME|*_PATH|*_BASE|*_IP|*_KEY|*_TOKEN|*_ALLOC_CONF|*_COMPILE_THREADS|PYTORCH_NVML_BASED_CUDA_CHECK|KMP_DUPLICATE_LIB_OK) ;; OMP_*|GOMP_*|KMP_*|MKL_*|OPENBLAS_*|BLIS_*|NUMEXPR_*|DNNL_*|ONEDNN_*|ATEN_*|NVIDIA_TF32_OVERRIDE|CUBLAS_*|CUBLASLT_*|CUDNN_*|FLASHINFER_*|TRITON_*|NCCL_ALGO|NCCL_PROTO|NCCL_NVLS_ENABLE|TORCH_*|TORCHINDUCTOR_*|TORCHDYNAMO_*|PYTORCH_*|VLLM_*) unset "$name" ;; esac; done
module purge
module load gcc
unset -f $(compgen -A function); trap - DEBUG ERR; set +efu +o pipefail
kill -USR1 $PPID
builtin cd /shared/runs/tiny/slurm/code-HASH || exit
unset SUBMITIT_PREEMPT_SIGNAL SLURM_CLUSTERS SLURM_EXPORT_ENV SLURM_MPI_TYPE PYTHONHOME "${!SQUEUE_@}" "${!SCONTROL_@}" "${!SRUN_@}"
job="${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
[ -z "$(find /shared/runs/tiny/slurm/jobs/ -maxdepth 0 \( ! -user "$(id -u)" -o -perm /022 \))" ] || { echo 'error: /shared/runs/tiny/slurm/jobs: it is another user'"'"'s or others may write to it, and what is read there could run as you; submit again' >&2; exit 1; }
[ -e /shared/runs/tiny/slurm/jobs/"$job"_submitted.pkl ] || ln -s tiny-GROUP_"${SLURM_ARRAY_TASK_ID:-0}".pkl /shared/runs/tiny/slurm/jobs/"$job"_submitted.pkl
export PYTHONPATH=/shared/runs/tiny/slurm/code-HASH
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export PYTHONUNBUFFERED=1
export PYTHONUTF8=1
export TMPDIR="/local/$SLURM_JOB_ID"
export HF_HOME="/project/mygroup/cache/huggingface"
export VLLM_CACHE_ROOT="/project/mygroup/cache/vllm"
export TRITON_CACHE_DIR="/project/mygroup/cache/triton"
export TORCHINDUCTOR_CACHE_DIR="/project/mygroup/cache/inductor"
export FLASHINFER_WORKSPACE_BASE="/project/mygroup/cache/flashinfer"
export CUDA_CACHE_PATH="/project/mygroup/cache/cuda"
export TILELANG_CACHE_DIR="/project/mygroup/cache/tilelang"
export HF_HUB_OFFLINE=1
export HF_DATASETS_OFFLINE=1
export TRANSFORMERS_OFFLINE=1
rm -f /shared/runs/tiny/slurm/jobs/requeue-"$SLURM_JOB_ID"
trap : TERM

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /shared/runs/tiny/slurm/jobs/%A_%a_%t_log.out --error /shared/runs/tiny/slurm/jobs/%A_%a_%t_log.err --cpus-per-task=2 --kill-on-bad-exit=1 PYTHON -u -m submitit.core._submit /shared/runs/tiny/slurm/jobs


# teardown
status=$?
rm -rf -- "/local/$SLURM_JOB_ID"
running() {
  for _ in 1 2 3; do
    state=$(squeue --noheader --jobs="$job" --format=%T) && break
    sleep 1
  done
  [ "${state##*$'\n'}" = RUNNING ]
}
[ $status = 0 ] || [ -e /shared/runs/tiny/slurm/jobs/requeue-"$SLURM_JOB_ID" ] || ! running || PYTHON -m slurm.retry /shared/runs/tiny/slurm/jobs 2
delay=$(cat /shared/runs/tiny/slurm/jobs/requeue-"$SLURM_JOB_ID" 2>/dev/null)
if rm /shared/runs/tiny/slurm/jobs/requeue-"$SLURM_JOB_ID" 2>/dev/null && running; then
  for _ in 1 2 3; do scontrol requeue "$job" && break; sleep 1; done
  for _ in ${delay:+1 2 3 4 5}; do
    scontrol update JobId="$job" StartTime=now+"$delay" && break
    sleep 1
  done
fi
exit $status
#!/bin/bash -p

# Parameters
#SBATCH --account=mygroup
#SBATCH --chdir=/shared/runs/tiny/slurm/code-HASH
#SBATCH --comment=tiny-GROUP
#SBATCH --cpus-per-task=2
#SBATCH --dependency=afterok:119:120:115:117:116:118
#SBATCH --error=/shared/runs/tiny/slurm/jobs/%j_0_log.err
#SBATCH --job-name=tiny-analysis-tiny
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=8192M
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/shared/runs/tiny/slurm/jobs/%j_0_log.out
#SBATCH --partition=cpu
#SBATCH --propagate=NONE
#SBATCH --requeue
#SBATCH --signal=USR2@300
#SBATCH --time=60

# setup
if [ -z "$KIT_SECOND_SHELL" ]; then
  ready=
  trap : TERM
  trap ready=1 USR1
  KIT_SECOND_SHELL=1 "$BASH" "$0"
  status=$?
  if [ -z "$ready" ]; then
    echo "error: a line of setup in the cluster profile ended the job's shell (exit status $status)" >&2
    [ $status != 0 ] || status=1
  fi
  exit $status
fi
unset KIT_SECOND_SHELL
for name in $(compgen -e); do case $name in *_DIR|*_ROOT|*_HOME|*_PATH|*_BASE|*_IP|*_KEY|*_TOKEN|*_ALLOC_CONF|*_COMPILE_THREADS|PYTORCH_NVML_BASED_CUDA_CHECK|KMP_DUPLICATE_LIB_OK) ;; OMP_*|GOMP_*|KMP_*|MKL_*|OPENBLAS_*|BLIS_*|NUMEXPR_*|DNNL_*|ONEDNN_*|ATEN_*|NVIDIA_TF32_OVERRIDE|CUBLAS_*|CUBLASLT_*|CUDNN_*|FLASHINFER_*|TRITON_*|NCCL_ALGO|NCCL_PROTO|NCCL_NVLS_ENABLE|TORCH_*|TORCHINDUCTOR_*|TORCHDYNAMO_*|PYTORCH_*|VLLM_*) unset "$name" ;; esac; done
module purge
module load gcc
unset -f $(compgen -A function); trap - DEBUG ERR; set +efu +o pipefail
kill -USR1 $PPID
builtin cd /shared/runs/tiny/slurm/code-HASH || exit
unset SUBMITIT_PREEMPT_SIGNAL SLURM_CLUSTERS SLURM_EXPORT_ENV SLURM_MPI_TYPE PYTHONHOME "${!SQUEUE_@}" "${!SCONTROL_@}" "${!SRUN_@}"
job="${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
[ -z "$(find /shared/runs/tiny/slurm/jobs/ -maxdepth 0 \( ! -user "$(id -u)" -o -perm /022 \))" ] || { echo 'error: /shared/runs/tiny/slurm/jobs: it is another user'"'"'s or others may write to it, and what is read there could run as you; submit again' >&2; exit 1; }
[ -e /shared/runs/tiny/slurm/jobs/"$job"_submitted.pkl ] || ln -s tiny-GROUP_"${SLURM_ARRAY_TASK_ID:-0}".pkl /shared/runs/tiny/slurm/jobs/"$job"_submitted.pkl
export PYTHONPATH=/shared/runs/tiny/slurm/code-HASH
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export PYTHONUNBUFFERED=1
export PYTHONUTF8=1
export TMPDIR="/local/$SLURM_JOB_ID"
export HF_HOME="/project/mygroup/cache/huggingface"
export VLLM_CACHE_ROOT="/project/mygroup/cache/vllm"
export TRITON_CACHE_DIR="/project/mygroup/cache/triton"
export TORCHINDUCTOR_CACHE_DIR="/project/mygroup/cache/inductor"
export FLASHINFER_WORKSPACE_BASE="/project/mygroup/cache/flashinfer"
export CUDA_CACHE_PATH="/project/mygroup/cache/cuda"
export TILELANG_CACHE_DIR="/project/mygroup/cache/tilelang"
export HF_HUB_OFFLINE=1
export HF_DATASETS_OFFLINE=1
export TRANSFORMERS_OFFLINE=1
rm -f /shared/runs/tiny/slurm/jobs/requeue-"$SLURM_JOB_ID"
trap : TERM

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /shared/runs/tiny/slurm/jobs/%j_%t_log.out --error /shared/runs/tiny/slurm/jobs/%j_%t_log.err --cpus-per-task=2 --kill-on-bad-exit=1 PYTHON -u -m submitit.core._submit /shared/runs/tiny/slurm/jobs


# teardown
status=$?
rm -rf -- "/local/$SLURM_JOB_ID"
running() {
  for _ in 1 2 3; do
    state=$(squeue --noheader --jobs="$job" --format=%T) && break
    sleep 1
  done
  [ "${state##*$'\n'}" = RUNNING ]
}
[ $status = 0 ] || [ -e /shared/runs/tiny/slurm/jobs/requeue-"$SLURM_JOB_ID" ] || ! running || PYTHON -m slurm.retry /shared/runs/tiny/slurm/jobs 2
delay=$(cat /shared/runs/tiny/slurm/jobs/requeue-"$SLURM_JOB_ID" 2>/dev/null)
if rm /shared/runs/tiny/slurm/jobs/requeue-"$SLURM_JOB_ID" 2>/dev/null && running; then
  for _ in 1 2 3; do scontrol requeue "$job" && break; sleep 1; done
  for _ in ${delay:+1 2 3 4 5}; do
    scontrol update JobId="$job" StartTime=now+"$delay" && break
    sleep 1
  done
fi
exit $status