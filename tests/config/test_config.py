"""Invalid configs are refused by name, and valid ones survive a JSON round trip."""

import functools
import pathlib

import pytest

from ddgan_jax import config as config_lib
from ddgan_jax.config import ConfigError, recipes
from tests.support import ROOT, tiny_config_dict

RECIPES = sorted(path.stem for path in (ROOT / 'configs').glob('[a-z]*.py'))
FOLDER_SIZES = (8, 16, 32, 64, 128, 256)


def with_fields(fields):
  nested = tiny_config_dict()
  for name, value in fields.items():
    *sections, field = name.split('.')
    node = nested
    for section in sections:
      node = node.setdefault(section, {})
    node[field] = value
  return nested


INVALID = {
    'unknown field': ({'optim.lr': 1e-4}, 'optim.lr: no such field; did you mean optim.lr_g?'),
    'unknown section': ({'optimizer.lr_g': 1e-4}, 'optimizer: no such field; did you mean optim?'),
    'shared field': ({'generator.image_size': 8}, 'generator.image_size is set by data.image_size; use that'),
    'text for a number': ({'train.num_steps': '100'}, r"train.num_steps is '100' \(str\); use an int"),
    'number for a switch': ({'data.flip': 1}, r'data.flip is 1 \(int\); use a bool'),
    'switch for a number': ({'seed': True}, r'seed is True \(bool\); use an int'),
    'number for a tuple': ({'generator.ch_mult': 2}, 'generator.ch_mult is 2; use a tuple'),
    'nan': ({'optim.lr_g': float('nan')}, 'optim.lr_g is nan; use a finite number'),
    'T': ({'diffusion.num_timesteps': 0}, 'diffusion.num_timesteps is 0; use at least 1'),
    'schedule': ({'diffusion.kind': 'cosine'}, "diffusion.kind is 'cosine'; use one of 'vp', 'geometric'"),
    'levels': ({'data.image_size': 10, 'generator.ch_mult': (1, 1, 2)},
               r'data.image_size is 10; use a multiple of 4, because generator.ch_mult=\(1, 1, 2\) halves'),
    'small D': ({'data.image_size': 12, 'discriminator.kind': 'small'},
                "is 12; use a multiple of 8, because discriminator.kind='small' halves the image 3 times"),
    'large D': ({'discriminator.kind': 'large'}, 'is 8; use a multiple of 64, .* halves the image 6 times'),
    'attention': ({'generator.attn_resolutions': (16,)},
                  'generator.attn_resolutions contains 16; use some of 8, the'),
    'group of rows': ({'data.batch_size': 30}, 'data.batch_size is 30; use a multiple of 4'),
    'stack': ({'data.stack': 3}, 'data.num_channels is 1; use 3 with data.stack=3'),
    'cat': ({'generator.progressive_combine': 'cat'}, "generator.progressive_combine is 'cat' and .* use 'input_skip'"),
    'fourier without t': ({'generator.embedding_type': 'fourier', 'generator.conditional': False},
                          "generator.embedding_type is 'fourier'; use it with generator.cond"),
    'kernel': ({'generator.fir_kernel': (1.0, -1.0)}, 'generator.fir_kernel is .* whose sum is not 0'),
    'ema': ({'optim.ema_decay': 1.0}, r'optim.ema_decay is 1.0; use a value in \[0, 1\)'),
    'dropout': ({'generator.dropout': -0.1}, r'generator.dropout is -0.1; use a value in \[0, 1\)'),
    'seed': ({'seed': 2**32}, r'seed is 4294967296; use a value in \[0, 4294967296\)'),
    'image size': ({'data.image_size': 0}, 'data.image_size is 0; use at least 1'),
    'pyramid': ({'generator.progressive_input': 'cat'},
                "generator.progressive_input is 'cat'; use one of 'none', 'input_skip', 'residual'"),
    'lr_min': ({'optim.lr_min': 1e-3}, 'optim.lr_g is 0.00016; use a positive value, at least optim.lr_min=0.001'),
    'dtype': ({'parallel.dtype': 'float16'}, "parallel.dtype is 'float16'; use one of"),
    'divergence': ({'train.on_nonfinite': 'ignore'},
                   "train.on_nonfinite is 'ignore'; use one of 'stop', 'rollback'"),
    'profile': ({'train.profile_steps': -1}, 'train.profile_steps is -1; use at least 0'),
    'method': ({'method': 'vae'}, "method is 'vae'; use one of 'ddgan', 'gaussian', 'augmented_gan'"),
    'prediction': ({'generator.prediction': 'v'},
                   "generator.prediction is 'v'; use one of 'x_0', 'noise', 'x_t'"),
    'direct Gaussian': ({'method': 'gaussian', 'generator.prediction': 'x_t'},
                        "generator.prediction is 'x_t'; use 'x_0' or 'noise' with method='gaussian': "),
    'one-shot noise': ({'method': 'augmented_gan', 'generator.prediction': 'noise'},
                       "generator.prediction is 'noise'; use 'x_0' with method='augmented_gan': "),
    'latent': ({'generator.nz': -1}, 'generator.nz is -1; use at least 0'),
    'dropout in an MLP': ({'generator.kind': 'mlp', 'generator.dropout': 0.1},
                          "generator.dropout is 0.1; use 0 with generator.kind='mlp'"),
    'fourier in an MLP': ({'generator.kind': 'mlp', 'generator.embedding_type': 'fourier'},
                          "generator.embedding_type is 'fourier'; use 'positional' with"),
    'images as points': ({'data.name': 'gaussians25'}, "data.num_channels is 1; use 2 with data.name='gaussians25'"),
    'two channels': ({'data.num_channels': 2}, 'data.num_channels is 2; use one of 1, 3'),
    'betas': ({'diffusion.beta_min': 30.0}, 'diffusion.beta_min is 30.0; use a value above 0 and below beta_max=20.0'),
}


@pytest.mark.parametrize('fields, message', INVALID.values(), ids=INVALID.keys())
def test_invalid_fields_are_refused_by_name(fields, message):
  with pytest.raises(ConfigError, match=message):
    config_lib.from_config_dict(with_fields(fields))


def test_the_batch_must_fit_the_devices():
  config = config_lib.from_config_dict(with_fields({'data.batch_size': 12}))
  config_lib.check_devices(config, 3)
  with pytest.raises(ConfigError, match='data.batch_size is 12; use a multiple of 16: 4 devices, times 4 rows'):
    config_lib.check_devices(config, 4)


@pytest.mark.parametrize('name', [*RECIPES, 'stacked_mnist_small:16'])
def test_recipes_are_valid(name):
  """Every file in configs/ is accepted, names its command, and survives a JSON round trip."""
  config_dict = recipes.load(name)
  if config_dict.data.name in ('folder', 'npz'):
    config_dict.data.path = 'photos'
  if config_dict.data.condition == 'pairs':
    config_dict.data.condition_path = 'sketches'
  config = config_lib.from_config_dict(config_dict)
  assert f'ddgan train --config {name}' in pathlib.Path(recipes.find(name.partition(':')[0])).read_text()
  assert config_lib.from_json(config_lib.to_json(config)) == config
  assert hash(config) == hash(config_lib.from_config_dict(config_dict))


@pytest.mark.parametrize('size', FOLDER_SIZES)
def test_the_folder_recipe_has_every_size(size):
  config_dict = recipes.load(f'folder:{size}')
  config_dict.data.path = 'photos'
  assert config_lib.from_config_dict(config_dict).image_shape == (size, size, 3)
  for name in ('folder:48', 'stacked_mnist_small:48'):
    with pytest.raises(ValueError, match="image size '48' is not supported; use (one of )?(8, )?16"):
      recipes.load(name)


@pytest.mark.parametrize('name', RECIPES)
def test_every_recipe_has_all_fields(name):
  """The command line sets only a field that exists, to a value of its type."""
  config_dict = recipes.load(name)
  for field, value in config_lib.flatten(config_lib.Config()).items():
    assert type(functools.reduce(getattr, field.split('.'), config_dict)) is type(value), field


def test_recipes_are_found_by_name_from_any_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'configs').mkdir()  # the user's own, not searched
  (tmp_path / 'configs' / 'digits.py').write_text('')
  (tmp_path / 'mine.py').write_text(
      'from ddgan_jax.config import recipes\n\ndef get_config():\n  c = recipes.load("digits")\n'
      '  c.seed = 7\n  return c\n')
  assert recipes.names() == RECIPES
  assert recipes.load('digits').data.image_size == 8
  assert recipes.load('mine.py').seed == 7
  with pytest.raises(ConfigError, match="--config: no recipe 'digit'; did you mean digits\\? The recipes are celebahq"):
    recipes.load('digit')
  with pytest.raises(ConfigError, match="--config: no such file 'none.py'; the recipes are celebahq_256, cifar10"):
    recipes.load('none.py')


@pytest.mark.parametrize('name, section, expected', [
    ('cifar10', 'optim', {'lr_g': 1.6e-4, 'lr_d': 1.25e-4, 'ema_decay': 0.9999, 'r1_gamma': 0.02, 'lazy_reg': 15}),
    ('celebahq_256', 'optim', {'lr_g': 2e-4, 'lr_d': 1e-4, 'ema_decay': 0.9999, 'r1_gamma': 2.0, 'lazy_reg': 10}),
    ('lsun_church_256', 'optim', {'lr_g': 1.6e-4, 'lr_d': 1e-4, 'ema_decay': 0.999, 'r1_gamma': 1.0, 'lazy_reg': 10}),
    ('cifar10', 'data', {'batch_size': 256, 'flip': True}),
    ('celebahq_256', 'data', {'batch_size': 32, 'flip': True, 'image_size': 256}),
    ('lsun_church_256', 'data', {'batch_size': 64, 'flip': True, 'image_size': 256, 'resize': 'crop'}),
    ('cifar10', 'diffusion', {'num_timesteps': 4}),
    ('celebahq_256', 'diffusion', {'num_timesteps': 2}),
    ('lsun_church_256', 'diffusion', {'num_timesteps': 4}),
    ('stacked_mnist', 'data', {'stack': 3, 'flip': False, 'resize': 'pad', 'image_size': 32}),
])
def test_recipes_have_the_published_settings(name, section, expected):
  config = recipes.load(name)
  assert {field: config[section][field] for field in expected} == expected
