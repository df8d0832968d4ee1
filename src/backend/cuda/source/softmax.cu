// Softmax and its logarithm along one dimension of [outer, size, inner], and their gradients.
#include "math.cuh"

// What a row's threads know together: one thread alone, or a block.
struct Alone {
    static DEVICE u32 first() { return 0; }
    static DEVICE u32 step() { return 1; }
    template <class R> static DEVICE R sum(R value) { return value; }
    template <class R> static DEVICE R largest(R value) { return value; }
};
struct Together {
    static DEVICE u32 first() { return threadIdx.x; }
    static DEVICE u32 step() { return blockDim.x; }
    template <class R> static DEVICE R sum(R value) { return sum_over_block(value); }
    template <class R> static DEVICE R largest(R value) {
        return joined_by_block(value, Larger(), -infinity<R>());
    }
};

template <class T, class Team> DEVICE void forward_row(const Softmax& args, u64 start) {
    typedef typename Wide<T>::type R;
    const T* x = (const T*)args.first + start;
    T* y = (T*)args.out + start;
    R largest = -infinity<R>();
    for (u64 k = Team::first(); k < args.size; k += Team::step()) {
        largest = Larger()(wide(x[k * args.inner]), largest);
    }
    largest = Team::largest(largest);
    R total = 0;
    for (u64 k = Team::first(); k < args.size; k += Team::step()) {
        total += exp_of(wide(x[k * args.inner]) - largest);
    }
    total = Team::sum(total);
    const R log_total = log_of(total);
    for (u64 k = Team::first(); k < args.size; k += Team::step()) {
        const R shifted = wide(x[k * args.inner]) - largest;
        y[k * args.inner] = narrow<T>(args.is_log ? shifted - log_total : exp_of(shifted) / total);
    }
}

template <class T, class Team> DEVICE void backward_row(const Softmax& args, u64 start) {
    typedef typename Wide<T>::type R;
    const T* y = (const T*)args.first + start;
    const T* gy = (const T*)args.second + start;
    T* gx = (T*)args.out + start;
    R sum = 0;
    for (u64 k = Team::first(); k < args.size; k += Team::step()) {
        const u64 at = k * args.inner;
        sum += args.is_log ? wide(gy[at]) : wide(y[at]) * wide(gy[at]);
    }
    sum = Team::sum(sum);
    for (u64 k = Team::first(); k < args.size; k += Team::step()) {
        const u64 at = k * args.inner;
        const R value = wide(y[at]), gradient = wide(gy[at]);
        gx[at] = narrow<T>(args.is_log ? gradient - exp_of(value) * sum : value * (gradient - sum));
    }
}

// A block a row where rows lie together, else a thread a row, so that neighbours read neighbours.
#define SOFTMAX(T, name)                                                                                       \
    KERNEL(softmax_rows_##name, Softmax) {                                                                     \
        for (u64 row = blockIdx.x; row < args.outer; row += gridDim.x) {                                       \
            forward_row<T, Together>(args, row * args.size);                                                   \
        }                                                                                                      \
    }                                                                                                          \
    KERNEL(softmax_columns_##name, Softmax) {                                                                  \
        for (u64 i = first_index(); i < args.outer * args.inner; i += index_step()) {                          \
            forward_row<T, Alone>(args, i / args.inner * args.size * args.inner + i % args.inner);             \
        }                                                                                                      \
    }                                                                                                          \
    KERNEL(softmax_grad_rows_##name, Softmax) {                                                                \
        for (u64 row = blockIdx.x; row < args.outer; row += gridDim.x) {                                       \
            backward_row<T, Together>(args, row * args.size);                                                  \
        }                                                                                                      \
    }                                                                                                          \
    KERNEL(softmax_grad_columns_##name, Softmax) {                                                             \
        for (u64 i = first_index(); i < args.outer * args.inner; i += index_step()) {                          \
            backward_row<T, Alone>(args, i / args.inner * args.size * args.inner + i % args.inner);            \
        }                                                                                                      \
    }
FOR_FLOATS(SOFTMAX)
