#!/usr/bin/env python3
"""Trains pocket-green.safetensors: the demo model's pictures in the four greens of an old handheld.

The data are the model's own pictures, made by the command with known seeds and recoloured by luminance. Each picture
is paired with the noise that it came from, so the LoRA learns to give the same picture in other colours from the same
seed. Rank 8 on the attention and MLP linears of every block; diffusers' file format. Needs torch, diffusers, peft.

    cargo build --release && python assets/demo/lora/train.py
"""
import pathlib
import subprocess
import tempfile

import numpy as np
import torch
from diffusers import FluxPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[3]
DEMO = ROOT / "assets/demo"
PICTURES, BATCH, STEPS, RANK = 240, 8, 400, 8
PALETTE = np.array([[15, 56, 15], [48, 98, 48], [139, 172, 15], [202, 220, 159]], np.float32)
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "proj_mlp",
           "proj_out", "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"]


def recolour(picture):
    """A picture's luminance, spread over the palette by linear interpolation."""
    luminance = np.asarray(picture, np.float32) @ np.array([0.299, 0.587, 0.114], np.float32) / 255
    at = luminance * (len(PALETTE) - 1)
    low = np.minimum(at.astype(int), len(PALETTE) - 2)
    part = (at - low)[..., None]
    return PALETTE[low] * (1 - part) + PALETTE[low + 1] * part


def pairs(pipe, prompts):
    """Packed latents of recoloured pictures, and the packed noise that each came from."""
    latents, noises = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "picture.png"
        for i in range(PICTURES):
            seed = 50_000 + i
            command = [ROOT / "target/release/svdq", "generate", prompts[i % len(prompts)], "-o", path]
            subprocess.run([*command, "--model", DEMO, "--seed", str(seed)], check=True)
            pixels = torch.from_numpy(recolour(Image.open(path).convert("RGB"))).float()
            pixels = pixels.permute(2, 0, 1)[None] / 127.5 - 1
            latent = pipe.vae.encode(pixels).latent_dist.mean
            latent = (latent - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor
            noise = torch.randn(latent.shape, generator=torch.Generator("cpu").manual_seed(seed))
            latents.append(pipe._pack_latents(latent, 1, 16, 16, 16))
            noises.append(pipe._pack_latents(noise, 1, 16, 16, 16))
    return torch.cat(latents), torch.cat(noises)


def main():
    torch.manual_seed(0)
    pipe = FluxPipeline.from_pretrained(DEMO, dtype=torch.float32, local_files_only=True)
    prompts = [p for p in (DEMO / "prompts.txt").read_text().splitlines() if p and not p.startswith("#")]
    with torch.no_grad():
        embeds, pooled, text_ids = pipe.encode_prompt(prompts, max_sequence_length=48, prompt_2=None)
        latents, noises = pairs(pipe, prompts)
    image_ids = pipe._prepare_latent_image_ids(1, 8, 8, "cpu", torch.float32)
    pipe.scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / 20, 20), mu=0.5 - 0.65 * 192 / 3840)
    sigmas = pipe.scheduler.sigmas[:-1]

    transformer = pipe.transformer.requires_grad_(False)
    transformer.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS, init_lora_weights="gaussian"))
    parameters = [p for p in transformer.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, STEPS, pct_start=0.05)
    for step in range(STEPS):
        pick = torch.randint(PICTURES, (BATCH,))
        sigma = sigmas[torch.randint(len(sigmas), (BATCH,))]
        x = torch.lerp(latents[pick], noises[pick], sigma[:, None, None])
        velocity = transformer(
            hidden_states=x, timestep=sigma, guidance=torch.full((BATCH,), 3.5), txt_ids=text_ids, img_ids=image_ids,
            encoder_hidden_states=embeds[pick % len(prompts)], pooled_projections=pooled[pick % len(prompts)],
        ).sample
        loss = (velocity - (noises[pick] - latents[pick])).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            print(step, f"{loss.item():.4f}", flush=True)
    layers = {k: v.to(torch.bfloat16) for k, v in get_peft_model_state_dict(transformer).items()}
    FluxPipeline.save_lora_weights(DEMO / "lora", layers, weight_name="pocket-green.safetensors")


if __name__ == "__main__":
    main()
