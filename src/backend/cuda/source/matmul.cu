// Products of matrices with any strides, in batches.
#include "gemm.cuh"

template <class T> struct Matrices {
    typedef typename Wide<T>::type R;
    const T* a_start;
    const T* b_start;
    Target<T> target;
    u64 first, a_row, a_column, b_row, b_column;
    u32 m, n;
    bool a_along_k, b_along_k;
    DEVICE R a(u32 row, u32 k) const { return wide(a_start[row * a_row + k * a_column]); }
    DEVICE R b(u32 k, u32 column) const { return wide(b_start[k * b_row + column * b_column]); }
    DEVICE void put(u32 row, u32 column, R sum) const { target.put(first + (u64)row * n + column, sum); }
};

template <class T> struct MatMulBatch {
    const MatMul& args;
    DEVICE Matrices<T> problem(u64 batch, u32 split) const {
        const Places<2> at = places<2>(args.walk, args.views, batch);
        Matrices<T> matrices;
        matrices.a_start = (const T*)args.views[0].data + at.at[0];
        matrices.b_start = (const T*)args.views[1].data + at.at[1];
        matrices.target = target_of<T>(args.cut, args.out, split);
        matrices.first = batch * args.cut.m * args.cut.n;
        matrices.a_row = args.a_row;
        matrices.a_column = args.a_column;
        matrices.b_row = args.b_row;
        matrices.b_column = args.b_column;
        matrices.m = args.cut.m;
        matrices.n = args.cut.n;
        matrices.a_along_k = args.a_column <= args.a_row;
        matrices.b_along_k = args.b_row < args.b_column;
        return matrices;
    }
};

#define MATMUL(T, name)                                                                                        \
    KERNEL(matmul_##name, MatMul) {                                                                            \
        const MatMulBatch<T> batch = {args};                                                                   \
        products<Wide<T>::type>(batch, args.cut);                                                              \
    }
FOR_FLOATS(MATMUL)
