
// Back into two words.
//
// The maximum with 0 changes nothing, but no compiler knows. LLVM would take the last steps apart and
// do them lane by lane, which costs lavapipe half of its time.
fn pack(v: V) -> vec2<u32> {
    let h = narrow(v);
    return max((h.xz >> vec2<u32>(16u)) | h.yw, vec2<u32>(params.zero));
}
