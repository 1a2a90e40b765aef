"""Every command and Python block of the README and docs/ runs, with small networks and few images."""

import itertools
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from ddgan_jax.cli import ddgan
from ddgan_jax.config import protocols, recipes
from ddgan_jax.metrics.features import dinov2, inception, vgg
from ddgan_jax.reporting import tensorboard
from tests.support import GOLDEN, ROOT, command_environment, golden, hub_server
from tests.support.commands import succeed

PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
# Lines that set up a shell, or need a cluster or a bucket.
SKIPPED = ('python3 -m venv', '. .venv', 'pytest', 'tensorboard', 'export', 'gcloud', 'sbatch')
SMALL = {
    'generator.kind': 'mlp', 'generator.num_channels_dae': 16, 'discriminator.kind': 'mlp', 'discriminator.ngf': 16,
    'data.batch_size': 8, 'optim.lazy_reg': 1, 'train.num_steps': 2, 'train.log_every': 1, 'train.sample_every': 2,
    'train.checkpoint_every': 2, 'train.eval_every': 0, 'train.num_samples': 4, 'eval.batch_size': 20}
SMALL_U_NET = {
    'generator.kind': 'ncsnpp', 'generator.num_channels_dae': 8, 'generator.ch_mult': (1,),
    'generator.attn_resolutions': (), 'discriminator.kind': 'tiny', 'discriminator.ngf': 2}
FEW_IMAGES = {
    'sample': ['--num', 4], 'evaluate': ['--num', 20, '--batch_size', 20, '--force'],
    'edit': ['--num', 2], 'compare': ['--num', 20, '--force', '--repeats', 1],
    'benchmark': ['--repeats', 1, '--seconds', 0.01, '--what', 'sample', '--sample_batches', 1]}


def blocks(page, language):
  return re.findall(rf'^```{language}\n(.*?)^```', page.read_text(), re.DOTALL | re.MULTILINE)


def flags(fields):
  """`--config.FIELD=VALUE` for each field."""
  text = lambda value: ''.join(f'{item},' for item in value) if isinstance(value, list) else value
  return [f'--config.{field}={text(value)}' for field, value in fields.items()]


def with_fields(recipe, fields):
  """A recipe with these fields."""
  recipe.update_from_flattened_dict(fields)
  return recipe


class Workspace:
  """A folder with the files that the pages name, in which commands run with small settings."""

  def __init__(self, folder):
    self.folder = folder
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    for name, i in itertools.product(('cat', 'dog'), range(4)):
      for parent in ('photos', 'sketches'):
        (folder / parent / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[i]).save(folder / parent / name / f'{i}.png')
    for name, size in (('digit', 8), ('drawing', 8), ('mask', 8), ('small', 4)):
      Image.fromarray(255 * (rng.random((size, size)) > 0.5).astype(np.uint8)).save(folder / f'{name}.png')
    for name in ('photos', 'samples', 'cifar10'):
      np.savez(folder / f'{name}.npz', images=pixels)
    np.savez(folder / 'temperatures.npz', images=rng.uniform(250, 320, (40, 32, 32, 2)).astype(np.float32))
    shutil.copytree(ROOT / 'launch', folder / 'launch')
    shutil.copytree(ROOT / 'configs', folder / 'configs')
    shutil.copy(GOLDEN / 'netG_tiny.pth', folder / 'netG_1200.pth')

  def line(self, line):
    """Runs one line of a bash block."""
    for words in split(shlex.split(line, comments=True), '&&'):
      text = ' '.join(words)
      if words[0] == 'ddgan':
        self.ddgan(*words[1:])
      elif words[:2] == ['pip', 'install']:
        extras = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['optional-dependencies']
        assert words[2:] == ['-e', '.'] or set(re.findall(r'\w+', words[-1])) <= set(extras), text
      elif words[0] == 'python' and words[1].startswith('benchmarks/'):
        known = subprocess.run([sys.executable, ROOT / words[1], '--help'], capture_output=True, text=True).stdout
        assert all(word in known for word in words if word.startswith('--')), text
      elif words[:3] == ['python', '-m', 'ddgan_jax.main']:
        if 'gs://' not in text:
          self.ddgan('train', *words[3:])
      elif 'launch/' in text and not text.startswith(SKIPPED):
        launcher, *command = split(words, '--')
        self.run(*launcher, *(['--', 'true'] if command else []))
        if command:
          self.line(shlex.join(command[0]))
      else:
        assert text.startswith(SKIPPED), f'{text}: run it in tests/test_docs.py'

  def run(self, *words):
    variables = dict(word.split('=') for word in words if re.fullmatch(r'[A-Z]+=\S+', word))
    command = [sys.executable if word == 'python' else word for word in words[len(variables):]]
    result = subprocess.run(
        command, cwd=self.folder, env=command_environment() | variables, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr

  def ddgan(self, command, *words):
    words = list(words)
    flag_values = dict(itertools.pairwise(words))
    recipe, name = flag_values.get('--config', ''), flag_values.get('--workdir', '').removeprefix('runs/')
    is_new = command in ('train', 'compare') or '--from_pytorch' in words or name.endswith('.safetensors')
    is_new |= name.startswith('hf://')
    if name and not is_new:
      self.ensure_run(name)
    fields = {}
    if recipe == 'cifar10':
      fields |= {'data.name': 'npz', 'data.path': 'cifar10.npz'}
    if recipe and command in ('train', 'compare', 'benchmark'):
      fields |= SMALL
    if '--config.data.transform=haar' in words:  # an MLP has no such space
      fields |= SMALL_U_NET
    if '--from_pytorch' in words:
      _, options = golden('netG_tiny_io.npz')
      fields |= {f'generator.{field}': value for field, value in options.items() if field != 'image_size'}
      fields |= {'discriminator.ngf': 2, 'discriminator.t_emb_dim': 8}
    few_images = ['--steps_per_epoch', 10] if '--resume_file' in words else FEW_IMAGES.get(command, [])
    return succeed(ddgan.main, command, *words, *flags(fields), *few_images, cwd=self.folder)

  def ensure_run(self, name):
    if (self.folder / 'runs' / name).exists():
      return
    if name == 'cifar10':  # a U-Net, as the original's format requires
      self.ddgan('convert', '--from_pytorch', 'netG_1200.pth', '--config', 'cifar10', '--workdir', 'runs/cifar10')
    else:
      self.ddgan('train', '--config', name, '--workdir', f'runs/{name}')


def split(words, separator):
  """The lists of words between separators."""
  return [list(part) for is_separator, part in itertools.groupby(words, separator.__eq__) if not is_separator]


@pytest.fixture(scope='module')
def workspace(tmp_path_factory):
  folder = tmp_path_factory.mktemp('docs')
  with pytest.MonkeyPatch.context() as patch, hub_server.connected(patch, tmp_path_factory.mktemp('hub')) as server:
    server.owners.add('OWNER')
    yield Workspace(folder)


@pytest.fixture
def small_features(monkeypatch):
  """Mean colours in place of Inception and VGG16, whose weights cannot be downloaded here."""
  means = lambda params, images: images.mean((1, 2)).astype(np.float32)
  for module in (dinov2, inception, vgg):
    monkeypatch.setattr(module, 'load', lambda path, allow_any, *model: {})
  monkeypatch.setattr(inception, 'features', lambda params, images: (means(params, images),) * 2)
  monkeypatch.setattr(inception, 'clean_features', means)
  for module in (dinov2, vgg):
    monkeypatch.setattr(module, 'features', means)


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_every_command_runs(workspace, small_features, page, monkeypatch):
  few = {name: each._replace(flags=each.flags | {'num': 20}, data={}) for name, each in protocols.PROTOCOLS.items()}
  monkeypatch.setattr(protocols, 'PROTOCOLS', few)
  for line in itertools.chain.from_iterable(block.splitlines() for block in blocks(page, 'bash')):
    workspace.line(line)


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_every_python_block_runs(workspace, page, monkeypatch):
  for name in ('digits', 'digits_conditional'):
    if f"'runs/{name}'" in page.read_text():
      workspace.ensure_run(name)
  if 'ema.safetensors' in page.read_text():
    workspace.ddgan('export', '--workdir', 'runs/digits', '--safetensors', 'ema.safetensors', '--out', 'x.stablehlo')
  if 'hf://OWNER/NAME' in page.read_text():
    workspace.ddgan('export', '--workdir', 'runs/digits', '--hub', 'OWNER/NAME')
  monkeypatch.chdir(workspace.folder)
  if 'import wandb' in page.read_text():  # not installed; the recipe becomes small, as in `Workspace.ddgan`
    load = recipes.load
    monkeypatch.setattr(recipes, 'load', lambda spec: with_fields(load(spec), SMALL | {'data.batch_size': 32}))
    monkeypatch.setitem(sys.modules, 'wandb', wandb := mock.Mock())
    monkeypatch.setattr(tensorboard, '_open_writer', lambda workdir: None)  # TensorFlow imports slowly
  for block in blocks(page, 'python'):
    exec(compile(block, page.name, 'exec'), {})
  if 'import wandb' in page.read_text():
    run = wandb.init.return_value
    assert run.log.call_count >= 2 and run.config.update.called and run.finish.call_count == 1


def test_every_link_has_a_target():
  for page in PAGES:
    for target in re.findall(r'\]\(([^)#]+)', page.read_text()):
      assert target.startswith('https://') or (page.parent / target).exists(), f'{page.name}: {target}'
