
// The weights of four columns, which need not be neighbours.
fn weights_at(places: U) -> V {
    return V(
        load_weights(places.x),
        load_weights(places.y),
        load_weights(places.z),
        load_weights(places.w),
    );
}
