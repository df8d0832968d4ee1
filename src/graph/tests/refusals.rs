//! What inference refuses: hostile attributes end in an error, never in a panic or an overflow.

use proptest::prelude::*;

use crate::{
    graph::{
        Binary, Builder, Conv2d, GraphError, Limits, Op, Pool2d, Reduction, Sink, Source, ValueInfo, Wants,
        differentiate_within, infer,
    },
    tensor::{DType, Shape},
};

fn refuses(op: Op, shapes: &[&[usize]]) -> String {
    let infos: Vec<ValueInfo> =
        shapes.iter().map(|&s| ValueInfo { shape: s.into(), dtype: DType::F32 }).collect();
    infer(&op, &infos.iter().collect::<Vec<_>>()).expect_err("must be refused").to_string()
}

#[test]
fn errors_name_the_operation_its_operands_and_the_reason() {
    let matmul = Op::MatMul { transpose_a: false, transpose_b: false };
    let text = refuses(matmul, &[&[2, 3], &[4, 5]]);
    assert_eq!(
        text,
        "matmul does not take operands (float32 [2, 3], float32 [4, 5]): the inner sizes differ: 3 and 4"
    );
    let text = refuses(Op::Binary(Binary::Add), &[&[2], &[3]]);
    assert_eq!(text, "add: shapes [2] and [3] do not broadcast: dimension 1 from the end differs");
    let text = refuses(Op::BatchNorm { eps: 1e-5 }, &[&[1, 4], &[4], &[4]]);
    assert!(text.contains("more than one value per channel"), "{text}");
    assert!(refuses(Op::Where, &[&[1]]).contains("it takes 3 operands, not 1"));
}

#[test]
fn attention_says_what_does_not_fit() {
    let attention = Op::Attention { causal: false, scale: 1.0 };
    let refused = |shapes: &[&[usize]], reason: &str| {
        let text = refuses(attention.clone(), shapes);
        assert!(
            text.starts_with("attention does not take operands (float32 ") && text.ends_with(reason),
            "{text}"
        );
    };
    refused(&[&[4], &[3, 4], &[3, 4]], "it takes matrices, at least 2 dimensions");
    refused(&[&[2, 3, 4], &[3, 4], &[3, 4]], "operand 2 must have 3 dimensions, it has 2");
    refused(&[&[2, 3, 4], &[2, 3, 4], &[1, 3, 4]], "the batch dimensions must be equal: expand first");
    refused(&[&[3, 4], &[3, 5], &[3, 5]], "queries of width 4 do not meet keys of width 5");
    refused(&[&[3, 4], &[3, 4], &[2, 4]], "3 keys do not meet 2 values");
    refused(&[&[3, 4], &[0, 4], &[0, 4]], "it takes at least one query and one key");
    refused(&[&[3, 257], &[3, 257], &[3, 4]], "a head of 257 and 4 is too wide or has no width: 1 to 256");
    let grad = Op::AttentionGrad { causal: false, scale: 1.0 };
    let text = refuses(grad, &[&[3, 4], &[5, 4], &[5, 2], &[3, 2], &[4], &[3, 2]]);
    assert!(text.ends_with("operand 5 must be of shape [3], it is [4]"), "{text}");
    let of = |dtype| ValueInfo { shape: [3, 4].into(), dtype };
    let (half, single) = (of(DType::F16), of(DType::F32));
    let error = infer(&attention, &[&half, &half, &single]).unwrap_err().to_string();
    assert!(error.ends_with("the operands must be of one type"), "{error}");
    let results = infer(&attention, &[&half, &half, &half]).unwrap();
    assert_eq!((results[0].dtype, results[1].dtype), (DType::F16, DType::F32));
}

#[test]
fn limits_bound_nodes_and_elements() {
    let limits =
        Limits { max_nodes: 1, max_value_elements: 100, max_total_elements: 150, ..Limits::default() };
    let mut builder = Builder::with_limits(limits);
    let full = |n: usize| Op::Full { shape: [n].into(), dtype: DType::F32, value: 0.0 };
    let limited = |e: GraphError| matches!(e, GraphError::Limit { .. });
    assert!(limited(builder.push(full(101), &[]).unwrap_err()));
    builder.push(full(90), &[]).unwrap();
    assert!(limited(builder.push(full(1), &[]).unwrap_err()));
    assert!(limited(builder.source(Source::Input(0), [90].into(), DType::F32).unwrap_err()));
}

#[test]
fn the_gradient_is_bounded_too_and_both_look_at_the_clock() {
    let chain = |limits: Limits, count: usize| {
        let mut builder = Builder::with_limits(limits);
        let mut value = builder.source(Source::Input(0), [3].into(), DType::F32)?;
        for _ in 0..count {
            value = builder.apply(Op::Binary(Binary::Pow), &[value, value])?;
        }
        builder.sink(Sink::Output(0), value);
        let wants = Wants { inputs: &[true], parameters: &[] };
        differentiate_within(&builder.finish(), &wants, &limits)
    };
    let few = Limits { max_nodes: 20, ..Limits::default() };
    assert!(chain(few, 4).is_ok());
    assert_eq!(chain(few, 20).unwrap_err(), GraphError::Limit { what: "nodes", limit: 80 });
    let passed = Limits::default().until(std::time::Instant::now());
    assert_eq!(chain(passed, 1).unwrap_err(), GraphError::Time { nodes: 0 });
    assert_eq!(passed.until(std::time::Instant::now()), passed, "the earlier deadline stays");
}

#[test]
fn an_empty_tensor_may_not_hide_a_huge_dimension() {
    let full = |dims: &[usize]| Op::Full { shape: dims.into(), dtype: DType::F32, value: 0.0 };
    let mut builder = Builder::new();
    assert!(builder.push(full(&[1 << 40, 1, 0]), &[]).is_err());
    assert!(builder.push(full(&[usize::MAX, 0]), &[]).is_err());
    assert!(builder.push(full(&[64, 0, 3]), &[]).is_ok());
}

fn wild() -> impl Strategy<Value = usize> + Clone {
    prop_oneof![0usize..5, Just(usize::MAX), Just(usize::MAX / 2), Just(1 << 40)]
}

fn pair() -> impl Strategy<Value = [usize; 2]> + Clone {
    [wild(), wild()]
}

fn any_op() -> impl Strategy<Value = Op> {
    let conv = (pair(), pair(), pair(), wild()).prop_map(|(stride, padding, dilation, groups)| Conv2d {
        stride,
        padding,
        dilation,
        groups,
    });
    let pool = (pair(), pair(), pair(), pair(), any::<bool>()).prop_map(
        |(kernel, stride, padding, dilation, ceil)| Pool2d { kernel, stride, padding, dilation, ceil },
    );
    let dims = prop::collection::vec(wild(), 0..4);
    prop_oneof![
        conv.clone().prop_map(Op::Conv2d),
        (conv.clone(), pair()).prop_map(|(conv, input_size)| Op::Conv2dGradInput { conv, input_size }),
        (conv, pair()).prop_map(|(conv, kernel_size)| Op::Conv2dGradWeight { conv, kernel_size }),
        pool.clone().prop_map(Op::MaxPool2d),
        (pool, any::<bool>(), prop::option::of(wild())).prop_map(|(pool, count_include_pad, divisor)| {
            Op::AvgPool2d { pool, count_include_pad, divisor }
        }),
        pair().prop_map(|output_size| Op::AdaptiveAvgPool2d { output_size }),
        pair().prop_map(|input_size| Op::MaxPool2dGrad { input_size }),
        dims.clone().prop_map(|d| Op::Reshape(d.into())),
        dims.clone().prop_map(Op::Permute),
        dims.clone().prop_map(|d| Op::Expand(d.into())),
        dims.prop_map(|dims| Op::Reduce { reduction: Reduction::Amax, dims }),
        (wild(), wild(), wild(), wild()).prop_map(|(dim, start, len, step)| Op::Slice {
            dim,
            start,
            len,
            step
        }),
        (wild(), wild(), wild(), wild()).prop_map(|(dim, size, start, step)| Op::Unslice {
            dim,
            size,
            start,
            step
        }),
        wild().prop_map(|dim| Op::Cat { dim }),
        wild().prop_map(|dim| Op::Softmax { dim }),
        wild().prop_map(|dims| Op::LayerNorm { dims, eps: 1e-5 }),
        wild().prop_map(|groups| Op::GroupNorm { groups, eps: 1e-5 }),
        any::<bool>().prop_map(|causal| Op::Attention { causal, scale: 1.0 }),
        any::<bool>().prop_map(|causal| Op::AttentionGrad { causal, scale: 1.0 }),
        Just(Op::BatchNorm { eps: 1e-5 }),
        Just(Op::BatchNormGrad),
        Just(Op::Binary(Binary::Mul)),
        Just(Op::MatMul { transpose_a: true, transpose_b: false }),
    ]
}

proptest! {
    #[test]
    fn no_attributes_make_inference_panic(
        op in any_op(),
        shapes in prop::collection::vec(prop::collection::vec(0usize..6, 0..5), 0..7),
    ) {
        let infos: Vec<ValueInfo> =
            shapes.into_iter().map(|s| ValueInfo { shape: Shape::from(s), dtype: DType::F32 }).collect();
        let _ = infer(&op, &infos.iter().collect::<Vec<_>>());
    }
}
