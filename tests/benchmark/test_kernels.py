"""Kernels and bytes of a program compiled for a GPU, on a program written by hand."""

from benchmarks import kernels

HLO = '''HloModule jit_step, is_scheduled=true

%fused_silu (param_0: bf16[4,8]) -> bf16[4,8] {
  %param_0 = bf16[4,8]{1,0} parameter(0)
  ROOT %neg = bf16[4,8]{1,0} negate(%param_0)
}

%fused_sum (param_1: bf16[4,8]) -> f32[8] {
  %param_1 = bf16[4,8]{1,0} parameter(0)
  ROOT %reduce.1 = f32[8]{0} reduce(%param_1), dimensions={0}
}

%body (carry: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %carry = (s32[], bf16[4,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %x.1 = bf16[4,8]{1,0} get-tuple-element(%carry), index=1
  %silu = bf16[4,8]{1,0} fusion(%x.1), kind=kLoop, calls=%fused_silu, metadata={op_name="jit(step)/silu"}
  ROOT %next = (s32[], bf16[4,8]{1,0}) tuple(%i, %silu)
}

ENTRY %main (x: bf16[4,8], kernel: bf16[8,8]) -> f32[8] {
  %x = bf16[4,8]{1,0} parameter(0)
  %kernel = bf16[8,8]{1,0} parameter(1)
  %product = (bf16[4,8]{1,0}, s8[1000]{0}) custom-call(%x, %kernel), custom_call_target="__cublas$lt$matmul"
  %y = bf16[4,8]{1,0} get-tuple-element(%product), index=0
  %start = (s32[], bf16[4,8]{1,0}) tuple(%zero, %y)
  %loop = (s32[], bf16[4,8]{1,0}) while(%start), body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %z = bf16[4,8]{1,0} get-tuple-element(%loop), index=1
  %conv = (f32[2,2]{1,0}, u8[7]{0}) custom-call(%z), custom_call_target="__cudnn$convForward"
  %copy.1 = bf16[4,8]{0,1} copy(%z)
  ROOT %sum = f32[8]{0} fusion(%copy.1), kind=kInput, calls=%fused_sum
}
'''


def test_bytes_and_kinds():
  """Arguments and results without a library's workspace; a loop's kernels count once a pass."""
  found = {kernel.name: (kernel.kind, kernel.bytes) for kernel in kernels.kernels(HLO)}
  assert found == {
      'product': ('matrix products', 64 + 128 + 64), 'silu': ('element-wise', 3 * (64 + 64)),
      'conv': ('convolutions', 64 + 16), 'copy.1': ('transposes and copies', 128), 'sum': ('reductions', 64 + 32)}


def test_table():
  found = kernels.kernels(HLO)
  lines = kernels.table(found, bytes_per_second=1e6).splitlines()
  assert lines[2] == '| element-wise | 1 | 0.00 | 0.38 |' and lines[-1] == '| all | 5 | 0.00 | 0.94 |'
  assert kernels.longest(found, 1).split() == ['0.0', 'MB', 'element-wise', 'jit(step)/silu']
