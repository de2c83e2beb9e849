"""Times the demo pipeline in diffusers, float32, on two threads: what `svdq bench` is compared with."""

import os
import statistics
import time

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers

from make_pipeline import load


def main():
    torch.set_num_threads(2)
    transformers.logging.set_verbosity_error()
    pipe, parameters = load()
    times = []
    for seed in range(9):
        start = time.perf_counter()
        pipe("pixel art blue potion", **parameters, generator=torch.Generator("cpu").manual_seed(seed))
        times.append(time.perf_counter() - start)
    print(f"diffusers fp32, 2 threads, whole call: {1000 * statistics.median(times[2:]):.0f} ms (median of 7 after 2)")


if __name__ == "__main__":
    main()
