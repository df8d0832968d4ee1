//! What `kasmina status` says of the device.

use super::table::{bytes, render};
use crate::wire::{DeviceReport, GpuReport, LibraryReport};

/// The device, why it is this one, and NVIDIA's libraries. Empty for a daemon of a version that did not tell.
pub(super) fn device_text(device: &DeviceReport) -> String {
    if device.name.is_empty() {
        return String::new();
    }
    let DeviceReport { name, kind, threads, no_gpu, gpu, libraries } = device;
    let mut text = match gpu {
        Some(gpu) => gpu_text(name, kind, gpu),
        None => format!("device {name} (device.kind is {kind}), {threads} threads\n"),
    };
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

fn gpu_text(name: &str, kind: &str, gpu: &GpuReport) -> String {
    let GpuReport { model, capability, cuda, multiprocessors, memory_bytes, budget_bytes, used_bytes, mps } =
        gpu;
    let used = used_bytes.map(|used| format!("{} used of ", bytes(used))).unwrap_or_default();
    format!(
        "device {name} (device.kind is {kind}), {model}, capability {capability}, {multiprocessors} multiprocessors, \
         driver for CUDA {cuda}\n\
         memory: {used}a budget of {}, {} in all\n\
         mps: {}\n",
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
            name: "cpu".to_owned(),
            kind: "auto".to_owned(),
            threads: 2,
            no_gpu: Some("no CUDA driver: libcuda was not found".to_owned()),
            gpu: None,
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
            name: "cpu".to_owned(),
            kind: "cpu".to_owned(),
            threads: 8,
            ..DeviceReport::default()
        };
        assert_eq!(device_text(&device), "device cpu (device.kind is cpu), 8 threads\n");
        assert_eq!(device_text(&DeviceReport::default()), "");
    }

    #[test]
    fn a_gpu_says_what_it_is_what_it_holds_and_whether_it_is_shared_well() {
        let gpu = GpuReport {
            model: "NVIDIA H200".to_owned(),
            capability: "9.0".to_owned(),
            cuda: "12.8".to_owned(),
            multiprocessors: 132,
            memory_bytes: 140 << 30,
            budget_bytes: 120 << 30,
            used_bytes: None,
            mps: false,
        };
        let text = |gpu| {
            let (name, kind) = ("cuda:0".to_owned(), "cuda".to_owned());
            device_text(&DeviceReport { name, kind, gpu: Some(gpu), ..DeviceReport::default() })
        };
        let head = "device cuda:0 (device.kind is cuda), NVIDIA H200, capability 9.0, 132 multiprocessors, driver for \
                    CUDA 12.8\n";
        let quiet = "memory: a budget of 120.0 GiB, 140.0 GiB in all\nmps: not running\n";
        assert_eq!(text(gpu.clone()), format!("{head}{quiet}"));
        let shared = "memory: 3.0 GiB used of a budget of 120.0 GiB, 140.0 GiB in all\nmps: running\n";
        assert_eq!(
            text(GpuReport { used_bytes: Some(3 << 30), mps: true, ..gpu }),
            format!("{head}{shared}")
        );
    }
}
