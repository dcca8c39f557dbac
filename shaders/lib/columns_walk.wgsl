
// Walks a chunk of rows and visits its strips. A workgroup owns `tiles` neighbouring tiles of LANES
// strips, and goes through all of them in one block of rows before it takes the next block, so that
// memory is read and written in its own order. A strip is visited once in every block, in order.

// Touches every cache line of a block, in its order: loads at a stride would wait for each line.
// 0 as `line` is none.
fn touch_block(begin: u32, end: u32, first: u32, tiles: u32, lane: u32) -> u32 {
    var seen = 0u;
    if params.line == 0u {
        return seen;
    }
    let limit = params.step_count * params.row_loads + params.tail / WIDTH;
    // Whole rows lie together, as if they were one.
    let whole = params.row_loads <= params.tiles * LANES * PAIR;
    let stop = select(end * params.row_loads, begin * params.row_loads + 1u, whole);
    let length = select(tiles * LANES * PAIR, (end - begin) * params.row_loads, whole);
    for (var row = begin * params.row_loads; row < stop; row = row + params.row_loads) {
        let place = row + first;
        let last = min(place + length, limit);
        for (var i = place + lane * params.line; i < last; i = i + LANES * params.line) {
            seen = seen | touch(params.base + i);
        }
    }
    return seen;
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = workgroup_index(workgroup, grid);
    if index >= params.workgroup_count {
        return;
    }
    let place = place_in_order(index);
    let chunk = place / params.parts;
    let first = place % params.parts * params.tiles * LANES * PAIR;
    let tiles = min(params.tiles, (params.row_loads - first + LANES * PAIR - 1u) / (LANES * PAIR));
    let rows = params.step_count + select(0u, 1u, params.tail > 0u);
    let end = min(chunk * params.chunk + params.chunk, rows);
    for (var row = chunk * params.chunk; row < end; row = row + params.block) {
        let seen = touch_block(row, min(row + params.block, end), first, tiles, lane);
        // It is 0, but no compiler knows: what was touched is used.
        for (var tile = seen & params.zero; tile < tiles; tile = tile + 1u) {
            let strip = strip_of(chunk, first + (tile * LANES + lane) * PAIR, row);
            if !is_outside(strip) {
                visit(strip);
            }
        }
    }
}
