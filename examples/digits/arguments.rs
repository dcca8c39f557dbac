//! The command line.

use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use lexopt::prelude::*;
use wgpu_batchnorm::Config;

use crate::Error;
use crate::network::{Optimizer, Order};
use crate::training::Settings;

pub const HELP: &str = "\
Trains an image classifier on handwritten digits, with and without batch normalization.

Usage: digits [OPTIONS]              train, test, compare
       digits predict FILE [OPTIONS] test a trained network

  --data DIR           MNIST or Fashion-MNIST: a folder with the four IDX files, plain or .gz
                       (default: 1,797 digits that come along)
  --adapter NAME       an adapter whose name contains NAME (see the example `adapters`)
  --help               this text

Training:
  --epochs N           passes over the training images, those of --resume included
                       (default 10)
  --batch N            images in a step (default 128)
  --seed N             of the weights, the order and dropout (default 0)
  --optimizer NAME     adam or sgd (default adam)
  --lr X               learning rate (default 1e-3)
  --weight-decay X     decoupled; biases, gamma and beta are spared (default 0)
  --dropout X          part of the features that is dropped, up to 0.999 (default 0)
  --no-bn              only the network without batch normalization
  --norm-preset NAME   keras (epsilon 1e-3, decay 0.99) or pytorch (1e-5, rate 0.1)
                       (default keras)
  --order NAME         relu-first (Conv, ReLU, BN: the article's) or norm-first (Conv, BN, ReLU)
                       (default relu-first)
  --save FILE          after every epoch, a checkpoint of the network with batch normalization
                       (with --no-bn, of the one without)
  --resume FILE        go on from a checkpoint that the same options made, with that network
                       alone
  --report DIR         repeat over optimizers, learning rates and seeds, and write a report with
                       plots (some minutes)
  --profile            the time of every kernel, over 20 more steps (needs an adapter with
                       timestamps)

Prediction:
  --fold               also with the second batch normalization folded into the convolution
                       (networks trained with --order norm-first)
";

pub const OPTIMIZERS: [(&str, Optimizer); 2] = [("adam", Optimizer::Adam), ("sgd", Optimizer::Sgd)];
pub const ORDERS: [(&str, Order); 2] =
    [("relu-first", Order::ReluFirst), ("norm-first", Order::NormFirst)];

pub fn presets() -> [(&'static str, Config); 2] {
    [("keras", Config::keras()), ("pytorch", Config::pytorch())]
}

/// The choice of that name.
pub fn named<T: Clone>(choices: &[(&'static str, T)], wanted: &str) -> Option<T> {
    choices.iter().find(|(name, _)| *name == wanted).map(|(_, choice)| choice.clone())
}

/// What to do.
#[derive(Debug)]
pub enum Command {
    Train(Train),
    Predict(Predict),
}

/// What both commands take.
#[derive(Debug, Default)]
pub struct Input {
    pub data: Option<PathBuf>,
    pub adapter: Option<String>,
}

#[derive(Debug)]
pub struct Train {
    pub input: Input,
    pub epochs: usize,
    /// With normalization, unless `without_norm`.
    pub settings: Settings,
    pub without_norm: bool,
    pub save: Option<PathBuf>,
    pub resume: Option<PathBuf>,
    pub report: Option<PathBuf>,
    pub profile: bool,
}

#[derive(Debug)]
pub struct Predict {
    pub input: Input,
    pub file: PathBuf,
    pub fold: bool,
}

/// The command, or `None` where help is asked for.
///
/// # Errors
/// Names the option and what it takes.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Option<Command>, Error> {
    let mut arguments = arguments.into_iter().peekable();
    let predict = arguments.next_if(|first| first == "predict").is_some();
    let parser = &mut lexopt::Parser::from_args(arguments);
    if predict { parse_predict(parser) } else { parse_train(parser) }
}

fn parse_predict(parser: &mut lexopt::Parser) -> Result<Option<Command>, Error> {
    let mut file = None;
    let mut fold = false;
    let mut input = Input::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("help") | Short('h') => return Ok(None),
            Long("data") => input.data = Some(parser.value()?.into()),
            Long("adapter") => input.adapter = Some(parser.value()?.string()?),
            Long("fold") => fold = true,
            Value(path) if file.is_none() => file = Some(path.into()),
            other => return Err(other.unexpected().into()),
        }
    }
    let file = file.ok_or("predict takes a checkpoint: digits predict FILE")?;
    Ok(Some(Command::Predict(Predict { input, file, fold })))
}

fn parse_train(parser: &mut lexopt::Parser) -> Result<Option<Command>, Error> {
    let mut train = Train {
        input: Input::default(),
        epochs: 10,
        settings: Settings::default(),
        without_norm: false,
        save: None,
        resume: None,
        report: None,
        profile: false,
    };
    while let Some(argument) = parser.next()? {
        let settings = &mut train.settings;
        match argument {
            Long("help") | Short('h') => return Ok(None),
            Long("data") => train.input.data = Some(parser.value()?.into()),
            Long("adapter") => train.input.adapter = Some(parser.value()?.string()?),
            Long("epochs") => train.epochs = count(parser, "--epochs", 1..=1_000_000)?,
            Long("batch") => settings.batch = count(parser, "--batch", 1..=65_535)?,
            Long("seed") => settings.seed = count(parser, "--seed", 0..=u32::MAX as usize)? as u64,
            Long("optimizer") => {
                settings.optimizer = choice(parser, "--optimizer", &OPTIMIZERS)?;
            }
            Long("lr") => settings.learning_rate = number(parser, "--lr", 1e6)?,
            Long("weight-decay") => {
                settings.weight_decay = number(parser, "--weight-decay", 1e6)?;
            }
            Long("dropout") => settings.dropout = number(parser, "--dropout", 0.999)?,
            Long("no-bn") => train.without_norm = true,
            Long("norm-preset") => {
                settings.normalize = Some(choice(parser, "--norm-preset", &presets())?);
            }
            Long("order") => settings.order = choice(parser, "--order", &ORDERS)?,
            Long("save") => train.save = Some(parser.value()?.into()),
            Long("resume") => train.resume = Some(parser.value()?.into()),
            Long("report") => train.report = Some(parser.value()?.into()),
            Long("profile") => train.profile = true,
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Some(Command::Train(train)))
}

/// A whole number in a range.
fn count(
    parser: &mut lexopt::Parser,
    option: &str,
    range: RangeInclusive<usize>,
) -> Result<usize, Error> {
    let value = parser.value()?.string()?;
    match value.parse() {
        Ok(count) if range.contains(&count) => Ok(count),
        _ => {
            let (from, to) = range.into_inner();
            Err(format!("{option} takes a number from {from} to {to}, not {value:?}").into())
        }
    }
}

/// A number from 0 to `max`.
fn number(parser: &mut lexopt::Parser, option: &str, max: f64) -> Result<f64, Error> {
    let value = parser.value()?.string()?;
    match value.parse() {
        Ok(number) if (0.0..=max).contains(&number) => Ok(number),
        _ => Err(format!("{option} takes a number from 0 to {max}, not {value:?}").into()),
    }
}

fn choice<T: Clone>(
    parser: &mut lexopt::Parser,
    option: &str,
    choices: &[(&'static str, T)],
) -> Result<T, Error> {
    let value = parser.value()?.string()?;
    named(choices, &value).ok_or_else(|| {
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        format!("{option} takes {}, not {value:?}", names.join(" or ")).into()
    })
}
