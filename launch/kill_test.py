"""Kills a training run repeatedly and compares its final state with that of an uninterrupted run.

    python launch/kill_test.py --kills 100 --folder /tmp/kill_test

The real command trains a tiny digits network twice: once uninterrupted, and once killed by SIGKILL at random times
(during start-up, steps and saves) and restarted. The second run must always resume from its newest complete checkpoint,
print the same line as the first for every step, and end with bit-identical arrays; otherwise the exit status is 1. 97
kills took 64 minutes on one core of a busy machine (2026-11-25).
"""

from __future__ import annotations

import argparse
import collections
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
NETWORK = {
    'data.batch_size': 32, 'generator.num_channels_dae': 8, 'generator.ch_mult': '1,',
    'generator.attn_resolutions': '8,', 'generator.nz': 4, 'generator.z_emb_dim': 8, 'generator.n_mlp': 1,
    'discriminator.ngf': 2, 'discriminator.t_emb_dim': 8, 'optim.lazy_reg': 4, 'train.log_every': 1,
    'train.sample_every': 1_000_000, 'train.num_samples': 4}
STEP = re.compile(r'^(step ([\d,]+)/\S+   loss_d \S+   loss_g \S+)')


class Run:
  """One start of the command; a thread reads its output."""

  def __init__(self, workdir: pathlib.Path, arguments: argparse.Namespace):
    values = {**NETWORK, 'train.num_steps': arguments.steps, 'train.checkpoint_every': arguments.checkpoint_every}
    if arguments.data_dir:
      values['data.data_dir'] = arguments.data_dir
    self.started, self.started_at = time.monotonic(), time.time()
    self.first_step_at: float | None = None
    self.last_step_at: float | None = None
    self.resumed: int | None = None
    self.lines: dict[int, str] = {}
    self.text: list[str] = []
    self.process = subprocess.Popen(
        [sys.executable, '-m', 'ddgan_jax.main', '--config', 'configs/digits.py', '--workdir', str(workdir),
         *(f'--config.{name}={value}' for name, value in values.items()), *arguments.flags],
        cwd=ROOT, env={**os.environ, 'PYTHONUNBUFFERED': '1'}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, pipesize=4096)  # small, so that the process is never far ahead of the reader
    self._reader = threading.Thread(target=self._read, daemon=True)
    self._reader.start()

  def _read(self) -> None:
    for line in self.process.stdout:
      self.text.append(line)
      if found := re.match(r'Resumed at step ([\d,]+);', line):
        self.resumed = int(found[1].replace(',', ''))
      if found := STEP.match(line):
        self.last_step_at = time.monotonic()
        self.first_step_at = self.first_step_at or self.last_step_at
        self.lines[int(found[2].replace(',', ''))] = found[1]

  def wait(self) -> int:
    status = self.process.wait()
    self._reader.join()
    return status


def final_arrays(workdir: pathlib.Path, step: int) -> dict:
  """All arrays of a checkpoint by name, as numpy."""
  sys.path.insert(0, str(ROOT))
  import jax
  import numpy as np

  from ddgan_jax import config as config_lib
  from ddgan_jax import train_state
  from ddgan_jax.runs.checkpoints import Checkpoints

  config = config_lib.from_json((workdir / 'config.json').read_text())
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  state = Checkpoints(str(workdir)).restore(train_state.abstract_state(config, device), step)
  state = state.replace(rng=jax.random.key_data(state.rng))
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def complete_steps(workdir: pathlib.Path) -> list[int]:
  return sorted(int(path.name) for path in workdir.glob('checkpoints/*') if path.name.isdigit())


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--folder', type=pathlib.Path, required=True, help='folder of both runs; must not exist')
  parser.add_argument('--kills', type=int, default=100)
  parser.add_argument('--steps', type=int, default=2_000)
  parser.add_argument('--checkpoint_every', type=int, default=10)
  parser.add_argument('--most_minutes', type=float, default=120, help='stop killing after this time')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--data_dir', default='')
  parser.add_argument('flags', nargs='*', help='additional flags of ddgan_jax.main, after --')
  arguments = parser.parse_args()
  if arguments.folder.exists():
    parser.error(f'--folder: {arguments.folder} exists; choose another one, or delete it')
  arguments.folder.mkdir(parents=True)
  chance = random.Random(arguments.seed)

  uninterrupted = Run(arguments.folder / 'uninterrupted', arguments)
  if uninterrupted.wait():
    print(''.join(uninterrupted.text))
    return 1
  start_up = uninterrupted.first_step_at - uninterrupted.started
  seconds = uninterrupted.last_step_at - uninterrupted.first_step_at
  print(f'Uninterrupted: {start_up:.1f} s to the first step, then {arguments.steps:,} steps in {seconds:.1f} s.',
        flush=True)

  workdir = arguments.folder / 'killed'
  where: collections.Counter = collections.Counter()
  failures: list[str] = []
  begun, done, repeated = time.monotonic(), 0, 0
  while True:
    kills = sum(where.values())
    before = max(complete_steps(workdir), default=0)
    run = Run(workdir, arguments)
    if kills < arguments.kills and time.monotonic() - begun < 60 * arguments.most_minutes:
      # A third of the kills are during start-up, the others after the first step, so that the run progresses. The first
      # kill is after a step, because the start-up time is only known from the uninterrupted run, which had to compile.
      if kills and chance.random() < 1 / 3:
        delay = chance.uniform(0, start_up)
      else:
        while run.first_step_at is None and run.process.poll() is None:
          time.sleep(0.005)
        # Waits for a step, because the speed of a busy machine varies, and then for a random time within it.
        left = arguments.steps - before
        step = before + min(chance.uniform(0, 1.6 * left / (arguments.kills - kills)), 0.9 * left)
        while max(list(run.lines), default=0) < step and run.process.poll() is None:
          time.sleep(0.001)
        delay = time.monotonic() - run.started + chance.uniform(0, seconds / arguments.steps)
      while time.monotonic() - run.started < delay and run.process.poll() is None:
        time.sleep(0.002)
      run.process.send_signal(signal.SIGKILL)
    status = run.wait()
    if run.first_step_at is not None:
      start_up = min(start_up, run.first_step_at - run.started)  # the uninterrupted run had to compile
    if run.resumed is not None and run.resumed != before:
      failures.append(f'start {kills}: step {before} was complete, but it resumed from {run.resumed}')
    if before and run.resumed is None and run.lines:
      failures.append(f'start {kills}: step {before} was complete, but the run started over')
    wrong = [step for step, line in run.lines.items() if line != uninterrupted.lines[step]]
    if wrong:
      step = wrong[0]
      failures.append(f'start {kills}: step {step} printed {run.lines[step]!r}, was {uninterrupted.lines[step]!r}')
    repeated += sum(step <= done for step in run.lines)
    done = max(done, *run.lines, 0) if run.lines else done
    after = max(complete_steps(workdir), default=0)
    if after < before:
      failures.append(f'start {kills}: the newest checkpoint was {before}, then {after}')
    if status != -signal.SIGKILL:
      break
    torn = any(path.stat().st_mtime > run.started_at for path in workdir.glob('checkpoints/*tmp*'))
    where['in a save' if torn and run.lines else 'in the steps' if run.lines else 'while starting'] += 1
    if (kills + 1) % 10 == 0:
      print(f'{kills + 1} kills in {time.monotonic() - begun:.0f} s, step {after:,}', flush=True)
  kills = sum(where.values())
  if status:
    print(''.join(run.text))
    failures.append(f'ended with status {status}')
  else:
    if kills < arguments.kills:
      failures.append(f'finished after {kills} kills; increase --steps or --most_minutes')
    import numpy as np

    expected, found = (final_arrays(arguments.folder / name, arguments.steps) for name in ('uninterrupted', 'killed'))
    differ = [name for name in expected if not np.array_equal(expected[name], found[name], equal_nan=True)]
    if differ or expected.keys() != found.keys():
      failures.append(f'{len(differ)} of {len(expected)} arrays differ, the first {differ[:1]}')
    else:
      print(f'All {len(expected)} arrays of step {arguments.steps:,} are bit-identical '
            f'({sum(array.size for array in expected.values()):,} numbers).')
  print(f'{kills} kills in {time.monotonic() - begun:.0f} s: {dict(where)}. Steps done again: {repeated:,} in '
        f'{kills + 1} starts; at most {arguments.checkpoint_every} and those of a save under way each time.')
  for failure in failures:
    print(f'FAILED: {failure}')
  return bool(failures)


if __name__ == '__main__':
  sys.exit(main())
