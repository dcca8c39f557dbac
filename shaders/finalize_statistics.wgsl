
// Merges the partial statistics of each channel; GROUP lanes share a channel.
// Grid: channels / (LANES / GROUP). Reads: scratch, x (for the shift), batches.
// Writes: saved, running_mean, running_var; or moments; or a part in the scratch, from params.sums.

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
    // Asked for first, as memory answers late.
    var k = 0.0;
    if live && share.leads {
        k = shift_of(channel);
    }
    var m = Moments(Count(0), 0.0, 0.0);
    if live {
        for (var t = share.first; t < partial_count(); t = t + GROUP) {
            let p = partial_of(channel, t);
            if p.columns > 0u {
                let mean = load_scratch(p.index);
                m = merge(m, Moments(p.count, mean, load_scratch(params.plane + p.index)));
            }
        }
    }
    m = tree_moments(m, lane, GROUP);
    if live && share.leads {
        let center = center_from(k, m);
        settle(channel, center, m);
        keep_moments(channel, center, m);
        if !HAS_SAVED && !HAS_MOMENTS {
            // Of a window: a part, which merge_parts merges.
            let at = params.sums + params.first_channel + channel;
            keep_part(at, params.channel_count, center, m);
        }
    }
}
