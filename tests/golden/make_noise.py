"""noise.safetensors: `torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))`, float32.

A tensor is named `SEED/SHAPE`, as in `42/1x16x16x16`.
"""

import torch

from common import save

# torch fills 16 values at a time and redoes the last 16 when the count is not a multiple of 16.
SHAPES = [(17,), (37,), (100,)]
LATENTS = [(1, 16, 16, 16), (1, 16, 8, 24)]
SEEDS = [0, 1, 42, 1000, 2**32 - 1, 2**32 + 5, 2**63 + 1, 2**64 - 1]


def make():
    jobs = [(seed, shape) for seed in SEEDS for shape in SHAPES] + [(42, s) for s in LATENTS] + [(2**32 - 1, LATENTS[0])]
    save(
        "noise.safetensors",
        {
            f"{seed}/{'x'.join(map(str, shape))}": torch.randn(
                shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32
            )
            for seed, shape in jobs
        },
    )
