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

use wgpu_batchnorm::{Gpu, wgpu};

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
    let command = match arguments::parse(std::env::args_os().skip(1)) {
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

/// The images, and a device: of the adapter asked for, or of the best.
fn open(input: &Input, profile: bool) -> Result<(DataSet, Gpu), Error> {
    let data = match &input.data {
        Some(folder) => data::idx_folder(folder)?,
        None => data::digits()?,
    };
    let mut gpu = match &input.adapter {
        None => Gpu::new_blocking()?,
        Some(wanted) => {
            let adapters = Gpu::adapters_blocking();
            let names: Vec<String> = adapters.iter().map(|a| a.get_info().name).collect();
            let contains = |name: &String| name.to_lowercase().contains(&wanted.to_lowercase());
            let exact = names.iter().position(|name| name == wanted);
            let Some(index) = exact.or(names.iter().position(contains)) else {
                let message = format!("no adapter's name contains {wanted:?}; there are {names:?}");
                return Err(message.into());
            };
            pollster::block_on(Gpu::from_adapter(&adapters[index]))?
        }
    };
    if profile {
        gpu = with_timestamps(&gpu)?;
    }
    println!("{}, on {}", describe(&data), gpu.describe());
    Ok((data, gpu))
}

/// Another device of the same adapter, with timestamps.
fn with_timestamps(gpu: &Gpu) -> Result<Gpu, Error> {
    let own = gpu.device().adapter_info();
    let same = |adapter: &wgpu::Adapter| {
        let info = adapter.get_info();
        (info.name, info.backend, info.device) == (own.name.clone(), own.backend, own.device)
    };
    let adapters = Gpu::adapters_blocking();
    let adapter = adapters.iter().find(|adapter| same(adapter));
    let adapter = adapter
        .filter(|adapter| adapter.features().contains(wgpu::Features::TIMESTAMP_QUERY))
        .ok_or_else(|| format!("--profile needs timestamps, and {} has none", gpu.describe()))?;
    let descriptor = wgpu::DeviceDescriptor {
        label: Some("digits"),
        required_features: gpu.device().features() | wgpu::Features::TIMESTAMP_QUERY,
        required_limits: gpu.device().limits(),
        ..Default::default()
    };
    let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))?;
    Ok(Gpu::from_device(device, queue))
}

fn describe(data: &DataSet) -> String {
    let DataSet { name, train, test } = data;
    format!("{name}: {} images to train, {} to test", train.len(), test.len())
}

fn train(options: &Train) -> Result<(), Error> {
    let (data, gpu) = open(&options.input, options.profile)?;
    if let Some(dir) = &options.report {
        // Before the work whose result it shall hold.
        std::fs::create_dir_all(dir).map_err(|e| format!("cannot make {}: {e}", dir.display()))?;
    }
    const WITH: &str = "with batch normalization";
    const WITHOUT: &str = "without";
    let with = &options.settings;
    let without = Settings { normalize: None, ..with.clone() };
    let mut runs = Vec::new();
    if let Some(path) = &options.resume {
        let (name, settings) =
            if options.without_norm { (WITHOUT, &without) } else { (WITH, with) };
        runs.push(Run::new(name, saved::resume(&gpu, &data, path, settings)?));
    } else {
        if !options.without_norm {
            runs.push(Run::new(WITH, Trainer::new(&gpu, &data, with)?));
        }
        runs.push(Run::new(WITHOUT, Trainer::new(&gpu, &data, &without)?));
    }
    let done = runs.first().map_or(0, |run| run.trainer.epoch_count() as usize);
    if done >= options.epochs {
        return Err(format!("{done} epochs are done: ask for more than --epochs {done}").into());
    }

    let titles: String = runs.iter().map(|run| format!(" | {:^49}", run.name)).collect();
    println!("{:5}{titles}", "");
    let heads = " | last loss  mean loss  test loss  accuracy      s";
    println!("{:5}{}", "epoch", heads.repeat(runs.len()));
    let mut progress = Progress::new((options.epochs - done) * data.train.len() * runs.len())?;
    let mut watch = options.report.as_ref().map(|_| Watch::default());
    for epoch in done..=options.epochs {
        if epoch > done {
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
            let distribution = epoch == done + 1 || epoch == options.epochs;
            watch.note(&mut run.trainer, epoch, distribution)?;
        }
    }
    progress.finish();
    let mut shifts = Vec::new();
    if let Some((run, others)) = runs.split_first_mut().filter(|_| !options.without_norm) {
        let without = others.first_mut().map(|run| &mut run.trainer);
        shifts = study::shifts(&mut run.trainer, without, &data)?;
        study::print_shifts(&shifts);
    }
    study::summarize(&runs, &data, &shifts);
    if let (Some(path), Some(run)) = (&options.save, runs.first_mut()) {
        let bits = study::fingerprint(&run.trainer.logits(Mode::Infer, &data.test)?);
        println!("\nSaved as {}; bits of all logits: {bits:016x}", path.display());
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
    let repeat = survey::Repeat {
        grid: &survey::GRID,
        normalized: if options.without_norm { &[false] } else { &[true, false] },
        seeds: seeds.clone(),
        epochs: *epochs,
    };
    let run_count = repeat.grid.len() * repeat.normalized.len() * seeds.clone().count();
    let mut progress = Progress::new(run_count * epochs * data.train.len())?;
    let advance = &mut |images| progress.advance(images);
    let claims = survey::claims(gpu, data, settings, &repeat, advance)?;
    progress.finish();
    println!("\n{}", report::claims_markdown(&claims, TARGET));
    let arguments = std::env::args_os().skip(1);
    let (parameters, statistics, distributions) = watch.into_parts();
    let content = Report {
        title: "Batch normalization in an image classifier".into(),
        adapter: gpu.describe(),
        data: describe(data),
        command: arguments.fold("./scripts/demo".into(), |line: String, word| {
            line + " " + &word.to_string_lossy()
        }),
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
    let (data, gpu) = open(&options.input, false)?;
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
