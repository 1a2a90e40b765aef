"""`python -m ddgan_jax` is the program `ddgan`."""

from ddgan_jax.cli import ddgan

if __name__ == '__main__':
  ddgan.start()
