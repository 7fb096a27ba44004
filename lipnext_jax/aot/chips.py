"""Memory, arithmetic and network of the chips that estimates are made for.

Rates are peaks, which no program reaches. Sources:

* TPU: Google Cloud's system architecture pages (memory, peak bfloat16 compute,
  one direction of the inter-chip links); J. Austin et al., "How to Scale Your
  Model", 2025, ch. 2 (data centre network per chip).
* NVIDIA: data sheets of H100 SXM, H200 SXM and B200 (dense rates, one direction
  of NVLink 4 and 5); DGX H100 and B200 (400 Gb/s of network per GPU);
  `targets/*.txtpb` (memory).
"""

from typing import NamedTuple

GIB = 2**30


class Chip(NamedTuple):
  """A kind of device, as JAX counts devices."""

  platform: str  # 'tpu', 'cuda' or 'cpu'.
  memory: int  # Bytes.
  usable: float  # Share of the memory that a program may use.
  compute: float  # FLOP/s of bfloat16 products.
  float32: float  # FLOP/s of float32 products at the highest precision.
  links: float  # Bytes/s to the neighbours, one direction, all links together.
  network: float  # Bytes/s between slices or hosts, one direction.
  target: str = ''  # File in `targets/`, for NVIDIA.


def _tpu(gib, compute, links, network) -> Chip:
  # The compiler itself refuses programs beyond the usable memory. A float32
  # product takes six passes in bfloat16.
  return Chip('tpu', gib * GIB, 1.0, compute, compute / 6, links, network)


def _gpu(memory, compute, float32, links, target) -> Chip:
  # 5 % are an allowance, chosen and not measured, for CUDA's context, NCCL's
  # buffers and workspaces. float32 runs without tensor cores.
  return Chip('cuda', memory, 0.95, compute, float32, links, 50e9, target)


CHIPS = {
  'v4': _tpu(32, 275e12, 300e9, 6.25e9),
  'v5e': _tpu(16, 197e12, 200e9, 3.125e9),
  'v5p': _tpu(95, 459e12, 600e9, 6.25e9),
  'v6e': _tpu(32, 918e12, 400e9, 12.5e9),
  'h100': _gpu(84_942_979_072, 989e12, 67e12, 450e9, 'h100.txtpb'),
  'h200': _gpu(151_397_597_184, 989e12, 67e12, 450e9, 'h200.txtpb'),
  'b200': _gpu(191_514_411_008, 2250e12, 75e12, 900e9, 'b200.txtpb'),
  # The order of magnitude of a server's core, for looking at programs.
  'cpu': Chip('cpu', 16 * GIB, 1.0, 1e11, 1e11, 1e10, 1e9),
}
