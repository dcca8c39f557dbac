//! Cases for an implementation of WebGPU that is not wgpu.
//!
//! `scripts/test-webgpu` sets `BATCHNORM_WEBGPU` to a file; into it go the WGSL, overrides, bindings,
//! uniforms, grids and memory of plans of every kernel, with the oracle's results and their bounds.
//! `tests/webgpu/run.mjs` does on Dawn what `bind` and `encode` do on wgpu, and compares.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write};

use ndarray::Array1;
use serde_json::{Value, json};
use wgpu_batchnorm::{
    Activation, Affine, Backward, Caps, ChannelAxis, Class, Config, Element, Finalize,
    FrozenBackward, Gradient, Gradients, GroupNorm, GroupNormBackward, Infer, Kernel, Mask, Memory,
    Moments, NonFinite, Normalize, Operation, Plan, Reduce, RunningVariance, Slot, Statistics,
    Train, Tuning, Update, reference, shader,
};

use crate::common::check::{Oracle, flat, given, rate};
use crate::common::compare::{Arithmetic, Bounds, Center, GroupBounds, accumulated};
use crate::common::data::{Case, Data, Random, shards, small_tunings};
use crate::common::runner::{self, Arrangement, Contents, bits, inputs};
use crate::common::variants;

/// Values that must be near the expected ones.
struct Expected {
    slot: Slot,
    /// Its first value, in words from the slot's begin.
    begin: usize,
    /// Words to a second value that is added: the rest of a mean.
    rest: usize,
    values: Vec<f64>,
    bounds: Vec<f64>,
}

impl Expected {
    fn new(slot: Slot, values: Vec<f64>, bounds: Vec<f64>) -> Self {
        Self { slot, begin: 0, rest: 0, values, bounds }
    }

    fn at(self, begin: usize) -> Self {
        Self { begin, ..self }
    }

    fn with_rest(self, rest: usize) -> Self {
        Self { rest, ..self }
    }
}

fn hex(words: impl IntoIterator<Item = impl Into<u64>>, digits: usize) -> String {
    let mut text = String::new();
    for word in words {
        write!(text, "{:0digits$x}", word.into()).unwrap();
    }
    text
}

fn doubles(values: &[f64]) -> String {
    hex(values.iter().map(|v| v.to_bits()), 16)
}

#[derive(Default)]
struct Cases {
    list: Vec<Value>,
    covered: HashSet<(Kernel, u32, Memory, Element)>,
}

impl Cases {
    fn add<O: Operation>(
        &mut self,
        case: &Case,
        inputs: &Contents,
        expected: impl FnOnce() -> Vec<Expected>,
    ) {
        let caps = Caps::webgpu_default();
        let tuning = case.tuning.as_ref().unwrap();
        let plan = Plan::<O>::with_tuning(case.geometry(), &case.config, &caps, tuning).unwrap();
        if plan.stages().is_empty() {
            return;
        }
        let arrangement = Arrangement::new(&plan, inputs);
        let mut written = HashSet::new();
        let mut stages = Vec::new();
        for stage in plan.stages() {
            let v = &stage.variant;
            self.covered.insert((v.kernel, v.vector, v.memory, v.element));
            let bindings = shader::bindings(v);
            written.extend(
                bindings.iter().filter(|b| b.access == shader::Access::Write).map(|b| b.slot),
            );
            let constants: serde_json::Map<String, Value> =
                shader::constants(v).iter().map(|&(name, v)| (name.into(), v.into())).collect();
            let words: &[u32] = bytemuck::cast_slice(bytemuck::bytes_of(&stage.params));
            stages.push(json!({
                "kernel": v.kernel.name(),
                "wgsl": shader::source(v),
                "entry": shader::ENTRY_POINT,
                "constants": constants,
                "grid": stage.grid,
                "params": hex(words.iter().copied(), 8),
                "bindings": bindings.iter().map(|b| json!({
                    "number": b.number, "slot": b.slot.name(), "read_only": b.read_only,
                })).collect::<Vec<_>>(),
            }));
        }
        let slots: serde_json::Map<_, _> = arrangement
            .places
            .iter()
            .map(|(slot, &(buffer, begin, count))| {
                let place = json!({
                    "buffer": buffer, "begin": begin, "count": count, "written": written.contains(slot),
                });
                (slot.name().to_string(), place)
            })
            .collect();
        let expected: Vec<Value> = expected()
            .into_iter()
            .map(|e| {
                assert!(e.values.len() == e.bounds.len() && written.contains(&e.slot), "{case}");
                let finite = |v: &[f64]| v.iter().all(|v| v.is_finite());
                assert!(finite(&e.values) && finite(&e.bounds), "{case}: {}", e.slot);
                let element = if e.slot.is_tensor() { case.config.element } else { Element::F32 };
                json!({
                    "slot": e.slot.name(), "begin": e.begin, "rest": e.rest,
                    "element": element.name(),
                    "values": doubles(&e.values), "bounds": doubles(&e.bounds),
                })
            })
            .collect();
        assert!(!expected.is_empty(), "{case}: nothing to compare");
        let buffers: Vec<String> =
            arrangement.start.iter().map(|words| hex(words.iter().copied(), 8)).collect();
        self.list.push(json!({
            "kind": "case", "name": format!("{} {case}", O::NAME),
            "buffers": buffers, "slots": slots, "stages": stages, "expected": expected,
        }));
    }

    /// All operations on one case.
    fn add_all(&mut self, case: &Case, seed: u64) {
        if case.geometry().is_empty() {
            return self.add_empty(case);
        }
        let mut data = Data::random(case.geometry(), seed, 1.5, 2.0).rounded(case.config.element);
        if case.config.weights {
            data.weights = weights(case, seed);
        }
        let c = case.geometry().channels() as usize;
        let oracle = Oracle::new(case, &data);
        let input = oracle.input(case);
        let config = &case.config;
        let in_place = config.memory == Memory::InPlace;
        let (y, dx) = if in_place { (Slot::X, Slot::Dy) } else { (Slot::Y, Slot::Dx) };
        let batch = oracle.bounds(case, &data, Center::Batch);
        let center = Center::Running { mean: &data.running_mean, var: &data.running_var };
        let frozen = oracle.bounds(case, &data, center);
        let n = match case.config.weights {
            true => data.weights.iter().map(|&w| f64::from(w)).sum(),
            false => case.geometry().values_per_channel() as f64,
        };
        let mut contents = inputs(&data);
        let f = reference::train(&input, &oracle.running, config).unwrap();

        // What a batch settles into.
        let settled = |bounds: &Bounds| {
            let mean = f.mean.to_vec();
            let mut all = vec![
                Expected::new(Slot::Saved, mean.clone(), bounds.mean()),
                Expected::new(Slot::Saved, mean, bounds.whole_mean()).with_rest(c),
                Expected::new(Slot::Saved, f.inv_std.to_vec(), bounds.inv_std()).at(2 * c),
                Expected::new(Slot::Saved, vec![n; c], bounds.count()).at(3 * c),
            ];
            if config.update != Update::None {
                let rate = rate(case, &data);
                let factor = config.running_variance.factor(n);
                let allowed = bounds.running_mean(&data.running_mean, rate);
                all.push(Expected::new(Slot::RunningMean, f.running.mean.to_vec(), allowed));
                let allowed = bounds.running_var(&data.running_var, rate, factor, config.epsilon);
                all.push(Expected::new(Slot::RunningVar, f.running.var.to_vec(), allowed));
            }
            if config.update == Update::Cumulative {
                // The count, looked at as the bits of a float: a denormal, equal or not.
                let count = f64::from(f32::from_bits(data.batches + 1));
                all.push(Expected::new(Slot::Batches, vec![count], vec![0.0]));
            }
            all
        };
        self.add::<Train>(case, &contents, || {
            let mut all = settled(&batch);
            all.push(Expected::new(y, flat(&f.y), batch.y()));
            all
        });
        // Every row is a part, and so are three that are empty.
        let parts = parts_of(case, &data);
        contents.insert(Slot::Parts, bits(&parts));
        let part_count = parts.len() / (4 * c);
        let sharded = Arithmetic::Sharded { parts: part_count };
        let sharded = oracle.bounds_by(case, &data, Center::Batch, sharded);
        let rows = runner::parts_case(case, part_count);
        self.add::<Finalize>(&rows, &contents, || settled(&sharded));
        self.add::<Infer>(case, &contents, || {
            let out = reference::infer(&input, &oracle.running, config).unwrap();
            vec![Expected::new(y, flat(&out), frozen.y())]
        });
        self.add::<Statistics>(case, &contents, || {
            let moments = moments_of(case, &oracle);
            let variance = moments.variance(RunningVariance::Population);
            vec![
                Expected::new(Slot::Moments, moments.mean().to_vec(), batch.whole_mean())
                    .with_rest(c),
                Expected::new(Slot::Moments, variance, batch.variance()).at(2 * c),
                Expected::new(Slot::Moments, vec![n; c], batch.count()).at(3 * c),
            ]
        });

        // What a forward leaves, without its rounding.
        contents.insert(Slot::Saved, saved(&f.mean, &f.inv_std, n));
        // What the activation takes decides the mask.
        let before = Config { activation: Activation::None, ..config.clone() };
        let trained = reference::train(&input, &oracle.running, &before).unwrap().y;
        let inferred = reference::infer(&input, &oracle.running, &before).unwrap();
        contents.insert(Slot::Mask, mask(config.activation, &flat(&trained)));
        let mut random = Random(seed);
        let old = [random.normals(c, 0.0, 1.0), random.normals(c, 0.0, 1.0)];
        if config.gradients.accumulate {
            contents.insert(Slot::Dgamma, bits(&old[0]));
            contents.insert(Slot::Dbeta, bits(&old[1]));
        }
        let gradients = |g: reference::InputGradients, bounds: [Vec<f64>; 4]| {
            let [dx_bounds, dgamma_bounds, dbeta_bounds, dz_bounds] = bounds;
            let added = |slot, mut values: Vec<f64>, old: &[f32], mut bounds: Vec<f64>| {
                if config.gradients.accumulate {
                    values.iter_mut().zip(old).for_each(|(v, &old)| *v += f64::from(old));
                    bounds = accumulated(&bounds, &values);
                }
                Expected::new(slot, values, bounds)
            };
            let mut all = Vec::new();
            if config.gradients.x {
                all.push(Expected::new(dx, flat(&g.dx), dx_bounds));
            }
            if config.gradients.z && config.residual {
                all.push(Expected::new(Slot::Dz, flat(&g.dz), dz_bounds));
            }
            if config.gradients.gamma && config.affine.gamma {
                all.push(added(Slot::Dgamma, g.dgamma.to_vec(), &old[0], dgamma_bounds));
            }
            if config.gradients.beta && config.affine.beta {
                all.push(added(Slot::Dbeta, g.dbeta.to_vec(), &old[1], dbeta_bounds));
            }
            all
        };
        self.add::<Normalize>(case, &contents, || vec![Expected::new(y, flat(&f.y), batch.y())]);
        let g = reference::backward(&input, oracle.dy.view(), config).unwrap();
        let s2 = g.dgamma.iter().zip(&f.inv_std).map(|(dgamma, inv_std)| dgamma / inv_std);
        let sums: Vec<f64> = g.dbeta.iter().copied().chain(s2).collect();
        let narrow: Vec<f32> = sums.iter().map(|&v| v as f32).collect();
        contents.insert(Slot::Sums, bits(&narrow));
        contents.insert(Slot::Dz, flat(&g.dz).iter().map(|&v| (v as f32).to_bits()).collect());
        self.add::<Gradient>(case, &contents, || vec![Expected::new(dx, flat(&g.dx), batch.dx())]);
        contents.remove(&Slot::Dz);
        self.add::<Reduce>(case, &contents, || {
            let mut all =
                gradients(g.clone(), [batch.dx(), batch.dgamma(), batch.dbeta(), batch.dz()]);
            all.retain(|e| e.slot != dx);
            if config.gradients.x {
                let s2 = batch.dgamma().iter().zip(&f.inv_std).map(|(b, i)| b / i).collect();
                all.push(Expected::new(Slot::Sums, g.dbeta.to_vec(), batch.dbeta()));
                all.push(Expected::new(Slot::Sums, sums[c..].to_vec(), s2).at(c));
            }
            all
        });
        self.add::<Backward>(case, &contents, || {
            let g = reference::backward(&input, oracle.dy.view(), config).unwrap();
            gradients(g, [batch.dx(), batch.dgamma(), batch.dbeta(), batch.dz()])
        });
        contents.insert(Slot::Mask, mask(config.activation, &flat(&inferred)));
        self.add::<FrozenBackward>(case, &contents, || {
            let (dy, running) = (oracle.dy.view(), &oracle.running);
            let g = reference::frozen_backward(&input, dy, running, config).unwrap();
            gradients(g, [frozen.dx(), frozen.dgamma(), frozen.dbeta(), frozen.dz()])
        });

        if config.weights {
            // Group normalization takes none.
            return;
        }
        // As many groups as the config says: one.
        let bounds = GroupBounds::new(case.geometry(), given(case, &data), config);
        let f = reference::group_norm(&input, config).unwrap();
        let (count, mean) = (f.mean.len(), f.mean.to_vec());
        let n = case.geometry().len() as f64 / count as f64;
        contents.remove(&Slot::Mask);
        contents.remove(&Slot::Saved);
        self.add::<GroupNorm>(case, &contents, || {
            let (inv_std, b) = (f.inv_std.to_vec(), &bounds.groups);
            vec![
                Expected::new(y, flat(&f.y), bounds.rows.y()),
                Expected::new(Slot::Saved, mean, b.whole_mean()).with_rest(count),
                Expected::new(Slot::Saved, inv_std, b.inv_std()).at(2 * count),
                Expected::new(Slot::Saved, vec![n; count], b.count()).at(3 * count),
            ]
        });
        contents.insert(Slot::Saved, saved(&f.mean, &f.inv_std, n));
        let normalized = reference::group_norm(&input, &before).unwrap().y;
        contents.insert(Slot::Mask, mask(config.activation, &flat(&normalized)));
        self.add::<GroupNormBackward>(case, &contents, || {
            let g = reference::group_norm_backward(&input, oracle.dy.view(), config).unwrap();
            let b = &bounds;
            gradients(g, [b.groups.dx(), b.dgamma(), b.dbeta(), b.rows.dz()])
        });
    }

    /// An empty batch has zeros as statistics and as gradients of the parameters.
    fn add_empty(&mut self, case: &Case) {
        let zeros = |slot, count| Expected::new(slot, vec![0.0; count], vec![0.0; count]);
        let c = case.geometry().channels() as usize;
        let contents = Contents::new();
        self.add::<Statistics>(case, &contents, || vec![zeros(Slot::Moments, 4 * c)]);
        let gradients = || vec![zeros(Slot::Dgamma, c), zeros(Slot::Dbeta, c)];
        self.add::<Backward>(case, &contents, gradients);
        self.add::<FrozenBackward>(case, &contents, gradients);
        self.add::<Reduce>(case, &contents, || {
            let mut all = gradients();
            all.push(zeros(Slot::Sums, 2 * c));
            all
        });
        self.add::<Finalize>(case, &inputs(&Data::random(case.geometry(), 1, 0.0, 1.0)), || {
            vec![zeros(Slot::Saved, 4 * c)]
        });
    }
}

/// What a forward of n values in each mean leaves, without its rounding.
fn saved(mean: &Array1<f64>, inv_std: &Array1<f64>, n: f64) -> Vec<u32> {
    let narrow: Vec<f32> = mean.iter().map(|&v| v as f32).collect();
    let rest = mean.iter().zip(&narrow).map(|(&v, &mean)| (v - f64::from(mean)) as f32);
    let inv_std = inv_std.iter().map(|&v| v as f32);
    let count = vec![n as f32; mean.len()];
    let all: Vec<f32> = narrow.iter().copied().chain(rest).chain(inv_std).chain(count).collect();
    bits(&all)
}

/// One bit per value, set where a ReLU is open.
fn mask(activation: Activation, before: &[f64]) -> Vec<u32> {
    let limit = match activation {
        Activation::ClippedRelu { limit } => limit,
        _ => f64::INFINITY,
    };
    let word = |values: &[f64]| {
        let bit = |(i, v): (usize, &f64)| u32::from(*v > 0.0 && *v < limit) << i;
        values.iter().enumerate().map(bit).fold(0, |word, bit| word | bit)
    };
    before.chunks(32).map(word).collect()
}

fn moments_of(case: &Case, oracle: &Oracle) -> Moments {
    let weights = case.config.weights.then(|| oracle.weights.view());
    let input = reference::Input::new(oracle.x.view(), case.axis);
    reference::statistics(&reference::Input { weights, ..input }).unwrap()
}

/// Every third position has no weight.
fn weights(case: &Case, seed: u64) -> Vec<f32> {
    let mut random = Random(seed ^ 0x3e);
    let mut one = |i: u64| if i % 3 == 1 { 0.0 } else { (0.1 + 2.0 * random.unit()) as f32 };
    (0..case.geometry().values_per_channel()).map(&mut one).collect()
}

/// The moments of every row of a batch, by the oracle, and three empty parts that hold NaN.
fn parts_of(case: &Case, data: &Data) -> Vec<f32> {
    let cuts: Vec<usize> = (1..case.geometry().outer() as usize).collect();
    let mut parts = Vec::new();
    for (i, (case, data)) in shards(case, data, &cuts).iter().enumerate() {
        let moments = moments_of(case, &Oracle::new(case, data));
        let c = moments.channels();
        let mean = moments.mean().iter().map(|&v| v as f32);
        let rest = moments.mean().iter().map(|&v| (v - f64::from(v as f32)) as f32);
        let variance = moments.variance(RunningVariance::Population);
        parts.extend(mean.chain(rest).chain(variance.iter().map(|&v| v as f32)));
        parts.extend(vec![moments.count() as f32; c]);
        if i < 3 {
            parts.extend([vec![f32::NAN; 3 * c], vec![0.0; c]].concat());
        }
    }
    parts
}

/// Shapes of every path, each cut by several tunings; options take turns.
fn cases() -> Cases {
    let shapes: [(&[usize], ChannelAxis); 8] = [
        (&[3, 5, 6, 8], ChannelAxis::First),
        (&[3, 5, 7, 9], ChannelAxis::First),
        (&[2, 3, 40, 30], ChannelAxis::First),
        (&[33, 12], ChannelAxis::Last),
        (&[35, 7], ChannelAxis::Last),
        (&[150, 9], ChannelAxis::Last),
        (&[17, 4, 3], ChannelAxis::First),
        (&[0, 3], ChannelAxis::First),
    ];
    let [split, fused, wide] = small_tunings();
    let mut cases = Cases::default();
    let mut turn = 0;
    for (shape, axis) in shapes {
        for memory in [Memory::Separate, Memory::InPlace, Memory::Arena] {
            for (i, tuning) in [&split, &fused, &wide, &fused, &split].into_iter().enumerate() {
                let mut config = Config { memory, ..Config::keras() };
                // The first two take the defaults, so that nothing is lost in combinations.
                if i >= 2 && !shape.contains(&0) {
                    config.update =
                        [Update::Cumulative, Update::None, Update::Decay(0.9)][turn % 3];
                    config.affine = Affine { gamma: turn % 4 != 1, beta: turn % 4 != 2 };
                    config.activation = [
                        Activation::Relu,
                        Activation::None,
                        Activation::RELU6,
                        Activation::Silu,
                        Activation::LeakyRelu { slope: 0.1 },
                    ][turn % 5];
                    config.residual = turn % 2 == 1;
                    config.mask = [Mask::Auto, Mask::Bits, Mask::Recompute][turn % 3];
                    config.non_finite = [NonFinite::Keep, NonFinite::Propagate][turn % 2];
                    config.running_variance = RunningVariance::Unbiased;
                    config.gradients = Gradients {
                        x: turn % 5 != 0,
                        gamma: turn % 7 != 2,
                        beta: turn % 5 != 3,
                        z: turn % 3 != 1,
                        accumulate: turn % 2 == 1,
                    };
                    turn += 1;
                }
                cases.add_all(&Case::new(shape, axis, config).tuned(tuning), 7 + turn as u64);
            }
        }
        // Halves: every path, by every memory.
        for memory in [Memory::Separate, Memory::InPlace, Memory::Arena] {
            for element in [Element::F16, Element::Bf16] {
                // A residual binds too much for one dispatch.
                for (tuning, residual) in [(&split, turn % 3 != 0), (&fused, false)] {
                    let config = Config {
                        element,
                        memory,
                        activation: [Activation::Relu, Activation::None][turn % 2],
                        residual,
                        mask: [Mask::Auto, Mask::Bits, Mask::Recompute][turn % 3],
                        ..Config::keras()
                    };
                    turn += 1;
                    cases.add_all(&Case::new(shape, axis, config).tuned(tuning), 7 + turn as u64);
                }
            }
        }
        // Weights: the same, but that there is no path of one dispatch.
        for memory in [Memory::Separate, Memory::InPlace, Memory::Arena] {
            for element in [Element::F32, Element::F16, Element::Bf16] {
                let config = Config {
                    element,
                    memory,
                    weights: true,
                    activation: [Activation::Relu, Activation::None, Activation::Silu][turn % 3],
                    residual: turn % 2 == 0,
                    update: [Update::Cumulative, Update::Rate(0.3)][turn % 2],
                    ..Config::pytorch()
                };
                turn += 1;
                let tuning = [&split, &wide][turn % 2];
                cases.add_all(&Case::new(shape, axis, config).tuned(tuning), 7 + turn as u64);
            }
        }
        for class in [Class::Software, Class::Hardware] {
            let caps = Caps { class, ..Caps::webgpu_default() };
            let case = Case::new(shape, axis, Config::pytorch());
            let tuning = Tuning::choose(&caps, &case.geometry(), case.config.element);
            cases.add_all(&case.tuned(&tuning), 5);
        }
    }
    cases
}

#[test]
fn cases_cover_every_kernel() {
    let cases = cases();
    let possible: HashSet<_> =
        variants::all().iter().map(|v| (v.kernel, v.vector, v.memory, v.element)).collect();
    let missing: Vec<_> = possible.difference(&cases.covered).collect();
    assert!(missing.is_empty(), "{missing:?}");
    println!("{} cases", cases.list.len());
    assert_eq!(cases.list.len(), CASE_COUNT);
    let Some(file) = std::env::var_os("BATCHNORM_WEBGPU") else { return };
    let mut known = HashSet::new();
    let modules: Vec<_> = variants::all()
        .iter()
        .map(|v| (v.kernel.name(), shader::source(v)))
        .filter(|(_, source)| known.insert(source.clone()))
        .map(|(name, wgsl)| json!({ "kind": "module", "name": name, "wgsl": wgsl }))
        .collect();
    // An item to a line: the whole is too long for a string of JavaScript's.
    let mut out = BufWriter::new(File::create(file).unwrap());
    writeln!(out, "{}", json!({ "module": modules.len(), "case": cases.list.len() })).unwrap();
    for item in modules.iter().chain(&cases.list) {
        writeln!(out, "{item}").unwrap();
    }
    out.flush().unwrap();
}

/// So that the list cannot shrink unnoticed.
const CASE_COUNT: usize = 2_972;
