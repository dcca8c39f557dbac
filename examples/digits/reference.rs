//! The network's mean loss in plain f64 loops, for finite differences. Parameters lie as on the
//! device.

use crate::data::CLASSES;
use crate::network::{CONV_AREA, CONV_SIDE, FEATURES, FILTERS, IMAGE, Order, Parameter, TAPS};

const SIDE: usize = crate::data::SIDE;

/// `features[i]` is multiplied by `dropout[i]`.
pub fn loss(
    parameters: &[f64],
    images: &[f64],
    labels: &[u8],
    epsilon: Option<f64>,
    order: Order,
    dropout: &[f64],
) -> f64 {
    let relu_first = epsilon.is_none() || order == Order::ReluFirst;
    let part = |p: Parameter| &parameters[p.offset()..p.offset() + p.len()];
    let batch = labels.len();
    let mut input = images.to_vec();
    if let Some(epsilon) = epsilon {
        let (gamma, beta) = (part(Parameter::InputGamma), part(Parameter::InputBeta));
        normalize(&mut input, batch, IMAGE, gamma, beta, epsilon);
    }
    let mut planes = vec![0.0; batch * FILTERS * CONV_AREA];
    let (weights, bias) = (part(Parameter::ConvWeights), part(Parameter::ConvBias));
    for image in 0..batch {
        for filter in 0..FILTERS {
            for pixel in 0..CONV_AREA {
                let corner = image * IMAGE + pixel / CONV_SIDE * SIDE + pixel % CONV_SIDE;
                let mut sum = bias[filter];
                for tap in 0..TAPS {
                    let value = input[corner + tap / 3 * SIDE + tap % 3];
                    sum += value * weights[tap * FILTERS + filter];
                }
                let at = (image * FILTERS + filter) * CONV_AREA + pixel;
                planes[at] = if relu_first { sum.max(0.0) } else { sum };
            }
        }
    }
    if let Some(epsilon) = epsilon {
        let (gamma, beta) = (part(Parameter::Gamma), part(Parameter::Beta));
        normalize(&mut planes, batch, CONV_AREA, gamma, beta, epsilon);
    }
    if !relu_first {
        planes.iter_mut().for_each(|value| *value = value.max(0.0));
    }
    let (weights, bias) = (part(Parameter::DenseWeights), part(Parameter::DenseBias));
    let mut total = 0.0;
    for image in 0..batch {
        let mut logits = bias.to_vec();
        for feature in 0..FEATURES {
            let half = CONV_SIDE / 2;
            let plane = feature / (half * half);
            let (row, column) = (feature % (half * half) / half, feature % half);
            let at = (image * FILTERS + plane) * CONV_AREA + 2 * (row * CONV_SIDE + column);
            let top = planes[at].max(planes[at + 1]);
            let bottom = planes[at + CONV_SIDE].max(planes[at + CONV_SIDE + 1]);
            let value = top.max(bottom) * dropout[image * FEATURES + feature];
            for class in 0..CLASSES {
                logits[class] += value * weights[class * FEATURES + feature];
            }
        }
        let top = logits.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
        let sum: f64 = logits.iter().map(|logit| (logit - top).exp()).sum();
        total += sum.ln() + top - logits[usize::from(labels[image])];
    }
    total / batch as f64
}

/// Batch normalization of `[batch, gamma.len(), inner]` with the batch's statistics.
fn normalize(x: &mut [f64], batch: usize, inner: usize, gamma: &[f64], beta: &[f64], epsilon: f64) {
    let channels = gamma.len();
    let n = (batch * inner) as f64;
    for c in 0..channels {
        let places: Vec<usize> =
            (0..batch * inner).map(|i| (i / inner * channels + c) * inner + i % inner).collect();
        let mean = places.iter().map(|&i| x[i]).sum::<f64>() / n;
        let var = places.iter().map(|&i| (x[i] - mean).powi(2)).sum::<f64>() / n;
        for i in places {
            x[i] = (x[i] - mean) / (var + epsilon).sqrt() * gamma[c] + beta[c];
        }
    }
}
