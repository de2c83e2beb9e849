"""quant.safetensors: 4-bit linears in Nunchaku's packing, and what they mean, in float64.

`signed.*` and `unsigned.*` are SVDQuant linears, [256, 192] with rank 32 and [128, 256] with rank 16:

    qweight wscales bias smooth lora_down lora_up                          packed, as in a checkpoint
    wq [N, K]  ws [N, K/64]  b [N]  s [K]  down [R, K]  up [N, R]          the same, logical
    x [M, K]  xq [M, K]  xs [M, K/64]  lora [M, R]  y [M, N]               an input, its codes and scales, the output

`fp4.*` is an NVFP4 one, [256, 192] with rank 16: `wscales` are e4m3 codes of groups of 16, `wq` e2m1 codes, `ws` [N, K/16],
`wc` [N] scales of channels, in y but not in ws; xq the values of the e2m1 codes of x, xs [M, K/16].

`unsigned.x` is the output of a GELU: the quantiser sees x + 0.171875, and its codes are 0..15.

`awq3.*` and `awq6.*` are modulation linears [48, 128] of 3 and 6 chunks:

    qweight wscales wzeros bias                                            packed, rows interleaved
    w [N, K]  b [N]  x [M, K]  y [M, N]                                    logical, chunk by chunk; b of scale chunks has its +1
"""

import numpy as np
import torch

from common import save

GROUP = 64
SHIFT = 0.171875


def bf16(a):
    """`a` rounded to bfloat16, as float32."""
    return torch.from_numpy(np.asarray(a, np.float32)).bfloat16().float().numpy()


def grid(rows, cols):
    return np.meshgrid(np.arange(rows), np.arange(cols), indexing="ij")


def scatter(values, index):
    """The array whose element `index[i]` is `values[i]`; `index` is a permutation."""
    out = np.zeros(values.size, values.dtype)
    out[index.ravel()] = values.ravel()
    assert np.array_equal(np.sort(index.ravel()), np.arange(values.size))
    return out


def nibbles(codes, index):
    """Bytes of 4-bit codes, the nibble with the even index low."""
    flat = scatter((codes & 15).astype(np.uint8), index)
    return flat[0::2] | flat[1::2] << 4


def vector_index(n):
    return n // 16 * 16 + n % 8 // 2 * 4 + n % 16 // 8 * 2 + n % 2


def pack_vector(v):
    return scatter(v, vector_index(np.arange(v.size)))


def qweight_index(rows, cols):
    n, k = grid(rows, cols)
    tile = n // 128 * (cols // 64) + k // 64
    lane = n % 8 * 4 + k % 32 // 8
    word = ((tile * 8 + n % 128 // 16) * 32 + lane) * 4 + n % 16 // 8 * 2 + k % 64 // 32
    return word * 8 + k % 8


def pack_qweight(q):
    rows, cols = q.shape
    return nibbles(q, qweight_index(rows, cols)).view(np.int8).reshape(rows, cols // 2)


def pack_wscales(ws):
    rows, groups = ws.shape
    n, g = grid(rows, groups)
    return scatter(ws, (n // 128 * groups + g) * 128 + vector_index(n % 128)).reshape(groups, rows)


def pack_lora_down(a):
    rank, cols = a.shape
    r, k = grid(rank, cols)
    block = k // 16 * (rank // 16) + r // 16
    lane = r % 8 * 4 + k % 8 // 2
    return scatter(a, (block * 32 + lane) * 8 + r % 16 // 8 * 4 + k % 16 // 8 * 2 + k % 2).reshape(cols, rank)


def pack_lora_up(b):
    rows, rank = b.shape
    n, r = grid(rows, rank)
    block = n // 16 * (rank // 16) + r // 16
    lane = n % 8 * 4 + r % 8 // 2
    return scatter(b, (block * 32 + lane) * 8 + n % 16 // 8 * 4 + r % 16 // 8 * 2 + r % 2).reshape(rows, rank)


def awq_index(rows, cols):
    n, k = grid(rows, cols)
    i16 = n // 4 * cols + k // 64 * 64 + n % 4 * 16 + k % 64 // 32 * 8 + k % 8
    return i16 * 4 + k % 32 // 8


def pack_awq(q):
    rows, cols = q.shape
    return nibbles(q, awq_index(rows, cols)).view(np.int32).reshape(rows // 4, cols // 2)


def unpack(packed, pack, *shape):
    """The inverse of `pack`, one of the functions above that move values."""
    values = np.empty(packed.size, packed.dtype)
    values[pack(np.arange(packed.size).reshape(shape)).ravel()] = packed.ravel()
    return values.reshape(shape)


def unpack_codes(packed, index):
    """Codes 0..15 at `index` among the nibbles of `packed`."""
    pairs = packed.ravel().view(np.uint8)
    return np.stack([pairs & 15, pairs >> 4], 1).ravel()[index]


def quantise(x, smooth, unsigned):
    """Codes, scales, and where they would depend on details of rounding that devices may choose:
    bfloat16 or float32 quotients, and the reciprocal of the rounded or of the unrounded scale."""
    top = 15 if unsigned else 7
    exact = ((x + np.float32(SHIFT) if unsigned else x) / smooth).reshape(len(x), -1, GROUP)
    codes, scales, fragile = [], [], np.zeros(exact.shape, bool)
    for v in bf16(exact), exact:
        unrounded = np.abs(v).max(2, keepdims=True) / np.float32(top)
        scales.append(bf16(unrounded))
        for scale in unrounded, scales[-1]:
            ratio = v / np.where(scale == 0, np.float32(1), scale)
            codes.append(np.clip(np.rint(ratio), 0 if unsigned else -8, top))
            fragile |= np.abs(np.abs(ratio - np.floor(ratio)) - 0.5) < 0.01
    fragile |= np.any([c != codes[0] for c in codes], axis=0) | (scales[0] != scales[1])
    return codes[0].reshape(x.shape), scales[0][..., 0], fragile.reshape(x.shape)


def svdq(rng, n, k, rank, rows, unsigned):
    wq = rng.integers(-8, 8, (n, k))
    ws = bf16(rng.uniform(0.5, 1.5, (n, k // GROUP)) * rng.choice([1, 1, -1], (n, k // GROUP)) * 0.2 / k**0.5)
    smooth = bf16(rng.uniform(0.4, 2.5, k))
    bias = bf16(rng.normal(0, 0.3, n))
    down = bf16(rng.normal(0, 1, (rank, k)) / k**0.5)
    up = bf16(rng.normal(0, 1, (n, rank)) / rank**0.5)

    def draw():
        v = rng.normal(0, 1.5, (rows, k))
        if unsigned:  # tanh GELU
            v = 0.5 * v * (1 + np.tanh(np.sqrt(2 / np.pi) * (v + 0.044715 * v**3)))
        else:
            v[0, GROUP : 2 * GROUP] = 0  # a group without a scale
        return bf16(v)

    x = draw()
    while (fragile := quantise(x, smooth, unsigned)[2]).any():
        x = np.where(fragile, draw(), x)
    xq, xs, _ = quantise(x, smooth, unsigned)

    lora = x.astype(np.float64) @ down.astype(np.float64).T
    dequantised_x = xq.astype(np.float64) * np.repeat(xs.astype(np.float64), GROUP, 1)
    dequantised_w = wq.astype(np.float64) * np.repeat(ws.astype(np.float64), GROUP, 1)
    y = dequantised_x @ dequantised_w.T + lora @ up.astype(np.float64).T + bias
    packed = {
        "wscales": pack_wscales(ws),
        "bias": pack_vector(bias),
        "smooth": pack_vector(smooth),
        "lora_down": pack_lora_down(down),
        "lora_up": pack_lora_up(up),
    }
    codes = {"qweight": pack_qweight(wq), "wq": wq.astype(np.int8), "xq": xq.astype(np.int8)}
    logical = {"ws": ws, "b": bias, "s": smooth, "down": down, "up": up, "x": x, "xs": xs, "lora": lora, "y": y}
    return packed, codes, logical


E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
E4M3 = torch.arange(127, dtype=torch.int32).to(torch.uint8).view(torch.float8_e4m3fn).float().numpy()


def nearest(values, numbers):
    """Index of the number that is nearest to each value, none of them negative; ties go to the even one."""
    above = np.clip(np.searchsorted(numbers, values), 1, len(numbers) - 1)
    low, high = values - numbers[above - 1], numbers[above] - values
    return np.where((low < high) | ((low == high) & (above % 2 == 1)), above - 1, above)


def quantise_fp4(x, smooth):
    """Values of the codes, scales, and where they would depend on details of rounding that devices may choose."""
    values, scales, fragile = [], [], np.zeros((len(x), x.shape[1] // 16, 16), bool)
    exact = (x / smooth).reshape(len(x), -1, 16)
    for v in bf16(exact), exact:
        unrounded = np.minimum(np.abs(v).max(2, keepdims=True) / np.float32(6), 448)
        scales.append(E4M3[nearest(unrounded, E4M3)])
        ratio = np.abs(v) / np.where(unrounded == 0, np.float32(1), unrounded)
        values.append(np.sign(v) * E2M1[nearest(ratio, E2M1)])
        middles = (E2M1[1:] + E2M1[:-1]) / 2
        fragile |= (np.abs(ratio[..., None] - middles) < 0.02).any(3)
    fragile |= (values[0] != values[1]) | (scales[0] != scales[1])
    return values[0].reshape(x.shape), scales[0][..., 0], fragile.reshape(x.shape)


def pack_fp4_scales(ws):
    rows, groups = ws.shape
    n, g = grid(rows, groups)
    tile = n // 128 * (groups // 4) + g // 4
    return scatter(ws, (tile * 128 + n % 8 * 16 + n % 32 // 8 * 4 + n % 128 // 32) * 4 + g % 4).reshape(groups, rows)


def fp4(rng, n, k, rank, rows):
    wq = rng.integers(0, 16, (n, k))
    ws = rng.integers(0x28, 0x50, (n, k // 16)).astype(np.uint8)
    wc = bf16(rng.uniform(0.5, 1.5, n) * 0.1 / k**0.5)
    smooth = bf16(rng.uniform(0.4, 2.5, k))
    bias = bf16(rng.normal(0, 0.3, n))
    down = bf16(rng.normal(0, 1, (rank, k)) / k**0.5)
    up = bf16(rng.normal(0, 1, (n, rank)) / rank**0.5)

    def draw():
        v = rng.normal(0, 1.5, (rows, k))
        v[0, 16:32] = 0  # a group without a scale
        return bf16(v)

    x = draw()
    while (fragile := quantise_fp4(x, smooth)[2]).any():
        x = np.where(fragile, draw(), x)
    xq, xs, _ = quantise_fp4(x, smooth)

    lora = x.astype(np.float64) @ down.astype(np.float64).T
    dequantised_x = xq.astype(np.float64) * np.repeat(xs.astype(np.float64), 16, 1)
    levels = np.concatenate([E2M1, -E2M1]).astype(np.float64)
    dequantised_w = levels[wq] * np.repeat(E4M3[ws].astype(np.float64), 16, 1) * wc[:, None]
    y = dequantised_x @ dequantised_w.T + lora @ up.astype(np.float64).T + bias
    packed = {
        "bias": pack_vector(bias),
        "smooth": pack_vector(smooth),
        "lora_down": pack_lora_down(down),
        "lora_up": pack_lora_up(up),
    }
    codes = {"qweight": pack_qweight(wq), "wscales": pack_fp4_scales(ws), "wq": wq.astype(np.int8)}
    logical = {"ws": E4M3[ws], "wc": wc, "b": bias, "s": smooth, "down": down, "up": up}
    return packed, codes, logical | {"x": x, "xq": xq, "xs": xs, "lora": lora, "y": y}


def awq(rng, n, k, chunks, rows):
    codes = rng.integers(0, 16, (n, k))
    scales = bf16(rng.uniform(0.5, 1.5, (k // GROUP, n)) * 0.2 / k**0.5)
    zeros = bf16(-7 * scales) if chunks == 3 else bf16(scales * rng.uniform(-9, -5, scales.shape))
    bias = rng.normal(0, 0.3, n)
    bias[np.arange(n) % 3 == 1] += 1  # stored row d·chunks + s; chunk 1 (and 4) is a scale
    bias = bf16(bias)

    groups = np.arange(k) // GROUP
    w = codes * scales.astype(np.float64)[groups].T + zeros.astype(np.float64)[groups].T
    order = np.arange(n).reshape(n // chunks, chunks).T.ravel()  # stored row of each logical row
    w, b = w[order], bias[order]
    x = bf16(rng.normal(0, 1, (rows, k)))
    packed = {"wscales": scales, "wzeros": zeros, "bias": bias}
    return packed, {"qweight": pack_awq(codes)}, {"w": w, "b": b, "x": x, "y": x.astype(np.float64) @ w.T + b}


def make():
    rng = np.random.default_rng(80)
    layers = {
        "signed": svdq(rng, 256, 192, 32, 5, unsigned=False),
        "unsigned": svdq(rng, 128, 256, 16, 5, unsigned=True),
        "awq3": awq(rng, 48, 128, 3, 4),
        "awq6": awq(rng, 48, 128, 6, 4),
        "fp4": fp4(rng, 256, 192, 16, 5),
    }
    tensors = {}
    for layer, (packed, codes, logical) in layers.items():
        tensors |= {f"{layer}.{k}": torch.from_numpy(v).bfloat16() for k, v in packed.items()}
        tensors |= {f"{layer}.{k}": torch.from_numpy(v) for k, v in codes.items()}
        tensors |= {f"{layer}.{k}": torch.from_numpy(v).float() for k, v in logical.items()}
    save("quant.safetensors", tensors)
