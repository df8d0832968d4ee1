//! `modules.whitelist`: every module, at every depth, is of an allowed class.

use crate::artifact::{EXPORTERS_FRAME, ModuleType};

/// Holds a module tree to the list; an entry of the list is a qualified name, a prefix ending in a dot, or
/// `*`. Under a list other than `*` everything must say what it is: an archive that names no modules, or has a
/// node that names none, does not pass. Nodes of the exporter's own are from no module.
pub(in crate::validation) fn modules_allowed(
    types: &[ModuleType],
    allowed: &[String],
) -> Result<String, String> {
    let is_allowed = |class: &str| {
        allowed.iter().any(|entry| match entry.as_str() {
            prefix if prefix.ends_with('.') => class.starts_with(prefix),
            name => class == name,
        })
    };
    if allowed.iter().any(|entry| entry == "*") {
        return Ok(format!("{} modules, every class is allowed", types.len()));
    }
    let exporters =
        |module: &ModuleType| [&module.path, &module.class].iter().all(|has| *has == EXPORTERS_FRAME);
    let mut named = types.iter().filter(|module| !exporters(module)).peekable();
    if named.peek().is_none() {
        return Err(
            "the archive names no modules, and validator.allowed_modules is a list: export it anew, or \
                    allow \"*\""
                .to_owned(),
        );
    }
    match named.find(|module| !is_allowed(&module.class)) {
        None => Ok(format!("{} modules, all of allowed classes", types.len())),
        Some(ModuleType { path, class }) if class.is_empty() => {
            Err(format!("{path} names no module, and validator.allowed_modules is a list"))
        }
        Some(ModuleType { path, class }) => {
            let path = if path.is_empty() { "the root" } else { path };
            Err(format!("{path} is a {class}, which validator.allowed_modules does not list"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_as_a_whole_and_prefixes_at_a_dot() {
        let judge = |class: &str, allowed: &[&str]| {
            let types = [("", "torch.nn.modules.container.Sequential"), ("0.inner", class)];
            let types = types.map(|(path, class)| ModuleType { path: path.into(), class: class.into() });
            modules_allowed(&types, &allowed.iter().map(|&entry| entry.into()).collect::<Vec<_>>())
        };
        assert!(judge("torch.nn.modules.linear.Linear", &["torch.nn."]).is_ok());
        assert!(judge("torch.nn.modules.linear.Linear", &["*"]).is_ok());
        assert!(judge("my.Block", &["torch.nn.", "my.Block"]).is_ok());
        for class in ["my.BlockOfMine", "torch.nnx.Linear", "torch.nn"] {
            let refusal = judge(class, &["torch.nn.", "my.Block"]).unwrap_err();
            assert!(refusal.starts_with(&format!("0.inner is a {class},")), "{refusal}");
        }
        assert!(judge("torch.nn.modules.linear.Linear", &[]).unwrap_err().starts_with("the root"));
    }

    #[test]
    fn under_a_list_everything_says_what_it_is() {
        let judge = |types: &[(&str, &str)], allowed: &str| {
            let types =
                types.iter().map(|&(path, class)| ModuleType { path: path.into(), class: class.into() });
            modules_allowed(&types.collect::<Vec<_>>(), &[allowed.to_owned()])
        };
        let (linear, exporters) =
            (("fc", "torch.nn.modules.linear.Linear"), (EXPORTERS_FRAME, EXPORTERS_FRAME));
        assert!(judge(&[linear, exporters], "torch.nn.").is_ok());
        for strange in [vec![], vec![exporters], vec![linear, ("a node aten.relu", "")]] {
            assert!(judge(&strange, "torch.nn.").unwrap_err().contains("names no module"), "{strange:?}");
            assert!(judge(&strange, "*").is_ok());
        }
        let posing = ("_empty_nn_module_stack_of_mine", "evil.Module");
        assert!(judge(&[linear, posing], "torch.nn.").is_err());
        assert!(judge(&[linear, (EXPORTERS_FRAME, "evil.Module")], "torch.nn.").is_err());
    }
}
