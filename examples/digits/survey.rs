//! What a report needs: a network watched while it trains, and runs repeated over optimizers,
//! learning rates and seeds.

use std::ops::Range;

use wgpu_batchnorm::Gpu;

use crate::Error;
use crate::arguments::OPTIMIZERS;
use crate::data::DataSet;
use crate::network::{CONV_AREA, FILTERS, Layer, Mode, Optimizer, Parameter};
use crate::report::{Claim, Curve, Distribution, Lag, Point, Trace};
use crate::study::{Run, TARGET};
use crate::training::{Settings, Snapshot, Trainer};

/// Seeds of every setting.
pub const SEEDS: u64 = 3;

/// Optimizers and learning rates that are compared.
pub const GRID: [(Optimizer, f64); 5] = [
    (Optimizer::Sgd, 1e-3),
    (Optimizer::Sgd, 1e-2),
    (Optimizer::Sgd, 1e-1),
    (Optimizer::Adam, 1e-3),
    (Optimizer::Adam, 1e-2),
];

/// The normalization after the convolution, epoch by epoch; the first entry is before training.
#[derive(Default)]
pub struct Watch {
    gamma: Vec<Vec<f32>>,
    beta: Vec<Vec<f32>>,
    running: [Vec<Vec<f32>>; 2],
    batch: [Vec<Vec<f32>>; 2],
    distributions: Vec<Distribution>,
}

impl Watch {
    /// Takes down parameters and statistics, and if `distribution` the values of a channel before
    /// and after normalization: of the one whose variance is largest at the first time. The network
    /// is as before afterwards.
    pub fn note(
        &mut self,
        trainer: &mut Trainer<'_>,
        epoch: usize,
        distribution: bool,
    ) -> Result<(), Error> {
        let Snapshot { state, .. } = trainer.snapshot()?;
        self.gamma.push(state.parameter(Parameter::Gamma).to_vec());
        self.beta.push(state.parameter(Parameter::Beta).to_vec());
        let planes = trainer.planes(Mode::Train)?;
        let batch = statistics(&planes[0]);
        if distribution {
            let largest = batch[1].iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
            let first = self.distributions.first().map(|first| first.channel);
            let channel = first.or(largest.map(|(channel, _)| channel)).unwrap_or(0);
            let [before, after] = planes.map(|planes| of_channel(&planes, channel).collect());
            self.distributions.push(Distribution { epoch, channel, before, after });
        }
        let running = state.running(Layer::Planes);
        for (which, values) in batch.into_iter().enumerate() {
            self.running[which].push(running[which].to_vec());
            self.batch[which].push(values);
        }
        Ok(())
    }

    /// The parameters, the statistics and the distributions, for a report.
    pub fn into_parts(self) -> (Vec<Trace>, Vec<Lag>, Vec<Distribution>) {
        let trace = |name: &str, per_epoch| Trace {
            name: format!("{name} of every channel"),
            label: name.into(),
            per_epoch,
        };
        let parameters = vec![trace("gamma", self.gamma), trace("beta", self.beta)];
        let statistics = ["mean", "variance"].into_iter().zip(self.running).zip(self.batch);
        let statistics = statistics
            .map(|((name, running), batch)| Lag { name: name.into(), running, batch })
            .collect();
        (parameters, statistics, self.distributions)
    }
}

fn of_channel(planes: &[f32], channel: usize) -> impl Iterator<Item = f32> + Clone {
    planes.chunks(CONV_AREA).skip(channel).step_by(FILTERS).flatten().copied()
}

/// Every channel's mean and population variance.
pub fn statistics(planes: &[f32]) -> [Vec<f32>; 2] {
    let of = |channel| {
        let values = of_channel(planes, channel).map(f64::from);
        let n = values.clone().count() as f64;
        let mean = values.clone().sum::<f64>() / n;
        (mean as f32, (values.map(|v| (v - mean).powi(2)).sum::<f64>() / n) as f32)
    };
    let (mean, var) = (0..FILTERS).map(of).unzip();
    [mean, var]
}

/// A run's curve.
pub fn curve(run: &Run<'_>) -> Curve {
    let point = |&(epoch, test): &(crate::training::Epoch, crate::training::Evaluation)| Point {
        train_loss: epoch.mean_loss,
        test_loss: test.loss,
        accuracy: test.accuracy,
        seconds: epoch.time.as_secs_f64(),
    };
    Curve { name: run.name.into(), epochs: run.epochs.iter().map(point).collect() }
}

/// Which runs to make.
pub struct Repeat<'a> {
    /// Optimizers and learning rates.
    pub grid: &'a [(Optimizer, f64)],
    /// With normalization, without, or both.
    pub normalized: &'a [bool],
    pub seeds: Range<u64>,
    pub epochs: usize,
}

/// Trains with every optimizer, learning rate and seed, with and without normalization; for the rest
/// as `settings` say.
pub fn claims(
    gpu: &Gpu,
    data: &DataSet,
    settings: &Settings,
    repeat: &Repeat<'_>,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Claim>, Error> {
    let mut claims = Vec::new();
    for &(optimizer, learning_rate) in repeat.grid {
        let name = OPTIMIZERS.iter().find(|(_, o)| *o == optimizer).map_or("", |(name, _)| name);
        for &normalized in repeat.normalized {
            let mut claim =
                Claim { optimizer: name.into(), learning_rate, normalized, ..Claim::default() };
            for seed in repeat.seeds.clone() {
                let normalize = settings.normalize.clone().filter(|_| normalized);
                let own =
                    Settings { optimizer, learning_rate, seed, normalize, ..settings.clone() };
                let mut run = Run::new("", Trainer::new(gpu, data, &own)?);
                for _ in 0..repeat.epochs {
                    run.epoch(data, progress)?;
                }
                claim.epochs_to_target.push(run.epochs_to_target(TARGET));
                let last = run.epochs.last();
                claim.final_accuracy.push(last.map_or(f64::NAN, |(_, test)| test.accuracy));
                // Worse than to guess, or no number at all.
                let worst = (crate::data::CLASSES as f64).ln();
                if normalized {
                    run.trainer.re_estimate(&data.train)?;
                    claim.re_estimated.push(run.trainer.evaluate(&data.test)?.accuracy);
                }
                claim.diverged += usize::from(!last.is_some_and(|(e, _)| e.mean_loss <= worst));
            }
            claims.push(claim);
        }
    }
    Ok(claims)
}
