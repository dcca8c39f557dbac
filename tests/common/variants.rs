//! Every variant that planning can produce, by planning: all options on shapes that take every
//! path, on a GPU and on a software adapter. Only the number of lanes that merge a channel's
//! partials takes more values than appear here.

use std::collections::HashSet;

use naga::valid::Capabilities;

use wgpu_batchnorm::{
    Activation, Affine, Backward, Caps, ChannelAxis, Class, Config, Element, Finalize,
    FrozenBackward, Geometry, Gradient, Gradients, GroupNorm, GroupNormBackward, Infer, Mask,
    Memory, NonFinite, Normalize, Operation, Plan, Reduce, Renorm, SingleValue, Statistics, Train,
    Update, Variant,
};

const MEMORY: [Memory; 3] = [Memory::Separate, Memory::InPlace, Memory::Arena];

/// An empty batch, rows and columns, with and without vectors, fused and not; columns of one channel that
/// fill a strip, and that do not.
const SHAPES: [&[usize]; 14] = [
    &[0, 3],
    &[5, 7],
    &[2, 3, 64, 64],
    &[1, 3, 128, 128],
    &[2, 3, 63, 63],
    &[64, 64, 64, 64],
    &[4, 128, 4],
    &[5, 7, 33],
    &[1, 3, 300],
    &[70_000, 4],
    &[70_001, 5],
    &[64, 70],
    &[128, 300, 33],
    &[64, 1100, 3],
];

/// In the order in which they are first planned.
pub fn all() -> Vec<Variant> {
    let mut all = Variants::default();
    for shape in SHAPES {
        for axis in [ChannelAxis::First, ChannelAxis::Last] {
            let geometry = Geometry::new(shape, axis).unwrap();
            // As many parts as the shape's first dimension says, up to what can be planned.
            let parts = Geometry::new(&[shape[0].min(8_000), 3], ChannelAxis::Last).unwrap();
            for class in [Class::Software, Class::Hardware] {
                for config in forward_configs() {
                    all.add::<Train>(geometry, &config, class);
                    all.add::<Finalize>(parts, &config, class);
                }
                for config in renorm_configs() {
                    all.add::<Train>(geometry, &config, class);
                    all.add::<Finalize>(parts, &config, class);
                    all.add::<Normalize>(geometry, &config, class);
                    all.add::<Backward>(geometry, &config, class);
                    all.add::<Reduce>(geometry, &config, class);
                    all.add::<Gradient>(geometry, &config, class);
                }
                for config in weighted_configs() {
                    all.add::<Train>(geometry, &config, class);
                    all.add::<Statistics>(geometry, &config, class);
                    all.add::<Backward>(geometry, &config, class);
                    all.add::<Reduce>(geometry, &config, class);
                    all.add::<Gradient>(geometry, &config, class);
                }
                // Sums of rows of more samples would not fit a binding.
                let few = geometry.outer() <= 1_000;
                for config in group_configs().into_iter().filter(|_| few) {
                    all.add::<GroupNorm>(geometry, &config, class);
                    all.add::<GroupNormBackward>(geometry, &config, class);
                }
                for config in epilogue_configs() {
                    all.add::<Train>(geometry, &config, class);
                    all.add::<Infer>(geometry, &config, class);
                    all.add::<Backward>(geometry, &config, class);
                    all.add::<FrozenBackward>(geometry, &config, class);
                }
                for config in half_configs() {
                    let built_in = class == Class::Hardware && config.element == Element::F16;
                    if built_in {
                        all.add_built_in::<Train>(geometry, &config);
                        all.add_built_in::<Backward>(geometry, &config);
                        all.add_built_in::<FrozenBackward>(geometry, &config);
                    }
                    all.add::<Train>(geometry, &config, class);
                    all.add::<Infer>(geometry, &config, class);
                    all.add::<Backward>(geometry, &config, class);
                    all.add::<FrozenBackward>(geometry, &config, class);
                    all.add::<Statistics>(geometry, &config, class);
                }
                for config in backward_configs() {
                    all.add::<Infer>(geometry, &config, class);
                    all.add::<Backward>(geometry, &config, class);
                    all.add::<FrozenBackward>(geometry, &config, class);
                    all.add::<Statistics>(geometry, &config, class);
                    all.add::<Normalize>(geometry, &config, class);
                    all.add::<Reduce>(geometry, &config, class);
                    all.add::<Gradient>(geometry, &config, class);
                }
            }
        }
    }
    all.found
}

/// Whether it could load tensors by 64 bits.
pub fn loads_tensors(variant: &Variant) -> bool {
    variant.vector == 4 && variant.slots.iter().any(|slot| slot.is_tensor())
}

/// What naga has to allow.
pub fn capabilities(variant: &Variant) -> Capabilities {
    let int64 = if variant.wide { Capabilities::SHADER_INT64 } else { Capabilities::empty() };
    match variant.built_in_widen || variant.built_in_narrow {
        true => int64 | Capabilities::SHADER_FLOAT16_IN_FLOAT32,
        false => int64,
    }
}

#[derive(Default)]
struct Variants {
    known: HashSet<Variant>,
    found: Vec<Variant>,
}

impl Variants {
    fn add<O: Operation>(&mut self, geometry: Geometry, config: &Config, class: Class) {
        let caps = Caps { class, ..Caps::webgpu_default() };
        self.add_of::<O>(geometry, config, &caps);
    }

    /// For a GPU whose conversions of f16 are exact.
    fn add_built_in<O: Operation>(&mut self, geometry: Geometry, config: &Config) {
        let caps = Caps { exact_widen: true, exact_narrow: true, ..Caps::webgpu_default() };
        self.add_of::<O>(geometry, config, &caps);
    }

    fn add_of<O: Operation>(&mut self, geometry: Geometry, config: &Config, caps: &Caps) {
        for stage in Plan::<O>::new(geometry, config, caps).unwrap().stages() {
            if self.known.insert(stage.variant) {
                self.found.push(stage.variant);
            }
        }
    }
}

fn base(memory: Memory, affine: u32) -> Config {
    let affine = Affine { gamma: affine & 1 > 0, beta: affine & 2 > 0 };
    Config { memory, affine, single_value: SingleValue::Allow, ..Config::keras() }
}

/// Every option that a training forward looks at.
fn forward_configs() -> Vec<Config> {
    let mut configs = Vec::new();
    for memory in MEMORY {
        for affine in 0..4 {
            for update in [Update::Rate(0.1), Update::Cumulative, Update::None] {
                for non_finite in [NonFinite::Propagate, NonFinite::Keep] {
                    configs.push(Config { update, non_finite, ..base(memory, affine) });
                }
            }
        }
    }
    configs
}

const CUSTOM: Activation = Activation::Custom(
    "fn activation(v: f32) -> f32 { return tanh(v); }
     fn activation_derivative(v: f32) -> f32 { return 1.0 - tanh(v) * tanh(v); }",
);

/// Every activation, with and without a residual, by every source of its slope. Which of gamma,
/// beta, dx and dz there are makes other bindings, not other code: not all of them with all.
fn epilogue_configs() -> Vec<Config> {
    let mut configs = Vec::new();
    let leaky = Activation::LeakyRelu { slope: 0.1 };
    let activations =
        [Activation::None, Activation::Relu, leaky, Activation::RELU6, Activation::Silu, CUSTOM];
    for memory in MEMORY {
        for activation in activations {
            for residual in [false, true] {
                for mask in [Mask::Bits, Mask::Recompute] {
                    let base = Config { activation, residual, mask, ..base(memory, 3) };
                    let only_z =
                        Gradients { x: false, gamma: false, beta: false, ..Gradients::ALL };
                    let no_z = Gradients { z: false, ..Gradients::ALL };
                    for gradients in [Gradients::ALL, no_z, only_z] {
                        configs.push(Config { gradients, ..base.clone() });
                    }
                }
            }
        }
    }
    configs
}

/// Both halves, in every tensor and without those that an option leaves out. How they are loaded and
/// stored is a matter of the slot alone, and takes no turn with the other options.
fn half_configs() -> Vec<Config> {
    let mut configs = Vec::new();
    for element in [Element::F16, Element::Bf16] {
        for memory in MEMORY {
            let plain = Config { element, ..base(memory, 3) };
            let added = Config { activation: Activation::Relu, residual: true, ..plain.clone() };
            configs.push(Config { mask: Mask::Bits, ..added.clone() });
            configs.push(Config { mask: Mask::Recompute, ..added });
            configs.push(plain);
        }
    }
    configs
}

/// Group normalization by one group, which parts whatever channels there are, with what its own code
/// meets.
fn group_configs() -> Vec<Config> {
    let mut configs = Vec::new();
    for memory in MEMORY {
        for affine in 0..4 {
            for activation in [Activation::None, Activation::Relu] {
                for bits in 0..16 {
                    let gradients = Gradients {
                        x: bits & 1 > 0,
                        gamma: bits & 2 > 0,
                        beta: bits & 4 > 0,
                        z: true,
                        accumulate: bits & 8 > 0,
                    };
                    configs.push(Config { activation, gradients, ..base(memory, affine) });
                }
            }
        }
    }
    configs
}

/// Weights beside what else their code meets: activations, masks, halves, renormalization,
/// accumulation. What binds too many buffers is left out.
fn weighted_configs() -> Vec<Config> {
    let mut configs = Vec::new();
    for memory in MEMORY {
        for activation in [Activation::None, Activation::Relu, Activation::Silu] {
            for element in [Element::F32, Element::F16, Element::Bf16] {
                let accumulate = element == Element::F16;
                let gradients = Gradients { accumulate, ..Gradients::ALL };
                let renorm = (element == Element::Bf16 && activation == Activation::None)
                    .then_some(Renorm { rmax: 3.0, dmax: 5.0 });
                let base = Config { weights: true, gradients, ..base(memory, 3) };
                let plain = Config { activation, element, renorm, ..base };
                configs.push(Config { residual: true, ..plain.clone() });
                configs.push(plain);
            }
        }
    }
    configs
}

/// Batch renormalization beside what else its code meets: activations, counts, accumulation.
fn renorm_configs() -> Vec<Config> {
    let mut configs = Vec::new();
    let renorm = Some(Renorm { rmax: 3.0, dmax: 5.0 });
    for memory in MEMORY {
        for activation in [Activation::None, Activation::Relu] {
            for update in [Update::Rate(0.1), Update::Cumulative] {
                for non_finite in [NonFinite::Propagate, NonFinite::Keep] {
                    let accumulate = non_finite == NonFinite::Keep;
                    let gradients = Gradients { accumulate, ..Gradients::ALL };
                    let base = base(memory, 3);
                    let base = Config { renorm, activation, update, non_finite, ..base };
                    configs.push(Config { gradients, ..base });
                }
            }
        }
    }
    configs
}

/// Every option that the other operations look at.
fn backward_configs() -> Vec<Config> {
    let mut configs = Vec::new();
    for memory in MEMORY {
        for affine in 0..4 {
            for bits in 0..16 {
                let gradients = Gradients {
                    x: bits & 1 > 0,
                    gamma: bits & 2 > 0,
                    beta: bits & 4 > 0,
                    z: true,
                    accumulate: bits & 8 > 0,
                };
                configs.push(Config { gradients, ..base(memory, affine) });
            }
        }
    }
    configs
}
