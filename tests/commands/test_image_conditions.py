"""Runs with data.condition: the networks, the step, a run from training to export, and every wrong condition."""

import dataclasses
import re
import shutil

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import ddgan_jax
from ddgan_jax import config as config_lib
from ddgan_jax import edit, evaluate, export, models, sample, sampling, train_state, train_step
from ddgan_jax.benchmark import flops, performance
from ddgan_jax.cli import image_output
from ddgan_jax.compare import __main__ as compare
from ddgan_jax.config import ConfigError, GeneratorConfig
from ddgan_jax.data import pipeline, sources
from ddgan_jax.interop import pytorch
from ddgan_jax.metrics import image_sets
from ddgan_jax.models import conditions
from ddgan_jax.parallel import sharding
from ddgan_jax.reporting import tensorboard
from ddgan_jax.runs import init_from
from ddgan_jax.runs.checkpoints import Checkpoints
from ddgan_jax.training import loop
from tests.objectives.test_ablations import normal, random_params, random_state
from tests.support import programs, quick_config_dict, tiny_config_dict
from tests.support.commands import run_command, succeed


def make_config(condition='lowres:2', tiny=False, channels=1, **generator):
  fields = (tiny_config_dict if tiny else quick_config_dict)(condition=condition, num_channels=channels)
  fields['generator'] |= generator
  fields['train'] |= {'num_steps': 4, 'sample_every': 4, 'checkpoint_every': 2, 'num_samples': 15}
  return config_lib.from_config_dict(fields)


U_NET = make_config(tiny=True).generator
D = make_config(tiny=True).discriminator


@pytest.mark.parametrize('kind', ['ncsnpp', 'mlp'])
def test_the_condition_is_more_channels(kind):
  """With zero weights on these channels each network is the plain one; None equals zeros; a small one is enlarged."""
  g, d = (make_config(tiny=kind == 'ncsnpp').generator, make_config(tiny=kind == 'ncsnpp').discriminator)
  plain_g, plain_d = (dataclasses.replace(each, condition_channels=0) for each in (g, d))
  g_class, d_class = ((models.Generator, models.Discriminator) if kind == 'ncsnpp' else
                      (models.MlpGenerator, models.MlpDiscriminator))
  x, other, z, small = normal((4, 8, 8, 1), (4, 8, 8, 1), (4, g.nz), (4, 4, 4, 1))
  t = np.array([0, 1, 0, 1], np.int32)
  large = np.asarray(jax.image.resize(small, (4, 8, 8, 1), 'linear'))
  for make, config, plain, inputs in ((g_class, g, plain_g, (x, t, z)), (d_class, d, plain_d, (x, t, other))):
    params = random_params(jax.eval_shape(make(config).init, jax.random.key(0), *inputs)['params'])
    apply = jax.jit(make(config).apply)
    found = {name: np.asarray(apply({'params': params}, *inputs, None, condition)) for name, condition in (
        ('none', None), ('zeros', np.zeros_like(small)), ('small', small), ('large', large))}
    np.testing.assert_allclose(found['none'], found['zeros'], atol=1e-6)
    np.testing.assert_allclose(found['small'], found['large'], atol=1e-5)
    assert np.abs(found['small'] - found['none']).max() > 1e-2
    if kind == 'ncsnpp':
      kernel = params['conv_in']['kernel']
      params['conv_in'] = params['conv_in'] | {'kernel': kernel[:, :, :-1]}
      expected = jax.jit(make(plain).apply)({'params': params}, *inputs)
      params['conv_in'] = params['conv_in'] | {'kernel': np.concatenate([kernel[:, :, :-1], 0 * kernel[:, :, -1:]], 2)}
      np.testing.assert_allclose(apply({'params': params}, *inputs, None, small), expected, rtol=1e-5, atol=1e-5)


def test_wrong_arrays_are_refused():
  x, z = normal((2, 8, 8, 1), (2, U_NET.nz))
  t = np.zeros(2, np.int32)
  params = {'params': {}}
  for condition, message in (
      (np.zeros((2, 3, 3, 1), np.float32), 'condition is 3x3; use a size that divides 8x8'),
      (np.zeros((2, 4, 4, 2), np.float32), r'condition is float32 \[2, 4, 4, 2\]; use floating point .*c=1'),
      (np.zeros((1, 4, 4, 1), np.float32), r'B=2'),
      (np.zeros((2, 4, 4, 1), np.uint8), 'condition is uint8')):
    with pytest.raises((ValueError, TypeError), match=message):
      models.Generator(U_NET).apply(params, x, t, z, None, condition)
    with pytest.raises((ValueError, TypeError), match=message):
      models.Discriminator(D).apply(params, x, t, x, None, condition)
  with pytest.raises(ValueError, match='condition is given; omit it, because the network has no condition'):
    models.Generator(GeneratorConfig(image_size=8, num_channels=1, ch_mult=(1,), attn_resolutions=(), nz=4)).apply(
        params, x, t, z, None, np.zeros((2, 4, 4, 1), np.float32))


def steps(config, num_devices, num_steps=2):
  """Metrics and the last state of training steps on fixed images."""
  mesh = sharding.make_mesh(jax.devices()[:num_devices])
  state = jax.device_put(
      random_state(config), sharding.tree_shardings(train_state.abstract_state(config, sharding.state_sharding(mesh))))
  source = sources.ArraySource(np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), np.uint8))
  history = []
  for i in range(num_steps):
    batch = pipeline.global_batch(source, config.data, 0, i)
    arrays = [jax.device_put(batch[name], sharding.batch_sharding(mesh)) for name in train_step.abstract_batch(
        config, mesh)]
    state, metrics = train_step.make_step_fn(config, mesh, with_r1=i == 0)(state, *arrays)
    history.append(metrics)
  return history, state


def test_eight_devices_with_augmentation_and_dropout_match_one():
  config = make_config('mask', condition_dropout=0.3)
  config = dataclasses.replace(
      config, discriminator=dataclasses.replace(
          config.discriminator, augment=('translation', 'cutout'), stddev_group=1))
  expected, state = steps(config, 1)
  split = dataclasses.replace(config, parallel=dataclasses.replace(config.parallel, accumulation=2))
  found, other = steps(split, 8)
  for actual, reference in zip(found, expected, strict=True):
    for name, value in reference.items():
      np.testing.assert_allclose(actual[name], value, rtol=1e-3, atol=1e-6, err_msg=name)
  # Adam makes a whole step of a gradient that is almost 0, so single weights may differ.
  differences = jax.tree.map(lambda a, b: np.ravel(np.abs(np.asarray(a) - b)), other.g_params, state.g_params)
  assert np.mean(np.concatenate(jax.tree.leaves(differences)) > 1e-5) < 1e-3


def test_dropped_conditions_are_zeros_and_change_no_other_draw():
  config = make_config(condition_dropout=0.5)
  setup = train_step.make_setup(config)
  key, shape = jax.random.key(2), (16, 8, 8, 1)
  draws = setup.draws(key, shape)
  plain = train_step.make_setup(make_config()).draws(key, shape)
  assert plain.d.keep_condition is None
  for one, other in zip(draws.g._replace(keep_condition=None, dropout_key=None), plain.g._replace(dropout_key=None)):
    jax.tree.map(np.testing.assert_array_equal, one, other)
  kept = np.concatenate([each.keep_condition for each in (draws.d, draws.g)])
  assert 6 < kept.sum() < 26 and not np.array_equal(draws.d.keep_condition, draws.g.keep_condition)
  x_0, condition = normal(shape, (16, 4, 4, 1))
  step = jax.jit(lambda draws, condition: train_step.train_step(
      random_state(config), x_0, draws, None, condition, setup=setup, with_r1=False)[1])
  none = jnp.zeros(16, bool)
  dropped = step(train_step.Draws(*(each._replace(keep_condition=none) for each in draws)), condition)
  zeros = step(train_step.Draws(*(each._replace(keep_condition=~none) for each in draws)), jnp.zeros_like(condition))
  jax.tree.map(np.testing.assert_array_equal, dropped, zeros)
  assert float(step(draws, condition)['loss_g']) != float(zeros['loss_g'])


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A run conditioned on 4x4 images, and its config."""
  workdir = tmp_path_factory.mktemp('superres') / 'run'
  config = make_config()
  with pytest.MonkeyPatch.context() as patch:
    programs.share(patch)
    patch.setattr(tensorboard, '_open_writer', lambda workdir: None)  # TensorFlow imports slowly
    assert loop.train_and_evaluate(config, str(workdir))
    yield workdir, config


def test_a_run_resumes_with_the_same_bits_and_draws_its_grid(finished, tmp_path):
  workdir, config = finished
  shutil.copytree(workdir, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '4')
  assert loop.train_and_evaluate(config, str(tmp_path / 'run'))
  abstract = train_state.abstract_state(config, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
  states = [Checkpoints(str(folder)).restore(abstract, 4) for folder in (workdir, tmp_path / 'run')]
  for a, b in zip(*(jax.tree.leaves(state.replace(rng=0)) for state in states), strict=True):
    np.testing.assert_array_equal(a, b)
  # 15 samples are two rows of condition, six samples and truth; each cell is enlarged six times, with gaps of 2.
  with Image.open(workdir / 'samples' / 'step_00000004.png') as image:
    assert image.size == (8 * 50 + 2, 16 + 2 * 50 + 2)
    grid = np.asarray(image)[16:]
  source = sources.load_source(config.data)
  truth = pipeline.global_batch(source, dataclasses.replace(config.data, batch_size=2), config.seed, 0)['image']
  cell = grid[2:50, 7 * 50 + 2:7 * 50 + 50].reshape(8, 6, 8, 6).mean((1, 3))
  assert np.corrcoef(cell.ravel(), truth[0].ravel())[0, 1] > 0.95
  with pytest.raises(config_lib.UserError, match="data.condition was lowres:2, is edges"):
    loop.train_and_evaluate(make_config('edges'), str(workdir))


def random_run(workdir):
  """The loaded run, with random parameters so that its images differ."""
  run = ddgan_jax.load(workdir)
  return dataclasses.replace(run, params=random_params(run.params, scale=1.0))


def test_samples_depend_on_their_condition(finished):
  run = random_run(finished[0])
  condition, = normal((3, 4, 4, 1))
  key = jax.random.key(0)
  images = np.asarray(run.sample(key, 3, condition=condition))
  one = np.asarray(run.sample(key, 3, condition=condition[1]))
  np.testing.assert_allclose(images[1], one[1], atol=1e-5)
  assert np.abs(images[0] - one[0]).max() > 1e-2
  generator_fn, schedule = train_state.make_sampler(run.config, run.params, condition=condition)
  np.testing.assert_allclose(
      images, sampling.sample(key, generator_fn, schedule, (3, 8, 8, 1), run.config.generator.nz), atol=1e-5)
  by_index = image_output.generate(run, 3, seed=0, batch_size=2, condition=condition)
  np.testing.assert_array_equal(
      by_index[2:], image_output.generate(run, 3, 0, 1, condition=condition)[2:])
  for wrong, error, message in (
      (None, ConfigError, r'condition is none; use an array of \[4, 4, 1\] .* generator.condition_dropout=0'),
      (condition[:2], ValueError, r'use \[h, w, c\] or \[3, h, w, c\]'),
      (np.zeros((8, 8, 1), np.float32), ConfigError, r"has shape \[8, 8, 1\]; use \[4, 4, 1\] for data.condition="),
      (np.zeros((4, 4, 1), np.uint8), TypeError, 'condition is uint8')):
    with pytest.raises(error, match=message):
      run.sample(key, 3, condition=wrong)
  with pytest.raises(ConfigError, match='condition is none'):
    run.generator_fn(*normal((1, 8, 8, 1)), np.zeros(1, np.int32), *normal((1, 4)))


def test_a_run_with_dropout_also_samples_without_a_condition():
  config = make_config(condition_dropout=0.1)
  params = random_params(train_state.abstract_state(config, None).g_params)
  x, z = normal((2, 8, 8, 1), (2, 4))
  t = np.zeros(2, np.int32)
  without, _ = train_state.make_sampler(config, params)
  zeros, _ = train_state.make_sampler(config, params, condition=np.zeros((4, 4, 1), np.float32))
  np.testing.assert_allclose(without(x, t, z), zeros(x, t, z), atol=1e-6)


def test_measured_samples_have_the_conditions_of_the_data(finished):
  run, source = random_run(finished[0]), sources.load_source(finished[1].data)
  mesh = sharding.make_mesh()
  given = image_sets.ConditionData(source, run.config.data)
  rows = image_sets.generated_images(run.config, 5, mesh, given=given)(run.params, 'run').rows(8, 8)
  condition = pipeline.stored_conditions(source, run.config.data, np.arange(16))
  expected = image_output.generate(run, 16, seed=5, condition=condition)[8:]
  assert np.abs(rows.astype(int) - expected).max() <= 1


def test_exported_samplers_take_conditions(finished, tmp_path):
  workdir, _ = finished
  succeed(export.main, '--workdir', workdir, '--out', tmp_path / 'x.stablehlo', '--platforms', 'cpu')
  exported = jax.export.deserialize(bytearray((tmp_path / 'x.stablehlo').read_bytes()))
  condition, = normal((3, 4, 4, 1))
  found = np.asarray(exported.call(np.uint32(4), np.arange(3, dtype=np.int32), condition))
  expected = image_output.generate(ddgan_jax.load(workdir), 3, seed=4, condition=condition)
  assert np.abs(found.astype(int) - expected).max() <= 1


def test_sampling_by_command(finished, tmp_path):
  workdir, _ = finished
  pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)
  np.savez(tmp_path / 'five.npz', images=pixels)
  succeed(sample.main, '--workdir', workdir, '--condition_from', tmp_path / 'five.npz', '--out', tmp_path / 'x.npz',
          '--num', 3)
  with np.load(tmp_path / 'x.npz') as found:
    assert found['images'].shape == (15, 8, 8, 1)
    np.testing.assert_array_equal(found['truths'], pixels)
    low = found['conditions']
    np.testing.assert_allclose(low, (pixels / 127.5 - 1).reshape(5, 4, 2, 4, 2, 1).mean((2, 4)), atol=1e-6)
    images = found['images']
  # The condition itself gives the same samples, from an npz and, if it has whole values, from an image.
  np.savez(tmp_path / 'conditions.npz', conditions=low)
  succeed(sample.main, '--workdir', workdir, '--condition', tmp_path / 'conditions.npz', '--out', tmp_path / 'y.npz',
          '--num', 3)
  with np.load(tmp_path / 'y.npz') as found:
    np.testing.assert_array_equal(found['images'], images)
    assert 'truths' not in found
  small = np.random.default_rng(1).integers(0, 256, (4, 4), np.uint8)
  Image.fromarray(small).save(tmp_path / 'small.png')
  succeed(sample.main, '--workdir', workdir, '--condition', tmp_path / 'small.png', '--out', tmp_path / 'z.npz')
  with np.load(tmp_path / 'z.npz') as found:
    np.testing.assert_allclose(found['conditions'][0, ..., 0], small / 127.5 - 1, atol=1e-6)
    assert len(found['images']) == 6
  # A grid has one row per condition, below the heads: condition, samples, mean, twice the deviation, and truth.
  succeed(sample.main, '--workdir', workdir, '--condition_from', tmp_path / 'five.npz', '--out', tmp_path / 'x.png')
  with Image.open(tmp_path / 'x.png') as image:
    assert image.size == (10 * 50 + 2, 16 + 5 * 50 + 2)


def test_labels_are_those_of_the_conditions():
  """In evaluations: each sample has condition and label of one stored image."""
  config = make_config(num_classes=10)
  params = random_params(train_state.abstract_state(config, None).g_params, scale=1.0)
  rng = np.random.default_rng(0)
  source = sources.ArraySource(
      rng.integers(0, 256, (6, 8, 8, 1), np.uint8), rng.integers(0, 10, 6).astype(np.int32), num_classes=10)
  given = image_sets.ConditionData(source, config.data, 2)
  images = image_sets.generated_images(config, 5, sharding.make_mesh(), given=given)(params, 'run')
  requested = images.requested_labels(16)
  np.testing.assert_array_equal(requested, source.labels[np.arange(16) // 2 % 6])
  condition = pipeline.stored_conditions(source, config.data, np.arange(16) // 2 % 6)
  run = ddgan_jax.Run(*train_state.make_sampler(config, params), config, 0, params)
  expected = image_output.generate(run, 16, seed=5, label=requested, condition=condition)
  assert np.abs(images.rows(0, 16).astype(int) - expected).max() <= 1


@pytest.mark.parametrize('num_stacks', [0, 5])
def test_stacks_have_the_conditions_of_consecutive_stacks(num_stacks):
  data_config = dataclasses.replace(make_config('edges').data, stack=3, num_channels=3, num_stacks=num_stacks)
  source = sources.ArraySource(
      np.random.default_rng(0).integers(0, 256, (7, 8, 8, 1), np.uint8), np.arange(7, dtype=np.int32))
  given = image_sets.ConditionData(source, data_config, 3)
  condition, label = given.conditions_and_labels(np.arange(4, 26), with_labels=True)
  numbers = pipeline.stored_numbers(source, data_config, np.arange(9))
  expected = pipeline.stored_conditions(source, data_config, numbers)
  np.testing.assert_array_equal(condition, expected[np.arange(4, 26) // 3])
  np.testing.assert_array_equal(
      label, pipeline.stored_labels(source, data_config, numbers)[np.arange(4, 26) // 3])
  assert len(np.unique(expected.reshape(9, -1), axis=0)) == (num_stacks or 9)


@pytest.mark.parametrize('fields', [
    {'train': {'steps_per_call': 2}}, {'parallel': {'fsdp': 4}}, {'data': {'transform': 'haar'}},
    {'method': 'ufogen'}, {'method': 'gaussian', 'diffusion': {'num_timesteps': 4}}], ids=str)
def test_conditions_combine_with(fields, tmp_path, monkeypatch):
  """Several steps in one program, a sharded state, Haar space, and other methods: a whole run, with labels."""
  monkeypatch.setattr(tensorboard, '_open_writer', lambda workdir: None)  # TensorFlow imports slowly
  nested = (tiny_config_dict if 'data' in fields else quick_config_dict)(condition='lowres:2')
  nested['generator'] |= {'num_classes': 10}
  nested['optim'] |= {'r1_gamma': 0.0}  # one program to compile
  nested['train'] |= {'num_steps': 2, 'sample_every': 2, 'checkpoint_every': 2, 'log_every': 2, 'num_samples': 6}
  for name, value in fields.items():
    nested[name] = nested.get(name, {}) | value if isinstance(value, dict) else value
  config = config_lib.from_config_dict(nested)
  assert loop.train_and_evaluate(config, str(tmp_path))
  run = ddgan_jax.load(tmp_path)
  images = run.sample(jax.random.key(0), 2, label=3, condition=np.zeros((4, 4, 1), np.float32))
  assert run.step == 2 and images.shape == (2, 8, 8, 1) and np.isfinite(images).all()
  assert (tmp_path / 'samples' / 'step_00000002.png').exists()


def test_a_run_starts_from_another_with_the_same_condition(tmp_path):
  write_state(make_config('edges'), tmp_path)
  for condition, taken in (('edges', 'G and D'), ('lowres:2', 'G')):
    config = make_config(condition)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, init_from=str(tmp_path)))
    init_from.check(config)
    abstract = train_state.abstract_state(config, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    _, said = init_from.initialize(jax.tree.map(jnp.asarray, random_state(config)), config, abstract, print)
    assert said.startswith(f'Starts with {taken} of ')
  config = make_config('none')
  with pytest.raises(ConfigError, match="init_from is .*, but data.condition is 'none'; use 'edges', as in that run"):
    init_from.check(dataclasses.replace(config, train=dataclasses.replace(config.train, init_from=str(tmp_path))))


def test_samples_in_a_folder(finished, tmp_path):
  pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), np.uint8)
  np.savez(tmp_path / 'two.npz', images=pixels)
  succeed(sample.main, '--workdir', finished[0], '--condition_from', tmp_path / 'two.npz', '--num', 2, '--out',
          tmp_path / 'out')
  assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == [
      '000000.png', '000001.png', '000002.png', '000003.png', 'input_0.png', 'input_1.png', 'truth_0.png',
      'truth_1.png']
  np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / 'out' / 'truth_1.png')), pixels[1, ..., 0])


def write_state(config, folder):
  (folder / 'config.json').write_text(config_lib.to_json(config))
  checkpoints = Checkpoints(folder)
  checkpoints.save(jax.tree.map(jnp.asarray, random_state(config)))
  checkpoints.close()


def test_transparent_pixels_are_the_hole(tmp_path):
  """`mask` reads the hole from the alpha channel, fitted like the image."""
  config = make_config('mask')
  write_state(config, tmp_path)
  pixels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
  alpha = np.full((8, 8), 255, np.uint8)
  alpha[2:5, 1:4] = 0
  Image.merge('LA', [Image.fromarray(pixels), Image.fromarray(alpha)]).save(tmp_path / 'hole.png')
  succeed(
      sample.main, '--workdir', tmp_path, '--condition', tmp_path / 'hole.png', '--out', tmp_path / 'x.npz', '--num', 2)
  with np.load(tmp_path / 'x.npz') as found:
    condition = found['conditions'][0]
  np.testing.assert_array_equal(condition[..., 1], np.where(alpha == 0, 1, -1))
  np.testing.assert_allclose(condition[..., 0], np.where(alpha == 0, 0, pixels / 127.5 - 1), atol=1e-6)
  # A folder with other files, an image of another size, and one that is rotated by its metadata.
  folder = tmp_path / 'folder'
  folder.mkdir()
  (folder / '.DS_Store').write_text('')
  large = Image.merge('LA', [Image.new('L', (16, 16), 0), Image.fromarray(alpha.repeat(2, 0).repeat(2, 1))])
  large.save(folder / 'a.png')
  exif = Image.Exif()
  exif[274] = 6  # rotated by 90 degrees
  Image.fromarray(np.stack([pixels, alpha], -1)[::-1].swapaxes(0, 1), 'LA').save(folder / 'b.png', exif=exif)
  succeed(sample.main, '--workdir', tmp_path, '--condition', folder, '--out', tmp_path / 'y.npz', '--num', 1)
  with np.load(tmp_path / 'y.npz') as found:
    scaled, rotated = found['conditions']
  known = scaled[..., 1] == -1
  assert (known <= (alpha == 255)).all() and known.sum() > 25
  np.testing.assert_array_equal(scaled[..., 0][known], -1)  # no white from behind the transparent pixels
  assert {*np.unique(rotated[..., 1])} == {-1, 1} and (rotated[..., 1] == 1).sum() == 9
  np.testing.assert_array_equal(np.sort(rotated[rotated[..., 1] == -1][:, 0]), np.sort(
      condition[condition[..., 1] == -1][:, 0]))
  (tmp_path / 'none').mkdir()
  result = run_command(sample.main, '--workdir', tmp_path, '--condition', tmp_path / 'none')
  assert result.status == 2 and 'none contains no image' in result.err
  Image.fromarray(pixels).save(tmp_path / 'opaque.png')
  result = run_command(sample.main, '--workdir', tmp_path, '--condition', tmp_path / 'opaque.png')
  assert result.status == 2 and 'opaque.png has no transparent pixel; make the pixels to fill transparent' in result.err


@pytest.mark.parametrize('flags, message', [
    ((), '--condition is missing; use --condition or --condition_from, because the run was trained with data.condit'),
    (('--condition', 'large.png'), 'large.png is 8x8; use 4x4, or --condition_from to compute the condition'),
    (('--condition', 'absent.png'), "--condition is 'absent.png', which does not exist"),
    (('--condition', 'text.png'), '--condition: text.png is not an image'),
    (('--condition', 'large.png', '--condition_from', 'large.png'), '--condition and --condition_from: use one of'),
    (('--condition', 'shape.npz'), r"'conditions' in shape.npz is float32\[2, 4, 4, 3\]; use float32 in"),
    (('--condition', 'nan.npz'), r"'conditions' in nan.npz has values in nan … nan; use \[-1, 1\]"),
    (('--condition', 'range.npz'), r"'conditions' in range.npz has values in 0.0 … 3.0; use \[-1, 1\]"),
    (('--condition', 'empty'), '--condition: empty contains no image'),
    (('--condition', 'folder'), r'--condition: large.png in folder is 8x8; use 4x4, or --condition_from'),
    (('--condition_from', 'large.png', '--trajectory'), '--trajectory: omit it, because it is not available for runs'),
    (('--trajectory',), '--trajectory: omit it, because it is not available for runs with data.condition'),
])
def test_wrong_input_of_sample(finished, tmp_path, flags, message):
  folder = tmp_path / 'folder'
  for each in (folder, tmp_path / 'empty'):
    each.mkdir()
  for path in (tmp_path / 'large.png', folder / 'large.png'):
    Image.new('L', (8, 8)).save(path)
  (tmp_path / 'text.png').write_text('hello')
  array = np.array([0, 3], np.float32).repeat(16).reshape(2, 4, 4, 1)
  for name, value in (('shape', array.repeat(3, axis=-1)), ('nan', array * np.nan), ('range', array)):
    np.savez(tmp_path / f'{name}.npz', conditions=value)
  result = run_command(sample.main, '--workdir', finished[0], *flags, cwd=tmp_path)
  assert result.status == 2 and len(result.err.strip().splitlines()) == 1
  assert re.search(message, result.err), result.err


def test_other_commands_refuse_conditions(finished, tmp_path):
  workdir, _ = finished
  Image.new('L', (8, 8)).save(tmp_path / 'x.png')
  result = run_command(edit.main, '--workdir', workdir, '--task', 'variations', '--image', tmp_path / 'x.png')
  assert result.status == 2 and "data.condition='lowres:2'; use ddgan sample --condition" in result.err
  result = run_command(compare.main, '--config', 'digits', '--config.data.condition=edges', '--workdir', tmp_path / 'c')
  assert result.status == 2 and "data.condition is 'edges'; use 'none', because compare has no conditions" in result.err
  for function, section in ((pytorch.generator_params, U_NET), (pytorch.discriminator_params, D)):
    with pytest.raises(pytorch.InteropError, match="data.condition is not 'none'"):
      function({}, section)
  write_state(make_config('none'), tmp_path)
  result = run_command(sample.main, '--workdir', tmp_path, '--condition', tmp_path / 'x.png')
  assert result.status == 2 and "--condition: omit it, because the run was trained with data.condition='none'" in (
      result.err)
  with pytest.raises(ConfigError, match="condition is given; omit it, .* data.condition='none'"):
    conditions.check_condition(np.zeros((4, 4, 1)), make_config('none'))


def test_benchmarks_supply_conditions():
  config = make_config()
  plain = make_config('none')
  assert flops.step_flops(config, False) > flops.step_flops(plain, False)
  assert flops.sample_flops(config) > flops.sample_flops(plain)
  images = jax.eval_shape(
      lambda params: performance.sample(config, 3, params, 0), train_state.abstract_state(config, None).ema_params)
  assert images.shape == (3, 8, 8, 1)


def test_a_run_on_pairs(tmp_path, monkeypatch):
  """From an npz with smaller grey conditions of RGB images."""
  monkeypatch.setattr(tensorboard, '_open_writer', lambda workdir: None)  # TensorFlow imports slowly
  rng = np.random.default_rng(0)
  arrays = {'images': rng.integers(0, 256, (40, 8, 8, 3), np.uint8),
            'conditions': rng.integers(0, 256, (40, 4, 4), np.uint8)}
  np.savez(tmp_path / 'x.npz', **arrays)
  fields = quick_config_dict(
      name='npz', path=str(tmp_path / 'x.npz'), num_channels=3, condition='pairs', pair_size=4, pair_channels=1,
      cache_dir=str(tmp_path / 'cache'))
  fields['train'] |= {'num_steps': 2, 'sample_every': 2, 'checkpoint_every': 1, 'num_samples': 6}
  config = config_lib.from_config_dict(fields)
  workdir = tmp_path / 'run'
  assert loop.train_and_evaluate(config, str(workdir))
  with Image.open(workdir / 'samples' / 'step_00000002.png') as image:
    assert image.size == (8 * 50 + 2, 16 + 50 + 2)
  Image.fromarray(arrays['conditions'][0]).save(tmp_path / 'small.png')
  succeed(sample.main, '--workdir', workdir, '--condition', tmp_path / 'small.png', '--out', tmp_path / 'x.png')
  out = succeed(evaluate.main, '--workdir', workdir, '--metrics', 'psnr,diversity', '--num', 4)
  assert 'PSNR, dB' in out
  for command, flags, message in (
      (evaluate, ('--metrics', 'psnr,consistency'), "consistency: omit it, because data.condition='pairs'"),
      (sample, ('--condition_from', tmp_path / 'small.png'), '--condition_from: use --condition, because'),
      (evaluate, ('--metrics', 'psnr', '--config', 'digits'), '--config.data.num_channels is 1; use 3, as in the run')):
    result = run_command(command.main, '--workdir', workdir, *flags)
    assert result.status == 2 and message in result.err, result.err
