# An image of lipnext_jax, for launch/gke.sh and launch/slurm.sh (docs/pods.md):
#
#   docker build -t lipnext .                              # NVIDIA GPUs
#   docker build -t lipnext --build-arg ACCELERATOR=tpu .
#   docker build -t lipnext --build-arg ACCELERATOR=cpu .
#   docker run --rm --gpus=all -v lipnext:/data lipnext \
#     --config=configs/digits.py --workdir=/data/runs/digits
#
# The CUDA libraries come from pip; the host needs its driver and the NVIDIA
# container toolkit alone.
FROM python:3.11.15-slim-bookworm

# NCCL looks for InfiniBand through these.
# hadolint ignore=DL3008
RUN apt-get update \
  && apt-get install -y --no-install-recommends ibverbs-providers libibverbs1 \
  && rm -rf /var/lib/apt/lists/*

# A named volume that is mounted at /data starts with the owner of this folder.
RUN useradd --uid=1000 --create-home lipnext \
  && install --directory --owner=lipnext --group=lipnext /data

# What the project depends on, in a layer that a change of its code leaves alone.
WORKDIR /lipnext_jax
COPY setup.cfg pyproject.toml constraints.txt ./
COPY lipnext_jax/__init__.py lipnext_jax/
ARG ACCELERATOR=cuda
RUN case "$ACCELERATOR" in \
    cuda|tpu) extras="train,data,gcs,$ACCELERATOR" ;; \
    cpu) extras="train,data,gcs" ;; \
    *) echo "error: ACCELERATOR=$ACCELERATOR; give cuda, tpu or cpu" >&2; exit 2 ;; \
  esac \
  && pip install --no-cache-dir -c constraints.txt ".[$extras]"

COPY README.md LICENSE setup.py ./
COPY benchmarks/ benchmarks/
COPY configs/ configs/
COPY lipnext_jax/ lipnext_jax/
RUN pip install --no-cache-dir --no-deps -e .

USER 1000
ENTRYPOINT ["python", "-m", "lipnext_jax.main"]
CMD ["--help"]
