// Layer and group normalisation: rows of `channels` × `spatial` elements that lie together, each with a mean of its
// own. Row r of `groups` rows a sample has the weights from `r % groups * channels` on; a layer norm has one group,
// and a weight for each element.
#include "math.cuh"

template <class T> DEVICE void row_norm(const Norm& args) {
    typedef typename Wide<T>::type R;
    const u64 len = args.channels * args.spatial, rows = args.batch * args.groups;
    const T* weight = (const T*)args.weight;
    const T* bias = (const T*)args.bias;
    for (u64 row = blockIdx.x; row < rows; row += gridDim.x) {
        const T* x = (const T*)args.x + row * len;
        T* y = (T*)args.out + row * len;
        const u64 first = row % args.groups * args.channels;
        const R count = len ? (R)len : (R)1;
        R sum = 0;
        for (u64 i = threadIdx.x; i < len; i += blockDim.x) sum += wide(x[i]);
        const R mean = sum_over_block(sum) / count;
        sum = 0;
        for (u64 i = threadIdx.x; i < len; i += blockDim.x) {
            const R far = wide(x[i]) - mean;
            sum += far * far;
        }
        const R rstd = (R)1 / sqrt_of(sum_over_block(sum) / count + (R)args.eps);
        for (u64 i = threadIdx.x; i < len; i += blockDim.x) {
            const u64 c = first + i / args.spatial;
            y[i] = narrow<T>((wide(x[i]) - mean) * rstd * wide(weight[c]) + wide(bias[c]));
        }
        if (threadIdx.x == 0) {
            ((T*)args.out_mean)[row] = narrow<T>(mean);
            ((T*)args.out_rstd)[row] = narrow<T>(rstd);
        }
    }
}

template <class T> DEVICE void row_norm_grad(const Norm& args) {
    typedef typename Wide<T>::type R;
    const u64 len = args.channels * args.spatial, rows = args.batch * args.groups;
    const T* weight = (const T*)args.weight;
    for (u64 row = blockIdx.x; row < rows; row += gridDim.x) {
        const T* x = (const T*)args.x + row * len;
        const T* gy = (const T*)args.gy + row * len;
        T* gx = (T*)args.out + row * len;
        const u64 first = row % args.groups * args.channels;
        const R mean = wide(((const T*)args.mean)[row]), rstd = wide(((const T*)args.rstd)[row]);
        const R count = len ? (R)len : (R)1;
        R sum = 0, dot = 0;
        for (u64 i = threadIdx.x; i < len; i += blockDim.x) {
            const R g = wide(gy[i]) * wide(weight[first + i / args.spatial]);
            sum += g;
            dot += g * ((wide(x[i]) - mean) * rstd);
        }
        sum = sum_over_block(sum) / count;
        dot = sum_over_block(dot) / count;
        for (u64 i = threadIdx.x; i < len; i += blockDim.x) {
            const R g = wide(gy[i]) * wide(weight[first + i / args.spatial]);
            gx[i] = narrow<T>(rstd * (g - sum - (wide(x[i]) - mean) * rstd * dot));
        }
    }
}

// Gradients of weight and bias where a weight meets one element a row: 32 weights a block, eight threads for each.
// Their sums over `share` rows go into `parts`, [2, splits, weights], where there are several splits.
template <class T> DEVICE void row_norm_scale_grad(const Norm& args) {
    typedef typename Wide<T>::type R;
    __shared__ R weights[8][32];
    __shared__ R biases[8][32];
    const u32 column = threadIdx.x & 31, slice = threadIdx.x >> 5;
    const u64 tiles = (args.channels + 31) / 32;
    for (u64 job = blockIdx.x; job < tiles * args.splits; job += gridDim.x) {
        const u64 c = job % tiles * 32 + column, split = job / tiles, begin = split * args.share;
        const u64 end = begin + args.share < args.batch ? begin + args.share : args.batch;
        R gw = 0, gb = 0;
        for (u64 row = begin + slice; row < end && c < args.channels; row += 8) {
            const u64 at = row * args.channels + c;
            const R g = wide(((const T*)args.gy)[at]);
            const R mean = wide(((const T*)args.mean)[row]), rstd = wide(((const T*)args.rstd)[row]);
            gb += g;
            gw += g * ((wide(((const T*)args.x)[at]) - mean) * rstd);
        }
        weights[slice][column] = gw;
        biases[slice][column] = gb;
        __syncthreads();
        if (slice == 0 && c < args.channels) {
            for (u32 n = 1; n < 8; ++n) {
                gw += weights[n][column];
                gb += biases[n][column];
            }
            if (args.splits > 1) {
                R* parts = (R*)args.parts;
                parts[split * args.channels + c] = gw;
                parts[(args.splits + split) * args.channels + c] = gb;
            } else {
                ((T*)args.out_weight)[c] = narrow<T>(gw);
                ((T*)args.out_bias)[c] = narrow<T>(gb);
            }
        }
        __syncthreads();
    }
}

// The same where a weight meets a whole plane in each sample: a block for each weight.
template <class T> DEVICE void row_norm_plane_grad(const Norm& args) {
    typedef typename Wide<T>::type R;
    const u64 all = args.groups * args.channels, count = args.batch * args.spatial;
    for (u64 c = blockIdx.x; c < all; c += gridDim.x) {
        R gw = 0, gb = 0;
        for (u64 i = threadIdx.x; i < count; i += blockDim.x) {
            const u64 sample = i / args.spatial, row = sample * args.groups + c / args.channels;
            const u64 at = (sample * all + c) * args.spatial + (i - sample * args.spatial);
            const R g = wide(((const T*)args.gy)[at]);
            const R mean = wide(((const T*)args.mean)[row]), rstd = wide(((const T*)args.rstd)[row]);
            gb += g;
            gw += g * ((wide(((const T*)args.x)[at]) - mean) * rstd);
        }
        gw = sum_over_block(gw);
        gb = sum_over_block(gb);
        if (threadIdx.x == 0) {
            ((T*)args.out_weight)[c] = narrow<T>(gw);
            ((T*)args.out_bias)[c] = narrow<T>(gb);
        }
    }
}

#define ROW_NORM(T, name)                                                                                      \
    KERNEL(row_norm_##name, Norm) { row_norm<T>(args); }                                                       \
    KERNEL(row_norm_grad_##name, Norm) { row_norm_grad<T>(args); }                                             \
    KERNEL(row_norm_scale_grad_##name, Norm) { row_norm_scale_grad<T>(args); }                                 \
    KERNEL(row_norm_plane_grad_##name, Norm) { row_norm_plane_grad<T>(args); }
FOR_FLOATS(ROW_NORM)
