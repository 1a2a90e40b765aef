"""The results of a saved state: its sample grid and its evaluation."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ddgan_jax import sampling, train_state
from ddgan_jax.config import Config
from ddgan_jax.data import conditions, pipeline
from ddgan_jax.data.sources import Source
from ddgan_jax.metrics import evaluator, image_sets, reports
from ddgan_jax.models import labels
from ddgan_jax.parallel import compilation, consensus, sharding
from ddgan_jax.reporting import grids
from ddgan_jax.runs.workdir import grid_path, missing_names
from ddgan_jax.train_state import TrainState
from ddgan_jax.training.programs import Program, wait_for
from ddgan_jax.training.session import Session


class Results:
  """Writes sample grids and evaluates states, as set by `train` and `eval` of the config.

  `session` is open; its data are the reference. Raises UserError if the evaluation cannot run.
  """

  def __init__(self, session: Session):
    self._session = session
    self._sample: concurrent.futures.Future[Program] | None = None
    if session.config.train.eval_every:
      config, mesh = session.config, session.mesh
      self._evaluate = evaluator.make_data_evaluator(config, session.source, mesh, session.note)
      given = image_sets.ConditionData(session.source, config.data) if config.data.condition_shape else None
      self._images_of = image_sets.generated_images(config, config.seed, mesh, given=given)

  def start(self) -> None:
    """Starts compiling the sampling program in the background."""
    session = self._session
    self._sample = compilation.run_in_background(
        lambda: Program(make_sample_fn(session.config, session.mesh, session.abstract_state.ema_params)))

  def write(self, state: TrainState, step: int, sample: bool, evaluate: bool) -> None:
    """Writes the results of the saved state at `step`; a signal skips those that are not finished.

    `sample` writes the sample grid, with the program of `start`; `evaluate` measures the state and stores the metrics
    in its checkpoint.
    """
    if sample and (program := wait_for(self._sample, self._session.stop)):
      self._write_grid(program, state, step)
    if evaluate and (measured := self._measure(state, step)):
      self._session.checkpoints.record_metrics(step, measured)

  def add_missing(self, state: TrainState, step: int) -> None:
    """Writes the missing results of the last step."""
    missing = self._session.last_step.missing()
    self._session.note(f'All {step:,} steps are done; still missing: {missing_names(missing)}.')
    self.write(state, step, *missing)

  def _write_grid(self, program: Program, state: TrainState, step: int) -> None:
    session, config = self._session, self._session.config
    columns, heads = _grid_labels(config)[1], None
    if config.data.condition_shape:
      examples = _examples(config, session.source)
      names = ['condition', 'label'] if config.generator.num_classes else ['condition']
      rows = [jax.make_array_from_process_local_data(
          sharding.replicated(session.mesh), examples[name].repeat(conditions.SAMPLES_PER_CONDITION, axis=0))
              for name in names]
      images = self._to_uint8(program(state.ema_params, *rows))
      truth = self._to_uint8(pipeline.in_units_of_data(examples['image'], config.data))
      images, heads = conditions.picture_rows(config.data, examples['condition'], images, truth=truth)
    else:
      images = self._to_uint8(program(state.ema_params))
    if session.is_main:
      title = f'{config.method}, T = {config.diffusion.num_timesteps}, step {step:,}'
      grid = grids.make_picture(images, title, columns, heads=heads)
      grids.save_png(grid_path(session.workdir, step), grid)
      session.writer.image(step, 'samples', grid)

  def _to_uint8(self, images: Any) -> np.ndarray:
    """Draws values as uint8; returns uint8 images and points unchanged."""
    value_range = self._session.config.data.value_range
    return grids.values_to_uint8(np.asarray(images), value_range) if value_range else np.asarray(images)

  def _measure(self, state: TrainState, step: int) -> dict[str, float] | None:
    """The metrics by name; None if a signal came first (ignored during evaluation with several processes)."""
    images = self._images_of(state.ema_params, f'step {step:,}')
    rows = functools.partial(_rows_unless_stopped, images.rows, self._session.stop)
    try:
      report = self._evaluate(images._replace(rows=rows))
    except InterruptedError:
      return None
    self._session.note(reports.table(report))
    measured = {f'eval/{name}': entry['value'] for name, entry in report['metrics'].items()}
    self._session.writer.scalars(step, measured)
    return measured


def make_sample_fn(config: Config, mesh: jax.sharding.Mesh, abstract_ema: Any) -> Callable[..., jax.Array]:
  """Compiles EMA parameters → [train.num_samples, H, W, C] uint8 images, with the same noise every time.

  Points and values stay float32. The grid of a run with labels has one row per class. A run with data.condition takes
  the conditions [n, h, w, c] and, if it has labels, the labels [n] as further arguments; n is a multiple of
  `_num_conditions`. If the noise of all images does not fit in memory, the images are those of `ddgan sample` for the
  run's seed, sampled in batches.
  """
  num, shape, latent_dim = config.train.num_samples, config.image_shape, config.generator.nz
  arguments = [abstract_ema]
  if config.data.condition_shape:
    num = _num_conditions(config) * conditions.SAMPLES_PER_CONDITION
    whole = sharding.replicated(mesh)
    arguments.append(jax.ShapeDtypeStruct((num, *config.data.condition_shape), np.float32, sharding=whole))
    if config.generator.num_classes:
      arguments.append(jax.ShapeDtypeStruct((num,), np.int32, sharding=whole))
    grid_label = None
  else:
    grid_label, _ = _grid_labels(config)

  def sample(ema_params, condition=None, label=grid_label):
    ema_params = sharding.gather(ema_params, mesh)
    generator_fn, schedule = train_state.make_sampler(config, ema_params, None, label, condition)
    max_batch_size = sampling.max_batch_size(schedule.num_timesteps, shape, latent_dim)
    if num <= max_batch_size:
      images = sampling.sample(jax.random.key(config.seed), generator_fn, schedule, (num, *shape), latent_dim)
    else:
      given = {name: rows for name, rows in (('label', label), ('condition', condition)) if rows is not None}

      def sample_batch(indices, *rows):
        generator_fn, _ = train_state.make_sampler(config, ema_params, **dict(zip(given, rows)))
        return sampling.sample_each(config.seed, indices, generator_fn, schedule, shape, latent_dim)

      images = sampling.map_in_batches(
          sample_batch, max_batch_size, np.arange(num, dtype=np.int32), *given.values())
    return train_state.in_units_of_data(images, config)

  return compilation.jit(sample, out_shardings=sharding.replicated(mesh)).lower(*arguments).compile()


def _num_conditions(config: Config) -> int:
  """The number of conditions, each in one row of the sample grid."""
  return max(1, config.train.num_samples // conditions.SAMPLES_PER_CONDITION)


def _examples(config: Config, source: Source) -> dict[str, np.ndarray]:
  """The first images of the run and their conditions, for the sample grid."""
  data_config = dataclasses.replace(config.data, batch_size=_num_conditions(config))
  return pipeline.global_batch(source, data_config, config.seed, 0)


def _grid_labels(config: Config) -> tuple[np.ndarray | None, int | None]:
  """The labels of the sample grid, and its number of columns."""
  if not config.generator.num_classes:
    return None, None
  return labels.grid_labels(config.generator, config.train.num_samples)


def _rows_unless_stopped(
    rows: Callable[[int, int], np.ndarray], stop: consensus.Stop, first: int, count: int) -> np.ndarray:
  """Calls `rows(first, count)`; raises InterruptedError after a signal."""
  if stop.signal:
    raise InterruptedError
  return rows(first, count)
