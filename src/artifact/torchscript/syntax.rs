//! The syntax tree of the subset of Python that TorchScript writes.

use std::collections::{HashMap, HashSet};

/// An expression. How deep they nest is bounded by the parser.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Expression {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(String),
    Name(String),
    Attribute(Box<Expression>, String),
    Subscript(Box<Expression>, Box<Expression>),
    Call(Box<Call>),
    List(Vec<Expression>),
    Tuple(Vec<Expression>),
    Dict(Vec<(Expression, Expression)>),
    /// `-x`
    Negative(Box<Expression>),
    /// `not x`
    Not(Box<Expression>),
    /// `a if condition else b`: condition, a, b.
    Choice(Box<[Expression; 3]>),
}

/// A call and the line it stands on.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Call {
    pub(super) function: Expression,
    pub(super) arguments: Vec<(Option<String>, Expression)>,
    pub(super) line: u32,
}

/// A statement and the line it starts on.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Statement {
    pub(super) line: u32,
    pub(super) kind: StatementKind,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum StatementKind {
    /// Targets (several where a tuple is unpacked) and the value.
    Assign {
        targets: Vec<Expression>,
        unpack: bool,
        value: Expression,
    },
    Expression(Expression),
    Return(Expression),
    If {
        condition: Expression,
        then: Vec<Statement>,
        otherwise: Vec<Statement>,
    },
    For {
        target: String,
        iterable: Expression,
        body: Vec<Statement>,
    },
    While {
        condition: Expression,
        body: Vec<Statement>,
    },
    Pass,
}

/// A function or method.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Function {
    pub(super) name: String,
    pub(super) line: u32,
    /// Names and defaults, `self` included.
    pub(super) parameters: Vec<(String, Option<Expression>)>,
    pub(super) body: Vec<Statement>,
}

/// A class: a module's attributes and methods.
#[derive(Clone, Debug, PartialEq, Default)]
pub(super) struct Class {
    pub(super) name: String,
    /// `__parameters__`
    pub(super) parameters: HashSet<String>,
    /// `__buffers__`
    pub(super) buffers: HashSet<String>,
    /// Declared attributes in their order.
    pub(super) attributes: Vec<String>,
    /// Attributes that are constants of the class.
    pub(super) constants: HashMap<String, Expression>,
    pub(super) methods: Vec<Function>,
    /// Whether it is a tuple whose fields have names.
    pub(super) named_tuple: bool,
}

/// One source file.
#[derive(Clone, Debug, PartialEq, Default)]
pub(super) struct File {
    pub(super) classes: Vec<Class>,
    pub(super) functions: Vec<Function>,
}
