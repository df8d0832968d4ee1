//! Programs written by hand: what the interpreter makes of them, and what it refuses.

use std::sync::Arc;

use crate::{
    artifact::{
        self, ArtifactError, Mode, Module, Problem, ReadLimits,
        zip::writer::{Entry, write},
    },
    fault::Fault as _,
    graph::{Binary, Graph, Limits, Op, Sink, Unary},
    tensor::DType,
};

/// The pickle of a module `__torch__.Net` with nothing but `training` in it.
const DATA: &[u8] = b"\x80\x02c__torch__\nNet\n)\x81}(X\x08\0\0\0training\x88ub.";

fn archive(code: &str) -> Arc<[u8]> {
    let files = [
        Entry::new("net/data.pkl", DATA),
        Entry::deflated("net/code/__torch__.py", code),
        Entry::new("net/constants.pkl", &b"\x80\x02)."[..]),
        Entry::new("net/byteorder", "little"),
    ];
    write(&files).into()
}

fn read(code: &str) -> Result<Module, ArtifactError> {
    artifact::read(archive(code), &ReadLimits { inflate_ratio: 100_000, ..ReadLimits::default() })
}

/// A module whose `forward(self, x)` has these statements.
fn module(body: &str) -> Result<Module, ArtifactError> {
    let body: String = body.lines().map(|line| format!("    {line}\n")).collect();
    read(&format!(
        "class Net(Module):\n  __parameters__ = []\n  __buffers__ = []\n  training : bool\n  def forward(self: __torch__.Net,\n    x: Tensor) -> Tensor:\n{body}"
    ))
}

fn lower(module: &Module, mode: Mode) -> Result<Graph, ArtifactError> {
    module.lower(&[([2, 3].into(), DType::F32)], mode, &Limits::default())
}

fn graph(body: &str) -> Graph {
    lower(&module(body).unwrap(), Mode::Train).unwrap_or_else(|error| panic!("{error}"))
}

fn refusal(body: &str) -> ArtifactError {
    module(body).and_then(|module| lower(&module, Mode::Train)).expect_err("it is refused")
}

fn ops(graph: &Graph) -> Vec<Op> {
    graph.nodes.iter().map(|node| node.op.clone()).collect()
}

#[test]
fn control_flow_vanishes() {
    let module = module(
        "y = x\nif self.training:\n  y = torch.relu(x)\nelse:\n  y = torch.tanh(x)\nfor i in range(torch.size(x, 0)):\n  y = torch.sigmoid(y)\nreturn y",
    )
    .unwrap();
    let train = lower(&module, Mode::Train).unwrap();
    let twice = [Op::Unary(Unary::Sigmoid), Op::Unary(Unary::Sigmoid)];
    assert_eq!(ops(&train), [&[Op::Unary(Unary::Relu)], &twice[..]].concat());
    let eval = lower(&module, Mode::Eval).unwrap();
    assert_eq!(ops(&eval), [&[Op::Unary(Unary::Tanh)], &twice[..]].concat());
    assert_eq!(module.types()[0].class, "Net");
    assert!(module.ops().contains("aten.tanh"));
}

#[test]
fn sizes_are_numbers() {
    let graph = graph(
        "b = ops.prim.NumToTensor(torch.size(x, 0))\n_0 = int(torch.mul(b, ops.prim.NumToTensor(torch.size(x, 1))))\nn, m, = torch.size(x)\nreturn torch.reshape(x, [torch.add(torch.floordiv(_0, -4), torch.add(n, m)), -1])",
    );
    assert_eq!(ops(&graph), [Op::Reshape([3, 2].into())], "6 // -4 is -2");
}

#[test]
fn arguments_bind_by_place_and_by_name() {
    let graph = graph("return torch.add(torch.gelu(x, approximate=\"tanh\"), x, alpha=2)");
    let expected =
        [Op::Unary(Unary::GeluTanh), Op::Unary(Unary::MulScalar { value: 2.0 }), Op::Binary(Binary::Add)];
    assert_eq!(ops(&graph), expected);
    let error = refusal("return torch.relu(x, 1)");
    assert!(error.to_string().contains("code/__torch__.py:7"), "{error}");
    assert!(error.to_string().contains("at most 1 arguments"), "{error}");
    assert!(refusal("return torch.relu(x, inplace=True)").to_string().contains("inplace"));
}

#[test]
fn overloads_are_told_apart_by_what_they_are_given() {
    let reduced = graph("y, i, = torch.max(x, 1)\nreturn y");
    assert!(matches!(ops(&reduced)[1], Op::MaxPool2d(_)), "the largest along dimension 1, not max(x, 1)");
    let compared = graph("return torch.max(x, torch.relu(x))");
    assert_eq!(ops(&compared)[1], Op::Binary(Binary::Maximum));
    let cast = graph("return torch.to(x, torch.device(\"cpu\"), 7)");
    assert_eq!(ops(&cast), [Op::Cast(DType::F64)]);
}

#[test]
fn writing_in_place_is_seen_through_every_name() {
    let graph = graph("y = torch.sigmoid(x)\nz = y\n_0 = torch.relu_(z)\nreturn y");
    assert_eq!(ops(&graph), [Op::Unary(Unary::Sigmoid), Op::Unary(Unary::Relu)]);
    assert_eq!(graph.sink(Sink::Output(0)), Some(graph.nodes[1].outputs[0]));
}

#[test]
fn a_write_through_a_view_reaches_the_whole_and_its_other_views() {
    let half = |op| vec![Op::Slice { dim: 0, start: op, len: 1, step: 1 }];
    let graph = graph(
        "y = torch.sigmoid(x)\nfirst = torch.slice(y, 0, 0, 1)\nall = torch.transpose(y, 0, 1)\n_0 = torch.relu_(first)\nreturn (y, all, first)",
    );
    let (whole, turned, first) = (Sink::Output(0), Sink::Output(1), Sink::Output(2));
    let made_by = |sink| {
        let value = graph.sink(sink).unwrap();
        graph.nodes.iter().find(|node| node.outputs[0] == value).unwrap()
    };
    assert_eq!(made_by(whole).op, Op::Cat { dim: 0 }, "the written row in front of the old second");
    assert_eq!(made_by(whole).inputs[0], graph.sink(first).unwrap());
    assert_eq!(made_by(first).op, Op::Unary(Unary::Relu));
    assert_eq!(made_by(turned).inputs[0], graph.sink(whole).unwrap(), "the other view is cut anew");
    assert!(ops(&graph).ends_with(&[half(1), vec![Op::Cat { dim: 0 }, Op::Permute(vec![1, 0])]].concat()));
}

#[test]
fn a_view_of_a_view_is_written_where_it_lies() {
    let graph = graph(
        "y = torch.zeros_like(x)\nz = torch.select(torch.permute(y, [1, 0]), 0, -1)\n_0 = torch.add_(z, 1)\nreturn y",
    );
    let back = [Op::Permute(vec![1, 0])];
    assert!(ops(&graph).ends_with(&back), "{:?}", ops(&graph));
}

#[test]
fn what_may_be_a_copy_is_not_read_after_a_write() {
    for (made, written, read) in [
        ("torch.reshape(y, [3, 2])", "z", "y"),
        ("torch.reshape(y, [3, 2])", "y", "z"),
        ("torch.contiguous(y)", "z", "y"),
        ("torch.flatten(torch.transpose(y, 0, 1))", "z", "y"),
        ("torch.expand(y, [4, 2, 3])", "y", "z"),
        ("torch.expand(y, [4, 2, 3])", "z", "y"),
        ("torch.unfold(y, 1, 2, 1)", "y", "z"),
        ("torch.einsum(\"ij->ji\", [y])", "z", "y"),
        ("(torch.meshgrid([torch.select(y, 0, 0), torch.select(x, 0, 0)]))[0]", "y", "z"),
        ("(torch.broadcast_tensors([y, torch.sigmoid(x)]))[0]", "z", "y"),
    ] {
        let body = format!("y = torch.sigmoid(x)\nz = {made}\n_0 = torch.relu_({written})\nreturn {read}");
        let error = refusal(&body);
        assert_eq!(error.code(), "kernel.rejected", "{body}");
        assert!(error.to_string().contains("written in place"), "{error}");
    }
    // `contiguous` may give the tensor itself, which then turns with it.
    let body = "y = torch.sigmoid(x)\nz = torch.contiguous(y)\n_0 = torch.t_(y)\nreturn z";
    assert!(refusal(body).to_string().contains("may or may not share"), "{body}");
    // Whoever reads what was written itself, or made a copy, is right.
    graph("y = torch.sigmoid(x)\nz = torch.reshape(y, [3, 2])\nreturn torch.relu_(z)");
    graph("y = torch.sigmoid(x)\nz = torch.clone(y)\n_0 = torch.relu_(z)\nreturn y");
}

#[test]
fn what_depends_on_data_is_refused() {
    for body in [
        "if bool(torch.sum(x)):\n  pass\nelse:\n  pass\nreturn x",
        "if torch.sum(x):\n  pass\nelse:\n  pass\nreturn x",
        "return torch.reshape(x, [int(torch.sum(x))])",
    ] {
        assert_eq!(refusal(body).code(), "kernel.rejected", "{body}");
    }
}

#[test]
fn unknown_operations_are_named_with_their_line() {
    let error = refusal("y = torch.relu(x)\nreturn torch.svd(y)");
    let ArtifactError::Operation { place, op, source } = &error else { panic!("{error}") };
    assert_eq!((place.as_str(), op.as_str()), ("code/__torch__.py:8", "aten.svd"));
    assert_eq!(*source, Problem::Unknown);
    assert_eq!(error.code(), "kernel.rejected");
    assert!(!artifact::is_known_op("aten.svd"));
    for path in ["ops.evil.run(x)", "os.system(\"true\")", "open(\"/etc/passwd\")", "torch.ops.load(x)"] {
        refusal(&format!("return {path}"));
    }
}

#[test]
fn the_programs_own_error_is_the_kernels() {
    let error = refusal(
        "ops.prim.RaiseException(torch.format(\"got {}\", torch.size(x)), \"builtins.ValueError\")\nreturn x",
    );
    assert_eq!(
        error,
        ArtifactError::Raised { place: "code/__torch__.py:7".into(), message: "got [2, 3]".into() }
    );
}

#[test]
fn endless_programs_run_out_of_fuel() {
    for body in [
        "while True:\n  pass\nreturn x",
        "for i in range(9223372036854775807):\n  pass\nreturn x",
        "l = [1]\nwhile True:\n  l = torch.add(l, l)\nreturn x",
        "l = [1]\nwhile True:\n  _0 = torch.append(l, l)\nreturn x",
        "l = [1]\nwhile True:\n  l = [l, l]\nreturn x",
        "return (self).forward(x, )",
    ] {
        let error = refusal(body);
        assert!(
            error.to_string().contains("more than") || error.to_string().contains("limit"),
            "{body}: {error}"
        );
    }
}

#[test]
fn the_clock_ends_a_program_before_its_fuel() {
    let mut module = module("for i in range(100000):\n  pass\nreturn x").unwrap();
    assert!(lower(&module, Mode::Eval).is_ok());
    module.limits.time_limit = std::time::Duration::ZERO;
    let error = lower(&module, Mode::Eval).unwrap_err();
    assert!(matches!(error, ArtifactError::Limit { what: "milliseconds of lowering", .. }), "{error}");
}

#[test]
fn depth_is_refused_and_never_overflows() {
    let n = 150_000;
    let nested = [
        format!("return {}x{}", "(".repeat(n), ")".repeat(n)),
        format!("return {}x{}", "[".repeat(n), "]".repeat(n)),
        format!("return {}x{}", "torch.relu(".repeat(n), ")".repeat(n)),
        format!("return x{}", ".a".repeat(n)),
        format!("return x{}", "[0]".repeat(n)),
        format!("return {}1", "-".repeat(n)),
        format!("return {}x", "not ".repeat(n)),
        format!("return {}x", "x if x else ".repeat(n)),
    ];
    for body in &nested {
        let error = module(body).expect_err("it is refused while it is parsed");
        assert!(matches!(error, ArtifactError::Limit { what: "levels of nesting", .. }), "{error}");
    }
    let blocks: String = (0..1000).map(|i| format!("{}if x:\n", " ".repeat(i))).collect();
    assert!(module(&format!("{blocks}{}pass", " ".repeat(1000))).is_err());
    let branches = "elif x:\n  pass\n".repeat(10_000);
    assert!(module(&format!("if x:\n  pass\n{branches}")).is_err());
}

#[test]
fn deep_calls_are_refused_on_a_small_stack() {
    let deep = "torch.add(".repeat(90) + "(self).forward(x, )" + &", 1)".repeat(90);
    let body = format!("return {deep}");
    // The daemon's threads have 2 MiB.
    let thread = std::thread::Builder::new().stack_size(2 << 20);
    let error = thread.spawn(move || refusal(&body)).unwrap().join().unwrap();
    assert!(error.to_string().contains("levels of calls"), "{error}");
}

#[test]
fn syntax_that_is_not_supported_names_file_and_line() {
    for body in [
        "import os",
        "with x:\n  pass",
        "try:\n  pass",
        "y = lambda: x",
        "y = x + x",
        "y[0] = x",
        "yield x",
        "return x\n   return x",
        "y = \"unterminated",
        "y = 99999999999999999999",
        "y = 1.2.3",
        "del x",
        "y: = 1",
        "f(",
    ] {
        let error = refusal(body);
        assert!(error.to_string().contains("code/__torch__.py:"), "{body}: {error}");
    }
    assert!(read("class Net(NamedTuple):\n  x : int\n").is_err());
    assert!(read("x = 1\n").is_err());
    assert!(read("").is_err(), "the class that data.pkl names is missing");
}

#[test]
fn collections_and_texts_are_bounded() {
    for body in [
        "d = {1: 2}\nwhile True:\n  _0 = torch._set_item(d, torch.len(d), 1)\nreturn x",
        "l = [1]\nwhile True:\n  l0 = torch.add_(l, l)\nreturn x",
        "l = [1]\nwhile True:\n  _0 = torch.extend(l, l)\nreturn x",
        "l = [1]\nwhile True:\n  _0 = torch.insert(l, 0, 1)\nreturn x",
        "s = \"aaaaaaaa\"\nwhile True:\n  s = torch.add(s, s)\nreturn x",
        "s = \"%s%s\"\nwhile True:\n  s = torch.percentFormat(s, (s, s))\nreturn x",
        "d = {1: 2}\nreturn torch.mul(x, d[3])",
        "l = [1, 2]\nreturn torch.mul(x, torch.len(torch.slice(l, None, None, 0)))",
        "return torch.mul(x, torch.len(torch.percentFormat(\"%d\", (1.5,))))",
        "y = torch.tensor([[1, 2], [3]])\nreturn x",
    ] {
        let code = refusal(body).code();
        assert!(matches!(code, "kernel.rejected" | "kernel.shape"), "{body}: {code}");
    }
}

#[test]
fn slices_go_both_ways() {
    for (slice, last) in
        [("None, None, -1", 0), ("3, 0, -2", 1), ("-2, None", 4), ("1, 9, 2", 3), ("9, None, -3", 1)]
    {
        let graph = graph(&format!(
            "l = torch.slice([0, 1, 2, 3, 4], {slice})\nreturn torch.mul(x, torch.add(l[-1], 2))"
        ));
        let value = f64::from(last + 2);
        assert_eq!(ops(&graph), [Op::Unary(Unary::MulScalar { value })], "{slice}");
    }
}
