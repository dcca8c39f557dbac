
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

// From one lane's number, or the first of its pair, to its next. Known before a loop, as lavapipe would
// fetch it for every lane again.
struct Pace {
    place: u32,
    index: u32,
    row: u32,
    next_row: u32,
}

fn pace() -> Pace {
    let next_row = params.row_stride - params.row_loads;
    return Pace(params.advance_place, params.advance_index, params.row_loads, next_row);
}

fn advance(w: Walk, by: Pace) -> Walk {
    let place = w.place + by.place;
    let index = w.index + by.index;
    let wraps = place >= by.row;
    return Walk(select(place, place - by.row, wraps), select(index, index + by.next_row, wraps));
}

// One lane's next four numbers, and where it goes from there. Rows have whole pairs.
struct Stride {
    at: Places,
    next: Walk,
}

fn stride_from(w: Walk, by: Pace) -> Stride {
    if PAIR == 2u {
        let v = advance(w, by);
        return Stride(Places(w.index, w.index + 1u, v.index, v.index + 1u), advance(v, by));
    }
    let w1 = advance(w, by);
    let w2 = advance(w1, by);
    let w3 = advance(w2, by);
    return Stride(Places(w.index, w1.index, w2.index, w3.index), advance(w3, by));
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
