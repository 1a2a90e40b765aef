"""Converts the original's resume file, `content.pth`, from and to a `TrainState`.

The file is a dict with `netG_dict` and `netD_dict` (parameters), `optimizerG` and `optimizerD` (Adam's state by
parameter number; that of G has the EMA of each parameter under `ema`), `schedulerG` and `schedulerD`, `epoch`,
`global_step`, and `args`, the options of the command.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddgan_jax import train_state
from ddgan_jax.config import Config
from ddgan_jax.interop import pytorch
from ddgan_jax.interop.pytorch import InteropError, Params, StateDict
from ddgan_jax.train_state import TrainState

# Option in `args` → section and field of the config: options that affect samples, and options of the training.
_SAMPLING_OPTIONS = {
    'num_timesteps': ('diffusion', 'num_timesteps'), 'beta_min': ('diffusion', 'beta_min'),
    'beta_max': ('diffusion', 'beta_max'), 'use_geometric': ('diffusion', 'kind'),
    **{field: ('generator', field) for field in (
        'image_size', 'num_channels', 'num_channels_dae', 'ch_mult', 'num_res_blocks', 'attn_resolutions', 'nz',
        'z_emb_dim', 'n_mlp', 'resblock_type', 'progressive', 'progressive_input', 'progressive_combine',
        'embedding_type', 'fourier_scale', 'fir', 'fir_kernel', 'skip_rescale', 'resamp_with_conv', 'conditional',
        'centered', 'not_use_tanh')},
    **{field: ('discriminator', field) for field in ('ngf', 't_emb_dim')}}
_TRAINING_OPTIONS = {
    'dropout': ('generator', 'dropout'),
    **{field: ('optim', field) for field in ('lr_g', 'lr_d', 'beta1', 'beta2', 'ema_decay', 'r1_gamma', 'lazy_reg')}}


def state_from_generator(state_dict: Mapping[str, np.ndarray], config: Config) -> TrainState:
  """A state at step 0 with the given generator as G and EMA; D and both Adam states are newly initialised.

  Args:
    state_dict: the original's tensors, as in `netG_<epoch>.pth`.
    config: the config of the run.

  Raises:
    InteropError: the tensors do not match the configured generator.
  """
  params = pytorch.generator_params(state_dict, config.generator)
  rest = jax.jit(lambda: train_state.create(config).replace(g_params=None, ema_params=None))()
  return rest.replace(g_params=_on_device(params), ema_params=_on_device(params))


def state_from_content(content: Mapping[str, Any], config: Config) -> tuple[TrainState, bool]:
  """The state in a resume file. Random draws then follow `config.seed`, not PyTorch's generators.

  Args:
    content: the result of `torch_file.read_checkpoint`.
    config: the config of the run.

  Returns:
    The state at step `global_step` (or Adam's step, in a file without it), and whether the file has an EMA; without
    one, the EMA starts from G.

  Raises:
    InteropError: an entry is missing, or does not match the configured networks.
  """
  for key in ('netG_dict', 'netD_dict', 'optimizerG', 'optimizerD'):
    if not isinstance(content.get(key), dict) or not content[key]:
      raise InteropError(f"{key} is missing; use the original's content.pth")
  for key in ('netG_dict', 'netD_dict'):
    if not all(isinstance(tensor, np.ndarray) for tensor in content[key].values()):
      raise InteropError(f"{key} is not a state dict; use the original's content.pth")
  to_g = lambda tensors: pytorch.generator_params(tensors, config.generator)
  to_d = lambda tensors: pytorch.discriminator_params(tensors, config.discriminator)
  # The original's Adam has no state for parameters that G does not use, nor for fixed Fourier frequencies.
  unused = {name for name, path, layout in pytorch.generator_rows(config.generator)
          if layout == 'unused' or path == ('fourier',)}
  g_params, d_params = to_g(content['netG_dict']), to_d(content['netD_dict'])
  g_moments, g_count = _moments(content, 'G', unused, to_g)
  d_moments, d_count = _moments(content, 'D', set(), to_d)
  step = content.get('global_step', g_count)
  if type(step) is not int or not 0 <= step < 2**31:
    raise InteropError(f'global_step is {step!r}; use a number of steps')
  ema_params = g_moments.pop('ema', None)
  g_optimizer, d_optimizer = train_state.make_optimizers(config.optim, config.schedule_steps)
  state = TrainState(
      step=jnp.int32(step),
      rng=jax.jit(lambda: train_state.create(config).rng)(),
      g_params=_on_device(g_params),
      d_params=_on_device(d_params),
      ema_params=_on_device(ema_params or g_params),
      g_opt_state=_adam_state(g_optimizer.init(g_params), g_moments, g_count, step),
      d_opt_state=_adam_state(d_optimizer.init(d_params), d_moments, d_count, step))
  return state, ema_params is not None


def content_from_state(state: TrainState, config: Config, epoch: int, num_epochs: int) -> dict[str, Any]:
  """The inverse of `state_from_content`, without `args`, which the original does not read when it resumes.

  Args:
    state: a state of the run.
    config: the config of the run, whose G and D the original must have.
    epoch: number of finished epochs.
    num_epochs: number of epochs of the run, the length of the original's cosine.
  """
  optim, step = config.optim, int(state.step)
  to_g = lambda params: pytorch.generator_state_dict(params, config.generator)
  to_d = lambda params: pytorch.discriminator_state_dict(params, config.discriminator)
  content: dict[str, Any] = {'epoch': epoch, 'global_step': step}
  for network, params, opt_state, rate, extra, convert in (
      ('G', state.g_params, state.g_opt_state, optim.lr_g, {'ema': state.ema_params}, to_g),
      ('D', state.d_params, state.d_opt_state, optim.lr_d, {}, to_d)):
    adam = opt_state[0]
    tensors = convert(params)
    moments = {key: [*convert(tree).values()] for key, tree in
               {'exp_avg': adam.mu, 'exp_avg_sq': adam.nu, **extra}.items()}
    now = float(train_state.cosine(rate, optim.lr_min, config.schedule_steps)(step))
    content[f'net{network}_dict'] = {f'module.{name}': tensor for name, tensor in tensors.items()}
    content[f'optimizer{network}'] = {
        # The step is a tensor: new versions of PyTorch require it, old ones accept it.
        'state': {i: {'step': np.array(int(adam.count), np.float32), **{key: moments[key][i] for key in moments}}
                  for i in range(len(tensors))},
        'param_groups': [{'lr': now, 'betas': (optim.beta1, optim.beta2), 'eps': 1e-8, 'weight_decay': 0,
                          'amsgrad': False, 'initial_lr': rate, 'params': [*range(len(tensors))]}]}
    content[f'scheduler{network}'] = {
        'T_max': num_epochs, 'eta_min': optim.lr_min, 'base_lrs': [rate], 'last_epoch': epoch, '_step_count': epoch + 1,
        '_last_lr': [now]}
  return content


def options(content: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
  """The options of a resume file as {section: {field: value}}: those that affect samples, and those of the training.

  A file without `args` only has the options of its optimizers.
  """
  args = content.get('args')
  args = dict(args) if isinstance(args, dict) else {}
  for network, option in (('G', 'lr_g'), ('D', 'lr_d')):
    group = _group(content.get(f'optimizer{network}'))
    args.setdefault(option, group.get('initial_lr'))
    if isinstance(betas := group.get('betas'), (list, tuple)) and len(betas) == 2:
      args.setdefault('beta1', betas[0])
      args.setdefault('beta2', betas[1])
  if 'use_geometric' in args:
    args['use_geometric'] = 'geometric' if args['use_geometric'] else 'vp'
  if 'lazy_reg' in args:
    args['lazy_reg'] = args['lazy_reg'] or 1  # None is every step in the original
  if args.get('embedding_type') != 'fourier':
    args.pop('fourier_scale', None)  # has no effect
  if args.get('progressive_input') != 'input_skip':
    args.pop('progressive_combine', None)
  args = {name: tuple(value) if isinstance(value, list) else value for name, value in args.items()}
  process: dict[str, dict[str, Any]] = {}
  training: dict[str, dict[str, Any]] = {}
  for names, found in ((_SAMPLING_OPTIONS, process), (_TRAINING_OPTIONS, training)):
    for name, (section, field) in names.items():
      if args.get(name) is not None:
        found.setdefault(section, {})[field] = args[name]
  return process, training


def _moments(
    content: Mapping[str, Any], network: str, unused: set[str], convert: Callable[[StateDict], Params]
) -> tuple[dict[str, Params], int]:
  """Returns Adam's `exp_avg`, `exp_avg_sq` and, if present, `ema` as parameter trees, and Adam's step."""
  name = f'optimizer{network}'
  tensors: dict[str, np.ndarray] = content[f'net{network}_dict']
  by_number, group = content[name].get('state'), _group(content[name])
  if not isinstance(by_number, dict) or not by_number or not isinstance(group.get('params'), (list, tuple)):
    raise InteropError(f'{name} is not the state of an Adam after its first step')
  if len(group['params']) != len(tensors):
    raise InteropError(
        f'{name} has {len(group["params"])} parameters, but net{network}_dict has {len(tensors)} tensors')
  found: dict[str, StateDict] = {'exp_avg': {}, 'exp_avg_sq': {}, 'ema': {}}
  counts, has_ema = set(), any('ema' in entry for entry in by_number.values() if isinstance(entry, dict))
  needed = ('exp_avg', 'exp_avg_sq', *(('ema',) if has_ema else ()))
  for number, tensor in zip(group['params'], tensors):
    entry = by_number.get(number) if isinstance(number, int) else None
    if entry is None and tensor.removeprefix('module.') in unused:
      entry = {key: np.zeros_like(tensors[tensor]) for key in ('exp_avg', 'exp_avg_sq')}
    elif not isinstance(entry, dict) or not all(isinstance(entry.get(key), np.ndarray) for key in needed):
      raise InteropError(f'{name} has no complete state of {tensor}')
    else:
      counts.add(int(entry.get('step', 0)))
    for key in found:
      found[key][tensor] = entry.get(key, tensors[tensor])
  if len(counts) > 1:
    raise InteropError(f'{name} is at step {min(counts)} for some parameters and {max(counts)} for others')
  try:
    trees = {key: convert(found[key]) for key in found if key != 'ema' or has_ema}
  except InteropError as error:
    raise InteropError(f'{name}: {error}') from error
  return trees, max(counts, default=0)


def _group(optimizer: Any) -> dict[str, Any]:
  groups = optimizer.get('param_groups') if isinstance(optimizer, dict) else None
  return groups[0] if isinstance(groups, list) and len(groups) == 1 and isinstance(groups[0], dict) else {}


def _adam_state(fresh: Any, moments: dict[str, Params], count: int, step: int) -> Any:
  adam, schedule = fresh
  mu, nu = _on_device(moments['exp_avg']), _on_device(moments['exp_avg_sq'])
  return adam._replace(count=jnp.int32(count), mu=mu, nu=nu), schedule._replace(count=jnp.int32(step))


def _on_device(params: Params) -> Params:
  return jax.tree.map(jnp.array, params)
