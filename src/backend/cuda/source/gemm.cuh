// A product of matrices, tile by tile through shared memory: the frame of matmul and of the convolutions.
#pragma once
#include "prelude.cuh"

#define TILE 64
#define DEPTH 16

// One tile of C = A·B, from `begin` to `end` along the inner dimension, by 256 threads with 4×4 results each.
//
// A problem gives `a(m, k)`, `b(k, n)`, `put(m, n, sum)`, its sizes `m` and `n`, and along which of its two
// dimensions each operand lies together in memory, so that neighbouring threads read neighbouring elements.
template <class R, class Problem>
DEVICE void product_tile(const Problem& problem, u32 m0, u32 n0, u32 begin, u32 end) {
    // Four more columns keep rows aligned to 16 bytes and off each other's banks.
    __shared__ R a_tile[DEPTH][TILE + 4];
    __shared__ R b_tile[DEPTH][TILE + 4];
    const u32 t = threadIdx.x, rows = t / 16 * 4, columns = t % 16 * 4;
    R sums[4][4];
    for (u32 i = 0; i < 4; ++i) {
        for (u32 j = 0; j < 4; ++j) sums[i][j] = 0;
    }
    for (u32 k0 = begin; k0 < end; k0 += DEPTH) {
        for (u32 e = t; e < TILE * DEPTH; e += 256) {
            const u32 k = problem.a_along_k ? e % DEPTH : e / TILE, m = problem.a_along_k ? e / DEPTH : e % TILE;
            a_tile[k][m] = m0 + m < problem.m && k0 + k < end ? problem.a(m0 + m, k0 + k) : (R)0;
        }
        for (u32 e = t; e < TILE * DEPTH; e += 256) {
            const u32 k = problem.b_along_k ? e % DEPTH : e / TILE, n = problem.b_along_k ? e / DEPTH : e % TILE;
            b_tile[k][n] = n0 + n < problem.n && k0 + k < end ? problem.b(k0 + k, n0 + n) : (R)0;
        }
        __syncthreads();
#pragma unroll
        for (u32 k = 0; k < DEPTH; ++k) {
            R a[4], b[4];
            for (u32 i = 0; i < 4; ++i) {
                a[i] = a_tile[k][rows + i];
                b[i] = b_tile[k][columns + i];
            }
            for (u32 i = 0; i < 4; ++i) {
                for (u32 j = 0; j < 4; ++j) sums[i][j] += a[i] * b[j];
            }
        }
        __syncthreads();
    }
    for (u32 i = 0; i < 4; ++i) {
        for (u32 j = 0; j < 4; ++j) {
            const u32 m = m0 + rows + i, n = n0 + columns + j;
            if (m < problem.m && n < problem.n) problem.put(m, n, sums[i][j]);
        }
    }
}

// Every tile of every product of a batch. The inner dimension is cut into `splits` shares, which are joined later
// where there are several.
template <class R, class Batch> DEVICE void products(const Batch& batch, const Cut& cut) {
    const u32 across = (cut.n + TILE - 1) / TILE, down = (cut.m + TILE - 1) / TILE;
    const u64 tiles = (u64)across * down, total = tiles * cut.batch * cut.splits;
    for (u64 job = blockIdx.x; job < total; job += gridDim.x) {
        const u64 tile = job % tiles, rest = job / tiles;
        const u32 split = (u32)(rest % cut.splits), begin = split * cut.share;
        const u32 end = cut.k - begin < cut.share ? cut.k : begin + cut.share;
        const u32 m0 = (u32)(tile / across) * TILE, n0 = (u32)(tile % across) * TILE;
        product_tile<R>(batch.problem(rest / cut.splits, split), m0, n0, begin, end);
    }
}

// Where a sum goes: into the result, or among the parts that `fold` joins.
template <class T> struct Target {
    typedef typename Wide<T>::type R;
    T* out;
    R* parts;
    DEVICE void put(u64 at, R sum) const {
        if (parts) {
            parts[at] = sum;
        } else {
            out[at] = narrow<T>(sum);
        }
    }
};
template <class T> DEVICE Target<T> target_of(const Cut& cut, Pointer out, u32 split) {
    typedef typename Wide<T>::type R;
    const u64 elements = (u64)cut.batch * cut.m * cut.n;
    const Target<T> target = {(T*)out, cut.splits > 1 ? (R*)cut.parts + split * elements : (R*)0};
    return target;
}
