"""Compiled programs that the training runs of a process share."""

import functools
import types

import jax

from ddgan_jax import train_state
from ddgan_jax.parallel import sharding
from ddgan_jax.training import programs, results

compiled = {}  # cleared by `conftest.clear_compiled_programs`


def share(monkeypatch):
  """Lets runs that differ only in data, cadence or `train.num_steps` share compiled programs.

  For tests of what happens around the steps: the learning rates are those of the first run's `num_steps`.
  """
  lower, make_sample_fn = programs.StepPrograms.lower, results.make_sample_fn

  def shared_lower(self, name):
    compile_once = functools.partial(
        _once, (name, *_networks(self.config), self.mesh), lambda: lower(self, name).compile())
    return types.SimpleNamespace(compile=compile_once)

  def shared_state(self):
    shardings = sharding.tree_shardings(self.abstract_state)
    return _once(
        ('state', *_networks(self.config), self.config.seed, self.mesh),
        lambda: jax.jit(lambda: train_state.create(self.config, self.mesh), out_shardings=shardings))()

  def shared_sample_fn(config, mesh, abstract_ema):
    key = 'sample', *_networks(config), config.seed, config.train.num_samples, mesh
    return _once(key, lambda: make_sample_fn(config, mesh, abstract_ema))

  monkeypatch.setattr(programs.StepPrograms, 'lower', shared_lower)
  monkeypatch.setattr(programs.StepPrograms, 'create_state', shared_state)
  monkeypatch.setattr(results, 'make_sample_fn', shared_sample_fn)


def _once(key, make):
  if key not in compiled:
    compiled[key] = make()
  return compiled[key]


def _networks(config):
  return (config.method, config.generator, config.discriminator, config.diffusion, config.optim, config.parallel,
          config.image_shape, config.data.condition, config.data.batch_size, config.data.is_points,
          config.train.steps_per_call)
