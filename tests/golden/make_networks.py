"""NETWORK/: tiny networks with random weights, in the form of a part of a diffusers pipeline.

    config.json          the network's config
    model.safetensors    its weights, bfloat16, under diffusers' or transformers' names
    io.safetensors       inputs and outputs of the network run in float32 on these weights
"""

import json

import torch
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedModel, T5Config, T5EncoderModel

from common import HERE, save

# Entries of every transformers config that say nothing about these networks.
UNUSED = {
    "_name_or_path",
    "chunk_size_feed_forward",
    "id2label",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "transformers_version",
}


def randomise(model, seed):
    """Weights of a size that keeps activations near 1, all exact in bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in sorted(model.named_parameters()):
        noise = torch.randn(p.shape, generator=generator)
        if any(table in name for table in ("_embedding.", "shared.", "relative_attention_bias.")):
            value = noise
        elif p.ndim >= 2:
            value = noise / p[0].numel() ** 0.5
            if "SelfAttention.q." in name:  # T5 does not scale its scores.
                value /= model.config.d_kv**0.5
        elif name.endswith("weight"):  # of a norm
            value = 1 + 0.2 * noise
        else:
            value = 0.2 * noise
        p.copy_(value.bfloat16())
    return model.eval()


def write(folder, model, io, rename=lambda name: name, drop=()):
    state = {rename(k): v.bfloat16() for k, v in model.state_dict().items() if k not in drop}
    save(f"{folder}/model.safetensors", state)
    save(f"{folder}/io.safetensors", io)
    kind = type(model).__name__
    if isinstance(model, PreTrainedModel):
        config = {k: v for k, v in model.config.to_dict().items() if v is not None and k not in UNUSED}
        config["architectures"] = [kind]
    else:
        config = {"_class_name": kind} | {k: v for k, v in model.config.items() if not k.startswith("_")}
    (HERE / folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def noise(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def clip(folder, eos, prefix, seed):
    """Two prompts of 77 ids, padded with the end token 49. `eos` 2 makes transformers pool at the largest id instead."""
    config = CLIPTextConfig(
        vocab_size=50,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        hidden_act="quick_gelu",
        projection_dim=64,
        bos_token_id=48,
        eos_token_id=eos,
        pad_token_id=49,
    )
    model = randomise(CLIPTextModel(config), seed)
    ids = torch.full((2, 77), 49)
    ids[:, 0] = 48
    words = torch.randint(0, 48, (2, 76), generator=torch.Generator().manual_seed(seed))
    ids[0, 1:10] = words[0, :9]
    ids[1, 1:76] = words[1, :75]
    out = model(ids)
    io = {"input_ids": ids, "last_hidden_state": out.last_hidden_state, "pooler_output": out.pooler_output}
    write(folder, model, io, rename=lambda name: prefix + name.removeprefix("text_model."))


def t5(folder, seed):
    """150 tokens, so that distances beyond `relative_attention_max_distance` occur."""
    config = T5Config(
        vocab_size=60,
        d_model=64,
        d_kv=32,
        d_ff=96,
        num_layers=2,
        num_heads=2,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=128,
        feed_forward_proj="gated-gelu",
    )
    model = randomise(T5EncoderModel(config), seed)
    ids = torch.randint(3, 60, (1, 150), generator=torch.Generator().manual_seed(seed))
    ids[0, 139] = 1
    ids[0, 140:] = 0
    io = {"input_ids": ids, "last_hidden_state": model(ids).last_hidden_state}
    write(folder, model, io, drop=["encoder.embed_tokens.weight"])


def flux(folder, guidance, double, single, seed):
    """An image of 4 x 6 patches and 7 text tokens."""
    model = randomise(
        FluxTransformer2DModel(
            in_channels=16,
            num_layers=double,
            num_single_layers=single,
            attention_head_dim=32,
            num_attention_heads=2,
            joint_attention_dim=48,
            pooled_projection_dim=24,
            guidance_embeds=guidance,
            axes_dims_rope=(8, 12, 12),
        ),
        seed,
    )
    io = {
        "img": noise(1, 24, 16, seed=seed + 1),
        "txt": noise(1, 7, 48, seed=seed + 2),
        "pooled": noise(1, 24, seed=seed + 3),
        "timestep": torch.tensor([0.7310586]),
        "img_ids": FluxPipeline._prepare_latent_image_ids(1, 4, 6, "cpu", torch.float32),
        "txt_ids": torch.zeros(7, 3),
    }
    if guidance:
        io["guidance"] = torch.tensor([3.5])

    def keep(name):
        def hook(module, args, out):
            if isinstance(out, tuple):  # a block's (text, image)
                io[f"{name}.txt"], io[f"{name}.img"] = out
            else:
                io[name] = out

        return hook

    model.time_text_embed.register_forward_hook(keep("temb"))
    for i, block in enumerate(model.transformer_blocks):
        block.register_forward_hook(keep(f"double{i}"))
    for i, block in enumerate(model.single_transformer_blocks):
        block.register_forward_hook(keep(f"single{i}"))
    io["out"] = model(
        hidden_states=io["img"],
        encoder_hidden_states=io["txt"],
        pooled_projections=io["pooled"],
        timestep=io["timestep"],
        guidance=io.get("guidance"),
        img_ids=io["img_ids"],
        txt_ids=io["txt_ids"],
        return_dict=False,
    )[0]
    write(folder, model, io)


def vae(folder, quant_conv, channels, seed):
    """A latent of 3 x 5, an image of 24 x 40."""
    model = randomise(
        AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=channels,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=32,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=quant_conv,
            use_post_quant_conv=quant_conv,
        ),
        seed,
    )
    latent = noise(1, 4, 3, 5, seed=seed + 1)
    image = noise(1, 3, 24, 40, seed=seed + 2)
    encoded = model.encode(image).latent_dist
    io = {
        "latent": latent,
        "decoded": model.decode(latent).sample,
        "image": image,
        "mean": encoded.mean,
        "logvar": encoded.logvar,
    }
    write(folder, model, io)


def make():
    clip("clip", eos=49, prefix="text_model.", seed=10)
    clip("clip_legacy", eos=2, prefix="", seed=20)
    t5("t5", seed=30)
    flux("flux", guidance=True, double=2, single=2, seed=40)
    flux("flux_schnell", guidance=False, double=1, single=1, seed=50)
    vae("vae", quant_conv=False, channels=(8, 16, 16, 24), seed=60)
    vae("vae_quant", quant_conv=True, channels=(8, 8, 16, 16), seed=70)
