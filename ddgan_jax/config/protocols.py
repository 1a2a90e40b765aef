"""Evaluation protocols of papers by name: the settings under which their numbers can be compared."""

from __future__ import annotations

from typing import Any, NamedTuple

from ddgan_jax.config.errors import ConfigError
from ddgan_jax.config.schema import Config


class Protocol(NamedTuple):
  """Settings of `ddgan evaluate`.

  Attributes:
    source: where the settings are described.
    flags: flag → value.
    data: field of the config's data → value; the reference is these data.
  """

  source: str
  flags: dict[str, Any]
  data: dict[str, Any]


# The reference is the data, and samples are drawn and measured as usual.
_AS_USUAL = {'reference': None, 'jpeg': False, 'any_weights': False, 'num_timesteps': None, 'sigma_rel': None}
PROTOCOLS = {
    'ddgan_cifar10': Protocol(
        'Xiao, Kreis and Vahdat (2022); Inception score over the usual 10 splits (the paper: 1), PNG (the paper: JPEG)',
        {'metrics': ['fid', 'is', 'pr'], 'num': 50_000, 'splits': 10, 'seeds': 1, **_AS_USUAL},
        {'name': 'cifar10', 'split': 'train', 'image_size': 32}),
    'edm': Protocol(
        'Karras et al. (2022), who report the minimum of three FIDs of 50,000 images to the training images',
        {'metrics': ['fid'], 'num': 50_000, 'seeds': 3, **_AS_USUAL}, {'split': 'train'}),
    'stacked_mnist': Protocol(
        'Lin et al. (2018, PacGAN): modes of 1,000 and KL of 26,000 samples; the classifier is our own',
        {'metrics': ['modes'], 'num': 26_000, 'seeds': 1, **_AS_USUAL},
        {'name': 'mnist', 'stack': 3, 'split': 'train'}),
}
# The values of flags that are not set; a protocol replaces them.
DEFAULTS = {'metrics': None, 'num': 50_000, 'splits': 10, 'seeds': 1}


def complete(args: Any) -> None:
  """Fills flags that are None with those of `args.protocol`, or else with the defaults.

  Raises:
    ConfigError: a flag differs from the protocol, or there is no run to measure.
  """
  name = args.protocol
  if name and not args.workdir:
    raise ConfigError(f'--protocol {name}: use --workdir with a run')
  flags = PROTOCOLS[name].flags if name else {}
  for flag, value in flags.items():
    found = getattr(args, flag)
    if found and (sorted(found) != sorted(value) if flag == 'metrics' else found != value):
      shown = ','.join(found) if flag == 'metrics' else found
      if value:
        raise ConfigError(f'--{flag} is {shown}; use {",".join(value) if flag == "metrics" else value} with --protocol '
                          f'{name}, or omit it')
      raise ConfigError(f'--{flag} is {shown}; omit it with --protocol {name}')
  for flag, value in {**DEFAULTS, **flags}.items():
    if getattr(args, flag) is None:
      setattr(args, flag, value)


def check_data(name: str, config: Config) -> None:
  """Raises ConfigError unless the config has the data of the protocol."""
  for field, value in PROTOCOLS[name].data.items():
    found = getattr(config.data, field)
    if found != value:
      raise ConfigError(f'data.{field} is {found!r}; use {value!r} with --protocol {name}')


def describe(name: str) -> str:
  """The protocol in one sentence, for the report."""
  protocol = PROTOCOLS[name]
  settings = ', '.join(f'{flag} {",".join(value) if flag == "metrics" else f"{value:,}"}'
                       for flag, value in protocol.flags.items() if value)
  return f'Protocol {name} ({settings}), {protocol.source}.'
