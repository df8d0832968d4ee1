//! The evaluator's own tensor: a shape and contiguous `f64`s.

use half::{bf16, f16};

use crate::tensor::{DType, HostTensor, Shape, TensorError};

#[derive(Clone, Debug)]
pub(super) struct Tensor {
    pub(super) shape: Shape,
    pub(super) data: Vec<f64>,
}

impl Tensor {
    pub(super) fn from_host(tensor: &HostTensor) -> Self {
        Self { shape: tensor.shape().clone(), data: tensor.to_f64() }
    }

    pub(super) fn to_host(&self, dtype: DType) -> Result<HostTensor, TensorError> {
        let (shape, data) = (self.shape.clone(), &self.data);
        match dtype {
            DType::F64 => HostTensor::from_values(shape, data),
            DType::F32 => HostTensor::from_values(shape, &convert(data, |v| v as f32)),
            DType::BF16 => HostTensor::from_values(shape, &convert(data, bf16::from_f64)),
            DType::F16 => HostTensor::from_values(shape, &convert(data, f16::from_f64)),
            DType::I64 => HostTensor::from_values(shape, &convert(data, |v| v as i64)),
            DType::I32 => HostTensor::from_values(shape, &convert(data, |v| v as i32)),
            DType::U8 => HostTensor::from_values(shape, &convert(data, |v| v as u8)),
            DType::Bool => HostTensor::new(shape, dtype, convert(data, |v| u8::from(v != 0.0))),
        }
    }

    pub(super) fn zeros(shape: Shape) -> Self {
        let data = vec![0.0; shape.elements()];
        Self { shape, data }
    }

    /// A tensor whose element at each index is what the function says.
    pub(super) fn build(shape: Shape, mut f: impl FnMut(&[usize]) -> f64) -> Self {
        let mut data = Vec::with_capacity(shape.elements());
        for_each_index(&shape, |index| data.push(f(index)));
        Self { shape, data }
    }

    pub(super) fn map(&self, f: impl FnMut(f64) -> f64) -> Self {
        Self { shape: self.shape.clone(), data: self.data.iter().copied().map(f).collect() }
    }

    /// The element at an index of this tensor's own rank.
    pub(super) fn at(&self, index: &[usize]) -> f64 {
        self.data[self.place(index)]
    }

    pub(super) fn at_mut(&mut self, index: &[usize]) -> &mut f64 {
        let place = self.place(index);
        &mut self.data[place]
    }

    fn place(&self, index: &[usize]) -> usize {
        index.iter().zip(self.shape.iter()).fold(0, |place, (i, n)| place * n + i)
    }

    /// The element that an index of a shape this one broadcasts to falls on.
    pub(super) fn at_broadcast(&self, index: &[usize]) -> f64 {
        let skipped = index.len() - self.shape.rank();
        let own: Vec<usize> = index[skipped..]
            .iter()
            .zip(self.shape.iter())
            .map(|(&i, &n)| if n == 1 { 0 } else { i })
            .collect();
        self.at(&own)
    }

    pub(super) fn broadcast<const N: usize>(
        operands: [&Self; N],
        mut f: impl FnMut([f64; N]) -> f64,
    ) -> Self {
        let shape = operands.iter().skip(1).fold(operands[0].shape.clone(), |shape, operand| {
            shape.broadcast(&operand.shape).expect("inference has accepted these shapes")
        });
        Self::build(shape, |index| f(operands.map(|operand| operand.at_broadcast(index))))
    }
}

fn convert<T>(data: &[f64], f: impl Fn(f64) -> T) -> Vec<T> {
    data.iter().copied().map(f).collect()
}

/// Calls the function with every index of a shape, innermost fastest.
pub(super) fn for_each_index(shape: &Shape, mut f: impl FnMut(&[usize])) {
    let mut index = vec![0; shape.rank()];
    for _ in 0..shape.elements() {
        f(&index);
        for d in (0..shape.rank()).rev() {
            index[d] += 1;
            if index[d] < shape[d] {
                break;
            }
            index[d] = 0;
        }
    }
}
