//! From what is asked (geometry, config) and what is there (caps, tuning) to plain data: which
//! kernels run on which grid with which parameters, what they move, and what memory they need.
//!
//! A plan holds no GPU object. It can be made on any machine for any device, compared, printed,
//! and [explained](Plan::explain).

mod builder;
mod error;
mod slots;
mod stages;

use std::fmt;
use std::marker::PhantomData;

use crate::caps::Caps;
use crate::config::{Config, Memory, SingleValue, Update};
use crate::geometry::Geometry;
use crate::tuning::{MAX_ITERATIONS, Tuning};

pub use builder::Builder;
use builder::{MAX_WINDOW, MAX_WINDOWS, MAX_WORKGROUP_SIZE, MIN_WINDOW, mask_size, window_limit};
pub use error::PlanError;
pub use slots::{Slot, Slots};
pub use stages::{Epilogue, Kernel, Params, Stage, Variant};

mod private {
    pub trait Sealed {}
}

/// An operation that can be planned: [`Train`], [`Infer`], [`Backward`], [`FrozenBackward`], and
/// the parts of the first and third for a batch in shards: [`Statistics`], [`Finalize`],
/// [`Normalize`], [`Reduce`] and [`Gradient`]; and [`GroupNorm`] and [`GroupNormBackward`].
pub trait Operation: private::Sealed + fmt::Debug + Clone + Copy + PartialEq + Send + Sync {
    /// Its name in labels: `batchnorm::NAME::…`.
    const NAME: &'static str;
    #[doc(hidden)]
    fn stages(builder: &mut Builder);
}

macro_rules! operation {
    ($(#[$doc:meta])* $name:ident, $label:literal, $stages:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct $name;
        impl private::Sealed for $name {}
        impl Operation for $name {
            const NAME: &'static str = $label;
            fn stages(builder: &mut Builder) {
                builder.$stages();
            }
        }
    };
}

operation! {
    /// Training forward: batch statistics, `y = act((x−μ)·i·γ + β + z)` with `i = 1/√(σ²+ε)`, saved
    /// statistics for the backward, running update. Activation, residual and renormalization are the
    /// config's.
    Train, "forward", train
}
operation! {
    /// Inference: `y = act((x−running_mean)·γ/√(running_var+ε) + β + z)`.
    Infer, "inference", infer
}
operation! {
    /// Backward of [`Train`]: with `S₁ = Σdy`, `S₂ = Σdy·(x−μ)`: `dβ = S₁`, `dγ = S₂·i`,
    /// `dx = γ·i·(dy − S₁/n − (x−μ)·i²·S₂/n)`. An activation's slope multiplies dy first; that is
    /// `dz`. Under [`Renorm`](crate::Renorm), `dγ = S₂·i·r + S₁·d`, and dx is multiplied by r.
    Backward, "backward", backward
}
operation! {
    /// Backward of [`Infer`], for fine-tuning with frozen statistics: `dx = dy·γ·i`,
    /// `dγ = Σdy·(x−running_mean)·i`, `dβ = Σdy`, with `i = 1/√(running_var+ε)`. An activation's
    /// slope multiplies dy first; that is `dz`.
    FrozenBackward, "frozen_backward", frozen_backward
}
operation! {
    /// The batch's statistics alone, in one read: `moments` = μ, its rounding remainder, the
    /// population variance `Σ(x−μ)²/n`, and n. One value per channel gives variance 0; an empty
    /// batch gives zeros, which are the statistics of no value and count for nothing in
    /// [`Moments::merge`](crate::Moments::merge) and in [`Finalize`]. Of the config only the
    /// element and the memory matter.
    Statistics, "statistics", statistics
}
operation! {
    /// Merges the statistics of P parts of a batch: what [`Statistics`] has written for each, one
    /// after another in `parts`, `[P, 4, C]`. Gives `saved` of the whole batch and the running
    /// update, as [`Train`] does. Its geometry is `[P, C]`, channels-last.
    ///
    /// Parts are merged by their counts (Chan, Golub and LeVeque, 1979), always in the same order.
    /// A part with count 0 is not looked at. When all are, `saved` is zeros, and running statistics
    /// and `batches` stay as they were. One value in all is treated as under
    /// [`SingleValue::Allow`]: the count is not known when planning.
    Finalize, "finalize", finalize
}
operation! {
    /// `y = (x−μ)·i·γ + β` with `saved` statistics: what [`Train`] does after its statistics. The
    /// second half of a training forward of one shard.
    Normalize, "normalize", normalize
}
operation! {
    /// The sums of one shard that its [`Gradient`] needs of all: `sums` = `S₁ = Σdy` and
    /// `S₂ = Σdy·(x−μ)` with `saved` of the whole batch. Also `dβ = S₁` and `dγ = S₂·i` of the shard
    /// alone, which are summed over shards like those of any other parameter. Without
    /// [`Gradients::x`](crate::Gradients::x) there are no `sums`. An empty shard gives zeros.
    Reduce, "reduce", reduce
}
operation! {
    /// `dx = γ·i·(dy − S₁/n − (x−μ)·i²·S₂/n)` of one shard, with `saved` of the whole batch, which
    /// holds its n, and `sums` added over all shards. (Added in the same order everywhere, they have
    /// the same bits everywhere.)
    Gradient, "gradient", gradient
}

operation! {
    /// Group normalization (Wu and He, 2018): each position of `outer` is a sample, and each of its
    /// [`groups`](crate::Config::groups) of C/groups channels is normalized by its own statistics:
    /// `y = act((x−μ)·i·γ + β + z)` with `γ`, `β` of the channel, and `saved` for the backward. There
    /// are no running statistics. One value in a group is under [`SingleValue`].
    ///
    /// One group is layer normalization over channels and `inner`, as many groups as channels is
    /// instance normalization. The channels of a group must lie together: `[N, C, …]`,
    /// channels-first. A channels-last `[N, …, C]` has a sample at every position, so that it is
    /// normalized over channels alone, as `[N, T, C]` is in a transformer; its group normalization
    /// over positions is not there.
    GroupNorm, "group_norm", group_norm
}
operation! {
    /// Backward of [`GroupNorm`]: with m values in a group and `S₁ = Σγ·dy`, `S₂ = Σγ·dy·(x−μ)` over it,
    /// `dx = i·(γ·dy − S₁/m − (x−μ)·i²·S₂/m)`; over all samples, `dβ = Σdy` and `dγ = Σdy·(x−μ)·i`.
    /// An activation's slope multiplies dy first; that is `dz`.
    ///
    /// The scratch holds sums of every row of a sample: where rows are short, as many bytes as a few
    /// tensors. More samples than one workgroup can add up (131,072 on a software adapter, millions on
    /// a GPU) are [`PlanError::Iterations`].
    GroupNormBackward, "group_norm_backward", group_norm_backward
}

fn is_grouped<O: Operation>() -> bool {
    O::NAME == GroupNorm::NAME || O::NAME == GroupNormBackward::NAME
}

/// What an operation does on a device for a shape.
///
/// Plain data: equal plans do the same work.
///
/// ```
/// use wgpu_batchnorm::{Caps, ChannelAxis, Config, Geometry, Plan, Train};
/// let geometry = Geometry::new(&[8, 64, 56, 56], ChannelAxis::First)?;
/// let plan = Plan::<Train>::new(geometry, &Config::pytorch(), &Caps::webgpu_default())?;
/// println!("{}", plan.explain());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Plan<O: Operation> {
    geometry: Geometry,
    config: Config,
    tuning: Tuning,
    stages: Vec<Stage>,
    scratch_size: u64,
    path: &'static str,
    slope: Option<&'static str>,
    operation: PhantomData<O>,
}

impl<O: Operation> Plan<O> {
    /// Plans the operation with the tuning that [`Tuning::choose`] gives.
    ///
    /// # Errors
    /// [`PlanError`]: a number in the config, a tensor over the limits of the device, or one value
    /// per channel under [`SingleValue::Error`].
    pub fn new(geometry: Geometry, config: &Config, caps: &Caps) -> Result<Self, PlanError> {
        let tuning = Tuning::choose(caps, &geometry, config.element);
        Self::with_tuning(geometry, config, caps, &tuning)
    }

    /// Plans the operation with a tuning of your own.
    ///
    /// # Errors
    /// As [`Plan::new`], and [`PlanError::Tuning`] for a tuning the device cannot run.
    pub fn with_tuning(
        geometry: Geometry,
        config: &Config,
        caps: &Caps,
        tuning: &Tuning,
    ) -> Result<Self, PlanError> {
        config.validate()?;
        let (groups, channels) = (config.groups, geometry.channels());
        if is_grouped::<O>() && (groups == 0 || !channels.is_multiple_of(groups)) {
            return Err(PlanError::Groups { groups, channels });
        }
        if is_grouped::<O>() && config.weights {
            return Err(PlanError::Weights);
        }
        let size = tuning.workgroup_size;
        let max = caps.max_workgroup_size.min(MAX_WORKGROUP_SIZE);
        if !size.is_power_of_two() || size < 4 || size > max {
            return Err(PlanError::Tuning { workgroup_size: size, max });
        }
        // Scratch and partials are counted by u32, and so are the mask's bits.
        let limit = caps.max_storage_binding_size.min(1 << 33);
        let check = |slot: Slot, size| {
            let limit = if slot == Slot::Mask { limit.min(1 << 29) } else { limit };
            if size > limit { Err(PlanError::TooLarge { slot, size, limit }) } else { Ok(()) }
        };
        let most = window_limit(config.element, caps);
        if most < MIN_WINDOW {
            let size = MIN_WINDOW * config.element.size();
            return Err(PlanError::TooLarge { slot: Slot::X, size, limit });
        }
        if geometry.len() / most >= MAX_WINDOWS {
            let [size, limit] =
                [geometry.len(), MAX_WINDOWS * most].map(|n| n * config.element.size());
            return Err(PlanError::TooLarge { slot: Slot::X, size, limit });
        }
        let mut builder = Builder::new(geometry, config, caps, tuning);
        if is_grouped::<O>() && !builder.is_whole() {
            // Its views have no windows.
            let (size, limit) = (geometry.len() * config.element.size(), limit.min(MAX_WINDOW));
            return Err(PlanError::TooLarge { slot: Slot::X, size, limit });
        }
        O::stages(&mut builder);
        let Builder { stages, scratch, path, slope, .. } = builder;
        let measured = if is_grouped::<O>() { geometry.groups(groups) } else { geometry };
        let trains = O::NAME == Train::NAME || O::NAME == Backward::NAME || is_grouped::<O>();
        if trains
            && measured.values_per_channel() == 1
            && measured.channels() > 0
            && config.single_value == SingleValue::Error
        {
            return Err(PlanError::SingleValue { geometry: measured });
        }
        let limit = caps.max_storage_buffers;
        if let Some(stage) = stages.iter().find(|s| s.variant.buffer_count() > limit) {
            let (kernel, needed) = (stage.variant.kernel, stage.variant.buffer_count());
            return Err(PlanError::Buffers { kernel, needed, limit });
        }
        let max = u64::from(caps.max_workgroups_per_dimension).pow(2);
        if let Some(stage) = stages.iter().find(|s| u64::from(s.params.workgroup_count) > max) {
            let count = u64::from(stage.params.workgroup_count);
            return Err(PlanError::Grid { workgroup_count: count, max });
        }
        if let Some(stage) = stages.iter().find(|s| s.iterations() > u64::from(MAX_ITERATIONS)) {
            let (kernel, iterations) = (stage.variant.kernel, stage.iterations());
            return Err(PlanError::Iterations { kernel, iterations, max: MAX_ITERATIONS });
        }
        let plan = Self {
            geometry,
            config: config.clone(),
            tuning: tuning.clone(),
            stages,
            scratch_size: scratch * 4,
            path,
            slope,
            operation: PhantomData,
        };
        for (slot, _) in plan.slots() {
            check(slot, plan.binding_size(slot))?;
        }
        Ok(plan)
    }

    /// The geometry planned for.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The config planned for.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The tuning used.
    pub fn tuning(&self) -> &Tuning {
        &self.tuning
    }

    /// The dispatches, in order. None for an empty tensor.
    pub fn stages(&self) -> &[Stage] {
        &self.stages
    }

    /// Bytes of `scratch` to bring; 0 when none is needed. Its content is garbage before and
    /// after, and several operations may share one.
    pub fn scratch_size(&self) -> u64 {
        self.scratch_size
    }

    /// Bytes all dispatches must read and write.
    pub fn bytes_moved(&self) -> u64 {
        self.stages.iter().map(|stage| stage.bytes_moved).sum()
    }

    /// The slots to bring, with their sizes in bytes. In place, `y` and `dx` are not brought.
    pub fn slots(&self) -> Vec<(Slot, u64)> {
        let set = self.stages.iter().fold(Slots::default(), |set, s| set.union(s.variant.slots));
        let in_place = self.config.memory == Memory::InPlace;
        // The memory of dx, even where dy itself is not read any more.
        let set = set.with(in_place && set.contains(Slot::Dx), Slot::Dy);
        set.iter()
            .filter(|slot| !(in_place && matches!(slot, Slot::Y | Slot::Dx)))
            .map(|slot| (slot, self.slot_size(slot)))
            .collect()
    }

    /// Bytes that `slot` must hold.
    pub fn slot_size(&self, slot: Slot) -> u64 {
        let channel_size = self.geometry.channels() * 4;
        match slot {
            Slot::Scratch => self.scratch_size,
            Slot::Batches => 4,
            Slot::Mask => mask_size(&self.geometry),
            Slot::Saved if is_grouped::<O>() => {
                16 * self.geometry.groups(self.config.groups).channels()
            }
            Slot::Saved => self.config.saved_planes() * channel_size,
            Slot::Moments => 4 * channel_size,
            Slot::Parts => self.geometry.values_per_channel() * 4 * channel_size,
            Slot::Sums => 2 * channel_size,
            Slot::Weights => self.geometry.values_per_channel() * 4,
            slot if slot.is_tensor() => {
                (self.geometry.len() * self.config.element.size()).next_multiple_of(4)
            }
            _ => channel_size,
        }
    }

    /// The largest part of `slot` that one dispatch binds, in bytes.
    pub fn binding_size(&self, slot: Slot) -> u64 {
        let windows = self.stages.iter().filter_map(|stage| stage.window.as_ref());
        let largest = windows.map(|window| window.end - window.start).max();
        largest.filter(|_| slot.is_tensor()).unwrap_or(self.slot_size(slot))
    }

    /// Why memory for `slot` would have no use, if so.
    pub(crate) fn refuses(&self, slot: Slot) -> Option<&'static str> {
        let Config { affine, gradients, update, memory, residual, .. } = self.config;
        let frozen = O::NAME == Infer::NAME || O::NAME == FrozenBackward::NAME;
        let unless = |used: bool, reason| if used { None } else { Some(reason) };
        match slot {
            Slot::Y => unless(memory != Memory::InPlace, "in place, y overwrites x"),
            Slot::Dx if memory == Memory::InPlace => Some("in place, dx overwrites dy"),
            Slot::Dx | Slot::Sums => unless(gradients.x, "the config does not ask for dx"),
            Slot::Gamma => unless(affine.gamma, "the config has no gamma"),
            Slot::Beta => unless(affine.beta, "the config has no beta"),
            Slot::Dgamma => {
                unless(gradients.gamma && affine.gamma, "the config does not ask for dgamma")
            }
            Slot::Dbeta => {
                unless(gradients.beta && affine.beta, "the config does not ask for dbeta")
            }
            Slot::RunningMean | Slot::RunningVar
                if [Train::NAME, Finalize::NAME].contains(&O::NAME) =>
            {
                unless(update != Update::None, "Update::None leaves the running statistics alone")
            }
            Slot::Weights => unless(self.config.weights, "the config has no weights"),
            Slot::Z => unless(residual, "the config has no residual"),
            Slot::Dz => unless(residual && gradients.z, "the config does not ask for dz"),
            Slot::Mask => {
                unless(self.config.uses_mask(frozen), "the activation's slope is computed again")
            }
            Slot::Batches => {
                unless(update == Update::Cumulative, "only Update::Cumulative counts batches")
            }
            _ => None,
        }
    }

    /// The plan in words: the path taken and why, its dispatches, bytes moved and memory needed.
    pub fn explain(&self) -> String {
        use fmt::Write;
        let g = &self.geometry;
        let tensor = (g.len() * self.config.element.size()) as f64;
        let mut text = format!(
            "batchnorm::{} on [outer {}, channels {}, inner {}]: {}.\n",
            O::NAME,
            g.outer(),
            g.channels(),
            g.inner(),
            self.path
        );
        if let Some(slope) = self.slope {
            let _ = writeln!(text, "  The activation's slope {slope}.");
        }
        const SHOWN: usize = 12;
        for stage in self.stages.iter().take(SHOWN) {
            let [x, y, z] = stage.grid;
            let _ = writeln!(
                text,
                "  {:<20} {x}x{y}x{z} workgroups of {}, {} {} per load, {} bytes",
                stage.variant.kernel.name(),
                stage.variant.workgroup_size,
                stage.variant.vector * (1 + u32::from(stage.variant.paired)),
                stage.variant.element.name(),
                stage.bytes_moved
            );
        }
        if self.stages.len() > SHOWN {
            let _ = writeln!(text, "  … and {} more", self.stages.len() - SHOWN);
        }
        let mut windows: Vec<_> = self.stages.iter().filter_map(|s| s.window.as_ref()).collect();
        windows.sort_by_key(|window| window.start);
        windows.dedup();
        if !windows.is_empty() {
            let _ = writeln!(
                text,
                "  A tensor is larger than one binding, or than one dispatch should take: {} windows.",
                windows.len()
            );
        }
        let moved = self.bytes_moved();
        let _ = write!(
            text,
            "  {} dispatches move {moved} bytes ({:.2} tensors); scratch {} bytes.",
            self.stages.len(),
            if tensor > 0.0 { moved as f64 / tensor } else { 0.0 },
            self.scratch_size
        );
        text
    }
}
