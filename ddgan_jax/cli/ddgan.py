"""The program `ddgan` with all commands."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

import ddgan_jax
from ddgan_jax.cli import app, options

# Module and summary of each command.
COMMANDS = {
    'train': ('main', 'train a run or resume it'),
    'sample': ('sample', 'sample images from a run'),
    'evaluate': ('evaluate', 'compute metrics of a run or of images'),
    'edit': ('edit', 'inpaint, interpolate and super-resolve with a run'),
    'prepare': ('prepare', 'download, check and convert the data of a recipe'),
    'compare': ('compare.__main__', 'train several methods on the same data and compare them'),
    'benchmark': ('benchmark.__main__', 'measure the speed of training and sampling on this machine'),
    'convert': ('convert', "import and export checkpoints of the PyTorch original"),
    'export': ('export', 'export a run as StableHLO or safetensors, or to the Hub'),
}


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command named by the first word; returns its exit status."""
  argv = list(sys.argv[1:] if argv is None else argv)
  if not argv or argv[0] in (*options.HELP, 'help'):
    print(_overview())
    return 0
  if argv[0] == '--version':
    print(f'ddgan_jax {ddgan_jax.__version__}')
    return 0
  if argv[0] not in COMMANDS:
    close = difflib.get_close_matches(argv[0], COMMANDS, n=1)
    hint = f'did you mean {close[0]}?' if close else f'use one of {", ".join(COMMANDS)}'
    return app.print_error(f'{argv[0]}: no such command; {hint}')
  module, _ = COMMANDS[argv[0]]
  return importlib.import_module(f'ddgan_jax.{module}').main(argv[1:])


def start() -> None:
  """Entry point of the console script."""
  app.start(main)


def _overview() -> str:
  lines = [f'  {name:<10} {summary}' for name, (_, summary) in COMMANDS.items()]
  return '\n'.join([f'{ddgan_jax.__doc__}', '', 'ddgan COMMAND --help shows the flags of a command. Commands:', *lines])
