"""Several processes: one program started on every host, which find each other before anything else is done.

`initialize` comes before any other JAX call. Flags win; otherwise it starts by itself where the environment announces
several processes, and does nothing on a single machine:

- `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` (or a JobSet's `JOB_COMPLETION_INDEX`),
- `mpirun` or a step of SLURM's (`srun`) with more than one task,
- a Cloud TPU slice or a GKE TPU node pool of more than one host.

Where the coordinator of the last two runs, JAX finds out itself; what is decided here is whether there is anything to
find, and which devices are this process's.
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

_HEARTBEAT_TIMEOUT = 60  # seconds after which one that has gone silent is given up
TIMEOUT = 300  # seconds; hosts of one job start within this of each other
_FLAGS = ('--coordinator_address', '--num_processes', '--process_id')


class DistributedError(UserError):
  """The processes cannot be brought together; one sentence."""


@dataclasses.dataclass(frozen=True)
class Plan:
  """How this process joins the others: arguments of `jax.distributed.initialize`.

  Attributes:
    source: who says so, for messages.
    coordinator_address: HOST:PORT of process 0, or None where JAX finds it by `method`.
    num_processes, process_id: as said, or None where JAX finds them.
    method: JAX's name of the cluster whose environment it reads, or 'deactivate'.
    all_devices: this process takes every device that it sees; otherwise JAX gives it the one with its local index.
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
  """Joins the other processes of this run, if there are any; before any other JAX call.

  Args:
    coordinator_address: HOST:PORT where process 0 listens, the same on every process.
    num_processes: how many there are; 1 alone never joins, whatever the environment says.
    process_id: 0 .. num_processes - 1, another one on every process.
    timeout: seconds to wait for the others, after which the process ends with status 2 and a sentence.

  Raises:
    DistributedError: flags or environment contradict themselves or are incomplete, or the port is taken.
  """
  plan = find_plan(os.environ, coordinator_address, num_processes, process_id)
  if plan is None:
    return
  _join(plan, timeout)

  import jax

  if is_main():
    print(f'{jax.process_count()} processes with {jax.device_count()} {jax.devices()[0].platform} device(s), '
          f'{jax.local_device_count()} each.', flush=True)


def is_main() -> bool:
  """Whether this process prints and writes: true for process 0, and for a single one."""
  import jax

  return jax.process_index() == 0


def find_plan(
    environ: Mapping[str, str],
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Plan | None:
  """How this process joins others, by flags or else the environment; None on its own. Raises DistributedError."""
  flags = dict(zip(_FLAGS, (coordinator_address, num_processes, process_id)))
  if num_processes == 1 and coordinator_address is None and not process_id:
    return None
  if any(value is not None for value in flags.values()):
    return _stated(flags)
  if environ.get('JAX_NUM_PROCESSES') == '1':
    return None
  if 'JAX_NUM_PROCESSES' in environ or 'JAX_PROCESS_ID' in environ:  # an address alone overrides what JAX would find
    index = 'JAX_PROCESS_ID'
    if index not in environ and 'JOB_COMPLETION_INDEX' in environ:
      index = 'JOB_COMPLETION_INDEX'
    return _stated({name: environ.get(name) for name in ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', index)})
  # Open MPI before SLURM: under both, what SLURM's variables describe is mpirun's own daemons.
  return _from_open_mpi(environ) or _from_slurm(environ) or _from_tpu(environ)


def _stated(values: dict[str, Any]) -> Plan:
  """The plan that three flags or variables state: the address, the number of processes and the index, by name."""
  missing = [name for name, value in values.items() if value in (None, '')]
  if missing:
    raise DistributedError(f'{", ".join(name for name in values if name not in missing)}: needs '
                           f'{" and ".join(missing)} as well (or none of the three)')
  (source, address), (_, count), (_, index) = values.items()
  try:
    plan = Plan(source, address, int(count), int(index))
  except ValueError as error:
    raise DistributedError(f'{", ".join(values)}: the last two must be whole numbers ({error})') from None
  if not 0 <= plan.process_id < plan.num_processes:
    _, number, index = values
    raise DistributedError(f'{index}: found {plan.process_id}, must be at least 0 and less than {number}, which is '
                           f'{plan.num_processes}')
  return plan


def _from_slurm(environ: Mapping[str, str]) -> Plan | None:
  # A shell of sbatch or salloc has SLURM_NTASKS too, but is one process; only a step has a node list of its own.
  # In a step that uses part of an allocation, SLURM_NTASKS may be the allocation's.
  count = int(environ.get('SLURM_STEP_NUM_TASKS') or environ.get('SLURM_NTASKS', 1))
  if 'SLURM_STEP_NODELIST' not in environ or count == 1:
    return None
  # JAX gives each task one GPU by its local index. That is wrong for one task a node, which should have all of them,
  # and where SLURM has already narrowed what the task sees.
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
  # Private, since JAX has no public way to ask. Where the names have gone, or a TPU has no metadata server (a
  # notebook's), it counts as a single host.
  with contextlib.suppress(Exception):
    from jax._src import cloud_tpu_init, clusters

    if cloud_tpu_init.running_in_cloud_tpu_vm:
      for kind in (clusters.GkeTpuCluster, clusters.GceTpuCluster):
        if kind.is_env_present():
          count = kind.get_process_count()
          return Plan('Cloud TPU', num_processes=count, method=kind.name) if count > 1 else None
  return None


def _check_address(plan: Plan) -> None:
  """Raises DistributedError unless the address is HOST:PORT, and the port is free on process 0."""
  host, _, port = plan.coordinator_address.rpartition(':')
  if not host or not port.isdecimal() or not 0 < int(port) < 65536:
    name = plan.source if plan.method == 'deactivate' else 'JAX_COORDINATOR_ADDRESS'
    raise DistributedError(f'{name}: found {plan.coordinator_address!r}, must be HOST:PORT of process 0')
  if plan.process_id == 0:  # JAX's service would crash on a port that is taken
    both = socket.has_dualstack_ipv6()
    try:
      socket.create_server(
          ('', int(port)), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both).close()
    except OSError as error:
      raise DistributedError(f'{plan.source}: process 0 cannot listen on port {port} ({error.strerror}); is another '
                             'run using it? Choose another port') from None


def _join(plan: Plan, timeout: int) -> None:
  """Calls JAX, and ends the process with a sentence where JAX would abort it with a stack trace or wait for ever."""
  import jax

  if plan.coordinator_address:
    _check_address(plan)
  if any(name in os.environ for name in ('http_proxy', 'https_proxy')):
    os.environ.setdefault('grpc_proxy', '')  # else gRPC asks the proxy for the coordinator, and waits in vain

  joined = threading.Event()

  def watch():
    if not joined.wait(timeout):
      who = 'this process' if plan.process_id is None else f'process {plan.process_id} of {plan.num_processes}'
      where = f' at {plan.coordinator_address}' if plan.coordinator_address else ''
      print(f'Error: {plan.source}: {who} has waited {timeout} s for the others{where}; were all of them started '
            'with the same address and number, and can they reach process 0?', file=sys.stderr, flush=True)
      os._exit(2)

  threading.Thread(target=watch, daemon=True).start()
  try:
    jax.distributed.initialize(
        plan.coordinator_address, plan.num_processes, plan.process_id,
        # An empty list is not "unset": JAX neither restricts the devices nor guesses which are meant.
        local_device_ids=[] if plan.all_devices and 'JAX_LOCAL_DEVICE_IDS' not in os.environ else None,
        cluster_detection_method=plan.method, initialization_timeout=timeout + 60,
        heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT, shutdown_timeout_seconds=_HEARTBEAT_TIMEOUT)
  except Exception as error:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    # Open MPI 5, for example, does not say where process 0 runs.
    hint = '' if plan.method == 'deactivate' else f'; give {", ".join(_FLAGS)}'
    raise DistributedError(f'{plan.source}: the processes could not be brought together ({reason}){hint}') from error
  finally:
    joined.set()
