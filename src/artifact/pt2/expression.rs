//! Expressions over sizes, as the exporter writes them: `4*s39`, `Mul(Integer(4), Symbol('s39', …))`, and
//! guards such as `(L['x'].size()[1] // 2) != 1`.

/// How deep expressions nest.
const MAX_DEPTH: usize = 64;

/// Why an expression has no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// It reads a symbol whose value is not known.
    Unknown(String),
    /// It is written in a way, or uses a function, that is not understood here.
    Unclear,
    /// It overflows or divides by zero.
    Arithmetic,
}

/// What an expression reads.
pub(super) trait Sizes {
    /// The value of a symbol.
    fn symbol(&self, name: &str) -> Option<i64>;

    /// One size of an input.
    fn size(&self, input: &str, dim: usize) -> Option<i64>;
}

/// The value of an expression; that of a comparison is 0 or 1.
///
/// # Errors
/// [`Trouble`].
pub(super) fn evaluate(text: &str, sizes: &impl Sizes) -> Result<i64, Trouble> {
    let mut reader = Reader { rest: text, sizes, depth: 0 };
    let value = reader.either()?;
    if reader.rest.trim_start().is_empty() { Ok(value) } else { Err(Trouble::Unclear) }
}

struct Reader<'t, S> {
    rest: &'t str,
    sizes: &'t S,
    depth: usize,
}

impl<'t, S: Sizes> Reader<'t, S> {
    fn take(&mut self, token: &str) -> bool {
        match self.rest.trim_start().strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// A word of the language, and not the beginning of a longer one.
    fn word(&mut self, word: &str) -> bool {
        let rest = self.rest.trim_start();
        let ends = |rest: &str| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
        rest.strip_prefix(word).is_some_and(ends) && self.take(word)
    }

    fn expect(&mut self, token: &str) -> Result<(), Trouble> {
        if self.take(token) { Ok(()) } else { Err(Trouble::Unclear) }
    }

    fn either(&mut self) -> Result<i64, Trouble> {
        let mut value = self.both()?;
        while self.word("or") {
            value = i64::from((value != 0) | (self.both()? != 0));
        }
        Ok(value)
    }

    fn both(&mut self) -> Result<i64, Trouble> {
        let mut value = self.comparison()?;
        while self.word("and") {
            value = i64::from((value != 0) & (self.comparison()? != 0));
        }
        Ok(value)
    }

    fn comparison(&mut self) -> Result<i64, Trouble> {
        let mut negate = false;
        while self.word("not") {
            negate = !negate;
        }
        let mut left = self.sum()?;
        let mut holds = None;
        loop {
            let compare: fn(&i64, &i64) -> bool = if self.take("==") {
                i64::eq
            } else if self.take("!=") {
                i64::ne
            } else if self.take("<=") {
                i64::le
            } else if self.take(">=") {
                i64::ge
            } else if self.take("<") {
                i64::lt
            } else if self.take(">") {
                i64::gt
            } else {
                break;
            };
            let right = self.sum()?;
            holds = Some(holds.unwrap_or(true) && compare(&left, &right));
            left = right;
        }
        let value = holds.map_or(left, i64::from);
        Ok(if negate { i64::from(value == 0) } else { value })
    }

    fn sum(&mut self) -> Result<i64, Trouble> {
        let mut value = self.product()?;
        loop {
            value = if self.take("+") {
                value.checked_add(self.product()?)
            } else if self.take("-") {
                value.checked_sub(self.product()?)
            } else {
                return Ok(value);
            }
            .ok_or(Trouble::Arithmetic)?;
        }
    }

    fn product(&mut self) -> Result<i64, Trouble> {
        let mut value = self.factor()?;
        loop {
            value = if self.take("//") {
                floor_divide(value, self.factor()?)
            } else if self.take("*") {
                value.checked_mul(self.factor()?)
            } else if self.take("%") {
                modulo(value, self.factor()?)
            } else {
                return Ok(value);
            }
            .ok_or(Trouble::Arithmetic)?;
        }
    }

    fn factor(&mut self) -> Result<i64, Trouble> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Trouble::Unclear);
        }
        let value = if self.take("-") {
            self.factor()?.checked_neg().ok_or(Trouble::Arithmetic)?
        } else {
            let base = self.atom()?;
            if self.take("**") {
                let power = u32::try_from(self.factor()?).map_err(|_| Trouble::Unclear)?;
                base.checked_pow(power).ok_or(Trouble::Arithmetic)?
            } else {
                base
            }
        };
        self.depth -= 1;
        Ok(value)
    }

    fn atom(&mut self) -> Result<i64, Trouble> {
        if self.take("(") {
            let value = self.either()?;
            self.expect(")")?;
            return Ok(value);
        }
        if self.take("L['") {
            let input = self.until("']")?;
            self.expect(".size()[")?;
            let dim = self.until("]")?.parse().map_err(|_| Trouble::Unclear)?;
            return self.sizes.size(input, dim).ok_or(Trouble::Unclear);
        }
        let rest = self.rest.trim_start();
        let end =
            rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '.').unwrap_or(rest.len());
        let (word, rest) = rest.split_at(end);
        self.rest = rest;
        if word.starts_with(|c: char| c.is_ascii_digit()) {
            return word.parse().map_err(|_| Trouble::Unclear);
        }
        if word == "Symbol" {
            self.expect("('")?;
            let name = self.until("'")?;
            self.until(")")?;
            return self.known(name);
        }
        if self.take("(") { self.function(word) } else { self.known(word) }
    }

    fn known(&self, name: &str) -> Result<i64, Trouble> {
        if name.is_empty() {
            return Err(Trouble::Unclear);
        }
        self.sizes.symbol(name).ok_or_else(|| Trouble::Unknown(name.to_owned()))
    }

    fn until(&mut self, end: &str) -> Result<&'t str, Trouble> {
        let (text, rest) = self.rest.split_once(end).ok_or(Trouble::Unclear)?;
        self.rest = rest;
        Ok(text)
    }

    /// A function of sympy or torch, after its opening parenthesis.
    fn function(&mut self, name: &str) -> Result<i64, Trouble> {
        let mut values = Vec::new();
        while !self.take(")") {
            values.push(self.either()?);
            if !self.take(",") {
                self.expect(")")?;
                break;
            }
        }
        let all = |f: fn(i64, i64) -> Option<i64>| {
            let mut values = values.iter().copied().map(Some);
            let first = values.next().flatten().ok_or(Trouble::Unclear)?;
            values.try_fold(first, |a, b| f(a, b?)).ok_or(Trouble::Arithmetic)
        };
        match (name.rsplit('.').next().unwrap_or(name), &values[..]) {
            ("Integer", [value]) => Ok(*value),
            ("Add", _) => all(i64::checked_add),
            ("Mul", _) => all(i64::checked_mul),
            ("Max" | "max" | "sym_max", _) => all(|a, b| Some(a.max(b))),
            ("Min" | "min" | "sym_min", _) => all(|a, b| Some(a.min(b))),
            ("FloorDiv" | "CleanDiv", [a, b]) => floor_divide(*a, *b).ok_or(Trouble::Arithmetic),
            ("Mod" | "PythonMod", [a, b]) => modulo(*a, *b).ok_or(Trouble::Arithmetic),
            ("Eq", [a, b]) => Ok(i64::from(a == b)),
            ("Ne", [a, b]) => Ok(i64::from(a != b)),
            ("sym_not" | "Not", [a]) => Ok(i64::from(*a == 0)),
            _ => Err(Trouble::Unclear),
        }
    }
}

fn floor_divide(a: i64, b: i64) -> Option<i64> {
    let quotient = a.checked_div(b)?;
    if a % b != 0 && (a < 0) != (b < 0) { quotient.checked_sub(1) } else { Some(quotient) }
}

fn modulo(a: i64, b: i64) -> Option<i64> {
    a.checked_sub(floor_divide(a, b)?.checked_mul(b)?)
}

#[cfg(test)]
mod tests {
    use super::{Sizes, Trouble, evaluate};

    struct Some4x8;

    impl Sizes for Some4x8 {
        fn symbol(&self, name: &str) -> Option<i64> {
            (name == "s0").then_some(4)
        }

        fn size(&self, input: &str, dim: usize) -> Option<i64> {
            [4, 8].get(dim).copied().filter(|_| input == "x")
        }
    }

    #[test]
    fn what_exporters_write_has_a_value() {
        for (text, value) in [
            ("Mul(Integer(4), Symbol('s0', positive=True, integer=True))", 16),
            ("Add(Symbol('s0', positive=True, integer=True), Integer(1))", 5),
            ("2*s0 + 1", 9),
            ("-7 // 2", -4),
            ("-7 % 4", 1),
            ("2**3*(1 + (-1)*s0)", -24),
            ("(L['x'].size()[1] // 2) != 1", 1),
            ("L['x'].size()[1] != torch.sym_max(1, L['x'].size()[1] // 2)", 1),
            ("((L['x'].size()[1]*L['x'].size()[0]) % (4*L['x'].size()[0])) == 0", 1),
            ("2 <= s0 < 4 or not s0 == 4", 0),
            ("s0 == 4 and 1 < 2", 1),
        ] {
            assert_eq!(evaluate(text, &Some4x8), Ok(value), "{text}");
        }
    }

    #[test]
    fn what_has_no_value_says_why() {
        assert_eq!(evaluate("4*s9", &Some4x8), Err(Trouble::Unknown("s9".into())));
        for text in ["", "1 +", "(1", "1)", "f(1)", "L['y'].size()[0]", "L['x'].size()[9]", "1.5", "s0 @ 2"] {
            assert!(evaluate(text, &Some4x8).is_err(), "{text}");
        }
        assert_eq!(evaluate("1 // (s0 - 4)", &Some4x8), Err(Trouble::Arithmetic));
        assert_eq!(evaluate("9223372036854775807 + 1", &Some4x8), Err(Trouble::Arithmetic));
        for open in ["(", "-", "f(", "not "] {
            assert!(evaluate(&open.repeat(100_000), &Some4x8).is_err(), "{open}");
        }
    }
}
