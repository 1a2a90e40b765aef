"""The loop: data → joint step → progress, TensorBoard, sample grids, checkpoints. No arithmetic.

The same call starts a run, resumes it, or says that it has finished.
"""

from __future__ import annotations

import collections
import contextlib
import math
import os
import shutil
import signal
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from clu import parameter_overview
from etils import epath

from ddgan_jax import compilation, diffusion, models, sampling, sharding, train_state, train_step, writers
from ddgan_jax import config as config_lib
from ddgan_jax.checkpoints import Checkpoints, is_disk_full
from ddgan_jax.config import Config, UserError
from ddgan_jax.data import pipeline, sources
from ddgan_jax.train_state import TrainState

# Fields that may differ between a workdir and the config that continues it: they do not change a step's arithmetic,
# except num_steps, which stretches the cosine and is announced.
_MAY_CHANGE = ('data.data_dir', 'data.num_workers', 'train.')
# Steps that the host may be ahead of the devices: enough to hide the host, few enough to bound memory.
_IN_FLIGHT = 2


class WorkdirError(UserError):
  """The workdir cannot be used for this run; nothing in it has been changed."""


class Stop:
  """Turns the first Ctrl-C or SIGTERM into a request to save and leave; a second Ctrl-C interrupts at once."""

  def __init__(self):
    self.signal: str | None = None

  def __enter__(self):
    self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
    return self

  def __exit__(self, *unused):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _handle(self, number, frame):
    del frame
    if self.signal and number == signal.SIGINT:
      raise KeyboardInterrupt
    self.signal = signal.Signals(number).name


def train_and_evaluate(config: Config, workdir: str) -> None:
  """Trains until `train.num_steps`, a signal, or an error; resumes from the newest checkpoint of `workdir`.

  The workdir receives config.json, parameters.txt, checkpoints/, TensorBoard events and samples/step_XXXXXXXX.png.

  Args:
    config: the run, checked.
    workdir: its folder, made if needed.

  Raises:
    UserError: config, data, workdir or checkpoint cannot be used, or the losses are no longer finite; one sentence.
  """
  started = time.perf_counter()
  is_main = jax.process_index() == 0
  config_lib.check_devices(config, jax.device_count())
  checkpoints = Checkpoints(workdir, config.train.keep_checkpoints)
  mesh = sharding.make_mesh()
  whole = sharding.replicated(mesh)
  abstract_state = train_state.abstract(config, whole)

  check_workdir(workdir, config, checkpoints)
  latest = checkpoints.latest_step()
  if latest is not None and latest >= config.train.num_steps:
    path = grid_path(workdir, latest)
    grid = f'; its last sample grid is {path}' if epath.Path(path).exists() else ''
    print(f'{workdir} has finished its {latest:,} steps{grid}. '
          'To train longer set --config.train.num_steps, to start anew choose another --workdir.', flush=True)
    return
  check_space(workdir, config, checkpoints, abstract_state)

  progress = writers.Progress(config.train.num_steps, config.data.batch_size)
  source = sources.load_source(config.data)
  progress.note(
      f'{config.data.name}: {len(source):,} images, on {jax.device_count()} {jax.devices()[0].platform} device(s). '
      f'G has {train_state.count_parameters(abstract_state.g_params):,} parameters, '
      f'D {train_state.count_parameters(abstract_state.d_params):,}.')
  state = None if latest is None else checkpoints.restore(abstract_state, latest)
  if is_main:
    write_description(workdir, config, abstract_state)

  with Stop() as stop, contextlib.ExitStack() as exits:
    progress.note('Compiling the training step: seconds when cached, otherwise a minute or more.')
    image_shape = (config.data.batch_size, *config.image_shape)
    abstract_batch = jax.ShapeDtypeStruct(image_shape, jnp.float32, sharding=sharding.by_rows(mesh))
    first_step = latest or 0
    # Traced one after the other, because tracing holds the interpreter, and compiled side by side; what the first step
    # needs comes first, TensorFlow's import only after it.
    steps = {}
    for with_r1 in train_step.variants(config.optim, first_step):
      lowered = train_step.make_step_fn(config, mesh, with_r1).lower(abstract_state, abstract_batch)
      steps[with_r1] = compilation.in_background(lowered.compile)
    if state is None:
      state = jax.jit(lambda: train_state.create(config), out_shardings=whole)()
    exits.callback(checkpoints.close)

    batches = pipeline.device_batches(
        pipeline.batches(source, config.data, config.seed, first_step, config.train.num_steps,
                         jax.process_index(), jax.process_count()),
        sharding.by_rows(mesh))
    exits.callback(batches.close)

    if _wait_for(steps[train_step.has_r1(config.optim, first_step)], stop) is None:
      progress.note(f'{stop.signal} before the first step: nothing to save.')
      return
    writer = writers.EventWriter(workdir, is_main)
    exits.callback(writer.close)
    writer.hparams(config_lib.flatten(config))
    sample_future = compilation.in_background(lambda: make_sample_fn(config, mesh, abstract_state.ema_params))

    pending: collections.deque = collections.deque()
    window: list[dict[str, jax.Array]] = []

    def settle(most: int) -> None:
      """Waits until at most `most` steps are in flight; reports those whose turn it is."""
      while len(pending) > most:
        done, metrics = pending.popleft()
        jax.block_until_ready(metrics)
        window.append(metrics)
        if done == first_step + 1:
          what = 'First step' if first_step == 0 else f'Resumed at step {first_step:,}; next step'
          progress.note(f'{what} done {time.perf_counter() - started:.1f} s after the start.')
          progress.start(done)
        if done % config.train.log_every == 0 or done == config.train.num_steps:
          _report(done, window, progress, writer, checkpoints)
          window.clear()
      if most == 0 and window:
        _finite_means(step, window, checkpoints)

    def save_samples(sample_fn: Any) -> None:
      images = np.asarray(sample_fn(state.ema_params))
      if is_main:
        grid = writers.make_grid(images)
        writers.save_png(grid_path(workdir, step), grid)
        writer.image(step, 'samples', grid)

    step = first_step
    for batch in batches:
      step_fn = _wait_for(steps[train_step.has_r1(config.optim, step)], stop)
      if step_fn is None:
        settle(most=0)
        checkpoints.save(state)
        break
      state, metrics = step_fn(state, batch['image'])
      step += 1
      pending.append((step, metrics))
      settle(most=_IN_FLIGHT if step > first_step + 1 else 0)  # the first is waited for, to say when it was done
      last = step == config.train.num_steps
      sample_now = step % config.train.sample_every == 0 or last
      save_now = step % config.train.checkpoint_every == 0 or last
      if sample_now or save_now or stop.signal:
        settle(most=0)  # also refuses to sample or save a state that is no longer finite
        if sample_now and (sample_fn := _wait_for(sample_future, stop)):
          save_samples(sample_fn)
        if save_now or stop.signal:
          checkpoints.save(state)
        progress.start(step)
      if stop.signal:
        break

    checkpoints.wait()
    writer.flush()
    if step < config.train.num_steps:
      progress.note(f'{stop.signal}: saved step {step:,} in {workdir}; the same command goes on from there.')
    else:
      progress.note(f'Finished {step:,} steps in {workdir}. Samples of the EMA generator: {grid_path(workdir, step)}')


def make_sample_fn(config: Config, mesh: Any, abstract_ema: Any):
  """Compiles EMA parameters → [train.num_samples, H, W, C] uint8, the same noise every time, so that grids compare."""
  generator, _ = train_state.make_networks(config)
  schedule = diffusion.make_schedule(**vars(config.diffusion))

  def sample(ema_params):
    shape = (config.train.num_samples, *config.image_shape)
    images = sampling.sample(
        jax.random.key(config.seed), models.generator_fn(generator, ema_params, schedule), schedule, shape,
        config.generator.nz)
    return sampling.to_uint8(images)

  return jax.jit(sample, out_shardings=sharding.replicated(mesh)).lower(abstract_ema).compile()


def grid_path(workdir: str, step: int) -> str:
  """Where the sample grid of a step is kept."""
  return os.path.join(workdir, 'samples', f'step_{step:08d}.png')


def check_workdir(workdir: str, config: Config, checkpoints: Checkpoints) -> None:
  """Refuses a workdir that is foreign or belongs to another config; changes nothing.

  Raises:
    UserError: one sentence, with the fields that differ.
  """
  stored = epath.Path(workdir) / 'config.json'
  if not stored.exists():
    if checkpoints.folder.exists() and any(checkpoints.folder.iterdir()):
      raise WorkdirError(
          f'{checkpoints.folder}: holds files but {workdir} has no config.json, so they are not of a run of ddgan_jax; '
          'nothing was changed; choose another --workdir')
    return
  if checkpoints.latest_step() is None:
    return
  before = config_lib.flatten(config_lib.from_json(stored.read_text(), str(stored)))
  now = config_lib.flatten(config)
  changed = [
      f'{field} was {before[field]}, is {now[field]}' for field in now
      if before[field] != now[field] and not field.startswith(_MAY_CHANGE)]
  if changed:
    raise WorkdirError(f'{workdir}: belongs to a run with another config ({"; ".join(changed)}); '
                       'choose another --workdir, or set the fields back')
  if before['train.num_steps'] != now['train.num_steps']:
    print(f'train.num_steps was {before["train.num_steps"]:,}, is {now["train.num_steps"]:,}: the learning rates '
          'follow the cosine of the new length from here on.', flush=True)


def check_space(workdir: str, config: Config, checkpoints: Checkpoints, abstract_state: TrainState) -> None:
  """Makes the workdir and refuses one that is read-only or has no room for the checkpoints.

  Raises:
    WorkdirError: one sentence.
  """
  folder = epath.Path(workdir)
  probe = folder / f'.probe.{os.getpid()}'
  try:
    folder.mkdir(parents=True, exist_ok=True)
    try:
      probe.write_text('x' * 4096)
    finally:
      probe.unlink(missing_ok=True)
  except OSError as error:
    if is_disk_full(error):
      raise WorkdirError(f'{workdir}: no space left on the device; free some, or choose another --workdir') from error
    raise WorkdirError(
        f'{workdir}: cannot be written to ({error.strerror or error}); choose another --workdir') from error
  if '://' in str(workdir):
    return  # a bucket has no free space to speak of
  free = shutil.disk_usage(workdir).free
  size = sum(math.prod(leaf.shape) * 4 for leaf in jax.tree.leaves(abstract_state))
  wanted = size * max(1, config.train.keep_checkpoints + 1 - len(checkpoints.steps()))
  if free < wanted:
    raise WorkdirError(
        f'{workdir}: has {free / 2**20:,.0f} MiB of free space, but checkpoints of {size / 2**20:,.1f} MiB each need '
        f'{wanted / 2**20:,.0f} MiB; free some, or choose another --workdir')


def write_description(workdir: str, config: Config, state: TrainState) -> None:
  """Writes config.json, and parameters.txt with name, shape and size of every parameter of G and of D."""
  overview = '\n\n'.join(
      f'{name}\n{parameter_overview.get_parameter_overview(params, include_stats=False)}'
      for name, params in (('Generator', state.g_params), ('Discriminator', state.d_params)))
  for name, text in (('config.json', config_lib.to_json(config)), ('parameters.txt', overview + '\n')):
    path = epath.Path(workdir) / name
    if not path.exists() or path.read_text() != text:
      partial = path.parent / f'.{name}.partial'  # a killed write must not leave half a config.json
      partial.write_text(text)
      partial.replace(path)


def _wait_for(future: Any, stop: Stop) -> Any:
  """The future's result, or None once a signal has come."""
  while not stop.signal:
    with contextlib.suppress(TimeoutError):
      return future.result(timeout=0.2)
  return None


def _finite_means(step: int, window: list, checkpoints: Checkpoints) -> dict[str, float]:
  """The mean of each metric over the window. Raises UserError if one is not finite."""
  fetched = jax.device_get(window)
  names = sorted({name for metrics in fetched for name in metrics})
  means = {name: float(np.mean([metrics[name] for metrics in fetched if name in metrics])) for name in names}
  broken = [name for name in names if not math.isfinite(means[name])]
  if broken:
    last = checkpoints.latest_step()
    kept = 'there is no checkpoint yet' if last is None else f'the last good checkpoint is step {last:,}'
    raise UserError(f'{", ".join(broken)} not finite by step {step:,}; {kept}; '
                    'a lower optim.lr_d and lr_g or a larger optim.r1_gamma may help')
  return means


def _report(step: int, window: list, progress: writers.Progress, writer: writers.EventWriter,
            checkpoints: Checkpoints) -> None:
  """Means over the window to TensorBoard and the progress line."""
  means = _finite_means(step, window, checkpoints)
  speed = progress.report(step, {'loss_d': means['loss_d'], 'loss_g': means['loss_g']})
  if speed is not None:
    means['images_per_second'] = speed
  writer.scalars(step, means)
