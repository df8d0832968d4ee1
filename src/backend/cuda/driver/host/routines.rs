//! The libraries of a device that is the host.

use std::fmt;

use half::{bf16, f16};

use super::{
    super::{Address, DriverError, PlannedRoutine, Routine, RoutineArguments, RoutineSpec, Routines},
    HostDriver, convolutions, failed, products,
};
use crate::tensor::DType;

/// What a workspace holds while a routine runs.
const SCRIBBLE: u8 = 0x5E;

/// Which libraries there are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Libraries {
    pub(super) products: bool,
    pub(super) convolutions: bool,
}

impl Routines for HostDriver {
    fn plan_routine(&self, spec: &RoutineSpec) -> Option<PlannedRoutine> {
        let is_there = match spec {
            RoutineSpec::Product(spec) => {
                products::check(spec);
                self.libraries.products
            }
            RoutineSpec::Convolution(spec) => {
                convolutions::check(spec);
                self.libraries.convolutions
            }
        };
        if !is_there {
            return None;
        }
        let mut state = self.state();
        let routine = Routine(state.number());
        state.routines.insert(routine, *spec);
        Some(PlannedRoutine { routine, workspace_bytes: workspace_bytes(spec) })
    }

    fn close_routine(&self, routine: Routine) {
        assert!(self.state().routines.remove(&routine).is_some(), "{routine:?} is not open");
    }
}

fn workspace_bytes(spec: &RoutineSpec) -> usize {
    match spec {
        RoutineSpec::Product(spec) => products::workspace_bytes(spec),
        RoutineSpec::Convolution(spec) => convolutions::workspace_bytes(spec),
    }
}

/// Does what a routine is for.
///
/// # Safety
/// All addresses must be good for what the routine touches.
pub(super) unsafe fn run(spec: &RoutineSpec, at: &RoutineArguments) -> Result<(), DriverError> {
    let scribbled = workspace_bytes(spec);
    // SAFETY: as the caller promises.
    unsafe {
        if scribbled > 0 {
            std::ptr::write_bytes(at.workspace as *mut u8, SCRIBBLE, scribbled);
        }
        match spec {
            RoutineSpec::Product(spec) => products::multiply(spec, at),
            RoutineSpec::Convolution(spec) => convolutions::convolve(spec, at),
        }
    }
}

pub(super) fn check_aligned(
    address: Address,
    alignment_bytes: u32,
    spec: &impl fmt::Debug,
) -> Result<(), DriverError> {
    if address.is_multiple_of(alignment_bytes.into()) {
        return Ok(());
    }
    failed("running a routine", format!("{address:#x} is not aligned as promised by {spec:?}"))
}

/// # Safety
/// There must be such an element.
pub(super) unsafe fn read(dtype: DType, start: Address, nth: u64) -> f64 {
    let nth = nth as usize;
    // SAFETY: as the caller promises.
    unsafe {
        match dtype {
            DType::F64 => *(start as *const f64).add(nth),
            DType::F32 => (*(start as *const f32).add(nth)).into(),
            DType::F16 => (*(start as *const f16).add(nth)).into(),
            _ => (*(start as *const bf16).add(nth)).into(),
        }
    }
}

/// # Safety
/// There must be such an element.
pub(super) unsafe fn write(dtype: DType, start: Address, nth: u64, value: f64) {
    let nth = nth as usize;
    // SAFETY: as the caller promises.
    unsafe {
        match dtype {
            DType::F64 => *(start as *mut f64).add(nth) = value,
            DType::F32 => *(start as *mut f32).add(nth) = value as f32,
            DType::F16 => *(start as *mut f16).add(nth) = f16::from_f64(value),
            _ => *(start as *mut bf16).add(nth) = bf16::from_f64(value),
        }
    }
}
