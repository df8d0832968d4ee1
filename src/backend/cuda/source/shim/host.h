// The sources as a library for the host: what CUDA has and C++ has not, thin, for tests.
//
// A block's threads are fibres of the one thread that launches. Each runs until it waits for its warp or its block,
// or ends; then the next has its turn. Some launches go through threads and blocks from the last to the first: what
// a missing barrier leaves to chance then gives other bits than before. A shared variable is a static one, so a
// library runs one launch at a time; whoever wants more loads another copy of it. That copies have variables of their
// own takes hidden visibility: the loader would unify those of templates otherwise.
#pragma once
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#define DEVICE inline
#define OFFSET_OF(Record, field) __builtin_offsetof(Record, field)
#define __shared__ static

struct Index3 {
    u32 x, y, z;
};
static Index3 threadIdx, blockIdx, blockDim, gridDim;

namespace host {

const u32 MOST = 1024;
const size_t STACK_BYTES = 64 * 1024;

enum State { READY, AT_WARP, AT_BLOCK, DONE };

#if defined(__x86_64__)
// A fibre is where its stack ends; what the callee must keep lies on it.
typedef void* Fibre;
extern "C" void kasmina_switch(Fibre* from, Fibre to);
asm(R"(
.text
.type kasmina_switch, @function
.hidden kasmina_switch
.globl kasmina_switch
kasmina_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size kasmina_switch, .-kasmina_switch
)");
inline void begin(Fibre& fibre, char* stack, void (*entry)()) {
    void** top = (void**)(stack + STACK_BYTES);
    *--top = 0; // entry's return address: never used, and with it the stack lies as a call leaves it
    *--top = (void*)entry;
    for (int n = 0; n < 6; ++n) *--top = 0;
    fibre = top;
}
inline void turn(Fibre& from, Fibre& to) { kasmina_switch(&from, to); }
#else
typedef ucontext_t Fibre;
inline void begin(Fibre& fibre, char* stack, void (*entry)()) {
    getcontext(&fibre);
    fibre.uc_stack.ss_sp = stack;
    fibre.uc_stack.ss_size = STACK_BYTES;
    fibre.uc_link = 0;
    makecontext(&fibre, entry, 0);
}
inline void turn(Fibre& from, Fibre& to) { swapcontext(&from, &to); }
#endif

struct Thread {
    Fibre fibre;
    State state;
    // Values for the warp, in turns: whoever is ahead writes the other one.
    u64 given[2];
    u32 turn;
};

static Fibre scheduler;
static Thread threads[MOST];
static void (*body)(const void*);
static const void* arguments;

inline void wait(State state) {
    Thread& self = threads[threadIdx.x];
    const u32 own = threadIdx.x;
    self.state = state;
    turn(self.fibre, scheduler);
    threadIdx.x = own;
}

static void entry() {
    body(arguments);
    threads[threadIdx.x].state = DONE;
    turn(threads[threadIdx.x].fibre, scheduler);
}

// Lets those go on whom nobody among `first..last` keeps waiting.
inline bool release(u32 first, u32 last, State state) {
    bool any = false;
    for (u32 t = first; t < last; ++t) {
        if (threads[t].state != state && threads[t].state != DONE) return false;
        any = any || threads[t].state == state;
    }
    for (u32 t = first; t < last; ++t) {
        if (threads[t].state == state) threads[t].state = READY;
    }
    return any;
}

// Whether every thread ended; not so where some wait for others that wait elsewhere.
static bool run_block(char* stacks, bool backwards) {
    const u32 count = blockDim.x;
    for (u32 t = 0; t < count; ++t) {
        threads[t].state = READY;
        threads[t].turn = 0;
        begin(threads[t].fibre, stacks + t * STACK_BYTES, entry);
    }
    for (;;) {
        bool ran = false, all_done = true;
        for (u32 n = 0; n < count; ++n) {
            const u32 t = backwards ? count - 1 - n : n;
            if (threads[t].state == READY) {
                threadIdx.x = t;
                turn(scheduler, threads[t].fibre);
                ran = true;
            }
            all_done = all_done && threads[t].state == DONE;
        }
        if (all_done) return true;
        for (u32 first = 0; first < count; first += 32) ran |= release(first, first + 32, AT_WARP);
        ran |= release(0, count, AT_BLOCK);
        if (!ran) return false;
    }
}

// 0, or 1 where the block cannot be, 2 where no stack can be had, 3 where threads wait for each other.
static int launch(void (*kernel)(const void*), const void* args, u32 grid, u32 block) {
    static char* stacks = 0;
    static u32 launches = 0;
    if (block == 0 || block > 256 || block % 32) return 1;
    if (!stacks) {
        void* memory = mmap(0, MOST * STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) return 2;
        stacks = (char*)memory;
    }
    body = kernel;
    arguments = args;
    const Index3 whole_grid = {grid, 1, 1}, whole_block = {block, 1, 1};
    gridDim = whole_grid;
    blockDim = whole_block;
    // Every second one would suit a program of two launches too well.
    const bool backwards = ++launches * 2654435761u >> 31;
    for (u32 n = 0; n < grid; ++n) {
        const Index3 here = {backwards ? grid - 1 - n : n, 0, 0};
        blockIdx = here;
        if (!run_block(stacks, backwards)) return 3;
    }
    return 0;
}

template <class T> T exchange(T value, u32 from) {
    Thread& self = threads[threadIdx.x];
    const u32 turn = self.turn;
    self.turn ^= 1;
    memcpy(&self.given[turn], &value, sizeof value);
    wait(AT_WARP);
    if (from < 32) memcpy(&value, &threads[(threadIdx.x & ~31u) + from].given[turn], sizeof value);
    return value;
}

} // namespace host

inline void __syncthreads() { host::wait(host::AT_BLOCK); }

template <class T> T shuffle_down(T value, u32 by) { return host::exchange(value, (threadIdx.x & 31) + by); }

inline u32 ballot(bool holds) {
    const u32 turn = host::threads[threadIdx.x].turn;
    host::exchange((u64)holds, 0);
    u32 all = 0;
    for (u32 lane = 0; lane < 32; ++lane) {
        all |= (u32)(host::threads[(threadIdx.x & ~31u) + lane].given[turn] != 0) << lane;
    }
    return all;
}

#define KERNEL(name, Arguments)                                                                                \
    static void name##_body(const Arguments& args);                                                           \
    static void name##_entry(const void* args) { name##_body(*(const Arguments*)args); }                       \
    extern "C" __attribute__((visibility("default"))) int name(const void* args, u32 grid, u32 block) {        \
        return host::launch(name##_entry, args, grid, block);                                                  \
    }                                                                                                          \
    static void name##_body(const Arguments& args)
