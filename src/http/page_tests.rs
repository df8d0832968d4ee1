//! Holds `docs/metrics.md` to the metrics there are.

use std::fmt::Write as _;

use super::metric::Metric;

const BEGIN: &str = "<!-- written by the code: KASMINA_WRITE_DOCS=1 cargo test --lib http::page_tests -->\n";
const END: &str = "<!-- end of what the code wrote -->\n";

fn table() -> String {
    let mut table = String::from("\n| metric | kind | labels | meaning |\n| --- | --- | --- | --- |\n");
    for metric in Metric::ALL {
        let family = metric.family();
        let labels: Vec<_> = family.labels.iter().map(|label| format!("`{label}`")).collect();
        let (name, kind, help) = (family.name, family.kind.as_str(), family.help);
        writeln!(table, "| `{name}` | {kind} | {} | {help} |", labels.join(" ")).unwrap();
    }
    table.push('\n');
    table
}

#[test]
fn the_page_lists_every_metric() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).expect("the page has the mark where the code writes");
    let (known, after) = rest.split_once(END).expect("the page has the mark where the code ends");
    let ours = table();
    if std::env::var_os("KASMINA_WRITE_DOCS").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}{ours}{END}{after}")).unwrap();
        return;
    }
    assert_eq!(known, ours, "docs/metrics.md is old: see the remark above its table");
    for word in
        page.split(|c: char| !(c.is_ascii_lowercase() || c == '_')).filter(|w| w.starts_with("kasmina_"))
    {
        let is_metric = |metric: &Metric| metric.family().name == word;
        assert!(Metric::ALL.iter().any(is_metric), "docs/metrics.md speaks of {word}, which there is not");
    }
}
