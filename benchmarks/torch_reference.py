"""Runs a downloaded PyTorch implementation of DDGAN, for `benchmarks/beside_pytorch.py`.

This repository contains none of its code. Its folder must have, as published, `score_sde.models` with
`ncsnpp_generator_adagn.NCSNpp(options)` and `discriminator.Discriminator_small`, `Discriminator_large`, and `EMA.EMA`.
Unless `use_kernels`, its CUDA operations are replaced by PyTorch code written from their definition.
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from ddgan_jax import diffusion
from ddgan_jax.config import Config, UserError


def upfirdn2d(x, kernel, up=1, down=1, pad=(0, 0)):
  """x [N, C, H, W] → zeros between the pixels, padding before and after, FIR filter, every `down`-th pixel.

  By definition y[i] = sum_k kernel[k] u[down * i + taps - 1 - k], u being the padded input.
  """
  n, c, h, w = x.shape
  if up > 1:
    spread = x.new_zeros(n, c, h, up, w, up)
    spread[:, :, :, 0, :, 0] = x
    x = spread.view(n, c, h * up, w * up)
  x = F.pad(x, (pad[0], pad[1], pad[0], pad[1]))
  # A depthwise convolution is a third faster on a CPU than one over all channels as rows.
  taps = kernel.flip(0, 1).to(x.dtype).expand(c, 1, -1, -1)
  return F.conv2d(x, taps, stride=down, groups=c)


def fused_leaky_relu(x, bias, negative_slope=0.2, scale=2**0.5):
  """scale * leaky_relu(x + bias), the bias per channel (axis 1)."""
  return scale * F.leaky_relu(x + bias.view(1, -1, *[1] * (x.ndim - 2)), negative_slope)


class FusedLeakyReLU(torch.nn.Module):
  """`fused_leaky_relu` with a learned bias."""

  def __init__(self, channel, negative_slope=0.2, scale=2**0.5):
    super().__init__()
    self.bias = torch.nn.Parameter(torch.zeros(channel))
    self.negative_slope, self.scale = negative_slope, scale

  def forward(self, x):
    return fused_leaky_relu(x, self.bias, self.negative_slope, self.scale)


class Reference:
  """The networks of `folder` at the sizes of `config`, and what a benchmark does with them.

  Args:
    folder: the checkout.
    config: sizes and learning rates.
    device: 'cpu' or 'cuda'.
    channels_last: memory format of weights and images.
    compile_: whether both networks go through torch.compile; all but D's pass on real images of a step with R1.
    autocast: whether networks compute in bf16.
    use_kernels: use its own CUDA operations, which it compiles when it is imported.
  """

  def __init__(
      self, folder: str, config: Config, device: str, channels_last: bool = False, compile_: bool = False,
      autocast: bool = False, use_kernels: bool = False):
    sys.path.insert(0, folder)
    if not use_kernels:
      stand_ins = types.ModuleType('score_sde.op')
      stand_ins.upfirdn2d = upfirdn2d
      stand_ins.fused_leaky_relu, stand_ins.FusedLeakyReLU = fused_leaky_relu, FusedLeakyReLU
      sys.modules['score_sde.op'] = stand_ins
    try:
      import EMA
      from score_sde.models import discriminator, ncsnpp_generator_adagn
    except ImportError as error:
      raise UserError(f'--reference: {folder} is no checkout of the original ({error})') from error
    self.config, self.device, self.autocast = config, device, autocast
    self.layout = torch.channels_last if channels_last else torch.contiguous_format
    kinds = {'small': discriminator.Discriminator_small, 'large': discriminator.Discriminator_large}
    d = config.discriminator
    g_network = ncsnpp_generator_adagn.NCSNpp(types.SimpleNamespace(**vars(config.generator)))
    d_network = kinds[d.kind](nc=2 * d.num_channels, ngf=d.ngf, t_emb_dim=d.t_emb_dim, act=torch.nn.LeakyReLU(0.2))
    self.generator, self.discriminator = (
        network.to(device=device, memory_format=self.layout) for network in (g_network, d_network))
    self._ema_class = EMA.EMA
    schedule = diffusion.make_schedule(**vars(config.diffusion))
    self._tables = {
        name: torch.tensor(np.asarray(getattr(schedule, name)), device=device)
        for name in ('sqrt_alpha', 'sigma', 'sqrt_alpha_bar', 'sigma_bar', 'posterior_log_variance',
                     'posterior_coef_x_0', 'posterior_coef_x_tp1')}
    self._run_generator = torch.compile(self.generator) if compile_ else self.generator
    self._run_discriminator = torch.compile(self.discriminator) if compile_ else self.discriminator

  def images(self, batch_size: int) -> torch.Tensor:
    """Random images [B, C, H, W] in [-1, 1]."""
    height, width, channels = self.config.image_shape
    x = torch.rand(batch_size, channels, height, width, device=self.device) * 2 - 1
    return x.contiguous(memory_format=self.layout)

  def predict(self, x_tp1, t, z):
    """G."""
    with self._precision():
      return self._run_generator(x_tp1, t, z).float()

  def sample(self, batch_size: int) -> torch.Tensor:
    """The T-step sampler."""
    with torch.no_grad():
      x = torch.randn_like(self.images(batch_size))
      for step in reversed(range(self.config.diffusion.num_timesteps)):
        t = torch.full((batch_size,), step, dtype=torch.int64, device=self.device)
        z = torch.randn(batch_size, self.config.generator.nz, device=self.device)
        x = self._posterior(self.predict(x, t, z), x, t)
    return x

  def training_step(self, batch_size: int, published: bool) -> Callable[[bool], None]:
    """Returns the joint training step, a function of whether it has R1.

    Args:
      batch_size: rows.
      published: as published: D's half computes and discards a gradient for G, and one for x_t at every step; Adam and
        the EMA process one tensor at a time. Otherwise no unused gradients, fused Adam, and an EMA over all tensors at
        once.
    """
    optim, x_0 = self.config.optim, self.images(batch_size)
    g_params, d_params = list(self.generator.parameters()), list(self.discriminator.parameters())
    how = {'betas': (optim.beta1, optim.beta2)} | ({} if published else {'fused': True})
    d_optimizer = torch.optim.Adam(d_params, lr=optim.lr_d, **how)
    g_optimizer = torch.optim.Adam(g_params, lr=optim.lr_g, **how)
    ema = [p.detach().clone() for p in g_params]
    if published:
      g_optimizer = self._ema_class(g_optimizer, ema_decay=optim.ema_decay)

    def pair_and_fake(with_gradient):
      t = torch.randint(0, self.config.diffusion.num_timesteps, (batch_size,), device=self.device)
      x_t = self._at('sqrt_alpha_bar', t) * x_0 + self._at('sigma_bar', t) * torch.randn_like(x_0)
      x_tp1 = self._at('sqrt_alpha', t + 1) * x_t + self._at('sigma', t + 1) * torch.randn_like(x_0)
      z = torch.randn(batch_size, self.config.generator.nz, device=self.device)
      with torch.set_grad_enabled(with_gradient):
        x_t_fake = self._posterior(self.predict(x_tp1, t, z), x_tp1, t)
      return t, x_t, x_tp1, x_t_fake

    def train(network, on):
      for p in network.parameters():
        p.requires_grad_(on)
        if on:
          p.grad = None

    def step(with_r1):
      train(self.discriminator, True)
      t, x_t, x_tp1, x_t_fake = pair_and_fake(with_gradient=published)
      x_t.requires_grad_(published or with_r1)
      real = self._score(x_t, t, x_tp1, compiled=not with_r1)  # torch.compile cannot differentiate twice
      F.softplus(-real).mean().backward(retain_graph=with_r1 or published)
      if with_r1:
        gradient, = torch.autograd.grad(real.sum(), x_t, create_graph=True)
        (optim.r1_gamma / 2 * gradient.flatten(1).square().sum(1).mean()).backward()
      F.softplus(self._score(x_t_fake, t, x_tp1)).mean().backward()
      d_optimizer.step()
      train(self.discriminator, False)
      train(self.generator, True)
      t, _, x_tp1, x_t_fake = pair_and_fake(with_gradient=True)
      F.softplus(-self._score(x_t_fake, t, x_tp1)).mean().backward()
      g_optimizer.step()
      if not published:
        with torch.no_grad():
          torch._foreach_lerp_(ema, g_params, 1 - optim.ema_decay)

    return step

  def _score(self, x_t, t, x_tp1, compiled=True):
    network = self._run_discriminator if compiled else self.discriminator
    with self._precision():
      return network(x_t, t, x_tp1).float().flatten()

  def _precision(self):
    return torch.autocast(self.device, torch.bfloat16) if self.autocast else contextlib.nullcontext()

  def _at(self, table, t):
    return self._tables[table][t].view(-1, 1, 1, 1)

  def _posterior(self, x_0, x_tp1, t):
    mean = self._at('posterior_coef_x_0', t) * x_0 + self._at('posterior_coef_x_tp1', t) * x_tp1
    spread = (0.5 * self._at('posterior_log_variance', t)).exp() * (t > 0).view(-1, 1, 1, 1)
    return mean + spread * torch.randn_like(x_0)
