// 2-d convolution and its gradients as products of matrices that are never laid out: [N, C, H, W], groups, dilation.
//
// `first` and `second` are the operands in the order that the graph's operation has them. Groups are the batch of the
// product.
#include "gemm.cuh"

// Where tap `tap` of the window at `to` reads along one dimension; `size` or more where that is padding.
DEVICE u32 tapped(u32 to, u32 tap, u32 stride, u32 dilation, u32 padding) {
    return to * stride + tap * dilation - padding;
}

// The window that reads `from` with tap `tap`; `size` or more where there is none.
DEVICE u32 window_of(u32 from, u32 tap, u32 stride, u32 dilation, u32 padding) {
    const u32 reach = from + padding, before = tap * dilation;
    return reach < before || (reach - before) % stride ? 0xffffffffu : (reach - before) / stride;
}

// A number of [channels, kh, kw].
struct Tap {
    u32 channel, h, w;
    DEVICE Tap(const Conv& args, u32 k) {
        const u32 row = k / args.kernel_w;
        w = k - row * args.kernel_w;
        channel = row / args.kernel_h;
        h = row - channel * args.kernel_h;
    }
};

// A number of [batch, height, width].
struct Pixel {
    u32 batch, h, w;
    DEVICE Pixel(u32 n, u32 height, u32 width) {
        const u32 row = n / width;
        w = n - row * width;
        batch = row / height;
        h = row - batch * height;
    }
};

// x read at a window's tap, 0 in the padding.
template <class T>
DEVICE typename Wide<T>::type read_input(const Conv& args, const T* x, u32 channel, const Pixel& to,
                                         const Tap& tap) {
    const u32 h = tapped(to.h, tap.h, args.stride_h, args.dilation_h, args.padding_h);
    const u32 w = tapped(to.w, tap.w, args.stride_w, args.dilation_w, args.padding_w);
    if (h >= args.height || w >= args.width) return 0;
    return wide(x[(((u64)to.batch * args.channels + channel) * args.height + h) * args.width + w]);
}

// gy at the window that reads an element of the input by a tap, 0 where there is none.
template <class T>
DEVICE typename Wide<T>::type read_gradient(const Conv& args, const T* gy, u32 output, const Pixel& at,
                                            const Tap& tap) {
    const u32 h = window_of(at.h, tap.h, args.stride_h, args.dilation_h, args.padding_h);
    const u32 w = window_of(at.w, tap.w, args.stride_w, args.dilation_w, args.padding_w);
    if (h >= args.out_height || w >= args.out_width) return 0;
    return wide(gy[(((u64)at.batch * args.outputs + output) * args.out_height + h) * args.out_width + w]);
}

// y: outputs of a group × pixels of y, summed over the channels' taps.
template <class T> struct Forward {
    typedef typename Wide<T>::type R;
    const Conv& args;
    Target<T> target;
    u32 group, m, n;
    bool a_along_k, b_along_k;
    DEVICE R a(u32 row, u32 k) const {
        return wide(((const T*)args.second)[(u64)(group * m + row) * args.cut.k + k]);
    }
    DEVICE R b(u32 k, u32 column) const {
        const Tap tap(args, k);
        const u32 channel = group * (args.channels / args.groups) + tap.channel;
        return read_input(args, (const T*)args.first, channel, Pixel(column, args.out_height, args.out_width), tap);
    }
    DEVICE void put(u32 row, u32 column, R sum) const {
        const u32 plane = args.out_height * args.out_width, batch = column / plane;
        target.put(((u64)batch * args.outputs + group * m + row) * plane + (column - batch * plane), sum);
    }
};

// gx: channels of a group × pixels of x, summed over the outputs' taps.
template <class T> struct GradInput {
    typedef typename Wide<T>::type R;
    const Conv& args;
    Target<T> target;
    u32 group, m, n;
    bool a_along_k, b_along_k;
    DEVICE R a(u32 row, u32 k) const {
        const Tap tap(args, k);
        const u32 output = group * (args.outputs / args.groups) + tap.channel;
        return wide(((const T*)args.first)[(((u64)output * m + row) * args.kernel_h + tap.h) * args.kernel_w + tap.w]);
    }
    DEVICE R b(u32 k, u32 column) const {
        const Tap tap(args, k);
        const u32 output = group * (args.outputs / args.groups) + tap.channel;
        return read_gradient(args, (const T*)args.second, output, Pixel(column, args.height, args.width), tap);
    }
    DEVICE void put(u32 row, u32 column, R sum) const {
        const u32 plane = args.height * args.width, batch = column / plane;
        target.put(((u64)batch * args.channels + group * m + row) * plane + (column - batch * plane), sum);
    }
};

// gw: outputs of a group × taps of a group's channels, summed over the pixels of y.
template <class T> struct GradWeight {
    typedef typename Wide<T>::type R;
    const Conv& args;
    Target<T> target;
    u32 group, m, n;
    bool a_along_k, b_along_k;
    DEVICE R a(u32 row, u32 k) const {
        const u32 plane = args.out_height * args.out_width, batch = k / plane;
        const u64 at = ((u64)batch * args.outputs + group * m + row) * plane + (k - batch * plane);
        return wide(((const T*)args.second)[at]);
    }
    DEVICE R b(u32 k, u32 column) const {
        const Tap tap(args, column);
        const u32 channel = group * (args.channels / args.groups) + tap.channel;
        return read_input(args, (const T*)args.first, channel, Pixel(k, args.out_height, args.out_width), tap);
    }
    DEVICE void put(u32 row, u32 column, R sum) const { target.put((u64)(group * m + row) * n + column, sum); }
};

template <class T, template <class> class Kind> struct ConvBatch {
    const Conv& args;
    DEVICE Kind<T> problem(u64 group, u32 split) const {
        const Kind<T> problem = {args,       target_of<T>(args.cut, args.out, split), (u32)group,
                                 args.cut.m, args.cut.n, args.a_along_k != 0, args.b_along_k != 0};
        return problem;
    }
};

// Where a group has few rows, a tile would be mostly air: a thread for each element instead.
template <class T, template <class> class Kind> DEVICE void direct(const Conv& args) {
    typedef typename Wide<T>::type R;
    const ConvBatch<T, Kind> batch = {args};
    const u64 a_group = (u64)args.cut.m * args.cut.n, total = a_group * args.cut.batch;
    for (u64 i = first_index(); i < total; i += index_step()) {
        const Kind<T> problem = batch.problem(i / a_group, 0);
        const u32 row = (u32)(i % a_group / args.cut.n), column = (u32)(i % args.cut.n);
        R sum = 0;
        for (u32 k = 0; k < args.cut.k; ++k) sum += problem.a(row, k) * problem.b(k, column);
        problem.put(row, column, sum);
    }
}

// The same with a block for each element, for the long sums of a weight's gradient.
template <class T> DEVICE void direct_weight(const Conv& args) {
    typedef typename Wide<T>::type R;
    const ConvBatch<T, GradWeight> batch = {args};
    const u64 a_group = (u64)args.cut.m * args.cut.n, total = a_group * args.cut.batch;
    for (u64 i = blockIdx.x; i < total; i += gridDim.x) {
        const GradWeight<T> problem = batch.problem(i / a_group, 0);
        const u32 row = (u32)(i % a_group / args.cut.n), column = (u32)(i % args.cut.n);
        R sum = 0;
        for (u32 k = threadIdx.x; k < args.cut.k; k += blockDim.x) sum += problem.a(row, k) * problem.b(k, column);
        sum = sum_over_block(sum);
        if (threadIdx.x == 0) problem.put(row, column, sum);
    }
}

#define CONV(T, name)                                                                                          \
    KERNEL(conv2d_##name, Conv) {                                                                              \
        const ConvBatch<T, Forward> batch = {args};                                                            \
        products<Wide<T>::type>(batch, args.cut);                                                              \
    }                                                                                                          \
    KERNEL(conv2d_grad_input_##name, Conv) {                                                                   \
        const ConvBatch<T, GradInput> batch = {args};                                                          \
        products<Wide<T>::type>(batch, args.cut);                                                              \
    }                                                                                                          \
    KERNEL(conv2d_grad_weight_##name, Conv) {                                                                  \
        const ConvBatch<T, GradWeight> batch = {args};                                                         \
        products<Wide<T>::type>(batch, args.cut);                                                              \
    }                                                                                                          \
    KERNEL(conv2d_direct_##name, Conv) { direct<T, Forward>(args); }                                           \
    KERNEL(conv2d_grad_input_direct_##name, Conv) { direct<T, GradInput>(args); }                              \
    KERNEL(conv2d_grad_weight_direct_##name, Conv) { direct_weight<T>(args); }
FOR_FLOATS(CONV)
