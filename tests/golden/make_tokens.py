"""tokens.json: the token ids of awkward prompts, as FluxPipeline asks transformers for them.

    {"texts": [TEXT, ...],
     "sets": [{"tokenizer": NAME, "max_length": N, "pad": ID, "ids": [[ID, ...] for each text]}, ...]}

`ids` leaves the padding out: the full row is `ids` followed by `pad` up to `max_length`.
"""

import gzip
import json
import tempfile
from pathlib import Path

from transformers import CLIPTokenizer, T5TokenizerFast

from common import ASSETS, HERE

FLUX = ASSETS / "tokenizers"
CLIP_CONFIG = {
    "tokenizer_class": "CLIPTokenizer",
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "model_max_length": 77,
}
T5_CONFIG = {
    "tokenizer_class": "T5Tokenizer",
    "eos_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "extra_ids": 100,
    "model_max_length": 512,
}

# Without U+0085, on which transformers 4 (T5's tokenizer.json as it is) and 5 (splits at white space first) disagree.
AWKWARD = [
    "",
    " ",
    " \t\r\n  ",
    "  leading and   inner and trailing  ",
    "tabs\tand\nnewlines\r\nand\x0bvertical\x0cform feed",
    "no\u00a0break, ideographic\u3000space, thin\u2009space, line\u2028separator",
    "UPPER lower MiXeD CaSe iPhone McDonald",
    "STRASSE Straße ẞ İstanbul ıI ΣΊΣΥΦΟΣ ǅ",
    "1234567890 3.14159 -1e-5 1,000,000 50% $9.99 #42 @8 ½ ² ① Ⅷ ٣",
    "it's don't we're I've I'm you'll he'd IT'S DON'T ' 's ''s",
    "!!! ... ??? -- --- ___ (a) [b] {c} <d> \"e\" `f` ~g ^h |i| \\j /k",
    "pixel-art,blue;potion:red/green\\yellow_sword",
    "a.b.c...d",
    "😀",
    "a 🐉 and a 🗡️ fight",
    "👩‍👩‍👧‍👦 👩🏽‍🚀 🏳️‍🌈 🇩🇪🇯🇵 1️⃣ ❤️",
    "像素艺术 蓝色药水",
    "ドラゴンのピクセルアート、ｶﾞｷﾞｸﾞ ガギグ",
    "한국어 픽셀 아트 \u1112\u1161\u11ab",
    "تنين أزرق بِكْسِل ﷺ ﻻ",
    "כלב פִּיקְסֶל",
    "नीला ड्रैगन क्षि",
    "มังกรสีน้ำเงิน",
    "синий дракон Ёж Й",
    "Việt Nam: Rồng xanh",
    "caf\u00e9 na\u00efve \u00c5ngstr\u00f6m \u1e9b\u0323",
    "cafe\u0301 nai\u0308ve A\u030angstro\u0308m \u017f\u0323\u0307",
    "\u212b \u2126 \u212a \u2103 \u2116 \u2122",
    "ＦＵＬＬ　ｗｉｄｔｈ　１２３！",
    "ﬁre ﬂame oﬃce ﬆaff ĳ ŀ ŉ",
    "\u0301",
    "\u0301\u0302\u0303",
    "a\u0301\u0302\u0303\u0304\u0305b",
    "zero\u200bwidth \u200cnon\u200djoiner \u2060word\ufeffjoiner soft\u00adhyphen",
    "\ufeffbyte order mark",
    "left\u200eto\u200fright \u202eoverride\u202c",
    "nul\x00 bell\x07 escape\x1b[31m delete\x7f c1\x9b",
    "\x00",
    "unassigned \u0378 private \ue000 noncharacter \uffff \U0010ffff replacement \ufffd",
    "𝔉𝔯𝔞𝔨𝔱𝔲𝔯 𝒮𝒸𝓇𝒾𝓅𝓉 𝟙𝟚𝟛 𐍈 𠜎",
    "▁under▁score ▁ Ġ Ċ </w> a</w>",
    "</s>",
    "end</s>more </s> <pad> <unk> <extra_id_0> <extra_id_99>",
    "</S> <PAD> < /s>",
    "<|endoftext|>",
    "<|startoftext|>begin<|endoftext|>more <|endoftext|> end",
    "<|ENDOFTEXT|> <| endoftext |>",
    "supercalifragilisticexpialidocious pneumonoultramicroscopicsilicovolcanoconiosis",
    "x" * 300,
    "aaaa bbbb " * 9,
    "dragon " * 30 + "end",
    "a dragon, " * 45 + "end",
    "long prompt about 1 potion; " * 120,
    "🐉" * 90,
    "龍" * 700,
    "e\u0301" * 300,
    " " * 1000 + "far away",
]


def convert_flux_tokenizers(folder):
    """Writes assets/tokenizers from FLUX.1's `tokenizer_1` (vocab, merges) and `tokenizer_2` (tokenizer.json)."""
    folder = Path(folder)
    with tempfile.TemporaryDirectory() as temp:
        CLIPTokenizer.from_pretrained(folder / "tokenizer_1").save_pretrained(temp)
        clip = (Path(temp) / "tokenizer.json").read_text()
    t5 = (folder / "tokenizer_2" / "tokenizer.json").read_text()
    FLUX.mkdir(parents=True, exist_ok=True)
    for name, text in ("clip_l", clip), ("t5_xxl", t5):
        compact = json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":"))
        (FLUX / f"{name}.json.gz").write_bytes(gzip.compress(compact.encode(), 9, mtime=0))


def flux_tokenizer(cls, name, config):
    with tempfile.TemporaryDirectory() as temp:
        (Path(temp) / "tokenizer.json").write_bytes(gzip.decompress((FLUX / f"{name}.json.gz").read_bytes()))
        (Path(temp) / "tokenizer_config.json").write_text(json.dumps(config))
        return cls.from_pretrained(temp)


def ids(tokenizer, text, max_length):
    row = tokenizer([text], padding="max_length", max_length=max_length, truncation=True)
    length = sum(row["attention_mask"][0])
    ids = row["input_ids"][0]
    assert len(ids) == max_length and all(i == tokenizer.pad_token_id for i in ids[length:])
    return ids[:length]


def make():
    demo = ASSETS / "demo"
    prompts = [p for p in (demo / "prompts.txt").read_text().splitlines() if not p.startswith("#")]
    texts = prompts[::4] + AWKWARD
    demo_clip = CLIPTokenizer.from_pretrained(demo / "tokenizer")
    demo_t5 = T5TokenizerFast.from_pretrained(demo / "tokenizer_2")
    flux_clip = flux_tokenizer(CLIPTokenizer, "clip_l", CLIP_CONFIG)
    flux_t5 = flux_tokenizer(T5TokenizerFast, "t5_xxl", T5_CONFIG)
    sets = [
        {
            "tokenizer": name,
            "max_length": max_length,
            "pad": tokenizer.pad_token_id,
            "ids": [ids(tokenizer, text, max_length) for text in texts],
        }
        for name, tokenizer, max_length in [
            ("demo_clip", demo_clip, 77),
            ("demo_t5", demo_t5, 48),
            ("clip_l", flux_clip, 77),
            ("t5_xxl", flux_t5, 512),
            ("t5_xxl", flux_t5, 256),
        ]
    ]
    (HERE / "tokens.json").write_text(json.dumps({"texts": texts, "sets": sets}, separators=(",", ":")) + "\n")
