//! The handwritten digits: `examples/data/digits.csv.gz`.

use std::{fs::File, io::Read as _, path::Path};

use flate2::read::GzDecoder;

use super::super::CliError;

/// Pixels of an image.
pub(super) const PIXELS: usize = 64;
/// Samples to learn from; the others are for testing.
const TRAINING: usize = 1297;
/// The largest file that is read, unpacked.
const MAX_BYTES: u64 = 4 << 20;
/// What the shuffle that splits the samples starts with.
const SPLIT_SEED: u64 = 2_463_534_242;

/// Samples: images of 8×8 pixels in [0, 1], and which digit each shows.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Samples {
    pub(super) images: Vec<[f32; PIXELS]>,
    pub(super) digits: Vec<usize>,
}

impl Samples {
    pub(super) fn len(&self) -> usize {
        self.digits.len()
    }

    /// The samples of some numbers, images one after the other.
    pub(super) fn batch(&self, numbers: &[usize]) -> (Vec<f32>, Vec<usize>) {
        let images = numbers.iter().flat_map(|&n| self.images[n]).collect();
        (images, numbers.iter().map(|&n| self.digits[n]).collect())
    }
}

/// The shuffle that the examples share: Fisher and Yates's, by a linear congruential generator.
#[derive(Clone, Debug)]
pub(super) struct Shuffle(pub(super) u64);

impl Shuffle {
    pub(super) fn apply<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            items.swap(i, ((self.0 >> 33) % (i as u64 + 1)) as usize);
        }
    }
}

/// Reads the file and splits it: to learn from, to test with.
pub(super) fn load(path: &Path) -> Result<(Samples, Samples), CliError> {
    let file = File::open(path).map_err(CliError::file(path))?;
    let mut text = String::new();
    GzDecoder::new(file).take(MAX_BYTES).read_to_string(&mut text).map_err(CliError::file(path))?;
    let mut lines: Vec<&str> = text.lines().collect();
    Shuffle(SPLIT_SEED).apply(&mut lines);
    let mut sets = [Samples::default(), Samples::default()];
    for (n, line) in lines.into_iter().enumerate() {
        let (image, digit) = sample(line).ok_or_else(|| {
            CliError::usage(format!("{}: {line:?} is no line of 65 numbers", path.display()))
        })?;
        let set = &mut sets[usize::from(n >= TRAINING)];
        set.images.push(image);
        set.digits.push(digit);
    }
    let [training, test] = sets;
    Ok((training, test))
}

fn sample(line: &str) -> Option<([f32; PIXELS], usize)> {
    let numbers: Option<Vec<u8>> = line.split(',').map(|number| number.trim().parse().ok()).collect();
    let numbers = numbers.filter(|numbers| numbers.len() == PIXELS + 1)?;
    let digit = usize::from(numbers[PIXELS]);
    (digit < 10).then(|| (std::array::from_fn(|i| f32::from(numbers[i]) / 16.0), digit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_digits_are_split_as_documented() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/digits.csv.gz");
        let (training, test) = load(&path).unwrap();
        assert_eq!((training.len(), test.len()), (1297, 500));
        assert!(training.images.iter().flatten().all(|pixel| (0.0..=1.0).contains(pixel)));
        let mut counts = [0; 10];
        training.digits.iter().chain(&test.digits).for_each(|&digit| counts[digit] += 1);
        assert_eq!(counts, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]);
    }

    #[test]
    fn a_damaged_line_is_refused() {
        assert!(sample("1,2,3").is_none());
        assert!(sample(&vec!["11"; 65].join(",")).is_none());
        assert!(sample(&vec!["1"; 65].join(",")).is_some());
    }
}
