//! Pickles that torch writes, and those that it would never write.

use super::{Document, Item, read};
use crate::artifact::{ArtifactError, ReadLimits};

fn parse(body: &[u8]) -> Result<Document, ArtifactError> {
    let bytes = [b"\x80\x02", body, b"."].concat();
    read("data.pkl", &bytes, &ReadLimits::default())
}

#[test]
fn plain_values_are_read() {
    let document =
        parse(b"(K\x05J\xff\xff\xff\xffG\x3f\xe0\0\0\0\0\0\0X\x02\0\0\0hiN\x88\x89]q\x00(K\x01K\x02eh\x00t")
            .unwrap();
    let items = document.elements(document.root()).unwrap();
    assert_eq!(document.int(items[0]), Some(5));
    assert_eq!(document.int(items[1]), Some(-1));
    assert_eq!(*document.get(items[2]), Item::Float(0.5));
    assert_eq!(document.text(items[3]), Some("hi"));
    assert_eq!(*document.get(items[4]), Item::None);
    assert_eq!(document.sizes(items[7]), Some(vec![1, 2]));
    assert_eq!(items[7], items[8], "what is remembered is the same value again");
    let long = parse(b"\x8a\x03\x00\x00\x80").unwrap();
    assert_eq!(long.int(long.root()), Some(-(1 << 23)));
}

#[test]
fn calls_are_recorded_and_not_made() {
    let document = parse(b"ctorch._utils\n_rebuild_tensor_v2\n(K\x01tR").unwrap();
    let Item::Call { function, .. } = *document.get(document.root()) else { panic!("it is a call") };
    assert_eq!(document.global(function), Some(("torch._utils", "_rebuild_tensor_v2")));
}

#[test]
fn names_off_the_list_are_refused() {
    for name in [
        &b"cos\nsystem\n"[..],
        b"cbuiltins\neval\n",
        b"cposix\nsystem\n",
        b"ctorch\nload\n",
        b"ctorch._utils\n_rebuild_tensor_v3\n",
        b"c__torch__x\nNet\n",
        b"c__builtin__\nexec\n",
    ] {
        let error = parse(&[name, b"(tR"].concat()).unwrap_err();
        assert!(matches!(error, ArtifactError::Rejected { .. }), "{error}");
        assert_eq!(crate::fault::Fault::code(&error), "kernel.rejected");
    }
    assert!(parse(b"c__torch__.torch.nn\nConv2d\n").is_ok());
}

#[test]
fn depth_and_self_reference_cost_nothing() {
    let mut deep = vec![b']'; 1];
    deep.extend(b"\x85".repeat(200_000));
    assert!(parse(&deep).is_ok(), "200,000 tuples inside each other are read and dropped");
    // A list that holds itself.
    let document = parse(b"]q\x00h\x00a").unwrap();
    assert_eq!(document.elements(document.root()), Some(&[document.root()][..]));
}

#[test]
fn every_count_is_bounded() {
    let limits =
        ReadLimits { pickle_steps: 1000, pickle_stack: 100, pickle_memo: 50, ..ReadLimits::default() };
    let refused = |body: Vec<u8>| {
        let error = read("data.pkl", &[b"\x80\x02", &body[..], b"."].concat(), &limits).unwrap_err();
        assert!(matches!(error, ArtifactError::Limit { .. }), "{error}");
    };
    refused(b"N0".repeat(1000));
    refused(b"N".repeat(200));
    refused(b"(".repeat(200));
    refused((0..100u8).flat_map(|key| [b'N', b'q', key, b'0']).collect());
}

#[test]
fn the_deadline_ends_it() {
    let limits = ReadLimits::default().until(std::time::Instant::now());
    let error = read("data.pkl", b"\x80\x02N.", &limits).unwrap_err();
    assert!(matches!(error, ArtifactError::Limit { what: "milliseconds of reading", .. }), "{error}");
}

#[test]
fn what_torch_does_not_write_is_refused() {
    let bodies: [&[u8]; 16] = [
        b"",
        b"NN",
        b"t",
        b"e",
        b"h\x07",
        b"X\xff\xff\xff\xff",
        b"X\x01\0\0\0\xff",
        b"N)R",
        b"NNb",
        b"(N0N",
        b"\x81",
        b"NKxs",
        b"}(Nu",
        b"\x8a\x09\0\0\0\0\0\0\0\0\0",
        b"i__main__\nx\n",
        b"\x95\0\0\0\0\0\0\0\0N",
    ];
    for body in bodies {
        assert!(parse(body).is_err(), "{body:?}");
    }
    assert!(read("data.pkl", b"\x80\x04N.", &ReadLimits::default()).is_err());
    assert!(read("data.pkl", b"", &ReadLimits::default()).is_err());
    assert!(read("data.pkl", b"\x80\x02N.N", &ReadLimits::default()).is_err());
}
