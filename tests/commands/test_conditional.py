"""Class labels: in G and D, dropped at random, requested and measured; and every invalid label."""

import dataclasses
import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import ddgan_jax
from ddgan_jax import config as config_lib
from ddgan_jax import edit, export, models, sample, sampling, train_state, train_step
from ddgan_jax.benchmark import performance
from ddgan_jax.cli import image_output
from ddgan_jax.compare import measurement
from ddgan_jax.config import ConfigError, DiscriminatorConfig, GeneratorConfig
from ddgan_jax.data import sources
from ddgan_jax.interop import pytorch, safetensors_file
from ddgan_jax.metrics import evaluator, image_sets, modes, reports
from ddgan_jax.models import labels
from ddgan_jax.parallel import sharding
from ddgan_jax.reporting import tensorboard
from ddgan_jax.training import loop, results
from tests.objectives.test_ablations import normal, random_params, random_state, toy_config
from tests.support import programs, quick_config_dict, tiny_config_dict
from tests.support.commands import run_command, succeed

U_NET = GeneratorConfig(
    image_size=8, num_channels=1, num_channels_dae=8, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(), nz=4,
    z_emb_dim=8, n_mlp=1)
MLP = GeneratorConfig(kind='mlp', not_use_tanh=True, image_size=1, num_channels=2, num_channels_dae=8, nz=4)


def g_module(config):
  return (models.MlpGenerator if config.kind == 'mlp' else models.Generator)(config)


def d_module(config):
  return (models.MlpDiscriminator if config.kind == 'mlp' else models.Discriminator)(config)


def g_inputs(config, batch):
  x, z = normal((batch, config.image_size, config.image_size, config.num_channels), (batch, config.nz))
  return x, np.zeros(batch, np.int32), z


def param_shapes(module, *inputs):
  return jax.eval_shape(module.init, jax.random.key(0), *inputs)['params']


D_KINDS = {'small': 8, 'large': 64, 'tiny': 8, 'mlp': 1}


@functools.cache
def conditional_discriminator(kind, stack):
  """A conditional D, its parameters, its inputs, and its logits without `label_embedding`."""
  config, pair = d_config(kind), d_inputs(kind)
  params = random_params(param_shapes(d_module(config), *pair), scale=1.0 if kind == 'mlp' else 0.3)
  logits = jax.jit(d_module(config).apply)({'params': params}, *pair)
  return d_module(dataclasses.replace(config, num_classes=5, stack=stack)), params, pair, np.asarray(logits)


def d_config(kind):
  return DiscriminatorConfig(kind=kind, image_size=D_KINDS[kind], num_channels=3, ngf=4, t_emb_dim=8)


def d_inputs(kind):
  x_t, x_tp1 = normal(*2 * [(4, D_KINDS[kind], D_KINDS[kind], 3)])
  return x_t, np.array([0, 1, 2, 3], np.int32), x_tp1


@pytest.mark.parametrize('kind', D_KINDS)
def test_without_classes_the_discriminator_has_no_label_parameters(kind):
  config, pair = d_config(kind), d_inputs(kind)
  plain = param_shapes(d_module(config), *pair)
  conditional = param_shapes(d_module(dataclasses.replace(config, num_classes=5)), *pair)
  assert conditional.pop('label_embedding')['tables'].shape == (1, 6, plain['dense_out']['kernel'].size)
  assert jax.tree.map(np.shape, conditional) == jax.tree.map(np.shape, plain)


@pytest.mark.parametrize('kind, stack, label, digits', [
    ('tiny', 1, [0, 3, 4, -1], [[0], [3], [4], [5]]), ('mlp', 1, [0, 3, 4, -1], [[0], [3], [4], [5]]),
    ('mlp', 3, [0, 314, 440, -1], [[0, 0, 0], [3, 1, 4], [4, 4, 0], [5, 5, 5]]),
])
def test_projection_logits_have_a_closed_form(kind, stack, label, digits):
  """If V[y] = a[y] w and the logit without a label is <w, h> + b, the logit is (1 + a[y]) <w, h> + b."""
  module, params, pair, logits = conditional_discriminator(kind, stack)
  kernel, bias = params['dense_out']['kernel'][:, 0], params['dense_out']['bias']
  factors, = normal((stack, 6), seed=1)
  tables = {'label_embedding': {'tables': factors[..., None] * kernel}}
  found = jax.jit(module.apply)({'params': params | tables}, *pair, np.array(label, np.int32))
  weights = 1 + factors[np.arange(stack), np.array(digits)].sum(1)
  np.testing.assert_allclose(found, weights * (logits - bias) + bias, rtol=1e-4, atol=1e-5)
  assert np.ptp(weights) > 0.5 and np.abs(logits - bias).min() > 1e-3


@pytest.mark.parametrize('config', [
    U_NET, dataclasses.replace(U_NET, nz=0), MLP, dataclasses.replace(U_NET, stack=3, num_channels=3)],
    ids=['u-net', 'no latent', 'mlp', 'stack'])
def test_each_label_gives_a_different_image(config):
  """Without classes G has no label parameters; with them each label, and no label, gives a different image."""
  inputs = g_inputs(config, 4)
  plain = param_shapes(g_module(config), *inputs)
  conditional = dataclasses.replace(config, num_classes=5)
  shapes = param_shapes(g_module(conditional), *inputs)
  width = 32 if config.kind == 'mlp' else config.z_emb_dim
  assert shapes.pop('label_embedding')['tables'].shape == (config.stack, 6, width)
  if config.nz and config.kind == 'ncsnpp':
    assert jax.tree.map(np.shape, shapes) == jax.tree.map(np.shape, plain)
  params = random_params(param_shapes(g_module(conditional), *inputs), scale=1.0 if config.kind == 'mlp' else 0.3)
  repeated = [np.broadcast_to(array[:1], array.shape) for array in inputs]  # the same noise in every row
  apply = jax.jit(g_module(conditional).apply)
  label = np.array([-1, 2, 4, 2], np.int32) if config.stack == 1 else np.array([-1, 123, 321, 123], np.int32)
  images = np.asarray(apply({'params': params}, *repeated, label))
  np.testing.assert_array_equal(images[1], images[3])
  for a, b in ((0, 1), (0, 2), (1, 2)):
    assert np.abs(images[a] - images[b]).max() > 1e-2
  np.testing.assert_array_equal(apply({'params': params}, *repeated, np.full_like(label, -1)), images[[0, 0, 0, 0]])
  np.testing.assert_allclose(apply({'params': params}, *repeated), images[[0, 0, 0, 0]], atol=1e-6)  # another program
  # Class numbers carry no meaning: permuting the rows of the tables and the labels alike changes nothing.
  order = np.array([4, 2, 0, 3, 1])  # row i now holds that of class order[i]
  tables = params['label_embedding']['tables'][:, [*order, 5]]
  renamed = labels.from_digits(np.argsort(order)[labels.digits(np.maximum(label, 0), config.stack)])
  renamed = np.where(label < 0, -1, renamed)
  np.testing.assert_allclose(
      apply({'params': params | {'label_embedding': {'tables': tables}}}, *repeated, renamed.astype(np.int32)), images,
      atol=1e-6)


def conditional(method='ddgan', accumulation=1, label_dropout=0.5, **generator):
  """A run on points whose labels are 0 … 24."""
  return toy_config(method, accumulation=accumulation, num_classes=25, label_dropout=label_dropout, **generator)


def points(config):
  rng = np.random.default_rng(0)
  label = rng.integers(0, 25, config.data.batch_size).astype(np.int32)
  return np.tanh(*normal((len(label), 1, 1, 2))), label


@functools.cache
def trained(num_devices, accumulation, label_dropout=0.5, shift=0):
  """The losses of four steps and the last G, with all labels shifted by `shift`."""
  config = conditional(accumulation=accumulation, label_dropout=label_dropout)
  config = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=64))
  mesh = sharding.make_mesh(jax.devices()[:num_devices])
  state = jax.device_put(
      random_state(config), sharding.tree_shardings(train_state.abstract_state(config, sharding.state_sharding(mesh))))
  step = train_step.make_step_fn(config, mesh, with_r1=True)
  x_0, label = points(config)
  losses = []
  for _ in range(4):
    state, metrics = step(state, *jax.device_put((x_0, (label + shift) % 25), sharding.batch_sharding(mesh)))
    losses.append([metrics[name] for name in ('loss_d', 'loss_g', 'r1_penalty')])
  return np.asarray(losses), jax.device_get(state.g_params)


def test_dropped_labels_do_not_depend_on_the_topology():
  expected, params = trained(1, 1)
  found, other_params = trained(8, accumulation=2)
  np.testing.assert_allclose(found, expected, rtol=1e-4)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), params, other_params)
  for changed in (trained(1, 1, shift=1), trained(1, 1, label_dropout=0.25)):
    assert np.abs(changed[0] - expected).max() > 1e-3  # labels matter, and which are dropped


def moved_rows(tables, before):
  return np.flatnonzero((np.asarray(tables) != before).any((0, 2)))


@pytest.mark.parametrize('config', [
    conditional(), conditional('gaussian'), conditional('augmented_gan')], ids=lambda config: config.method)
def test_only_rows_of_kept_labels_are_updated(config):
  """A step updates the rows of the batch's kept labels, and the last row if a label is dropped."""
  draws = train_step.make_draws(jax.random.key(0), (16, 1, 1, 2), 4, 3)
  x_0, _ = points(config)
  label = np.array([3, 7] * 8, np.int32)
  keep_sevens = train_step.Draws(*(half._replace(keep_label=jnp.asarray(label == 7)) for half in draws))
  before = random_state(config)
  run = jax.jit(functools.partial(train_step.train_step, setup=train_step.make_setup(config), with_r1=False))
  for step_draws, expected in ((draws, [3, 7]), (keep_sevens, [7, 25])):
    after, _ = run(before, x_0, step_draws, label)
    for name in ('g_params', 'd_params')[:1 if config.method == 'gaussian' else 2]:
      tables = getattr(before, name)['label_embedding']['tables']
      assert list(moved_rows(getattr(after, name)['label_embedding']['tables'], tables)) == expected, name


def test_labels_are_dropped_at_random():
  draws = train_step.make_draws(jax.random.key(0), (4000, 1, 1, 1), 4, 2, label_dropout=0.1)
  shares = [1 - np.mean(half.keep_label) for half in draws]
  assert all(0.08 < share < 0.12 for share in shares)
  assert (np.asarray(draws.d.keep_label) != np.asarray(draws.g.keep_label)).any()
  assert train_step.make_draws(jax.random.key(0), (4, 1, 1, 1), 4, 2).d.keep_label is None


def test_labels_and_digits():
  triples = labels.all_labels(GeneratorConfig(num_classes=10, stack=3))
  np.testing.assert_array_equal(triples, np.arange(1000))
  assert list(labels.all_labels(GeneratorConfig(num_classes=2, stack=3))) == [0, 1, 10, 11, 100, 101, 110, 111]
  np.testing.assert_array_equal(labels.digits(np.array([7, 314]), 3), [[0, 0, 7], [3, 1, 4]])
  np.testing.assert_array_equal(labels.digits(np.array([7, 314]), 1), [[7], [314]])
  ten = GeneratorConfig(num_classes=10)
  grid, columns = labels.grid_labels(ten, 25)
  assert columns == 2 and list(grid) == [*np.arange(10).repeat(2), *5 * [-1]]
  grid, columns = labels.grid_labels(dataclasses.replace(ten, label_dropout=0.0), 25)
  assert columns == 2 and list(grid) == [*np.arange(10).repeat(2), 0, 1, 2, 3, 4]
  grid, columns = labels.grid_labels(GeneratorConfig(num_classes=1000), 3)
  assert columns is None and list(grid) == [0, 500, 999]


@pytest.mark.parametrize('stack', [1, 3])
def test_drawn_labels_are_uniform_and_fixed_per_image(stack):
  config = GeneratorConfig(num_classes=5, stack=stack)
  drawn = np.asarray(labels.draw(0, np.arange(5000), config))
  np.testing.assert_array_equal(labels.draw(0, np.arange(100, 103), config), drawn[100:103])
  assert (np.asarray(labels.draw(1, np.arange(5000), config)) != drawn).any()
  for digit in labels.digits(drawn, stack).T:
    counts = np.bincount(digit, minlength=5)
    assert len(counts) == 5 and (np.square(counts - 1000) / 1000).sum() / 4 < 4  # chi squared, 4 degrees of freedom


REFUSED = {
    'classes': ({'generator.num_classes': -1}, 'generator.num_classes is -1; use at least 0'),
    'label dropout': ({'generator.label_dropout': 1.0}, r'generator.label_dropout is 1.0; use a value in \[0, 1\)'),
    'a table of triples': (
        {'generator.num_classes': 1000, 'data.stack': 3, 'data.num_channels': 3},
        r'generator.num_classes is 1000; use at most 10 with data.stack=3, where each image is one digit'),
    'set twice': ({'discriminator.num_classes': 10},
                  'discriminator.num_classes is set by generator.num_classes; use that'),
    'no labels to request': ({'eval.metrics': ('label_accuracy',)},
                             "eval.metrics contains 'label_accuracy'; use it with a generator.num_classes"),
}


@pytest.mark.parametrize('fields, message', REFUSED.values(), ids=REFUSED.keys())
def test_invalid_configs_are_refused(fields, message):
  nested = tiny_config_dict()
  for name, value in fields.items():
    section, field = name.split('.')
    nested.setdefault(section, {})[field] = value
  with pytest.raises(ConfigError, match=message):
    config_lib.from_config_dict(nested)


def quick_config(**generator):
  nested = quick_config_dict()
  nested['generator'] |= {'num_classes': 10, **generator}
  return config_lib.from_config_dict(nested)


def digits_config(**generator):
  nested = tiny_config_dict()
  nested['generator'] |= {'num_classes': 10, **generator}
  return config_lib.from_config_dict(nested)


@pytest.mark.parametrize('known, message', [
    (None, 'generator.num_classes is 10, but some has no labels; use 0'),
    ([0, 11], 'generator.num_classes is 10, but the largest label of some is 11; use 12'),
    ([-1, 3], r'generator.num_classes is 10, but some images of some have no label \(their label is -1\)'),
])
def test_data_without_suitable_labels_are_refused(known, message):
  source = sources.ArraySource(np.zeros((2, 8, 8, 1), np.uint8), known and np.array(known), 'some')
  with pytest.raises(ConfigError, match=message):
    labels.check_data(digits_config(), source)
  labels.check_data(digits_config(num_classes=0), source)


def test_unlabelled_data_are_refused_before_compilation(tmp_path, capsys):
  np.savez(tmp_path / 'x.npz', images=np.zeros((40, 8, 8, 1), np.uint8))
  config = digits_config()
  config = dataclasses.replace(
      config, data=dataclasses.replace(config.data, name='npz', path=str(tmp_path / 'x.npz'), cache_dir=str(tmp_path)))
  with pytest.raises(config_lib.UserError, match='generator.num_classes is 10, but .*x.npz has no labels'):
    loop.train_and_evaluate(config, str(tmp_path / 'run'))
  assert 'Compiling' not in capsys.readouterr().out and not (tmp_path / 'run' / 'config.json').exists()


@pytest.mark.parametrize('requested, fields, message', [
    (10, {}, r'label is 10; use a label of this run, 0 … 9'),
    (-2, {}, r'label is -2; use a label of this run, 0 … 9'),
    (np.array([3, 12]), {}, r'label is 12; use a label of this run, 0 … 9'),
    (1.0, {}, 'label is 1.0; use an integer or an array of integers'),
    (3, {'num_classes': 0}, r'label is 3; omit it, .* trained without labels \(generator.num_classes=0\)'),
    (340, {'num_classes': 4, 'stack': 3}, r'label is 340; use .*, 100a \+ 10b \+ c with a, b and c in 0 … 3'),
    (None, {'label_dropout': 0.0}, r'label is none; use a label, 0 … 9, because .* generator.label_dropout=0'),
    ([3, -1], {'label_dropout': 0.0}, r'label is -1; use a label, 0 … 9'),
], ids=str)
def test_invalid_labels_are_refused(requested, fields, message):
  with pytest.raises(ConfigError, match=message):
    labels.check_label(requested, dataclasses.replace(U_NET, **{'num_classes': 10, **fields}))


def test_labels_from_the_command_line():
  config = dataclasses.replace(U_NET, num_classes=10)
  assert list(labels.parse('3', config)) == [3] and list(labels.parse('3,1,4', config)) == [3, 1, 4]
  assert list(labels.parse('all', config)) == list(range(10)) and labels.parse('none', config) is None
  with pytest.raises(ConfigError, match=r"--label is none; use 'all' or a label, 0 … 9"):
    labels.parse('none', dataclasses.replace(config, label_dropout=0.0))
  for text in ('three', '-1', '3,', '', '3,none'):
    with pytest.raises(ConfigError, match=f"--label is '{text}'; use a label such as 3, several such as 3,1,"):
      labels.parse(text, config)
  with pytest.raises(ConfigError, match='--label is 12; use'):
    labels.parse('3,12', config)
  for text in ('3', 'all'):
    with pytest.raises(ConfigError, match=r'--label .*the run was trained without labels'):
      labels.parse(text, U_NET)


def test_conditional_networks_have_no_original_format():
  with pytest.raises(pytorch.InteropError, match='num_classes is 10; use 0, because the generator of the original'):
    pytorch.generator_params({}, dataclasses.replace(U_NET, num_classes=10))
  with pytest.raises(pytorch.InteropError, match='the discriminator of the original is not conditioned'):
    pytorch.discriminator_params({}, DiscriminatorConfig(num_classes=10))


def test_label_accuracy():
  """With six classes, the classifier encodes 3, 1, 4 as mode 3 * 36 + 1 * 6 + 4."""
  predicted = np.array([3 * 36 + 1 * 6 + 4, 5 * 36, 0, 1])
  requested = np.array([314, 500, 5, 100])
  assert modes.label_accuracy(predicted, requested, 6, 3) == {'label_accuracy': 0.5, 'digit_accuracy': 9 / 12}
  assert modes.label_accuracy(np.array([3, 1, 4, 4]), np.array([3, 1, 4, 1]), 10, 1) == {'label_accuracy': 0.75}


@pytest.fixture(scope='module')
def run_config():
  config = quick_config()
  return dataclasses.replace(
      config, train=dataclasses.replace(
          config.train, num_steps=20, checkpoint_every=10, sample_every=20, num_samples=23, eval_every=20),
      eval=config_lib.EvalConfig(metrics=('label_accuracy',), num=64, batch_size=64, force=True))


@pytest.fixture(scope='module')
def finished(run_config, tmp_path_factory, digits_classifier):
  """The workdir of a conditional run of 20 steps on digits."""
  workdir = tmp_path_factory.mktemp('conditional') / 'run'
  with pytest.MonkeyPatch.context() as patch:
    programs.share(patch)
    patch.setattr(tensorboard, '_open_writer', lambda workdir: None)  # TensorFlow imports slowly
    loop.train_and_evaluate(run_config, str(workdir))
    yield workdir


def test_a_resumed_run_equals_an_uninterrupted_one(finished, run_config, tmp_path):
  shutil.copytree(finished, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '20')
  loop.train_and_evaluate(run_config, str(tmp_path / 'run'))
  expected, found = ddgan_jax.load(finished), ddgan_jax.load(tmp_path / 'run')
  assert expected.step == found.step == 20
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), expected.params, found.params)
  assert Image.open(finished / 'samples' / 'step_00000020.png').size == (102, 602)  # twelve rows of two: 2 * 10 + 3
  with pytest.raises(config_lib.UserError, match='generator.num_classes was 10, is 11'):
    loop.train_and_evaluate(
        dataclasses.replace(
            run_config, generator=dataclasses.replace(run_config.generator, num_classes=11),
            discriminator=dataclasses.replace(run_config.discriminator, num_classes=11)), str(finished))


def test_a_u_net_is_trained_with_labels(tmp_path, monkeypatch):
  monkeypatch.setattr(tensorboard, '_open_writer', lambda workdir: None)  # TensorFlow imports slowly
  config = digits_config()
  config = dataclasses.replace(config, train=dataclasses.replace(
      config.train, num_steps=1, checkpoint_every=1, sample_every=1, num_samples=23), optim=dataclasses.replace(
          config.optim, r1_gamma=0.0))  # one program to compile, the smaller one
  loop.train_and_evaluate(config, str(tmp_path))
  tables = ddgan_jax.load(tmp_path).params['label_embedding']['tables']
  assert ddgan_jax.load(tmp_path).step == 1 and tables.shape == (1, 11, 8) and np.isfinite(tables).all()
  assert Image.open(tmp_path / 'samples' / 'step_00000001.png').size == (102, 602)


def load_with_random_params(finished):
  """The loaded run, with random parameters so that its images differ."""
  run = ddgan_jax.load(finished)
  return dataclasses.replace(run, params=random_params(run.params, scale=1.0))


def test_images_depend_only_on_seed_index_and_label(finished):
  """Image i is a function of seed, i and its own label, whatever the labels of the other images."""
  run = load_with_random_params(finished)
  shape, nz = (3, *run.config.image_shape), run.config.generator.nz

  def sample(label):
    generator_fn, schedule = train_state.make_sampler(run.config, run.params, label=label)
    return np.asarray(jax.jit(lambda: sampling.sample(jax.random.key(0), generator_fn, schedule, shape, nz))())

  each = sample(np.array([4, -1, 7]))
  for i, label in enumerate((4, None, 7)):
    same_label = sample(label)
    np.testing.assert_allclose(each[i], same_label[i], atol=1e-5)
    assert np.abs(each - same_label).max() > 1e-2
  cycled = image_output.generate(run, 5, seed=3, batch_size=2, label=np.array([4, 7])).astype(int)
  for i, label in enumerate((4, 7, 4, 7, 4)):
    same_label = image_output.generate(run, 5, seed=3, label=np.array([label])).astype(int)
    assert np.abs(cycled[i] - same_label[i]).max() <= 1


def test_an_exported_run_takes_labels(finished, tmp_path):
  """Safetensors act like a workdir: the same generator for a label, and the same error."""
  run = load_with_random_params(finished)
  file = tmp_path / 'ema.safetensors'
  safetensors_file.write(file, run.params, run.config, run.step)
  x, z = normal((2, *run.config.image_shape), (2, run.config.generator.nz))
  t = np.array([0, 1])
  for label in (None, 4):
    expected, _ = train_state.make_sampler(run.config, run.params, label=label)
    np.testing.assert_array_equal(ddgan_jax.load(file, label=label).generator_fn(x, t, z), expected(x, t, z))
  with pytest.raises(ConfigError, match='12'):
    ddgan_jax.load(file, label=12)


def test_measured_samples_have_the_drawn_labels(finished):
  run = load_with_random_params(finished)
  mesh = sharding.make_mesh()
  images = image_sets.generated_images(run.config, 5, mesh)(run.params, 'run')
  requested = images.requested_labels(16)
  assert len(set(requested)) > 4
  expected = image_output.generate(run, 16, seed=5, label=requested)
  assert np.abs(images.rows(0, 16).astype(int) - expected).max() <= 1


def test_label_accuracy_of_real_digits(finished, run_config):
  """Nearly 1 with their own labels, nearly 0 with other labels."""
  source = sources.load_source(run_config.data)
  pictures, true_labels = source.gather(np.arange(400))
  evaluate = evaluator.make_data_evaluator(
      dataclasses.replace(run_config, eval=dataclasses.replace(run_config.eval, num=400)), source, sharding.make_mesh(),
      log=lambda text: None)
  accuracies = []
  for label in (true_labels, (true_labels + 1) % 10):
    images = image_sets.array_images(pictures, 'digits')._replace(requested_labels=lambda num, label=label: label[:num])
    report = evaluate(images)
    accuracies.append(report['metrics']['label_accuracy']['value'])
  assert accuracies[0] > 0.97 and accuracies[1] < 0.03
  assert 'label accuracy' in reports.table(report) and 'held-out real images: 0.9' in reports.table(report)
  with pytest.raises(ConfigError, match='label_accuracy: digits has no requested labels; use a --workdir with'):
    evaluate(image_sets.array_images(pictures, 'digits'))


def always_labelled(config=None):
  """A run trained without label dropout."""
  config = config or quick_config(label_dropout=0.0)
  params = random_params(train_state.abstract_state(config, None).ema_params)
  return ddgan_jax.Run(*train_state.make_sampler(config, params), config, 0, params)


def test_a_run_without_label_dropout_requires_a_label():
  run = always_labelled()
  message = r'label is none; use a label, .* generator.label_dropout=0'
  x, z = normal((2, *run.config.image_shape), (2, run.config.generator.nz))
  with pytest.raises(ConfigError, match=message):
    run.generator_fn(x, np.zeros(2, np.int32), z)
  with pytest.raises(ConfigError, match=message):
    image_output.generate(run, 2, seed=0)
  for requested in (np.array([3, -1]), np.array([3, 12])):
    with pytest.raises(ConfigError, match=f'label is {requested[1]}; use'):
      image_output.generate(run, 2, seed=0, label=requested)
  assert image_output.generate(run, 2, seed=0, label=np.array([3])).std() > 10


def test_grids_comparisons_and_benchmarks_supply_labels(monkeypatch):
  """The sample grid, the samples of a comparison and the programs of a benchmark, for a run that requires labels."""
  run = always_labelled()
  config = dataclasses.replace(run.config, train=dataclasses.replace(run.config.train, num_samples=13))
  mesh = sharding.make_mesh(jax.devices()[:1])
  abstract = train_state.abstract_state(config, sharding.state_sharding(mesh)).ema_params
  assert np.asarray(results.make_sample_fn(config, mesh, abstract)(run.params)).std() > 10

  monkeypatch.setattr(measurement, '_MIN_SECONDS', 1e-9)
  monkeypatch.setattr(measurement, '_NUM_POINTS', 40)
  toy = always_labelled(conditional(label_dropout=0.0))
  rows = [{'run': one, 'num_timesteps': None} for one in (run, toy)]
  measurement.time_samplers(rows, repeats=1)
  drawn = np.asarray(labels.draw(0, np.arange(100), config.generator))
  np.testing.assert_array_equal(rows[0]['samples'], image_output.generate(run, 100, 0, label=drawn))
  assert rows[1]['samples'].shape == (40, 1, 1, 2) and all(row['seconds'] > 0 for row in rows)

  sample = performance.Programs(config)['sample_3']
  assert sample(run.params, 0).shape == (3, *config.image_shape)


@pytest.mark.parametrize('name, arguments, others', [
    ('sample', ['--out', 'x.npz'], "'all' or "), ('export', ['--out', 'x.stablehlo'], ''),
    ('edit', ['--task', 'interpolate', '--out', 'x.npz'], '')])
def test_commands_require_a_label_before_they_load_the_run(name, arguments, others, tmp_path):
  (tmp_path / 'config.json').write_text(config_lib.to_json(quick_config(label_dropout=0.0)))  # but no checkpoint
  main = {'sample': sample, 'export': export, 'edit': edit}[name].main
  assert run_command(main, '--workdir', tmp_path, *arguments, cwd=tmp_path) == (
      2, '', f'Error: --label is none; use {others}a label, 0 … 9, because the run was trained with '
      'generator.label_dropout=0\n')


def test_sampling_with_labels(finished, tmp_path):
  output = succeed(sample.main, '--workdir', finished, '--label', '7,2', '--num', '5', '--out', tmp_path / 'x.npz')
  assert output == f'5 images from step 20 of {finished}, label 7,2, seed 0: {tmp_path / "x.npz"}\n'
  with np.load(tmp_path / 'x.npz') as file:
    assert list(file['labels']) == [7, 2, 7, 2, 7] and file['images'].shape == (5, 8, 8, 1)
    images = file['images'].astype(int)
  assert np.abs(images - image_output.generate(ddgan_jax.load(finished), 5, 0, label=np.array([7, 2]))).max() <= 1
  steps = image_output.denoise(ddgan_jax.load(finished), 5, 0, np.array([7, 2]))
  assert steps.names == ['class 7', 'class 2', 'class 7', 'class 2', 'class 7']
  assert np.abs(images - steps.x_t[-1]).max() <= 1
  result = run_command(sample.main, '--workdir', finished, '--label', '10', '--out', tmp_path / 'y.npz')
  assert result == (2, '', 'Error: --label is 10; use a label of this run, 0 … 9\n')
  assert not (tmp_path / 'y.npz').exists()
