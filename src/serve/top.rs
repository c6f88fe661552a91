//! The most probable classes of an image.

/// The `top` most probable classes with their probabilities; equal ones in their order.
pub(super) fn most_probable(probabilities: &[f32], top: usize) -> Vec<(usize, f32)> {
    let mut ranked: Vec<(usize, f32)> = probabilities.iter().copied().enumerate().collect();
    ranked.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    ranked.truncate(top);
    ranked
}

#[cfg(test)]
mod tests {
    #[test]
    fn classes_are_ranked_and_ties_keep_their_order() {
        assert_eq!(super::most_probable(&[0.1, 0.4, 0.1, 0.4], 3), [(1, 0.4), (3, 0.4), (0, 0.1)]);
        assert_eq!(super::most_probable(&[0.5], 9), [(0, 0.5)]);
    }
}
