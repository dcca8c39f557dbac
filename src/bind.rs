//! From the caller's memory, through all checks, to bind groups. After `bind`, encoding cannot fail
//! and allocates nothing.

use std::fmt;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::Arc;

use crate::config::Memory;
use crate::kernels::{Prepared, Scopes};
use crate::plan::{
    Backward, Finalize, FrozenBackward, Gradient, GroupNorm, GroupNormBackward, Infer, Normalize,
    Operation, Reduce, Slot, Statistics, Train,
};
use crate::shader::{self, Access};

/// One slot's memory: a buffer, a part of one, or nothing.
///
/// Made `.into()` from a `&Buffer`, a `BufferSlice` or a `BufferBinding`. Offsets must be multiples
/// of the device's `min_storage_buffer_offset_alignment` (256 by default); the buffer needs
/// `BufferUsages::STORAGE`. More memory than the slot needs is allowed.
#[derive(Debug, Clone, Default)]
pub struct SlotMemory<'a>(Option<Piece<'a>>);

#[derive(Debug, Clone)]
struct Piece<'a> {
    buffer: &'a wgpu::Buffer,
    offset: u64,
    size: u64,
}

impl<'a> From<&'a wgpu::Buffer> for SlotMemory<'a> {
    fn from(buffer: &'a wgpu::Buffer) -> Self {
        Self(Some(Piece { buffer, offset: 0, size: buffer.size() }))
    }
}

impl<'a> From<wgpu::BufferSlice<'a>> for SlotMemory<'a> {
    fn from(slice: wgpu::BufferSlice<'a>) -> Self {
        let (buffer, offset, size) = (slice.buffer(), slice.offset(), slice.size());
        Self(Some(Piece { buffer, offset, size }))
    }
}

impl<'a> From<wgpu::BufferBinding<'a>> for SlotMemory<'a> {
    fn from(binding: wgpu::BufferBinding<'a>) -> Self {
        let wgpu::BufferBinding { buffer, offset, size } = binding;
        let rest = buffer.size().saturating_sub(offset);
        Self(Some(Piece { buffer, offset, size: size.map_or(rest, NonZeroU64::get) }))
    }
}

impl<'a, T: Into<SlotMemory<'a>>> From<Option<T>> for SlotMemory<'a> {
    fn from(memory: Option<T>) -> Self {
        memory.map_or(Self(None), Into::into)
    }
}

macro_rules! buffers {
    ($(#[$doc:meta])* $name:ident for $operation:ident {
        $($(#[$field_doc:meta])* $field:ident: $slot:ident,)*
    }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default)]
        pub struct $name<'a> {
            $($(#[$field_doc])* pub $field: SlotMemory<'a>,)*
        }

        impl Bind for $operation {
            type Buffers<'a> = $name<'a>;
        }

        impl<'a> SlotBuffers<'a> for $name<'a> {
            fn slots(&self) -> Vec<(Slot, &SlotMemory<'a>)> {
                vec![$((Slot::$slot, &self.$field),)*]
            }

            fn from_slots(memory: &dyn Fn(Slot) -> SlotMemory<'a>) -> Self {
                Self { $($field: memory(Slot::$slot),)* }
            }
        }
    };
}

/// An operation that can be bound to memory.
pub trait Bind: Operation {
    /// Its slots.
    type Buffers<'a>: SlotBuffers<'a>;
}

/// An operation's slots by name, for code that is generic over operations.
pub trait SlotBuffers<'a>: Sized {
    /// Every slot and its memory.
    fn slots(&self) -> Vec<(Slot, &SlotMemory<'a>)>;

    /// The slots filled with what `memory` gives for each.
    fn from_slots(memory: &dyn Fn(Slot) -> SlotMemory<'a>) -> Self;
}

buffers! {
    /// Memory of a training forward. Sizes: [`Plan::slots`](crate::Plan::slots).
    TrainBuffers for Train {
        /// Input tensor.
        x: X,
        /// Output tensor; not given in place.
        y: Y,
        /// Scale `[C]`; given if [`Affine::gamma`](crate::Affine::gamma).
        gamma: Gamma,
        /// Shift `[C]`; given if [`Affine::beta`](crate::Affine::beta).
        beta: Beta,
        /// Residual tensor; given if [`Config::residual`](crate::Config::residual).
        z: Z,
        /// Written, one bit per value; given if the plan's slots have it.
        mask: Mask,
        /// Written `[4, C]`: mean, its rounding remainder, inverse standard deviation, count; under
        /// [`Renorm`](crate::Renorm) `[6, C]`, with r and d. Lives until the backward.
        saved: Saved,
        /// Updated `[C]`; given unless [`Update::None`](crate::Update::None).
        running_mean: RunningMean,
        /// Updated `[C]`; given unless [`Update::None`](crate::Update::None).
        running_var: RunningVar,
        /// Updated, one `u32`; given if [`Update::Cumulative`](crate::Update::Cumulative).
        batches: Batches,
        /// Weights of positions, `[outer, inner]`; given if [`Config::weights`](crate::Config::weights).
        weights: Weights,
        /// Working memory of [`scratch_size`](crate::Plan::scratch_size) bytes.
        scratch: Scratch,
    }
}

buffers! {
    /// Memory of an inference. Sizes: [`Plan::slots`](crate::Plan::slots).
    InferBuffers for Infer {
        /// Input tensor.
        x: X,
        /// Output tensor; not given in place.
        y: Y,
        /// Scale `[C]`; given if [`Affine::gamma`](crate::Affine::gamma).
        gamma: Gamma,
        /// Shift `[C]`; given if [`Affine::beta`](crate::Affine::beta).
        beta: Beta,
        /// Read `[C]`.
        running_mean: RunningMean,
        /// Read `[C]`; every value finite and ≥ 0.
        running_var: RunningVar,
        /// Residual tensor; given if [`Config::residual`](crate::Config::residual).
        z: Z,
        /// Written, one bit per value; given under [`Mask::Bits`](crate::Mask::Bits).
        mask: Mask,
    }
}

buffers! {
    /// Memory of a training backward. Sizes: [`Plan::slots`](crate::Plan::slots).
    BackwardBuffers for Backward {
        /// The forward's input.
        x: X,
        /// Gradient of the output.
        dy: Dy,
        /// Gradient of the input; given if asked for and not in place.
        dx: Dx,
        /// Scale `[C]`; given if [`Affine::gamma`](crate::Affine::gamma).
        gamma: Gamma,
        /// Gradient `[C]`; given if asked for.
        dgamma: Dgamma,
        /// Gradient `[C]`; given if asked for.
        dbeta: Dbeta,
        /// What the forward saved.
        saved: Saved,
        /// Shift `[C]`; needed where the activation's slope is computed again.
        beta: Beta,
        /// The forward's residual; needed where the activation's slope is computed again.
        z: Z,
        /// Gradient of the residual; given if asked for.
        dz: Dz,
        /// What the forward wrote, where the plan's slots have it.
        mask: Mask,
        /// Weights of positions, `[outer, inner]`; given if [`Config::weights`](crate::Config::weights).
        weights: Weights,
        /// Working memory of [`scratch_size`](crate::Plan::scratch_size) bytes.
        scratch: Scratch,
    }
}

buffers! {
    /// Memory of a backward with frozen statistics. Sizes: [`Plan::slots`](crate::Plan::slots).
    FrozenBackwardBuffers for FrozenBackward {
        /// The forward's input; needed for `dgamma`.
        x: X,
        /// Gradient of the output.
        dy: Dy,
        /// Gradient of the input; given if asked for and not in place.
        dx: Dx,
        /// Scale `[C]`; given if [`Affine::gamma`](crate::Affine::gamma).
        gamma: Gamma,
        /// Gradient `[C]`; given if asked for.
        dgamma: Dgamma,
        /// Gradient `[C]`; given if asked for.
        dbeta: Dbeta,
        /// Read `[C]`.
        running_mean: RunningMean,
        /// Read `[C]`.
        running_var: RunningVar,
        /// Shift `[C]`; needed where the activation's slope is computed again.
        beta: Beta,
        /// The forward's residual; needed where the activation's slope is computed again.
        z: Z,
        /// Gradient of the residual; given if asked for.
        dz: Dz,
        /// What the forward wrote, where the plan's slots have it.
        mask: Mask,
        /// Working memory of [`scratch_size`](crate::Plan::scratch_size) bytes.
        scratch: Scratch,
    }
}

buffers! {
    /// Memory of a statistics operation. Sizes: [`Plan::slots`](crate::Plan::slots).
    StatisticsBuffers for Statistics {
        /// Input tensor; not looked at when it is empty.
        x: X,
        /// Written `[4, C]`: mean, its rounding remainder, population variance, count; zeros for an
        /// empty batch. [`Moments::from_slot`](crate::Moments::from_slot) takes it.
        moments: Moments,
        /// Weights of positions, `[outer, inner]`; given if [`Config::weights`](crate::Config::weights).
        weights: Weights,
        /// Working memory of [`scratch_size`](crate::Plan::scratch_size) bytes.
        scratch: Scratch,
    }
}

buffers! {
    /// Memory of a merge of statistics. Sizes: [`Plan::slots`](crate::Plan::slots).
    FinalizeBuffers for Finalize {
        /// Read `[P, 4, C]`: the moments of every part, as [`Statistics`] writes them; not looked at
        /// when there is none.
        parts: Parts,
        /// Written `[4, C]`: mean, its rounding remainder, inverse standard deviation, count of the
        /// whole batch; under [`Renorm`](crate::Renorm) `[6, C]`, with r and d. Lives until the
        /// backward.
        saved: Saved,
        /// Updated `[C]`; given unless [`Update::None`](crate::Update::None).
        running_mean: RunningMean,
        /// Updated `[C]`; given unless [`Update::None`](crate::Update::None).
        running_var: RunningVar,
        /// Updated, one `u32`; given if [`Update::Cumulative`](crate::Update::Cumulative).
        batches: Batches,
    }
}

buffers! {
    /// Memory of a normalization with saved statistics. Sizes: [`Plan::slots`](crate::Plan::slots).
    NormalizeBuffers for Normalize {
        /// Input tensor.
        x: X,
        /// Output tensor; not given in place.
        y: Y,
        /// Scale `[C]`; given if [`Affine::gamma`](crate::Affine::gamma).
        gamma: Gamma,
        /// Shift `[C]`; given if [`Affine::beta`](crate::Affine::beta).
        beta: Beta,
        /// Read: what [`Finalize`] or [`Train`] has saved.
        saved: Saved,
        /// Residual tensor; given if [`Config::residual`](crate::Config::residual).
        z: Z,
        /// Written, one bit per value; given if the plan's slots have it.
        mask: Mask,
    }
}

buffers! {
    /// Memory of a shard's sums. Sizes: [`Plan::slots`](crate::Plan::slots).
    ReduceBuffers for Reduce {
        /// The forward's input.
        x: X,
        /// Gradient of the output.
        dy: Dy,
        /// Gradient `[C]` of this shard; given if asked for.
        dgamma: Dgamma,
        /// Gradient `[C]` of this shard; given if asked for.
        dbeta: Dbeta,
        /// What [`Finalize`] has saved.
        saved: Saved,
        /// Scale `[C]`; needed where the activation's slope is computed again.
        gamma: Gamma,
        /// Shift `[C]`; needed where the activation's slope is computed again.
        beta: Beta,
        /// The forward's residual; needed where the activation's slope is computed again.
        z: Z,
        /// Gradient of the residual; given if asked for.
        dz: Dz,
        /// What [`Normalize`] wrote, where the plan's slots have it.
        mask: Mask,
        /// Written `[2, C]`: `Σdy` and `Σdy·(x−μ)` of this shard; given if `dx` is asked for.
        sums: Sums,
        /// Working memory of [`scratch_size`](crate::Plan::scratch_size) bytes.
        scratch: Scratch,
    }
}

buffers! {
    /// Memory of a shard's gradient. Sizes: [`Plan::slots`](crate::Plan::slots).
    GradientBuffers for Gradient {
        /// The forward's input.
        x: X,
        /// Gradient of the output.
        dy: Dy,
        /// Gradient of the input; not given in place.
        dx: Dx,
        /// Scale `[C]`; given if [`Affine::gamma`](crate::Affine::gamma).
        gamma: Gamma,
        /// What [`Finalize`] has saved.
        saved: Saved,
        /// Read `[2, C]`: what [`Reduce`] has written, added over all shards.
        sums: Sums,
        /// Shift `[C]`; needed where the activation's slope is computed again.
        beta: Beta,
        /// The forward's residual; needed where the activation's slope is computed again.
        z: Z,
        /// Read: what [`Reduce`] has written, if `dz` is asked for.
        dz: Dz,
        /// What [`Normalize`] wrote, where the plan's slots have it.
        mask: Mask,
        /// Weights of positions, `[outer, inner]`; given if [`Config::weights`](crate::Config::weights).
        weights: Weights,
    }
}

buffers! {
    /// Memory of a group normalization. Sizes: [`Plan::slots`](crate::Plan::slots).
    GroupNormBuffers for GroupNorm {
        /// Input tensor.
        x: X,
        /// Output tensor; not given in place.
        y: Y,
        /// Scale `[C]`; given if [`Affine::gamma`](crate::Affine::gamma).
        gamma: Gamma,
        /// Shift `[C]`; given if [`Affine::beta`](crate::Affine::beta).
        beta: Beta,
        /// Residual tensor; given if [`Config::residual`](crate::Config::residual).
        z: Z,
        /// Written, one bit per value; given if the plan's slots have it.
        mask: Mask,
        /// Written `[4, outer·groups]`: mean, its rounding remainder, inverse standard deviation,
        /// count. Lives until the backward.
        saved: Saved,
        /// Working memory of [`scratch_size`](crate::Plan::scratch_size) bytes.
        scratch: Scratch,
    }
}

buffers! {
    /// Memory of the backward of a group normalization. Sizes: [`Plan::slots`](crate::Plan::slots).
    GroupNormBackwardBuffers for GroupNormBackward {
        /// The forward's input.
        x: X,
        /// Gradient of the output.
        dy: Dy,
        /// Gradient of the input; given if asked for and not in place.
        dx: Dx,
        /// Scale `[C]`; given if [`Affine::gamma`](crate::Affine::gamma).
        gamma: Gamma,
        /// Gradient `[C]`; given if asked for.
        dgamma: Dgamma,
        /// Gradient `[C]`; given if asked for.
        dbeta: Dbeta,
        /// What the forward saved.
        saved: Saved,
        /// Shift `[C]`; needed where the activation's slope is computed again.
        beta: Beta,
        /// The forward's residual; needed where the activation's slope is computed again.
        z: Z,
        /// Gradient of the residual; given if asked for.
        dz: Dz,
        /// What the forward wrote, where the plan's slots have it.
        mask: Mask,
        /// Working memory of [`scratch_size`](crate::Plan::scratch_size) bytes.
        scratch: Scratch,
    }
}

/// An operation bound to memory. Encode it as often as you like; cheap to clone.
#[derive(Clone)]
pub struct Bound {
    label: &'static str,
    stages: Arc<[BoundStage]>,
}

struct BoundStage {
    pipeline: wgpu::ComputePipeline,
    group: wgpu::BindGroup,
    grid: [u32; 3],
    label: String,
}

impl fmt::Debug for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stages: Vec<_> = self.stages.iter().map(|stage| (&stage.label, stage.grid)).collect();
        f.debug_struct("Bound").field("operation", &self.label).field("stages", &stages).finish()
    }
}

impl Bound {
    /// Records the operation into a compute pass. Its dispatches see what earlier dispatches of the
    /// pass wrote. Replaces the pass's pipeline and bind group 0.
    pub fn encode(&self, pass: &mut wgpu::ComputePass<'_>) {
        for stage in self.stages.iter() {
            pass.push_debug_group(&stage.label);
            pass.set_pipeline(&stage.pipeline);
            pass.set_bind_group(0, &stage.group, &[]);
            let [x, y, z] = stage.grid;
            pass.dispatch_workgroups(x, y, z);
            pass.pop_debug_group();
        }
    }

    /// Records the operation into an encoder, in a compute pass of its own.
    pub fn encode_into(&self, encoder: &mut wgpu::CommandEncoder) {
        if self.stages.is_empty() {
            return;
        }
        let descriptor =
            wgpu::ComputePassDescriptor { label: Some(self.label), timestamp_writes: None };
        self.encode(&mut encoder.begin_compute_pass(&descriptor));
    }
}

impl<O: Bind> Prepared<O> {
    /// Checks the memory and makes the bind groups. The memory's content is not touched.
    ///
    /// # Errors
    /// [`BindError`], naming slots and numbers; nothing has been recorded then.
    pub fn bind(&self, buffers: &O::Buffers<'_>) -> Result<Bound, BindError> {
        let given = buffers.slots();
        let wanted = self.plan.slots();
        for (slot, memory) in &given {
            if memory.0.is_some() {
                if let Some(reason) = self.plan.refuses(*slot) {
                    return Err(BindError::Unused { slot: *slot, reason });
                }
            }
        }
        let mut pieces = Vec::with_capacity(wanted.len());
        for (slot, required) in wanted {
            let piece = given.iter().find(|(s, _)| *s == slot).and_then(|(_, m)| m.0.as_ref());
            let piece = piece.ok_or(BindError::Missing { slot, required })?;
            self.check(slot, required, piece)?;
            pieces.push((slot, piece, piece.offset..piece.offset + required));
        }
        let variants = self.plan.stages().iter().map(|stage| &stage.variant);
        let tables: Vec<_> = variants.map(shader::bindings).collect();
        self.check_sharing(&pieces, &tables)?;

        let device = self.kernels.device();
        let scopes = Scopes::push(device);
        let stages = self.stages.iter().zip(&tables).zip(self.plan.stages()).map(
            |((prepared, bindings), stage)| {
                let uniform = self.uniforms.as_ref().map(|buffer| wgpu::BindGroupEntry {
                    binding: 0,
                    resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                        buffer,
                        offset: prepared.params_offset,
                        size: NonZeroU64::new(size_of_val(&stage.params) as u64),
                    }),
                });
                let entries: Vec<_> = uniform
                    .into_iter()
                    .chain(bindings.iter().filter_map(|binding| {
                        let (slot, piece, range) =
                            pieces.iter().find(|(slot, ..)| *slot == binding.slot)?;
                        let range = match &stage.window {
                            Some(window) if slot.is_tensor() => {
                                range.start + window.start..range.start + window.end
                            }
                            _ => range.clone(),
                        };
                        Some(wgpu::BindGroupEntry {
                            binding: binding.number,
                            resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                                buffer: piece.buffer,
                                offset: range.start,
                                size: NonZeroU64::new(range.end - range.start),
                            }),
                        })
                    }))
                    .collect();
                let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
                    label: Some(&prepared.label),
                    layout: &prepared.layout,
                    entries: &entries,
                });
                let pipeline = prepared.pipeline.clone();
                BoundStage { pipeline, group, grid: stage.grid, label: prepared.label.clone() }
            },
        );
        let stages: Arc<[BoundStage]> = stages.collect();
        match scopes.pop() {
            Some(message) => Err(BindError::Device { message }),
            None => Ok(Bound { label: O::NAME, stages }),
        }
    }

    fn check(&self, slot: Slot, required: u64, piece: &Piece<'_>) -> Result<(), BindError> {
        let alignment = u64::from(self.kernels.caps().storage_alignment);
        if !piece.buffer.usage().contains(wgpu::BufferUsages::STORAGE) {
            return Err(BindError::Usage { slot, usage: piece.buffer.usage() });
        }
        if !piece.offset.is_multiple_of(alignment) {
            return Err(BindError::Misaligned { slot, offset: piece.offset, alignment });
        }
        let rest = piece.buffer.size().saturating_sub(piece.offset);
        let available = piece.size.min(rest);
        if available < required {
            return Err(BindError::TooSmall { slot, required, available });
        }
        Ok(())
    }

    /// Memory that is written must not overlap other memory, and in one dispatch a buffer is either
    /// read or written. Which slots meet in a dispatch depends on the path, so a written slot must
    /// not share its buffer at all, but with one that is always written along with it.
    fn check_sharing(
        &self,
        pieces: &[(Slot, &Piece<'_>, Range<u64>)],
        tables: &[Vec<shader::Binding>],
    ) -> Result<(), BindError> {
        let all = || tables.iter().flatten();
        let written =
            |slot| all().any(|binding| binding.slot == slot && binding.access == Access::Write);
        for (i, (a, piece_a, range_a)) in pieces.iter().enumerate() {
            for (b, piece_b, range_b) in &pieces[i + 1..] {
                if piece_a.buffer != piece_b.buffer {
                    continue;
                }
                let overlap = range_a.start < range_b.end && range_b.start < range_a.end;
                let arena = self.plan.config().memory == Memory::Arena;
                if overlap && (arena || written(*a) || written(*b)) {
                    return Err(BindError::Overlap {
                        a: *a,
                        a_range: range_a.clone(),
                        b: *b,
                        b_range: range_b.clone(),
                    });
                }
                let pair = matches!(
                    (a, b),
                    (Slot::RunningMean, Slot::RunningVar) | (Slot::Dgamma, Slot::Dbeta)
                );
                if !arena && !pair && (written(*a) || written(*b)) {
                    return Err(BindError::SharedBuffer { a: *a, b: *b });
                }
            }
        }
        Ok(())
    }
}

/// What is wrong with the caller's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum BindError {
    /// A slot that the plan needs is not given.
    Missing {
        /// The slot.
        slot: Slot,
        /// Bytes it needs.
        required: u64,
    },
    /// A slot is given that the config has no use for.
    Unused {
        /// The slot.
        slot: Slot,
        /// Why it has no use.
        reason: &'static str,
    },
    /// A slot's memory is too small.
    TooSmall {
        /// The slot.
        slot: Slot,
        /// Bytes it needs.
        required: u64,
        /// Bytes given, from the offset to the end of the piece or of the buffer.
        available: u64,
    },
    /// A slot's offset is not aligned.
    Misaligned {
        /// The slot.
        slot: Slot,
        /// Its offset in bytes.
        offset: u64,
        /// What it must be a multiple of.
        alignment: u64,
    },
    /// A slot's buffer cannot be bound as storage.
    Usage {
        /// The slot.
        slot: Slot,
        /// The usages the buffer has; `STORAGE` is missing.
        usage: wgpu::BufferUsages,
    },
    /// Two slots overlap, and one of them is written.
    Overlap {
        /// One slot.
        a: Slot,
        /// Its bytes in the buffer.
        a_range: Range<u64>,
        /// The other slot.
        b: Slot,
        /// Its bytes in the buffer.
        b_range: Range<u64>,
    },
    /// One of two slots in one buffer is written. That needs
    /// [`Memory::Arena`](crate::Memory::Arena).
    SharedBuffer {
        /// One slot.
        a: Slot,
        /// The other slot.
        b: Slot,
    },
    /// The device refused the bind group: a buffer of another device of the same instance. (wgpu
    /// cannot tell a buffer of another instance, and may panic on it. It tells of a lost device
    /// through the device's own callback, and not here.)
    Device {
        /// What wgpu says.
        message: String,
    },
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { slot, required } => {
                write!(f, "{slot} is missing; it needs {required} bytes")
            }
            Self::Unused { slot, reason } => write!(f, "{slot} is given, but {reason}"),
            Self::TooSmall { slot, required, available } => {
                write!(f, "{slot} needs {required} bytes and has {available}")
            }
            Self::Misaligned { slot, offset, alignment } => {
                write!(f, "{slot} starts at byte {offset}, which is no multiple of {alignment}")
            }
            Self::Usage { slot, usage } => {
                write!(f, "{slot}'s buffer lacks BufferUsages::STORAGE (it has {usage:?})")
            }
            Self::Overlap { a, a_range, b, b_range } => write!(
                f,
                "{a} (bytes {a_range:?}) and {b} (bytes {b_range:?}) overlap in one buffer"
            ),
            Self::SharedBuffer { a, b } => write!(
                f,
                "{a} and {b} share a buffer, and one of them is written: use Memory::Arena"
            ),
            Self::Device { message } => write!(f, "the device refused the memory: {message}"),
        }
    }
}

impl std::error::Error for BindError {}
