"""Paths, and writing tensors so that a rerun gives the same bytes."""

from pathlib import Path

from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent
ASSETS = HERE.parents[1] / "assets"


def save(path, tensors):
    """Writes `tensors` to `HERE / path`."""
    path = HERE / path
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: t.detach().clone().contiguous() for name, t in tensors.items()}, path)
