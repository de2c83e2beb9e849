#!/usr/bin/env python3
"""The 4-bit demo model against its 16-bit original, by the command.

Makes 16 prompts with the 16-bit transformer and with the 4-bit one in every profile, prints the PSNR
of each profile in dB (8-bit RGB, mean over images and over squared errors), and draws the grid of the README:
the 16-bit row above the 4-bit row. Needs numpy and pillow.

    cargo build --release && python3 tests/golden/quality.py [4-BIT.safetensors]
"""
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEMO = ROOT / "assets/demo"
SVDQ = ROOT / "target/release/svdq"
PROMPTS = [p for p in (DEMO / "prompts.txt").read_text().splitlines() if p and not p.startswith("#")][:64:4]


def generate(folder, name, *options):
    images = []
    for i, prompt in enumerate(PROMPTS):
        path = folder / f"{name}-{i}.png"
        command = [SVDQ, "generate", prompt, "-o", path, "--model", DEMO, "--seed", str(1000 + i), *options]
        subprocess.run(command, check=True)
        images.append(np.asarray(Image.open(path).convert("RGB"), np.float64))
    return np.stack(images)


def psnr(a, b):
    errors = ((a - b) ** 2).mean(axis=(1, 2, 3))
    each = 10 * np.log10(255**2 / np.maximum(errors, 1e-9))
    return each.mean(), 10 * np.log10(255**2 / errors.mean()), each.min()


def main():
    quantised = sys.argv[1] if len(sys.argv) > 1 else DEMO / "svdq-int4_r32-demo.safetensors"
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        reference = generate(folder, "bf16", "--transformer", DEMO / "transformer")
        rows = [reference]
        print("profile  mean PSNR  PSNR of mean error  worst image")
        for profile in ["w4a16", "w4a8", "w4a4"]:
            images = generate(folder, profile, "--transformer", quantised, "--profile", profile)
            print("{:8} {:9.2f} {:19.2f} {:12.2f}".format(profile, *psnr(reference, images)))
            rows.append(images)
    grid = np.concatenate([np.concatenate(list(row[:8]), axis=1) for row in (rows[0], rows[2])])
    Image.fromarray(grid.astype(np.uint8)).save(ROOT / "assets/pictures/16-bit-above-4-bit.png", optimize=True)


if __name__ == "__main__":
    main()
