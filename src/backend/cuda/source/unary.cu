// One operand, element by element: functions, their gradients, dropout, counting.
#include "math.cuh"

template <class T> DEVICE void unary(const Pointwise& args) {
    typedef typename Wide<T>::type R;
    const T* x = (const T*)args.views[0].data;
    T* y = (T*)args.out;
    for (u64 i = first_index(); i < args.walk.elements; i += index_step()) {
        const Places<1> from = places<1>(args.walk, args.views, i);
        y[i] = narrow<T>(unary_value<R>(args.code, wide(x[from.at[0]]), (R)args.first, (R)args.second));
    }
}

template <class T> DEVICE void unary_grad(const Pointwise& args) {
    typedef typename Wide<T>::type R;
    const T* x = (const T*)args.views[0].data;
    const T* gy = (const T*)args.views[1].data;
    T* gx = (T*)args.out;
    for (u64 i = first_index(); i < args.walk.elements; i += index_step()) {
        const Places<2> from = places<2>(args.walk, args.views, i);
        const R value = wide(x[from.at[0]]), gradient = wide(gy[from.at[1]]);
        gx[i] = narrow<T>(unary_gradient<R>(args.code, value, gradient, (R)args.first, (R)args.second));
    }
}

// `code` is the site, `seed` the pass's, `bound` the numbers that drop.
template <class T> DEVICE void dropout(const Pointwise& args) {
    typedef typename Wide<T>::type R;
    const T* x = (const T*)args.views[0].data;
    T* y = (T*)args.out;
    const u64 stream = stream_of(args.seed, args.code);
    for (u64 i = first_index(); i < args.walk.elements; i += index_step()) {
        const Places<1> from = places<1>(args.walk, args.views, i);
        const bool kept = is_kept(stream, i, args.bound);
        y[i] = narrow<T>(wide(x[from.at[0]]) * (kept ? (R)args.first : (R)0));
    }
}

#define ENTRY(T, name)                                                                                         \
    KERNEL(unary_##name, Pointwise) { unary<T>(args); }                                                        \
    KERNEL(unary_grad_##name, Pointwise) { unary_grad<T>(args); }                                              \
    KERNEL(dropout_##name, Pointwise) { dropout<T>(args); }
FOR_FLOATS(ENTRY)
