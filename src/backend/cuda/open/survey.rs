//! What there is of NVIDIA's libraries on this node, and what their lack costs.

use std::{
    borrow::Cow,
    fmt::Display,
    fs,
    path::{Path, PathBuf},
};

use super::super::{Found, Roots, find, libraries::version_of};

/// One of NVIDIA's libraries, as it was found on this node or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LibraryState {
    /// The name people know it by.
    pub name: &'static str,
    /// The file; `None` where there is none.
    pub path: Option<PathBuf>,
    /// The version, as far as its file's name or the library itself tells.
    pub version: Option<String>,
    /// What it is there for, what its lack costs, or why it is not used.
    pub remark: Cow<'static, str>,
}

/// A library that is of use here.
struct Known {
    name: &'static str,
    /// In the file's name, between `lib` and `.so`.
    file: &'static str,
    is_for: &'static str,
    lack_costs: &'static str,
}

const KNOWN: [Known; 4] = [
    Known {
        name: LIBCUDA,
        file: "cuda",
        is_for: "the driver",
        lack_costs: "no GPU can be used: NVIDIA's driver brings it, and the loader has to find it (LD_LIBRARY_PATH, \
                     /etc/ld.so.conf)",
    },
    Known {
        name: NVRTC,
        file: NVRTC_FILE,
        is_for: "compiles CUDA kernels",
        lack_costs: "kernels cannot be compiled, so that no GPU can be used: install PyTorch, or pip's \
                     nvidia-cuda-nvrtc",
    },
    Known {
        name: CUBLASLT,
        file: CUBLASLT_FILE,
        is_for: "matrix products",
        lack_costs: "matrix products run on Kasmina's own kernels, which are slower: install PyTorch, or pip's \
                     nvidia-cublas (nvidia-cublas-cu12 for a driver of CUDA 12)",
    },
    Known {
        name: CUDNN,
        file: CUDNN_FILE,
        is_for: "convolutions",
        lack_costs: "convolutions run on Kasmina's own kernels, which are slower: install PyTorch, or pip's \
                     nvidia-cudnn-cu13 (nvidia-cudnn-cu12 for a driver of CUDA 12)",
    },
];

/// The driver's library.
pub(super) const LIBCUDA: &str = "libcuda";
/// The compiler.
pub(super) const NVRTC: &str = "NVRTC";
/// The compiler's file.
pub(super) const NVRTC_FILE: &str = "nvrtc";
/// The library of products.
pub(super) const CUBLASLT: &str = "cuBLASLt";
/// Its file.
pub(super) const CUBLASLT_FILE: &str = "cublasLt";
/// The library of convolutions.
pub(super) const CUDNN: &str = "cuDNN";
/// Its file.
pub(super) const CUDNN_FILE: &str = "cudnn";

/// Where libraries are looked for: first in the folders that the settings name, each a folder of libraries, a folder of
/// Python packages or a Python environment, then in the usual places.
///
/// `variable` gives a variable of the environment, `root` is `/` but in tests.
///
/// Blocking: lists folders.
pub fn places(folders: &[PathBuf], variable: impl Fn(&str) -> Option<PathBuf>, root: &Path) -> Vec<Roots> {
    let named = folders.iter().map(|folder| {
        let mut roots = Roots::of_environment(folder);
        roots.packages.push(folder.clone());
        roots.folders.push(folder.clone());
        roots
    });
    named.chain([Roots::usual(variable, root)]).collect()
}

/// Every file of a library, in the order of places.
pub(super) fn everywhere(file: &str, places: &[Roots]) -> Vec<Found> {
    places.iter().flat_map(|roots| find(file, roots)).collect()
}

/// Every file of a library that counts its versions as CUDA does, first those that are no younger than the driver: it
/// refuses what a later major version has compiled, or brings compiled.
pub(super) fn candidates(file: &str, places: &[Roots], cuda_major: u32) -> Vec<Found> {
    let mut all = everywhere(file, places);
    all.sort_by_key(|found| found.major > cuda_major);
    all
}

/// What there is of NVIDIA's libraries by the names of files. Nothing is loaded; libcuda, which the loader finds where
/// nobody else knows, is missing until it was [`loaded`].
pub(super) fn survey(places: &[Roots]) -> Vec<LibraryState> {
    let state = |known: &Known| {
        let all = everywhere(known.file, places);
        let first = if known.name == LIBCUDA { None } else { all.into_iter().next() };
        match first {
            Some(Found { path, major }) => {
                let version = version_in_name(known.file, &path).unwrap_or_else(|| major.to_string());
                let (path, version) = (Some(path), Some(version));
                LibraryState { name: known.name, path, version, remark: known.is_for.into() }
            }
            None => {
                LibraryState { name: known.name, path: None, version: None, remark: known.lack_costs.into() }
            }
        }
    };
    KNOWN.iter().map(state).collect()
}

/// Notes which file a library was loaded from.
pub(super) fn loaded(libraries: &mut [LibraryState], name: &str, path: &Path, version: Option<String>) {
    let known = KNOWN.iter().find(|known| known.name == name);
    let state = libraries.iter_mut().find(|state| state.name == name);
    if let (Some(known), Some(state)) = (known, state) {
        (state.path, state.version, state.remark) = (Some(path.to_owned()), version, known.is_for.into());
    }
}

/// Notes why a library that was found is not used.
pub(super) fn unused(libraries: &mut [LibraryState], name: &str, reason: &impl Display) {
    // Without its remedy: one that cannot be used is not mended by installing the same.
    let costs =
        KNOWN.iter().find(|known| known.name == name).and_then(|known| known.lack_costs.split(':').next());
    let costs = costs.unwrap_or_default();
    if let Some(state) = libraries.iter_mut().find(|state| state.name == name) {
        state.remark = format!("not used: {reason}; {costs}").into();
    }
}

/// The version that a file has in its name, or the file that a link leads to.
pub(super) fn version_in_name(name: &str, path: &Path) -> Option<String> {
    let file = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    version_of(name, &file).map(str::to_owned)
}

/// The libcuda among the files that a process has mapped, as `/proc/self/maps` lists them.
pub(super) fn mapped(maps: &str) -> Option<PathBuf> {
    let files = maps.lines().filter_map(|line| line.find('/').map(|at| Path::new(&line[at..])));
    let is_libcuda = |file: &&Path| {
        file.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("libcuda.so"))
    };
    files.into_iter().find(is_libcuda).map(Path::to_owned)
}

/// The folders that are looked in below all places.
pub(super) fn folders_of(places: &[Roots]) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = Vec::new();
    for roots in places {
        for folder in roots.packages.iter().chain(&roots.folders) {
            if !all.contains(folder) {
                all.push(folder.clone());
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::{super::OpenError, *};
    use crate::backend::cuda::libraries::tests::touch;

    #[test]
    fn libraries_are_found_with_their_version_and_what_lacks_says_what_it_costs() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        touch(
            root,
            &[
                "opt/venv/lib/python3.12/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
                "usr/local/cuda/lib64/libnvrtc.so.13",
                "usr/local/cuda/lib64/libcublasLt.so.13.2.1.4",
            ],
        );
        let toolkit = root.join("usr/local/cuda/lib64");
        symlink("libcublasLt.so.13.2.1.4", toolkit.join("libcublasLt.so.13")).unwrap();
        let environment = root.join("opt/venv");
        let state = |folders: &[PathBuf]| {
            survey(&places(folders, |_| None, root))
                .into_iter()
                .map(|library| {
                    let path =
                        library.path.map(|path| path.strip_prefix(root).unwrap().display().to_string());
                    (library.name, path, library.version, library.remark)
                })
                .collect::<Vec<_>>()
        };
        let all = state(std::slice::from_ref(&environment));
        let packages = "opt/venv/lib/python3.12/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12";
        let short = |path: &str, version: &str| (Some(path.to_owned()), Some(version.to_owned()));
        let of = |n: usize| (all[n].1.clone(), all[n].2.clone());
        assert_eq!(
            all.iter().map(|library| library.0).collect::<Vec<_>>(),
            ["libcuda", "NVRTC", "cuBLASLt", "cuDNN"]
        );
        assert_eq!(of(0), (None, None));
        assert!(all[0].3.starts_with("no GPU can be used"), "{}", all[0].3);
        assert_eq!(of(1), short(packages, "12"));
        assert_eq!(of(2), short("usr/local/cuda/lib64/libcublasLt.so.13", "13.2.1.4"));
        assert_eq!(all[2].3, "matrix products");
        assert_eq!(of(3), (None, None));
        assert!(all[3].3.starts_with("convolutions run on Kasmina's own kernels"), "{}", all[3].3);
        // Each kind of folder that the settings may name, before the usual places.
        for folder in [
            environment.join("lib/python3.12/site-packages"),
            environment.join("lib/python3.12/site-packages/nvidia/cuda_nvrtc/lib"),
        ] {
            assert_eq!(state(&[folder])[1].1.as_deref(), Some(packages));
        }
        assert_eq!(state(&[])[1].1.as_deref(), Some("usr/local/cuda/lib64/libnvrtc.so.13"));
    }

    #[test]
    fn what_was_found_and_is_not_used_says_why_and_what_that_costs() {
        let root = tempfile::tempdir().unwrap();
        touch(root.path(), &["a/libcublasLt.so.11"]);
        let mut all = survey(&places(&[root.path().join("a")], |_| None, root.path()));
        unused(&mut all, CUBLASLT, &"it is too old");
        let LibraryState { path, version, remark, .. } = &all[2];
        assert_eq!((path.is_some(), version.as_deref()), (true, Some("11")));
        assert!(
            remark.starts_with("not used: it is too old; matrix products run on Kasmina's own"),
            "{remark}"
        );
        loaded(&mut all, CUBLASLT, Path::new("/b/libcublasLt.so.12"), Some("12.8.4".into()));
        assert_eq!((all[2].version.as_deref(), &*all[2].remark), (Some("12.8.4"), "matrix products"));
    }

    #[test]
    fn a_compiler_that_the_driver_understands_goes_first() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        touch(root, &["a/libnvrtc.so.13", "a/libnvrtc.so.12", "usr/lib64/libnvrtc.so.11"]);
        let places = places(&[root.join("a")], |_| None, root);
        let majors = |cuda_major| {
            candidates(NVRTC_FILE, &places, cuda_major)
                .into_iter()
                .map(|found| found.major)
                .collect::<Vec<_>>()
        };
        assert_eq!(majors(13), [13, 12, 11]);
        assert_eq!(majors(12), [12, 11, 13]);
    }

    #[test]
    fn without_a_compiler_the_error_says_where_it_was_looked_for() {
        let root = tempfile::tempdir().unwrap();
        let named = root.path().join("libraries");
        let looked_in = folders_of(&places(std::slice::from_ref(&named), |_| None, root.path()));
        let text = OpenError::NoCompiler { looked_in }.to_string();
        for folder in [named, root.path().join("usr/local/cuda/lib64")] {
            let folder = folder.display().to_string();
            assert_eq!(text.matches(&folder).count(), 1, "{folder} in {text}");
        }
        assert!(text.ends_with("or name its folder in device.libraries"), "{text}");
    }

    #[test]
    fn the_loaded_driver_is_found_among_mapped_files() {
        let maps = "55d0-55d1 r--p 00000000 08:01 12   /usr/bin/kasminad\n\
                    7f00-7f01 r-xp 00001000 08:01 34   /usr/lib/my libs/libcuda.so.570.86.10\n\
                    7ffd-7ffe rw-p 00000000 00:00 0    [stack]\n";
        let path = mapped(maps).unwrap();
        assert_eq!(path, Path::new("/usr/lib/my libs/libcuda.so.570.86.10"));
        assert_eq!(version_in_name("cuda", &path).as_deref(), Some("570.86.10"));
        assert_eq!(mapped("55d0-55d1 r--p 00000000 08:01 12   /usr/lib/libcudart.so.12\n"), None);
    }
}
