// A libcuda whose device is the host: what the daemon calls of CUDA's driver, as NVIDIA documents it, so that the shipped
// program and its binding to the driver run in tests. Kernels are the same sources, compiled by the libnvrtc beside this.
//
// Streams are done by a thread of their own, in their order, and of several streams that could go on it takes one at
// random: who relies on more order than events give sees other numbers. What a program may not do is an error here too: a call without
// a current context, work on memory that nobody allocated, allocating or waiting during a capture. An error on the device stays.
//
// Memory that processes share is a file, whose descriptor one hands to the other: it lasts as long as anybody has it mapped.
//
// STAND_IN_FAULT names a file: where it is there when a kernel is to run, it is removed, and the kernel has read an illegal
// address. STAND_IN_STALL is another: then the device does nothing any more. STAND_IN_DEVICES is how many devices there are, STAND_IN_UUID makes them others than those of another process.

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <sys/mman.h>
#include <thread>
#include <unistd.h>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))

typedef int CUresult;
typedef int CUdevice;
typedef unsigned long long CUdeviceptr;

enum : int {
    SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, INVALID_DEVICE = 101, INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201, ALREADY_MAPPED = 208, INVALID_HANDLE = 400, NOT_FOUND = 500, NOT_READY = 600, ILLEGAL_ADDRESS = 700,
    ALREADY_REGISTERED = 712, NOT_REGISTERED = 713, LAUNCH_FAILED = 719, CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901, CAPTURE_WRONG_THREAD = 908,
};

typedef int (*Entry)(const uint8_t* argument, uint32_t grid, uint32_t block);

struct Module {
    void* library;
    int file;
};
struct Function {
    Entry entry;
};
// Whoever waits does so for the record that was the last one then.
struct Event {
    std::shared_ptr<bool> reached = std::make_shared<bool>(true);
};

// A launch with its argument, aligned as its record is.
struct Launch {
    Entry entry;
    uint32_t grid, block;
    std::vector<std::max_align_t> argument;
};
struct Node {
    Launch launch;
};
struct Graph {
    std::vector<std::shared_ptr<Node>> nodes;
};
struct Exec {
    // By the node of the graph that it was made of.
    std::vector<std::pair<Node*, Launch>> launches;
};
struct Capture {
    Graph* graph;
    std::thread::id thread;
    bool is_broken = false;
    // What cuStreamGetCaptureInfo has pointed to.
    Node* last = nullptr;
};

struct Item {
    enum Kind { WORK, RECORD, WAIT, WAIT_VALUE } kind;
    std::function<int()> work;
    std::shared_ptr<bool> mark;
    const std::atomic<uint64_t>* word = nullptr;
    uint64_t value = 0;
};
struct Stream {
    std::deque<Item> items;
    bool is_at_work = false;
    std::unique_ptr<Capture> capture;
};

// Memory by its handle, and addresses that were set aside for such memory.
struct Physical {
    int file;
    size_t bytes;
    bool is_own;
};
struct Range {
    size_t bytes, mapped = 0;
    std::shared_ptr<Physical> memory;
    bool is_open = false;
};

struct Device {
    std::mutex mutex;
    std::condition_variable moved;
    std::map<CUdeviceptr, size_t> blocks;
    std::map<uint64_t, std::shared_ptr<Physical>> handles;
    uint64_t next_handle = 1;
    std::map<CUdeviceptr, Range> ranges;
    size_t used = 0;
    Stream by_default;
    std::map<uintptr_t, size_t> locked, own;
    std::set<Stream*> streams;
    std::set<Event*> events;
    std::set<Module*> modules;
    std::set<Function*> functions;
    std::set<Graph*> graphs;
    std::set<Exec*> execs;
    int broken = SUCCESS, retained = 0, captures = 0;
    bool has_worker = false;
    uint64_t chance = 88172645463325252ull;

    uint64_t random() {
        chance ^= chance << 13, chance ^= chance >> 7, chance ^= chance << 17;
        return chance;
    }
};

// Never destroyed: their workers may outlive main.
static Device* const all = new Device[8];
// The device of the context that is current on this thread, and what a worker works for.
static thread_local Device* device = nullptr;
static thread_local std::vector<Device*> pushed;
static const size_t MEMORY = size_t(2) << 30;
static const size_t GRANULARITY = size_t(2) << 20;
static bool initialised = false;

static int count() {
    const char* asked = getenv("STAND_IN_DEVICES");
    return asked ? atoi(asked) : 1;
}

static bool is_context(const void* context) {
    return context >= all && context < all + count() && static_cast<const Device*>(context)->retained;
}

typedef std::unique_lock<std::mutex> Lock;

// Locks the device for a call that needs a context and a device that works.
#define ENTER()                                                                                                        \
    if (!initialised) return NOT_INITIALIZED;                                                                          \
    if (!device) return INVALID_CONTEXT;                                                                               \
    Lock lock(device->mutex);                                                                                           \
    if (device->broken) return device->broken

// The same for a call that no thread may make while it captures.
#define ENTER_UNCAPTURED()                                                                                             \
    ENTER();                                                                                                           \
    if (int result = breaks_capture(false)) return result

// A wait or an allocation ends captures: those of this thread, or of all.
static int breaks_capture(bool of_all) {
    int result = SUCCESS;
    for (Stream* stream : device->streams)
        if (stream->capture && (of_all || stream->capture->thread == std::this_thread::get_id())) {
            stream->capture->is_broken = true;
            result = CAPTURE_UNSUPPORTED;
        }
    return result;
}

static bool takes(const char* path) {
    return path && unlink(path) == 0;
}

static bool takes_fault() {
    static const char* path = getenv("STAND_IN_FAULT");
    return takes(path);
}

static bool takes_stall() {
    static const char* path = getenv("STAND_IN_STALL");
    return takes(path);
}

static bool waits_for_value(const Stream* stream) {
    return !stream->items.empty() && stream->items.front().kind == Item::WAIT_VALUE;
}

static bool is_runnable(const Stream& stream) {
    if (stream.items.empty() || stream.is_at_work) return false;
    const Item& item = stream.items.front();
    if (item.kind == Item::WAIT_VALUE) return int64_t(item.word->load() - item.value) >= 0;
    return item.kind != Item::WAIT || *item.mark;
}

static void work(Device* ours) {
    device = ours;
    Lock lock(device->mutex);
    for (;;) {
        std::vector<Stream*> ready;
        for (Stream* stream : device->streams)
            if (is_runnable(*stream)) ready.push_back(stream);
        if (ready.empty()) {
            // Whoever writes a word tells nobody.
            if (std::any_of(device->streams.begin(), device->streams.end(), waits_for_value))
                device->moved.wait_for(lock, std::chrono::microseconds(100));
            else
                device->moved.wait(lock);
            continue;
        }
        if (takes_stall()) for (;;) device->moved.wait(lock);
        Stream* stream = ready[device->random() % ready.size()];
        Item item = std::move(stream->items.front());
        if (item.kind == Item::RECORD) *item.mark = true;
        if (item.kind == Item::WORK && !device->broken) {
            stream->is_at_work = true;
            lock.unlock();
            int result = item.work();
            lock.lock();
            stream->is_at_work = false;
            if (result) device->broken = result;
        }
        stream->items.pop_front();
        device->moved.notify_all();
    }
}

static void push(Stream* stream, Item item) {
    stream->items.push_back(std::move(item));
    if (!device->has_worker) {
        device->has_worker = true;
        std::thread(work, device).detach();
    }
    device->moved.notify_all();
}

static int await(Lock& lock, Stream* stream) {
    device->moved.wait(lock, [&] { return device->broken || (stream->items.empty() && !stream->is_at_work); });
    return device->broken;
}

template <class Address> static bool lies_in(const std::map<Address, size_t>& ranges, Address start, size_t bytes) {
    auto after = ranges.upper_bound(start);
    if (after == ranges.begin()) return false;
    auto [from, length] = *std::prev(after);
    return start + bytes <= from + length;
}

static bool is_allocated(CUdeviceptr start, size_t bytes) {
    if (lies_in(device->blocks, start, bytes)) return true;
    auto after = device->ranges.upper_bound(start);
    if (after == device->ranges.begin()) return false;
    auto& [from, range] = *std::prev(after);
    return range.is_open && start + bytes <= from + range.mapped;
}

static bool is_locked(const void* start, size_t bytes) {
    return lies_in(device->locked, uintptr_t(start), bytes) || lies_in(device->own, uintptr_t(start), bytes);
}

static int run(const Launch& launch) {
    if (takes_fault()) return ILLEGAL_ADDRESS;
    return launch.entry(reinterpret_cast<const uint8_t*>(launch.argument.data()), launch.grid, launch.block)
        ? LAUNCH_FAILED
        : SUCCESS;
}

// A stream as a caller names it; no name is that of the one that all have.
static Stream* named(Stream* stream) {
    return stream ? stream : &device->by_default;
}

// A copy, a fill or a word; a stream that captures takes launches alone.
static int hand(Stream* stream, std::function<void()> work) {
    stream = named(stream);
    if (!device->streams.count(stream)) return INVALID_HANDLE;
    if (stream->capture) {
        stream->capture->is_broken = true;
        return CAPTURE_UNSUPPORTED;
    }
    push(stream, {Item::WORK, [work] { work(); return SUCCESS; }, {}, nullptr, 0});
    return SUCCESS;
}

API CUresult cuInit(unsigned) {
    for (int number = 0; number < count(); number++) {
        Lock lock(all[number].mutex);
        all[number].streams.insert(&all[number].by_default);
    }
    initialised = true;
    return SUCCESS;
}

API CUresult cuGetErrorString(CUresult error, const char** text) {
    static const std::map<int, const char*> texts = {
        {SUCCESS, "no error"}, {INVALID_VALUE, "invalid argument"}, {OUT_OF_MEMORY, "out of memory"},
        {NOT_INITIALIZED, "initialization error"}, {INVALID_DEVICE, "invalid device ordinal"},
        {INVALID_IMAGE, "device kernel image is invalid"}, {INVALID_CONTEXT, "invalid device context"},
        {ALREADY_MAPPED, "resource already mapped"}, {INVALID_HANDLE, "invalid resource handle"}, {NOT_FOUND, "named symbol not found"},
        {NOT_READY, "device not ready"}, {ILLEGAL_ADDRESS, "an illegal memory access was encountered"},
        {ALREADY_REGISTERED, "part or all of the requested memory range is already mapped"},
        {NOT_REGISTERED, "pointer does not correspond to a registered memory region"},
        {LAUNCH_FAILED, "unspecified launch failure"},
        {CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing"},
        {CAPTURE_INVALIDATED, "operation failed due to a previous error during capture"},
        {CAPTURE_WRONG_THREAD, "attempt to terminate a thread-local capture sequence from another thread"},
    };
    auto found = texts.find(error);
    if (found == texts.end()) return INVALID_VALUE;
    *text = found->second;
    return SUCCESS;
}

API CUresult cuDriverGetVersion(int* version) {
    *version = 12080;
    return SUCCESS;
}

API CUresult cuDeviceGetCount(int* found) {
    *found = count();
    return initialised ? SUCCESS : NOT_INITIALIZED;
}

API CUresult cuDeviceGet(CUdevice* found, int ordinal) {
    *found = ordinal;
    return ordinal >= 0 && ordinal < count() ? SUCCESS : INVALID_DEVICE;
}

API CUresult cuDeviceGetName(char* name, int length, CUdevice) {
    snprintf(name, length, "a stand-in on the host");
    return SUCCESS;
}

API CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice) {
    *bytes = MEMORY;
    return SUCCESS;
}

API CUresult cuDeviceGetAttribute(int* value, int attribute, CUdevice) {
    switch (attribute) {
        case 16: *value = 2; return SUCCESS;
        case 75: *value = 8; return SUCCESS;
        case 76: *value = 0; return SUCCESS;
        case 102: case 103: case 122: *value = !getenv("STAND_IN_UNSHARED"); return SUCCESS;
        default: return INVALID_VALUE;
    }
}

API CUresult cuDeviceGetUuid_v2(unsigned char* uuid, CUdevice number) {
    static const char* other = getenv("STAND_IN_UUID");
    memset(uuid, (other ? atoi(other) : 0x5A) + number, 16);
    return SUCCESS;
}

API CUresult cuDevicePrimaryCtxRetain(void** context, CUdevice number) {
    Lock lock(all[number].mutex);
    all[number].retained++;
    *context = &all[number];
    return SUCCESS;
}

API CUresult cuDevicePrimaryCtxRelease_v2(CUdevice number) {
    Lock lock(all[number].mutex);
    all[number].retained--;
    return SUCCESS;
}

API CUresult cuCtxSetCurrent(void* context) {
    if (!is_context(context)) return INVALID_CONTEXT;
    device = static_cast<Device*>(context);
    return SUCCESS;
}

API CUresult cuCtxGetCurrent(void** context) {
    if (!initialised) return NOT_INITIALIZED;
    *context = device;
    return SUCCESS;
}

API CUresult cuCtxPushCurrent_v2(void* context) {
    if (!is_context(context)) return INVALID_CONTEXT;
    pushed.push_back(device);
    device = static_cast<Device*>(context);
    return SUCCESS;
}

API CUresult cuCtxPopCurrent_v2(void** context) {
    if (pushed.empty()) return INVALID_CONTEXT;
    *context = device;
    device = pushed.back();
    pushed.pop_back();
    return SUCCESS;
}

API CUresult cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    ENTER();
    *least = 0, *greatest = -5;
    return SUCCESS;
}

API CUresult cuCtxSynchronize() {
    ENTER();
    if (int result = breaks_capture(true)) return result;
    for (Stream* stream : std::set<Stream*>(device->streams))
        if (device->streams.count(stream))
            if (int result = await(lock, stream)) return result;
    return SUCCESS;
}

API CUresult cuMemGetInfo_v2(size_t* free, size_t* total) {
    ENTER();
    *free = MEMORY - device->used, *total = MEMORY;
    return SUCCESS;
}

API CUresult cuMemAlloc_v2(CUdeviceptr* address, size_t bytes) {
    ENTER_UNCAPTURED();
    if (!bytes) return INVALID_VALUE;
    if (device->used + bytes > MEMORY) return OUT_OF_MEMORY;
    size_t whole = (bytes + 255) / 256 * 256;
    void* memory = aligned_alloc(256, whole);
    if (!memory) return OUT_OF_MEMORY;
    memset(memory, 0xA5, whole);
    *address = CUdeviceptr(memory);
    device->blocks[*address] = bytes;
    device->used += bytes;
    return SUCCESS;
}

API CUresult cuMemFree_v2(CUdeviceptr address) {
    ENTER_UNCAPTURED();
    auto found = device->blocks.find(address);
    if (found == device->blocks.end()) return INVALID_VALUE;
    device->used -= found->second;
    device->blocks.erase(found);
    free(reinterpret_cast<void*>(address));
    return SUCCESS;
}

// As CUDA lays it out: of a device's own memory, shared by descriptors.
struct Location {
    int type, id;
};
struct Properties {
    int type, handles;
    Location location;
    void* meta;
    unsigned char flags[8];
};
struct Access {
    Location location;
    int flags;
};

// What one device has for another is not known here.
static bool is_ours(Location location) {
    return location.type == 1 && location.id >= 0 && location.id < count() && &all[location.id] == device;
}

static bool is_shareable(const Properties* properties) {
    return properties->type == 1 && properties->handles == 1 && is_ours(properties->location);
}

API CUresult cuMemGetAllocationGranularity(size_t* bytes, const Properties* properties, int) {
    // Asked before there is a context.
    *bytes = GRANULARITY;
    return properties->type == 1 && properties->handles == 1 && properties->location.type == 1 ? SUCCESS : INVALID_VALUE;
}

API CUresult cuMemCreate(uint64_t* handle, size_t bytes, const Properties* properties, unsigned long long flags) {
    ENTER_UNCAPTURED();
    if (!bytes || bytes % GRANULARITY || flags || !is_shareable(properties)) return INVALID_VALUE;
    if (device->used + bytes > MEMORY) return OUT_OF_MEMORY;
    int file = memfd_create("device", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, bytes)) return OUT_OF_MEMORY;
    device->used += bytes;
    *handle = device->next_handle++;
    device->handles[*handle].reset(new Physical{file, bytes, true}, [owner = device](Physical* memory) {
        close(memory->file);
        if (memory->is_own) owner->used -= memory->bytes;
        delete memory;
    });
    return SUCCESS;
}

API CUresult cuMemRelease(uint64_t handle) {
    ENTER_UNCAPTURED();
    return device->handles.erase(handle) ? SUCCESS : INVALID_VALUE;
}

API CUresult cuMemExportToShareableHandle(void* into, uint64_t handle, int type, unsigned long long flags) {
    ENTER();
    auto found = device->handles.find(handle);
    if (found == device->handles.end() || type != 1 || flags) return INVALID_VALUE;
    int file = fcntl(found->second->file, F_DUPFD_CLOEXEC, 0);
    if (file < 0) return OUT_OF_MEMORY;
    memcpy(into, &file, sizeof file);
    return SUCCESS;
}

API CUresult cuMemImportFromShareableHandle(uint64_t* handle, void* descriptor, int type) {
    ENTER_UNCAPTURED();
    int file = fcntl(int(intptr_t(descriptor)), F_DUPFD_CLOEXEC, 0);
    struct stat found;
    if (type != 1 || file < 0 || fstat(file, &found) || !S_ISREG(found.st_mode)) {
        if (file >= 0) close(file);
        return INVALID_VALUE;
    }
    *handle = device->next_handle++;
    device->handles[*handle].reset(new Physical{file, size_t(found.st_size), false}, [](Physical* memory) {
        close(memory->file);
        delete memory;
    });
    return SUCCESS;
}

API CUresult cuMemAddressReserve(CUdeviceptr* address, size_t bytes, size_t, CUdeviceptr, unsigned long long) {
    ENTER_UNCAPTURED();
    if (!bytes || bytes % GRANULARITY) return INVALID_VALUE;
    void* start = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED) return OUT_OF_MEMORY;
    *address = CUdeviceptr(start);
    device->ranges[*address].bytes = bytes;
    return SUCCESS;
}

API CUresult cuMemMap(CUdeviceptr address, size_t bytes, size_t offset, uint64_t handle, unsigned long long flags) {
    ENTER_UNCAPTURED();
    auto range = device->ranges.find(address);
    auto memory = device->handles.find(handle);
    if (range == device->ranges.end() || memory == device->handles.end()) return INVALID_VALUE;
    if (bytes % GRANULARITY || bytes > range->second.bytes || bytes > memory->second->bytes || offset || flags) return INVALID_VALUE;
    if (range->second.mapped) return ALREADY_MAPPED;
    range->second.mapped = bytes, range->second.memory = memory->second;
    return SUCCESS;
}

API CUresult cuMemSetAccess(CUdeviceptr address, size_t bytes, const Access* access, size_t count) {
    ENTER_UNCAPTURED();
    auto range = device->ranges.find(address);
    if (range == device->ranges.end() || range->second.mapped != bytes) return INVALID_VALUE;
    if (count != 1 || !is_ours(access->location) || access->flags != 3) return INVALID_VALUE;
    void* start = reinterpret_cast<void*>(address);
    if (mmap(start, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, range->second.memory->file, 0) == MAP_FAILED)
        return OUT_OF_MEMORY;
    range->second.is_open = true;
    return SUCCESS;
}

API CUresult cuMemUnmap(CUdeviceptr address, size_t bytes) {
    ENTER_UNCAPTURED();
    auto range = device->ranges.find(address);
    if (range == device->ranges.end() || !bytes || range->second.mapped != bytes) return INVALID_VALUE;
    mmap(reinterpret_cast<void*>(address), bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    range->second.mapped = 0, range->second.is_open = false, range->second.memory.reset();
    return SUCCESS;
}

API CUresult cuMemAddressFree(CUdeviceptr address, size_t bytes) {
    ENTER_UNCAPTURED();
    auto range = device->ranges.find(address);
    if (range == device->ranges.end() || range->second.bytes != bytes || range->second.mapped) return INVALID_VALUE;
    munmap(reinterpret_cast<void*>(address), bytes);
    device->ranges.erase(range);
    return SUCCESS;
}

API CUresult cuMemHostAlloc(void** start, size_t bytes, unsigned) {
    ENTER_UNCAPTURED();
    *start = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (*start == MAP_FAILED) return OUT_OF_MEMORY;
    memset(*start, 0xA5, bytes);
    device->own[uintptr_t(*start)] = bytes;
    return SUCCESS;
}

API CUresult cuMemFreeHost(void* start) {
    ENTER_UNCAPTURED();
    auto found = device->own.find(uintptr_t(start));
    if (found == device->own.end()) return INVALID_VALUE;
    munmap(start, found->second);
    device->own.erase(found);
    return SUCCESS;
}

API CUresult cuMemHostRegister_v2(void* start, size_t bytes, unsigned) {
    ENTER_UNCAPTURED();
    for (auto [from, length] : device->locked)
        if (uintptr_t(start) < from + length && from < uintptr_t(start) + bytes) return ALREADY_REGISTERED;
    device->locked[uintptr_t(start)] = bytes;
    return SUCCESS;
}

API CUresult cuMemHostUnregister(void* start) {
    ENTER_UNCAPTURED();
    return device->locked.erase(uintptr_t(start)) ? SUCCESS : NOT_REGISTERED;
}

API CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr* address, void* start, unsigned) {
    ENTER();
    if (!is_locked(start, 1)) return INVALID_VALUE;
    *address = CUdeviceptr(start);
    return SUCCESS;
}

API CUresult cuPointerGetAttributes(unsigned count, int* attributes, void** values, CUdeviceptr address) {
    ENTER();
    if (count != 1 || attributes[0] != 2) return INVALID_VALUE;
    *static_cast<unsigned*>(values[0]) = is_allocated(address, 1) ? 2 : is_locked(reinterpret_cast<void*>(address), 1) ? 1 : 0;
    return SUCCESS;
}

API CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, Stream* stream) {
    ENTER();
    if (!is_allocated(to, bytes)) return INVALID_VALUE;
    void* target = reinterpret_cast<void*>(to);
    if (is_locked(from, bytes)) return hand(stream, [=] { memcpy(target, from, bytes); });
    auto* first = static_cast<const char*>(from);
    auto aside = std::make_shared<std::vector<char>>(first, first + bytes);
    return hand(stream, [=] { memcpy(target, aside->data(), bytes); });
}

API CUresult cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, Stream* stream) {
    ENTER();
    if (!is_allocated(from, bytes)) return INVALID_VALUE;
    const void* source = reinterpret_cast<void*>(from);
    bool goes_on = is_locked(to, bytes);
    int result = hand(stream, [=] { memcpy(to, source, bytes); });
    return result || goes_on ? result : await(lock, stream);
}

API CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, Stream* stream) {
    ENTER();
    if (!is_allocated(to, bytes) || !is_allocated(from, bytes)) return INVALID_VALUE;
    return hand(stream, [=] { memmove(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes); });
}

API CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char byte, size_t bytes, Stream* stream) {
    ENTER();
    if (!is_allocated(to, bytes)) return INVALID_VALUE;
    return hand(stream, [=] { memset(reinterpret_cast<void*>(to), byte, bytes); });
}

static bool is_reachable(CUdeviceptr address, size_t bytes) {
    return address % 8 == 0 && (is_allocated(address, bytes) || is_locked(reinterpret_cast<void*>(address), bytes));
}

API CUresult cuStreamWriteValue64_v2(Stream* stream, CUdeviceptr address, uint64_t value, unsigned flags) {
    ENTER();
    if (!is_reachable(address, 8) || flags) return INVALID_VALUE;
    return hand(stream, [=] { reinterpret_cast<std::atomic<uint64_t>*>(address)->store(value); });
}

API CUresult cuStreamWaitValue64_v2(Stream* stream, CUdeviceptr address, uint64_t value, unsigned flags) {
    ENTER();
    if (!device->streams.count(named(stream))) return INVALID_HANDLE;
    if (named(stream)->capture) return CAPTURE_UNSUPPORTED;
    // Until it is as large or larger, the one comparison that is known here.
    if (!is_reachable(address, 8) || flags) return INVALID_VALUE;
    push(named(stream), {Item::WAIT_VALUE, {}, {}, reinterpret_cast<const std::atomic<uint64_t>*>(address), value});
    return SUCCESS;
}

API CUresult cuStreamIsCapturing(Stream* stream, int* status) {
    ENTER();
    if (!device->streams.count(named(stream))) return INVALID_HANDLE;
    *status = !named(stream)->capture ? 0 : named(stream)->capture->is_broken ? 2 : 1;
    return SUCCESS;
}

API CUresult cuStreamQuery(Stream* stream) {
    ENTER();
    stream = named(stream);
    if (!device->streams.count(stream)) return INVALID_HANDLE;
    return stream->items.empty() && !stream->is_at_work ? SUCCESS : NOT_READY;
}

API CUresult cuStreamCreateWithPriority(Stream** stream, unsigned, int) {
    ENTER();
    device->streams.insert(*stream = new Stream);
    return SUCCESS;
}

API CUresult cuStreamDestroy_v2(Stream* stream) {
    ENTER();
    if (!device->streams.count(stream)) return INVALID_HANDLE;
    // CUDA lets it go when its work is done, and returns at once; here the caller waits.
    if (int result = await(lock, stream)) return result;
    device->streams.erase(stream);
    delete stream;
    return SUCCESS;
}

API CUresult cuStreamSynchronize(Stream* stream) {
    ENTER_UNCAPTURED();
    stream = named(stream);
    if (!device->streams.count(stream)) return INVALID_HANDLE;
    return await(lock, stream);
}

API CUresult cuEventCreate(Event** event, unsigned) {
    ENTER();
    device->events.insert(*event = new Event);
    return SUCCESS;
}

API CUresult cuEventDestroy_v2(Event* event) {
    ENTER();
    if (!device->events.erase(event)) return INVALID_HANDLE;
    delete event;
    return SUCCESS;
}

API CUresult cuEventRecord(Event* event, Stream* stream) {
    ENTER();
    stream = named(stream);
    if (!device->events.count(event) || !device->streams.count(stream)) return INVALID_HANDLE;
    if (stream->capture) return CAPTURE_UNSUPPORTED;
    event->reached = std::make_shared<bool>(false);
    push(stream, {Item::RECORD, {}, event->reached});
    return SUCCESS;
}

API CUresult cuStreamWaitEvent(Stream* stream, Event* event, unsigned) {
    ENTER();
    stream = named(stream);
    if (!device->events.count(event) || !device->streams.count(stream)) return INVALID_HANDLE;
    if (stream->capture) return CAPTURE_UNSUPPORTED;
    push(stream, {Item::WAIT, {}, event->reached});
    return SUCCESS;
}

API CUresult cuEventQuery(Event* event) {
    ENTER_UNCAPTURED();
    if (!device->events.count(event)) return INVALID_HANDLE;
    return *event->reached ? SUCCESS : NOT_READY;
}

API CUresult cuModuleLoadData(Module** module, const void* image) {
    ENTER_UNCAPTURED();
    // As libnvrtc beside this writes it: a mark, how many bytes, and a library.
    uint64_t bytes;
    if (memcmp(image, "HOSTCODE", 8)) return INVALID_IMAGE;
    memcpy(&bytes, static_cast<const char*>(image) + 8, 8);
    int file = memfd_create("module", MFD_CLOEXEC);
    if (file < 0 || write(file, static_cast<const char*>(image) + 16, bytes) != ssize_t(bytes)) return OUT_OF_MEMORY;
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    // The file stays open: the loader takes one of the same path for the same library.
    void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        close(file);
        return INVALID_IMAGE;
    }
    device->modules.insert(*module = new Module{library, file});
    return SUCCESS;
}

API CUresult cuModuleUnload(Module* module) {
    ENTER_UNCAPTURED();
    if (!device->modules.erase(module)) return INVALID_HANDLE;
    dlclose(module->library);
    close(module->file);
    delete module;
    return SUCCESS;
}

API CUresult cuModuleGetFunction(Function** function, Module* module, const char* name) {
    ENTER();
    if (!device->modules.count(module)) return INVALID_HANDLE;
    auto entry = reinterpret_cast<Entry>(dlsym(module->library, name));
    if (!entry) return NOT_FOUND;
    device->functions.insert(*function = new Function{entry});
    return SUCCESS;
}

// A launch of what the caller gives as one buffer.
static int launch_of(Function* function, uint32_t grid, uint32_t block, void** extra, Launch* launch) {
    if (!device->functions.count(function)) return INVALID_HANDLE;
    if (!grid || !block || block > 1024) return INVALID_VALUE;
    if (!extra || extra[0] != (void*)1 || extra[2] != (void*)2 || extra[4]) return INVALID_VALUE;
    size_t bytes = *static_cast<size_t*>(extra[3]);
    launch->entry = function->entry, launch->grid = grid, launch->block = block;
    launch->argument.resize((bytes + sizeof(std::max_align_t) - 1) / sizeof(std::max_align_t));
    memcpy(launch->argument.data(), extra[1], bytes);
    return SUCCESS;
}

API CUresult cuLaunchKernel(Function* function, unsigned grid, unsigned y, unsigned z, unsigned block, unsigned block_y,
                            unsigned block_z, unsigned, Stream* stream, void**, void** extra) {
    ENTER();
    if (!device->streams.count(stream)) return INVALID_HANDLE;
    if (y != 1 || z != 1 || block_y != 1 || block_z != 1) return INVALID_VALUE;
    Launch launch;
    if (int result = launch_of(function, grid, block, extra, &launch)) return result;
    if (stream->capture) {
        stream->capture->graph->nodes.push_back(std::make_shared<Node>(Node{launch}));
        return stream->capture->is_broken ? CAPTURE_INVALIDATED : SUCCESS;
    }
    push(stream, {Item::WORK, [launch] { return run(launch); }, {}});
    return SUCCESS;
}

API CUresult cuStreamBeginCapture_v2(Stream* stream, int mode) {
    ENTER();
    // Thread-local alone is what the daemon asks for, and what the rules above hold to.
    if (!device->streams.count(stream) || mode != 1 || stream->capture) return INVALID_VALUE;
    Graph* graph = new Graph;
    stream->capture.reset(new Capture{graph, std::this_thread::get_id()});
    return SUCCESS;
}

API CUresult cuStreamGetCaptureInfo_v2(Stream* stream, int* status, uint64_t* id, Graph** graph, Node*** last, size_t* count) {
    ENTER();
    if (!device->streams.count(stream)) return INVALID_HANDLE;
    *status = !stream->capture ? 0 : stream->capture->is_broken ? 2 : 1;
    if (*status != 1) return SUCCESS;
    Capture& capture = *stream->capture;
    if (id) *id = 1;
    if (graph) *graph = capture.graph;
    capture.last = capture.graph->nodes.empty() ? nullptr : capture.graph->nodes.back().get();
    if (last) *last = &capture.last;
    if (count) *count = capture.last ? 1 : 0;
    return SUCCESS;
}

API CUresult cuStreamEndCapture(Stream* stream, Graph** graph) {
    ENTER();
    if (!device->streams.count(stream) || !stream->capture) return INVALID_VALUE;
    if (stream->capture->thread != std::this_thread::get_id()) return CAPTURE_WRONG_THREAD;
    std::unique_ptr<Capture> capture = std::move(stream->capture);
    *graph = nullptr;
    if (capture->is_broken) {
        delete capture->graph;
        return CAPTURE_INVALIDATED;
    }
    device->graphs.insert(*graph = capture->graph);
    return SUCCESS;
}

API CUresult cuGraphInstantiateWithFlags(Exec** exec, Graph* graph, unsigned long long) {
    ENTER();
    if (!device->graphs.count(graph)) return INVALID_HANDLE;
    device->execs.insert(*exec = new Exec);
    for (auto& node : graph->nodes) (*exec)->launches.emplace_back(node.get(), node->launch);
    return SUCCESS;
}

struct KernelNodeParams {
    Function* function;
    unsigned grid, grid_y, grid_z, block, block_y, block_z, shared;
    void** parameters;
    void** extra;
    void* kernel;
    void* context;
};

API CUresult cuGraphExecKernelNodeSetParams_v2(Exec* exec, Node* node, const KernelNodeParams* params) {
    ENTER();
    if (!device->execs.count(exec)) return INVALID_HANDLE;
    for (auto& [known, launch] : exec->launches)
        if (known == node) return launch_of(params->function, params->grid, params->block, params->extra, &launch);
    return INVALID_VALUE;
}

API CUresult cuGraphLaunch(Exec* exec, Stream* stream) {
    ENTER();
    if (!device->execs.count(exec) || !device->streams.count(stream)) return INVALID_HANDLE;
    auto all = std::make_shared<std::vector<std::pair<Node*, Launch>>>(exec->launches);
    push(stream, {Item::WORK, [all] {
        for (auto& entry : *all)
            if (int result = run(entry.second)) return result;
        return int(SUCCESS);
    }, {}});
    return SUCCESS;
}

API CUresult cuGraphExecDestroy(Exec* exec) {
    ENTER();
    if (!device->execs.erase(exec)) return INVALID_HANDLE;
    delete exec;
    return SUCCESS;
}

API CUresult cuGraphDestroy(Graph* graph) {
    ENTER();
    if (!device->graphs.erase(graph)) return INVALID_HANDLE;
    delete graph;
    return SUCCESS;
}
