//! The main job: an image classifier that trains on handwritten digits with these batch
//! normalization kernels, and without.
//!
//! [BN], Conv 32 3×3, ReLU, [BN], MaxPool 2, Flatten, [Dropout], Dense 10, softmax; all in WGSL on one
//! device. `batch_norm.rs` is the part to copy: how the library's kernels join a pipeline.

mod arguments;
mod batch_norm;
mod data;
mod gpu;
mod network;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
mod training;

use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};
use wgpu_batchnorm::Gpu;

use arguments::Options;
use training::{Settings, Trainer};

type Error = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let options = match arguments::parse(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{}", arguments::HELP);
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("{error}\nTry --help.");
            return ExitCode::from(2);
        }
    };
    match train(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Opens the adapter asked for, or the best.
fn open(adapter: Option<&str>) -> Result<Gpu, Error> {
    let Some(wanted) = adapter else {
        return Ok(Gpu::new_blocking()?);
    };
    let adapters = Gpu::adapters_blocking();
    let names: Vec<String> = adapters.iter().map(|adapter| adapter.get_info().name).collect();
    let matches = |name: &String| name.to_lowercase().contains(&wanted.to_lowercase());
    match names.iter().position(matches) {
        Some(index) => Ok(pollster::block_on(Gpu::from_adapter(&adapters[index]))?),
        None => Err(format!("no adapter's name contains {wanted:?}; there are {names:?}").into()),
    }
}

fn train(options: &Options) -> Result<(), Error> {
    let data = match &options.data {
        Some(folder) => data::idx_folder(folder)?,
        None => data::digits()?,
    };
    let gpu = open(options.adapter.as_deref())?;
    let with = &options.settings;
    let without = Settings { normalize: None, ..with.clone() };
    println!(
        "{}: {} images to train, {} to test, on {}",
        data.name,
        data.train.len(),
        data.test.len(),
        gpu.describe()
    );
    let mut runs = Vec::new();
    if !options.without_norm {
        runs.push(("with batch normalization", Trainer::new(&gpu, &data, with)));
    }
    runs.push(("without", Trainer::new(&gpu, &data, &without)));

    let titles: String = runs.iter().map(|(name, _)| format!(" | {name:^49}")).collect();
    println!("{:5}{titles}", "");
    println!(
        "{:5}{}",
        "epoch",
        " | last loss  mean loss  test loss  accuracy      s".repeat(runs.len())
    );
    let total = options.epochs * data.train.len() * runs.len();
    let bar = ProgressBar::new(total as u64).with_style(ProgressStyle::with_template(
        "{bar:40} {pos}/{len} images, {per_sec}, {eta} left",
    )?);
    for epoch in 1..=options.epochs {
        let mut line = format!("{epoch:5}");
        for (_, trainer) in &mut runs {
            let done = trainer.epoch(&mut |images| bar.inc(images as u64))?;
            let test = trainer.evaluate(&data.test)?;
            line += &format!(
                " | {:9.4}  {:9.4}  {:9.4}  {:7.1}%  {:5.2}",
                done.last_loss,
                done.mean_loss,
                test.loss,
                100.0 * test.accuracy,
                done.time.as_secs_f64()
            );
        }
        bar.suspend(|| println!("{line}"));
    }
    bar.finish_and_clear();
    Ok(())
}
