"""The launch scripts: the exact commands given to stand-ins of gcloud and srun. test_processes.py has a run."""

import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import pytest
import yaml

from tests.support import ROOT

LOCAL = [sys.executable, str(ROOT / 'launch' / 'local.py')]

# Records its arguments, one line per call. Answers `describe` with the next of $STATES, and `ssh` with the next of
# $STATUSES; with $RUN_HOME it runs ssh's command there, as a worker would.
GCLOUD = '''#!/usr/bin/env bash
{ printf 'gcloud'; printf ' %q' "$@"; echo; } >> "$RECORD"
next() { head -n 1 "$1"; sed -i 1d "$1"; }
case "$*" in
  *describe*) next "$STATES" ;;
  *ssh*tail*) exit "$(next "$STATUSES")" ;;
  *ssh*) if [ -n "${RUN_HOME:-}" ]; then last=${!#}; HOME=$RUN_HOME exec bash -c "${last#--command=}"; fi ;;
esac
'''

SRUN = '''#!/usr/bin/env bash
{ printf '%q ' "${0##*/}" "$@"; echo; } >> "$RECORD"
[ "${0##*/}" != scancel ] || touch "$WAIT.stop"
[ "${0##*/}" = srun ] || exit 0
[ -n "${WAIT:-}" ] || exit "${STATUS:-0}"
trap 'echo KILLED >> "$RECORD"; exit 137' TERM  # srun kills its tasks when it receives TERM
touch "$WAIT"
while [ ! -e "$WAIT.stop" ]; do sleep 0.05; done
'''


@pytest.fixture
def bench(tmp_path):
  """Runs a script with stand-ins first on PATH; returns (status, error, recorded calls)."""
  (tmp_path / 'bin').mkdir()
  for name, text in (('gcloud', GCLOUD), ('srun', SRUN), ('scontrol', SRUN), ('scancel', SRUN)):
    (tmp_path / 'bin' / name).write_text(text)
    (tmp_path / 'bin' / name).chmod(0o755)

  def run(script, *arguments, states=(), statuses=(), **variables):
    record = tmp_path / 'record'
    record.write_text('')
    (tmp_path / 'states').write_text(''.join(f'{state}\n' for state in states))
    (tmp_path / 'statuses').write_text(''.join(f'{status}\n' for status in statuses))
    env = {'PATH': f'{tmp_path / "bin"}:{os.environ["PATH"]}', 'HOME': str(tmp_path), 'TMPDIR': str(tmp_path),
           'RECORD': str(record), 'STATES': str(tmp_path / 'states'), 'STATUSES': str(tmp_path / 'statuses'),
           'POLL': '0', **variables}
    result = subprocess.run(['bash', str(ROOT / 'launch' / script), *arguments], cwd=tmp_path, env=env,
                            capture_output=True, text=True, timeout=300)
    return result.returncode, result.stderr, record.read_text().splitlines()

  return run


POD = {'NAME': 'ddgan', 'ZONE': 'us-west4-a', 'TYPE': 'v5litepod-16'}
COMMAND = ('--', 'python', '-m', 'ddgan_jax.main', '--workdir', 'gs://b/my run')

TPUS = 'gcloud compute tpus'
CREATE = (f'{TPUS} queued-resources create ddgan --node-id=ddgan --zone=us-west4-a --accelerator-type=v5litepod-16 '
          '--runtime-version=v2-alpha-tpuv5-lite')
STATE = f"{TPUS} queued-resources describe ddgan --zone=us-west4-a '--format=value(state.state)'"
DELETE = f'{TPUS} queued-resources delete ddgan --zone=us-west4-a --force --quiet'
SSH_ALL = f'{TPUS} tpu-vm ssh ddgan --zone=us-west4-a --worker=all'
UV = ('cd ~/ddgan_jax && python3 -m pip install -q --user uv && ~/.local/bin/uv venv -q --python 3.12 .venv '
      "&& ~/.local/bin/uv pip install -q --python .venv/bin/python -e '.[tpu]'")
UNPACK = 'rm -rf ~/ddgan_jax && mkdir ~/ddgan_jax && tar -xzf ~/ddgan_jax.tar.gz -C ~/ddgan_jax'
LOGS = (f'{TPUS} tpu-vm ssh ddgan --zone=us-west4-a --worker=0 '
        "'--command=tail -n +1 -F --pid=$(cat ~/run.pid) ~/run.log; exit $(cat ~/run.status || echo 143)'")


def assert_same(recorded, expected):
  """Compares commands word by word, so that quoting does not matter."""
  assert [shlex.split(line) for line in recorded] == [shlex.split(line) for line in expected]


def install(tmp_path):
  return [f'{TPUS} tpu-vm scp {tmp_path}/ddgan_jax.tar.gz ddgan:ddgan_jax.tar.gz --zone=us-west4-a --worker=all',
          f'{SSH_ALL} {shlex.quote(f"--command={UNPACK} && {UV}")}']


def is_run(line):
  words = shlex.split(line)
  return shlex.split(SSH_ALL) == words[:-1] and 'gs://b/my' in words[-1] and 'setsid nohup' in words[-1]


def test_create_waits_for_the_slice(bench):
  status, error, calls = bench('tpu_pod.sh', 'create', states=['WAITING_FOR_RESOURCES', 'CREATING', 'ACTIVE'], **POD)
  assert status == 0, error
  assert_same(calls, [CREATE, STATE, STATE, STATE])
  assert f'+ {CREATE}\n' in error  # printed before it runs


def test_create_a_spot_slice_in_a_project(bench):
  _, _, calls = bench('tpu_pod.sh', 'create', states=['ACTIVE'], **POD, SPOT='1', PROJECT='my-project', RUNTIME='image')
  assert calls[0] == CREATE.replace('us-west4-a', 'us-west4-a --project=my-project').replace(
      'v2-alpha-tpuv5-lite', 'image --spot')


def test_a_failed_request_is_reported(bench):
  status, error, calls = bench('tpu_pod.sh', 'create', states=['FAILED'], **POD)
  assert status == 2 and 'Error: the request for ddgan is FAILED;' in error and len(calls) == 2


def test_install_copies_this_folder_or_clones(bench, tmp_path):
  status, error, calls = bench('tpu_pod.sh', 'install', **POD)
  assert status == 0, error
  assert_same(calls, install(tmp_path))
  packed = subprocess.run(['tar', '-tzf', tmp_path / 'ddgan_jax.tar.gz'], capture_output=True, text=True).stdout
  names = {name.removeprefix('./') for name in packed.splitlines()}
  assert {'setup.py', 'ddgan_jax/main.py', 'launch/tpu_pod.sh'} <= names
  assert not any(name.startswith('.git/') or name.endswith('.pyc') for name in names)
  _, _, calls = bench('tpu_pod.sh', 'install', **POD, SOURCE='https://host/a b.git')
  clone = 'rm -rf ~/ddgan_jax && git clone -q --depth 1 https://host/a\\ b.git ~/ddgan_jax'
  assert_same(calls, [f'{SSH_ALL} {shlex.quote(f"--command={clone} && {UV}")}'])


def wait_for(path, seconds=300):
  deadline = time.monotonic() + seconds
  while not path.exists() or not path.read_text():
    assert time.monotonic() < deadline, f'{path.name} never came'
    time.sleep(0.02)
  return path.read_text()


def test_run_starts_the_command_as_it_was_typed(bench, tmp_path):
  """In a worker's shell: arguments keep their spaces and quotes; a log and a status file are written."""
  worker = tmp_path / 'worker'
  (worker / 'ddgan_jax' / '.venv' / 'bin').mkdir(parents=True)
  (worker / 'ddgan_jax' / '.venv' / 'bin' / 'activate').write_text('echo activated\n')
  arguments = ['a b', "it's", '$HOME', 'gs://b/x', '"q"', '*']
  script = 'import sys; print(sys.argv[1:]); sys.exit(7)'
  status, error, calls = bench(
      'tpu_pod.sh', 'run', '--', sys.executable, '-c', script, *arguments, **POD, RUN_HOME=str(worker))
  assert status == 0 and len(calls) == 1, error
  assert wait_for(worker / 'run.status') == '7\n'
  assert (worker / 'run.log').read_text() == f'activated\n{arguments}\n'
  # While that process runs, another is refused.
  (worker / 'run.pid').write_text(f'{os.getpid()}\n')
  status, error, _ = bench('tpu_pod.sh', 'run', '--', 'true', **POD, RUN_HOME=str(worker))
  assert status == 3 and 'already running' in error


def test_logs_follow_the_run_and_return_its_status(bench):
  status, _, calls = bench('tpu_pod.sh', 'logs', statuses=[7], **POD)
  assert status == 7
  assert_same(calls, [LOGS])


def test_resume_after_a_pre_emption_requests_the_slice_again(bench, tmp_path):
  status, error, calls = bench('tpu_pod.sh', 'resume', *COMMAND, states=['SUSPENDED', 'PROVISIONING', 'ACTIVE'],
                               **POD, SPOT='1')
  assert status == 0, error
  assert_same(calls[:-1], [STATE, DELETE, f'{CREATE} --spot', STATE, STATE, *install(tmp_path)])
  assert is_run(calls[-1])


def test_resume_on_an_active_slice_only_runs(bench):
  _, _, calls = bench('tpu_pod.sh', 'resume', *COMMAND, states=['ACTIVE'], **POD)
  assert_same(calls[:1], [STATE])
  assert len(calls) == 2 and is_run(calls[1])


def test_delete(bench):
  status, _, calls = bench('tpu_pod.sh', 'delete', NAME='ddgan', ZONE='us-west4-a')
  assert status == 0
  assert_same(calls, [DELETE])


def test_all_survives_pre_emptions_and_deletes_the_slice(bench, tmp_path):
  """First the connection breaks at a pre-emption, then the run saves and exits with 0 at one, then the run finishes."""
  states = ['ACTIVE', 'SUSPENDED', 'SUSPENDED', 'ACTIVE', 'SUSPENDING', 'SUSPENDED', 'ACTIVE', 'ACTIVE']
  status, error, calls = bench('tpu_pod.sh', 'all', *COMMAND, states=states, statuses=[255, 0, 0], **POD)
  assert status == 0, error
  once = [CREATE, STATE, *install(tmp_path), calls[4], LOGS, STATE]
  assert is_run(calls[4])
  assert_same(calls, [*once, STATE, DELETE, *once, STATE, DELETE, *once, DELETE])


def test_all_reconnects_when_the_connection_drops(bench):
  """ssh exits with 255 while the slice is active: the run is not started again, and the slice is deleted at the end."""
  status, error, calls = bench(
      'tpu_pod.sh', 'all', *COMMAND, states=['ACTIVE'] * 4, statuses=[255, 255, 0], **POD)
  assert status == 0, error
  assert_same(calls[-7:], [LOGS, STATE, LOGS, STATE, LOGS, STATE, DELETE])
  assert sum(map(is_run, calls)) == 1


def test_all_keeps_a_slice_whose_run_failed(bench):
  status, error, calls = bench('tpu_pod.sh', 'all', *COMMAND, states=['ACTIVE'] * 2, statuses=[2], **POD)
  assert status == 2 and 'Error: the run ended with status 2; ddgan is kept' in error
  assert DELETE not in calls


@pytest.mark.parametrize('verb', ['create', 'install', 'run', 'logs', 'resume', 'delete', 'all'])
def test_a_dry_run_prints_the_commands_and_runs_nothing(bench, tmp_path, verb):
  command = COMMAND if verb in ('run', 'resume', 'all') else ()
  status, error, calls = bench('tpu_pod.sh', '--dry-run', verb, *command, **POD)
  assert status == 0 and calls == [] and not (tmp_path / 'ddgan_jax.tar.gz').exists()
  assert error and all(line.startswith('+ gcloud compute tpus ') for line in error.splitlines())
  _, error, calls = bench('tpu_pod.sh', verb, *command, states=['ACTIVE'] * 9, statuses=[0], **POD)
  assert calls
  assert_same([line.removeprefix('+ ') for line in error.splitlines()], calls)  # prints exactly what it would run


@pytest.mark.parametrize('arguments, variables, message', [
    (['create'], {'ZONE': 'z', 'TYPE': 't'}, 'NAME is not set; export a name'),
    (['delete'], {'NAME': 'n'}, 'ZONE is not set; export a zone'),
    (['create'], {'NAME': 'n', 'ZONE': 'z'}, 'TYPE is not set; export the type of the slice'),
    (['run'], POD, 'run: no command; put it after --'),
    (['delete', '--', 'x'], POD, "delete: takes no command, but got 'x'"),
    (['begin'], POD, "'begin' is not a command; use [--dry-run] create, install"),
    ([], POD, "'' is not a command"),
])
def test_tpu_pod_errors_are_one_sentence(bench, arguments, variables, message):
  status, error, calls = bench('tpu_pod.sh', *arguments, **variables)
  assert status == 2 and error.startswith(f'Error: {message}') and error.count('\n') == 1 and calls == []


@pytest.fixture
def venv(tmp_path):
  (tmp_path / 'my venv' / 'bin').mkdir(parents=True)
  (tmp_path / 'my venv' / 'bin' / 'activate').write_text('')
  return {'VENV': str(tmp_path / 'my venv'), 'SLURM_JOB_ID': '42'}


def test_slurm_runs_one_step_with_the_arguments(bench, venv):
  arguments = ['--config', 'configs/digits.py', '--workdir', '/shared/my runs']
  status, error, calls = bench('slurm.sbatch', *arguments, **venv, SLURM_CPUS_PER_TASK='12', STATUS='3')
  assert status == 3, error
  assert_same(calls, ['srun --kill-on-bad-exit=1 --cpus-per-task=12 python -m ddgan_jax.main ' + shlex.join(arguments)])


@pytest.mark.parametrize('number, requeued', [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_slurm_saves_and_requeues_near_the_time_limit(bench, venv, tmp_path, number, requeued):
  """SLURM warns with USR1: TERM goes to the tasks, never to srun, and the job is requeued. With TERM, from scancel or a
  pre-emption, SLURM signals the tasks itself."""
  ready = tmp_path / 'ready'
  send_signal = f'while [ ! -e {ready} ]; do sleep 0.05; done; kill -{number.name[3:]} $PPID'
  if number == signal.SIGTERM:
    send_signal += f'; sleep 0.2; touch {ready}.stop'
  (tmp_path / 'my venv' / 'bin' / 'activate').write_text(f"bash -c '{send_signal}' &\n")
  status, error, calls = bench('slurm.sbatch', '--config', 'c.py', **venv, WAIT=str(ready), WAIT_FOR_SLURM='0')
  assert status == 0, error
  assert_same(calls, ['srun --kill-on-bad-exit=1 python -m ddgan_jax.main --config c.py',
                      *['scancel --signal=TERM 42', 'scontrol requeue 42'] * requeued])


def test_slurm_errors_are_one_sentence(bench, venv, tmp_path):
  for arguments, variables, message in (
      (['--config', 'c.py'], {}, 'not in a SLURM job; submit this file with sbatch'),
      ([], venv, 'no arguments; use those of ddgan_jax.main'),
      (['--config', 'c.py'], {**venv, 'VENV': 'nowhere'}, "VENV is 'nowhere'; use a virtual environment")):
    status, error, calls = bench('slurm.sbatch', *arguments, **variables)
    assert status == 2 and error.startswith(f'Error: {message}') and error.count('\n') == 1 and calls == []


def test_gke_is_a_job_set_of_one_slice(tmp_path):
  """One pod per host, chips that fill the topology, and a run stopped by a signal does not count as finished."""
  job_set = yaml.safe_load((ROOT / 'launch' / 'gke.yaml').read_text())
  assert job_set['kind'] == 'JobSet' and job_set['spec']['failurePolicy']['maxRestarts'] > 0
  [worker] = job_set['spec']['replicatedJobs']
  job = worker['template']['spec']
  pod = job['template']['spec']
  [container] = pod['containers']
  chips = container['resources']['limits']['google.com/tpu']
  topology = pod['nodeSelector']['cloud.google.com/gke-tpu-topology'].split('x')
  assert job['completionMode'] == 'Indexed' and job['completions'] == job['parallelism']
  assert chips * job['completions'] == int(topology[0]) * int(topology[1])
  assert container['image'] == '<IMAGE>'

  # The container's command, with a `python` that exits with a status, or with 0 after TERM.
  python = tmp_path / 'python'
  env = {'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'READY': str(tmp_path / 'ready')}
  command = [*container['command'], *container['args']]
  command[-1] = command[-1].replace('<BUCKET>', 'bucket')
  python.write_text('#!/bin/bash\necho "$*"; exit 5\n')
  python.chmod(0o755)
  result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
  assert result.returncode == 5
  assert result.stdout == ('-m ddgan_jax.main --config=configs/cifar10.py --workdir=gs://bucket/cifar10 '
                           '--config.parallel.dtype=bfloat16\n')
  python.write_text('#!/bin/bash\ntrap "exit 0" TERM\necho 1 > $READY\nwhile true; do sleep 0.05; done\n')
  process = subprocess.Popen(command, env=env)
  wait_for(tmp_path / 'ready')
  process.send_signal(signal.SIGTERM)
  assert process.wait(300) == 143


def test_shellcheck_finds_nothing():
  result = subprocess.run(['shellcheck', 'launch/tpu_pod.sh', 'launch/slurm.sbatch'], cwd=ROOT, capture_output=True,
                         text=True, env={**os.environ, 'PATH': f'{pathlib.Path(sys.executable).parent}:'
                                                               f'{os.environ["PATH"]}'})
  assert result.returncode == 0, result.stdout


def local(*arguments, **variables):
  environment = {**os.environ, **variables}
  return subprocess.run([*LOCAL, *arguments], capture_output=True, text=True, timeout=300, env=environment)


SHOW = 'import os; print(*(os.environ.get(n) for n in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "CUDA_VISIBLE_DEVICES")))'


def test_local_assigns_process_ids_and_gpus():
  result = local('--processes', '2', '--gpus', '2', '--', sys.executable, '-c', SHOW, CUDA_VISIBLE_DEVICES='4,5,6,7,8')
  assert result.returncode == 0, result.stderr
  assert sorted(result.stdout.splitlines()) == ['[0] 2 0 4,5', '[1] 2 1 6,7']


def test_local_sets_the_number_of_simulated_devices():
  show = 'import os; print(os.environ["XLA_FLAGS"], os.environ["JAX_PLATFORMS"])'
  result = local('--processes', '1', '--devices', '4', '--', sys.executable, '-c', show,
                 XLA_FLAGS='--a=1 --xla_force_host_platform_device_count=8')
  assert result.stdout.split() == ['[0]', '--a=1', '--xla_force_host_platform_device_count=4', 'cpu']


def test_local_returns_the_first_failure_and_stops_the_others(tmp_path):
  program = ('import os, pathlib, signal, sys, time; number = int(os.environ["JAX_PROCESS_ID"])\n'
             'deaf = pathlib.Path(sys.argv[1])\n'
             'if number == 2: signal.signal(signal.SIGTERM, signal.SIG_IGN); deaf.touch()\n'
             'while number != 1 or not deaf.exists(): time.sleep(0.02)\n'
             'sys.exit(9)')
  result = local('--processes', '3', '--grace', '1', '--', sys.executable, '-c', program, str(tmp_path / 'deaf'))
  assert result.returncode == 9
  assert 'process 1 ended with status 9; stopping the others' in result.stderr
  assert 'killing processes that still run after 1 s' in result.stderr


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_local_forwards_signals_to_all_processes(number):
  program = ('import signal, sys, time\n'
             'def stop(number, frame): print("stopped by", number, flush=True); sys.exit(0)\n'
             'signal.signal(signal.SIGTERM, stop); signal.signal(signal.SIGINT, stop); print("ready", flush=True)\n'
             'time.sleep(60)')
  process = subprocess.Popen([*LOCAL, '--processes', '2', '--', sys.executable, '-c', program],
                             stdout=subprocess.PIPE, text=True)
  assert sorted(process.stdout.readline() for _ in range(2)) == ['[0] ready\n', '[1] ready\n']
  process.send_signal(number)
  output, _ = process.communicate(timeout=300)
  assert process.returncode == 0
  assert sorted(output.splitlines()) == [f'[{i}] stopped by {int(number)}' for i in range(2)]


def test_local_removes_gloo_messages_even_within_lines(tmp_path):
  gloo = '[Gloo] Rank {} is connected to 1 peer ranks. Expected number of connected peer ranks is : 1\n'.format
  (tmp_path / 'output').write_text(
      'a\n' + gloo(0) + 'b' + gloo(1) + 'c\nError: [Gloo] Rank 3: timed out\n' + '[Gloo] Rank ' + gloo(12)
      + gloo(3).removeprefix('[Gloo] Rank ') + 'd')
  for descriptor in (1, 2):
    program = f'import os; os.write({descriptor}, open("{tmp_path / "output"}", "rb").read())'
    result = local('--processes', '2', '--', sys.executable, '-c', program)
    assert sorted((result.stdout + result.stderr).splitlines()) == [
        f'[{i}] {line}' for i in range(2) for line in ('Error: [Gloo] Rank 3: timed out', 'a', 'bc', 'd')]


@pytest.mark.parametrize('arguments, message', [
    (['--processes', '2'], 'no command: put it after --'),
    (['--processes', '0', '--', 'true'], '--processes is 0; use at least 1'),
    (['--processes', '2', '--', 'no-such-command'], "'no-such-command': no such command"),
    (['--processes', '2', '--gpus', '1', '--devices', '1', '--', 'true'], 'use only one of them'),
    (['--processes', '2', '--gpus', '2', '--', 'true'], 'need 4 GPUs, but CUDA_VISIBLE_DEVICES lists 3'),
])
def test_local_errors(arguments, message):
  result = local(*arguments, CUDA_VISIBLE_DEVICES='0,1,2')
  assert result.returncode == 2 and message in result.stderr
