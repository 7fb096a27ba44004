#!/usr/bin/env bash
# A run on Kubernetes, as a JobSet (https://jobset.sigs.k8s.io):
#
#   NAME=lipnext IMAGE=my/lipnext NODES=2 launch/gke.sh \
#     --config=configs/imagenet_2b.py --workdir=/data/runs/imagenet_2b \
#     --config.dataset.data_dir=/data
#
# A node runs one pod with one process. An evicted pod gets SIGTERM, and GRACE
# seconds to save a checkpoint; the JobSet then starts all pods again, and they
# resume. The workdir may be in a bucket, e.g.
# --workdir=gs://my-bucket/imagenet_2b, if the image has the extra gcs
# (docs/recovery.md).
#
# Variables, with their defaults in brackets:
#
#   NAME         name of the JobSet (lipnext)
#   IMAGE        image from the Dockerfile, or another one with the repository
#                installed in /lipnext_jax (required)
#   NODES        number of pods (1)
#   RESOURCE     nvidia.com/gpu or google.com/tpu (nvidia.com/gpu)
#   CHIPS        chips per pod (8)
#   SELECTOR     labels of the nodes, 'key=value key=value'; for TPU e.g.
#                'cloud.google.com/gke-tpu-accelerator=tpu-v5p-slice
#                cloud.google.com/gke-tpu-topology=2x2x4'
#   CLAIM        PersistentVolumeClaim to mount at /data (data)
#   RUN_AS       user and group of the pods, and group of the volume, e.g. 1000
#                (root, which may write to any volume)
#   GRACE        seconds from SIGTERM to SIGKILL (180)
#   RESTARTS     maximum number of restarts (100)
#   DRY_RUN      1: print the manifest, apply nothing
set -euo pipefail

: "${IMAGE:?name the image, see the head of $0}"
(($# > 0)) || { echo "usage: see the head of $0" >&2; exit 2; }
name=${NAME:-lipnext} nodes=${NODES:-1}
resource=${RESOURCE:-nvidia.com/gpu} chips=${CHIPS:-8}

# Prints a text as a YAML string in double quotes.
quote() {
  printf '"%s"' "$(printf '%s' "$1" | sed 's/\\/\\\\/g; s/"/\\"/g')"
}

manifest() {
  cat <<EOF
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $(quote "$name")
spec:
  failurePolicy:
    maxRestarts: ${RESTARTS:-100}
  replicatedJobs:
  - name: worker
    replicas: 1
    template:
      spec:
        backoffLimit: 0
        completionMode: Indexed
        completions: $nodes
        parallelism: $nodes
        template:
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: ${GRACE:-180}
            securityContext:
              runAsUser: ${RUN_AS:-0}
EOF
  if [[ -n ${RUN_AS:-} ]]; then
    cat <<EOF
              runAsGroup: $RUN_AS
              fsGroup: $RUN_AS
              fsGroupChangePolicy: OnRootMismatch
EOF
  fi
  if [[ -n ${SELECTOR:-} ]]; then
    echo '            nodeSelector:'
    for label in $SELECTOR; do
      echo "              $(quote "${label%%=*}"): $(quote "${label#*=}")"
    done
  fi
  cat <<EOF
            containers:
            - name: main
              image: $(quote "$IMAGE")
              workingDir: /lipnext_jax
              env:
              - name: JAX_COORDINATOR_ADDRESS
                value: $(quote "$name-worker-0-0.$name:8476")
              - name: JAX_NUM_PROCESSES
                value: "$nodes"
              - name: JAX_PROCESS_ID
                valueFrom:
                  fieldRef:
                    fieldPath: "metadata.annotations['batch.kubernetes.io/job-completion-index']"
              command:
              - python
              - -m
              - lipnext_jax.main
              - --coordinator=env
EOF
  for flag in "$@"; do
    echo "              - $(quote "$flag")"
  done
  cat <<EOF
              resources:
                limits:
                  $(quote "$resource"): "$chips"
              volumeMounts:
              - name: data
                mountPath: /data
              - name: shm
                mountPath: /dev/shm
            volumes:
            - name: data
              persistentVolumeClaim:
                claimName: $(quote "${CLAIM:-data}")
            - name: shm
              emptyDir:
                medium: Memory
EOF
}

if [[ ${DRY_RUN:-0} == 1 ]]; then
  manifest "$@"
else
  manifest "$@" | kubectl apply -f -
fi
