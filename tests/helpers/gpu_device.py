"""The device of tests marked gpu: CUDA, or the CPU to try the tests themselves."""

import os

DEVICE = os.environ.get("GPU_TESTS_DEVICE", "cuda")
