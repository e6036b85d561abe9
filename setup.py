from setuptools import find_packages, setup

# Wheels of fairseq exist for this platform only; elsewhere its sources are compiled.
WHEEL_PLATFORM = (
    'python_version>="3.11" and python_version<"3.13" '
    'and sys_platform=="linux" and platform_machine=="x86_64"'
)
OTHER_PLATFORM = (
    'python_version<"3.11" or python_version>="3.13" '
    'or sys_platform!="linux" or platform_machine!="x86_64"'
)
EMOJI = ["resvg-py>=0.2"]
PLOTS = ["matplotlib>=3.5"]

setup(
    name="ofa-exit",
    version="0.1.0",
    description="Early exits for the unified vision-language model OFA, as a fairseq plugin",
    python_requires=">=3.10",
    packages=[*find_packages(include=["ofa_exit", "ofa_exit.*"]), "ofa_exit.user_dir"],
    # The --user-dir folder exists once; installed, it lies inside the package.
    package_dir={"ofa_exit.user_dir": "user_dir"},
    include_package_data=False,
    package_data={"ofa_exit": ["py.typed"]},
    entry_points={"console_scripts": ["ofa-exit = ofa_exit.cli.main:main"]},
    zip_safe=False,
    install_requires=[
        f"ve-fairseq==0.12.3; {WHEEL_PLATFORM}",
        f"fairseq-fixed==0.12.3.1; {OTHER_PLATFORM}",
        "hydra-core<1.4",
        "torch>=2.6",
        "torchvision",
        "numpy",
        "pillow",
        "sacrebleu>=2.0",
        "tabulate>=0.9",
        "pycocoevalcap==1.2",
        "tqdm",
    ],
    extras_require={
        "test": [
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
