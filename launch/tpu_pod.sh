#!/usr/bin/env bash
# A run on all hosts of a Cloud TPU VM pod slice:
#
#   TPU=my-v5p-32 ZONE=us-east5-a SETUP=1 launch/tpu_pod.sh \
#     --config=configs/imagenet_2b.py --workdir=gs://bucket/imagenet_2b \
#     --config.dataset.data_dir=/mnt/data
#
# Starts the same command on every host over ssh; JAX finds the others. Ctrl-C
# here ends the ssh sessions; SIGTERM, which a preempted host sends, saves a
# checkpoint. The same command again goes on from there.
#
#   TPU      name of the slice (required)
#   ZONE     its zone (required)
#   PROJECT  of Google Cloud (gcloud's default)
#   REPO     where the repository lies on the hosts (lipnext_jax)
#   SETUP    1: first copy this repository there and install it
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
  run gcloud compute tpus tpu-vm scp --recurse "$root" "$TPU:$repo" \
    "${where[@]}"
  on_all "cd $repo && python3 -m venv .venv &&\
 .venv/bin/pip install -q -c constraints.txt -e '.[tpu,data]'"
fi
printf -v flags ' %q' "$@"
on_all "cd $repo && exec .venv/bin/python -m lipnext_jax.main\
 --coordinator=auto$flags"
