"""CIFAR-10, 32x32, T = 4: the published recipe, and the base of every other config here.

    python -m ddgan_jax.main --config configs/cifar10.py

Hardware and time: the authors trained 1,800 epochs on 4 V100 in about 48 hours; not yet measured here.
Expected: FID 3.75, Inception score 9.63, recall 0.57 with 4 network evaluations (as published; their best
checkpoint, at epoch 1,200). That Inception score uses 1 split and TensorFlow 1's bilinear resizing; `evaluate` uses 10
splits (--splits) and the resizing of FID. TFDS downloads CIFAR-10 (163 MiB) on first use.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  c = ml_collections.ConfigDict()
  c.method = 'ddgan'  # or gaussian, augmented_gan
  c.seed = 0

  c.data = ml_collections.ConfigDict({
      'name': 'cifar10',  # any TFDS name with images, the in-repo digits, or folder, zip, npz, lmdb
      'path': '',  # of a folder, zip, npz or lmdb
      'split': 'train',
      'data_dir': '',  # empty: TFDS's own default
      'cache_dir': '',  # empty: ~/.cache/ddgan_jax/data
      'cache': 'array',
      'skip_bad': False,
      'image_size': 32,
      'num_channels': 3,
      'batch_size': 256,  # global: 4 GPUs of 64
      'resize': 'none',
      'flip': True,
      'stack': 1,
      'num_stacks': 0,
      'num_workers': 0,
  })
  c.diffusion = ml_collections.ConfigDict({
      'num_timesteps': 4,
      'kind': 'vp',
      'beta_min': 0.1,
      'beta_max': 20.0,
  })
  c.generator = ml_collections.ConfigDict({
      'kind': 'ncsnpp',
      'prediction': 'x_0',  # or noise, x_t
      'num_channels_dae': 128,
      'ch_mult': (1, 2, 2, 2),
      'num_res_blocks': 2,
      'attn_resolutions': (16,),
      'nz': 100,
      'z_emb_dim': 256,
      'n_mlp': 4,
      'resblock_type': 'biggan',
      'progressive': 'none',
      'progressive_input': 'residual',
      'progressive_combine': 'sum',
      'embedding_type': 'positional',
      'fourier_scale': 16.0,
      'fir': True,
      'fir_kernel': (1.0, 3.0, 3.0, 1.0),
      'skip_rescale': True,
      'resamp_with_conv': True,
      'conditional': True,
      'centered': True,
      'not_use_tanh': False,
      'dropout': 0.0,
      'num_classes': 0,  # or how many classes of labels G and D are told
      'label_dropout': 0.1,
  })
  c.discriminator = ml_collections.ConfigDict({
      'kind': 'small',
      'ngf': 64,
      't_emb_dim': 256,
      'stddev_group': 4,
  })
  c.optim = ml_collections.ConfigDict({
      'lr_g': 1.6e-4,
      'lr_d': 1.25e-4,
      'lr_min': 1e-5,
      'beta1': 0.5,
      'beta2': 0.9,
      'ema_decay': 0.9999,
      'r1_gamma': 0.02,
      'lazy_reg': 15,
  })
  c.train = ml_collections.ConfigDict({
      'num_steps': 351_000,  # 1,800 epochs of 195 steps, as the original drops the last partial batch
      'log_every': 100,
      'eval_every': 0,
      'sample_every': 5_000,
      'checkpoint_every': 5_000,
      'keep_checkpoints': 2,
      'num_samples': 64,
      'on_nonfinite': 'stop',
      'profile_steps': 0,
      'steps_per_call': 1,
  })
  c.eval = ml_collections.ConfigDict({
      'metrics': ('fid',),
      'num': 10_000,
      'batch_size': 200,
      'force': False,
  })
  c.parallel = ml_collections.ConfigDict({
      'dtype': 'float32',  # or bfloat16
      'fsdp': 1,
      'accumulation': 1,
      'remat': False,
  })
  return c
