// Pooling over the last two dimensions of [planes, H, W].
#include "prelude.cuh"

// Part of a dimension: from `begin` to before `end`, and its length with the padding counted.
struct Window {
    u32 begin, end, padded;
};

// The window of an average, cut where even the padding ends.
DEVICE Window average_window(u32 to, u32 size, u32 kernel, u32 stride, u32 padding) {
    const u32 start = to * stride, limit = size + 2 * padding, stop = start + kernel < limit ? start + kernel : limit;
    Window window;
    window.begin = start > padding ? start - padding : 0;
    window.end = stop > padding ? stop - padding : 0;
    if (window.end > size) window.end = size;
    window.padded = stop - start;
    return window;
}

DEVICE Window adaptive_window(u32 to, u32 output, u32 input) {
    Window window;
    window.begin = (u32)((u64)to * input / output);
    window.end = (u32)(((u64)(to + 1) * input + output - 1) / output);
    window.padded = window.end - window.begin;
    return window;
}

DEVICE u32 inside(const Window& window) { return window.end > window.begin ? window.end - window.begin : 0; }

// Which windows of each kind reach an element: from `first` to `last`, both included. Windows outside that do not
// reach it after all are looked at again.
struct Average {
    static DEVICE Window h(const Pool& args, u32 to) {
        return average_window(to, args.height, args.kernel_h, args.stride_h, args.padding_h);
    }
    static DEVICE Window w(const Pool& args, u32 to) {
        return average_window(to, args.width, args.kernel_w, args.stride_w, args.padding_w);
    }
    static DEVICE u32 first(u32 at, u32, u32, u32 kernel, u32 stride, u32 padding) {
        return at + padding < kernel ? 0 : (at + padding - kernel) / stride + 1;
    }
    static DEVICE u32 last(u32 at, u32, u32 output, u32 stride, u32 padding) {
        const u32 last = (at + padding) / stride;
        return last < output ? last : output - 1;
    }
    template <class R> static DEVICE R count(const Pool& args, const Window& h, const Window& w) {
        if (args.divisor) return (R)args.divisor;
        return args.counts_padding ? (R)h.padded * (R)w.padded : (R)inside(h) * (R)inside(w);
    }
};
struct Adaptive {
    static DEVICE Window h(const Pool& args, u32 to) { return adaptive_window(to, args.out_height, args.height); }
    static DEVICE Window w(const Pool& args, u32 to) { return adaptive_window(to, args.out_width, args.width); }
    static DEVICE u32 first(u32 at, u32 input, u32 output, u32, u32, u32) { return (u32)((u64)at * output / input); }
    static DEVICE u32 last(u32 at, u32 input, u32 output, u32, u32) {
        return (u32)(((u64)(at + 1) * output - 1) / input);
    }
    template <class R> static DEVICE R count(const Pool&, const Window& h, const Window& w) {
        return (R)inside(h) * (R)inside(w);
    }
};

template <class T, class Kind> DEVICE void mean(const Pool& args) {
    typedef typename Wide<T>::type R;
    T* y = (T*)args.out;
    const u64 plane = (u64)args.out_height * args.out_width, total = args.planes * plane;
    for (u64 i = first_index(); i < total; i += index_step()) {
        const u32 at = (u32)(i % plane);
        const T* x = (const T*)args.from + i / plane * args.height * args.width;
        const Window h = Kind::h(args, at / args.out_width), w = Kind::w(args, at % args.out_width);
        R sum = 0;
        for (u32 row = h.begin; row < h.end; ++row) {
            for (u32 column = w.begin; column < w.end; ++column) sum += wide(x[(u64)row * args.width + column]);
        }
        y[i] = narrow<T>(sum / Kind::template count<R>(args, h, w));
    }
}

// Each element gathers its shares, in the order of the windows.
template <class T, class Kind> DEVICE void mean_grad(const Pool& args) {
    typedef typename Wide<T>::type R;
    T* gx = (T*)args.out;
    const u64 plane = (u64)args.height * args.width, total = args.planes * plane;
    for (u64 i = first_index(); i < total; i += index_step()) {
        const u32 row = (u32)(i % plane) / args.width, column = (u32)(i % plane) % args.width;
        const T* gy = (const T*)args.from + i / plane * args.out_height * args.out_width;
        R sum = 0;
        if (args.out_height && args.out_width) {
            const u32 h0 = Kind::first(row, args.height, args.out_height, args.kernel_h, args.stride_h, args.padding_h);
            const u32 h1 = Kind::last(row, args.height, args.out_height, args.stride_h, args.padding_h);
            const u32 w0 = Kind::first(column, args.width, args.out_width, args.kernel_w, args.stride_w, args.padding_w);
            const u32 w1 = Kind::last(column, args.width, args.out_width, args.stride_w, args.padding_w);
            for (u32 to_h = h0; to_h <= h1; ++to_h) {
                const Window h = Kind::h(args, to_h);
                for (u32 to_w = w0; to_w <= w1; ++to_w) {
                    const Window w = Kind::w(args, to_w);
                    sum += wide(gy[(u64)to_h * args.out_width + to_w]) / Kind::template count<R>(args, h, w);
                }
            }
        }
        gx[i] = narrow<T>(sum);
    }
}

template <class T> DEVICE void largest(const Pool& args) {
    typedef typename Wide<T>::type R;
    T* y = (T*)args.out;
    i64* indices = (i64*)args.indices;
    const u64 plane = (u64)args.out_height * args.out_width, total = args.planes * plane;
    for (u64 i = first_index(); i < total; i += index_step()) {
        const u32 to_h = (u32)(i % plane) / args.out_width, to_w = (u32)(i % plane) % args.out_width;
        const T* x = (const T*)args.from + i / plane * args.height * args.width;
        R best = -infinity<R>();
        i64 found = -1;
        for (u32 kh = 0; kh < args.kernel_h; ++kh) {
            const u32 row = to_h * args.stride_h + kh * args.dilation_h - args.padding_h;
            if (row >= args.height) continue;
            for (u32 kw = 0; kw < args.kernel_w; ++kw) {
                const u32 column = to_w * args.stride_w + kw * args.dilation_w - args.padding_w;
                if (column >= args.width) continue;
                const R value = wide(x[(u64)row * args.width + column]);
                if (found < 0 || value > best || value != value) {
                    best = value;
                    found = (i64)row * args.width + column;
                }
            }
        }
        y[i] = narrow<T>(best);
        indices[i] = found < 0 ? 0 : found;
    }
}

// A block has a plane, and each of its threads the elements of its own residue: all look at every gradient in order,
// and the owner adds it. The windows are not known here, and no two threads write to one element.
template <class T> DEVICE void largest_grad(const Pool& args) {
    typedef typename Wide<T>::type R;
    __shared__ i64 to[256];
    __shared__ R share[256];
    const u64 size = (u64)args.height * args.width, outputs = (u64)args.out_height * args.out_width;
    for (u64 plane = blockIdx.x; plane < args.planes; plane += gridDim.x) {
        const i64* indices = (const i64*)args.indices + plane * outputs;
        const T* gy = (const T*)args.from + plane * outputs;
        T* gx = (T*)args.out + plane * size;
        // Halves are added up in single precision beside, and rounded once.
        R* sums = sizeof(R) == sizeof(T) ? (R*)(void*)gx : (R*)args.scratch + plane * size;
        for (u64 i = threadIdx.x; i < size; i += blockDim.x) sums[i] = 0;
        for (u64 first = 0; first < outputs; first += 256) {
            const u32 here = outputs - first < 256 ? (u32)(outputs - first) : 256;
            __syncthreads();
            for (u32 n = threadIdx.x; n < here; n += blockDim.x) {
                to[n] = indices[first + n];
                share[n] = wide(gy[first + n]);
            }
            __syncthreads();
            for (u32 n = 0; n < here; ++n) {
                const u64 at = (u64)to[n];
                if (at < size && at % blockDim.x == threadIdx.x) sums[at] += share[n];
            }
        }
        if (sizeof(R) != sizeof(T)) {
            for (u64 i = threadIdx.x; i < size; i += blockDim.x) gx[i] = narrow<T>(sums[i]);
        }
        __syncthreads();
    }
}

#define POOL(T, name)                                                                                          \
    KERNEL(avg_pool2d_##name, Pool) { mean<T, Average>(args); }                                                \
    KERNEL(avg_pool2d_grad_##name, Pool) { mean_grad<T, Average>(args); }                                      \
    KERNEL(adaptive_avg_pool2d_##name, Pool) { mean<T, Adaptive>(args); }                                      \
    KERNEL(adaptive_avg_pool2d_grad_##name, Pool) { mean_grad<T, Adaptive>(args); }                            \
    KERNEL(max_pool2d_##name, Pool) { largest<T>(args); }                                                      \
    KERNEL(max_pool2d_grad_##name, Pool) { largest_grad<T>(args); }
FOR_FLOATS(POOL)
