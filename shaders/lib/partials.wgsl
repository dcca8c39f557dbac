
// Where the t-th partial of a channel lies, and how many columns and values it is made of. Where it is
// of no column, nothing lies there.

struct Partial {
    index: u32,
    columns: u32,
    count: Count,
}

// In its chunk. Of columns in strips, a strip has two: of those of the channel that it begins with, and
// of those of the next.
struct Place {
    index: u32,
    // The first column of its run, and how many of the run's it is made of; there may be none.
    run: u32,
    columns: u32,
}

fn place_of(channel: u32, t: u32) -> Place {
    let r = t % params.per_chunk;
    let first = (r / params.per_run * params.channel_count + channel) * params.run;
    let strip = first / params.strip + r % params.per_run;
    let column = strip * params.strip;
    let end = min(column + params.strip, first + params.run);
    let columns = end - min(max(column, first), end);
    let second = select(0u, 1u, column < first);
    return Place(select(strip * 2u + second, strip, params.strip == 1u), first, columns);
}

fn partial_of(channel: u32, t: u32) -> Partial {
    let chunk = t / params.per_chunk;
    let place = place_of(channel, t);
    let steps = params.step_count + select(0u, 1u, place.run < params.tail);
    let begin = chunk * params.chunk;
    let count = (min(begin + params.chunk, steps) - min(begin, steps)) * place.columns;
    let index = params.partials + chunk * params.width + place.index;
    return Partial(index, place.columns, Count(count * params.weight));
}

// Who merges: GROUP lanes share a result. Neighbouring lanes have neighbouring results, whose partials
// lie together, and the lanes of one result lie as tree_moments and tree_sums take them.
struct Share {
    result: u32,
    // The lane's first partial; the others follow GROUP apart.
    first: u32,
    // Whether it is the lane that gets the result.
    leads: bool,
}

fn share_of(index: u32, lane: u32) -> Share {
    let results = LANES / GROUP;
    return Share(index * results + lane % results, lane / results, lane < results);
}

fn partial_count() -> u32 {
    return params.chunk_count * params.per_chunk;
}
