//! The greatest along the last axis.

use schemas::{Datatype, Tensor};

/// The index of the greatest value along the last axis of `source`, as a tensor named `name`. The first of equals
/// wins; NaN is never the greatest.
pub(crate) fn argmax(name: &str, source: &Tensor) -> Result<Tensor, String> {
    let Some((length, rest)) = source.shape().split_last() else {
        return Err(format!("gave {:?} without an axis to find the greatest along", source.name()));
    };
    let row = usize::try_from(*length).unwrap_or(usize::MAX);
    if row == 0 {
        return Err(format!("gave {:?} with nothing along its last axis", source.name()));
    }
    macro_rules! indices {
        ($type:ty) => {{
            let values = source.data().as_chunks::<{ size_of::<$type>() }>().0;
            let rows = values.chunks_exact(row);
            rows.flat_map(|row| greatest(row.iter().map(|b| <$type>::from_le_bytes(*b))).to_le_bytes())
                .collect()
        }};
    }
    let data: Vec<u8> = match source.datatype() {
        Datatype::Fp32 => indices!(f32),
        Datatype::Fp64 => indices!(f64),
        Datatype::Uint8 => indices!(u8),
        Datatype::Uint16 => indices!(u16),
        Datatype::Uint32 => indices!(u32),
        Datatype::Uint64 => indices!(u64),
        Datatype::Int8 => indices!(i8),
        Datatype::Int16 => indices!(i16),
        Datatype::Int32 => indices!(i32),
        Datatype::Int64 => indices!(i64),
        Datatype::Bool | Datatype::Bytes | Datatype::Fp16 | Datatype::Bf16 => {
            return Err(format!("gave {:?} as {}, which has no greatest", source.name(), source.datatype()));
        }
    };
    Tensor::new(name, Datatype::Int64, rest, data).map_err(|error| error.to_string())
}

fn greatest<T: PartialOrd + Copy>(values: impl Iterator<Item = T>) -> i64 {
    let mut best: Option<(i64, T)> = None;
    for (index, value) in (0..).zip(values) {
        // Not equal to itself: NaN.
        let comparable = value.partial_cmp(&value).is_some();
        if comparable && best.is_none_or(|(_, greatest)| value > greatest) {
            best = Some((index, value));
        }
    }
    best.map_or(0, |(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_of_equals_wins_and_nan_never_does() {
        let rows = [1.0, 3.0, 3.0, f32::NAN, -2.0, -1.0, f32::NAN, f32::NAN, f32::NAN];
        let source = Tensor::fp32("p", [3, 3], &rows).unwrap();
        let label = argmax("label", &source).unwrap();
        assert_eq!((label.name(), label.shape()), ("label", &[3][..]));
        assert_eq!(label.as_int64().unwrap(), [1, 2, 0]);
    }

    #[test]
    fn what_has_no_greatest_says_so() {
        let scalar = Tensor::fp32("p", [], &[1.0]).unwrap();
        let hollow = Tensor::fp32("p", [2, 0], &[]).unwrap();
        let flags = Tensor::new("p", Datatype::Bool, [1], vec![1]).unwrap();
        for (source, expected) in [(scalar, "axis"), (hollow, "nothing"), (flags, "BOOL")] {
            assert!(argmax("label", &source).unwrap_err().contains(expected));
        }
    }

    proptest! {
        #[test]
        fn it_is_the_greatest_of_its_row(rows in 1usize..5, length in 1usize..9, seed in any::<u64>()) {
            let mut random = fastrand::Rng::with_seed(seed);
            let values: Vec<i64> = (0..rows * length).map(|_| random.i64(-5..5)).collect();
            let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            let source = Tensor::new("p", Datatype::Int64, [rows as u64, length as u64], data).unwrap();
            let found = argmax("label", &source).unwrap().as_int64().unwrap();
            for (row, index) in values.chunks_exact(length).zip(found) {
                let index = usize::try_from(index).unwrap();
                prop_assert_eq!(row.iter().max(), row.get(index));
                prop_assert!(row[..index].iter().all(|v| *v < row[index]));
            }
        }
    }
}
