// Several operands, element by element: arithmetic, comparison, choice.
#include "math.cuh"

// Wraps; a division by zero, or one that overflows, gives 0; a negative exponent counts as 0.
template <> DEVICE i64 binary_value<i64>(u32 code, i64 a, i64 b) {
    const u64 x = (u64)a, y = (u64)b;
    switch (code) {
    case BINARY_ADD: return (i64)(x + y);
    case BINARY_SUB: return (i64)(x - y);
    case BINARY_MUL: return (i64)(x * y);
    case BINARY_DIV: return b == 0 || (b == -1 && x == 1ull << 63) ? 0 : a / b;
    case BINARY_POW: {
        u64 result = 1, base = x;
        for (u64 rest = b < 0 || y >> 32 ? 0 : y; rest; rest >>= 1, base *= base) {
            if (rest & 1) result *= base;
        }
        return (i64)result;
    }
    case BINARY_MAXIMUM: return a > b ? a : b;
    default: return a < b ? a : b; // BINARY_MINIMUM
    }
}

template <class T> DEVICE void binary(const Pointwise& args) {
    typedef typename Wide<T>::type R;
    const T* a = (const T*)args.views[0].data;
    const T* b = (const T*)args.views[1].data;
    T* y = (T*)args.out;
    for (u64 i = first_index(); i < args.walk.elements; i += index_step()) {
        const Places<2> from = places<2>(args.walk, args.views, i);
        y[i] = narrow<T>(binary_value<R>(args.code, wide(a[from.at[0]]), wide(b[from.at[1]])));
    }
}

template <class R> DEVICE bool holds(u32 code, R a, R b) {
    switch (code) {
    case COMPARE_EQ: return a == b;
    case COMPARE_NE: return a != b;
    case COMPARE_LT: return a < b;
    case COMPARE_LE: return a <= b;
    case COMPARE_GT: return a > b;
    default: return a >= b; // COMPARE_GE
    }
}

template <class T> DEVICE void compare(const Pointwise& args) {
    const T* a = (const T*)args.views[0].data;
    const T* b = (const T*)args.views[1].data;
    u8* y = (u8*)args.out;
    for (u64 i = first_index(); i < args.walk.elements; i += index_step()) {
        const Places<2> from = places<2>(args.walk, args.views, i);
        y[i] = holds(args.code, wide(a[from.at[0]]), wide(b[from.at[1]]));
    }
}

// By size alone: bits move, types do not matter.
template <class T> DEVICE void choose(const Pointwise& args) {
    const u8* condition = (const u8*)args.views[0].data;
    const T* a = (const T*)args.views[1].data;
    const T* b = (const T*)args.views[2].data;
    T* y = (T*)args.out;
    for (u64 i = first_index(); i < args.walk.elements; i += index_step()) {
        const Places<3> from = places<3>(args.walk, args.views, i);
        y[i] = condition[from.at[0]] ? a[from.at[1]] : b[from.at[2]];
    }
}

#define BINARY(T, name)                                                                                        \
    KERNEL(binary_##name, Pointwise) { binary<T>(args); }
FOR_FLOATS(BINARY)
BINARY(i64, i64)

#define COMPARE(T, name)                                                                                       \
    KERNEL(compare_##name, Pointwise) { compare<T>(args); }
FOR_FLOATS(COMPARE)
COMPARE(i64, i64)
COMPARE(i32, i32)
COMPARE(u8, u8)

#define CHOOSE(T, name)                                                                                        \
    KERNEL(choose_##name, Pointwise) { choose<T>(args); }
FOR_SIZES(CHOOSE)
