"""The comparison of methods: the config of each, and the table and figures of the results."""

import dataclasses
import functools
import itertools
import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from ddgan_jax import config as config_lib
from ddgan_jax import sampling, train_state
from ddgan_jax.compare import __main__ as compare
from ddgan_jax.compare import comparison, measurement
from ddgan_jax.config import ConfigError, recipes
from ddgan_jax.metrics import reports
from ddgan_jax.parallel import sharding
from tests.commands.test_toy_run import SMALL
from tests.support import tiny_config_dict
from tests.support.commands import succeed


@pytest.fixture
def base():
  return config_lib.from_config_dict(tiny_config_dict(num_channels=3, stack=3))


def test_methods_share_data_network_and_budget(base):
  configs = {name: comparison.method_config(base, method, 70) for name, method in comparison.METHODS.items()}
  assert {name: config.diffusion.num_timesteps for name, config in configs.items()} == {
      'gan': 1, 'ddpm': 1000, 'ddgan_2': 2, 'ddgan_4': 4, 'ddgan_8': 8, 'augmented_gan': 4, 'no_latent': 4,
      'relativistic': 4, 'rduot': 4, 'ufogen': 4, 'siddm': 4, 'haar': 4}
  for name, config in configs.items():
    assert dataclasses.replace(config.data, transform='none') == base.data and config.train.num_steps == 70
    # An EMA decay of 0.9 averages 10 steps, more than a tenth of these 70.
    assert config.optim.ema_decay == pytest.approx(1 - 10 / 70)
    r1 = {'r1_gamma': base.optim.r1_gamma / 4, 'lazy_reg': 1} if name == 'relativistic' else {}  # the same on average
    assert config.optim == dataclasses.replace(base.optim, ema_decay=config.optim.ema_decay, **r1)
  assert comparison.method_config(base, comparison.METHODS['gan'], 100_000).optim == base.optim
  sizes = {
      name: train_state.count_parameters(train_state.abstract_state(config, None).g_params)
      for name, config in configs.items()}
  assert len({size for name, size in sizes.items() if name not in ('no_latent', 'haar')}) == 1
  assert sizes['no_latent'] < sizes['ddgan_4']  # no layers that read z
  assert configs['ddpm'].method == 'gaussian' and configs['ddpm'].generator.prediction == 'noise'
  assert configs['rduot'].objective.cost_weight == pytest.approx(1e-3 * 32**2 * 3 / (8 * 8 * 3))
  # A setting of one method reaches that method alone.
  base = config_lib.from_config_dict({
      **config_lib.to_dict(base), 'method': 'rduot', 'objective': {'cost_weight': 0.5}})
  for name, weight in (('rduot', 0.5), ('ddgan_4', 1e-3)):
    assert comparison.method_config(base, comparison.METHODS[name], 70).objective.cost_weight == weight


def rows(shape):
  entry = {'features': 'x', 'of_reference': 998, 'n_reference': 2000}
  out_of = 25 if shape == (1, 1, 2) else 10 ** shape[-1]
  return [
      {'title': title, 'evaluations': evaluations, 'seconds': seconds, 'n': 2000, 'biased': True,
       'samples': np.random.default_rng(0).uniform(-1, 1, (100, *shape)).astype(np.float32),
       'metrics': {'modes': {**entry, 'value': modes, 'out_of': out_of},
                   'mode_kl': {**entry, 'value': 0.5, 'of_reference': 0.25},
                   'fd_classifier': {'value': 3.25, 'features': 'x'},
                   **({'in_mode': {'value': 0.5, 'features': 'x'}} if shape == (1, 1, 2) else {})}}
      for title, evaluations, seconds, modes in (('DDGAN', 4, 0.21, 1000), ('Gaussian diffusion', 1000, 80.5, 1))]


def test_table(base):
  text = comparison.table(rows((8, 8, 3)), base, 70)
  assert text.splitlines() == [
      'digits: 70 steps, batch size 32, n = 2,000 samples (fewer than 10,000: biased); milliseconds are the median of '
      'one compiled call, minutes the training, with compilation.', '',
      '| method | network evaluations | FD (classifier) | modes found of 1,000 | KL to uniform | milliseconds per 100 '
      '| minutes |',
      '|---|---|---|---|---|---|---|',
      '| DDGAN | 4 | 3.25 | 1,000 | 0.5 | 210 |  |',
      '| Gaussian diffusion | 1,000 | 3.25 | 1 | 0.5 | 80,500 |  |',
      '| real data | |  | 998 | 0.25 | | |']


def test_average_over_seeds(base):
  one, other = (rows((8, 8, 3))[0] | {'images': f'seed {seed}'} for seed in (3, 4))
  other['metrics'] = {name: entry | {'value': entry['value'] - 4} for name, entry in other['metrics'].items()}
  averaged = reports.average([one, other])
  assert averaged['images'] == 'seed 3 and 1 more' and averaged['seeds'] == 2
  metrics = averaged['metrics']
  modes = metrics['modes']
  assert (modes['value'], modes['values'], modes['out_of']) == (998, [1000, 996], 1000)
  assert modes['std'] == pytest.approx(2 * 2**0.5)
  assert reports.average([one]) == one
  text = comparison.table([{**one, 'metrics': metrics, 'seeds': 2, 'minutes': 12.34}], base, 70)
  assert 'mean ± standard deviation of 2 seeds' in text
  assert '| DDGAN | 4 | 1.25 ± 2.8 | 998 ± 2.8 | -1.5 ± 2.8 | 210 | 12.3 |' in text


@pytest.mark.parametrize('shape', [(8, 8, 1), (8, 8, 3), (1, 1, 2)])
def test_figures(tmp_path, shape):
  """No figure is blank."""
  comparison.plot_quality(rows(shape), str(tmp_path / 'trilemma.png'))
  comparison.plot_samples(rows(shape), str(tmp_path / 'samples.png'))
  for name in ('trilemma', 'samples'):
    picture = np.asarray(Image.open(tmp_path / f'{name}.png').convert('L'))
    assert min(picture.shape) > 100 and picture.std() > 10


def test_quantised_samples_are_drawn_like_floats(tmp_path):
  floats = rows((8, 8, 1))
  comparison.plot_samples(floats, str(tmp_path / 'floats.png'))
  quantised = [{**row, 'samples': np.asarray(sampling.to_uint8(row['samples']))} for row in floats]
  comparison.plot_samples(quantised, str(tmp_path / 'quantised.png'))
  np.testing.assert_array_equal(*(np.asarray(Image.open(tmp_path / f'{name}.png')) for name in ('floats', 'quantised')))


def test_figure_labels_do_not_overlap():
  figure = Figure(layout='constrained')
  axes = figure.add_subplot()
  points = [(0.5, 0.1), (0.5, 0.11), (0.51, 0.12), (0.5, 0.9)]
  axes.scatter(*np.transpose(points))
  texts = [axes.annotate('two\nlines', point, xytext=(6, 6), textcoords='offset points') for point in points]
  figure.draw_without_rendering()
  separate = lambda: not any(
      a.get_window_extent().overlaps(b.get_window_extent()) for a, b in itertools.combinations(texts, 2))
  assert not separate()
  comparison._separate_labels(figure, texts)
  figure.draw_without_rendering()
  assert separate()


def test_unknown_methods_and_missing_metrics_are_refused():
  with pytest.raises(ConfigError, match="--methods contains 'vae'; use some of gan, ddpm, ddgan_2"):
    comparison.select_methods(['gan', 'vae'])
  for metrics, message in (
      (('is', 'pr'), 'fid, fid_clean, fd_dinov2, kid, mind, mind_dinov2 or modes for quality'),
      (('fid',), 'modes, pr, dc, pr_dinov2 or dc_dinov2 for coverage')):
    config = config_lib.from_config_dict({**tiny_config_dict(), 'eval': {'metrics': metrics}})
    with pytest.raises(ConfigError, match=rf'eval.metrics is \({metrics[0]!r}.*\); add {message}'):
      comparison.check_metrics(config)
  assert comparison.select_methods(None) == list(comparison.METHODS)


def test_methods_that_do_not_fit_are_left_out(capsys):
  base = config_lib.from_config_dict(recipes.load('gaussians25'))
  assert list(compare._configs(['gan', 'haar'], base, 20, explicit=False)) == ['gan']
  assert capsys.readouterr().out.startswith('DDGAN in Haar space is left out: data.transform is')
  with pytest.raises(ConfigError, match="^data.transform is 'haar'; use 'none' with generator.kind='mlp'"):
    compare._configs(['gan', 'haar'], base, 20, explicit=True)


def test_compare_measures_each_method_once(tmp_path):
  """Two methods on points, trained, measured, timed and drawn; a second call trains and measures only a second seed."""
  call = functools.partial(
      succeed, compare.main, '--config', 'gaussians25', '--workdir', tmp_path, '--methods', 'gan,ddgan_2', '--num', 50,
      '--force', *SMALL)
  first, second = call(), call()
  assert first.count('drawing 50 samples') == 2 and 'drawing 50 samples' not in second
  assert 'has finished its 20 steps' in second
  report = json.loads((tmp_path / 'comparison.json').read_text())
  assert [(row['name'], row['evaluations'], row['n'], row['biased']) for row in report] == [
      ('gan', 1, 50, True), ('ddgan_2', 2, 50, True)]
  assert all(0 < row['seconds'] < 60 and 0 <= row['metrics']['modes']['value'] <= 25 for row in report)
  assert (tmp_path / 'table.md').read_text().strip() in second
  for name in ('trilemma.png', 'samples.png'):
    assert Image.open(tmp_path / name).size > (400, 200)
  third = call('--seeds', 2)
  assert third.count('drawing 50 samples') == 2 and third.count('has finished its 20 steps') == 2
  report = json.loads((tmp_path / 'comparison.json').read_text())
  seeds = [config_lib.from_json((tmp_path / name / 'config.json').read_text()).seed for name in ('gan', 'gan_seed_1')]
  assert seeds == [0, 1] and report[0]['seeds'] == 2 and len(report[0]['metrics']['modes']['values']) == 2
  assert all(0 < row['minutes'] < 10 and row['fastest'] <= row['seconds'] <= row['slowest'] for row in report)

  # With other data, each is measured again, once.
  config = config_lib.from_json((tmp_path / 'gan' / 'config.json').read_text())
  config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, num=50, force=True))
  measured = []

  def evaluate(images):
    measured.append(images.name)
    return {'metrics': {}}

  for checksum in ('other', 'other', 'another'):
    measurement.measure(evaluate, config, ['gan'], str(tmp_path), sharding.make_mesh(), checksum)
  assert measured == ['gan', 'gan']
