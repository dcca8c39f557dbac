
// Merges the statistics of parts of a batch, each four rows (mean, rest, variance, count) of `parts`,
// or of the scratch; GROUP lanes share a channel. A part without values is not looked at, whatever it
// holds.
// Grid: channels / (LANES / GROUP). Reads: parts, or the scratch from params.partials,
// [chunk][4][column]; batches.
// Writes: saved, running_mean, running_var; or moments; or a part in the scratch, from params.sums.

fn part_at(channel: u32, t: u32, plane: u32) -> f32 {
    let chunk = t / params.per_chunk;
    let i = (chunk * 4u + plane) * params.width + place_of(channel, t).index;
    if HAS_PARTS {
        return load_parts(i);
    }
    return load_scratch(params.partials + i);
}

var<workgroup> tree_first: array<u32, LANES>;

// The least number of the GROUP lanes that share a result, in all of them.
fn first_of(own: u32, lane: u32) -> u32 {
    var first = own;
    for (var distance = LANES / GROUP; distance < LANES; distance = distance * 2u) {
        tree_first[lane] = first;
        workgroupBarrier();
        if lane % (distance * 2u) < LANES / GROUP {
            first = min(first, tree_first[lane + distance]);
        }
        workgroupBarrier();
    }
    tree_first[lane] = first;
    workgroupBarrier();
    return tree_first[lane % (LANES / GROUP)];
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
    let share = share_of(index, lane);
    let channel = share.result;
    let live = channel < params.channels_here;
    // What the means are merged relative to: the first one that is finite and of a part with values.
    var own = partial_count();
    if live {
        for (var t = share.first; t < own; t = t + GROUP) {
            if part_at(channel, t, 3u) > 0.0 && is_finite(part_at(channel, t, 0u)) {
                own = t;
            }
        }
    }
    let first = first_of(own, lane);
    var m = Moments(0.0, 0.0, 0.0);
    var k = 0.0;
    if live {
        if first < partial_count() {
            k = part_at(channel, first, 0u);
        }
        for (var t = share.first; t < partial_count(); t = t + GROUP) {
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
    if live && share.leads {
        let center = center_from(k, m);
        settle(channel, center, m);
        keep_moments(channel, center, m);
        if !HAS_SAVED && !HAS_MOMENTS {
            // Of a window: a part itself.
            let at = params.sums + params.first_channel + channel;
            keep_part(at, params.channel_count, center, m);
        }
    }
}
