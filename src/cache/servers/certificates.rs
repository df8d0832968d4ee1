//! Certificates for tests, made by openssl.

use std::{path::Path, process::Command};

/// A certificate authority, and by it a server named localhost and a client.
pub(crate) fn certificates(folder: &Path) {
    let openssl = |arguments: &[&str]| {
        let output = Command::new("openssl").args(arguments).current_dir(folder).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc"];
    openssl(
        &[&["req", "-x509", "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.pem"], &key[..]]
            .concat(),
    );
    for (name, subject, usage) in [
        ("server", "/CN=localhost", "subjectAltName=DNS:localhost"),
        ("client", "/CN=client", "extendedKeyUsage=clientAuth"),
    ] {
        let (keys, request, certificate) =
            (format!("{name}.key"), format!("{name}.csr"), format!("{name}.pem"));
        openssl(
            &[&["req", "-subj", subject, "-addext", usage, "-keyout", &keys, "-out", &request], &key[..]]
                .concat(),
        );
        let sign = [
            "x509",
            "-req",
            "-copy_extensions",
            "copy",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
        ];
        openssl(&[&sign[..], &["-in", &request, "-out", &certificate]].concat());
    }
}
