//! What a dispatch is: its kernel, variant, grid and parameters.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use super::slots::{Slot, Slots};
use crate::config::{Activation, Element, Memory};

/// A kernel: the file of this name in `shaders/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kernel {
    /// `batches += 1`, unless the batch was empty.
    CountBatch,
    /// Partial mean and variance of chunks of rows.
    RowsStatistics,
    /// Partial mean and variance of chunks of columns.
    ColumnsStatistics,
    /// Mean, remainder, variance and sum of weights of chunks of rows.
    RowsWeightedStatistics,
    /// Mean, remainder, variance and sum of weights of chunks of columns.
    ColumnsWeightedStatistics,
    /// Merges partial statistics; writes saved and running statistics, or the moments.
    FinalizeStatistics,
    /// Merges the statistics of parts of a batch, or weighted ones; writes saved and running
    /// statistics, or the moments.
    MergeParts,
    /// Normalize, scale, shift.
    RowsNormalize,
    /// Normalize, scale, shift.
    ColumnsNormalize,
    /// A whole training forward in one dispatch.
    RowsForward,
    /// A whole training forward in one dispatch.
    ColumnsForward,
    /// Partial `Σdy`, `Σdy·(x−μ)`.
    RowsReduce,
    /// Partial `Σdy`, `Σdy·(x−μ)`.
    ColumnsReduce,
    /// Merges partial sums; writes `dgamma`, `dbeta` and what `dx` needs.
    FinalizeGradients,
    /// Merges the sums of rows in group normalization: of a group, or of a channel into `dgamma` and
    /// `dbeta`.
    MergeRows,
    /// `dx` of training.
    RowsGradient,
    /// `dx` of training.
    ColumnsGradient,
    /// A whole training backward in one dispatch.
    RowsBackward,
    /// A whole training backward in one dispatch.
    ColumnsBackward,
    /// `dx` with frozen statistics, and the partial sums on the way.
    RowsFrozen,
    /// `dx` with frozen statistics, and the partial sums on the way.
    ColumnsFrozen,
}

/// What every kernel gets as its uniform: the twin of `Params` in `shaders/prelude/params.wgsl`.
///
/// A *partial* is what one column of a chunk contributes, or neighbouring ones of a channel. For
/// rows, a column is a whole channel. A *step* is one vector load of rows, or one row of columns.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Default, Pod, Zeroable)]
pub struct Params {
    /// Workgroups that have work; a folded grid holds a few more.
    pub workgroup_count: u32,
    /// `C`.
    pub channel_count: u32,
    /// Elements of one channel that lie together; channel `c` starts at `c·inner`.
    pub inner: u32,
    /// Elements from a channel's first one to one in its middle…
    pub middle: u32,
    /// …and to a late one.
    pub last: u32,
    /// Steps along the reduced axis that every column has.
    pub step_count: u32,
    /// Steps in a chunk.
    pub chunk: u32,
    /// Chunks.
    pub chunk_count: u32,
    /// Partials of a chunk, side by side: one of each column, or two of each strip.
    pub width: u32,
    /// The first `tail` columns have one step more.
    pub tail: u32,
    /// Vector loads in a row (rows), in the width (columns).
    pub row_loads: u32,
    /// Rows: vector loads from one row of a channel to its next.
    pub row_stride: u32,
    /// Rows: what one step of a whole workgroup adds to the place in the row…
    pub advance_place: u32,
    /// …and to the index in the tensor.
    pub advance_index: u32,
    /// Columns of one channel that lie together.
    pub run: u32,
    /// Partials of a channel's columns that lie together: as many, or of all strips that they may be
    /// in.
    pub per_run: u32,
    /// Partials of one channel in a chunk.
    pub per_chunk: u32,
    /// Columns: so many neighbours share a partial where they are of one channel, and have a second one
    /// for those of the next; 1: each has its own.
    pub strip: u32,
    /// Values in one step of one partial.
    pub weight: u32,
    /// Floats in one plane of partials.
    pub plane: u32,
    /// Where the merged sums lie in the scratch, in floats.
    pub sums: u32,
    /// 1 where the running variance is the unbiased one, n/(n−1).
    pub unbiased: u32,
    /// Weight of the new value in the running update.
    pub rate: f32,
    /// Weight of the old value.
    pub keep: f32,
    /// ε.
    pub epsilon: f32,
    /// Always 0, and no compiler knows it.
    pub zero: u32,
    /// The activation's slope or limit.
    pub activation: f32,
    /// Vector loads from where a tensor's binding begins to where its window does.
    pub base: u32,
    /// Vector loads from the first element to where the binding begins.
    pub mask_base: u32,
    /// The window's first channel.
    pub first_channel: u32,
    /// The window's channels.
    pub channels_here: u32,
    /// Where partials or parts lie in the scratch, in floats.
    pub partials: u32,
    /// Floats in one plane of merged sums.
    pub sums_plane: u32,
    /// Batch renormalization: the least r…
    pub rmin: f32,
    /// …the largest r…
    pub rmax: f32,
    /// …and the largest |d|.
    pub dmax: f32,
    /// Planes of the statistics hold so many: `C`, or `outer·groups` in group normalization…
    pub group_count: u32,
    /// …where so many neighbouring rows share them…
    pub per_group: u32,
    /// …and rows have the parameters of channel `row % parameter_count`.
    pub parameter_count: u32,
    /// Where the window's first position is in `weights`: in vector loads (rows), in values
    /// (columns).
    pub weights_base: u32,
    /// Columns: neighbouring tiles of a workgroup…
    pub tiles: u32,
    /// …which it visits in so many rows before it goes on to the next…
    pub block: u32,
    /// …and so many vector loads make a cache line, each of which it touches first; 0 for none.
    pub line: u32,
    /// Columns: workgroups side by side.
    pub parts: u32,
    /// 1 where the first workgroups take the tensor's end.
    pub from_end: u32,
}

impl Params {
    /// Rows: with steps of so many vector loads.
    pub(super) fn advanced_by(self, loads: u32) -> Self {
        let (rows, place) = (loads / self.row_loads, loads % self.row_loads);
        // It wraps only where the next step is far behind the tensor's end.
        let advance_index = rows.wrapping_mul(self.row_stride).wrapping_add(place);
        Self { advance_place: place, advance_index, ..self }
    }

    /// How often an invocation loops in one block of columns, at most, when it does in so many rows
    /// of one column.
    pub(super) fn block_iterations(
        &self,
        lanes: u64,
        [pair, columns]: [u64; 2],
        of_rows: impl Fn(u64) -> u64,
    ) -> u64 {
        let [tiles, block, line] = [self.tiles, self.block, self.line].map(u64::from);
        let row_loads = u64::from(self.row_loads);
        let touches = match line {
            0 => 0,
            // As one row.
            _ if row_loads <= tiles * lanes * pair => {
                1 + (block * row_loads).div_ceil(lanes * line)
            }
            _ => block * (1 + (tiles * pair).div_ceil(line)),
        };
        // Three loops over the columns of a strip. Where no vector fits the channels' numbers, gradients take
        // up to thirteen, which is why `MAX_ITERATIONS` is a quarter of what adapters run.
        1 + touches + tiles * (1 + of_rows(block) + 3 * columns)
    }
}

/// An [`Activation`] without its number, which is a uniform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Epilogue {
    /// None.
    None,
    /// ReLU.
    Relu,
    /// Leaky ReLU.
    LeakyRelu,
    /// Clipped ReLU.
    ClippedRelu,
    /// SiLU.
    Silu,
    /// The caller's WGSL.
    Custom(&'static str),
}

impl From<Activation> for Epilogue {
    fn from(activation: Activation) -> Self {
        match activation {
            Activation::None => Self::None,
            Activation::Relu => Self::Relu,
            Activation::LeakyRelu { .. } => Self::LeakyRelu,
            Activation::ClippedRelu { .. } => Self::ClippedRelu,
            Activation::Silu => Self::Silu,
            Activation::Custom(source) => Self::Custom(source),
        }
    }
}

/// What selects a pipeline: the complete key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Variant {
    /// The kernel.
    pub kernel: Kernel,
    /// The slots in use; the kernel's other slots read as their neutral value.
    pub slots: Slots,
    /// How they are bound. In place, `y` and `dx` are the memory of `x` and `dy`.
    pub memory: Memory,
    /// What follows the normalization; `None` also where the dispatch has nothing to do with it.
    pub activation: Epilogue,
    /// Element of the tensors; `F32` also where the dispatch touches none.
    pub element: Element,
    /// f16: widened by the built-in conversion…
    pub built_in_widen: bool,
    /// …and rounded by it.
    pub built_in_narrow: bool,
    /// Elements per vector load: 4 or 1.
    pub vector: u32,
    /// Invocations per workgroup.
    pub workgroup_size: u32,
    /// Invocations that share a channel while merging partials.
    pub group_size: u32,
    /// Add to `dgamma`, `dbeta`.
    pub accumulate: bool,
    /// Take the update's rate from the `batches` slot.
    pub cumulative: bool,
    /// Leave running statistics alone when the batch's are not finite.
    pub keep_non_finite: bool,
    /// Batch renormalization.
    pub renorm: bool,
    /// Group normalization: rows share statistics and parameters.
    pub grouped: bool,
    /// Positions have weights.
    pub weighted: bool,
    /// Columns: a vector's columns are neighbouring channels.
    pub neighbours: bool,
    /// Columns: a strip's are of one channel, or of it and the next.
    pub runs: bool,
    /// Tensors lie as words of 64 bits.
    pub wide: bool,
    /// Columns: a workgroup leaves the same partials for rows that lie side by side.
    pub joined: bool,
    /// Rows: an invocation has two neighbouring vectors at a time.
    pub paired: bool,
    /// Rows: an invocation has all values of a word of the mask.
    pub words: bool,
    /// Rows: strides of four vectors for which an invocation has registers, as it keeps all of a channel;
    /// 0: it reads it twice.
    pub held: u32,
}

impl Variant {
    /// Storage buffers that it binds.
    pub fn buffer_count(&self) -> u32 {
        buffer_count(self.slots, self.memory)
    }
}

/// One dispatch.
#[derive(Debug, Clone, PartialEq)]
pub struct Stage {
    /// Which pipeline.
    pub variant: Variant,
    /// Workgroups in x, y, z.
    pub grid: [u32; 3],
    /// Its uniform.
    pub params: Params,
    /// Bytes it must read and write in tensors and partials.
    pub bytes_moved: u64,
    /// The bytes of every tensor that it binds, where a tensor is too large for one binding. The
    /// mask and all other slots are bound whole.
    pub window: Option<Range<u64>>,
}

impl Stage {
    /// How often one invocation loops, at most, summed over all its loops; of the loops over a strip's
    /// columns three are counted.
    pub fn iterations(&self) -> u64 {
        let p = &self.params;
        let lanes = u64::from(self.variant.workgroup_size);
        let pair = 1 + u64::from(self.variant.paired);
        let strip = [pair, pair * u64::from(self.variant.vector)];
        // A loop of fours and a loop over what is left.
        let sweep = |steps: u64| steps / 4 + 3;
        // Where that is walked in pairs, or as if it were.
        let rows = sweep(u64::from(p.chunk).div_ceil(lanes)) + 6;
        // Of pairs, two rows make four vectors.
        let columns_sweep = |rows: u64| pair * sweep(rows);
        let columns = columns_sweep(u64::from(p.chunk)) + 8 * strip[1];
        let tree = u64::from(lanes.ilog2());
        let partials = u64::from(p.chunk_count) * u64::from(p.per_chunk);
        match self.variant.kernel {
            Kernel::CountBatch => 0,
            Kernel::FinalizeStatistics | Kernel::FinalizeGradients | Kernel::MergeRows => {
                partials.div_ceil(u64::from(self.variant.group_size)) + tree
            }
            // Lanes look for the first part that is not empty, then merge.
            Kernel::MergeParts => {
                2 * (partials.div_ceil(u64::from(self.variant.group_size)) + tree)
            }
            Kernel::RowsStatistics | Kernel::RowsReduce | Kernel::RowsFrozen => rows + tree,
            Kernel::RowsWeightedStatistics => u64::from(p.chunk).div_ceil(lanes) + 2 * tree + 8,
            Kernel::ColumnsWeightedStatistics => u64::from(p.chunk) + 8 * 4,
            Kernel::RowsNormalize | Kernel::RowsGradient => rows,
            Kernel::RowsForward | Kernel::RowsBackward => 2 * rows + tree,
            Kernel::ColumnsStatistics
            | Kernel::ColumnsNormalize
            | Kernel::ColumnsReduce
            | Kernel::ColumnsGradient
            | Kernel::ColumnsFrozen => {
                let walk = self.blocks() * p.block_iterations(lanes, strip, columns_sweep);
                // Halving all columns of the lanes, and what is left once more.
                let halvings = u64::from((lanes * strip[1]).ilog2()) + 2;
                walk + u64::from(self.variant.joined) * halvings * (1 + strip[1])
            }
            Kernel::ColumnsForward | Kernel::ColumnsBackward => 2 * columns,
        }
    }

    fn blocks(&self) -> u64 {
        u64::from(self.params.chunk.div_ceil(self.params.block.max(1)))
    }
}

impl Kernel {
    /// Whether it computes something else where positions have weights.
    pub(super) fn knows_weights(&self) -> bool {
        matches!(
            self,
            Self::RowsReduce
                | Self::ColumnsReduce
                | Self::FinalizeGradients
                | Self::RowsGradient
                | Self::ColumnsGradient
        )
    }

    /// Whether it can take two neighbouring vectors at a time.
    pub fn walks_pairs(self) -> bool {
        matches!(
            self,
            Self::RowsStatistics
                | Self::RowsNormalize
                | Self::RowsForward
                | Self::RowsReduce
                | Self::RowsGradient
                | Self::RowsBackward
                | Self::RowsFrozen
        ) || self.walks_columns()
    }

    /// How many tensors an invocation can keep in registers, for a second pass of the same dispatch.
    pub fn holds(self, slots: Slots) -> u32 {
        match self {
            Self::RowsForward => 1,
            Self::RowsBackward if slots.contains(Slot::Dx) => 2,
            _ => 0,
        }
    }

    pub(super) fn walks_columns(self) -> bool {
        matches!(
            self,
            Self::ColumnsStatistics
                | Self::ColumnsNormalize
                | Self::ColumnsForward
                | Self::ColumnsReduce
                | Self::ColumnsGradient
                | Self::ColumnsBackward
                | Self::ColumnsFrozen
        )
    }

    /// Whether it goes through a tensor that an earlier pass has gone through, whose results it applies.
    pub(super) fn applies(self) -> bool {
        matches!(
            self,
            Self::RowsNormalize
                | Self::ColumnsNormalize
                | Self::RowsGradient
                | Self::ColumnsGradient
        )
    }

    /// Whether it leaves partials of columns, which a workgroup can join.
    pub(super) fn leaves_columns(self) -> bool {
        matches!(self, Self::ColumnsStatistics | Self::ColumnsReduce | Self::ColumnsFrozen)
    }

    /// The kernel's name: its file in `shaders/` and the last part of its label.
    pub fn name(&self) -> &'static str {
        match self {
            Self::CountBatch => "count_batch",
            Self::RowsStatistics => "rows_statistics",
            Self::ColumnsStatistics => "columns_statistics",
            Self::RowsWeightedStatistics => "rows_weighted_statistics",
            Self::ColumnsWeightedStatistics => "columns_weighted_statistics",
            Self::FinalizeStatistics => "finalize_statistics",
            Self::MergeParts => "merge_parts",
            Self::RowsNormalize => "rows_normalize",
            Self::ColumnsNormalize => "columns_normalize",
            Self::RowsForward => "rows_forward",
            Self::ColumnsForward => "columns_forward",
            Self::RowsReduce => "rows_reduce",
            Self::ColumnsReduce => "columns_reduce",
            Self::FinalizeGradients => "finalize_gradients",
            Self::MergeRows => "merge_rows",
            Self::RowsGradient => "rows_gradient",
            Self::ColumnsGradient => "columns_gradient",
            Self::RowsBackward => "rows_backward",
            Self::ColumnsBackward => "columns_backward",
            Self::RowsFrozen => "rows_frozen",
            Self::ColumnsFrozen => "columns_frozen",
        }
    }
}

/// Storage buffers that a dispatch with these slots binds. In place, outputs have none of their own.
pub(super) fn buffer_count(slots: Slots, memory: Memory) -> u32 {
    let home = |output, input| {
        u32::from(memory == Memory::InPlace && slots.contains(output) && slots.contains(input))
    };
    slots.count() - home(Slot::Y, Slot::X) - home(Slot::Dx, Slot::Dy)
}
