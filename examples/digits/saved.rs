//! A network in training as a checkpoint, and back.

use std::path::Path;

use wgpu_batchnorm::Gpu;

use crate::Error;
use crate::arguments::{OPTIMIZERS, ORDERS, named, presets};
use crate::checkpoint::{Checkpoint, Tensor};
use crate::data::{CLASSES, DataSet};
use crate::network::{FEATURES, FILTERS, Layer, Parameter, RUNNING_STRIDE, State};
use crate::training::{Settings, Snapshot, Trainer};

/// Name and shape of a parameter in a checkpoint; the convolution's weights are HWIO.
fn named_shape(parameter: Parameter) -> (&'static str, &'static [usize]) {
    match parameter {
        Parameter::ConvWeights => ("conv.weight", &[3, 3, 1, FILTERS]),
        Parameter::DenseWeights => ("dense.weight", &[CLASSES, FEATURES]),
        Parameter::ConvBias => ("conv.bias", &[FILTERS]),
        Parameter::DenseBias => ("dense.bias", &[CLASSES]),
        Parameter::InputGamma => ("norm_input.gamma", &[1]),
        Parameter::InputBeta => ("norm_input.beta", &[1]),
        Parameter::Gamma => ("norm_planes.gamma", &[FILTERS]),
        Parameter::Beta => ("norm_planes.beta", &[FILTERS]),
    }
}

fn running_names(layer: Layer) -> [&'static str; 2] {
    match layer {
        Layer::Input => ["norm_input.running_mean", "norm_input.running_var"],
        Layer::Planes => ["norm_planes.running_mean", "norm_planes.running_var"],
    }
}

const MOMENTS: [&str; 2] = ["optimizer.first_moments", "optimizer.second_moments"];

/// Everything that a resumed run, or a prediction, needs.
pub fn checkpoint(trainer: &Trainer<'_>) -> Result<Checkpoint, Error> {
    let Snapshot { state, step_count, epoch_count, random } = trainer.snapshot()?;
    let tensor = |name: &str, shape: &[usize], values: &[f32]| Tensor {
        name: name.into(),
        shape: shape.to_vec(),
        values: values.to_vec(),
    };
    let mut tensors = Vec::new();
    for parameter in Parameter::ALL {
        let (name, shape) = named_shape(parameter);
        tensors.push(tensor(name, shape, state.parameter(parameter)));
    }
    for layer in Layer::ALL {
        for (name, values) in running_names(layer).into_iter().zip(state.running(layer)) {
            tensors.push(tensor(name, &[layer.channels()], values));
        }
    }
    let total = Parameter::total();
    for (name, values) in MOMENTS.into_iter().zip(state.moments.chunks(total)) {
        tensors.push(tensor(name, &[total], values));
    }
    let mut metadata = words(trainer.settings());
    metadata.push(("step_count", step_count.to_string()));
    metadata.push(("epoch_count", epoch_count.to_string()));
    metadata.push(("random", random.to_string()));
    metadata.push(("images", fingerprint(trainer.data())));
    let metadata = metadata.into_iter().map(|(key, value)| (key.into(), value)).collect();
    Ok(Checkpoint::new(tensors, metadata))
}

/// A trainer that goes on where the checkpoint in `path` was made.
///
/// # Errors
/// A file that is broken or holds something else; the device refuses the network.
pub fn load<'a>(gpu: &Gpu, data: &'a DataSet, path: &Path) -> Result<Trainer<'a>, Error> {
    let file = Checkpoint::load(path)?;
    let settings = settings(&file, path)?;
    let mut state = State {
        parameters: vec![0.0; Parameter::total()],
        moments: Vec::with_capacity(2 * Parameter::total()),
        running: vec![0.0; Layer::ALL.len() * 2 * RUNNING_STRIDE],
    };
    for parameter in Parameter::ALL {
        let (name, shape) = named_shape(parameter);
        let range = parameter.offset()..parameter.offset() + parameter.len();
        state.parameters[range].copy_from_slice(file.tensor(name, shape)?);
    }
    for layer in Layer::ALL {
        for (which, name) in running_names(layer).into_iter().enumerate() {
            let values = file.tensor(name, &[layer.channels()])?;
            let begin = layer.running_offset() + which * RUNNING_STRIDE;
            state.running[begin..begin + values.len()].copy_from_slice(values);
        }
        if let Some(value) = state.running(layer)[1].iter().find(|v| !(v.is_finite() && **v >= 0.0))
        {
            let name = running_names(layer)[1];
            return Err(format!("{}: {name}: {value} is no variance", path.display()).into());
        }
    }
    for name in MOMENTS {
        state.moments.extend_from_slice(file.tensor(name, &[Parameter::total()])?);
    }
    let mut trainer = Trainer::new(gpu, data, &settings)?;
    trainer.restore(&Snapshot {
        state,
        step_count: number(&file, path, "step_count")?,
        epoch_count: number(&file, path, "epoch_count")?,
        random: number(&file, path, "random")?,
    });
    Ok(trainer)
}

/// As [`load`], to train on with these settings and the same images.
///
/// # Errors
/// Also a file of other settings or other images.
pub fn resume<'a>(
    gpu: &Gpu,
    data: &'a DataSet,
    path: &Path,
    settings: &Settings,
) -> Result<Trainer<'a>, Error> {
    let trainer = load(gpu, data, path)?;
    check_same(trainer.settings(), settings, path)?;
    let file = Checkpoint::load(path)?;
    if file.metadata("images")? != fingerprint(data) {
        let path = path.display();
        return Err(format!("{path}: was trained on other images than {}", data.name).into());
    }
    Ok(trainer)
}

/// Differs when a training image or label does.
fn fingerprint(data: &DataSet) -> String {
    let pixels = data.train.pixels.iter().flat_map(|pixel| pixel.to_le_bytes());
    format!("{:016x}", fnv(pixels.chain(data.train.labels.iter().copied())))
}

/// A number that differs when a byte does (FNV-1a).
pub fn fnv(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Refuses settings that are not those of a checkpoint.
fn check_same(found: &Settings, wanted: &Settings, path: &Path) -> Result<(), Error> {
    for ((key, found), (_, wanted)) in words(found).into_iter().zip(words(wanted)) {
        if found != wanted {
            let path = path.display();
            return Err(format!("{path}: {key} is {found}, and the options say {wanted}").into());
        }
    }
    Ok(())
}

/// The settings in words.
fn words(settings: &Settings) -> Vec<(&'static str, String)> {
    fn name_of<T: PartialEq>(choices: &[(&'static str, T)], wanted: &T) -> String {
        let found = choices.iter().find(|(_, choice)| choice == wanted);
        found.map_or("other", |(name, _)| name).into()
    }
    let normalize = settings.normalize.as_ref();
    vec![
        ("normalize", normalize.map_or("none".into(), |config| name_of(&presets(), config))),
        ("order", name_of(&ORDERS, &settings.order)),
        ("optimizer", name_of(&OPTIMIZERS, &settings.optimizer)),
        ("batch", settings.batch.to_string()),
        ("seed", settings.seed.to_string()),
        ("learning_rate", settings.learning_rate.to_string()),
        ("weight_decay", settings.weight_decay.to_string()),
        ("dropout", settings.dropout.to_string()),
    ]
}

fn settings(file: &Checkpoint, path: &Path) -> Result<Settings, Error> {
    fn choice<T: Clone>(
        file: &Checkpoint,
        path: &Path,
        key: &str,
        choices: &[(&'static str, T)],
    ) -> Result<T, Error> {
        let value = file.metadata(key)?;
        named(choices, value)
            .ok_or_else(|| format!("{}: {key}: unknown {value:?}", path.display()).into())
    }
    let mut norms = vec![("none", None)];
    norms.extend(presets().map(|(name, config)| (name, Some(config))));
    let settings = Settings {
        batch: number(file, path, "batch")?,
        seed: number(file, path, "seed")?,
        optimizer: choice(file, path, "optimizer", &OPTIMIZERS)?,
        learning_rate: number(file, path, "learning_rate")?,
        weight_decay: number(file, path, "weight_decay")?,
        dropout: number(file, path, "dropout")?,
        normalize: choice(file, path, "normalize", &norms)?,
        order: choice(file, path, "order", &ORDERS)?,
    };
    settings.validate().map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(settings)
}

fn number<T: std::str::FromStr>(file: &Checkpoint, path: &Path, key: &str) -> Result<T, Error> {
    let value = file.metadata(key)?;
    value.parse().map_err(|_| format!("{}: {key}: {value:?} is no number", path.display()).into())
}
