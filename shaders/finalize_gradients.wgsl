
// Merges the partial sums of each channel; GROUP lanes share a channel. No partials (an empty
// batch) give zeros.
// Grid: channels / (LANES / GROUP). Reads: scratch, saved or running_var.
// Writes: dgamma, dbeta, sums, scratch (the merged sums, two planes [channel] from params.sums).

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
    var s = Sums(0.0, 0.0);
    if live {
        for (var t = share.first; t < partial_count(); t = t + GROUP) {
            let p = partial_of(channel, t);
            if p.columns > 0u {
                s.dy = s.dy + load_scratch(p.index);
                s.dyx = s.dyx + load_scratch(params.plane + p.index);
            }
        }
    }
    s = tree_sums(s, lane, GROUP);
    if live && share.leads {
        if WEIGHTED && HAS_SAVED && load_saved(3u * params.channel_count + channel) == 0.0 {
            // A batch without weight is empty.
            s = Sums(0.0, 0.0);
        }
        let at = sums_at(channel);
        store_scratch(at, s.dy);
        store_scratch(at + params.sums_plane, s.dyx);
        store_parameter_gradients(channel, center_of(channel).inv_std, s);
    }
}
