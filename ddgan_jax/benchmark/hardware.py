"""What a device can do at most: published peaks, by the name that JAX gives the device."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Peak:
  """Dense operations a second of one JAX device, multiply and add counted as two; None where it has no such unit.

  Attributes:
    bfloat16: of matrix units, accumulating in float32.
    float32: of what JAX multiplies float32 with unless told otherwise: TF32 where a GPU has it, bf16 passes on a TPU.
    unit: what that is.
    source: who says so.
  """

  bfloat16: float | None
  float32: float
  unit: str
  source: str


_NVIDIA = "NVIDIA's data sheet, without sparsity"
_GOOGLE = 'cloud.google.com/tpu/docs'

# The first name that the device's kind contains counts, so the longer ones come first. A V100 and a T4 have matrix
# units for float16 only. A device of TPU v2 and v3 is one of the two cores of a chip.
PEAKS = {
    'B200': Peak(2250e12, 1125e12, 'TF32', _NVIDIA),
    'H200': Peak(989e12, 494e12, 'TF32', _NVIDIA),
    'GH200': Peak(989e12, 494e12, 'TF32', _NVIDIA),
    'H100 PCIe': Peak(756e12, 378e12, 'TF32', _NVIDIA),
    'H100 NVL': Peak(835e12, 417e12, 'TF32', _NVIDIA),
    'H100': Peak(989e12, 494e12, 'TF32', _NVIDIA),
    'A100': Peak(312e12, 156e12, 'TF32', _NVIDIA),
    'L40S': Peak(362e12, 183e12, 'TF32', _NVIDIA),
    'L4': Peak(121e12, 60e12, 'TF32', _NVIDIA),
    'RTX 4090': Peak(165.2e12, 82.6e12, 'TF32', _NVIDIA),
    'RTX 3090': Peak(71e12, 35.6e12, 'TF32', _NVIDIA),
    'V100-PCIE': Peak(None, 14e12, 'float32', _NVIDIA),
    'V100': Peak(None, 15.7e12, 'float32', _NVIDIA),
    'T4': Peak(None, 8.1e12, 'float32', _NVIDIA),
    'TPU v2': Peak(22.5e12, 22.5e12, 'one bf16 pass', _GOOGLE),
    'TPU v3': Peak(61.5e12, 61.5e12, 'one bf16 pass', _GOOGLE),
    'TPU v4': Peak(275e12, 275e12, 'one bf16 pass', _GOOGLE),
    'TPU v5 lite': Peak(197e12, 197e12, 'one bf16 pass', _GOOGLE),
    'TPU v5e': Peak(197e12, 197e12, 'one bf16 pass', _GOOGLE),
    'TPU v5': Peak(459e12, 459e12, 'one bf16 pass', _GOOGLE),  # v5p
    'TPU v6 lite': Peak(918e12, 918e12, 'one bf16 pass', _GOOGLE),
    'TPU v6e': Peak(918e12, 918e12, 'one bf16 pass', _GOOGLE),
}


def peak(device_kind: str) -> Peak | None:
  """The peak of a device by its `device_kind`, such as 'NVIDIA H100 80GB HBM3'; None for one that is not in PEAKS."""
  words = device_kind.replace('-', ' ').split()
  for name, found in PEAKS.items():
    wanted = name.replace('-', ' ').split()
    if any(words[i:i + len(wanted)] == wanted for i in range(len(words))):
      return found
  return None


def peak_operations(device_kind: str, dtype: str) -> float | None:
  """Operations a second of a device in `dtype`, 'float32' or 'bfloat16'; None where that is unknown."""
  found = peak(device_kind)
  return getattr(found, dtype) if found else None
