
fn weights_at(place: U) -> V {
    return load_weights(place);
}
