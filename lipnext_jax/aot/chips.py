"""Facts about chips that estimates rest on: memory, arithmetic, network.

Rates are peaks; no program reaches them. Sources:

* TPU: Google Cloud's system architecture pages (memory, peak bfloat16 compute,
  memory bandwidth, inter-chip links, of which one direction is counted here);
  the data centre network per chip from J. Austin et al., "How to Scale Your
  Model", 2025, ch. 2.
* NVIDIA: the data sheets of H100 SXM, H200 SXM and B200 (dense rates; NVLink 4
  and 5 in one direction); 400 Gb/s of network per GPU, as in DGX H100 and B200.
  Memory is what `targets/*.txtpb` says.
"""

from typing import NamedTuple

from lipnext_jax import errors

GIB = 2**30


class Chip(NamedTuple):
  """One device as JAX counts them."""

  platform: str  # 'tpu', 'cuda' or 'cpu'.
  memory: int  # Bytes.
  usable: float  # Share of it that a program may have.
  compute: float  # FLOP/s of bfloat16 products.
  float32: float  # FLOP/s of float32 products at the highest precision.
  bandwidth: float  # Bytes/s of memory.
  links: float  # Bytes/s to the neighbours, one direction, all links together.
  network: float  # Bytes/s between slices or hosts, one direction.
  target: str = ''  # File in `targets/`, for NVIDIA.


def _tpu(gib, compute, bandwidth, links, network) -> Chip:
  # The compiler keeps what it needs, and refuses the rest. A float32 product
  # takes six passes of bfloat16.
  return Chip(
    'tpu', gib * GIB, 1.0, compute, compute / 6, bandwidth, links, network
  )


def _gpu(memory, compute, float32, bandwidth, links, target) -> Chip:
  # CUDA's context, NCCL's buffers, library workspaces: an allowance that was
  # chosen, not measured. The rate of float32 is that without tensor cores.
  return Chip(
    'cuda', memory, 0.95, compute, float32, bandwidth, links, 50e9, target
  )


CHIPS = {
  'v4': _tpu(32, 275e12, 1228e9, 300e9, 6.25e9),
  'v5e': _tpu(16, 197e12, 819e9, 200e9, 3.125e9),
  'v5p': _tpu(95, 459e12, 2765e9, 600e9, 6.25e9),
  'v6e': _tpu(32, 918e12, 1640e9, 400e9, 12.5e9),
  'h100': _gpu(84_942_979_072, 989e12, 67e12, 3352e9, 450e9, 'h100.txtpb'),
  'h200': _gpu(151_397_597_184, 989e12, 67e12, 4800e9, 450e9, 'h200.txtpb'),
  'b200': _gpu(191_514_411_008, 2250e12, 75e12, 7672e9, 900e9, 'b200.txtpb'),
  # No chip in particular: one core of a server, for looking at programs.
  'cpu': Chip('cpu', 16 * GIB, 1.0, 1e11, 1e11, 2e10, 1e10, 1e9),
}

# How JAX names the kinds of devices; the first that fits.
_DEVICE_KINDS = {
  'TPU v4': 'v4',
  'TPU v5 lite': 'v5e',
  'TPU v5e': 'v5e',
  'TPU v5': 'v5p',
  'TPU v6': 'v6e',
  'NVIDIA H100': 'h100',
  'NVIDIA H200': 'h200',
  'NVIDIA B200': 'b200',
  'cpu': 'cpu',
}


def by_device_kind(device_kind: str) -> Chip:
  """Returns the chip that JAX gives this name.

  Raises:
    ConfigError: it is not one of `CHIPS`.
  """
  for prefix, name in _DEVICE_KINDS.items():
    if device_kind.startswith(prefix):
      return CHIPS[name]
  raise errors.ConfigError(
    '--topology',
    None,
    f'is needed: nothing is known about {device_kind!r}',
    f'compile for one of {", ".join(CHIPS)}',
  )
