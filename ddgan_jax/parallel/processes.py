"""Distributed initialization: the same command runs on every host, and the processes connect to each other.

Call `initialize` before any other JAX function. It uses the flags or, without flags, the environment:

- `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` (or a JobSet's `JOB_COMPLETION_INDEX`),
- `mpirun` or a SLURM step (`srun`) with more than one task,
- a Cloud TPU slice or a GKE TPU node pool with more than one host.

Otherwise there is a single process, and it does nothing. For the last two, JAX finds the coordinator; this module
decides whether there is one, and which devices this process uses.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import socket
import sys
import threading
from collections.abc import Mapping
from typing import Any

from ddgan_jax.config import UserError

_HEARTBEAT_TIMEOUT = 60  # seconds without a sign of life after which a process counts as dead
TIMEOUT = 300  # seconds to wait until all hosts of a job have started
_FLAGS = ('--coordinator_address', '--num_processes', '--process_id')


class DistributedError(UserError):
  """The processes cannot connect to each other."""


@dataclasses.dataclass(frozen=True)
class Plan:
  """How this process joins the others: arguments of `jax.distributed.initialize`.

  Attributes:
    source: the flags, variables or cluster that this plan comes from, for messages.
    coordinator_address: HOST:PORT of process 0, or None if JAX finds it by `method`.
    num_processes, process_id: None if JAX finds them.
    method: JAX's name of the cluster environment to read, or 'deactivate'.
    all_devices: use all visible devices; otherwise JAX assigns the one with this process's local index.
  """

  source: str
  coordinator_address: str | None = None
  num_processes: int | None = None
  process_id: int | None = None
  method: str = 'deactivate'
  all_devices: bool = True


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout: int = TIMEOUT,
) -> None:
  """Connects to the other processes of this run, if there are any. Call it before any other JAX function.

  Args:
    coordinator_address: HOST:PORT where process 0 listens, the same on every process.
    num_processes: number of processes; 1 without other arguments ignores the environment.
    process_id: 0 … num_processes - 1, unique.
    timeout: seconds to wait for the other processes; then the process prints an error and exits with status 2.

  Raises:
    DistributedError: flags or environment are incomplete or contradictory, or the port is in use.
  """
  plan = find_plan(os.environ, coordinator_address, num_processes, process_id)
  if plan is None:
    return
  _join(plan, timeout)

  import jax

  if is_main():
    print(f'{jax.process_count()} processes with {jax.device_count()} {jax.devices()[0].platform} device(s), '
          f'{jax.local_device_count()} per process.', flush=True)


def is_main() -> bool:
  """Whether this is process 0, which prints and writes."""
  import jax

  return jax.process_index() == 0


def find_plan(
    environ: Mapping[str, str],
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Plan | None:
  """Finds how this process joins others, from flags or environment; None if it is alone. Raises DistributedError."""
  flags = dict(zip(_FLAGS, (coordinator_address, num_processes, process_id)))
  if num_processes == 1 and coordinator_address is None and not process_id:
    return None
  if any(value is not None for value in flags.values()):
    return _stated(flags)
  if environ.get('JAX_NUM_PROCESSES') == '1':
    return None
  if 'JAX_NUM_PROCESSES' in environ or 'JAX_PROCESS_ID' in environ:  # an address alone overrides the one JAX finds
    index = 'JAX_PROCESS_ID'
    if index not in environ and 'JOB_COMPLETION_INDEX' in environ:
      index = 'JOB_COMPLETION_INDEX'
    return _stated({name: environ.get(name) for name in ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', index)})
  # Open MPI first: with both, the SLURM variables describe mpirun's daemons.
  return _from_open_mpi(environ) or _from_slurm(environ) or _from_tpu(environ)


def _stated(values: dict[str, Any]) -> Plan:
  """Makes a plan from three flags or variables, by name: address, number of processes, process index."""
  missing = [name for name, value in values.items() if value in (None, '')]
  if missing:
    raise DistributedError(f'{" and ".join(missing)} not set; set all of {", ".join(values)}, or none')
  (source, address), (_, count), (_, index) = values.items()
  try:
    plan = Plan(source, address, int(count), int(index))
  except ValueError as error:
    raise DistributedError(f'{", ".join(values)}: {error}; use integers for the last two') from None
  if not 0 <= plan.process_id < plan.num_processes:
    _, number, index = values
    raise DistributedError(f'{index} is {plan.process_id}; use at least 0 and less than {number}, which is '
                           f'{plan.num_processes}')
  return plan


def _from_slurm(environ: Mapping[str, str]) -> Plan | None:
  # A shell of sbatch or salloc also has SLURM_NTASKS but is one process; only a step has SLURM_STEP_NODELIST.
  # In a step that uses part of an allocation, SLURM_NTASKS may be that of the allocation.
  count = int(environ.get('SLURM_STEP_NUM_TASKS') or environ.get('SLURM_NTASKS', 1))
  if 'SLURM_STEP_NODELIST' not in environ or count == 1:
    return None
  # By default JAX assigns each task one GPU by local index. That is wrong for a single task per node, which should use
  # all GPUs, and if SLURM already restricts the GPUs that a task sees.
  alone = re.fullmatch(r'1(\(x\d+\))?', environ.get('SLURM_STEP_TASKS_PER_NODE', ''))
  narrowed = 'SLURM_GPUS_PER_TASK' in environ or ',' not in environ.get('CUDA_VISIBLE_DEVICES', ',')
  return Plan('SLURM', environ.get('JAX_COORDINATOR_ADDRESS'), count, int(environ['SLURM_PROCID']), 'slurm',
              all_devices=bool(alone or narrowed))


def _from_open_mpi(environ: Mapping[str, str]) -> Plan | None:
  count = int(environ.get('OMPI_COMM_WORLD_SIZE', 1))
  if count == 1:
    return None
  return Plan('mpirun', environ.get('JAX_COORDINATOR_ADDRESS'), count, int(environ['OMPI_COMM_WORLD_RANK']), 'ompi',
              all_devices=environ.get('OMPI_COMM_WORLD_LOCAL_SIZE') == '1')


def _from_tpu(environ: Mapping[str, str]) -> Plan | None:
  if environ.get('JAX_PLATFORMS', 'tpu').split(',')[0] not in ('', 'tpu'):
    return None
  # No public API. If these names have moved, or a TPU has no metadata server (in a notebook), assume a single host.
  with contextlib.suppress(Exception):
    from jax._src import cloud_tpu_init, clusters

    if cloud_tpu_init.running_in_cloud_tpu_vm:
      for kind in (clusters.GkeTpuCluster, clusters.GceTpuCluster):
        if kind.is_env_present():
          count = kind.get_process_count()
          return Plan('Cloud TPU', num_processes=count, method=kind.name) if count > 1 else None
  return None


def _check_address(plan: Plan) -> None:
  """Raises DistributedError unless the address is HOST:PORT and, on process 0, the port is free."""
  host, _, port = plan.coordinator_address.rpartition(':')
  if not host or not port.isdecimal() or not 0 < int(port) < 65536:
    name = plan.source if plan.method == 'deactivate' else 'JAX_COORDINATOR_ADDRESS'
    raise DistributedError(f'{name} is {plan.coordinator_address!r}; use HOST:PORT of process 0')
  if plan.process_id == 0:  # JAX's service would crash if the port is in use
    both = socket.has_dualstack_ipv6()
    try:
      socket.create_server(
          ('', int(port)), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both).close()
    except OSError as error:
      raise DistributedError(f'{plan.source}: process 0 cannot listen on port {port} ({error.strerror}); use another '
                             'port, or stop the run that uses it') from None


def _join(plan: Plan, timeout: int) -> None:
  """Connects to the others; prints one sentence and exits where JAX would abort with a stack trace or hang."""
  import jax

  if plan.coordinator_address:
    _check_address(plan)
  if any(name in os.environ for name in ('http_proxy', 'https_proxy')):
    os.environ.setdefault('grpc_proxy', '')  # otherwise gRPC connects through the proxy and hangs

  joined = threading.Event()

  def watch():
    if not joined.wait(timeout):
      who = 'this process' if plan.process_id is None else f'process {plan.process_id} of {plan.num_processes}'
      where = f' at {plan.coordinator_address}' if plan.coordinator_address else ''
      print(f'Error: {plan.source}: {who} has waited {timeout} s for the others{where}; check that all were started '
            'with the same address and number of processes and can reach process 0', file=sys.stderr, flush=True)
      os._exit(2)

  threading.Thread(target=watch, daemon=True).start()
  try:
    jax.distributed.initialize(
        plan.coordinator_address, plan.num_processes, plan.process_id,
        # With an empty list JAX uses all visible devices; with None it may assign one by local index.
        local_device_ids=[] if plan.all_devices and 'JAX_LOCAL_DEVICE_IDS' not in os.environ else None,
        cluster_detection_method=plan.method, initialization_timeout=timeout + 60,
        heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT, shutdown_timeout_seconds=_HEARTBEAT_TIMEOUT)
  except Exception as error:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    # Open MPI 5, for example, does not expose the host of process 0.
    hint = '' if plan.method == 'deactivate' else f'; set {", ".join(_FLAGS)}'
    raise DistributedError(f'{plan.source}: the processes cannot connect to each other ({reason}){hint}') from error
  finally:
    joined.set()
