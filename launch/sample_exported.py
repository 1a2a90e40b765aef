"""Samples from a file written by `ddgan export`; needs only jax, numpy and flatbuffers, not ddgan_jax.

    python launch/sample_exported.py digits.stablehlo samples.npz --num 64 --seed 0
"""

import argparse
import pathlib

import jax
import jax.export
import numpy as np

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('sampler')
parser.add_argument('out')
parser.add_argument('--num', type=int, default=64)
parser.add_argument('--seed', type=int, default=0)
parser.add_argument('--batch_size', type=int, default=100)
parser.add_argument('--conditions', help="npz with float32 'conditions' [n, h, w, c], for a run with data.condition")
args = parser.parse_args()

sample = jax.jit(jax.export.deserialize(pathlib.Path(args.sampler).read_bytes()).call)
size = min(args.batch_size, args.num)
conditions = [np.load(args.conditions)['conditions']] if args.conditions else []  # image i gets condition i mod n
batches = []
for first in range(0, args.num, size):
  indices = np.arange(first, first + size, dtype=np.int32)
  batches.append(sample(np.uint32(args.seed), indices, *(array[indices % len(array)] for array in conditions)))
np.savez_compressed(args.out, images=np.concatenate(batches)[:args.num])
