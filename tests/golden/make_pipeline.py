"""pipeline.safetensors: the demo pipeline in float32, 128 x 128, 20 steps, guidance 3.5, 48 T5 tokens.

For each prompt, named by its seed (the prompts are in `PROMPTS`):

    SEED.image            u8   [128, 128, 3]   RGB
    SEED.prompt_embeds    f32  [48, 256]       T5's last hidden state
    SEED.pooled           f32  [128]           CLIP's pooled output
    SEED.noise            f32  [64, 64]        packed initial latents
    SEED.latents          f32  [64, 64]        packed final latents, as the transformer leaves them
"""

import json

import numpy as np
import torch
from diffusers import FluxPipeline

from common import ASSETS, save

PROMPTS = {
    1000: "pixel art blue potion",
    1001: "a 3d render of a red apple",
    1002: "a cartoon icon of a robot, pink background",
}


def load():
    """The demo pipeline, its bfloat16 weights widened to float32, and its default parameters."""
    pipe = FluxPipeline.from_pretrained(ASSETS / "demo", dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    defaults = json.loads((ASSETS / "demo" / "svdq.json").read_text())
    steps = defaults.pop("steps")
    return pipe, {"num_inference_steps": steps, **defaults}


def make():
    pipe, parameters = load()
    tensors = {}
    for seed, prompt in PROMPTS.items():
        embeds, pooled, _ = pipe.encode_prompt(prompt, max_sequence_length=parameters["max_sequence_length"])
        noise, _ = pipe.prepare_latents(
            1, 16, parameters["height"], parameters["width"], torch.float32, "cpu", torch.Generator("cpu").manual_seed(seed)
        )
        latents = []
        image = pipe(
            prompt,
            **parameters,
            generator=torch.Generator("cpu").manual_seed(seed),
            output_type="pil",
            callback_on_step_end=lambda pipe, i, t, kept: latents.append(kept["latents"]) or {},
        ).images[0]
        tensors |= {
            f"{seed}.image": torch.from_numpy(np.array(image)),
            f"{seed}.prompt_embeds": embeds[0],
            f"{seed}.pooled": pooled[0],
            f"{seed}.noise": noise[0],
            f"{seed}.latents": latents[-1][0],
        }
    save("pipeline.safetensors", tensors)
