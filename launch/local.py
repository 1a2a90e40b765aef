"""Runs several processes on this machine like several hosts, to test a topology or to use one process per GPU.

  python launch/local.py --processes 2 --devices 4 -- python -m ddgan_jax.main --config configs/digits.py
  python launch/local.py --processes 4 --gpus 2 -- python -m ddgan_jax.main --config configs/cifar10.py

`--devices M` simulates M CPU devices per process, `--gpus M` assigns M GPUs to each process; without either, each
process uses all devices. The processes connect through a free port, set by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES
and JAX_PROCESS_ID. Each output line begins with its process. SIGTERM and Ctrl-C are forwarded to all. Exits with the
status of the first process that fails, after giving the others `--grace` seconds to exit, or with 0.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time


def main(argv: list[str]) -> int:
  cut = argv.index('--') if '--' in argv else len(argv)
  own, command = argv[:cut], argv[cut + 1:]
  parser = argparse.ArgumentParser(
      prog='launch/local.py', description=__doc__, usage='%(prog)s --processes N [--devices M | --gpus M] -- COMMAND …',
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--processes', type=int, required=True, help='number of processes')
  parser.add_argument('--devices', type=int, help='simulated CPU devices per process')
  parser.add_argument('--gpus', type=int, help='GPUs per process')
  parser.add_argument('--grace', type=float, default=60, help='seconds for the others to exit after one has failed')
  options = parser.parse_args(own)
  if not command:
    parser.error('no command: put it after --')
  if shutil.which(command[0]) is None:
    parser.error(f'{command[0]!r}: no such command')
  if options.devices is not None and options.gpus is not None:
    parser.error('--devices and --gpus are both set; use only one of them')
  for name in ('processes', 'devices', 'gpus'):
    if getattr(options, name) is not None and getattr(options, name) < 1:
      parser.error(f'--{name} is {getattr(options, name)}; use at least 1')
  try:
    environments = make_environments(options.processes, options.devices, options.gpus, os.environ)
  except ValueError as error:
    parser.error(str(error))
  return run(command, environments, options.grace)


def make_environments(processes: int, devices: int | None, gpus: int | None, base) -> list[dict[str, str]]:
  """One environment per process. Raises ValueError if CUDA_VISIBLE_DEVICES lists too few GPUs."""
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    port = probe.getsockname()[1]
  common = {**base, 'PYTHONUNBUFFERED': '1', 'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}',
            'JAX_NUM_PROCESSES': str(processes)}
  if devices:
    count = '--xla_force_host_platform_device_count'
    flags = re.sub(rf'{count}=\S*', '', base.get('XLA_FLAGS', ''))
    common.update(JAX_PLATFORMS='cpu', XLA_FLAGS=f'{flags} {count}={devices}'.strip())
  visible = [name for name in base.get('CUDA_VISIBLE_DEVICES', '').split(',') if name]
  if gpus and not visible:
    visible = [str(i) for i in range(processes * gpus)]
  if gpus and len(visible) < processes * gpus:
    raise ValueError(f'--gpus: {processes} processes of {gpus} need {processes * gpus} GPUs, but CUDA_VISIBLE_DEVICES '
                     f'lists {len(visible)}')
  split = lambda i: {'CUDA_VISIBLE_DEVICES': ','.join(visible[i * gpus:(i + 1) * gpus])} if gpus else {}
  return [{**common, 'JAX_PROCESS_ID': str(i), **split(i)} for i in range(processes)]


def run(command: list[str], environments: list[dict[str, str]], grace: float) -> int:
  """Starts all processes and waits; returns the status of the first that failed, as a shell would."""
  processes: list[subprocess.Popen] = []
  events: queue.Queue = queue.Queue()  # indices of processes that have exited
  early: list[int] = []  # signals received while processes were starting
  started = False

  def forward(number, frame):
    del frame
    number = signal.SIGTERM if number == signal.SIGHUP else number
    if started:
      send(processes, number)
    else:
      early.append(number)

  before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
  readers = []
  try:
    for i, environment in enumerate(environments):
      # A new session, or the process would receive the terminal's Ctrl-C twice.
      process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                 text=True, errors='replace', start_new_session=True)
      processes.append(process)
      for stream, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
        readers.append(threading.Thread(target=copy, args=(stream, target, f'[{i}] '), daemon=True))
        readers[-1].start()
      threading.Thread(target=lambda i=i, process=process: (process.wait(), events.put(i)), daemon=True).start()
    started = True
    for number in early:
      send(processes, number)
    status, deadline, running = 0, None, len(processes)
    while running:
      try:
        i = events.get(timeout=0.5 if deadline is None else max(0.0, min(0.5, deadline - time.monotonic())))
      except queue.Empty:
        if deadline is not None and time.monotonic() >= deadline:
          log(f'killing processes that still run after {grace:g} s')
          send(processes, signal.SIGKILL)
          deadline = float('inf')
        continue
      running -= 1
      code = processes[i].returncode
      if code and not status:
        status = code if code > 0 else 128 - code
        name = f'status {code}' if code > 0 else signal.Signals(-code).name
        log(f'process {i} ended with {name}' + ('; stopping the others' if running else ''))
        send(processes, signal.SIGTERM)
        deadline = time.monotonic() + grace
    for reader in readers:
      reader.join(timeout=5)
    return status
  finally:
    send(processes, signal.SIGKILL)
    for number, handler in before.items():
      signal.signal(number, handler)


def send(processes: list[subprocess.Popen], number: int) -> None:
  for process in processes:
    if number == signal.SIGKILL:  # with all its children
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    else:
      process.send_signal(number)  # does nothing after it has exited


# Gloo logs every connection of simulated devices, sometimes within another line.
GLOO = re.compile(r'\[Gloo\] Rank \d+ is connected to \d+ peer ranks\. '
                  r'Expected number of connected peer ranks is : \d+\n')


def copy(stream, target, prefix: str) -> None:
  """Copies lines with a prefix, without Gloo's."""
  started = ''
  for line in itertools.chain(stream, ['']):
    started, removed = GLOO.subn('', started + line)  # joined, because one of its lines may be within another
    if started and not removed:  # otherwise the rest of the interrupted line follows
      target.write(prefix + started.removesuffix('\n') + '\n')  # one write, so that lines do not mix
      target.flush()
      started = ''


def log(text: str) -> None:
  print(f'launch/local.py: {text}', file=sys.stderr, flush=True)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
