//! From an operation to its stages: how the tensor is walked, cut and tiled.

use super::slots::{Slot, Slots};
use super::stages::{Epilogue, Kernel, Params, Stage, Variant, buffer_count};
use crate::caps::Caps;
use crate::config::{Activation, Config, Element, NonFinite, Renorm, RunningVariance, Update};
use crate::geometry::{Geometry, Window};
use crate::tuning::{MAX_ITERATIONS, Tuning};

/// No device has more lanes, and a few times as many steps past the end of a tensor still fit u32.
pub(super) const MAX_WORKGROUP_SIZE: u32 = 1 << 16;

/// A workgroup has no more tiles of columns than this, and visits no more of their rows at a time.
const MAX_TILES: u64 = 32;
const MAX_VISITS: u64 = 2_048;

/// Where windows are bound is a multiple of the bytes of 32 values, which share a word of the mask; and
/// so of every load.
const MASK_WORD: u64 = 128;

/// Bytes that a processor loads at once.
const CACHE_LINE: u64 = 64;

/// Strides that an invocation keeps in registers.
const MAX_HELD: u32 = 32;

/// Columns whose partials a workgroup joins: three numbers of each fit 16 KiB.
const MAX_JOINED: u64 = 1_024;

/// A channel's columns that lie together have no more partials than this in a chunk, or strips of four.
const MAX_RUN_PARTIALS: u64 = 512;

/// The two ways to walk a tensor; each has its own kernels.
#[derive(Clone, Copy, PartialEq)]
enum Walk {
    /// One channel per workgroup, lanes along its rows.
    Rows,
    /// Lanes over columns, loops over rows.
    Columns,
}

/// How a tensor is walked as columns.
#[derive(Clone, Copy)]
struct Columns {
    /// Rows side by side.
    period: u64,
    vector: u32,
    pair: u32,
    /// See [`Builder::runs`].
    runs: bool,
    /// Partials of neighbouring columns of a channel.
    per_run: u64,
}

/// Which gradients a backward has to make.
#[derive(Clone, Copy)]
struct Wanted {
    dx: bool,
    dz: bool,
    dgamma: bool,
    dbeta: bool,
}

impl Wanted {
    fn any(&self) -> bool {
        self.dx || self.dz || self.dgamma || self.dbeta
    }

    fn parameters(&self) -> Slots {
        Slots::default().with(self.dgamma, Slot::Dgamma).with(self.dbeta, Slot::Dbeta)
    }
}

/// Builds the stages of one operation.
#[doc(hidden)]
pub struct Builder<'a> {
    config: &'a Config,
    tuning: &'a Tuning,
    max_per_dimension: u32,
    walk: Walk,
    vector: u32,
    /// Workgroups side by side: channels (rows) or tiles (columns).
    across: u64,
    /// All channels' work in one dispatch.
    fused: bool,
    /// Columns of a vector are neighbouring channels, in whose slots planes are whole vectors.
    neighbours: bool,
    /// Columns of a strip are of one channel, or of it and the next.
    runs: bool,
    /// Rows side by side whose partials a workgroup joins; 1: none.
    joined: u64,
    params: Params,
    /// Floats in one plane of partials.
    plane: u64,
    /// Of the tensor in pieces that can be bound, and the one that stages are made for.
    geometry: Geometry,
    windows: Vec<Window>,
    window: Window,
    alignment: u64,
    /// Where the merged sums of all windows lie in the scratch, in floats.
    merged: u64,
    /// Of the window.
    tensor_size: u64,
    empty: bool,
    /// Rows share statistics and parameters.
    grouped: bool,
    /// Positions have weights, and the operation knows it.
    weighted: bool,
    /// For [`Finalize`], whose geometry is `[P, C]`.
    part_count: u32,
    pub(super) stages: Vec<Stage>,
    /// Floats.
    pub(super) scratch: u64,
    pub(super) path: &'static str,
    /// Where a backward has the activation's slope from, or a forward puts it.
    pub(super) slope: Option<&'static str>,
    max_buffers: u32,
    wide: bool,
    /// Vectors that a lane has side by side: 2 or 1.
    pair: u32,
}

impl<'a> Builder<'a> {
    pub(super) fn new(
        geometry: Geometry,
        config: &'a Config,
        caps: &Caps,
        tuning: &'a Tuning,
    ) -> Self {
        let most = caps.max_storage_binding_size.min(MAX_WINDOW);
        let fits = geometry.len() * config.element.size() <= most;
        let most = if fits { u64::MAX } else { window_limit(config.element, caps) };
        let windows = geometry.coalesced().windows(most);
        let mut builder = Self {
            geometry,
            config,
            tuning,
            max_per_dimension: caps.max_workgroups_per_dimension.max(1),
            walk: Walk::Rows,
            vector: 1,
            across: 0,
            fused: false,
            neighbours: false,
            runs: false,
            joined: 1,
            params: Params::default(),
            plane: 0,
            window: windows[0],
            windows,
            alignment: u64::from(caps.storage_alignment).max(MASK_WORD),
            merged: 0,
            tensor_size: 0,
            empty: geometry.is_empty(),
            grouped: false,
            weighted: config.weights,
            part_count: geometry.values_per_channel().min(u64::from(u32::MAX)) as u32,
            stages: Vec::new(),
            scratch: 0,
            path: "nothing to do for an empty tensor",
            slope: None,
            max_buffers: caps.max_storage_buffers,
            wide: tuning.wide_loads && caps.int64,
            pair: 1,
        };
        builder.params.activation = config.activation.parameter() as f32;
        builder.params.channel_count = geometry.channels().min(u64::from(u32::MAX)) as u32;
        builder.params.group_count = builder.params.channel_count;
        builder.params.epsilon = config.epsilon as f32;
        builder.params.unbiased = u32::from(config.running_variance == RunningVariance::Unbiased);
        let (rate, keep) = match config.update {
            Update::Rate(rate) => (rate, 1.0 - rate),
            Update::Decay(decay) => (1.0 - decay, decay),
            Update::Cumulative | Update::None => (0.0, 1.0),
        };
        builder.params.rate = rate as f32;
        builder.params.keep = keep as f32;
        builder.params.channels_here = builder.params.channel_count;
        builder.params.sums_plane = builder.params.channel_count;
        if let Some(Renorm { rmax, dmax }) = config.renorm {
            builder.params.rmin = (1.0 / rmax) as f32;
            builder.params.rmax = rmax as f32;
            builder.params.dmax = dmax as f32;
        }
        if !builder.empty {
            builder.open(builder.window, builder.windows.len() == 1 && !builder.weighted);
            builder.path = builder.layout_path();
        }
        builder
    }

    /// The stages to come are for this window.
    fn open(&mut self, window: Window, may_fuse: bool) {
        self.window = window;
        self.tensor_size = window.geometry.len() * self.config.element.size();
        self.lay_out(may_fuse);
        let size = self.config.element.size();
        let load = size * u64::from(self.vector);
        let begin = window.first * size;
        let bound = begin / self.alignment * self.alignment;
        // Of a tensor in one piece, zeros.
        self.params.base = ((begin - bound) / load) as u32;
        // A mask has fewer bits than fit u32; without one, this is not looked at.
        self.params.mask_base = (bound / load) as u32;
        let position = window.position(&self.geometry);
        self.params.weights_base = match self.walk {
            Walk::Rows => (position / u64::from(self.vector)) as u32,
            Walk::Columns => position as u32,
        };
        self.params.first_channel = window.first_channel as u32;
        self.params.channels_here = window.geometry.channels() as u32;
        self.params.partials = 0;
        self.params.sums_plane = self.params.channel_count;
        if !self.is_whole() {
            self.params.sums = self.merged as u32;
        }
    }

    /// The stages to come are for all windows' results.
    fn close(&mut self) {
        (self.params.first_channel, self.params.channels_here) = (0, self.params.channel_count);
    }

    pub(super) fn is_whole(&self) -> bool {
        self.windows.len() == 1
    }

    /// Makes stages for one window after the other.
    fn in_windows(&mut self, make: impl Fn(&mut Self)) {
        if self.is_whole() {
            return make(self);
        }
        for i in 0..self.windows.len() {
            self.open(self.windows[i], false);
            make(self);
        }
        self.close();
    }

    /// Pieces of every channel.
    fn part_total(&self) -> u64 {
        self.windows.iter().map(|window| window.part + 1).max().unwrap_or(0)
    }

    /// Floats in one plane of the partials of the window that has most.
    fn largest_plane(&mut self) -> u64 {
        if self.is_whole() {
            return self.plane;
        }
        let mut most = 0;
        for i in 0..self.windows.len() {
            self.open(self.windows[i], false);
            most = most.max(self.plane);
        }
        most
    }

    /// Bytes of the mask of the window.
    pub(super) fn mask_size(&self) -> u64 {
        mask_size(&self.window.geometry)
    }

    /// Decides how the window is walked and cut. The sizes fit `u32`: a binding does.
    fn lay_out(&mut self, may_fuse: bool) {
        let (t, g) = (self.tuning, self.window.geometry);
        let lanes = u64::from(t.workgroup_size);
        let (steps, tail, mut width);
        // A row's weights are loaded as it is.
        let begin = if self.config.weights { self.window.position(&self.geometry) } else { 0 };
        let vector = if self.fits_vectors(gcd(g.inner(), begin)) { 4 } else { 1 };
        let row_loads = g.inner() / vector;
        let steps_of_rows = g.outer() * row_loads;
        let columns = self.columns();
        // Rows that no vector fits are walked as columns where those are long enough to pay for their
        // partials, of which every column has its own where it does not share them.
        let least = match self.config.element {
            Element::F32 if columns.runs => t.min_odd_rows,
            Element::F32 => t.min_odd_rows.max(16),
            _ => 2,
        };
        let odd_rows =
            vector == 1 && columns.vector == 4 && g.outer() / columns.period >= u64::from(least);
        let many = u64::from(g.outer() >= u64::from(t.many_rows));
        let long_rows = g.inner() >= u64::from(t.min_row) * (1 + many) && !odd_rows;
        // Halves that no vector fits would be stored one by one, by atomics.
        let by_atomics = odd_rows && self.config.element != Element::F32;
        let loads = steps_of_rows.div_ceil(lanes) * if odd_rows { 4 } else { 1 };
        let tiny = g.inner() > 1
            && !by_atomics
            && g.channels() <= u64::from(t.workgroup_count)
            && loads <= u64::from(t.tiny_loads)
            && loads * g.channels() <= u64::from(t.short_row_loads);
        if g.channels() == 1 || long_rows || tiny || columns.per_run > MAX_RUN_PARTIALS {
            self.walk = Walk::Rows;
            self.vector = vector as u32;
            steps = steps_of_rows;
            tail = 0;
            width = g.channels();
            self.across = g.channels();
            self.fused = may_fuse && self.one_dispatch(steps.div_ceil(lanes));
            self.params.row_loads = row_loads as u32;
            self.params.row_stride = (g.channels() * row_loads) as u32;
            self.pair = self.pair_of(self.vector, g.inner());
            self.params = self.params.advanced_by(self.pair * t.workgroup_size);
            (self.params.run, self.params.per_run, self.params.per_chunk) = (1, 1, 1);
            self.params.strip = 1;
            self.params.weight = self.vector;
            (self.neighbours, self.runs, self.joined) = (false, false, 1);
            self.params.line = 0;
        } else {
            self.walk = Walk::Columns;
            let [vector, pair] = self.vectors_of(g.channels() * g.inner(), 0);
            self.across = (g.channels() * g.inner()).div_ceil(lanes * u64::from(vector * pair));
            self.fused = may_fuse && g.inner() == 1 && self.one_dispatch(g.outer());
            let columns = match self.fused {
                true => Columns { period: 1, vector, pair, ..columns },
                false => columns,
            };
            (self.vector, self.pair, self.runs) = (columns.vector, columns.pair, columns.runs);
            let side_by_side = g.channels() * g.inner() * columns.period;
            steps = g.outer() / columns.period;
            tail = g.outer() % columns.period * g.channels() * g.inner();
            self.params.row_loads = (side_by_side / u64::from(self.vector)) as u32;
            let vector = u64::from(self.vector);
            self.neighbours = g.inner() == 1
                && g.channels().is_multiple_of(vector)
                && u64::from(self.params.channel_count).is_multiple_of(vector)
                && self.window.first_channel.is_multiple_of(4);
            self.joined = if self.joins(side_by_side) { columns.period } else { 1 };
            width = if self.runs { side_by_side / self.strip() * 2 } else { side_by_side };
            width /= self.joined;
            self.params.strip = if self.runs { self.strip() as u32 } else { 1 };
            self.params.run = g.inner() as u32;
            self.params.per_run = columns.per_run as u32;
            self.params.per_chunk = (columns.per_run * columns.period / self.joined) as u32;
            self.params.weight = 1;
        }
        self.params.inner = g.inner() as u32;
        let vector = u64::from(self.vector);
        let first_of = |step: u64| match self.walk {
            Walk::Rows => {
                let (row, place) = (step / row_loads, step % row_loads);
                (row * g.channels() * row_loads + place) * vector
            }
            Walk::Columns => step * u64::from(self.params.row_loads) * vector,
        };
        let (middle, last) = (first_of(steps / 2), first_of(steps - 1));
        (self.params.middle, self.params.last) = (middle as u32, last as u32);
        self.params.step_count = steps as u32;
        self.params.width = width as u32;
        self.params.tail = tail as u32;
        self.cut_chunks(true);
        // A plane that does not fit u32 makes the scratch too large to bind.
        self.plane = u64::from(self.params.chunk_count) * width;
        self.params.plane = self.plane as u32;
        self.params.sums = (self.plane * 2) as u32;
    }

    /// How the window is walked as columns, unless in one dispatch.
    fn columns(&self) -> Columns {
        let (g, lanes) = (self.window.geometry, u64::from(self.tuning.workgroup_size));
        let columns = g.channels() * g.inner();
        // Several rows side by side until the lanes are busy and a vector fits.
        let enough = (lanes * 4).div_ceil(columns).min(g.outer());
        // Rows that are whole pairs of vectors together, where none are left over. lavapipe 22.3, forward,
        // inference, backward, ms: 100000x12 2.01 1.08 2.91 → 1.49 0.73 1.96, 25088x100 3.64 2.00 5.34 → 3.14
        // 1.66 4.46, 12544x300 5.42 2.92 7.63 → 5.08 2.63 7.20, 3136x1780 11.6 6.4 16.3 → 12.0 6.3 16.2.
        let pairs = 8 / gcd(8, columns);
        let unit = match self.wide && g.outer().is_multiple_of(pairs) {
            true => pairs,
            false => 4 / gcd(4, columns),
        };
        // A few too many would be a second tile, whose lanes are idle.
        let fitting = lanes * 4 / columns / unit * unit;
        let even = if fitting >= 4 * unit { fitting } else { enough.next_multiple_of(unit) };
        let period = if even <= g.outer() { even } else { enough };
        let [vector, pair] = self.vectors_of(columns * period, g.outer() % period * columns);
        let strip = u64::from(vector * pair);
        let runs = strip > 1 && g.inner() >= strip && !self.config.weights;
        let per_run = match runs {
            true => (g.inner() + strip - gcd(g.inner(), strip)).div_ceil(strip),
            false => g.inner(),
        };
        Columns { period, vector, pair, runs, per_run }
    }

    /// The vector and the pair of so many columns, of which the first few have one row more.
    fn vectors_of(&self, columns: u64, tail: u64) -> [u32; 2] {
        let vector = if self.fits_vectors(gcd(columns, tail)) { 4 } else { 1 };
        [vector, self.pair_of(vector, gcd(columns, tail))]
    }

    /// Whether vectors of four fit what lies together, and may begin with the window.
    fn fits_vectors(&self, length: u64) -> bool {
        length.is_multiple_of(4) && self.window.first.is_multiple_of(4)
    }

    /// Whether a lane takes pairs of vectors: what lies together has to be whole pairs of them, and the
    /// window to begin with one.
    fn pair_of(&self, vector: u32, length: u64) -> u32 {
        let pairs = self.wide
            && vector == 4
            && !self.config.weights
            && length.is_multiple_of(8)
            && self.window.first.is_multiple_of(8);
        1 + u32::from(pairs)
    }

    /// Whether a workgroup has so many columns all to itself, visits them once and joins their rows.
    fn joins(&self, side_by_side: u64) -> bool {
        let columns = self.strip() * u64::from(self.tuning.workgroup_size);
        let fit = side_by_side <= columns && columns <= MAX_JOINED;
        self.tuning.join_rows
            && self.tuning.column_block == 0
            && fit
            && !self.runs
            && !self.fused
            && !self.config.weights
    }

    /// What tells the values of joined partials: rows, one by one.
    fn row_by_row(&self) -> Params {
        let (rows, p) = (self.window.geometry.outer(), self.params);
        match self.joined {
            1 => p,
            by => Params { step_count: rows as u32, chunk: p.chunk * by as u32, tail: 0, ..p },
        }
    }

    /// Elements that a lane has side by side.
    fn strip(&self) -> u64 {
        u64::from(self.pair * self.vector)
    }

    /// Cuts the window into chunks, each of which leaves partials or, if nothing does, is only written.
    fn cut_chunks(&mut self, has_partials: bool) {
        let lanes = u64::from(self.tuning.workgroup_size);
        if self.walk == Walk::Columns {
            self.lay_out_tiles(if self.fused { 0 } else { self.tuning.column_block });
        }
        // Along the reduced axis, a workgroup takes `span` steps in one iteration.
        let span = if self.walk == Walk::Rows { lanes } else { 1 };
        let long = u64::from(self.params.step_count) + u64::from(self.params.tail > 0);
        let mut chunk = self.cut(long, span, has_partials);
        if self.params.line > 0 {
            // Blocks take more iterations than a strip, so that chunks may have to be shorter. Where
            // this makes more partials than a workgroup can merge, there are no blocks.
            let strip = [u64::from(self.pair), self.strip()];
            let block = self.params.block_iterations(lanes, strip, |rows| rows);
            let blocks = (u64::from(MAX_ITERATIONS) / block).max(1);
            let shorter = chunk.min(blocks * u64::from(self.params.block));
            let partials = long.div_ceil(shorter) * u64::from(self.params.per_chunk);
            if has_partials && partials > lanes * u64::from(MAX_ITERATIONS) / 4 {
                self.lay_out_tiles(0);
                chunk = self.cut(long, span, has_partials);
            } else {
                chunk = shorter;
            }
        }
        let params = &mut self.params;
        params.block = match params.line {
            0 => chunk as u32,
            _ => params.block.min(chunk as u32),
        };
        params.chunk = chunk as u32;
        params.chunk_count = long.div_ceil(chunk) as u32;
    }

    /// Makes a stage that leaves no partials, and so may be cut in another way.
    fn without_partials(&mut self, make: impl FnOnce(&mut Self)) {
        let (params, across) = (self.params, self.across);
        self.cut_chunks(false);
        make(self);
        (self.params, self.across) = (params, across);
    }

    /// How many steps make a chunk.
    fn cut(&self, long: u64, span: u64, has_partials: bool) -> u64 {
        if self.fused {
            return long;
        }
        let t = self.tuning;
        let (count, least) = match (has_partials, self.walk) {
            (false, _) => (t.apply_workgroup_count, t.min_apply_loads),
            (true, Walk::Rows) => (t.workgroup_count, t.min_loads),
            (true, Walk::Columns) => (t.column_workgroup_count, t.min_column_loads),
        };
        let wanted = u64::from(count).div_ceil(self.across.max(1));
        let most = long.div_ceil(u64::from(least).max(1) * span).max(1);
        let chunk = long.div_ceil(wanted.clamp(1, most)).next_multiple_of(4 * span);
        chunk.min(u64::from(MAX_ITERATIONS) / 2 * span)
    }

    /// Decides how many tiles of columns a workgroup has, and how many rows of them it visits at a
    /// time: a block of so many bytes; without, one tile.
    fn lay_out_tiles(&mut self, size: u32) {
        let (size, lanes) = (u64::from(size), u64::from(self.tuning.workgroup_size));
        let load = u64::from(self.vector) * self.config.element.size();
        let lane = u64::from(self.pair) * load;
        let total = u64::from(self.params.row_loads / self.pair).div_ceil(lanes);
        self.across = total.div_ceil((size / (4 * lanes * lane)).clamp(1, MAX_TILES));
        let tiles = total.div_ceil(self.across.max(1));
        let rows = (size / (tiles * lanes * lane).max(1)).min(MAX_VISITS / tiles.max(1));
        self.params.tiles = tiles as u32;
        self.params.parts = self.across as u32;
        self.params.block = (rows / 4 * 4).max(4) as u32;
        let touches = size > 0 && u64::from(self.params.row_loads) > lanes * u64::from(self.pair);
        self.params.line = if touches { (CACHE_LINE / load) as u32 } else { 0 };
    }

    fn layout_path(&self) -> &'static str {
        match (self.walk, self.fused) {
            (Walk::Rows, true) => {
                "one workgroup per channel does everything in one dispatch, as a channel is short"
            }
            (Walk::Columns, true) => {
                "lanes over channels do everything in one dispatch, as a column is short"
            }
            (Walk::Rows, false) => {
                "chunks of every channel give partial results that a second dispatch merges and a third applies"
            }
            (Walk::Columns, false) => {
                "lanes over columns, chunks of rows give partial results that a second dispatch merges and a third applies"
            }
        }
    }

    /// Lays out again without the path of one dispatch, which would bind too many buffers, or has
    /// nothing to gain where there is one pass anyway.
    fn split(&mut self) {
        if self.fused {
            self.lay_out(false);
            self.path = self.layout_path();
        }
    }

    fn fits(&self, slots: Slots) -> bool {
        buffer_count(slots, self.config.memory) <= self.max_buffers
    }

    fn one_dispatch(&self, loads: u64) -> bool {
        let t = self.tuning;
        let enough = self.across >= u64::from(t.fused_workgroups);
        let fused = if self.walk == Walk::Rows { t.fused_loads } else { t.fused_column_loads };
        let limit = if enough { fused } else { t.tiny_loads };
        // Two loops of so many loads stay below the bound on iterations.
        loads <= u64::from(limit.min(MAX_ITERATIONS / 2))
    }

    /// How often one dispatch for everything reads what it starts from; it says so, if once.
    fn reads_of_one_dispatch(&mut self, kernel: Kernel, slots: Slots) -> u64 {
        if self.held(kernel, slots) == 0 {
            return 2;
        }
        self.path =
            "one workgroup per channel keeps it in registers and does everything in one dispatch";
        1
    }

    /// Strides of four vectors that an invocation keeps in registers: all of a channel, or none.
    fn held(&self, kernel: Kernel, slots: Slots) -> u32 {
        let tensors = kernel.holds(slots);
        if tensors == 0 || self.words(kernel, slots) {
            return 0;
        }
        // Powers of two, so that few batch sizes compile a pipeline of their own.
        let strides = self.params.step_count.div_ceil(4 * self.tuning.workgroup_size);
        let most = self.tuning.held_values / (tensors * 4 * self.vector);
        let held = strides.next_power_of_two();
        if held <= most.min(MAX_HELD / tensors) { held } else { 0 }
    }

    /// Whether an invocation has all values of a word of the mask.
    fn words(&self, kernel: Kernel, slots: Slots) -> bool {
        self.has_words()
            && slots.contains(Slot::Mask)
            && matches!(kernel, Kernel::RowsNormalize | Kernel::RowsForward)
    }

    fn pick(&self, rows: Kernel, columns: Kernel) -> Kernel {
        if self.walk == Walk::Rows { rows } else { columns }
    }

    /// Bytes of all partials, two planes.
    fn partials(&self) -> u64 {
        self.plane * 8
    }

    fn push(&mut self, kernel: Kernel, slots: Slots, workgroup_count: u64, bytes_moved: u64) {
        let config = self.config;
        let group_size = match kernel {
            Kernel::FinalizeStatistics
            | Kernel::FinalizeGradients
            | Kernel::MergeParts
            | Kernel::MergeRows => self.group_size(),
            _ => 1,
        };
        let params = match kernel {
            Kernel::FinalizeStatistics => self.row_by_row(),
            _ => self.params,
        };
        let again = kernel.applies() && !slots.contains(Slot::RunningMean);
        let params = Params {
            workgroup_count: workgroup_count as u32,
            from_end: u32::from(again && self.tuning.from_end),
            ..params
        };
        let has_tensor = slots.iter().any(|slot| slot.is_tensor());
        let wide = self.wide && self.vector == 4 && has_tensor;
        let paired = self.pair == 2 && kernel.walks_pairs();
        // As even a fold as possible, so that few workgroups of the last row are idle.
        let rows = workgroup_count.div_ceil(u64::from(self.max_per_dimension)).max(1);
        let grid = [workgroup_count.div_ceil(rows) as u32, rows as u32, 1];
        let updates = slots.contains(Slot::RunningMean) && slots.contains(Slot::Saved);
        let element = if has_tensor { config.element } else { Element::F32 };
        let f16 = element == Element::F16;
        let variant = Variant {
            kernel,
            slots,
            memory: config.memory,
            activation: self.epilogue(kernel, slots),
            element,
            built_in_widen: f16 && self.tuning.built_in_widen,
            built_in_narrow: f16 && self.tuning.built_in_narrow,
            vector: self.vector,
            workgroup_size: self.tuning.workgroup_size,
            group_size,
            accumulate: config.gradients.accumulate
                && (slots.contains(Slot::Dgamma) || slots.contains(Slot::Dbeta)),
            cumulative: slots.contains(Slot::Batches),
            keep_non_finite: updates && config.non_finite == NonFinite::Keep,
            renorm: config.renorm.is_some()
                && slots.contains(Slot::Saved)
                && kernel != Kernel::CountBatch
                && !self.grouped,
            // These two merge before rows are grouped.
            grouped: self.grouped
                && !matches!(
                    kernel,
                    Kernel::RowsStatistics
                        | Kernel::ColumnsStatistics
                        | Kernel::FinalizeStatistics
                        | Kernel::FinalizeGradients
                ),
            weighted: self.weighted && kernel.knows_weights(),
            neighbours: self.neighbours && kernel.walks_columns(),
            runs: self.runs && kernel.walks_columns(),
            joined: self.joined > 1 && kernel.leaves_columns() && slots.contains(Slot::Scratch),
            wide,
            paired,
            words: self.words(kernel, slots),
            held: self.held(kernel, slots),
        };
        let window = match self.is_whole() || !has_tensor {
            true => None,
            false => {
                let Window { first, geometry, .. } = self.window;
                let size = config.element.size();
                let end = ((first + geometry.len()) * size).next_multiple_of(4);
                Some(first * size / self.alignment * self.alignment..end)
            }
        };
        self.stages.push(Stage { variant, grid, params, bytes_moved, window });
    }

    /// Whether rows hold whole words of the mask. Chunks of rows do, as lanes are four or more.
    fn has_words(&self) -> bool {
        const LOADS: u32 = 8;
        let begin = self.params.base.wrapping_add(self.params.mask_base);
        self.tuning.mask_words
            && self.vector == 4
            && self.params.row_loads.is_multiple_of(LOADS)
            && begin.is_multiple_of(LOADS)
    }

    fn partials_per_channel(&self) -> u64 {
        u64::from(self.params.chunk_count) * u64::from(self.params.per_chunk)
    }

    /// Lanes that merge one channel's partials.
    fn group_size(&self) -> u32 {
        let loads = u64::from(self.tuning.merge_loads.max(1));
        let wanted = self.partials_per_channel().div_ceil(loads).next_power_of_two();
        wanted.min(u64::from(self.tuning.workgroup_size)) as u32
    }

    fn finalize_workgroups(&self) -> u64 {
        let groups = self.tuning.workgroup_size / self.group_size();
        u64::from(self.params.channels_here).div_ceil(u64::from(groups))
    }

    fn sweep_workgroups(&self) -> u64 {
        self.across * u64::from(self.params.chunk_count)
    }

    fn affine(&self, slots: Slots) -> Slots {
        let affine = self.config.affine;
        slots.with(affine.gamma, Slot::Gamma).with(affine.beta, Slot::Beta)
    }

    pub(super) fn train(&mut self) {
        if self.empty {
            return;
        }
        let (output, bytes) = self.output(false);
        let all = output.union(self.settled()).with(true, Slot::X);
        if self.fused && self.fits(all) {
            let kernel = self.pick(Kernel::RowsForward, Kernel::ColumnsForward);
            let reads = self.reads_of_one_dispatch(kernel, all);
            self.push(kernel, all, self.across, reads * self.tensor_size + bytes);
        } else {
            self.split();
            self.measure(self.settled().with(true, Slot::X));
            self.apply();
        }
        self.count_batch();
    }

    /// What statistics settle into.
    fn settled(&self) -> Slots {
        let update = self.config.update;
        Slots::of(&[Slot::Saved])
            .with(update != Update::None, Slot::RunningMean)
            .with(update != Update::None, Slot::RunningVar)
            .with(update == Update::Cumulative, Slot::Batches)
    }

    /// Last, as whether the batch was empty stands in what is saved.
    fn count_batch(&mut self) {
        if self.config.update == Update::Cumulative {
            self.push(Kernel::CountBatch, Slots::of(&[Slot::Saved, Slot::Batches]), 1, 12);
        }
    }

    /// From `x` and what is saved to `y`.
    fn apply(&mut self) {
        self.in_windows(|b| b.normalize_window(Slots::of(&[Slot::X, Slot::Saved]), false));
    }

    fn normalize_window(&mut self, inputs: Slots, frozen: bool) {
        let (output, bytes) = self.output(frozen);
        let kernel = self.pick(Kernel::RowsNormalize, Kernel::ColumnsNormalize);
        let bytes = self.tensor_size + bytes;
        self.without_partials(|b| {
            b.push(kernel, output.union(inputs), b.sweep_workgroups(), bytes);
        });
    }

    /// What a forward does with normalized values: the slots, and the bytes it moves in them.
    fn output(&mut self, frozen: bool) -> (Slots, u64) {
        let Config { residual, .. } = *self.config;
        let mask = self.config.uses_mask(frozen);
        if mask {
            self.slope = Some(
                "is written as one bit per value, as a backward would have to read more than that",
            );
        }
        let slots = Slots::of(&[Slot::Y]).with(residual, Slot::Z).with(mask, Slot::Mask);
        let mask_size = if mask { self.mask_size() } else { 0 };
        (self.affine(slots), self.tensor_size * (1 + u64::from(residual)) + mask_size)
    }

    /// What a backward has dy behind the activation from: the slots, and the bytes it reads in them
    /// besides x.
    fn incoming(&mut self, frozen: bool) -> (Slots, u64) {
        let Config { activation, residual, .. } = *self.config;
        let (dy, e) = (Slots::of(&[Slot::Dy]), self.tensor_size);
        if activation == Activation::None {
            return (dy, e);
        }
        if self.config.uses_mask(frozen) {
            self.slope = Some("is read as one bit per value, which the forward has written");
            return (dy.with(true, Slot::Mask), e + self.mask_size());
        }
        self.slope = Some(match residual {
            true => "is computed again from x and z",
            false => "is computed again from x",
        });
        let slots = match frozen {
            true => dy.with(true, Slot::RunningMean).with(true, Slot::RunningVar),
            false => dy.with(true, Slot::Saved),
        };
        let slots = slots.with(true, Slot::X).with(residual, Slot::Z);
        (self.affine(slots), e * (1 + u64::from(residual)))
    }

    pub(super) fn finalize(&mut self) {
        if self.params.channel_count == 0 {
            return;
        }
        // Parts are merged as partials: one chunk each, one partial in a chunk.
        self.merge_parts(self.part_count);
        self.path = "the statistics of all parts, merged";
        let slots = self.settled().with(self.part_count > 0, Slot::Parts);
        // Four planes of f32, whatever the tensors' element.
        let bytes = 16 * u64::from(self.part_count) * u64::from(self.params.channel_count);
        self.push(Kernel::MergeParts, slots, self.finalize_workgroups(), bytes);
        self.count_batch();
    }

    pub(super) fn normalize(&mut self) {
        if !self.empty {
            self.split();
            self.path = "one pass with the saved statistics";
            self.apply();
        }
    }

    /// Partial statistics, then their merge into the slots of `settled`. Of a tensor in windows,
    /// each window's merge is a part, and the parts are merged.
    fn measure(&mut self, settled: Slots) {
        let planes = if self.weighted { 4 } else { 2 };
        if self.is_whole() {
            self.scratch = self.plane * planes;
            return self.measure_window(settled);
        }
        let (parts, total) = (planes * self.largest_plane(), self.part_total());
        let part = 4 * u64::from(self.params.channel_count);
        self.scratch = parts + total * part;
        self.in_windows(|b| {
            b.params.sums = (parts + b.window.part * part) as u32;
            b.measure_window(Slots::of(&[Slot::X]));
        });
        self.merge_windows(parts, total);
        let slots = settled.without(Slot::X).with(true, Slot::Scratch);
        self.push(Kernel::MergeParts, slots, self.finalize_workgroups(), total * part * 4);
    }

    fn measure_window(&mut self, settled: Slots) {
        let partials = self.partials();
        if self.weighted {
            let kernel =
                self.pick(Kernel::RowsWeightedStatistics, Kernel::ColumnsWeightedStatistics);
            let slots = Slots::of(&[Slot::X, Slot::Weights, Slot::Scratch]);
            let bytes = self.tensor_size + self.weights_size() + 2 * partials;
            let blocks = self.params;
            if self.walk == Walk::Columns {
                // What a lane knows of a strip is more than its part: it has no blocks.
                let (p, lanes) = (&mut self.params, self.tuning.workgroup_size);
                (p.tiles, p.parts, p.block, p.line) = (1, p.row_loads.div_ceil(lanes), p.chunk, 0);
            }
            let across = match self.walk {
                Walk::Rows => self.across,
                Walk::Columns => u64::from(self.params.parts),
            };
            self.push(kernel, slots, across * u64::from(self.params.chunk_count), bytes);
            self.params = blocks;
            let slots = settled.without(Slot::X).with(true, Slot::Scratch);
            self.push(Kernel::MergeParts, slots, self.finalize_workgroups(), 2 * partials);
            return;
        }
        let kernel = self.pick(Kernel::RowsStatistics, Kernel::ColumnsStatistics);
        let slots = Slots::of(&[Slot::X, Slot::Scratch]);
        self.push(kernel, slots, self.sweep_workgroups(), self.tensor_size + partials);
        let slots = settled.union(slots);
        self.push(Kernel::FinalizeStatistics, slots, self.finalize_workgroups(), partials);
    }

    /// What windows have left in the scratch from `place` on is merged as partials: one chunk each,
    /// one partial in a chunk.
    fn merge_windows(&mut self, place: u64, total: u64) {
        self.params.partials = place as u32;
        self.params.plane = (total * u64::from(self.params.channel_count)) as u32;
        self.merge_parts(total as u32);
    }

    fn merge_parts(&mut self, total: u32) {
        self.params.width = self.params.channel_count;
        (self.params.chunk_count, self.params.per_chunk) = (total, 1);
        (self.params.run, self.params.per_run, self.params.strip) = (1, 1, 1);
    }

    /// Bytes of the window's weights, of which its channels share each.
    fn weights_size(&self) -> u64 {
        self.window.geometry.values_per_channel() * 4
    }

    pub(super) fn statistics(&mut self) {
        let moments = Slots::of(&[Slot::Moments]);
        if self.params.channel_count == 0 {
            return;
        }
        if self.empty {
            // No value: zeros, by merging no partials at all.
            self.path = "an empty batch: the moments are zero";
            self.push(Kernel::FinalizeStatistics, moments, self.finalize_workgroups(), 0);
            return;
        }
        self.split();
        self.path = "partial statistics of every channel, then a merge of them";
        self.measure(moments);
    }

    pub(super) fn infer(&mut self) {
        if self.empty {
            return;
        }
        self.split();
        self.path = "one pass with the running statistics";
        self.weighted = false;
        let inputs = Slots::of(&[Slot::X, Slot::RunningMean, Slot::RunningVar]);
        self.in_windows(|b| b.normalize_window(inputs, true));
    }

    /// Gradients that exist: a tensor without elements has no `dx` and no `dz`, an absent parameter
    /// no gradient.
    fn wanted(&self) -> Wanted {
        let Config { gradients, affine, residual, .. } = *self.config;
        Wanted {
            dx: gradients.x && !self.empty,
            dz: gradients.z && residual && !self.empty,
            dgamma: gradients.gamma && affine.gamma,
            dbeta: gradients.beta && affine.beta,
        }
    }

    pub(super) fn backward(&mut self) {
        let wanted @ Wanted { dx, dz, dgamma, dbeta } = self.wanted();
        if self.params.channel_count == 0 || !wanted.any() {
            return;
        }
        let parameters = wanted.parameters();
        if self.empty {
            self.zero_gradients(parameters);
            return;
        }
        let centered = dx || dgamma;
        if self.fused && self.fuse_gradients(wanted, centered, parameters) {
            return;
        }
        self.split();
        self.sum(centered, dz, parameters, dx || dgamma || dbeta);
        if dx {
            self.slope(dz, Slot::Scratch);
        }
    }

    /// Sums and gradients in one dispatch, unless that would bind too many buffers.
    fn fuse_gradients(&mut self, wanted: Wanted, centered: bool, results: Slots) -> bool {
        let Wanted { dx, dz, .. } = wanted;
        let (inputs, size) = self.gradient_inputs(centered);
        let slots = inputs.union(results).with(dz, Slot::Dz);
        let slots = if dx { slots.union(self.gradient_output()) } else { slots };
        if !self.fits(slots) {
            return false;
        }
        let e = self.tensor_size;
        let kernel = self.pick(Kernel::RowsBackward, Kernel::ColumnsBackward);
        // The second pass takes dz for dy, where that is kept.
        let again = match dz {
            _ if self.reads_of_one_dispatch(kernel, slots) == 1 => 0,
            true => 2 * e,
            false => size,
        };
        let bytes = size + if dz { e } else { 0 } + if dx { again + e } else { 0 };
        self.push(kernel, slots, self.across, bytes);
        true
    }

    /// What gradients are made of, and the bytes read of it; `x` only where it matters.
    fn gradient_inputs(&mut self, centered: bool) -> (Slots, u64) {
        let (incoming, size) = self.incoming(false);
        let slots = incoming.with(centered, Slot::X).with(centered, Slot::Saved);
        (slots, size + self.tensor_size * u64::from(slots.contains(Slot::X)))
    }

    fn gradient_output(&self) -> Slots {
        Slots::of(&[Slot::Dx]).with(self.config.affine.gamma, Slot::Gamma)
    }

    /// Partial sums, and `dz` on the way; then, if `merges`, their merge into the slots of `results`.
    fn sum(&mut self, centered: bool, dz: bool, results: Slots, merges: bool) {
        // The sums of a batch without weight are none.
        let scaled = results.contains(Slot::Dgamma) || self.weighted;
        let scaled = if scaled { Some(Slot::Saved) } else { None };
        self.sum_windows(results, scaled, merges, |b| {
            let kernel = b.pick(Kernel::RowsReduce, Kernel::ColumnsReduce);
            let (inputs, size) = b.gradient_inputs(centered);
            let slots = inputs.with(true, Slot::Scratch).with(dz, Slot::Dz);
            let bytes = size + if dz { b.tensor_size } else { 0 } + b.partials();
            b.push(kernel, slots, b.sweep_workgroups(), bytes);
        });
    }

    /// What `make` leaves of each window as partials is merged into the slots of `results`, where
    /// inv_std is that of the slot `scaled`; of several windows, in two steps.
    fn sum_windows(
        &mut self,
        results: Slots,
        scaled: Option<Slot>,
        merges: bool,
        make: impl Fn(&mut Self),
    ) {
        let c = u64::from(self.params.channel_count);
        let slots = results.with(true, Slot::Scratch);
        let slots = scaled.map_or(slots, |scaled| slots.with(true, scaled));
        let kernel = Kernel::FinalizeGradients;
        if self.is_whole() {
            // Two planes of partials, then the merged sums.
            self.scratch = 2 * (self.plane + c);
            make(self);
            if merges {
                self.push(kernel, slots, self.finalize_workgroups(), self.partials());
            }
            return;
        }
        let (place, total) = (2 * self.largest_plane(), self.part_total());
        self.merged = place + 2 * total * c;
        self.scratch = self.merged + 2 * c;
        self.in_windows(|b| {
            b.params.sums = (place + b.window.part * c) as u32;
            b.params.sums_plane = (total * c) as u32;
            make(b);
            if merges {
                let (slots, bytes) = (Slots::of(&[Slot::Scratch]), b.partials());
                b.push(kernel, slots, b.finalize_workgroups(), bytes);
            }
        });
        if merges {
            self.merge_windows(place, total);
            (self.params.sums, self.params.sums_plane) = (self.merged as u32, c as u32);
            self.push(kernel, slots, self.finalize_workgroups(), 8 * total * c);
        }
    }

    /// `dx`, from merged sums in the slot `sums`; from `dz`, where an earlier pass has kept it.
    fn slope(&mut self, dz: bool, sums: Slot) {
        self.in_windows(|b| {
            let (inputs, size) = match dz {
                true => (Slots::of(&[Slot::X, Slot::Saved, Slot::Dz]), 2 * b.tensor_size),
                false => b.gradient_inputs(true),
            };
            let kernel = b.pick(Kernel::RowsGradient, Kernel::ColumnsGradient);
            let weights = b.weighted;
            let slots = inputs.union(b.gradient_output()).with(true, sums);
            let size = size + if weights { b.weights_size() } else { 0 };
            let slots = slots.with(weights, Slot::Weights);
            b.without_partials(|b| {
                b.push(kernel, slots, b.sweep_workgroups(), size + b.tensor_size);
            });
        });
    }

    pub(super) fn reduce(&mut self) {
        let wanted @ Wanted { dx: sums, dz, dgamma, .. } =
            Wanted { dx: self.config.gradients.x, ..self.wanted() };
        let results = wanted.parameters().with(sums, Slot::Sums);
        if self.params.channel_count == 0 || (results == Slots::default() && !dz) {
            return;
        }
        if self.empty {
            self.zero_gradients(results);
            return;
        }
        let centered = sums || dgamma;
        if self.fused {
            self.path = "one workgroup per channel, or lanes over channels, in one dispatch";
            if self.fuse_gradients(Wanted { dx: false, ..wanted }, centered, results) {
                return;
            }
            self.split();
        }
        self.path = "partial sums of every channel, then a merge of them";
        self.sum(centered, dz, results, results != Slots::default());
    }

    pub(super) fn gradient(&mut self) {
        let Wanted { dx, dz, .. } = self.wanted();
        if dx {
            self.split();
            self.path = "one pass with the sums of all shards";
            self.slope(dz, Slot::Sums);
        }
    }

    /// The views of group normalization: a channel for each group of each sample, to measure; and one
    /// for each row, to apply.
    fn group(&mut self) -> [Geometry; 2] {
        let (g, groups) = (self.geometry, self.config.groups);
        let views = [g.groups(groups), g.rows()];
        self.grouped = true;
        self.params.group_count = views[0].channels() as u32;
        self.params.per_group = (g.channels() / groups) as u32;
        self.params.parameter_count = g.channels() as u32;
        views
    }

    /// Lays out another view of the same memory, which is in one piece.
    fn look_at(&mut self, view: Geometry) {
        self.params.channel_count = view.channels() as u32;
        self.open(Window { geometry: view.coalesced(), ..self.window }, false);
    }

    pub(super) fn group_norm(&mut self) {
        if self.empty {
            return;
        }
        let [groups, rows] = self.group();
        self.look_at(groups);
        self.measure(Slots::of(&[Slot::Saved]));
        self.look_at(rows);
        self.apply();
        self.path = "every group of a sample is measured as a channel, every row of it normalized";
    }

    pub(super) fn group_norm_backward(&mut self) {
        let wanted @ Wanted { dx, dz, dgamma, dbeta } = self.wanted();
        if self.params.channel_count == 0 || !wanted.any() {
            return;
        }
        let parameters = wanted.parameters();
        if self.empty {
            self.zero_gradients(parameters);
            return;
        }
        let (samples, channels) = (self.geometry.outer(), self.geometry.channels());
        let [groups, rows] = self.group();
        self.look_at(rows);
        self.sum(dx || dgamma, dz, Slots::default(), dx || dgamma || dbeta);
        self.path = "sums of every row, merged into those of its group and of its channel";
        let sums = Slots::of(&[Slot::Scratch]);
        if parameters != Slots::default() {
            let slots = sums.union(parameters).with(dgamma, Slot::Saved);
            self.merge_rows(channels, [samples, 1], slots);
        }
        if dx {
            self.scratch += 2 * groups.channels();
            let slots = sums.with(self.config.affine.gamma, Slot::Gamma);
            self.merge_rows(groups.channels(), [1, channels / self.config.groups], slots);
            self.slope(dz, Slot::Scratch);
        }
    }

    /// Merges the sums of rows into `results` sums; those of one lie in so many runs of neighbours.
    fn merge_rows(&mut self, results: u64, [runs, neighbours]: [u64; 2], slots: Slots) {
        let rows = self.params;
        self.params = Params {
            channel_count: results as u32,
            channels_here: results as u32,
            chunk_count: runs as u32,
            per_chunk: neighbours as u32,
            run: neighbours as u32,
            per_run: neighbours as u32,
            strip: 1,
            width: results as u32,
            plane: rows.channel_count,
            ..rows
        };
        let bytes = 8 * u64::from(rows.channel_count);
        self.push(Kernel::MergeRows, slots, self.finalize_workgroups(), bytes);
        self.params = rows;
    }

    pub(super) fn frozen_backward(&mut self) {
        self.weighted = false;
        let wanted @ Wanted { dx, dz, dgamma, .. } = self.wanted();
        if self.params.channel_count == 0 || !wanted.any() {
            return;
        }
        let parameters = wanted.parameters();
        if self.empty {
            self.zero_gradients(parameters);
            return;
        }
        self.split();
        let (incoming, _) = self.incoming(true);
        let sums = Slots::default()
            .with(parameters != Slots::default(), Slot::Scratch)
            .with(dgamma, Slot::X)
            .with(dgamma, Slot::RunningMean);
        let gradient = Slots::default()
            .with(dx, Slot::Dx)
            .with(dx, Slot::RunningVar)
            .with(dx && self.config.affine.gamma, Slot::Gamma);
        let output = sums.union(gradient);
        let kept = Slots::default().with(dz, Slot::Dz);
        let at_once = self.fits(incoming.union(output).union(kept));
        self.path = match (at_once, dz) {
            (true, _) => "one pass for dx and the partial sums, then a merge of the sums",
            (false, true) => {
                "one pass for dz, one from it for dx and the partial sums, then a merge of the sums"
            }
            (false, false) => "one pass for the partial sums, one for dx, then a merge of the sums",
        };
        let make = |b: &mut Self| {
            let (incoming, size) = b.incoming(true);
            if at_once {
                b.frozen(incoming.union(output).union(kept), size);
            } else if dz {
                b.frozen(incoming.union(kept), size);
                b.frozen(output.union(kept), b.tensor_size);
            } else {
                b.frozen(incoming.union(sums), size);
                b.frozen(incoming.union(gradient), size);
            }
        };
        if sums.contains(Slot::Scratch) {
            let scaled = if dgamma { Some(Slot::RunningVar) } else { None };
            self.sum_windows(parameters, scaled, true, make);
        } else {
            self.in_windows(make);
        }
    }

    /// One pass with frozen statistics; `incoming_size` bytes are read besides x.
    fn frozen(&mut self, slots: Slots, incoming_size: u64) {
        let tensors = [Slot::X, Slot::Dx].iter().filter(|slot| slots.contains(**slot)).count();
        let kept = u64::from(slots.contains(Slot::Dz) && slots.contains(Slot::Dy));
        let partials = if slots.contains(Slot::Scratch) { self.partials() } else { 0 };
        let bytes = incoming_size + self.tensor_size * (tensors as u64 + kept) + partials;
        let kernel = self.pick(Kernel::RowsFrozen, Kernel::ColumnsFrozen);
        self.push(kernel, slots, self.sweep_workgroups(), bytes);
    }

    /// The activation, where the dispatch passes values through it.
    fn epilogue(&self, kernel: Kernel, slots: Slots) -> Epilogue {
        let passes = match kernel {
            Kernel::RowsNormalize
            | Kernel::ColumnsNormalize
            | Kernel::RowsForward
            | Kernel::ColumnsForward => true,
            Kernel::RowsReduce
            | Kernel::ColumnsReduce
            | Kernel::RowsGradient
            | Kernel::ColumnsGradient
            | Kernel::RowsBackward
            | Kernel::ColumnsBackward
            | Kernel::RowsFrozen
            | Kernel::ColumnsFrozen => slots.contains(Slot::Dy),
            _ => false,
        };
        if passes { self.config.activation.into() } else { Epilogue::None }
    }

    /// No value, no gradient: `dgamma = dbeta = 0`, and so are sums, by merging no partials at all.
    /// Zeros are added to nothing.
    fn zero_gradients(&mut self, results: Slots) {
        let sums = Slots::default().with(results.contains(Slot::Sums), Slot::Sums);
        let results = if self.config.gradients.accumulate { sums } else { results };
        if results != Slots::default() {
            self.path = "an empty batch: the parameter gradients and sums are zero";
            self.push(Kernel::FinalizeGradients, results, self.finalize_workgroups(), 0);
        }
    }
}

/// One dispatch binds at most so many bytes of a tensor, however much the device can: a driver may
/// take a dispatch of seconds for a hang.
pub(super) const MAX_WINDOW: u64 = 1 << 30;

/// A plan is not made of more windows than this.
pub(super) const MAX_WINDOWS: u64 = 1 << 12;

/// Elements that any window can have.
pub(super) const MIN_WINDOW: u64 = 64;

/// Elements of a tensor that one dispatch can bind, with room to begin at an aligned byte.
pub(super) fn window_limit(element: Element, caps: &Caps) -> u64 {
    let bytes = caps.max_storage_binding_size.min(MAX_WINDOW);
    bytes.saturating_sub(u64::from(caps.storage_alignment).max(MASK_WORD)) / element.size()
}

/// One bit per value, in whole words.
pub(super) fn mask_size(geometry: &Geometry) -> u64 {
    geometry.len().div_ceil(32) * 4
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
