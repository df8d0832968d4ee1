// Elements that go elsewhere as they are: copies, slices written back, picking.
#include "prelude.cuh"

// Both sides strided: a copy, or one operand of a concatenation.
template <class T> DEVICE void copy(const Move& args) {
    const T* from = (const T*)args.views[0].data;
    T* to = (T*)args.views[1].data;
    for (u64 i = first_index(); i < args.walk.elements; i += index_step()) {
        const Places<2> at = places<2>(args.walk, args.views, i);
        to[at.at[1]] = from[at.at[0]];
    }
}

// [outer, size, inner] out of [outer, len, inner]: zeros but at start, start + step, ...
template <class T> DEVICE void unslice(const Line& args) {
    const T* from = (const T*)args.from;
    T* to = (T*)args.out;
    const u64 elements = args.outer * args.size * args.inner;
    for (u64 i = first_index(); i < elements; i += index_step()) {
        const u64 inner = i % args.inner, row = i / args.inner, at = row % args.size, outer = row / args.size;
        const u64 k = (at - args.start) / args.step;
        const bool hit = at >= args.start && (at - args.start) % args.step == 0 && k < args.len;
        to[i] = hit ? from[(outer * args.len + k) * args.inner + inner] : (T)0;
    }
}

// Where an index points, a negative one from the end; `size` where it is out of range.
DEVICE u64 picked(i64 index, u64 size) {
    const u64 at = index < 0 ? (u64)index + size : (u64)index;
    return at < size ? at : size;
}

// [outer, len, inner] out of [outer, size, inner].
template <class T> DEVICE void pick(const Line& args) {
    const T* from = (const T*)args.from;
    const i64* indices = (const i64*)args.indices;
    T* to = (T*)args.out;
    const u64 elements = args.outer * args.len * args.inner;
    for (u64 i = first_index(); i < elements; i += index_step()) {
        const u64 inner = i % args.inner, row = i / args.inner, k = row % args.len, outer = row / args.len;
        const u64 at = picked(indices[k], args.size);
        to[i] = at < args.size ? from[(outer * args.size + at) * args.inner + inner] : (T)args.missing;
    }
}

// [outer, size, inner] out of [outer, len, inner], equal indices added in their order. A warp has a row and finds
// its indices 32 at a time.
template <class T> DEVICE void unpick(const Line& args) {
    typedef typename Wide<T>::type R;
    const T* gy = (const T*)args.from;
    const i64* indices = (const i64*)args.indices;
    T* gx = (T*)args.out;
    const u32 lane = threadIdx.x & 31;
    const u64 warps = (u64)gridDim.x * (blockDim.x >> 5), rows = args.outer * args.size;
    for (u64 row = first_index() >> 5; row < rows; row += warps) {
        const u64 at = row % args.size, outer = row / args.size;
        for (u64 inner = 0; inner < args.inner; inner += 32) {
            const bool mine = inner + lane < args.inner;
            R sum = 0;
            for (u64 k = 0; k < args.len; k += 32) {
                const bool hit = k + lane < args.len && picked(indices[k + lane], args.size) == at;
                u32 hits = ballot(hit);
                for (u32 bit = 0; hits; ++bit, hits >>= 1) {
                    if ((hits & 1) && mine) {
                        sum += wide(gy[(outer * args.len + k + bit) * args.inner + inner + lane]);
                    }
                }
            }
            if (mine) gx[row * args.inner + inner + lane] = narrow<T>(sum);
        }
    }
}

#define MOVE(T, name)                                                                                          \
    KERNEL(copy_##name, Move) { copy<T>(args); }                                                               \
    KERNEL(unslice_##name, Line) { unslice<T>(args); }                                                         \
    KERNEL(pick_##name, Line) { pick<T>(args); }
FOR_SIZES(MOVE)

#define UNPICK(T, name)                                                                                        \
    KERNEL(unpick_##name, Line) { unpick<T>(args); }
FOR_FLOATS(UNPICK)
