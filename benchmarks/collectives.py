"""Lists the collectives of a compiled step; a library for the tests, `launch/compile_tpu.py` and
`benchmarks/memory.py`.

Bytes are those of the unsharded array: the result of an all-reduce or all-gather, the operand of a reduce-scatter. A
ring of n devices moves 2 (n-1)/n times the bytes of an all-reduce through each link, and (n-1)/n times those of others.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

from ddgan_jax import train_state, train_step
from ddgan_jax.parallel import sharding

_KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'ragged-all-to-all', 'collective-permute',
          'collective-broadcast')
_BITS = {'pred': 8, 'bf16': 16}
_COMPUTATION = re.compile(r'^(?:ENTRY )?%?([\w.\-]+) \(.*\{$')
_COLLECTIVE = re.compile(rf'= (\(.*?\)|\S+) ({"|".join(_KINDS)})(-start)?\(')
_CALLEE = re.compile(r'(?:to_apply|calls|body|condition|true_computation|false_computation)=%?([\w.\-]+)')
_ARRAY = re.compile(r'\b(pred|bf16|[sufc]\d+)(?:e\w+)?\[([\d,]*)\]')


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective operation of a compiled program.

  Attributes:
    kind: such as `all-reduce`.
    arrays: (dtype, shape) of each array that it carries, as each device holds it afterwards.
    participants: devices in one group; 0 where the text says `all`.
    in_loop: it runs in each pass of a while loop, so more often than it is listed.
    source: where in the Python code it comes from, as far as the compiler knows.
  """

  kind: str
  arrays: tuple[tuple[str, tuple[int, ...]], ...]
  participants: int
  in_loop: bool
  source: str

  @property
  def bytes(self) -> int:
    """Bytes of the unsharded array: of the result, times the participants if each gets one part."""
    size = array_bytes(self.arrays)
    return size * self.participants if self.kind == 'reduce-scatter' else size

  @property
  def wire_bytes(self) -> float:
    """Bytes that each device sends in a ring."""
    share = (self.participants - 1) / max(1, self.participants)
    return {'all-reduce': 2 * share, 'collective-permute': 1.0}.get(self.kind, share) * self.bytes


def collectives(hlo: str) -> list[Collective]:
  """The collectives in the text of a compiled program, `compiled.as_text()`, in its order."""
  bodies = set(re.findall(r'\bbody=%?([\w.\-]+)', hlo))
  calls: dict[str, set[str]] = {}
  found = []
  computation = ''
  for line in hlo.splitlines():
    header = _COMPUTATION.match(line)
    if header:
      computation = header[1]
      continue
    calls.setdefault(computation, set()).update(_CALLEE.findall(line))
    match = _COLLECTIVE.search(line)
    if match:
      found.append((computation, match, line))
  looped = _reachable(bodies, calls)
  return [_parse(match, line, computation in looped) for computation, match, line in found]


def parse_arrays(text: str) -> list[tuple[str, tuple[int, ...]]]:
  """(dtype, shape) of each array in the text of a shape."""
  return [(dtype, tuple(int(n) for n in shape.split(',') if n)) for dtype, shape in _ARRAY.findall(text)]


def array_bytes(arrays: Sequence[tuple[str, tuple[int, ...]]]) -> int:
  return sum(math.prod(shape) * (_BITS.get(dtype) or int(dtype[1:])) // 8 for dtype, shape in arrays)


def _parse(match: re.Match, line: str, in_loop: bool) -> Collective:
  result, kind, start = match[1], match[2], match[3]
  arrays = parse_arrays(result)
  if start and kind != 'all-reduce':
    # An asynchronous start returns (operands, results, ...); all-reduce-start returns only the results.
    arrays = arrays[1:2] if not result.startswith('((') else arrays[len(arrays) // 2:]
  source = re.search(r'op_name="([^"]*)"', line)
  return Collective(kind, tuple(arrays), _participants(line), in_loop, source[1] if source else '')


def _participants(line: str) -> int:
  iota = re.search(r'replica_groups=\[(\d+),(\d+)\]', line)
  if iota:
    return int(iota[2])
  named = re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{([^}]*)\}", line)
  if named:
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
    return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", named[2]))
  listed = re.search(r'replica_groups=\{\{([\d,]*)\}', line)
  return len(listed[1].split(',')) if listed else 0


def _reachable(roots: set[str], calls: dict[str, set[str]]) -> set[str]:
  seen, todo = set(), list(roots)
  while todo:
    name = todo.pop()
    if name not in seen:
      seen.add(name)
      todo += calls.get(name, ())
  return seen


def table(found: Sequence[Collective], scalar: int = 64) -> str:
  """One line per collective; those of at most `scalar` bytes share one line."""
  large = [c for c in found if c.bytes > scalar]
  lines = [
      f'{c.kind:20s} {c.bytes:13,d} bytes in {len(c.arrays):4d} arrays over {c.participants:3d} devices'
      f'{"  IN A LOOP" if c.in_loop else ""}' for c in large]
  small = [c for c in found if c.bytes <= scalar]
  lines.append(f'{len(small)} of at most {scalar} bytes, {sum(c.bytes for c in small)} bytes together')
  return '\n'.join(lines)


def compile_step(config: Any, mesh: Any, with_r1: bool) -> Any:
  """The run's step, compiled for the devices of `mesh` from shapes alone."""
  state = train_state.abstract_state(config, sharding.state_sharding(mesh))
  inputs = train_step.abstract_batch(config, mesh).values()
  return train_step.make_step_fn(config, mesh, with_r1).lower(state, *inputs).compile()
