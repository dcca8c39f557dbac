//! Epochs: shuffling, steps without waiting, evaluation.

use std::time::{Duration, Instant};

use wgpu_batchnorm::fold::{self, Norm, WeightLayout};
use wgpu_batchnorm::{Config, Gpu, Moments};

use crate::Error;
use crate::data::{CLASSES, DataSet, Images};
use crate::gpu;
use crate::network::{
    Design, FILTERS, Layer, Mode, Network, Optimizer, Order, Parameter, RUNNING_STRIDE, Record,
    State, Step,
};

/// How to train.
#[derive(Debug, Clone, PartialEq)]
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
    pub order: Order,
}

/// The article's.
impl Default for Settings {
    fn default() -> Self {
        Self {
            batch: 128,
            seed: 0,
            optimizer: Optimizer::Adam,
            learning_rate: 1e-3,
            weight_decay: 0.0,
            dropout: 0.0,
            normalize: Some(Config::keras()),
            order: Order::ReluFirst,
        }
    }
}

impl Settings {
    /// # Errors
    /// A number that no training can have, by name.
    pub fn validate(&self) -> Result<(), Error> {
        let range = |name: &str, value: f64, max: f64| match (0.0..=max).contains(&value) {
            true => Ok(()),
            false => Err(format!("{name} is a number from 0 to {max}, not {value}")),
        };
        range("the learning rate", self.learning_rate, 1e6)?;
        range("the weight decay", self.weight_decay, 1e6)?;
        range("the dropout", self.dropout, 0.999)?;
        match self.batch {
            1..=65_535 => Ok(()),
            other => Err(format!("the batch is a number from 1 to 65535, not {other}").into()),
        }
    }
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
    step_count: u32,
    epoch_count: u32,
}

/// What a resumed run needs besides the settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    pub state: State,
    pub step_count: u32,
    pub epoch_count: u32,
    /// The state of the random numbers.
    pub random: u64,
}

impl<'a> Trainer<'a> {
    /// # Errors
    /// As [`Settings::validate`] and [`Network::new`].
    pub fn new(gpu: &Gpu, data: &'a DataSet, settings: &Settings) -> Result<Self, Error> {
        settings.validate()?;
        let images = data.train.len().max(data.test.len());
        let max_batch = settings.batch.min(images);
        let design = Design {
            normalize: settings.normalize.clone(),
            order: settings.order,
            optimizer: settings.optimizer,
            max_batch,
            record_count: images.div_ceil(max_batch),
            lanes: gpu::lanes(gpu.caps().class),
        };
        let network = Network::new(gpu, design, settings.seed)?;
        let random = fastrand::Rng::with_seed(settings.seed);
        let settings = settings.clone();
        Ok(Self { network, data, settings, random, step_count: 0, epoch_count: 0 })
    }

    /// One pass over the training images in a new order. `progress` gets the number of images whose
    /// step was recorded.
    pub fn epoch(&mut self, progress: &mut dyn FnMut(usize)) -> Result<Epoch, Error> {
        let start = Instant::now();
        let data = self.data;
        let mut order: Vec<usize> = (0..data.train.len()).collect();
        self.random.shuffle(&mut order);
        let batches: Vec<&[usize]> = order.chunks(self.settings.batch).collect();
        for (record, batch) in batches.iter().enumerate() {
            let step = self.next_step(record);
            self.network.run(Mode::Train, &data.train, batch, &step)?;
            progress(batch.len());
        }
        let records = self.network.records(batches.len())?;
        self.epoch_count += 1;
        let last = batches.last().map_or(0, |batch| batch.len());
        Ok(Epoch {
            last_loss: records.last().map_or(f64::NAN, |r| f64::from(r.loss) / last as f64),
            mean_loss: sum(&records, |r| r.loss) / order.len() as f64,
            time: start.elapsed(),
        })
    }

    /// Loss and accuracy with the running statistics.
    pub fn evaluate(&mut self, images: &Images) -> Result<Evaluation, Error> {
        let batches = self.batches(images.len());
        for (record, batch) in batches.iter().enumerate() {
            self.network.run(Mode::Infer, images, batch, &still(record))?;
        }
        let records = self.network.records(batches.len())?;
        let n = images.len() as f64;
        Ok(Evaluation {
            loss: sum(&records, |r| r.loss) / n,
            accuracy: sum(&records, |r| r.correct) / n,
        })
    }

    /// The logits of every image, in [`Mode::Infer`] or [`Mode::Folded`].
    pub fn logits(&mut self, mode: Mode, images: &Images) -> Result<Vec<[f32; CLASSES]>, Error> {
        let mut logits = Vec::with_capacity(images.len());
        for batch in self.batches(images.len()) {
            self.network.run(mode, images, &batch, &still(0))?;
            logits.extend(self.network.logits(batch.len())?);
        }
        Ok(logits)
    }

    /// Makes the running statistics those of all `images` together, exactly, by one read per layer;
    /// labels are not looked at. On the training images that is precise batch norm, on images of
    /// another kind AdaBN. Without normalization nothing changes.
    pub fn re_estimate(&mut self, images: &Images) -> Result<(), Error> {
        let Some(config) = self.settings.normalize.clone() else { return Ok(()) };
        let mut state = self.network.state()?;
        // The second layer's input depends on the first layer's statistics.
        for layer in Layer::ALL {
            let mut all = Moments::empty(layer.channels());
            for batch in self.batches(images.len()) {
                self.network.run(Mode::Measure(layer), images, &batch, &still(0))?;
                all.merge(&self.network.measured(layer)?)?;
            }
            let (mean, var) = all.running(config.running_variance)?;
            let begin = layer.running_offset();
            state.running[begin..][..mean.len()].copy_from_slice(&mean);
            state.running[begin + RUNNING_STRIDE..][..var.len()].copy_from_slice(&var);
            self.network.load_running(&state.running);
        }
        Ok(())
    }

    /// Prepares [`Mode::Folded`]: convolution and second normalization as one convolution.
    ///
    /// # Errors
    /// When no normalization follows the convolution directly.
    pub fn fold(&mut self) -> Result<(), Error> {
        let (Some(config), Order::NormFirst) = (&self.settings.normalize, self.settings.order)
        else {
            return Err("only a normalization right after the convolution folds into it: \
                        train with --order norm-first"
                .into());
        };
        let state = self.network.state()?;
        let [running_mean, running_var] = state.running(Layer::Planes);
        let folded = fold::fold(
            &fold::Layer {
                weight: state.parameter(Parameter::ConvWeights),
                shape: &[3, 3, 1, FILTERS],
                layout: WeightLayout::OutputLast,
                bias: Some(state.parameter(Parameter::ConvBias)),
            },
            &Norm {
                gamma: Some(state.parameter(Parameter::Gamma)),
                beta: Some(state.parameter(Parameter::Beta)),
                running_mean,
                running_var,
                epsilon: config.epsilon,
            },
        )?;
        self.network.load_folded(&folded.weight, &folded.bias);
        Ok(())
    }

    /// The planes of the first training images before and after normalization, `[image, filter,
    /// pixel]` each, in a forward of that mode. The network is as before afterwards.
    pub fn planes(&mut self, mode: Mode) -> Result<[Vec<f32>; 2], Error> {
        let state = self.network.state()?;
        let batch = self.first_batch();
        self.network.run(mode, &self.data.train, &batch, &still(0))?;
        let planes = self.network.planes(batch.len())?;
        self.network.load(&state);
        Ok(planes)
    }

    /// The median times of a training step's commands, over `steps` more steps of training.
    ///
    /// # Errors
    /// As [`Network::profile`].
    pub fn profile(&mut self, steps: usize) -> Result<Vec<(&'static str, Duration)>, Error> {
        let data = self.data;
        let batch = self.first_batch();
        let mut times: Vec<(&'static str, Vec<Duration>)> = Vec::new();
        for _ in 0..steps {
            let step = self.next_step(0);
            let run = self.network.profile(Mode::Train, &data.train, &batch, &step)?;
            times.resize(run.len(), ("", Vec::new()));
            for ((name, samples), (ran, time)) in times.iter_mut().zip(run) {
                *name = ran;
                samples.push(time);
            }
        }
        let median = |mut samples: Vec<Duration>| {
            samples.sort();
            samples[samples.len() / 2]
        };
        Ok(times.into_iter().map(|(name, samples)| (name, median(samples))).collect())
    }

    /// How it trains.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The images.
    pub fn data(&self) -> &'a DataSet {
        self.data
    }

    /// Epochs trained.
    pub fn epoch_count(&self) -> u32 {
        self.epoch_count
    }

    /// Where the training is.
    pub fn snapshot(&self) -> Result<Snapshot, Error> {
        Ok(Snapshot {
            state: self.network.state()?,
            step_count: self.step_count,
            epoch_count: self.epoch_count,
            random: self.random.get_seed(),
        })
    }

    /// Goes on from there.
    pub fn restore(&mut self, snapshot: &Snapshot) {
        self.network.load(&snapshot.state);
        self.step_count = snapshot.step_count;
        self.epoch_count = snapshot.epoch_count;
        self.random = fastrand::Rng::with_seed(snapshot.random);
    }

    fn first_batch(&self) -> Vec<usize> {
        (0..self.network.design().max_batch.min(self.data.train.len())).collect()
    }

    fn batches(&self, count: usize) -> Vec<Vec<usize>> {
        let order: Vec<usize> = (0..count).collect();
        order.chunks(self.network.design().max_batch).map(<[usize]>::to_vec).collect()
    }

    fn next_step(&mut self, record: usize) -> Step {
        self.step_count = self.step_count.saturating_add(1);
        let Settings { learning_rate, weight_decay, dropout, .. } = self.settings;
        let correction = |beta: f64| (1.0 / (1.0 - beta.powf(self.step_count.into()))) as f32;
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

/// A step that changes nothing and drops nothing.
pub fn still(record: usize) -> Step {
    Step { record: record as u32, dropout_scale: 1.0, ..Step::default() }
}
