#!/usr/bin/env bash
# Several processes on this machine as one run, on CPU devices:
#
#   launch/local.sh 2 --config=configs/digits.py --workdir=runs/two
#
# DEVICES (default 8) CPU devices are shared out evenly, at least one each. Ends when all processes
# have ended; the first failure becomes the exit code, and ends the others.
# SIGTERM and Ctrl-C are handed on: all processes save after the same step.
set -euo pipefail

processes=${1:?usage: launch/local.sh PROCESSES --config=… --workdir=…}
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
  wait -n 2>/dev/null || { code=$?; break; }  # Bash' own words on a kill go.
done
# The others notice that one is gone, say so and end, or save and end.
for ((seconds = 0; code && seconds < 60; seconds++)); do
  [[ $(jobs -pr) ]] || break
  sleep 1
done 2>/dev/null
if [[ -z $stopped ]] && ((code > 128)); then
  echo "error: a process was ended by signal $((code - 128));" \
    'the same command goes on at the last checkpoint.' >&2
fi
exit "$code"
