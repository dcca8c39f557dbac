
// Columns. Each lane owns one vector of neighbouring columns and goes down rows of a chunk; the first
// `tail` columns have one row more.

struct Strip {
    // Which vector of columns.
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
    mean: V,
    rest: V,
    inv_std: V,
}

fn put_center(c: Centers, i: u32, center: Center) -> Centers {
    return Centers(
        put(c.mean, i, center.mean),
        put(c.rest, i, center.rest),
        put(c.inv_std, i, center.inv_std),
    );
}

fn get_center(c: Centers, i: u32) -> Center {
    return Center(component(c.mean, i), component(c.rest, i), component(c.inv_std, i));
}

fn no_centers() -> Centers {
    return Centers(V(0.0), V(0.0), V(0.0));
}

fn centers_of(strip: Strip) -> Centers {
    var c = no_centers();
    for (var i = 0u; i < WIDTH; i = i + 1u) {
        c = put_center(c, i, center_of(channel_of(strip, i)));
    }
    return c;
}

struct Affines {
    gain: V,
    shift: V,
}

fn affines_of(strip: Strip, c: Centers) -> Affines {
    var a = Affines(V(0.0), V(0.0));
    for (var i = 0u; i < WIDTH; i = i + 1u) {
        let affine = affine_of(channel_of(strip, i), get_center(c, i));
        a = Affines(put(a.gain, i, affine.gain), put(a.shift, i, affine.shift));
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
