#!/usr/bin/env bash
# Several processes on this machine as one run, on CPU devices:
#
#   launch/local.sh 2 --config=configs/digits.py --workdir=runs/two
#
# DEVICES (default 8) CPU devices are shared out evenly. Ends when all processes
# have ended; the first failure stops the others and becomes the exit code.
set -euo pipefail

processes=${1:?usage: launch/local.sh PROCESSES --config=… --workdir=…}
shift
devices=${DEVICES:-8}
python=${PYTHON:-python}
port=${PORT:-$("$python" -c 'import socket
with socket.socket() as s:
  s.bind(("127.0.0.1", 0))
  print(s.getsockname()[1])')}

export JAX_PLATFORMS=cpu
export XLA_FLAGS="--xla_force_host_platform_device_count=$((devices / processes))"
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
for ((i = 0; i < processes; i++)); do
  "$python" -m lipnext_jax.main --coordinator="127.0.0.1:$port" \
    --num_processes="$processes" --process_id="$i" "$@" &
done
for ((i = 0; i < processes; i++)); do
  wait -n
done
