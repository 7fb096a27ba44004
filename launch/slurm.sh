#!/usr/bin/env bash
# A run on the GPUs of a SLURM cluster, one process per GPU:
#
#   NODES=2 TIME=24:00:00 launch/slurm.sh \
#     --config=configs/imagenet_2b.py --workdir=/shared/runs/imagenet_2b \
#     --config.dataset.data_dir=/shared/data \
#     --config.mesh.data=2 --config.mesh.fsdp=8
#
# The script submits itself; its flags are those of lipnext_jax.main. Before the
# time limit and before a preemption SLURM sends SIGTERM: the run saves a
# checkpoint, ends with code 143, is queued again and resumes.
#
# Variables, with their defaults in brackets:
#
#   NODES         number of machines (1)
#   GPUS          GPUs per machine (8)
#   TIME          time limit in the format of sbatch (24:00:00)
#   GRACE         seconds from SIGTERM to the time limit (180)
#   PARTITION     partition of the cluster (its default)
#   CPUS          cores per GPU, for data workers (8)
#   PYTHON        Python with the package and its extras `train` and `cuda`
#                 (.venv/bin/python; in a CONTAINER: python)
#   CONTAINER     .sif file of Apptainer to run in, see docs/pods.md (none).
#                 It sees your home, the current folder and those that
#                 APPTAINER_BIND names, e.g. APPTAINER_BIND=/shared
#   SETUP         shell commands that start the job, e.g. 'module load
#                 apptainer' (none)
#   SBATCH_FLAGS  further flags of sbatch, e.g. '--account=me' (none)
#   DRY_RUN       1: print the commands, run nothing
set -euo pipefail

run() {
  if [[ ${DRY_RUN:-0} == 1 ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

if [[ -z ${LIPNEXT_IN_JOB:-} ]]; then
  (($# > 0)) || { echo "usage: see the head of $0" >&2; exit 2; }
  submit=(
    sbatch --job-name=lipnext --nodes="${NODES:-1}"
    --ntasks-per-node="${GPUS:-8}" --gpus-per-node="${GPUS:-8}"
    --cpus-per-task="${CPUS:-8}" --time="${TIME:-24:00:00}"
    --signal="TERM@${GRACE:-180}" --requeue --open-mode=append
    "--export=ALL,LIPNEXT_IN_JOB=1"
  )
  [[ -z ${PARTITION:-} ]] || submit+=(--partition="$PARTITION")
  # shellcheck disable=SC2206 # Several flags in one variable are meant.
  submit+=(${SBATCH_FLAGS:-})
  run "${submit[@]}" "$0" "$@"
  [[ ${DRY_RUN:-0} == 1 ]] || exit 0
fi

if [[ -n ${SETUP:-} ]]; then
  if [[ ${DRY_RUN:-0} == 1 ]]; then
    echo "$SETUP"
  else
    set +u  # The scripts of `module` read variables that need not be set.
    eval "$SETUP"
    set -u
  fi
fi
python=("${PYTHON:-.venv/bin/python}")
if [[ -n ${CONTAINER:-} ]]; then
  python=(apptainer exec --nv "$CONTAINER" "${PYTHON:-python}")
fi

code=0
# Every process sees all GPUs of its node, so that NCCL can use NVLink; JAX uses
# the one of its rank. Since SLURM 22.05 srun needs --cpus-per-task, too.
run srun --kill-on-bad-exit=1 --gpu-bind=none \
  --cpus-per-task="${CPUS:-8}" \
  "${python[@]}" -m lipnext_jax.main --coordinator=auto "$@" ||
  code=$?
if ((code == 143)); then
  run scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$code"
