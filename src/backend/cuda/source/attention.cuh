// Attention tile by tile: the frame of its forward and backward kernels.
//
// A block has a tile of rows (queries, or keys for their gradients) and goes through all tiles of the other side, so that
// no matrix of scores is ever in memory. Its 256 threads are 16×16: each has SIDE×SIDE of a tile's scores, and SIDE rows
// of every 16th column of the sums. No two blocks write to one place, and sums are made in the order of the tiles: equal
// inputs give equal bits.
#pragma once
#include "math.cuh"

// How much a type lets a block keep: scores of a thread's side, and how deep operands are taken through shared memory.
template <class R> struct Tiling {
    static const u32 SIDE = 4, DEPTH = 16;
};
template <> struct Tiling<f64> {
    static const u32 SIDE = 2, DEPTH = 8;
};
#define TILE_OF(R) (16 * Tiling<R>::SIDE)

// One head's matrix, rows of `width` elements with any strides.
template <class T> struct Rows {
    typedef typename Wide<T>::type R;
    const T* data;
    u64 row, column;
    u32 count, width;
    DEVICE R at(u32 r, u32 c) const {
        return r < count && c < width ? wide(data[r * row + c * column]) : (R)0;
    }
};
template <class T> DEVICE Rows<T> rows_of(const Attention& args, u32 operand, u64 at, u32 count, u32 width) {
    Rows<T> rows;
    rows.data = (const T*)args.operands[operand].data + at;
    rows.row = args.rows[operand];
    rows.column = args.columns[operand];
    rows.count = count;
    rows.width = width;
    return rows;
}

// How many keys, from the first on, are seen by any of so many queries.
DEVICE u32 seen_by(const Attention& args, u32 queries) {
    return args.is_causal && queries < args.keys ? queries : args.keys;
}

// The operands of one head, in the order of the operation's.
template <class T> struct Head {
    Rows<T> q, k, v, y, gy;
};
template <class T> DEVICE Head<T> head_of(const Attention& args, u64 head) {
    const Places<MOST_INPUTS> at = places<MOST_INPUTS>(args.walk, args.operands, head);
    // Keys behind the last query are seen by none, and what is not finite there must reach nobody.
    const u32 keys = seen_by(args, args.queries);
    Head<T> operands;
    operands.q = rows_of<T>(args, 0, at.at[0], args.queries, args.width);
    operands.k = rows_of<T>(args, 1, at.at[1], keys, args.width);
    operands.v = rows_of<T>(args, 2, at.at[2], keys, args.value_width);
    operands.y = rows_of<T>(args, 3, at.at[3], args.queries, args.value_width);
    operands.gy = rows_of<T>(args, 4, at.at[4], args.queries, args.value_width);
    return operands;
}

DEVICE bool sees(const Attention& args, u32 query, u32 key) {
    return query < args.queries && key < args.keys && (!args.is_causal || key <= query);
}

// A tile of A·Bᵀ from rows a0 of A and b0 of B on. Ends with all threads done with shared memory.
template <class T, class R> DEVICE void products_of_rows(const Rows<T>& a, u32 a0, const Rows<T>& b, u32 b0,
                                                         R (&sums)[Tiling<R>::SIDE][Tiling<R>::SIDE]) {
    const u32 SIDE = Tiling<R>::SIDE, DEPTH = Tiling<R>::DEPTH, TILE = TILE_OF(R);
    // More columns than needed keep rows aligned and off each other's banks.
    __shared__ R left[Tiling<R>::DEPTH][TILE_OF(R) + 4];
    __shared__ R right[Tiling<R>::DEPTH][TILE_OF(R) + 4];
    const u32 t = threadIdx.x, row = t / 16 * SIDE, column = t % 16 * SIDE;
#pragma unroll
    for (u32 i = 0; i < SIDE; ++i) {
#pragma unroll
        for (u32 j = 0; j < SIDE; ++j) sums[i][j] = 0;
    }
    for (u32 k0 = 0; k0 < a.width; k0 += DEPTH) {
#pragma unroll 2
        for (u32 e = t; e < TILE * DEPTH; e += 256) {
            const u32 k = e % DEPTH, n = e / DEPTH;
            left[k][n] = a.at(a0 + n, k0 + k);
            right[k][n] = b.at(b0 + n, k0 + k);
        }
        __syncthreads();
#pragma unroll 4
        for (u32 k = 0; k < DEPTH; ++k) {
            R x[Tiling<R>::SIDE], y[Tiling<R>::SIDE];
#pragma unroll
            for (u32 i = 0; i < SIDE; ++i) {
                x[i] = left[k][row + i];
                y[i] = right[k][column + i];
            }
#pragma unroll
            for (u32 i = 0; i < SIDE; ++i) {
#pragma unroll
                for (u32 j = 0; j < SIDE; ++j) sums[i][j] += x[i] * y[j];
            }
        }
        __syncthreads();
    }
}

// The tile of weights, or of their gradients, that all threads share.
template <class R> struct Tile {
    R at[TILE_OF(R)][TILE_OF(R) + 4];
    DEVICE void put(const R (&values)[Tiling<R>::SIDE][Tiling<R>::SIDE]) {
        const u32 SIDE = Tiling<R>::SIDE, row = threadIdx.x / 16 * SIDE, column = threadIdx.x % 16 * SIDE;
#pragma unroll
        for (u32 i = 0; i < SIDE; ++i) {
#pragma unroll
            for (u32 j = 0; j < SIDE; ++j) at[row + i][column + j] = values[i][j];
        }
    }
};

// sums += tile·B for the rows of B from b0 on; the tile has been put by all threads, who are done with it at the end.
template <u32 WIDTH, class T, class R>
DEVICE void add_product(const Tile<R>& tile, const Rows<T>& b, u32 b0, R (&sums)[Tiling<R>::SIDE][WIDTH / 16]) {
    const u32 SIDE = Tiling<R>::SIDE, DEPTH = Tiling<R>::DEPTH, TILE = TILE_OF(R);
    __shared__ R rows[Tiling<R>::DEPTH][WIDTH];
    const u32 t = threadIdx.x, row = t / 16 * SIDE, lane = t % 16;
    for (u32 k0 = 0; k0 < TILE; k0 += DEPTH) {
#pragma unroll 2
        for (u32 e = t; e < WIDTH * DEPTH; e += 256) rows[e / WIDTH][e % WIDTH] = b.at(b0 + k0 + e / WIDTH, e % WIDTH);
        __syncthreads();
#pragma unroll 2
        for (u32 k = 0; k < DEPTH; ++k) {
            R x[Tiling<R>::SIDE];
#pragma unroll
            for (u32 i = 0; i < SIDE; ++i) x[i] = tile.at[row + i][k0 + k];
#pragma unroll
            for (u32 j = 0; j < WIDTH / 16; ++j) {
                const R y = rows[k][lane + 16 * j];
#pragma unroll
                for (u32 i = 0; i < SIDE; ++i) sums[i][j] += x[i] * y;
            }
        }
        __syncthreads();
    }
}

template <u32 WIDTH, class R> DEVICE void clear(R (&sums)[Tiling<R>::SIDE][WIDTH / 16]) {
#pragma unroll
    for (u32 i = 0; i < Tiling<R>::SIDE; ++i) {
#pragma unroll
        for (u32 j = 0; j < WIDTH / 16; ++j) sums[i][j] = 0;
    }
}

// Writes rows of a contiguous result from `first` on.
template <u32 WIDTH, class T, class R>
DEVICE void put_rows(T* out, u32 first, u32 count, u32 width, const R (&sums)[Tiling<R>::SIDE][WIDTH / 16]) {
    const u32 SIDE = Tiling<R>::SIDE, row = first + threadIdx.x / 16 * SIDE, lane = threadIdx.x % 16;
#pragma unroll
    for (u32 i = 0; i < SIDE; ++i) {
#pragma unroll
        for (u32 j = 0; j < WIDTH / 16; ++j) {
            const u32 column = lane + 16 * j;
            if (row + i < count && column < width) out[(u64)(row + i) * width + column] = narrow<T>(sums[i][j]);
        }
    }
}
