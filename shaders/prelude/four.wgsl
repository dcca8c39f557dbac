
// What an invocation has in flight: four vectors, and where they are. Where PAIR is 2, b and d lie behind
// a and c.
struct Four {
    a: V,
    b: V,
    c: V,
    d: V,
}

struct Places {
    a: u32,
    b: u32,
    c: u32,
    d: u32,
}

// What belongs to the vectors a and c, and to b and d: the same, where they are no pairs.
struct Both {
    a: V,
    b: V,
}

fn both(v: V) -> Both {
    return Both(v, v);
}

fn minus(v: Four, by: Both) -> Four {
    return Four(v.a - by.a, v.b - by.b, v.c - by.a, v.d - by.b);
}

fn times_both(v: Four, by: Both) -> Four {
    return Four(v.a * by.a, v.b * by.b, v.c * by.a, v.d * by.b);
}

fn scaled(v: Four, gain: Both, shift: Both) -> Four {
    return Four(
        v.a * gain.a + shift.a,
        v.b * gain.b + shift.b,
        v.c * gain.a + shift.a,
        v.d * gain.b + shift.b,
    );
}
