//! Where CUDA's libraries may lie: the usual folders, and those of PyTorch's packages.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
};

/// Folders to look in, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roots {
    /// Folders of Python packages: `nvidia/*/lib` and `torch/lib` below each are looked in.
    pub packages: Vec<PathBuf>,
    /// Folders that hold libraries themselves.
    pub folders: Vec<PathBuf>,
}

/// A library that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The file.
    pub path: PathBuf,
    /// The major version in its name.
    pub major: u32,
}

impl Roots {
    /// The packages of one Python environment, such as a virtual one.
    pub fn of_environment(folder: impl AsRef<Path>) -> Self {
        let mut roots = Self::default();
        roots.add_environment(folder.as_ref());
        roots
    }

    /// All usual places: the active Python environment, the user's and the system's packages, then
    /// `LD_LIBRARY_PATH`, the toolkit and the system's folders. Packages come first: a trainer's PyTorch runs with
    /// them, and one process needs no second copy.
    ///
    /// `variable` gives a variable of the environment, `root` is `/` but in tests.
    pub fn usual(variable: impl Fn(&str) -> Option<PathBuf>, root: &Path) -> Self {
        let mut roots = Self::default();
        if let Some(paths) = variable("LD_LIBRARY_PATH") {
            roots.folders.extend(std::env::split_paths(&paths).filter(|path| path.is_absolute()));
        }
        for name in ["VIRTUAL_ENV", "CONDA_PREFIX"] {
            if let Some(folder) = variable(name) {
                roots.add_environment(&folder);
            }
        }
        if let Some(home) = variable("HOME") {
            roots.add_environment(&home.join(".local"));
        }
        for folder in ["usr/local", "usr"] {
            roots.add_environment(&root.join(folder));
        }
        for name in ["CUDA_HOME", "CUDA_PATH"] {
            roots.folders.extend(variable(name).map(|folder| folder.join("lib64")));
        }
        for folder in [
            "usr/local/cuda/lib64",
            "opt/cuda/lib64",
            "usr/lib64",
            "usr/lib/x86_64-linux-gnu",
            "usr/lib/aarch64-linux-gnu",
        ] {
            roots.folders.push(root.join(folder));
        }
        roots
    }

    /// Adds the package folders of `PREFIX/lib/python3*`, the latest Python first.
    fn add_environment(&mut self, prefix: &Path) {
        let mut pythons: Vec<PathBuf> = names(&prefix.join("lib"))
            .into_iter()
            .filter(|path| path.file_name().is_some_and(|name| starts(name, "python3")))
            .collect();
        pythons.sort_by_key(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            std::cmp::Reverse(
                name.rsplit('.').next().and_then(|minor| minor.parse::<u32>().ok()).unwrap_or(0),
            )
        });
        for python in pythons {
            self.packages.extend(["site-packages", "dist-packages"].map(|folder| python.join(folder)));
        }
    }

    /// Every folder to look in, in order.
    fn all(&self) -> Vec<PathBuf> {
        let mut all = Vec::new();
        for packages in &self.packages {
            let mut of_nvidia = names(&packages.join("nvidia"));
            of_nvidia.sort();
            all.extend(of_nvidia.into_iter().map(|package| package.join("lib")));
            all.push(packages.join("torch/lib"));
        }
        all.extend(self.folders.iter().cloned());
        all
    }
}

/// Every `libNAME.so.MAJOR` in the folders, those of the first folder first, and there the latest.
pub fn find(name: &str, roots: &Roots) -> Vec<Found> {
    let mut found = Vec::new();
    for folder in roots.all() {
        let mut here: Vec<Found> = names(&folder)
            .into_iter()
            .filter_map(|path| {
                let major = version_of(name, &path)?.parse().ok()?;
                Some(Found { path, major })
            })
            .collect();
        here.sort_by_key(|found| std::cmp::Reverse(found.major));
        found.extend(here);
    }
    found
}

/// What stands behind `libNAME.so.` in a file's name.
pub(super) fn version_of<'a>(name: &str, file: &'a Path) -> Option<&'a str> {
    file.file_name()?.to_str()?.strip_prefix("lib")?.strip_prefix(name)?.strip_prefix(".so.")
}

/// What is in a folder; nothing where there is none.
fn names(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

fn starts(name: &OsStr, with: &str) -> bool {
    name.to_str().is_some_and(|name| name.starts_with(with))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Empty files below a folder.
    pub(in crate::backend::cuda) fn touch(root: &Path, files: &[&str]) {
        for file in files {
            let file = root.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "").unwrap();
        }
    }

    fn majors(name: &str, roots: &Roots, root: &Path) -> Vec<(String, u32)> {
        let short = |found: Found| {
            (found.path.strip_prefix(root).unwrap().parent().unwrap().display().to_string(), found.major)
        };
        find(name, roots).into_iter().map(short).collect()
    }

    #[test]
    fn packages_of_both_generations_are_found_before_the_system() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        touch(
            root,
            &[
                "venv/lib/python3.9/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.11",
                "venv/lib/python3.12/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
                "venv/lib/python3.12/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc-builtins.so.12.4",
                "venv/lib/python3.12/site-packages/nvidia/cu13/lib/libnvrtc.so.13",
                "venv/lib/python3.12/site-packages/torch/lib/libnvrtc.so.12",
                "venv/lib/python3.12/site-packages/torch/lib/libnvrtc.alt.so.12",
                "usr/local/cuda/lib64/libnvrtc.so",
                "usr/local/cuda/lib64/libnvrtc.so.12",
                "usr/local/cuda/lib64/libnvrtc.so.12.4.127",
                "usr/lib/x86_64-linux-gnu/libcudnn.so.9",
                "mine/libnvrtc.so.12",
                "mine/libnvrtc.so.13",
            ],
        );
        let own = |name: &str| match name {
            "LD_LIBRARY_PATH" => Some(format!("{}:relative:", root.join("mine").display()).into()),
            "VIRTUAL_ENV" => Some(root.join("venv")),
            _ => None,
        };
        let roots = Roots::usual(own, root);
        let packages = "venv/lib/python3.12/site-packages";
        assert_eq!(
            majors("nvrtc", &roots, root),
            [
                (format!("{packages}/nvidia/cu13/lib"), 13),
                (format!("{packages}/nvidia/cuda_nvrtc/lib"), 12),
                (format!("{packages}/torch/lib"), 12),
                ("venv/lib/python3.9/site-packages/nvidia/cuda_nvrtc/lib".into(), 11),
                ("mine".into(), 13),
                ("mine".into(), 12),
                ("usr/local/cuda/lib64".into(), 12),
            ]
        );
        assert_eq!(majors("cudnn", &roots, root), [("usr/lib/x86_64-linux-gnu".into(), 9)]);
        assert_eq!(find("cublasLt", &roots), []);
    }

    #[test]
    fn where_nothing_is_nothing_is_found() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(find("nvrtc", &Roots::usual(|_| None, root.path())), []);
    }
}
