//! Tests of the whole network; the other modules test themselves.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::OnceLock;

use wgpu_batchnorm::{Config, Gpu};

use crate::arguments::{self, Command};
use crate::checkpoint::{Checkpoint, Tensor};
use crate::data::{self, DataSet, Images};
use crate::network::{
    CONV_AREA, Design, FEATURES, FILTERS, IMAGE, Layer, Mode, Network, Optimizer, Order, Parameter,
    Sizes, Step,
};
use crate::survey::{Repeat, Watch};
use crate::training::{Settings, Trainer, still};
use crate::{gpu, network, reference, saved, study, survey};

/// The device under test. Without one a test says SKIP; under `BATCHNORM_REQUIRE_GPU=1` it fails.
fn gpu() -> Option<&'static Gpu> {
    static GPU: OnceLock<Option<Gpu>> = OnceLock::new();
    let open = || match Gpu::new_blocking() {
        Ok(gpu) => Some(gpu),
        Err(error) => {
            let required = std::env::var("BATCHNORM_REQUIRE_GPU").is_ok_and(|value| value == "1");
            assert!(!required, "BATCHNORM_REQUIRE_GPU is set, but: {error}");
            eprintln!("SKIP: {error}");
            None
        }
    };
    GPU.get_or_init(open).as_ref()
}

fn settings() -> Settings {
    Settings { seed: 1, ..Settings::default() }
}

fn design(normalize: Option<Config>, optimizer: Optimizer, max_batch: usize) -> Design {
    let order = Order::ReluFirst;
    Design { normalize, order, optimizer, max_batch, record_count: 1, lanes: 8 }
}

fn network(
    gpu: &Gpu,
    normalize: Option<Config>,
    optimizer: Optimizer,
    max_batch: usize,
) -> Network {
    Network::new(gpu, design(normalize, optimizer, max_batch), 5).expect("a network")
}

/// Changes all parameters, so that none is special: γ is not 1, biases are not 0.
fn disturb(network: &Network) -> Vec<f32> {
    let mut state = network.state().expect("state");
    let mut random = fastrand::Rng::with_seed(9);
    state.parameters.iter_mut().for_each(|value| *value += 0.2 * (random.f32() - 0.5));
    network.load(&state);
    state.parameters
}

/// Images in which no two values are alike, so that no maximum has a tie.
fn noise(count: usize) -> Images {
    let mut random = fastrand::Rng::with_seed(7);
    Images {
        pixels: (0..count * IMAGE).map(|_| random.f32()).collect(),
        labels: (0..count).map(|i| (i * 3 % 10) as u8).collect(),
    }
}

/// The twin of `dropout_factor` in `dropout.wgsl`.
fn dropout_factor(index: u32, step: &Step) -> f64 {
    let hash = |value: u32| {
        let state = value.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
        let word = ((state >> ((state >> 28) + 4)) ^ state).wrapping_mul(277_803_737);
        (word >> 22) ^ word
    };
    let dropped = hash(index ^ hash(step.dropout_seed)) < step.dropout_threshold;
    if dropped { 0.0 } else { f64::from(step.dropout_scale) }
}

/// The gradient of every parameter, of every layer thus, against differences of the loss in f64.
#[test]
fn gradients_are_the_differences_of_the_loss() {
    let Some(gpu) = gpu() else { return };
    // Nine images leave a part of each kernel's groups of four and eight; every GPU's number of lanes
    // and the software adapters'.
    for (normalize, order, dropout, count, lanes) in [
        (None, Order::ReluFirst, 0.0, 3, 8),
        (Some(Config::keras()), Order::ReluFirst, 0.0, 9, 32),
        (Some(Config::pytorch()), Order::ReluFirst, 0.4, 1, 8),
        (Some(Config::keras()), Order::NormFirst, 0.2, 5, 32),
    ] {
        let images = noise(count);
        let indices: Vec<usize> = (0..count).collect();
        let step = Step {
            dropout_seed: 11,
            dropout_threshold: (dropout * 2f64.powi(32)) as u32,
            dropout_scale: (1.0 / (1.0 - dropout)) as f32,
            ..Step::default()
        };
        let epsilon = normalize.as_ref().map(|config| config.epsilon);
        let design = Design { order, lanes, ..design(normalize, Optimizer::Sgd, count) };
        let mut network = Network::new(gpu, design, 5).expect("a network");
        let parameters = disturb(&network);
        network.run(Mode::Train, &images, &indices, &step).expect("a step");
        let gradients = network.gradients().expect("gradients");
        let record = network.records(1).expect("record")[0];

        let mut parameters: Vec<f64> = parameters.iter().map(|&p| p.into()).collect();
        let pixels: Vec<f64> = images.pixels.iter().map(|&p| p.into()).collect();
        let factors: Vec<f64> =
            (0..(count * FEATURES) as u32).map(|index| dropout_factor(index, &step)).collect();
        let loss = |parameters: &[f64]| {
            reference::loss(parameters, &pixels, &images.labels, epsilon, order, &factors)
        };
        let expected = loss(&parameters);
        let found = f64::from(record.loss) / count as f64;
        assert!((found - expected).abs() < 1e-5 * expected, "loss {found}, expected {expected}");
        for parameter in Parameter::ALL {
            if epsilon.is_none() && parameter.normalizes() {
                continue;
            }
            let begin = parameter.offset();
            let stride = parameter.len().div_ceil(72 / count.max(3));
            let places: Vec<usize> = (begin..begin + parameter.len()).step_by(stride).collect();
            let mut worst = 0f64;
            let mut largest = 0f64;
            for place in places {
                // Small enough that hardly a relu or a maximum changes its mind on the way; rounding
                // is some 1e-16/h.
                let h = 1e-7;
                let value = parameters[place];
                parameters[place] = value + h;
                let above = loss(&parameters);
                parameters[place] = value - h;
                let below = loss(&parameters);
                parameters[place] = value;
                let difference = (above - below) / (2.0 * h);
                worst = worst.max((f64::from(gradients[place]) - difference).abs());
                largest = largest.max(difference.abs());
            }
            // Sums of some 10³ products in f32 whose terms partly cancel, and all of them where a
            // normalization takes a constant out again.
            let bound = 1e-5 * largest + 1e-6;
            eprintln!("{parameter:?}: worst {worst:.1e} of {largest:.1e}");
            let constant = matches!(parameter, Parameter::ConvBias | Parameter::InputBeta);
            let cancels = order == Order::NormFirst && constant;
            assert!(cancels || largest > 0.01, "{parameter:?} has hardly a gradient: {largest}");
            assert!(worst <= bound, "{parameter:?}: off by {worst:e}, bound {bound:e}");
        }
    }
}

/// The gradient of a batch is the mean of its images' gradients, each of which is a batch of one; 37
/// images leave a part of every chunk, tile and group.
#[test]
fn a_batch_is_the_sum_of_its_images() {
    let Some(gpu) = gpu() else { return };
    let count = 37;
    let images = noise(count);
    for lanes in [8, 32] {
        let design = Design { lanes, ..design(None, Optimizer::Sgd, count) };
        let mut network = Network::new(gpu, design, 5).expect("a network");
        disturb(&network);
        let mut gradient = |indices: &[usize]| {
            network.run(Mode::Train, &images, indices, &still(0)).expect("a step");
            let record = network.records(1).expect("a record")[0];
            let gradients = network.gradients().expect("gradients");
            (f64::from(record.loss), f64::from(record.correct), gradients)
        };
        let mut mean = vec![0f64; Parameter::total()];
        let (mut loss, mut correct) = (0.0, 0.0);
        for image in 0..count {
            let one = gradient(&[image]);
            (loss, correct) = (loss + one.0, correct + one.1);
            for (sum, value) in mean.iter_mut().zip(&one.2) {
                *sum += f64::from(*value) / count as f64;
            }
        }
        let all: Vec<usize> = (0..count).collect();
        let whole = gradient(&all);
        assert!((whole.0 - loss).abs() < 1e-5 * loss, "{} {loss}", whole.0);
        assert_eq!(whole.1, correct);
        for parameter in Parameter::ALL.into_iter().filter(|p| !p.normalizes()) {
            let range = parameter.offset()..parameter.offset() + parameter.len();
            let largest = mean[range.clone()].iter().fold(0f64, |a, v| a.max(v.abs()));
            for i in range {
                // As for the differences of the loss.
                let error = (f64::from(whole.2[i]) - mean[i]).abs();
                assert!(error <= 1e-5 * largest, "{parameter:?} {i}: {error:e} of {largest:e}");
            }
        }
    }
}

/// Three steps of each optimizer against its formula in f64.
#[test]
fn optimizers_take_their_steps() {
    let Some(gpu) = gpu() else { return };
    let images = noise(2);
    let (rate, decay) = (0.01, 0.003);
    for optimizer in [Optimizer::Sgd, Optimizer::Adam] {
        let mut network = network(gpu, Some(Config::keras()), optimizer, 2);
        let wide = |values: Vec<f32>| values.into_iter().map(f64::from).collect::<Vec<f64>>();
        let mut expected = wide(disturb(&network));
        let (mut m, mut v) = (vec![0.0; expected.len()], vec![0.0; expected.len()]);
        for t in 1..=3 {
            let correction = |beta: f64| 1.0 / (1.0 - beta.powi(t));
            let step = Step {
                learning_rate: rate as f32,
                decay: decay as f32,
                correction_1: correction(0.9) as f32,
                correction_2: correction(0.999) as f32,
                ..still(0)
            };
            network.run(Mode::Train, &images, &[0, 1], &step).expect("a step");
            let gradients = wide(network.gradients().expect("gradients"));
            let found = wide(network.state().expect("state").parameters);
            for parameter in Parameter::ALL {
                for i in parameter.offset()..parameter.offset() + parameter.len() {
                    let g = gradients[i];
                    m[i] = 0.9 * m[i] + 0.1 * g;
                    v[i] = 0.999 * v[i] + 0.001 * g * g;
                    let moved = match optimizer {
                        Optimizer::Sgd => g,
                        Optimizer::Adam => {
                            m[i] * correction(0.9) / ((v[i] * correction(0.999)).sqrt() + 1e-8)
                        }
                    };
                    let weight =
                        matches!(parameter, Parameter::ConvWeights | Parameter::DenseWeights);
                    let shrunk = if weight { decay * expected[i] } else { 0.0 };
                    expected[i] -= shrunk + rate * moved;
                    // Some ten roundings of the parameter and of its step; a gradient that is
                    // rounded noise may have any direction.
                    let size = expected[i].abs() + rate * (moved.abs() + g.abs());
                    let bound = 16.0 * f64::from(f32::EPSILON) * size;
                    let error = (found[i] - expected[i]).abs();
                    assert!(error <= bound, "{optimizer:?} {t} {parameter:?} {i}: {error:e}");
                    // What is compared next starts from what the device has.
                    expected[i] = found[i];
                }
            }
        }
    }
}

/// The structs and constants that WGSL and Rust both have are the same.
#[test]
fn twins_are_alike() {
    let source = format!("{}\n@compute @workgroup_size(1) fn main() {{}}", gpu::COMMON);
    let module = naga::front::wgsl::parse_str(&source).expect("WGSL");
    let layout = |name: &str| -> Vec<(String, u32)> {
        let found = module.types.iter().find(|(_, t)| t.name.as_deref() == Some(name));
        let Some((_, naga::Type { inner: naga::TypeInner::Struct { members, .. }, .. })) = found
        else {
            panic!("no struct {name}");
        };
        members.iter().map(|m| (m.name.clone().unwrap_or_default(), m.offset)).collect()
    };
    macro_rules! twin {
        ($name:ident, $($field:ident),*) => {
            let own = vec![$((stringify!($field).to_string(), std::mem::offset_of!($name, $field) as u32)),*];
            assert_eq!(layout(stringify!($name)), own);
        };
    }
    twin!(Sizes, batch, chunk, chunk_count, padding);
    twin!(
        Step,
        record,
        dropout_seed,
        dropout_threshold,
        dropout_scale,
        learning_rate,
        decay,
        correction_1,
        correction_2
    );
    for (name, value) in [
        ("SIDE", data::SIDE),
        ("IMAGE", IMAGE),
        ("CONV_SIDE", network::CONV_SIDE),
        ("CONV_AREA", CONV_AREA),
        ("FILTERS", FILTERS),
        ("TAPS", network::TAPS),
        ("FEATURES", FEATURES),
        ("CLASSES", data::CLASSES),
        ("LOGIT_ROW", network::LOGIT_ROW),
        ("GROUP", network::GROUP),
    ] {
        let mut constants = module.constants.iter();
        let found = constants.find(|(_, c)| c.name.as_deref() == Some(name));
        let init = found.map(|(_, constant)| &module.global_expressions[constant.init]);
        let Some(naga::Expression::Literal(naga::Literal::U32(found))) = init else {
            panic!("no constant {name}");
        };
        assert_eq!(*found as usize, value, "{name}");
    }
}

/// The part of dropped features is what was asked for, and inference drops none.
#[test]
fn dropout_is_for_training_only() {
    let Some(gpu) = gpu() else { return };
    let images = noise(4);
    let indices = [0, 1, 2, 3];
    let mut network = network(gpu, Some(Config::keras()), Optimizer::Sgd, 4);
    let dropping = Step { dropout_threshold: 1 << 30, dropout_scale: 4.0 / 3.0, ..still(0) };
    network.run(Mode::Train, &images, &indices, &still(0)).expect("a step");
    let whole = network.features(4).expect("features");
    network.run(Mode::Train, &images, &indices, &dropping).expect("a step");
    let dropped = network.features(4).expect("features");
    let zeros = dropped.iter().zip(&whole).filter(|(d, w)| **d == 0.0 && **w != 0.0).count();
    let part = zeros as f64 / whole.len() as f64;
    // A quarter of 21,632; the standard deviation is 0.003.
    assert!((part - 0.25).abs() < 0.015, "{part} dropped");
    for (d, w) in dropped.iter().zip(&whole).filter(|(d, _)| **d != 0.0) {
        assert_eq!(*d, w * (4.0 / 3.0));
    }
    network.run(Mode::Infer, &images, &indices, &dropping).expect("inference");
    let inferred = network.features(4).expect("features");
    assert!(inferred.iter().all(|value| value.is_finite()));
    assert!(inferred.iter().filter(|value| **value == 0.0).count() < inferred.len() / 100);
}

/// Decay shrinks the weights by its factor and leaves biases, γ and β alone.
#[test]
fn weight_decay_spares_biases_and_normalization() {
    let Some(gpu) = gpu() else { return };
    let images = noise(2);
    for optimizer in [Optimizer::Sgd, Optimizer::Adam] {
        let after = |decay: f32| {
            let mut network = network(gpu, Some(Config::keras()), optimizer, 2);
            let step = Step {
                learning_rate: 0.01,
                decay,
                correction_1: 10.0,
                correction_2: 1000.0,
                ..still(0)
            };
            network.run(Mode::Train, &images, &[0, 1], &step).expect("a step");
            network.state().expect("state").parameters
        };
        let before = network(gpu, None, optimizer, 2).state().expect("state").parameters;
        let (plain, decayed) = (after(0.0), after(0.25));
        for parameter in Parameter::ALL {
            let range = parameter.offset()..parameter.offset() + parameter.len();
            let weights = matches!(parameter, Parameter::ConvWeights | Parameter::DenseWeights);
            for i in range {
                let lost = plain[i] - decayed[i];
                let expected = if weights { 0.25 * before[i] } else { 0.0 };
                // Two roundings of a sum.
                let bound = 2.0 * f32::EPSILON * (plain[i].abs() + before[i].abs());
                let bound = if weights { bound } else { 0.0 };
                assert!((lost - expected).abs() <= bound, "{optimizer:?} {parameter:?} {i}");
            }
        }
    }
}

/// Normalization, dropout and decay together learn, also with a last batch of one image, and the
/// same seed gives the same bits.
#[test]
fn training_learns_and_repeats() {
    let Some(gpu) = gpu() else { return };
    let mut data = data::digits().expect("digits");
    data.train.pixels.truncate(257 * IMAGE);
    data.train.labels.truncate(257);
    let settings = Settings { weight_decay: 1e-2, dropout: 0.3, ..settings() };
    let run = || {
        let mut trainer = Trainer::new(gpu, &data, &settings).expect("a trainer");
        let mut images = 0;
        let losses: Vec<f64> = (0..4)
            .map(|_| trainer.epoch(&mut |count| images += count).expect("an epoch").mean_loss)
            .collect();
        assert_eq!(images, 4 * 257);
        (losses, trainer.evaluate(&data.test).expect("evaluation"))
    };
    let (losses, test) = run();
    assert!(losses[3] < 0.5 * losses[0], "{losses:?}");
    assert!(test.accuracy > 0.5 && test.accuracy < 1.0, "{test:?}");
    let (again, _) = run();
    assert_eq!(losses, again);
}

/// A network that has seen the shipped digits for an epoch of 512 images.
fn trained<'a>(gpu: &Gpu, data: &'a DataSet, settings: &Settings) -> Trainer<'a> {
    let mut trainer = Trainer::new(gpu, data, settings).expect("a trainer");
    trainer.epoch(&mut |_| {}).expect("an epoch");
    trainer
}

fn some_digits() -> DataSet {
    let mut data = data::digits().expect("digits");
    data.train.pixels.truncate(512 * IMAGE);
    data.train.labels.truncate(512);
    data
}

/// Removed at the end.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Removed at the end.
struct File(PathBuf);

impl File {
    fn new(test: &str) -> Self {
        Self(std::env::temp_dir().join(format!("digits-{}-{test}", std::process::id())))
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A loaded network gives the same bits as the saved one, and so does a resumed training.
#[test]
fn a_checkpoint_is_the_network() {
    let Some(gpu) = gpu() else { return };
    let data = some_digits();
    let file = File::new("resume");
    for normalize in [None, Some(Config::pytorch())] {
        let settings = Settings { normalize, dropout: 0.2, weight_decay: 1e-3, ..settings() };
        let mut trainer = trained(gpu, &data, &settings);
        saved::checkpoint(&trainer).expect("a checkpoint").save(&file.0).expect("saved");
        let mut loaded = saved::load(gpu, &data, &file.0).expect("loaded");
        assert_eq!(*loaded.settings(), settings);
        let bits = |trainer: &mut Trainer<'_>| {
            study::fingerprint(&trainer.logits(Mode::Infer, &data.test).expect("logits"))
        };
        assert_eq!(bits(&mut loaded), bits(&mut trainer));
        let on = |trainer: &mut Trainer<'_>| trainer.epoch(&mut |_| {}).expect("an epoch");
        assert_eq!(on(&mut loaded).mean_loss, on(&mut trainer).mean_loss);
        assert_eq!(bits(&mut loaded), bits(&mut trainer));
    }
}

#[test]
fn a_checkpoint_of_something_else_is_refused() {
    let Some(gpu) = gpu() else { return };
    let data = some_digits();
    let file = File::new("refused");
    let trainer = Trainer::new(gpu, &data, &settings()).expect("a trainer");
    let good = saved::checkpoint(&trainer).expect("a checkpoint");
    let refusal = |change: &dyn Fn(&mut Checkpoint)| {
        let mut changed = good.clone();
        change(&mut changed);
        changed.save(&file.0).expect("saved");
        match saved::load(gpu, &data, &file.0) {
            Ok(_) => "accepted".to_string(),
            Err(error) => error.to_string(),
        }
    };
    let name = file.0.display();
    for (message, words) in [
        (refusal(&|c| c.tensors.retain(|t| t.name != "conv.bias")), "conv.bias"),
        (refusal(&|c| c.tensors[0].shape = vec![9, 1, 32]), "[3, 3, 1, 32], found [9, 1, 32]"),
        (refusal(&|c| drop(c.metadata.insert("order".into(), "up".into()))), "order: unknown"),
        (refusal(&|c| drop(c.metadata.insert("batch".into(), "x".into()))), "is no number"),
        (refusal(&|c| drop(c.metadata.insert("batch".into(), "0".into()))), "the batch is"),
        (refusal(&|c| drop(c.metadata.insert("dropout".into(), "2".into()))), "the dropout is"),
        (
            refusal(&|c| drop(c.metadata.insert("learning_rate".into(), "NaN".into()))),
            "the learning rate is",
        ),
        (refusal(&|c| drop(c.metadata.insert("step_count".into(), "-1".into()))), "no number"),
        (refusal(&|c| drop(c.metadata.remove("random"))), "random"),
        (
            refusal(&|c| {
                let is_var = |t: &&mut Tensor| t.name == "norm_planes.running_var";
                let var = c.tensors.iter_mut().find(is_var).expect("the variance");
                var.values[3] = -1.0;
            }),
            "norm_planes.running_var: -1 is no variance",
        ),
    ] {
        assert!(message.contains(&name.to_string()) && message.contains(words), "{message}");
    }
    good.save(&file.0).expect("saved");
    let resume = |data: &DataSet, settings: &Settings| {
        saved::resume(gpu, data, &file.0, settings).map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(resume(&data, &settings()), Ok(()));
    let other = Settings { learning_rate: 0.5, ..settings() };
    let error = resume(&data, &other).expect_err("other settings");
    assert!(error.contains("learning_rate is 0.001, and the options say 0.5"), "{error}");
    let mut data = data;
    data.train.labels[5] ^= 1;
    let error = resume(&data, &settings()).expect_err("other images");
    assert!(error.contains("was trained on other images"), "{error}");
}

/// The folded convolution gives what convolution and normalization give, but for rounding.
#[test]
fn the_folded_convolution_gives_the_same_logits() {
    let Some(gpu) = gpu() else { return };
    let data = some_digits();
    let settings = Settings { order: Order::NormFirst, ..settings() };
    let mut trainer = trained(gpu, &data, &settings);
    trainer.fold().expect("folds");
    let whole = trainer.logits(Mode::Infer, &data.test).expect("logits");
    let folded = trainer.logits(Mode::Folded, &data.test).expect("logits");

    // u = 2⁻²⁴. A plane's value is a sum of 9 products and a bias, then a difference, a product and
    // a sum; folded, a sum of 9 products and a bias whose factors were rounded once. Both are within
    // 14u of the sum of their terms' sizes. Logits are sums of 5,408 products, in two steps of at
    // most 676 and 33 terms; that error is taken as 6√n·u (Higham and Mary, 2019).
    let u = f64::from(f32::EPSILON) / 2.0;
    let state = trainer.snapshot().expect("a snapshot").state;
    let [_, input_var] = state.running(Layer::Input);
    let [mean, var] = state.running(Layer::Planes);
    let largest = |values: &[f32]| values.iter().fold(0f64, |a, v| a.max(f64::from(*v).abs()));
    let of = |parameter| largest(state.parameter(parameter));
    let input = of(Parameter::InputGamma) / (f64::from(input_var[0]) + 1e-3).sqrt()
        + of(Parameter::InputBeta);
    let scale = var.iter().map(|v| 1.0 / (f64::from(*v) + 1e-3).sqrt()).fold(0.0, f64::max);
    let scale = scale * of(Parameter::Gamma);
    let sum = 9.0 * of(Parameter::ConvWeights) * input + of(Parameter::ConvBias) + largest(mean);
    let plane = sum * scale + of(Parameter::Beta);
    let weights: f64 = state
        .parameter(Parameter::DenseWeights)
        .chunks(FEATURES)
        .map(|class| class.iter().map(|w| f64::from(*w).abs()).sum::<f64>())
        .fold(0.0, f64::max);
    let bound = weights * plane * (2.0 * 14.0 + 2.0 * 6.0 * (676f64 + 33.0).sqrt()) * u;
    let size = whole.iter().flatten().fold(0f64, |a, v| a.max(f64::from(*v).abs()));
    assert!(bound < 0.05 * size, "the bound {bound:e} says little about logits of {size:e}");
    let pairs = whole.iter().flatten().zip(folded.iter().flatten());
    let worst = pairs.map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
    eprintln!("folded: worst {worst:.1e}, bound {bound:.1e}, logits up to {size:.1e}");
    assert!(worst <= bound, "{worst:e} is above {bound:e}");
    assert!(worst > 0.0, "the folded convolution was not used");

    let mut other = Trainer::new(gpu, &data, &self::settings()).expect("a trainer");
    let error = other.fold().expect_err("relu stands between").to_string();
    assert!(error.contains("--order norm-first"), "{error}");
}

/// Re-estimated statistics are those of all images together, and undo a change of brightness.
#[test]
fn statistics_are_re_estimated_exactly() {
    let Some(gpu) = gpu() else { return };
    let data = some_digits();
    let mut trainer = trained(gpu, &data, &settings());
    // 360 images: two batches of 128 and one of 104.
    trainer.re_estimate(&data.test).expect("re-estimated");
    let pixels: Vec<f64> = data.test.pixels.iter().map(|&p| p.into()).collect();
    let n = pixels.len() as f64;
    let mean = pixels.iter().sum::<f64>() / n;
    let var = pixels.iter().map(|p| (p - mean).powi(2)).sum::<f64>() / n;
    let state = trainer.snapshot().expect("a snapshot").state;
    let [found_mean, found_var] = state.running(Layer::Input);
    // Statistics of a batch are f32.
    assert!((f64::from(found_mean[0]) - mean).abs() < 1e-6 * mean, "{found_mean:?} {mean}");
    assert!((f64::from(found_var[0]) - var).abs() < 1e-6 * var, "{found_var:?} {var}");
    // On one batch, the statistics of the planes are those of that batch.
    trainer.re_estimate(&first(&data.train, 128)).expect("re-estimated");
    let state = trainer.snapshot().expect("a snapshot").state;
    let [planes, normalized] = trainer.planes(Mode::Infer).expect("planes");
    for (found, expected) in state.running(Layer::Planes).iter().zip(survey::statistics(&planes)) {
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() <= 1e-6 * expected.abs(), "{found} {expected}");
        }
    }
    // With them, inference normalizes that batch: β and γ² are its statistics, but for ε.
    let [mean, var] = survey::statistics(&normalized);
    let beta = state.parameter(Parameter::Beta);
    let gamma = state.parameter(Parameter::Gamma);
    let running_var = state.running(Layer::Planes)[1];
    for c in 0..FILTERS {
        let expected = gamma[c] * gamma[c] * running_var[c] / (running_var[c] + 1e-3);
        assert!((mean[c] - beta[c]).abs() < 1e-5, "{} {}", mean[c], beta[c]);
        assert!((var[c] - expected).abs() < 1e-5, "{} {expected}", var[c]);
    }

    let rows = study::shifts(&mut trainer, None, &data).expect("shifts");
    let bright = rows.iter().find(|row| row.shift == "brightened").expect("brightened");
    assert!(bright.adapted > bright.stored + 0.1, "{bright:?}");
    let after = trainer.snapshot().expect("a snapshot").state;
    assert_eq!(state, after, "shifts must leave the network as it was");
}

/// What a report is made of, from runs of two epochs.
#[test]
fn a_survey_says_what_happened() {
    let Some(gpu) = gpu() else { return };
    let data = some_digits();
    let mut images = 0;
    let grid = [(Optimizer::Adam, 1e-3), (Optimizer::Sgd, 1e6)];
    let repeat = Repeat { grid: &grid, normalized: &[true, false], seeds: 1..3, epochs: 2 };
    let claims = survey::claims(gpu, &data, &settings(), &repeat, &mut |count| images += count)
        .expect("claims");
    assert_eq!(images, 2 * 2 * 2 * 2 * 512);
    assert_eq!(claims.len(), 4);
    for claim in &claims {
        let line = format!("{claim:?}");
        assert_eq!((claim.epochs_to_target.len(), claim.final_accuracy.len()), (2, 2), "{line}");
        assert_eq!(claim.re_estimated.len(), if claim.normalized { 2 } else { 0 }, "{line}");
        // No network learns with steps of a million.
        let expected = if claim.learning_rate == 1e6 { 2 } else { 0 };
        assert_eq!(claim.diverged, expected, "{line}");
    }

    let mut watch = Watch::default();
    let mut trainer = Trainer::new(gpu, &data, &settings()).expect("a trainer");
    for epoch in 0..=2 {
        if epoch > 0 {
            trainer.epoch(&mut |_| {}).expect("an epoch");
        }
        let before = trainer.snapshot().expect("a snapshot");
        watch.note(&mut trainer, epoch, epoch > 0).expect("noted");
        assert_eq!(trainer.snapshot().expect("a snapshot"), before, "watching changes nothing");
    }
    let (parameters, statistics, distributions) = watch.into_parts();
    assert_eq!(parameters[0].per_epoch[0], [1.0; FILTERS], "gamma before training");
    assert_ne!(parameters[0].per_epoch[0], parameters[0].per_epoch[2]);
    assert_eq!(statistics[1].running[0], [1.0; FILTERS], "running variance before training");
    let far = |epoch: usize| {
        let pairs = statistics[1].running[epoch].iter().zip(&statistics[1].batch[epoch]);
        pairs.map(|(running, batch)| (running - batch).abs()).sum::<f32>()
    };
    assert!(far(2) < far(0), "running statistics follow the batch's");
    for distribution in &distributions {
        assert_eq!(distribution.channel, distributions[0].channel);
        assert_eq!(distribution.before.len(), 128 * CONV_AREA);
        let mean = distribution.after.iter().sum::<f32>() / distribution.after.len() as f32;
        assert!(mean.abs() < 0.1, "{mean}");
    }
    assert_eq!(distributions.len(), 2);
}

/// The command line as a user would type it, on a folder of IDX files.
#[test]
fn all_options_work_together() {
    let Some(gpu) = gpu() else { return };
    let folder = std::env::temp_dir().join(format!("digits-{}-all", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a folder");
    let digits = data::digits().expect("digits");
    for (half, images, count) in [("train", &digits.train, 33u32), ("t10k", &digits.test, 20)] {
        let header = |words: &[u32]| words.iter().flat_map(|w| w.to_be_bytes()).collect::<Vec<_>>();
        let n = count as usize;
        let pixels = images.pixels[..n * IMAGE].iter().map(|p| (255.0 * p) as u8);
        let file = [header(&[2051, count, 28, 28]), pixels.collect()].concat();
        std::fs::write(folder.join(format!("{half}-images-idx3-ubyte")), file).expect("images");
        let file = [header(&[2049, count]), images.labels[..n].to_vec()].concat();
        std::fs::write(folder.join(format!("{half}-labels-idx1-ubyte")), file).expect("labels");
    }
    let folder = Folder(folder);
    let path = |name: &str| folder.0.join(name).into_os_string();
    let adapter = gpu.device().adapter_info().name;
    let run = |line: &str, values: &[OsString]| {
        // Every $ stands for one of the values.
        let mut values = values.iter().cloned();
        let words = line.split_whitespace().map(|word| match word {
            "$" => values.next().expect("a value"),
            word => word.into(),
        });
        match arguments::parse(words).expect("arguments").expect("a command") {
            Command::Train(options) => crate::train(&options),
            Command::Predict(options) => crate::predict(&options),
        }
    };
    let options = "--batch 32 --seed 3 --lr 0.01 --optimizer adam --weight-decay 0.01 \
                   --dropout 0.1 --norm-preset pytorch --order norm-first --data $";
    let data = path(".");
    let (half, whole) = (path("half.safetensors"), path("whole.safetensors"));
    run(
        &format!("{options} --epochs 1 --adapter $ --save $ --report $"),
        &[data.clone(), adapter.into(), half.clone(), path("report")],
    )
    .expect("training");
    let page = std::fs::read_to_string(folder.0.join("report/report.html")).expect("a report");
    for words in ["adam", "sgd", "brightened", "with batch normalization"] {
        assert!(page.contains(words), "the report lacks {words}");
    }
    assert_eq!(page.matches("<svg").count(), 6);
    // One epoch and one more are two, to the bit.
    let read = |file: &OsString| std::fs::read(file).expect("a checkpoint");
    run(&format!("{options} --epochs 2 --save $"), &[data.clone(), whole.clone()]).expect("two");
    assert_ne!(read(&half), read(&whole));
    let resume = format!("{options} --epochs 2 --resume $ --save $");
    run(&resume, &[data.clone(), half.clone(), half.clone()]).expect("one more");
    assert_eq!(read(&half), read(&whole));
    run("predict $ --data $ --fold", &[half.clone(), data.clone()]).expect("a prediction");
    let name = |file: &OsString| file.to_string_lossy().into_owned();
    for (line, values, words) in [
        (
            resume.as_str(),
            vec![data.clone(), half.clone(), half.clone()],
            "2 epochs are done".into(),
        ),
        ("--data $ --resume $", vec![data.clone(), half.clone()], "normalize is pytorch".into()),
        ("--data $", vec![path("nowhere")], name(&path("nowhere"))),
        ("--adapter no-such", vec![], "no adapter's name contains \"no-such\"".into()),
        ("predict $", vec![path("nothing")], name(&path("nothing"))),
        (
            "--data $ --epochs 1 --save $",
            vec![data.clone(), path("no/file")],
            name(&path("no/file")),
        ),
        ("--data $ --report $", vec![data.clone(), half.clone()], name(&half)),
    ] {
        let error = run(line, &values).expect_err(line).to_string();
        assert!(error.contains(&words), "{line}: {error}");
    }
    match run("--data $ --epochs 1 --no-bn --profile", &[data]) {
        Ok(()) => {}
        // Of adapters without timestamps.
        Err(error) => assert!(error.to_string().contains("needs timestamps"), "{error}"),
    }
}

/// The first `count` images.
fn first(images: &Images, count: usize) -> Images {
    Images {
        pixels: images.pixels[..count * IMAGE].to_vec(),
        labels: images.labels[..count].to_vec(),
    }
}

#[test]
fn a_batch_that_does_not_fit_is_refused() {
    let Some(gpu) = gpu() else { return };
    let images = noise(3);
    let mut network = network(gpu, None, Optimizer::Sgd, 2);
    for indices in [&[][..], &[0, 1, 2]] {
        let error = network.run(Mode::Train, &images, indices, &still(0));
        let message = error.expect_err("refused").to_string();
        assert!(message.contains(&format!("{} images; up to 2", indices.len())), "{message}");
    }
}

#[test]
fn wrong_arguments_are_named() {
    let parse = |line: &str| arguments::parse(line.split_whitespace().map(OsString::from));
    for (line, words) in [
        ("--epochs 0", "--epochs takes a number from 1"),
        ("--epochs x", "--epochs takes a number from 1"),
        ("--epochs", "missing argument for option '--epochs'"),
        ("--batch 1000000", "--batch takes a number from 1 to 65535"),
        ("--seed -1", "--seed takes a number from 0"),
        ("--lr nan", "--lr takes a number from 0"),
        ("--dropout 1", "--dropout takes a number from 0"),
        ("--weight-decay -0.1", "--weight-decay takes a number from 0"),
        ("--optimizer lion", "--optimizer takes adam or sgd, not \"lion\""),
        ("--norm-preset x", "--norm-preset takes keras or pytorch"),
        ("--order up", "--order takes relu-first or norm-first"),
        ("--colour", "--colour"),
        ("stray", "stray"),
        ("predict", "predict takes a checkpoint"),
        ("predict a b", "b"),
        ("predict a --epochs 3", "--epochs"),
        ("--fold", "--fold"),
    ] {
        let error = parse(line).expect_err(line).to_string();
        assert!(error.contains(words), "{line}: {error}");
    }
    assert!(parse("--epochs 3 --help").expect("valid").is_none());
    let line = "--data d --epochs 3 --batch 7 --seed 9 --optimizer sgd --lr 0.5 --weight-decay 0.1 \
                --dropout 0.2 --no-bn --norm-preset pytorch --order norm-first --adapter a --save s \
                --resume r --report d --profile";
    let Some(Command::Train(options)) = parse(line).expect("valid") else {
        panic!("training is the default");
    };
    let settings = &options.settings;
    assert_eq!((options.epochs, settings.batch, settings.seed), (3, 7, 9));
    assert_eq!(settings.optimizer, Optimizer::Sgd);
    assert_eq!([settings.learning_rate, settings.weight_decay, settings.dropout], [0.5, 0.1, 0.2]);
    assert_eq!(settings.normalize, Some(Config::pytorch()));
    assert!(options.without_norm);
    assert_eq!(settings.order, Order::NormFirst);
    assert_eq!(options.input.adapter.as_deref(), Some("a"));
    assert_eq!(options.input.data, Some("d".into()));
    assert_eq!(options.save, Some("s".into()));
    assert_eq!(options.resume, Some("r".into()));
    assert_eq!(options.report, Some("d".into()));
    assert!(options.profile);
    let Some(Command::Predict(options)) =
        parse("predict m --fold --data d --adapter a").expect("valid")
    else {
        panic!("predict is a command");
    };
    assert_eq!((options.file, options.fold), ("m".into(), true));
    assert_eq!(options.input.data, Some("d".into()));
}
