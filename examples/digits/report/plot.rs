//! Plots as SVG text: panels of lines, bands and bars, with axes, and a legend above the data.
//!
//! What is not a finite number is never drawn: a line has a gap there. Text and axes have the colour
//! of the page around them.

/// Told apart by the colour-blind, and 3:1 or more against the light and the dark page.
pub const BLUE: &str = "#1f7fc4";
pub const VERMILLION: &str = "#d55e00";
pub const GREEN: &str = "#009e73";
pub const GREY: &str = "#808080";
/// Of the page, and of a plot alone in its file: `:root` is the one or the other.
pub const PAGE_COLORS: &str = ":root{color-scheme:light dark;color:#1c1c1c;background:#fff}\
     @media(prefers-color-scheme:dark){:root{color:#e8e8e8;background:#16181c}}";

/// So few units that letters of 13 are readable on a phone.
const WIDTH: f64 = 420.0;
/// Of a letter, rather too wide than too narrow.
const LETTER: f64 = 7.2;
const LINE: f64 = 18.0;

/// A picture of its own.
pub struct Plot {
    pub title: &'static str,
    /// One sentence: what to look for.
    pub caption: String,
    pub legend: Vec<(String, Ink)>,
    pub columns: usize,
    /// Of a panel's axes.
    pub height: f64,
    pub panels: Vec<Panel>,
}

/// A pair of axes and what is drawn on them.
pub struct Panel {
    pub title: String,
    /// A second line of the title.
    pub note: String,
    pub x: Axis,
    pub y: Axis,
    pub marks: Vec<Mark>,
}

/// A way to draw, and its colour.
#[derive(Clone, Copy)]
pub enum Ink {
    Solid(&'static str),
    Dashed(&'static str),
    Thin(&'static str),
    /// Only in legends: a bar, a band, or lines of every kind.
    Block(&'static str),
}

pub enum Mark {
    /// (x, y).
    Line(Vec<(f64, f64)>, Ink),
    /// (x, low, high).
    Band(Vec<(f64, f64, f64)>, &'static str),
    /// From x to x, and from the bottom to y. One that leaves the axis is cut there.
    Bar([f64; 2], f64, &'static str),
    /// Centred above (x, y).
    Label(f64, f64, String),
}

/// A range, and the values that are named on it.
pub struct Axis {
    pub name: String,
    pub low: f64,
    pub high: f64,
    pub log: bool,
    pub ticks: Vec<(f64, String)>,
}

impl Axis {
    /// From tick to tick around all `values` that can be drawn, with about `count` steps.
    pub fn linear(name: &str, values: impl IntoIterator<Item = f64>, count: usize) -> Self {
        let (mut low, mut high) = range(values).unwrap_or((0.0, 1.0));
        if high - low <= 1e-9 * high.abs().max(low.abs()) {
            let room = if high == 0.0 { 1.0 } else { 0.1 * high.abs() };
            (low, high) = (low - room, high + room);
        }
        let step = step((high - low) / count as f64);
        let [first, last] = [(low / step + 1e-9).floor(), (high / step - 1e-9).ceil()];
        let tick =
            |i| (step * (first + f64::from(i)), tick_label(step * (first + f64::from(i)), step));
        let ticks = (0..=(last - first) as u32).map(tick).collect();
        Self { name: name.into(), low: step * first, high: step * last, log: false, ticks }
    }

    /// The same for positive values, from power of ten to power of ten.
    pub fn log(name: &str, values: impl IntoIterator<Item = f64>, count: usize) -> Self {
        let positive = values.into_iter().filter(|&value| value > 0.0);
        let (low, high) = range(positive).unwrap_or((0.1, 1.0));
        let first = low.log10().floor() as i32;
        let decades = (high.log10().ceil() as i32 - first).max(1) as usize;
        let every = decades.div_ceil(count);
        let last = first + (decades.div_ceil(every) * every) as i32;
        let powers = (first..=last).step_by(every).map(|power| 10f64.powi(power));
        let ticks = powers.map(|power| (power, tick_label(power, power))).collect();
        Self { name: name.into(), low: 10f64.powi(first), high: 10f64.powi(last), log: true, ticks }
    }

    /// Epochs `first..=last`, whole.
    pub fn epochs(first: usize, last: usize, count: usize) -> Self {
        let last = last.max(first);
        let every = step((last - first) as f64 / count as f64).max(1.0) as usize;
        // Both ends have a tick; one too near to them would touch theirs.
        let apart = |epoch: &usize| 2 * (last - epoch).min(epoch - first) >= every;
        let inner = (first + 1..last).filter(|epoch| epoch % every == 0).filter(apart);
        let ends = if first == last { vec![first] } else { vec![first, last] };
        let tick = |epoch: usize| (epoch as f64, epoch.to_string());
        let ticks = ends.into_iter().chain(inner).map(tick).collect();
        let room = if first == last { 0.5 } else { 0.0 };
        let [low, high] = [first as f64 - room, last as f64 + room];
        Self { name: "epoch".into(), low, high, log: false, ticks }
    }

    /// Category `i` takes `i..i + 1`.
    pub fn categories(name: &str, labels: &[&str]) -> Self {
        let count = labels.len().max(1);
        let room = ((WIDTH - 70.0) / count as f64 / LETTER) as usize;
        let short = |label: &str| match label.chars().count() {
            long if long > room => label.chars().take(room.max(1) - 1).chain(['…']).collect(),
            _ => label.to_string(),
        };
        let tick = |(i, label): (usize, &&str)| (i as f64 + 0.5, short(label));
        let ticks = labels.iter().enumerate().map(tick).collect();
        Self { name: name.into(), low: 0.0, high: count as f64, log: false, ticks }
    }

    fn holds(&self, value: f64) -> bool {
        drawable(value) && (!self.log || value > 0.0)
    }

    fn place(&self, value: f64, start: f64, end: f64) -> f64 {
        let on = |value: f64| if self.log { value.log10() } else { value };
        let part = (on(value) - on(self.low)) / (on(self.high) - on(self.low));
        start + part.clamp(0.0, 1.0) * (end - start)
    }
}

/// Finite, and so far from overflow that differences are finite too.
pub fn drawable(value: f64) -> bool {
    value.abs() < 1e100
}

/// The smallest and the largest of what can be drawn.
pub fn range(values: impl IntoIterator<Item = f64>) -> Option<(f64, f64)> {
    values.into_iter().filter(|&value| drawable(value)).fold(None, |range, value| {
        let (low, high) = range.unwrap_or((value, value));
        Some((value.min(low), value.max(high)))
    })
}

/// 1, 2 or 5 times a power of ten, `least` or more.
fn step(least: f64) -> f64 {
    let power = 10f64.powf(least.max(1e-300).log10().floor());
    let steps = [1.0, 2.0, 5.0].map(|factor| factor * power);
    steps.into_iter().find(|&step| step >= 0.999 * least).unwrap_or(10.0 * power)
}

fn tick_label(tick: f64, step: f64) -> String {
    let decimals = (-step.log10() - 1e-9).ceil().max(0.0);
    let text = if tick.abs() < 1e-9 * step {
        "0".into()
    } else if tick.abs() >= 1e5 || decimals > 3.0 {
        let digits = (tick.abs().log10() + 1e-9).floor() - (step.log10() + 1e-9).floor();
        format!("{tick:.*e}", digits.clamp(0.0, 6.0) as usize)
    } else {
        format!("{tick:.*}", decimals as usize)
    };
    text.replace('-', "−")
}

/// Three digits of it.
pub fn three_digits(value: f64) -> String {
    let rounded = format!("{value:.2e}");
    let text = match rounded.split_once('e').and_then(|(_, power)| power.parse::<i32>().ok()) {
        None => "not finite".into(),
        Some(_) if value == 0.0 => "0".into(),
        Some(power @ -4..5) => format!("{value:.*}", (2 - power).max(0) as usize),
        Some(_) => rounded,
    };
    text.replace('-', "−")
}

/// For element content and attributes. What XML cannot hold becomes U+FFFD.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            '\t' | '\n' | '\r' => escaped.push(c),
            '\0'..' ' | '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            _ => escaped.push(c),
        }
    }
    escaped
}

impl Plot {
    /// An `svg` element.
    pub fn svg(&self) -> String {
        let mut body =
            text(WIDTH / 2.0, LINE, "middle", "font-size='15' font-weight='600'", self.title);
        let mut top = self.legend_into(&mut body);
        let columns = self.columns.max(1);
        let cell = WIDTH / columns as f64;
        for row in self.panels.chunks(columns) {
            let titled = row.iter().any(|panel| !panel.title.is_empty());
            let noted = row.iter().any(|panel| !panel.note.is_empty());
            let head = top + 6.0 + LINE * f64::from(u8::from(titled) + u8::from(noted));
            for (column, panel) in row.iter().enumerate() {
                // Panels above each other start at the same place.
                let above = self.panels.iter().skip(column).step_by(columns);
                let frame = Frame {
                    left: cell * column as f64 + above.map(Panel::label_room).fold(0.0, f64::max),
                    right: cell * (column + 1) as f64 - 12.0,
                    top: head,
                    bottom: head + self.height,
                };
                body += &panel.svg(&frame, top);
            }
            top = head + self.height + 2.0 * LINE + 12.0;
        }
        format!(
            "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {top:.0}' role='img' \
             font-family='system-ui, sans-serif' font-size='13' fill='currentColor'>\
             <title>{}</title><desc>{}</desc>\n{body}</svg>\n",
            escape(self.title),
            escape(&self.caption)
        )
    }

    /// A file of its own: it brings the colours that a page would give.
    pub fn file(&self) -> String {
        self.svg().replacen('>', &format!("><style>{PAGE_COLORS}</style>"), 1)
    }

    /// In as many lines as it needs. Returns where it ends.
    fn legend_into(&self, body: &mut String) -> f64 {
        let (mut x, mut y) = (12.0, LINE + 20.0);
        for (label, ink) in &self.legend {
            let width = 40.0 + LETTER * label.chars().count() as f64;
            if x > 12.0 && x + width > WIDTH {
                (x, y) = (12.0, y + LINE);
            }
            *body += &drawn(&format!("M{x:.1} {:.1}h22", y - 4.5), *ink);
            *body += &text(x + 28.0, y, "start", "", label);
            x += width;
        }
        y + 14.0
    }
}

/// Where a panel's axes are.
struct Frame {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

impl Panel {
    pub fn new(title: &str, x: Axis, y: Axis, marks: Vec<Mark>) -> Self {
        Self { title: title.into(), note: String::new(), x, y, marks }
    }

    /// For the names of the y axis and its ticks.
    fn label_room(&self) -> f64 {
        let letters = self.y.ticks.iter().map(|(_, label)| label.chars().count()).max();
        28.0 + LETTER * letters.unwrap_or(0) as f64
    }

    fn svg(&self, frame: &Frame, head: f64) -> String {
        let Frame { left, right, top, bottom } = *frame;
        let [middle, half] = [(left + right) / 2.0, (top + bottom) / 2.0];
        let mut body = text(middle, head + LINE - 4.0, "middle", "font-weight='600'", &self.title);
        body += &text(middle, head + 2.0 * LINE - 4.0, "middle", "", &self.note);
        let rule = |d, opacity| {
            format!("<path d='{d}' stroke='currentColor' stroke-opacity='{opacity}'/>")
        };
        for (value, label) in &self.y.ticks {
            let y = self.y.place(*value, bottom, top);
            body += &rule(format!("M{left:.1} {y:.1}H{right:.1}"), 0.15);
            body += &text(left - 6.0, y + 4.5, "end", "", label);
        }
        for (value, label) in &self.x.ticks {
            let x = self.x.place(*value, left, right);
            body += &rule(format!("M{x:.1} {bottom:.1}v4"), 0.6);
            body += &text(x, bottom + LINE, "middle", "", label);
        }
        body += &rule(format!("M{left:.1} {bottom:.1}H{right:.1}"), 0.6);
        body += &text(middle, bottom + 2.0 * LINE, "middle", "", &self.x.name);
        let x = left - self.label_room() + 14.0;
        let turned = format!("transform='rotate(-90 {x:.1} {half:.1})'");
        body += &text(x, half, "middle", &turned, &self.y.name);
        let drawn: String = self.marks.iter().map(|mark| self.mark(mark, frame)).collect();
        if drawn.is_empty() {
            body += &text(middle, half, "middle", "font-style='italic'", "nothing to draw");
        }
        body + &drawn
    }

    /// Empty when there is nothing that can be drawn.
    fn mark(&self, mark: &Mark, frame: &Frame) -> String {
        let x = |value| self.x.place(value, frame.left, frame.right);
        let y = |value| self.y.place(value, frame.bottom, frame.top);
        let holds = |at, value| self.x.holds(at) && self.y.holds(value);
        let at = |(at, value)| format!("{:.1} {:.1}", x(at), y(value));
        match mark {
            Mark::Line(points, ink) => {
                let mut d = String::new();
                for run in points.split(|&(at, value)| !holds(at, value)) {
                    let places: Vec<String> = run.iter().copied().map(at).collect();
                    if let Some(first) = places.first() {
                        // A point alone is a line of no length, which its round end makes a dot.
                        d += &format!("M{first}h0L{}", places.join(" "));
                    }
                }
                if d.is_empty() { d } else { self::drawn(&d, *ink) }
            }
            Mark::Band(points, color) => {
                let runs = points.split(|&(at, low, high)| !holds(at, low) || !holds(at, high));
                let polygon = |run: &[(f64, f64, f64)]| {
                    let low = run.iter().map(|point| at((point.0, point.1)));
                    let high = run.iter().rev().map(|point| at((point.0, point.2)));
                    let corners: Vec<String> = low.chain(high).collect();
                    let corners = corners.join(" ");
                    format!("<polygon points='{corners}' fill='{color}' fill-opacity='0.25'/>\n")
                };
                runs.filter(|run| !run.is_empty()).map(polygon).collect()
            }
            Mark::Bar([from, to], top, color) if holds(*from, *top) => {
                let [x, width] = [x(*from), x(*to) - x(*from)];
                let [y, height] = [y(*top), frame.bottom - y(*top)];
                format!(
                    "<path d='M{x:.1} {y:.1}h{width:.1}v{height:.1}h-{width:.1}z' fill='{color}'/>\n"
                )
            }
            Mark::Label(at, value, label) if holds(*at, *value) => {
                text(x(*at), y(*value) - 4.0, "middle", "font-size='12'", label)
            }
            Mark::Bar(..) | Mark::Label(..) => String::new(),
        }
    }
}

fn text(x: f64, y: f64, anchor: &str, style: &str, text: &str) -> String {
    let text = escape(text);
    if text.is_empty() {
        return text;
    }
    format!("<text x='{x:.1}' y='{y:.1}' text-anchor='{anchor}' {style}>{text}</text>\n")
}

fn drawn(d: &str, ink: Ink) -> String {
    let (color, style) = match ink {
        Ink::Solid(color) => (color, "stroke-width='2.5' stroke-linecap='round'"),
        Ink::Dashed(color) => (color, "stroke-width='2' stroke-dasharray='5 4'"),
        Ink::Thin(color) => (color, "stroke-opacity='0.6' stroke-linecap='round'"),
        Ink::Block(color) => (color, "stroke-width='10'"),
    };
    format!("<path d='{d}' fill='none' stroke='{color}' stroke-linejoin='round' {style}/>\n")
}
