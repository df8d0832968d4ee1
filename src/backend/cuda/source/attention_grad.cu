// The gradients of attention, which compute the weights anew from the logarithms of the sums of exponentials.
#include "attention.cuh"

// The sum of gy∘y of each query, by a warp.
template <class T> DEVICE void attention_shared(const Attention& args) {
    typedef typename Wide<T>::type R;
    const u64 rows = args.walk.elements * args.queries;
    const u32 lane = threadIdx.x & 31, warps = blockDim.x >> 5;
    for (u64 n = (u64)blockIdx.x * warps + (threadIdx.x >> 5); n < rows; n += (u64)gridDim.x * warps) {
        const Head<T> head = head_of<T>(args, n / args.queries);
        const u32 query = (u32)(n % args.queries);
        R total = 0;
        for (u32 c = lane; c < args.value_width; c += 32) total += head.y.at(query, c) * head.gy.at(query, c);
        for (u32 by = 16; by > 0; by >>= 1) total += shuffle_down(total, by);
        if (lane == 0) ((R*)args.shared)[n] = total;
    }
}

// From a tile's scores and the products of gy and v to its weights, and to the gradients of its scores. Queries are the
// tile's rows, or its columns where it lies transposed.
template <bool TURNED, class R>
DEVICE void weigh(const Attention& args, u64 number, u32 q0, u32 k0,
                  R (&weights)[Tiling<R>::SIDE][Tiling<R>::SIDE], R (&gradients)[Tiling<R>::SIDE][Tiling<R>::SIDE]) {
    const u32 SIDE = Tiling<R>::SIDE, row = threadIdx.x / 16 * SIDE, column = threadIdx.x % 16 * SIDE;
    const R* lse = (const R*)args.lse + number * args.queries;
    const R* shared = (const R*)args.shared + number * args.queries;
#pragma unroll
    for (u32 i = 0; i < SIDE; ++i) {
#pragma unroll
        for (u32 j = 0; j < SIDE; ++j) {
            const u32 query = q0 + (TURNED ? column + j : row + i), key = k0 + (TURNED ? row + i : column + j);
            if (sees(args, query, key)) {
                weights[i][j] = exp_of(weights[i][j] * (R)args.scale - lse[query]);
                gradients[i][j] = weights[i][j] * (gradients[i][j] - shared[query]) * (R)args.scale;
            } else {
                weights[i][j] = gradients[i][j] = 0;
            }
        }
    }
}

template <u32 WIDTH, class T> DEVICE void attention_grad_queries(const Attention& args) {
    typedef typename Wide<T>::type R;
    const u32 TILE = TILE_OF(R);
    __shared__ Tile<R> tile;
    const u64 tiles = (args.queries + TILE - 1) / TILE;
    for (u64 job = blockIdx.x; job < tiles * args.walk.elements; job += gridDim.x) {
        const u64 number = job / tiles;
        const u32 q0 = (u32)(job % tiles) * TILE;
        const Head<T> head = head_of<T>(args, number);
        R sums[Tiling<R>::SIDE][WIDTH / 16];
        clear<WIDTH, R>(sums);
        const u32 end = seen_by(args, q0 + TILE);
        for (u32 k0 = 0; k0 < end; k0 += TILE) {
            R weights[Tiling<R>::SIDE][Tiling<R>::SIDE], gradients[Tiling<R>::SIDE][Tiling<R>::SIDE];
            products_of_rows<T, R>(head.q, q0, head.k, k0, weights);
            products_of_rows<T, R>(head.gy, q0, head.v, k0, gradients);
            weigh<false, R>(args, number, q0, k0, weights, gradients);
            tile.put(gradients);
            __syncthreads();
            add_product<WIDTH, T, R>(tile, head.k, k0, sums);
        }
        T* gq = (T*)args.out + number * args.queries * args.width;
        put_rows<WIDTH, T, R>(gq, q0, args.queries, args.width, sums);
    }
}

template <u32 WIDTH, class T> DEVICE void attention_grad_keys(const Attention& args) {
    typedef typename Wide<T>::type R;
    const u32 TILE = TILE_OF(R);
    __shared__ Tile<R> tile;
    const u64 tiles = (args.keys + TILE - 1) / TILE;
    for (u64 job = blockIdx.x; job < tiles * args.walk.elements; job += gridDim.x) {
        const u64 number = job / tiles;
        const u32 k0 = (u32)(job % tiles) * TILE;
        const Head<T> head = head_of<T>(args, number);
        R of_keys[Tiling<R>::SIDE][WIDTH / 16], of_values[Tiling<R>::SIDE][WIDTH / 16];
        clear<WIDTH, R>(of_keys);
        clear<WIDTH, R>(of_values);
        // The first tile with a query that sees one of these keys.
        for (u32 q0 = args.is_causal ? k0 : 0; q0 < args.queries; q0 += TILE) {
            R weights[Tiling<R>::SIDE][Tiling<R>::SIDE], gradients[Tiling<R>::SIDE][Tiling<R>::SIDE];
            products_of_rows<T, R>(head.k, k0, head.q, q0, weights);
            products_of_rows<T, R>(head.v, k0, head.gy, q0, gradients);
            weigh<true, R>(args, number, q0, k0, weights, gradients);
            tile.put(weights);
            __syncthreads();
            add_product<WIDTH, T, R>(tile, head.gy, q0, of_values);
            tile.put(gradients);
            __syncthreads();
            add_product<WIDTH, T, R>(tile, head.q, q0, of_keys);
        }
        T* gk = (T*)args.out + number * args.keys * args.width;
        T* gv = (T*)args.second_out + number * args.keys * args.value_width;
        put_rows<WIDTH, T, R>(gk, k0, args.keys, args.width, of_keys);
        put_rows<WIDTH, T, R>(gv, k0, args.keys, args.value_width, of_values);
    }
}

// By the widest head that a kernel takes.
#define ATTENTION_GRAD(T, name)                                                                                \
    KERNEL(attention_shared_##name, Attention) { attention_shared<T>(args); }                                  \
    KERNEL(attention_grad_queries_64_##name, Attention) { attention_grad_queries<64, T>(args); }               \
    KERNEL(attention_grad_queries_256_##name, Attention) { attention_grad_queries<256, T>(args); }             \
    KERNEL(attention_grad_keys_64_##name, Attention) { attention_grad_keys<64, T>(args); }                     \
    KERNEL(attention_grad_keys_256_##name, Attention) { attention_grad_keys<256, T>(args); }
FOR_FLOATS(ATTENTION_GRAD)
