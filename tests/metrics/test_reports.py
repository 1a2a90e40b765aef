"""Reports beside a run: which of them share a file."""

import json

import pytest

from ddgan_jax.metrics import reports


def report(seed=0, **values):
  return {'images': 'run', 'n': 100, 'step': 30, 'seed': seed, 'reference_digest': None,
          'metrics': {name: {'value': value, 'features': 'x'} for name, value in values.items()}}


def read_metrics(folder):
  return {path.name: json.loads(path.read_text())['metrics'] for path in folder.iterdir()}


def test_metrics_of_the_same_conditions_share_a_file(tmp_path):
  """A metric measured again replaces its entry; another seed gets another file; the order does not matter."""
  names = [reports.save(str(tmp_path), report(seed, **values)) for seed, values in (
      (0, {'fid': 3.0}), (1, {'fid': 4.0}), (0, {'is': 9.0}), (2, {'fid': 5.0}), (1, {'kid': 1.0, 'fid': 6.0}))]
  stem = str(tmp_path / 'evaluation_00000030')
  assert names == [f'{stem}{suffix}.json' for suffix in ('', '_2', '', '_3', '_2')]
  values = {name: {metric: entry['value'] for metric, entry in metrics.items()}
            for name, metrics in read_metrics(tmp_path).items()}
  assert values == {
      'evaluation_00000030.json': {'fid': 3.0, 'is': 9.0}, 'evaluation_00000030_2.json': {'fid': 6.0, 'kid': 1.0},
      'evaluation_00000030_3.json': {'fid': 5.0}}


def test_conditions_that_change_a_number_get_another_file(tmp_path):
  one = report(**{'is': 9.0}) | {'generator_digest': 'a', 'reference_digest': 'b'}
  path = reports.save(str(tmp_path), one)
  assert reports.save(str(tmp_path), one | {'images': './run', 'reference': 'elsewhere'}) == path
  others = [one | {'generator_digest': 'c'}, one | {'reference_digest': 'c'},
            one | {'metrics': {'is': {'value': 9.1, 'splits': 1}}},
            one | {'metrics': {'is': {'value': 9.1, 'features_digest': 'any weights'}}}]
  assert len({path, *(reports.save(str(tmp_path), other) for other in others)}) == 5


@pytest.mark.parametrize('text', ['', '{"images": "run", ', '[1]', '{"metrics": 3}', 'ÿ'])
def test_a_damaged_report_is_left_alone(tmp_path, text):
  damaged = tmp_path / 'evaluation_00000030.json'
  damaged.write_bytes(text.encode('latin-1'))
  path = reports.save(str(tmp_path), report(fid=3.0))
  assert path.endswith('_2.json') and damaged.read_bytes() == text.encode('latin-1')
  assert reports.save(str(tmp_path), report(kid=1.0)) == path


def test_a_failed_write_changes_nothing(tmp_path, monkeypatch):
  path = reports.save(str(tmp_path), report(fid=3.0))
  before = read_metrics(tmp_path)

  def fail(self, target):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(type(reports.epath.Path(path)), 'replace', fail)
  with pytest.raises(OSError, match='No space left'):
    reports.save(str(tmp_path), report(kid=1.0))
  assert read_metrics(tmp_path) == before
