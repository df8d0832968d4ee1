//! Captured launches: which node of a graph each of them is.

use std::{
    collections::HashMap,
    ptr::null_mut,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use cudarc::driver::sys as cu;

use super::{
    super::{Code, DriverError, Launch, Replay, Stream},
    check, handle, number, with_arguments,
};

/// What streams capture at the moment, and what they have captured.
#[derive(Debug, Default)]
pub(super) struct Captures {
    /// How many streams capture. A launch while none does looks at nothing else, and takes no lock.
    under_way: AtomicUsize,
    /// The nodes so far, by stream.
    nodes: Mutex<HashMap<Stream, Vec<Node>>>,
    captured: RwLock<HashMap<Replay, Arc<Captured>>>,
}

/// The node of a launch; `None` for what a library has captured, as one node or several.
type Node = Option<u64>;

/// What a replay was made of. An update names a node of the graph, which therefore stays.
#[derive(Debug)]
struct Captured {
    graph: u64,
    nodes: Vec<Node>,
}

impl Captures {
    pub(super) fn begin(&self, stream: Stream) -> Result<(), DriverError> {
        // Of this thread alone: other sessions' threads go on allocating.
        let mode = cu::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        call!(cuStreamBeginCapture_v2(handle(stream.0), mode))?;
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).insert(stream, Vec::new());
        // Whoever launches on this stream has begun the capture, so no order with other memory is needed.
        self.under_way.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Keeps the node of the launch that a stream was handed last, if it captures.
    pub(super) fn launched(&self, code: Code, stream: Stream) -> Result<(), DriverError> {
        if self.under_way.load(Ordering::Relaxed) == 0 {
            return Ok(());
        }
        let mut all = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(nodes) = all.get_mut(&stream) else { return Ok(()) };
        if matches!(code, Code::Routine(_)) {
            nodes.push(None);
            return Ok(());
        }
        let mut status = cu::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        let (mut last, mut count) = (std::ptr::null(), 0);
        call!(cuStreamGetCaptureInfo_v2(
            handle(stream.0),
            &mut status,
            null_mut(),
            null_mut(),
            &mut last,
            &mut count
        ))?;
        // What is handed over next would wait for the last launch, and for it alone.
        if status != cu::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE
            || count != 1
            || last.is_null()
        {
            let reason = format!("{status:?} with {count} nodes that come last");
            return Err(DriverError::Failed { call: "cuStreamGetCaptureInfo_v2", reason });
        }
        // SAFETY: the driver has given a list of one, which stays until the stream is handed more.
        nodes.push(Some(number(unsafe { *last })));
        Ok(())
    }

    pub(super) fn end(&self, stream: Stream) -> Result<Replay, DriverError> {
        let known = self.nodes.lock().unwrap_or_else(PoisonError::into_inner).remove(&stream);
        let Some(nodes) = known else {
            return Err(DriverError::Failed {
                call: "cuStreamEndCapture",
                reason: "the stream captures nothing".into(),
            });
        };
        self.under_way.fetch_sub(1, Ordering::Relaxed);
        let (mut graph, mut replay) = (null_mut(), null_mut());
        call!(cuStreamEndCapture(handle(stream.0), &mut graph))?;
        if let Err(error) = call!(cuGraphInstantiateWithFlags(&mut replay, graph, 0)) {
            call!(cuGraphDestroy(graph))?;
            return Err(error);
        }
        let replay = Replay(number(replay));
        let captured = Arc::new(Captured { graph: number(graph), nodes });
        self.captured.write().unwrap_or_else(PoisonError::into_inner).insert(replay, captured);
        Ok(replay)
    }

    /// The caller of [`Driver::update`](super::Driver::update) answers for the launch.
    pub(super) fn update(&self, replay: Replay, nth: usize, launch: &Launch<'_>) -> Result<(), DriverError> {
        let captured = self.captured.read().unwrap_or_else(PoisonError::into_inner).get(&replay).cloned();
        let node = captured.as_ref().and_then(|captured| captured.nodes.get(nth).copied().flatten());
        let (Some(node), Code::Kernel { function, grid, block }) = (node, launch.code) else {
            let reason = format!("no kernel of ours was captured as launch {nth}");
            return Err(DriverError::Failed { call: "cuGraphExecKernelNodeSetParams_v2", reason });
        };
        with_arguments(launch, |extra| {
            let parameters = cu::CUDA_KERNEL_NODE_PARAMS {
                func: handle(function.0),
                gridDimX: grid,
                gridDimY: 1,
                gridDimZ: 1,
                blockDimX: block,
                blockDimY: 1,
                blockDimZ: 1,
                sharedMemBytes: 0,
                kernelParams: null_mut(),
                extra,
                kern: null_mut(),
                ctx: null_mut(),
            };
            call!(cuGraphExecKernelNodeSetParams_v2(handle(replay.0), handle(node), &parameters))
        })
    }

    pub(super) fn close(&self, replay: Replay) -> Result<(), DriverError> {
        let captured = self.captured.write().unwrap_or_else(PoisonError::into_inner).remove(&replay);
        let Some(captured) = captured else { return Ok(()) };
        let closed = call!(cuGraphExecDestroy(handle(replay.0)));
        closed.and(call!(cuGraphDestroy(handle(captured.graph))))
    }
}
