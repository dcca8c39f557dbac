//! Known answers on a device, in milliseconds: a broken driver is found before training is ruined.

use std::fmt;

use crate::caps::Class;
use crate::config::{Config, RunningVariance, Update};
use crate::geometry::{ChannelAxis, Geometry};
use crate::host::{Gpu, HostError, Source};
use crate::plan::{Backward, FrozenBackward, Infer, Plan, Slot, Train};

/// What a device computed for questions with known answers.
#[derive(Debug, Clone, PartialEq)]
pub struct SelfTest {
    /// The adapter in words.
    pub adapter: String,
    /// How its work is cut.
    pub class: Class,
    /// One line per shape, operation and result.
    pub checks: Vec<Check>,
}

/// One known answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// Shape, operation and result.
    pub name: String,
    /// Largest error relative to the largest expected value (or 1); infinite when a value is
    /// missing or NaN.
    pub error: f64,
    /// What it may be: WGSL's accuracy of division and square root, some units in the last place.
    pub bound: f64,
}

impl Check {
    /// Whether the error is within the bound.
    pub fn passed(&self) -> bool {
        self.error <= self.bound
    }
}

impl SelfTest {
    /// Whether every check passed.
    pub fn passed(&self) -> bool {
        self.checks.iter().all(Check::passed)
    }
}

impl fmt::Display for SelfTest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let failed: Vec<&Check> = self.checks.iter().filter(|check| !check.passed()).collect();
        let worst = self.checks.iter().map(|check| check.error).fold(0.0, f64::max);
        write!(
            f,
            "{} ({:?} class): {} of {} known answers, worst relative error {worst:.1e}",
            self.adapter,
            self.class,
            self.checks.len() - failed.len(),
            self.checks.len()
        )?;
        for check in failed {
            write!(
                f,
                "\n  WRONG {}: error {:.2e}, bound {:.2e}",
                check.name, check.error, check.bound
            )?;
        }
        Ok(())
    }
}

/// Shapes that together take every path: one dispatch and three, rows and columns, whole vectors
/// and odd ends, and one channel long enough to meet a limit on loop iterations.
const SHAPES: [(&[usize], ChannelAxis); 7] = [
    (&[2, 3, 4, 4], ChannelAxis::First),
    (&[4, 5, 7, 9], ChannelAxis::First),
    (&[2, 3, 128, 130], ChannelAxis::First),
    (&[6, 33], ChannelAxis::Last),
    (&[2, 60, 50, 12], ChannelAxis::Last),
    (&[2, 75, 90, 3], ChannelAxis::Last),
    (&[1, 1, 1 << 21], ChannelAxis::First),
];

impl Gpu {
    /// Asks the device for training, inference and both backwards on data whose results are known
    /// in closed form: the values of channel c alternate between `1000·c − 1` and `1000·c + 1`, so
    /// the mean is `1000·c`, the variance 1, and with ε = 3 the inverse deviation ½.
    ///
    /// # Errors
    /// [`HostError`] when the device does not answer at all. Wrong answers are no error: ask
    /// [`SelfTest::passed`].
    pub async fn self_test(&self) -> Result<SelfTest, HostError> {
        let mut checks = Vec::new();
        for (shape, axis) in SHAPES {
            let geometry = Geometry::new(shape, axis)?;
            self.known_answers(geometry, &format!("{shape:?} {axis:?}"), &mut checks).await?;
        }
        Ok(SelfTest { adapter: self.describe(), class: self.caps().class, checks })
    }

    /// [`self_test`](Self::self_test), blocking.
    ///
    /// # Errors
    /// As its async twin.
    pub fn self_test_blocking(&self) -> Result<SelfTest, HostError> {
        pollster::block_on(self.self_test())
    }

    async fn known_answers(
        &self,
        g: Geometry,
        name: &str,
        checks: &mut Vec<Check>,
    ) -> Result<(), HostError> {
        let config = Config {
            epsilon: 3.0,
            update: Update::Rate(0.5),
            running_variance: RunningVariance::Population,
            ..Config::pytorch()
        };
        let (channels, inner) = (g.channels() as usize, g.inner() as usize);
        let n = g.values_per_channel() as f32;
        // Channel and sign (±1, alternating within a channel) of every value.
        let places: Vec<(usize, f32)> = (0..g.len() as usize)
            .map(|i| {
                let place = i / (inner * channels) * inner + i % inner;
                (i / inner % channels, if place % 2 == 0 { -1.0 } else { 1.0 })
            })
            .collect();
        let per_value = |f: &dyn Fn(usize, f32) -> f32| -> Vec<f32> {
            places.iter().map(|&(c, s)| f(c, s)).collect()
        };
        let per_channel = |f: &dyn Fn(usize) -> f32| (0..channels).map(f).collect::<Vec<f32>>();
        let gamma = |c: usize| 2.0 + (c % 3) as f32;
        let beta = |c: usize| (c % 5) as f32 - 1.0;
        let mean = |c: usize| 1000.0 * c as f32;

        let x = per_value(&|c, s| mean(c) + s);
        let dy = per_value(&|_, s| 2.0 + s);
        let gammas = per_channel(&gamma);
        let betas = per_channel(&beta);
        let means = per_channel(&mean);
        let ones = vec![1.0; channels];
        let saved: Vec<f32> =
            means.iter().copied().chain(vec![0.0; channels]).chain(vec![0.5; channels]).collect();
        let mut inputs = vec![
            (Slot::X, Source::Floats(&x)),
            (Slot::Dy, Source::Floats(&dy)),
            (Slot::Gamma, Source::Floats(&gammas)),
            (Slot::Beta, Source::Floats(&betas)),
            (Slot::RunningMean, Source::Floats(&means)),
            (Slot::RunningVar, Source::Floats(&ones)),
        ];
        let gradients = [Slot::Dx, Slot::Dgamma, Slot::Dbeta];
        let y = per_value(&|c, s| gamma(c) * 0.5 * s + beta(c));
        let dgamma = vec![n / 2.0; channels];
        let dbeta = vec![2.0 * n; channels];

        let caps = self.caps();
        let outputs = [Slot::Y, Slot::Saved, Slot::RunningMean, Slot::RunningVar];
        let plan = Plan::<Train>::new(g, &config, caps)?;
        let got = self.run(plan, &inputs, &outputs).await?;
        compare(checks, name, "forward", &outputs, &got, &[&y, &saved, &means, &ones]);

        let plan = Plan::<Infer>::new(g, &config, caps)?;
        let got = self.run(plan, &inputs, &[Slot::Y]).await?;
        compare(checks, name, "inference", &[Slot::Y], &got, &[&y]);

        let dx = per_value(&|c, s| gamma(c) * 0.375 * s);
        let plan = Plan::<Backward>::new(g, &config, caps)?;
        inputs.push((Slot::Saved, Source::Floats(&saved)));
        let got = self.run(plan, &inputs, &gradients).await?;
        compare(checks, name, "backward", &gradients, &got, &[&dx, &dgamma, &dbeta]);

        let dx = per_value(&|c, s| gamma(c) * 0.5 * (2.0 + s));
        let plan = Plan::<FrozenBackward>::new(g, &config, caps)?;
        let got = self.run(plan, &inputs, &gradients).await?;
        compare(checks, name, "frozen_backward", &gradients, &got, &[&dx, &dgamma, &dbeta]);
        Ok(())
    }
}

fn compare(
    checks: &mut Vec<Check>,
    shape: &str,
    operation: &str,
    slots: &[Slot],
    got: &[Vec<f32>],
    expected: &[&[f32]],
) {
    for ((slot, got), expected) in slots.iter().zip(got).zip(expected) {
        let largest = expected.iter().fold(1.0f32, |m, v| m.max(v.abs()));
        let mut error: f64 = if got.len() == expected.len() { 0.0 } else { f64::INFINITY };
        for (a, b) in got.iter().zip(*expected) {
            let off = f64::from((a - b).abs()) / f64::from(largest);
            error = if off.is_nan() { f64::INFINITY } else { error.max(off) };
        }
        let bound = 16.0 * f64::from(f32::EPSILON);
        checks.push(Check { name: format!("{shape} {operation} {slot}"), error, bound });
    }
}
