//! Error rates of a detector that says how genuine something is.

/// The equal error rate: where as many genuine scores are below the threshold as impostors' are not, in 0..=1. Between two thresholds that can be told
/// apart it is interpolated. Both are needed.
pub fn equal_error_rate(genuine: &[f64], impostor: &[f64]) -> Option<f64> {
    if genuine.is_empty() || impostor.is_empty() {
        return None;
    }
    let (genuine, impostor) = (sorted(genuine), sorted(impostor));
    let mut thresholds: Vec<f64> = genuine.iter().chain(&impostor).copied().collect();
    thresholds.sort_by(f64::total_cmp);
    thresholds.dedup();
    // Above the highest score everything is refused, and at the lowest nothing is.
    let refused = std::iter::once((1.0, 0.0));
    let rates = thresholds.iter().map(|threshold| (below(&genuine, *threshold), 1.0 - below(&impostor, *threshold))).chain(refused);
    let mut before = (0.0, 1.0);
    for (missed, admitted) in rates {
        if missed >= admitted {
            let (gap, last) = (missed - admitted, before.1 - before.0);
            let share = if gap + last > 0.0 { last / (gap + last) } else { 0.0 };
            return Some(before.0 + share * (missed - before.0));
        }
        before = (missed, admitted);
    }
    None
}

/// The share of impostors below a threshold that at most `alarms` of the genuine are below, in 0..=1.
pub fn detection_at(alarms: f64, genuine: &[f64], impostor: &[f64]) -> Option<f64> {
    let genuine = sorted(genuine);
    let threshold = genuine.get((alarms * genuine.len() as f64) as usize)?;
    (!impostor.is_empty()).then(|| below(&sorted(impostor), *threshold))
}

/// Mean and standard deviation; the latter is 0 for a single value.
pub fn mean_and_sd(values: &[f64]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
    (mean, if values.len() > 1 { (squares / (count - 1.0)).sqrt() } else { 0.0 })
}

fn sorted(scores: &[f64]) -> Vec<f64> {
    let mut scores = scores.to_vec();
    scores.sort_by(f64::total_cmp);
    scores
}

/// The share of ascending scores below a threshold.
fn below(scores: &[f64], threshold: f64) -> f64 {
    scores.partition_point(|score| *score < threshold) as f64 / scores.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_error_rates_that_can_be_counted_by_hand() {
        let rate = |genuine: &[f64], impostor: &[f64]| equal_error_rate(genuine, impostor).expect("both are there");
        assert_eq!(rate(&[3.0, 4.0], &[1.0, 2.0]), 0.0);
        assert_eq!(rate(&[1.0, 2.0], &[3.0, 4.0]), 1.0);
        // One of four on each side is on the other's.
        assert_eq!(rate(&[1.5, 4.0, 5.0, 6.0], &[0.0, 0.5, 1.0, 4.5]), 0.25);
        // All alike: whatever the threshold, one of the two is wrong throughout.
        assert_eq!(rate(&[1.0, 1.0], &[1.0, 1.0]), 0.5);
        // Between two thresholds: 0 and 1/2 of the genuine, 1 and 0 of the impostors.
        assert!((rate(&[1.0, 3.0], &[2.0]) - 0.5).abs() < 1e-12);
        assert_eq!(equal_error_rate(&[], &[1.0]), None);
    }

    #[test]
    fn a_constant_a_reject_all_and_an_accept_all_detector_are_worth_nothing() {
        for constant in [0.0, f64::MIN, f64::MAX] {
            assert_eq!(equal_error_rate(&[constant; 9], &[constant; 7]), Some(0.5));
            assert_eq!(detection_at(0.01, &[constant; 9], &[constant; 7]), Some(0.0));
        }
    }

    #[test]
    fn detection_is_counted_at_a_threshold_that_the_genuine_allow() {
        let genuine: Vec<f64> = (0..100).map(f64::from).collect();
        // One of a hundred may be below: the threshold is 1.
        assert_eq!(detection_at(0.01, &genuine, &[0.5, 0.9, 1.0, 50.0]), Some(0.5));
        assert_eq!(detection_at(0.0, &genuine, &[-1.0, 0.0]), Some(0.5));
        assert_eq!(mean_and_sd(&[1.0, 3.0]), (2.0, 2.0_f64.sqrt()));
    }
}
