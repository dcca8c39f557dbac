
// Walking a channel's rows. The vector loads of a channel are numbered along its rows; lanes take
// neighbouring numbers and advance by LANES, without a division.

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

fn advance(w: Walk) -> Walk {
    let place = w.place + params.advance_place;
    let index = w.index + params.advance_index;
    let wraps = place >= params.row_loads;
    return Walk(
        select(place, place - params.row_loads, wraps),
        select(index, index + params.row_stride - params.row_loads, wraps),
    );
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
