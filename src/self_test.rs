//! Known answers and hostile data on a device: a broken driver is found before training is ruined.

use std::fmt;

use ndarray::{ArrayD, ArrayView1};

use crate::bind::Bind;
use crate::caps::Class;
use crate::config::{
    Activation, Config, Element, Gradients, Mask, NonFinite, RunningVariance, Update,
};
use crate::geometry::{ChannelAxis, Geometry};
use crate::host::{Gpu, HostError, Source};
use crate::kernels::Scopes;
use crate::plan::{Backward, FrozenBackward, Infer, Params, Plan, Slot, Statistics, Train};
use crate::reference::{self, Input, Running};
use crate::shader;
use crate::tuning::MAX_ITERATIONS;

/// What a device is like, and what it computed for questions with known answers.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct SelfTest {
    /// The adapter in words.
    pub adapter: String,
    /// How its work is cut.
    pub class: Class,
    /// What it does with loops, NaN, denormals and sums.
    pub behaviour: Behaviour,
    /// One per shape, operation and result.
    pub checks: Vec<Check>,
}

/// What an adapter does where WGSL leaves it a choice, or where drivers are known to err.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Behaviour {
    /// How often a loop was asked to run that is longer than what lavapipe's end silently at.
    pub iterations_asked: u32,
    /// How often it ran. The kernels loop [`MAX_ITERATIONS`] times at most; that they can is one
    /// of the checks.
    pub iterations_done: u32,
    /// NaN and infinity can be told by their bits. The kernels rely on it; it is one of the checks.
    pub finite_by_bits: bool,
    /// NaN differs from itself in a comparison. False where a compiler folds it; the kernels do not
    /// ask so.
    pub nan_by_comparison: bool,
    /// `NaN + 1` and `∞ − ∞` are NaN. Where not, what a NaN in a channel makes of that channel is
    /// not checked.
    pub nan_propagates: bool,
    /// Overflow gives infinity.
    pub overflow_is_infinite: bool,
    /// Numbers below 1.2e-38 are kept by arithmetic; else they are flushed to zero.
    pub denormals_kept: bool,
    /// `a·b + c` is rounded once (contracted to a fused multiply-add); else twice.
    pub contracts: bool,
    /// `(a + b) − a` is taken for `b`.
    pub reassociates: bool,
    /// What the kernels do against that works; it is one of the checks.
    pub opaque_holds: bool,
    /// Smallest and largest subgroup, where the device has them enabled. The kernels do not use
    /// them.
    pub subgroup_sizes: Option<(u32, u32)>,
}

/// One known answer.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Check {
    /// The operation, as in its labels; `device` for what the kernels rely on.
    pub operation: &'static str,
    /// Shape and result.
    pub name: String,
    /// Largest error relative to the largest term that goes into a value; infinite when a value is
    /// missing, not finite where it should be, or the other way around.
    pub error: f64,
    /// What it may be.
    pub bound: f64,
}

impl Check {
    /// Whether the error is within the bound.
    pub fn passed(&self) -> bool {
        self.error <= self.bound
    }

    fn ratio(&self) -> f64 {
        if self.error == 0.0 { 0.0 } else { self.error / self.bound }
    }
}

impl SelfTest {
    /// Whether every check passed.
    pub fn passed(&self) -> bool {
        self.checks.iter().all(Check::passed)
    }

    /// Every operation's check that is closest to its bound, or farthest beyond.
    pub fn worst(&self) -> Vec<&Check> {
        let mut worst: Vec<&Check> = Vec::new();
        for check in &self.checks {
            match worst.iter_mut().find(|w| w.operation == check.operation) {
                Some(w) if check.ratio() > w.ratio() => *w = check,
                Some(_) => {}
                None => worst.push(check),
            }
        }
        worst
    }
}

impl fmt::Display for Behaviour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { iterations_asked: asked, iterations_done: done, .. } = self;
        let either = |yes: bool, a: &'static str, b: &'static str| if yes { a } else { b };
        write!(f, "loops: ")?;
        match done == asked {
            true => writeln!(f, "{done} iterations run to their end")?,
            false => writeln!(
                f,
                "end silently after {done} of {asked} iterations (kernels use {MAX_ITERATIONS} at most)"
            )?,
        }
        writeln!(
            f,
            "NaN: {} by its bits, {} by comparison, {} by arithmetic; overflow {} infinite",
            either(self.finite_by_bits, "told", "NOT told"),
            either(self.nan_by_comparison, "told", "not told"),
            either(self.nan_propagates, "kept", "not kept"),
            either(self.overflow_is_infinite, "is", "is not"),
        )?;
        writeln!(f, "denormals: {}", either(self.denormals_kept, "kept", "flushed to zero"))?;
        writeln!(
            f,
            "a*b + c: {}",
            either(self.contracts, "contracted to a fused multiply-add", "rounded twice")
        )?;
        writeln!(
            f,
            "(a + b) - a: {}, {}",
            either(self.reassociates, "reassociated", "as written"),
            either(self.opaque_holds, "blocked where kernels need it", "NOT blocked"),
        )?;
        match self.subgroup_sizes {
            Some((min, max)) => write!(f, "subgroups: of {min} to {max}, not used"),
            None => write!(f, "subgroups: not used"),
        }
    }
}

impl fmt::Display for SelfTest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let failed = self.checks.iter().filter(|check| !check.passed());
        let count = self.checks.len();
        let right = count - failed.clone().count();
        write!(f, "{} ({:?} class): {right} of {count} answers right", self.adapter, self.class)?;
        for line in self.behaviour.to_string().lines() {
            write!(f, "\n  {line}")?;
        }
        for check in self.worst() {
            let Check { operation, name, error, bound } = check;
            write!(f, "\n  {operation}: worst error {error:.1e}, bound {bound:.1e} ({name})")?;
        }
        for Check { operation, name, error, bound } in failed {
            write!(f, "\n  WRONG {operation} {name}: error {error:.2e}, bound {bound:.2e}")?;
        }
        Ok(())
    }
}

/// What a self-test asks of the operations.
struct Extent {
    known: &'static [(&'static [usize], ChannelAxis)],
    weighted: &'static [(&'static [usize], ChannelAxis)],
    fused: &'static [(&'static [usize], ChannelAxis)],
    hostile: &'static [(&'static [usize], ChannelAxis)],
    /// Statistics alone and the frozen backward too, and hostile data under every option; else both
    /// kinds of data are asked under the same, for which the driver compiles few kernels.
    everything: bool,
}

/// Rows in one dispatch, columns in three.
const QUICK_SHAPES: [(&[usize], ChannelAxis); 2] =
    [(&[3, 16, 8, 8], ChannelAxis::First), (&[4200, 16], ChannelAxis::Last)];

const QUICK: Extent = Extent {
    known: &QUICK_SHAPES,
    weighted: &[],
    fused: &[],
    hostile: &QUICK_SHAPES,
    everything: false,
};

const THOROUGH: Extent = Extent {
    known: &SHAPES,
    weighted: &WEIGHTED_SHAPES,
    fused: &FUSED_SHAPES,
    hostile: &HOSTILE_SHAPES,
    everything: true,
};

/// Shapes that together take every path: one dispatch and three, rows and columns, whole vectors
/// and odd ends, and one channel long enough to meet a limit on loop iterations. An even number of
/// values per channel.
const SHAPES: [(&[usize], ChannelAxis); 9] = [
    (&[2, 3, 4, 4], ChannelAxis::First),
    (&[4, 5, 7, 9], ChannelAxis::First),
    (&[2, 3, 128, 130], ChannelAxis::First),
    (&[2, 3, 125, 133], ChannelAxis::First),
    (&[6, 33], ChannelAxis::Last),
    (&[6, 36], ChannelAxis::Last),
    (&[2, 20, 50, 144], ChannelAxis::Last),
    (&[2, 75, 90, 3], ChannelAxis::Last),
    (&[1, 1, 1 << 21], ChannelAxis::First),
];

/// Shapes for weights: rows and columns, whole vectors and odd ends. Two neighbours of a channel have
/// one weight.
const WEIGHTED_SHAPES: [(&[usize], ChannelAxis); 4] = [
    (&[4, 5, 7, 9], ChannelAxis::First),
    (&[2, 3, 128, 130], ChannelAxis::First),
    (&[6, 33], ChannelAxis::Last),
    (&[2, 75, 90, 3], ChannelAxis::Last),
];

/// Shapes for activations, residuals and halves: whole vectors and odd ends, in an odd count, one
/// dispatch and three.
const FUSED_SHAPES: [(&[usize], ChannelAxis); 3] = [
    (&[2, 5, 7, 9], ChannelAxis::First),
    (&[4, 3, 64, 72], ChannelAxis::First),
    (&[2, 60, 50, 12], ChannelAxis::Last),
];

/// Every activation, by its mask and without, on every element.
const FUSED: [(Element, Activation, Mask); 5] = [
    (Element::F16, Activation::Relu, Mask::Bits),
    (Element::Bf16, Activation::LeakyRelu { slope: 0.25 }, Mask::Bits),
    (Element::Bf16, Activation::Relu, Mask::Recompute),
    (Element::F32, Activation::ClippedRelu { limit: 2.0 }, Mask::Bits),
    (Element::F32, Activation::Silu, Mask::Recompute),
];

/// Shapes for hostile data, on every path again; at least as many channels as there are [`KINDS`].
const HOSTILE_SHAPES: [(&[usize], ChannelAxis); 7] = [
    (&[3, 9, 5, 5], ChannelAxis::First),
    (&[3, 16, 8, 8], ChannelAxis::First),
    (&[2, 9, 65, 66], ChannelAxis::First),
    (&[19, 12, 7, 3], ChannelAxis::First),
    (&[196, 16, 7, 3], ChannelAxis::First),
    (&[33, 8], ChannelAxis::Last),
    (&[1501, 9], ChannelAxis::Last),
];

/// What hostile channels hold, in turn.
const KINDS: [Kind; 8] = [
    Kind::Ordinary,
    Kind::Constant,
    Kind::Nan,
    Kind::Infinite,
    Kind::Huge,
    Kind::Tiny,
    Kind::Far,
    Kind::Denormal,
];

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Ordinary,
    /// `y = β` exactly.
    Constant,
    /// A NaN as the first value.
    Nan,
    /// An infinity as the last value.
    Infinite,
    /// Squares are near the end of f32's range.
    Huge,
    Tiny,
    /// A million deviations from zero.
    Far,
    /// Below f32's normal range.
    Denormal,
}

/// What an operation must write into a slot, and the largest term that goes into each value.
struct Answer {
    slot: Slot,
    values: Vec<f64>,
    scales: Vec<f64>,
}

fn answer(slot: Slot, pairs: impl IntoIterator<Item = (f64, f64)>) -> Answer {
    let (values, scales) = pairs.into_iter().unzip();
    Answer { slot, values, scales }
}

/// Half the spacing of f32 at 1.
const UNIT: f64 = f32::EPSILON as f64 / 2.0;

/// What adding a value below the normal range may lose, so large that [`UNIT`] of it is that.
const FLUSHED: f64 = f32::MIN_POSITIVE as f64 / UNIT;

impl Gpu {
    /// Asks the device what it does with loops, NaN, denormals and sums, how it converts every half
    /// and every tie between two of them, and then for training, inference and backward, channels
    /// first in one dispatch and channels last in three, on two kinds of data:
    ///
    /// - Answers known in closed form: the values of a channel alternate between `μ − 1` and
    ///   `μ + 1`, so the variance is 1, and with ε = 3 the inverse deviation ½. One channel's μ is
    ///   2²⁴ + 1, which is no f32.
    /// - Hostile data, with the f64 oracle's answers: channels that are constant, hold a NaN or an
    ///   infinity, or are huge, tiny, far from zero or denormal, side by side.
    ///
    /// All outputs and the scratch start as NaN. A driver that has never seen the kernels compiles
    /// thirteen, which is what the time goes into;
    /// [`self_test_thorough`](Self::self_test_thorough) asks for all.
    ///
    /// # Errors
    /// [`HostError`] when the device does not answer at all. Wrong answers are no error: ask
    /// [`SelfTest::passed`].
    pub async fn self_test(&self) -> Result<SelfTest, HostError> {
        self.ask_all(&QUICK).await
    }

    /// [`self_test`](Self::self_test) on every path of all operations, odd sizes, and a channel so long
    /// that it meets a limit on loop iterations; with activations, residuals, halves, weights and
    /// accumulated gradients. The driver compiles some 180 kernels.
    ///
    /// # Errors
    /// As [`self_test`](Self::self_test).
    pub async fn self_test_thorough(&self) -> Result<SelfTest, HostError> {
        self.ask_all(&THOROUGH).await
    }

    async fn ask_all(&self, extent: &Extent) -> Result<SelfTest, HostError> {
        let (behaviour, mut checks) = self.probe().await?;
        for element in [Element::F16, Element::Bf16] {
            let [wide, narrow] = self.convert(element, false, behaviour.denormals_kept).await?;
            let checked =
                [(narrow, "rounded to the nearest, ties to even"), (wide, "widened exactly")];
            checks.extend(checked.map(|(holds, what)| Check {
                operation: "device",
                name: format!("f32 and {}: {what}", element.name()),
                error: if holds { 0.0 } else { f64::INFINITY },
                bound: 0.0,
            }));
        }
        let nan = behaviour.nan_propagates && behaviour.overflow_is_infinite;
        let everything = extent.everything;
        let mut questions =
            Questions { gpu: self, checks, nan, everything, shape: String::new(), bound: 0.0 };
        for &(shape, axis) in extent.known {
            questions.shape = format!("{shape:?} {axis:?}");
            // WGSL's accuracy of division and square root, some units in the last place.
            questions.bound = 32.0 * UNIT;
            questions.known_answers(Geometry::new(shape, axis)?, false).await?;
        }
        for &(shape, axis) in extent.weighted {
            questions.shape = format!("weighted {shape:?} {axis:?}");
            questions.bound = 32.0 * UNIT;
            questions.known_answers(Geometry::new(shape, axis)?, true).await?;
        }
        for &(shape, axis) in extent.fused {
            for (element, activation, mask) in FUSED {
                let config = Config {
                    element,
                    activation,
                    mask,
                    residual: true,
                    epsilon: 3.0,
                    update: Update::None,
                    ..Config::pytorch()
                };
                questions.shape = format!("{} {activation:?} {shape:?} {axis:?}", element.name());
                questions.fused(Geometry::new(shape, axis)?, &config).await?;
            }
        }
        for (i, &(shape, axis)) in extent.hostile.iter().enumerate() {
            let geometry = Geometry::new(shape, axis)?;
            questions.shape = format!("hostile {shape:?} {axis:?}");
            // A channel in one lane, four values an update, and the trees; each update rounds, and
            // independent roundings grow with the root of their number (four deviations).
            let n = geometry.values_per_channel() as f64;
            questions.bound = UNIT * (32.0 + 4.0 * (16.0 + n / 4.0).sqrt());
            let config = match everything {
                true => Config {
                    update: [Update::Rate(0.25), Update::Cumulative][i % 2],
                    non_finite: [NonFinite::Keep, NonFinite::Propagate][i / 2 % 2],
                    gradients: Gradients { accumulate: i % 2 == 1, ..Gradients::ALL },
                    ..Config::pytorch()
                },
                false => Config { update: Update::Rate(0.25), ..Config::pytorch() },
            };
            questions.hostile(Hostile::new(shape, axis, geometry, config)).await?;
        }
        let Questions { checks, .. } = questions;
        Ok(SelfTest { adapter: self.describe(), class: self.caps().class, behaviour, checks })
    }

    /// [`self_test`](Self::self_test), blocking.
    ///
    /// # Errors
    /// As its async twin.
    pub fn self_test_blocking(&self) -> Result<SelfTest, HostError> {
        pollster::block_on(self.self_test())
    }

    /// [`self_test_thorough`](Self::self_test_thorough), blocking.
    ///
    /// # Errors
    /// As its async twin.
    pub fn self_test_thorough_blocking(&self) -> Result<SelfTest, HostError> {
        pollster::block_on(self.self_test_thorough())
    }

    /// Asks `shaders/probe.wgsl`.
    async fn probe(&self) -> Result<(Behaviour, Vec<Check>), HostError> {
        const ASKED: u32 = 100_000;
        const FACTOR: f32 = 1.0 + 1.0 / 4096.0;
        let bits = f32::from_bits;
        // Two counts, then the numbers in the probe's order. FACTOR² is 2⁻²⁴ more than f32 has room
        // for.
        let given = [
            bits(MAX_ITERATIONS),
            bits(ASKED),
            f32::NAN,
            f32::INFINITY,
            1.0,
            f32::MAX,
            1e-40,
            f32::MIN_POSITIVE,
            FACTOR,
            -(1.0 + 1.0 / 2048.0),
            f32::NEG_INFINITY,
        ];
        let answer = self.answer_probe(shader::probe(), &given, 17, 2).await?;
        let word = |i: usize| answer.get(i).copied().unwrap_or_default();
        let [done, state] = [0, 1].map(word);
        let number = |i: usize| f32::from_bits(word(i));
        let finite_by_bits = [word(4), word(5), word(6), word(7)] == [0, 0, 1, 0];
        let enabled = self.device().features().contains(wgpu::Features::SUBGROUP);
        let info = self.device().adapter_info();
        let finished = word(2) == ASKED && word(3) == scrambled(ASKED);
        let behaviour = Behaviour {
            iterations_asked: ASKED,
            iterations_done: if finished { ASKED } else { word(2).min(ASKED - 1) },
            finite_by_bits,
            nan_by_comparison: word(8) == 1,
            nan_propagates: number(9).is_nan() && number(10).is_nan(),
            overflow_is_infinite: number(11) == f32::INFINITY,
            denormals_kept: number(12) != 0.0 && number(13) != 0.0,
            contracts: number(14) != 0.0,
            reassociates: number(15) != 0.0,
            opaque_holds: number(16) == 0.0,
            subgroup_sizes: enabled.then_some((info.subgroup_min_size, info.subgroup_max_size)),
        };
        let loops = done == MAX_ITERATIONS && state == scrambled(MAX_ITERATIONS);
        let relied_on = [
            (loops, format!("loops of {MAX_ITERATIONS} iterations run to their end")),
            (finite_by_bits, "NaN and infinity are told by their bits".into()),
            (behaviour.opaque_holds, "`opaque` blocks reassociation".into()),
        ];
        let checks = relied_on.map(|(holds, name)| {
            let error = if holds { 0.0 } else { f64::INFINITY };
            Check { operation: "device", name, error, bound: 0.0 }
        });
        Ok((behaviour, checks.into()))
    }

    /// Whether the device widens exactly, and rounds to the nearest: by the kernels' own conversions, or by
    /// the built-in ones. Asks `shaders/convert.wgsl` for all halves, for every tie between two of them and
    /// the f32 next to it, and for what is larger than any.
    pub(crate) async fn convert(
        &self,
        element: Element,
        built_in: bool,
        denormals_kept: bool,
    ) -> Result<[bool; 2], HostError> {
        const HALVES: usize = 1 << 16;
        let wide = |half: usize| widened(element, half as u16);
        let given: Vec<f32> = [0u32, 1, 2]
            .into_iter()
            .flat_map(|step| (0..HALVES).map(move |half| (step, half)))
            .map(|(step, half)| {
                // Half a unit in the last place above, by the bits of the wider format.
                let next = wide(half & 0x8000 | (half + 1) & 0x7fff);
                let tie = match next.is_finite() {
                    true => (f64::from(wide(half)) + f64::from(next)) / 2.0,
                    false if element == Element::F16 => 65_520f64.copysign(next.into()),
                    false => f64::from(f32::from_bits(0x7f7f_8000)).copysign(next.into()),
                };
                let tie = if wide(half).is_finite() { tie as f32 } else { wide(half) };
                f32::from_bits((tie.to_bits() + step).wrapping_sub(1))
            })
            .chain(
                (16..128).flat_map(|exponent| [1.0, -1.0].map(|sign| sign * 2f32.powi(exponent))),
            )
            .collect();
        let count = given.len();
        let workgroups = (count as u32).div_ceil(64);
        let answers = self
            .answer_probe(shader::convert(element, built_in), &given, 2 * count as u64, workgroups)
            .await?;
        let word = |i: usize| answers.get(i).copied().unwrap_or(u32::MAX);
        // What is below f32's normal range may be taken for 0.
        let flushed = |v: f32, zero: bool| v.is_subnormal() && zero && !denormals_kept;
        let narrow = (0..count).all(|i| {
            let (v, got) = (given[i], word(i));
            let expected = narrowed(element, v);
            let is_nan = got <= 0xffff && widened(element, got as u16).is_nan();
            let same = if v.is_nan() { is_nan } else { got == u32::from(expected) };
            same || flushed(v, got & !0x8000 == 0)
        });
        let wide = (0..HALVES).all(|half| {
            let (v, got) = (wide(half), f32::from_bits(word(count + half)));
            let same = v.to_bits() == got.to_bits() || v.is_nan() && got.is_nan();
            same || flushed(v, got == 0.0)
        });
        Ok([wide, narrow])
    }

    /// Runs one of `self_test`'s own shaders, which gives so many `words`.
    async fn answer_probe(
        &self,
        source: String,
        given: &[f32],
        words: u64,
        workgroups: u32,
    ) -> Result<Vec<u32>, HostError> {
        let device = self.device();
        let label = Some("batchnorm::probe");
        let given = bytemuck::cast_slice(given);
        let given = self.memory(Slot::X, size_of_val(given) as u64, given)?;
        let answer = self.memory(Slot::Y, 4 * words, &vec![f32::NAN.to_bits(); words as usize])?;
        let scopes = Scopes::push(device);
        // New memory is zero, and of the parameters only `zero` is looked at.
        let params = device.create_buffer(&wgpu::BufferDescriptor {
            label,
            size: size_of::<Params>() as u64,
            usage: wgpu::BufferUsages::UNIFORM,
            mapped_at_creation: false,
        });
        let (source, _) = self.kernels().as_compiled(source);
        let source = wgpu::ShaderSource::Wgsl(source.into());
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor { label, source });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label,
            layout: None,
            module: &module,
            entry_point: Some(shader::ENTRY_POINT),
            compilation_options: Default::default(),
            cache: None,
        });
        let buffers = [&params, &given, &answer];
        let entries: Vec<_> = (0..)
            .zip(buffers)
            .map(|(binding, buffer)| wgpu::BindGroupEntry {
                binding,
                resource: buffer.as_entire_binding(),
            })
            .collect();
        let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label,
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        let mut encoder = device.create_command_encoder(&Default::default());
        {
            let descriptor = wgpu::ComputePassDescriptor { label, timestamp_writes: None };
            let mut pass = encoder.begin_compute_pass(&descriptor);
            pass.set_pipeline(&pipeline);
            pass.set_bind_group(0, &group, &[]);
            pass.dispatch_workgroups(workgroups, 1, 1);
        }
        if let Some(message) = scopes.pop() {
            return Err(HostError::Device { message });
        }
        let answers = self.read(encoder, &[(Some(&answer), 4 * words)]).await?;
        Ok(answers.into_iter().next().unwrap_or_default())
    }
}

fn widened(element: Element, half: u16) -> f32 {
    match element {
        Element::F16 => half::f16::from_bits(half).to_f32(),
        _ => half::bf16::from_bits(half).to_f32(),
    }
}

fn narrowed(element: Element, v: f32) -> u16 {
    match element {
        Element::F16 => half::f16::from_f32(v).to_bits(),
        _ => half::bf16::from_f32(v).to_bits(),
    }
}

/// What the probe's loop leaves.
fn scrambled(count: u32) -> u32 {
    (0..count).fold(count, |state, _| {
        (state ^ (state >> 7)).wrapping_mul(1_664_525).wrapping_add(1_013_904_223)
    })
}

/// Asks a device and keeps what it answers.
struct Questions<'a> {
    gpu: &'a Gpu,
    checks: Vec<Check>,
    /// Whether what becomes of NaN and infinity can be compared.
    nan: bool,
    /// See [`Extent`].
    everything: bool,
    shape: String,
    bound: f64,
}

impl Questions<'_> {
    /// Runs a plan and compares. What `inputs` does not name starts as NaN.
    async fn ask<O: Bind>(
        &mut self,
        plan: Plan<O>,
        inputs: &[(Slot, Source<'_>)],
        answers: &[Answer],
    ) -> Result<(), HostError> {
        let slots = plan.slots();
        let (element, len) = (plan.config().element, plan.geometry().len() as usize);
        let values = |slot: Slot, size: u64| if slot.is_tensor() { len } else { size as usize / 4 };
        let largest = slots.iter().map(|&(slot, size)| values(slot, size)).max();
        let poison = vec![f32::NAN; largest.unwrap_or(0)];
        let mut inputs = inputs.to_vec();
        for (slot, size) in slots {
            if inputs.iter().all(|(given, _)| *given != slot) {
                inputs.push((slot, Source::Floats(&poison[..values(slot, size)])));
            }
        }
        let outputs: Vec<Slot> = answers.iter().map(|answer| answer.slot).collect();
        let got = self.gpu.run(plan, &inputs, &outputs).await?;
        for (answer, got) in answers.iter().zip(got) {
            // Half the spacing of the element.
            let stored = match element {
                _ if !answer.slot.is_tensor() => 0.0,
                Element::F32 => 0.0,
                Element::F16 => 1.0 / 2048.0,
                Element::Bf16 => 1.0 / 256.0,
            };
            self.checks.push(Check {
                operation: O::NAME,
                name: format!("{} {}", self.shape, answer.slot),
                error: worst_error(answer, &got, self.nan),
                bound: self.bound + stored,
            });
        }
        Ok(())
    }

    /// If they are weighted, two neighbours that make up the mean have one weight; where it is 0, x is
    /// a NaN and dy 0.
    async fn known_answers(&mut self, g: Geometry, weights: bool) -> Result<(), HostError> {
        let config = Config {
            epsilon: 3.0,
            update: Update::Rate(0.5),
            running_variance: RunningVariance::Population,
            weights,
            ..Config::pytorch()
        };
        let (channels, inner) = (g.channels() as usize, g.inner() as usize);
        // Seven: columns are seldom so many rows, or a multiple of them, side by side.
        const WEIGHTS: [f64; 7] = [0.0, 2.0, 0.5, 1.0, 0.0, 4.0, 0.25];
        let of_place = |place: usize| if weights { WEIGHTS[place / 2 % 7] } else { 1.0 };
        let weight: Vec<f64> = (0..g.values_per_channel() as usize).map(of_place).collect();
        // Values of a channel that are looked at, and their weight.
        let n = weight.iter().filter(|w| **w > 0.0).count() as f64;
        let total: f64 = weight.iter().sum();
        // Channel, sign (±1, alternating within a channel) and weight of every value.
        let places: Vec<(usize, f64, f64)> = (0..g.len() as usize)
            .map(|i| {
                let place = i / (inner * channels) * inner + i % inner;
                let sign = if place % 2 == 0 { -1.0 } else { 1.0 };
                (i / inner % channels, sign, weight[place])
            })
            .collect();
        // Where there is no weight, `empty`.
        let per_value = |empty: f64, f: &dyn Fn(usize, f64, f64) -> f64| -> Vec<f64> {
            let one = |&(c, s, w): &(usize, f64, f64)| if w > 0.0 { f(c, s, w) } else { empty };
            places.iter().map(one).collect()
        };
        let per_channel = |f: &dyn Fn(usize) -> f64| (0..channels).map(f).collect::<Vec<f64>>();
        let gamma = |c: usize| 2.0 + (c % 3) as f64;
        let beta = |c: usize| (c % 5) as f64 - 1.0;
        let mean = |c: usize| if c == 1 { 16_777_217.0 } else { 1000.0 * c as f64 };
        // What f32 has room for.
        let narrow = |c: usize| f64::from(mean(c) as f32);

        let x = floats(&per_value(f64::NAN, &|c, s, _| mean(c) + s));
        let dy = floats(&per_value(0.0, &|_, s, _| 2.0 + s));
        let weight = floats(&weight);
        let gammas = floats(&per_channel(&gamma));
        let betas = floats(&per_channel(&beta));
        let means = floats(&per_channel(&mean));
        let ones = vec![1.0; channels];
        let rests = per_channel(&|c| mean(c) - narrow(c));
        let counts = vec![total as f32; channels];
        let saved = [means.clone(), floats(&rests), vec![0.5; channels], counts].concat();
        let mut inputs = vec![
            (Slot::X, Source::Floats(&x)),
            (Slot::Dy, Source::Floats(&dy)),
            (Slot::Gamma, Source::Floats(&gammas)),
            (Slot::Beta, Source::Floats(&betas)),
            (Slot::RunningMean, Source::Floats(&means)),
            (Slot::RunningVar, Source::Floats(&ones)),
        ];
        if weights {
            inputs.push((Slot::Weights, Source::Floats(&weight)));
        }
        // Terms are of the size of the deviation, 1, and not of the mean.
        let relative = |slot, values: Vec<f64>| {
            let largest = values.iter().fold(1.0, |m: f64, v| m.max(v.abs()));
            answer(slot, values.into_iter().map(|v| (v, largest)))
        };
        let statistics = |slot, third| {
            answer(
                slot,
                (0..3 * channels).map(|i| match i / channels {
                    0 => (mean(i), 1.0),
                    1 => (third, 1.0),
                    _ => (total, 0.0),
                }),
            )
        };
        let y = per_value(f64::NAN, &|c, s, _| gamma(c) * 0.5 * s + beta(c));
        let caps = self.gpu.caps();
        let answers = [
            relative(Slot::Y, y),
            statistics(Slot::Saved, 0.5),
            answer(Slot::RunningMean, (0..channels).map(|c| (narrow(c), narrow(c).max(1.0)))),
            relative(Slot::RunningVar, vec![1.0; channels]),
        ];
        self.ask(Plan::<Train>::new(g, &config, caps)?, &inputs, &answers).await?;

        if self.everything {
            let answers = [statistics(Slot::Moments, 1.0)];
            self.ask(Plan::<Statistics>::new(g, &config, caps)?, &inputs, &answers).await?;
        }

        // Σdy is 2n, and Σdy·x̂ n/2.
        let dx = per_value(0.0, &|c, s, w| {
            gamma(c) * 0.5 * (2.0 + s - w / total * (2.0 * n + 0.5 * s * (n / 2.0)))
        });
        let dgamma = vec![n / 2.0; channels];
        let dbeta = vec![2.0 * n; channels];
        let answers = [
            relative(Slot::Dx, dx),
            relative(Slot::Dgamma, dgamma),
            relative(Slot::Dbeta, dbeta.clone()),
        ];
        inputs.push((Slot::Saved, Source::Floats(&saved)));
        self.ask(Plan::<Backward>::new(g, &config, caps)?, &inputs, &answers).await?;
        // What follows knows no weights.
        if weights {
            return Ok(());
        }

        let off = |c: usize, s: f64| mean(c) + s - narrow(c);
        let y = per_value(0.0, &|c, s, _| gamma(c) * 0.5 * off(c, s) + beta(c));
        let answers = [relative(Slot::Y, y)];
        self.ask(Plan::<Infer>::new(g, &config, caps)?, &inputs, &answers).await?;
        if !self.everything {
            return Ok(());
        }

        let dx = per_value(0.0, &|c, s, _| gamma(c) * 0.5 * (2.0 + s));
        let dgamma = per_channel(&|c| (1.0 + 2.0 * (mean(c) - narrow(c))) * n / 2.0);
        let answers =
            [relative(Slot::Dx, dx), relative(Slot::Dgamma, dgamma), relative(Slot::Dbeta, dbeta)];
        self.ask(Plan::<FrozenBackward>::new(g, &config, caps)?, &inputs, &answers).await
    }

    /// Activations and residuals by formulas: x is μ ± 1 with μ a small integer, and z keeps what the
    /// activation takes at least ¼ from every corner. Halves hold all of it exactly.
    async fn fused(&mut self, g: Geometry, config: &Config) -> Result<(), HostError> {
        let (channels, inner) = (g.channels() as usize, g.inner() as usize);
        let n = g.values_per_channel() as f64;
        // As hostile channels; and an exponential, of some 20 units in the last place.
        self.bound = UNIT * (96.0 + 4.0 * (16.0 + n / 4.0).sqrt());
        let gamma = |c: usize| 2.0 + (c % 3) as f64;
        let beta = |c: usize| (c % 5) as f64 - 1.0;
        let mean = |c: usize| (c % 7) as f64;
        let places: Vec<(usize, f64, f64)> = (0..g.len() as usize)
            .map(|i| {
                let place = i / (inner * channels) * inner + i % inner;
                let sign = if place % 2 == 0 { -1.0 } else { 1.0 };
                (i / inner % channels, sign, (i % 11) as f64 / 2.0 - 3.75)
            })
            .collect();
        let before = |&(c, s, z): &(usize, f64, f64)| gamma(c) * 0.5 * s + beta(c) + z;
        let slope = |v: f64| match config.activation {
            Activation::LeakyRelu { slope } if v < 0.0 => slope,
            Activation::ClippedRelu { limit } => f64::from(u8::from(v > 0.0 && v < limit)),
            Activation::Silu => {
                let s = 1.0 / (1.0 + (-v).exp());
                s * (1.0 + v * (1.0 - s))
            }
            Activation::Relu => f64::from(u8::from(v > 0.0)),
            _ => 1.0,
        };
        let act = |v: f64| match config.activation {
            Activation::ClippedRelu { limit } => v.clamp(0.0, limit),
            Activation::Silu => v / (1.0 + (-v).exp()),
            _ => v * slope(v),
        };
        let per_value =
            |f: &dyn Fn(&(usize, f64, f64)) -> f64| -> Vec<f64> { places.iter().map(f).collect() };
        let dz = |place: &(usize, f64, f64)| (2.0 + place.1) * slope(before(place));
        let mut sums = vec![[0.0; 2]; channels];
        for place in &places {
            let (c, s, _) = *place;
            sums[c] = [sums[c][0] + dz(place), sums[c][1] + dz(place) * s];
        }
        let dx = |place: &(usize, f64, f64)| {
            let (c, s, _) = *place;
            gamma(c) * 0.5 * (dz(place) - sums[c][0] / n - s * 0.25 * sums[c][1] / n)
        };
        let frozen_dx = |place: &(usize, f64, f64)| gamma(place.0) * 0.5 * dz(place);
        let mut open = vec![0u32; (g.len() as usize).div_ceil(32)];
        for (i, place) in places.iter().enumerate() {
            let v = before(place);
            let limit = match config.activation {
                Activation::ClippedRelu { limit } => limit,
                _ => f64::INFINITY,
            };
            open[i / 32] |= u32::from(v > 0.0 && v < limit) << (i % 32);
        }
        // Every bit has to be flipped; those past the end stay.
        let closed: Vec<f32> = open.iter().map(|word| f32::from_bits(!word)).collect();
        let past = (32 - g.len() as u32 % 32) % 32;
        let mut kept = open.clone();
        if let Some(last) = kept.last_mut().filter(|_| past > 0) {
            *last |= u32::MAX << (32 - past);
        }
        let given: Vec<f32> = open.iter().map(|word| f32::from_bits(*word)).collect();

        let x = floats(&per_value(&|&(c, s, _)| mean(c) + s));
        let dy = floats(&per_value(&|&(_, s, _)| 2.0 + s));
        let z = floats(&per_value(&|&(_, _, z)| z));
        let of_channel =
            |f: &dyn Fn(usize) -> f64| -> Vec<f32> { (0..channels).map(|c| f(c) as f32).collect() };
        let (gammas, betas) = (of_channel(&gamma), of_channel(&beta));
        let (means, ones) = (of_channel(&mean), vec![1.0; channels]);
        let counts = vec![n as f32; channels];
        let saved = [means.clone(), vec![0.0; channels], vec![0.5; channels], counts].concat();
        let mut inputs = vec![
            (Slot::X, Source::Floats(&x)),
            (Slot::Z, Source::Floats(&z)),
            (Slot::Dy, Source::Floats(&dy)),
            (Slot::Gamma, Source::Floats(&gammas)),
            (Slot::Beta, Source::Floats(&betas)),
            (Slot::RunningMean, Source::Floats(&means)),
            (Slot::RunningVar, Source::Floats(&ones)),
            (Slot::Mask, Source::Floats(&closed)),
        ];
        let relative = |slot, values: Vec<f64>| {
            let largest = values.iter().fold(1.0, |m: f64, v| m.max(v.abs()));
            answer(slot, values.into_iter().map(|v| (v, largest)))
        };
        // Terms of sums are 3 at most.
        let summed = |slot, i: usize, factor: f64| {
            answer(slot, sums.iter().map(|sums| (sums[i] * factor, 3.0 * n)))
        };
        let mut forward = vec![relative(Slot::Y, per_value(&|place| act(before(place))))];
        if config.mask == Mask::Bits {
            forward.push(answer(Slot::Mask, kept.iter().map(|word| (f64::from(*word), 1.0))));
        }
        let caps = self.gpu.caps();
        self.ask(Plan::<Train>::new(g, config, caps)?, &inputs, &forward).await?;
        self.ask(Plan::<Infer>::new(g, config, caps)?, &inputs, &forward).await?;

        inputs.retain(|(slot, _)| *slot != Slot::Mask);
        inputs.push((Slot::Mask, Source::Floats(&given)));
        inputs.push((Slot::Saved, Source::Floats(&saved)));
        let gradients = |dx: &dyn Fn(&(usize, f64, f64)) -> f64| {
            [
                relative(Slot::Dx, per_value(dx)),
                relative(Slot::Dz, per_value(&dz)),
                summed(Slot::Dgamma, 1, 0.5),
                summed(Slot::Dbeta, 0, 1.0),
            ]
        };
        self.ask(Plan::<Backward>::new(g, config, caps)?, &inputs, &gradients(&dx)).await?;
        let frozen = gradients(&frozen_dx);
        self.ask(Plan::<FrozenBackward>::new(g, config, caps)?, &inputs, &frozen).await
    }

    async fn hostile(&mut self, h: Hostile) -> Result<(), HostError> {
        let mut inputs = vec![
            (Slot::X, Source::Floats(&h.x)),
            (Slot::Dy, Source::Floats(&h.dy)),
            (Slot::Gamma, Source::Floats(&h.gamma)),
            (Slot::Beta, Source::Floats(&h.beta)),
            (Slot::RunningMean, Source::Floats(&h.running_mean)),
            (Slot::RunningVar, Source::Floats(&h.running_var)),
            (Slot::Batches, Source::Count(BATCHES)),
        ];
        let (g, config, caps) = (h.geometry, h.config.clone(), self.gpu.caps());
        let (forward, gradients) = h.training();
        self.ask(Plan::<Train>::new(g, &config, caps)?, &inputs, &forward).await?;
        if self.everything {
            let answers = [h.moments()];
            self.ask(Plan::<Statistics>::new(g, &config, caps)?, &inputs, &answers).await?;
        }
        let (inference, frozen) = h.frozen();
        self.ask(Plan::<Infer>::new(g, &config, caps)?, &inputs, &inference).await?;

        let saved = h.saved();
        let start = vec![1.5; h.channels];
        inputs.push((Slot::Saved, Source::Floats(&saved)));
        if config.gradients.accumulate {
            inputs.push((Slot::Dgamma, Source::Floats(&start)));
            inputs.push((Slot::Dbeta, Source::Floats(&start)));
        }
        self.ask(Plan::<Backward>::new(g, &config, caps)?, &inputs, &gradients).await?;
        if !self.everything {
            return Ok(());
        }
        self.ask(Plan::<FrozenBackward>::new(g, &config, caps)?, &inputs, &frozen).await
    }
}

fn floats(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&v| v as f32).collect()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

/// Values as they are compared: the mean and its remainder as one number.
fn compared(slot: Slot, got: &[f32]) -> Vec<f64> {
    let c = got.len() / 4;
    match slot {
        Slot::Batches | Slot::Mask => got.iter().map(|v| f64::from(v.to_bits())).collect(),
        // An infinite mean has no remainder.
        Slot::Saved | Slot::Moments => (0..c)
            .map(|i| {
                f64::from(got[i])
                    + Some(f64::from(got[c + i])).filter(|r| r.is_finite()).unwrap_or(0.0)
            })
            .chain(wide(&got[2 * c..]))
            .collect(),
        _ => wide(got),
    }
}

fn worst_error(answer: &Answer, got: &[f32], nan: bool) -> f64 {
    let got = compared(answer.slot, got);
    if got.len() != answer.values.len() {
        return f64::INFINITY;
    }
    let mut worst = 0.0;
    for ((&a, &e), &scale) in got.iter().zip(&answer.values).zip(&answer.scales) {
        let error = match (a - e).abs() / scale {
            _ if a == e || a.is_nan() && e.is_nan() => 0.0,
            _ if !e.is_finite() && !nan => 0.0,
            error if error.is_nan() || !e.is_finite() => f64::INFINITY,
            error => error,
        };
        worst = f64::max(worst, error);
    }
    worst
}

/// Batches seen before.
const BATCHES: u32 = 3;

/// One tensor of hostile channels.
struct Hostile {
    geometry: Geometry,
    shape: Vec<usize>,
    axis: ChannelAxis,
    config: Config,
    channels: usize,
    x: Vec<f32>,
    dy: Vec<f32>,
    gamma: Vec<f32>,
    beta: Vec<f32>,
    running_mean: Vec<f32>,
    running_var: Vec<f32>,
}

/// The sizes of a channel's terms, where they are finite.
#[derive(Clone, Copy, Default)]
struct Size {
    /// max |x − center|, for the batch relative to the first value.
    reach: f64,
    /// max |dy|
    gradient: f64,
    /// Σ |dy|
    sum: f64,
}

impl Hostile {
    fn new(shape: &[usize], axis: ChannelAxis, geometry: Geometry, config: Config) -> Self {
        let (channels, inner) = (geometry.channels() as usize, geometry.inner() as usize);
        let len = geometry.len() as usize;
        let n = geometry.values_per_channel() as usize;
        let mut state = len as u64;
        // Uniform in −1..1.
        let mut random = move || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / (1u64 << 23) as f32) - 1.0
        };
        let x = (0..len)
            .map(|i| {
                let place = i / (inner * channels) * inner + i % inner;
                let r = random();
                match KINDS[i / inner % channels % KINDS.len()] {
                    Kind::Ordinary => 3.0 + r,
                    Kind::Constant => 7.25,
                    Kind::Nan if place == 0 => f32::NAN,
                    Kind::Infinite if place == n - 1 => f32::INFINITY,
                    Kind::Nan | Kind::Infinite => r,
                    Kind::Huge => r * 4e18,
                    Kind::Tiny => r * 1e-15,
                    Kind::Far => 1e6 + r,
                    Kind::Denormal => r * 1e-40,
                }
            })
            .collect();
        let dy = (0..len).map(|_| 0.125 + random()).collect();
        let mut per_channel = |from: f32| (0..channels).map(|_| from + 0.5 * random()).collect();
        Self {
            gamma: per_channel(1.0),
            beta: per_channel(0.0),
            running_mean: per_channel(0.5),
            running_var: per_channel(1.0),
            shape: shape.to_vec(),
            geometry,
            axis,
            config,
            channels,
            x,
            dy,
        }
    }

    fn channel(&self, i: usize) -> usize {
        i / self.geometry.inner() as usize % self.channels
    }

    fn tensor(&self, values: &[f32]) -> ArrayD<f64> {
        ArrayD::from_shape_vec(self.shape.clone(), wide(values))
            .expect("bug: as many values as the shape has")
    }

    fn running(&self) -> Running {
        Running {
            mean: wide(&self.running_mean).into(),
            var: wide(&self.running_var).into(),
            batches: BATCHES.into(),
        }
    }

    /// Asks the oracle.
    fn oracle<T>(
        &self,
        question: impl FnOnce(&Input<'_>, &Running) -> Result<T, reference::ReferenceError>,
    ) -> T {
        let (gamma, beta) = (wide(&self.gamma), wide(&self.beta));
        let x = self.tensor(&self.x);
        let input = Input {
            gamma: Some(ArrayView1::from(&gamma)),
            beta: Some(ArrayView1::from(&beta)),
            ..Input::new(x.view(), self.axis)
        };
        question(&input, &self.running()).expect("bug: the oracle takes these shapes")
    }

    /// Sizes relative to each channel's first value, or to `centers`.
    fn sizes(&self, centers: Option<&[f32]>) -> Vec<Size> {
        let inner = self.geometry.inner() as usize;
        let mut sizes = vec![Size::default(); self.channels];
        for (i, (&x, &dy)) in self.x.iter().zip(&self.dy).enumerate() {
            let c = self.channel(i);
            let first = self.x[c * inner];
            let center = centers.map_or(if first.is_finite() { first } else { 0.0 }, |m| m[c]);
            let off = (f64::from(x) - f64::from(center)).abs();
            let size = &mut sizes[c];
            if off.is_finite() {
                size.reach = size.reach.max(off);
            }
            size.gradient = size.gradient.max(f64::from(dy.abs()));
            size.sum += f64::from(dy.abs());
        }
        for size in &mut sizes {
            // A constant channel has no error at all.
            if size.reach > 0.0 {
                size.reach += FLUSHED;
            }
        }
        sizes
    }

    fn moments(&self) -> Answer {
        let batch = self.oracle(|input, running| reference::train(input, running, &self.config));
        let sizes = self.sizes(None);
        let mean = (0..self.channels).map(|c| (batch.mean[c], sizes[c].reach));
        let variance =
            (0..self.channels).map(|c| (batch.var[c], spread(batch.var[c], sizes[c].reach)));
        answer(Slot::Moments, mean.chain(variance).chain(self.counts()))
    }

    /// Exact, in every channel.
    fn counts(&self) -> impl Iterator<Item = (f64, f64)> + use<> {
        let n = self.geometry.values_per_channel() as f64;
        (0..self.channels).map(move |_| (n, 0.0))
    }

    /// What the oracle would have saved.
    fn saved(&self) -> Vec<f32> {
        let batch = self.oracle(|input, running| reference::train(input, running, &self.config));
        let mean = floats(&batch.mean.to_vec());
        let rest =
            batch.mean.iter().zip(&mean).map(|(whole, &mean)| (whole - f64::from(mean)) as f32);
        let rest: Vec<f32> = rest.collect();
        let count = self.counts().map(|(n, _)| n as f32).collect();
        [mean, rest, floats(&batch.inv_std.to_vec()), count].concat()
    }

    /// What a training forward and backward must give.
    fn training(&self) -> ([Answer; 5], [Answer; 3]) {
        let batch = self.oracle(|input, running| reference::train(input, running, &self.config));
        let dy = self.tensor(&self.dy);
        let back = self.oracle(|input, _| reference::backward(input, dy.view(), &self.config));
        let sizes = self.sizes(None);
        // In deviations; an error of the mean or the deviation counts so many times.
        let reach = |c: usize| sizes[c].reach * finite(batch.inv_std[c]);
        let y = batch.y.iter().enumerate().map(|(i, &y)| {
            let c = self.channel(i);
            let gamma = f64::from(self.gamma[c].abs());
            let own = if reach(c) > 0.0 { f64::from(self.beta[c].abs()) } else { 0.0 };
            (y, gamma * reach(c) * (2.0 + reach(c)) + own)
        });
        let channels = 0..self.channels;
        let mean = channels.clone().map(|c| (batch.mean[c], sizes[c].reach));
        let inv_std = channels
            .clone()
            .map(|c| (batch.inv_std[c], finite(batch.inv_std[c]) * (1.0 + reach(c))));
        let running_mean = channels.clone().map(|c| {
            let terms = f64::from(self.running_mean[c].abs()) + finite(batch.mean[c]).abs();
            (batch.running.mean[c], sizes[c].reach + terms)
        });
        let running_var = channels.clone().map(|c| {
            let old = f64::from(self.running_var[c]);
            (batch.running.var[c], old + 2.0 * spread(batch.var[c], sizes[c].reach))
        });
        let batches = if self.config.update == Update::Cumulative { BATCHES + 1 } else { 0 };
        let forward = [
            answer(Slot::Y, y),
            answer(Slot::Saved, mean.chain(inv_std).chain(self.counts())),
            answer(Slot::RunningMean, running_mean),
            answer(Slot::RunningVar, running_var),
            // Zero where the slot is not there.
            answer(Slot::Batches, [(f64::from(batches), 0.0)]),
        ];
        let dx = back.dx.iter().enumerate().map(|(i, &dx)| {
            let c = self.channel(i);
            let slope = f64::from(self.gamma[c].abs()) * finite(batch.inv_std[c]);
            (dx, slope * sizes[c].gradient * (2.0 + reach(c)).powi(2))
        });
        let dgamma = channels.clone().map(|c| {
            (
                back.dgamma[c] + self.start(),
                sizes[c].sum * reach(c) * (2.0 + reach(c)) + self.start(),
            )
        });
        let dbeta = channels.map(|c| (back.dbeta[c] + self.start(), sizes[c].sum + self.start()));
        let gradients =
            [answer(Slot::Dx, dx), answer(Slot::Dgamma, dgamma), answer(Slot::Dbeta, dbeta)];
        (forward, gradients)
    }

    /// What an inference and a backward with frozen statistics must give.
    fn frozen(&self) -> ([Answer; 1], [Answer; 3]) {
        let y = self.oracle(|input, running| reference::infer(input, running, &self.config));
        let dy = self.tensor(&self.dy);
        let back = self.oracle(|input, running| {
            reference::frozen_backward(input, dy.view(), running, &self.config)
        });
        let sizes = self.sizes(Some(&self.running_mean));
        let slope = |c: usize| 1.0 / (f64::from(self.running_var[c]) + self.config.epsilon).sqrt();
        let gain = |c: usize| f64::from(self.gamma[c].abs()) * slope(c);
        let y = y.iter().enumerate().map(|(i, &y)| {
            let c = self.channel(i);
            (y, gain(c) * sizes[c].reach + f64::from(self.beta[c].abs()))
        });
        let dx = back.dx.iter().enumerate().map(|(i, &dx)| {
            let c = self.channel(i);
            (dx, gain(c) * sizes[c].gradient)
        });
        let dgamma = (0..self.channels).map(|c| {
            let terms = sizes[c].sum * sizes[c].reach * slope(c);
            (back.dgamma[c] + self.start(), terms + self.start())
        });
        let dbeta =
            (0..self.channels).map(|c| (back.dbeta[c] + self.start(), sizes[c].sum + self.start()));
        (
            [answer(Slot::Y, y)],
            [answer(Slot::Dx, dx), answer(Slot::Dgamma, dgamma), answer(Slot::Dbeta, dbeta)],
        )
    }

    /// What accumulated gradients start with.
    fn start(&self) -> f64 {
        if self.config.gradients.accumulate { 1.5 } else { 0.0 }
    }
}

fn finite(v: f64) -> f64 {
    if v.is_finite() { v } else { 0.0 }
}

/// The terms of a variance: its own, and those that an error of the mean moves.
fn spread(variance: f64, reach: f64) -> f64 {
    let variance = finite(variance);
    2.0 * (variance + reach * variance.sqrt()) + if reach > 0.0 { FLUSHED } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::caps::Caps;
    use crate::kernels::KernelOptions;
    use crate::plan::{Operation, Variant};

    fn gpu() -> Option<Gpu> {
        match Gpu::new_blocking() {
            Ok(gpu) => Some(gpu),
            Err(error) => {
                let required = std::env::var("BATCHNORM_REQUIRE_GPU").is_ok_and(|v| v == "1");
                assert!(!required, "BATCHNORM_REQUIRE_GPU is set, but: {error}");
                eprintln!("SKIP: {error}");
                None
            }
        }
    }

    /// On devices of both classes, the shapes take every kernel, and with both vector widths
    /// wherever a kernel has them.
    #[test]
    fn every_kernel_is_asked() {
        fn add<O: Operation>(
            found: &mut HashSet<(&'static str, u32)>,
            g: Geometry,
            weights: bool,
            caps: &Caps,
        ) {
            let config = Config { update: Update::Cumulative, weights, ..Config::pytorch() };
            let plan = Plan::<O>::new(g, &config, caps).unwrap();
            found.extend(plan.stages().iter().map(|s| (s.variant.kernel.name(), s.variant.vector)));
        }
        for class in [Class::Software, Class::Hardware] {
            let caps = Caps { class, ..Caps::webgpu_default() };
            let mut found = HashSet::new();
            let plain = SHAPES.iter().chain(&HOSTILE_SHAPES).map(|shape| (shape, false));
            for (&(shape, axis), weights) in plain.chain(WEIGHTED_SHAPES.iter().map(|s| (s, true)))
            {
                let g = Geometry::new(shape, axis).unwrap();
                add::<Train>(&mut found, g, weights, &caps);
                add::<Statistics>(&mut found, g, weights, &caps);
                add::<Infer>(&mut found, g, weights, &caps);
                add::<Backward>(&mut found, g, weights, &caps);
                add::<FrozenBackward>(&mut found, g, weights, &caps);
            }
            let missing: Vec<_> = shader_names()
                .flat_map(|name| [(name, 1), (name, 4)])
                .filter(|kernel| !found.contains(kernel))
                .collect();
            assert!(missing.is_empty(), "{class:?}: {missing:?}");
        }
    }

    /// What a driver compiles for the quick self-test, besides the device's own three questions.
    #[test]
    fn quick_questions_need_ten_kernels() {
        fn add<O: Operation>(found: &mut HashSet<Variant>, g: Geometry, caps: &Caps) {
            let plan = Plan::<O>::new(g, &Config::pytorch(), caps).unwrap();
            found.extend(plan.stages().iter().map(|stage| stage.variant));
        }
        for class in [Class::Software, Class::Hardware] {
            let caps = Caps { class, ..Caps::webgpu_default() };
            let mut found = HashSet::new();
            for (shape, axis) in QUICK_SHAPES {
                let g = Geometry::new(shape, axis).unwrap();
                add::<Train>(&mut found, g, &caps);
                add::<Infer>(&mut found, g, &caps);
                add::<Backward>(&mut found, g, &caps);
            }
            assert_eq!(found.len(), 10, "{class:?}: {found:?}");
        }
    }

    fn shader_names() -> impl Iterator<Item = &'static str> {
        [
            "rows_statistics",
            "columns_statistics",
            "finalize_statistics",
            "rows_normalize",
            "columns_normalize",
            "rows_forward",
            "columns_forward",
            "rows_reduce",
            "columns_reduce",
            "finalize_gradients",
            "rows_gradient",
            "columns_gradient",
            "rows_backward",
            "columns_backward",
            "rows_frozen",
            "columns_frozen",
            "rows_weighted_statistics",
            "columns_weighted_statistics",
            "merge_parts",
        ]
        .into_iter()
    }

    /// Adapters with one thing broken each: what the driver would have to get wrong, and the
    /// operation that must notice.
    #[rustfmt::skip]
    const BROKEN: [(&str, [&str; 2], &str); 95] = [
        ("a reduction that drops a lane", ["return merge(m, two_moments(lane + 2u * distance, distance));", "return m;"], "forward"),
        ("a reduction of sums that drops a lane", ["return plus_sums(s, two_sums(lane + 2u * distance, distance));", "return s;"], "backward"),
        ("a wrong merge weight", ["f32(b.count) / f32(count)", "0.5"], "forward"),
        ("a merge that forgets how far the means lie apart", ["(b.variance - a.variance) + apart", "(b.variance - a.variance) + 0.0 * apart"], "forward"),
        ("a dropped last chunk of a channel", ["return params.chunk_count * params.per_chunk;", "return max(params.chunk_count, 2u) * params.per_chunk - params.per_chunk;"], "statistics"),
        ("a dropped last step of a row", ["let end = min(begin + params.chunk, params.step_count);", "let end = min(begin + params.chunk, params.step_count - 1u);"], "inference"),
        ("a dropped tail of columns", ["select(0u, 1u, place * WIDTH < params.tail)", "0u"], "inference"),
        ("a loop that ends early", ["for (; step < range.end; step = step + PAIR * LANES) {\n        for (var i = 0u", "for (; step < min(range.end, range.begin + 7u); step = step + PAIR * LANES) {\n        for (var i = 0u"], "forward"),
        ("no barrier: a lane reads before its neighbour writes", ["moments_at(lane + distance));", "moments_at(lane));"], "forward"),
        ("no barrier in sums", ["let other = lane + distance;\n    return Sums", "let other = lane;\n    return Sums"], "backward"),
        ("lanes that get what their neighbours merge", ["let result = lane & (apart - 1u);", "let result = lane & (apart - 1u) & 0u;"], "statistics"),
        ("stale scratch: the second plane is not written", ["store_scratch(params.plane + at, m.variance);", ""], "statistics"),
        ("stale scratch: merged sums are not written", ["store_scratch(at, s.dy);\n        store_scratch(at + params.sums_plane, s.dyx);", ""], "backward"),
        ("stale scratch: partials of columns are not written", ["store_scratch(params.plane + at + i, before.y + sum_of_channel(strip, s.dyx, i));", ""], "backward"),
        ("gamma and beta swapped", ["let beta = V(load_beta(parameter));", "let beta = V(load_gamma(parameter));"], "inference"),
        ("gamma of a neighbour", ["let gamma = V(load_gamma(parameter));", "let gamma = V(load_gamma(parameter ^ select(0u, 1u, parameter + 1u < params.channel_count)));"], "inference"),
        ("epsilon outside of the root", ["1.0 / sqrt(m.variance + params.epsilon)", "1.0 / (sqrt(m.variance) + params.epsilon)"], "forward"),
        ("epsilon outside of the root of the running variance", ["1.0 / sqrt(variance + params.epsilon)", "1.0 / (sqrt(variance) + params.epsilon)"], "inference"),
        ("a variance that cancels: no shift", ["return select(V(0.0), k, are_finite(k));", "return V(0.0);"], "forward"),
        ("a mean without its remainder", ["let rest = opaque(k - mean) + m.mean;", "let rest = 0.0;"], "forward"),
        ("reassociation: opaque does nothing", ["let rest = opaque(k - mean) + m.mean;", "let rest = opaque((k - mean) + (m.mean - m.mean));"], "forward"),
        ("NaN by its bits is folded", ["return (bitcast<u32>(v) & 0x7f800000u) != 0x7f800000u;", "return true;"], "device"),
        ("opaque is seen through", ["return bitcast<f32>(bitcast<u32>(v) ^ params.zero);", "return bitcast<f32>(bitcast<u32>(v) ^ (params.zero & 0u));"], "device"),
        ("loops end silently", ["done < asked", "done < min(asked, 10000u)"], "device"),
        ("running statistics by the wrong weight", ["moved(load_running_mean(channel), keep, center.mean, rate, rate)", "moved(load_running_mean(channel), rate, center.mean, keep, keep)"], "forward"),
        ("a biased running variance", ["rate * variance_factor(f32(m.count))", "rate"], "forward"),
        ("a count that is not counted", ["store_batches(0u, min(load_batches(0u), 0xfffffffeu) + 1u)", "store_batches(0u, load_batches(0u))"], "forward"),
        ("non-finite statistics that are not kept out", ["if KEEP_NON_FINITE &&", "if false &&"], "forward"),
        ("gradients that do not accumulate", ["select(0.0, load_dbeta(channel), ACCUMULATE)", "0.0"], "frozen_backward"),
        ("a gradient without its slope", ["let factor = i * (dyx * i / n);", "let factor = V(0.0);"], "backward"),
        ("a half that is widened to too much", ["let biased = magnitude + U(0x38000000u);", "let biased = magnitude + U(0x38000001u);"], "device"),
        ("an infinite half that is widened to a number", ["select(biased, biased + U(0x38000000u), magnitude >= U(0x0f800000u))", "biased"], "device"),
        ("denormal halves that are flushed", ["bitcast<U>(bitcast<V>(magnitude + U(0x38800000u)) - least)", "U(0u)"], "device"),
        ("a sign that is lost in a half", ["bitcast<V>((h & U(0x80000000u)) | bits)", "bitcast<V>(bits)"], "device"),
        ("ties away from zero in f16", ["+ ((magnitude >> U(13u)) & U(1u));", "+ U(1u);"], "device"),
        ("f16 cut off", ["magnitude + U(0xc8000fffu)", "magnitude + U(0xc8000000u)"], "device"),
        ("an overflow of f16 that wraps", ["min(rounded >> U(13u), U(0x7c00u))", "(rounded >> U(13u)) & U(0x7fffu)"], "device"),
        ("f16 denormals in steps of twice the size", ["bitcast<U>(bitcast<V>(magnitude) + V(0.5)) - U(0x3f000000u)", "bitcast<U>(bitcast<V>(magnitude) + V(1.0)) - U(0x3f800000u)"], "device"),
        ("a NaN that becomes infinite in f16", ["select(number, U(0x7e00u), magnitude > U(0x7f800000u))", "number"], "device"),
        ("bf16 widened to the wrong place", ["bitcast<V>(h & U(0xffff0000u))", "bitcast<V>((h & U(0xffff0000u)) >> U(1u))"], "device"),
        ("ties away from zero in bf16", ["+ ((bits >> U(16u)) & U(1u))", "+ U(1u)"], "device"),
        ("bf16 cut off", ["bits + U(0x7fffu)", "bits + U(0u)"], "device"),
        ("a NaN that rounds to infinity in bf16", ["select(rounded, bits | U(0x400000u), is_nan)", "rounded"], "device"),
        ("the other half of a word", ["return widen(word << (16u - i % 2u * 16u));", "return widen(word << (i % 2u * 16u));"], "inference"),
        ("a half that is added to what was there", ["^ (narrow(v) >> 16u)) << shift", "| (narrow(v) >> 16u)) << shift"], "inference"),
        ("a half that clears its neighbour", ["return (((word >> shift) & 0xffffu) ^ (narrow(v) >> 16u)) << shift;", "return word ^ ((narrow(v) >> 16u) << shift);"], "inference"),
        ("four halves out of order", ["U(low.x, words.x, low.y, words.y)", "U(low.x, low.y, words.x, words.y)"], "inference"),
        ("four halves stored out of order", ["(h.xz >> vec2<u32>(16u)) | h.yw", "(h.xy >> vec2<u32>(16u)) | h.zw"], "inference"),
        ("bits of a mask that are set and never cleared", ["return (bits_at(word, i) ^ bits) <<", "return (bits & ~bits_at(word, i)) <<"], "forward"),
        ("bits of a mask in the wrong place", ["return (word >> (i % (32u / WIDTH) * WIDTH))", "return (word >> ((i + 1u) % (32u / WIDTH) * WIDTH))"], "backward"),
        ("words of a mask in the wrong place", ["return i / (32u / WIDTH);", "return i / 64u;"], "forward"),
        ("bits of a mask out of order", ["vec4<u32>(1u, 2u, 4u, 8u), on)", "vec4<u32>(8u, 4u, 2u, 1u), on)"], "forward"),
        ("bits of a mask that are read out of order", ["(vec4<u32>(bits) & vec4<u32>(1u, 2u, 4u, 8u))", "(vec4<u32>(bits) & vec4<u32>(8u, 4u, 2u, 1u))"], "backward"),
        ("a ReLU that passes what is negative", ["return select(v, V(0.0), (bitcast<U>(v) - U(0x80000001u)) <= U(0x7f7fffffu));", "return v;"], "forward"),
        ("a ReLU that is open everywhere", ["return v > V(0.0);", "return v > V(-3.0e38);"], "frozen_backward"),
        ("a slope that is forgotten", ["select(v, v * params.activation, v < V(0.0))", "select(v, V(0.0), v < V(0.0))"], "forward"),
        ("a slope that is forgotten on the way back", ["return select(dy * params.activation, dy, open);", "return select(V(0.0), dy, open);"], "backward"),
        ("a limit that is not one", ["return select(low, V(params.activation), over);", "return low;"], "inference"),
        ("a limit that is open", ["return (v > V(0.0)) & (v < V(params.activation));", "return v > V(0.0);"], "forward"),
        ("a SiLU with the wrong slope", ["return dy * (s * (V(1.0) + v * (V(1.0) - s)));", "return dy * s;"], "backward"),
        ("a SiLU that is a sigmoid", ["return v / (V(1.0) + exp(-v));", "return V(1.0) / (V(1.0) + exp(-v));"], "inference"),
        ("the second vector of a pair is the first", ["fn second_of(pair: Pair) -> Wide {\n    return pair.zw;", "fn second_of(pair: Pair) -> Wide {\n    return pair.xy;"], "inference"),
        ("the second half of a pair is the first", ["fn second_of(pair: Pair) -> Wide {\n    return pair.y;", "fn second_of(pair: Pair) -> Wide {\n    return pair.x;"], "inference"),
        ("a pair that is put back in both places", ["select(Pair(v, second_of(pair)), Pair(first_of(pair), v)", "select(Pair(v, second_of(pair)), Pair(v, v)"], "inference"),
        ("pairs of rows that stay where they are", ["v.index + 1u), advance(v, by));", "v.index + 1u), v);"], "inference"),
        ("lanes whose pairs overlap", ["return range.begin + lane * PAIR;", "return range.begin + lane;"], "forward"),
        ("strips of pairs that overlap", ["first + (tile * LANES + lane) * PAIR", "first + tile * LANES + lane * PAIR"], "inference"),
        ("pairs of columns in one row", ["Places(i, i + 1u, i + stride, i + stride + 1u)", "Places(i, i + 1u, i, i + 1u)"], "inference"),
        ("sums of rows, not of columns", ["Both(v.a + v.c, v.b + v.d)", "Both(v.a + v.b, v.c + v.d)"], "backward"),
        ("a column's neighbour in its place", ["return component(v.b, i - WIDTH);", "return component(v.a, i - WIDTH);"], "forward"),
        ("a row that is counted twice", ["add_four(a.b, d.b, d.d, e.b, e.d)", "add_four(a.b, d.b, d.d, e.b, e.b)"], "forward"),
        ("a last row that is dropped", ["a.b = add_one(a.b, load_x(i + 1u) - k.b);", ""], "forward"),
        ("weights that count as one", ["a.count + select(V(0.0), weight, counts)", "a.count + select(V(0.0), V(1.0), counts)"], "forward"),
        ("padding that is looked at", ["let counts = weight > V(0.0);", "let counts = weight >= V(0.0);"], "statistics"),
        ("lanes with weights that share no shift", ["let shared_shift = moments_at(0u).mean;", "let shared_shift = moments_at(lane).mean;"], "statistics"),
        ("one row's weights in all rows", ["load_x(index_of(strip, row)), weights_at(places + row_weights(row))", "load_x(index_of(strip, row)), weights_at(places)"], "statistics"),
        ("a row's weight in the next but one", ["weights_at(places + row_weights(row + 2u))", "weights_at(places + row_weights(row))"], "backward"),
        ("the other column's mean", ["v.c - by.a, v.d - by.b", "v.c - by.a, v.d - by.a"], "inference"),
        ("the other column's gain", ["v.b * gain.b + shift.b", "v.b * gain.a + shift.b"], "inference"),
        ("the other column's slope", ["weights.d, s.scale.b", "weights.d, s.scale.a"], "backward"),
        ("the other vector's mask", ["store_mask(at.c, bits.z);", "store_mask(at.c, bits.w);"], "forward"),
        ("the other pair's mask", ["store_mask_pair(at.c, bits.z |", "store_mask_pair(at.c, bits.w |"], "forward"),
        ("a pair's bits that are set and never cleared", ["return (pair_at(word, i) ^ bits) <<", "return (bits & ~pair_at(word, i)) <<"], "forward"),
        ("the other pair's slopes", ["vec4<u32>(a, a >> WIDTH, c, c >> WIDTH)", "vec4<u32>(a, a >> WIDTH, a, c >> WIDTH)"], "backward"),
        ("the other vector's residual", ["plus_residual(v.c, z.c)", "plus_residual(v.c, z.d)"], "inference"),
        ("the first four channels' numbers for the next four", ["channel_of(strip, (PAIR - 1u) * WIDTH)", "channel_of(strip, 0u)"], "inference"),
        ("columns of the next channel that are taken for the first's", ["(COMPONENTS >= second) == is_second", "(COMPONENTS >= second + U(1u)) == is_second"], "inference"),
        ("a second vector's columns of the wrong channel", ["(next >= second) == is_second", "(COMPONENTS >= second) == is_second"], "backward"),
        ("a strip's second channel that is its first", ["return i * (COLUMNS - 1u);", "return 0u;"], "inference"),
        ("columns of a channel that are counted once too often", ["select(first, COLUMNS - first, i == 1u)", "select(first, COLUMNS - first + 1u, i == 1u)"], "statistics"),
        ("columns of a channel that lie apart", ["return a.variance * share + (apart * share) * apart;", "return a.variance * share;"], "forward"),
        ("the first channel's partial for the second's", ["select(0u, 1u, column < first)", "0u"], "backward"),
        ("partials of strips past a run's end", ["let columns = end - min(max(column, first), end);", "let columns = params.strip;"], "statistics"),
        ("a residual that is forgotten", ["return v + z;", "return v;"], "inference"),
        ("a gradient of the residual that is not stored", ["store_dz(i, g);", ""], "frozen_backward"),
    ];

    /// Every text that is replaced is there: a mutation that changes nothing would be none.
    #[test]
    fn broken_adapters_are_broken() {
        fn add<O: Operation>(texts: &mut HashSet<String>, g: Geometry, config: &Config) {
            for class in [Class::Software, Class::Hardware] {
                let int64 = class == Class::Software;
                let caps = Caps { class, int64, ..Caps::webgpu_default() };
                let plan = Plan::<O>::new(g, config, &caps).unwrap();
                texts.extend(plan.stages().iter().map(|s| shader::source(&s.variant)));
            }
        }
        let mut texts = HashSet::from([shader::probe()]);
        texts.extend([Element::F16, Element::Bf16].map(|element| shader::convert(element, false)));
        let shapes = SHAPES.iter().chain(&HOSTILE_SHAPES).chain(&FUSED_SHAPES);
        for (shape, axis) in shapes {
            let g = Geometry::new(shape, *axis).unwrap();
            let plain = Config { update: Update::Cumulative, ..Config::pytorch() };
            let fused = FUSED.map(|(element, activation, mask)| Config {
                element,
                activation,
                mask,
                residual: true,
                ..Config::pytorch()
            });
            let weighted = Config { weights: true, ..Config::pytorch() };
            for config in fused.into_iter().chain([plain, weighted]) {
                add::<Train>(&mut texts, g, &config);
                add::<Statistics>(&mut texts, g, &config);
                add::<Infer>(&mut texts, g, &config);
                add::<Backward>(&mut texts, g, &config);
                add::<FrozenBackward>(&mut texts, g, &config);
            }
        }
        for (name, [from, to], _) in BROKEN {
            assert!(texts.iter().any(|text| text.contains(from)), "{name}: {from:?} is nowhere");
            assert_ne!(from, to, "{name}");
        }
    }

    #[test]
    fn broken_adapters_are_caught() {
        let Some(gpu) = gpu() else { return };
        for whole in [gpu.self_test_blocking(), gpu.self_test_thorough_blocking()] {
            let whole = whole.unwrap();
            assert!(whole.passed(), "{whole}");
        }
        // Without the longest shape, which takes half of the time and no kernel of its own.
        let extent = Extent { known: &SHAPES[..SHAPES.len() - 1], ..THOROUGH };
        let mut escaped = Vec::new();
        let mut quickly_caught = 0;
        for (name, broken, operation) in BROKEN {
            let options = KernelOptions { broken: Some(broken), ..Default::default() };
            let adapter = gpu.clone().with_options(options);
            quickly_caught += usize::from(!adapter.self_test_blocking().unwrap().passed());
            let test = pollster::block_on(adapter.ask_all(&extent)).unwrap();
            let noticed = |check: &Check| !check.passed() && check.operation == operation;
            if !test.checks.iter().any(noticed) {
                escaped.push(format!("{name}: {test}"));
            }
        }
        assert!(escaped.is_empty(), "{}", escaped.join("\n"));
        println!("caught quickly: {quickly_caught} of {}", BROKEN.len());
        assert!(quickly_caught > BROKEN.len() / 2, "{quickly_caught}");
    }
}
