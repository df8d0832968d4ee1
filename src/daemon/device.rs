//! From settings to the devices that kernels run on.

use std::{
    fs,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::DaemonError;
use crate::{
    actor::{DeviceReporter, Devices},
    backend::{
        Backend,
        cpu::{CpuBackend, Winograd},
        cuda::{
            CudaBackend, LibraryState, OpenError, OpenOptions, Opened, Unavailable, count, open_device,
            places,
        },
    },
    config::{Config, Device, DeviceKind},
    wire::{DeviceReport, GpuReport, LibraryReport},
};

/// Where a control daemon of NVIDIA's MPS has its pipe if nobody says otherwise.
const MPS_FOLDER: &str = "/tmp/nvidia-mps";

/// What kernels run on.
#[derive(Debug)]
pub(super) struct ChosenDevice {
    pub(super) devices: Arc<Devices>,
    /// As operators are told.
    pub(super) report: DeviceReport,
    /// What counts the memory of the GPUs, in the report's order.
    counted: Vec<Arc<CudaBackend>>,
}

impl ChosenDevice {
    /// The report with what is in use when somebody asks.
    pub(super) fn reporter(&self) -> DeviceReporter {
        let (report, counted, devices) = (self.report.clone(), self.counted.clone(), self.devices.clone());
        Arc::new(move || {
            let mut report = report.clone();
            for ((gpu, counted), sessions) in report.gpus.iter_mut().zip(&counted).zip(devices.sessions()) {
                (gpu.used_bytes, gpu.sessions) = (Some(counted.held_bytes() as u64), sessions as u64);
            }
            report
        })
    }
}

/// Takes the devices that the settings ask for. For the processor nothing of CUDA is looked for.
///
/// GPUs are opened one after the other, on a thread of its own, as long as that takes: the first one's kernels are on the
/// disk for those that are like it. Whoever stops waiting does not stop it.
///
/// # Errors
/// When the settings ask for GPUs alone: [`DaemonError::NoGpu`] where none can be used, [`DaemonError::NamedGpu`] where one that
/// they name cannot.
pub(super) async fn choose_device(
    config: &Config,
    variable: fn(&str) -> Option<PathBuf>,
) -> Result<ChosenDevice, DaemonError> {
    if config.device.kind == DeviceKind::Cpu {
        return Ok(processor(&config.device));
    }
    let (settings, image_folder) = (config.device.clone(), config.image_folder());
    let opening = tokio::task::spawn_blocking(move || {
        let options = OpenOptions {
            ordinal: 0,
            memory_bytes: settings.memory.0,
            graphs: settings.graphs,
            tf32: settings.tf32,
            libraries: true,
            places: places(&settings.libraries, variable, Path::new("/")),
            image_folder,
        };
        let open =
            |ordinal| Attempt { ordinal, opened: open_device(&OpenOptions { ordinal, ..options.clone() }) };
        match settings.ordinals.as_slice() {
            // Where there is none, whoever opens the first one says why.
            [] => (0..count().max(1)).map(open).collect(),
            named => named.iter().copied().map(open).collect(),
        }
    });
    // A driver that lacks a function which its version has promised is a panic of the binding.
    let attempts = opening.await.unwrap_or_else(|panic| {
        let error = OpenError::Panicked { reason: panic.to_string() };
        vec![Attempt { ordinal: 0, opened: Err(Unavailable { error, libraries: Vec::new() }) }]
    });
    let mps_folder = variable("CUDA_MPS_PIPE_DIRECTORY").unwrap_or_else(|| MPS_FOLDER.into());
    Ok(match settle(&config.device, attempts)? {
        Settled::Gpus(first, others, refusals) => {
            let (session, arena) = (config.limits.max_bytes_per_session, config.data_plane.arena_bytes);
            if session < arena {
                tracing::warn!(
                    %session,
                    %arena,
                    "what an arena takes of a GPU counts: limits.max_bytes_per_session below data_plane.arena_bytes refuses trainers that ask for a whole one"
                );
            }
            gpus(&config.device, first, others, &refusals, mps_runs(&mps_folder))
        }
        Settled::Processor(chosen) => chosen,
    })
}

/// What came of opening a GPU.
struct Attempt {
    ordinal: u32,
    opened: Result<Opened, Unavailable>,
}

/// What attempts to open GPUs come to.
enum Settled {
    /// At least one, and why others are not used.
    Gpus(Opened, Vec<Opened>, Vec<String>),
    Processor(ChosenDevice),
}

fn settle(settings: &Device, attempts: Vec<Attempt>) -> Result<Settled, DaemonError> {
    let (mut opened, mut refused) = (Vec::new(), Vec::new());
    for Attempt { ordinal, opened: result } in attempts {
        match result {
            Ok(gpu) => opened.push(gpu),
            Err(unavailable) => refused.push((ordinal, unavailable)),
        }
    }
    let is_named = !settings.ordinals.is_empty();
    if settings.kind == DeviceKind::Cuda && !refused.is_empty() {
        if is_named {
            return Err(DaemonError::NamedGpu { refused });
        }
        if opened.is_empty() {
            return Err(DaemonError::NoGpu { refused });
        }
    }
    let mut opened = opened.into_iter();
    if let Some(first) = opened.next() {
        let refusals: Vec<String> = refused
            .iter()
            .map(|(ordinal, unavailable)| format!("cuda:{ordinal}: {}", unavailable.error))
            .collect();
        for reason in &refusals {
            tracing::warn!(reason, "a GPU is not used");
        }
        return Ok(Settled::Gpus(first, opened.collect(), refusals));
    }
    let mut chosen = processor(settings);
    if let Some((_, Unavailable { error, libraries })) = refused.first() {
        tracing::info!(reason = %error, "no GPU, kernels run on the CPU");
        chosen.report.no_gpu = Some(error.to_string());
        chosen.report.libraries = libraries.iter().map(library_report).collect();
    }
    Ok(Settled::Processor(chosen))
}

fn processor(settings: &Device) -> ChosenDevice {
    let winograd = Winograd::where_faster(settings.winograd);
    let backend = Arc::new(CpuBackend::new(settings.thread_count()).with_winograd(winograd));
    let report = report(settings, vec![backend.name().to_owned()]);
    ChosenDevice { devices: Devices::new(backend, []), report, counted: Vec::new() }
}

fn gpus(
    settings: &Device,
    first: Opened,
    others: Vec<Opened>,
    refusals: &[String],
    mps: bool,
) -> ChosenDevice {
    for library in first.libraries.iter().filter(|library| library.path.is_none()) {
        tracing::info!(library = library.name, costs = &*library.remark, "library missing");
    }
    let libraries = first.libraries.iter().map(library_report).collect();
    let counted: Vec<_> =
        std::iter::once(&first).chain(&others).map(|opened| opened.backend.clone()).collect();
    let devices = Devices::new(
        first.backend.clone(),
        others.iter().map(|opened| opened.backend.clone() as Arc<dyn Backend>),
    );
    let gpus: Vec<_> = std::iter::once(first).chain(others).map(|opened| gpu_report(opened, mps)).collect();
    let report = DeviceReport {
        no_gpu: (!refusals.is_empty()).then(|| refusals.join("; ")),
        libraries,
        ..report(settings, gpus.iter().map(|gpu| gpu.name.clone()).collect())
    };
    ChosenDevice { devices, report: DeviceReport { gpus, ..report }, counted }
}

fn gpu_report(opened: Opened, mps: bool) -> GpuReport {
    let Opened { properties, budget_bytes, .. } = opened;
    tracing::info!(
        device = properties.name,
        model = properties.model,
        capability = pair(properties.capability),
        cuda = pair(properties.cuda),
        budget_bytes,
        mps,
        "kernels run on the GPU"
    );
    GpuReport {
        name: properties.name,
        uuid: properties.uuid,
        model: properties.model,
        capability: pair(properties.capability),
        cuda: pair(properties.cuda),
        multiprocessors: properties.multiprocessors,
        memory_bytes: properties.memory_bytes,
        budget_bytes,
        used_bytes: None,
        sessions: 0,
        mps,
    }
}

fn report(settings: &Device, names: Vec<String>) -> DeviceReport {
    DeviceReport {
        names,
        kind: settings.kind.as_str().to_owned(),
        threads: settings.thread_count() as u64,
        ..DeviceReport::default()
    }
}

fn library_report(library: &LibraryState) -> LibraryReport {
    LibraryReport {
        name: library.name.to_owned(),
        path: library.path.as_ref().map(|path| path.display().to_string()),
        version: library.version.clone(),
        remark: library.remark.to_string(),
    }
}

/// Two numbers as a version.
fn pair((major, minor): (u32, u32)) -> String {
    format!("{major}.{minor}")
}

/// Whether a control daemon of MPS has its pipe in the folder. Its processes are asked nothing: whoever connects is a
/// client of theirs.
fn mps_runs(folder: &Path) -> bool {
    let is_pipe = |kind: fs::FileType| kind.is_fifo() || kind.is_socket();
    fs::metadata(folder.join("control")).is_ok_and(|found| is_pipe(found.file_type()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::{backend::cuda::DriverError, fault::Fault as _};

    fn settings(kind: DeviceKind) -> Device {
        Device { kind, threads: 3, ..Device::default() }
    }

    fn refusal() -> Vec<Attempt> {
        let error = OpenError::NoCompiler { looked_in: vec!["/opt/venv".into()] };
        let libcuda = LibraryState {
            name: "libcuda",
            path: Some("/usr/lib64/libcuda.so.570.86".into()),
            version: Some("570.86".into()),
            remark: "the driver".into(),
        };
        let nvrtc = LibraryState {
            name: "NVRTC",
            path: None,
            version: None,
            remark: "kernels cannot be compiled".into(),
        };
        vec![Attempt { ordinal: 0, opened: Err(Unavailable { error, libraries: vec![libcuda, nvrtc] }) }]
    }

    #[test]
    fn without_a_gpu_auto_is_the_processor_and_says_why() {
        let Settled::Processor(chosen) = settle(&settings(DeviceKind::Auto), refusal()).unwrap() else {
            panic!("no GPU was opened");
        };
        assert_eq!(chosen.devices.seat(None).unwrap().backend().name(), "cpu");
        let DeviceReport { names, kind, threads, no_gpu, gpus, libraries } = chosen.report;
        assert_eq!((names, kind.as_str(), threads, gpus), (vec!["cpu".to_owned()], "auto", 3, vec![]));
        assert!(no_gpu.unwrap().starts_with("NVRTC, which compiles the kernels, was not found in /opt/venv"));
        let shown: Vec<_> = libraries.iter().map(|l| (l.name.as_str(), l.path.as_deref())).collect();
        assert_eq!(shown, [("libcuda", Some("/usr/lib64/libcuda.so.570.86")), ("NVRTC", None)]);
        assert_eq!(libraries[0].version.as_deref(), Some("570.86"));
        assert_eq!(libraries[1].remark, "kernels cannot be compiled");
    }

    #[test]
    fn without_a_gpu_cuda_is_refused_by_its_key_and_with_the_reason() {
        let Err(error) = settle(&settings(DeviceKind::Cuda), refusal()) else {
            panic!("there is no GPU to run on");
        };
        let text = error.to_string();
        let begin =
            "device.kind is cuda, and no GPU can be used: NVRTC, which compiles the kernels, was not found";
        assert!(text.starts_with(begin), "{text}");
        assert_eq!(error.code(), "device.unavailable");
    }

    #[tokio::test]
    async fn for_the_processor_nothing_is_looked_for() {
        let config = Config { device: settings(DeviceKind::Cpu), ..Config::default() };
        let chosen = choose_device(&config, |name| panic!("{name} was asked for")).await.unwrap();
        assert_eq!(chosen.devices.seat(None).unwrap().backend().name(), "cpu");
        let expected = DeviceReport {
            names: vec!["cpu".to_owned()],
            kind: "cpu".to_owned(),
            threads: 3,
            ..DeviceReport::default()
        };
        assert_eq!(chosen.report, expected);
    }

    #[tokio::test]
    async fn a_number_that_no_gpu_has_is_no_gpu() {
        let choose = async |kind| {
            let device = Device { ordinals: vec![4096], ..settings(kind) };
            choose_device(&Config { device, ..Config::default() }, |_| None).await
        };
        let chosen = choose(DeviceKind::Auto).await.unwrap();
        assert_eq!((chosen.report.names, chosen.report.gpus), (vec!["cpu".to_owned()], vec![]));
        let why = chosen.report.no_gpu.unwrap();
        assert_eq!(chosen.report.libraries.len(), 4);
        let error = choose(DeviceKind::Cuda).await.unwrap_err();
        let text = format!("device.kind is cuda, and device.ordinals names what cannot be used: {why}");
        assert_eq!(error.to_string(), text);
    }

    #[test]
    fn each_gpu_that_is_named_and_refused_is_told_of() {
        let device = Device { ordinals: vec![0, 7], ..settings(DeviceKind::Cuda) };
        let refused =
            |ordinal, error| Attempt { ordinal, opened: Err(Unavailable { error, libraries: Vec::new() }) };
        let failed = DriverError::Failed { call: "cuInit", reason: "not yet".into() };
        let none = DriverError::NoDevice { ordinal: 7, count: 2 };
        let attempts = vec![refused(0, failed.into()), refused(7, none.into())];
        let Err(error) = settle(&device, attempts) else { panic!("there is no GPU to run on") };
        assert_eq!(
            error.to_string(),
            "device.kind is cuda, and device.ordinals names what cannot be used: cuda:0: cuInit failed: not yet; cuda:7: there is no device 7: the driver shows 2, and counts them from 0"
        );
        assert_eq!(error.code(), "device.unavailable", "no other try would find the second one");
    }

    #[tokio::test]
    async fn a_panic_while_opening_is_a_reason_like_others() {
        let config = Config { device: settings(DeviceKind::Auto), ..Config::default() };
        let variable = |name: &str| if name == "HOME" { panic!("no home") } else { None };
        let chosen = choose_device(&config, variable).await.unwrap();
        let why = chosen.report.no_gpu.unwrap();
        assert!(why.starts_with("opening the GPU panicked: ") && why.contains("no home"), "{why}");
    }

    #[test]
    fn mps_runs_where_its_pipe_is() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!mps_runs(folder.path()) && !mps_runs(&folder.path().join("nowhere")));
        let pipe = folder.path().join("control");
        fs::write(&pipe, "").unwrap();
        assert!(!mps_runs(folder.path()), "a plain file is no pipe");
        fs::remove_file(&pipe).unwrap();
        let _listener = UnixListener::bind(&pipe).unwrap();
        assert!(mps_runs(folder.path()));
    }
}
