"""image_input.safetensors: the demo pipeline in float32 starting from a picture (FluxImg2ImgPipeline), 10 steps.

The picture is pipeline.safetensors' 1000.image, the prompt and the seed those of below; for each strength:

    STRENGTH.image   u8   [128, 128, 3]   RGB
"""

import numpy as np
import torch
from diffusers import FluxImg2ImgPipeline
from PIL import Image
from safetensors.torch import load_file

import make_pipeline
from common import HERE, save

PROMPT, SEED = "a 3d render of a red apple", 7
STRENGTHS = ["0.3", "0.6", "1.0"]


def make():
    pipe, parameters = make_pipeline.load()
    pipe = FluxImg2ImgPipeline.from_pipe(pipe)
    pipe.set_progress_bar_config(disable=True)
    start = Image.fromarray(load_file(HERE / "pipeline.safetensors")["1000.image"].numpy())
    tensors = {}
    for strength in STRENGTHS:
        image = pipe(
            PROMPT,
            image=start,
            strength=float(strength),
            **parameters | {"num_inference_steps": 10},
            generator=torch.Generator("cpu").manual_seed(SEED),
            output_type="pil",
        ).images[0]
        tensors[f"{strength}.image"] = torch.from_numpy(np.array(image))
    save("image_input.safetensors", tensors)
