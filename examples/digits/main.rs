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
mod progress;
#[cfg(test)]
mod reference;
mod report;
mod saved;
mod study;
mod survey;
#[cfg(test)]
mod tests;
mod training;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use wgpu_batchnorm::{Gpu, Kernels, wgpu};

use arguments::{Command, Input, Predict, Train};
use data::DataSet;
use network::Mode;
use progress::Progress;
use report::{Report, Shifted};
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
    // What no call can return, such as a buffer for which there is no memory.
    gpu.device().on_uncaptured_error(Arc::new(|error| {
        eprintln!("{error}");
        std::process::exit(1);
    }));
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
    let mut progress = Progress::new(options.epochs * data.train.len() * runs.len())?;
    let mut watch = options.report.as_ref().map(|_| Watch::default());
    for epoch in 0..=options.epochs {
        if epoch > 0 {
            let mut line = format!("{epoch:5}");
            for run in &mut runs {
                let done = run.epoch(&data, &mut |images| progress.advance(images))?;
                line += &columns(done);
            }
            progress.say(&line);
            if let (Some(path), Some(run)) = (&options.save, runs.first()) {
                saved::checkpoint(&run.trainer)?.save(path)?;
            }
        }
        if let (Some(watch), Some(run)) = (&mut watch, normalized(&mut runs)) {
            let distribution = epoch == 1 || epoch == options.epochs;
            watch.note(&mut run.trainer, epoch, distribution)?;
        }
    }
    progress.finish();
    println!();
    study::summarize(&runs, &data);
    let mut shifts = Vec::new();
    if let [with, without] = &mut runs[..] {
        shifts = study::shifts(&mut with.trainer, Some(&mut without.trainer), &data)?;
        study::print_shifts(&shifts);
    }
    if options.profile {
        for run in &mut runs {
            study::print_profile(run.name, &run.trainer.profile(20)?);
        }
    }
    if let (Some(dir), Some(watch)) = (&options.report, watch) {
        let page = report(dir, options, (&data, &gpu), &runs, watch, shifts)?;
        println!("The report is {}", page.display());
    }
    Ok(())
}

/// Repeats the training over optimizers, learning rates and seeds, and writes the report.
fn report(
    dir: &Path,
    options: &Train,
    (data, gpu): (&DataSet, &Gpu),
    runs: &[Run<'_>],
    watch: Watch,
    shifts: Vec<Shifted>,
) -> Result<PathBuf, Error> {
    let Train { settings, epochs, .. } = options;
    let seeds = settings.seed..settings.seed + survey::SEEDS;
    let run_count = 2 * survey::GRID.len() * seeds.clone().count();
    let mut progress = Progress::new(run_count * epochs * data.train.len())?;
    let repeat = survey::Repeat { grid: &survey::GRID, seeds: seeds.clone(), epochs: *epochs };
    let advance = &mut |images| progress.advance(images);
    let claims = survey::claims(gpu, data, settings, &repeat, advance)?;
    progress.finish();
    println!("\n{}", report::claims_markdown(&claims, TARGET));
    let arguments = std::env::args().skip(1);
    let (parameters, statistics, distributions) = watch.into_parts();
    let content = Report {
        title: "Batch normalization in an image classifier".into(),
        adapter: gpu.describe(),
        data: describe(data),
        command: arguments.fold("./scripts/demo".into(), |line, word| line + " " + &word),
        seeds: seeds.collect(),
        target: TARGET,
        curves: runs.iter().map(survey::curve).collect(),
        distributions,
        parameters,
        statistics,
        claims,
        shifts,
    };
    report::write(dir, &content)
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
