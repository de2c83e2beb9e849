"""sampler.json: what FluxPipeline gets from FlowMatchEulerDiscreteScheduler.

    [{"name", "config": scheduler_config, "image_tokens", "steps", "mu", "sigmas": [steps + 1], "timesteps": [steps]}, ...]

Sigmas and timesteps are float32, in nine digits, which name them exactly.
"""

import json

import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps

from common import ASSETS, HERE

DEV = {
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
}
SCHNELL = DEV | {"shift": 1.0, "use_dynamic_shifting": False}


def floats(values):
    return [float(f"{v:.9g}") for v in values]


def case(name, config, image_tokens, steps):
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    # As in FluxPipeline.__call__.
    sigmas = np.linspace(1.0, 1 / steps, steps)
    mu = calculate_shift(
        image_tokens,
        scheduler.config.get("base_image_seq_len", 256),
        scheduler.config.get("max_image_seq_len", 4096),
        scheduler.config.get("base_shift", 0.5),
        scheduler.config.get("max_shift", 1.15),
    )
    timesteps, _ = retrieve_timesteps(scheduler, steps, "cpu", sigmas=sigmas, mu=mu)
    return {
        "name": name,
        "config": config,
        "image_tokens": image_tokens,
        "steps": steps,
        "mu": mu,
        "sigmas": floats(scheduler.sigmas.numpy()),
        "timesteps": floats(timesteps.numpy()),
    }


def make():
    demo = json.loads((ASSETS / "demo" / "scheduler" / "scheduler_config.json").read_text())
    cases = [
        case("demo", demo, 64, 20),
        case("dev 1024x1024", DEV, 4096, 28),
        case("dev 512x512", DEV, 1024, 10),
        case("dev beyond max_image_seq_len", DEV, 8160, 7),
        case("dev one step", DEV, 256, 1),
        case("schnell", SCHNELL, 4096, 4),
        case("schnell one step", SCHNELL, 4096, 1),
        case("fixed shift", DEV | {"use_dynamic_shifting": False}, 4096, 12),
        case("linear time shift", DEV | {"time_shift_type": "linear"}, 2048, 8),
    ]
    (HERE / "sampler.json").write_text("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")
