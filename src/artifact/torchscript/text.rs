//! Texts: how TorchScript prints values, formats and compares.

use crate::artifact::{
    Problem,
    aten::{Known, Lowering, Scalar, Value},
    limits::MAX_TEXT_BYTES,
};

/// Calls a function of texts; `None` where the name, or the name with these arguments, is none.
pub(super) fn call(lowering: &Lowering<'_>, name: &str, values: &[&Value]) -> Option<Result<Value, Problem>> {
    Some(match (name, values) {
        ("str", [value]) => text(display(lowering, value)),
        ("len", [Value::Str(text)]) => Ok(Value::int(text.chars().count() as i64)),
        ("add" | "add_", [Value::Str(a), Value::Str(b)]) => text([&**a, &**b].concat()),
        ("startswith", [Value::Str(whole), Value::Str(part)]) => Ok(Value::bool(whole.starts_with(&**part))),
        ("endswith", [Value::Str(whole), Value::Str(part)]) => Ok(Value::bool(whole.ends_with(&**part))),
        ("__contains__", [Value::Str(whole), Value::Str(part)]) => Ok(Value::bool(whole.contains(&**part))),
        // From the start, as `in` is written; in characters, and −1 where it is not there.
        ("find", [Value::Str(whole), Value::Str(part), Value::Number(Scalar::Int(0)), ..]) => {
            let at = whole.find(&**part).map(|at| whole[..at].chars().count() as i64);
            Ok(Value::int(at.unwrap_or(-1)))
        }
        ("format", [Value::Str(pattern), values @ ..]) => {
            let mut made = pattern.to_string();
            // However many values there are and however long they print, the text stays short.
            for value in values {
                if made.len() > MAX_TEXT_BYTES || !made.contains("{}") {
                    break;
                }
                made = made.replacen("{}", &display(lowering, value), 1);
            }
            text(made)
        }
        ("percentFormat", [Value::Str(pattern), Value::Tuple(values)]) => {
            percent(lowering, pattern, &lowering.items(*values).iter().collect::<Vec<_>>())
        }
        ("percentFormat", [Value::Str(pattern), values @ ..]) => percent(lowering, pattern, values),
        _ => return None,
    })
}

fn text(made: String) -> Result<Value, Problem> {
    if made.len() > MAX_TEXT_BYTES {
        return Err(Problem::argument(format!("a text grows past {MAX_TEXT_BYTES} bytes")));
    }
    Ok(Value::Str(made.into()))
}

/// `pattern % values` with `%s`, `%d` and `%i`.
fn percent(lowering: &Lowering<'_>, pattern: &str, values: &[&Value]) -> Result<Value, Problem> {
    let (mut made, mut values) = (String::new(), values.iter());
    let mut characters = pattern.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            made.push(character);
            continue;
        }
        let kind = characters.next();
        if kind == Some('%') {
            made.push('%');
            continue;
        }
        let Some(value) = values.next() else {
            return Err(Problem::argument(format!("{pattern:?} has more places than values")));
        };
        match kind {
            Some('s') => made.push_str(&display(lowering, value)),
            Some('d' | 'i') if value.scalar().and_then(Scalar::to_i64).is_some() => {
                made.push_str(&display(lowering, value));
            }
            _ => return Err(Problem::unsupported(format!("formatting {} by {pattern:?}", value.kind()))),
        }
        if made.len() > MAX_TEXT_BYTES {
            break;
        }
    }
    match values.next() {
        Some(_) => Err(Problem::argument(format!("{pattern:?} has fewer places than values"))),
        None => text(made),
    }
}

/// A value as TorchScript prints it; long lists are cut.
pub(super) fn display(lowering: &Lowering<'_>, value: &Value) -> String {
    match value {
        Value::None => "None".to_owned(),
        Value::Number(scalar) | Value::Known(Known { scalar, .. }) => match *scalar {
            Scalar::Bool(true) => "True".to_owned(),
            Scalar::Bool(false) => "False".to_owned(),
            Scalar::Int(value) => value.to_string(),
            Scalar::Float(value) => float(value),
        },
        Value::Str(text) => text.to_string(),
        Value::List(items) | Value::Tuple(items) => {
            let parts = lowering.items(*items).iter().take(16).map(|item| match item {
                Value::List(_) | Value::Tuple(_) => "[…]".to_owned(),
                item => display(lowering, item),
            });
            let parts = parts.collect::<Vec<_>>().join(", ");
            if matches!(value, Value::Tuple(_)) { format!("({parts})") } else { format!("[{parts}]") }
        }
        other => other.kind().to_owned(),
    }
}

/// A float as PyTorch's interpreter prints it, which is not Python's way: `1.` and `0.10000000000000001`.
fn float(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    if value.abs() < 9e18 && value.fract() == 0.0 {
        return format!("{}.", value as i64);
    }
    // C's %.17g.
    let scientific = format!("{value:.16e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let cut = |text: &str| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text.to_owned(),
    };
    if (-4..17).contains(&exponent) {
        let places = usize::try_from(16 - exponent).unwrap_or(0);
        return cut(&format!("{value:.places$}"));
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{}e{sign}{:02}", cut(digits), exponent.abs())
}

#[cfg(test)]
mod tests {
    use super::float;

    /// As `torch.jit` prints them in PyTorch 2.15.
    #[test]
    fn floats_print_as_the_interpreter_prints_them() {
        for (value, printed) in [
            (1.0, "1."),
            (-3.0, "-3."),
            (0.5, "0.5"),
            (0.1, "0.10000000000000001"),
            (1e-5, "1.0000000000000001e-05"),
            (1e16, "10000000000000000."),
            (-0.0, "0."),
            (1.5e300, "1.5000000000000001e+300"),
            (123456.789, "123456.789"),
            (f64::INFINITY, "inf"),
        ] {
            assert_eq!(float(value), printed);
        }
    }
}
