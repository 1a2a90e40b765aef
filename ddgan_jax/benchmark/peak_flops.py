"""Published peak FLOP/s of devices, by JAX's device kind."""

from __future__ import annotations

# Dense FLOP/s of one JAX device; a multiply-add is two. Left: bfloat16 (None for V100 and T4, whose matrix units only
# support float16). Right: float32 with JAX's default precision, which is TF32 on GPUs that have it and one bf16 pass on
# TPUs. From NVIDIA's data sheets, without sparsity, and cloud.google.com/tpu/docs. A device of TPU v2 or v3 is one of a
# chip's two cores. The first name contained in the device kind is used, so longer names come first.
PEAKS = {
    'B200': (2250e12, 1125e12),
    'H200': (989e12, 494e12),
    'GH200': (989e12, 494e12),
    'H100 PCIe': (756e12, 378e12),
    'H100 NVL': (835e12, 417e12),
    'H100': (989e12, 494e12),
    'A100': (312e12, 156e12),
    'L40S': (362e12, 183e12),
    'L4': (121e12, 60e12),
    'RTX 4090': (165.2e12, 82.6e12),
    'RTX 3090': (71e12, 35.6e12),
    'V100-PCIE': (None, 14e12),
    'V100': (None, 15.7e12),
    'T4': (None, 8.1e12),
    'TPU v2': (22.5e12, 22.5e12),
    'TPU v3': (61.5e12, 61.5e12),
    'TPU v4': (275e12, 275e12),
    'TPU v5 lite': (197e12, 197e12),
    'TPU v5e': (197e12, 197e12),
    'TPU v5': (459e12, 459e12),  # v5p
    'TPU v6 lite': (918e12, 918e12),
    'TPU v6e': (918e12, 918e12),
}


def peak(device_kind: str) -> dict[str, float | None]:
  """Peak FLOP/s by dtype of a device kind such as 'NVIDIA H100 80GB HBM3'; empty if it is not in PEAKS."""
  words = device_kind.replace('-', ' ').split()
  for name, found in PEAKS.items():
    wanted = name.replace('-', ' ').split()
    if any(words[i:i + len(wanted)] == wanted for i in range(len(words))):
      return dict(zip(('bfloat16', 'float32'), found))
  return {}
