//! A record to try things on.

use super::{Direction, Header, Record, Settings, VERSION};
use crate::{
    digest::Digest,
    id::{Generation, LayerId, SeedIndex, SessionId},
    tensor::{DType, HostTensor, Shape},
};

/// A forward of a kernel with a parameter and a buffer.
pub(crate) fn record() -> Record {
    let artifact = b"an artifact".as_slice();
    let tensor = |values: &[f32]| HostTensor::from_values([values.len()].into(), values).unwrap();
    Record {
        header: Header {
            format: VERSION,
            version: "0.1.0".to_owned(),
            time_unix_ms: 1_800_000_000_000,
            device: "cpu".to_owned(),
            kernel: "conv:v1".parse().unwrap(),
            digest: Digest::of(artifact),
            session: SessionId(1),
            uid: 1000,
            layer: LayerId(2),
            seed: SeedIndex(3),
            generation: Generation(4),
            role: "blended".to_owned(),
            alpha: 0.5,
            step: 5,
            direction: Direction::Forward,
            again: false,
            train: true,
            rng_seed: u64::MAX,
            dtype: DType::F32,
            input_shape: [2, 3].into(),
            output_shape: [2, 3].into(),
            wants_input: true,
            wants_parameters: true,
            code: "kernel.non_finite".to_owned(),
            message: "kernel conv:v1 gave an infinity or a NaN".to_owned(),
            elapsed_ns: Some(1234),
            allowed_ns: Some(4_000_000_000),
            settings: Settings {
                time_limit_ns: 5_000_000_000,
                plan_time_limit_ns: 10_000_000_000,
                non_finite_guard: true,
                series: true,
                max_plan_bytes: 1 << 30,
                max_flops: 1 << 40,
                threads: 2,
                winograd: true,
            },
        },
        artifact: artifact.into(),
        input: HostTensor::from_values([2, 3].into(), &[1.0f32, -2.0, f32::NAN, 0.0, 5.0, 6.0]).unwrap(),
        grad_output: None,
        saved: [].into(),
        parameters: vec![("bias".to_owned(), tensor(&[0.5])), ("weight".to_owned(), tensor(&[1.0, 2.0]))],
        buffers: vec![("norm.count".to_owned(), HostTensor::from_values(Shape::scalar(), &[7i64]).unwrap())],
    }
}

/// The same kernel's backward.
pub(crate) fn backward() -> Record {
    let mut record = record();
    record.header.direction = Direction::Backward;
    record.grad_output = Some(HostTensor::from_values([2, 3].into(), &[1.0f32; 6]).unwrap());
    record.saved = (0..64).collect();
    record
}
