"""Stacked digits as in stacked_digits.py, with twice the width and four times the batch, for a GPU.

    ddgan train --config stacked_digits_gpu

Hardware and time: 6.4 minutes for 41,600 steps on one H100, including compilation and 8 evaluations (2026-11-26, jax
0.11.2; 8.0 ms per step). Modes found in 10,000 samples, and KL to uniform: 738 and 1.27 after 5,200 steps, 952 and 0.51
after 10,400, 995 and 0.23 after 15,600, 995 and 0.18 after 31,200, 998 and 0.144 after 36,400, 997 and 0.158 at the
end; real stacks: 1,000 and 0.05. Step 36,400 has the lowest Fréchet distance and is kept as the best checkpoint; with
three other seeds its samples have 997 to 999 modes and a KL of 0.140 to 0.148. The classifier is confident (p ≥ 0.9)
about 58% of them (99% of real stacks), and these cover 978 to 991 modes (benchmarks/gpu.md).
"""

import ml_collections

from ddgan_jax.config import recipes


def get_config() -> ml_collections.ConfigDict:
  c = recipes.load('stacked_digits')
  c.data.batch_size = 128
  c.generator.num_channels_dae = 48
  c.discriminator.ngf = 48
  c.train.update(
      num_steps=41_600, steps_per_call=20, sample_every=5_200, checkpoint_every=5_200, eval_every=5_200)
  return c
