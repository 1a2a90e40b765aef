"""`python -m ddgan_jax` runs the command `ddgan`."""

from ddgan_jax.cli import ddgan

if __name__ == '__main__':
  ddgan.start()
