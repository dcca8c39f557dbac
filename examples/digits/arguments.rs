//! The command line.

use std::path::PathBuf;

use lexopt::prelude::*;
use wgpu_batchnorm::Config;

use crate::Error;
use crate::network::Optimizer;
use crate::training::Settings;

pub const HELP: &str = "\
Trains an image classifier on handwritten digits, with and without batch normalization.

Usage: digits [OPTIONS]

  --data DIR           MNIST or Fashion-MNIST: a folder with the four IDX files, plain or .gz
                       (default: 1,797 digits that come along)
  --epochs N           passes over the training images (default 10)
  --batch N            images in a step (default 128)
  --seed N             of the weights, the order and dropout (default 0)
  --optimizer NAME     adam or sgd (default adam)
  --lr X               learning rate (default 1e-3)
  --weight-decay X     decoupled; biases, gamma and beta are spared (default 0)
  --dropout X          part of the features that is dropped, below 1 (default 0)
  --no-bn              only the network without batch normalization
  --norm-preset NAME   keras (epsilon 1e-3, decay 0.99) or pytorch (1e-5, rate 0.1)
                       (default keras)
  --adapter NAME       an adapter whose name contains NAME (see the example `adapters`)
  --help               this text
";

/// What to do.
#[derive(Debug)]
pub struct Options {
    pub data: Option<PathBuf>,
    pub epochs: usize,
    /// With normalization, unless `without_norm`.
    pub settings: Settings,
    pub without_norm: bool,
    pub adapter: Option<String>,
}

/// The options, or `None` where help is asked for.
///
/// # Errors
/// Names the option and what it takes.
pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Option<Options>, Error> {
    let mut options = Options {
        data: None,
        epochs: 10,
        settings: Settings {
            batch: 128,
            seed: 0,
            optimizer: Optimizer::Adam,
            learning_rate: 1e-3,
            weight_decay: 0.0,
            dropout: 0.0,
            normalize: Some(Config::keras()),
        },
        without_norm: false,
        adapter: None,
    };
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next()? {
        let settings = &mut options.settings;
        match argument {
            Long("help") | Short('h') => return Ok(None),
            Long("data") => options.data = Some(parser.value()?.into()),
            Long("epochs") => options.epochs = count(&mut parser, "--epochs", 1_000_000)?,
            Long("batch") => settings.batch = count(&mut parser, "--batch", 4096)?,
            Long("seed") => settings.seed = parser.value()?.parse()?,
            Long("optimizer") => {
                let choices = [("adam", Optimizer::Adam), ("sgd", Optimizer::Sgd)];
                settings.optimizer = choice(&mut parser, "--optimizer", choices)?;
            }
            Long("lr") => settings.learning_rate = number(&mut parser, "--lr", f64::MAX)?,
            Long("weight-decay") => {
                settings.weight_decay = number(&mut parser, "--weight-decay", f64::MAX)?;
            }
            Long("dropout") => {
                settings.dropout = number(&mut parser, "--dropout", 1.0 - f64::EPSILON)?;
            }
            Long("no-bn") => options.without_norm = true,
            Long("norm-preset") => {
                let choices = [("keras", Config::keras()), ("pytorch", Config::pytorch())];
                settings.normalize = Some(choice(&mut parser, "--norm-preset", choices)?);
            }
            Long("adapter") => options.adapter = Some(parser.value()?.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Some(options))
}

/// A count from 1 to `max`.
fn count(parser: &mut lexopt::Parser, option: &str, max: usize) -> Result<usize, Error> {
    let value = parser.value()?.string()?;
    match value.parse() {
        Ok(count) if (1..=max).contains(&count) => Ok(count),
        _ => Err(format!("{option} takes a number from 1 to {max}, not {value:?}").into()),
    }
}

/// A number from 0 to `max`.
fn number(parser: &mut lexopt::Parser, option: &str, max: f64) -> Result<f64, Error> {
    let value = parser.value()?.string()?;
    match value.parse() {
        Ok(number) if (0.0..=max).contains(&number) => Ok(number),
        _ => Err(format!("{option} takes a number from 0 to {max:.3e}, not {value:?}").into()),
    }
}

fn choice<T, const N: usize>(
    parser: &mut lexopt::Parser,
    option: &str,
    choices: [(&str, T); N],
) -> Result<T, Error> {
    let value = parser.value()?.string()?;
    let names = choices.each_ref().map(|(name, _)| *name).join(" or ");
    let found = choices.into_iter().find(|(name, _)| *name == value);
    found
        .map(|(_, choice)| choice)
        .ok_or_else(|| format!("{option} takes {names}, not {value:?}").into())
}
