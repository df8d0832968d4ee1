//! Convolution tap by tap, in which what lies outside the input is no term.
//!
//! In a product of kernels and patches padding is a factor like any other, and nothing times infinity is not a number. So where a
//! weight or a gradient of y is not finite this is what gives the definition's numbers. It is slow beside the product.

use super::{
    executable::Run, im2col::Geometry, memory::Shared, product::Matrix, product::product, real::Real,
};

/// y of x.
pub(super) fn forward<T: Real>(run: &Run<'_>, g: &Geometry, x: &[T], w: &[T], y: &mut [T]) {
    let (taps, stride) = (g.kernel[0] * g.kernel[1], g.conv.stride[1]);
    let (group_in, group_out) = (g.inputs * g.input_plane(), g.outputs * g.output_plane());
    let out = Shared::new(y);
    run.tasks(g.batch * g.conv.groups, |task| {
        let (x, w) = (&x[task * group_in..][..group_in], &w[task % g.conv.groups * g.outputs * g.patch()..]);
        // SAFETY: tasks write different groups of planes, and `y` is borrowed until all are done.
        let y = unsafe { out.part(task * group_out, group_out) };
        y.fill(T::ZERO);
        g.for_each_row(|tap, row, first| {
            let w = Matrix { data: &w[tap..], row_stride: g.patch(), column_stride: taps };
            let x = Matrix { data: &x[first..], row_stride: g.input_plane(), column_stride: stride };
            let sizes = [g.outputs, g.inputs, row.len()];
            product(sizes, w, x, &mut y[row.start..], g.output_plane(), true);
        });
    });
}

/// The gradient of the weight.
pub(super) fn grad_weight<T: Real>(run: &Run<'_>, g: &Geometry, x: &[T], gy: &[T], gw: &mut [T]) {
    let (taps, stride) = (g.kernel[0] * g.kernel[1], g.conv.stride[1]);
    let (group_in, group_out) = (g.inputs * g.input_plane(), g.outputs * g.output_plane());
    let (a_group, out) = (g.outputs * g.patch(), Shared::new(gw));
    run.tasks(g.conv.groups, |group| {
        // SAFETY: tasks write the kernels of different groups, and `gw` is borrowed until all are done.
        let gw = unsafe { out.part(group * a_group, a_group) };
        gw.fill(T::ZERO);
        let mut of_tap = vec![T::ZERO; g.outputs * g.inputs];
        for image in 0..g.batch {
            let at = image * g.conv.groups + group;
            let (x, gy) = (&x[at * group_in..][..group_in], &gy[at * group_out..][..group_out]);
            g.for_each_row(|tap, row, first| {
                let gy = Matrix::rows(gy, g.output_plane()).columns_from(row.start);
                let x = Matrix { data: &x[first..], row_stride: stride, column_stride: g.input_plane() };
                product([g.outputs, row.len(), g.inputs], gy, x, &mut of_tap, g.inputs, false);
                for (gw, &value) in gw[tap..].iter_mut().step_by(taps).zip(&of_tap) {
                    *gw += value;
                }
            });
        }
    });
}
