// Batch normalisation over [batch, channels, spatial]: a block has a channel.
#include "math.cuh"

// Numbers the elements of one channel: [batch, spatial].
struct Channel {
    u64 channel, channels, spatial, count;
    DEVICE Channel(const Norm& args, u64 channel)
        : channel(channel), channels(args.channels), spatial(args.spatial), count(args.batch * args.spatial) {}
    DEVICE u64 at(u64 i) const {
        const u64 batch = i / spatial;
        return (batch * channels + channel) * spatial + (i - batch * spatial);
    }
};

template <class T> DEVICE void batch_norm(const Norm& args) {
    typedef typename Wide<T>::type R;
    const T* x = (const T*)args.x;
    T* y = (T*)args.out;
    for (u64 c = blockIdx.x; c < args.channels; c += gridDim.x) {
        const Channel channel(args, c);
        const R count = channel.count ? (R)channel.count : (R)1;
        R sum = 0;
        for (u64 i = threadIdx.x; i < channel.count; i += blockDim.x) sum += wide(x[channel.at(i)]);
        const R mean = sum_over_block(sum) / count;
        sum = 0;
        for (u64 i = threadIdx.x; i < channel.count; i += blockDim.x) {
            const R far = wide(x[channel.at(i)]) - mean;
            sum += far * far;
        }
        const R var = sum_over_block(sum) / count, rstd = (R)1 / sqrt_of(var + (R)args.eps);
        const R weight = wide(((const T*)args.weight)[c]), bias = wide(((const T*)args.bias)[c]);
        for (u64 i = threadIdx.x; i < channel.count; i += blockDim.x) {
            y[channel.at(i)] = narrow<T>((wide(x[channel.at(i)]) - mean) * rstd * weight + bias);
        }
        if (threadIdx.x == 0) {
            ((T*)args.out_mean)[c] = narrow<T>(mean);
            ((T*)args.out_rstd)[c] = narrow<T>(rstd);
            ((T*)args.out_var)[c] = narrow<T>(var);
        }
    }
}

// With `rstd` the reciprocal itself, or the variance it is made of.
template <class T> DEVICE void batch_norm_grad(const Norm& args, bool is_training) {
    typedef typename Wide<T>::type R;
    const T* x = (const T*)args.x;
    const T* gy = (const T*)args.gy;
    T* gx = (T*)args.out;
    for (u64 c = blockIdx.x; c < args.channels; c += gridDim.x) {
        const Channel channel(args, c);
        const R count = channel.count ? (R)channel.count : (R)1;
        const R mean = wide(((const T*)args.mean)[c]), given = wide(((const T*)args.rstd)[c]);
        const R rstd = is_training ? given : (R)1 / sqrt_of(given + (R)args.eps);
        R sum = 0, dot = 0;
        for (u64 i = threadIdx.x; i < channel.count; i += blockDim.x) {
            const R g = wide(gy[channel.at(i)]);
            sum += g;
            dot += g * ((wide(x[channel.at(i)]) - mean) * rstd);
        }
        sum = sum_over_block(sum);
        dot = sum_over_block(dot);
        const R weight = wide(((const T*)args.weight)[c]);
        for (u64 i = threadIdx.x; i < channel.count; i += blockDim.x) {
            R g = wide(gy[channel.at(i)]);
            if (is_training) {
                const R normal = (wide(x[channel.at(i)]) - mean) * rstd;
                g = g - sum / count - normal * (dot / count);
            }
            gx[channel.at(i)] = narrow<T>(rstd * weight * g);
        }
        if (threadIdx.x == 0) {
            ((T*)args.out_weight)[c] = narrow<T>(dot);
            ((T*)args.out_bias)[c] = narrow<T>(sum);
        }
    }
}

template <class T> DEVICE void batch_norm_eval(const Norm& args) {
    typedef typename Wide<T>::type R;
    const T* x = (const T*)args.x;
    T* y = (T*)args.out;
    const u64 total = args.batch * args.channels * args.spatial;
    for (u64 i = first_index(); i < total; i += index_step()) {
        const u64 c = i / args.spatial % args.channels;
        const R mean = wide(((const T*)args.mean)[c]), var = wide(((const T*)args.rstd)[c]);
        const R normal = (wide(x[i]) - mean) / sqrt_of(var + (R)args.eps);
        y[i] = narrow<T>(normal * wide(((const T*)args.weight)[c]) + wide(((const T*)args.bias)[c]));
    }
}

#define BATCH_NORM(T, name)                                                                                    \
    KERNEL(batch_norm_##name, Norm) { batch_norm<T>(args); }                                                   \
    KERNEL(batch_norm_grad_##name, Norm) { batch_norm_grad<T>(args, true); }                                   \
    KERNEL(batch_norm_eval_##name, Norm) { batch_norm_eval<T>(args); }                                         \
    KERNEL(batch_norm_eval_grad_##name, Norm) { batch_norm_grad<T>(args, false); }
FOR_FLOATS(BATCH_NORM)
