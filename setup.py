"""What pyproject.toml cannot say: the recipes of configs/ are installed as ddgan_jax/recipes."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=['ddgan_jax', 'ddgan_jax.*']), 'ddgan_jax.recipes'],
    package_dir={'ddgan_jax.recipes': 'configs'},
)
