// Scalar functions and their derivatives, by the same formulas as src/graph/reference/elementwise.rs.
#pragma once
#include "prelude.cuh"

#define MATH(name, single, twice)                                                                              \
    DEVICE f32 name(f32 x) { return single(x); }                                                               \
    DEVICE f64 name(f64 x) { return twice(x); }
MATH(exp_of, expf, exp)
MATH(expm1_of, expm1f, expm1)
MATH(log_of, logf, log)
MATH(log1p_of, log1pf, log1p)
MATH(sin_of, sinf, sin)
MATH(cos_of, cosf, cos)
MATH(erf_of, erff, erf)
MATH(erfc_of, erfcf, erfc)
MATH(tanh_of, tanhf, tanh)
MATH(sqrt_of, sqrtf, sqrt)
MATH(floor_of, floorf, floor)
MATH(ceil_of, ceilf, ceil)
MATH(round_of, rintf, rint)
MATH(trunc_of, truncf, trunc)
MATH(abs_of, fabsf, fabs)
#undef MATH
DEVICE f32 pow_of(f32 x, f32 y) { return powf(x, y); }
DEVICE f64 pow_of(f64 x, f64 y) { return pow(x, y); }

// The upper bound wins where the two cross; NaN passes.
template <class R> DEVICE R clamped(R x, R min, R max) {
    x = x < min ? min : x;
    return x > max ? max : x;
}
template <class R> DEVICE R sigmoid_of(R x) {
    if (x >= (R)0) return (R)1 / ((R)1 + exp_of(-x));
    const R power = exp_of(x);
    return power / ((R)1 + power);
}
template <class R> DEVICE R power_of(R x, R exponent) {
    if (exponent == (R)2) return x * x;
    if (exponent == (R)3) return x * x * x;
    return pow_of(x, exponent);
}

#define GELU_SCALE ((R)0.7978845608028654)
#define SQRT_HALF ((R)0.7071067811865476)
#define TWO_BY_SQRT_PI ((R)1.1283791670955126)
#define ONE_BY_SQRT_TWO_PI ((R)0.3989422804014327)

// f(x); `p` and `q` are the function's own constants, in the order of its fields.
template <class R> DEVICE R unary_value(u32 code, R x, R p, R q) {
    switch (code) {
    case UNARY_NEG: return -x;
    case UNARY_ABS: return abs_of(x);
    case UNARY_SQRT: return sqrt_of(x);
    case UNARY_RSQRT: return (R)1 / sqrt_of(x);
    case UNARY_RECIPROCAL: return (R)1 / x;
    case UNARY_EXP: return exp_of(x);
    case UNARY_EXPM1: return expm1_of(x);
    case UNARY_LOG: return log_of(x);
    case UNARY_LOG1P: return log1p_of(x);
    case UNARY_SIN: return sin_of(x);
    case UNARY_COS: return cos_of(x);
    case UNARY_ERF: return erf_of(x);
    case UNARY_SIGN: return x > (R)0 ? (R)1 : x < (R)0 ? (R)-1 : (R)0;
    case UNARY_FLOOR: return floor_of(x);
    case UNARY_CEIL: return ceil_of(x);
    case UNARY_ROUND: return round_of(x);
    case UNARY_TRUNC: return trunc_of(x);
    case UNARY_RELU: return x < (R)0 ? (R)0 : x;
    case UNARY_LEAKY_RELU: return x > (R)0 ? x : p * x;
    case UNARY_ELU: return x > (R)0 ? x : p * expm1_of(x);
    case UNARY_GELU: return (R)0.5 * x * erfc_of(-x * SQRT_HALF);
    case UNARY_GELU_TANH: return (R)0.5 * x * ((R)1 + tanh_of(GELU_SCALE * (x + (R)0.044715 * x * x * x)));
    case UNARY_SILU: return x * sigmoid_of(x);
    case UNARY_SIGMOID: return sigmoid_of(x);
    case UNARY_TANH: return tanh_of(x);
    case UNARY_SOFTPLUS: return p * x > q ? x : log1p_of(exp_of(p * x)) / p;
    case UNARY_HARDSWISH: return x * clamped(x + (R)3, (R)0, (R)6) / (R)6;
    case UNARY_HARDSIGMOID: return clamped(x + (R)3, (R)0, (R)6) / (R)6;
    case UNARY_HARDTANH: return clamped(x, p, q);
    case UNARY_ADD_SCALAR: return x + p;
    case UNARY_MUL_SCALAR: return x * p;
    case UNARY_POW_SCALAR: return power_of(x, p);
    default: return infinity<R>() - infinity<R>();
    }
}

// gy·f'(x).
template <class R> DEVICE R unary_gradient(u32 code, R x, R gy, R p, R q) {
    switch (code) {
    case UNARY_NEG: return -gy;
    case UNARY_ABS: return x > (R)0 ? gy : x < (R)0 ? -gy : (R)0 * gy;
    case UNARY_SQRT: return gy / ((R)2 * sqrt_of(x));
    case UNARY_RSQRT: return (R)-0.5 * gy / (x * sqrt_of(x));
    case UNARY_RECIPROCAL: return -gy / (x * x);
    case UNARY_EXP:
    case UNARY_EXPM1: return gy * exp_of(x);
    case UNARY_LOG: return gy / x;
    case UNARY_LOG1P: return gy / ((R)1 + x);
    case UNARY_SIN: return gy * cos_of(x);
    case UNARY_COS: return -gy * sin_of(x);
    case UNARY_ERF: return gy * TWO_BY_SQRT_PI * exp_of(-x * x);
    case UNARY_SIGN:
    case UNARY_FLOOR:
    case UNARY_CEIL:
    case UNARY_ROUND:
    case UNARY_TRUNC: return (R)0;
    case UNARY_RELU: return x <= (R)0 ? (R)0 : gy;
    case UNARY_LEAKY_RELU: return x > (R)0 ? gy : p * gy;
    case UNARY_ELU: return x > (R)0 ? gy : gy * p * exp_of(x);
    case UNARY_GELU: {
        const R density = exp_of((R)-0.5 * x * x) * ONE_BY_SQRT_TWO_PI;
        return gy * ((R)0.5 * erfc_of(-x * SQRT_HALF) + x * density);
    }
    case UNARY_GELU_TANH: {
        const R t = tanh_of(GELU_SCALE * (x + (R)0.044715 * x * x * x));
        const R slope = GELU_SCALE * ((R)1 + (R)3 * (R)0.044715 * x * x);
        return gy * ((R)0.5 * ((R)1 + t) + (R)0.5 * x * ((R)1 - t * t) * slope);
    }
    case UNARY_SILU: {
        const R s = sigmoid_of(x);
        return gy * s * ((R)1 + x * ((R)1 - s));
    }
    case UNARY_SIGMOID: {
        const R s = sigmoid_of(x);
        return gy * s * ((R)1 - s);
    }
    case UNARY_TANH: {
        const R t = tanh_of(x);
        return gy * ((R)1 - t * t);
    }
    case UNARY_SOFTPLUS: return p * x > q ? gy : gy * sigmoid_of(p * x);
    case UNARY_HARDSWISH: return x <= (R)-3 ? (R)0 : x < (R)3 ? gy * (x / (R)3 + (R)0.5) : gy;
    case UNARY_HARDSIGMOID: return (x > (R)-3 && x < (R)3 ? gy : (R)0) / (R)6;
    case UNARY_HARDTANH: return x > p && x < q ? gy : (R)0;
    case UNARY_ADD_SCALAR: return gy;
    case UNARY_MUL_SCALAR: return gy * p;
    case UNARY_POW_SCALAR: return p == (R)0 ? (R)0 : gy * p * power_of(x, p - (R)1);
    default: return infinity<R>() - infinity<R>();
    }
}

// Of two operands.
template <class R> DEVICE R binary_value(u32 code, R a, R b) {
    switch (code) {
    case BINARY_ADD: return a + b;
    case BINARY_SUB: return a - b;
    case BINARY_MUL: return a * b;
    case BINARY_DIV: return a / b;
    case BINARY_POW: return pow_of(a, b);
    case BINARY_MAXIMUM: return a > b || a != a ? a : b;
    default: return a < b || a != a ? a : b; // BINARY_MINIMUM
    }
}

// Dropout's masks, as `keep` of src/graph/ops/random.rs has them.
DEVICE u64 mixed(u64 z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}
DEVICE u64 stream_of(u64 seed, u32 site) { return mixed(seed + ((u64)site + 1) * 0x9E3779B97F4A7C15ull); }
DEVICE bool is_kept(u64 stream, u64 index, u64 bound) { return mixed(stream ^ index * 0xD1B54A32D192ED03ull) >> 32 >= bound; }
