"""fp8.safetensors: `e4m3fn` and `e5m2` [256], the float32 value of every code by torch's definition."""

import torch

from common import save


def make():
    codes = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    types = {"e4m3fn": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
    save("fp8.safetensors", {name: codes.view(dtype).float() for name, dtype in types.items()})
