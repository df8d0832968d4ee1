//! Golden archives with other weights: what is written comes back, and nothing else has changed.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::{Value, json};

use super::{
    Module, ReadLimits, RewriteError, read, rewrite,
    zip::{
        Archive,
        writer::{Entry, write},
    },
};
use crate::tensor::{DType, HostTensor, Shape};

type Values = BTreeMap<String, HostTensor>;

fn golden() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden")
}

/// Every archive below a folder.
fn archives(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(archives(&path));
        } else if path.extension().is_some_and(|ending| ending == "pt" || ending == "pt2") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn bytes_of(name: &str) -> Arc<[u8]> {
    std::fs::read(golden().join(name)).unwrap().into()
}

fn module(bytes: &Arc<[u8]>) -> Module {
    read(bytes.clone(), &ReadLimits::default()).unwrap()
}

fn values(module: &Module) -> Values {
    let parameters = module.parameters().iter().map(|p| (p.name.clone(), p.tensor.clone()));
    parameters.chain(module.buffers().iter().map(|b| (b.name.clone(), b.tensor.clone()))).collect()
}

/// The same with another lowest bit in every element.
fn turned(values: &Values) -> Values {
    let turn = |tensor: &HostTensor| {
        let mut bytes = tensor.bytes().to_vec();
        bytes.iter_mut().step_by(tensor.dtype().size_bytes()).for_each(|byte| *byte ^= 1);
        HostTensor::new(tensor.shape().clone(), tensor.dtype(), bytes).unwrap()
    };
    values.iter().map(|(name, tensor)| (name.clone(), turn(tensor))).collect()
}

fn with(bytes: &Arc<[u8]>, values: &Values) -> Result<Arc<[u8]>, RewriteError> {
    rewrite(bytes, values, &ReadLimits::default())
}

/// The files of an archive, all of whose checksums are right.
fn files(bytes: &Arc<[u8]>) -> BTreeMap<String, Vec<u8>> {
    let limits = ReadLimits::default();
    let archive = Archive::open(bytes, &limits).unwrap();
    archive.names().map(|name| (name.to_owned(), archive.file(name).unwrap().into_owned())).collect()
}

fn holds_tensors(name: &str) -> bool {
    ["data/weights/", "data/constants/", "data/"].iter().any(|folder| name.starts_with(folder))
        && !name.ends_with(".json")
        && !name.starts_with("data/sample_inputs/")
}

#[test]
fn every_golden_archive_takes_its_own_weights_and_others() {
    let (mut changed, mut without) = (0, 0);
    for path in archives(&golden()) {
        let bytes: Arc<[u8]> = std::fs::read(&path).unwrap().into();
        let place = path.display();
        let before = module(&bytes);
        let own = values(&before);
        assert!(with(&bytes, &own).unwrap() == bytes, "{place}: its own weights change nothing");
        let wanted = turned(&own);
        let after = with(&bytes, &wanted).unwrap_or_else(|error| panic!("{place}: {error}"));
        let there = module(&after);
        assert_eq!(values(&there), wanted, "{place}");
        assert!(before.constants() == there.constants(), "{place}: constants stay");
        let (old, new) = (files(&bytes), files(&after));
        assert_eq!(after.len(), bytes.len(), "{place}");
        assert!(old.keys().eq(new.keys()), "{place}");
        for (name, content) in &old {
            assert!(holds_tensors(name) || new[name] == *content, "{place}: {name} has changed");
        }
        if own.is_empty() { without += 1 } else { changed += 1 }
    }
    assert!(changed > 200, "{changed} archives have weights, {without} have none");
}

#[test]
fn packed_weights_are_written_as_they_are_and_the_rest_stays_packed() {
    for name in ["conv_bn_relu.train.pt", "conv_bn_relu.train.pt2", "half/activations.eval.bfloat16.pt2"] {
        let stored = bytes_of(name);
        let entry = |(name, content): (String, Vec<u8>)| Entry::deflated(&format!("k/{name}"), content);
        let deflated: Arc<[u8]> = write(&files(&stored).into_iter().map(entry).collect::<Vec<_>>()).into();
        let wanted = turned(&values(&module(&deflated)));
        let after = with(&deflated, &wanted).unwrap();
        assert_eq!(values(&module(&after)), wanted, "{name}");
        let limits = ReadLimits::default();
        let archive = Archive::open(&after, &limits).unwrap();
        let mut written = 0;
        for (file, content) in files(&deflated) {
            match archive.stored_at(&file) {
                // What has changed is stored, and lies where torch would have it.
                Some(at) => {
                    assert!(at.is_multiple_of(64) && holds_tensors(&file), "{name}: {file} at {at}");
                    written += 1;
                }
                None => assert_eq!(*archive.file(&file).unwrap(), content, "{name}: {file}"),
            }
        }
        assert_eq!(written, wanted.len(), "{name}: one file each");
        assert!(with(&deflated, &values(&module(&deflated))).unwrap() == deflated);
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    for name in ["conv_bn_relu.train.pt", "conv_bn_relu.train.pt2"] {
        let bytes = bytes_of(name);
        let all = values(&module(&bytes));
        let (first, tensor) = all.iter().next_back().unwrap();
        let refused = |values: &Values| with(&bytes, values).unwrap_err();
        let mut fewer = all.clone();
        fewer.remove(first);
        assert_eq!(refused(&fewer), RewriteError::Missing { name: first.clone() });
        assert_eq!(
            refused(&Values::new()),
            RewriteError::Missing { name: module(&bytes).parameters()[0].name.clone() }
        );
        let more = [all.clone(), Values::from([("conv.gain".to_owned(), tensor.clone())])];
        let more: Values = more.into_iter().flatten().collect();
        assert_eq!(refused(&more), RewriteError::Unknown { name: "conv.gain".to_owned() });
        let flat = HostTensor::new([1].into(), DType::F32, vec![0; 4]).unwrap();
        let mut other = all.clone();
        other.insert(first.clone(), flat);
        assert!(refused(&other).to_string().contains("and float32 [1] was given"), "{}", refused(&other));
        let size = tensor.shape().elements();
        let wide = HostTensor::new(tensor.shape().clone(), DType::F64, vec![0; 8 * size]).unwrap();
        other.insert(first.clone(), wide);
        assert!(matches!(refused(&other), RewriteError::Kind { actual_dtype: DType::F64, .. }));
    }
    assert!(matches!(with(&b"no archive"[..].into(), &Values::new()), Err(RewriteError::Artifact(_))));
    let late = ReadLimits::default().until(std::time::Instant::now());
    let bytes = bytes_of("conv2d.eval.pt2");
    let error = rewrite(&bytes, &values(&module(&bytes)), &late).unwrap_err();
    assert!(matches!(&error, RewriteError::Artifact(error) if error.is_late()), "{error}");
}

#[test]
fn tied_weights_have_one_value_and_every_name() {
    for name in ["tied.eval.pt", "tied.eval.pt2", "torch-2.8/tied.eval.pt2", "torch-2.11/tied.eval.pt2"] {
        let bytes = bytes_of(name);
        let module = module(&bytes);
        let tied = module.parameters().iter().find(|parameter| !parameter.aliases.is_empty());
        let tied = tied.unwrap_or_else(|| panic!("{name}: no weights are tied"));
        let mut all = values(&module);
        let value = all[&tied.name].clone();
        all.insert(tied.aliases[0].clone(), value.clone());
        with(&bytes, &all).unwrap();
        let mut by_alias = all.clone();
        by_alias.remove(&tied.name);
        with(&bytes, &by_alias).unwrap();
        let other = turned(&Values::from([(tied.name.clone(), value)])).remove(&tied.name).unwrap();
        all.insert(tied.aliases[0].clone(), other);
        let error = with(&bytes, &all).unwrap_err();
        assert_eq!(error, RewriteError::Shared { name: tied.aliases[0].clone() }, "{name}");
    }
}

/// A program over tensors that all lie in one storage of 12 floats, each a name, its kind, and how it lies there.
fn program(tensors: &[(&str, &str, Value)]) -> Arc<[u8]> {
    let meta = |view: &Value| {
        let number = |n: &Value| json!({"as_int": n});
        let numbers = |key: &str| view[key].as_array().unwrap().iter().map(number).collect::<Vec<_>>();
        json!({"dtype": 7, "sizes": numbers("sizes"), "strides": numbers("strides"), "requires_grad": true,
            "storage_offset": number(&view["offset"])})
    };
    let specs = tensors.iter().map(|(name, kind, _)| {
        let name_of = format!("{kind}_name");
        json!({*kind: {"arg": {"name": format!("in_{name}")}, name_of: name}})
    });
    let user = json!({"user_input": {"arg": {"as_tensor": {"name": "x"}}}});
    let x = json!({"sizes": [2], "strides": [1], "offset": 0});
    let model = json!({
        "schema_version": {"major": 8, "minor": 20},
        "graph_module": {
            "graph": {
                "nodes": [{"target": "torch.ops.aten.relu.default",
                    "inputs": [{"name": "self", "arg": {"as_tensor": {"name": "x"}}}],
                    "outputs": [{"as_tensor": {"name": "y"}}]}],
                "tensor_values": {"x": meta(&x)},
            },
            "signature": {
                "input_specs": specs.chain([user]).collect::<Vec<_>>(),
                "output_specs": [{"user_output": {"arg": {"as_tensor": {"name": "y"}}}}],
            },
        },
    });
    let payload = |view: &Value| json!({"path_name": "w", "use_pickle": false, "tensor_meta": meta(view)});
    let config: serde_json::Map<String, Value> =
        tensors.iter().map(|(name, _, view)| ((*name).to_owned(), payload(view))).collect();
    let floats: Vec<u8> = (0..12u8).flat_map(|n| f32::from(n).to_le_bytes()).collect();
    write(&[
        Entry::new("m/models/model.json", model.to_string()),
        Entry::new("m/data/weights/model_weights_config.json", json!({"config": config}).to_string()),
        Entry::new("m/data/weights/w", floats),
    ])
    .into()
}

fn floats(values: &[f32], shape: &[usize]) -> HostTensor {
    HostTensor::from_values(Shape::from(shape), values).unwrap()
}

#[test]
fn strides_and_offsets_are_kept() {
    let turned = json!({"sizes": [2, 3], "strides": [1, 2], "offset": 4});
    let bytes = program(&[
        ("a", "parameter", turned),
        ("b", "buffer", json!({"sizes": [3], "strides": [1], "offset": 1})),
    ]);
    let wanted = Values::from([
        ("a".to_owned(), floats(&[10., 20., 30., 40., 50., 60.], &[2, 3])),
        ("b".to_owned(), floats(&[7., 8., 9.], &[3])),
    ]);
    let after = with(&bytes, &wanted).unwrap();
    assert_eq!(values(&module(&after)), wanted);
    let storage = &files(&after)["data/weights/w"];
    let numbers: Vec<f32> =
        storage.as_chunks::<4>().0.iter().map(|&number| f32::from_le_bytes(number)).collect();
    assert_eq!(numbers, [0., 7., 8., 9., 10., 40., 20., 50., 30., 60., 10., 11.]);
}

#[test]
fn tensors_that_share_memory_must_agree() {
    let part = |offset: usize| json!({"sizes": [4], "strides": [1], "offset": offset});
    let bytes = program(&[("a", "parameter", part(0)), ("b", "parameter", part(2))]);
    let pair = |a: [f32; 4], b: [f32; 4]| {
        Values::from([("a".to_owned(), floats(&a, &[4])), ("b".to_owned(), floats(&b, &[4]))])
    };
    with(&bytes, &pair([1., 2., 3., 4.], [3., 4., 5., 6.])).unwrap();
    let error = with(&bytes, &pair([1., 2., 3., 4.], [9., 4., 5., 6.])).unwrap_err();
    assert_eq!(error, RewriteError::Shared { name: "a".to_owned() });

    // A constant is what the program was made with, and nobody trains it.
    let bytes = program(&[("a", "parameter", part(0)), ("c", "tensor_constant", part(2))]);
    let same = Values::from([("a".to_owned(), floats(&[9., 9., 2., 3.], &[4]))]);
    with(&bytes, &same).unwrap();
    let error = with(&bytes, &Values::from([("a".to_owned(), floats(&[0., 1., 2., 4.], &[4]))])).unwrap_err();
    assert!(matches!(&error, RewriteError::Shared { name } if name.contains('c')), "{error}");

    let wide = json!({"sizes": [3, 2], "strides": [0, 1], "offset": 0});
    let bytes = program(&[("a", "parameter", wide)]);
    with(&bytes, &Values::from([("a".to_owned(), floats(&[5., 6., 5., 6., 5., 6.], &[3, 2]))])).unwrap();
    let uneven = Values::from([("a".to_owned(), floats(&[5., 6., 5., 6., 5., 7.], &[3, 2]))]);
    assert_eq!(with(&bytes, &uneven).unwrap_err(), RewriteError::Shared { name: "a".to_owned() });

    let empty = json!({"sizes": [0], "strides": [1], "offset": 12});
    let bytes = program(&[("a", "parameter", empty)]);
    let nothing = HostTensor::new([0].into(), DType::F32, Vec::new()).unwrap();
    assert!(with(&bytes, &Values::from([("a".to_owned(), nothing)])).unwrap() == bytes);
}

#[test]
fn a_damaged_archive_is_refused_and_never_panics() {
    let bytes = bytes_of("conv_bn_relu.train.pt2");
    let wanted = turned(&values(&module(&bytes)));
    let mut refused = 0;
    for at in (0..bytes.len()).step_by(7) {
        let mut damaged = bytes.to_vec();
        damaged[at] ^= 0x11;
        match with(&damaged.into(), &wanted) {
            Ok(after) => assert_eq!(values(&module(&after)), wanted, "{at}"),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 500, "{refused}");
}
