//! Which kernels multiply 4-bit weights on which GPU.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use crate::{FAKE, fails, nothing_left, reported, succeeds, svdq};

/// The demo model's transformer, with scales that say NVFP4.
fn nvfp4() -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda_host-nvfp4.safetensors");
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/demo/svdq-int4_r32-demo.safetensors");
    let file = fs::read(demo).unwrap();
    let (_, header) = SafeTensors::read_metadata(&file).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    // 1 in e4m3 and in bf16.
    let (scales, one) = (vec![0x38; 1 << 20], [0x80, 0x3f]);
    let mut all: BTreeMap<String, TensorView<'_>> = tensors.tensors().into_iter().collect();
    for (name, ..) in tensors.tensors() {
        let Some(layer) = name.strip_suffix(".smooth") else { continue };
        let groups = tensors.tensor(&format!("{layer}.wscales")).unwrap();
        let shape = vec![groups.shape()[0] * 4, groups.shape()[1]];
        let data = &scales[..shape[0] * shape[1]];
        let view = TensorView::new(Dtype::F8_E4M3, shape, data).unwrap();
        all.insert(format!("{layer}.wscales"), view);
        all.insert(format!("{layer}.wtscale"), TensorView::new(Dtype::BF16, vec![1], &one).unwrap());
    }
    safetensors::serialize_to_file(all, header.metadata().clone(), &path).unwrap();
    path
}

#[test]
#[cfg_attr(not(svdq_all_archs), ignore = "this build lacks kernels of some architectures")]
fn every_gpu_has_its_kernels() {
    let nvfp4 = nvfp4();
    let image = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda_host-profiles.png");
    let hopper = ["gemm_w4a8_gelu_sm90", "attention_d128_sm90"].as_slice();
    let hopper_exact = ["quantize_w4a4_sm90", "gemm_w4a4_gelu_sm90", "attention_d128_sm90"].as_slice();
    let hopper_nvfp4 = ["unpack_nvfp4_w4a8", "gemm_w4a8_store_sm90", "gemm_w4a8_add_sm90"].as_slice();
    let int4 = ["quantize_w4a4", "gemm_w4a4_gelu", "gemm_w4a4_add_u4", "attention_d128"].as_slice();
    let dense_int4 = ["unpack_int4_bf16", "gemm_bf16_k8", "attention_d128"].as_slice();
    let dense_nvfp4 = ["unpack_nvfp4_bf16", "gemm_bf16_k8", "attention_d128"].as_slice();
    let own_nvfp4 = ["quantize_nvfp4", "gemm_nvfp4_gelu", "gemm_nvfp4_add", "gemm_nvfp4_qkv"].as_slice();
    for (capability, is_nvfp4, profile, expected) in [
        ("75", false, None, Ok(int4)),
        ("80", false, None, Ok(int4)),
        ("86", false, None, Ok(int4)),
        ("89", false, None, Ok(int4)),
        ("90", false, None, Ok(hopper)),
        ("100", false, None, Ok(dense_int4)),
        ("120", false, None, Ok(dense_int4)),
        ("75", true, None, Ok(dense_nvfp4)),
        ("80", true, None, Ok(dense_nvfp4)),
        ("89", true, None, Ok(dense_nvfp4)),
        ("90", true, None, Ok(hopper_nvfp4)),
        ("100", true, None, Ok(dense_nvfp4)),
        ("120", true, None, Ok(own_nvfp4)),
        ("121", true, None, Ok(own_nvfp4)),
        ("86", false, Some("w4a16"), Ok(dense_int4)),
        ("90", false, Some("w4a4"), Ok(hopper_exact)),
        ("90", true, Some("w4a16"), Ok(&["unpack_nvfp4_bf16", "gemm_bf16_sm90", "attention_d128_sm90"])),
        (
            "86",
            false,
            Some("w4a8"),
            Err("profile W4A8 with INT4 weights on Fake GPU 0, which runs them in W4A4 and W4A16"),
        ),
        (
            "90",
            true,
            Some("w4a4"),
            Err("profile W4A4 with NVFP4 weights on Fake GPU 0, which runs them in W4A8 and W4A16"),
        ),
        (
            "120",
            false,
            Some("w4a4"),
            Err("profile W4A4 with INT4 weights on Fake GPU 0, which runs them in W4A16"),
        ),
    ] {
        let (output, counts) = reported("profiles", |report| {
            let fixed =
                ["generate", "red potion", "--size", "32x32", "--steps", "2", "--device", "cuda", "-o"];
            let mut args = [&fixed[..], &[image.to_str().unwrap()]].concat();
            if is_nvfp4 {
                args.extend(["--transformer", nvfp4.to_str().unwrap()]);
            }
            args.extend(profile.iter().flat_map(|profile| ["--profile", profile]));
            svdq(&args, &FAKE, &[("FAKE_CAPABILITY", capability), report])
        });
        let what = format!("{capability}, {profile:?}, NVFP4 {is_nvfp4}: {counts:?}");
        match expected {
            Ok(kernels) => {
                succeeds(&output);
                for kernel in kernels {
                    assert!(counts.contains_key(&format!("kernel {kernel}")), "{kernel} {what}");
                }
                // Nothing for another architecture, nor for another profile.
                let families =
                    ["gemm_w4a8", "gemm_w4a4", "gemm_nvfp4", "unpack_int4_bf16", "unpack_nvfp4_bf16"];
                let used = |family: &&&str| counts.keys().any(|name| name.contains(*family));
                assert_eq!(families.iter().filter(used).count(), 1, "{what}");
                assert_eq!(counts.keys().any(|name| name.ends_with("_sm90")), capability == "90", "{what}");
            }
            Err(error) => {
                fails(&output, error);
                assert_eq!(counts["launches"], 0, "{what}");
            }
        }
        nothing_left(&counts);
    }
}
