"""launch/colab.ipynb, executed from top to bottom with small settings, and what is committed of it."""

import base64
import re
import sys

import nbclient
import nbformat
import pytest

from tests.support import ROOT, quick_config_dict

NOTEBOOK = ROOT / 'launch' / 'colab.ipynb'


@pytest.fixture
def notebook():
  return nbformat.read(NOTEBOOK, as_version=4)


def parameters_of(notebook):
  [cell] = [cell for cell in notebook.cells if 'parameters' in cell.metadata.get('tags', [])]
  return cell


def pictures_of(notebook):
  outputs = [output for cell in notebook.cells for output in cell.get('outputs', [])]
  return [output.data['image/png'] for output in outputs if 'image/png' in output.get('data', {})]


def flags(fields, prefix='--config'):
  """A config's fields as they are set on a command line."""
  for name, value in fields.items():
    if isinstance(value, dict):
      yield from flags(value, f'{prefix}.{name}')
    else:
      text = f'{",".join(map(str, value))},' if isinstance(value, tuple) and value else str(value)
      yield f'{prefix}.{name}={text}'


def test_runs_from_top_to_bottom(notebook, tmp_path, monkeypatch, data_dir):
  monkeypatch.setenv('PYTHONPATH', str(ROOT))
  for name in ('XLA_FLAGS', 'JAX_DISABLE_MOST_OPTIMIZATIONS'):  # compiled as users' programs are
    monkeypatch.delenv(name, raising=False)
  quick = quick_config_dict(data_dir=data_dir)
  quick['train'].update(num_steps=4, sample_every=2)
  quick['optim']['lazy_reg'] = 1  # one program of the training instead of two
  for name in ('attn_resolutions', 'ch_mult'):  # an empty tuple cannot be said in a flag; the recipe's own fit together
    quick['generator'].pop(name)
  cell = parameters_of(notebook)
  names = re.findall(r'^(\w+) =', cell.source, re.MULTILINE)
  assert set(names) >= {'WORKDIR', 'OVERRIDES'}
  cell.source += f'\nWORKDIR = {str(tmp_path / "run")!r}\nOVERRIDES = {" ".join(flags(quick))!r}\n'
  client = nbclient.NotebookClient(
      notebook, timeout=600, kernel_name='python3', resources={'metadata': {'path': str(NOTEBOOK.parent)}})
  client.execute()  # raises where a cell does
  assert len(pictures_of(notebook)) >= 5  # two sample grids, classes, the strip, the edit
  made = {path.name for path in (tmp_path / 'run').iterdir()}
  assert {'conditional.png', 'strip.png', 'inpainted.png'} <= made


def test_committed_as_executed(notebook):
  """With its outputs, small, in order, and nothing of the machine that made them."""
  code = [cell for cell in notebook.cells if cell.cell_type == 'code']
  assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
  assert not any(output.output_type == 'error' for cell in code for output in cell.outputs)
  pictures = pictures_of(notebook)
  assert len(pictures) >= 5 and all(base64.b64decode(picture).startswith(b'\x89PNG') for picture in pictures)
  assert NOTEBOOK.stat().st_size < 400_000
  text = ''.join(str(cell) for cell in notebook.cells)
  assert not re.search(r'/(home|root|opt|tmp|Users|work)/', re.sub(r"'image/png': '[^']*'", '', text))
  assert sys.prefix not in text
