// What every source is written in: types, half precision, indices, sums over a block.
//
// A source is compiled twice: by NVRTC for the device, with no header of a toolkit, and by the host's compiler
// through shim/host.h for tests. `arguments.cuh` is written by src/backend/cuda/arguments.rs, so that both
// languages have one definition of every argument.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;
typedef long long i64;
typedef float f32;
typedef double f64;
typedef void* Pointer;

#ifdef KASMINA_HOST
#include "host.h"
#else
#define DEVICE __device__ __forceinline__
#define OFFSET_OF(Record, field) __INTADDR__(&((Record*)0)->field)
#define KERNEL(name, Arguments)                                                                                \
    extern "C" __global__ void __launch_bounds__(256) name(const __grid_constant__ Arguments args)
// Every warp is whole: blocks have a multiple of 32 threads, and no lane leaves before the others.
template <class T> DEVICE T shuffle_down(T value, u32 by) {
    return __shfl_down_sync(0xffffffffu, value, by);
}
DEVICE u32 ballot(bool holds) {
    return __ballot_sync(0xffffffffu, holds);
}
#endif

#include "arguments.cuh"

// Another type with the same bits.
template <class To, class From> DEVICE To with_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "both have as many bits");
    union {
        From from;
        To to;
    } both;
    both.from = from;
    return both.to;
}

struct bf16 {
    u16 bits;
};
struct f16 {
    u16 bits;
};

// The type that values of T are computed in.
template <class T> struct Wide {
    typedef f32 type;
};
template <> struct Wide<f64> {
    typedef f64 type;
};
template <> struct Wide<i64> {
    typedef i64 type;
};
template <> struct Wide<i32> {
    typedef i64 type;
};
template <> struct Wide<u8> {
    typedef i64 type;
};

DEVICE f32 wide(f32 value) { return value; }
DEVICE f64 wide(f64 value) { return value; }
DEVICE i64 wide(i64 value) { return value; }
DEVICE i64 wide(i32 value) { return value; }
DEVICE i64 wide(u8 value) { return value; }
DEVICE f32 wide(bf16 value) { return with_bits<f32>((u32)value.bits << 16); }

DEVICE f32 wide(f16 value) {
#ifdef __CUDA_ARCH__
    f32 result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
    return result;
#else
    const u32 sign = (u32)(value.bits & 0x8000) << 16, exponent = value.bits >> 10 & 31, rest = value.bits & 1023;
    if (exponent == 31) return with_bits<f32>(sign | 0x7f800000u | rest << 13);
    if (exponent != 0) return with_bits<f32>(sign | (exponent + 112) << 23 | rest << 13);
    const f32 small = (f32)rest * 5.9604644775390625e-8f; // 2^-24
    return with_bits<f32>(with_bits<u32>(small) | sign);
#endif
}

// To the nearest value that T has, of two the even one.
template <class T> struct Narrow {
    static DEVICE T of(typename Wide<T>::type value) { return (T)value; }
};
template <> struct Narrow<bf16> {
    static DEVICE bf16 of(f32 value) {
        const u32 bits = with_bits<u32>(value);
        bf16 result;
        if ((bits & 0x7fffffffu) > 0x7f800000u) {
            result.bits = (u16)(bits >> 16 | 0x40);
        } else {
            result.bits = (u16)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
        }
        return result;
    }
};
template <> struct Narrow<f16> {
    static DEVICE f16 of(f32 value) {
        f16 result;
#ifdef __CUDA_ARCH__
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
#else
        const u32 bits = with_bits<u32>(value), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffffu;
        u32 half;
        if (size > 0x7f800000u) {
            half = 0x7e00;
        } else if (size >= 0x477ff000u) { // 65520 and more
            half = 0x7c00;
        } else if (size < 0x38800000u) { // below 2^-14: a whole number of 2^-24
            // Adding 2^-1 shifts the number so that the sum's rounding is the one wanted.
            half = with_bits<u32>(with_bits<f32>(size) + 0.5f) - 0x3f000000u;
        } else {
            half = (size - 0x38000000u + 0xfffu + (size >> 13 & 1)) >> 13;
        }
        result.bits = (u16)(sign | half);
#endif
        return result;
    }
};
template <class T> DEVICE T narrow(typename Wide<T>::type value) {
    return Narrow<T>::of(value);
}

template <class R> DEVICE R infinity();
template <> DEVICE f32 infinity<f32>() { return with_bits<f32>(0x7f800000u); }
template <> DEVICE f64 infinity<f64>() { return with_bits<f64>(0x7ff0000000000000ull); }

// ---- who does what ----

DEVICE u64 first_index() { return (u64)blockIdx.x * blockDim.x + threadIdx.x; }
DEVICE u64 index_step() { return (u64)gridDim.x * blockDim.x; }

// Where the element of a number lies in each of K operands. Sizes that fit are divided in 32 bits.
template <u32 K> struct Places {
    u64 at[K];
};
template <class N, u32 K>
DEVICE void place(const Walk& walk, const View* views, u64 index, Places<K>& places) {
    N rest = (N)index;
    for (u32 d = walk.rank; d-- > 1;) {
        const N size = (N)walk.sizes[d], whole = rest / size, part = rest - whole * size;
        for (u32 k = 0; k < K; ++k) places.at[k] += part * views[k].strides[d];
        rest = whole;
    }
    for (u32 k = 0; k < K; ++k) places.at[k] += rest * views[k].strides[0];
}
template <u32 K> DEVICE Places<K> places(const Walk& walk, const View* views, u64 index) {
    Places<K> places;
    for (u32 k = 0; k < K; ++k) places.at[k] = 0;
    if (walk.is_narrow) {
        place<u32, K>(walk, views, index, places);
    } else {
        place<u64, K>(walk, views, index, places);
    }
    return places;
}

// ---- sums over a block, always in the same order ----

struct Add {
    template <class R> DEVICE R operator()(R a, R b) const { return a + b; }
};
// The larger; NaN wins.
struct Larger {
    template <class R> DEVICE R operator()(R a, R b) const { return a > b || a != a ? a : b; }
};

// What all threads' values give together, told to all. Blocks have at most 256 threads.
template <class R, class Join> DEVICE R joined_by_block(R value, Join join, R start) {
    __shared__ R parts[8];
    __shared__ R whole;
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    for (u32 by = 16; by > 0; by >>= 1) value = join(value, shuffle_down(value, by));
    if (lane == 0) parts[warp] = value;
    __syncthreads();
    if (threadIdx.x == 0) {
        R sum = start;
        for (u32 n = 0; n < warps; ++n) sum = join(sum, parts[n]);
        whole = sum;
    }
    __syncthreads();
    value = whole;
    __syncthreads();
    return value;
}
template <class R> DEVICE R sum_over_block(R value) {
    return joined_by_block(value, Add(), (R)0);
}

// One entry for each type.
#define FOR_FLOATS(entry) entry(f32, f32) entry(f64, f64) entry(bf16, bf16) entry(f16, f16)
#define FOR_SIZES(entry) entry(u8, 1) entry(u16, 2) entry(u32, 4) entry(u64, 8)
