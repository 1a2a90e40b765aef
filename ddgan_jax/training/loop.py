"""The loop: data → joint step → progress, TensorBoard, sample grids, checkpoints. No arithmetic.

The same call starts a run, resumes it, or says that it has finished.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath

from ddgan_jax import config as config_lib
from ddgan_jax import sampling, train_state, train_step
from ddgan_jax.config import Config, UserError
from ddgan_jax.data import pipeline, sources
from ddgan_jax.metrics import evaluator, image_sets
from ddgan_jax.models import labels
from ddgan_jax.parallel import compilation, consensus, sharding
from ddgan_jax.reporting import grids, tensorboard
from ddgan_jax.reporting.progress import Progress
from ddgan_jax.runs import workdir as workdir_lib
from ddgan_jax.runs.checkpoints import Checkpoints, NotFiniteError
from ddgan_jax.runs.workdir import grid_path
from ddgan_jax.training.rollback import ADVICE, Diverged, SkippedBatches

# Steps that the host may be ahead of the devices: enough to hide the host, few enough to bound memory.
_IN_FLIGHT = 2


def train_and_evaluate(config: Config, workdir: str, may_change_data: bool = True) -> bool:
  """Trains until `train.num_steps`, a signal, or an error; resumes from the newest good checkpoint of `workdir`.

  The workdir receives config.json, parameters.txt, data.png and data.json (what the run sees), checkpoints/,
  TensorBoard events and samples/step_XXXXXXXX.png; with several processes from process 0.

  Args:
    config: the run, checked.
    workdir: its folder, made if needed; the same for all processes.
    may_change_data: whether a run of `workdir` may continue on other data than it began with.

  Returns:
    Whether the run has finished; False after a signal.

  Raises:
    UserError: config, data, workdir or checkpoint cannot be used, or the losses are no longer finite; one sentence.
  """
  started = time.perf_counter()
  is_main = jax.process_index() == 0
  consensus.check_same('the config', _digest(config))
  config_lib.check_devices(config, jax.device_count())
  checkpoints = Checkpoints(workdir, config.train.keep_checkpoints)
  mesh = sharding.make_mesh(fsdp=config.parallel.fsdp)
  abstract_state = train_state.abstract(config, sharding.of_state(mesh))

  workdir_lib.check_workdir(workdir, config, checkpoints)
  say = print if is_main else lambda text: None
  last_step = workdir_lib.LastStep(workdir, config, checkpoints)
  must_check_data = consensus.from_main(not may_change_data and checkpoints.latest_step() is not None)
  source = None
  if must_check_data and consensus.from_main(workdir_lib.has_other_path(workdir, config)):
    source = _load_source(config, say)  # even a finished run may be one on other data
    consensus.on_main(lambda: workdir_lib.check_data(workdir, config, source))
  finished = _finished_step(config, checkpoints, abstract_state.ema_params, say)
  if finished is not None and not any(last_step.missing()):
    say(f'{workdir} has finished its {finished:,} steps{_last_grid(workdir, finished)}. '
        'To train longer set --config.train.num_steps; to start a new run choose another --workdir.')
    return True

  with contextlib.ExitStack() as exits:

    def take_workdir():
      workdir_lib.check_space(workdir, config, checkpoints, abstract_state)
      exits.enter_context(workdir_lib.locked(workdir))

    consensus.on_main(take_workdir)
    workdir_lib.check_shared(workdir)
    progress = Progress(config.train.num_steps, config.data.batch_size, quiet=not is_main)
    source = source or _load_source(config, progress.note)
    if must_check_data:
      consensus.on_main(lambda: workdir_lib.check_data(workdir, config, source))
    progress.note(
        f'{config.data.name}: {len(source):,} {_things(config)}, on {jax.device_count()} {jax.devices()[0].platform} '
        f'device(s). G has {train_state.count_parameters(abstract_state.g_params):,} parameters'
        + (f', D {d_size:,}.' if (d_size := train_state.count_parameters(abstract_state.d_params)) else '; no D.'))
    if config.train.eval_every:
      evaluate = evaluator.against_data(config, source, mesh, progress.note)
      images_of = image_sets.of_generator(config, config.seed, mesh)
    exits.callback(checkpoints.close)
    state = checkpoints.restore_newest(abstract_state, progress.note)
    first_step = 0 if state is None else int(state.step)
    several = config.train.steps_per_call
    if first_step % several:
      raise UserError(f'train.steps_per_call: found {several}, but the run goes on from step {first_step:,}, which '
                      'must be a multiple of it; 1 always is right')
    skipped = SkippedBatches(workdir, progress.note)
    if is_main:
      workdir_lib.write_description(workdir, config, abstract_state)
      workdir_lib.describe_data(workdir, config, source, state is not None, progress.note)

    stop = exits.enter_context(consensus.Stop())
    trained = first_step >= config.train.num_steps  # and only what comes after the last step is missing
    if not trained:
      progress.note('Compiling the training step: seconds when cached, otherwise a minute or more.')
    inputs = train_step.inputs(config, mesh, stacked=several > 1)
    # Traced one after the other, because tracing holds the interpreter, and compiled side by side; what the first step
    # needs comes first, TensorFlow's import only after it.
    steps = {}
    optim = config.optim if abstract_state.d_params else dataclasses.replace(config.optim, r1_gamma=0.0)
    # A program of several steps knows by itself which have R1.
    variant_of = lambda step: train_step.has_r1(optim, step) if several == 1 else None
    for variant in () if trained else train_step.variants(optim, first_step) if several == 1 else (None,):
      step_fn = (train_step.make_steps_fn(config, mesh) if variant is None
                 else train_step.make_step_fn(config, mesh, variant))
      lowered = step_fn.lower(abstract_state, *inputs.values())
      steps[variant] = compilation.in_background(compilation.timed, lowered.compile)

    def create() -> train_state.TrainState:
      return jax.jit(lambda: train_state.create(config, mesh), out_shardings=sharding.of_tree(abstract_state))()

    if state is None:
      state = create()

    def data_from(step: int) -> Iterator[dict[str, jax.Array]]:
      """Batches on the devices, for steps from `step` on; begins to read at once."""

      def on_host():
        for first, last in skipped.ranges(step, config.train.num_steps):
          yield from pipeline.batches(
              source, config.data, config.seed, first, last, jax.process_index(), jax.process_count())

      rows = sharding.by_rows(mesh, stacked=several > 1)
      return pipeline.device_batches(on_host() if several == 1 else pipeline.stacked(on_host(), several), rows)

    first_compiled = None if trained else _wait_for(steps[variant_of(first_step)], stop)
    if first_compiled is None and not trained:
      progress.note(f'{stop.signal} before the first step: nothing to save.')
      return False
    writer = tensorboard.EventWriter(workdir, is_main)
    exits.callback(writer.close)
    writer.hparams(config_lib.flatten(config))
    sample_future = compilation.in_background(lambda: make_sample_fn(config, mesh, abstract_state.ema_params))
    warm = max(10, config.optim.lazy_reg + 1)  # by then both steps are compiled and have run
    whole_calls = lambda number: -(-number // several) * several
    profile = tensorboard.Profile(
        workdir, first_step + whole_calls(warm), whole_calls(config.train.profile_steps), is_main)
    exits.callback(profile.close)

    def first_done(step: int) -> None:
      what = 'First step' if first_step == 0 else f'Resumed at step {first_step:,}; next step'
      progress.note(f'{what} done {time.perf_counter() - started:.1f} s after the start.')
      text, figures = compilation.describe(*first_compiled)
      progress.note(text)
      writer.scalars(step, figures)

    met = []  # compiled programs that all processes have

    def save_samples(sample_fn: Any, state: train_state.TrainState, step: int) -> None:
      if sample_fn not in met:
        consensus.meet('sample program')
        met.append(sample_fn)
      images = np.asarray(sample_fn(state.ema_params))
      if is_main:
        title = f'{config.method}, T = {config.diffusion.num_timesteps}, step {step:,}'
        grid = grids.make_picture(images, title, _grid_labels(config)[1])
        grids.save_png(grid_path(workdir, step), grid)
        writer.image(step, 'samples', grid)

    def measure(state: train_state.TrainState, step: int) -> dict[str, float] | None:
      """What `eval` asks for; None if a signal came first, which several processes heed only after it."""
      images = images_of(state.ema_params, f'step {step:,}')

      def rows(first: int, count: int) -> np.ndarray:
        if stop.signal:
          raise InterruptedError
        return images.rows(first, count)

      try:
        report = evaluate(images._replace(rows=rows))
      except InterruptedError:
        return None
      progress.note(evaluator.table(report))
      measured = {f'eval/{name}': entry['value'] for name, entry in report['metrics'].items()}
      writer.scalars(step, measured)
      return measured

    def show(state: train_state.TrainState, step: int, sample_now: bool, eval_now: bool) -> None:
      """Writes the sample grid of a saved state, measures it, and records the metrics in its checkpoint."""
      if sample_now and (sample_fn := _wait_for(sample_future, stop)):
        save_samples(sample_fn, state, step)
      if eval_now and (measured := measure(state, step)):
        checkpoints.record_metrics(step, measured)

    def train_from(state: train_state.TrainState, step: int) -> int:
      """Trains until the end or a signal; returns the last step, which is saved. Raises Diverged."""
      pending: collections.deque = collections.deque()
      window: list[tuple[int, dict[str, jax.Array]]] = []

      def settle(most: int) -> None:
        """Waits until at most `most` steps are in flight; reports those whose turn it is."""
        while len(pending) > most:
          done, metrics = pending.popleft()
          jax.block_until_ready(metrics)
          window.extend(train_step.by_step(jax.device_get(metrics), done, optim) if several > 1 else [(done, metrics)])
          if not progress.started:
            first_done(done)
            progress.start(done)
          if done % config.train.log_every == 0 or done == config.train.num_steps:
            means = _finite_means(window)
            shown = progress.report(done, {name: means[name] for name in ('loss_d', 'loss_g') if name in means})
            writer.scalars(done, means | shown)
            window.clear()
        if most == 0 and window:
          _finite_means(window)

      def save() -> None:
        try:
          checkpoints.save(state)
        except NotFiniteError as error:
          raise Diverged(error.what, step) from error

      @contextlib.contextmanager
      def saved_on_failure():
        """Saves the completed steps if anything fails after them."""
        try:
          yield
        except Diverged:
          raise
        except Exception:
          if jax.process_count() == 1:  # the others would not save with this one
            with contextlib.suppress(Exception):
              settle(most=0)
              checkpoints.save(state)
              checkpoints.wait()
          raise

      with contextlib.closing(data_from(step)) as batches, saved_on_failure():
        while step < config.train.num_steps:
          with progress.waiting():
            batch = next(batches)
          found = _wait_for(steps[variant_of(step)], stop)
          if found is None:
            settle(most=0)
            save()
            break
          if found not in met:
            consensus.meet(f'step program {len(met)}')
            met.append(found)
          if profile.is_due(step):
            settle(most=0)
            profile.switch(progress.note)
          step_fn, _ = found
          state, metrics = step_fn(state, *(batch[name] for name in inputs))
          step += several
          pending.append((step, metrics))
          # The first is waited for, to say when it was done.
          settle(most=_IN_FLIGHT if step > first_step + several else 0)
          last = step == config.train.num_steps
          sample_now = step % config.train.sample_every == 0 or last
          save_now = step % config.train.checkpoint_every == 0 or last
          eval_now = bool(config.train.eval_every) and (step % config.train.eval_every == 0 or last)
          stopping = stop.after_step()  # asked once: a signal that comes later is for the next step
          if stopping or sample_now or save_now or eval_now:
            settle(most=0)  # also refuses to sample or save a state that is no longer finite
            # Saved first: what goes wrong in sampling or measuring must not take the steps with it.
            if last and is_main:
              last_step.begin()
            if save_now or stopping or eval_now:
              save()
            if sample_now or eval_now:
              checkpoints.wait()
              show(state, step, sample_now, eval_now and not stopping)
            stopping = stopping or eval_now and stop.signal is not None
            progress.start(step)
          if stopping:
            break
      checkpoints.wait()
      return step

    if trained:
      missing = last_step.missing()
      progress.note(f'All {first_step:,} steps are done; still missing: {_missing_names(missing)}.')
      show(state, first_step, *missing)
    step = first_step
    while True:
      try:
        step = train_from(state, step)
        break
      except Diverged as error:
        if config.train.on_nonfinite == 'stop':
          checkpoints.wait()
          last = checkpoints.latest_step()
          kept = 'there is no checkpoint yet' if last is None else f'the last good checkpoint is step {last:,}'
          raise UserError(f'{error}; {kept}; {ADVICE}, or train.on_nonfinite=rollback') from None
        state = checkpoints.restore_newest(abstract_state, progress.note)
        step = 0 if state is None else int(state.step)
        progress.note(skipped.roll_back(step, error, write=is_main))
        if state is None:
          state = create()
        if progress.started:
          progress.start(step)

    writer.flush(progress.note)
    if step < config.train.num_steps:
      progress.note(f'{stop.signal}: saved step {step:,} in {workdir}; the same command goes on from there.')
    elif any(missing := last_step.missing()):
      progress.note(f'{stop.signal}: saved the last step, {step:,}, in {workdir}; the same command adds what is '
                    f'missing: {_missing_names(missing)}.')
    else:
      if is_main:
        last_step.end()
      progress.note(f'Finished {step:,} steps in {workdir}{_last_grid(workdir, step)}.')
      return True
    return False


def make_sample_fn(config: Config, mesh: Any, abstract_ema: Any):
  """Compiles EMA parameters → [train.num_samples, H, W, C] uint8, the same noise every time, so that grids compare.

  Points stay float32. A conditional run shows one row per class. Where drawing the noise of all steps for all images
  would take too much memory, the images are those of `ddgan_jax.sample` for the run's seed, sampled a few at a time.
  """
  label, _ = _grid_labels(config)
  shape, latent_dim = config.image_shape, config.generator.nz

  def sample(ema_params):
    ema_params = sharding.gather(ema_params, mesh)
    generator_fn, schedule = train_state.make_sampler(config, ema_params, label=label)
    most = sampling.most_at_once(schedule.num_timesteps, shape, latent_dim)
    if config.train.num_samples <= most:
      images = sampling.sample(
          jax.random.key(config.seed), generator_fn, schedule, (config.train.num_samples, *shape), latent_dim)
    else:

      def part(indices, label=None):
        generator_fn, _ = train_state.make_sampler(config, ema_params, label=label)
        return sampling.sample_each(config.seed, indices, generator_fn, schedule, shape, latent_dim)

      rows = [np.arange(config.train.num_samples, dtype=np.int32), *([] if label is None else [label])]
      images = sampling.in_parts(part, most, *rows)
    return images if config.data.is_points else sampling.to_uint8(images)

  return compilation.jit(sample, out_shardings=sharding.replicated(mesh)).lower(abstract_ema).compile()


def _grid_labels(config: Config) -> tuple[np.ndarray | None, int | None]:
  """The labels of a grid, and its columns."""
  return labels.for_grid(config.generator, config.train.num_samples) if config.generator.num_classes else (None, None)


def _digest(config: Config) -> str:
  """What all processes must agree on: everything but where this machine keeps its data."""
  own = ('data.path', 'data.data_dir', 'data.cache_dir', 'data.num_workers')
  shared = {name: value for name, value in config_lib.flatten(config).items() if name not in own}
  return 'digest ' + hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()[:16]


def _things(config: Config) -> str:
  return 'points' if config.data.is_points else 'images'


def _load_source(config: Config, say: Callable[[str], None]) -> sources.Source:
  """The data, the same on all processes; what one cannot do ends all."""
  source, error = None, ''
  try:
    source = sources.load_source(config.data, say)
    labels.check_data(config, source)
  except UserError as mistake:
    error = str(mistake)
  consensus.meet('data')
  error = consensus.shared_text(error)
  if error:
    raise UserError(error)
  consensus.check_same('the data', f'{len(source):,} {_things(config)} with checksum {source.checksum}')
  return source


def _finished_step(
    config: Config, checkpoints: Checkpoints, abstract_ema: Any, say: Callable[[str], None]) -> int | None:
  """The step of the last checkpoint, if the run ends there and it is good."""
  latest = consensus.from_main(-1 if (found := checkpoints.latest_step()) is None else found)
  if latest < config.train.num_steps:
    return None
  good = checkpoints.restore_newest_ema(abstract_ema, say)
  return None if good is None or good[1] < config.train.num_steps else good[1]


def _missing_names(missing: tuple[bool, bool]) -> str:
  return ' and '.join(name for name, lacks in zip(('its sample grid', 'its evaluation'), missing) if lacks)


def _last_grid(workdir: str, step: int) -> str:
  path = grid_path(workdir, step)
  return f'; its last sample grid is {path}' if epath.Path(path).exists() else ''


def _wait_for(future: Any, stop: consensus.Stop) -> Any:
  """The future's result, or None once a signal has come."""
  while not stop.signal:
    if future.done():
      return future.result()
    concurrent.futures.wait([future], timeout=0.2)
  return None


def _finite_means(window: list[tuple[int, dict[str, jax.Array]]]) -> dict[str, float]:
  """The mean of each metric over the steps that have it. Raises Diverged with the first step that is not finite."""
  fetched = jax.device_get(window)
  for step, metrics in fetched:
    broken = sorted(name for name, value in metrics.items() if not math.isfinite(value))
    if broken:
      raise Diverged(', '.join(broken), int(step))
  names = sorted({name for _, metrics in fetched for name in metrics})
  return {name: float(np.mean([metrics[name] for _, metrics in fetched if name in metrics])) for name in names}
