// Scaled dot product attention, with the largest score and the sum of exponentials so far.
#include "attention.cuh"

// What the 16 threads of a row have together, in the first of them.
template <class R, class Join> DEVICE R joined_by_row(R value, Join join) {
    for (u32 by = 8; by > 0; by >>= 1) value = join(value, shuffle_down(value, by));
    return value;
}

template <u32 WIDTH, class T> DEVICE void attention(const Attention& args) {
    typedef typename Wide<T>::type R;
    const u32 SIDE = Tiling<R>::SIDE, TILE = TILE_OF(R);
    __shared__ Tile<R> weights;
    __shared__ R largest[TILE_OF(R)];
    __shared__ R sum[TILE_OF(R)];
    __shared__ R kept[TILE_OF(R)];
    const u32 t = threadIdx.x, row = t / 16 * SIDE, column = t % 16 * SIDE;
    const u64 tiles = (args.queries + TILE - 1) / TILE;
    for (u64 job = blockIdx.x; job < tiles * args.walk.elements; job += gridDim.x) {
        const u64 number = job / tiles;
        const u32 q0 = (u32)(job % tiles) * TILE;
        const Head<T> head = head_of<T>(args, number);
        R sums[Tiling<R>::SIDE][WIDTH / 16];
        clear<WIDTH, R>(sums);
        if (t < TILE) {
            largest[t] = -infinity<R>();
            sum[t] = 0;
        }
        const u32 end = seen_by(args, q0 + TILE);
        for (u32 k0 = 0; k0 < end; k0 += TILE) {
            R scores[Tiling<R>::SIDE][Tiling<R>::SIDE];
            products_of_rows<T, R>(head.q, q0, head.k, k0, scores);
#pragma unroll
            for (u32 i = 0; i < SIDE; ++i) {
                R most = -infinity<R>();
#pragma unroll
                for (u32 j = 0; j < SIDE; ++j) {
                    const bool seen = sees(args, q0 + row + i, k0 + column + j);
                    scores[i][j] = seen ? scores[i][j] * (R)args.scale : -infinity<R>();
                    most = Larger()(scores[i][j], most);
                }
                most = joined_by_row(most, Larger());
                if (column == 0) {
                    const R before = largest[row + i], now = Larger()(most, before);
                    // Nothing but -infinity yet: powers of 0, of which later tiles take the place.
                    kept[row + i] = exp_of(before - (now == -infinity<R>() ? (R)0 : now));
                    largest[row + i] = now;
                }
            }
            __syncthreads();
#pragma unroll
            for (u32 i = 0; i < SIDE; ++i) {
                const R now = largest[row + i], shift = now == -infinity<R>() ? (R)0 : now;
                R total = 0;
#pragma unroll
                for (u32 j = 0; j < SIDE; ++j) {
                    scores[i][j] = exp_of(scores[i][j] - shift);
                    total += scores[i][j];
                }
                total = joined_by_row(total, Add());
                const R factor = kept[row + i];
                if (column == 0) sum[row + i] = sum[row + i] * factor + total;
#pragma unroll
                for (u32 j = 0; j < WIDTH / 16; ++j) sums[i][j] *= factor;
            }
            weights.put(scores);
            __syncthreads();
            add_product<WIDTH, T, R>(weights, head.v, k0, sums);
        }
#pragma unroll
        for (u32 i = 0; i < SIDE; ++i) {
            const R share = (R)1 / sum[row + i];
#pragma unroll
            for (u32 j = 0; j < WIDTH / 16; ++j) sums[i][j] *= share;
            if (column == 0 && q0 + row + i < args.queries) {
                const R most = largest[row + i];
                // Of a row with no score but -infinity softmax is NaN, and so is what its gradient is made of.
                const R lse = most == -infinity<R>() ? most - most : most + log_of(sum[row + i]);
                ((R*)args.lse)[number * args.queries + q0 + row + i] = lse;
            }
        }
        T* y = (T*)args.out + number * args.queries * args.value_width;
        put_rows<WIDTH, T, R>(y, q0, args.queries, args.value_width, sums);
        __syncthreads();
    }
}

// By the widest head that a kernel takes.
#define ATTENTION(T, name)                                                                                     \
    KERNEL(attention_64_##name, Attention) { attention<64, T>(args); }                                         \
    KERNEL(attention_256_##name, Attention) { attention<256, T>(args); }
FOR_FLOATS(ATTENTION)
