"""lora/: LoRAs for the tiny network in `flux/`, in every naming in use, and what diffusers makes of them.

    all.*.safetensors     one LoRA of every linear, alpha 4 and rank 2, in one naming and type of element each
    split.safetensors     PEFT's own file: q, k, v apart, other ranks and alphas by layer, rank-stabilised
    control.safetensors   Black Forest Labs' control LoRA: biases, and weights for the norms of q and k
    wide.safetensors      for a control image: the embedder of latents takes twice the channels
    xlabs.safetensors     attention alone
    text.safetensors      for the tiny CLIP and T5 in `clip/` and `t5/`
    io.safetensors        FILE@STRENGTH [24, 16]: the transformer's output on the inputs in `flux/`, and zeros for a control image;
                          clip.pooler_output and t5.last_hidden_state with the text encoders' LoRA at 0.7
    demo.safetensors      img [24, 64] txt [9, 256] pooled [128]: inputs of the demo model's transformer at timestep 0.7 and guidance 3.5;
                          plain and pocket-green@0.7 [24, 64]: its output on the dequantised 4-bit weights

Values are those that both 8-bit types have, so that every type of element holds them exactly and all files of `all` are the same LoRA.
diffusers' converters read kohya's, ComfyUI's, XLabs' and the control LoRA's names here; they are made for FLUX.1's sizes,
which are replaced.
"""

import inspect
import json

import numpy as np
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from diffusers.loaders import lora_conversion_utils, lora_pipeline
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, T5EncoderModel

import make_quant
from common import ASSETS, HERE, save

HIDDEN, MLP, BLOCKS, RANK, ALPHA = 64, 256, 2, 2, 4.0
FOLDER = HERE / "lora"
REFERENCE = "all.diffusers.safetensors"

DOUBLE = {
    "img_mod.lin": ["norm1.linear"],
    "txt_mod.lin": ["norm1_context.linear"],
    "img_attn.qkv": ["attn.to_q", "attn.to_k", "attn.to_v"],
    "txt_attn.qkv": ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
    "img_attn.proj": ["attn.to_out.0"],
    "txt_attn.proj": ["attn.to_add_out"],
    "img_mlp.0": ["ff.net.0.proj"],
    "img_mlp.2": ["ff.net.2"],
    "txt_mlp.0": ["ff_context.net.0.proj"],
    "txt_mlp.2": ["ff_context.net.2"],
}
SINGLE = {
    "modulation.lin": ["norm.linear"],
    "linear1": ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"],
    "linear2": ["proj_out"],
}
OUTSIDE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
    "final_layer.linear": "proj_out",
}


def fused():
    """Black Forest Labs' name of every linear, and diffusers' names of what it holds."""
    for i in range(BLOCKS):
        for theirs, ours in DOUBLE.items():
            yield f"double_blocks.{i}.{theirs}", [f"transformer_blocks.{i}.{name}" for name in ours]
        for theirs, ours in SINGLE.items():
            yield f"single_blocks.{i}.{theirs}", [f"single_transformer_blocks.{i}.{name}" for name in ours]
    for theirs, ours in OUTSIDE.items():
        yield theirs, [ours]


class Random:
    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def matrix(self, *shape, size):
        value = torch.randn(shape, generator=self.generator) * size
        return value.to(torch.float8_e4m3fn).float().to(torch.float8_e5m2).float()


def tiny_flux():
    model = FluxTransformer2DModel.from_config(json.loads((HERE / "flux/config.json").read_text()))
    model.load_state_dict(load_file(HERE / "flux/model.safetensors"))
    return model.float().eval()


def run(model):
    io = load_file(HERE / "flux/io.safetensors")
    control = torch.zeros(*io["img"].shape[:-1], model.x_embedder.in_features - io["img"].shape[-1])
    return model(
        hidden_states=torch.cat([io["img"], control], dim=-1),
        encoder_hidden_states=io["txt"],
        pooled_projections=io["pooled"],
        timestep=io["timestep"],
        guidance=io["guidance"],
        img_ids=io["img_ids"],
        txt_ids=io["txt_ids"],
        return_dict=False,
    )[0][0]


def pipeline(transformer=None):
    """A pipeline with only a transformer, with converters for the sizes of the tiny one."""
    for name in ("_convert_kohya_flux_lora_to_diffusers", "_convert_bfl_flux_control_lora_to_diffusers"):
        source = inspect.getsource(getattr(lora_conversion_utils, name))
        for old, new in (
            ("12288", MLP),
            ("3072", HIDDEN),
            ("num_layers = 19", f"num_layers = {BLOCKS}"),
            ("num_single_layers = 38", f"num_single_layers = {BLOCKS}"),
        ):
            source = source.replace(old, str(new))
        exec(compile(source, name, "exec"), vars(lora_conversion_utils))
        setattr(lora_pipeline, name, getattr(lora_conversion_utils, name))
    parts = ("scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    return FluxPipeline(transformer=transformer or tiny_flux(), **dict.fromkeys(parts))


def outputs(files):
    """What diffusers makes of `files`, each with a strength, together."""
    pipe = pipeline()
    for i, (file, _) in enumerate(files):
        lora = FOLDER / file if file == REFERENCE else load_file(FOLDER / file)
        if file == "control.safetensors":
            lora = lora_conversion_utils._convert_bfl_flux_control_lora_to_diffusers(lora)
            # diffusers (0.42.1) swaps the halves of A too, which are ranks and not shift and scale.
            name = "transformer.norm_out.linear.lora_A.weight"
            lora[name] = swapped(lora[name])
        pipe.load_lora_weights(lora, adapter_name=f"a{i}")
    pipe.set_adapters([f"a{i}" for i in range(len(files))], [strength for _, strength in files])
    return run(pipe.transformer)


def write(name, tensors, dtype=torch.float32, metadata=None):
    FOLDER.mkdir(exist_ok=True)
    save_file({k: v.to(dtype).contiguous() for k, v in tensors.items()}, FOLDER / f"{name}.safetensors", metadata)


def swapped(weight):
    """Black Forest Labs' final_layer has shift before scale."""
    return torch.cat(weight.chunk(2)[::-1])


def make_all():
    """The LoRA `all`, whose fused linears have one A, as `(theirs, [ours], A, [B])`."""
    random, shapes = Random(1), {name: p.shape for name, p in tiny_flux().named_parameters()}
    layers = []
    for theirs, ours in fused():
        k = shapes[f"{ours[0]}.weight"][1]
        ups = [random.matrix(shapes[f"{name}.weight"][0], RANK, size=0.1) for name in ours]
        layers.append((theirs, ours, random.matrix(RANK, k, size=k**-0.5), ups))
    split = [(name, a, b) for _, ours, a, ups in layers for name, b in zip(ours, ups)]
    whole = [(t, a, swapped(b[0]) if t.startswith("final_layer.ada") else torch.cat(b)) for t, _, a, b in layers]
    scale = ALPHA / RANK

    def tensors(modules, prefix, down, up, alpha=None, flat=False):
        named = {}
        for name, a, b in modules:
            name = prefix + (name.replace(".", "_") if flat else name)
            named |= {f"{name}.{down}": a, f"{name}.{up}": b if alpha else b * scale}
            if alpha:
                named[f"{name}.alpha"] = torch.tensor(alpha)
        return named

    a, b, down, up = "lora_A.weight", "lora_B.weight", "lora_down.weight", "lora_up.weight"
    bf16, fp16 = torch.bfloat16, torch.float16
    config = {"r": RANK, "lora_alpha": ALPHA, "use_rslora": False, "target_modules": [name for name, _, _ in split]}
    config = json.dumps({f"transformer.{key}": value for key, value in config.items()})
    peft = {k: v if "lora_A" in k else v / scale for k, v in tensors(split, "transformer.", a, b).items()}
    write("all.diffusers", peft, bf16, {"lora_adapter_metadata": config})
    write("all.bare", tensors(split, "", a, b), bf16)
    write("all.peft", tensors(split, "base_model.model.", "lora_A.default.weight", "lora_B.default.weight"), torch.float8_e5m2)
    write("all.kohya", tensors(whole, "lora_unet_", down, up, ALPHA, flat=True), fp16)
    write("all.kohya_diffusers", tensors(split, "lora_transformer_", down, up, ALPHA, flat=True), torch.float8_e4m3fn)
    write("all.comfyui", tensors(whole, "diffusion_model.", down, up, ALPHA), bf16)
    write("all.bfl", tensors(whole, "", a, b))
    write("all.kontext", tensors(whole, "base_model.model.", a, b), bf16)
    write("xlabs", xlabs(layers), bf16)
    write("control", control(whole), bf16)


def xlabs(layers):
    names = {"img_attn.qkv": "qkv_lora1", "txt_attn.qkv": "qkv_lora2", "img_attn.proj": "proj_lora1", "txt_attn.proj": "proj_lora2"}
    named = {}
    for theirs, _, a, ups in layers:
        block, _, part = theirs.partition(".")[2].partition(".")
        if part == "linear1":
            name, up = "qkv_lora", torch.cat(ups[:3])
        elif part == "linear2":
            name, up = "proj_lora", ups[0]
        elif part in names:
            name, up = names[part], torch.cat(ups)
        else:
            continue
        prefix = f"{theirs.partition('.')[0]}.{block}.processor.{name}"
        named |= {f"{prefix}.down.weight": a, f"{prefix}.up.weight": up}
    return named


def control(whole):
    random, named = Random(2), {}
    for name, a, b in whole:
        named |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b, f"{name}.lora_B.bias": random.matrix(b.shape[0], size=0.1)}
    norms = [f"double_blocks.{i}.{stream}_attn.norm" for i in range(BLOCKS) for stream in ("img", "txt")]
    for norm in norms + [f"single_blocks.{i}.norm" for i in range(BLOCKS)]:
        for vector in ("query_norm", "key_norm"):
            named[f"{norm}.{vector}.scale"] = 1 + random.matrix(32, size=0.3)
    return named


def make_wide():
    """In the names of PEFT. diffusers widens the transformer's own weight with zeros to fit."""
    random, shapes, named = Random(5), {name: p.shape for name, p in tiny_flux().named_parameters()}, {}
    for name in ("x_embedder", "transformer_blocks.0.attn.to_q", "transformer_blocks.0.ff.net.2", "proj_out"):
        n, k = shapes[f"{name}.weight"]
        k *= 2 if name == "x_embedder" else 1
        named[f"transformer.{name}.lora_A.weight"] = random.matrix(4, k, size=k**-0.5)
        named[f"transformer.{name}.lora_B.weight"] = random.matrix(n, 4, size=0.2)
    write("wide", named, torch.bfloat16)


def check_names():
    """diffusers reads kohya's and ComfyUI's names as the same LoRA, but for defects of its converter (in 0.42.1): outside of
    the blocks it forgets the prefix, so that these layers are dropped later, and the alphas of the last layer."""
    pipeline()
    want = load_file(FOLDER / "all.bare.safetensors")
    layers = {name.removesuffix(".lora_A.weight") for name in want if name.endswith(".lora_A.weight")}
    for naming in ("kohya", "comfyui"):
        read = lora_conversion_utils._convert_kohya_flux_lora_to_diffusers(load_file(FOLDER / f"all.{naming}.safetensors"))
        read = {name.removeprefix("transformer."): value.float() for name, value in read.items()}
        assert read.keys() == want.keys(), read.keys() ^ want.keys()
        for layer in layers:
            alpha = ALPHA / RANK if layer in ("norm_out.linear", "proj_out") else 1
            product = alpha * read[f"{layer}.lora_B.weight"] @ read[f"{layer}.lora_A.weight"]
            expected = want[f"{layer}.lora_B.weight"].float() @ want[f"{layer}.lora_A.weight"].float()
            torch.testing.assert_close(product, expected, msg=f"{naming}: {layer}")


def make_split():
    """PEFT's own: an adapter with a config as rich as they come, saved by diffusers."""
    model = tiny_flux()
    attention = ["to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out"]
    config = LoraConfig(
        r=3,
        lora_alpha=2,
        use_rslora=True,
        target_modules=[*attention, "ff.net.0.proj", "proj_mlp", "single_transformer_blocks.1.proj_out", "norm.linear"],
        rank_pattern={"to_k": 5, "proj_mlp": 17},
        alpha_pattern={"to_k": 7, "transformer_blocks.1.attn.to_v": 1},
    )
    model.add_adapter(config)
    randomise(model, Random(3))
    model.save_lora_adapter(FOLDER, weight_name="split.safetensors")
    tensors, metadata = load_file(FOLDER / "split.safetensors"), {"lora_adapter_metadata": metadata_of(FOLDER / "split.safetensors")}
    write("split", tensors, torch.bfloat16, metadata)
    result = {}
    for strength in (0.5, -1.25):
        model.set_adapters(["default"], strength)
        result[f"split@{strength}"] = run(model)
    return result


def metadata_of(path):
    size = int.from_bytes(path.read_bytes()[:8], "little")
    return json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"]["lora_adapter_metadata"]


def randomise(model, random):
    for name, p in sorted(model.named_parameters()):
        if "lora_" in name:
            p.copy_(random.matrix(*p.shape, size=0.1 if "lora_B" in name else p.shape[-1] ** -0.5))


def make_text():
    """kohya's names for CLIP, transformers' for T5, both at strength 0.7."""
    random, named, io = Random(4), {}, {}
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"])
    clip = inject_adapter_in_model(config, CLIPTextModel.from_pretrained(HERE / "clip").float().eval())
    randomise(clip, random)
    for name, value in get_peft_model_state_dict(clip).items():
        layer, factor = name.removeprefix("text_model.").removesuffix(".weight").rsplit(".", 1)
        kind = {"lora_A": "lora_down", "lora_B": "lora_up"}[factor]
        named[f"lora_te1_text_model_{layer.replace('.', '_')}.{kind}.weight"] = value
        named[f"lora_te1_text_model_{layer.replace('.', '_')}.alpha"] = torch.tensor(2.0)
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["q", "k", "v", "o", "wi_0", "wi_1", "wo"])
    t5 = inject_adapter_in_model(config, T5EncoderModel.from_pretrained(HERE / "t5").float().eval())
    randomise(t5, random)
    named |= {f"text_encoder_2.{name}": value for name, value in get_peft_model_state_dict(t5).items()}
    write("text", named, torch.bfloat16)
    for module in [*clip.modules(), *t5.modules()]:
        if hasattr(module, "set_scale"):
            module.set_scale("default", 0.7)
    io["clip.pooler_output"] = clip(load_file(HERE / "clip/io.safetensors")["input_ids"]).pooler_output
    io["t5.last_hidden_state"] = t5(load_file(HERE / "t5/io.safetensors")["input_ids"]).last_hidden_state
    return io


FOUR_BIT = {
    "qkv_proj": ["attn.to_q", "attn.to_k", "attn.to_v"],
    "qkv_proj_context": ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
    "out_proj": ["attn.to_out.0"],
    "out_proj_context": ["attn.to_add_out"],
    "mlp_fc1": ["ff.net.0.proj"],
    "mlp_fc2": ["ff.net.2"],
    "mlp_context_fc1": ["ff_context.net.0.proj"],
    "mlp_context_fc2": ["ff_context.net.2"],
}


def dequantised(file):
    """Nunchaku's 4-bit transformer as diffusers' tensors in float32."""
    dense, single = {}, {}
    for key in [key for key in file if key.endswith(".qweight")]:
        layer = key.removesuffix(".qweight")
        t = {name: file.pop(f"{layer}.{name}") for name in ("qweight", "wscales", "bias")}
        t = {name: (value if name == "qweight" else value.float()).numpy() for name, value in t.items()}
        block, _, part = layer.partition(".")[2].partition(".")
        prefix = f"{layer.partition('.')[0]}.{block}."
        n = t["bias"].size
        if f"{layer}.wzeros" in file:
            k, chunks = t["qweight"].shape[1] * 2, 3 if layer.startswith("single") else 6
            codes = make_quant.unpack_codes(t["qweight"], make_quant.awq_index(n, k))
            zeros = file.pop(f"{layer}.wzeros").float().numpy()
            weight = codes * np.repeat(t["wscales"], 64, 0).T + np.repeat(zeros, 64, 0).T
            weight, bias = (a.reshape(n // chunks, chunks, -1).swapaxes(0, 1).copy() for a in (weight, t["bias"]))
            bias[1::3] -= 1
            dense[f"{layer}.weight"], dense[f"{layer}.bias"] = weight.reshape(n, k), bias.ravel()
            continue
        k = t["qweight"].shape[1] * 2
        down, up, smooth = (file.pop(f"{layer}.{name}").float().numpy() for name in ("lora_down", "lora_up", "smooth"))
        del file[f"{layer}.smooth_orig"]
        rank, unpack = down.shape[1], make_quant.unpack
        codes = make_quant.unpack_codes(t["qweight"], make_quant.qweight_index(n, k)).astype(np.int8)
        codes = np.where(codes < 8, codes, codes - 16)
        scales = unpack(t["wscales"], make_quant.pack_wscales, n, k // 64)
        weight = codes * np.repeat(scales, 64, 1) / unpack(smooth, make_quant.pack_vector, k)
        bias = unpack(t["bias"], make_quant.pack_vector, n)
        if part.endswith("fc2"):
            bias = bias + make_quant.SHIFT * weight.sum(1)
        weight = weight + unpack(up, make_quant.pack_lora_up, n, rank) @ unpack(down, make_quant.pack_lora_down, rank, k)
        if layer.startswith("single") and part in ("out_proj", "mlp_fc2"):
            single.setdefault(prefix, {})[part] = weight, bias
            continue
        names = ["proj_mlp"] if layer.startswith("single") and part == "mlp_fc1" else FOUR_BIT[part]
        for i, name in enumerate(names):
            rows = slice(i * n // len(names), (i + 1) * n // len(names))
            dense[f"{prefix}{name}.weight"], dense[f"{prefix}{name}.bias"] = weight[rows], bias[rows]
    for prefix, parts in single.items():
        (left, one), (right, two) = parts["out_proj"], parts["mlp_fc2"]
        dense[f"{prefix}proj_out.weight"], dense[f"{prefix}proj_out.bias"] = np.hstack([left, right]), one + two
    for name, value in file.items():
        dense[name.replace(".norm_", ".attn.norm_") if "blocks." in name else name] = value.float().numpy()
    return {name: torch.from_numpy(np.ascontiguousarray(value, np.float32)) for name, value in dense.items()}


def make_demo():
    """A trained LoRA on 4-bit weights."""
    model = FluxTransformer2DModel.from_config(json.loads((ASSETS / "demo/transformer/config.json").read_text()))
    model.load_state_dict(dequantised(load_file(ASSETS / "demo/svdq-int4_r32-demo.safetensors")))
    pipe = pipeline(model.float().eval())
    generator = torch.Generator().manual_seed(6)
    io = {name: torch.randn(shape, generator=generator) for name, shape in (("img", (24, 64)), ("txt", (9, 256)), ("pooled", (128,)))}
    ids = torch.tensor([[0, i // 6, i % 6] for i in range(24)]).float()

    def output():
        return pipe.transformer(
            hidden_states=io["img"][None],
            encoder_hidden_states=io["txt"][None],
            pooled_projections=io["pooled"][None],
            timestep=torch.tensor([0.7]),
            guidance=torch.tensor([3.5]),
            img_ids=ids,
            txt_ids=torch.zeros(9, 3),
            return_dict=False,
        )[0][0]

    io["plain"] = output()
    pipe.load_lora_weights(ASSETS / "demo/lora/pocket-green.safetensors", adapter_name="green")
    pipe.set_adapters(["green"], [0.7])
    io["pocket-green@0.7"] = output()
    save("lora/demo.safetensors", io)


def make():
    make_demo()
    make_all()
    check_names()
    io = make_split() | make_text()
    io["all@0.7"] = outputs([(REFERENCE, 0.7)])
    io["xlabs@1.0"] = outputs([("xlabs.safetensors", 1.0)])
    io["control@1.0"] = outputs([("control.safetensors", 1.0)])
    io["control@0.5"] = outputs([("control.safetensors", 0.5)])
    make_wide()
    io["wide@0.7"] = outputs([("wide.safetensors", 0.7)])
    io["all@0.7+xlabs@-0.5"] = outputs([(REFERENCE, 0.7), ("xlabs.safetensors", -0.5)])
    save("lora/io.safetensors", io)
