//! The calls of a driver.

use super::{
    Address, DriverError, Event, Function, Launch, Module, Priority, Properties, Replay, Routines,
    SharedBlock, Stream,
};

/// One device and the calls that the backend makes.
///
/// Calls may come from any thread. Work on a stream runs in order; works on two streams are ordered by events alone.
/// What is handed over may fail later: then the next call that waits for it says so.
pub trait Driver: Routines {
    /// What the device is.
    fn properties(&self) -> &Properties;

    /// What has failed so that every further call fails too, until the process has ended; `None` as long as the device
    /// works.
    fn lost(&self) -> Option<DriverError>;

    /// Bytes of the device's memory that nobody has, in this process or another.
    ///
    /// # Errors
    /// [`DriverError::Failed`].
    fn free_bytes(&self) -> Result<usize, DriverError>;

    /// Memory of the device, aligned to 256 bytes, with undefined content. `bytes` is at least 1.
    ///
    /// # Errors
    /// [`DriverError::OutOfMemory`]; [`DriverError::Failed`] when work on the device has failed before.
    fn allocate(&self, bytes: usize) -> Result<Address, DriverError>;

    /// Gives memory back.
    ///
    /// # Errors
    /// [`DriverError::Failed`] when work on the device has failed before.
    ///
    /// # Safety
    /// The address must come from [`allocate`](Self::allocate), and no work under way may use it.
    unsafe fn free(&self, address: Address) -> Result<(), DriverError>;

    /// Memory of the device, with undefined content, that another process can map. It is as large as asked for, or larger.
    /// `bytes` is at least 1.
    ///
    /// # Errors
    /// [`DriverError::OutOfMemory`]; [`DriverError::Failed`] where processes cannot share any, or work on the device has
    /// failed before.
    fn share(&self, bytes: usize) -> Result<SharedBlock, DriverError>;

    /// Gives such memory back, as far as this process has it.
    ///
    /// # Errors
    /// [`DriverError::Failed`] when work on the device has failed before.
    ///
    /// # Safety
    /// Address and length must be those of a [`SharedBlock`], and no work under way may use it.
    unsafe fn unshare(&self, address: Address, bytes: usize) -> Result<(), DriverError>;

    /// Host memory that stays in its place, so that the device reads and writes it by itself; zeroed, and aligned to a
    /// page. `bytes` is at least 1.
    ///
    /// # Errors
    /// [`DriverError::Failed`], most often because the host lets no more be locked.
    fn allocate_host(&self, bytes: usize) -> Result<*mut u8, DriverError>;

    /// Gives such memory back.
    ///
    /// # Errors
    /// [`DriverError::Failed`] when work on the device has failed before.
    ///
    /// # Safety
    /// The address must come from [`allocate_host`](Self::allocate_host), and nobody may use the memory, nor work under
    /// way.
    unsafe fn free_host(&self, start: *mut u8) -> Result<(), DriverError>;

    /// Locks host memory of the caller's in its place, as that of [`allocate_host`](Self::allocate_host) is.
    ///
    /// # Errors
    /// [`DriverError::Failed`] when the driver will not have it. Copies from and to it work all the same, only slower.
    ///
    /// # Safety
    /// The memory must stay mapped until it is given to [`unregister`](Self::unregister).
    unsafe fn register(&self, start: *mut u8, bytes: usize) -> Result<(), DriverError>;

    /// Lets registered memory go.
    ///
    /// # Errors
    /// [`DriverError::Failed`] when work on the device has failed before.
    ///
    /// # Safety
    /// The address must have been given to [`register`](Self::register), and no work under way may use the memory.
    unsafe fn unregister(&self, start: *mut u8) -> Result<(), DriverError>;

    /// Hands over a copy of bytes to the device; they are read before this returns. Blocking at times.
    ///
    /// # Errors
    /// [`DriverError::Failed`].
    ///
    /// # Safety
    /// As many bytes must be allocated from `to` on until it is done.
    unsafe fn copy_in(&self, to: Address, from: &[u8], stream: Stream) -> Result<(), DriverError>;

    /// Hands over a copy from the host to the device.
    ///
    /// Where the host's memory is locked, this returns at once and the device reads later. Where it is not, the driver
    /// waits or puts the bytes aside, and has read them when it returns.
    ///
    /// # Errors
    /// [`DriverError::Failed`].
    ///
    /// # Safety
    /// As many bytes must be allocated from `to` on, and valid for reads from `from` on, until it is done.
    unsafe fn bring(
        &self,
        to: Address,
        from: *const u8,
        bytes: usize,
        stream: Stream,
    ) -> Result<(), DriverError>;

    /// Hands over a copy from the device to the host.
    ///
    /// Where the host's memory is locked, this returns at once and the device writes later. Where it is not, the driver
    /// waits, and has written the bytes when it returns.
    ///
    /// # Errors
    /// [`DriverError::Failed`].
    ///
    /// # Safety
    /// As many bytes must be allocated from `from` on, and valid for writes from `to` on, until it is done.
    unsafe fn send(
        &self,
        to: *mut u8,
        from: Address,
        bytes: usize,
        stream: Stream,
    ) -> Result<(), DriverError>;

    /// Copies bytes from the device, and returns when they are here. Blocking.
    ///
    /// # Errors
    /// [`DriverError::Failed`].
    ///
    /// # Safety
    /// As many bytes must be allocated from `from` on.
    unsafe fn copy_out(&self, to: &mut [u8], from: Address, stream: Stream) -> Result<(), DriverError>;

    /// Hands over a copy on the device itself.
    ///
    /// # Errors
    /// [`DriverError::Failed`].
    ///
    /// # Safety
    /// As many bytes must be allocated on both sides until the copy is done.
    unsafe fn copy(
        &self,
        to: Address,
        from: Address,
        bytes: usize,
        stream: Stream,
    ) -> Result<(), DriverError>;

    /// Hands over the filling of memory with one byte.
    ///
    /// # Errors
    /// [`DriverError::Failed`].
    ///
    /// # Safety
    /// As many bytes must be allocated until it is done.
    unsafe fn fill(&self, to: Address, byte: u8, bytes: usize, stream: Stream) -> Result<(), DriverError>;

    /// A new stream.
    ///
    /// # Errors
    /// [`DriverError::Failed`].
    fn open_stream(&self, priority: Priority) -> Result<Stream, DriverError>;

    /// Lets a stream go when its work is done.
    ///
    /// # Errors
    /// [`DriverError::Failed`] when work on the device has failed before.
    fn close_stream(&self, stream: Stream) -> Result<(), DriverError>;

    /// Waits until all that was handed to a stream is done. Blocking.
    ///
    /// # Errors
    /// [`DriverError::Failed`] when some of it failed.
    fn synchronize(&self, stream: Stream) -> Result<(), DriverError>;

    /// Waits until all that was handed to any stream is done. Blocking.
    ///
    /// # Errors
    /// [`DriverError::Failed`] when some of it failed, or when a stream is being captured.
    fn synchronize_all(&self) -> Result<(), DriverError>;

    /// A new event, which nobody waits for yet.
    ///
    /// # Errors
    /// [`DriverError::Failed`].
    fn open_event(&self) -> Result<Event, DriverError>;

    /// Lets an event go.
    ///
    /// # Errors
    /// [`DriverError::Failed`] when work on the device has failed before.
    fn close_event(&self, event: Event) -> Result<(), DriverError>;

    /// Sets the mark behind all that the stream was handed so far.
    ///
    /// # Errors
    /// [`DriverError::Failed`].
    fn record(&self, event: Event, stream: Stream) -> Result<(), DriverError>;

    /// Lets what the stream is handed from now on wait for the mark as it was set last.
    ///
    /// # Errors
    /// [`DriverError::Failed`].
    fn wait(&self, stream: Stream, event: Event) -> Result<(), DriverError>;

    /// Whether all that came before the mark, as it was set last, is done.
    ///
    /// # Errors
    /// [`DriverError::Failed`] when some of it failed.
    fn reached(&self, event: Event) -> Result<bool, DriverError>;

    /// Loads an image that was compiled for the device.
    ///
    /// # Errors
    /// [`DriverError::Failed`] when it is none, or one for another device.
    fn load(&self, image: &[u8]) -> Result<Module, DriverError>;

    /// Lets an image and its functions go.
    ///
    /// # Errors
    /// [`DriverError::Failed`] when work on the device has failed before.
    fn unload(&self, module: Module) -> Result<(), DriverError>;

    /// A kernel of a loaded image.
    ///
    /// # Errors
    /// [`DriverError::Failed`] when the image has none of this name.
    fn function(&self, module: Module, name: &str) -> Result<Function, DriverError>;

    /// Hands over a launch. The arguments are read before it returns.
    ///
    /// # Errors
    /// [`DriverError::Failed`].
    ///
    /// # Safety
    /// The function's module must be loaded, the arguments must be the record that it takes, and every address among
    /// them good for what the kernel does with it until it is done. A routine must be open, its addresses aligned as its
    /// kind promises and good for all that it touches.
    unsafe fn launch(&self, launch: &Launch<'_>, stream: Stream) -> Result<(), DriverError>;

    /// From now on what the stream is handed is kept instead of run; launches alone can be kept. Until
    /// [`end_capture`](Self::end_capture) this thread must not allocate, free or wait, and no thread wait for all
    /// streams.
    ///
    /// # Errors
    /// [`DriverError::Failed`].
    fn begin_capture(&self, stream: Stream) -> Result<(), DriverError>;

    /// The launches that the stream was handed since, ready to be run. The stream runs again what it is handed, also
    /// where this fails.
    ///
    /// # Errors
    /// [`DriverError::Failed`] when something was done meanwhile that cannot be captured.
    fn end_capture(&self, stream: Stream) -> Result<Replay, DriverError>;

    /// Puts a launch in the place of the `nth` that was captured, of the same kernel. What was handed over before still
    /// runs as it was. What a library has captured is its own, and stays as it is.
    ///
    /// # Errors
    /// [`DriverError::Failed`], also for a routine; what the replay does then is undefined.
    ///
    /// # Safety
    /// As for [`launch`](Self::launch) with each [`replay`](Self::replay), and nobody else may update or replay it
    /// meanwhile.
    unsafe fn update(&self, replay: Replay, nth: usize, launch: &Launch<'_>) -> Result<(), DriverError>;

    /// Hands over captured work as one.
    ///
    /// # Errors
    /// [`DriverError::Failed`].
    ///
    /// # Safety
    /// All that was promised for its launches must hold again, and nobody else may update or replay it meanwhile.
    unsafe fn replay(&self, replay: Replay, stream: Stream) -> Result<(), DriverError>;

    /// Lets captured work go; what was handed over of it still runs.
    ///
    /// # Errors
    /// [`DriverError::Failed`] when work on the device has failed before.
    fn close_replay(&self, replay: Replay) -> Result<(), DriverError>;
}
