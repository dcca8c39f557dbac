//! Runs plans on memory made for them. Outputs start as NaN, scratch starts dirty, every slot is a
//! slice in the middle of a buffer, and what lies around it must not change.

use std::collections::HashMap;

use half::{bf16, f16};
use wgpu_batchnorm::{
    Backward, Bind, Caps, ChannelAxis, Element, Finalize, FrozenBackward, Gpu, Gradient, GroupNorm,
    GroupNormBackward, Infer, Kernels, Memory, Normalize, Operation, Plan, PlanError, Reduce, Slot,
    SlotBuffers, Statistics, Train, wgpu,
};

use super::data::{Case, Data, shards};

const CANARY: u32 = 0x7fc0_abcd;
const ALIGN: u64 = 256;

pub type Contents = HashMap<Slot, Vec<u32>>;

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

pub fn floats(bits: &[u32]) -> Vec<f32> {
    bits.iter().map(|&b| f32::from_bits(b)).collect()
}

/// All results of a case, by name.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Results {
    pub y: Vec<f32>,
    pub mean: Vec<f32>,
    pub rest: Vec<f32>,
    pub inv_std: Vec<f32>,
    pub count: Vec<f32>,
    pub r: Vec<f32>,
    pub d: Vec<f32>,
    pub running_mean: Vec<f32>,
    pub running_var: Vec<f32>,
    pub batches: u32,
    pub dx: Vec<f32>,
    pub dgamma: Vec<f32>,
    pub dbeta: Vec<f32>,
    pub dz: Vec<f32>,
    pub mask: Vec<u32>,
}

impl Results {
    /// A result by its name.
    pub fn get(&self, name: &str) -> &[f32] {
        match name {
            "y" => &self.y,
            "mean" => &self.mean,
            "rest" => &self.rest,
            "inv_std" => &self.inv_std,
            "count" => &self.count,
            "r" => &self.r,
            "d" => &self.d,
            "running_mean" => &self.running_mean,
            "running_var" => &self.running_var,
            "dx" => &self.dx,
            "dgamma" => &self.dgamma,
            "dbeta" => &self.dbeta,
            "dz" => &self.dz,
            other => panic!("bug: no result is called {other}"),
        }
    }

    /// What a forward has saved.
    pub fn saved(&self) -> Vec<f32> {
        [&self.mean, &self.rest, &self.inv_std, &self.count, &self.r, &self.d]
            .into_iter()
            .flatten()
            .copied()
            .collect()
    }

    /// Every value's bits: equal results are equal to the bit, NaN included.
    pub fn bits(&self) -> Vec<u32> {
        let all = [
            &self.y,
            &self.mean,
            &self.rest,
            &self.inv_std,
            &self.count,
            &self.r,
            &self.d,
            &self.running_mean,
            &self.running_var,
            &self.dx,
            &self.dgamma,
            &self.dbeta,
            &self.dz,
        ];
        let all = all.into_iter().flat_map(|values| bits(values));
        all.chain(self.mask.iter().copied()).chain([self.batches]).collect()
    }
}

pub fn plan<O: Operation>(gpu: &Gpu, case: &Case) -> Result<Plan<O>, PlanError> {
    let max_storage_buffers = case.buffers.unwrap_or(gpu.caps().max_storage_buffers);
    let max_storage_binding_size = case.binding.unwrap_or(gpu.caps().max_storage_binding_size);
    let caps = Caps { max_storage_buffers, max_storage_binding_size, ..gpu.caps().clone() };
    match &case.tuning {
        Some(t) => Plan::with_tuning(case.geometry(), &case.config, &caps, t),
        None => Plan::new(case.geometry(), &case.config, &caps),
    }
}

/// Training forward, then backward on what it saved.
pub fn train(gpu: &Gpu, case: &Case, data: &Data) -> Results {
    let mut inputs = inputs(data);
    let forward = run(gpu, gpu.kernels(), plan::<Train>(gpu, case).unwrap(), &inputs);
    // In place, the forward has eaten x; this is the caller's copy.
    for slot in [Slot::Saved, Slot::Mask] {
        inputs.insert(slot, forward.get(&slot).cloned().unwrap_or_default());
    }
    let backward = run(gpu, gpu.kernels(), plan::<Backward>(gpu, case).unwrap(), &inputs);
    collect(case, &forward, &backward)
}

/// Group normalization, then its backward on what it saved.
pub fn grouped(gpu: &Gpu, case: &Case, data: &Data) -> Results {
    let mut inputs = inputs(data);
    let forward = run(gpu, gpu.kernels(), plan::<GroupNorm>(gpu, case).unwrap(), &inputs);
    for slot in [Slot::Saved, Slot::Mask] {
        inputs.insert(slot, forward.get(&slot).cloned().unwrap_or_default());
    }
    let backward = run(gpu, gpu.kernels(), plan::<GroupNormBackward>(gpu, case).unwrap(), &inputs);
    collect(case, &forward, &backward)
}

/// Inference, then backward with frozen statistics.
pub fn frozen(gpu: &Gpu, case: &Case, data: &Data) -> Results {
    let mut inputs = inputs(data);
    let forward = run(gpu, gpu.kernels(), plan::<Infer>(gpu, case).unwrap(), &inputs);
    inputs.insert(Slot::Mask, forward.get(&Slot::Mask).cloned().unwrap_or_default());
    let backward = run(gpu, gpu.kernels(), plan::<FrozenBackward>(gpu, case).unwrap(), &inputs);
    collect(case, &forward, &backward)
}

/// What the statistics operation writes: mean, remainder, variance and count, `[C]` each.
pub fn statistics(gpu: &Gpu, case: &Case, data: &Data) -> Vec<f32> {
    let plan = plan::<Statistics>(gpu, case).unwrap();
    floats(&run(gpu, gpu.kernels(), plan, &inputs(data))[&Slot::Moments])
}

/// The geometry of a merge of so many parts.
pub fn parts_case(case: &Case, parts: usize) -> Case {
    let shape = vec![parts, case.geometry().channels() as usize];
    Case { shape, axis: ChannelAxis::Last, ..case.clone() }
}

/// A training forward and backward of a batch in shards, put together again. The sums and
/// parameter gradients of shards are added in f64, as a caller would.
pub fn sharded(gpu: &Gpu, case: &Case, data: &Data, cuts: &[usize]) -> Results {
    fn go<O: Bind>(gpu: &Gpu, case: &Case, inputs: &Contents) -> Contents {
        run(gpu, gpu.kernels(), plan::<O>(gpu, case).unwrap(), inputs)
    }
    let shards = shards(case, data, cuts);
    let parts = shards.iter().flat_map(|(case, data)| bits(&statistics(gpu, case, data)));
    let mut merging = inputs(data);
    merging.insert(Slot::Parts, parts.collect());
    let merged = go::<Finalize>(gpu, &parts_case(case, shards.len()), &merging);
    let with_saved = |data: &Data| {
        let mut inputs = inputs(data);
        inputs.insert(Slot::Saved, merged[&Slot::Saved].clone());
        inputs
    };
    let normalized: Vec<Contents> =
        shards.iter().map(|(case, data)| go::<Normalize>(gpu, case, &with_saved(data))).collect();
    let with_mask = |data: &Data, normalized: &Contents| {
        let mut inputs = with_saved(data);
        inputs.extend(normalized.get(&Slot::Mask).map(|mask| (Slot::Mask, mask.clone())));
        inputs
    };
    let both = || shards.iter().zip(&normalized);
    let reduced: Vec<Contents> = both()
        .map(|((case, data), normalized)| go::<Reduce>(gpu, case, &with_mask(data, normalized)))
        .collect();
    let total = |slot| -> Option<Vec<u32>> {
        let each: Vec<Vec<f32>> =
            reduced.iter().map(|r| r.get(&slot).map(|b| floats(b))).collect::<Option<_>>()?;
        let sum = |i: usize| each.iter().map(|values| f64::from(values[i])).sum::<f64>() as f32;
        Some((0..each[0].len()).map(|i| sum(i).to_bits()).collect())
    };
    let (mut forward, mut backward) = (merged.clone(), Contents::new());
    for slot in [Slot::Dgamma, Slot::Dbeta] {
        backward.extend(total(slot).map(|values| (slot, values)));
    }
    for (((case, data), y), reduced) in both().zip(&reduced) {
        let mut inputs = with_mask(data, y);
        inputs.extend(total(Slot::Sums).map(|values| (Slot::Sums, values)));
        inputs.extend(reduced.get(&Slot::Dz).map(|dz| (Slot::Dz, dz.clone())));
        let mut dx = go::<Gradient>(gpu, case, &inputs);
        // Reduce has written it, whether or not there is a dx to make of it.
        dx.extend(reduced.get(&Slot::Dz).map(|dz| (Slot::Dz, dz.clone())));
        for (whole, part, slots) in [
            (&mut forward, y, &[Slot::X, Slot::Y][..]),
            (&mut backward, &dx, &[Slot::Dy, Slot::Dx, Slot::Dz]),
        ] {
            for &slot in slots {
                let values = part.get(&slot).into_iter().flatten();
                whole.entry(slot).or_default().extend(values);
            }
        }
    }
    collect(case, &forward, &backward)
}

pub fn inputs(data: &Data) -> Contents {
    [
        (Slot::X, bits(&data.x)),
        (Slot::Dy, bits(&data.dy)),
        (Slot::Z, bits(&data.z)),
        (Slot::Weights, bits(&data.weights)),
        (Slot::Gamma, bits(&data.gamma)),
        (Slot::Beta, bits(&data.beta)),
        (Slot::RunningMean, bits(&data.running_mean)),
        (Slot::RunningVar, bits(&data.running_var)),
        (Slot::Batches, vec![data.batches]),
    ]
    .into()
}

fn collect(case: &Case, forward: &Contents, backward: &Contents) -> Results {
    let in_place = case.config.memory == Memory::InPlace;
    let of = |contents: &Contents, slot| contents.get(&slot).map(|b| floats(b)).unwrap_or_default();
    let saved = of(forward, Slot::Saved);
    let plane = |i: usize| {
        let c = saved.len() / if case.config.renorm.is_some() { 6 } else { 4 };
        saved.get(i * c..(i + 1) * c).unwrap_or_default().to_vec()
    };
    Results {
        y: of(forward, if in_place { Slot::X } else { Slot::Y }),
        mean: plane(0),
        rest: plane(1),
        inv_std: plane(2),
        count: plane(3),
        r: plane(4),
        d: plane(5),
        running_mean: of(forward, Slot::RunningMean),
        running_var: of(forward, Slot::RunningVar),
        batches: forward.get(&Slot::Batches).map(|b| b[0]).unwrap_or_default(),
        dx: match (case.config.gradients.x, in_place) {
            (false, true) => Vec::new(),
            (_, true) => of(backward, Slot::Dy),
            (_, false) => of(backward, Slot::Dx),
        },
        dgamma: of(backward, Slot::Dgamma),
        dbeta: of(backward, Slot::Dbeta),
        dz: of(backward, Slot::Dz),
        mask: forward.get(&Slot::Mask).cloned().unwrap_or_default(),
    }
}

/// Runs one plan and gives every slot's content afterwards. Panics when bytes around a slot, or an
/// input, have changed.
pub fn run<O: Bind>(gpu: &Gpu, kernels: &Kernels, plan: Plan<O>, inputs: &Contents) -> Contents {
    let memory = Arranged::new(gpu, &plan, inputs);
    let prepared = kernels.prepare(plan).unwrap();
    let bound = prepared.bind(&memory.buffers::<O>()).unwrap();
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    bound.encode_into(&mut encoder);
    memory.read(gpu, encoder)
}

/// Where a plan's slots lie, and what all memory starts with.
pub struct Arrangement {
    /// What each buffer starts with.
    pub start: Vec<Vec<u32>>,
    /// Buffer, word offset and word count of each slot.
    pub places: HashMap<Slot, (usize, usize, usize)>,
    /// The tensors' element, and how many a tensor has.
    pub element: Element,
    pub len: usize,
}

/// The bits of f32 values as words of the element.
pub fn pack(values: &[u32], element: Element) -> Vec<u32> {
    let narrow = |&bits: &u32| -> u32 {
        let value = f32::from_bits(bits);
        match element {
            Element::F16 => f16::from_f32(value).to_bits().into(),
            _ => bf16::from_f32(value).to_bits().into(),
        }
    };
    let pair = |pair: &[u32]| narrow(&pair[0]) | pair.get(1).map_or(0x7e77, narrow) << 16;
    match element {
        Element::F32 => values.to_vec(),
        _ => values.chunks(2).map(pair).collect(),
    }
}

/// And back, of `len` values.
pub fn unpack(words: &[u32], element: Element, len: usize) -> Vec<u32> {
    let wide = |i: usize| {
        let half = (words[i / 2] >> (i % 2 * 16)) as u16;
        match element {
            Element::F16 => f16::from_bits(half).to_f32().to_bits(),
            _ => bf16::from_bits(half).to_f32().to_bits(),
        }
    };
    match element {
        Element::F32 => words.to_vec(),
        _ => (0..len).map(wide).collect(),
    }
}

impl Arrangement {
    pub fn new<O: Operation>(plan: &Plan<O>, inputs: &Contents) -> Self {
        let arena = plan.config().memory == Memory::Arena;
        let (element, len) = (plan.config().element, plan.geometry().len() as usize);
        let mut start: Vec<Vec<u32>> = Vec::new();
        let mut places = HashMap::new();
        for (slot, size) in plan.slots() {
            if !arena || start.is_empty() {
                start.push(vec![CANARY; ALIGN as usize / 4]);
            }
            let words = start.last_mut().unwrap();
            let count = size as usize / 4;
            let begin = words.len();
            match inputs.get(&slot) {
                Some(content) if slot.is_tensor() => words.extend(pack(&content[..len], element)),
                Some(content) => words.extend_from_slice(&content[..count]),
                // Poison: NaN in outputs, garbage in scratch.
                None => words.extend((0..count).map(|i| 0xffc0_0000 | i as u32 & 0xffff)),
            }
            // At least one canary after the slot, up to the next aligned offset.
            let end = (words.len() + 1).next_multiple_of(ALIGN as usize / 4);
            words.resize(end, CANARY);
            places.insert(slot, (start.len() - 1, begin, count));
        }
        Self { start, places, element, len }
    }
}

/// A plan's slots in memory.
pub struct Arranged {
    buffers: Vec<wgpu::Buffer>,
    arrangement: Arrangement,
}

impl Arranged {
    pub fn new<O: Operation>(gpu: &Gpu, plan: &Plan<O>, inputs: &Contents) -> Self {
        let arrangement = Arrangement::new(plan, inputs);
        let buffers = arrangement.start.iter().map(|words| upload(gpu, words)).collect();
        Self { buffers, arrangement }
    }

    pub fn buffers<O: Bind>(&self) -> O::Buffers<'_> {
        O::Buffers::from_slots(&|slot| {
            let piece = self.arrangement.places.get(&slot).map(|&(buffer, begin, count)| {
                let begin = begin as u64 * 4;
                self.buffers[buffer].slice(begin..begin + count as u64 * 4)
            });
            piece.into()
        })
    }

    /// Submits, reads all slots back and checks the canaries.
    pub fn read(&self, gpu: &Gpu, encoder: wgpu::CommandEncoder) -> Contents {
        let now = read(gpu, encoder, &self.buffers);
        let Arrangement { start, places, element, len } = &self.arrangement;
        for (index, (now, start)) in now.iter().zip(start).enumerate() {
            for (i, (a, b)) in now.iter().zip(start).enumerate() {
                let inside = places.values().any(|&(buffer, begin, count)| {
                    buffer == index && (begin..begin + count).contains(&i)
                });
                assert!(inside || a == b, "word {i} outside every slot has changed");
            }
        }
        let slot = |name: Slot, &(buffer, begin, count): &(usize, usize, usize)| {
            let words = &now[buffer][begin..begin + count];
            if !name.is_tensor() {
                return words.to_vec();
            }
            if *element != Element::F32 && len % 2 == 1 {
                let (last, before) = (begin + count - 1, &start[buffer]);
                assert_eq!(now[buffer][last] >> 16, before[last] >> 16, "past the end of {name}");
            }
            unpack(words, *element, *len)
        };
        places.iter().map(|(name, place)| (*name, slot(*name, place))).collect()
    }
}

pub fn upload(gpu: &Gpu, words: &[u32]) -> wgpu::Buffer {
    let bytes: &[u8] = bytemuck::cast_slice(words);
    let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: bytes.len() as u64,
        usage: wgpu::BufferUsages::STORAGE
            | wgpu::BufferUsages::COPY_SRC
            | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: true,
    });
    buffer.get_mapped_range_mut(..).unwrap().copy_from_slice(bytes);
    buffer.unmap();
    buffer
}

pub fn read(
    gpu: &Gpu,
    mut encoder: wgpu::CommandEncoder,
    buffers: &[wgpu::Buffer],
) -> Vec<Vec<u32>> {
    let staged: Vec<wgpu::Buffer> = buffers
        .iter()
        .map(|buffer| {
            let staging = gpu.device().create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size: buffer.size(),
                usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            });
            encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, buffer.size());
            staging
        })
        .collect();
    let submission_index = Some(gpu.queue().submit([encoder.finish()]));
    for staging in &staged {
        staging.map_async(wgpu::MapMode::Read, .., |result| result.unwrap());
    }
    let timeout = Some(std::time::Duration::from_secs(120));
    gpu.device().poll(wgpu::PollType::Wait { submission_index, timeout }).unwrap();
    staged
        .iter()
        .map(|staging| bytemuck::pod_collect_to_vec(&staging.get_mapped_range(..).unwrap()))
        .collect()
}
