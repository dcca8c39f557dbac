
// Merges the sums of rows in group normalization, where a row is one channel of one sample: into
// those of its group, weighed by γ, or into dβ and, weighed by i, dγ of its channel. GROUP lanes
// share a result.
// Grid: groups or channels / (LANES / GROUP). Reads: scratch (the rows' sums), gamma or saved.
// Writes: dgamma and dbeta, or scratch (behind the rows' sums, two planes [group]).

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
    let result = share.result;
    let live = result < params.channel_count;
    let of_parameters = HAS_DGAMMA || HAS_DBETA;
    var s = Sums(0.0, 0.0);
    if live {
        for (var t = share.first; t < partial_count(); t = t + GROUP) {
            let row = partial_of(result, t).index;
            let at = params.sums + row;
            let own = Sums(load_scratch(at), load_scratch(at + params.plane));
            if of_parameters {
                let inv_std = load_saved(2u * params.group_count + group_of(row));
                s = Sums(s.dy + own.dy, s.dyx + own.dyx * inv_std);
            } else {
                let gamma = load_gamma(parameter_of(row));
                s = Sums(s.dy + own.dy * gamma, s.dyx + own.dyx * gamma);
            }
        }
    }
    s = tree_sums(s, lane, GROUP);
    if live && share.leads {
        if of_parameters {
            store_parameter_gradients(result, 1.0, s);
        } else {
            let at = params.sums + 2u * params.plane + result;
            store_scratch(at, s.dy);
            store_scratch(at + params.channel_count, s.dyx);
        }
    }
}
