#!/usr/bin/env bash
# Several processes on this machine as one run, on CPU devices:
#
#   launch/local.sh 2 --config=configs/digits.py --workdir=runs/two
#
# The first argument is the number of processes, which share the devices evenly.
# The script ends when all processes have ended. The first failure ends the
# others and becomes the exit code. SIGTERM and Ctrl-C reach all processes, which
# save the same step.
#
# Variables, with their defaults in brackets:
#
#   DEVICES  CPU devices of all processes (8)
#   PORT     port of process 0 on this machine (a free one)
#   PYTHON   Python with the package and its extra `train` (python)
set -euo pipefail

processes=${1:?give a number of processes, see the head of $0}
shift
devices=${DEVICES:-8}
if ! [[ $processes =~ ^[1-9][0-9]*$ ]] || ((processes > devices)); then
  echo "error: $processes processes on $devices devices;" \
    'give a number from 1 to DEVICES' >&2
  exit 2
fi
python=${PYTHON:-python}
port=${PORT:-$("$python" -c 'import socket
with socket.socket() as s:
  s.bind(("127.0.0.1", 0))
  print(s.getsockname()[1])')}

export JAX_PLATFORMS=cpu
count=--xla_force_host_platform_device_count=$((devices / processes))
export XLA_FLAGS="${XLA_FLAGS-} $count"
trap 'kill -KILL $(jobs -pr) 2>/dev/null || true' EXIT
stopped=
trap 'stopped=1; kill -TERM $(jobs -pr) 2>/dev/null || true' TERM INT
for ((i = 0; i < processes; i++)); do
  "$python" -m lipnext_jax.main --coordinator="127.0.0.1:$port" \
    --num_processes="$processes" --process_id="$i" "$@" &
done
code=0
for ((i = 0; i < processes; i++)); do
  wait -n 2>/dev/null || { code=$?; break; }  # Hides bash's message of a kill.
done
# Gives the others time to save, or to report the lost process.
for ((seconds = 0; code && seconds < 60; seconds++)); do
  [[ $(jobs -pr) ]] || break
  sleep 1
done 2>/dev/null
if [[ -z $stopped ]] && ((code > 128)); then
  echo "error: a process was ended by signal $((code - 128));" \
    'the same command resumes at the last checkpoint.' >&2
fi
exit "$code"
