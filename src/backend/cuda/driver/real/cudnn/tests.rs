//! What the real library does without a GPU: it makes descriptors and says what they hold. Suggestions, workspaces and
//! convolutions need a handle, and a handle needs a GPU.

use std::fs;

use super::*;
use crate::backend::cuda::{
    driver::Direction,
    libraries::{Roots, find},
};

/// The file of cuDNN as the daemon would find it, in the environment that the tests are run in.
fn file() -> std::path::PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let roots = Roots::of_environment(root.join(".venv"));
    let found = find("cudnn", &roots);
    let first = found.first().unwrap_or_else(|| {
        panic!("no cuDNN among {roots:?}: run scripts/venv, which installs PyTorch with it")
    });
    first.path.clone()
}

fn functions() -> Arc<Functions> {
    Arc::new(Functions::load(&file()).unwrap())
}

/// A convolution whose every number is another.
fn spec(direction: Direction, dtype: DType, tf32: bool) -> ConvolutionSpec {
    ConvolutionSpec {
        direction,
        dtype,
        tf32,
        x: [5, 6, 40, 41],
        w: [8, 3, 4, 7],
        y: [5, 8, 15, 24],
        stride: [3, 2],
        padding: [10, 15],
        dilation: [5, 4],
        groups: 2,
    }
}

const DIRECTIONS: [Direction; 3] = [Direction::Forward, Direction::BackwardData, Direction::BackwardFilter];

/// The library's functions that say what a descriptor holds, which nothing but this test asks.
struct Readers(libloading::Library);

impl Readers {
    /// What a function of so many out-parameters says of a descriptor.
    fn read<const N: usize>(&self, name: &str, of: functions::Descriptor) -> [c_int; N] {
        let mut all = [-1; N];
        let at = all.each_mut().map(|one| &raw mut *one);
        type One = unsafe extern "C" fn(functions::Descriptor, *mut c_int) -> c_int;
        type Six = unsafe extern "C" fn(
            functions::Descriptor,
            *mut c_int,
            *mut c_int,
            *mut c_int,
            *mut c_int,
            *mut c_int,
            *mut c_int,
        ) -> c_int;
        type Eight = unsafe extern "C" fn(
            functions::Descriptor,
            *mut c_int,
            *mut c_int,
            *mut c_int,
            *mut c_int,
            *mut c_int,
            *mut c_int,
            *mut c_int,
            *mut c_int,
        ) -> c_int;
        type Nine = unsafe extern "C" fn(
            functions::Descriptor,
            *mut c_int,
            *mut c_int,
            *mut c_int,
            *mut c_int,
            *mut c_int,
            *mut c_int,
            *mut c_int,
            *mut c_int,
            *mut c_int,
        ) -> c_int;
        // SAFETY: the types are those of the functions in the library's headers, by how many numbers they write; the
        // descriptor is open and of the kind that the function is for.
        let status = unsafe {
            match at[..] {
                [a] => self.0.get::<One>(name.as_bytes()).unwrap()(of, a),
                [a, b, c, d, e, f] => self.0.get::<Six>(name.as_bytes()).unwrap()(of, a, b, c, d, e, f),
                [a, b, c, d, e, f, g, h] => {
                    self.0.get::<Eight>(name.as_bytes()).unwrap()(of, a, b, c, d, e, f, g, h)
                }
                [a, b, c, d, e, f, g, h, i] => {
                    self.0.get::<Nine>(name.as_bytes()).unwrap()(of, a, b, c, d, e, f, g, h, i)
                }
                _ => panic!("{name} is not of {N} numbers"),
            }
        };
        assert_eq!(status, 0, "{name}");
        all
    }
}

#[test]
fn the_library_holds_what_it_was_told_of_every_direction_and_type() {
    let functions = functions();
    // SAFETY: it takes nothing.
    let version = unsafe { (functions.cudnnGetVersion)() };
    assert!(version >= OLDEST, "{version}");
    // SAFETY: the library is loaded already, and the loader gives the same one again.
    let readers = Readers(unsafe { libloading::Library::new(file()) }.unwrap());
    // By the headers: float, double, half, bfloat16; fused multiply and add alone, default, tensor cores.
    let types = [
        (DType::F32, false, 0, 0, 3),
        (DType::F32, true, 0, 0, 0),
        (DType::F64, false, 1, 1, 0),
        (DType::F16, false, 2, 0, 1),
        (DType::BF16, false, 9, 0, 1),
    ];
    for direction in DIRECTIONS {
        for (dtype, tf32, number, compute, math) in types {
            let spec = spec(direction, dtype, tf32);
            let description = Description::new(&functions, &spec).unwrap();
            let of_filter = match direction {
                Direction::Forward => 1,
                Direction::BackwardData => 0,
                Direction::BackwardFilter => 2,
            };
            for (nth, (tensor, shape)) in description.tensors().into_iter().zip(spec.sizes()).enumerate() {
                let [n, c, h, w] = shape.map(|size| size as c_int);
                if nth == of_filter {
                    let held = readers.read::<6>("cudnnGetFilter4dDescriptor", tensor);
                    assert_eq!(held, [number, 0, n, c, h, w]);
                } else {
                    let held = readers.read::<9>("cudnnGetTensor4dDescriptor", tensor);
                    assert_eq!(held, [number, n, c, h, w, c * h * w, h * w, w, 1]);
                }
            }
            let it = description.convolution();
            let held = readers.read::<8>("cudnnGetConvolution2dDescriptor", it);
            assert_eq!(held, [10, 15, 3, 2, 5, 4, 1, compute]);
            assert_eq!(readers.read::<1>("cudnnGetConvolutionGroupCount", it), [2]);
            assert_eq!(readers.read::<1>("cudnnGetConvolutionMathType", it), [math]);
        }
    }
}

#[test]
fn what_cannot_be_described_says_why() {
    let functions = functions();
    let error = |spec: &ConvolutionSpec| Description::new(&functions, spec).unwrap_err().to_string();
    let good = spec(Direction::Forward, DType::F32, false);
    let whole = error(&ConvolutionSpec { dtype: DType::I64, ..good });
    assert!(whole.ends_with("there are no convolutions of int64"), "{whole}");
    let large = error(&ConvolutionSpec { x: [1 << 31, 6, 40, 41], ..good });
    assert!(large.ends_with("2147483648 is more than the library counts"), "{large}");
    let other = error(&ConvolutionSpec { y: [5, 8, 16, 24], ..good });
    assert!(other.contains("it gives [5, 8, 15, 24] for "), "{other}");
    let grouped = error(&ConvolutionSpec { groups: 3, ..good });
    assert!(
        grouped.starts_with("cudnnGetConvolution2dForwardOutputDim failed: CUDNN_STATUS_BAD_PARAM"),
        "{grouped}"
    );
}

#[test]
fn errors_have_the_librarys_words() {
    let error = functions().check("cudnnConvolutionForward", 3000).unwrap_err().to_string();
    assert_eq!(error, "cudnnConvolutionForward failed: CUDNN_STATUS_NOT_SUPPORTED (3000)");
    let error = Cudnn::load(Path::new("/nowhere/libcudnn.so.9")).unwrap_err().to_string();
    assert!(error.starts_with("loading cuDNN failed: /nowhere/libcudnn.so.9: "), "{error}");
}

#[test]
fn one_without_its_parts_is_refused_and_ends_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let alone = folder.path().join(file().file_name().unwrap());
    fs::copy(file(), &alone).unwrap();
    let error = Cudnn::load(&alone).unwrap_err().to_string();
    assert!(error.starts_with("loading cuDNN failed: ") && error.contains("/libcudnn_graph.so."), "{error}");
}

#[test]
fn algorithms_that_give_other_bits_or_round_more_are_passed_by() {
    let good = Suggestion { determinism: DETERMINISTIC, math: 3, ..Suggestion::default() };
    let of = |dtype, tf32| spec(Direction::Forward, dtype, tf32);
    let full = of(DType::F32, false);
    assert!(is_good(&good, &full));
    for bad in [
        Suggestion { determinism: 0, ..good },
        Suggestion { state: 3000, ..good },
        Suggestion { math: 0, ..good },
        Suggestion { math: 1, ..good },
    ] {
        assert!(!is_good(&bad, &full), "{bad:?}");
    }
    for spec in [of(DType::F32, true), of(DType::F64, false), of(DType::F16, false), of(DType::BF16, false)] {
        let goods = [0, 1, 2, 3].map(|math| is_good(&Suggestion { math, ..good }, &spec));
        assert_eq!(goods, [true, true, false, true], "{spec:?}");
    }
}

#[test]
fn workspaces_grow_with_tensors() {
    let small = spec(Direction::Forward, DType::F32, false);
    assert_eq!(most_workspace_bytes(&small), 8 << 20);
    let large = ConvolutionSpec { x: [64, 64, 56, 56], w: [64, 64, 3, 3], y: [64, 64, 56, 56], ..small };
    let elements = 2 * 64 * 64 * 56 * 56 + 64 * 64 * 9;
    assert_eq!(most_workspace_bytes(&large), 2 * 4 * elements);
    let beyond = ConvolutionSpec { x: [u64::MAX; 4], ..small };
    assert_eq!(most_workspace_bytes(&beyond), usize::MAX);
}

#[test]
fn a_version_is_written_as_people_do() {
    assert_eq!(
        (words(8_907), words(92_600), words(8_000)),
        ("8.9.7".into(), "9.26.0".into(), "8.0.0".into())
    );
}
