//! A report of training runs: one page that needs nothing else, and each of its plots as a file.
//!
//! Only plain data comes in, and every sentence about a result is computed from it. What is not
//! finite is said, not drawn.

mod figures;
mod plot;
mod tables;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};

use crate::Error;
use plot::{PAGE_COLORS, Plot, drawable, escape};
use tables::{claims_table, glance, shifts_table, table};

pub use tables::claims_markdown;

/// Everything a report tells. Accuracies are parts, 0..=1.
#[derive(Debug, Clone, Default)]
pub struct Report {
    pub title: String,
    /// The device, and its driver.
    pub adapter: String,
    /// The data set, and how much of it there is.
    pub data: String,
    /// What makes this report again.
    pub command: String,
    pub seeds: Vec<u64>,
    /// The accuracy that counts as having learned.
    pub target: f64,
    pub curves: Vec<Curve>,
    pub distributions: Vec<Distribution>,
    pub parameters: Vec<Trace>,
    pub statistics: Vec<Lag>,
    pub claims: Vec<Claim>,
    pub shifts: Vec<Shifted>,
}

/// A run, epoch by epoch, the first being epoch 1.
#[derive(Debug, Clone, Default)]
pub struct Curve {
    pub name: String,
    pub epochs: Vec<Point>,
}

/// The end of an epoch. What diverged is NaN or infinite.
#[derive(Debug, Clone, Copy)]
pub struct Point {
    pub train_loss: f64,
    pub test_loss: f64,
    pub accuracy: f64,
    pub seconds: f64,
}

/// The values of one channel in one batch.
#[derive(Debug, Clone, Default)]
pub struct Distribution {
    pub epoch: usize,
    pub channel: usize,
    /// What batch normalization reads.
    pub before: Vec<f32>,
    /// What it writes.
    pub after: Vec<f32>,
}

/// A parameter of every channel over time.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    /// The panel's title.
    pub name: String,
    /// The axis' name.
    pub label: String,
    /// \[epoch\]\[channel\]; epoch 0 is before training.
    pub per_epoch: Vec<Vec<f32>>,
}

/// A running statistic and the same statistic of a batch, over time.
#[derive(Debug, Clone, Default)]
pub struct Lag {
    /// The statistic: "mean", "variance".
    pub name: String,
    /// \[epoch\]\[channel\]; epoch 0 is before training.
    pub running: Vec<Vec<f32>>,
    /// The same channels at the same times.
    pub batch: Vec<Vec<f32>>,
}

/// Runs of one setting; the vectors go over the seeds.
#[derive(Debug, Clone, Default)]
pub struct Claim {
    pub optimizer: String,
    pub learning_rate: f64,
    pub normalized: bool,
    /// None where a run never came to the target.
    pub epochs_to_target: Vec<Option<usize>>,
    pub final_accuracy: Vec<f64>,
    /// The same after the running statistics were re-estimated on the training images; empty
    /// without normalization.
    pub re_estimated: Vec<f64>,
    /// How many of the runs.
    pub diverged: usize,
}

/// Accuracy on test images of another kind.
#[derive(Debug, Clone, Default)]
pub struct Shifted {
    /// "none" for the images as they are.
    pub shift: String,
    /// With the running statistics as training left them.
    pub stored: f64,
    /// With the running statistics of other images.
    pub adapted: f64,
    /// Which images: "the shifted images, no labels", "the training images".
    pub estimated_on: String,
    /// The network without batch normalization, for comparison.
    pub without: Option<f64>,
}

impl Curve {
    /// What went wrong: no epoch, or the first with a loss that is not finite.
    fn trouble(&self) -> Option<String> {
        let lost = |point: &Point| !(drawable(point.train_loss) && drawable(point.test_loss));
        match self.epochs.iter().position(lost) {
            _ if self.epochs.is_empty() => Some("no epoch".into()),
            Some(index) => Some(format!("diverged in epoch {}", index + 1)),
            None => None,
        }
    }
}

/// Writes `report.html` and its plots into `dir`, which is made if need be. Each file is complete
/// when it gets its name, and the page comes last. Returns where the page is.
///
/// # Errors
/// Which file or folder could not be written.
pub fn write(dir: &Path, report: &Report) -> Result<PathBuf, Error> {
    let failed = |path: &Path, error| format!("cannot write {}: {error}", path.display());
    fs::create_dir_all(dir).map_err(|error| failed(dir, error))?;
    let plots = figures::all(report);
    let mut files: Vec<(PathBuf, String)> =
        plots.iter().map(|(name, plot)| (dir.join(format!("{name}.svg")), plot.file())).collect();
    let page_path = dir.join("report.html");
    files.push((page_path.clone(), page(report, &plots)));
    let mut unfinished = Unfinished(Vec::new());
    for (path, text) in &files {
        let mut partial = path.clone().into_os_string();
        partial.push(format!(".{}.partial", std::process::id()));
        let partial = PathBuf::from(partial);
        unfinished.0.push(partial.clone());
        fs::write(&partial, text).map_err(|error| failed(path, error))?;
    }
    for (partial, (path, _)) in unfinished.0.iter().zip(&files) {
        fs::rename(partial, path).map_err(|error| failed(path, error))?;
    }
    Ok(page_path)
}

/// Files that go away, unless they have got their names by then.
struct Unfinished(Vec<PathBuf>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

fn page(report: &Report, plots: &[(&str, Plot)]) -> String {
    let figure = |(_, plot): &(&str, Plot)| {
        let caption = escape(&plot.caption);
        format!("<figure>\n{}<figcaption>{caption}</figcaption>\n</figure>\n", plot.svg())
    };
    let figures: String = plots.iter().map(figure).collect();
    let seeds: Vec<String> = report.seeds.iter().map(u64::to_string).collect();
    let facts: String = [
        ("adapter", &report.adapter),
        ("data", &report.data),
        ("seeds", &seeds.join(", ")),
        ("made by", &report.command),
    ]
    .map(|(name, value)| format!("<dt>{name}</dt><dd>{}</dd>\n", escape(value)))
    .concat();
    let title = escape(&report.title);
    format!(
        "<!DOCTYPE html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'/>\n\
         <meta name='viewport' content='width=device-width, initial-scale=1'/>\n\
         <title>{title}</title>\n<style>{PAGE_COLORS}{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n\
         <dl>{facts}</dl>\n{}<h2>Plots</h2>\n<div class='plots'>\n{figures}</div>\n\
         <h2>Settings</h2>\n<p>Median over the seeds, lowest to highest in brackets. Re-estimated: \
         running statistics replaced by the exact ones of the training images. Diverged: the last \
         epoch's mean loss was above that of guessing, or no number.</p>\n{}\
         <h2>Shifted images</h2>\n{}</body>\n</html>\n",
        glance(report),
        table(&claims_table(&report.claims, report.target)),
        table(&shifts_table(&report.shifts)),
    )
}

const STYLE: &str = "
body{font:16px/1.5 system-ui,sans-serif;max-width:64rem;margin:0 auto;padding:0 .75rem 3rem}
h1{line-height:1.2}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem}
dt{opacity:.75}dd{margin:0;overflow-wrap:anywhere}
.wide{overflow-x:auto;margin:1rem 0}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.25rem .75rem .25rem 0;border-bottom:1px solid #8886;vertical-align:top}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:1.5rem}
figure{margin:0}svg{width:100%;height:auto;display:block}figcaption{font-size:.9rem}
";
