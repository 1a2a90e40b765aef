"""Compares bf16 with f32: the error of the golden generators, and the same training steps in both.

    python benchmarks/bfloat16.py [--config configs/digits.py] [--steps 200]

The state is float32 in both; `parallel.dtype` sets the dtype in which the networks compute. After 200 steps of digits
the generator is far from trained, so this only compares the course of the training. 2,000 samples of the EMA with the
same noise are classified by the classifier of `digits_quality.py`.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from benchmarks import digits_quality
from ddgan_jax import config as config_lib
from ddgan_jax import diffusion, models, sampling, train_state, train_step
from ddgan_jax.data import pipeline, sources
from ddgan_jax.interop import pytorch
from ddgan_jax.objectives import penalties
from ddgan_jax.parallel import compilation, sharding
from tests.support import generator_config, golden, nhwc, state_dict

_CONFIG = config_flags.DEFINE_config_file('config', str(ROOT / 'configs/digits.py'), 'The run.', lock_config=True)
_STEPS = flags.DEFINE_integer('steps', 200, 'Training steps.', lower_bound=1)
_CASES = flags.DEFINE_list('golden', ['generator_default.npz'], 'Golden generators of tests/golden.')
_DTYPES = ('float32', 'bfloat16')


def golden_errors(name: str) -> dict[str, float]:
  """Relative L2 errors of a golden generator's output."""
  arrays, options = golden(name)
  config = generator_config(options)
  params = pytorch.generator_params(state_dict(arrays['param_names']), config)
  outs = [
      np.asarray(compilation.jit(models.Generator(config, jnp.dtype(dtype)).apply)(
          {'params': params}, nhwc(arrays['x']), arrays['t'], arrays['z'])) for dtype in _DTYPES]
  expected = nhwc(arrays['out'])
  norm = np.linalg.norm
  return {
      'f32 to the original': norm(outs[0] - expected) / norm(expected),
      'bf16 to the original': norm(outs[1] - expected) / norm(expected),
      'bf16 to f32': norm(outs[1] - outs[0]) / norm(outs[0]),
  }


def train(config: config_lib.Config, num_steps: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """Trains; returns the metrics of each step, and 2,000 samples of the EMA [n, 8, 8, 1] uint8."""
  mesh = sharding.make_mesh(jax.devices()[:1])
  state = jax.jit(lambda: train_state.create(config))()
  steps = {r1: train_step.make_step_fn(config, mesh, r1) for r1 in penalties.r1(config.optim).variants(0)}
  source = sources.load_source(config.data)
  log = []
  for i, batch in enumerate(pipeline.batches(source, config.data, config.seed, 0, num_steps, 0, 1)):
    state, metrics = steps[penalties.r1(config.optim).is_due(i)](state, batch['image'])
    log.append(metrics)
  log = jax.device_get(log)
  schedule = diffusion.make_schedule(**vars(config.diffusion))
  generator, _ = train_state.make_networks(config)
  sample = compilation.jit(lambda params: sampling.to_uint8(sampling.sample(
      jax.random.key(1), models.generator_fn(generator, params, schedule), schedule, (2000, *config.image_shape),
      config.generator.nz)))
  names = ('loss_d_real', 'loss_d_fake', 'loss_g', 'grad_norm_d', 'grad_norm_g')
  return {name: np.array([metrics[name] for metrics in log]) for name in names}, np.asarray(sample(state.ema_params))


def main(argv: list[str]) -> None:
  del argv
  for name in _CASES.value:
    print(json.dumps({'golden': name} | {k: float(f'{v:.3g}') for k, v in golden_errors(name).items()}), flush=True)
  config = config_lib.from_config_dict(_CONFIG.value)
  (train_images, labels), _ = digits_quality.real_digits()
  judge = digits_quality.fit_judge(train_images, labels)
  logs = {}
  for dtype in _DTYPES:
    started = time.perf_counter()
    parallel = dataclasses.replace(config.parallel, dtype=dtype)
    logs[dtype], images = train(dataclasses.replace(config, parallel=parallel), _STEPS.value)
    counts = np.bincount(judge.predict(digits_quality.to_float(images.reshape(-1, 64))), minlength=10)
    print(f'{dtype}: {_STEPS.value} steps in {time.perf_counter() - started:.0f} s; classes of n = {len(images)} '
          f'samples {" ".join(map(str, counts))}, KL to uniform {digits_quality.kl_to_uniform(counts):.3f}, '
          f'pixel mean {images.mean():.1f}, deviation {images.std():.1f}', flush=True)
  window = max(1, _STEPS.value // 4)
  print(f'means of {window} steps, f32 | bf16')
  for first in range(0, _STEPS.value, window):
    cells = (f'{name} {logs["float32"][name][first:first + window].mean():.4f} | '
             f'{logs["bfloat16"][name][first:first + window].mean():.4f}' for name in logs['float32'])
    print(f'  {first:4d}: ' + '   '.join(cells))


if __name__ == '__main__':
  app.run(main)
