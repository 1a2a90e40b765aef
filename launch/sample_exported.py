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
args = parser.parse_args()

sample = jax.jit(jax.export.deserialize(pathlib.Path(args.sampler).read_bytes()).call)
size = min(args.batch_size, args.num)
batches = [sample(np.uint32(args.seed), np.arange(i, i + size, dtype=np.int32)) for i in range(0, args.num, size)]
np.savez_compressed(args.out, images=np.concatenate(batches)[:args.num])
