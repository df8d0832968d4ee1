//! The tree is the architecture: imports point down the list, files stay small, and what is confined to
//! some folders stays there. The last tests prove on sample text that each rule can fail.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Every top-level module, in layers; a module imports only from layers above its own, and from itself.
const LAYERS: &[&[&str]] = &[
    &["id", "digest", "fault", "failpoint", "backoff", "clock", "signature"],
    &["config"],
    &["telemetry"],
    &["tensor"],
    &["graph"],
    &["artifact"],
    &["backend"],
    &["validation"],
    &["wire"],
    &["record"],
    &["engine"],
    &["guard"],
    &["cache"],
    &["origin"],
    &["actor"],
    &["control", "http"],
    &["client"],
    &["cli"],
    &["daemon"],
    &["lib", "bin"],
];

/// Words that may stand only in files below these folders of `src`.
const CONFINED: &[(&str, &[&str])] = &[
    ("cudarc", &["backend/cuda/"]),
    ("libloading", &["backend/cuda/"]),
    ("ed25519_dalek", &["signature.rs"]),
    ("actix", &["actor/", "daemon/"]),
    ("actix_rt", &["actor/", "daemon/"]),
    ("tokio", &["guard/", "cache/", "origin/", "actor/", "control/", "http/", "cli/", "daemon/"]),
    ("sqlx", &["cache/"]),
    ("prometheus_client", &["http/"]),
    ("anyhow", &["bin/"]),
    ("unsafe", &["backend/", "wire/"]),
];

const MOST_LINES: usize = 800;

/// Files that may be longer, each with the reason; there is none.
const LONGER: &[(&str, &str)] = &[];

/// Marks of unfinished work, written so that this file does not hold them.
const UNFINISHED: &[&str] =
    &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("to", "do!("), concat!("unimple", "mented!(")];

/// What a source file does wrong, in words; `path` is relative to `src`.
fn offences(path: &str, text: &str, is_test: bool) -> Vec<String> {
    let code = without_comments_and_strings(text);
    let mut found = Vec::new();
    let own = top_module(path);
    match layer_of(own) {
        None => found.push(format!("{path}: {own} has no place in the list of layers")),
        Some(layer) => {
            for (line, module) in imports(path, &code) {
                let above = layer_of(&module).is_none_or(|other| other < layer || module == own);
                let peers = layer == 0 && layer_of(&module) == Some(0);
                if !(above || peers) {
                    found.push(format!("{path}:{line}: {own} imports {module}, which stands below it"));
                }
            }
        }
    }
    for (word, folders) in CONFINED {
        if !folders.iter().any(|folder| path.starts_with(folder)) {
            let lines = lines_with(&code, |line| has_word(line, word));
            found.extend(lines.map(|line| format!("{path}:{line}: {word} has no business here")));
        }
    }
    if !is_test {
        let code = without_tests(&code);
        let lines = lines_with(&code, |line| line.contains(".unwrap()"));
        found.extend(lines.map(|line| format!("{path}:{line}: unwrap outside a test")));
    }
    found
}

/// What any text file, in whatever language, does wrong.
fn blemishes(path: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let lines = text.lines().count();
    if lines > MOST_LINES && !LONGER.iter().any(|(file, _)| *file == path) {
        found.push(format!("{path}: {lines} lines, split it below {MOST_LINES}"));
    }
    for mark in UNFINISHED {
        let lines = lines_with(text, |line| line.contains(mark));
        found.extend(lines.map(|line| format!("{path}:{line}: {mark} is unfinished work")));
    }
    found
}

fn layer_of(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

fn top_module(path: &str) -> &str {
    let end = path.find(['/', '.']).unwrap_or(path.len());
    &path[..end]
}

/// Top-level modules named through `crate::` or through enough `super::`, with the line of each.
/// `$crate::` and `pub(in crate::…)` count like any other path.
fn imports(path: &str, code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut add = |at: usize, names: Vec<&str>| {
        let line = 1 + code[..at].matches('\n').count();
        let known = names.into_iter().filter(|name| layer_of(name).is_some());
        found.extend(known.map(|name| (line, name.to_owned())));
    };
    for (at, _) in code.match_indices("crate::") {
        add(at, heads(&code[at + "crate::".len()..]));
    }
    let inside = path.trim_end_matches("/mod.rs").trim_end_matches(".rs").matches('/').count() + 1;
    let to_the_root = "super::".repeat(inside);
    for (at, _) in code.match_indices(&to_the_root) {
        add(at, heads(&code[at + to_the_root.len()..]));
    }
    found
}

/// The first names of a path or of each path in a brace group.
fn heads(rest: &str) -> Vec<&str> {
    let head = |text: &'_ str| text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len());
    let Some(group) = rest.strip_prefix('{') else {
        return vec![&rest[..head(rest)]];
    };
    let (mut depth, mut start, mut names) = (0, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                let item = group[start..at].trim_start();
                names.push(&item[..head(item)]);
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    names
}

fn lines_with<'a>(text: &'a str, wrong: impl Fn(&str) -> bool + 'a) -> impl Iterator<Item = usize> + 'a {
    text.lines().enumerate().filter(move |(_, line)| wrong(line)).map(|(i, _)| i + 1)
}

fn has_word(line: &str, word: &str) -> bool {
    let joined = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(word).any(|(at, _)| {
        !joined(line[..at].chars().next_back()) && !joined(line[at + word.len()..].chars().next())
    })
}

/// The code with every comment, string and character literal blanked; line breaks stay.
fn without_comments_and_strings(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let length = literal_or_comment(&text[at..], code.chars().next_back());
        if length == 0 {
            let c = text[at..].chars().next().expect("at stands on a character");
            code.push(c);
            at += c.len_utf8();
        } else {
            code.extend(text[at..at + length].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            at += length;
        }
    }
    code
}

/// The bytes of the comment or literal that `rest` starts with, 0 where it starts with neither.
fn literal_or_comment(rest: &str, before: Option<char>) -> usize {
    let until =
        |from: usize, end: &str| rest[from..].find(end).map_or(rest.len(), |found| from + found + end.len());
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return until(2, "*/");
    }
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let raw = rest.strip_prefix("br").or_else(|| rest.strip_prefix('r')).filter(|_| !in_word);
    if let Some(raw) = raw {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw[hashes..].starts_with('"') {
            let opening = rest.len() - raw.len() + hashes + 1;
            return until(opening, &format!("\"{}", "#".repeat(hashes)));
        }
    }
    let closed_by = |quote: u8| {
        let mut escaped = false;
        let end = rest.bytes().skip(1).position(|b| {
            let end = b == quote && !escaped;
            escaped = b == b'\\' && !escaped;
            end
        });
        end.map_or(rest.len(), |end| end + 2)
    };
    match rest.as_bytes() {
        [b'"', ..] => closed_by(b'"'),
        [b'\'', b'\\', ..] => closed_by(b'\''),
        // A lifetime has no closing quote right behind one character.
        [b'\'', ..] => match rest[1..].chars().next() {
            Some(c) if rest[1 + c.len_utf8()..].starts_with('\'') => c.len_utf8() + 2,
            _ => 0,
        },
        _ => 0,
    }
}

/// The code with every item under `#[cfg(test)]` blanked.
fn without_tests(code: &str) -> String {
    let mut kept = code.to_owned();
    while let Some(start) = kept.find("#[cfg(test)]") {
        let open = kept[start..].find(['{', ';']).map_or(kept.len() - 1, |at| start + at);
        let mut depth = 0;
        let end = kept[open..].char_indices().find(|(_, c)| {
            depth += i32::from(*c == '{') - i32::from(*c == '}');
            depth == 0
        });
        let end = end.map_or(kept.len(), |(at, _)| open + at + 1);
        let blank: String = kept[start..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
        kept.replace_range(start..end, &blank);
    }
    kept
}

/// The modules that some file declares under `#[cfg(test)]`, as paths without an ending.
fn test_modules(files: &[(String, String)]) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in files {
        let stem = path.trim_end_matches(".rs");
        let folder = stem.strip_suffix("/mod").or((stem != "lib").then_some(stem)).unwrap_or("");
        for (at, mark) in text.match_indices("#[cfg(test)]") {
            let item = text[at + mark.len()..].trim_start();
            let item = item.strip_prefix("pub(crate) ").or(item.strip_prefix("pub(super) ")).unwrap_or(item);
            if let Some((name, _)) = item.strip_prefix("mod ").and_then(|rest| rest.split_once(';'))
                && !name.contains('{')
            {
                found.push(format!("{folder}/{name}").trim_start_matches('/').to_owned());
            }
        }
    }
    found
}

/// Every file with one of these endings below `folder`, relative to it.
fn files(folder: &Path, endings: &[&str]) -> Vec<(String, String)> {
    let (mut open, mut found): (Vec<PathBuf>, Vec<PathBuf>) = (vec![folder.to_owned()], Vec::new());
    while let Some(next) = open.pop() {
        let Ok(entries) = fs::read_dir(&next) else { continue };
        for path in entries.map(|entry| entry.expect("a folder can be listed").path()) {
            let ends = |ending: &&str| path.extension().is_some_and(|e| e == *ending);
            if path.is_dir() {
                open.push(path);
            } else if endings.iter().any(ends) {
                found.push(path);
            }
        }
    }
    found.sort();
    let name = |path: &Path| path.strip_prefix(folder).expect("below it").display().to_string();
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    found.iter().map(|path| (name(path), read(path))).collect()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn imports_point_down_and_confined_words_stay_in_their_folders() {
    let files = files(&root().join("src"), &["rs"]);
    assert!(files.iter().any(|(path, _)| path == "lib.rs"), "the source was not found");
    let tests = test_modules(&files);
    let is_test = |path: &str| {
        tests
            .iter()
            .any(|test| path.strip_prefix(test).is_some_and(|rest| rest == ".rs" || rest.starts_with('/')))
    };
    let found: Vec<_> = files.iter().flat_map(|(path, text)| offences(path, text, is_test(path))).collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn files_are_small_and_finished() {
    let mut found = Vec::new();
    for folder in ["src", "tests", "benches", "examples", "python", "scripts"] {
        for (path, text) in files(&root().join(folder), &["rs", "py", "sh", "sql", "cu", "cuh", "h"]) {
            found.extend(blemishes(&format!("{folder}/{path}"), &text));
        }
    }
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn an_import_that_goes_up_is_found_however_it_is_written() {
    for (path, text) in [
        ("tensor/dtype.rs", "use crate::graph::Op;"),
        ("tensor/dtype.rs", "use crate::{\n    id::KernelId,\n    graph::{ir::Graph, Op},\n};"),
        ("tensor/dtype.rs", "fn f() -> crate::daemon::Daemon {}"),
        ("tensor/dtype.rs", "use super::super::graph::Op;"),
        ("tensor/mod.rs", "use super::graph::Op;"),
        ("id.rs", "use crate::config::Config;"),
        ("shelf/mod.rs", ""),
    ] {
        assert_eq!(offences(path, text, false).len(), 1, "{path}: {text}");
    }
    for (path, text) in [
        ("graph/op.rs", "use crate::{id::KernelId, tensor::{DType, graph}};"),
        ("graph/op.rs", "use super::ir::Graph; use crate::graph::ir;"),
        ("graph/op.rs", "// crate::daemon\n/* crate::daemon */ const A: &str = \"crate::daemon\";"),
        ("digest.rs", "use crate::id::KernelId;"),
        ("bin/kasminad.rs", "use crate::daemon;"),
    ] {
        assert_eq!(offences(path, text, false), Vec::<String>::new(), "{path}: {text}");
    }
}

#[test]
fn a_confined_word_outside_its_folder_is_found() {
    for (path, text) in [
        ("engine/seed.rs", "use tokio::sync::Mutex;"),
        ("engine/seed.rs", "use actix::Actor;"),
        ("backend/cpu/conv.rs", "use cudarc::driver;"),
        ("engine/seed.rs", "use libloading::Library;"),
        ("engine/seed.rs", "let a = unsafe { b() };"),
        ("engine/seed.rs", "let c = '\"'; unsafe { b() } let d = '\"';"),
        ("engine/seed.rs", "let a = r#\"x\"#; b.unwrap();"),
        ("engine/seed.rs", "#[cfg(test)]\nmod tests { fn f() { a.unwrap(); } }\nfn g() { b.unwrap(); }"),
    ] {
        assert_eq!(offences(path, text, false).len(), 1, "{path}: {text}");
    }
    for (path, text) in [
        ("backend/cuda/stream.rs", "use cudarc::driver; unsafe {}"),
        ("engine/seed.rs", "fn f<'a>(a: &'a str) {} // unsafe, tokio"),
        ("engine/seed.rs", "let tokio_like = unsafe_name; let s = r\"unsafe\"; let t = \"\\\"unsafe\";"),
        ("engine/seed.rs", "#[cfg(test)]\nmod tests { fn f() { if a { b.unwrap(); } } }"),
    ] {
        assert_eq!(offences(path, text, false), Vec::<String>::new(), "{path}: {text}");
    }
    assert_eq!(offences("engine/seed.rs", "fn f() { a.unwrap(); }", true), Vec::<String>::new());
    let declared = "#[cfg(test)]\nmod contract;\n#[cfg(test)]\nmod tests { mod inner; }";
    let files = [("cache/mod.rs".to_owned(), declared.to_owned())];
    assert!(test_modules(&files).contains(&"cache/contract".to_owned()));
    assert!(!test_modules(&files).contains(&"cache/inner".to_owned()));
}

#[test]
fn a_long_or_unfinished_file_is_found() {
    assert_eq!(blemishes("src/a.rs", &"\n".repeat(MOST_LINES)), Vec::<String>::new());
    assert_eq!(blemishes("src/a.rs", &"\n".repeat(MOST_LINES + 1)).len(), 1);
    for mark in UNFINISHED {
        assert_eq!(blemishes("src/a.rs", &format!("a\n// {mark} later")).len(), 1, "{mark}");
    }
}
