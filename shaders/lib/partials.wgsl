
// Where the t-th partial of a channel lies, and how many values it is made of.

struct Partial {
    index: u32,
    count: Count,
}

fn column_of(channel: u32, t: u32) -> u32 {
    let r = t % params.per_chunk;
    return (r / params.run * params.channel_count + channel) * params.run + r % params.run;
}

fn partial_of(channel: u32, t: u32) -> Partial {
    let chunk = t / params.per_chunk;
    let column = column_of(channel, t);
    let steps = params.step_count + select(0u, 1u, column < params.tail);
    let begin = chunk * params.chunk;
    let count = min(begin + params.chunk, steps) - min(begin, steps);
    return Partial(params.partials + chunk * params.width + column, Count(count * params.weight));
}

fn partial_count() -> u32 {
    return params.chunk_count * params.per_chunk;
}
