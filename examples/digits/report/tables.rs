//! What a report tells in numbers.

use super::plot::{escape, range, three_digits};
use super::{Claim, Curve, Point, Report, Shifted};

/// What each optimizer and learning rate led to with batch normalization and without, as Markdown
/// that is also aligned as plain text. `target` is the accuracy to be reached, 0..=1.
pub fn claims_markdown(claims: &[Claim], target: f64) -> String {
    let mut rows = claims_table(claims, target);
    let columns = rows[0].len();
    let chars = |cell: &String| cell.chars().count();
    let widths: Vec<usize> =
        (0..columns).map(|c| rows.iter().map(|row| chars(&row[c])).max().unwrap_or(0)).collect();
    rows.insert(1, widths.iter().map(|&width| "-".repeat(width)).collect());
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!(" {cell:width$} |"));
        format!("|{}\n", cells.collect::<String>())
    };
    rows.iter().map(line).collect()
}

/// A row of names, then a row for each optimizer and learning rate.
pub fn claims_table(claims: &[Claim], target: f64) -> Vec<Vec<String>> {
    let epochs = format!("epochs to {} %, with", whole(100.0 * target));
    let names = [
        "optimizer",
        "learning rate",
        &epochs,
        "without",
        "final accuracy, %, with",
        "with, re-estimated",
        "without",
        "diverged, with",
        "without",
    ];
    let mut rows = vec![names.map(String::from).to_vec()];
    let mut keys: Vec<(&str, f64)> = Vec::new();
    for claim in claims {
        let key = (claim.optimizer.as_str(), claim.learning_rate);
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    for (optimizer, rate) in keys {
        let of = |normalized| {
            claims.iter().find(|claim| {
                (claim.optimizer.as_str(), claim.learning_rate, claim.normalized)
                    == (optimizer, rate, normalized)
            })
        };
        let mut row = vec![optimizer.replace('|', "/"), rate.to_string()];
        let mut cell = |normalized, show: fn(&Claim) -> String| {
            row.push(of(normalized).map_or("–".into(), show));
        };
        cell(true, epochs_cell);
        cell(false, epochs_cell);
        cell(true, |claim| accuracies(&claim.final_accuracy));
        cell(true, |claim| accuracies(&claim.re_estimated));
        cell(false, |claim| accuracies(&claim.final_accuracy));
        cell(true, diverged_cell);
        cell(false, diverged_cell);
        rows.push(row);
    }
    rows
}

fn epochs_cell(claim: &Claim) -> String {
    let epochs =
        claim.epochs_to_target.iter().map(|epochs| epochs.map_or(f64::INFINITY, |e| e as f64));
    spread(
        epochs.collect(),
        |epochs| if epochs.is_finite() { whole(epochs) } else { "never".into() },
    )
}

fn accuracies(parts: &[f64]) -> String {
    let percents = parts.iter().map(|value| 100.0 * value);
    let (finite, lost): (Vec<f64>, Vec<f64>) = percents.partition(|value| value.is_finite());
    let text = spread(finite, |percent| format!("{percent:.1}"));
    if lost.is_empty() { text } else { format!("{text}, {} not finite", lost.len()) }
}

fn diverged_cell(claim: &Claim) -> String {
    format!("{} of {}", claim.diverged, claim.final_accuracy.len())
}

/// Median, and lowest to highest where they differ.
fn spread(mut values: Vec<f64>, show: impl Fn(f64) -> String) -> String {
    values.sort_by(f64::total_cmp);
    match values[..] {
        [] => "–".into(),
        [low, .., high] if show(low) != show(high) => {
            format!("{} ({}–{})", show(median(values)), show(low), show(high))
        }
        [value, ..] => show(value),
    }
}

/// Without decimals where there are none.
fn whole(value: f64) -> String {
    ((10.0 * value).round() / 10.0).to_string()
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    quantile(&values, 0.5)
}

/// Of sorted values, between two of them by proportion. NaN without any.
pub fn quantile(sorted: &[f64], part: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let place = part * last as f64;
    let [below, above] = [sorted[place.floor() as usize], sorted[place.ceil() as usize]];
    if below == above { below } else { below + (above - below) * place.fract() }
}

fn percent(part: f64) -> String {
    if part.is_finite() { format!("{:.1}\u{a0}%", 100.0 * part) } else { "not finite".into() }
}

const NOTHING: &str = "<p>Nothing was recorded.</p>\n";

pub fn table(rows: &[Vec<String>]) -> String {
    let row = |cells: &Vec<String>, tag: &str| {
        let cells = cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell)));
        format!("<tr>{}</tr>\n", cells.collect::<String>())
    };
    let Some((head, body)) = rows.split_first() else { return String::new() };
    if body.is_empty() {
        return NOTHING.into();
    }
    let body: String = body.iter().map(|cells| row(cells, "td")).collect();
    format!(
        "<div class='wide'><table><thead>{}</thead><tbody>{body}</tbody></table></div>\n",
        row(head, "th")
    )
}

/// A line of a table, for each run.
type Fact<'a> = (String, &'a dyn Fn(&Curve) -> String);

/// The runs, the settings and the shifts in a few rows, computed from the data. A run is a column,
/// which suits a phone.
pub fn glance(report: &Report) -> String {
    let target = format!("{}\u{a0}%", whole(100.0 * report.target));
    let last = |run: &Curve, value: fn(&Point) -> f64| run.epochs.last().map_or(f64::NAN, value);
    let facts: [Fact; 5] = [
        ("final accuracy".into(), &|run| percent(last(run, |point| point.accuracy))),
        ("best accuracy".into(), &|run| {
            let range = range(run.epochs.iter().map(|point| point.accuracy));
            percent(range.map_or(f64::NAN, |(_, best)| best))
        }),
        (format!("epochs to {target}"), &|run| {
            let reached = run.epochs.iter().position(|point| point.accuracy >= report.target);
            reached.map_or("never".into(), |index| (index + 1).to_string())
        }),
        ("final test loss".into(), &|run| {
            run.trouble().unwrap_or(three_digits(last(run, |point| point.test_loss)))
        }),
        ("seconds per epoch".into(), &|run| {
            three_digits(median(run.epochs.iter().map(|point| point.seconds).collect()))
        }),
    ];
    let names = report.curves.iter().map(|run| run.name.clone());
    let mut runs = vec![["run".to_string()].into_iter().chain(names).collect::<Vec<_>>()];
    for (name, fact) in facts {
        let cell = |run: &Curve| if run.epochs.is_empty() { "no epoch".into() } else { fact(run) };
        runs.push([name].into_iter().chain(report.curves.iter().map(cell)).collect());
    }

    let sides = [true, false].map(|normalized| {
        report.claims.iter().filter(|claim| claim.normalized == normalized).collect::<Vec<_>>()
    });
    // What is not finite is worse than any number.
    let accuracy = |claim: &Claim| {
        let finite = claim.final_accuracy.iter().copied().filter(|part| part.is_finite());
        median(finite.collect()).max(f64::NEG_INFINITY)
    };
    let ranked = sides.clone().map(|claims| {
        let with_key = claims.into_iter().map(|claim| (accuracy(claim), claim));
        let mut ranked: Vec<(f64, &Claim)> = with_key.collect();
        ranked.sort_by(|a, b| a.0.total_cmp(&b.0));
        ranked
    });
    let show = |end: Option<&(f64, &Claim)>| {
        end.map_or("–".into(), |(accuracy, claim)| {
            format!("{} {}: {}", claim.optimizer, claim.learning_rate, percent(*accuracy))
        })
    };
    let count = |of: fn(&Claim) -> usize| {
        sides
            .each_ref()
            .map(|claims| claims.iter().map(|claim| of(claim)).sum::<usize>().to_string())
    };
    let settings = [
        ("over all settings", ["with batch normalization", "without"].map(String::from)),
        ("best setting", ranked.each_ref().map(|ranked| show(ranked.last()))),
        ("worst setting", ranked.each_ref().map(|ranked| show(ranked.first()))),
        ("runs", count(|claim| claim.final_accuracy.len())),
        (
            &format!("reached {target}"),
            count(|claim| claim.epochs_to_target.iter().flatten().count()),
        ),
        ("diverged", count(|claim| claim.diverged)),
    ];
    let settings = settings.map(|(name, [with, without])| vec![name.to_string(), with, without]);
    let settings = if report.claims.is_empty() { String::new() } else { table(&settings) };
    let runs = if report.curves.is_empty() { NOTHING.into() } else { table(&runs) };
    format!("<h2>At a glance</h2>\n{runs}{settings}{}", gains(&report.shifts))
}

/// What estimating the running statistics anew changed, where most and where least.
fn gains(shifts: &[Shifted]) -> String {
    let gain = |shifted: &&Shifted| shifted.adapted - shifted.stored;
    let mut known: Vec<&Shifted> = shifts.iter().filter(|s| gain(s).is_finite()).collect();
    known.sort_by(|a, b| gain(a).total_cmp(&gain(b)));
    let told = |s: &&Shifted| {
        let [from, to] = [percent(s.stored), percent(s.adapted)];
        format!("{:+.1} points on “{}” ({from} to {to})", 100.0 * gain(s), escape(&s.shift))
    };
    match (known.last().map(told), known.first().map(told)) {
        (Some(most), Some(least)) => {
            format!("<p>Running statistics estimated anew: at most {most}, at least {least}.</p>\n")
        }
        _ => String::new(),
    }
}

pub fn shifts_table(shifts: &[Shifted]) -> Vec<Vec<String>> {
    let head = [
        "shift",
        "stored statistics",
        "re-estimated",
        "estimated on",
        "without batch normalization",
    ];
    let mut rows = vec![head.map(String::from).to_vec()];
    for Shifted { shift, stored, adapted, estimated_on, without } in shifts {
        let without = without.map_or("–".into(), percent);
        rows.push(vec![
            shift.clone(),
            percent(*stored),
            percent(*adapted),
            estimated_on.clone(),
            without,
        ]);
    }
    rows
}
