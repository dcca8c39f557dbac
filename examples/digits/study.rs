//! What training shows: a summary, how well the statistics travel to other images, where the time
//! goes.

use std::time::Duration;

use crate::Error;
use crate::data::{CLASSES, DataSet, Shift};
use crate::report::Shifted;
use crate::saved::fnv;
use crate::training::{Epoch, Evaluation, Trainer};

/// The accuracy that runs are compared by.
pub const TARGET: f64 = 0.85;

/// A network in training, and what it did so far.
pub struct Run<'a> {
    pub name: &'static str,
    pub trainer: Trainer<'a>,
    pub epochs: Vec<(Epoch, Evaluation)>,
}

impl<'a> Run<'a> {
    pub fn new(name: &'static str, trainer: Trainer<'a>) -> Self {
        Self { name, trainer, epochs: Vec::new() }
    }

    /// Trains for an epoch, and tests.
    pub fn epoch(
        &mut self,
        data: &DataSet,
        progress: &mut dyn FnMut(usize),
    ) -> Result<(Epoch, Evaluation), Error> {
        let done = (self.trainer.epoch(progress)?, self.trainer.evaluate(&data.test)?);
        self.epochs.push(done);
        Ok(done)
    }

    /// The first epoch after which the accuracy was `target` or more.
    pub fn epochs_to_target(&self, target: f64) -> Option<usize> {
        self.epochs.iter().position(|(_, test)| test.accuracy >= target).map(|index| index + 1)
    }
}

/// Says at a glance how the runs compare.
pub fn summarize(runs: &[Run<'_>], data: &DataSet, shifts: &[Shifted]) {
    println!("\nSummary");
    let line = |title: String, value: &dyn Fn(&Run<'_>) -> String| {
        let values: Vec<String> =
            runs.iter().map(|run| format!("{} {}", value(run), run.name)).collect();
        println!("  {title:<28} {}", values.join(", "));
    };
    let last = |run: &Run<'_>| run.epochs.last().copied();
    line("mean loss of epoch 1".into(), &|run| {
        run.epochs.first().map_or("none".into(), |(epoch, _)| format!("{:.3}", epoch.mean_loss))
    });
    line(format!("{:.0} % of the test is right", 100.0 * TARGET), &|run| {
        run.epochs_to_target(TARGET).map_or("never".into(), |epoch| format!("after epoch {epoch}"))
    });
    line("right at the end".into(), &|run| {
        last(run).map_or("none".into(), |(_, test)| format!("{:.1} %", 100.0 * test.accuracy))
    });
    for row in shifts.iter().filter(|row| row.shift == UNSHIFTED) {
        println!(
            "  {:<28} {:.1} % with batch normalization: after few steps, running statistics still\n  \
             {:<28} carry their initial values; here they are those of the training images",
            "  statistics re-estimated",
            100.0 * row.adapted,
            ""
        );
    }
    line("images per second".into(), &|run| {
        let mut times: Vec<Duration> = run.epochs.iter().map(|(epoch, _)| epoch.time).collect();
        times.sort();
        let median = times.get(times.len() / 2).map_or(f64::NAN, Duration::as_secs_f64);
        format!("{:.0}", data.train.len() as f64 / median)
    });
}

/// The images as they are, among the shifted ones.
const UNSHIFTED: &str = "as they are";

/// Tests the networks on changed images: with the statistics of the training, and with statistics
/// re-estimated on the changed images without their labels (AdaBN) or, for the images as they are,
/// on the training images (precise batch norm). The networks are as before afterwards.
pub fn shifts(
    normalized: &mut Trainer<'_>,
    mut without: Option<&mut Trainer<'_>>,
    data: &DataSet,
) -> Result<Vec<Shifted>, Error> {
    let shifted = |shift| data.test.shifted(shift, normalized.settings().seed);
    let cases = [
        (UNSHIFTED, data.test.clone()),
        ("inverted", shifted(Shift::Invert)),
        ("noisy", shifted(Shift::Noise)),
        ("brightened", shifted(Shift::Bright)),
    ];
    let snapshot = normalized.snapshot()?;
    let mut rows = Vec::new();
    for (shift, test) in &cases {
        let stored = normalized.evaluate(test)?.accuracy;
        let (source, estimated_on) = match *shift {
            UNSHIFTED => (&data.train, "the training images"),
            _ => (test, "the shifted images, no labels"),
        };
        normalized.re_estimate(source)?;
        let adapted = normalized.evaluate(test)?.accuracy;
        normalized.restore(&snapshot);
        let without = match &mut without {
            Some(trainer) => Some(trainer.evaluate(test)?.accuracy),
            None => None,
        };
        let (shift, estimated_on) = (shift.to_string(), estimated_on.into());
        rows.push(Shifted { shift, stored, adapted, estimated_on, without });
    }
    Ok(rows)
}

pub fn print_shifts(rows: &[Shifted]) {
    println!("\nRight answers on shifted test images");
    println!("  shift         stored statistics  re-estimated  without normalization");
    for row in rows {
        let without = row.without.map_or("".into(), |part| format!("{:5.1} %", 100.0 * part));
        println!(
            "  {:<12} {:16.1} %  {:10.1} %  {without:>21}   (of {})",
            row.shift,
            100.0 * row.stored,
            100.0 * row.adapted,
            row.estimated_on
        );
    }
}

/// Where a training step's time goes.
pub fn print_profile(name: &str, times: &[(&'static str, Duration)]) {
    let total: Duration = times.iter().map(|(_, time)| *time).sum();
    println!("\nA training step {name}: {:.3} ms on the device", total.as_secs_f64() * 1e3);
    for (command, time) in times {
        let share = 100.0 * time.as_secs_f64() / total.as_secs_f64().max(1e-12);
        println!("  {command:<26} {:8.3} ms  {share:5.1} %", time.as_secs_f64() * 1e3);
    }
}

/// A number that differs when a bit of the logits does.
pub fn fingerprint(logits: &[[f32; CLASSES]]) -> u64 {
    fnv(logits.iter().flatten().flat_map(|value| value.to_le_bytes()))
}

/// How two ways to the same logits differ, in words.
pub fn difference(a: &[[f32; CLASSES]], b: &[[f32; CLASSES]]) -> String {
    let pairs = || a.iter().flatten().zip(b.iter().flatten());
    let largest = pairs().map(|(a, _)| a.abs()).fold(0.0, f32::max);
    let worst = pairs().map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let answer = |row: &[f32; CLASSES]| {
        (1..CLASSES).fold(0, |best, class| if row[class] > row[best] { class } else { best })
    };
    let other = a.iter().zip(b).filter(|(a, b)| answer(a) != answer(b)).count();
    format!("logits differ by {worst:.1e} at most, of up to {largest:.1}; {other} other answers")
}
