"""benchmarks/on_device.py: order, time limit, continuation, and one real measurement without the optional packages."""

import argparse
import pathlib
import signal
import subprocess
import sys
import time

from benchmarks import on_device
from tests.support import ROOT, command_environment


def measurement(name, code):
  return on_device.Measurement(name, name.title(), ('-c', code))


def test_results_are_kept_and_unfinished_measurements_come_last(tmp_path):
  slow = measurement('slow', 'import time; print("started", flush=True); time.sleep(60)')
  broken = measurement('broken', 'raise SystemExit("no such kernel")')
  good = measurement('good', 'print("| 1 |")')
  chosen = [slow, broken, good]
  assert not on_device.run(slow, tmp_path, 1.0)
  assert not on_device.run(broken, tmp_path, 60.0)
  assert on_device.pending(chosen, tmp_path) == [good, slow, broken]
  assert on_device.run(good, tmp_path, 60.0)
  assert on_device.pending(chosen, tmp_path) == [slow, broken]
  page = on_device.report(chosen, tmp_path, 'A heading.')
  assert page.startswith('# Measurements\n\nA heading.\n\n## Slow (stopped)\n\n`python -c import time')
  assert 'started\n\nStopped after' in page and '## Broken (failed)' in page and page.count('no such kernel') == 2
  assert '## Good\n\n`python -c print("| 1 |")`\n\n| 1 |\n\nExit status 0 after' in page
  repaired = measurement('broken', 'pass')
  assert on_device.run(repaired, tmp_path, 60.0) and not (tmp_path / 'broken.failed').exists()


def test_selection():
  args = argparse.Namespace(
      batch_sizes=[256, 64, 512], sample_batches=[1], config='cifar10', dtype='bfloat16', rounds=5,
      out=pathlib.Path('/out'), reference='', gpu=True, only=[''])
  names = [each.name for each in on_device.measurements(args)]
  assert names[:6] == ['first_step', 'step_256', 'sample', 'trace_plain', 'step_64', 'step_512']
  args.reference, args.only = '/reference', ['pytorch']
  assert [each.name for each in on_device.measurements(args)] == [
      'pytorch_step_64_tf32', 'pytorch_step_256_tf32', 'pytorch_step_64_bf16_channels_last_compile',
      'pytorch_step_256_bf16_channels_last_compile', 'pytorch_sample_100_tf32',
      'pytorch_sample_100_bf16_channels_last_compile']


def test_a_killed_call_is_continued(tmp_path):
  """The first steps of the smallest recipe, in a Python that lacks what a borrowed machine may lack."""
  (tmp_path / 'blocked').mkdir()
  for package in ('tensorflow', 'tensorflow_datasets', 'grain', 'clu'):
    (tmp_path / 'blocked' / f'{package}.py').write_text('raise ImportError("blocked")')
  command = [
      sys.executable, ROOT / 'benchmarks' / 'on_device.py', '--minutes', '5', '--out', tmp_path / 'out', '--config',
      'gaussians25', '--dtype', 'float32', '--batch_sizes', '16', '--rounds', '1', '--only', 'first_step', 'step']
  settings = dict(env={**command_environment(1), 'PYTHONPATH': tmp_path / 'blocked'}, stdout=subprocess.PIPE, text=True)
  killed = subprocess.Popen(command, **settings)
  while not (tmp_path / 'out' / 'first_step.partial').exists():
    assert killed.poll() is None
    time.sleep(0.05)
  killed.send_signal(signal.SIGTERM)
  assert killed.wait(60) == 143
  out = subprocess.run(command, **settings, check=True).stdout
  assert out.index('step_16: done') < out.index('first_step: done')  # the interrupted one is repeated last
  assert '2 of 2 measurements' in out
  assert subprocess.run(command, **settings, check=True).stdout == out.splitlines()[-1] + '\n'
  page = (tmp_path / 'out' / 'results.md').read_text()
  assert '| empty | ' in page and '| filled | ' in page and '| training step |' in page
