//! `ops.whitelist`, as far as it can be told without an input's shape.

use crate::artifact::is_known_op;

/// How many names a reason quotes.
const MOST_NAMES: usize = 20;

/// Looks through the operations that a program names.
///
/// A scripted program names many that no run reaches, such as the other branches of an interpolation, so one of
/// PyTorch's own that is off the list is noted and refused where lowering meets it. One of another library is
/// refused at once: there is no way to use it rightly.
pub(in crate::validation) fn ops_known(ops: &[String]) -> Result<String, String> {
    if let Some(op) = ops.iter().find(|op| !op.starts_with("aten.")) {
        return Err(format!("{op} is not an operation of PyTorch itself, kernels may use no other"));
    }
    let unknown: Vec<&str> = ops.iter().map(String::as_str).filter(|op| !is_known_op(op)).collect();
    let count = ops.len();
    if unknown.is_empty() {
        return Ok(format!("{count} operations, all of known names; lowered when a layer names a shape"));
    }
    let (shown, more) = unknown.split_at(unknown.len().min(MOST_NAMES));
    let more = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
    let names = shown.join(" ") + &more;
    Ok(format!("{count} operations; refused if a layer's shape leads to one that is off the list: {names}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_of_another_library_is_refused_and_an_unknown_one_noted() {
        let judge = |ops: &[&str]| ops_known(&ops.iter().map(|&op| op.to_owned()).collect::<Vec<_>>());
        assert!(judge(&["aten.conv2d", "aten.relu"]).unwrap().starts_with("2 operations, all of known"));
        assert!(judge(&["aten.relu", "aten.fft_fft"]).unwrap().ends_with("off the list: aten.fft_fft"));
        for op in ["custom.relu", "relu", "quantized.linear"] {
            let refusal = judge(&["aten.relu", op]).unwrap_err();
            assert!(refusal.starts_with(&format!("{op} is not")), "{refusal}");
        }
        let many: Vec<String> = (0..MOST_NAMES + 7).map(|n| format!("aten.strange_{n}")).collect();
        assert!(ops_known(&many).unwrap().ends_with("aten.strange_19 and 7 more"));
    }
}
