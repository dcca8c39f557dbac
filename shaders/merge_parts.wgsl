
// Merges the statistics of parts of a batch, each a row (mean, rest, variance, count) of `parts`;
// GROUP lanes share a channel. A part without values is not looked at, whatever it holds.
// Grid: channels / (LANES / GROUP). Reads: parts, or the scratch from params.partials; batches.
// Writes: saved, running_mean, running_var; or moments.

fn part_at(channel: u32, t: u32, plane: u32) -> f32 {
    let i = (t * 4u + plane) * params.channel_count + channel;
    if HAS_PARTS {
        return load_parts(i);
    }
    return load_scratch(params.partials + i);
}

// What the means are merged relative to: the first one that is finite and of a part with values.
fn shift_of_parts(channel: u32) -> f32 {
    for (var t = 0u; t < partial_count(); t = t + 1u) {
        let mean = part_at(channel, t, 0u);
        if part_at(channel, t, 3u) > 0.0 && is_finite(mean) {
            return mean;
        }
    }
    return 0.0;
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
    let channel = index * (LANES / GROUP) + lane / GROUP;
    let live = channel < params.channels_here;
    var m = Moments(0.0, 0.0, 0.0);
    var k = 0.0;
    if live {
        k = shift_of_parts(channel);
        for (var t = lane % GROUP; t < partial_count(); t = t + GROUP) {
            let count = part_at(channel, t, 3u);
            if count > 0.0 {
                let rest = part_at(channel, t, 1u);
                // An infinite mean has no remainder.
                let mean = opaque(part_at(channel, t, 0u) - k) + select(0.0, rest, is_finite(rest));
                m = merge(m, Moments(count, mean, part_at(channel, t, 2u)));
            }
        }
    }
    m = tree_moments(m, lane, GROUP);
    if live && lane % GROUP == 0u {
        let center = center_from(k, m);
        settle(channel, center, m);
        keep_moments(channel, center, m);
    }
}
