#!/usr/bin/env python3
"""The README's picture of a LoRA: the demo model without it, at 0.5 and at 1.0, by the command. Needs pillow.

    cargo build --release && python3 tests/golden/lora_picture.py
"""
import pathlib
import subprocess
import tempfile

from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[2]
LORA = ROOT / "assets/demo/lora/pocket-green.safetensors"
PROMPTS = ["pixel art blue potion", "pixel art kite shield", "a cartoon icon of a robot", "a flat icon of a sailboat",
           "pixel art fire dragon", "a 3d render of a fox", "a flat icon of a mushroom", "pixel art treasure chest"]

grid = Image.new("RGB", (128 * len(PROMPTS), 128 * 3))
with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "picture.png"
    for row, lora in enumerate([[], ["--lora", f"{LORA}:0.5"], ["--lora", LORA]]):
        for column, prompt in enumerate(PROMPTS):
            command = [ROOT / "target/release/svdq", "generate", prompt, "-o", path, "--model", ROOT / "assets/demo"]
            subprocess.run([*command, "--seed", str(1000 + column), *lora], check=True)
            grid.paste(Image.open(path), (128 * column, 128 * row))
grid.save(ROOT / "assets/pictures/lora.png", optimize=True)
