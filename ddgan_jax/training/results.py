"""What a run makes of a saved state: its sample grid, and its evaluation."""

from __future__ import annotations

import concurrent.futures
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ddgan_jax import sampling, train_state
from ddgan_jax.config import Config
from ddgan_jax.metrics import evaluator, image_sets
from ddgan_jax.models import labels
from ddgan_jax.parallel import compilation, consensus, sharding
from ddgan_jax.reporting import grids
from ddgan_jax.runs.workdir import grid_path, missing_names
from ddgan_jax.train_state import TrainState
from ddgan_jax.training.programs import Program, wait_for
from ddgan_jax.training.session import Session


class Results:
  """Writes sample grids and measures states, as `train` and `eval` of the config say.

  `session` is open; its data are the reference. Raises UserError if the evaluation lacks something.
  """

  def __init__(self, session: Session):
    self._session = session
    self._sample: concurrent.futures.Future[Program] | None = None
    if session.config.train.eval_every:
      config, mesh = session.config, session.mesh
      self._evaluate = evaluator.make_data_evaluator(config, session.source, mesh, session.note)
      self._images_of = image_sets.generated_images(config, config.seed, mesh)

  def start(self) -> None:
    """Begins to compile the sampling program in the background."""
    session = self._session
    self._sample = compilation.run_in_background(
        lambda: Program(make_sample_fn(session.config, session.mesh, session.abstract_state.ema_params)))

  def write(self, state: TrainState, step: int, sample: bool, evaluate: bool) -> None:
    """Shows a state that is saved, after `step` steps; what a signal interrupts is left out.

    `sample` writes its sample grid, once `start` has compiled the program; `evaluate` measures it, and records the
    metrics in its checkpoint.
    """
    if sample and (program := wait_for(self._sample, self._session.stop)):
      self._write_grid(program, state, step)
    if evaluate and (measured := self._measure(state, step)):
      self._session.checkpoints.record_metrics(step, measured)

  def add_missing(self, state: TrainState, step: int) -> None:
    """Shows what is still missing of the last step."""
    missing = self._session.last_step.missing()
    self._session.note(f'All {step:,} steps are done; still missing: {missing_names(missing)}.')
    self.write(state, step, *missing)

  def _write_grid(self, program: Program, state: TrainState, step: int) -> None:
    session, config = self._session, self._session.config
    images = np.asarray(program(state.ema_params))
    if session.is_main:
      title = f'{config.method}, T = {config.diffusion.num_timesteps}, step {step:,}'
      grid = grids.make_picture(images, title, _grid_labels(config)[1])
      grids.save_png(grid_path(session.workdir, step), grid)
      session.writer.image(step, 'samples', grid)

  def _measure(self, state: TrainState, step: int) -> dict[str, float] | None:
    """The metrics by name; None if a signal came first, which several processes heed only after it."""
    images = self._images_of(state.ema_params, f'step {step:,}')
    rows = functools.partial(_rows_unless_stopped, images.rows, self._session.stop)
    try:
      report = self._evaluate(images._replace(rows=rows))
    except InterruptedError:
      return None
    self._session.note(evaluator.table(report))
    measured = {f'eval/{name}': entry['value'] for name, entry in report['metrics'].items()}
    self._session.writer.scalars(step, measured)
    return measured


def make_sample_fn(config: Config, mesh: jax.sharding.Mesh, abstract_ema: Any) -> Callable[[Any], jax.Array]:
  """Compiles EMA parameters → [train.num_samples, H, W, C] uint8, the same noise every time, so that grids compare.

  Points stay float32. A conditional run shows one row per class. Where drawing the noise of all steps for all images
  would take too much memory, the images are those of `ddgan_jax.sample` for the run's seed, sampled a few at a time.
  """
  label, _ = _grid_labels(config)
  shape, latent_dim = config.image_shape, config.generator.nz

  def sample(ema_params):
    ema_params = sharding.gather(ema_params, mesh)
    generator_fn, schedule = train_state.make_sampler(config, ema_params, label=label)
    most = sampling.max_batch_size(schedule.num_timesteps, shape, latent_dim)
    if config.train.num_samples <= most:
      images = sampling.sample(
          jax.random.key(config.seed), generator_fn, schedule, (config.train.num_samples, *shape), latent_dim)
    else:

      def part(indices, label=None):
        generator_fn, _ = train_state.make_sampler(config, ema_params, label=label)
        return sampling.sample_each(config.seed, indices, generator_fn, schedule, shape, latent_dim)

      rows = [np.arange(config.train.num_samples, dtype=np.int32), *([] if label is None else [label])]
      images = sampling.map_in_batches(part, most, *rows)
    return images if config.data.is_points else sampling.to_uint8(images)

  return compilation.jit(sample, out_shardings=sharding.replicated(mesh)).lower(abstract_ema).compile()


def _grid_labels(config: Config) -> tuple[np.ndarray | None, int | None]:
  """The labels of a grid, and its columns."""
  if not config.generator.num_classes:
    return None, None
  return labels.grid_labels(config.generator, config.train.num_samples)


def _rows_unless_stopped(
    rows: Callable[[int, int], np.ndarray], stop: consensus.Stop, first: int, count: int) -> np.ndarray:
  """`rows(first, count)`; raises InterruptedError once a signal has come."""
  if stop.signal:
    raise InterruptedError
  return rows(first, count)
