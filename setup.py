import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
(VERSION,) = re.findall(
    r'^__version__ = "(.+)"$', (HERE / "ofa_exit/__init__.py").read_text(encoding="utf-8"), re.M
)
# Wheels of fairseq exist for this platform only; elsewhere its sources are compiled.
WHEEL_PLATFORM = 'python_version<"3.13" and sys_platform=="linux" and platform_machine=="x86_64"'
OTHER_PLATFORM = 'python_version>="3.13" or sys_platform!="linux" or platform_machine!="x86_64"'
EMOJI = ["resvg-py>=0.2"]
PLOTS = ["matplotlib>=3.5"]

setup(
    name="ofa-exit",
    version=VERSION,
    description="Early exits for the unified vision-language model OFA, as a fairseq plugin",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="ofa-exit contributors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords="early exit, vision-language, OFA, fairseq, MuE, BLIPEE, captioning, entailment, VQA",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=[*find_packages(include=["ofa_exit", "ofa_exit.*"]), "ofa_exit.user_dir"],
    # The --user-dir folder exists once; installed, it lies inside the package.
    package_dir={"ofa_exit.user_dir": "user_dir"},
    include_package_data=False,
    package_data={"ofa_exit": ["py.typed", "__init__.pyi", "evaluation/figures/paper_numbers.csv"]},
    entry_points={"console_scripts": ["ofa-exit = ofa_exit.cli.main:main"]},
    zip_safe=False,
    install_requires=[
        f"ve-fairseq==0.12.3; {WHEEL_PLATFORM}",
        f"fairseq-fixed==0.12.3.1; {OTHER_PLATFORM}",
        "hydra-core<1.4",
        "torch>=2.6",
        "torchvision",
        "filelock>=4",
        "ijson>=3.2",
        "numpy",
        "pillow",
        "scipy",
        "sacrebleu>=2.0",
        "tabulate>=0.9",
        "pycocoevalcap==1.2",
        "tqdm",
    ],
    extras_require={
        "test": [
            "hypothesis>=6",
            "mypy<3",
            "pytest>=7",
            "pytest-xdist",
            "ruff<0.18",
            "tensorboardX",
            *EMOJI,
            *PLOTS,
        ],
        "clip": ["transformers>=4.40"],
        "emoji": EMOJI,
        "plots": PLOTS,
        "sentencepiece": ["sentencepiece"],
    },
)
