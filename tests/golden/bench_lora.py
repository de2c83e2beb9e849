"""A random LoRA on every linear of FLUX.1-dev, in PEFT's naming and bf16, for `svdq bench --lora`: bench_lora.py RANK FILE"""
import sys
import torch
from safetensors.torch import save_file

rank, path = int(sys.argv[1]), sys.argv[2]
sizes = {}
for i in range(19):
    b = f"transformer_blocks.{i}."
    for stream in ["to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out"]:
        sizes[b + "attn." + stream] = (3072, 3072)
    for ff in ["ff", "ff_context"]:
        sizes[b + ff + ".net.0.proj"] = (12288, 3072)
        sizes[b + ff + ".net.2"] = (3072, 12288)
    for norm in ["norm1", "norm1_context"]:
        sizes[b + norm + ".linear"] = (18432, 3072)
for i in range(38):
    b = f"single_transformer_blocks.{i}."
    for qkv in ["to_q", "to_k", "to_v"]:
        sizes[b + "attn." + qkv] = (3072, 3072)
    sizes[b + "proj_mlp"] = (12288, 3072)
    sizes[b + "proj_out"] = (3072, 15360)
    sizes[b + "norm.linear"] = (9216, 3072)
g = torch.Generator().manual_seed(1)
tensors = {}
for name, (n, k) in sizes.items():
    tensors[f"transformer.{name}.lora_A.weight"] = (torch.randn(rank, k, generator=g) * 0.02).bfloat16()
    tensors[f"transformer.{name}.lora_B.weight"] = (torch.randn(n, rank, generator=g) * 0.02).bfloat16()
save_file(tensors, path)
print(len(sizes), "modules", sum(t.numel() * 2 for t in tensors.values()) / 1e6, "MB")
