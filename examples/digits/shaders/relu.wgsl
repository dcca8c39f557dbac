// The gradient of the convolution at four neighbouring pixels: where relu stands right after it, it
// passes where the output is above 0.

fn passed(at: u32) -> vec4<f32> {
    let passes = output[at] > vec4<f32>(0.0);
    return select(vec4<f32>(0.0), doutput[at], passes | vec4<bool>(!RELU_FIRST));
}
