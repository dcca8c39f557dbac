//! Epochs: shuffling, steps without waiting, evaluation.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use wgpu_batchnorm::{Config, Gpu};

use crate::Error;
use crate::data::{DataSet, Images};
use crate::gpu;
use crate::network::{Mode, Network, Optimizer, Record, Step};

/// Steps that the device may be behind; recording waits for no result, but not without end.
const STEPS_AHEAD: usize = 16;

/// How to train.
#[derive(Debug, Clone)]
pub struct Settings {
    pub batch: usize,
    pub seed: u64,
    pub optimizer: Optimizer,
    pub learning_rate: f64,
    /// Decoupled: a step takes `learning_rate · weight_decay` of every weight.
    pub weight_decay: f64,
    /// The part of the features that is dropped, 0..1.
    pub dropout: f64,
    /// Batch normalization and its conventions, or none.
    pub normalize: Option<Config>,
}

/// What an epoch did.
#[derive(Debug, Clone, Copy)]
pub struct Epoch {
    /// Mean loss of the last batch.
    pub last_loss: f64,
    /// Mean loss of all images, each as it was when its batch came.
    pub mean_loss: f64,
    pub time: Duration,
}

/// What a network makes of images it does not train on.
#[derive(Debug, Clone, Copy)]
pub struct Evaluation {
    pub loss: f64,
    /// The part of right answers, 0..=1.
    pub accuracy: f64,
}

/// A network in training.
pub struct Trainer<'a> {
    network: Network,
    data: &'a DataSet,
    settings: Settings,
    random: fastrand::Rng,
    step_count: i32,
}

impl<'a> Trainer<'a> {
    pub fn new(gpu: &Gpu, data: &'a DataSet, settings: &Settings) -> Self {
        let images = data.train.len().max(data.test.len());
        let network = Network::new(
            gpu,
            settings.normalize.clone(),
            settings.optimizer,
            settings.batch.min(images),
            images.div_ceil(settings.batch),
            settings.seed,
        );
        let random = fastrand::Rng::with_seed(settings.seed);
        Self { network, data, settings: settings.clone(), random, step_count: 0 }
    }

    /// One pass over the training images in a new order. `progress` gets the number of images whose
    /// step was recorded.
    pub fn epoch(&mut self, progress: &mut dyn FnMut(usize)) -> Result<Epoch, Error> {
        let start = Instant::now();
        let data = self.data;
        let mut order: Vec<usize> = (0..data.train.len()).collect();
        self.random.shuffle(&mut order);
        let batches: Vec<&[usize]> = order.chunks(self.settings.batch).collect();
        let mut behind = VecDeque::new();
        for (record, batch) in batches.iter().enumerate() {
            let step = self.next_step(record);
            behind.push_back(self.network.run(Mode::Train, &data.train, batch, &step)?);
            if behind.len() > STEPS_AHEAD
                && let Some(oldest) = behind.pop_front()
            {
                gpu::wait(self.network.gpu(), oldest)?;
            }
            progress(batch.len());
        }
        let records = self.network.records(batches.len())?;
        let last = batches.last().map_or(0, |batch| batch.len());
        Ok(Epoch {
            last_loss: records.last().map_or(f64::NAN, |r| f64::from(r.loss) / last as f64),
            mean_loss: sum(&records, |r| r.loss) / order.len() as f64,
            time: start.elapsed(),
        })
    }

    /// Loss and accuracy with the running statistics.
    pub fn evaluate(&mut self, images: &Images) -> Result<Evaluation, Error> {
        let order: Vec<usize> = (0..images.len()).collect();
        let batches = order.chunks(self.network.max_batch());
        let count = batches.len();
        for (record, batch) in batches.enumerate() {
            let step = Step { record: record as u32, dropout_scale: 1.0, ..Step::default() };
            self.network.run(Mode::Infer, images, batch, &step)?;
        }
        let records = self.network.records(count)?;
        let n = images.len() as f64;
        Ok(Evaluation {
            loss: sum(&records, |r| r.loss) / n,
            accuracy: sum(&records, |r| r.correct) / n,
        })
    }

    fn next_step(&mut self, record: usize) -> Step {
        self.step_count += 1;
        let Settings { learning_rate, weight_decay, dropout, .. } = self.settings;
        let correction = |beta: f64| (1.0 / (1.0 - beta.powi(self.step_count))) as f32;
        Step {
            record: record as u32,
            dropout_seed: self.random.u32(..),
            dropout_threshold: (dropout * 2f64.powi(32)) as u32,
            dropout_scale: (1.0 / (1.0 - dropout)) as f32,
            learning_rate: learning_rate as f32,
            decay: (learning_rate * weight_decay) as f32,
            correction_1: correction(0.9),
            correction_2: correction(0.999),
        }
    }
}

fn sum(records: &[Record], value: impl Fn(&Record) -> f32) -> f64 {
    records.iter().map(|record| f64::from(value(record))).sum()
}
