//! What holds of every shape, axis, memory order, option, tuning and kind of data, on random ones.
//!
//! A failure is shrunk and printed as one line; `BATCHNORM_CASE='that line' cargo test one_line`
//! runs it again. `PROPTEST_CASES` sets how many are tried of each property, `PROPTEST_RNG_SEED`
//! which.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};

use ndarray::{ArrayD, ArrayView1, Axis};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{RngSeed, TestError, TestRunner, contextualize_config};
use wgpu_batchnorm::reference::{self, Running};
use wgpu_batchnorm::{
    Activation, Affine, Backward, Bind, Caps, ChannelAxis, Class, Config, Element, FrozenBackward,
    Gpu, Gradients, Infer, Input, KernelOptions, Kernels, Mask, Memory, Moments, NonFinite, Plan,
    Renorm, RunningStatistics, RunningVariance, SingleValue, Slot, Statistics, Train, Tuning,
    Update,
};

use crate::common::check::{
    self, Oracle, compare_frozen, compare_grouped, compare_statistics, compare_training,
};
use crate::common::compare::{self, Bounds, Center, Comparison, places, slope};
use crate::common::data::{Case, Data, Random, shards};
use crate::common::runner::{self, Contents, Results, bits, floats};
use crate::common::{gpu, runner::inputs};

type Property = fn(&Gpu, &Setup) -> Result<(), String>;

/// Every property: its name, how many cases are tried, what must hold.
const PROPERTIES: [(&str, u32, Property); 20] = [
    ("oracle", 128, oracle),
    ("alone", 64, alone),
    ("split", 48, split),
    ("folded", 48, folded),
    ("checked", 16, checked),
    ("memory", 48, memory),
    ("centered", 128, centered),
    ("shifted", 64, shifted),
    ("scaled", 64, scaled),
    ("transposed", 64, transposed),
    ("merged", 128, merged),
    ("sharded", 96, sharded),
    ("accumulated", 48, accumulated),
    ("masked", 96, masked),
    ("linear", 64, linear),
    ("slopes", 96, slopes),
    ("host", 64, host),
    ("conventions", 32, conventions),
    ("grouped", 96, grouped),
    ("weighted", 96, weighted),
];

/// Lines that once failed, or that a change of code should not fail.
const LINES: [&str; 7] = [
    // The variance was infinite where the infinite value came outside a set of four.
    "oracle shape=3x7x9x5 axis=3 element=f32 eps=1e-5 update=rate:0.1 var=unbiased keep=false affine=gb activation=none residual=false mask=auto renorm=none \
     memory=separate gradients=xgb tuning=8,256,64,64,8192,0,8,256,32 seed=8 mean=1 std=2 bad=inf@940",
    "alone shape=192x8 axis=-1 element=f32 eps=1e-5 update=rate:0.1 var=unbiased keep=false affine=gb activation=none residual=false mask=auto renorm=none \
     memory=separate gradients=xgb tuning=none seed=8 mean=1 std=2 bad=-inf@1535",
    "oracle shape=5x2x7 axis=act element=f32 eps=0.1 update=cumulative var=population keep=true affine= activation=none residual=false mask=auto renorm=none \
     memory=arena gradients=g tuning=16,40,1,1,0,0,1,0,4 seed=1 mean=-10000000 std=1 bad=none",
    // Odd rows, odd channels and an odd count of halves, whose words two workgroups share.
    "oracle shape=3x5x7 axis=1 element=f16 eps=1e-5 update=rate:0.1 var=unbiased keep=false affine=gb activation=relu residual=true mask=bits renorm=none \
     memory=arena gradients=xgbz tuning=4,40,1,1,0,400,1,0,4 seed=3 mean=1 std=2 bad=nan@50",
    // d was NaN where the mean was infinite, for a rest that was NaN.
    "oracle shape=1 axis=0 element=f32 eps=1e0 update=rate:0.1 var=population keep=false affine= activation=none residual=false mask=auto renorm=1,0 \
     memory=separate gradients= tuning=none seed=0 mean=0 std=1 bad=inf@0",
    // Renormalized halves; and group normalization over columns of one value each.
    "oracle shape=3x5x7 axis=1 element=bf16 eps=1e-5 update=rate:0.1 var=unbiased keep=false affine=gb activation=relu residual=true mask=bits renorm=3,5 \
     memory=arena gradients=xgbz tuning=4,40,1,1,0,400,1,0,4 seed=3 mean=1 std=2 bad=nan@50",
    "grouped shape=7x12 axis=-1 element=f16 eps=1e-5 update=none var=population keep=false affine=g activation=silu residual=true mask=auto renorm=none \
     memory=inplace gradients=xgbz tuning=4,40,1,1,0,400,1,0,4 seed=2 mean=1 std=2 bad=none",
];

/// Everything that makes a case, in one line.
#[derive(Clone, PartialEq)]
pub struct Setup {
    case: Case,
    seed: u16,
    mean: f64,
    std: f64,
    /// A value of x that is not finite, and where.
    bad: Option<(f32, usize)>,
}

impl Setup {
    pub fn data(&self) -> Data {
        let element = self.case.config.element;
        // Squares of a half's own range, and a bit of room for y and dx.
        let (mean, std) = match element {
            Element::F16 => (self.mean.clamp(-1e3, 1e3), self.std.clamp(1e-3, 1e2)),
            _ => (self.mean, self.std),
        };
        Data::random(self.case.geometry(), u64::from(self.seed), mean, std).rounded(element)
    }

    /// With the value that is not finite.
    pub fn bad_data(&self) -> (Data, Option<usize>) {
        let mut data = self.data();
        let g = self.case.geometry();
        let channel = self.bad.map(|(value, place)| {
            let place = place % data.x.len();
            data.x[place] = value;
            place / g.inner() as usize % g.channels() as usize
        });
        (data, channel)
    }

    pub fn with(&self, change: impl FnOnce(&mut Config)) -> Case {
        let mut case = self.case.clone();
        change(&mut case.config);
        case
    }

    /// All gradients, so that there is something to compare.
    fn whole(&self) -> Case {
        self.with(|config| config.gradients = Gradients::ALL)
    }

    /// And not renormalized, for what holds of the batch alone, whatever has run before.
    fn of_the_batch(&self) -> Case {
        let mut case = self.whole();
        case.config.renorm = None;
        case
    }

    /// And in f32, for data that halves do not hold.
    fn single(&self) -> Case {
        let mut case = self.of_the_batch();
        case.config.element = Element::F32;
        case
    }
}

impl fmt::Debug for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let c = &self.case.config;
        let join = |parts: Vec<String>, with| parts.join(with);
        let shape = self.case.shape.iter().map(usize::to_string).collect();
        let axis = match self.case.axis {
            ChannelAxis::First => "1".to_string(),
            ChannelAxis::Last => "-1".to_string(),
            ChannelAxis::At(axis) => axis.to_string(),
            ChannelAxis::PerActivation => "act".to_string(),
        };
        let update = match c.update {
            Update::Rate(rate) => format!("rate:{rate}"),
            Update::Decay(decay) => format!("decay:{decay}"),
            Update::Cumulative => "cumulative".to_string(),
            Update::None => "none".to_string(),
        };
        let unbiased = c.running_variance == RunningVariance::Unbiased;
        let letters = |pairs: &[(bool, &str)]| -> String {
            pairs.iter().filter(|(on, _)| *on).map(|(_, letter)| *letter).collect()
        };
        let affine = letters(&[(c.affine.gamma, "g"), (c.affine.beta, "b")]);
        let g = c.gradients;
        let gradients = letters(&[(g.x, "x"), (g.gamma, "g"), (g.beta, "b"), (g.z, "z")]);
        let activation = match c.activation {
            Activation::None => "none".to_string(),
            Activation::Relu => "relu".to_string(),
            Activation::LeakyRelu { slope } => format!("leaky:{slope}"),
            Activation::ClippedRelu { limit } => format!("clipped:{limit}"),
            Activation::Silu => "silu".to_string(),
            Activation::Custom(_) => panic!("bug: no random case has one"),
        };
        let renorm = c.renorm.map_or("none".to_string(), |r| format!("{},{}", r.rmax, r.dmax));
        let tuning = self.case.tuning.as_ref().map_or("none".to_string(), |t| {
            let numbers = [
                t.workgroup_size,
                t.workgroup_count,
                t.min_loads,
                t.min_column_loads,
                t.fused_loads,
                t.column_block,
                t.fused_workgroups,
                t.tiny_loads,
                t.min_row,
            ];
            join(numbers.iter().map(u32::to_string).collect(), ",")
        });
        write!(
            f,
            "shape={} axis={axis} element={} eps={:e} update={update} var={} keep={} affine={affine} \
             activation={activation} residual={} mask={} renorm={renorm} memory={} gradients={gradients} tuning={tuning} seed={} mean={} std={} bad={}",
            join(shape, "x"),
            c.element.name(),
            c.epsilon,
            if unbiased { "unbiased" } else { "population" },
            c.non_finite == NonFinite::Keep,
            c.residual,
            format!("{:?}", c.mask).to_lowercase(),
            format!("{:?}", c.memory).to_lowercase(),
            self.seed,
            self.mean,
            self.std,
            self.bad.map_or("none".to_string(), |(value, place)| format!("{value}@{place}")),
        )
    }
}

impl FromStr for Setup {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let fields: HashMap<&str, &str> =
            line.split_whitespace().filter_map(|field| field.split_once('=')).collect();
        let field = |name| fields.get(name).copied().ok_or(format!("{name} is missing in {line}"));
        fn number<T: FromStr>(text: &str) -> Result<T, String> {
            text.parse().map_err(|_| format!("{text:?} is no number"))
        }
        let shape = field("shape")?.split('x').map(number).collect::<Result<Vec<usize>, _>>()?;
        let axis = match field("axis")? {
            "act" => ChannelAxis::PerActivation,
            axis => ChannelAxis::At(number(axis)?),
        };
        let update = match field("update")?.split_once(':') {
            Some(("rate", rate)) => Update::Rate(number(rate)?),
            Some(("decay", decay)) => Update::Decay(number(decay)?),
            _ if field("update")? == "cumulative" => Update::Cumulative,
            _ => Update::None,
        };
        let (affine, gradients) = (field("affine")?, field("gradients")?);
        let activation = match field("activation")?.split_once(':') {
            Some(("leaky", slope)) => Activation::LeakyRelu { slope: number(slope)? },
            Some(("clipped", limit)) => Activation::ClippedRelu { limit: number(limit)? },
            _ => match field("activation")? {
                "relu" => Activation::Relu,
                "silu" => Activation::Silu,
                _ => Activation::None,
            },
        };
        let config = Config {
            element: match field("element")? {
                "f16" => Element::F16,
                "bf16" => Element::Bf16,
                _ => Element::F32,
            },
            epsilon: number(field("eps")?)?,
            affine: Affine { gamma: affine.contains('g'), beta: affine.contains('b') },
            update,
            running_variance: match field("var")? {
                "unbiased" => RunningVariance::Unbiased,
                _ => RunningVariance::Population,
            },
            non_finite: match field("keep")? {
                "true" => NonFinite::Keep,
                _ => NonFinite::Propagate,
            },
            single_value: SingleValue::Allow,
            activation,
            residual: field("residual")? == "true",
            mask: match field("mask")? {
                "bits" => Mask::Bits,
                "recompute" => Mask::Recompute,
                _ => Mask::Auto,
            },
            renorm: match field("renorm")?.split_once(',') {
                Some((rmax, dmax)) => Some(Renorm { rmax: number(rmax)?, dmax: number(dmax)? }),
                None => None,
            },
            memory: match field("memory")? {
                "inplace" => Memory::InPlace,
                "arena" => Memory::Arena,
                _ => Memory::Separate,
            },
            gradients: Gradients {
                x: gradients.contains('x'),
                gamma: gradients.contains('g'),
                beta: gradients.contains('b'),
                z: gradients.contains('z'),
                accumulate: false,
            },
            ..Config::pytorch()
        };
        let tuning = match field("tuning")? {
            "none" => None,
            numbers => {
                let n = numbers.split(',').map(number).collect::<Result<Vec<u32>, _>>()?;
                let numbers = <[u32; 9]>::try_from(n);
                Some(tuning_of(numbers.map_err(|n| format!("{n:?} are not nine numbers"))?))
            }
        };
        let bad = match field("bad")?.split_once('@') {
            Some((value, place)) => Some((number(value)?, number(place)?)),
            None => None,
        };
        Ok(Self {
            case: Case { shape, axis, config, tuning, buffers: None, binding: None },
            seed: number(field("seed")?)?,
            mean: number(field("mean")?)?,
            std: number(field("std")?)?,
            bad,
        })
    }
}

/// Shapes of up to 8,192 values and rank 5, their channels anywhere.
fn shapes() -> impl Strategy<Value = (Vec<usize>, ChannelAxis)> {
    let dimension = prop_oneof![4 => 1..6usize, 3 => 1..40usize, 1 => 1..1500usize];
    let dimensions = prop::collection::vec(dimension, 1..=5);
    (dimensions, 0..5isize, any::<bool>(), prop::bool::weighted(0.1)).prop_map(
        |(mut shape, axis, from_end, per_activation)| {
            let mut room = 8192;
            for dimension in &mut shape {
                *dimension = (*dimension).min(room);
                room /= *dimension;
            }
            let rank = shape.len() as isize;
            let axis = axis % rank;
            match (per_activation, from_end) {
                (true, _) => (shape, ChannelAxis::PerActivation),
                (false, true) => (shape, ChannelAxis::At(axis - rank)),
                (false, false) => (shape, ChannelAxis::At(axis)),
            }
        },
    )
}

fn configs() -> impl Strategy<Value = Config> {
    let update = prop_oneof![
        select(vec![0.1, 0.0, 1.0, 0.37]).prop_map(Update::Rate),
        select(vec![0.9, 0.0, 1.0]).prop_map(Update::Decay),
        Just(Update::Cumulative),
        Just(Update::None),
    ];
    let memory = prop_oneof![
        3 => Just(Memory::Separate),
        1 => Just(Memory::InPlace),
        1 => Just(Memory::Arena),
    ];
    let activation = prop_oneof![
        3 => Just(Activation::None),
        2 => Just(Activation::Relu),
        1 => select(vec![0.01, -0.5, 2.0]).prop_map(|slope| Activation::LeakyRelu { slope }),
        1 => select(vec![6.0, 0.5]).prop_map(|limit| Activation::ClippedRelu { limit }),
        1 => Just(Activation::Silu),
    ];
    let mask = select(vec![Mask::Auto, Mask::Bits, Mask::Recompute]);
    let epilogue = (activation, mask);
    let renorm = select(vec![(1.0, 0.0), (3.0, 5.0), (1.5, 0.25)])
        .prop_map(|(rmax, dmax)| Renorm { rmax, dmax });
    let renorm = prop::option::weighted(0.3, renorm);
    let element = prop_oneof![
        2 => Just(Element::F32),
        1 => Just(Element::F16),
        1 => Just(Element::Bf16),
    ];
    let all = (0..8i32, update, any::<[bool; 9]>(), epilogue, (memory, element, renorm));
    all.prop_map(|(epsilon, update, bits, (activation, mask), (memory, element, renorm))| {
        let [gamma, beta, unbiased, keep, x, dgamma, dbeta, residual, z] = bits;
        Config {
            element,
            epsilon: 10f64.powi(-epsilon),
            affine: Affine { gamma, beta },
            update,
            running_variance: match unbiased {
                true => RunningVariance::Unbiased,
                false => RunningVariance::Population,
            },
            non_finite: if keep { NonFinite::Keep } else { NonFinite::Propagate },
            single_value: SingleValue::Allow,
            activation,
            residual,
            mask,
            // Which needs running statistics that move.
            renorm: renorm.filter(|_| update != Update::None),
            memory,
            gradients: Gradients { x, gamma: dgamma, beta: dbeta, z, accumulate: false },
            ..Config::pytorch()
        }
    })
}

/// Tunings under which small tensors take every path.
fn tunings() -> impl Strategy<Value = Tuning> {
    (
        prop_oneof![3 => Just(8u32), 1 => select(vec![4u32, 16, 64])],
        select(vec![1u32, 6, 40, 256]),
        select(vec![1u32, 4, 64]),
        select(vec![1u32, 4, 64]),
        select(vec![0u32, 16, 4096]),
        select(vec![0u32, 1536, 1 << 17]),
        select(vec![1u32, 8]),
        select(vec![0u32, 8, 256]),
        select(vec![4u32, 32, u32::MAX]),
    )
        .prop_map(|numbers| tuning_of(numbers.into()))
}

/// As the one-line case has it.
fn tuning_of(numbers: [u32; 9]) -> Tuning {
    let [size, count, loads, column_loads, fused, block, workgroups, tiny, row] = numbers;
    Tuning {
        workgroup_size: size,
        workgroup_count: count,
        column_workgroup_count: count,
        apply_workgroup_count: 2 * count,
        min_loads: loads,
        min_column_loads: column_loads,
        min_apply_loads: loads,
        merge_loads: column_loads,
        fused_loads: fused,
        fused_column_loads: fused,
        column_block: block,
        join_rows: true,
        held_values: 64,
        fused_workgroups: workgroups,
        tiny_loads: tiny,
        min_row: row,
        short_row_loads: u32::MAX,
        many_rows: 16,
        min_odd_rows: 4,
        from_end: true,
        built_in_widen: false,
        built_in_narrow: false,
        wide_loads: true,
        mask_words: true,
    }
}

pub fn setups() -> impl Strategy<Value = Setup> {
    let data = (
        any::<u16>(),
        select(vec![0.0, 1.0, -3.0, 1e3, 1e6, -1e7]),
        select(vec![1.0, 1e-3, 100.0, 1e-20, 1e15]),
    );
    let value = select(vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
    let bad = prop::option::weighted(0.3, (value, 0..8192usize));
    (shapes(), configs(), prop::option::weighted(0.8, tunings()), data, bad).prop_map(
        |((shape, axis), config, tuning, (seed, mean, std), bad)| Setup {
            case: Case { shape, axis, config, tuning, buffers: None, binding: None },
            seed,
            mean,
            std,
            bad,
        },
    )
}

/// Tries a property on random cases: the same ones every time, and for all properties, whose
/// pipelines are then compiled once. `PROPTEST_RNG_SEED` gives others.
fn hold(name: &str) {
    let Some(gpu) = gpu() else { return };
    let &(_, cases, property) = PROPERTIES.iter().find(|(n, ..)| *n == name).unwrap();
    let mut runner = TestRunner::new(contextualize_config(ProptestConfig {
        cases,
        failure_persistence: None,
        max_shrink_iters: 2_000,
        rng_seed: RngSeed::Fixed(1),
        ..ProptestConfig::default()
    }));
    let result = runner.run(&setups(), |setup| property(gpu, &setup).map_err(TestCaseError::fail));
    match result {
        Ok(()) => {}
        Err(TestError::Fail(reason, setup)) => {
            panic!("{reason}\nBATCHNORM_CASE='{name} {setup}' cargo test one_line")
        }
        Err(error) => panic!("{name}: {error}"),
    }
}

macro_rules! properties {
    ($($name:ident: $property:literal,)*) => {
        $(#[test]
        fn $name() {
            hold($property);
        })*

        #[test]
        fn every_property_is_tried() {
            let tried = [$($property),*];
            assert!(PROPERTIES.iter().map(|(name, ..)| *name).eq(tried));
        }
    };
}

properties! {
    every_operation_agrees_with_the_oracle: "oracle",
    a_bad_channel_stays_alone: "alone",
    any_split_agrees: "split",
    a_folded_grid_gives_the_same_bits: "folded",
    checked_shaders_give_the_same_bits: "checked",
    every_memory_gives_the_same_bits: "memory",
    dx_is_centered_and_upright: "centered",
    a_shift_changes_only_the_mean: "shifted",
    a_scale_changes_only_the_deviation: "scaled",
    memory_orders_agree: "transposed",
    merged_moments_are_the_whole: "merged",
    shards_are_the_whole: "sharded",
    accumulating_is_adding: "accumulated",
    a_mask_changes_no_other_gradient: "masked",
    frozen_backward_is_the_slope_of_inference: "linear",
    every_backward_is_the_slope_of_the_oracle: "slopes",
    the_host_form_gives_the_same_bits: "host",
    rate_and_decay_are_two_words_for_one: "conventions",
    group_normalization_agrees_with_the_oracle: "grouped",
    weighted_statistics_agree_with_the_oracle: "weighted",
}

fn run_line(gpu: &Gpu, line: &str) {
    let (name, setup) = line.split_once(' ').unwrap();
    let (_, _, property) = PROPERTIES.iter().find(|(n, ..)| *n == name).expect("a property");
    let setup: Setup = setup.parse().unwrap();
    if let Err(error) = property(gpu, &setup) {
        panic!("{error}\nBATCHNORM_CASE='{line}' cargo test one_line");
    }
}

#[test]
fn one_line() {
    let (Some(gpu), Ok(line)) = (gpu(), std::env::var("BATCHNORM_CASE")) else { return };
    run_line(gpu, &line);
}

#[test]
fn lines_that_once_failed() {
    let Some(gpu) = gpu() else { return };
    LINES.iter().for_each(|line| run_line(gpu, line));
}

/// A line is the whole case: nothing is lost on the way to text and back.
#[test]
fn a_line_is_the_whole_case() {
    let config = ProptestConfig { cases: 500, failure_persistence: None, ..Default::default() };
    TestRunner::new(config)
        .run(&setups(), |setup| {
            let again: Setup = setup.to_string().parse().map_err(TestCaseError::fail)?;
            prop_assert_eq!(again.to_string(), setup.to_string());
            let plan = |setup: &Setup| {
                let caps = Caps::webgpu_default();
                let (g, tuning) = (setup.case.geometry(), setup.case.tuning.clone());
                let tuning = tuning.unwrap_or(Tuning::choose(&caps, &g, setup.case.config.element));
                Plan::<Train>::with_tuning(g, &setup.case.config, &caps, &tuning)
            };
            prop_assert_eq!(plan(&again), plan(&setup));
            prop_assert_eq!(bits(&again.data().x), bits(&setup.data().x));
            Ok(())
        })
        .unwrap();
}

/// A failing property is found and shrunk to the smallest case that fails: more than 100 values.
#[test]
fn a_failure_is_shrunk() {
    let config = ProptestConfig {
        cases: 256,
        failure_persistence: None,
        max_shrink_iters: 10_000,
        rng_seed: RngSeed::Fixed(1),
        ..Default::default()
    };
    let result = TestRunner::new(config).run(&setups(), |setup| {
        prop_assert!(setup.case.geometry().len() <= 100);
        Ok(())
    });
    let Err(TestError::Fail(_, setup)) = result else { panic!("not found: {result:?}") };
    assert!((101..=110).contains(&setup.case.geometry().len()), "{setup}");
    assert_eq!((setup.seed, setup.bad, setup.case.tuning), (0, None, None));
}

fn good(name: &str, case: &Case, result: Comparison) -> Result<(), String> {
    if result.is_good() { Ok(()) } else { Err(format!("{name}: {result:?}: {case}")) }
}

/// Equal to the bit; any NaN equals any NaN, as the sign and payload of one are not defined.
fn same(name: &str, case: &Case, a: &[u32], b: &[u32]) -> Result<(), String> {
    let equal = |a: u32, b: u32| a == b || f32::from_bits(a).is_nan() && f32::from_bits(b).is_nan();
    match a.iter().zip(b).position(|(a, b)| !equal(*a, *b)) {
        _ if a.len() != b.len() => Err(format!("{name}: {} values for {}", a.len(), b.len())),
        Some(at) => Err(format!("{name}: word {at} is {:x}, not {:x}: {case}", a[at], b[at])),
        None => Ok(()),
    }
}

fn bounds(case: &Case, data: &Data) -> Bounds {
    Oracle::new(case, data).bounds(case, data, Center::Batch)
}

fn moments(gpu: &Gpu, case: &Case, data: &Data) -> Moments {
    let slot = runner::statistics(gpu, case, data);
    Moments::from_slot(&slot).unwrap()
}

/// All bits of all five operations.
fn all_bits(gpu: &Gpu, case: &Case, data: &Data) -> Vec<u32> {
    let (train, frozen) = (runner::train(gpu, case, data), runner::frozen(gpu, case, data));
    [train.bits(), frozen.bits(), bits(&runner::statistics(gpu, case, data))].concat()
}

/// All five operations, whatever the options, within the derived bounds of the oracle.
fn oracle(gpu: &Gpu, s: &Setup) -> Result<(), String> {
    let (data, _) = s.bad_data();
    compare_training(&s.case, &data, &runner::train(gpu, &s.case, &data))?;
    compare_frozen(&s.case, &data, &runner::frozen(gpu, &s.case, &data))?;
    compare_statistics(&s.case, &data, &moments(gpu, &s.case, &data))
}

/// A value that is not finite leaves every other channel as it is, to the bit.
fn alone(gpu: &Gpu, s: &Setup) -> Result<(), String> {
    let (case, clean) = (s.whole(), s.data());
    let (data, channel) = s.bad_data();
    let Some(channel) = channel else { return Ok(()) };
    let (c, inner) = (case.geometry().channels() as usize, case.geometry().inner() as usize);
    let of = |data: &Data| (runner::train(gpu, &case, data), runner::frozen(gpu, &case, data));
    let ((a, frozen_a), (b, frozen_b)) = (of(&data), of(&clean));
    for (a, b) in [(&a, &b), (&frozen_a, &frozen_b)] {
        for name in [
            "y",
            "mean",
            "rest",
            "inv_std",
            "count",
            "running_mean",
            "running_var",
            "dx",
            "dgamma",
            "dbeta",
            "dz",
        ] {
            let others = |r: &Results| -> Vec<u32> {
                let width = if matches!(name, "y" | "dx" | "dz") { inner } else { 1 };
                let values = r.get(name).iter().enumerate();
                let others = values.filter(|(i, _)| i / width % c != channel);
                others.map(|(_, v)| v.to_bits()).collect()
            };
            same(name, &case, &others(a), &others(b))?;
        }
    }
    Ok(())
}

/// However the work is cut, within both bounds.
fn split(gpu: &Gpu, s: &Setup) -> Result<(), String> {
    let (case, data) = (s.whole(), s.data());
    let (a, frozen_a) = (runner::train(gpu, &case, &data), runner::frozen(gpu, &case, &data));
    for class in [Class::Software, Class::Hardware] {
        let caps = Caps { class, ..gpu.caps().clone() };
        let tuning = Tuning::choose(&caps, &case.geometry(), case.config.element);
        let other = case.clone().tuned(&tuning);
        let b = runner::train(gpu, &other, &data);
        check::agree(&case, &a, &b, check::expected_training(&case, &data))?;
        let b = runner::frozen(gpu, &other, &data);
        check::agree(&case, &frozen_a, &b, check::expected_frozen(&case, &data))?;
    }
    Ok(())
}

fn outputs<O: Bind>(gpu: &Gpu, kernels: &Kernels, plan: Plan<O>, inputs: &Contents) -> Vec<u32> {
    let mut contents = runner::run(gpu, kernels, plan, inputs);
    contents.remove(&Slot::Scratch);
    Slot::ALL.into_iter().filter_map(|slot| contents.remove(&slot)).flatten().collect()
}

/// The outputs of all five operations, planned for other limits or compiled in another way.
fn with(gpu: &Gpu, kernels: &Kernels, caps: &Caps, case: &Case, data: &Data) -> Vec<u32> {
    fn one<O: Bind>(
        gpu: &Gpu,
        kernels: &Kernels,
        caps: &Caps,
        case: &Case,
        inputs: &Contents,
    ) -> Vec<u32> {
        let tuning = case.tuning.clone();
        let tuning =
            tuning.unwrap_or(Tuning::choose(gpu.caps(), &case.geometry(), case.config.element));
        let plan = Plan::<O>::with_tuning(case.geometry(), &case.config, caps, &tuning).unwrap();
        let widest = plan.stages().iter().map(|stage| stage.grid[0]).max();
        assert!(widest.unwrap_or(0) <= caps.max_workgroups_per_dimension);
        outputs(gpu, kernels, plan, inputs)
    }
    let mut inputs = inputs(data);
    let saved = data.x.iter().cycle().take(6 * data.gamma.len());
    inputs.insert(Slot::Saved, saved.map(|v| v.to_bits()).collect());
    let mask = data.x.iter().step_by(32);
    inputs.insert(Slot::Mask, mask.map(|v| v.to_bits()).collect());
    let mut forward = inputs.clone();
    [Slot::Saved, Slot::Mask].iter().for_each(|slot| drop(forward.remove(slot)));
    [
        one::<Train>(gpu, kernels, caps, case, &forward),
        one::<Infer>(gpu, kernels, caps, case, &inputs),
        one::<Backward>(gpu, kernels, caps, case, &inputs),
        one::<FrozenBackward>(gpu, kernels, caps, case, &inputs),
        one::<Statistics>(gpu, kernels, caps, case, &inputs),
    ]
    .concat()
}

/// A grid that does not fit one dimension does the same work.
fn folded(gpu: &Gpu, s: &Setup) -> Result<(), String> {
    let data = s.data();
    let flat = with(gpu, gpu.kernels(), gpu.caps(), &s.case, &data);
    // The square is as many workgroups as these shapes can need.
    let caps = Caps { max_workgroups_per_dimension: 97, ..gpu.caps().clone() };
    same("folded", &s.case, &with(gpu, gpu.kernels(), &caps, &s.case, &data), &flat)
}

/// Bounds checks and loop bounds change nothing: no index is ever outside.
fn checked(gpu: &Gpu, s: &Setup) -> Result<(), String> {
    use std::sync::OnceLock;
    static CHECKED: OnceLock<Kernels> = OnceLock::new();
    let checked = CHECKED.get_or_init(|| {
        let options = KernelOptions { checked: true, ..Default::default() };
        Kernels::with_options(gpu.device(), options)
    });
    let (data, _) = s.bad_data();
    let fast = with(gpu, gpu.kernels(), gpu.caps(), &s.case, &data);
    same("checked", &s.case, &with(gpu, checked, gpu.caps(), &s.case, &data), &fast)
}

/// Separate, in place or in one arena: the same bits.
fn memory(gpu: &Gpu, s: &Setup) -> Result<(), String> {
    let (data, _) = s.bad_data();
    let of = |memory| all_bits(gpu, &s.with(|config| config.memory = memory), &data);
    let separate = of(Memory::Separate);
    same("in place", &s.case, &of(Memory::InPlace), &separate)?;
    same("arena", &s.case, &of(Memory::Arena), &separate)
}

/// Σdx = 0, and Σdx·x̂ = 0 but for ε: a shift or a scale of x would change nothing.
fn centered(gpu: &Gpu, s: &Setup) -> Result<(), String> {
    let (case, data) = (s.of_the_batch(), s.data());
    let oracle = Oracle::new(&case, &data);
    let f = reference::train(&oracle.input(&case), &oracle.running, &case.config).unwrap();
    let g = reference::backward(&oracle.input(&case), oracle.dy.view(), &case.config).unwrap();
    let dx = runner::train(gpu, &case, &data).dx;
    let geometry = case.geometry();
    let channels = 0..geometry.channels() as usize;
    let sum = |c: usize, f: &dyn Fn(usize) -> f64| places(geometry, c).map(f).sum::<f64>();
    let sums: Vec<f64> = channels.clone().map(|c| sum(c, &|i| f64::from(dx[i]))).collect();
    let slopes: Vec<f64> = channels
        .clone()
        .map(|c| {
            let normal = |i: usize| (f64::from(data.x[i]) - f.mean[c]) * f.inv_std[c];
            sum(c, &|i| f64::from(dx[i]) * normal(i))
        })
        .collect();
    let left: Vec<f64> = channels
        .map(|c| {
            let gamma = if case.config.affine.gamma { oracle.gamma[c] } else { 1.0 };
            gamma * g.dgamma[c] * case.config.epsilon * f.inv_std[c].powi(3)
        })
        .collect();
    let b = bounds(&case, &data);
    good("sum of dx", &case, compare::within(&sums, &vec![0.0; sums.len()], &b.dx_sum()))?;
    good("sum of dx·x̂", &case, compare::within(&slopes, &left, &b.dx_slope()))
}

/// x in steps of 1/64 below 16, so that it can be shifted and scaled exactly.
fn round(data: &mut Data, spread: f64) {
    for x in &mut data.x {
        *x = ((f64::from(*x) / spread).clamp(-15.0, 15.0) * 64.0).round() as f32 / 64.0;
    }
}

/// x + 4096: the variance and its root are the same to the bit, and y and dx within both bounds.
fn shifted(gpu: &Gpu, s: &Setup) -> Result<(), String> {
    let case = s.single();
    let mut data = Data::random(case.geometry(), u64::from(s.seed), 0.5, 2.0);
    round(&mut data, 1.0);
    let moved = Data { x: data.x.iter().map(|x| x + 4096.0).collect(), ..data.clone() };
    let variances = |data: &Data| {
        let moments = runner::statistics(gpu, &case, data);
        bits(&moments[moments.len() / 2..])
    };
    same("variance", &case, &variances(&moved), &variances(&data))?;
    let (a, b) = (runner::train(gpu, &case, &moved), runner::train(gpu, &case, &data));
    same("inv_std", &case, &bits(&a.inv_std), &bits(&b.inv_std))?;
    let mut expected = check::expected_training(&case, &moved);
    expected.retain(|e| matches!(e.name, "y" | "dx" | "dgamma" | "dbeta"));
    check::agree(&case, &a, &b, expected)
}

/// 32·x with 1024·ε: mean and variance are scaled to the bit, y is the same within both bounds, and
/// dx a 32nd.
fn scaled(gpu: &Gpu, s: &Setup) -> Result<(), String> {
    let mut data = Data::random(s.case.geometry(), u64::from(s.seed), 0.5, 2.0);
    round(&mut data, 1.0);
    let case = s.single();
    let mut wider = case.clone();
    wider.config.epsilon *= 1024.0;
    let scaled = Data { x: data.x.iter().map(|x| 32.0 * x).collect(), ..data.clone() };
    let moments = |data: &Data| runner::statistics(gpu, &case, data);
    let (wide, narrow) = (moments(&scaled), moments(&data));
    let c = narrow.len() / 4;
    let factors = [32.0, 32.0, 1024.0, 1.0];
    let expected: Vec<f32> = narrow.iter().enumerate().map(|(i, v)| factors[i / c] * v).collect();
    same("moments", &case, &bits(&wide), &bits(&expected))?;
    let (a, mut b) = (runner::train(gpu, &wider, &scaled), runner::train(gpu, &case, &data));
    b.dx.iter_mut().for_each(|dx| *dx /= 32.0);
    let mut expected = check::expected_training(&wider, &scaled);
    expected.retain(|e| matches!(e.name, "y" | "dx" | "dgamma" | "dbeta"));
    check::agree(&wider, &a, &b, expected)
}

/// Channels first or last: the same results, transposed, within both bounds.
fn transposed(gpu: &Gpu, s: &Setup) -> Result<(), String> {
    let (case, data) = (s.whole(), s.data());
    let g = case.geometry();
    let [outer, c, inner] = [g.outer(), g.channels(), g.inner()].map(|d| d as usize);
    // From [outer, C, inner] to [outer, inner, C], and back.
    let order = |values: &[f32], shape: [usize; 3]| -> Vec<f32> {
        let array = ArrayView1::from(values).into_shape_with_order(shape).unwrap();
        let mut array = array;
        array.swap_axes(1, 2);
        array.iter().copied().collect()
    };
    let last = Case { shape: vec![outer, inner, c], axis: ChannelAxis::Last, ..case.clone() };
    let there = |values: &[f32]| order(values, [outer, c, inner]);
    let back = |values: &[f32]| order(values, [outer, inner, c]);
    let moved = Data { x: there(&data.x), dy: there(&data.dy), z: there(&data.z), ..data.clone() };
    let restored = |r: Results| {
        let dz = if r.dz.is_empty() { Vec::new() } else { back(&r.dz) };
        Results { y: back(&r.y), dx: back(&r.dx), dz, ..r }
    };
    let (a, b) = (runner::train(gpu, &case, &data), runner::train(gpu, &last, &moved));
    check::agree(&case, &a, &restored(b), check::expected_training(&case, &data))?;
    let (a, b) = (runner::frozen(gpu, &case, &data), runner::frozen(gpu, &last, &moved));
    check::agree(&case, &a, &restored(b), check::expected_frozen(&case, &data))
}

/// The statistics of parts, merged, are those of the whole, however it is cut.
fn merged(gpu: &Gpu, s: &Setup) -> Result<(), String> {
    let data = s.data();
    let c = s.case.geometry().channels() as usize;
    let (mut all, mut parts) = (Moments::empty(c), Vec::new());
    for (case, part) in shards(&s.case, &data, &cuts(s)) {
        if case.geometry().is_empty() {
            continue;
        }
        all.merge(&moments(gpu, &case, &part)).unwrap();
        let exact = reference::statistics(&reference::Input::new(
            Oracle::new(&case, &part).x.view(),
            case.axis,
        ))
        .unwrap();
        parts.push((exact, bounds(&case, &part)));
    }
    let oracle = Oracle::new(&s.case, &data);
    let whole =
        reference::statistics(&reference::Input::new(oracle.x.view(), s.case.axis)).unwrap();
    let (means, variances) = compare::merged(&parts, &whole);
    good("merged mean", &s.case, compare::within(all.mean(), whole.mean(), &means))?;
    let variance = |m: &Moments| m.variance(RunningVariance::Population);
    let result = compare::within(&variance(&all), &variance(&whole), &variances);
    good("merged variance", &s.case, result)?;
    // And the whole in one read, through the same bounds.
    compare_statistics(&s.case, &data, &moments(gpu, &s.case, &data))
}

/// Three places to cut a case at, ascending, some of them the same.
fn cuts(s: &Setup) -> Vec<usize> {
    let outer = s.case.geometry().outer() as usize;
    let mut random = Random(u64::from(s.seed));
    let mut cuts: Vec<usize> = (0..3).map(|_| random.bits() as usize % (outer + 1)).collect();
    cuts.sort_unstable();
    cuts
}

/// A batch in shards of any size, none included, within the bounds of the whole; its update, masks
/// and memory are those of the whole.
fn sharded(gpu: &Gpu, s: &Setup) -> Result<(), String> {
    let (data, cuts) = (s.data(), cuts(s));
    let results = runner::sharded(gpu, &s.case, &data, &cuts);
    if s.case.config.update == Update::Cumulative && results.batches != data.batches + 1 {
        return Err(format!("{} batches: {}", results.batches, s.case));
    }
    check::compare_sharded(&s.case, &data, cuts.len() + 1, &results)
}

/// dgamma and dbeta under `accumulate`: what was there, and what would have been written.
fn accumulated(gpu: &Gpu, s: &Setup) -> Result<(), String> {
    // The two products of a renormalized dγ may cancel, and contract in another way where it is added.
    let s = &Setup { case: s.with(|config| config.renorm = None), ..s.clone() };
    let data = s.data();
    let first = runner::train(gpu, &s.case, &data);
    let mut inputs = inputs(&data);
    inputs.insert(Slot::Saved, bits(&first.saved()));
    // An inference writes the mask by its own values; any will do.
    let words = data.x.len().div_ceil(32);
    inputs.insert(Slot::Mask, first.mask.into_iter().chain(0..).take(words).collect());
    let overwriting = s.whole();
    let adding = s.with(|config| {
        config.gradients = Gradients { accumulate: true, ..Gradients::ALL };
    });
    fn pair<O: Bind>(
        gpu: &Gpu,
        [overwriting, adding]: [&Case; 2],
        inputs: &mut Contents,
        seed: u16,
    ) -> Result<(), String> {
        let slots = [Slot::Dgamma, Slot::Dbeta];
        slots.iter().for_each(|slot| drop(inputs.remove(slot)));
        let alone =
            runner::run(gpu, gpu.kernels(), runner::plan::<O>(gpu, overwriting).unwrap(), inputs);
        let c = overwriting.geometry().channels() as usize;
        let mut random = Random(u64::from(seed) + 1);
        for slot in slots {
            inputs.insert(slot, bits(&random.normals(c, 0.0, 3.0)));
        }
        let both = runner::run(gpu, gpu.kernels(), runner::plan::<O>(gpu, adding).unwrap(), inputs);
        for slot in slots {
            let Some(alone) = alone.get(&slot) else { continue };
            let (prior, alone) = (floats(&inputs[&slot]), floats(alone));
            let sums: Vec<f64> =
                prior.iter().zip(&alone).map(|(a, b)| f64::from(*a) + f64::from(*b)).collect();
            let bounds: Vec<f64> =
                prior.iter().zip(&alone).map(|(a, b)| compare::added(*a, *b)).collect();
            let result = compare::within(&floats(&both[&slot]), &sums, &bounds);
            good(slot.name(), adding, result)?;
        }
        Ok(())
    }
    pair::<Backward>(gpu, [&overwriting, &adding], &mut inputs, s.seed)?;
    pair::<FrozenBackward>(gpu, [&overwriting, &adding], &mut inputs, s.seed)
}

/// A gradient is the same to the bit whichever others are asked for. But for halves, of which dx is
/// made from dz as it was stored where dz is wanted: there it is, in both.
fn masked(gpu: &Gpu, s: &Setup) -> Result<(), String> {
    let data = s.data();
    let keeps_dz = s.case.config.element != Element::F32;
    let with = |gradients: Gradients| {
        s.with(|config| {
            config.affine = Affine::BOTH;
            config.gradients = Gradients { z: gradients.z || keeps_dz, ..gradients };
        })
    };
    let (whole, case) = (with(Gradients::ALL), with(s.case.config.gradients));
    let of = |case: &Case| (runner::train(gpu, case, &data), runner::frozen(gpu, case, &data));
    let ((all, frozen_all), (some, frozen_some)) = (of(&whole), of(&case));
    for (all, some) in [(&all, &some), (&frozen_all, &frozen_some)] {
        for name in ["dx", "dgamma", "dbeta", "dz"] {
            if !some.get(name).is_empty() {
                same(name, &case, &bits(some.get(name)), &bits(all.get(name)))?;
            }
        }
    }
    Ok(())
}

/// Inference is linear: between two inputs and between two gammas, its difference is what frozen
/// backward says.
fn linear(gpu: &Gpu, s: &Setup) -> Result<(), String> {
    let case = s.with(|config| {
        config.element = Element::F32;
        config.gradients = Gradients::ALL;
        config.affine.gamma = true;
        (config.activation, config.residual) = (Activation::None, false);
    });
    let g = case.geometry();
    let mut data = Data::random(g, u64::from(s.seed), 0.5, 2.0);
    round(&mut data, 1.0);
    let mut other = Data::random(g, u64::from(s.seed) + 1, -0.5, 2.0);
    round(&mut other, 1.0);
    // The step between them is exact.
    data.dy = data.x.iter().zip(&other.x).map(|(a, b)| b - a).collect();
    let stepped = Data { x: other.x, ..data.clone() };
    let (a, b) = (runner::frozen(gpu, &case, &data), runner::frozen(gpu, &case, &stepped));
    let difference = |a: &[f32], b: &[f32]| -> Vec<f64> {
        a.iter().zip(b).map(|(a, b)| f64::from(*b) - f64::from(*a)).collect()
    };
    let bounds = |data: &Data| {
        let center = Center::Running { mean: &data.running_mean, var: &data.running_var };
        Oracle::new(&case, data).bounds(&case, data, center)
    };
    let (here, there) = (bounds(&data), bounds(&stepped));
    let both = here.y().into_iter().zip(there.y()).zip(here.dx());
    let both: Vec<f64> = both.map(|((a, b), dx)| a + b + dx).collect();
    good("dx", &case, compare::within(&a.dx, &difference(&a.y, &b.y), &both))?;
    // In gamma: Σdy·(y with 2γ − y with γ) = γ·dgamma.
    let doubled = Data { gamma: data.gamma.iter().map(|g| 2.0 * g).collect(), ..data.clone() };
    let wide_bounds = bounds(&doubled);
    let b = runner::frozen(gpu, &case, &doubled);
    let steps = difference(&a.y, &b.y);
    let c = g.channels() as usize;
    let slopes: Vec<f64> = (0..c)
        .map(|c| places(g, c).map(|i| f64::from(data.dy[i]) * steps[i]).sum::<f64>())
        .collect();
    let actual: Vec<f64> =
        a.dgamma.iter().zip(&data.gamma).map(|(d, g)| f64::from(*d) * f64::from(*g)).collect();
    let sums = wide_bounds.y_slope().into_iter().zip(here.dgamma());
    let allowed: Vec<f64> =
        sums.zip(&data.gamma).map(|((y, d), g)| y + d * f64::from(*g).abs()).collect();
    good("dgamma", &case, compare::within(&actual, &slopes, &allowed))
}

/// Every gradient of both backwards is the slope of the oracle's forward, by finite differences.
fn slopes(gpu: &Gpu, s: &Setup) -> Result<(), String> {
    let data = s.data();
    // With corners there is no slope; tests/epilogue.rs has the others.
    let case = s.with(|config| {
        config.element = Element::F32;
        config.renorm = None;
        config.gradients = Gradients::ALL;
        (config.activation, config.residual) = (Activation::None, false);
    });
    let oracle = Oracle::new(&case, &data);
    let g = case.geometry();
    let mut random = Random(u64::from(s.seed));
    let affine = case.config.affine;
    let trained = runner::train(gpu, &case, &data);
    let frozen = runner::frozen(gpu, &case, &data);
    let center = Center::Running { mean: &data.running_mean, var: &data.running_var };
    let batch = oracle.bounds(&case, &data, Center::Batch);
    let running = oracle.bounds(&case, &data, center);
    for (name, results, b) in [("train", &trained, &batch), ("frozen", &frozen, &running)] {
        let (dx_bounds, dgamma_bounds, dbeta_bounds) = (b.dx(), b.dgamma(), b.dbeta());
        let channel = random.bits() as usize % g.channels() as usize;
        let at: Vec<usize> = places(g, channel).collect();
        let (n, gamma) = (at.len(), if affine.gamma { oracle.gamma[channel] } else { 1.0 });
        let x: Vec<f64> = at.iter().map(|&i| f64::from(data.x[i])).collect();
        let dy: Vec<f64> = at.iter().map(|&i| f64::from(data.dy[i])).collect();
        let one = |v: &[f32]| vec![f64::from(v[channel])].into();
        let state =
            Running { mean: one(&data.running_mean), var: one(&data.running_var), batches: 0 };
        // The channel alone: its loss for given values, gamma and beta.
        let forward = |x: &[f64], gamma: f64, beta: f64| -> (Vec<f64>, f64, f64) {
            let x = ArrayD::from_shape_vec(vec![n, 1], x.to_vec()).unwrap();
            let (gamma, beta) = ([gamma], [beta]);
            let input = reference::Input {
                gamma: Some(ArrayView1::from(&gamma)),
                beta: Some(ArrayView1::from(&beta)),
                ..reference::Input::new(x.view(), ChannelAxis::Last)
            };
            if name == "train" {
                let f = reference::train(&input, &state, &case.config).unwrap();
                (f.y.iter().copied().collect(), f.mean[0], f.inv_std[0])
            } else {
                let y = reference::infer(&input, &state, &case.config).unwrap();
                let inv_std = 1.0 / (state.var[0] + case.config.epsilon).sqrt();
                (y.iter().copied().collect(), state.mean[0], inv_std)
            }
        };
        let loss = |x: &[f64], gamma: f64, beta: f64| -> f64 {
            forward(x, gamma, beta).0.iter().zip(&dy).map(|(y, dy)| y * dy).sum()
        };
        let (_, mean, inv_std) = forward(&x, gamma, 0.0);
        let size = |x: f64| (x - mean).abs() * inv_std;
        let unit: f64 = x.iter().zip(&dy).map(|(x, dy)| dy.abs() * (size(*x) + 0.25)).sum();
        let largest = x.iter().fold(mean.abs(), |m, x| m.max(x.abs()));
        let (n, offset) = (n as f64, largest * inv_std);
        let near = |what: &str, actual: f32, slope: f64, bound: f64| {
            let result = compare::within(&[actual], &[slope], &[bound]);
            good(&format!("{name} {what} = {actual:e}, slope {slope:e}"), &case, result)
        };
        for _ in 0..3 {
            let j = random.bits() as usize % x.len();
            let difference = |h: f64| {
                let (mut up, mut down) = (x.clone(), x.clone());
                (up[j], down[j]) = (x[j] + h, x[j] - h);
                (loss(&up, gamma, 0.0) - loss(&down, gamma, 0.0)) / (up[j] - down[j])
            };
            let h = slope::STEP / (4.0 * inv_std);
            // The spacing of f64 around a large offset hides a step that is small against it.
            if x[j] + h / 2.0 == x[j] {
                continue;
            }
            let slope = (4.0 * difference(h / 2.0) - difference(h)) / 3.0;
            let allowed = slope::of_x(1.3 * gamma.abs() * unit, inv_std, n, offset);
            near("dx", results.dx[at[j]], slope, allowed + dx_bounds[at[j]])?;
        }
        let start = loss(&x, gamma, 0.0);
        let allowed = slope::of_parameter((gamma.abs() + 1.0) * unit, n, offset);
        if affine.gamma {
            let slope = loss(&x, gamma + 1.0, 0.0) - start;
            near("dgamma", results.dgamma[channel], slope, allowed + dgamma_bounds[channel])?;
        }
        if affine.beta {
            let total: f64 = dy.iter().map(|dy| dy.abs()).sum();
            let allowed = allowed + slope::of_parameter(total, n, offset);
            let slope = loss(&x, gamma, 1.0) - start;
            near("dbeta", results.dbeta[channel], slope, allowed + dbeta_bounds[channel])?;
        }
    }
    Ok(())
}

/// The host form is the embedding form on memory of its own.
fn host(gpu: &Gpu, s: &Setup) -> Result<(), String> {
    // Its memory is its own, and it keeps no mask.
    let as_host =
        |config: &mut Config| (config.memory, config.mask) = (Memory::Separate, Mask::Recompute);
    let case = Case { tuning: None, ..s.with(as_host) };
    let (data, config) = (s.data(), &case.config);
    let tensor = |v: &[f32]| ArrayD::from_shape_vec(case.shape.clone(), v.to_vec()).unwrap();
    // Views with a reversed axis, whose logical order is the data's.
    let reversed = |v: &[f32]| {
        let mut array = tensor(v);
        array.invert_axis(Axis(0));
        let mut array = array.as_standard_layout().into_owned();
        array.invert_axis(Axis(0));
        array
    };
    let (x, dy) = (reversed(&data.x), reversed(&data.dy));
    let affine = config.affine;
    let z = reversed(&data.z);
    let input = Input {
        gamma: affine.gamma.then(|| ArrayView1::from(&data.gamma)),
        beta: affine.beta.then(|| ArrayView1::from(&data.beta)),
        z: config.residual.then(|| z.view()),
        ..Input::new(x.view(), case.axis)
    };
    let before = RunningStatistics {
        mean: data.running_mean.clone().into(),
        var: data.running_var.clone().into(),
        batches: data.batches,
    };
    let mut running = before.clone();
    let text = |error: wgpu_batchnorm::HostError| error.to_string();
    let out = gpu.forward_train_blocking(&input, &mut running, config).map_err(text)?;
    let forward = runner::train(gpu, &case, &data);
    let flat = |a: &ArrayD<f32>| a.iter().map(|v| v.to_bits()).collect::<Vec<u32>>();
    same("y", &case, &flat(&out.y), &bits(&forward.y))?;
    same("mean", &case, &bits(&out.saved.mean.to_vec()), &bits(&forward.mean))?;
    same("inv_std", &case, &bits(&out.saved.inv_std.to_vec()), &bits(&forward.inv_std))?;
    same("count", &case, &bits(&out.saved.count.to_vec()), &bits(&forward.count))?;
    let moved = config.update != Update::None;
    let batches = data.batches + u32::from(moved);
    if running.batches != batches {
        return Err(format!("{} batches for {batches}: {case}", running.batches));
    }
    let expected = if moved { &forward.running_mean } else { &data.running_mean };
    same("running_mean", &case, &bits(&running.mean.to_vec()), &bits(expected))?;
    let expected = if moved { &forward.running_var } else { &data.running_var };
    same("running_var", &case, &bits(&running.var.to_vec()), &bits(expected))?;
    let y = gpu.forward_infer_blocking(&input, &before, config).map_err(text)?;
    let frozen = runner::frozen(gpu, &case, &data);
    same("inference", &case, &flat(&y), &bits(&frozen.y))?;
    let back = [
        gpu.backward_blocking(&input, dy.view(), &out.saved, config),
        gpu.frozen_backward_blocking(&input, dy.view(), &before, config),
    ];
    for (back, expected) in back.into_iter().zip([&forward, &frozen]) {
        let back = back.map_err(text)?;
        let dx = back.dx.map_or(Vec::new(), |dx| flat(&dx));
        same("dx", &case, &dx, &bits(&expected.dx))?;
        let dgamma = back.dgamma.map_or(Vec::new(), |d| bits(&d.to_vec()));
        same("dgamma", &case, &dgamma, &bits(&expected.dgamma))?;
        let dbeta = back.dbeta.map_or(Vec::new(), |d| bits(&d.to_vec()));
        same("dbeta", &case, &dbeta, &bits(&expected.dbeta))?;
        let dz = back.dz.map_or(Vec::new(), |dz| flat(&dz));
        same("dz", &case, &dz, &bits(&expected.dz))?;
    }
    Ok(())
}

/// A rate is one minus a decay; cumulative is a rate of one over the count.
fn conventions(gpu: &Gpu, s: &Setup) -> Result<(), String> {
    let data = s.data();
    let of = |update| {
        let case = s.with(|config| {
            config.update = update;
            config.gradients = Gradients::ALL;
        });
        (runner::train(gpu, &case, &data), check::expected_training(&case, &data))
    };
    let agree = |a: Update, b: Update| {
        let ((a, expected), (b, _)) = (of(a), of(b));
        check::agree(&s.case, &a, &b, expected)
    };
    for rate in [0.0, 0.25, 1.0] {
        agree(Update::Rate(rate), Update::Decay(1.0 - rate))?;
    }
    agree(Update::Cumulative, Update::Rate(1.0 / f64::from(data.batches + 1)))
}

/// Group normalization and its backward, by a number of groups that the seed picks, within the
/// derived bounds of the oracle.
fn grouped(gpu: &Gpu, s: &Setup) -> Result<(), String> {
    let (data, _) = s.bad_data();
    let channels = s.case.geometry().channels();
    let divisors: Vec<u64> = (1..=channels).filter(|n| channels.is_multiple_of(*n)).collect();
    let groups = divisors[usize::from(s.seed) % divisors.len()];
    let case = s.with(|config| (config.groups, config.renorm) = (groups, None));
    compare_grouped(&case, &data, &runner::grouped(gpu, &case, &data))
}

/// Weights of any size, a third of them 0, in all operations that know them.
fn weighted(gpu: &Gpu, s: &Setup) -> Result<(), String> {
    let case = s.with(|config| config.weights = true);
    let (n, mut random) = (case.geometry().values_per_channel(), Random(u64::from(s.seed)));
    let mut data = s.data();
    data.weights = (0..n)
        .map(|i| match random.unit() {
            // One of them counts.
            _ if i == u64::from(s.seed) % n => 1.0,
            weight if weight < 1.0 / 3.0 => 0.0,
            weight => (weight * [1e-3, 1.0, 1e3][usize::from(s.seed) % 3]) as f32,
        })
        .collect();
    let results = runner::train(gpu, &case, &data);
    compare_training(&case, &data, &results)?;
    let slot = runner::statistics(gpu, &case, &data);
    compare_statistics(&case, &data, &Moments::from_slot(&slot).unwrap())
}

/// A hundred runs of every operation give the same bits, alone and while the processor and the
/// device are busy with other work.
#[test]
fn a_hundred_runs_under_load() {
    let Some(gpu) = gpu() else { return };
    let added = |element| Config {
        element,
        activation: Activation::Relu,
        residual: true,
        ..Config::pytorch()
    };
    let cases = [
        Case::new(&[4, 3, 33, 31], ChannelAxis::First, Config::pytorch()),
        Case::new(&[500, 36], ChannelAxis::Last, Config::pytorch()),
        Case::new(&[2, 2, 64, 64], ChannelAxis::First, Config::pytorch()),
        Case::new(&[4, 3, 33, 31], ChannelAxis::First, added(Element::F16)),
        Case::new(&[501, 35], ChannelAxis::Last, added(Element::Bf16)),
    ];
    let first: Vec<(Data, Vec<u32>)> = cases
        .iter()
        .map(|case| {
            let data = Data::random(case.geometry(), 61, 1.0, 1.0).rounded(case.config.element);
            let bits = all_bits(gpu, case, &data);
            (data, bits)
        })
        .collect();
    let stop = AtomicBool::new(false);
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let work = || {
        for run in 0..50 {
            for (case, (data, first)) in cases.iter().zip(&first) {
                assert!(all_bits(gpu, case, data) == *first, "run {run} differs: {case}");
            }
        }
    };
    work();
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        let running = || !stop.load(Ordering::Relaxed);
        scope.spawn(move || {
            while running() {
                std::hint::black_box((0..10_000u64).sum::<u64>());
            }
        });
        scope.spawn(move || {
            let case = Case::new(&[16, 8, 32, 32], ChannelAxis::First, Config::keras());
            let data = Data::random(case.geometry(), 62, 0.0, 1.0);
            while running() {
                std::hint::black_box(runner::train(gpu, &case, &data));
            }
        });
        work();
    });
}
