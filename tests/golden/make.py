"""Makes the golden data that the Rust tests compare against, from PyTorch, diffusers and transformers.

    python make.py [--flux-tokenizers DIR] [PART ...]      # no PART: all of them

The data are written beside this script and are committed; README.md says how to rerun it.
"""

import argparse
import os

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers

import make_fp8
import make_image_input
import make_lora
import make_networks
import make_noise
import make_pipeline
import make_quant
import make_sampler
import make_tokens

PARTS = {
    "tokens": make_tokens.make,
    "noise": make_noise.make,
    "sampler": make_sampler.make,
    "networks": make_networks.make,
    "pipeline": make_pipeline.make,
    "image_input": make_image_input.make,
    "quant": make_quant.make,
    "fp8": make_fp8.make,
    "lora": make_lora.make,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=" ".join(PARTS))
    parser.add_argument("--flux-tokenizers", metavar="DIR", help="also remake assets/tokenizers from this folder")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")

    # One thread and no fused attention kernels: sums in one order, so a rerun gives the same bytes.
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    transformers.logging.set_verbosity_error()

    if args.flux_tokenizers:
        make_tokens.convert_flux_tokenizers(args.flux_tokenizers)
    for part in args.parts or PARTS:
        print(part, flush=True)
        PARTS[part]()


if __name__ == "__main__":
    main()
