"""launch/colab.ipynb: executed from top to bottom with small settings, and its committed outputs."""

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


def parameter_cell(notebook):
  [cell] = [cell for cell in notebook.cells if 'parameters' in cell.metadata.get('tags', [])]
  return cell


def output_pictures(notebook):
  outputs = [output for cell in notebook.cells for output in cell.get('outputs', [])]
  return [output.data['image/png'] for output in outputs if 'image/png' in output.get('data', {})]


def flags(fields, prefix='--config'):
  """A config's fields as command-line flags."""
  for name, value in fields.items():
    if isinstance(value, dict):
      yield from flags(value, f'{prefix}.{name}')
    else:
      text = f'{",".join(map(str, value))},' if isinstance(value, tuple) and value else str(value)
      yield f'{prefix}.{name}={text}'


def test_the_notebook_runs_from_top_to_bottom(notebook, tmp_path, monkeypatch, data_dir):
  monkeypatch.setenv('PYTHONPATH', str(ROOT))
  for name in ('XLA_FLAGS', 'JAX_DISABLE_MOST_OPTIMIZATIONS'):  # compiled like a user's programs
    monkeypatch.delenv(name, raising=False)
  quick = quick_config_dict(data_dir=data_dir)
  quick['train'].update(num_steps=4, sample_every=2)
  quick['optim']['lazy_reg'] = 1  # one training program instead of two
  for name in ('attn_resolutions', 'ch_mult'):  # flags cannot express an empty tuple; use the recipe's values
    quick['generator'].pop(name)
  cell = parameter_cell(notebook)
  names = re.findall(r'^(\w+) =', cell.source, re.MULTILINE)
  assert set(names) >= {'WORKDIR', 'OVERRIDES'}
  cell.source += f'\nWORKDIR = {str(tmp_path / "run")!r}\nOVERRIDES = {" ".join(flags(quick))!r}\n'
  client = nbclient.NotebookClient(
      notebook, timeout=600, kernel_name='python3', resources={'metadata': {'path': str(NOTEBOOK.parent)}})
  client.execute()  # raises if a cell does
  assert len(output_pictures(notebook)) >= 5  # two sample grids, classes, the strip, the edit
  written = {path.name for path in (tmp_path / 'run').iterdir()}
  assert {'conditional.png', 'strip.png', 'inpainted.png'} <= written


def test_the_notebook_is_committed_with_its_outputs(notebook):
  """The outputs are small and in order, and contain no path of the machine that executed it."""
  code = [cell for cell in notebook.cells if cell.cell_type == 'code']
  assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
  assert not any(output.output_type == 'error' for cell in code for output in cell.outputs)
  pictures = output_pictures(notebook)
  assert len(pictures) >= 5 and all(base64.b64decode(picture).startswith(b'\x89PNG') for picture in pictures)
  assert NOTEBOOK.stat().st_size < 400_000
  text = ''.join(str(cell) for cell in notebook.cells)
  assert not re.search(r'/(home|root|opt|tmp|Users|work)/', re.sub(r"'image/png': '[^']*'", '', text))
  assert sys.prefix not in text
