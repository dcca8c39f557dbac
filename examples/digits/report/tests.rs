//! Tests of the report as a file, a page and pictures.

use super::plot::{Axis, BLUE, GREEN, GREY, VERMILLION, three_digits};
use super::*;

const PLOTS: [&str; 6] =
    ["loss", "accuracy", "distributions", "parameters", "statistics", "shifts"];

/// A folder that goes away.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("digits-report-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        Self(dir)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.0.join(name)).expect(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn point(loss: f64, accuracy: f64) -> Point {
    Point { train_loss: loss, test_loss: 1.5 * loss, accuracy, seconds: 0.25 }
}

fn report() -> Report {
    let losses = [2.0, 0.5, 0.1];
    let trace = vec![vec![1.0, 1.0], vec![1.1, 0.8], vec![1.2, 0.7]];
    let ramp = |scale: f32| (0..500).map(|i| scale * (i % 50) as f32).collect();
    let claim =
        |rate, normalized, epochs: [Option<usize>; 3], accuracy: [f64; 3], diverged| Claim {
            optimizer: "SGD".into(),
            learning_rate: rate,
            normalized,
            epochs_to_target: epochs.to_vec(),
            final_accuracy: accuracy.to_vec(),
            re_estimated: if normalized { vec![0.97; 3] } else { Vec::new() },
            diverged,
        };
    let shifted = |shift: &str, stored, adapted| Shifted {
        shift: shift.into(),
        stored,
        adapted,
        estimated_on: "the shifted images".into(),
        without: Some(0.2),
    };
    Report {
        title: "Digits".into(),
        adapter: "a device".into(),
        data: "digits".into(),
        command: "digits --report here".into(),
        seeds: vec![1, 2, 3],
        target: 0.85,
        curves: vec![
            Curve {
                name: "with batch normalization".into(),
                epochs: losses.map(|loss| point(loss, 1.0 - loss / 2.5)).to_vec(),
            },
            Curve { name: "without".into(), epochs: losses.map(|loss| point(loss, 0.3)).to_vec() },
        ],
        distributions: [1, 3]
            .map(|epoch| Distribution { epoch, channel: 4, before: ramp(0.1), after: ramp(0.05) })
            .to_vec(),
        parameters: vec![Trace {
            name: "γ".into(),
            label: "scale".into(),
            per_epoch: trace.clone(),
        }],
        statistics: ["mean", "variance"]
            .map(|name| Lag {
                name: name.into(),
                running: trace.clone(),
                batch: vec![vec![1.3, 0.6]; 3],
            })
            .to_vec(),
        claims: vec![
            claim(0.1, true, [Some(3), Some(2), Some(4)], [0.96, 0.94, 0.95], 0),
            claim(0.1, false, [None, Some(9), Some(8)], [0.8, 0.86, 0.9], 0),
            claim(10.0, true, [Some(5); 3], [0.9; 3], 0),
            claim(10.0, false, [None; 3], [0.1, 0.1, f64::NAN], 1),
        ],
        shifts: vec![shifted("none", 0.95, 0.96), shifted("invert", 0.1, 0.9)],
    }
}

/// What is wrong with it as XML: tags that do not pair, attributes without quotes, bare `&` and `<`.
fn malformed(xml: &str) -> Option<String> {
    let mut open = Vec::new();
    let mut rest = xml.strip_prefix("<!DOCTYPE html>").unwrap_or(xml);
    while let Some(start) = rest.find('<') {
        let (text, tail) = rest.split_at(start);
        let entities = ["&amp;", "&lt;", "&gt;", "&quot;", "&#39;"];
        for (at, _) in text.match_indices('&') {
            if !entities.iter().any(|entity| text[at..].starts_with(entity)) {
                return Some(format!("a bare & in {text:?}"));
            }
        }
        let Some(end) = tail.find('>') else { return Some(format!("no end: {tail:?}")) };
        let tag = &tail[1..end];
        rest = &tail[end + 1..];
        if tag.contains('<') || tag.split('\'').count() % 2 == 0 {
            return Some(format!("not a tag: {tag:?}"));
        }
        let name = |tag: &str| tag.split([' ', '\n']).next().map(str::to_string);
        if let Some(closed) = tag.strip_prefix('/') {
            if open.pop() != name(closed) {
                return Some(format!("</{closed}> closes another"));
            }
        } else {
            let values: Vec<&str> = tag.trim_end_matches('/').split('\'').collect();
            let named = |part: &&str| {
                part.trim().is_empty() || part.find('=').is_some_and(|at| at + 1 == part.len())
            };
            if values.len() > 1 && !values.iter().step_by(2).all(named) {
                return Some(format!("attributes of {tag:?}"));
            }
            if !tag.ends_with('/') {
                open.extend(name(tag));
            }
        }
    }
    open.pop().map(|name| format!("<{name}> stays open"))
}

#[test]
fn the_check_itself_sees_what_is_wrong() {
    assert_eq!(malformed("<a b='1'>x &amp; y<c/></a>"), None);
    for wrong in ["<a>", "<a></b>", "<a>&</a>", "<a b=1 c='2'></a>", "<a b='></a>", "<a", "</a>"] {
        assert!(malformed(wrong).is_some(), "{wrong}");
    }
}

/// Writes, checks that every file is there and well-formed, and returns the page.
fn written(folder: &Folder, report: &Report) -> String {
    let path = write(&folder.0, report).expect("a report");
    assert_eq!(path, folder.0.join("report.html"));
    let page = folder.read("report.html");
    assert_eq!(malformed(&page), None);
    for name in PLOTS {
        let svg = folder.read(&format!("{name}.svg"));
        assert_eq!(malformed(&svg), None, "{name}");
        for part in ["NaN", "inf "] {
            assert!(!svg.contains(part), "{name} has {part}");
        }
        assert!(svg.contains("prefers-color-scheme"), "{name}");
    }
    let mut names: Vec<String> = fs::read_dir(&folder.0)
        .expect("a folder")
        .map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    let mut expected = PLOTS.map(|name| format!("{name}.svg")).to_vec();
    expected.push("report.html".into());
    expected.sort();
    assert_eq!(names, expected);
    page
}

#[test]
fn a_page_holds_every_plot_and_needs_nothing_else() {
    let folder = Folder::new("page");
    let report = report();
    written(&folder, &report);
    // Again over the old one.
    let page = written(&folder, &report);
    assert_eq!(page.matches("<svg").count(), PLOTS.len());
    assert_eq!(page.matches("<figcaption>").count(), PLOTS.len());
    for outside in ["<script", "<link", "<img", "href", "src=", "url(", "@import"] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(!page.contains("nothing to draw"));
    for axis in [
        "epoch",
        "mean loss per image, nats",
        "right answers, %",
        "value of channel 4",
        "share of values, %",
        "|running − batch|",
        "scale",
        "shift of the test images",
    ] {
        assert!(page.contains(&format!(">{axis}</text>")), "{axis}");
    }
    // 500 values 0, 0.1 .. 4.9, ten each.
    assert!(page.contains("mean 2.45, s.d. 1.44"));
}

#[test]
fn the_summary_is_computed() {
    let folder = Folder::new("summary");
    let page = written(&folder, &report());
    for row in [
        "<td>final accuracy</td><td>96.0\u{a0}%</td><td>30.0\u{a0}%</td>",
        "<td>epochs to 85\u{a0}%</td><td>3</td><td>never</td>",
        "<td>final test loss</td><td>0.150</td><td>0.150</td>",
        "<td>best setting</td><td>SGD 0.1: 95.0\u{a0}%</td><td>SGD 0.1: 86.0\u{a0}%</td>",
        "<td>worst setting</td><td>SGD 10: 90.0\u{a0}%</td><td>SGD 10: 10.0\u{a0}%</td>",
        "<td>reached 85\u{a0}%</td><td>6</td><td>2</td>",
        "<td>diverged</td><td>0</td><td>1</td>",
        "at most +80.0 points on “invert” (10.0\u{a0}% to 90.0\u{a0}%), at least +1.0 points on “none”",
    ] {
        assert!(page.contains(row), "{row}\n{page}");
    }
}

#[test]
fn claims_stand_side_by_side() {
    let expected = "\
| optimizer | learning rate | epochs to 85 %, with | without     | final accuracy, %, with | with, re-estimated | without            | diverged, with | without |
| --------- | ------------- | -------------------- | ----------- | ----------------------- | ------------------ | ------------------ | -------------- | ------- |
| SGD       | 0.1           | 3 (2–4)              | 9 (8–never) | 95.0 (94.0–96.0)        | 97.0               | 86.0 (80.0–90.0)   | 0 of 3         | 0 of 3  |
| SGD       | 10            | 5                    | never       | 90.0                    | 97.0               | 10.0, 1 not finite | 0 of 3         | 1 of 3  |
";
    assert_eq!(claims_markdown(&report().claims, 0.85), expected);
    // One side only, an even number of runs, and a name that would break the table.
    let claim = Claim {
        optimizer: "a|b".into(),
        learning_rate: 0.1,
        normalized: false,
        epochs_to_target: vec![Some(3), Some(4)],
        final_accuracy: vec![0.5, 0.7],
        re_estimated: Vec::new(),
        diverged: 0,
    };
    let lonely = claims_markdown(&[claim], 0.85);
    let row = lonely.lines().last().expect("a row");
    let cells: Vec<&str> = row.split('|').map(str::trim).collect();
    let expected =
        ["", "a/b", "0.1", "–", "3.5 (3–4)", "–", "–", "60.0 (50.0–70.0)", "–", "0 of 2", ""];
    assert_eq!(cells, expected);
    assert_eq!(claims_markdown(&[], 0.85).lines().count(), 2);
}

#[test]
fn text_is_escaped_everywhere() {
    let folder = Folder::new("escape");
    let evil = "<script>&\"'\u{1}</script>";
    let mut report = report();
    for text in [
        &mut report.title,
        &mut report.adapter,
        &mut report.data,
        &mut report.command,
        &mut report.curves[0].name,
        &mut report.parameters[0].name,
        &mut report.statistics[0].name,
        &mut report.claims[0].optimizer,
        &mut report.shifts[0].shift,
    ] {
        *text = evil.into();
    }
    report.parameters[0].label = evil.into();
    report.shifts[1].estimated_on = evil.into();
    let page = written(&folder, &report);
    assert!(!page.contains("<script"));
    assert!(!page.contains('\u{1}'));
    let escaped = "&lt;script&gt;&amp;&quot;&#39;\u{fffd}&lt;/script&gt;";
    assert!(page.contains(&format!("<h1>{escaped}</h1>")));
}

#[test]
fn what_diverged_is_said_and_not_drawn() {
    let folder = Folder::new("diverged");
    let [nan, infinite] = [f64::NAN, f64::INFINITY];
    let mut report = report();
    report.curves[0].epochs[1] = point(nan, 0.1);
    report.curves[0].epochs[2] = point(infinite, nan);
    report.curves[1].epochs = vec![point(nan, nan); 3];
    report.distributions[0].before[7] = f32::NAN;
    report.distributions[1].after = vec![f32::INFINITY; 4];
    report.parameters[0].per_epoch[1] = vec![f32::NAN, f32::NEG_INFINITY];
    report.statistics[0].running[2][0] = f32::INFINITY;
    report.statistics[1].batch = vec![vec![f32::NAN; 2]; 3];
    report.shifts[0].stored = nan;
    report.claims[3].final_accuracy = vec![nan; 3];
    let page = written(&folder, &report);
    for said in [
        "with batch normalization (diverged in epoch 2)",
        "without (diverged in epoch 1)",
        "<td>final accuracy</td><td>not finite</td><td>not finite</td>",
        "<td>final test loss</td><td>diverged in epoch 2</td><td>diverged in epoch 1</td>",
        "SGD 10: not finite",
        "1 of 500 not finite",
        "no finite value",
        "nothing to draw",
        ">n/a</text>",
        "<td>none</td><td>not finite</td>",
    ] {
        assert!(page.contains(said), "{said}");
    }
}

#[test]
fn extremes_can_be_drawn() {
    let folder = Folder::new("extremes");
    let mut report = report();
    report.curves[0].epochs = vec![point(1e30, 0.5), point(f64::MAX, 0.5), point(1e-30, 0.5)];
    report.curves[1].epochs = vec![point(0.0, 0.0)];
    report.distributions[0].before = vec![f32::MAX, f32::MIN, 0.0];
    report.distributions[1].before = vec![3.0; 100];
    report.distributions[1].after = Vec::new();
    report.parameters[0].per_epoch = vec![vec![1e-30; 2], vec![1e-30], Vec::new()];
    report.statistics[0].running = vec![vec![1e38, -1e38]; 2];
    written(&folder, &report);
    for low in [0.0, -3.0, 1e-90, 1e90] {
        for width in [0.0, 1e-9, 1.0, 1e9] {
            for values in [[low, low + width], [low, low * (1.0 + width)]] {
                for axis in [Axis::linear("", values, 4), Axis::log("", values, 4)] {
                    assert!(axis.low < axis.high, "{values:?}");
                    assert!((1..20).contains(&axis.ticks.len()), "{values:?} {:?}", axis.ticks);
                }
            }
        }
    }
}

#[test]
fn what_is_empty_is_said() {
    let folder = Folder::new("empty");
    let page = written(&folder, &Report::default());
    assert!(page.contains("Nothing was recorded."));
    assert!(page.contains("nothing to draw"));
    let curves = vec![Curve { name: "early".into(), epochs: Vec::new() }];
    let distributions = vec![Distribution::default()];
    let (parameters, statistics) = (vec![Trace::default()], vec![Lag::default()]);
    let claims = vec![Claim::default()];
    let shifts = vec![Shifted::default()];
    let report = Report {
        curves,
        distributions,
        parameters,
        statistics,
        claims,
        shifts,
        ..Report::default()
    };
    let page = written(&folder, &report);
    assert!(page.contains("early (no epoch)"));
    assert!(page.contains("<td>final accuracy</td><td>no epoch</td>"));
}

#[test]
fn a_folder_that_cannot_be_is_named() {
    let folder = Folder::new("file");
    fs::create_dir_all(&folder.0).expect("a folder");
    let file = folder.0.join("a-file");
    fs::write(&file, "in the way").expect("a file");
    let error = write(&file.join("below"), &report()).expect_err("no folder").to_string();
    assert!(error.contains(&file.join("below").display().to_string()), "{error}");
}

#[test]
fn nothing_half_written_stays() {
    let folder = Folder::new("half");
    // The page's place is taken, by what no file can replace.
    let taken = folder.0.join("report.html");
    fs::create_dir_all(taken.join("inside")).expect("a folder");
    let error = write(&folder.0, &report()).expect_err("no place").to_string();
    assert!(error.contains(&taken.display().to_string()), "{error}");
    for entry in fs::read_dir(&folder.0).expect("a folder") {
        let name = entry.expect("an entry").file_name().to_string_lossy().into_owned();
        assert!(!name.contains("partial"), "{name}");
        if name.ends_with(".svg") {
            assert_eq!(malformed(&folder.read(&name)), None, "{name}");
        }
    }
}

#[test]
fn ticks_and_numbers_are_short() {
    let labels = |axis: Axis| axis.ticks.into_iter().map(|tick| tick.1).collect::<Vec<_>>();
    assert_eq!(
        labels(Axis::linear("", [-0.13, 0.38], 5)),
        ["−0.2", "0", "0.2", "0.4"].map(String::from)
    );
    assert_eq!(labels(Axis::linear("", [0.0, 3e-5], 3)), ["0", "1e−5", "2e−5", "3e−5"]);
    assert_eq!(labels(Axis::log("", [0.03, 2.0], 5)), ["0.01", "0.1", "1", "10"]);
    assert_eq!(labels(Axis::log("", [1e-4, 1e-2], 5)), ["1e−4", "0.001", "0.01"]);
    assert_eq!(labels(Axis::epochs(1, 20, 8)), ["1", "20", "5", "10", "15"]);
    assert_eq!(labels(Axis::epochs(0, 3, 8)), ["0", "3", "1", "2"]);
    assert_eq!(labels(Axis::epochs(1, 1, 8)), ["1"]);
    for (value, text) in [
        (0.0, "0"),
        (0.1, "0.100"),
        (0.0999999, "0.100"),
        (-1.375, "−1.38"),
        (123.4, "123"),
        (1e5, "1.00e5"),
        (1.2e-7, "1.20e−7"),
        (f64::NAN, "not finite"),
    ] {
        assert_eq!(three_digits(value), text);
    }
}

#[test]
fn colors_stand_out_from_both_pages() {
    // WCAG 2: relative luminance and contrast; 3:1 for graphics.
    let luminance = |color: &str| {
        let part = |i: usize| {
            let byte = u8::from_str_radix(&color[i..i + 2], 16).expect("hexadecimal");
            let value = f64::from(byte) / 255.0;
            if value <= 0.04045 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * part(1) + 0.7152 * part(3) + 0.0722 * part(5)
    };
    for page in ["#ffffff", "#16181c"] {
        for color in [BLUE, VERMILLION, GREEN, GREY] {
            let (a, b) = (luminance(page), luminance(color));
            let contrast = (a.max(b) + 0.05) / (a.min(b) + 0.05);
            assert!(contrast >= 3.0, "{color} on {page}: {contrast:.2}");
        }
    }
}
