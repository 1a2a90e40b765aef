"""Lists the kernels of a program compiled for a GPU, and the bytes that each reads and writes.

A library for `launch/compile_gpu.py` and the tests. The bytes are an estimate: each array that a kernel reads or writes
counts once and whole, although a convolution may read its input several times, and a slice reads only a part.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Sequence

from benchmarks.collectives import array_bytes, parse_arrays

_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{$')
_INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([a-z\-]+)\((.*?)\)(?:, |$)')
_NO_KERNEL = ('parameter', 'constant', 'get-tuple-element', 'tuple', 'bitcast', 'after-all', 'partition-id',
              'replica-id', 'optimization-barrier')
_CONVOLUTIONS = ('__cudnn$conv',)
_PRODUCTS = ('__cublas', '__triton_gemm', '__cudnn$fusion', ' dot(')


@dataclasses.dataclass(frozen=True)
class Kernel:
  """One instruction of a compiled program that runs on the GPU.

  Attributes:
    kind: `convolutions`, `matrix products`, `reductions` (norm statistics, sums of gradients), `concatenations`,
      `transposes and copies`, `collectives` or `element-wise`.
    bytes: of its arguments and results, times the iterations of the enclosing loop.
    name, source: of the instruction, and of the Python code, as far as the compiler knows.
  """

  kind: str
  bytes: int
  name: str
  source: str


def kernels(hlo: str) -> list[Kernel]:
  """The kernels in the text of a compiled program, `compiled.as_text()`, in its order."""
  bodies, entry = _computations(hlo)
  sizes: dict[str, int] = {}
  found: list[Kernel] = []

  def walk(computation: str, passes: int) -> None:
    for line in bodies.get(computation, ()):
      match = _INSTRUCTION.match(line)
      if not match:
        continue
      name, result, opcode, arguments = match.groups()
      # A library's kernel also returns its workspace, as bytes.
      arrays = parse_arrays(re.sub(r'\b[su]8\[\d+\]', '', result) if opcode == 'custom-call' else result)
      sizes[name] = array_bytes(arrays)
      if opcode in _NO_KERNEL or opcode.endswith('-done'):
        continue
      callees = re.findall(r'(?:to_apply|calls|body|true_computation|false_computation)=%?([\w.\-]+)', line)
      callees += re.findall(r'%([\w.\-]+)', ''.join(re.findall(r'branch_computations=\{([^}]*)\}', line)))
      if opcode in ('while', 'call', 'conditional', 'async-start'):
        trips = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
        for callee in callees:
          walk(callee, passes * (int(trips[1]) if trips else 1))
        continue
      moved = sizes[name] + sum(sizes.get(argument, 0) for argument in set(re.findall(r'%([\w.\-]+)', arguments)))
      text = '\n'.join([line, *(body for callee in callees for body in bodies.get(callee, ()))])
      source = re.search(r'op_name="([^"]*)"', line)
      found.append(Kernel(_kind(opcode, text), passes * moved, name, source[1] if source else ''))

  walk(entry, 1)
  return found


def table(found: Sequence[Kernel], bytes_per_second: float) -> str:
  """Kernels and bytes by kind, as Markdown; the last column is the time at a memory bandwidth."""
  lines = ['| kernels | number | GB | ms at the full bandwidth |', '|---|---|---|---|']
  moved, number = collections.Counter(), collections.Counter()
  for kernel in found:
    for kind in (kernel.kind, 'all'):
      moved[kind] += kernel.bytes
      number[kind] += 1
  for kind, total in sorted(moved.items(), key=lambda item: (item[0] == 'all', -item[1])):
    lines.append(f'| {kind} | {number[kind]:,} | {total / 1e9:.2f} | {1e3 * total / bytes_per_second:.2f} |')
  return '\n'.join(lines)


def longest(found: Sequence[Kernel], count: int) -> str:
  """The kernels that move the most bytes, one per line."""
  ordered = sorted(found, key=lambda kernel: -kernel.bytes)[:count]
  return '\n'.join(f'{kernel.bytes / 1e6:9.1f} MB  {kernel.kind:22s} {kernel.source}' for kernel in ordered)


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
  """The lines of each computation, and the name of the entry."""
  bodies: dict[str, list[str]] = {}
  current, entry = [], ''
  for line in hlo.splitlines():
    if header := _COMPUTATION.match(line):
      current = bodies.setdefault(header[2], [])
      entry = header[2] if header[1] else entry
    else:
      current.append(line)
  return bodies, entry


def _kind(opcode: str, text: str) -> str:
  if opcode.startswith(('all-', 'reduce-scatter', 'collective-')):
    return 'collectives'
  if opcode in ('copy', 'transpose', 'copy-start'):
    return 'transposes and copies'
  for kind, marks in (('convolutions', _CONVOLUTIONS), ('matrix products', _PRODUCTS),
                      ('reductions', (' reduce(', ' reduce-window(')), ('concatenations', (' concatenate(',)),
                      ('transposes and copies', (' transpose(', ' copy('))):
    if any(mark in text for mark in marks):
      return kind
  return 'element-wise'
