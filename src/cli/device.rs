//! What `kasmina status` says of the device.

use super::table::{bytes, render};
use crate::wire::{DeviceReport, GpuReport, LibraryReport};

/// The device, why it is this one, and NVIDIA's libraries. Empty for a daemon of a version that did not tell.
pub(super) fn device_text(device: &DeviceReport) -> String {
    let DeviceReport { names, kind, threads, no_gpu, gpus, libraries } = device;
    if names.is_empty() {
        return String::new();
    }
    let mut text = format!("device {} (device.kind is {kind}), {threads} threads\n", names.join(", "));
    text += &gpus.iter().map(gpu_text).collect::<String>();
    if let Some(why) = no_gpu {
        text += &format!("no GPU: {why}\n");
    }
    if !libraries.is_empty() {
        text += "\n";
        let rows: Vec<_> = libraries.iter().map(library_row).collect();
        text += &render(&["LIBRARY", "VERSION", "FILE", "REMARK"], &rows);
    }
    text
}

fn gpu_text(gpu: &GpuReport) -> String {
    let GpuReport { name, uuid, model, capability, cuda, multiprocessors, .. } = gpu;
    let GpuReport { memory_bytes, budget_bytes, used_bytes, sessions, mps, .. } = gpu;
    let used = used_bytes.map(|used| format!("{} used of ", bytes(used))).unwrap_or_default();
    format!(
        "{name}: {model}, {uuid}, capability {capability}, {multiprocessors} multiprocessors, driver for CUDA {cuda}\n  \
         memory: {used}a budget of {}, {} in all\n  \
         sessions: {sessions}, mps: {}\n",
        bytes(*budget_bytes),
        bytes(*memory_bytes),
        if *mps { "running" } else { "not running" },
    )
}

fn library_row(library: &LibraryReport) -> Vec<String> {
    let LibraryReport { name, path, version, remark } = library;
    let version = match (path, version) {
        (None, _) => "missing".to_owned(),
        (Some(_), version) => version.clone().unwrap_or_else(|| "-".to_owned()),
    };
    vec![name.clone(), version, path.clone().unwrap_or_else(|| "-".to_owned()), remark.clone()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn library(name: &str, path: Option<&str>, version: Option<&str>, remark: &str) -> LibraryReport {
        let own = |text: Option<&str>| text.map(str::to_owned);
        LibraryReport {
            name: name.to_owned(),
            path: own(path),
            version: own(version),
            remark: remark.to_owned(),
        }
    }

    #[test]
    fn a_processor_says_why_it_is_no_gpu_and_what_lacks() {
        let device = DeviceReport {
            names: vec!["cpu".to_owned()],
            kind: "auto".to_owned(),
            threads: 2,
            no_gpu: Some("no CUDA driver: libcuda was not found".to_owned()),
            gpus: Vec::new(),
            libraries: vec![
                library("libcuda", None, None, "no GPU can be used"),
                library("NVRTC", Some("/v/libnvrtc.so.13"), Some("13"), "compiles the kernels"),
            ],
        };
        let expected = "device cpu (device.kind is auto), 2 threads\n\
                        no GPU: no CUDA driver: libcuda was not found\n\
                        \n\
                        LIBRARY  VERSION  FILE               REMARK\n\
                        libcuda  missing  -                  no GPU can be used\n\
                        NVRTC    13       /v/libnvrtc.so.13  compiles the kernels\n";
        assert_eq!(device_text(&device), expected);
    }

    #[test]
    fn a_processor_that_was_asked_for_and_an_older_daemon_need_no_reason() {
        let device = DeviceReport {
            names: vec!["cpu".to_owned()],
            kind: "cpu".to_owned(),
            threads: 8,
            ..DeviceReport::default()
        };
        assert_eq!(device_text(&device), "device cpu (device.kind is cpu), 8 threads\n");
        assert_eq!(device_text(&DeviceReport::default()), "");
    }

    #[test]
    fn each_gpu_says_what_it_is_what_it_holds_and_whether_it_is_shared_well() {
        let gpu = |number| GpuReport {
            name: format!("cuda:{number}"),
            uuid: format!("5{number}"),
            model: "NVIDIA H200".to_owned(),
            capability: "9.0".to_owned(),
            cuda: "12.8".to_owned(),
            multiprocessors: 132,
            memory_bytes: 140 << 30,
            budget_bytes: 120 << 30,
            used_bytes: None,
            sessions: 0,
            mps: false,
        };
        let device = DeviceReport {
            names: vec!["cuda:0".to_owned(), "cuda:2".to_owned()],
            kind: "cuda".to_owned(),
            threads: 8,
            gpus: vec![gpu(0), GpuReport { used_bytes: Some(3 << 30), sessions: 4, mps: true, ..gpu(2) }],
            ..DeviceReport::default()
        };
        let expected = "device cuda:0, cuda:2 (device.kind is cuda), 8 threads\n\
            cuda:0: NVIDIA H200, 50, capability 9.0, 132 multiprocessors, driver for CUDA 12.8\n  \
            memory: a budget of 120.0 GiB, 140.0 GiB in all\n  \
            sessions: 0, mps: not running\n\
            cuda:2: NVIDIA H200, 52, capability 9.0, 132 multiprocessors, driver for CUDA 12.8\n  \
            memory: 3.0 GiB used of a budget of 120.0 GiB, 140.0 GiB in all\n  \
            sessions: 4, mps: running\n";
        assert_eq!(device_text(&device), expected);
    }
}
