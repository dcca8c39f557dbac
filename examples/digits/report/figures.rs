//! What each plot of a report shows.

use super::plot::{
    Axis, BLUE, GREEN, GREY, Ink, Mark, Panel, Plot, VERMILLION, range, three_digits,
};
use super::tables::{median, quantile};
use super::{Curve, Distribution, Lag, Point, Report, Shifted, Trace};

const BINS: usize = 30;

/// Every plot, by the name of its file.
pub fn all(report: &Report) -> Vec<(&'static str, Plot)> {
    vec![
        ("loss", loss(&report.curves)),
        ("accuracy", accuracy(&report.curves, report.target)),
        ("distributions", distributions(&report.distributions)),
        ("parameters", parameters(&report.parameters)),
        ("statistics", statistics(&report.statistics)),
        ("shifts", shifts(&report.shifts)),
    ]
}

fn color(index: usize) -> &'static str {
    [BLUE, VERMILLION, GREEN][index % 3]
}

fn curve_legend(curves: &[Curve], others: &[(&str, Ink)]) -> Vec<(String, Ink)> {
    let named = |(i, curve): (usize, &Curve)| {
        let told = curve.trouble().map(|trouble| format!(" ({trouble})")).unwrap_or_default();
        (format!("{}{told}", curve.name), Ink::Block(color(i)))
    };
    curves.iter().enumerate().map(named).chain(legend(others)).collect()
}

fn legend(entries: &[(&str, Ink)]) -> Vec<(String, Ink)> {
    entries.iter().map(|&(label, ink)| (label.to_string(), ink)).collect()
}

/// Epoch 1 and on.
fn over_epochs(curve: &Curve, value: fn(&Point) -> f64) -> Vec<(f64, f64)> {
    curve.epochs.iter().enumerate().map(|(i, point)| ((i + 1) as f64, value(point))).collect()
}

fn curve_axis(curves: &[Curve]) -> Axis {
    Axis::epochs(1, curves.iter().map(|curve| curve.epochs.len()).max().unwrap_or(1), 8)
}

fn loss(curves: &[Curve]) -> Plot {
    let mut marks = Vec::new();
    for (i, curve) in curves.iter().enumerate() {
        marks.push(Mark::Line(over_epochs(curve, |p| p.train_loss), Ink::Dashed(color(i))));
        marks.push(Mark::Line(over_epochs(curve, |p| p.test_loss), Ink::Solid(color(i))));
    }
    let wide = range(values(&marks)).is_some_and(|(low, high)| low > 0.0 && high > 10.0 * low);
    let name = "mean loss per image, nats";
    let y = if wide {
        Axis::log(name, values(&marks), 5)
    } else {
        Axis::linear(name, values(&marks), 5)
    };
    let kinds = [("test", Ink::Solid(GREY)), ("training", Ink::Dashed(GREY))];
    Plot {
        title: "Loss over the epochs",
        caption: "Which falls sooner and lower; a test loss that rises while the training loss \
                  still falls is overfitting, and a line ends where the loss stops being finite."
            .into(),
        legend: curve_legend(curves, &kinds),
        columns: 1,
        height: 230.0,
        panels: vec![Panel::new("", curve_axis(curves), y, marks)],
    }
}

fn accuracy(curves: &[Curve], target: f64) -> Plot {
    let x = curve_axis(curves);
    let aim = vec![(x.low, 100.0 * target), (x.high, 100.0 * target)];
    let mut marks = vec![Mark::Line(aim, Ink::Dashed(GREY))];
    for (i, curve) in curves.iter().enumerate() {
        let points = over_epochs(curve, |point| 100.0 * point.accuracy);
        marks.push(Mark::Line(points, Ink::Solid(color(i))));
    }
    let y = Axis::linear("right answers, %", values(&marks), 5);
    Plot {
        title: "Accuracy on the test images",
        caption: "How many epochs each needs to reach the dashed target, and where each ends."
            .into(),
        legend: curve_legend(curves, &[("target", Ink::Dashed(GREY))]),
        columns: 1,
        height: 230.0,
        panels: vec![Panel::new("", x, y, marks)],
    }
}

/// From the first bin to the last, all of the same width.
type Bins = [f64; 2];

/// Around all but one value in a thousand at each end.
fn bins(mut values: Vec<f64>) -> Bins {
    values.sort_by(f64::total_cmp);
    match [0.001, 0.999].map(|part| quantile(&values, part)) {
        [low, high] if low < high => [low, high],
        [value, _] if value.is_finite() => [value - 0.5, value + 0.5],
        _ => [-0.5, 0.5],
    }
}

/// In percent of all; the end bins hold what lies beyond them.
fn shares(values: &[f64], [low, high]: Bins) -> [f64; BINS] {
    let mut shares = [0.0; BINS];
    for value in values {
        let bin = (value - low) / (high - low) * BINS as f64;
        shares[(bin.max(0.0) as usize).min(BINS - 1)] += 100.0 / values.len() as f64;
    }
    shares
}

fn finite(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).filter(|value| value.is_finite()).collect()
}

fn distributions(distributions: &[Distribution]) -> Plot {
    let before = distributions.iter().flat_map(|d| finite(&d.before));
    let after = distributions.iter().flat_map(|d| finite(&d.after));
    let [mut of_before, mut of_after] =
        [bins(before.clone().collect()), bins(after.clone().collect())];
    let wider = (of_before[1] - of_before[0]) / (of_after[1] - of_after[0]);
    let shared = (0.125..8.0).contains(&wider);
    if shared {
        of_before = bins(before.chain(after).collect());
        of_after = of_before;
    }
    let panels = distributions.iter().flat_map(|d| {
        [
            histogram(d, "before", &d.before, of_before, GREY),
            histogram(d, "after", &d.after, of_after, BLUE),
        ]
    });
    Plot {
        title: "A channel before and after normalization",
        caption: format!(
            "How far centre and width move between epochs before, and whether after they stay where \
             β and γ put them ({} share their bins, the end bins hold what lies beyond, a bar cut \
             at the top says its share).",
            if shared { "all" } else { "those of a column" }
        ),
        legend: legend(&[("before", Ink::Block(GREY)), ("after", Ink::Block(BLUE))]),
        columns: 2,
        height: 130.0,
        panels: or_empty(panels.collect(), "value", "share of values, %"),
    }
}

fn histogram(of: &Distribution, side: &str, all: &[f32], bins: Bins, color: &'static str) -> Panel {
    let values = finite(all);
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let deviation = (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / n).sqrt();
    let note = match all.len() - values.len() {
        _ if values.is_empty() => "no finite value".into(),
        0 => format!("mean {}, s.d. {}", three_digits(mean), three_digits(deviation)),
        lost => format!("{lost} of {} not finite", all.len()),
    };
    let shares = shares(&values, bins);
    // One bin of zeros, as ReLU leaves them, must not flatten the others.
    let mut sorted = shares;
    sorted.sort_by(f64::total_cmp);
    let top = match sorted {
        [.., 0.0] => 100.0,
        [.., second, first] if second > 0.0 && first > 3.0 * second => 1.8 * second,
        [.., first] => first,
    };
    let y = Axis::linear("share of values, %", [0.0, top], 3);
    let edge = |i: usize| bins[0] + (bins[1] - bins[0]) * i as f64 / BINS as f64;
    let mut marks = Vec::new();
    for (i, share) in shares.into_iter().enumerate().filter(|(_, share)| *share > 0.0) {
        marks.push(Mark::Bar([edge(i), edge(i + 1)], share, color));
        if share > y.high {
            // Beside the bar; the others are lower than this.
            let beside = if i + 5 < BINS { i + 4 } else { i - 3 };
            marks.push(Mark::Label(edge(beside), 0.8 * y.high, format!("{share:.0} %")));
        }
    }
    let name = format!("value of channel {}", of.channel);
    let mut x = Axis { low: bins[0], high: bins[1], ..Axis::linear(&name, bins, 3) };
    x.ticks.retain(|(tick, _)| (bins[0]..=bins[1]).contains(tick));
    Panel { note, ..Panel::new(&format!("epoch {}, {side}", of.epoch), x, y, marks) }
}

/// The panels, or one that says that there is nothing.
fn or_empty(panels: Vec<Panel>, x: &str, y: &str) -> Vec<Panel> {
    let axis = |name| Axis { ticks: Vec::new(), ..Axis::linear(name, [], 1) };
    let empty = || Panel::new("", axis(x), axis(y), Vec::new());
    if panels.is_empty() { vec![empty()] } else { panels }
}

/// The values of channel `c` from epoch 0 on; NaN where there is none.
fn channel(per_epoch: &[Vec<f32>], c: usize) -> Vec<(f64, f64)> {
    let value = |values: &Vec<f32>| values.get(c).map_or(f64::NAN, |&value| f64::from(value));
    per_epoch.iter().enumerate().map(|(epoch, values)| (epoch as f64, value(values))).collect()
}

fn channels(per_epoch: &[Vec<f32>]) -> std::ops::Range<usize> {
    0..per_epoch.iter().map(Vec::len).max().unwrap_or(0)
}

/// What the lines among the marks need of a y axis.
fn values(marks: &[Mark]) -> Vec<f64> {
    let points = marks.iter().flat_map(|mark| match mark {
        Mark::Line(points, _) => points.as_slice(),
        _ => &[],
    });
    points.map(|point| point.1).collect()
}

fn parameters(traces: &[Trace]) -> Plot {
    let panel = |Trace { name, label, per_epoch }: &Trace| {
        let thin = |c| Mark::Line(channel(per_epoch, c), Ink::Thin(BLUE));
        let mut marks: Vec<Mark> = channels(per_epoch).map(thin).collect();
        let middle = |(epoch, values): (usize, &Vec<f32>)| (epoch as f64, median(finite(values)));
        let medians = per_epoch.iter().enumerate().map(middle).collect();
        marks.push(Mark::Line(medians, Ink::Solid(VERMILLION)));
        let x = Axis::epochs(0, per_epoch.len().saturating_sub(1), 8);
        Panel::new(name, x, Axis::linear(label, values(&marks), 4), marks)
    };
    Plot {
        title: "Learned scale and shift",
        caption: "How far each channel leaves its start (epoch 0) for a scale and a shift of its \
                  own, and by the median whether they move together."
            .into(),
        legend: legend(&[("one channel", Ink::Thin(BLUE)), ("median", Ink::Solid(VERMILLION))]),
        columns: 1,
        height: 150.0,
        panels: or_empty(traces.iter().map(panel).collect(), "epoch", "value"),
    }
}

fn statistics(lags: &[Lag]) -> Plot {
    // A row of values above a row of distances, two statistics side by side.
    let rows =
        lags.chunks(2).flat_map(|pair| pair.iter().map(followed).chain(pair.iter().map(gap)));
    Plot {
        title: "Running statistics against the batch's",
        caption: "Above, whether the running value (solid) closes up to the batch's (dashed); \
                  below, whether their distance shrinks to the noise of a batch in all channels."
            .into(),
        legend: legend(&[
            ("running", Ink::Solid(GREY)),
            ("batch", Ink::Dashed(GREY)),
            ("channel with the widest gap", Ink::Block(BLUE)),
            ("with a median gap", Ink::Block(VERMILLION)),
            ("median of all channels", Ink::Solid(GREEN)),
            ("their 10–90 %", Ink::Block(GREEN)),
        ]),
        columns: lags.len().clamp(1, 2),
        height: 130.0,
        panels: or_empty(rows.collect(), "epoch", "value"),
    }
}

/// |running − batch| of channel `c`, by epoch.
fn gaps(lag: &Lag, c: usize) -> Vec<f64> {
    let pairs = channel(&lag.running, c).into_iter().zip(channel(&lag.batch, c));
    pairs.map(|(running, batch)| (running.1 - batch.1).abs()).collect()
}

fn lag_axis(lag: &Lag) -> Axis {
    Axis::epochs(0, lag.running.len().max(lag.batch.len()).saturating_sub(1), 4)
}

/// Running and batch of two channels.
fn followed(lag: &Lag) -> Panel {
    let widest = |c: &usize| range(gaps(lag, *c)).map_or(-1.0, |(_, high)| high);
    let mut order: Vec<usize> = channels(&lag.running).collect();
    order.sort_by(|a, b| widest(b).total_cmp(&widest(a)));
    let two = order.first().into_iter().chain(order.get(order.len() / 2));
    let mut marks = Vec::new();
    for (c, color) in two.zip([BLUE, VERMILLION]) {
        marks.push(Mark::Line(channel(&lag.batch, *c), Ink::Dashed(color)));
        marks.push(Mark::Line(channel(&lag.running, *c), Ink::Solid(color)));
    }
    Panel::new(&lag.name, lag_axis(lag), Axis::linear(&lag.name, values(&marks), 3), marks)
}

/// The distance of running and batch over all channels.
fn gap(lag: &Lag) -> Panel {
    let by_channel: Vec<Vec<f64>> = channels(&lag.running).map(|c| gaps(lag, c)).collect();
    let (mut middle, mut band) = (Vec::new(), Vec::new());
    for epoch in 0..lag.running.len().min(lag.batch.len()) {
        let mut gaps: Vec<f64> = by_channel.iter().map(|gaps| gaps[epoch]).collect();
        gaps.retain(|gap| gap.is_finite());
        gaps.sort_by(f64::total_cmp);
        let [low, half, high] = [0.1, 0.5, 0.9].map(|part| quantile(&gaps, part));
        middle.push((epoch as f64, half));
        band.push((epoch as f64, low, high));
    }
    let highest = band.iter().map(|point| point.2);
    let y = Axis::linear("|running − batch|", highest.chain([0.0]), 3);
    let marks = vec![Mark::Band(band, GREEN), Mark::Line(middle, Ink::Solid(GREEN))];
    Panel::new(&format!("{}: gap", lag.name), lag_axis(lag), y, marks)
}

fn shifts(shifts: &[Shifted]) -> Plot {
    let mut kinds = vec![("stored statistics", BLUE), ("re-estimated", GREEN)];
    if shifts.iter().any(|shifted| shifted.without.is_some()) {
        kinds.push(("without batch normalization", VERMILLION));
    }
    let width = 0.8 / kinds.len() as f64;
    let mut marks = Vec::new();
    for (i, shifted) in shifts.iter().enumerate() {
        let parts = [Some(shifted.stored), Some(shifted.adapted), shifted.without];
        for (j, (part, (_, color))) in parts.into_iter().zip(&kinds).enumerate() {
            let Some(part) = part else { continue };
            let left = i as f64 + 0.1 + j as f64 * width;
            marks.push(Mark::Bar([left, left + 0.94 * width], 100.0 * part, color));
            let (y, label) = match 100.0 * part {
                top if top.is_finite() => (top, format!("{top:.0}")),
                _ => (0.0, "n/a".into()),
            };
            marks.push(Mark::Label(left + 0.47 * width, y, label));
        }
    }
    let names: Vec<&str> = shifts.iter().map(|shifted| shifted.shift.as_str()).collect();
    let x = Axis::categories("shift of the test images", &names);
    let y = Axis::linear("right answers, %", [0.0, 100.0], 5);
    Plot {
        title: "Accuracy when the images change",
        caption: "How much of what a shift costs comes back when only the running statistics are \
                  estimated anew, without labels."
            .into(),
        legend: kinds.into_iter().map(|(name, color)| (name.into(), Ink::Block(color))).collect(),
        columns: 1,
        height: 210.0,
        panels: vec![Panel::new("", x, y, marks)],
    }
}
