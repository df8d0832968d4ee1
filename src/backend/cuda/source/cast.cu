// From one type to another, and counting in any type.
#include "prelude.cuh"

// Towards zero, to the nearest end where it does not fit, and NaN to 0.
DEVICE i64 whole(f64 value) {
    if (value != value) return 0;
    if (value >= 9223372036854775808.0) return 0x7fffffffffffffffll;
    if (value <= -9223372036854775808.0) return (i64)(1ull << 63);
    return (i64)value;
}

// A number read from any type, without loss.
template <class R> struct Number;
template <> struct Number<f64> {
    f64 value;
    DEVICE f64 real() const { return value; }
    DEVICE i64 whole() const { return ::whole(value); }
};
template <> struct Number<f32> {
    f32 value;
    DEVICE f64 real() const { return value; }
    DEVICE i64 whole() const { return ::whole(value); }
};
template <> struct Number<i64> {
    i64 value;
    DEVICE f64 real() const { return (f64)value; }
    DEVICE i64 whole() const { return value; }
};

// Halves are made by way of single precision, as PyTorch makes them.
template <class R> DEVICE void put(Pointer out, u64 i, u32 dtype, Number<R> number) {
    switch (dtype) {
    case DTYPE_F32: ((f32*)out)[i] = (f32)number.real(); break;
    case DTYPE_F64: ((f64*)out)[i] = number.real(); break;
    case DTYPE_BF16: ((bf16*)out)[i] = narrow<bf16>((f32)number.real()); break;
    case DTYPE_F16: ((f16*)out)[i] = narrow<f16>((f32)number.real()); break;
    case DTYPE_I64: ((i64*)out)[i] = number.whole(); break;
    case DTYPE_I32: ((i32*)out)[i] = (i32)number.whole(); break;
    case DTYPE_U8: ((u8*)out)[i] = (u8)number.whole(); break;
    default: ((u8*)out)[i] = number.value != 0; break; // DTYPE_BOOL
    }
}

// `code` is the type to cast to.
template <class T> DEVICE void cast(const Pointwise& args, bool as_bool) {
    typedef typename Wide<T>::type R;
    const T* x = (const T*)args.views[0].data;
    for (u64 i = first_index(); i < args.walk.elements; i += index_step()) {
        const Places<1> from = places<1>(args.walk, args.views, i);
        Number<R> number = {wide(x[from.at[0]])};
        if (as_bool) number.value = number.value != (R)0;
        put(args.out, i, args.code, number);
    }
}

#define CAST(T, name)                                                                                          \
    KERNEL(cast_##name, Pointwise) { cast<T>(args, false); }
FOR_FLOATS(CAST)
CAST(i64, i64)
CAST(i32, i32)
CAST(u8, u8)
KERNEL(cast_bool, Pointwise) { cast<u8>(args, true); }

// first, first + second, ... in the type that `code` names.
KERNEL(arange, Pointwise) {
    for (u64 i = first_index(); i < args.walk.elements; i += index_step()) {
        // Product and sum are rounded one by one, as the reference has it: an fma would give other whole numbers.
        const volatile f64 product = args.second * (f64)i;
        const Number<f64> number = {args.first + product};
        put(args.out, i, args.code, number);
    }
}
