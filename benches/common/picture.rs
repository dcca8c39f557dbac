//! Curves on logarithmic axes as a PNG: a canvas, a font of what the axes say, and a file.

use std::io::{self, Write};

use flate2::Compression;
use flate2::write::ZlibEncoder;

/// Red, green, blue.
pub type Color = [u8; 3];

pub const BLUE: Color = [31, 127, 196];
pub const VERMILLION: Color = [213, 94, 0];
pub const GREEN: Color = [0, 158, 115];
pub const GREY: Color = [128, 128, 128];
const INK: Color = [40, 40, 40];
const RULE: Color = [225, 225, 225];

const PANEL: [usize; 2] = [620, 560];
const HEAD: usize = 90;
/// Around a panel's axes: left, top, right, bottom.
const ROOM: [usize; 4] = [84, 46, 20, 74];
const SCALE: usize = 2;
/// A letter is 5 wide and 7 high, and its neighbour one further.
const ADVANCE: usize = 6 * SCALE;

/// Curves side by side, with one legend.
pub struct Picture {
    pub title: String,
    pub legend: Vec<(String, Color, bool)>,
    pub y: &'static str,
    pub panels: Vec<Panel>,
}

/// Both axes are logarithmic.
pub struct Panel {
    pub title: &'static str,
    pub x: &'static str,
    pub curves: Vec<Curve>,
}

pub struct Curve {
    pub points: Vec<(f64, f64)>,
    pub color: Color,
    pub dashed: bool,
}

impl Picture {
    pub fn png(&self) -> io::Result<Vec<u8>> {
        let mut canvas = Canvas::new(PANEL[0] * self.panels.len().max(1), HEAD + PANEL[1]);
        canvas.text(ROOM[0], 14, &self.title, INK);
        let mut x = ROOM[0];
        for (label, color, dashed) in &self.legend {
            let y = 58.0;
            canvas.line([x as f64, y], [x as f64 + 40.0, y], *color, *dashed, &mut 0.0);
            canvas.text(x + 50, 51, label, INK);
            x += 80 + ADVANCE * label.chars().count();
        }
        let values = || self.panels.iter().flat_map(|panel| &panel.curves).flat_map(|c| &c.points);
        let y = extent(values().map(|point| point.1));
        for (i, panel) in self.panels.iter().enumerate() {
            panel.draw(&mut canvas, PANEL[0] * i, y, if i == 0 { self.y } else { "" });
        }
        canvas.png()
    }
}

/// The smallest and the largest value, as powers of ten.
fn extent(values: impl Iterator<Item = f64>) -> [f64; 2] {
    let logs = values.filter(|value| *value > 0.0 && value.is_finite()).map(f64::log10);
    let [low, high] = logs.fold([f64::MAX, f64::MIN], |[l, h], v| [v.min(l), v.max(h)]);
    if low > high { [0.0, 1.0] } else { [low - 0.05, high.max(low + 0.3) + 0.05] }
}

impl Panel {
    fn draw(&self, canvas: &mut Canvas, left: usize, y: [f64; 2], name: &str) {
        let x = extent(self.curves.iter().flat_map(|curve| &curve.points).map(|point| point.0));
        let begin = [(left + ROOM[0]) as f64, (HEAD + ROOM[1]) as f64];
        let end = [(left + PANEL[0] - ROOM[2]) as f64, (HEAD + PANEL[1] - ROOM[3]) as f64];
        let place = |value: f64, [low, high]: [f64; 2], from: f64, to: f64| {
            from + (value.log10() - low) / (high - low) * (to - from)
        };
        let at =
            |(a, b): (f64, f64)| [place(a, x, begin[0], end[0]), place(b, y, end[1], begin[1])];
        for exponent in (-12..13).filter(|e| (x[0]..=x[1]).contains(&f64::from(*e))) {
            let [tick, _] = at((10f64.powi(exponent), 1.0));
            canvas.line([tick, begin[1]], [tick, end[1]], RULE, false, &mut 0.0);
            canvas.power(tick as usize - ADVANCE, end[1] as usize + 18, exponent);
        }
        let steps = (-12..13).flat_map(|e| [1.0, 2.0, 5.0].map(|step| step * 10f64.powi(e)));
        for value in steps.filter(|value| (y[0]..=y[1]).contains(&value.log10())) {
            let [_, tick] = at((1.0, value));
            canvas.line([begin[0], tick], [end[0], tick], RULE, false, &mut 0.0);
            // No more digits than a step of 1, 2 or 5 has.
            let label = ((value * 1e12).round() / 1e12).to_string();
            let wide = ADVANCE * label.len();
            canvas.text(
                (begin[0] as usize - 8).saturating_sub(wide),
                tick as usize - 7,
                &label,
                INK,
            );
        }
        canvas.text(begin[0] as usize, HEAD + 14, self.title, INK);
        let middle = (begin[0] + end[0]) as usize / 2 - ADVANCE * self.x.chars().count() / 2;
        canvas.text(middle, end[1] as usize + 50, self.x, INK);
        let down = (begin[1] + end[1]) as usize / 2 + ADVANCE * name.chars().count() / 2;
        canvas.text_upwards(left + 6, down, name, INK);
        for curve in &self.curves {
            // How far the dashes are.
            let mut gone = 0.0;
            for pair in curve.points.windows(2) {
                canvas.line(at(pair[0]), at(pair[1]), curve.color, curve.dashed, &mut gone);
            }
            for &point in &curve.points {
                canvas.dot(at(point), 3.0, curve.color);
            }
        }
    }
}

struct Canvas {
    width: usize,
    height: usize,
    pixels: Vec<Color>,
}

impl Canvas {
    fn new(width: usize, height: usize) -> Self {
        Self { width, height, pixels: vec![[255; 3]; width * height] }
    }

    /// Covers a part of a pixel, 0 to 1.
    fn blend(&mut self, x: usize, y: usize, color: Color, part: f64) {
        if x < self.width && y < self.height {
            let pixel = &mut self.pixels[y * self.width + x];
            for (old, new) in pixel.iter_mut().zip(color) {
                *old = (f64::from(*old) + part * (f64::from(new) - f64::from(*old))).round() as u8;
            }
        }
    }

    fn dot(&mut self, [x, y]: [f64; 2], radius: f64, color: Color) {
        let reach = radius.ceil() as i64 + 1;
        for (dy, dx) in (-reach..=reach).flat_map(|dy| (-reach..=reach).map(move |dx| (dy, dx))) {
            let [px, py] = [x.round() as i64 + dx, y.round() as i64 + dy];
            let distance = (px as f64 - x).hypot(py as f64 - y);
            let part = (radius + 0.5 - distance).clamp(0.0, 1.0);
            if part > 0.0 && px >= 0 && py >= 0 {
                self.blend(px as usize, py as usize, color, part);
            }
        }
    }

    /// Dots closer than their size, but for the gaps of a dashed one.
    fn line(&mut self, from: [f64; 2], to: [f64; 2], color: Color, dashed: bool, gone: &mut f64) {
        let [dx, dy] = [to[0] - from[0], to[1] - from[1]];
        let steps = (dx.hypot(dy) / 0.5).ceil().max(1.0);
        for i in 0..=steps as u32 {
            let part = f64::from(i) / steps;
            *gone += 0.5;
            if !dashed || *gone % 14.0 < 8.0 {
                self.dot([from[0] + part * dx, from[1] + part * dy], 0.9, color);
            }
        }
    }

    fn text(&mut self, x: usize, y: usize, text: &str, color: Color) {
        for (i, letter) in text.chars().enumerate() {
            self.letter(letter, |[a, b]| [x + ADVANCE * i + a, y + b], color);
        }
    }

    /// From `y` upwards, to be read from the right.
    fn text_upwards(&mut self, x: usize, y: usize, text: &str, color: Color) {
        for (i, letter) in text.chars().enumerate() {
            let place = |[a, b]: [usize; 2]| [x + b, y.saturating_sub(ADVANCE * i + a)];
            self.letter(letter, place, color);
        }
    }

    /// Ten to the power of `exponent`.
    fn power(&mut self, x: usize, y: usize, exponent: i32) {
        self.text(x, y, "10", INK);
        self.text(x + 2 * ADVANCE, y.saturating_sub(8), &exponent.to_string(), INK);
    }

    fn letter(&mut self, letter: char, place: impl Fn([usize; 2]) -> [usize; 2], color: Color) {
        // What the font does not have is a gap.
        let mut glyphs = FONT.lines().filter_map(|line| line.split_once(' '));
        let Some((_, rows)) = glyphs.find(|(name, _)| name.chars().eq([letter])) else { return };
        for (row, bits) in rows.split(' ').enumerate() {
            for (column, _) in bits.chars().enumerate().filter(|(_, bit)| *bit == '#') {
                for (a, b) in (0..SCALE).flat_map(|a| (0..SCALE).map(move |b| (a, b))) {
                    let [x, y] = place([SCALE * column + a, SCALE * row + b]);
                    self.blend(x, y, color, 1.0);
                }
            }
        }
    }

    fn png(&self) -> io::Result<Vec<u8>> {
        let mut rows = ZlibEncoder::new(Vec::new(), Compression::best());
        for row in self.pixels.chunks(self.width) {
            // Each row as it is.
            rows.write_all(&[0])?;
            rows.write_all(row.as_flattened())?;
        }
        let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
        let mut header = Vec::new();
        header.extend((self.width as u32).to_be_bytes());
        header.extend((self.height as u32).to_be_bytes());
        // Eight bits of red, green and blue; no interlacing.
        header.extend([8, 2, 0, 0, 0]);
        for (name, data) in [(b"IHDR", header), (b"IDAT", rows.finish()?), (b"IEND", Vec::new())] {
            let mut sum = flate2::Crc::new();
            sum.update(name);
            sum.update(&data);
            file.extend((data.len() as u32).to_be_bytes());
            file.extend(name);
            file.extend(data);
            file.extend(sum.sum().to_be_bytes());
        }
        Ok(file)
    }
}

const FONT: &str = "\
0 .###. #...# #..## #.#.# ##..# #...# .###.
1 ..#.. .##.. ..#.. ..#.. ..#.. ..#.. .###.
2 .###. #...# ....# ..##. .#... #.... #####
3 .###. #...# ....# ..##. ....# #...# .###.
4 ...#. ..##. .#.#. #..#. ##### ...#. ...#.
5 ##### #.... ####. ....# ....# #...# .###.
6 .###. #.... #.... ####. #...# #...# .###.
7 ##### ....# ...#. ..#.. ..#.. .#... .#...
8 .###. #...# #...# .###. #...# #...# .###.
9 .###. #...# #...# .#### ....# ....# .###.
a ..... ..... .###. ....# .#### #...# .####
b #.... #.... ####. #...# #...# #...# ####.
c ..... ..... .#### #.... #.... #.... .####
d ....# ....# .#### #...# #...# #...# .####
e ..... ..... .###. #...# ##### #.... .###.
f ..##. .#... ####. .#... .#... .#... .#...
g ..... ..... .#### #...# .#### ....# .###.
h #.... #.... ####. #...# #...# #...# #...#
i ..#.. ..... .##.. ..#.. ..#.. ..#.. .###.
j ...#. ..... ..##. ...#. ...#. #..#. .##..
k #.... #.... #..#. #.#.. ##... #.#.. #..#.
l .##.. ..#.. ..#.. ..#.. ..#.. ..#.. .###.
m ..... ..... ##.#. #.#.# #.#.# #.#.# #.#.#
n ..... ..... ####. #...# #...# #...# #...#
o ..... ..... .###. #...# #...# #...# .###.
p ..... ..... ####. #...# ####. #.... #....
q ..... ..... .#### #...# .#### ....# ....#
r ..... ..... #.##. ##... #.... #.... #....
s ..... ..... .#### #.... .###. ....# ####.
t .#... .#... ####. .#... .#... .#... ..##.
u ..... ..... #...# #...# #...# #...# .####
v ..... ..... #...# #...# #...# .#.#. ..#..
w ..... ..... #.#.# #.#.# #.#.# #.#.# .#.#.
x ..... ..... #...# .#.#. ..#.. .#.#. #...#
y ..... ..... #...# #...# .#### ....# .###.
z ..... ..... ##### ...#. ..#.. .#... #####
A .###. #...# #...# ##### #...# #...# #...#
B ####. #...# #...# ####. #...# #...# ####.
C .###. #...# #.... #.... #.... #...# .###.
D ####. #...# #...# #...# #...# #...# ####.
E ##### #.... #.... ####. #.... #.... #####
F ##### #.... #.... ####. #.... #.... #....
G .###. #...# #.... #.### #...# #...# .###.
H #...# #...# #...# ##### #...# #...# #...#
I .###. ..#.. ..#.. ..#.. ..#.. ..#.. .###.
J ..### ...#. ...#. ...#. ...#. #..#. .##..
K #...# #..#. #.#.. ##... #.#.. #..#. #...#
L #.... #.... #.... #.... #.... #.... #####
M #...# ##.## #.#.# #.#.# #...# #...# #...#
N #...# ##..# #.#.# #..## #...# #...# #...#
O .###. #...# #...# #...# #...# #...# .###.
P ####. #...# #...# ####. #.... #.... #....
Q .###. #...# #...# #...# #.#.# #..#. .##.#
R ####. #...# #...# ####. #.#.. #..#. #...#
S .#### #.... #.... .###. ....# ....# ####.
T ##### ..#.. ..#.. ..#.. ..#.. ..#.. ..#..
U #...# #...# #...# #...# #...# #...# .###.
V #...# #...# #...# #...# #...# .#.#. ..#..
W #...# #...# #...# #.#.# #.#.# ##.## #...#
X #...# #...# .#.#. ..#.. .#.#. #...# #...#
Y #...# #...# .#.#. ..#.. ..#.. ..#.. ..#..
Z ##### ....# ...#. ..#.. .#... #.... #####
- ..... ..... ..... ##### ..... ..... .....
+ ..... ..#.. ..#.. ##### ..#.. ..#.. .....
. ..... ..... ..... ..... ..... .##.. .##..
, ..... ..... ..... ..... .##.. ..#.. .#...
: ..... .##.. .##.. ..... .##.. .##.. .....
/ ....# ....# ...#. ..#.. .#... #.... #....
( ...#. ..#.. .#... .#... .#... ..#.. ...#.
) .#... ..#.. ...#. ...#. ...#. ..#.. .#...
[ .###. .#... .#... .#... .#... .#... .###.
] .###. ...#. ...#. ...#. ...#. ...#. .###.
= ..... ..... ##### ..... ##### ..... .....
";
