"""Measures each optimisation of the training step and the sampler, on and off: `python benchmarks/tactics.py`.

Each is a small program at the sizes of the CIFAR-10 networks (or, where a whole G is needed, with half the width and
half the blocks). The variants of an optimisation take turns; the table has medians over `--rounds`. The ratio is that
of wall time to the first variant. Select optimisations with `--only fir norm`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import pathlib
import statistics
import sys
import time
import types
from collections.abc import Callable
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddgan_jax import config as config_lib
from ddgan_jax import diffusion, models, objectives, sampling, train_state, train_step
from ddgan_jax.benchmark import timing
from ddgan_jax.config import recipes
from ddgan_jax.models import blocks, norms, resample
from ddgan_jax.objectives import penalties
from ddgan_jax.parallel import compilation, convolution, sharding

Forms = dict[str, tuple[Callable, tuple]]  # name → function and arguments; the first is the baseline
KERNEL = (1.0, 3.0, 3.0, 1.0)
SETTINGS = types.SimpleNamespace(dtype='float32')  # from the command line
_BY_DEFAULT = "jaxlib's defaults"
_JAX_LAYOUTS = "JAX's layouts"


def images(seed: int, *shape: int) -> jax.Array:
  return jax.random.normal(jax.random.key(seed), shape)


def normal(seed: int, *shape: int) -> jax.Array:
  return images(seed, *shape).astype(SETTINGS.dtype)


def convolve(x: jax.Array, kernel: jax.Array, layouts: tuple[str, str, str] = ('NHWC', 'HWIO', 'NHWC')) -> jax.Array:
  return jax.lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=layouts)


def small_config(batch_size: int) -> config_lib.Config:
  fields = recipes.load('cifar10')
  fields.generator.update(num_channels_dae=64, num_res_blocks=1)
  fields.data.batch_size = batch_size
  fields.parallel.dtype = SETTINGS.dtype
  return config_lib.from_config_dict(fields)


def with_gradient(forms: Forms) -> Forms:
  """Each variant, and its gradient with respect to the first argument."""
  backward = {
      f'{name}, with gradient': (jax.grad(lambda *args, f=function: jnp.square(f(*args)).sum()), args)
      for name, (function, args) in forms.items()}
  return forms | backward


def fir(batch: int) -> list[Forms]:
  """Resampling as shifted sums, as one depthwise convolution, or as two products with banded matrices."""
  up, down = (1, 2, 2, 1), (2, 1, 1, 1)  # stride, up, left, right
  up_shifts, down_shifts = (lambda x, size=size: resample._filter_by_shifts(x, KERNEL, *size) for size in (up, down))
  up_conv, down_conv = (lambda x, size=size: resample._filter_by_conv(x, KERNEL, *size) for size in (up, down))

  def as_product(function, size):
    column = np.asarray(function(jnp.eye(size)[..., None, None])[:, :, 0, 0])  # [in, out] of one axis
    return lambda x: jnp.einsum('bhwc,hy,wx->byxc', x, column, column)

  up_axis = lambda x: resample._up_shifts(x, 2 * resample._taps(KERNEL), 1, up[2])
  down_axis = lambda x: resample._filter_shifts(x, resample._taps(KERNEL), 1, 2, *down[2:])
  x_up, x_down = normal(0, batch, 16, 16, 256), normal(0, batch, 32, 32, 128)
  return [
      with_gradient({'up: shifts': (up_shifts, (x_up,)), 'up: depthwise': (up_conv, (x_up,)),
                     'up: product': (as_product(up_axis, 16), (x_up,))}),
      with_gradient({'down: shifts': (down_shifts, (x_down,)), 'down: depthwise': (down_conv, (x_down,)),
                     'down: product': (as_product(down_axis, 32), (x_down,))})]


def norm(batch: int) -> list[Forms]:
  """AdaGN and SiLU with two passes over x and two multiply-adds, or with one each; the slope of SiLU stored or not."""
  x = normal(0, batch, 32, 32, 128)
  scale, shift = 1 + normal(1, batch, 128), normal(2, batch, 128)

  def two_passes(x, scale, shift):
    groups = x.reshape(batch, 32, 32, 32, 4)
    mean = groups.mean((1, 2, 4), keepdims=True)
    variance = jnp.square(groups - mean).mean((1, 2, 4), keepdims=True)
    x = ((groups - mean) * jax.lax.rsqrt(variance + 1e-6)).reshape(x.shape)
    return jax.nn.silu(x * scale[:, None, None] + shift[:, None, None])

  def folded(silu, x, scale, shift):
    return silu(x, *norms._affine((x,), scale, shift))

  args = (x, scale, shift)
  return [with_gradient({
      'two passes': (two_passes, args), 'folded': (functools.partial(folded, norms._silu_stored), args),
      'folded, slope twice': (functools.partial(folded, norms._silu_recomputed), args)})]


def parts(batch: int) -> list[Forms]:
  """A residual block of the upsampling half, of the concatenation of h and a skip, or of the two parts."""
  config = recipes.load('cifar10').generator
  block = blocks.ResidualBlock(128, config_lib.GeneratorConfig(**config), dtype=jnp.dtype(SETTINGS.dtype))
  h, skip = normal(0, batch, 32, 32, 256), normal(1, batch, 32, 32, 128)
  temb, zemb = normal(2, batch, 512), normal(3, batch, 256)
  params = jax.tree.map(
      lambda leaf: leaf + 0.02 * images(4, *leaf.shape), block.init(jax.random.key(0), (h, skip), temb, zemb))
  joined = lambda h, skip: block.apply(params, (jnp.concatenate([h, skip], axis=-1),), temb, zemb)
  return [with_gradient({'concatenated': (joined, (h, skip)),
                         'in parts': (lambda h, skip: block.apply(params, (h, skip), temb, zemb), (h, skip))})]


def residual(batch: int) -> list[Forms]:
  """(x + conv(h)) / sqrt(2) with the sum scaled, or the kernel and x."""
  x, h, kernel = normal(0, batch, 32, 32, 128), normal(1, batch, 32, 32, 128), normal(2, 3, 3, 128, 128) / 34
  scale = blocks.INV_SQRT_2
  return [with_gradient({'sum scaled': (lambda x, h, k: (x + convolve(h, k)) * scale, (x, h, kernel)),
                         'kernel scaled': (lambda x, h, k: scale * x + convolve(h, scale * k), (x, h, kernel))})]


def channels(batch: int) -> list[Forms]:
  """Group statistics per channel in AdaGN and SiLU: repeated, or by a product with ones."""
  args = normal(0, batch, 32, 32, 128), normal(1, batch, 256), normal(2, 256, 256) / 16, normal(3, 256)

  def norm(to_channels, x, latent, kernel, bias):
    kept, norms._to_channels = norms._to_channels, to_channels
    try:
      style = jnp.split(latent @ kernel + bias, 2, axis=1)
      return norms.normalise_silu.__wrapped__((x,), *style)  # the jitted one would only be traced once
    finally:
      norms._to_channels = kept

  repeat = lambda per_group, width: jnp.repeat(per_group, width // per_group.shape[1], axis=1)
  return [with_gradient({'repeated': (functools.partial(norm, repeat), args),
                         'as here': (functools.partial(norm, norms._to_channels), args)})]


def shortcut(batch: int) -> list[Forms]:
  """1x1 convolution after or before the upsampling."""
  x, kernel = normal(0, batch, 16, 16, 256), normal(1, 256, 256) / 16
  up = lambda x: resample.fir_up(x, KERNEL)
  args = (x, kernel)
  return [with_gradient({'after': (lambda x, k: up(x) @ k, args), 'before': (lambda x, k: up(x @ k), args)})]


def attention(batch: int) -> list[Forms]:
  """Attention over 16x16 positions with 256 channels."""
  q, k, v = (normal(i, batch, 256, 1, 256) for i in range(3))

  def einsum(q, k, v):
    weights = jax.nn.softmax(jnp.einsum('bqhc,bkhc->bhqk', q, k) / 16, axis=-1)
    return jnp.einsum('bhqk,bkhc->bqhc', weights, v)

  args = (q, k, v)
  forms = {'einsum': (einsum, args), 'dot_product_attention': (jax.nn.dot_product_attention, args)}
  if jax.default_backend() == 'gpu' and SETTINGS.dtype == 'bfloat16':
    forms['cuDNN'] = (functools.partial(jax.nn.dot_product_attention, implementation='cudnn'), args)
  return [with_gradient(forms)]


def tiny_maps(batch: int) -> list[Forms]:
  """3x3 convolution of 256 channels at 4x4, as a convolution or as a product of patches."""
  x, kernel = normal(0, batch, 4, 4, 256), normal(1, 3, 3, 256, 256) / 48

  def patches(x, k):
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    columns = jnp.concatenate([padded[:, i:i + 4, j:j + 4] for i in range(3) for j in range(3)], axis=-1)
    return columns @ k.reshape(-1, k.shape[-1])

  return [with_gradient({'convolution': (convolve, (x, kernel)), 'patches': (patches, (x, kernel))})]


def convolutions(batch: int) -> list[Forms]:
  """3x3 convolutions with jaxlib's defaults (YNNPACK on CPUs), and with the options of `compilation.jit`."""

  def kernel_gradient(x, g):
    kernel = jnp.zeros((3, 3, x.shape[-1], g.shape[-1]))
    return jax.grad(lambda kernel: (convolve(x, kernel) * g).sum())(kernel)

  forms = []
  for size, width in ((32, 128), (32, 256), (16, 256), (8, 256)):
    x, g, kernel = (normal(0, batch, size, size, width), normal(1, batch, size, size, width),
                    normal(2, 3, 3, width, width) / 34)
    for what, function, args in (('', convolve, (x, kernel)), (', kernel gradient', kernel_gradient, (x, g))):
      forms.append({f'{size}x{size}, {width}{what}: {how}': (function, args) for how in (_BY_DEFAULT, 'as here')})
  return forms


def loops(batch: int) -> list[Forms]:
  """Gradients of a 3x3 convolution in a loop of two, as with microbatches, in JAX's and in Eigen's layouts."""
  x, kernel = normal(0, 2, batch, 32, 32, 128), normal(1, 3, 3, 128, 128) / 34
  forms = []
  for what, argument in (('kernel gradient', 1), ('input gradient', 0)):

    def mapped(argument=argument):  # separate functions, because JAX caches traces
      gradient = jax.grad(lambda x, kernel: jnp.square(convolve(x, kernel)).sum(), argument)
      return lambda x, kernel: jax.lax.map(lambda one: gradient(one, kernel), x)

    forms.append({f'{what}: {how}': (mapped(), (x, kernel)) for how in (_JAX_LAYOUTS, 'as here')})
  return forms


def layout(batch: int) -> list[Forms]:
  """3x3 convolution of 128 channels at 32x32, channels last and channels first."""
  x, kernel = normal(0, batch, 32, 32, 128), normal(1, 3, 3, 128, 128) / 34
  first = functools.partial(convolve, layouts=('NCHW', 'HWIO', 'NCHW'))
  return [{'NCHW': (first, (x.transpose(0, 3, 1, 2), kernel)), 'NHWC': (convolve, (x, kernel))}]


def d_half(batch: int) -> list[Forms]:
  """D's gradient: real and fake images in two calls or one; R1 separately or sharing D's forward pass."""
  config = small_config(batch)
  setup = train_step.make_setup(config)
  discriminator = setup.model.discriminator
  x_t, fake, x_tp1 = (images(i, batch, 32, 32, 3) for i in range(3))
  t = jnp.arange(batch) % 4
  params = jax.jit(lambda: discriminator.init(jax.random.key(0), x_t, t, x_tp1)['params'])()
  gamma = config.optim.r1_gamma
  pairs = objectives.Pairs(x_t, fake, t, x_tp1, x_0_pred=fake)
  rows = objectives.Rows(x_t, setup.draws(jax.random.key(3), x_t.shape).d, jnp.arange(batch), None, jnp.int32(0))

  def loss(penalized, params):
    return setup.objective.discriminator_loss(setup.model, params, pairs, rows, penalized)[0]

  def joined(params):
    twice = lambda a, b: jnp.concatenate([a, b])
    logits = discriminator.apply({'params': params}, twice(x_t, fake), twice(t, t), twice(x_tp1, x_tp1))
    real, generated = jnp.split(logits, 2)
    return jax.nn.softplus(-real).mean() + jax.nn.softplus(generated).mean()

  def penalty(params):
    gradient = jax.grad(lambda x: discriminator.apply({'params': params}, x, t, x_tp1).sum())(x_t)
    return 0.5 * gamma * jnp.square(gradient).sum((1, 2, 3)).mean()

  plain = jax.grad(functools.partial(loss, False))
  apart = lambda params: jax.tree.map(jnp.add, plain(params), jax.grad(penalty)(params))
  return [
      {'real and fake in two calls': (plain, (params,)), 'in one': (jax.grad(joined), (params,))},
      {'R1 apart': (apart, (params,)),
       'R1 shares the forward pass': (jax.grad(functools.partial(loss, True)), (params,))}]


def wasted_gradient(batch: int) -> list[Forms]:
  """D's half of the step with and without the gradient for G, which the original computes and discards."""
  config = small_config(batch)
  setup = train_step.make_setup(config)
  objective, model = setup.objective, setup.model
  state = jax.jit(lambda: train_state.create(config))()
  draws = setup.draws(jax.random.key(0), (batch, 32, 32, 3)).d
  rows = objectives.Rows(images(0, batch, 32, 32, 3), draws, jnp.arange(batch), None, jnp.int32(0))

  def loss(d_params, g_params):
    pairs = objective.pairs(model, g_params, rows)
    return objective.discriminator_loss(model, d_params, pairs, rows, False)[0]

  both = jax.grad(loss, argnums=(0, 1))
  args = (state.d_params, state.g_params)
  return [{'wasted': (lambda *args: (both(*args)[0], optax.tree.norm(both(*args)[1])), args),
           'left out': (lambda *args: (jax.grad(loss)(*args), 0.0), args)}]


def update(batch: int) -> list[Forms]:
  """Adam and EMA of G: tensor by tensor, over one vector, or with tensors below 1,024 elements joined."""
  config = small_config(4)
  params = jax.jit(lambda: train_state.create(config).g_params)()
  grads = jax.tree.map(lambda leaf: 1e-3 * jnp.ones_like(leaf), params)

  def join(tree, small):
    leaves = jax.tree.leaves(tree)
    chosen = [leaf.ravel() for leaf in leaves if leaf.size < small]
    return [jnp.concatenate(chosen), *(leaf for leaf in leaves if leaf.size >= small)]

  def part(joined, like, small):
    leaves, structure = jax.tree.flatten(like)
    sizes = np.cumsum([leaf.size for leaf in leaves if leaf.size < small])[:-1]
    pieces, others = iter(jnp.split(joined[0], sizes)), iter(joined[1:])
    return structure.unflatten(
        [next(pieces).reshape(leaf.shape) if leaf.size < small else next(others) for leaf in leaves])

  adam = optax.scale_by_adam(b1=0.5, b2=0.9)

  def one_by_one(params, mu, nu, ema, grads):
    updates, state = adam.update(grads, optax.ScaleByAdamState(jnp.int32(3), mu, nu))
    params = jax.tree.map(lambda p, u: p - 1e-4 * u, params, updates)
    return params, state.mu, state.nu, jax.tree.map(lambda e, p: 0.999 * e + 0.001 * p, ema, params)

  def joined(small, *trees):
    return tuple(part(tree, trees[0], small) for tree in one_by_one(*(join(tree, small) for tree in trees)))

  args = (params, grads, jax.tree.map(jnp.square, grads), params, grads)
  return [{'tensor by tensor': (one_by_one, args), 'small ones joined': (functools.partial(joined, 1024), args),
           'one vector': (functools.partial(joined, 2**62), args)}]


def sampler(batch: int) -> list[Forms]:
  """Four evaluations of G, as a compiled loop or unrolled; the loop also in bf16."""
  config = small_config(batch)
  params = jax.jit(lambda: train_state.create(config).g_params)()
  schedule = train_state.make_schedule(config)
  noise = sampling.draw_noise(jax.random.key(0), (batch, 32, 32, 3), 4, config.generator.nz)

  def generator_fn(params, dtype):
    return models.generator_fn(models.Generator(config.generator, jnp.dtype(dtype)), params, schedule)

  def unrolled(params):
    x, z, posterior_noise = noise
    for i, t in enumerate(reversed(range(4))):
      t = jnp.full(batch, t)
      x = diffusion.sample_posterior(
          schedule, generator_fn(params, SETTINGS.dtype)(x, t, z[i]), x, t, posterior_noise[i])
    return x

  loop = lambda dtype, params: sampling.sample_given_noise(generator_fn(params, dtype), schedule, *noise)
  others = {} if SETTINGS.dtype == 'bfloat16' else {'loop, bf16': (functools.partial(loop, 'bfloat16'), (params,))}
  return [{'loop': (functools.partial(loop, SETTINGS.dtype), (params,)), 'unrolled': (unrolled, (params,)), **others}]


def calls(batch: int) -> list[Forms]:
  """Ten short steps of configs/digits.py, in ten programs or one, to show the cost of dispatch."""
  del batch
  config = config_lib.from_config_dict(recipes.load('digits'))
  config = dataclasses.replace(config, train=dataclasses.replace(config.train, steps_per_call=10))
  mesh = sharding.make_mesh(jax.devices()[:1])
  step_fns = {r1: train_step.make_step_fn(config, mesh, r1) for r1 in (True, False)}
  steps_fn = train_step.make_steps_fn(config, mesh)
  batches = images(0, 10, config.data.batch_size, *config.image_shape)
  copy = jax.jit(lambda state: jax.tree.map(jnp.copy, state))  # the steps donate their state
  state = jax.jit(lambda: train_state.create(config))()

  def one_by_one(state, images):
    state = copy(state)
    for i in range(10):
      state, metrics = step_fns[penalties.r1(config.optim).is_due(i)](state, images[i])
    return metrics['loss_g']

  return [{'one step a call': (one_by_one, (state, list(batches))),
           'ten': (lambda state, images: steps_fn(copy(state), images)[1]['loss_g'][-1], (state, batches))}]


TACTICS = {function.__name__: function for function in (
    fir, norm, parts, residual, channels, shortcut, attention, tiny_maps, convolutions, loops, layout, d_half,
    wasted_gradient, update, sampler, calls)}


def compiled(name: str, function: Callable, args: tuple) -> tuple[Callable[[], Any], float]:
  """The function to time, and the seconds of its compilation."""
  if name in ('one step a call', 'ten'):
    return functools.partial(function, *args), float('nan')
  begun = time.perf_counter()
  jit = compilation.jit
  if name.endswith(_BY_DEFAULT):
    jit = jax.jit
  elif name.endswith(_JAX_LAYOUTS):
    jit = functools.partial(jax.jit, compiler_options=compilation.compiler_options(jax.default_backend()))
  with convolution.cpu_convolution_layout(not name.endswith(_JAX_LAYOUTS)):
    run = jit(function).lower(*args).compile()
  return functools.partial(run, *args), time.perf_counter() - begun


def difference(a: Any, b: Any) -> float:
  """The largest difference between two trees, relative to the largest value."""
  pairs = [(np.asarray(x), np.asarray(y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]
  if any(x.shape != y.shape for x, y in pairs):
    return float('nan')
  return max(np.abs(x - y).max() for x, y in pairs) / max(np.abs(x).max() for x, _ in pairs)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--only', nargs='+', default=list(TACTICS), choices=list(TACTICS))
  parser.add_argument('--batch_size', type=int, default=8)
  parser.add_argument('--rounds', type=int, default=15)
  parser.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16'))
  args = parser.parse_args()
  SETTINGS.dtype = args.dtype
  print(f'{jax.device_count()} {jax.devices()[0].device_kind}, batch {args.batch_size}, {args.dtype}, {args.rounds} '
        f'rounds; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores')
  print('| tactic | form | ms, median | processor ms | ratio | compiled in, s | difference |')
  print('|---|---|---|---|---|---|---|')
  for name in args.only:
    for forms in TACTICS[name](args.batch_size):
      runs, compile_seconds = {}, {}
      for form, (function, arguments) in forms.items():
        try:
          runs[form], compile_seconds[form] = compiled(form, function, arguments)
        except Exception as error:  # such as a kernel that this device lacks; JAX raises many types
          print(f'| {name} | {form} | {type(error).__name__}: {str(error).partition(chr(10))[0]} | | | | |', flush=True)
      timings = timing.time_interleaved(runs, args.rounds)
      for form in runs:
        base = next(b for b in runs if ('with gradient' in b) == ('with gradient' in form))
        processor = statistics.median(timings[form].processor_seconds)
        print(f'| {name} | {form} | {1e3 * timings[form].median:,.2f} | {1e3 * processor:,.2f} | '
              f'{timings[form].median / timings[base].median:.2f} | {compile_seconds[form]:.1f} | '
              f'{difference(runs[base](), runs[form]()):.0e} |', flush=True)


if __name__ == '__main__':
  main()
