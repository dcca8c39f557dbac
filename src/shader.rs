//! THE table of `shaders/`: kernel → WGSL parts, slots and their access, overrides.
//!
//! The kernels name no binding themselves. The declarations and the accessor functions
//! `load_SLOT`/`store_SLOT` are made here, from the one table, so a slot that a variant does not use
//! costs no binding: it reads as its neutral value, and writes to it vanish. A test compares what
//! naga finds in the result with this table.

use std::fmt::Write;

use crate::config::{Element, Memory};
use crate::plan::{Epilogue, Kernel, Slot, Variant};

/// How a dispatch uses a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reads it.
    Read,
    /// Writes it (and may read it).
    Write,
}

/// One binding of group 0. Binding 0 is the uniform `Params`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    /// The slot.
    pub slot: Slot,
    /// Its number: the slot's place in [`Slot::ALL`], plus 1.
    pub number: u32,
    /// What the dispatch does with it.
    pub access: Access,
    /// Whether it is bound read-only.
    pub read_only: bool,
}

use Access::{Read, Write as Writes};

/// A kernel's row in the table: its own WGSL, the shared parts it is put in front of, and every
/// slot it can use.
struct Row {
    source: &'static str,
    parts: &'static [&'static str],
    slots: &'static [(Slot, Access)],
}

macro_rules! wgsl {
    ($path:literal) => {
        include_str!(concat!("../shaders/", $path, ".wgsl"))
    };
}

const PARAMS: &str = wgsl!("prelude/params");
const VECTOR_4: &str = wgsl!("prelude/vector4");
const VECTOR_1: &str = wgsl!("prelude/vector1");
const F16_WIDEN: &str = wgsl!("prelude/f16_widen");
const F16_NARROW: &str = wgsl!("prelude/f16_narrow");
const BF16: &str = wgsl!("prelude/bf16");
const UNPACK_4: &str = wgsl!("prelude/unpack4");
const PACK_4: &str = wgsl!("prelude/pack4");
const HALVES_1: &str = wgsl!("prelude/halves1");
const BUILT_IN_WIDEN: &str = wgsl!("prelude/built_in_widen");
const BUILT_IN_NARROW: &str = wgsl!("prelude/built_in_narrow");
const BUILT_IN_UNPACK_4: &str = wgsl!("prelude/built_in_unpack4");
const BUILT_IN_PACK_4: &str = wgsl!("prelude/built_in_pack4");
const WEIGHTS_4: &str = wgsl!("prelude/weights4");
const WEIGHTS_1: &str = wgsl!("prelude/weights1");
const WIDE: &str = wgsl!("prelude/wide");
const WIDE_HALVES: &str = wgsl!("prelude/wide_halves");
const PAIRS: &str = wgsl!("prelude/pairs");
const FOUR: &str = wgsl!("prelude/four");
const BITS: &str = wgsl!("prelude/bits");
const MOMENTS: &str = wgsl!("lib/moments");
const WEIGHTED_MOMENTS: &str = wgsl!("lib/weighted_moments");
const TREE_MOMENTS: &str = wgsl!("lib/tree_moments");
const TREE_SUMS: &str = wgsl!("lib/tree_sums");
const SETTLE: &str = wgsl!("lib/settle");
const CENTER: &str = wgsl!("lib/center");
const RESIDUAL: &str = wgsl!("lib/residual");
const EPILOGUE: &str = wgsl!("lib/epilogue");
const EPILOGUE_MASK: &str = wgsl!("lib/epilogue_mask");
const SLOPE: &str = wgsl!("lib/slope");
const PARTIALS: &str = wgsl!("lib/partials");
const ROWS: &str = wgsl!("lib/rows");
const ROWS_STATISTICS: &str = wgsl!("lib/rows_statistics");
const ROWS_NORMALIZE: &str = wgsl!("lib/rows_normalize");
const ROWS_NORMALIZE_WORDS: &str = wgsl!("lib/rows_normalize_words");
const ROWS_REDUCE: &str = wgsl!("lib/rows_reduce");
const ROWS_GRADIENT: &str = wgsl!("lib/rows_gradient");
const ROWS_HELD: &str = wgsl!("lib/rows_held");
const ROWS_STATISTICS_HELD: &str = wgsl!("lib/rows_statistics_held");
const ROWS_NORMALIZE_HELD: &str = wgsl!("lib/rows_normalize_held");
const ROWS_REDUCE_HELD: &str = wgsl!("lib/rows_reduce_held");
const ROWS_GRADIENT_HELD: &str = wgsl!("lib/rows_gradient_held");
const COLUMNS: &str = wgsl!("lib/columns");
const COLUMNS_WALK: &str = wgsl!("lib/columns_walk");
const COLUMNS_JOIN: &str = wgsl!("lib/columns_join");
const WALK_MOMENTS: &str = wgsl!("lib/walk_moments");
const WALK_SUMS: &str = wgsl!("lib/walk_sums");
const JOIN_MOMENTS: &str = wgsl!("lib/join_moments");
const JOIN_SUMS: &str = wgsl!("lib/join_sums");
const COLUMNS_STATISTICS: &str = wgsl!("lib/columns_statistics");
const COLUMNS_NORMALIZE: &str = wgsl!("lib/columns_normalize");
const COLUMNS_REDUCE: &str = wgsl!("lib/columns_reduce");
const COLUMNS_GRADIENT: &str = wgsl!("lib/columns_gradient");

const STATISTICS: &[(Slot, Access)] = &[(Slot::X, Read), (Slot::Scratch, Writes)];
const WEIGHTED_STATISTICS: &[(Slot, Access)] =
    &[(Slot::X, Read), (Slot::Weights, Read), (Slot::Scratch, Writes)];
const NORMALIZE: &[(Slot, Access)] = &[
    (Slot::X, Read),
    (Slot::Y, Writes),
    (Slot::Z, Read),
    (Slot::Mask, Writes),
    (Slot::Gamma, Read),
    (Slot::Beta, Read),
    (Slot::Saved, Read),
    (Slot::RunningMean, Read),
    (Slot::RunningVar, Read),
];
const FORWARD: &[(Slot, Access)] = &[
    (Slot::X, Read),
    (Slot::Y, Writes),
    (Slot::Z, Read),
    (Slot::Mask, Writes),
    (Slot::Gamma, Read),
    (Slot::Beta, Read),
    (Slot::Saved, Writes),
    (Slot::RunningMean, Writes),
    (Slot::RunningVar, Writes),
    (Slot::Batches, Read),
];
const REDUCE: &[(Slot, Access)] = &[
    (Slot::X, Read),
    (Slot::Dy, Read),
    (Slot::Z, Read),
    (Slot::Dz, Writes),
    (Slot::Mask, Read),
    (Slot::Gamma, Read),
    (Slot::Beta, Read),
    (Slot::Saved, Read),
    (Slot::Scratch, Writes),
];
const GRADIENT: &[(Slot, Access)] = &[
    (Slot::X, Read),
    (Slot::Dy, Read),
    (Slot::Dx, Writes),
    (Slot::Z, Read),
    (Slot::Dz, Read),
    (Slot::Mask, Read),
    (Slot::Gamma, Read),
    (Slot::Beta, Read),
    (Slot::Saved, Read),
    (Slot::Sums, Read),
    (Slot::Weights, Read),
    (Slot::Scratch, Read),
];
const BACKWARD: &[(Slot, Access)] = &[
    (Slot::X, Read),
    (Slot::Dy, Read),
    (Slot::Dx, Writes),
    (Slot::Z, Read),
    (Slot::Dz, Writes),
    (Slot::Mask, Read),
    (Slot::Gamma, Read),
    (Slot::Beta, Read),
    (Slot::Dgamma, Writes),
    (Slot::Dbeta, Writes),
    (Slot::Saved, Read),
    (Slot::Sums, Writes),
];
const FROZEN: &[(Slot, Access)] = &[
    (Slot::X, Read),
    (Slot::Dy, Read),
    (Slot::Dx, Writes),
    (Slot::Z, Read),
    (Slot::Dz, Writes),
    (Slot::Mask, Read),
    (Slot::Gamma, Read),
    (Slot::Beta, Read),
    (Slot::RunningMean, Read),
    (Slot::RunningVar, Read),
    (Slot::Scratch, Writes),
];

fn row(kernel: Kernel) -> Row {
    let row = |source, parts, slots| Row { source, parts, slots };
    match kernel {
        Kernel::CountBatch => {
            row(wgsl!("count_batch"), &[], &[(Slot::Saved, Read), (Slot::Batches, Writes)])
        }
        Kernel::RowsStatistics => row(
            wgsl!("rows_statistics"),
            &[MOMENTS, TREE_MOMENTS, ROWS, ROWS_STATISTICS],
            STATISTICS,
        ),
        Kernel::ColumnsStatistics => row(
            wgsl!("columns_statistics"),
            &[CENTER, MOMENTS, COLUMNS, COLUMNS_WALK, WALK_MOMENTS, COLUMNS_STATISTICS],
            STATISTICS,
        ),
        Kernel::RowsWeightedStatistics => row(
            wgsl!("rows_weighted_statistics"),
            &[CENTER, MOMENTS, TREE_MOMENTS, WEIGHTED_MOMENTS, SETTLE, ROWS],
            WEIGHTED_STATISTICS,
        ),
        Kernel::ColumnsWeightedStatistics => row(
            wgsl!("columns_weighted_statistics"),
            &[CENTER, MOMENTS, TREE_MOMENTS, WEIGHTED_MOMENTS, SETTLE, COLUMNS],
            WEIGHTED_STATISTICS,
        ),
        Kernel::FinalizeStatistics => row(
            wgsl!("finalize_statistics"),
            &[CENTER, MOMENTS, TREE_MOMENTS, PARTIALS, SETTLE],
            &[
                (Slot::X, Read),
                (Slot::Saved, Writes),
                (Slot::RunningMean, Writes),
                (Slot::RunningVar, Writes),
                (Slot::Batches, Read),
                (Slot::Moments, Writes),
                (Slot::Scratch, Writes),
            ],
        ),
        Kernel::MergeParts => row(
            wgsl!("merge_parts"),
            &[CENTER, MOMENTS, TREE_MOMENTS, PARTIALS, SETTLE],
            &[
                (Slot::Saved, Writes),
                (Slot::RunningMean, Writes),
                (Slot::RunningVar, Writes),
                (Slot::Batches, Read),
                (Slot::Moments, Writes),
                (Slot::Parts, Read),
                (Slot::Scratch, Writes),
            ],
        ),
        Kernel::RowsNormalize => {
            row(wgsl!("rows_normalize"), &[CENTER, ROWS, ROWS_NORMALIZE], NORMALIZE)
        }
        Kernel::ColumnsNormalize => row(
            wgsl!("columns_normalize"),
            &[CENTER, COLUMNS, COLUMNS_WALK, COLUMNS_NORMALIZE],
            NORMALIZE,
        ),
        Kernel::RowsForward => row(
            wgsl!("rows_forward"),
            &[CENTER, MOMENTS, TREE_MOMENTS, SETTLE, ROWS, ROWS_STATISTICS, ROWS_NORMALIZE],
            FORWARD,
        ),
        Kernel::ColumnsForward => row(
            wgsl!("columns_forward"),
            &[CENTER, MOMENTS, SETTLE, COLUMNS, COLUMNS_STATISTICS, COLUMNS_NORMALIZE],
            FORWARD,
        ),
        Kernel::RowsReduce => {
            row(wgsl!("rows_reduce"), &[CENTER, SLOPE, TREE_SUMS, ROWS, ROWS_REDUCE], REDUCE)
        }
        Kernel::ColumnsReduce => row(
            wgsl!("columns_reduce"),
            &[CENTER, COLUMNS, COLUMNS_WALK, WALK_SUMS, COLUMNS_REDUCE],
            REDUCE,
        ),
        Kernel::FinalizeGradients => row(
            wgsl!("finalize_gradients"),
            &[CENTER, SLOPE, TREE_SUMS, PARTIALS],
            &[
                (Slot::Dgamma, Writes),
                (Slot::Dbeta, Writes),
                (Slot::Saved, Read),
                (Slot::RunningVar, Read),
                (Slot::Sums, Writes),
                (Slot::Scratch, Writes),
            ],
        ),
        Kernel::MergeRows => row(
            wgsl!("merge_rows"),
            &[CENTER, SLOPE, TREE_SUMS, PARTIALS],
            &[
                (Slot::Gamma, Read),
                (Slot::Dgamma, Writes),
                (Slot::Dbeta, Writes),
                (Slot::Saved, Read),
                (Slot::Scratch, Writes),
            ],
        ),
        Kernel::RowsGradient => {
            row(wgsl!("rows_gradient"), &[CENTER, SLOPE, ROWS, ROWS_GRADIENT], GRADIENT)
        }
        Kernel::ColumnsGradient => row(
            wgsl!("columns_gradient"),
            &[CENTER, SLOPE, COLUMNS, COLUMNS_WALK, COLUMNS_GRADIENT],
            GRADIENT,
        ),
        Kernel::RowsBackward => row(
            wgsl!("rows_backward"),
            &[CENTER, SLOPE, TREE_SUMS, ROWS, ROWS_REDUCE, ROWS_GRADIENT],
            BACKWARD,
        ),
        Kernel::ColumnsBackward => row(
            wgsl!("columns_backward"),
            &[CENTER, SLOPE, COLUMNS, COLUMNS_REDUCE, COLUMNS_GRADIENT],
            BACKWARD,
        ),
        Kernel::RowsFrozen => row(wgsl!("rows_frozen"), &[CENTER, SLOPE, TREE_SUMS, ROWS], FROZEN),
        Kernel::ColumnsFrozen => {
            row(wgsl!("columns_frozen"), &[CENTER, COLUMNS, COLUMNS_WALK, WALK_SUMS], FROZEN)
        }
    }
}

/// The name of every kernel's entry point.
pub const ENTRY_POINT: &str = "main";

/// In place, outputs are the memory of these inputs.
fn home(slot: Slot, memory: Memory) -> Slot {
    match (slot, memory) {
        (Slot::Y, Memory::InPlace) => Slot::X,
        (Slot::Dx, Memory::InPlace) => Slot::Dy,
        _ => slot,
    }
}

/// The storage bindings of a variant, in order.
pub fn bindings(variant: &Variant) -> Vec<Binding> {
    let mut bindings: Vec<Binding> = Vec::new();
    for &(slot, access) in row(variant.kernel).slots {
        if !variant.slots.contains(slot) {
            continue;
        }
        let slot = home(slot, variant.memory);
        let read_only = access == Read && variant.memory != Memory::Arena;
        match bindings.iter_mut().find(|b| b.slot == slot) {
            Some(binding) => (binding.access, binding.read_only) = (access, read_only),
            None => bindings.push(Binding { slot, number: slot as u32 + 1, access, read_only }),
        }
    }
    bindings
}

/// The WGSL of an activation.
fn activation(variant: &Variant) -> [&'static str; 2] {
    match variant.activation {
        Epilogue::None => ["", wgsl!("activations/none")],
        Epilogue::Relu => ["", wgsl!("activations/relu")],
        Epilogue::LeakyRelu => ["", wgsl!("activations/leaky_relu")],
        Epilogue::ClippedRelu => ["", wgsl!("activations/clipped_relu")],
        Epilogue::Silu => ["", wgsl!("activations/silu")],
        Epilogue::Custom(source) if variant.vector == 4 => [source, wgsl!("activations/custom4")],
        Epilogue::Custom(source) => [source, wgsl!("activations/custom1")],
    }
}

/// The value of a slot that is not bound.
fn neutral(slot: Slot) -> &'static str {
    match slot {
        Slot::Gamma | Slot::Weights => "1.0",
        Slot::Batches => "1u",
        Slot::Mask => "0u",
        _ => "0.0",
    }
}

/// What one load of a slot gives, in WGSL. `V` is a vector of the variant's width. The weights of
/// neighbouring columns need not be neighbours.
fn value_type(slot: Slot, kernel: Kernel) -> &'static str {
    match slot {
        Slot::Weights if is_of_columns(kernel) => "f32",
        Slot::Weights => "V",
        slot if slot.is_tensor() => "V",
        Slot::Batches | Slot::Mask => "u32",
        _ => "f32",
    }
}

/// Whether a kernel with weights walks columns.
fn is_of_columns(kernel: Kernel) -> bool {
    matches!(
        kernel,
        Kernel::ColumnsWeightedStatistics | Kernel::ColumnsGradient | Kernel::ColumnsBackward
    )
}

/// How a bound slot lies in memory.
#[derive(Clone, Copy, PartialEq)]
enum Stored {
    /// As values of its type.
    Plain,
    /// One f32 of each channel, in one or several planes; a window may begin at a later channel.
    OfChannel,
    /// One f32 of each channel in planes, four neighbouring channels at a time; from where on, in WGSL.
    OfNeighbours(&'static str),
    /// A vector of four in words of 64 bits.
    Wide,
    /// Two neighbouring vectors of four, so.
    WidePair,
    /// A vector of four halves in two words.
    Pairs,
    /// Two halves in a word.
    Halves,
    /// Two halves in a word, written by different invocations.
    AtomicHalves,
    /// 32 bits in a word; written whole, by the first of its vectors.
    Bits,
    /// 32 bits in a word, written by different invocations.
    AtomicBits,
}

impl Stored {
    fn of(binding: &Binding, variant: &Variant) -> Self {
        let written = binding.access == Writes;
        match binding.slot {
            Slot::Mask if written && !variant.words => Self::AtomicBits,
            Slot::Mask => Self::Bits,
            slot if !written && has_neighbours(variant) && is_of_strips(slot) => {
                let of_window = slot.is_of_channels();
                Self::OfNeighbours(if of_window { " + params.first_channel" } else { "" })
            }
            slot if slot.is_of_channels() => Self::OfChannel,
            slot if !slot.is_tensor() => Self::Plain,
            _ => Self::of_tensor(written, variant),
        }
    }

    fn of_tensor(written: bool, variant: &Variant) -> Self {
        match variant.element {
            _ if variant.paired => Self::WidePair,
            _ if variant.wide => Self::Wide,
            Element::F32 => Self::Plain,
            _ if variant.vector == 4 => Self::Pairs,
            _ if written => Self::AtomicHalves,
            _ => Self::Halves,
        }
    }

    fn word(self, slot: Slot, kernel: Kernel) -> &'static str {
        match self {
            Self::Plain | Self::OfChannel => value_type(slot, kernel),
            Self::OfNeighbours(_) => "vec4<f32>",
            Self::Wide => "Wide",
            Self::WidePair => "Pair",
            Self::Pairs => "vec2<u32>",
            Self::Halves | Self::Bits => "u32",
            Self::AtomicHalves | Self::AtomicBits => "atomic<u32>",
        }
    }

    /// The value at `i` of the memory called `at`.
    fn read(self, at: &str) -> String {
        match self {
            Self::Plain => format!("{at}[i]"),
            Self::OfChannel => format!("{at}[i + params.first_channel]"),
            Self::OfNeighbours(first) => format!("{at}[(i{first}) / 4u][(i{first}) % 4u]"),
            Self::Pairs => format!("unpack({at}[i])"),
            Self::Wide => format!("unpack_wide({at}[i])"),
            Self::WidePair => format!("unpack_wide(one_of({at}[i / 2u], i))"),
            Self::Halves => format!("unpack({at}[i / 2u], i)"),
            Self::AtomicHalves => format!("unpack(atomicLoad(&{at}[i / 2u]), i)"),
            Self::Bits => format!("bits_at({at}[word_of(i + params.mask_base)], i)"),
            Self::AtomicBits => {
                format!("bits_at(atomicLoad(&{at}[word_of(i + params.mask_base)]), i)")
            }
        }
    }

    /// A word of the value at `i`, as it lies in memory.
    fn touch(self, at: &str, variant: &Variant) -> String {
        match self {
            Self::Plain if variant.vector == 4 => format!("bitcast<u32>({at}[i].x)"),
            Self::Plain => format!("bitcast<u32>({at}[i])"),
            Self::Pairs => format!("{at}[i].x"),
            Self::Wide if variant.element == Element::F32 => format!("u32({at}[i].x)"),
            Self::Wide => format!("u32({at}[i])"),
            Self::WidePair => format!("u32({at}[i / 2u].x)"),
            Self::Halves => format!("{at}[i / 2u]"),
            Self::AtomicHalves => format!("atomicLoad(&{at}[i / 2u])"),
            Self::OfChannel | Self::OfNeighbours(_) | Self::Bits | Self::AtomicBits => {
                panic!("bug: only tensors are touched")
            }
        }
    }

    /// Gives the values at four places.
    fn read_four(self, slot: Slot, at: &str) -> String {
        if self != Self::WidePair {
            return each_of_four(slot);
        }
        let value = |pair| format!("unpack_wide(first_of({pair})), unpack_wide(second_of({pair}))");
        let (p, q) = (value("p"), value("q"));
        format!("let p = {at}[at.a / 2u]; let q = {at}[at.c / 2u]; return Four({p}, {q});")
    }

    /// Puts the values of `v` at four places.
    fn write_four(self, slot: Slot, at: &str) -> String {
        if self != Self::WidePair {
            let store = |place| format!("store_{slot}(at.{place}, v.{place});");
            return ["a", "b", "c", "d"].map(store).join(" ");
        }
        let store = |[a, b]: [&str; 2]| {
            format!("{at}[at.{a} / 2u] = Pair(pack_wide(v.{a}), pack_wide(v.{b}));")
        };
        [["a", "b"], ["c", "d"]].map(store).join(" ")
    }

    /// The bits of two neighbouring vectors, of which the first is at `i`.
    fn read_pair_of_bits(self, at: &str) -> String {
        let word = format!("{at}[word_of(i + params.mask_base)]");
        match self {
            Self::AtomicBits => format!("pair_at(atomicLoad(&{word}), i)"),
            _ => format!("pair_at({word}, i)"),
        }
    }

    /// Puts the bits of two neighbouring vectors there.
    fn write_pair_of_bits(self, at: &str) -> String {
        match self {
            Self::AtomicBits => flip(at, "word_of(i + params.mask_base)", "pair_difference"),
            _ => self.write(at),
        }
    }

    /// Puts `v` there.
    fn write(self, at: &str) -> String {
        let flip = |word, by| flip(at, word, by);
        match self {
            Self::Pairs => format!("{at}[i] = pack(v);"),
            Self::Wide => format!("{at}[i] = pack_wide(v);"),
            Self::WidePair => format!("{at}[i / 2u] = put_wide({at}[i / 2u], i, pack_wide(v));"),
            Self::AtomicHalves => flip("i / 2u", "difference"),
            Self::AtomicBits => flip("word_of(i + params.mask_base)", "bit_difference"),
            Self::OfChannel => format!("{at}[i + params.first_channel] = v;"),
            Self::Bits => format!("{at}[word_of(i + params.mask_base)] = v;"),
            Self::Plain | Self::Halves => format!("{at}[i] = v;"),
            Self::OfNeighbours(_) => panic!("bug: only read"),
        }
    }
}

/// Flips those bits of a word of `at` in which it differs from `v`, which `by` finds.
fn flip(at: &str, word: &str, by: &str) -> String {
    format!("let old = atomicLoad(&{at}[{word}]); atomicXor(&{at}[{word}], {by}(old, i, v));")
}

/// Whether a kernel reads what neighbouring channels have by whole vectors.
fn has_neighbours(variant: &Variant) -> bool {
    variant.neighbours && variant.vector == 4 && !variant.grouped
}

/// Whether a strip of columns has numbers in a slot: those of its channels.
fn is_of_strips(slot: Slot) -> bool {
    matches!(slot, Slot::Scratch) || slot.is_of_channels()
}

/// What a strip's channels have in a plane of a slot.
fn of_strip(slot: Slot, stored: Option<Stored>, at: &str) -> String {
    let whose = match slot {
        Slot::Gamma | Slot::Beta => "parameter_of",
        Slot::Saved | Slot::Scratch => "group_of",
        _ => "",
    };
    let body = match stored {
        None => format!("return both(V({}));", neutral(slot)),
        Some(Stored::OfNeighbours(first)) => format!(
            "let i = (plane + channel_of(strip, 0u){first}) / 4u; \
             let j = (plane + channel_of(strip, (PAIR - 1u) * WIDTH){first}) / 4u; \
             return Both({at}[i], {at}[j]);"
        ),
        Some(_) => format!(
            "var v = both(V(0.0)); \
             for (var i = 0u; i < channels_of(); i = i + 1u) {{ \
             let own = load_{slot}(plane + {whose}(channel_of(strip, i))); \
             v = put_channel(strip, v, i, own); }} \
             return v;"
        ),
    };
    format!("fn {slot}_of_strip(strip: Strip, plane: u32) -> Both {{ {body} }}\n")
}

/// Gives the values at four places, each by itself.
fn each_of_four(slot: Slot) -> String {
    let load = |place| format!("load_{slot}(at.{place})");
    format!("return Four({});", ["a", "b", "c", "d"].map(load).join(", "))
}

/// What values are counted with: those of a tensor by whole numbers, those of parts as they come, and
/// weights.
fn count_type(variant: &Variant) -> &'static str {
    let whole = !matches!(
        variant.kernel,
        Kernel::MergeParts | Kernel::RowsWeightedStatistics | Kernel::ColumnsWeightedStatistics
    );
    if whole { "u32" } else { "f32" }
}

/// Between halves as they lie in memory and f32.
fn conversions(variant: &Variant) -> Vec<&'static str> {
    let f16 = variant.element == Element::F16;
    match (variant.vector, f16) {
        (4, true) => {
            let unpack: &[_] = match variant.built_in_widen {
                true => &[BUILT_IN_UNPACK_4],
                false => &[F16_WIDEN, UNPACK_4],
            };
            let pack: &[_] = match variant.built_in_narrow {
                true => &[BUILT_IN_PACK_4],
                false => &[F16_NARROW, PACK_4],
            };
            [unpack, pack].concat()
        }
        (4, false) => vec![BF16, UNPACK_4, PACK_4],
        (_, true) => vec![
            if variant.built_in_widen { BUILT_IN_WIDEN } else { F16_WIDEN },
            if variant.built_in_narrow { BUILT_IN_NARROW } else { F16_NARROW },
            HALVES_1,
        ],
        (_, false) => vec![BF16, HALVES_1],
    }
}

/// The complete WGSL of a variant. Its overrides are [`constants`].
pub fn source(variant: &Variant) -> String {
    let row = row(variant.kernel);
    let width = if variant.vector == 4 { VECTOR_4 } else { VECTOR_1 };
    let mut text = [PARAMS, width, FOUR].concat();
    let _ = writeln!(text, "const PAIR: u32 = {}u;", 1 + u32::from(variant.paired));
    match variant.element {
        Element::F32 => text.push_str(if variant.wide { WIDE } else { "" }),
        _ => text.extend(conversions(variant)),
    }
    if variant.wide && variant.element != Element::F32 {
        text.push_str(WIDE_HALVES);
    }
    if variant.paired {
        text.push_str(PAIRS);
    }
    let _ = writeln!(text, "alias Count = {};", count_type(variant));
    let masked = variant.slots.contains(Slot::Mask);
    text.push_str(if masked { BITS } else { "" });
    let bindings = bindings(variant);
    for binding in &bindings {
        let mode = if binding.read_only { "read" } else { "read_write" };
        let word = Stored::of(binding, variant).word(binding.slot, variant.kernel);
        // A prefix, as `dx` is a namespace of DXC's, which naga does not know to avoid.
        let _ = writeln!(
            text,
            "@group(0) @binding({}) var<storage, {mode}> slot_{}: array<{word}>;",
            binding.number, binding.slot
        );
    }
    for slot in Slot::ALL {
        let access = row.slots.iter().find(|(s, _)| *s == slot).map(|(_, access)| *access);
        let memory = home(slot, variant.memory);
        let binding = bindings.iter().find(|binding| {
            access.is_some() && variant.slots.contains(slot) && binding.slot == memory
        });
        let stored = binding.map(|binding| Stored::of(binding, variant));
        let (value, at) = (value_type(slot, variant.kernel), format!("slot_{memory}"));
        let read = stored.map_or(format!("{value}({})", neutral(slot)), |stored| stored.read(&at));
        let write = stored.filter(|_| access == Some(Writes)).map(|stored| stored.write(&at));
        let (bound, write) = (stored.is_some(), write.unwrap_or_default());
        if slot.is_tensor() {
            let read = stored.map_or(each_of_four(slot), |stored| stored.read_four(slot, &at));
            let write = match stored.filter(|_| access == Some(Writes)) {
                Some(stored) => stored.write_four(slot, &at),
                None => String::new(),
            };
            let _ = writeln!(text, "fn load_{slot}_four(at: Places) -> Four {{ {read} }}");
            let _ = writeln!(text, "fn store_{slot}_four(at: Places, v: Four) {{ {write} }}");
        }
        if row.parts.contains(&COLUMNS) && is_of_strips(slot) {
            text.push_str(&of_strip(slot, stored, &at));
        }
        let _ = writeln!(text, "const HAS_{}: bool = {bound};", slot.name().to_uppercase());
        let _ = writeln!(text, "fn load_{slot}(i: u32) -> {value} {{ return {read}; }}");
        let _ = writeln!(text, "fn store_{slot}(i: u32, v: {value}) {{ {write} }}");
        if slot == Slot::Mask && masked {
            let read = stored.map_or("0u".into(), |stored| stored.read_pair_of_bits(&at));
            let written = stored.filter(|_| access == Some(Writes));
            let write = written.map(|stored| stored.write_pair_of_bits(&at)).unwrap_or_default();
            let _ = writeln!(text, "fn load_mask_pair(i: u32) -> u32 {{ return {read}; }}");
            let _ = writeln!(text, "fn store_mask_pair(i: u32, v: u32) {{ {write} }}");
        }
    }
    if row.parts.contains(&COLUMNS_WALK) && !variant.joined {
        let tensors = bindings.iter().filter(|binding| binding.slot.is_tensor());
        let words = tensors.map(|binding| {
            let stored = Stored::of(binding, variant);
            stored.touch(&format!("slot_{}", binding.slot), variant)
        });
        let words: Vec<String> = words.collect();
        let _ = writeln!(text, "fn touch(i: u32) -> u32 {{ return {}; }}", words.join(" | "));
    }
    if row.slots.iter().any(|(slot, _)| matches!(slot, Slot::Y | Slot::Dy)) {
        text.extend(activation(variant));
        text.push_str(if masked { EPILOGUE_MASK } else { EPILOGUE });
        text.push_str(RESIDUAL);
    }
    if is_of_columns(variant.kernel) {
        text.push_str(if variant.vector == 4 { WEIGHTS_4 } else { WEIGHTS_1 });
    }
    let held = variant.held > 0;
    if held {
        let _ = writeln!(text, "const HELD: u32 = {}u;", variant.held - 1);
        let _ = writeln!(text, "fn as_stored(v: V) -> V {{ return {}; }}", as_stored(variant));
        text.push_str(ROWS_HELD);
    }
    let part = |part| match part {
        ROWS_STATISTICS if held => ROWS_STATISTICS_HELD,
        ROWS_NORMALIZE if held => ROWS_NORMALIZE_HELD,
        ROWS_REDUCE if held => ROWS_REDUCE_HELD,
        ROWS_GRADIENT if held => ROWS_GRADIENT_HELD,
        ROWS_NORMALIZE if variant.words => ROWS_NORMALIZE_WORDS,
        COLUMNS_WALK if variant.joined => COLUMNS_JOIN,
        WALK_MOMENTS if variant.joined => JOIN_MOMENTS,
        WALK_SUMS if variant.joined => JOIN_SUMS,
        _ => part,
    };
    for part in row.parts.iter().copied().map(part) {
        match held {
            true => unroll(part, variant.held - 1, &mut text),
            false => text.push_str(part),
        }
    }
    text.push_str(row.source);
    text
}

/// The value `v` as a tensor holds it, in WGSL.
fn as_stored(variant: &Variant) -> &'static str {
    match (variant.element, variant.vector) {
        (Element::F32, _) => "v",
        (_, 4) => "unpack(pack(v))",
        _ => "widen(narrow(v))",
    }
}

/// Every line of a part with `#` so many times, with a number in its place.
fn unroll(part: &str, count: u32, text: &mut String) {
    for line in part.split_inclusive('\n') {
        match line.contains('#') {
            true => text.extend((0..count).map(|i| line.replace('#', &i.to_string()))),
            false => text.push_str(line),
        }
    }
}

/// The WGSL that `self_test` asks about the adapter itself: with the kernels' own `is_finite` and
/// `opaque`.
#[cfg(feature = "host")]
pub(crate) fn probe() -> String {
    [PARAMS, wgsl!("probe")].concat()
}

/// The WGSL of a copy, for what `measure` measures: in vectors of 16 bytes, or of 32.
#[cfg(all(feature = "host", not(target_family = "wasm")))]
pub(crate) fn copy(wide: bool) -> String {
    let vector = if wide { "vec4<u64>" } else { "vec4<f32>" };
    [&format!("alias Vector = {vector};\n"), wgsl!("copy")].concat()
}

/// The WGSL that `self_test` asks about halves: with the kernels' own conversions, or, of f16, with the
/// built-in ones.
#[cfg(feature = "host")]
pub(crate) fn convert(element: Element, built_in: bool) -> String {
    let [widen, narrow] = match element {
        Element::F16 if built_in => [BUILT_IN_WIDEN, BUILT_IN_NARROW],
        Element::F16 => [F16_WIDEN, F16_NARROW],
        _ => [BF16, ""],
    };
    [PARAMS, VECTOR_1, widen, narrow, wgsl!("convert")].concat()
}

/// The overrides of a variant, by name.
pub fn constants(variant: &Variant) -> [(&'static str, f64); 10] {
    [
        ("LANES", f64::from(variant.workgroup_size)),
        ("GROUP", f64::from(variant.group_size)),
        ("ACCUMULATE", f64::from(u8::from(variant.accumulate))),
        ("CUMULATIVE", f64::from(u8::from(variant.cumulative))),
        ("KEEP_NON_FINITE", f64::from(u8::from(variant.keep_non_finite))),
        ("RENORM", f64::from(u8::from(variant.renorm))),
        ("GROUPED", f64::from(u8::from(variant.grouped))),
        ("WEIGHTED", f64::from(u8::from(variant.weighted))),
        ("NEIGHBOURS", f64::from(u8::from(variant.neighbours))),
        ("RUNS", f64::from(u8::from(variant.runs))),
    ]
}
