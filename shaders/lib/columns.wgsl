
// Columns. Each lane owns a strip, PAIR vectors of neighbouring columns, and goes down rows of a chunk;
// the first `tail` columns have one row more.
const COLUMNS: u32 = PAIR * WIDTH;

struct Strip {
    // Its first vector of columns.
    place: u32,
    chunk: u32,
    // The chunk's first row, and the rows of this strip.
    first: u32,
    begin: u32,
    end: u32,
}

fn strip_of(chunk: u32, place: u32, begin: u32) -> Strip {
    let rows = params.step_count + select(0u, 1u, place * WIDTH < params.tail);
    let first = chunk * params.chunk;
    let end = min(min(begin + params.block, first + params.chunk), rows);
    return Strip(place, chunk, first, begin, end);
}

fn index_of(strip: Strip, row: u32) -> u32 {
    return params.base + row * params.row_loads + strip.place;
}

// The rows of a strip that make four vectors, from the row at `i` on.
const ROWS_OF_FOUR: u32 = 4u / PAIR;

fn rows_from(i: u32) -> Places {
    let stride = params.row_loads;
    if PAIR == 2u {
        return Places(i, i + 1u, i + stride, i + stride + 1u);
    }
    return Places(i, i + stride, i + 2u * stride, i + 3u * stride);
}

// A number for every column of a strip.
fn component_of(v: Both, i: u32) -> f32 {
    if PAIR == 2u && i >= WIDTH {
        return component(v.b, i - WIDTH);
    }
    return component(v.a, i);
}

fn put_component(v: Both, i: u32, value: f32) -> Both {
    if PAIR == 1u {
        return both(put(v.a, i, value));
    }
    if i >= WIDTH {
        return Both(v.a, put(v.b, i - WIDTH, value));
    }
    return Both(put(v.a, i, value), v.b);
}

// What four vectors add to every column.
fn sum_rows(v: Four) -> Both {
    if PAIR == 2u {
        return Both(v.a + v.c, v.b + v.d);
    }
    return both((v.a + v.b) + (v.c + v.d));
}

fn plus(v: Both, by: Both) -> Both {
    return Both(v.a + by.a, v.b + by.b);
}

// Where the partials of a strip's columns lie.
fn partials_at(strip: Strip) -> u32 {
    return strip.chunk * params.width + strip.place * WIDTH;
}

// Lanes beyond the width have nothing to do.
fn is_outside(strip: Strip) -> bool {
    return strip.place >= params.row_loads;
}

// The channel of a strip's i-th column.
fn channel_of(strip: Strip, i: u32) -> u32 {
    if NEIGHBOURS {
        return strip.place * WIDTH % params.channel_count + i;
    }
    return (strip.place * WIDTH + i) / params.run % params.channel_count;
}

struct Centers {
    mean: Both,
    rest: Both,
    inv_std: Both,
}

fn put_center(c: Centers, i: u32, center: Center) -> Centers {
    return Centers(
        put_component(c.mean, i, center.mean),
        put_component(c.rest, i, center.rest),
        put_component(c.inv_std, i, center.inv_std),
    );
}

fn get_center(c: Centers, i: u32) -> Center {
    return Center(component_of(c.mean, i), component_of(c.rest, i), component_of(c.inv_std, i));
}

fn no_centers() -> Centers {
    return Centers(both(V(0.0)), both(V(0.0)), both(V(0.0)));
}

fn centers_of(strip: Strip) -> Centers {
    var c = no_centers();
    for (var i = 0u; i < COLUMNS; i = i + 1u) {
        c = put_center(c, i, center_of(channel_of(strip, i)));
    }
    return c;
}

struct Affines {
    gain: Both,
    shift: Both,
}

fn affines_of(strip: Strip, c: Centers) -> Affines {
    var a = Affines(both(V(0.0)), both(V(0.0)));
    for (var i = 0u; i < COLUMNS; i = i + 1u) {
        let affine = affine_of(channel_of(strip, i), get_center(c, i));
        a = Affines(put_component(a.gain, i, affine.gain), put_component(a.shift, i, affine.shift));
    }
    return a;
}

// Where the weights of a strip's columns are in the first row…
fn weight_places(strip: Strip) -> U {
    let column = U(strip.place * WIDTH) + COMPONENTS;
    let run = U(params.run);
    let sample = column / U(params.run * params.channel_count);
    return U(params.weights_base) + sample * run + column % run;
}

// …and how much further in another.
fn row_weights(row: u32) -> U {
    return U(row * params.per_chunk);
}
