//! `modules.whitelist`: every module, at every depth, is of an allowed class.

use crate::artifact::ModuleType;

/// Holds a module tree to the list; an entry of the list is a qualified name, a prefix ending in a dot, or
/// `*`.
pub(in crate::validation) fn modules_allowed(
    types: &[ModuleType],
    allowed: &[String],
) -> Result<String, String> {
    let is_allowed = |class: &str| {
        allowed.iter().any(|entry| match entry.as_str() {
            "*" => true,
            prefix if prefix.ends_with('.') => class.starts_with(prefix),
            name => class == name,
        })
    };
    match types.iter().find(|module| !is_allowed(&module.class)) {
        None if types.is_empty() => Ok("the archive names no modules".to_owned()),
        None => Ok(format!("{} modules, all of allowed classes", types.len())),
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
        assert!(modules_allowed(&[], &[]).is_ok());
    }
}
