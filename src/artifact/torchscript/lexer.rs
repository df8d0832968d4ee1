//! From source text to tokens, with indentation as tokens of its own.

use crate::artifact::{ArtifactError, limits::MAX_TEXT_BYTES};

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    Name(String),
    Int(i64),
    Float(f64),
    Str(String),
    /// One of `()[]{},:.=-` or `->`.
    Sign(&'static str),
    NewLine,
    Indent,
    Dedent,
    End,
}

const SIGNS: &[&str] = &["->", "(", ")", "[", "]", "{", "}", ",", ":", ".", "=", "-"];

/// Tokens, each with its line, counted from 1.
///
/// # Errors
/// [`ArtifactError::Malformed`] naming file and line.
pub(super) fn tokens(file: &str, text: &str) -> Result<Vec<(Token, u32)>, ArtifactError> {
    let mut lexer = Lexer { file, rest: text, line: 1, depth: 0, indents: vec![0], out: Vec::new() };
    lexer.run()?;
    Ok(lexer.out)
}

struct Lexer<'t> {
    file: &'t str,
    rest: &'t str,
    line: u32,
    /// Open brackets; within them line breaks mean nothing.
    depth: usize,
    indents: Vec<usize>,
    out: Vec<(Token, u32)>,
}

impl Lexer<'_> {
    fn fail<T>(&self, reason: impl Into<String>) -> Result<T, ArtifactError> {
        Err(ArtifactError::malformed(format!("{}:{}", self.file, self.line), reason))
    }

    fn check_length(&self, bytes: usize) -> Result<(), ArtifactError> {
        if bytes > MAX_TEXT_BYTES {
            let place = format!("{}:{}", self.file, self.line);
            return Err(ArtifactError::limit(place, "bytes in a text or name", MAX_TEXT_BYTES));
        }
        Ok(())
    }

    fn push(&mut self, token: Token) {
        self.out.push((token, self.line));
    }

    fn run(&mut self) -> Result<(), ArtifactError> {
        self.indentation()?;
        while let Some(first) = self.rest.chars().next() {
            match first {
                ' ' | '\t' | '\r' => self.rest = &self.rest[1..],
                '\n' => {
                    if self.depth == 0 && !matches!(self.out.last(), None | Some((Token::NewLine, _))) {
                        self.push(Token::NewLine);
                    }
                    self.rest = &self.rest[1..];
                    self.line = self.line.saturating_add(1);
                    if self.depth == 0 {
                        self.indentation()?;
                    }
                }
                '#' => self.rest = self.rest.find('\n').map_or("", |at| &self.rest[at..]),
                '"' | '\'' => self.text(first)?,
                '0'..='9' => self.number()?,
                c if c == '_' || c.is_ascii_alphabetic() => {
                    let end = self.rest.find(|c: char| c != '_' && !c.is_ascii_alphanumeric());
                    let (name, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
                    self.rest = rest;
                    self.check_length(name.len())?;
                    self.push(Token::Name(name.to_owned()));
                }
                _ => self.sign()?,
            }
        }
        if !matches!(self.out.last(), None | Some((Token::NewLine, _))) {
            self.push(Token::NewLine);
        }
        while self.indents.len() > 1 {
            self.indents.pop();
            self.push(Token::Dedent);
        }
        self.push(Token::End);
        Ok(())
    }

    /// At the start of a line: compares its indentation with the blocks that are open.
    fn indentation(&mut self) -> Result<(), ArtifactError> {
        let width = self.rest.len() - self.rest.trim_start_matches(' ').len();
        let after = &self.rest[width..];
        if after.is_empty() || after.starts_with(['\n', '\r', '#']) {
            return Ok(());
        }
        self.rest = after;
        let open = self.indents.last().copied().unwrap_or(0);
        if width > open {
            self.indents.push(width);
            self.push(Token::Indent);
        }
        while self.indents.last().is_some_and(|&open| width < open) {
            self.indents.pop();
            self.push(Token::Dedent);
        }
        if self.indents.last() != Some(&width) {
            return self.fail("the indentation fits no open block");
        }
        Ok(())
    }

    fn sign(&mut self) -> Result<(), ArtifactError> {
        let Some(sign) = SIGNS.iter().find(|sign| self.rest.starts_with(**sign)) else {
            let found: String = self.rest.chars().take(1).collect();
            return self.fail(format!("{found:?} is not expected here"));
        };
        match *sign {
            "(" | "[" | "{" => self.depth += 1,
            ")" | "]" | "}" => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        self.rest = &self.rest[sign.len()..];
        self.push(Token::Sign(sign));
        Ok(())
    }

    fn number(&mut self) -> Result<(), ArtifactError> {
        let bytes = self.rest.as_bytes();
        let mut len = 0;
        while let Some(&byte) = bytes.get(len) {
            let exponent_sign =
                matches!(byte, b'+' | b'-') && len > 0 && matches!(bytes[len - 1], b'e' | b'E');
            if !(byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E') || exponent_sign) {
                break;
            }
            len += 1;
        }
        let (text, rest) = self.rest.split_at(len);
        self.rest = rest;
        let token = if text.bytes().all(|b| b.is_ascii_digit()) {
            text.parse().ok().map(Token::Int)
        } else {
            text.parse().ok().map(Token::Float)
        };
        match token {
            Some(token) => {
                self.push(token);
                Ok(())
            }
            None => self.fail(format!("{text:?} is no number")),
        }
    }

    fn text(&mut self, quote: char) -> Result<(), ArtifactError> {
        let mut bytes = Vec::new();
        let mut chars = self.rest.char_indices().skip(1).peekable();
        loop {
            match chars.next() {
                None | Some((_, '\n')) => return self.fail("a text does not end"),
                Some((at, c)) if c == quote => {
                    self.check_length(bytes.len())?;
                    self.rest = &self.rest[at + 1..];
                    let text = String::from_utf8_lossy(&bytes).into_owned();
                    self.push(Token::Str(text));
                    return Ok(());
                }
                Some((_, '\\')) => match chars.next() {
                    Some((_, 'n')) => bytes.push(b'\n'),
                    Some((_, 't')) => bytes.push(b'\t'),
                    Some((_, 'r')) => bytes.push(b'\r'),
                    Some((_, digit @ '0'..='7')) => {
                        // Up to three octal digits stand for a byte.
                        let mut value = digit as u32 - '0' as u32;
                        for _ in 0..2 {
                            let Some((_, next @ '0'..='7')) = chars.peek().copied() else { break };
                            value = value * 8 + (next as u32 - '0' as u32);
                            chars.next();
                        }
                        bytes.push(value as u8);
                    }
                    Some((_, c)) => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
                    None => return self.fail("a text does not end"),
                },
                Some((_, c)) => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
    }
}
