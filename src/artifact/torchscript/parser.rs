//! From tokens to a syntax tree, by recursive descent whose depth is bounded.

use super::{
    lexer::{Token, tokens},
    syntax::{Call, Class, Expression, File, Function, Statement, StatementKind},
};
use crate::artifact::ArtifactError;

/// Parses one source file.
///
/// # Errors
/// [`ArtifactError`] naming file and line.
pub(super) fn parse(file: &str, text: &str, nesting: usize) -> Result<File, ArtifactError> {
    let mut parser = Parser { file, tokens: tokens(file, text)?, at: 0, nesting };
    let mut out = File::default();
    loop {
        match parser.peek() {
            Token::End => return Ok(out),
            Token::Name(name) if name == "class" => {
                let class = parser.class()?;
                out.classes.push(class);
            }
            Token::Name(name) if name == "def" => {
                let function = parser.function()?;
                out.functions.push(function);
            }
            _ => return parser.unsupported("a statement outside of classes and functions"),
        }
    }
}

struct Parser<'t> {
    file: &'t str,
    tokens: Vec<(Token, u32)>,
    at: usize,
    nesting: usize,
}

/// An argument of a call, by name or by place.
type Argument = (Option<String>, Expression);

/// An expression and how high its tree is.
type Sized = (Expression, usize);

impl Parser<'_> {
    fn peek(&self) -> &Token {
        &self.tokens[self.at.min(self.tokens.len() - 1)].0
    }

    fn line(&self) -> u32 {
        self.tokens[self.at.min(self.tokens.len() - 1)].1
    }

    fn place(&self) -> String {
        format!("{}:{}", self.file, self.line())
    }

    fn advance(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    fn unsupported<T>(&self, what: &str) -> Result<T, ArtifactError> {
        Err(ArtifactError::rejected(
            self.place(),
            what,
            "TorchScript kernels may use modules, functions and plain control flow",
        ))
    }

    fn expected<T>(&self, what: &str) -> Result<T, ArtifactError> {
        Err(ArtifactError::malformed(self.place(), format!("{what} is expected, not {:?}", self.peek())))
    }

    fn is_sign(&self, sign: &str) -> bool {
        matches!(self.peek(), Token::Sign(found) if *found == sign)
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(self.peek(), Token::Name(found) if found == word)
    }

    fn take_sign(&mut self, sign: &str) -> bool {
        let found = self.is_sign(sign);
        self.at += usize::from(found);
        found
    }

    fn take_word(&mut self, word: &str) -> bool {
        let found = self.is_word(word);
        self.at += usize::from(found);
        found
    }

    fn sign(&mut self, sign: &str) -> Result<(), ArtifactError> {
        if self.take_sign(sign) { Ok(()) } else { self.expected(sign) }
    }

    fn token(&mut self, token: &Token, what: &str) -> Result<(), ArtifactError> {
        if self.peek() == token {
            self.at += 1;
            Ok(())
        } else {
            self.expected(what)
        }
    }

    fn name(&mut self) -> Result<String, ArtifactError> {
        match self.peek() {
            Token::Name(_) => match self.advance() {
                Token::Name(name) => Ok(name),
                _ => self.expected("a name"),
            },
            _ => self.expected("a name"),
        }
    }

    fn check(&self, depth: usize) -> Result<(), ArtifactError> {
        if depth > self.nesting {
            return Err(ArtifactError::limit(self.place(), "levels of nesting", self.nesting));
        }
        Ok(())
    }

    fn class(&mut self) -> Result<Class, ArtifactError> {
        self.advance();
        let mut class = Class { name: self.name()?, ..Class::default() };
        if self.take_sign("(") {
            let base = self.name()?;
            class.named_tuple = base == "NamedTuple";
            if base != "Module" && !class.named_tuple {
                return self.unsupported(&format!("a class of kind {base:?}"));
            }
            self.sign(")")?;
        }
        self.sign(":")?;
        self.token(&Token::NewLine, "a line's end")?;
        self.token(&Token::Indent, "an indented block")?;
        while *self.peek() != Token::Dedent {
            if self.is_word("def") {
                let method = self.function()?;
                class.methods.push(method);
            } else if self.take_word("pass") {
                self.token(&Token::NewLine, "a line's end")?;
            } else {
                self.attribute(&mut class)?;
            }
        }
        self.advance();
        Ok(class)
    }

    /// `__parameters__ = […]`, `x : Tensor`, `x : Final[int] = 3` or `__annotations__["0"] = Tensor`.
    fn attribute(&mut self, class: &mut Class) -> Result<(), ArtifactError> {
        let name = self.name()?;
        if name == "__annotations__" {
            // A list of parameters begins with none annotated.
            if self.take_sign("=") {
                self.expression(0)?;
                return self.token(&Token::NewLine, "a line's end");
            }
            self.sign("[")?;
            let Token::Str(name) = self.advance() else { return self.expected("an attribute's name") };
            self.sign("]")?;
            self.sign("=")?;
            self.expression(0)?;
            class.attributes.push(name);
            return self.token(&Token::NewLine, "a line's end");
        }
        if self.take_sign(":") {
            self.expression(0)?;
            if self.take_sign("=") {
                let (value, _) = self.expression(0)?;
                class.constants.entry(name).or_insert(value);
            } else {
                class.attributes.push(name);
            }
        } else {
            self.sign("=")?;
            let (value, _) = self.expression(0)?;
            let names = match value {
                Expression::List(items) => items.into_iter().map(|item| match item {
                    Expression::Str(name) => Some(name),
                    _ => None,
                }),
                _ => return self.expected("a list of names"),
            };
            let Some(names) = names.collect() else { return self.expected("a list of names") };
            match name.as_str() {
                "__parameters__" => class.parameters = names,
                "__buffers__" => class.buffers = names,
                _ => return self.unsupported(&format!("the class attribute {name:?}")),
            }
        }
        self.token(&Token::NewLine, "a line's end")
    }

    fn function(&mut self) -> Result<Function, ArtifactError> {
        let line = self.line();
        self.advance();
        let name = self.name()?;
        self.sign("(")?;
        let mut parameters = Vec::new();
        while !self.take_sign(")") {
            let name = self.name()?;
            if self.take_sign(":") {
                self.expression(0)?;
            }
            let default = if self.take_sign("=") { Some(self.expression(0)?.0) } else { None };
            parameters.push((name, default));
            if !self.is_sign(")") {
                self.sign(",")?;
            }
        }
        if self.take_sign("->") {
            self.expression(0)?;
        }
        self.sign(":")?;
        let body = self.block(0)?;
        Ok(Function { name, line, parameters, body })
    }

    fn block(&mut self, depth: usize) -> Result<Vec<Statement>, ArtifactError> {
        self.check(depth)?;
        self.token(&Token::NewLine, "a line's end")?;
        self.token(&Token::Indent, "an indented block")?;
        let mut statements = Vec::new();
        while *self.peek() != Token::Dedent {
            statements.push(self.statement(depth + 1)?);
        }
        self.advance();
        Ok(statements)
    }

    fn statement(&mut self, depth: usize) -> Result<Statement, ArtifactError> {
        let line = self.line();
        let kind = match self.peek() {
            Token::Name(word) => match word.as_str() {
                "if" => return Ok(Statement { line, kind: self.choice(depth)? }),
                "for" => {
                    self.advance();
                    let target = self.name()?;
                    if !self.take_word("in") {
                        return self.expected("in");
                    }
                    let (iterable, _) = self.expression(depth)?;
                    self.sign(":")?;
                    let body = self.block(depth)?;
                    return Ok(Statement { line, kind: StatementKind::For { target, iterable, body } });
                }
                "while" => {
                    self.advance();
                    let (condition, _) = self.expression(depth)?;
                    self.sign(":")?;
                    let body = self.block(depth)?;
                    return Ok(Statement { line, kind: StatementKind::While { condition, body } });
                }
                "pass" => {
                    self.advance();
                    StatementKind::Pass
                }
                "return" => {
                    self.advance();
                    let value = if *self.peek() == Token::NewLine {
                        Expression::None
                    } else {
                        self.several(depth)?.0
                    };
                    StatementKind::Return(value)
                }
                word @ ("with" | "try" | "raise" | "assert" | "def" | "class" | "import" | "from"
                | "lambda") => {
                    return self.unsupported(&format!("the statement {word:?}"));
                }
                _ => self.simple(depth)?,
            },
            _ => self.simple(depth)?,
        };
        self.token(&Token::NewLine, "a line's end")?;
        Ok(Statement { line, kind })
    }

    fn choice(&mut self, depth: usize) -> Result<StatementKind, ArtifactError> {
        self.check(depth)?;
        self.advance();
        let (condition, _) = self.expression(depth)?;
        self.sign(":")?;
        let then = self.block(depth)?;
        let line = self.line();
        let otherwise = if self.is_word("elif") {
            vec![Statement { line, kind: self.choice(depth + 1)? }]
        } else if self.take_word("else") {
            self.sign(":")?;
            self.block(depth)?
        } else {
            Vec::new()
        };
        Ok(StatementKind::If { condition, then, otherwise })
    }

    fn simple(&mut self, depth: usize) -> Result<StatementKind, ArtifactError> {
        let (first, unpack) = self.several(depth)?;
        if self.take_sign(":") {
            self.expression(depth)?;
        }
        if !self.take_sign("=") {
            return Ok(StatementKind::Expression(first));
        }
        let (value, _) = self.several(depth)?;
        let targets = match first {
            Expression::Tuple(items) if unpack => items,
            one => vec![one],
        };
        Ok(StatementKind::Assign { targets, unpack, value })
    }

    /// An expression, or several with commas between: a tuple without brackets.
    fn several(&mut self, depth: usize) -> Result<(Expression, bool), ArtifactError> {
        let (first, _) = self.expression(depth)?;
        if !self.is_sign(",") {
            return Ok((first, false));
        }
        let mut items = vec![first];
        while self.take_sign(",") {
            if self.is_sign("=") || *self.peek() == Token::NewLine {
                break;
            }
            items.push(self.expression(depth)?.0);
        }
        Ok((Expression::Tuple(items), true))
    }

    fn expression(&mut self, depth: usize) -> Result<Sized, ArtifactError> {
        self.check(depth)?;
        if self.take_word("not") {
            let (value, height) = self.expression(depth + 1)?;
            return Ok((Expression::Not(Box::new(value)), height + 1));
        }
        let (value, height) = self.postfix(depth)?;
        if !self.take_word("if") {
            return Ok((value, height));
        }
        let (condition, h1) = self.expression(depth + 1)?;
        if !self.take_word("else") {
            return self.expected("else");
        }
        let (otherwise, h2) = self.expression(depth + 1)?;
        Ok((Expression::Choice(Box::new([condition, value, otherwise])), height.max(h1).max(h2) + 1))
    }

    /// Calls, attributes and subscripts after an atom. Each makes the tree one higher, so the height is
    /// checked as well as the depth.
    fn postfix(&mut self, depth: usize) -> Result<Sized, ArtifactError> {
        if self.take_sign("-") {
            self.check(depth + 1)?;
            let (value, height) = self.postfix(depth + 1)?;
            let value = match value {
                Expression::Int(value) => Expression::Int(-value),
                Expression::Float(value) => Expression::Float(-value),
                other => Expression::Negative(Box::new(other)),
            };
            return Ok((value, height + 1));
        }
        let (mut value, mut height) = self.atom(depth)?;
        loop {
            let line = self.line();
            if self.take_sign(".") {
                value = Expression::Attribute(Box::new(value), self.name()?);
                height += 1;
            } else if self.take_sign("(") {
                let (arguments, inner) = self.arguments(depth + 1)?;
                value = Expression::Call(Box::new(Call { function: value, arguments, line }));
                height = height.max(inner) + 1;
            } else if self.take_sign("[") {
                let (index, inner) = self.items("]", depth + 1)?;
                let index = match <[Expression; 1]>::try_from(index) {
                    Ok([one]) => one,
                    Err(items) => Expression::Tuple(items),
                };
                value = Expression::Subscript(Box::new(value), Box::new(index));
                height = height.max(inner) + 1;
            } else {
                return Ok((value, height));
            }
            self.check(height)?;
        }
    }

    fn arguments(&mut self, depth: usize) -> Result<(Vec<Argument>, usize), ArtifactError> {
        let (mut arguments, mut height) = (Vec::new(), 0);
        while !self.take_sign(")") {
            let named = matches!(self.peek(), Token::Name(_))
                && matches!(self.tokens.get(self.at + 1), Some((Token::Sign("="), _)));
            let name = if named {
                let name = self.name()?;
                self.sign("=")?;
                Some(name)
            } else {
                None
            };
            let (value, inner) = self.expression(depth)?;
            height = height.max(inner);
            arguments.push((name, value));
            if !self.is_sign(")") {
                self.sign(",")?;
            }
        }
        Ok((arguments, height))
    }

    fn items(&mut self, close: &str, depth: usize) -> Result<(Vec<Expression>, usize), ArtifactError> {
        let (mut items, mut height) = (Vec::new(), 0);
        while !self.take_sign(close) {
            let (item, inner) = self.expression(depth)?;
            height = height.max(inner);
            items.push(item);
            if !self.is_sign(close) {
                self.sign(",")?;
            }
        }
        Ok((items, height))
    }

    fn atom(&mut self, depth: usize) -> Result<Sized, ArtifactError> {
        self.check(depth)?;
        let token = self.advance();
        Ok(match token {
            Token::Int(value) => (Expression::Int(value), 1),
            Token::Float(value) => (Expression::Float(value), 1),
            Token::Str(text) => (Expression::Str(text), 1),
            Token::Name(name) => (
                match name.as_str() {
                    "None" => Expression::None,
                    "True" => Expression::Bool(true),
                    "False" => Expression::Bool(false),
                    "inf" => Expression::Float(f64::INFINITY),
                    "nan" => Expression::Float(f64::NAN),
                    _ => Expression::Name(name),
                },
                1,
            ),
            Token::Sign("[") => {
                let (items, height) = self.items("]", depth + 1)?;
                (Expression::List(items), height + 1)
            }
            Token::Sign("(") => self.group(depth)?,
            Token::Sign("{") => {
                let (mut pairs, mut height) = (Vec::new(), 0);
                while !self.take_sign("}") {
                    let (key, h1) = self.expression(depth + 1)?;
                    self.sign(":")?;
                    let (value, h2) = self.expression(depth + 1)?;
                    height = height.max(h1).max(h2);
                    pairs.push((key, value));
                    if !self.is_sign("}") {
                        self.sign(",")?;
                    }
                }
                (Expression::Dict(pairs), height + 1)
            }
            _ => {
                self.at -= 1;
                return self.expected("an expression");
            }
        })
    }

    /// Brackets around one expression, or a tuple.
    fn group(&mut self, depth: usize) -> Result<Sized, ArtifactError> {
        if self.take_sign(")") {
            return Ok((Expression::Tuple(Vec::new()), 1));
        }
        let first = self.expression(depth + 1)?;
        if self.take_sign(")") {
            return Ok(first);
        }
        self.sign(",")?;
        let (mut rest, height) = self.items(")", depth + 1)?;
        rest.insert(0, first.0);
        Ok((Expression::Tuple(rest), height.max(first.1) + 1))
    }
}
