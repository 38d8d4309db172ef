//! The models that ship in the binary, and the held-out images that the demo recognises.

/// Contract and file of each model.
pub const MODELS: [(&str, &[u8]); 2] = [
    (include_str!("../../models/digits/model.toml"), include_bytes!("../../models/digits/model.onnx")),
    (
        include_str!("../../models/digits-conv/model.toml"),
        include_bytes!("../../models/digits-conv/model.onnx"),
    ),
];

/// Handwritten digits that no model was trained on: 64 pixels of 0 to 16 and the label, a line each.
const HELD_OUT: &str = include_str!("../../models/data/digits-heldout.csv");

/// Pixels of an image.
pub const PIXELS: usize = 64;

/// A held-out image with its label.
#[derive(Clone, Debug, PartialEq)]
pub struct Digit {
    pub pixels: [f32; PIXELS],
    pub label: i64,
}

/// Every held-out image.
pub fn held_out() -> Vec<Digit> {
    let digit = |line: &str| {
        let mut cells = line.split(',').map(|cell| cell.trim().parse::<u8>().ok());
        let mut pixels = [0.0; PIXELS];
        for pixel in &mut pixels {
            *pixel = f32::from(cells.next()??);
        }
        Some(Digit { pixels, label: i64::from(cells.next()??) })
    };
    // The header line has no numbers, and so is no image.
    HELD_OUT.lines().filter_map(digit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_but_the_header_is_an_image() {
        let digits = held_out();
        assert_eq!(digits.len(), HELD_OUT.lines().count() - 1);
        assert!(digits.len() >= 450);
        for digit in &digits {
            assert!((0..10).contains(&digit.label));
            assert!(digit.pixels.iter().all(|pixel| (0.0..=16.0).contains(pixel)));
        }
    }
}
