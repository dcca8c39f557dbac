//! Test data from a seed, and the one-line case that reproduces it.

use std::fmt;

use half::{bf16, f16};
use wgpu_batchnorm::{ChannelAxis, Config, Element, Geometry, Tuning};

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in 0..1.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Normal, by Box and Muller.
    pub fn normal(&mut self) -> f64 {
        let (a, b) = (1.0 - self.unit(), self.unit());
        (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()
    }

    pub fn normals(&mut self, n: usize, mean: f64, std: f64) -> Vec<f32> {
        (0..n).map(|_| (mean + std * self.normal()) as f32).collect()
    }
}

/// One shape, axis, config and tuning.
#[derive(Clone, PartialEq)]
pub struct Case {
    pub shape: Vec<usize>,
    pub axis: ChannelAxis,
    pub config: Config,
    pub tuning: Option<Tuning>,
    /// Storage buffers in a dispatch, if fewer than the device's.
    pub buffers: Option<u32>,
    /// Bytes of a storage binding, if fewer than the device's.
    pub binding: Option<u64>,
}

impl Case {
    pub fn new(shape: &[usize], axis: ChannelAxis, config: Config) -> Self {
        Self { shape: shape.to_vec(), axis, config, tuning: None, buffers: None, binding: None }
    }

    pub fn tuned(self, tuning: &Tuning) -> Self {
        Self { tuning: Some(tuning.clone()), ..self }
    }

    pub fn geometry(&self) -> Geometry {
        Geometry::new(&self.shape, self.axis).unwrap()
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let c = &self.config;
        write!(
            f,
            "shape={:?} axis={:?} element={:?} eps={} update={:?} affine={:?} activation={:?} residual={} \
             mask={:?} groups={} renorm={:?} weights={} memory={:?} gradients={:?}",
            self.shape,
            self.axis,
            c.element,
            c.epsilon,
            c.update,
            c.affine,
            c.activation,
            c.residual,
            c.mask,
            c.groups,
            c.renorm,
            c.weights,
            c.memory,
            c.gradients
        )?;
        if let Some(buffers) = self.buffers {
            write!(f, " buffers={buffers}")?;
        }
        if let Some(binding) = self.binding {
            write!(f, " binding={binding}")?;
        }
        match &self.tuning {
            Some(t) => write!(f, " tuning={t:?}"),
            None => Ok(()),
        }
    }
}

/// The case and its data as shards, cut along `outer` at the given places, which ascend; those at
/// the same place have an empty shard between them.
pub fn shards(case: &Case, data: &Data, cuts: &[usize]) -> Vec<(Case, Data)> {
    let g = case.geometry();
    let [outer, c, inner] = [g.outer(), g.channels(), g.inner()].map(|d| d as usize);
    let places: Vec<usize> = [0].iter().chain(cuts).chain([&outer]).copied().collect();
    let one = |pair: &[usize]| {
        let shape = vec![pair[1] - pair[0], c, inner];
        let range = pair[0] * c * inner..pair[1] * c * inner;
        let of = |values: &[f32]| values[range.clone()].to_vec();
        let (x, dy, z) = (of(&data.x), of(&data.dy), of(&data.z));
        let weights = data.weights.get(pair[0] * inner..pair[1] * inner).unwrap_or_default();
        let weights = weights.to_vec();
        let case = Case { shape, axis: ChannelAxis::At(1), ..case.clone() };
        (case, Data { x, dy, z, weights, ..data.clone() })
    };
    places.windows(2).map(one).collect()
}

/// The contents of every input slot.
#[derive(Clone, Default)]
pub struct Data {
    pub x: Vec<f32>,
    pub dy: Vec<f32>,
    pub z: Vec<f32>,
    /// Of every position; empty where the case has none.
    pub weights: Vec<f32>,
    pub gamma: Vec<f32>,
    pub beta: Vec<f32>,
    pub running_mean: Vec<f32>,
    pub running_var: Vec<f32>,
    pub batches: u32,
}

impl Data {
    /// Every tensor as the element can hold it.
    pub fn rounded(mut self, element: Element) -> Self {
        let round = |v: &f32| match element {
            Element::F32 => *v,
            Element::F16 => f16::from_f32(*v).to_f32(),
            _ => bf16::from_f32(*v).to_f32(),
        };
        for tensor in [&mut self.x, &mut self.dy, &mut self.z] {
            *tensor = tensor.iter().map(round).collect();
        }
        self
    }

    /// Channel c holds `mean(c) ± spread`, whose statistics are exact in whatever order they are
    /// summed. The signs are the Thue-Morse sequence and n is a power of two, so any four values at
    /// equal distance that make a batch hold two of each sign: wherever sets of unequal size are
    /// merged, their means are equal.
    pub fn balanced(geometry: Geometry, mean: impl Fn(usize) -> f32, spread: f32) -> Self {
        let (c, inner) = (geometry.channels() as usize, geometry.inner() as usize);
        let mut data = Self::random(geometry, 1, 0.0, 1.0);
        for (i, x) in data.x.iter_mut().enumerate() {
            let place = i / (inner * c) * inner + i % inner;
            let sign = if place.count_ones() % 2 == 0 { 1.0 } else { -1.0 };
            *x = mean(i / inner % c) + sign * spread;
        }
        data
    }

    pub fn random(geometry: Geometry, seed: u64, mean: f64, std: f64) -> Self {
        let mut random = Random(seed);
        let (n, c) = (geometry.len() as usize, geometry.channels() as usize);
        Self {
            x: random.normals(n, mean, std),
            dy: random.normals(n, 0.1, 1.0),
            z: Random(seed ^ 0x7a).normals(n, -0.2, 1.0),
            weights: Vec::new(),
            gamma: random.normals(c, 1.0, 0.3),
            beta: random.normals(c, 0.0, 0.5),
            running_mean: random.normals(c, mean, std),
            running_var: (0..c).map(|_| ((0.5 + random.unit()) * std * std) as f32).collect(),
            batches: 3,
        }
    }
}

/// Small numbers, so that small tensors reach every boundary: several dispatches, one, and wide
/// workgroups.
pub fn small_tunings() -> [Tuning; 3] {
    let split = Tuning {
        workgroup_size: 8,
        workgroup_count: 6,
        column_workgroup_count: 5,
        apply_workgroup_count: 7,
        min_loads: 1,
        min_column_loads: 1,
        min_apply_loads: 1,
        merge_loads: 3,
        fused_loads: 0,
        fused_column_loads: 0,
        // Three tiles of eight vectors, four rows.
        column_block: 1_536,
        join_rows: true,
        held_values: 64,
        fused_workgroups: 1,
        tiny_loads: 0,
        min_row: 4,
        short_row_loads: u32::MAX,
        many_rows: u32::MAX,
        min_odd_rows: 4,
        from_end: true,
        built_in_widen: false,
        built_in_narrow: false,
        wide_loads: true,
        mask_words: true,
    };
    let fused = Tuning {
        fused_loads: 4_096,
        fused_column_loads: 4_096,
        tiny_loads: 4_096,
        min_odd_rows: u32::MAX,
        ..split.clone()
    };
    let wide = Tuning {
        workgroup_size: 64,
        column_block: 0,
        wide_loads: false,
        mask_words: false,
        ..split.clone()
    };
    [split, fused, wide]
}
