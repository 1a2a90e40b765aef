"""Which environments mean several processes, errors for incomplete ones, and two processes that find each other."""

import os
import socket
import subprocess
import sys

import pytest

from ddgan_jax import main as train
from ddgan_jax.parallel.processes import DistributedError, Plan, find_plan, initialize
from tests.support import ROOT, xla_flags
from tests.support.commands import run_command

# What SLURM sets in the shell of a batch script, and what it adds in a step.
SBATCH = {'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '4', 'SLURM_PROCID': '0', 'SLURM_LOCALID': '0', 'SLURM_NNODES': '4',
          'SLURM_JOB_NODELIST': 'node[1-4]', 'SLURM_TASKS_PER_NODE': '1(x4)'}
STEP = {**SBATCH, 'SLURM_STEP_NODELIST': 'node[1-4]', 'SLURM_STEP_NUM_TASKS': '4', 'SLURM_STEP_TASKS_PER_NODE': '1(x4)',
        'SLURM_PROCID': '2'}
CROWDED = {**STEP, 'SLURM_STEP_NODELIST': 'node1', 'SLURM_STEP_TASKS_PER_NODE': '4'}
MPIRUN = {'OMPI_COMM_WORLD_SIZE': '4', 'OMPI_COMM_WORLD_RANK': '3', 'OMPI_COMM_WORLD_LOCAL_SIZE': '1',
          'OMPI_MCA_orte_hnp_uri': '1531576320.0;tcp://10.96.0.1:34911'}
VARIABLES = {'JAX_COORDINATOR_ADDRESS': 'host0:1234', 'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': '1'}

PLANS = {
    'single machine': ({'HOME': '/root', 'CUDA_VISIBLE_DEVICES': '0,1'}, None),
    'only an address': ({'JAX_COORDINATOR_ADDRESS': 'host0:1234'}, None),
    'batch shell': (SBATCH, None),
    'salloc shell, a step of one task': ({**STEP, 'SLURM_STEP_NUM_TASKS': '1', 'SLURM_PROCID': '0'}, None),
    'one task a node': (STEP, Plan('SLURM', None, 4, 2, 'slurm', all_devices=True)),
    'four tasks on a node': (CROWDED, Plan('SLURM', None, 4, 2, 'slurm', all_devices=False)),
    'four tasks, a GPU each': (
        {**CROWDED, 'SLURM_GPUS_PER_TASK': '1'}, Plan('SLURM', None, 4, 2, 'slurm', all_devices=True)),
    'four tasks that see one GPU': (
        {**CROWDED, 'CUDA_VISIBLE_DEVICES': '3'}, Plan('SLURM', None, 4, 2, 'slurm', all_devices=True)),
    'one task on some nodes': (
        {**STEP, 'SLURM_STEP_TASKS_PER_NODE': '1(x2),2'}, Plan('SLURM', None, 4, 2, 'slurm', all_devices=False)),
    'SLURM with an address': ({**STEP, 'JAX_COORDINATOR_ADDRESS': 'host0:1234'},
                              Plan('SLURM', 'host0:1234', 4, 2, 'slurm', all_devices=True)),
    'mpirun -n 1': ({**MPIRUN, 'OMPI_COMM_WORLD_SIZE': '1'}, None),
    'mpirun': (MPIRUN, Plan('mpirun', None, 4, 3, 'ompi', all_devices=True)),
    'mpirun, crowded': (
        {**MPIRUN, 'OMPI_COMM_WORLD_LOCAL_SIZE': '4'}, Plan('mpirun', None, 4, 3, 'ompi', all_devices=False)),
    # Here SLURM's variables describe mpirun's daemons, one per node.
    'mpirun under SLURM': ({**MPIRUN, **STEP, 'SLURM_PROCID': '0'}, Plan('mpirun', None, 4, 3, 'ompi')),
    'variables': (VARIABLES, Plan('JAX_COORDINATOR_ADDRESS', 'host0:1234', 2, 1)),
    'variables before SLURM': ({**STEP, **VARIABLES}, Plan('JAX_COORDINATOR_ADDRESS', 'host0:1234', 2, 1)),
    'one process, whatever SLURM says': ({**STEP, 'JAX_NUM_PROCESSES': '1'}, None),
    'JobSet': ({'JAX_COORDINATOR_ADDRESS': 'ddgan-slice-0-0.ddgan:1234', 'JAX_NUM_PROCESSES': '4',
                'JOB_COMPLETION_INDEX': '3'}, Plan('JAX_COORDINATOR_ADDRESS', 'ddgan-slice-0-0.ddgan:1234', 4, 3)),
    'an indexed job without JAX variables': ({'JOB_COMPLETION_INDEX': '3'}, None),
}


@pytest.mark.parametrize('environ, plan', PLANS.values(), ids=PLANS.keys())
def test_plans_of_environments(environ, plan):
  assert find_plan(environ) == plan


def test_flags_override_the_environment():
  expected = Plan('--coordinator_address', 'host9:99', 3, 0)
  assert find_plan({**STEP, **VARIABLES}, 'host9:99', 3, 0) == expected
  assert find_plan({**STEP, **VARIABLES}, num_processes=1) is None
  assert find_plan({**STEP, **VARIABLES}, num_processes=1, process_id=0) is None


INCOMPLETE = {
    'no count': ({'JAX_COORDINATOR_ADDRESS': 'h:1', 'JAX_PROCESS_ID': '1'},
                 'JAX_NUM_PROCESSES not set; set all of JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX'),
    'only a count': ({'JAX_NUM_PROCESSES': '2'},
                     'JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID not set; set all of'),
    'an empty address': ({**VARIABLES, 'JAX_COORDINATOR_ADDRESS': ''}, 'JAX_COORDINATOR_ADDRESS not set; set all of'),
    'index too large': ({**VARIABLES, 'JAX_PROCESS_ID': '2'},
                        'JAX_PROCESS_ID is 2; use at least 0 and less than JAX_NUM_PROCESSES, which is 2'),
    'JobSet index too large': (
        {'JAX_COORDINATOR_ADDRESS': 'h:1', 'JAX_NUM_PROCESSES': '2', 'JOB_COMPLETION_INDEX': '5'},
        'JOB_COMPLETION_INDEX is 5; use'),
    'a count that is not a number': ({**VARIABLES, 'JAX_NUM_PROCESSES': 'two'}, "'two'; use integers for the last two"),
}


@pytest.mark.parametrize('environ, message', INCOMPLETE.values(), ids=INCOMPLETE.keys())
def test_incomplete_environments_get_one_sentence(environ, message):
  with pytest.raises(DistributedError) as error:
    find_plan(environ)
  assert message in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('flags, message', [
    (('h:1', None, None), '--num_processes and --process_id not set; set all of'),
    ((None, 2, None), '--coordinator_address and --process_id not set; set all of'),
    ((None, None, 0), '--coordinator_address and --num_processes not set; set all of'),
    ((None, 1, 1), '--coordinator_address not set; set all of'),
    (('h:1', 2, 2), '--process_id is 2; use at least 0 and less than --num_processes, which is 2'),
    (('h:1', 2, -1), '--process_id is -1; use'),
    (('h:1', 0, 0), 'less than --num_processes, which is 0'),
])
def test_incomplete_flags_get_one_sentence(flags, message):
  with pytest.raises(DistributedError) as error:
    find_plan({}, *flags)
  assert message in str(error.value) and '\n' not in str(error.value)


@pytest.fixture
def tpu_machine(monkeypatch):
  """This machine as a TPU host. JAX reads os.environ and a metadata server, both replaced here."""
  from jax._src import cloud_tpu_init
  from jax._src.clusters import cloud_tpu_cluster

  monkeypatch.setattr(cloud_tpu_init, 'running_in_cloud_tpu_vm', True)
  monkeypatch.setattr(cloud_tpu_cluster, 'running_in_cloud_tpu_vm', True)
  for name in ('TPU_WORKER_HOSTNAMES', 'TPU_PROCESS_ADDRESSES', 'TPU_SKIP_MDS_QUERY'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv('MEGASCALE_NUM_SLICES', '1')

  def metadata(**entries):
    def get(key):
      if key not in entries:
        raise OSError('no metadata server')
      return entries[key], 200
    monkeypatch.setattr(cloud_tpu_cluster, 'get_metadata', get)

  metadata()
  return metadata


def test_tpu_vm(tpu_machine):
  assert find_plan({}) is None  # a notebook's TPU: no metadata server
  tpu_machine(**{'agent-worker-number': '0', 'worker-network-endpoints': 'a:0:10.0.0.1'})
  assert find_plan({}) is None  # a slice of one host
  tpu_machine(**{'agent-worker-number': '1', 'worker-network-endpoints': 'a:0:10.0.0.1,a:1:10.0.0.2'})
  assert find_plan({}) == Plan('Cloud TPU', num_processes=2, method='gcetpu')
  assert find_plan({'JAX_PLATFORMS': 'tpu,cpu'}) == Plan('Cloud TPU', num_processes=2, method='gcetpu')
  assert find_plan({'JAX_PLATFORMS': 'cpu'}) is None


def test_gke_tpu(tpu_machine, monkeypatch):
  monkeypatch.setenv('TPU_WORKER_HOSTNAMES', 'ddgan-slice-0-0.ddgan,ddgan-slice-0-1.ddgan')
  assert find_plan({}) == Plan('Cloud TPU', num_processes=2, method='gketpu')
  monkeypatch.setenv('TPU_WORKER_HOSTNAMES', 'localhost')
  assert find_plan({}) is None


def test_without_the_private_names_of_jax_no_tpu_is_found(tpu_machine, monkeypatch):
  from jax._src import clusters

  monkeypatch.setenv('TPU_WORKER_HOSTNAMES', 'a,b')
  monkeypatch.delattr(clusters, 'GkeTpuCluster')
  assert find_plan({}) is None


def free_port():
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    return probe.getsockname()[1]


def test_a_port_in_use_is_reported():
  with socket.socket() as other:
    other.bind(('', 0))
    other.listen()
    port = other.getsockname()[1]
    with pytest.raises(DistributedError, match=f'process 0 cannot listen on port {port} .*use another port'):
      initialize(f'localhost:{port}', 2, 0)


@pytest.mark.parametrize('address', ['h:port', 'h', 'h:0'])
def test_an_address_without_a_port_is_refused(address):
  with pytest.raises(DistributedError, match=f"--coordinator_address is '{address}'; use HOST:PORT"):
    initialize(address, 2, 1)


# Its output goes to a file, because Gloo, which connects simulated devices, also writes to stdout, even within lines.
PROGRAM = '''
import contextlib
import sys
from ddgan_jax.cli import app
from ddgan_jax.parallel import processes

def command(args):
  with open(sys.argv[5], 'w') as file, contextlib.redirect_stdout(file):
    join_and_sum()

def join_and_sum():
  processes.initialize(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), timeout=int(sys.argv[4]))
  import jax
  from jax.experimental import multihost_utils
  total = multihost_utils.process_allgather(jax.numpy.array(10.0 + jax.process_index())).sum()
  print(jax.process_index(), jax.process_count(), jax.local_device_count(), jax.device_count(), total)

app.start(lambda: app.run(command, lambda define: None, '', argv=[]))
'''


def start(port, count, index, timeout, printed):
  env = {**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu', 'http_proxy': 'http://127.0.0.1:9',
         'https_proxy': 'http://127.0.0.1:9', 'XLA_FLAGS': xla_flags(4)}
  return subprocess.Popen(
      [sys.executable, '-c', PROGRAM, f'localhost:{port}', str(count), str(index), str(timeout), str(printed)],
      cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_find_each_other(tmp_path):
  """On localhost, with an unreachable proxy in the environment; each sees all devices."""
  port = free_port()
  printed = [tmp_path / '0', tmp_path / '1']
  processes = [start(port, 2, index, 300, printed[index]) for index in (0, 1)]
  outputs = [process.communicate(timeout=600) for process in processes]
  assert [process.returncode for process in processes] == [0, 0], outputs
  assert printed[0].read_text() == '2 processes with 8 cpu device(s), 4 per process.\n0 2 4 8 21.0\n'
  assert printed[1].read_text() == '1 2 4 8 21.0\n'


@pytest.mark.parametrize('index', [0, 1])
def test_a_process_that_waits_too_long_exits(index, tmp_path):
  port = free_port()
  process = start(port, 2, index, 2, tmp_path / 'printed')
  _, errors = process.communicate(timeout=300)
  messages = [line for line in errors.splitlines() if line.startswith('Error: ')]
  assert process.returncode == 2 and len(messages) == 1, errors
  assert f'process {index} of 2 has waited 2 s for the others at localhost:{port}; check that all' in messages[0]
  assert 'Traceback' not in errors


def test_the_command_checks_the_flags(tmp_path):
  assert run_command(
      train.main, '--config', 'digits', '--workdir', tmp_path / 'run', '--num_processes=2', '--process_id=0') == (
          2, '', 'Error: --coordinator_address not set; set all of --coordinator_address, --num_processes, '
          '--process_id, or none\n')
  assert not (tmp_path / 'run').exists()
