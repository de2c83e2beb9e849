#![allow(clippy::unwrap_used)]
use super::*;
use crate::weights::testing::{TempDir, safetensors};

fn open(header: &str, data: usize) -> Result<Checkpoint> {
    Checkpoint::from_bytes(Path::new("m.safetensors"), safetensors(header, data))
}

const A: &str = r#""a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}"#;

/// Header, bytes after it, and what the error has to say.
#[rustfmt::skip]
const BAD: &[(&str, usize, &str)] = &[
    (r#"{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"#, 15, "truncated: tensors take 16 bytes, of which 15"),
    (r#"{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"#, 17, "1 bytes too long"),
    (r#"{}"#, 1, "1 bytes too long"),
    (r#"{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"b":{"dtype":"U8","shape":[2],"data_offsets":[15,17]}}"#, 17, "`b` at 15..17 overlaps"),
    (r#"{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"b":{"dtype":"U8","shape":[2],"data_offsets":[17,19]}}"#, 19, "`b` at 17..19 leaves a gap"),
    (r#"{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"b":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"#, 16, "overlaps"),
    (r#"{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"#, 16, "`a` is there twice"),
    (r#"{"__metadata__":{},"__metadata__":{}}"#, 0, "`__metadata__` is there twice"),
    (r#"{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[1,17]}}"#, 17, "`a` at 1..17 leaves a gap"),
    (r#"{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[16,0]}}"#, 16, "takes 16 bytes, its offsets are 16..0"),
    (r#"{"a":{"dtype":"BF16","shape":[2,2],"data_offsets":[0,16]}}"#, 16, "BF16 [2, 2] takes 8 bytes"),
    (r#"{"a":{"dtype":"F32","shape":[2,-2],"data_offsets":[0,16]}}"#, 16, "`a`: invalid value: integer `-2`"),
    (r#"{"a":{"dtype":"F32","shape":[2.5],"data_offsets":[0,10]}}"#, 10, "`a`: invalid type"),
    (r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#, 0, "has no size in bytes"),
    (r#"{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]}}"#, 0, "has no size in bytes"),
    (r#"{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}}"#, 2, "has no size in bytes"),
    (r#"{"a":{"dtype":"Q4","shape":[3],"data_offsets":[0,2]}}"#, 2, "`a`: unknown variant `Q4`"),
    (r#"{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,99999999999999999999]}}"#, 16, "`a`: "),
    (r#"{"a":{"dtype":"F32","shape":[2,2]}}"#, 16, "missing field `data_offsets`"),
    (r#"{"a":7}"#, 0, "`a`: invalid type"),
    (r#"{"__metadata__":{"config":7}}"#, 0, "`__metadata__`: invalid type"),
    (r#"[]"#, 0, "an object of tensors"),
    (r#"{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}"#, 16, "EOF"),
    ("", 0, "EOF"),
    ("not json", 0, "header: "),
];

#[test]
fn headers_that_do_not_describe_their_file_are_refused() {
    for &(header, data, expected) in BAD {
        let text = open(header, data).err().unwrap_or_else(|| panic!("{header} was accepted")).to_string();
        assert!(text.starts_with("m.safetensors: ") && text.contains(expected), "{header}: {text}");
    }
}

#[test]
fn files_that_are_no_safetensors_are_refused() {
    let cases: [(&[u8], &str); 5] = [
        (b"", "0 bytes are too few"),
        (b"\x02\0\0\0", "4 bytes are too few"),
        (b"\x03\0\0\0\0\0\0\0{}", "truncated: a header of 3 bytes, of which 2"),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff{}", "is larger than"),
        (b"\x02\0\0\0\0\0\0\0\xff\xff", "not UTF-8"),
    ];
    let dir = TempDir::new();
    for (bytes, expected) in cases {
        let path = dir.write("x.safetensors", bytes);
        let text = Checkpoint::open(&path).err().unwrap().to_string();
        assert!(text.contains("x.safetensors") && text.contains(expected), "{text}");
    }
}

#[test]
fn deep_nesting_is_an_error_and_no_stack_overflow() {
    let header = format!("{{\"a\":{}", "[".repeat(1_000_000));
    assert!(open(&header, 0).is_err());
}

#[test]
fn tensors_are_found_by_name_shape_and_type() {
    let mut file = safetensors(
        r#"{"__metadata__":{"k":"v"},"w":{"dtype":"BF16","shape":[1,2],"data_offsets":[0,4]},"h":{"dtype":"F16","shape":[1],"data_offsets":[4,6]},"i":{"dtype":"I8","shape":[2],"data_offsets":[6,8]},"empty":{"dtype":"F32","shape":[0],"data_offsets":[8,8]}}"#,
        0,
    );
    file.extend([0x80, 0x3f, 0, 0xc0, 0, 0x3c, 1, 2]);
    let c = Checkpoint::from_bytes(Path::new("m"), file).unwrap();
    assert_eq!(c.metadata("k"), Some("v"));
    assert_eq!(c.names().collect::<Vec<_>>(), ["empty", "h", "i", "w"]);
    assert_eq!(c.f32("w", &[1, 2]).unwrap(), [1.0, -2.0]);
    assert_eq!(c.f32("h", &[1]).unwrap(), [1.0]);
    assert_eq!(c.bytes("i", Dtype::I8, &[2]).unwrap(), [1, 2]);
    let say = |e: Error| e.to_string();
    assert_eq!(say(c.f32("nope", &[1]).unwrap_err()), "m: tensor `nope` is missing");
    assert_eq!(say(c.f32("w", &[2]).unwrap_err()), "m: tensor `w` has shape [1, 2], [2] is expected");
    assert_eq!(
        say(c.f32("i", &[2]).unwrap_err()),
        "m: tensor `i` has dtype I8; F32, F16, BF16, F8_E4M3 and F8_E5M2 can be read"
    );
    assert_eq!(
        say(c.bytes("w", Dtype::I8, &[1, 2]).unwrap_err()),
        "m: tensor `w` has dtype BF16, I8 is expected"
    );
}

#[test]
fn folders_are_opened_by_index_or_by_their_only_file() {
    let dir = TempDir::new();
    let none = Checkpoint::open(dir.path()).err().unwrap();
    assert!(matches!(none, Error::NotFound { .. }), "{none}");
    dir.write("b.safetensors", &safetensors(&format!("{{{A}}}"), 16));
    assert!(Checkpoint::open(dir.path()).unwrap().get("a").is_some());
    dir.write("c.safetensors", &safetensors(r#"{"c":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, 1));
    let many = Checkpoint::open(dir.path()).err().unwrap().to_string();
    assert!(many.contains("2 .safetensors files"), "{many}");

    let index = |text: &str| dir.write("model.safetensors.index.json", text.as_bytes());
    index(r#"{"weight_map":{"a":"b.safetensors","c":"c.safetensors"}}"#);
    assert_eq!(Checkpoint::open(dir.path()).unwrap().names().count(), 2);

    let outside = "../b.safetensors";
    for (map, expected) in [
        (format!(r#"{{"a":"{outside}"}}"#), "not the name of a file"),
        (r#"{"a":"/etc/passwd"}"#.into(), "not the name of a file"),
        (r#"{"a":"x\\..\\b.safetensors"}"#.into(), "not the name of a file"),
        (r#"{"a":"C:b.safetensors"}"#.into(), "not the name of a file"),
        (r#"{"a":".."}"#.into(), "not the name of a file"),
        (r#"{"a":""}"#.into(), "not the name of a file"),
        (r#"{}"#.into(), "is empty"),
        (r#"{"a":7}"#.into(), "near key `a`"),
        (r#"{"a":"c.safetensors"}"#.into(), "tensor `a` is not in \"c.safetensors\""),
        (r#"{"z":"b.safetensors"}"#.into(), "tensor `z` is not in"),
        (r#"{"a":"gone.safetensors"}"#.into(), "gone.safetensors: no such file"),
    ] {
        index(&format!(r#"{{"weight_map":{map}}}"#));
        let text =
            Checkpoint::open(dir.path()).err().unwrap_or_else(|| panic!("{map} was accepted")).to_string();
        assert!(text.contains(expected), "{map}: {text}");
    }

    dir.write("c.safetensors", &safetensors(&format!("{{{A}}}"), 16));
    index(r#"{"weight_map":{"a":"b.safetensors","c":"c.safetensors"}}"#);
    let twice = Checkpoint::open(dir.path()).err().unwrap().to_string();
    assert!(
        twice.contains("c.safetensors: tensor `a` is also in") && twice.contains("b.safetensors"),
        "{twice}"
    );
}

#[cfg(unix)]
#[test]
fn what_is_no_file_is_refused_without_blocking() {
    let text = Checkpoint::open(Path::new("/dev/null")).err().unwrap().to_string();
    assert_eq!(text, "/dev/null: not a regular file");
    assert!(matches!(Checkpoint::open(Path::new("/nonexistent")), Err(Error::NotFound { .. })));
}

/// An FP8 matrix, and what lies beside it; `scale` is its header entry.
fn fp8(dtype: &str, scale: &str, scale_bytes: &[u8]) -> Checkpoint {
    let codes: [u8; 4] = [0x38, 0xb8, 0x01, 0x7e];
    let end = 4 + scale_bytes.len();
    let scale = match scale {
        "" => String::new(),
        text => format!(r#","{text},"data_offsets":[4,{end}]}}"#),
    };
    let header =
        format!(r#"{{"fc.weight":{{"dtype":"{dtype}","shape":[2,2],"data_offsets":[0,4]}}{scale}}}"#);
    let mut file = safetensors(&header, 0);
    file.extend(codes);
    file.extend(scale_bytes);
    Checkpoint::from_bytes(Path::new("m.safetensors"), file).unwrap()
}

#[test]
fn fp8_weights_are_multiplied_by_the_scale_beside_them() {
    let file = fp8("F8_E4M3", "", &[]);
    let plain = file.dense("fc", 2, 2, false).unwrap();
    assert_eq!(
        (plain.weight.values().unwrap(), plain.storage),
        (&[1.0, -1.0, 0.001953125, 448.0][..], Storage::Bf16)
    );
    let file = fp8("F8_E5M2", "", &[]);
    let plain = file.dense("fc", 2, 2, false).unwrap();
    assert_eq!(plain.weight.values().unwrap()[..3], [0.5, -0.5, 2f32.powi(-16)]);
    assert!(plain.weight.values().unwrap()[3].is_nan() && plain.storage == Storage::Bf16);
    for (scale, bytes) in [
        (r#"fc.scale_weight":{"dtype":"F32","shape":[]"#, &0.3f32.to_le_bytes()[..]),
        (r#"fc.weight_scale":{"dtype":"F32","shape":[1]"#, &0.3f32.to_le_bytes()),
        (r#"fc.scale_weight":{"dtype":"BF16","shape":[1]"#, &half::bf16::from_f32(0.3).to_le_bytes()),
    ] {
        let file = fp8("F8_E4M3", scale, bytes);
        let scaled = file.dense("fc", 2, 2, false).unwrap();
        let value = if bytes.len() == 4 { 0.3 } else { half::bf16::from_f32(0.3).to_f32() };
        let weight = scaled.weight.values().unwrap();
        assert_eq!((weight[0], weight[3]), (value, 448.0 * value), "{scale}");
        assert_eq!(scaled.storage, Storage::F32);
    }
    for (scale, bytes) in [
        (r#"fc.scale_weight":{"dtype":"F32","shape":[2]"#, &[0; 8][..]),
        (r#"fc.scale_weight":{"dtype":"F32","shape":[0]"#, &[]),
        (r#"fc.scale_weight":{"dtype":"I32","shape":[1]"#, &[0; 4]),
        (r#"fc.weight_scale":{"dtype":"F32","shape":[1]"#, &f32::NAN.to_le_bytes()),
    ] {
        let text = fp8("F8_E4M3", scale, bytes).f32("fc.weight", &[2, 2]).unwrap_err().to_string();
        assert!(text.contains("tensor `fc.") && text.contains("one finite number"), "{text}");
    }
    // A scale beside weights that are no FP8 belongs to something else.
    let header = r#"{"fc.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"fc.scale_weight":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
    assert_eq!(open(header, 8).unwrap().f32("fc.weight", &[1]).unwrap(), [0.0]);
}
