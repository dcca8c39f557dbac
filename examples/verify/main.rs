//! Runs a golden file on a GPU: does this crate compute what your framework computes? The format,
//! and how to make such a file, are in `README.md` beside this file.

#[path = "../../tests/common/compare.rs"]
#[allow(dead_code, reason = "the tests compare more than this example does")]
mod compare;
mod golden;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use lexopt::prelude::{Long, Short, ValueExt};
use ndarray::{ArrayD, ArrayView1, ArrayViewD};
use serde_json::{Value, json};
use wgpu_batchnorm::{Gpu, Input, RunningStatistics};

use compare::Arithmetic;
use golden::{Entry, Golden};

type Error = Box<dyn std::error::Error + Send + Sync>;

const HELP: &str = "\
Runs a golden file on a GPU and compares every result with the expected one.

Usage: verify FILE.safetensors [--json] [--adapter NAME]

  --json          one JSON object per line
  --adapter NAME  an adapter whose name contains NAME (default: the best)
";

struct Options {
    file: PathBuf,
    json: bool,
    adapter: Option<String>,
}

fn options(mut parser: lexopt::Parser) -> Result<Option<Options>, Error> {
    let (mut file, mut json, mut adapter) = (None, false, None);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("help") | Short('h') => return Ok(None),
            Long("json") => json = true,
            Long("adapter") => adapter = Some(parser.value()?.string()?),
            lexopt::Arg::Value(path) if file.is_none() => file = Some(path.into()),
            other => return Err(other.unexpected().into()),
        }
    }
    let file = file.ok_or("which file? Try --help.")?;
    Ok(Some(Options { file, json, adapter }))
}

fn main() -> ExitCode {
    let done = match options(lexopt::Parser::from_env()) {
        Ok(Some(options)) => verify(&options),
        Ok(None) => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(error) => Err(error),
    };
    match done {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

fn open(adapter: Option<&str>) -> Result<Gpu, Error> {
    let Some(wanted) = adapter else {
        return Ok(Gpu::new_blocking()?);
    };
    let adapters = Gpu::adapters_blocking();
    let name = |adapter: &wgpu_batchnorm::wgpu::Adapter| adapter.get_info().name.to_lowercase();
    let found = adapters.iter().find(|adapter| name(adapter).contains(&wanted.to_lowercase()));
    let found = found.ok_or_else(|| format!("no adapter's name contains {wanted:?}"))?;
    Ok(pollster::block_on(Gpu::from_adapter(found))?)
}

/// The number of results that are wrong.
fn verify(options: &Options) -> Result<usize, Error> {
    let entries = read(&options.file)?;
    let gpu = open(options.adapter.as_deref())?;
    let say = |text: String, json: Value| {
        println!("{}", if options.json { json.to_string() } else { text });
    };
    if !options.json {
        println!("{} on {}", options.file.display(), gpu.describe());
    }
    let (mut results, mut wrong, mut cases, mut unsupported) = (0, 0, 0, 0);
    for entry in &entries {
        let case = match entry {
            Entry::Case(case) => case,
            Entry::Unsupported { name, reason } => {
                unsupported += 1;
                let json = json!({ "case": name, "unsupported": reason });
                say(format!("{name}: not supported: {reason}"), json);
                continue;
            }
        };
        cases += 1;
        match check(&gpu, case) {
            Ok(lines) => {
                results += lines.len();
                wrong += lines.iter().filter(|line| !line.pass).count();
                lines.iter().for_each(|line| say(line.text(case), line.json(case)));
            }
            Err(error) => {
                wrong += 1;
                let (name, error) = (&case.name, error.to_string());
                let json = json!({ "case": name, "error": error, "pass": false });
                say(format!("FAIL {name}: {error}"), json);
            }
        }
    }
    if cases == 0 {
        return Err(format!("none of the {unsupported} cases is supported").into());
    }
    if !options.json {
        println!(
            "{cases} cases, {results} results, {wrong} wrong; {unsupported} cases not supported"
        );
    }
    Ok(wrong)
}

/// Every expected result of a case against the GPU's.
fn check(gpu: &Gpu, case: &Golden) -> Result<Vec<Line>, Error> {
    let computed = run(gpu, case)?;
    let mut lines = Vec::new();
    for (tensor, actual) in computed {
        if let (Some(expected), Some(bounds)) =
            (case.expected(tensor), case.bounds(tensor, Arithmetic::Kernel))
        {
            lines.push(Line::new(tensor, &actual, expected, &bounds));
        }
    }
    // The parser has refused what this crate does not compute.
    match case.results().find(|result| lines.iter().all(|line| line.tensor != *result)) {
        Some(result) => Err(format!("bug: {result} was not computed").into()),
        None => Ok(lines),
    }
}

fn read(file: &Path) -> Result<Vec<Entry>, Error> {
    let say = |error: String| format!("{}: {error}", file.display());
    let bytes = std::fs::read(file).map_err(|error| say(error.to_string()))?;
    Ok(golden::parse(&bytes).map_err(say)?)
}

/// What the GPU makes of a case, by the names of the file.
fn run(gpu: &Gpu, case: &Golden) -> Result<Vec<(&'static str, Vec<f32>)>, Error> {
    let tensor = |name| -> Result<Option<ArrayViewD<'_, f32>>, Error> {
        let values = case.input(name);
        Ok(values.map(|v| ArrayViewD::from_shape(case.shape.as_slice(), v)).transpose()?)
    };
    let channels = |name| case.input(name).map(ArrayView1::from);
    let owned = |name| case.input(name).unwrap_or_default().to_vec().into();
    let x = tensor("x")?.ok_or("there is no x")?;
    let dy = tensor("dy")?;
    let input = Input {
        gamma: channels("gamma").filter(|_| case.config.affine.gamma),
        beta: channels("beta").filter(|_| case.config.affine.beta),
        z: tensor("z")?.filter(|_| case.config.residual),
        ..Input::new(x, case.axis)
    };
    let mut running = RunningStatistics {
        mean: owned("running_mean"),
        var: owned("running_var"),
        batches: case.batches_before,
    };
    let config = &case.config;
    let mut results = Vec::new();
    let gradients = if case.train {
        let forward = gpu.forward_train_blocking(&input, &mut running, config)?;
        results.push(("y", forward.y.into_raw_vec_and_offset().0));
        results.push(("save_mean", forward.saved.mean.to_vec()));
        results.push(("save_invstd", forward.saved.inv_std.to_vec()));
        results.push(("running_mean_out", running.mean.to_vec()));
        results.push(("running_var_out", running.var.to_vec()));
        dy.map(|dy| gpu.backward_blocking(&input, dy, &forward.saved, config)).transpose()?
    } else {
        let y = gpu.forward_infer_blocking(&input, &running, config)?;
        results.push(("y", y.into_raw_vec_and_offset().0));
        dy.map(|dy| gpu.frozen_backward_blocking(&input, dy, &running, config)).transpose()?
    };
    if let Some(gradients) = gradients {
        let tensors = [("dx", gradients.dx), ("dz", gradients.dz)];
        let parameters = [("dgamma", gradients.dgamma), ("dbeta", gradients.dbeta)];
        let flat = |tensor: ArrayD<f32>| tensor.into_raw_vec_and_offset().0;
        results.extend(tensors.into_iter().filter_map(|(name, v)| Some((name, flat(v?)))));
        results.extend(parameters.into_iter().filter_map(|(name, v)| Some((name, v?.to_vec()))));
    }
    Ok(results)
}

/// How far a result is from what was expected.
struct Line {
    tensor: &'static str,
    /// NaN where one value is NaN and the other is not.
    max_abs: f64,
    /// Where the expected value is not 0.
    max_rel: f64,
    /// In units of the last place of an f32.
    max_ulp: f64,
    /// The bound where the error comes closest to it or exceeds it most.
    bound: f64,
    pass: bool,
}

impl Line {
    fn new(tensor: &'static str, actual: &[f32], expected: &[f64], bounds: &[f64]) -> Self {
        let worst = compare::within(actual, expected, bounds);
        let (mut max_abs, mut max_rel, mut max_ulp) = (worst.max_error, 0f64, 0f64);
        for (&a, &e) in actual.iter().zip(expected) {
            let error = (f64::from(a) - e).abs();
            if a.is_nan() != e.is_nan() {
                max_abs = f64::NAN;
            }
            if error > 0.0 {
                max_rel = max_rel.max(if e == 0.0 { 0.0 } else { error / e.abs() });
                max_ulp = max_ulp.max(error / unit_in_last_place(e));
            }
        }
        let bound = bounds.get(worst.at).copied().unwrap_or(0.0);
        Self { tensor, max_abs, max_rel, max_ulp, bound, pass: worst.is_good() }
    }

    fn text(&self, case: &Golden) -> String {
        let Self { tensor, max_abs, max_rel, max_ulp, bound, pass } = *self;
        let verdict = if pass { "PASS" } else { "FAIL" };
        let torch = case.torch_error.get(tensor);
        let torch = torch.map_or(String::new(), |error| format!("  (PyTorch f32 {error:.2e})"));
        format!(
            "{verdict} {:<44} {tensor:<17} abs {max_abs:9.2e}  rel {max_rel:9.2e}  \
             ulp {max_ulp:9.2e}  bound {bound:9.2e}{torch}",
            case.name
        )
    }

    fn json(&self, case: &Golden) -> Value {
        json!({
            "case": case.name, "dist": case.dist, "tensor": self.tensor, "max_abs": self.max_abs,
            "max_rel": self.max_rel, "max_ulp": self.max_ulp, "bound": self.bound,
            "torch_max_abs_err": case.torch_error.get(self.tensor), "pass": self.pass,
        })
    }
}

/// The distance between f32 values around `value`.
fn unit_in_last_place(value: f64) -> f64 {
    let size = value.abs().max(f64::from(f32::MIN_POSITIVE)).min(f64::from(f32::MAX));
    2f64.powi(size.log2().floor() as i32 - 23)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::io::Read;

    use super::*;
    use safetensors::Dtype;
    use safetensors::tensor::TensorView;

    type Tensors = Vec<(&'static str, Vec<f64>)>;

    #[test]
    fn errors_are_measured() {
        let line = Line::new("y", &[1.0, 2.5, 0.0], &[1.0, 2.0, 0.0], &[0.1, 0.25, 0.1]);
        assert_eq!((line.max_abs, line.max_rel, line.bound, line.pass), (0.5, 0.25, 0.25, false));
        assert_eq!(line.max_ulp, 0.5 / 2f64.powi(-22));
        let line = Line::new("y", &[f32::NAN, 1.0], &[f64::NAN, 1.0], &[0.0, 0.0]);
        assert!(line.pass && line.max_abs == 0.0);
        for (actual, expected) in [(f32::NAN, 1.0), (1.0, f64::NAN)] {
            let line = Line::new("y", &[actual], &[expected], &[1.0]);
            assert!(!line.pass && line.max_abs.is_nan());
        }
    }

    /// A file with one case of two channels, after a change.
    fn file(change: &dyn Fn(&mut Value, &mut Tensors)) -> Vec<u8> {
        let mut settings = serde_json::json!({
            "shape": [2, 2], "layout": "nchw", "mode": "train", "eps": 1.0, "momentum": 0.5,
            "affine": true, "dtype": "f32", "fused": "none",
        });
        // Each channel is 0 and 2: mean 1, variance 1, 1/√(1+ε) = 0.7071.
        let mut tensors = vec![
            ("x", vec![0.0, 0.0, 2.0, 2.0]),
            ("gamma", vec![1.0, 2.0]),
            ("beta", vec![0.0, 1.0]),
            ("running_mean", vec![0.0; 2]),
            ("running_var", vec![1.0; 2]),
            ("y", [[-1.0, -2.0], [1.0, 2.0]].concat().iter().map(|v| v * 0.5f64.sqrt()).collect()),
            ("running_mean_out", vec![0.5; 2]),
        ];
        tensors[5].1[1] += 1.0;
        tensors[5].1[3] += 1.0;
        change(&mut settings, &mut tensors);
        let shape = |name: &str, values: &Vec<f64>| match name {
            "x" | "y" | "dx" => vec![2, values.len() / 2],
            _ => vec![values.len()],
        };
        let parts: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = tensors
            .iter()
            .map(|(name, values)| {
                let narrow: Vec<f32> = values.iter().map(|&v| v as f32).collect();
                let (dtype, bytes) = match *name {
                    "x" | "gamma" | "beta" | "running_mean" | "running_var" => {
                        (Dtype::F32, bytemuck::cast_slice(&narrow).to_vec())
                    }
                    _ => (Dtype::F64, bytemuck::cast_slice(values).to_vec()),
                };
                (format!("a/{name}"), dtype, shape(name, values), bytes)
            })
            .collect();
        let views = parts.iter().map(|(name, dtype, shape, bytes)| {
            (name, TensorView::new(*dtype, shape.clone(), bytes).expect("a tensor"))
        });
        let cases = serde_json::json!({ "a": settings }).to_string();
        let metadata = Some(HashMap::from([("cases".to_string(), cases)]));
        safetensors::serialize(views, metadata).expect("a file")
    }

    #[test]
    fn broken_files_are_named() {
        let refusal = |bytes: &[u8]| match golden::parse(bytes) {
            Ok(_) => "accepted".to_string(),
            Err(error) => error,
        };
        let good = file(&|_, _| {});
        assert_eq!(refusal(&good), "accepted");
        for end in 0..good.len() {
            assert_ne!(refusal(&good[..end]), "accepted", "{end} bytes");
        }
        for (bytes, words) in [
            (b"hello".to_vec(), "no safetensors file"),
            (file(&|s, _| s["shape"] = "x".into()), "case a: \"shape\""),
            (file(&|s, _| s["shape"] = Value::Null), "case a: there is no \"shape\""),
            (file(&|s, _| s["shape"] = serde_json::json!([2, -2])), "case a: \"shape\""),
            (
                file(&|s, _| s["shape"] = serde_json::json!([2, 3])),
                "beta has the shape [2]; it should have [3]",
            ),
            (file(&|s, _| s["layout"] = "chwn".into()), "case a: \"layout\""),
            (file(&|s, _| s["mode"] = "test".into()), "case a: \"mode\""),
            (file(&|s, _| s["eps"] = (-1.0).into()), "epsilon"),
            (file(&|s, _| s["momentum"] = 7.into()), "update rate 7"),
            (file(&|s, _| s["momentum"] = "0.5".into()), "\"momentum\" is \"0.5\", not a number"),
            (
                file(&|s, _| drop(s.as_object_mut().map(|s| s.remove("momentum")))),
                "there is no \"momentum\"",
            ),
            (file(&|s, _| s["onnx_momentum"] = "0.9".into()), "case a: \"onnx_momentum\""),
            (file(&|s, _| s["running_var"] = "bias".into()), "neither biased nor unbiased"),
            (file(&|s, _| s["dtype"] = 32.into()), "case a: \"dtype\""),
            (file(&|s, _| s["batches_before"] = (1u64 << 32).into()), "not a 32-bit count"),
            (file(&|s, _| s["affine"] = "yes".into()), "case a: \"affine\""),
            (file(&|_, t| t.push(("dgama", vec![0.0; 2]))), "dgama is no result of this case"),
            (file(&|_, t| t.push(("dx", vec![0.0; 4]))), "case a: there is no dy"),
            (file(&|s, _| s["mode"] = "eval".into()), "running_mean_out is no result of this case"),
            (file(&|_, t| drop(t.remove(0))), "case a: there is no x"),
            (file(&|_, t| drop(t.remove(1))), "case a: there is no gamma"),
            (file(&|_, t| t.truncate(5)), "case a: there is no expected result"),
            (file(&|_, t| t[3].1.push(0.0)), "running_mean has the shape [3]; it should have [2]"),
        ] {
            let message = refusal(&bytes);
            assert!(message.contains(words), "{message} lacks {words}");
        }
    }

    #[test]
    fn right_results_pass_and_wrong_ones_do_not() {
        let gpu = match Gpu::new_blocking() {
            Ok(gpu) => gpu,
            Err(error) => {
                let required = std::env::var("BATCHNORM_REQUIRE_GPU").is_ok_and(|v| v == "1");
                assert!(!required, "BATCHNORM_REQUIRE_GPU is set, but: {error}");
                eprintln!("SKIP: {error}");
                return;
            }
        };
        let verdicts = |bytes: &[u8]| -> Vec<(&'static str, bool)> {
            let entries = golden::parse(bytes).expect("a golden file");
            let Some(Entry::Case(case)) = entries.first() else { panic!("no case") };
            let lines = check(&gpu, case).expect("a run");
            lines.iter().map(|line| (line.tensor, line.pass)).collect()
        };
        let all = |y, mean| vec![("y", y), ("running_mean_out", mean)];
        assert_eq!(verdicts(&file(&|_, _| {})), all(true, true));
        assert_eq!(verdicts(&file(&|_, t| t[5].1[2] += 1e-5)), all(false, true));
        assert_eq!(verdicts(&file(&|_, t| t[6].1[1] = f64::NAN)), all(true, false));
        assert_eq!(verdicts(&file(&|s, _| s["momentum"] = 0.4.into())), all(true, false));
        // Every mode, layout and result, on the repository's files; the package has none.
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        if !folder.exists() {
            eprintln!("SKIP: there is no {}", folder.display());
            return;
        }
        for (name, count) in
            [("core", 388), ("adversarial", 420), ("onnx", 8), ("dtypes", 600), ("fused", 600)]
        {
            let packed = std::fs::read(folder.join(format!("{name}.safetensors.gz")));
            let packed = packed.expect("a fixture");
            let mut bytes = Vec::new();
            flate2::read::GzDecoder::new(packed.as_slice()).read_to_end(&mut bytes).expect("gzip");
            let mut results = 0;
            for entry in golden::parse(&bytes).expect("a golden file") {
                let Entry::Case(case) = entry else { continue };
                for line in check(&gpu, &case).expect("a run") {
                    assert!(line.pass, "{}", line.text(&case));
                    results += 1;
                }
            }
            assert!(results > 0 && results <= count, "{name}: {results} results");
            eprintln!("{name}: {results} results");
        }
    }
}
