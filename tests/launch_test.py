"""Launchers and the image without a cluster; tools of clusters are scripts.

parallel/distributed_test.py runs local.sh.
"""

import configparser
import json
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import kubernetes_validate
from packaging import requirements
import pytest
import yaml

import lipnext_jax

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRIPTS = sorted(path.name for path in (ROOT / 'launch').glob('*.sh'))
DOCKERFILE = (ROOT / 'Dockerfile').read_text().replace('\\\n', '')
FLAGS = ['--config=configs/imagenet_2b.py', '--config.duration=40 epochs\'"$x']


def call(*command, **options):
  return subprocess.run(
    command, capture_output=True, text=True, check=False, **options
  )


def run(script, *flags, **environment):
  environment = {'PATH': '/usr/bin:/bin', **environment}
  return call('bash', f'launch/{script}', *flags, cwd=ROOT, env=environment)


def dry_run(script, **environment):
  """Returns what a launcher prints in place of running it."""
  done = run(script, *FLAGS, DRY_RUN='1', **environment)
  assert done.returncode == 0, done.stderr
  return done.stdout


@pytest.fixture
def fake(tmp_path):
  """Writes scripts that stand for tools; returns the PATH that finds them."""

  def write(folder=tmp_path, **tools):
    for name, script in tools.items():
      path = folder / name
      path.write_text(f'#!/bin/bash\n{script}\n')
      path.chmod(0o755)
    return f'{folder}:/usr/bin:/bin'

  return write


def lint(path, linter='shellcheck'):
  return call(pathlib.Path(sys.executable).parent / linter, path)


def test_the_linters_can_fail(tmp_path):
  bad = tmp_path / 'bad'
  bad.write_text('#!/usr/bin/env bash\nrm $1\n')
  assert 'SC2086' in lint(bad).stdout
  bad.write_text('FROM python\nRUN pip install jax && rm $1\n')
  assert 'DL3013' in lint(bad, 'hadolint').stdout  # No version.


@pytest.mark.parametrize('script', SCRIPTS)
def test_scripts_are_clean_and_explain_themselves(script):
  """Without what they require they point to their head."""
  path = ROOT / 'launch' / script
  done = lint(path)
  assert done.returncode == 0, done.stdout
  text = path.read_text()
  assert text.splitlines()[1].startswith('# ')
  assert 'set -euo pipefail' in text
  done = run(script)
  assert done.returncode != 0
  assert 'see the head of' in done.stderr
  head, code = text.split('set -euo pipefail')
  for name in {*re.findall(r'\$\{([A-Z_]+):', code)} - {'LIPNEXT_IN_JOB'}:
    assert f'#   {name} ' in head, name


def test_slurm_submits_itself_with_a_process_per_gpu():
  out = dry_run('slurm.sh', NODES='2', SBATCH_FLAGS='-A me')
  submit, srun = map(shlex.split, out.splitlines())
  assert submit[0] == 'sbatch'
  cores = '--cpus-per-task=8'  # srun ignores that of sbatch.
  allotted = {'--nodes=2', '--ntasks-per-node=8', '--signal=TERM@180', cores}
  assert allotted <= {*submit}
  assert submit[-5:] == ['-A', 'me', 'launch/slurm.sh', *FLAGS]
  assert srun[:2] == ['srun', '--kill-on-bad-exit=1']
  assert cores in srun
  assert srun[-4:] == ['lipnext_jax.main', '--coordinator=auto', *FLAGS]


def test_slurm_jobs_queue_again_and_run_in_a_container_after_their_setup(fake):
  def in_job(**environment):
    done = run('slurm.sh', *FLAGS, LIPNEXT_IN_JOB='1', **environment)
    return done.returncode, done.stdout

  # A run that saved a checkpoint is queued again.
  path = fake(srun='exit 143', scontrol='echo scontrol "$@"')
  assert in_job(PATH=path, SLURM_JOB_ID='7') == (0, 'scontrol requeue 7\n')
  assert in_job(PATH=fake(srun='exit 2'), SLURM_JOB_ID='7') == (2, '')
  # Modules read variables that may be unset, and extend PATH.
  path = fake(srun='echo "$@"')
  setup = f'export OLD=$UNSET PATH={path}'
  code, out = in_job(CONTAINER='my.sif', SETUP=setup)
  assert code == 0
  program = 'python -m lipnext_jax.main --coordinator=auto ' + ' '.join(FLAGS)
  assert out.endswith(f'apptainer exec --nv my.sif {program}\n')
  assert in_job(CONTAINER='my.sif', SETUP=f'{setup}; false') == (1, '')


def test_tpu_hosts_get_the_same_command_and_a_setup_renews_the_code_alone(
  tmp_path, fake
):
  """Scripts stand for gcloud, whose host is a folder, and for every Python."""
  pod = {'TPU': 'pod', 'ZONE': 'z', 'SETUP': '1'}
  assert len(dry_run('tpu_pod.sh', **pod).splitlines()) == 4
  repository = tmp_path / 'host' / 'lipnext_jax'
  old, kept = repository / 'lipnext_jax', repository / '.venv' / 'bin'
  for folder in (old, kept):
    folder.mkdir(parents=True)
    (folder / 'old.py').touch()
  log = 'printf "%s\\n" "${0##*/}" "$@" >> log'
  fake(kept, pip=log, python=log)
  gcloud = (
    'cd ${0%/*}/host; export HOME=$PWD\n'
    'case "$*" in\n'
    '  *" tpu-vm scp "*" pod: --zone=z --worker=all") cp "$5" . ;;\n'
    '  *" tpu-vm ssh pod --zone=z --worker=all --command="*)\n'
    '    command=${!#}; bash -c "${command#--command=}" ;;\n'
    '  *) exit 9 ;;\n'
    'esac'
  )
  path = fake(gcloud=gcloud, python3=log)
  done = run('tpu_pod.sh', *FLAGS, PATH=path, **pod)
  assert done.returncode == 0, done.stderr
  assert not (old / 'old.py').exists()
  assert (old / 'main.py').exists()
  assert (kept / 'old.py').exists()
  # The remote shell parses the flags as they were given.
  assert (repository / 'log').read_text().splitlines() == [
    *('python3', '-m', 'venv', '.venv'),
    *('pip', 'install', '-q', '-c', 'constraints.txt'),
    *('-e', '.[train,data,gcs,tpu]'),
    *('python', '-m', 'lipnext_jax.main', '--coordinator=auto', *FLAGS),
  ]


def test_a_failure_of_one_process_is_the_exit_code(tmp_path, fake):
  # Process 1 fails, the other one waits.
  fake(python='[[ "$*" == *--process_id=1* ]] && exit 2\nsleep 1')
  python = str(tmp_path / 'python')
  done = run('local.sh', '2', *FLAGS, PYTHON=python, PORT='1234')
  assert (done.returncode, done.stderr) == (2, '')


@pytest.mark.parametrize('processes', ['0', 'two', '9'])
def test_a_wrong_number_of_processes_is_refused(processes):
  done = run('local.sh', processes, *FLAGS)
  wrong = f'{processes} processes on 8 devices; give a number from 1 to DEVICES'
  assert (done.returncode, done.stderr) == (2, f'error: {wrong}\n')


def make_jobset(**options):
  return yaml.safe_load(dry_run('gke.sh', IMAGE='image:1', **options))


def check_jobset(found):
  """Checks a JobSet by its documentation and its Job by the schema.

  Returns what the Job says of its pods.
  """
  assert found['apiVersion'] == 'jobset.x-k8s.io/v1alpha2'
  assert set(found) == {'apiVersion', 'kind', 'metadata', 'spec'}
  assert set(found['spec']) == {'failurePolicy', 'replicatedJobs'}
  assert isinstance(found['spec']['failurePolicy']['maxRestarts'], int)
  (job,) = found['spec']['replicatedJobs']
  assert set(job) == {'name', 'replicas', 'template'}
  whole = {'apiVersion': 'batch/v1', 'kind': 'Job', **job['template']}
  whole['metadata'] = {'name': job['name']}
  kubernetes_validate.validate(whole, '1.31', strict=True)
  return job['template']['spec']['template']['spec']


def test_the_manifest_is_valid_and_carries_the_flags_and_the_user():
  tpu = {'RESOURCE': 'google.com/tpu', 'CHIPS': '4', 'SELECTOR': 'a=b c=d'}
  jobset = make_jobset(NODES='4', RUN_AS='1000', **tpu)
  pod = check_jobset(jobset)
  assert pod['nodeSelector'] == {'a': 'b', 'c': 'd'}
  user = dict.fromkeys(('runAsUser', 'runAsGroup', 'fsGroup'), 1000)
  user['fsGroupChangePolicy'] = 'OnRootMismatch'
  assert pod['securityContext'] == user
  (container,) = pod['containers']
  assert container['command'][-3:] == ['--coordinator=env', *FLAGS]
  assert container['resources']['limits'] == {'google.com/tpu': '4'}
  names = 'JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID'
  assert tuple(variable['name'] for variable in container['env']) == names
  job = jobset['spec']['replicatedJobs'][0]['template']['spec']
  assert job['completions'] == job['parallelism'] == 4
  # A field that Kubernetes does not know is found.
  job['completionsMode'] = job.pop('completionMode')
  with pytest.raises(kubernetes_validate.ValidationError):
    check_jobset(jobset)


def dockerfile(word, text=DOCKERFILE):
  """Returns the rest of each instruction that starts with a word."""
  return re.findall(rf'^{word}\s+(.*)', text, re.MULTILINE)


def test_the_dockerfile_is_clean_and_copies_files_that_exist():
  done = lint(ROOT / 'Dockerfile', 'hadolint')
  assert done.returncode == 0, done.stdout
  (base,) = dockerfile('FROM')
  assert re.fullmatch(r'python:3\.11\.\d+-slim-\w+', base)
  copied = [path for rest in dockerfile('COPY') for path in rest.split()[:-1]]
  assert {'setup.cfg', 'constraints.txt', 'lipnext_jax/'} <= {*copied}
  ignored, *seen = (ROOT / '.dockerignore').read_text().splitlines()[1:]
  assert ignored == '*'
  for path in copied:
    assert (ROOT / path).exists(), path
    assert f'!{path.split("/")[0]}' in seen


def test_the_layer_of_the_dependencies_can_be_installed(tmp_path):
  """The files copied before it suffice for the package's metadata."""
  before, _ = DOCKERFILE.split('[$extras]')
  for *paths, target in map(str.split, dockerfile('COPY', before)):
    (tmp_path / target).mkdir(exist_ok=True)
    for path in paths:
      shutil.copy(ROOT / path, tmp_path / target)
  setup = 'import setuptools; setuptools.setup()'
  done = call(sys.executable, '-c', setup, '--version', cwd=tmp_path)
  assert done.stdout.split()[-1] == lipnext_jax.__version__


@pytest.mark.parametrize('accelerator', ['cuda', 'tpu', 'cpu', 'gpu'])
def test_the_image_installs_extras_that_exist(accelerator, fake):
  """Runs the image's commands with a script in place of pip."""
  install, last = (run for run in dockerfile('RUN') if 'pip install' in run)
  assert last.endswith('--no-deps -e .')
  path = fake(pip='printf "%s\\n" "$@"')
  environment = {'PATH': path, 'ACCELERATOR': accelerator}
  done = call('sh', '-c', install, env=environment)
  if accelerator == 'gpu':
    refusal = 'error: ACCELERATOR=gpu; give cuda, tpu or cpu\n'
    assert (done.returncode, done.stderr) == (2, refusal)
    return
  assert done.returncode == 0, done.stderr
  *command, project = done.stdout.splitlines()
  assert command == ['install', '--no-cache-dir', '-c', 'constraints.txt']
  extras = requirements.Requirement(f'x{project.removeprefix(".")}').extras
  assert extras == {'train', 'data', 'gcs', accelerator} - {'cpu'}
  setup = configparser.ConfigParser()
  setup.read(ROOT / 'setup.cfg')
  assert extras <= {*setup['options.extras_require']}


def test_the_image_has_what_the_manifest_expects():
  pod = check_jobset(make_jobset())
  assert pod['securityContext'] == {'runAsUser': 0}
  (container,) = pod['containers']
  assert dockerfile('WORKDIR') == [container['workingDir']]
  (entrypoint,) = map(json.loads, dockerfile('ENTRYPOINT'))
  assert container['command'][: len(entrypoint)] == entrypoint
  mounts = {m['name']: m['mountPath'] for m in container['volumeMounts']}
  commands = ' '.join(dockerfile('RUN'))
  assert f'--owner=lipnext --group=lipnext {mounts["data"]}' in commands
  assert '--uid=1000' in commands
  assert dockerfile('USER') == ['1000']
