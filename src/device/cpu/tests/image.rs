//! What the VAE and the sampler use.

use super::*;
use crate::ops::ConvSource;

#[test]
fn rows_are_copied() {
    let cpu = cpu(Level::all()[0], Profile::W4A8);
    let from: Vec<f32> = (0..12).map(|i| i as f32).collect();
    let mut into = upload(&cpu, &[-1.0; 15], 3);
    cpu.copy_rows(&upload(&cpu, &from, 3), 1..3, &mut into, 2).unwrap();
    let mut want = [-1.0; 15];
    want[6..12].copy_from_slice(&from[3..9]);
    assert_eq!(cpu.download(&into).unwrap(), want);
}

pub(super) fn group_norms(level: Level) {
    for (pixels, channels, groups) in [(1, 8, 2), (35, 24, 8), (300, 96, 8), (70, 64, 32), (9, 10, 5)] {
        let mut r = Random(pixels as u64);
        let cpu = cpu(level, Profile::W4A8);
        let mut x = r.activations(pixels, channels);
        x.iter_mut().for_each(|v| *v += 5.0);
        let (w, b) = (r.normals(channels, 1.0), r.normals(channels, 1.0));
        let (tx, tw, tb) =
            (upload(&cpu, &x, channels), upload(&cpu, &w, channels), upload(&cpu, &b, channels));
        let (x, width) = (wide(&x), channels / groups);
        for silu in [false, true] {
            let mut want = vec![0.0; x.len()];
            for g in 0..groups {
                let of_group = |i: &usize| i % channels / width == g;
                let n = (pixels * width) as f64;
                let mean = (0..x.len()).filter(of_group).map(|i| x[i]).sum::<f64>() / n;
                let var = (0..x.len()).filter(of_group).map(|i| (x[i] - mean).powi(2)).sum::<f64>() / n;
                for i in (0..x.len()).filter(of_group) {
                    let (w, b) = (f64::from(w[i % channels]), f64::from(b[i % channels]));
                    let v = (x[i] - mean) / (var + 1e-6).sqrt() * w + b;
                    want[i] = if silu { v * sigmoid(v) } else { v };
                }
            }
            let got = cpu.group_norm(&tx, groups, &tw, &tb, silu).unwrap();
            assert_close(&cpu.download(&got).unwrap(), &want, 1e-5);
        }
    }
}

pub(super) fn convolutions(level: Level) {
    let cases = [
        // n, c, kernel, stride, upsample, height, width
        (5, 3, 3, 1, false, 6, 7),
        (33, 16, 3, 1, false, 9, 5),
        (3, 40, 3, 1, false, 20, 11),
        (17, 20, 1, 1, false, 7, 13),
        (32, 8, 3, 2, false, 8, 6),
        (9, 24, 3, 1, true, 5, 4),
        (4, 2, 3, 1, false, 1, 1),
        (40, 300, 3, 1, false, 4, 4),
    ];
    for (n, c, kernel, stride, upsample, height, width) in cases {
        let mut r = Random((n * c + height) as u64);
        let cpu = cpu(level, Profile::W4A8);
        let x = r.activations(height * width, c);
        let weight = r.normals(n * c * kernel * kernel, 0.1);
        let bias = r.normals(n, 1.0);
        let zoom = if upsample { 2 } else { 1 };
        let [h, w] = [height * zoom / stride, width * zoom / stride];
        let add = r.normals(h * w * n, 1.0);
        let pad = if stride == 2 { 0 } else { kernel as isize / 2 };
        let mut want = Vec::new();
        for (p, o) in (0..h * w).flat_map(|p| (0..n).map(move |o| (p, o))) {
            let mut sum = f64::from(bias[o]);
            for tap in 0..kernel * kernel {
                let y = (p / w * stride + tap / kernel) as isize - pad;
                let x_ = (p % w * stride + tap % kernel) as isize - pad;
                if y < 0 || x_ < 0 || y >= (height * zoom) as isize || x_ >= (width * zoom) as isize {
                    continue;
                }
                let pixel = y as usize / zoom * width + x_ as usize / zoom;
                for i in 0..c {
                    sum +=
                        f64::from(x[pixel * c + i]) * f64::from(weight[(o * c + i) * kernel * kernel + tap]);
                }
            }
            want.push(sum);
        }
        let conv = cpu
            .load_conv(&ConvSource { n, c, kernel, stride, upsample, weight: weight.into(), bias })
            .unwrap();
        let tx = upload(&cpu, &x, c);
        let got = cpu.conv(&tx, [height, width], &conv, None).unwrap();
        // f32 sums of up to 2700 products
        assert_close(&cpu.download(&got).unwrap(), &want, 1e-5);
        let got = cpu.conv(&tx, [height, width], &conv, Some(&upload(&cpu, &add, n))).unwrap();
        let want: Vec<_> = want.iter().zip(&add).map(|(v, a)| v + f64::from(*a)).collect();
        assert_close(&cpu.download(&got).unwrap(), &want, 1e-5);
    }
}

pub(super) fn euler_steps_and_pixels(level: Level) {
    let mut r = Random(1);
    let cpu = cpu(level, Profile::W4A8);
    let (x, v) = (r.normals(99, 1.0), r.normals(99, 1.0));
    let mut latents = upload(&cpu, &x, 33);
    cpu.euler_step(&mut latents, &upload(&cpu, &v, 33), -0.25).unwrap();
    let want: Vec<_> = x.iter().zip(&v).map(|(x, v)| f64::from(*x) - 0.25 * f64::from(*v)).collect();
    assert_close(&cpu.download(&latents).unwrap(), &want, 1e-6);

    let x = [-2.0, -1.0, 0.0, 1.0, 3.0, 0.2, f32::NAN, 1.0 / 255.0, -1.0 / 255.0];
    assert_eq!(cpu.to_rgb8(&upload(&cpu, &x, 3)).unwrap(), [0, 0, 128, 255, 255, 153, 0, 128, 127]);
}
