//! The main job: an image classifier that trains on handwritten digits with these batch
//! normalization kernels, and without.
//!
//! [BN], Conv 32 3×3, ReLU, [BN], MaxPool 2, Flatten, [Dropout], Dense 10, softmax; all in WGSL on one
//! device. `batch_norm.rs` is the part to copy: how the library's kernels join a pipeline.

mod arguments;
mod batch_norm;
mod checkpoint;
mod data;
mod gpu;
mod network;
#[cfg(test)]
mod reference;
mod report;
mod saved;
mod study;
mod survey;
#[cfg(test)]
mod tests;
mod training;

use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};
use wgpu_batchnorm::{Gpu, Kernels, wgpu};

use arguments::{Command, Input, Predict, Train};
use data::DataSet;
use network::Mode;
use report::Report;
use study::{Run, TARGET};
use survey::Watch;
use training::{Epoch, Evaluation, Settings, Trainer};

type Error = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let command = match arguments::parse(std::env::args().skip(1)) {
        Ok(Some(command)) => command,
        Ok(None) => {
            print!("{}", arguments::HELP);
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("{error}\nTry --help.");
            return ExitCode::from(2);
        }
    };
    let done = match &command {
        Command::Train(options) => train(options),
        Command::Predict(options) => predict(options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// The images, and the adapter asked for or the best; `features` are enabled on it.
fn open(input: &Input, features: wgpu::Features) -> Result<(DataSet, Gpu), Error> {
    let data = match &input.data {
        Some(folder) => data::idx_folder(folder)?,
        None => data::digits()?,
    };
    let gpu = match &input.adapter {
        None if features.is_empty() => Gpu::new_blocking()?,
        wanted => {
            // The best adapter's name, where none is asked for.
            let wanted = match wanted {
                Some(name) => name.clone(),
                None => Gpu::new_blocking()?.device().adapter_info().name,
            };
            let adapters = Gpu::adapters_blocking();
            let names: Vec<String> = adapters.iter().map(|a| a.get_info().name).collect();
            let matches = |name: &String| name.to_lowercase().contains(&wanted.to_lowercase());
            let Some(index) = names.iter().position(matches) else {
                let message = format!("no adapter's name contains {wanted:?}; there are {names:?}");
                return Err(message.into());
            };
            open_with(&adapters[index], features)?
        }
    };
    println!("{}, on {}", describe(&data), gpu.describe());
    Ok((data, gpu))
}

fn describe(data: &DataSet) -> String {
    let DataSet { name, train, test } = data;
    format!("{name}: {} images to train, {} to test", train.len(), test.len())
}

fn open_with(adapter: &wgpu::Adapter, features: wgpu::Features) -> Result<Gpu, Error> {
    if features.is_empty() {
        return Ok(pollster::block_on(Gpu::from_adapter(adapter))?);
    }
    let descriptor = wgpu::DeviceDescriptor {
        label: Some("digits"),
        required_features: features,
        required_limits: Kernels::required_limits(),
        ..Default::default()
    };
    let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))?;
    Ok(Gpu::from_device(device, queue))
}

/// A bar that shows rate and time left; nothing where standard error is not a terminal.
fn bar(images: usize) -> Result<ProgressBar, Error> {
    Ok(ProgressBar::new(images as u64).with_style(ProgressStyle::with_template(
        "{bar:40} {pos}/{len} images, {per_sec}, {eta} left",
    )?))
}

fn train(options: &Train) -> Result<(), Error> {
    let features =
        if options.profile { wgpu::Features::TIMESTAMP_QUERY } else { wgpu::Features::empty() };
    let (data, gpu) = open(&options.input, features)?;
    let with = &options.settings;
    let without = Settings { normalize: None, ..with.clone() };
    let mut runs = Vec::new();
    if !options.without_norm {
        runs.push(Run::new("with batch normalization", Trainer::new(&gpu, &data, with)?));
    }
    runs.push(Run::new("without", Trainer::new(&gpu, &data, &without)?));

    if let (Some(path), Some(run)) = (&options.resume, runs.first_mut()) {
        let trainer = saved::load(&gpu, &data, path)?;
        saved::check_same(trainer.settings(), run.trainer.settings(), path)?;
        run.trainer = trainer;
    }

    let titles: String = runs.iter().map(|run| format!(" | {:^49}", run.name)).collect();
    println!("{:5}{titles}", "");
    let heads = " | last loss  mean loss  test loss  accuracy      s";
    println!("{:5}{}", "epoch", heads.repeat(runs.len()));
    let bar = bar(options.epochs * data.train.len() * runs.len())?;
    let mut watch = options.report.as_ref().map(|_| Watch::default());
    for epoch in 0..=options.epochs {
        if epoch > 0 {
            let mut line = format!("{epoch:5}");
            for run in &mut runs {
                let done = run.epoch(&data, &mut |images| bar.inc(images as u64))?;
                line += &columns(done);
            }
            bar.suspend(|| println!("{line}"));
            if let (Some(path), Some(run)) = (&options.save, runs.first()) {
                saved::checkpoint(&run.trainer)?.save(path)?;
            }
        }
        if let (Some(watch), Some(run)) = (&mut watch, normalized(&mut runs)) {
            let distribution = epoch == 1 || epoch == options.epochs;
            watch.note(&mut run.trainer, epoch, distribution)?;
        }
    }
    bar.finish_and_clear();
    println!();
    study::summarize(&runs, &data);
    let shifts = match &mut runs[..] {
        [with, without] => study::shifts(&mut with.trainer, Some(&mut without.trainer), &data)?,
        _ => Vec::new(),
    };
    if !shifts.is_empty() {
        study::print_shifts(&shifts);
    }
    if options.profile {
        for run in &mut runs {
            study::print_profile(run.name, &run.trainer.profile(20)?);
        }
    }
    if let (Some(dir), Some(watch)) = (&options.report, watch) {
        let seeds = with.seed..with.seed + survey::SEEDS;
        let run_count = 2 * survey::GRID.len() * seeds.clone().count();
        let bar = self::bar(run_count * options.epochs * data.train.len())?;
        let progress = &mut |images| bar.inc(images as u64);
        let claims = survey::claims(
            &gpu,
            &data,
            with,
            &survey::GRID,
            seeds.clone(),
            options.epochs,
            progress,
        )?;
        bar.finish_and_clear();
        println!("\n{}", report::claims_markdown(&claims, TARGET));
        let (parameters, statistics, distributions) = watch.into_parts();
        let page = report::write(
            dir,
            &Report {
                title: "Batch normalization in an image classifier".into(),
                adapter: gpu.describe(),
                data: describe(&data),
                command: std::env::args()
                    .skip(1)
                    .fold("./scripts/demo".into(), |line, word| line + " " + &word),
                seeds: seeds.collect(),
                target: TARGET,
                curves: runs.iter().map(survey::curve).collect(),
                distributions,
                parameters,
                statistics,
                claims,
                shifts,
            },
        )?;
        println!("The report is {}", page.display());
    }
    Ok(())
}

/// The run with normalization, if there is one.
fn normalized<'a, 'b>(runs: &'a mut [Run<'b>]) -> Option<&'a mut Run<'b>> {
    runs.iter_mut().find(|run| run.trainer.settings().normalize.is_some())
}

/// An epoch's columns in the table.
fn columns((done, test): (Epoch, Evaluation)) -> String {
    format!(
        " | {:9.4}  {:9.4}  {:9.4}  {:7.1}%  {:5.2}",
        done.last_loss,
        done.mean_loss,
        test.loss,
        100.0 * test.accuracy,
        done.time.as_secs_f64()
    )
}

fn predict(options: &Predict) -> Result<(), Error> {
    let (data, gpu) = open(&options.input, wgpu::Features::empty())?;
    let mut trainer = saved::load(&gpu, &data, &options.file)?;
    let test = trainer.evaluate(&data.test)?;
    println!("right {:.1} %, loss {:.4}", 100.0 * test.accuracy, test.loss);
    let logits = trainer.logits(Mode::Infer, &data.test)?;
    println!("bits of all logits: {:016x}", study::fingerprint(&logits));
    if options.fold {
        trainer.fold()?;
        let folded = trainer.logits(Mode::Folded, &data.test)?;
        println!("with the folded convolution: {}", study::difference(&logits, &folded));
    }
    Ok(())
}
