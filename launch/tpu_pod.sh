#!/usr/bin/env bash
# A run on all hosts of a Cloud TPU VM pod slice:
#
#   TPU=my-v5p-32 ZONE=us-east5-a SETUP=1 launch/tpu_pod.sh \
#     --config=configs/imagenet_2b.py --workdir=/mnt/shared/imagenet_2b \
#     --config.dataset.data_dir=/mnt/shared/data
#
# Starts the same command on every host over ssh; JAX finds the other hosts.
# Ctrl-C ends the ssh sessions. A preempted host gets SIGTERM and saves a
# checkpoint; the same command again resumes there. The workdir must be on
# storage that all hosts have mounted (Filestore or another NFS), or in a
# bucket: --workdir=gs://my-bucket/imagenet_2b, with the extra gcs on all hosts
# (docs/recovery.md). A run whose hosts see different directories is refused.
#
# Variables, with their defaults in brackets:
#
#   TPU      name of the slice (required)
#   ZONE     zone of the slice (required)
#   PROJECT  project of Google Cloud (gcloud's default)
#   REPO     folder of the repository on the hosts (lipnext_jax)
#   SETUP    1: first copy the last commit of this repository to the hosts, over
#            that of an earlier SETUP, and install it
#   PYTHON   Python of the hosts, 3.11 or later, for SETUP (python3; an Ubuntu
#            22.04 image needs python3.11 and python3.11-venv)
#   DRY_RUN  1: print the commands, run nothing
set -euo pipefail

: "${TPU:?name the slice, see the head of $0}"
: "${ZONE:?name its zone, see the head of $0}"
(($# > 0)) || { echo "usage: see the head of $0" >&2; exit 2; }
repo=${REPO:-lipnext_jax}
where=(--zone="$ZONE" --worker=all)
[[ -z ${PROJECT:-} ]] || where+=(--project="$PROJECT")

run() {
  if [[ ${DRY_RUN:-0} == 1 ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

on_all() {
  run gcloud compute tpus tpu-vm ssh "$TPU" "${where[@]}" --command="$1"
}

if [[ ${SETUP:-0} == 1 ]]; then
  root=$(cd "$(dirname "$0")/.." && pwd)
  archive=$(mktemp -d)/lipnext_jax.tar.gz
  trap 'rm -r "${archive%/*}"' EXIT
  run git -C "$root" archive --format=tar.gz --output="$archive" HEAD
  run gcloud compute tpus tpu-vm scp "$archive" "$TPU:" "${where[@]}"
  # Keeps runs and the environment, removes code that the commit lacks.
  on_all "mkdir -p $repo && cd $repo && rm -rf lipnext_jax configs &&\
 tar -xzf ~/lipnext_jax.tar.gz && ${PYTHON:-python3} -m venv .venv &&\
 .venv/bin/pip install -q -c constraints.txt -e '.[train,data,gcs,tpu]'"
fi
printf -v flags ' %q' "$@"
on_all "cd $repo && exec .venv/bin/python -m lipnext_jax.main\
 --coordinator=auto$flags"
