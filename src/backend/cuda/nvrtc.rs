//! NVRTC, the compiler as a library: found at run time, called through its C functions.
//!
//! Bound here and not through cudarc, which looks for libraries by name alone: PyTorch's packages lie in folders that
//! the loader does not know.

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    path::{Path, PathBuf},
    ptr::null_mut,
};

use libloading::Library;

use super::compile::CompileError;

type Program = *mut c_void;
type Status = c_int;

/// A loaded NVRTC.
#[derive(Debug)]
pub struct Nvrtc {
    library: Library,
    path: PathBuf,
    version: (u32, u32),
}

/// What NVRTC made of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Compiled {
    /// Machine code of one capability, or PTX that ends with a 0.
    pub(super) image: Vec<u8>,
    /// What the compiler had to say; empty when it was content.
    pub(super) log: String,
}

macro_rules! call {
    ($nvrtc:expr, $name:ident($($argument:expr => $type:ty),*)) => {{
        let name = concat!(stringify!($name), "\0");
        // SAFETY: the type is that of the function in NVRTC's header, which has not changed since CUDA 11.
        match unsafe { $nvrtc.library.get::<unsafe extern "C" fn($($type),*) -> Status>(name.as_bytes()) } {
            // SAFETY: the arguments are what the function's documentation asks for; see each call.
            Ok(function) => match unsafe { function($($argument),*) } {
                0 => Ok(()),
                code => Err(code),
            },
            Err(_) => Err(MISSING),
        }
    }};
}

/// What stands for a function that the library has not.
const MISSING: Status = -1;

impl Nvrtc {
    /// Loads the library at a path.
    ///
    /// # Errors
    /// [`CompileError::Library`] when it is no NVRTC, or one that cannot be loaded here.
    pub fn load(path: &Path) -> Result<Self, CompileError> {
        let fail = |reason: String| CompileError::Library { path: path.to_owned(), reason };
        // SAFETY: NVRTC's start-up code touches nothing of ours. A library that merely bears its name is one that
        // whoever configured the search path vouches for.
        let library = unsafe { Library::new(path) }.map_err(|error| fail(error.to_string()))?;
        let mut nvrtc = Self { library, path: path.to_owned(), version: (0, 0) };
        let (mut major, mut minor): (c_int, c_int) = (0, 0);
        let status = call!(nvrtc, nvrtcVersion(&mut major => *mut c_int, &mut minor => *mut c_int));
        status.map_err(|code| fail(nvrtc.words(code)))?;
        nvrtc.version = (major.unsigned_abs(), minor.unsigned_abs());
        Ok(nvrtc)
    }

    /// Where it was loaded from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its version, major and minor.
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// The capabilities it makes machine code for, as 10·major + minor, ascending.
    pub(super) fn capabilities(&self) -> Result<Vec<u32>, CompileError> {
        let fail = |code| CompileError::Library { path: self.path.clone(), reason: self.words(code) };
        let mut count: c_int = 0;
        call!(self, nvrtcGetNumSupportedArchs(&mut count => *mut c_int)).map_err(fail)?;
        let mut all: Vec<c_int> = vec![0; count.max(0) as usize];
        // The list has as many entries as were asked for.
        call!(self, nvrtcGetSupportedArchs(all.as_mut_ptr() => *mut c_int)).map_err(fail)?;
        Ok(all.into_iter().map(c_int::unsigned_abs).collect())
    }

    /// Compiles one source. `to_ptx` asks for PTX instead of machine code.
    pub(super) fn compile(
        &self,
        name: &str,
        text: &str,
        headers: &[(&str, String)],
        options: &[String],
        to_ptx: bool,
    ) -> Result<Compiled, CompileError> {
        let fail = |reason: String| CompileError::Source { name: name.to_owned(), reason };
        let c = |text: &str| CString::new(text).map_err(|error| fail(error.to_string()));
        let (source, file) = (c(text)?, c(name)?);
        let texts = headers.iter().map(|(_, text)| c(text)).collect::<Result<Vec<_>, _>>()?;
        let names = headers.iter().map(|(name, _)| c(name)).collect::<Result<Vec<_>, _>>()?;
        let options = options.iter().map(|option| c(option)).collect::<Result<Vec<_>, _>>()?;
        let pointers = |all: &[CString]| all.iter().map(|text| text.as_ptr()).collect::<Vec<_>>();
        let (texts_at, names_at, options_at) = (pointers(&texts), pointers(&names), pointers(&options));
        let mut program = Open { nvrtc: self, program: null_mut() };
        // Every string ends with a 0 and lives until the end of this function; the lists are as long as is said.
        call!(self, nvrtcCreateProgram(
            &mut program.program => *mut Program,
            source.as_ptr() => *const c_char,
            file.as_ptr() => *const c_char,
            headers.len() as c_int => c_int,
            texts_at.as_ptr() => *const *const c_char,
            names_at.as_ptr() => *const *const c_char
        ))
        .map_err(|code| fail(self.words(code)))?;
        let status = call!(self, nvrtcCompileProgram(
            program.program => Program,
            options_at.len() as c_int => c_int,
            options_at.as_ptr() => *const *const c_char
        ));
        let log = program.bytes("nvrtcGetProgramLogSize\0", "nvrtcGetProgramLog\0").unwrap_or_default();
        let log = String::from_utf8_lossy(log.strip_suffix(&[0]).unwrap_or(&log)).trim().to_owned();
        status.map_err(|code| fail(format!("{}\n{log}", self.words(code))))?;
        let image = if to_ptx {
            program.bytes("nvrtcGetPTXSize\0", "nvrtcGetPTX\0")
        } else {
            program.bytes("nvrtcGetCUBINSize\0", "nvrtcGetCUBIN\0")
        };
        Ok(Compiled { image: image.map_err(|code| fail(self.words(code)))?, log })
    }

    /// An error's name, as the library tells it.
    fn words(&self, code: Status) -> String {
        if code == MISSING {
            return "it lacks a function that NVRTC has had since CUDA 11.2".into();
        }
        // SAFETY: the type is that of the function in NVRTC's header.
        let function = unsafe {
            self.library.get::<unsafe extern "C" fn(Status) -> *const c_char>(b"nvrtcGetErrorString\0")
        };
        let Ok(function) = function else { return format!("error {code}") };
        // SAFETY: any number may be asked about; the answer is a string that stays.
        let words = unsafe { CStr::from_ptr(function(code)) };
        words.to_string_lossy().into_owned()
    }
}

/// A program of NVRTC, let go at the end.
struct Open<'a> {
    nvrtc: &'a Nvrtc,
    program: Program,
}

impl Open<'_> {
    /// What a pair of functions, of which one tells the size, gives out of the program.
    fn bytes(&self, size_of: &str, get: &str) -> Result<Vec<u8>, Status> {
        let library = &self.nvrtc.library;
        // SAFETY: all pairs that are asked for have these types in NVRTC's header.
        let (size_of, get) = unsafe {
            (
                library.get::<unsafe extern "C" fn(Program, *mut usize) -> Status>(size_of.as_bytes()),
                library.get::<unsafe extern "C" fn(Program, *mut c_char) -> Status>(get.as_bytes()),
            )
        };
        let (Ok(size_of), Ok(get)) = (size_of, get) else { return Err(MISSING) };
        let mut size = 0;
        // SAFETY: the program is open, and the number is ours.
        let status = unsafe { size_of(self.program, &mut size) };
        if status != 0 {
            return Err(status);
        }
        let mut bytes = vec![0u8; size];
        // SAFETY: the program is open, and there is room for as many bytes as it has said.
        match unsafe { get(self.program, bytes.as_mut_ptr().cast()) } {
            0 => Ok(bytes),
            status => Err(status),
        }
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        if self.program.is_null() {
            return;
        }
        let mut program = self.program;
        // The program was made by this library and is not used again.
        if let Err(code) = call!(self.nvrtc, nvrtcDestroyProgram(&mut program => *mut Program)) {
            tracing::debug!(code, "a program of NVRTC could not be let go");
        }
    }
}
