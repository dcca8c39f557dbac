
// Walking a channel's rows. The vector loads of a channel are numbered along its rows; lanes take
// neighbouring numbers, or where PAIR is 2 neighbouring pairs of them, and advance by LANES of those,
// without a division.

struct Walk {
    place: u32,
    index: u32,
}

fn walk_from(channel: u32, step: u32) -> Walk {
    let row = step / params.row_loads;
    let place = step % params.row_loads;
    let index = row * params.row_stride + channel * params.row_loads + place;
    return Walk(place, params.base + index);
}

// From one lane's number, or the first of its pair, to its next.
fn advance(w: Walk) -> Walk {
    let place = w.place + params.advance_place;
    let index = w.index + params.advance_index;
    let wraps = place >= params.row_loads;
    return Walk(
        select(place, place - params.row_loads, wraps),
        select(index, index + params.row_stride - params.row_loads, wraps),
    );
}

// One lane's next four numbers, and where it goes from there. Rows have whole pairs.
struct Stride {
    at: Places,
    next: Walk,
}

fn stride_from(w: Walk) -> Stride {
    if PAIR == 2u {
        let v = advance(w);
        return Stride(Places(w.index, w.index + 1u, v.index, v.index + 1u), advance(v));
    }
    let w1 = advance(w);
    let w2 = advance(w1);
    let w3 = advance(w2);
    return Stride(Places(w.index, w1.index, w2.index, w3.index), advance(w3));
}

// A workgroup's channel and its range of steps.
struct Range {
    channel: u32,
    chunk: u32,
    begin: u32,
    end: u32,
}

fn range_of(index: u32) -> Range {
    let chunk = index % params.chunk_count;
    let begin = chunk * params.chunk;
    let end = min(begin + params.chunk, params.step_count);
    return Range(index / params.chunk_count, chunk, begin, end);
}

// The first number of a lane.
fn first_step(range: Range, lane: u32) -> u32 {
    return range.begin + lane * PAIR;
}

// Whether a lane has four numbers more.
fn has_stride(range: Range, step: u32) -> bool {
    return step + (4u - PAIR) * LANES + (PAIR - 1u) < range.end;
}
