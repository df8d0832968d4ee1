// Sums, sums of squares, means and maxima over dimensions.
//
// Results that are few are gathered in `splits` parts, each by a block of its own, whose sums `fold` joins in
// their order. So the same bits come out whoever is first.
#include "prelude.cuh"

template <class R> struct Start {
    static DEVICE R of(u32 kind) { return kind == REDUCTION_AMAX ? -infinity<R>() : (R)0; }
};
template <> struct Start<i64> {
    static DEVICE i64 of(u32) { return 0; }
};

template <class R> DEVICE R joined(u32 kind, R a, R b) {
    return kind == REDUCTION_AMAX ? Larger()(a, b) : a + b;
}
template <class R> DEVICE R taken(u32 kind, R sum, R value) {
    return kind == REDUCTION_SUMOFSQUARES ? sum + value * value : joined(kind, sum, value);
}
template <class R> DEVICE R finished(u32 kind, R sum, f64 divisor) {
    return kind == REDUCTION_MEAN ? (R)(sum / (R)divisor) : sum;
}

struct Joined {
    u32 kind;
    template <class R> DEVICE R operator()(R a, R b) const { return joined(kind, a, b); }
};

template <class T> DEVICE void put_sum(const Reduce& args, u64 split, u64 to, typename Wide<T>::type sum) {
    typedef typename Wide<T>::type R;
    if (args.splits > 1) {
        ((R*)args.partial)[split * args.kept.elements + to] = sum;
    } else {
        ((T*)args.out)[to] = narrow<T>(finished(args.code, sum, args.divisor));
    }
}

// A block for each result: for a reduction along what lies together.
template <class T> DEVICE void reduce_rows(const Reduce& args) {
    typedef typename Wide<T>::type R;
    const T* x = (const T*)args.from;
    const u64 total = args.kept.elements * args.splits;
    for (u64 job = blockIdx.x; job < total; job += gridDim.x) {
        const u64 to = job / args.splits, split = job % args.splits;
        const u64 first = places<1>(args.kept, args.views, to).at[0];
        const u64 begin = split * args.share;
        const u64 end = begin + args.share < args.gone.elements ? begin + args.share : args.gone.elements;
        R sum = Start<R>::of(args.code);
        for (u64 i = begin + threadIdx.x; i < end; i += blockDim.x) {
            sum = taken(args.code, sum, wide(x[first + places<1>(args.gone, args.views + 1, i).at[0]]));
        }
        const Joined join = {args.code};
        sum = joined_by_block(sum, join, Start<R>::of(args.code));
        if (threadIdx.x == 0) put_sum<T>(args, split, to, sum);
    }
}

// 32 results a block, eight threads for each: for a reduction across what lies together.
template <class T> DEVICE void reduce_columns(const Reduce& args) {
    typedef typename Wide<T>::type R;
    __shared__ R parts[8][32];
    const T* x = (const T*)args.from;
    const u32 column = threadIdx.x & 31, slice = threadIdx.x >> 5;
    const u64 tiles = (args.kept.elements + 31) / 32, total = tiles * args.splits;
    for (u64 job = blockIdx.x; job < total; job += gridDim.x) {
        const u64 to = job % tiles * 32 + column, split = job / tiles;
        const u64 begin = split * args.share;
        const u64 end = begin + args.share < args.gone.elements ? begin + args.share : args.gone.elements;
        R sum = Start<R>::of(args.code);
        if (to < args.kept.elements) {
            const u64 first = places<1>(args.kept, args.views, to).at[0];
            for (u64 i = begin + slice; i < end; i += 8) {
                sum = taken(args.code, sum, wide(x[first + places<1>(args.gone, args.views + 1, i).at[0]]));
            }
        }
        parts[slice][column] = sum;
        __syncthreads();
        if (slice == 0 && to < args.kept.elements) {
            for (u32 n = 1; n < 8; ++n) sum = joined(args.code, sum, parts[n][column]);
            put_sum<T>(args, split, to, sum);
        }
        __syncthreads();
    }
}

// The parts of each result joined: [splits, elements] -> [elements].
template <class T> DEVICE void fold(const Fold& args) {
    typedef typename Wide<T>::type R;
    const R* parts = (const R*)args.parts;
    T* out = (T*)args.out;
    for (u64 i = first_index(); i < args.elements; i += index_step()) {
        R sum = Start<R>::of(args.code);
        for (u64 n = 0; n < args.splits; ++n) sum = joined(args.code, sum, parts[n * args.elements + i]);
        out[i] = narrow<T>(finished(args.code, sum, args.divisor));
    }
}

#define REDUCE(T, name)                                                                                        \
    KERNEL(reduce_rows_##name, Reduce) { reduce_rows<T>(args); }                                               \
    KERNEL(reduce_columns_##name, Reduce) { reduce_columns<T>(args); }                                         \
    KERNEL(fold_##name, Fold) { fold<T>(args); }
FOR_FLOATS(REDUCE)
REDUCE(i64, i64)
