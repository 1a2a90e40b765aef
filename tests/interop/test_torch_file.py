"""PyTorch checkpoints: PyTorch 2.13 in both formats, older versions, and files that must be refused."""

import io
import os
import pickle
import struct
import zipfile

import jax
import numpy as np
import pytest

from ddgan_jax.config import UserError
from ddgan_jax.interop import torch_file, torch_writer
from ddgan_jax.interop.torch_file import TorchFileError
from tests.support import GOLDEN, little_memory

BASE = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
# The contents of the two golden files; `part` shares its data with `transposed`.
EXPECTED = {
    'plain.weight': BASE / 8,
    'transposed': BASE.transpose(2, 0, 1),
    'part': BASE[1, 1:, ::2],
    'empty': np.zeros((0, 3), np.float32),
    'scalar': np.int64(7),
    'parameter': np.float32([1.5, -2]),
    **{f'dtype.{name}': np.array([0, 1, 100]).astype(name)
       for name in ('float64', 'float16', 'bfloat16', 'int32', 'int16', 'int8', 'uint8', 'bool')},
}
# As PyTorch wrote them in 2017: without the arguments added later, and a Parameter whose state holds the tensor.
OLD = {'old.tensor': BASE[0] + 100, 'old.parameter': BASE[1] + 100}


@pytest.mark.parametrize('name, expected', [('torch_zip.pth', EXPECTED), ('torch_legacy.pth', {**EXPECTED, **OLD})])
def test_golden(name, expected):
  arrays = torch_file.read_state_dict(GOLDEN / name)
  assert [*arrays] == [*expected]
  for key, array in arrays.items():
    assert array.dtype == expected[key].dtype, key
    np.testing.assert_array_equal(array, expected[key], err_msg=key)
  assert arrays['dtype.bfloat16'].dtype == jax.numpy.bfloat16


def encoded(value):
  """The opcodes that push `value` onto the unpickler's stack."""
  return pickle.dumps(value, 2)[2:-1]


def tensor(shape, strides, offset=0, total=6, view=None, dtype=b'ctorch\nFloatStorage\n'):
  """The opcodes of a tensor in storage 'k'."""
  pid = b'(' + encoded('storage') + dtype + b''.join(map(encoded, ('k', 'cpu', total, view))) + b'tQ'
  arguments = b'(' + pid + b''.join(map(encoded, (offset, shape, strides, False))) + b'ccollections\nOrderedDict\n)Rt'
  return b'ctorch._utils\n_rebuild_tensor_v2\n' + arguments + b'R'


def legacy(path, body, total=6):
  """A file in the older format: a state dict with the tensor that `body` makes, named 'x'."""
  header = (0x1950A86A20F9469CFC6C, 1001, {'protocol_version': 1001, 'little_endian': True, 'type_sizes': {}})
  state_dict = b'\x80\x02}' + encoded('x') + body + b's.'
  path.write_bytes(b''.join(pickle.dumps(part, 2) for part in header) + state_dict + pickle.dumps(['k'], 2)
                   + struct.pack('<q', total) + np.arange(6, dtype=np.float32).tobytes())
  return path


def test_a_storage_can_be_a_view_of_another(tmp_path):
  path = legacy(tmp_path / 'x.pth', tensor((2,), (1,), view=('v', 3, 3), offset=1))
  np.testing.assert_array_equal(torch_file.read_state_dict(path)['x'], [4, 5])


@pytest.mark.parametrize('body', [
    tensor((2, 3), (3, 1), offset=1),
    tensor((7,), (1,)),
    tensor((3,), (1,), view=('v', 2, 2)),
    tensor((3,), (1,), view=('v', 4, 4)),
    tensor((2,), (1,), view=('v', -2, 2)),
    tensor((3,), (-1,), offset=2),
    tensor((3, -1), (1, 1)),
    tensor((10**12,), (0,)),  # would be terabytes
    tensor((2,), (1,), total=10**15),
    tensor((2,), (1,), dtype=encoded('object')),
])
def test_tensors_beyond_their_data_are_refused(tmp_path, body):
  total = 10**15 if encoded(10**15) in body else 6
  with pytest.raises(TorchFileError, match=r'x\.pth is truncated or damaged \(.+\)$'):
    torch_file.read_state_dict(legacy(tmp_path / 'x.pth', body, total))


class RunsCode:
  def __reduce__(self):
    return os.mkdir, (self.path,)


def in_zip(path, data):
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('archive/data.pkl', data)


def test_a_hostile_file_is_refused_and_runs_nothing(tmp_path):
  target, path = tmp_path / 'made', tmp_path / 'x.pth'
  hostile = RunsCode()
  hostile.path = str(target)
  for protocol in (2, 4):
    data = pickle.dumps({'x': hostile}, protocol)
    in_zip(path, data)
    with pytest.raises(TorchFileError, match=r'x\.pth refers to posix\.mkdir, which .*; not loaded'):
      torch_file.read_state_dict(path)
    path.write_bytes(data)
    with pytest.raises(TorchFileError, match='refers to posix.mkdir'):
      torch_file.read_state_dict(path)
  # Through an attribute of an allowed name, and through a builtin.
  for module, name in (('torch._utils', '_rebuild_tensor_v2.__globals__'), ('builtins', 'getattr')):
    in_zip(path, b'\x80\x04' + encoded(module) + encoded(name) + b'\x93.')
    with pytest.raises(TorchFileError, match=f'refers to {module}.{name}'):
      torch_file.read_state_dict(path)
  assert not target.exists()


@pytest.mark.parametrize('name', ['torch_zip.pth', 'torch_legacy.pth'])
def test_truncated_files_are_refused(tmp_path, name):
  content = (GOLDEN / name).read_bytes()
  path = tmp_path / 'x.pth'
  for length in {*range(0, len(content), 37), len(content) - 1}:
    path.write_bytes(content[:length])
    with pytest.raises(TorchFileError, match=r'x\.pth is (not a PyTorch checkpoint|truncated or damaged) \(.+\)$'):
      torch_file.read_state_dict(path)


def test_a_modified_zip_is_refused(tmp_path):
  damaged = bytearray((GOLDEN / 'torch_zip.pth').read_bytes())
  place = damaged.index(EXPECTED['plain.weight'].tobytes())
  damaged[place + 5] ^= 1
  (tmp_path / 'x.pth').write_bytes(damaged)
  with pytest.raises(TorchFileError, match='truncated or damaged'):
    torch_file.read_state_dict(tmp_path / 'x.pth')


def test_a_compressed_file_is_refused_unread(tmp_path):
  with zipfile.ZipFile(tmp_path / 'x.pth', 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('archive/data.pkl', pickle.dumps({}, 2) + bytes(2**26))
  with little_memory(), pytest.raises(TorchFileError, match='is compressed, which torch.save never does; load'):
    torch_file.read_state_dict(tmp_path / 'x.pth')


@pytest.mark.parametrize('member', ['data.pkl', 'byteorder', 'data/k'])
def test_an_oversized_member_is_refused_unread(tmp_path, member):
  members = {'byteorder': b'little', 'data.pkl': b'\x80\x02}' + encoded('x') + tensor((2, 3), (3, 1)) + b's.',
             'data/k': np.arange(6, dtype=np.float32).tobytes()}
  with zipfile.ZipFile(tmp_path / 'x.pth', 'w') as archive:
    for name, data in members.items():
      archive.writestr(f'archive/{name}', data + bytes(2**26 if name == member else 0))
  with little_memory(), pytest.raises(TorchFileError, match=rf'x.pth: archive/{member} has 67,.* the limit is'):
    torch_file.read_state_dict(tmp_path / 'x.pth')


@pytest.mark.parametrize('data', [
    b'\x80\x02Nr\0\0\0\1.',  # a memo of 2**24 entries
    b'\x80\x02]' + b']a' * 2**16 + b'.'])
@pytest.mark.parametrize('form', ['zip', 'legacy'])
def test_a_pickle_that_needs_too_much_memory_is_refused(tmp_path, monkeypatch, data, form):
  monkeypatch.setattr(torch_file, '_MAX_PICKLE', 2**16)
  path = tmp_path / 'x.pth'
  in_zip(path, data) if form == 'zip' else path.write_bytes(data)
  with little_memory(2**20), pytest.raises(TorchFileError, match=r'x.pth.* .*65,536'):
    torch_file.read_state_dict(path)


def test_tensors_that_share_their_data_too_often_are_refused(tmp_path):
  shared = tensor((2**18,), (1,), total=2**18) + b'q\1'
  names = b''.join(encoded(f'{i}') + b'h\1s' for i in range(99))
  with zipfile.ZipFile(tmp_path / 'x.pth', 'w') as archive:
    archive.writestr('archive/data.pkl', b'\x80\x02}' + encoded('x') + shared + b's' + names + b'.')
    archive.writestr('archive/data/k', bytes(2**20))
  with little_memory(), pytest.raises(TorchFileError, match=r'its tensors need 104,857,600 bytes, the file has 1,0'):
    torch_file.read_state_dict(tmp_path / 'x.pth')


def npz_bytes():
  file = io.BytesIO()
  np.savez(file, x=np.zeros(3))
  return file.getvalue()


@pytest.mark.parametrize('content, message', [
    (b'', r'is not a PyTorch checkpoint \(0 bytes'),
    (b'<!DOCTYPE html>', r'is not a PyTorch checkpoint \(15 bytes'),
    (pickle.dumps([1, 2]), 'is not a PyTorch checkpoint'),
    (npz_bytes(), 'is a zip file without data.pkl'),
])
def test_files_that_are_not_checkpoints_are_refused(tmp_path, content, message):
  (tmp_path / 'x.pth').write_bytes(content)
  with pytest.raises(TorchFileError, match=message):
    torch_file.read_state_dict(tmp_path / 'x.pth')
  with pytest.raises(TorchFileError, match='y.pth cannot be read .No such file'):
    torch_file.read_state_dict(tmp_path / 'y.pth')


@pytest.mark.parametrize('content, message', [
    ([1, 2], 'contains a value of type list; use a dict with tensors'),
    ({}, 'contains nothing; use a dict with tensors'),
    ({'epoch': 3}, "has a value of type int under 'epoch'; save only a state dict"),
    ({'state_dict': {}}, "under 'state_dict'; save only a state dict"),
])
def test_checkpoints_without_a_state_dict_are_refused(tmp_path, content, message):
  in_zip(tmp_path / 'x.pth', pickle.dumps(content, 2))
  with pytest.raises(TorchFileError, match=message):
    torch_file.read_state_dict(tmp_path / 'x.pth')


def test_a_resume_file_written_by_pytorch():
  """After one Adam step with gradient 2: moments 2 (1 - 0.5) and 4 (1 - 0.9), and options as a dict."""
  content = torch_file.read_checkpoint(GOLDEN / 'torch_resume.pth')
  assert [*content] == ['epoch', 'global_step', 'args', 'netG_dict', 'optimizerG', 'schedulerG']
  assert content['args'] == {'num_timesteps': 4, 'ch_mult': [1, 2], 'attn_resolutions': (16,), 'fir': True,
                             'lazy_reg': None, 'lr_g': 0.1, 'exp': 'x'}
  assert {name: array.tolist() for name, array in content['netG_dict'].items()} == {
      'module.a.weight': [[3, 3, 3]] * 2, 'module.a.bias': [3, 3]}
  assert content['optimizerG']['param_groups'][0]['betas'] == (0.5, 0.9)
  for i, shape in enumerate([(2, 3), (2,)]):
    entry = content['optimizerG']['state'][i]
    assert entry['step'] == 1
    for name, value in (('exp_avg', 1), ('exp_avg_sq', 0.4), ('ema', 7)):
      np.testing.assert_allclose(entry[name], np.full(shape, value), rtol=1e-6)
  assert content['schedulerG']['T_max'] == 10


@pytest.mark.parametrize('content, message', [
    ([1, 2], 'contains a value of type list; use a dict with tensors'),
    ({'a': {'b': [1, {2}]}}, r'has a value of type set under a\.b\.1; use only tensors, numbers and strings'),
    ({'a': {(1, 2): 3}}, r'under a\.\(1, 2\); use only'),
])
def test_checkpoints_with_other_types_are_refused(tmp_path, content, message):
  in_zip(tmp_path / 'x.pth', pickle.dumps(content, 4))
  with pytest.raises(TorchFileError, match=message):
    torch_file.read_checkpoint(tmp_path / 'x.pth')


def test_a_self_referential_checkpoint_is_read(tmp_path):
  cyclic = {'a': []}
  cyclic['a'].append(cyclic)
  nested = [[]]
  for _ in range(60):
    nested = [nested, nested]  # 2**60 lists if every reference is followed
  in_zip(tmp_path / 'x.pth', pickle.dumps({'cyclic': cyclic, 'nested': nested}, 2))
  found = torch_file.read_checkpoint(tmp_path / 'x.pth')
  assert found['cyclic']['a'][0] is found['cyclic']


def test_a_written_checkpoint_is_read_back(tmp_path):
  content = {
      'state': {0: {'step': np.float32([3]).reshape(()), 'x': BASE.transpose(2, 0, 1)}, 1: {'step': 7}},
      'groups': [{'betas': (0.5, 0.9), 'on': True, 'none': None, 'big': 2**40}], 'empty': np.zeros((0, 3), np.float32),
      'int64': np.arange(3), 'text': 'x', 'nothing': {}}
  torch_writer.write_checkpoint(tmp_path / 'x.pth', content)
  found = torch_file.read_checkpoint(tmp_path / 'x.pth')
  leaves, structure = jax.tree.flatten(content)
  found_leaves, found_structure = jax.tree.flatten(found)
  assert found_structure == structure
  for leaf, expected in zip(found_leaves, leaves, strict=True):
    assert np.asarray(leaf).dtype == np.asarray(expected).dtype
    np.testing.assert_array_equal(leaf, expected)
  assert os.listdir(tmp_path) == ['x.pth']
  with pytest.raises(UserError, match='cannot be written'):
    torch_writer.write_checkpoint(tmp_path / 'no' / 'x.pth', content)
