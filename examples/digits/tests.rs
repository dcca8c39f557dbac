//! Tests of the whole network; the other modules test themselves.

use std::sync::OnceLock;

use wgpu_batchnorm::{Config, Gpu};

use crate::arguments;
use crate::data::{self, Images};
use crate::network::{FEATURES, IMAGE, Mode, Network, Optimizer, Parameter, Step};
use crate::reference;
use crate::training::{Settings, Trainer};

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
    Settings {
        batch: 128,
        seed: 1,
        optimizer: Optimizer::Adam,
        learning_rate: 1e-3,
        weight_decay: 0.0,
        dropout: 0.0,
        normalize: Some(Config::keras()),
    }
}

/// A step that changes no parameter.
fn still() -> Step {
    Step { dropout_scale: 1.0, ..Step::default() }
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
    let images = noise(3);
    let indices = [0, 1, 2];
    for (normalize, dropout) in
        [(None, 0.0), (Some(Config::keras()), 0.0), (Some(Config::pytorch()), 0.4)]
    {
        let step = Step {
            dropout_seed: 11,
            dropout_threshold: (dropout * 2f64.powi(32)) as u32,
            dropout_scale: (1.0 / (1.0 - dropout)) as f32,
            ..Step::default()
        };
        let epsilon = normalize.as_ref().map(|config| config.epsilon);
        let mut network = Network::new(gpu, normalize, Optimizer::Sgd, 3, 1, 5);
        // Parameters of which none is special: γ is not 1, biases are not 0.
        let mut parameters = network.parameters().expect("parameters");
        let mut random = fastrand::Rng::with_seed(9);
        parameters.iter_mut().for_each(|value| *value += 0.2 * (random.f32() - 0.5));
        network.load(&parameters, &network.running().expect("running statistics"));
        network.run(Mode::Train, &images, &indices, &step).expect("a step");
        let gradients = network.gradients().expect("gradients");
        let record = network.records(1).expect("record")[0];

        let mut parameters: Vec<f64> = parameters.into_iter().map(f64::from).collect();
        let pixels: Vec<f64> = images.pixels.iter().map(|&p| p.into()).collect();
        let factors: Vec<f64> =
            (0..3 * FEATURES as u32).map(|index| dropout_factor(index, &step)).collect();
        let loss = |parameters: &[f64]| {
            reference::loss(parameters, &pixels, &images.labels, epsilon, &factors)
        };
        let expected = loss(&parameters);
        let found = f64::from(record.loss) / 3.0;
        assert!((found - expected).abs() < 1e-5 * expected, "loss {found}, expected {expected}");
        for parameter in Parameter::ALL {
            if epsilon.is_none() && parameter.normalizes() {
                continue;
            }
            let begin = parameter.offset();
            let stride = parameter.len().div_ceil(24);
            let places: Vec<usize> = (begin..begin + parameter.len()).step_by(stride).collect();
            let mut worst = 0f64;
            let mut largest = 0f64;
            for place in places {
                // The truncation is h²/6 of the third derivative, the rounding 1e-16/h.
                let h = 1e-5;
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
            // Sums of some 10³ products in f32 whose terms partly cancel.
            let bound = 1e-5 * largest + 1e-7;
            eprintln!("{parameter:?}: worst {worst:.1e} of {largest:.1e}");
            assert!(largest > 0.0, "{parameter:?} has no gradient");
            assert!(worst <= bound, "{parameter:?}: off by {worst:e}, bound {bound:e}");
        }
    }
}

/// The part of dropped features is what was asked for, and inference drops none.
#[test]
fn dropout_is_for_training_only() {
    let Some(gpu) = gpu() else { return };
    let images = noise(4);
    let indices = [0, 1, 2, 3];
    let mut network = Network::new(gpu, Some(Config::keras()), Optimizer::Sgd, 4, 1, 5);
    let dropping = Step { dropout_threshold: 1 << 30, dropout_scale: 4.0 / 3.0, ..still() };
    network.run(Mode::Train, &images, &indices, &still()).expect("a step");
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
    network.run(Mode::Infer, &images, &indices, &still()).expect("inference");
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
            let mut network = Network::new(gpu, Some(Config::keras()), optimizer, 2, 1, 5);
            let step = Step {
                learning_rate: 0.01,
                decay,
                correction_1: 10.0,
                correction_2: 1000.0,
                ..still()
            };
            network.run(Mode::Train, &images, &[0, 1], &step).expect("a step");
            network.parameters().expect("parameters")
        };
        let network = Network::new(gpu, None, optimizer, 2, 1, 5);
        let before = network.parameters().expect("parameters");
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
        let mut trainer = Trainer::new(gpu, &data, &settings);
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

#[test]
fn a_batch_that_does_not_fit_is_refused() {
    let Some(gpu) = gpu() else { return };
    let images = noise(3);
    let mut network = Network::new(gpu, None, Optimizer::Sgd, 2, 1, 5);
    for indices in [&[][..], &[0, 1, 2]] {
        let error = network.run(Mode::Train, &images, indices, &still());
        let message = error.expect_err("refused").to_string();
        assert!(message.contains(&format!("{} images; up to 2", indices.len())), "{message}");
    }
}

#[test]
fn wrong_arguments_are_named() {
    let parse = |line: &str| arguments::parse(line.split_whitespace().map(String::from));
    for (line, words) in [
        ("--epochs 0", "--epochs takes a number from 1"),
        ("--epochs x", "--epochs takes a number from 1"),
        ("--epochs", "missing argument for option '--epochs'"),
        ("--batch 1000000", "--batch takes a number from 1 to 4096"),
        ("--seed -1", "-1"),
        ("--lr nan", "--lr takes a number from 0"),
        ("--dropout 1", "--dropout takes a number from 0"),
        ("--weight-decay -0.1", "--weight-decay takes a number from 0"),
        ("--optimizer lion", "--optimizer takes adam or sgd, not \"lion\""),
        ("--norm-preset x", "--norm-preset takes keras or pytorch"),
        ("--colour", "--colour"),
        ("stray", "stray"),
    ] {
        let error = parse(line).expect_err(line).to_string();
        assert!(error.contains(words), "{line}: {error}");
    }
    assert!(parse("--epochs 3 --help").expect("valid").is_none());
    let line = "--data d --epochs 3 --batch 7 --seed 9 --optimizer sgd --lr 0.5 --weight-decay 0.1 \
                --dropout 0.2 --no-bn --norm-preset pytorch --adapter a";
    let options = parse(line).expect("valid").expect("options");
    let settings = &options.settings;
    assert_eq!((options.epochs, settings.batch, settings.seed), (3, 7, 9));
    assert_eq!(settings.optimizer, Optimizer::Sgd);
    assert_eq!([settings.learning_rate, settings.weight_decay, settings.dropout], [0.5, 0.1, 0.2]);
    assert_eq!(settings.normalize, Some(Config::pytorch()));
    assert!(options.without_norm);
    assert_eq!(options.adapter.as_deref(), Some("a"));
    assert_eq!(options.data, Some("d".into()));
}
