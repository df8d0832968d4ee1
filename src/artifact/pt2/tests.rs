//! Exported programs written by hand: versions, shapes, and nodes that do not fit.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::{
    artifact::{
        self, ArtifactError, Mode, Module, ReadLimits,
        zip::writer::{Entry, write},
    },
    fault::Fault as _,
    graph::{Graph, Limits, Op, Sink, Unary},
    tensor::{DType, Shape},
};

fn meta(dtype: u64, sizes: &[Value]) -> Value {
    let ones: Vec<Value> = sizes.iter().map(|_| json!({"as_int": 1})).collect();
    json!({"dtype": dtype, "sizes": sizes, "requires_grad": true, "strides": ones, "storage_offset": {"as_int": 0}})
}

fn symbol(name: &str) -> Value {
    json!({"as_expr": {"expr_str": format!("Symbol('{name}', positive=True, integer=True)"), "hint": null}})
}

/// relu(x) of a batch of threes, with a parameter that nobody reads.
fn program() -> Value {
    json!({
        "schema_version": {"major": 8, "minor": 20},
        "range_constraints": {"s0": {"min_val": 1, "max_val": 4}},
        "graph_module": {
            "graph": {
                "nodes": [{
                    "target": "torch.ops.aten.relu.default",
                    "inputs": [{"name": "self", "arg": {"as_tensor": {"name": "x"}}, "kind": 1}],
                    "outputs": [{"as_tensor": {"name": "y"}}],
                    "metadata": {"nn_module_stack": "L__self__,,my.Net;L__self__act,act,torch.nn.modules.activation.ReLU"},
                }],
                "tensor_values": {"x": meta(7, &[symbol("s0"), json!({"as_int": 3})])},
            },
            "signature": {
                "input_specs": [
                    {"parameter": {"arg": {"name": "p_w"}, "parameter_name": "w"}},
                    {"user_input": {"arg": {"as_tensor": {"name": "x"}}}},
                ],
                "output_specs": [{"user_output": {"arg": {"as_tensor": {"name": "y"}}}}],
            },
        },
    })
}

fn read_with(program: &Value, weight: &[u8]) -> Result<Module, ArtifactError> {
    let config = json!({"config": {"w": {
        "path_name": "weight_0", "is_param": true, "use_pickle": false, "tensor_meta": meta(7, &[json!({"as_int": 2})]),
    }}});
    let bytes: Arc<[u8]> = write(&[
        Entry::new("m/models/model.json", program.to_string()),
        Entry::new("m/data/weights/weight_0", weight),
        Entry::new("m/data/weights/model_weights_config.json", config.to_string()),
        // What torch unpickles and we never open.
        Entry::new("m/data/sample_inputs/model.pt", &b"cos\nsystem\n"[..]),
    ])
    .into();
    artifact::read(bytes, &ReadLimits::default())
}

fn read(program: &Value) -> Result<Module, ArtifactError> {
    read_with(program, &[0; 8])
}

fn lower(program: &Value, shape: impl Into<Shape>) -> Result<Graph, ArtifactError> {
    read(program)?.lower(&[(shape.into(), DType::F32)], Mode::Eval, &Limits::default())
}

#[test]
fn a_program_is_read_and_lowered() {
    let module = read(&program()).unwrap();
    assert_eq!(module.parameters()[0].name, "w");
    assert!(module.parameters()[0].requires_grad);
    assert_eq!(module.types()[1].path, "act");
    assert_eq!(module.types()[1].class, "torch.nn.modules.activation.ReLU");
    assert_eq!(module.declared_inputs().unwrap()[0].sizes, [None, Some(3)]);
    assert_eq!(module.ops().iter().collect::<Vec<_>>(), ["aten.relu"]);
    let graph = lower(&program(), [4, 3]).unwrap();
    assert_eq!(graph.nodes[0].op, Op::Unary(Unary::Relu));
    assert_eq!(graph.sink(Sink::Output(0)), Some(graph.nodes[0].outputs[0]));
}

#[test]
fn shapes_that_were_not_exported_say_how_to_export() {
    let fixed = lower(&program(), [4, 5]).unwrap_err();
    assert_eq!(fixed.code(), "kernel.shape");
    assert!(
        fixed.to_string().contains("torch.export.export(module, args, dynamic_shapes=({1: torch.export.Dim"),
        "{fixed}"
    );
    let range = lower(&program(), [5, 3]).unwrap_err();
    assert!(range.to_string().contains("size 0 may be 1 to 4"), "{range}");
    assert!(lower(&program(), [4, 3, 1]).is_err());
    let two = read(&program()).unwrap().lower(&[], Mode::Eval, &Limits::default());
    assert_eq!(two.unwrap_err(), ArtifactError::InputCount { expected: 1, actual: 0 });
    let ints =
        read(&program()).unwrap().lower(&[([4, 3].into(), DType::I64)], Mode::Eval, &Limits::default());
    assert!(ints.unwrap_err().to_string().contains("float32"));
}

#[test]
fn derived_sizes_guards_and_assertions_are_held_to() {
    let sizes = "/graph_module/graph/tensor_values/x/sizes";
    let mut derived = program();
    *derived.pointer_mut(sizes).unwrap() = json!([
        symbol("s0"),
        {"as_expr": {"expr_str": "Mul(Integer(3), Symbol('s1', positive=True, integer=True))"}},
    ]);
    derived["range_constraints"]["s1"] = json!({"min_val": 1, "max_val": 2});
    lower(&derived, [2, 3]).unwrap();
    lower(&derived, [2, 6]).unwrap();
    assert!(
        lower(&derived, [2, 5])
            .unwrap_err()
            .to_string()
            .contains("size 1 must be Mul(Integer(3), Symbol('s1'))")
    );
    assert!(lower(&derived, [2, 9]).unwrap_err().to_string().contains("s1 in Mul"));
    *derived.pointer_mut(sizes).unwrap() =
        json!([symbol("s0"), {"as_expr": {"expr_str": "Add(Symbol('s0', integer=True), Integer(1))"}}]);
    lower(&derived, [2, 3]).unwrap();
    assert!(lower(&derived, [3, 3]).unwrap_err().to_string().contains("must be 4"));

    let mut guarded = program();
    guarded["guards_code"] = json!(["L['x'].size()[0] % 2 == 0"]);
    lower(&guarded, [2, 3]).unwrap();
    let error = lower(&guarded, [3, 3]).unwrap_err();
    assert_eq!(error.code(), "kernel.shape");
    assert!(error.to_string().contains("exported for sizes where"), "{error}");
    guarded["guards_code"] = json!(["L['x'].storage().secret == 0"]);
    assert!(lower(&guarded, [2, 3]).unwrap_err().to_string().contains("is not understood"));

    let mut asserted = program();
    let size = json!({"target": "torch.ops.aten.sym_size.int", "outputs": [{"as_sym_int": {"as_name": "n"}}],
        "inputs": [{"name": "self", "arg": {"as_tensor": {"name": "x"}}}, {"name": "dim", "arg": {"as_int": 0}}]});
    let even = json!({"target": "_operator.eq", "outputs": [{"as_sym_bool": {"as_name": "e"}}],
        "inputs": [{"name": "a", "arg": {"as_sym_int": {"as_name": "n"}}}, {"name": "b", "arg": {"as_int": 2}}]});
    let check = json!({"target": "torch.ops.aten._assert_scalar.default", "outputs": [],
        "inputs": [{"name": "self", "arg": {"as_sym_bool": {"as_name": "e"}}},
                   {"name": "assert_msg", "arg": {"as_string": "Eq(s0, 2) on node 'e'"}}]});
    let nodes = asserted.pointer_mut("/graph_module/graph/nodes").unwrap().as_array_mut().unwrap();
    nodes.splice(0..0, [size, even, check]);
    lower(&asserted, [2, 3]).unwrap();
    assert!(lower(&asserted, [3, 3]).unwrap_err().to_string().contains("Eq(s0, 2)"));
}

#[test]
fn another_schema_is_refused_by_its_number() {
    for major in [7, 9] {
        let mut program = program();
        program["schema_version"]["major"] = json!(major);
        program["graph_module"] = json!("something else entirely");
        let error = read(&program).unwrap_err();
        assert_eq!(error.code(), "kernel.rejected");
        assert!(error.to_string().contains(&format!("version {major}.20")), "{error}");
    }
}

#[test]
fn weights_must_lie_within_their_files() {
    assert!(read_with(&program(), &[0; 7]).unwrap_err().to_string().contains("past the end"));
    assert!(read_with(&program(), &[]).is_err());
}

#[test]
fn nodes_that_do_not_fit_are_named() {
    let changed = |pointer: &str, value: Value| {
        let mut program = program();
        *program.pointer_mut(pointer).unwrap() = value;
        lower(&program, [4, 3]).unwrap_err()
    };
    let node = "/graph_module/graph/nodes/0";
    let unknown = changed(&format!("{node}/target"), json!("torch.ops.aten.svd.default"));
    assert!(unknown.to_string().contains("node 0 y: torch.ops.aten.svd.default"), "{unknown}");
    assert_eq!(unknown.code(), "kernel.rejected");
    assert!(
        changed(&format!("{node}/target"), json!("torch.ops.evil.relu.default")).code() == "kernel.rejected"
    );
    assert!(changed(&format!("{node}/target"), json!("os.system")).code() == "kernel.rejected");
    let missing = changed(&format!("{node}/inputs/0/arg"), json!({"as_tensor": {"name": "z"}}));
    assert!(missing.to_string().contains("\"z\" is read before it is made"), "{missing}");
    changed(&format!("{node}/inputs"), json!([]));
    changed(&format!("{node}/inputs/0/name"), json!("other"));
    changed(&format!("{node}/inputs/0/arg"), json!({"as_tensors": [{"name": "x"}]}));
    changed("/graph_module/signature/output_specs/0", json!({"gradient_to_parameter": {}}));
    changed("/graph_module/signature/input_specs/0", json!({"token": {}}));
    changed("/graph_module/graph/tensor_values", json!({}));
}

#[test]
fn deep_json_is_refused() {
    let mut deep = json!(null);
    for _ in 0..60 {
        deep = json!({"a": [deep]});
    }
    let mut program = program();
    program["graph_module"]["graph"]["nodes"][0]["metadata"] = deep;
    assert_eq!(read(&program).unwrap_err().code(), "kernel.deserialize");
    let text = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
    let bytes = write(&[Entry::new("m/models/model.json", text)]);
    let error = artifact::read(bytes.into(), &ReadLimits::default()).unwrap_err();
    assert_eq!(error.code(), "kernel.deserialize");
}
