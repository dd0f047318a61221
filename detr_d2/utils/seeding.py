"""Random numbers that depend on where they are used, not on what was computed before."""

import random

import numpy as np
import torch

SAMPLE, STEP = 0, 1
"""First number of a key: what the random numbers are for."""


def seed_all(*key: int) -> None:
    """Seed the generators of Python, NumPy and PyTorch, on CPU and GPUs, with a key of integers of at least 0."""
    words = np.random.SeedSequence(key).generate_state(4).tolist()
    random.seed(words[0])
    np.random.seed(words[1])
    # torch.manual_seed takes a hundred times as long, since it looks for devices of all kinds.
    torch.default_generator.manual_seed(words[2] << 32 | words[3])
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(words[2] << 32 | words[3])
