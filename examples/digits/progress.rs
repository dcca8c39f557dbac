//! How far long work is: a bar with rate and time left, or, where standard error is no terminal, a
//! plain line now and then.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::Error;

/// Between plain lines.
const PAUSE: Duration = Duration::from_secs(10);

pub struct Progress {
    bar: ProgressBar,
    said: Instant,
}

impl Progress {
    /// Of so many images.
    pub fn new(images: usize) -> Result<Self, Error> {
        let style = "{bar:40} {pos}/{len} images, {per_sec}, {eta} left";
        let bar = ProgressBar::new(images as u64).with_style(ProgressStyle::with_template(style)?);
        Ok(Self { bar, said: Instant::now() })
    }

    /// So many more are done.
    pub fn advance(&mut self, images: usize) {
        self.bar.inc(images as u64);
        if self.bar.is_hidden() && self.said.elapsed() >= PAUSE {
            self.said = Instant::now();
            eprintln!("{}", self.line());
        }
    }

    fn line(&self) -> String {
        let (bar, seconds) = (&self.bar, self.bar.eta().as_secs());
        let (done, total) = (bar.position(), bar.length().unwrap_or(0));
        format!("{done}/{total} images, {:.0}/s, {seconds} s left", bar.per_sec())
    }

    /// A line that stays, above the bar.
    pub fn say(&self, line: &str) {
        self.bar.suspend(|| println!("{line}"));
    }

    pub fn finish(self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_the_work_is() {
        let mut progress = Progress::new(400).expect("a bar");
        progress.advance(100);
        assert!(progress.line().starts_with("100/400 images, "), "{}", progress.line());
        assert!(progress.line().ends_with(" s left"), "{}", progress.line());
    }
}
