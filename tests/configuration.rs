//! The shipped configuration file is what the code says, and a wrong file is explained in one reading.

use std::{collections::BTreeMap, path::Path};

use kasmina::{
    config::{Config, ConfigErrors, DeviceKind, Place},
    fault::{ErrorClass, Fault},
};

const SHIPPED: &str = include_str!("../config/kasmina.toml");

fn variables(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn refused(text: &str) -> ConfigErrors {
    Config::from_toml(text, None, &()).expect_err("a wrong file is refused")
}

/// Every `key = value  # remark` of the shipped file with its section's name before it.
fn shipped_keys() -> Vec<(String, String, String)> {
    let mut section = "";
    let mut keys = Vec::new();
    for line in SHIPPED.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name;
        } else if !line.is_empty() && !line.starts_with('#') {
            let (key, rest) = line.split_once(" = ").expect("a key has a value");
            let (value, remark) = rest.split_once("  # ").expect("a value has a remark");
            keys.push((format!("{section}.{key}"), value.to_owned(), remark.to_owned()));
        }
    }
    keys
}

#[test]
fn the_shipped_file_names_every_key_with_default_unit_and_change() {
    let declared = Config::default().entries();
    let expected: Vec<_> = declared
        .into_iter()
        .map(|e| (e.key, e.value, format!("{}; {}", e.unit, e.change.as_str())))
        .collect();
    assert_eq!(shipped_keys(), expected);
}

#[test]
fn the_shipped_file_means_the_defaults() {
    let config = Config::from_toml(SHIPPED, None, &()).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(config, Config::default());
    assert_eq!(Config::from_toml("", None, &()).unwrap(), Config::default());
}

#[test]
fn every_key_of_the_shipped_file_is_described_above_it() {
    let lines: Vec<&str> = SHIPPED.lines().collect();
    for (before, line) in lines.iter().zip(&lines[1..]) {
        if line.contains(" = ") && !line.starts_with('#') {
            assert!(before.starts_with("# "), "nothing above {line}");
        }
    }
}

#[test]
fn a_wrong_file_is_explained_in_full() {
    let path = Path::new("tests/data/config/wrong.toml");
    let errors = Config::load(Some(path), &variables(&[("KASMINA__LOG__LEVEL", "loud")])).unwrap_err();
    let expected = [
        "tests/data/config/wrong.toml:3: daemon.soket: unknown key, did you mean daemon.socket?",
        "tests/data/config/wrong.toml:4: daemon.socket_mode: write a mode such as \"0660\" instead of 660",
        "tests/data/config/wrong.toml:7: cache.max_bytes: \"1GB\" is no size: write a whole number and B, KiB, \
         MiB, GiB or TiB",
        "tests/data/config/wrong.toml:8: cache.sqlite: is a section: write [cache.sqlite] and its keys below",
        "tests/data/config/wrong.toml:10: orgin: unknown key, did you mean origin?",
        "tests/data/config/wrong.toml:14: limits.max_seeds_per_layer: 65 is out of range: write 1 to 64",
        "tests/data/config/wrong.toml:15: limits.max_sessions: -1 is out of range: write 0 to 18446744073709551615",
        "tests/data/config/wrong.toml:18: device.kind: write one of auto, cpu, cuda instead of \"gpu\"",
        "$KASMINA__LOG__LEVEL: log.level: write one of error, warn, info, debug, trace instead of \"loud\"",
    ];
    assert_eq!(errors.to_string().lines().collect::<Vec<_>>(), expected);
    assert_eq!((errors.class(), errors.code()), (ErrorClass::Invalid, "config.invalid"));
}

#[test]
fn broken_toml_is_a_problem_with_a_line() {
    let errors = refused("[log]\nlevel = \"warn\"\nformat = \n");
    assert_eq!(errors.problems[0].place, Place::Line(3), "{errors}");
    // A slip in the third line must not be buried under what it makes of the lines behind it.
    let torn = "[validator]\nrequire_signature = true\ntrusted_keys = [\"ed25519:00\n\"]\nunknown = 1\n";
    let errors = refused(torn);
    assert_eq!(errors.problems.len(), 1, "{errors}");
    assert_eq!(errors.problems[0].place, Place::Line(3), "{errors}");
    let deep_list = format!("[log]\nlevel = {}{}", "[".repeat(5000), "]".repeat(5000));
    let deep_key = format!("{}b = 1", "log.".repeat(5000));
    let deep_table = format!("cache = {}", "{a = ".repeat(5000));
    for text in ["[", "a = {", "\u{0}", "a = 1\na = 2", "[log]\n[log]", &deep_list, &deep_key, &deep_table] {
        assert!(Config::from_toml(text, None, &()).is_err());
    }
}

#[test]
fn a_file_that_cannot_be_read_is_a_problem_of_the_file() {
    let errors = Config::load(Some(Path::new("/nonexistent/kasmina.toml")), &()).unwrap_err();
    assert_eq!(errors.problems[0].place, Place::File);
    assert!(errors.to_string().starts_with("/nonexistent/kasmina.toml: cannot be read"), "{errors}");
}

#[test]
fn variables_lie_over_the_file_and_are_typed_by_their_key() {
    let variables = variables(&[
        ("KASMINA__CACHE__MAX_ENTRIES", "7"),
        ("KASMINA__CACHE__PINNED", "conv-a, conv-b"),
        ("KASMINA__CACHE__SQLITE__ENABLED", "false"),
        ("KASMINA__DAEMON__ALLOW_UIDS", ""),
        ("KASMINA__DAEMON__DRAIN_TIMEOUT", "250ms"),
        ("KASMINA_SOCKET", "for clients, not for us"),
    ]);
    let text = "[cache]\nmax_entries = 3\nmax_bytes = \"2MiB\"\n[daemon]\nallow_uids = [1000]\n";
    let config = Config::from_toml(text, None, &variables).unwrap();
    assert_eq!(config.cache.max_entries, 7);
    assert_eq!(config.cache.max_bytes.0, 2 << 20);
    assert_eq!(config.cache.pinned.iter().map(|id| id.as_str()).collect::<Vec<_>>(), ["conv-a", "conv-b"]);
    assert!(!config.cache.sqlite.enabled);
    assert!(config.daemon.allow_uids.is_empty());
    assert_eq!(config.daemon.drain_timeout.as_millis(), 250);
}

#[test]
fn an_unknown_variable_is_refused_by_its_name() {
    let errors = Config::from_toml("", None, &variables(&[("KASMINA__CACHE__MAX_ENTRYS", "7")])).unwrap_err();
    let expected =
        "$KASMINA__CACHE__MAX_ENTRYS: cache.max_entrys: unknown key, did you mean cache.max_entries?";
    assert_eq!(errors.to_string(), expected);
}

#[test]
fn keys_that_must_agree_are_compared() {
    let errors = refused("[origin.retry]\nbase_delay = \"5s\"\nmax_delay = \"1s\"");
    assert_eq!(errors.problems.len(), 1);
    assert_eq!(
        (errors.problems[0].key.as_str(), &errors.problems[0].place),
        ("origin.retry.max_delay", &Place::Line(3))
    );
    assert_eq!(refused("[daemon]\ncontrol_socket = \"/run/kasmina/kasmina.sock\"").problems.len(), 1);
    assert_eq!(refused("[origin]\npath = \"kernels\"").problems[0].key, "origin.path");
    assert!(
        refused("[data_plane]\narena_bytes = \"2TiB\"").to_string().ends_with("write \"1MiB\" to \"1TiB\"")
    );
    for (text, key) in [
        ("[origin]\nkind = \"urza\"", "origin.urza.endpoints"),
        ("[origin.urza]\nendpoints = [\"https://urza.example\"]", "origin.urza.endpoints"),
        ("[origin.urza]\nendpoints = [\"https://me:word@urza.example/api/v1\"]", "origin.urza.endpoints"),
        ("[origin.urza]\nendpoints = [\"urza.example/api/v1\"]", "origin.urza.endpoints"),
        ("[origin.s3]\nendpoint = \"minio\"", "origin.s3.endpoint"),
        ("[origin.blob]\nallowed_hosts = [\"https://host\"]", "origin.blob.allowed_hosts"),
        ("[origin.blob]\nallowed_buckets = [\"s3://bucket\"]", "origin.blob.allowed_buckets"),
        ("[origin.blob]\nallowed_folders = [\"kernels\"]", "origin.blob.allowed_folders"),
    ] {
        let problems = refused(text).problems;
        assert_eq!((problems.len(), problems[0].key.as_str()), (1, key), "{text}");
        assert!(!problems[0].message.contains("word@"), "{}", problems[0].message);
    }
    for (text, line, message) in [
        ("[metrics]\nlisten = \"0.0.0.0:9464\"", 2, "can be reached from other machines"),
        ("[metrics]\nlisten = \"[::]:9464\"\nallow_remote = false", 2, "set metrics.allow_remote"),
        ("[metrics]\nlisten = \"9464\"", 2, "is no address: write \"127.0.0.1:9464\""),
        ("[metrics]\nlisten = \"localhost:9464\"", 2, "is no address"),
        ("[metrics]\nlisten = 9464", 2, "write an address in quotes instead of 9464"),
        (
            "[metrics]\nlisten = \"unix:metrics.sock\"",
            2,
            "is not absolute: write unix: and a path from the root",
        ),
        ("[metrics]\nlisten = \"unix:/run/kasmina/control.sock\"", 2, "give it a path of its own"),
        (&format!("[metrics]\n\nlisten = \"unix:/{}\"", "a".repeat(107)), 3, "a socket's path may have 107"),
    ] {
        let problems = refused(text).problems;
        assert_eq!((problems.len(), problems[0].key.as_str()), (1, "metrics.listen"), "{text}");
        assert_eq!(problems[0].place, Place::Line(line), "{text}");
        assert!(problems[0].message.contains(message), "{text}: {}", problems[0].message);
    }
    for text in ["127.0.0.1:0", "[::1]:9464", "unix:/run/kasmina/metrics.sock", ""] {
        let text = format!("[metrics]\nlisten = {text:?}");
        assert!(Config::from_toml(&text, None, &()).is_ok(), "{text}");
    }
    let remote = "[metrics]\nlisten = \"0.0.0.0:9464\"\nallow_remote = true";
    assert!(Config::from_toml(remote, None, &()).is_ok());
    assert_eq!(refused("[validator]\nallowed_modules = []").problems[0].place, Place::Line(2));
}

#[test]
fn addresses_of_shared_tiers_hold_no_secrets_and_no_options() {
    for url in [
        "postgres://h/db?password=hidden",
        "postgres://h/db?user=u&password=hidden",
        "postgres://u:hidden@h/db",
    ] {
        let errors = refused(&format!("[cache.postgres]\nurl = \"{url}\"\n")).to_string();
        assert!(errors.contains("cache.postgres.url") && !errors.contains("hidden"), "{errors}");
    }
    let errors = refused("[cache.redis]\nurl = \"redis://h/0?protocol=resp3\"\n").to_string();
    assert!(errors.contains("cache.redis.url"), "{errors}");
}

#[test]
fn a_device_is_asked_for_in_words_that_can_be_met() {
    for (text, key, message) in [
        ("kind = \"cuda:1\"", "device.kind", "write one of auto, cpu, cuda instead of \"cuda:1\""),
        ("ordinals = [-1]", "device.ordinals", "-1 is out of range: write 0 to 4294967295"),
        ("ordinals = [0, 2, 0]", "device.ordinals", "0 stands there twice: name each GPU once"),
        ("stall_limit = \"20ms\"", "device.stall_limit", "write at least \"1s\", or \"0s\" for no limit"),
        ("memory = 0", "device.memory", "write a size such as \"256MiB\""),
        ("memory = \"512KiB\"", "device.memory", "or \"0B\" for nine tenths of what is free"),
        ("memory = \"65TiB\"", "device.memory", "65TiB is out of range"),
        ("graphs = 1", "device.graphs", "write true or false"),
        ("tf32 = \"yes\"", "device.tf32", "write true or false"),
        ("libraries = \"/opt/venv\"", "device.libraries", "write a list in brackets"),
        ("libraries = [\"/opt/venv\", \"venv\"]", "device.libraries", "\"venv\" is not absolute"),
        ("image_folder = \"images\"", "device.image_folder", "\"images\" is not absolute"),
    ] {
        let problems = refused(&format!("[device]\n{text}")).problems;
        assert_eq!((problems.len(), problems[0].key.as_str()), (1, key), "{text}");
        assert_eq!(problems[0].place, Place::Line(2), "{text}");
        assert!(problems[0].message.contains(message), "{text}: {}", problems[0].message);
    }
    let text = "[device]\nkind = \"cuda\"\nordinals = [3, 1]\nmemory = \"8GiB\"\nlibraries = [\"/opt/venv\"]";
    let device = Config::from_toml(text, None, &()).unwrap().device;
    assert_eq!((device.kind, device.kind.as_str()), (DeviceKind::Cuda, "cuda"));
    assert_eq!((device.ordinals.as_slice(), device.memory.0), (&[3, 1][..], 8 << 30));
    assert_eq!(device.libraries, [Path::new("/opt/venv")]);
}

#[test]
fn what_is_left_open_is_filled_in() {
    let config = Config::default();
    assert_eq!(config.sqlite_path(), Path::new("/var/lib/kasmina/cache.sqlite"));
    assert_eq!(config.image_folder(), Path::new("/var/lib/kasmina/cuda"));
    assert!(config.device.thread_count() >= 1);
    let text = "[cache.sqlite]\npath = \"/srv/k.db\"\n[device]\nthreads = 3\nimage_folder = \"/srv/images\"";
    let config = Config::from_toml(text, None, &()).unwrap();
    assert_eq!((config.sqlite_path().as_path(), config.device.thread_count()), (Path::new("/srv/k.db"), 3));
    assert_eq!(config.image_folder(), Path::new("/srv/images"));
}
