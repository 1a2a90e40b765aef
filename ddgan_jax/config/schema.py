"""Configuration of a run: `ml_collections.ConfigDict` in, checked frozen dataclasses out.

Recipes in `configs/` are ConfigDicts, so that every field is a flag (`--config.optim.lr_g=2e-4`). Everything below the
commands uses only these frozen dataclasses.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from typing import Any

from ddgan_jax.config import checks
from ddgan_jax.config.checks import SHARED, check_known, choice, convert, make_section, number
from ddgan_jax.config.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class _Section:
  """Base of a config section; checks each field against the bounds in its metadata."""

  def __post_init__(self):
    checks.check_fields(type(self).__name__.removesuffix('Config').lower() + '.', self)


@dataclasses.dataclass(frozen=True)
class DataConfig(_Section):
  """The data set, how its images are prepared, and the global batch.

  Attributes:
    name: `folder`, `zip`, `npz` or `lmdb` for files at `path`; `digits`, or any TFDS name with an `image` feature
      (`cifar10`, `celeb_a_hq/256`, …); `gaussians25` for points in the plane as 1x1 images (see `data.points`).
    path: a local `folder` (a directory tree of images; class folders become labels), a `zip` of one, an `npz` (uint8
      `images`, optionally integer `labels`), or an `lmdb` (encoded images as in LSUN, or raw square RGB).
    split: the split of a TFDS set.
    data_dir: data directory of TFDS; empty means TFDS's default.
    cache_dir: directory of the prepared arrays; empty means ~/.cache/ddgan_jax/data.
    cache: `array` stores all images, decoded and resized, in one file; `none` checks them once and decodes them each
      time they are used (less disk, more CPU).
    skip_bad: skip unreadable images and report them; otherwise they are an error.
    image_size: H = W of the images that the networks see, in pixels.
    num_channels: C, 1 (grey) or 3 (RGB); 2 for points; 1 … 16 with value_range.
    value_range: (lowest, highest) value of an `npz` whose `images` are float32, uint16 or uint8 measurements; they are
      mapped linearly to [-1, 1], samples are float32 in these units, and nothing is quantised. Empty for images of 8
      bits.
    batch_size: global batch, over all devices and processes.
    resize: for images of another size: `none` (an error), `crop` (shrink the shorter side to image_size and crop the
      centre; smaller images are an error), `cover` (like `crop`, but smaller images are enlarged) or `pad` (centre on
      black; larger images are an error).
    flip: mirror each image horizontally with probability 1/2.
    stack: 1, or 3 to put three random grey images into R, G, B, with label 100a + 10b + c.
    num_stacks: with stack=3, the size of a fixed set of stacks (the paper's StackedMNIST has 120,000); 0 draws new
      stacks for every batch.
    num_workers: decoding processes with cache='none'; 0 uses threads.
    transform: `none`, or `haar`: both networks see the four Haar coefficients of each 2x2 block as channels, at half
      the resolution (see `models.haar`). Diffusion, sampling and editing stay in pixels: the transform is orthonormal,
      so noise is added to the coefficients in the same way. WaveDiff also halves the coefficients, so there the signal
      has a quarter of the variance at every level.
    condition: what G and D see of each image besides its noisy versions (see `data.conditions`): `none`; `lowres:K`,
      the means of its K x K blocks; `grey`; `mask`, the image with random holes; `edges`; or `pairs`, a second image
      from condition_path.
    condition_path: for `pairs`, a folder or zip whose images have the names of those at data.path, apart from the
      extension, or an `npz` with `conditions` in the same order; empty if data.path is an `npz` with both.
    pair_size: H = W of the conditions of `pairs`, a divisor of image_size; 0 is image_size.
    pair_channels: channels of the conditions of `pairs`, 1 (grey) or 3 (RGB); 1 … 16 with pair_range.
    pair_range: as value_range, for the `conditions` of an `npz`.
  """

  name: str = 'digits'
  path: str = ''
  split: str = 'train'
  data_dir: str = ''
  cache_dir: str = ''
  cache: str = choice('array', 'none')
  skip_bad: bool = False
  image_size: int = number(32, minimum=1)
  num_channels: int = 3
  value_range: tuple[float, ...] = ()
  batch_size: int = 256
  resize: str = choice('none', 'crop', 'cover', 'pad')
  flip: bool = False
  stack: int = choice(1, 3)
  num_stacks: int = number(0, minimum=0)
  num_workers: int = number(0, minimum=0)
  transform: str = choice('none', 'haar')
  condition: str = 'none'
  condition_path: str = ''
  pair_size: int = number(0, minimum=0)
  pair_channels: int = number(3, minimum=1)
  pair_range: tuple[float, ...] = ()

  def __post_init__(self):
    super().__post_init__()
    for field in ('value_range', 'pair_range'):  # a list is not hashable
      object.__setattr__(self, field, tuple(getattr(self, field)))
    checks.check_values(self)
    checks.check_condition(self)

  @property
  def condition_shape(self) -> tuple[int, int, int] | None:
    """(H, W, C) of a condition; None without one."""
    kind, factor = checks.parse_condition(self.condition)
    channels = {'none': 0, 'lowres': self.num_channels, 'grey': 1, 'mask': self.num_channels + 1, 'edges': 1,
                'pairs': self.pair_channels}[kind]
    size = self.pair_size if kind == 'pairs' and self.pair_size else self.image_size // factor
    return (size, size, channels) if channels else None

  @property
  def condition_channels(self) -> int:
    """The number of channels of a condition; 0 without one."""
    return self.condition_shape[2] if self.condition_shape else 0

  @property
  def is_points(self) -> bool:
    """Whether the data are points, float32 [B, 1, 1, 2], instead of images."""
    return self.name == checks.POINTS

  @property
  def is_8_bit(self) -> bool:
    """Whether the data are images of 8 bits, neither points nor measurements."""
    return not (self.is_points or self.value_range)

  @property
  def bound(self) -> float:
    """The range of x_0 is [-bound, bound]."""
    return 5.0 if self.is_points else 1.0


@dataclasses.dataclass(frozen=True)
class DiffusionConfig(_Section):
  """The forward process of T = `num_timesteps` steps; see `diffusion.make_schedule`."""

  num_timesteps: int = number(4, minimum=1)
  kind: str = choice('vp', 'geometric')
  beta_min: float = 0.1
  beta_max: float = 20.0


@dataclasses.dataclass(frozen=True)
class GeneratorConfig(_Section):
  """The generator; fields have the option names of the authors' command line.

  Attributes:
    kind: `ncsnpp`, or `mlp` (three hidden layers), which uses only num_channels_dae, nz, conditional, prediction,
      not_use_tanh, num_classes, label_dropout, stack, condition_channels and condition_dropout.
    prediction: the network's output: `x_0`; `noise`, the noise in x_{t+1}, from which x_0 follows; or `x_t`, "direct
      denoising" without a posterior (the last two are ablations of the paper).
    image_size: H = W of the images.
    num_channels: image channels C.
    num_channels_dae: nf, the width of the first level, or of the hidden layers of an `mlp`.
    ch_mult: width of each level as a multiple of nf; each level after the first halves H and W.
    num_res_blocks: residual blocks per level on the way down (one more on the way up).
    attn_resolutions: resolutions with self-attention (the middle block always has it).
    nz: dimension of the latent z; with 0 there is no z, no mapping network, and the norms are not adaptive.
    z_emb_dim: width of the latent mapping network.
    n_mlp: layers of the mapping network after the first.
    resblock_type: `biggan`, `biggan_oneadagn` (only the first norm sees z) or `ddpm`.
    progressive: `none`, `output_skip` or `residual`: image pyramid on the way up.
    progressive_input: `none`, `input_skip` or `residual`: image pyramid on the way down.
    progressive_combine: `sum` or `cat`, how `input_skip` joins the pyramid.
    embedding_type: `positional` (sinusoids of t) or `fourier` (random features of the noise level).
    fourier_scale: standard deviation of the random frequencies.
    fir: resample with `fir_kernel`; otherwise 2x2 mean and nearest neighbour.
    fir_kernel: one axis of the separable FIR kernel, normalised to sum 1 when used.
    skip_rescale: divide residual sums by sqrt(2).
    resamp_with_conv: `ddpm` blocks only: a 3x3 conv in the resampling layers.
    conditional: condition the blocks on t.
    centered: images are in [-1, 1]; otherwise in [0, 1], and the network maps its input to [-1, 1].
    not_use_tanh: no tanh at the output; there never is one with prediction `noise` or `x_t`, which are unbounded.
    dropout: dropout rate inside the blocks during training.
    num_classes: number of classes; G and D are conditioned on class labels 0 … num_classes - 1. 0 for an unconditional
      run. With data.stack=3, the number of classes of each of the three images.
    label_dropout: fraction of training rows whose label is dropped, so that the network also samples without a label;
      with 0, sampling requires one.
    stack: number of stacked images per label; each is one digit of the label (see `labels`).
    condition_channels: channels of the condition, which is enlarged to the image's size and concatenated to x_{t+1}; 0
      without one.
    condition_dropout: fraction of training rows whose condition is replaced by zeros, so that the network also samples
      without one; with 0, sampling requires one.
    transform: as in `DataConfig`; resolutions and ch_mult then begin at half the image size.
  """

  kind: str = choice('ncsnpp', 'mlp')
  prediction: str = choice('x_0', 'noise', 'x_t')
  image_size: int = number(32, minimum=1)
  num_channels: int = number(3, minimum=1)
  num_channels_dae: int = number(128, minimum=1)
  ch_mult: tuple[int, ...] = (1, 2, 2, 2)
  num_res_blocks: int = number(2, minimum=1)
  attn_resolutions: tuple[int, ...] = (16,)
  nz: int = number(100, minimum=0)
  z_emb_dim: int = number(256, minimum=1)
  n_mlp: int = number(4, minimum=0)
  resblock_type: str = choice('biggan', 'biggan_oneadagn', 'ddpm')
  progressive: str = choice('none', 'output_skip', 'residual')
  progressive_input: str = choice('none', 'input_skip', 'residual', default='residual')
  progressive_combine: str = choice('sum', 'cat')
  embedding_type: str = choice('positional', 'fourier')
  fourier_scale: float = 16.0
  fir: bool = True
  fir_kernel: tuple[float, ...] = (1.0, 3.0, 3.0, 1.0)
  skip_rescale: bool = True
  resamp_with_conv: bool = True
  conditional: bool = True
  centered: bool = True
  not_use_tanh: bool = False
  dropout: float = number(0.0, minimum=0, below=1)
  num_classes: int = number(0, minimum=0)
  label_dropout: float = number(0.1, minimum=0, below=1)
  stack: int = 1
  condition_channels: int = 0
  condition_dropout: float = number(0.0, minimum=0, below=1)
  transform: str = choice('none', 'haar')

  def __post_init__(self):
    super().__post_init__()
    for field in ('ch_mult', 'attn_resolutions', 'fir_kernel'):  # a list is not hashable
      object.__setattr__(self, field, tuple(getattr(self, field)))
    checks.check_generator(self)

  @property
  def ends_in_tanh(self) -> bool:
    """Whether a tanh bounds the output to [-1, 1], the range of x_0."""
    return self.prediction == 'x_0' and not self.not_use_tanh

  @property
  def resolutions(self) -> tuple[int, ...]:
    """H = W at each level, first to last."""
    first = self.image_size // 2 if self.transform == 'haar' else self.image_size
    return tuple(first >> i for i in range(len(self.ch_mult)))


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig(_Section):
  """The time-conditional discriminator D(x_t, t, x_{t+1}).

  Attributes:
    kind: the original's `small` (three halvings, for 32x32) or `large` (six halvings, for 256x256); `tiny` (one
      halving, for 8x8 to 16x16, where `small` would average all positions away); or `mlp` (three hidden layers of width
      ngf, no minibatch standard deviation).
    image_size: H = W of the images.
    num_channels: image channels C.
    ngf: base width; the last blocks have 8 * ngf channels.
    t_emb_dim: width of the time embedding.
    stddev_group: rows per group of the minibatch standard deviation.
    augment: some of `color`, `translation` and `cutout`, random transformations of the images that D sees, against
      overfitting on a few thousand images (see `objectives.augmentation`); empty for none.
    num_classes, stack, condition_channels, transform: as in `GeneratorConfig`; for labels, D is a projection
      discriminator (Miyato and Koyama, 2018).
  """

  kind: str = choice('small', 'large', 'tiny', 'mlp')
  image_size: int = number(32, minimum=1)
  num_channels: int = number(3, minimum=1)
  ngf: int = number(64, minimum=1)
  t_emb_dim: int = 256
  stddev_group: int = number(4, minimum=1)
  augment: tuple[str, ...] = ()
  num_classes: int = 0
  stack: int = 1
  condition_channels: int = 0
  transform: str = choice('none', 'haar')

  def __post_init__(self):
    super().__post_init__()
    # A comma on the command line, `color,cutout`, arrives as one item.
    names = tuple(name for item in self.augment for name in item.split(','))
    object.__setattr__(self, 'augment', names)
    checks.check_discriminator(self)


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig(_Section):
  """Settings of single methods; see their files in `objectives`.

  Attributes:
    cost_weight: tau of `rduot`; the authors use 1e-3 at 32x32, 1e-4 at 64x64 and 1e-7 at 256x256.
    psi: of `rduot`, the conjugate of the entropy: `softplus`, `kl` (exp), `chi_square` or `identity` (plain optimal
      transport).
    regression_weight: of `ufogen` and `siddm`.
    reconstruction_weight: weight of mean |x_0_pred - x_0| in the loss of G, for `ddgan` and its successors; 1 in
      WaveDiff.
    reconstruction_schedule: `constant`, or `sigmoid` to let the weight fall to 0 during training, as in LDDGAN.
  """

  cost_weight: float = number(1e-3, minimum=0)
  psi: str = choice('softplus', 'kl', 'chi_square', 'identity')
  regression_weight: float = number(1.0, minimum=0)
  reconstruction_weight: float = number(0.0, minimum=0)
  reconstruction_schedule: str = choice('constant', 'sigmoid')


@dataclasses.dataclass(frozen=True)
class OptimConfig(_Section):
  """Adam for both networks, cosine learning rates, EMA and R1 (paper, appendix C).

  Attributes:
    lr_g, lr_d: learning rates of G and D at step 0.
    lr_min: final learning rate of both cosines.
    schedule_images: number of images seen at the end of all cosines, those of the learning rates, beta2 and r1_gamma;
      later values are constant. 0 is the whole training, train.num_steps.
    beta1, beta2: Adam's decay rates, for both networks.
    beta2_final: final beta2 of a cosine; -1 keeps beta2 constant.
    ema_decay: decay per step of the exponential moving average (EMA) of G's parameters.
    ema_profiles: also keep two averages of G and save them with every checkpoint, from which EMAs of any length can be
      reconstructed after the training (see `posthoc_ema`); needs the memory of two more copies of G.
    r1_gamma: weight of the R1 penalty (and R2, with method=relativistic); 0 disables it.
    r1_gamma_final: final weight of a cosine; -1 keeps r1_gamma constant.
    lazy_reg: R1 is applied at steps divisible by this; 1 is every step.
  """

  lr_g: float = 1.6e-4
  lr_d: float = 1.25e-4
  lr_min: float = number(1e-5, minimum=0)
  schedule_images: int = number(0, minimum=0)
  beta1: float = number(0.5, minimum=0, below=1)
  beta2: float = number(0.9, minimum=0, below=1)
  beta2_final: float = number(-1.0, minimum=-1, below=1)
  ema_decay: float = number(0.9999, minimum=0, below=1)
  ema_profiles: bool = False
  r1_gamma: float = number(0.02, minimum=0)
  r1_gamma_final: float = number(-1.0, minimum=-1)
  lazy_reg: int = number(15, minimum=1)


@dataclasses.dataclass(frozen=True)
class TrainConfig(_Section):
  """Length of the run and its intervals, in steps.

  Attributes:
    num_steps: joint steps of D and G.
    log_every: interval of the progress line and the scalars.
    eval_every: interval of the metrics of `eval`, by which the best checkpoint is kept; 0 disables them.
    sample_every: interval of the grid of `num_samples` images from the EMA generator.
    checkpoint_every: interval of the asynchronous checkpoint of the whole state.
    keep_checkpoints: number of newest checkpoints that stay on disk.
    num_samples: images in a grid; with data.condition, max(1, num_samples // 6) rows of six samples.
    on_nonfinite: when a loss or the state is NaN or infinite: `stop`, or `rollback` to the last good checkpoint and
      skip the batches since then (see `training.rollback`).
    profile_steps: number of steps to profile, after warm-up and once per workdir; 0 for none.
    steps_per_call: steps in one compiled program, for devices that finish a step before the host dispatches the next;
      num_steps and all intervals above must be multiples of it. Signals are handled between calls.
    init_from: workdir of a run of any method whose EMA generator (and D, if it has the same and sees the same) a new
      run starts from; empty for random initialization. The generator fields must be equal, and with positional
      embeddings also `diffusion`.
  """

  num_steps: int = number(400_000, minimum=1)
  log_every: int = number(100, minimum=1)
  eval_every: int = number(0, minimum=0)
  sample_every: int = number(5_000, minimum=1)
  checkpoint_every: int = number(5_000, minimum=1)
  keep_checkpoints: int = number(2, minimum=1)
  num_samples: int = number(64, minimum=1)
  on_nonfinite: str = choice('stop', 'rollback')
  profile_steps: int = number(0, minimum=0)
  steps_per_call: int = number(1, minimum=1)
  init_from: str = ''


@dataclasses.dataclass(frozen=True)
class EvalConfig(_Section):
  """Metrics during training, and the defaults of `evaluate`.

  Attributes:
    metrics: some of fid, fid_clean, is, kid, mind, pr (improved precision and recall), dc (density and coverage);
      fd_dinov2 (Fréchet distance), mind_dinov2, pr_dinov2 and dc_dinov2, with features of DINOv2 ViT-L/14;
      authenticity_dinov2, _inception, _vgg16 and _classifier; modes; and, for a conditional run, label_accuracy.
    num: number of samples of the EMA generator, drawn with the seed of the run.
    batch_size: global batch size of sampling and measuring.
    force: allow fewer than 10,000 samples, which bias the metrics.
  """

  metrics: tuple[str, ...] = ('fid',)
  num: int = 10_000
  batch_size: int = number(200, minimum=1)
  force: bool = False


@dataclasses.dataclass(frozen=True)
class ParallelConfig(_Section):
  """How a training step uses the devices. Only `dtype` changes its result by more than rounding.

  Attributes:
    dtype: `float32`, or `bfloat16` to compute in bf16 with float32 parameters, norms and losses.
    fsdp: number of devices that share one copy of the parameters, both optimizer states and the EMA; 1 replicates
      them. The batch is sharded over all devices in any case.
    accumulation: number of microbatches per device, processed one after the other: less memory, more time.
    remat: rematerialise each residual block in the backward pass: less memory, more time.
  """

  dtype: str = choice('float32', 'bfloat16')
  fsdp: int = number(1, minimum=1)
  accumulation: int = number(1, minimum=1)
  remat: bool = False


@dataclasses.dataclass(frozen=True)
class Config:
  """A whole run; made by `from_config_dict`.

  Attributes:
    method: the training objective (see `objectives`): `ddgan`; `relativistic`, `rduot`, `ufogen` or `siddm`, its
      successors; `gaussian`, Gaussian diffusion (Ho et al., 2020): G learns x_0 or the noise by L2, without a D; or
      `augmented_gan`, a one-shot GAN whose D sees images diffused to a random level. A plain one-shot GAN is `ddgan`
      with diffusion.num_timesteps=1.
    seed: seed of all randomness, in 0 … 2**32 - 1.
  """

  method: str = 'ddgan'
  seed: int = number(0, minimum=0, below=2**32)
  data: DataConfig = dataclasses.field(default_factory=DataConfig)
  diffusion: DiffusionConfig = dataclasses.field(default_factory=DiffusionConfig)
  generator: GeneratorConfig = dataclasses.field(default_factory=GeneratorConfig)
  discriminator: DiscriminatorConfig = dataclasses.field(default_factory=DiscriminatorConfig)
  objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
  optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
  train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
  eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
  parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)

  def __post_init__(self):
    checks.check_fields('', self)
    checks.check_run(self)

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(H, W, C)."""
    return (self.data.image_size, self.data.image_size, self.data.num_channels)

  @property
  def schedule_steps(self) -> int:
    """Length of the cosines of `optim`, in steps."""
    return max(1, self.optim.schedule_images // self.data.batch_size) if (
        self.optim.schedule_images) else self.train.num_steps


def from_config_dict(config_dict: Mapping[str, Any]) -> Config:
  """Checks a ConfigDict (or nested dict) field by field and freezes it.

  Missing fields take the defaults of the dataclasses. `checks.SHARED` lists the fields that are set once, such as
  `data.image_size`, and copied into the networks.

  Raises:
    ConfigError: a field is unknown, has the wrong type or value, or conflicts with another; names the field.
  """
  raw = config_dict.to_dict() if hasattr(config_dict, 'to_dict') else dict(config_dict)
  types = typing.get_type_hints(Config)
  check_known('', raw, types)
  data = make_section('data', raw.get('data', {}), DataConfig, {})
  built: dict[str, Any] = {'data': data}
  for name, cls in types.items():
    if name in built:
      continue
    if not dataclasses.is_dataclass(cls):
      built[name] = convert(name, raw.get(name, getattr(Config, name)), cls)
      continue
    carried = {field: getattr(built[source], field) for field, source in SHARED.get(name, {}).items()}
    built[name] = make_section(name, raw.get(name, {}), cls, carried)
  return Config(**built)


def to_dict(config: Config) -> dict[str, Any]:
  """The nested dict that `from_config_dict` turns back into `config`; plain JSON types and tuples."""
  nested = dataclasses.asdict(config)
  for name, fields in SHARED.items():
    for field in fields:
      del nested[name][field]
  return nested


def to_json(config: Config) -> str:
  """`to_dict` as indented JSON, the contents of a workdir's config.json."""
  return json.dumps(to_dict(config), indent=2) + '\n'


def from_json(text: str, name: str = 'config') -> Config:
  """The inverse of `to_json`. Raises ConfigError, which begins with `name`, for any other text."""
  try:
    raw = json.loads(text)
    if not isinstance(raw, dict):
      raise ConfigError('not an object with sections')
    return from_config_dict(raw)
  except (ValueError, RecursionError) as error:
    raise ConfigError(f'{name} is not a config of this version of ddgan_jax ({error})') from error


def flatten(config: Config) -> dict[str, Any]:
  """`{'optim.lr_g': 1.6e-4, …}`, for hyper-parameter tables and comparisons."""
  flat = {}
  for name, value in to_dict(config).items():
    for field, leaf in value.items() if isinstance(value, dict) else [('', value)]:
      flat[f'{name}.{field}' if field else name] = leaf
  return flat
