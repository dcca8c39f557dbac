
// Columns. Each lane owns a strip, PAIR vectors of neighbouring columns, and goes down rows of a chunk;
// the first `tail` columns have one row more.
const COLUMNS: u32 = PAIR * WIDTH;

struct Strip {
    // Its first vector of columns.
    place: u32,
    // Columns up to the next channel, where it may have columns of two.
    second: u32,
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
    let second = params.run - place * WIDTH % params.run;
    return Strip(place, second, chunk, first, begin, end);
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

// A strip has columns of so many channels, not all different: under RUNS two, those of its first and
// of its last column, which is the same where all are of one; else each column has its own.
fn channels_of() -> u32 {
    if RUNS {
        return 2u;
    }
    return COLUMNS;
}

// A column of a strip's i-th channel.
fn column_of(i: u32) -> u32 {
    if RUNS {
        return i * (COLUMNS - 1u);
    }
    return i;
}

// Whether columns are of a strip's i-th channel.
struct Chosen {
    a: B,
    b: B,
}

fn chosen(strip: Strip, i: u32) -> Chosen {
    let next = COMPONENTS + U(WIDTH);
    if RUNS {
        let is_second = B(i == 1u);
        let second = U(strip.second);
        return Chosen((COMPONENTS >= second) == is_second, (next >= second) == is_second);
    }
    return Chosen(COMPONENTS == U(i), next == U(i));
}

// How many are.
fn count_of(strip: Strip, i: u32) -> u32 {
    if RUNS {
        let first = min(strip.second, COLUMNS);
        return select(first, COLUMNS - first, i == 1u);
    }
    return 1u;
}

// A number for all columns of a strip's i-th channel…
fn put_channel(strip: Strip, v: Both, i: u32, value: f32) -> Both {
    let at = chosen(strip, i);
    let first = select(v.a, V(value), at.a);
    if PAIR == 1u {
        return both(first);
    }
    return Both(first, select(v.b, V(value), at.b));
}

// …and their sum.
fn sum_of_channel(strip: Strip, v: Both, i: u32) -> f32 {
    if !RUNS {
        return component_of(v, i);
    }
    let at = chosen(strip, i);
    let a = sum_components(select(V(0.0), v.a, at.a));
    if PAIR == 2u {
        return a + sum_components(select(V(0.0), v.b, at.b));
    }
    return a;
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

// Where the partials of a strip's channels lie.
fn partials_at(strip: Strip) -> u32 {
    let column = strip.place * WIDTH;
    return strip.chunk * params.width + select(column, column / COLUMNS * 2u, RUNS);
}

// Lanes beyond the width have nothing to do.
fn is_outside(strip: Strip) -> bool {
    return strip.place >= params.row_loads;
}

// A strip's i-th channel.
fn channel_of(strip: Strip, i: u32) -> u32 {
    if NEIGHBOURS {
        return (strip.place * WIDTH + i) % params.channel_count;
    }
    return (strip.place * WIDTH + column_of(i)) / params.run % params.channel_count;
}

struct Centers {
    mean: Both,
    rest: Both,
    inv_std: Both,
}

fn put_center(strip: Strip, c: Centers, i: u32, center: Center) -> Centers {
    return Centers(
        put_channel(strip, c.mean, i, center.mean),
        put_channel(strip, c.rest, i, center.rest),
        put_channel(strip, c.inv_std, i, center.inv_std),
    );
}

fn no_centers() -> Centers {
    return Centers(both(V(0.0)), both(V(0.0)), both(V(0.0)));
}

// What the channels of a strip have in each slot, `SLOT_of_strip(strip, plane)`, is made in src/shader.rs.

fn centers_of(strip: Strip) -> Centers {
    if HAS_SAVED {
        let c = params.group_count;
        let inv_std = saved_of_strip(strip, 2u * c);
        return Centers(saved_of_strip(strip, 0u), saved_of_strip(strip, c), inv_std);
    }
    let variance = running_var_of_strip(strip, 0u);
    let inv_std = Both(inverse_deviation(variance.a), inverse_deviation(variance.b));
    return Centers(running_mean_of_strip(strip, 0u), both(V(0.0)), inv_std);
}

struct Affines {
    gain: Both,
    shift: Both,
}

fn affines_of(strip: Strip, c: Centers) -> Affines {
    let gamma = gamma_of_strip(strip, 0u);
    let beta = beta_of_strip(strip, 0u);
    let renorm = renorms_of(strip);
    let a = affine_from(gamma.a, beta.a, c.rest.a, c.inv_std.a, renorm.a);
    let b = affine_from(gamma.b, beta.b, c.rest.b, c.inv_std.b, renorm.b);
    return Affines(Both(a.gain, b.gain), Both(a.shift, b.shift));
}

struct Renorms {
    a: Renorm,
    b: Renorm,
}

fn renorms_of(strip: Strip) -> Renorms {
    if RENORM {
        let c = params.channel_count;
        let r = saved_of_strip(strip, 4u * c);
        let d = saved_of_strip(strip, 5u * c);
        return Renorms(Renorm(r.a, d.a), Renorm(r.b, d.b));
    }
    return Renorms(no_renorm(), no_renorm());
}

// Σdy and Σdy·(x−μ) of columns or of their channels.
struct ColumnSums {
    dy: Both,
    dyx: Both,
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
