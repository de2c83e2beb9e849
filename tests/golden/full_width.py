"""A FLUX transformer of one double and one single block at full width, with random weights, and what PyTorch makes of it.

    python tests/golden/full_width.py FOLDER     writes it; needs torch and safetensors, uses a GPU if there is one
    python tests/golden/full_width.py --check    compares the network below with diffusers' on small sizes
    python tests/golden/full_width.py --explain  what noise in the weights of some linears alone makes of the output

    FOLDER/transformer/    config.json and weights, bfloat16, in diffusers' names: `svdq quantize` takes it
    FOLDER/io.safetensors  img [patches, 64]  txt [tokens, 4096]  pooled [768]  timestep (0..1000)  guidance
                           out, out_bf16 [patches, 64]: the network in float32 and in bfloat16 on these weights

Then `svdq quantize FOLDER/transformer FOLDER/svdq.safetensors`, and the GPU test `full_width` (tests/gpu) with
SVDQ_FULL_WIDTH=FOLDER compares the signal-to-noise ratios of every profile.
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

FULL = {
    "_class_name": "FluxTransformer2DModel",
    "patch_size": 1,
    "in_channels": 64,
    "out_channels": None,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
    "axes_dims_rope": [16, 56, 56],
}
SMALL = FULL | {
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "joint_attention_dim": 48,
    "pooled_projection_dim": 24,
    "axes_dims_rope": [8, 12, 12],
}
# Timestep and guidance are exact in bfloat16, also times 1000: both forwards see the same ones.
TIMESTEP, GUIDANCE = 0.5, 4.0


class Weights:
    """Random weights with the traits of trained ones that make 4 bits hard: rows and columns of different sizes, a few
    large singular values, and modulations that blow up one channel in a hundred."""

    def __init__(self, config, seed):
        self.generator = torch.Generator().manual_seed(seed)
        self.tensors = {}
        hidden = config["attention_head_dim"] * config["num_attention_heads"]
        # Embeddings are small, so that the output is what the blocks add to them.
        self.linear("x_embedder", hidden, config["in_channels"], gain=0.1)
        self.linear("context_embedder", hidden, config["joint_attention_dim"], gain=0.1)
        for name, inputs in ("timestep", 256), ("guidance", 256), ("text", config["pooled_projection_dim"]):
            self.linear(f"time_text_embed.{name}_embedder.linear_1", hidden, inputs)
            self.linear(f"time_text_embed.{name}_embedder.linear_2", hidden, hidden)
        for i in range(config["num_layers"]):
            block = f"transformer_blocks.{i}"
            for norm, q, k, v, out, ff, norms in (
                ("norm1", "to_q", "to_k", "to_v", "to_out.0", "ff", ("norm_q", "norm_k")),
                ("norm1_context", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "ff_context",
                 ("norm_added_q", "norm_added_k")),
            ):  # fmt: skip
                self.modulation(f"{block}.{norm}.linear", hidden, "sxgsxg")
                for name in q, k, v, out:
                    self.linear(f"{block}.attn.{name}", hidden, hidden)
                self.head_norms(block, norms, config)
                self.linear(f"{block}.{ff}.net.0.proj", 4 * hidden, hidden)
                self.linear(f"{block}.{ff}.net.2", hidden, 4 * hidden, gain=2)
        for i in range(config["num_single_layers"]):
            block = f"single_transformer_blocks.{i}"
            self.modulation(f"{block}.norm.linear", hidden, "sxg")
            for name in "to_q", "to_k", "to_v":
                self.linear(f"{block}.attn.{name}", hidden, hidden)
            self.head_norms(block, ("norm_q", "norm_k"), config)
            self.linear(f"{block}.proj_mlp", 4 * hidden, hidden)
            self.linear(f"{block}.proj_out", hidden, 5 * hidden, gain=2)
        self.modulation("norm_out.linear", hidden, "xs", outliers=False)
        self.linear("proj_out", config["out_channels"] or config["in_channels"], hidden)

    def normal(self, *shape):
        return torch.randn(shape, generator=self.generator)

    def put(self, name, value):
        self.tensors[name] = value.bfloat16()

    def linear(self, name, n, k, gain=1.0):
        weight = self.normal(n, k) * torch.exp(0.3 * self.normal(n, 1)) * torch.exp(0.3 * self.normal(1, k))
        for strength in 0.3, 0.2, 0.1:  # of the whole, in a direction of its own
            u, v = self.normal(n, 1), self.normal(1, k)
            weight += strength * weight.norm() / (u.norm() * v.norm()) * u * v
        self.put(f"{name}.weight", weight * (gain * n**0.5 / weight.norm()))
        self.put(f"{name}.bias", 0.1 * self.normal(n))

    def modulation(self, name, hidden, chunks, outliers=True):
        """Chunks of s(hift), (scale) x and g(ate)."""
        self.linear(name, len(chunks) * hidden, hidden, gain=0.3)
        bias = 0.2 * self.normal(len(chunks), hidden)
        for row, kind in zip(bias, chunks):
            if kind == "g":
                row += 0.6
            if kind == "x" and outliers:
                at = torch.randperm(hidden, generator=self.generator)[: max(1, hidden // 100)]
                row[at] += 8 + 3 * self.normal(len(at))
        self.put(f"{name}.bias", bias.flatten())

    def head_norms(self, block, names, config):
        """Large enough for attention to have peaks."""
        for name in names:
            self.put(f"{block}.attn.{name}.weight", 1.5 + 0.2 * self.normal(config["attention_head_dim"]))


# ---- the network, on tensors of one dtype


class Network:
    def __init__(self, config, tensors, device, dtype):
        self.config, self.dtype = config, dtype
        self.tensors = {name: t.to(device, dtype) for name, t in tensors.items()}

    def linear(self, name, x):
        return F.linear(x, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"])

    def modulate(self, x, shift, scale):
        return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift

    def modulation(self, name, temb, chunks):
        return self.linear(name, F.silu(temb)).chunk(chunks, dim=-1)

    def heads(self, names, norms, block, x):
        """q, k and v, [heads, tokens, dim]; q and k normalised."""
        dim = self.config["attention_head_dim"]
        q, k, v = (self.linear(f"{block}.attn.{n}", x).view(len(x), -1, dim).transpose(0, 1) for n in names)
        q, k = (self.rms_norm(u, self.tensors[f"{block}.attn.{n}.weight"]) for u, n in zip((q, k), norms))
        return q, k, v

    def rms_norm(self, x, weight):
        scaled = x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
        return scaled.to(weight.dtype) * weight

    def attend(self, q, k, v, rope):
        q, k = (rotate(u, rope) for u in (q, k))
        out = F.scaled_dot_product_attention(q[None], k[None], v[None])[0]
        return out.transpose(0, 1).flatten(1)

    def mlp(self, up, down, x):
        return self.linear(down, F.gelu(self.linear(up, x), approximate="tanh"))

    def double(self, block, img, txt, temb, rope):
        mod_img = self.modulation(f"{block}.norm1.linear", temb, 6)
        mod_txt = self.modulation(f"{block}.norm1_context.linear", temb, 6)
        of_txt = self.heads(("add_q_proj", "add_k_proj", "add_v_proj"), ("norm_added_q", "norm_added_k"), block,
                            self.modulate(txt, *mod_txt[:2]))  # fmt: skip
        of_img = self.heads(("to_q", "to_k", "to_v"), ("norm_q", "norm_k"), block, self.modulate(img, *mod_img[:2]))
        attended = self.attend(*(torch.cat(pair, dim=1) for pair in zip(of_txt, of_img)), rope)
        streams = []
        for x, mod, rows, out, ff in (
            (txt, mod_txt, attended[: len(txt)], "to_add_out", "ff_context"),
            (img, mod_img, attended[len(txt) :], "to_out.0", "ff"),
        ):
            x = x + mod[2] * self.linear(f"{block}.attn.{out}", rows)
            h = self.modulate(x, *mod[3:5])
            streams.append(x + mod[5] * self.mlp(f"{block}.{ff}.net.0.proj", f"{block}.{ff}.net.2", h))
        return streams

    def single(self, block, x, temb, rope):
        shift, scale, gate = self.modulation(f"{block}.norm.linear", temb, 3)
        h = self.modulate(x, shift, scale)
        attended = self.attend(*self.heads(("to_q", "to_k", "to_v"), ("norm_q", "norm_k"), block, h), rope)
        hidden = F.gelu(self.linear(f"{block}.proj_mlp", h), approximate="tanh")
        return x + gate * self.linear(f"{block}.proj_out", torch.cat([attended, hidden], dim=-1))

    def embed(self, name, x):
        name = f"time_text_embed.{name}_embedder"
        return self.linear(f"{name}.linear_2", F.silu(self.linear(f"{name}.linear_1", x.to(self.dtype))))

    @torch.no_grad()
    def __call__(self, img, txt, pooled, grid):
        device = next(iter(self.tensors.values())).device
        img, txt, pooled = (x.to(device, self.dtype) for x in (img, txt, pooled))
        rope = rotary_table(self.config["axes_dims_rope"], len(txt), grid, device)
        temb = self.embed("timestep", sinusoid(1000 * TIMESTEP, device)) + self.embed("text", pooled)
        if self.config["guidance_embeds"]:
            temb = temb + self.embed("guidance", sinusoid(1000 * GUIDANCE, device))
        img, txt = self.linear("x_embedder", img), self.linear("context_embedder", txt)
        for i in range(self.config["num_layers"]):
            txt, img = self.double(f"transformer_blocks.{i}", img, txt, temb, rope)
        x = torch.cat([txt, img])
        for i in range(self.config["num_single_layers"]):
            x = self.single(f"single_transformer_blocks.{i}", x, temb, rope)
        scale, shift = self.modulation("norm_out.linear", temb, 2)
        return self.linear("proj_out", self.modulate(x[len(txt) :], shift, scale))


def sinusoid(value, device):
    angles = value * torch.exp(-torch.log(torch.tensor(10000.0)) * torch.arange(128) / 128)
    return torch.cat([angles.cos(), angles.sin()]).to(device)


def rotary_table(axes, text_rows, grid, device):
    """Angles [tokens, dim / 2], in float32: text is at 0, 0, 0."""
    positions = torch.zeros(text_rows + grid[0] * grid[1], 3, dtype=torch.float64)
    positions[text_rows:, 1] = torch.arange(grid[0]).repeat_interleave(grid[1])
    positions[text_rows:, 2] = torch.arange(grid[1]).repeat(grid[0])
    angles = [
        positions[:, axis, None] / 10000 ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        for axis, dim in enumerate(axes)
    ]
    angles = torch.cat(angles, dim=1)
    return angles.cos().float().to(device), angles.sin().float().to(device)


def rotate(x, rope):
    cos, sin = rope
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2).to(x.dtype)


# ---- files and checks


def inputs(config, text_rows, grid, seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        "img": torch.randn(grid[0] * grid[1], config["in_channels"], generator=generator).bfloat16().float(),
        "txt": torch.randn(text_rows, config["joint_attention_dim"], generator=generator).bfloat16().float(),
        "pooled": torch.randn(config["pooled_projection_dim"], generator=generator).bfloat16().float(),
    }


def decibel(signal, noisy):
    return float(10 * torch.log10(signal.pow(2).sum() / (signal - noisy).pow(2).sum()))


def write(folder, text_rows=128, grid=(32, 32)):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tensors = Weights(FULL, seed=90).tensors
    transformer = folder / "transformer"
    transformer.mkdir(parents=True, exist_ok=True)
    (transformer / "config.json").write_text(json.dumps(FULL, indent=2) + "\n")
    save_file(tensors, transformer / "diffusion_pytorch_model.safetensors")
    io = inputs(FULL, text_rows, grid, seed=91)
    for name, dtype in ("out", torch.float32), ("out_bf16", torch.bfloat16):
        io[name] = Network(FULL, tensors, device, dtype)(**{k: io[k] for k in ("img", "txt", "pooled")}, grid=grid)
        io[name] = io[name].float().cpu()
    print(f"{text_rows} tokens, {grid[0]} x {grid[1]} patches: bfloat16 on {device} {decibel(io['out'], io['out_bf16']):.1f} dB")
    io |= {"timestep": torch.tensor([1000 * TIMESTEP]), "guidance": torch.tensor([GUIDANCE])}
    io["grid"] = torch.tensor([float(side) for side in grid])
    save_file({name: t.contiguous() for name, t in io.items()}, folder / "io.safetensors")


def check():
    from diffusers import FluxTransformer2DModel

    grid, text_rows = (4, 6), 7
    config = SMALL | {"num_layers": 2, "num_single_layers": 2}
    tensors, io = Weights(config, seed=92).tensors, inputs(config, text_rows, grid, seed=93)
    ids = torch.zeros(grid[0] * grid[1], 3)
    ids[:, 1], ids[:, 2] = torch.arange(grid[0]).repeat_interleave(grid[1]), torch.arange(grid[1]).repeat(grid[0])
    outs = {}
    for dtype in torch.float32, torch.bfloat16:
        model = FluxTransformer2DModel(**{k: v for k, v in config.items() if not k.startswith("_")}).to(dtype)
        model.load_state_dict({name: t.to(dtype) for name, t in tensors.items()})
        with torch.no_grad():
            theirs = model(
                hidden_states=io["img"][None].to(dtype),
                encoder_hidden_states=io["txt"][None].to(dtype),
                pooled_projections=io["pooled"][None].to(dtype),
                timestep=torch.tensor([TIMESTEP]),
                guidance=torch.tensor([GUIDANCE]),
                img_ids=ids,
                txt_ids=torch.zeros(text_rows, 3),
                return_dict=False,
            )[0][0]
        outs[dtype] = theirs.float(), Network(config, tensors, "cpu", dtype)(**io, grid=grid).float()
    (theirs, ours), (theirs_bf16, ours_bf16) = outs.values()
    noises = [decibel(theirs, theirs_bf16), decibel(theirs, ours_bf16)]
    print(f"float32 {decibel(theirs, ours):.1f} dB; bfloat16 {noises[1]:.1f} dB, diffusers' {noises[0]:.1f} dB")
    assert decibel(theirs, ours) > 100, "another network than diffusers'"
    assert abs(noises[0] - noises[1]) < 2, "not as exact in bfloat16 as diffusers"


# What `svdq quantize` leaves as noise of the weights at full width, in dB.
QUANTISED = {"attn.": 22.5, "ff": 22.8, "proj_mlp": 23.5, "proj_out": 21.8}
PARTS = {
    "q and k": ("to_q.", "to_k.", "add_q_proj.", "add_k_proj."),
    "v and out": ("to_v.", "add_v_proj.", "to_out.", "to_add_out."),
    "MLPs and the single block's proj_out": (".ff", "proj_mlp.", "blocks.0.proj_out."),
}


def explain(text_rows=128, grid=(32, 32)):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tensors, io = Weights(FULL, seed=90).tensors, inputs(FULL, text_rows, grid, seed=91)
    out = Network(FULL, tensors, device, torch.float32)(**io, grid=grid)
    for what, names in (PARTS | {"all of them": sum(PARTS.values(), ())}).items():
        generator = torch.Generator().manual_seed(94)
        noisy = dict(tensors)
        for name in sorted(tensors):
            if name.endswith(".weight") and tensors[name].dim() == 2 and any(part in name for part in names):
                level = next(db for kind, db in QUANTISED.items() if kind in name)
                noise = torch.randn(tensors[name].shape, generator=generator)
                noisy[name] = tensors[name].float()
                noisy[name] = noisy[name] + noise * (noisy[name].norm() / noise.norm() * 10 ** (-level / 20))
        print(f"{what}: {decibel(out, Network(FULL, noisy, device, torch.float32)(**io, grid=grid)):.1f} dB", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--explain", action="store_true")
    arguments = parser.parse_args()
    if arguments.check:
        check()
    elif arguments.explain:
        explain()
    elif arguments.folder:
        write(arguments.folder)
    else:
        parser.error("a folder, --check or --explain")
