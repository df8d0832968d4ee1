// Several operations on each element, one after the other, each result rounded to the type as if it had been stored.
#include "math.cuh"

template <class T> DEVICE void chain(const Chain& args) {
    typedef typename Wide<T>::type R;
    for (u64 i = first_index(); i < args.walk.elements; i += index_step()) {
        const Places<MOST_INPUTS> from = places<MOST_INPUTS>(args.walk, args.operands, i);
        R values[MOST_VALUES];
        for (u32 n = 0; n < args.inputs; ++n) values[n] = wide(((const T*)args.operands[n].data)[from.at[n]]);
        for (u32 n = 0; n < args.count; ++n) {
            const Link& link = args.links[n];
            const R a = values[link.what >> 8 & 255], b = values[link.what >> 16 & 255];
            R y;
            switch (link.what & 255) {
            case LINK_UNARY: y = unary_value<R>(link.code, a, (R)link.first, (R)link.second); break;
            case LINK_UNARY_GRAD: y = unary_gradient<R>(link.code, a, b, (R)link.first, (R)link.second); break;
            case LINK_BINARY: y = binary_value<R>(link.code, a, b); break;
            default: { // LINK_DROPOUT
                const bool kept = is_kept(stream_of(args.seed, link.code), i, (u64)link.second);
                y = a * (kept ? (R)link.first : (R)0);
            }
            }
            const T rounded = narrow<T>(y);
            values[args.inputs + n] = wide(rounded);
            const u32 result = link.what >> 24;
            if (result) ((T*)args.results[result - 1])[i] = rounded;
        }
    }
}

#define ENTRY(T, name)                                                                                         \
    KERNEL(chain_##name, Chain) { chain<T>(args); }
FOR_FLOATS(ENTRY)
