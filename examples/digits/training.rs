//! Epochs: shuffling, steps without waiting, evaluation.

use std::collections::VecDeque;
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

/// Steps that the device may be behind; recording waits for no result, but not without end.
const STEPS_AHEAD: usize = 16;

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
    /// # Errors
    /// As [`Network::new`].
    pub fn new(gpu: &Gpu, data: &'a DataSet, settings: &Settings) -> Result<Self, Error> {
        let images = data.train.len().max(data.test.len());
        let max_batch = settings.batch.min(images);
        let design = Design {
            normalize: settings.normalize.clone(),
            order: settings.order,
            optimizer: settings.optimizer,
            max_batch,
            record_count: images.div_ceil(max_batch),
        };
        let network = Network::new(gpu, design, settings.seed)?;
        let random = fastrand::Rng::with_seed(settings.seed);
        Ok(Self { network, data, settings: settings.clone(), random, step_count: 0 })
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
            if behind.len() > STEPS_AHEAD {
                if let Some(oldest) = behind.pop_front() {
                    gpu::wait(self.network.gpu(), oldest)?;
                }
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
                all.merge(&self.network.measured(layer, batch.len())?)?;
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

    /// The median times of a training step's commands, over `steps` steps.
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

    /// What a resumed run needs besides the settings: the network's state, the steps done and the
    /// state of the random numbers.
    pub fn state(&self) -> Result<(State, i32, u64), Error> {
        Ok((self.network.state()?, self.step_count, self.random.get_seed()))
    }

    /// Goes on from such a state.
    pub fn restore(&mut self, state: &State, step_count: i32, random: u64) {
        self.network.load(state);
        self.step_count = step_count;
        self.random = fastrand::Rng::with_seed(random);
    }

    fn first_batch(&self) -> Vec<usize> {
        (0..self.network.design().max_batch.min(self.data.train.len())).collect()
    }

    fn batches(&self, count: usize) -> Vec<Vec<usize>> {
        let order: Vec<usize> = (0..count).collect();
        order.chunks(self.network.design().max_batch).map(<[usize]>::to_vec).collect()
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

/// A step that changes nothing and drops nothing.
pub fn still(record: usize) -> Step {
    Step { record: record as u32, dropout_scale: 1.0, ..Step::default() }
}
