"""Images per second and core, and memory, for every data source: `python benchmarks/data_speed.py`.

Makes data in a temporary folder (`--images` JPEGs of 256x256, of the size of photographs, and 16 times as many images
of 32x32), then measures each row on one core in a separate process: the preparation (once per data set), and the
batches of training, float32 in [-1, 1] (every epoch). Rates are images per second of CPU time, so that other load
hardly affects them. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import zipfile

import numpy as np


def make_data(folder: str, count: int) -> dict[str, dict]:
  """Writes one data set in each format; returns the DataConfig fields of each row."""
  import lmdb
  from PIL import Image

  rng = np.random.default_rng(0)
  jpegs = []
  for _ in range(count):
    # Smooth shapes and noise: 20 to 30 kB at quality 90, like a photograph of this size.
    coarse = Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).resize((256, 256), Image.Resampling.BICUBIC)
    noisy = np.clip(np.asarray(coarse) + rng.normal(0, 6, (256, 256, 3)), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, 'jpeg', quality=90)
    jpegs.append(file.getvalue())
  os.makedirs(f'{folder}/photos')
  for i, jpeg in enumerate(jpegs):
    with open(f'{folder}/photos/{i:06d}.jpg', 'wb') as file:
      file.write(jpeg)
  with zipfile.ZipFile(f'{folder}/photos.zip', 'w') as archive:
    for i, jpeg in enumerate(jpegs):
      archive.writestr(f'{i:06d}.jpg', jpeg)
  with lmdb.open(f'{folder}/photos_lmdb', map_size=2**36) as env, env.begin(write=True) as transaction:
    for i, jpeg in enumerate(jpegs):
      transaction.put(b'%040x' % i, jpeg)
  with lmdb.open(f'{folder}/raw_lmdb', map_size=2**36) as env, env.begin(write=True) as transaction:
    for i, jpeg in enumerate(jpegs):
      transaction.put(str(i).encode(), np.asarray(Image.open(io.BytesIO(jpeg))).tobytes())
  np.savez(f'{folder}/small.npz', images=rng.integers(0, 256, (16 * count, 32, 32, 3), np.uint8))
  np.savez(f'{folder}/large.npz', images=np.stack([np.asarray(Image.open(io.BytesIO(jpeg))) for jpeg in jpegs]))
  size = sum(map(len, jpegs)) / count / 1e3
  print(f'{count:,} JPEGs of 256x256, {size:.0f} kB each; {16 * count:,} images of 32x32.\n')
  big, small = {'image_size': 256, 'batch_size': 64}, {'image_size': 32, 'batch_size': 256}
  return {
      'digits by TFDS, 8x8': {'name': 'digits', 'image_size': 8, 'num_channels': 1, 'batch_size': 256,
                              'data_dir': f'{folder}/tfds'},
      'npz, 32x32 (CIFAR-10)': {'name': 'npz', 'path': f'{folder}/small.npz', **small},
      'npz, 32x32, flipped': {'name': 'npz', 'path': f'{folder}/small.npz', 'flip': True, **small},
      'npz, 256x256': {'name': 'npz', 'path': f'{folder}/large.npz', **big},
      'folder of JPEGs, 256x256': {'name': 'folder', 'path': f'{folder}/photos', **big},
      'zip of JPEGs, 256x256': {'name': 'zip', 'path': f'{folder}/photos.zip', **big},
      'LMDB of JPEGs, 256x256 (LSUN)': {'name': 'lmdb', 'path': f'{folder}/photos_lmdb', **big},
      'LMDB of raw RGB, 256x256 (CelebA-HQ)': {'name': 'lmdb', 'path': f'{folder}/raw_lmdb', **big},
  }


def measure(fields: dict, how: str, seconds: float) -> dict:
  """Measures one row in this process, on one core; rates use the CPU time of all threads."""
  if hasattr(os, 'sched_setaffinity'):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
  import tensorflow_datasets  # noqa: F401, so that its import is not part of the preparation.

  from ddgan_jax.config import DataConfig
  from ddgan_jax.data import images, pipeline, sources

  if how == 'mapped':
    sources.MAX_BYTES_IN_MEMORY = 0
  config = DataConfig(**fields, cache='none' if how == 'decoded' else 'array')
  start = time.process_time()
  source = sources.load_source(config, lambda text: None)
  row = {'prepared': len(source) / (time.process_time() - start)}

  decoding = []
  decode = images.decode

  def timed(raw, data_config):
    start = time.thread_time()
    image = decode(raw, data_config)
    decoding.append(time.thread_time() - start)
    return image

  images.decode = timed
  list(pipeline.batches(source, config, 0, 0, 2))  # imports, and opens the files
  steps, used = 2, 0.0
  while used < seconds:
    steps *= 2
    decoding.clear()
    start = time.process_time()
    for _ in pipeline.batches(source, config, 0, 0, steps):  # exhausted, so that all prefetching is counted
      pass
    used = time.process_time() - start
  return {**row, 'batches': steps * config.batch_size / used, 'decode_share': sum(decoding) / used,
          'memory': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--images', type=int, default=1000, help='number of 256x256 images')
  parser.add_argument('--seconds', type=float, default=5, help='minimum CPU time per row')
  parser.add_argument('--row', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.row:
    print(json.dumps(measure(*json.loads(args.row), args.seconds)))
    return
  with tempfile.TemporaryDirectory() as folder:
    rows = make_data(folder, args.images)
    print('| source | access | preparing, images/s | batches, images/s | decoding share | peak memory |')
    print('|---|---|---|---|---|---|')
    for name, fields in rows.items():
      for how in ('in memory', 'mapped', 'decoded'):
        if how != 'in memory' and fields['image_size'] == 8:
          continue
        fields['cache_dir'] = f'{folder}/cache {name}'.replace(' ', '_').replace(',', '')
        command = [sys.executable, __file__, '--seconds', str(args.seconds), '--row', json.dumps([fields, how])]
        row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        prepared = '' if how == 'mapped' else f'{row["prepared"]:,.0f}'
        share = f'{row["decode_share"]:.0%}' if how == 'decoded' else ''
        cells = (name, how, prepared, f'{row["batches"]:,.0f}', share, f'{row["memory"]:,.0f} MiB')
        print(f'| {" | ".join(cells)} |', flush=True)


if __name__ == '__main__':
  main()
