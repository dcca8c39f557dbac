//! Named tensors of `f32` in a [safetensors] file, which other programs read too.
//!
//! A file is replaced at once or not at all: whenever the process is killed, there is the old file
//! or the new one, complete. And a file is not believed before it is read: its header never decides
//! an allocation, and every way it can be wrong is a [`CheckpointError`] that names the file, what
//! was expected and what was found.
//!
//! [safetensors]: https://github.com/huggingface/safetensors#format

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde_json::{Deserializer, Map, Value, json};

/// The size of the header stands before it.
const PREFIX_SIZE: u64 = 8;
/// Enough for ten thousand tensors; what a parser makes of a hostile header stays small.
const MAX_HEADER_SIZE: u64 = 1 << 20;
const MAX_SIZE: u64 = 1 << 30;

/// What a file holds.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    pub tensors: Vec<Tensor>,
    pub metadata: BTreeMap<String, String>,
    /// For errors.
    file: PathBuf,
}

/// A tensor, row by row.
#[derive(Debug, Clone)]
pub struct Tensor {
    /// Any text but `__metadata__`, and no other tensor's.
    pub name: String,
    /// Empty for a scalar; a 0 in it means no values.
    pub shape: Vec<usize>,
    /// As many as the product of `shape`, of any bits: NaN is data.
    pub values: Vec<f32>,
}

impl Checkpoint {
    /// Something to save.
    pub fn new(tensors: Vec<Tensor>, metadata: BTreeMap<String, String>) -> Self {
        Self { tensors, metadata, file: "unsaved checkpoint".into() }
    }

    /// The values of a tensor that must be there in this shape, or [`Problem::Shape`].
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<&[f32], CheckpointError> {
        let found = self.tensors.iter().find(|tensor| tensor.name == name);
        if let Some(tensor) = found.filter(|tensor| tensor.shape == shape) {
            return Ok(&tensor.values);
        }
        let (name, found) = (name.into(), found.map(|tensor| tensor.shape.clone()));
        Err(Problem::of(&self.file)(Problem::Shape { name, expected: shape.into(), found }))
    }

    /// A value of the metadata that must be there, or [`Problem::Metadata`].
    pub fn metadata(&self, key: &str) -> Result<&str, CheckpointError> {
        let missing = || Problem::of(&self.file)(Problem::Metadata { key: key.into() });
        self.metadata.get(key).map(String::as_str).ok_or_else(missing)
    }

    /// Creates or replaces a file. Equal checkpoints make equal files. Where `path` is a link, the
    /// link is replaced. A process killed on the way may leave a `.checkpoint-….tmp` beside it.
    ///
    /// # Errors
    /// [`Problem::Tensor`], [`Problem::Limit`], [`Problem::Io`]; then the old file is untouched and
    /// the temporary one removed.
    pub fn save(&self, path: &Path) -> Result<(), CheckpointError> {
        let header = self.header().map_err(Problem::of(path))?;
        let write = |file: &mut File| {
            file.write_all(&header)?;
            self.tensors.iter().try_for_each(|tensor| {
                let bytes: Vec<u8> = tensor.values.iter().flat_map(|x| x.to_le_bytes()).collect();
                file.write_all(&bytes)
            })
        };
        replace(path, write).map_err(Problem::of(path))
    }

    /// Reads a whole file. Tensors come in the order of their values in the file.
    ///
    /// # Errors
    /// Every [`Problem`] but [`Problem::Shape`] and [`Problem::Metadata`].
    pub fn load(path: &Path) -> Result<Self, CheckpointError> {
        let file = File::open(path).map_err(Problem::io("open it"));
        let (tensors, metadata) =
            file.and_then(|file| read(BufReader::new(file))).map_err(Problem::of(path))?;
        Ok(Self { tensors, metadata, file: path.into() })
    }

    /// The bytes of a file up to its first tensor's values.
    fn header(&self) -> Result<Vec<u8>, Problem> {
        let mut header = Map::from_iter([("__metadata__".into(), json!(self.metadata))]);
        let mut end = 0;
        for Tensor { name, shape, values } in &self.tensors {
            if shape.iter().try_fold(1, |n: usize, &m| n.checked_mul(m)) != Some(values.len()) {
                let expected = format!("the values of shape {shape:?}");
                return Err(Problem::tensor(name, &expected, &values.len().to_string()));
            }
            let offsets = [end, end + size_of_val(&values[..])];
            end = offsets[1];
            let info = json!({ "dtype": "F32", "shape": shape, "data_offsets": offsets });
            if header.insert(name.clone(), info).is_some() {
                return Err(Problem::tensor(name, "a name of its own", "one taken"));
            }
        }
        let mut json = Value::Object(header).to_string().into_bytes();
        json.resize(json.len().next_multiple_of(PREFIX_SIZE as usize), b' ');
        check_limits(json.len() as u64, end as u64)?;
        Ok([&(json.len() as u64).to_le_bytes(), &json[..]].concat())
    }
}

/// Why a checkpoint could not be saved, loaded or used.
#[derive(Debug)]
pub struct CheckpointError {
    pub file: PathBuf,
    pub problem: Problem,
}

/// What is wrong with a file. Sizes are bytes.
#[derive(Debug)]
pub enum Problem {
    /// The system refused. A missing file is one with [`io::ErrorKind::NotFound`].
    Io { action: &'static str, source: io::Error },
    /// A header is not of safetensors, contradicts itself or has a key twice.
    Header { found: String },
    /// A header or a file is larger than this module writes and reads. The header's size is also
    /// what is wrong with a file of quite another kind.
    Limit { of: &'static str, limit: u64, found: u64 },
    /// A file ends before its header said, or inside its header, or goes on after it.
    Size { expected: u64, found: u64 },
    /// A tensor is not of `f32`; or, to be saved, has a name twice or not the values of its shape.
    Tensor { name: String, expected: String, found: String },
    /// A tensor asked for has another shape, or is not there.
    Shape { name: String, expected: Vec<usize>, found: Option<Vec<usize>> },
    /// Metadata asked for are not there.
    Metadata { key: String },
}

impl Problem {
    fn of(file: &Path) -> impl Fn(Self) -> CheckpointError {
        |problem| CheckpointError { file: file.into(), problem }
    }

    fn io(action: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { action, source }
    }

    fn tensor(name: &str, expected: &str, found: &str) -> Self {
        Self::Tensor { name: name.into(), expected: expected.into(), found: found.into() }
    }
}

impl fmt::Display for CheckpointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.file.display())?;
        match &self.problem {
            Problem::Io { action, source } => write!(f, "cannot {action}: {source}"),
            Problem::Header { found } => write!(f, "expected a safetensors header, found: {found}"),
            Problem::Limit { of, limit, found } => {
                write!(f, "expected a safetensors {of} of at most {limit} bytes, found {found}")
            }
            Problem::Size { expected, found } => {
                write!(f, "expected {expected} bytes, found {found}")
            }
            Problem::Tensor { name, expected, found } => {
                write!(f, "tensor {}: expected {expected}, found {found}", name.escape_debug())
            }
            Problem::Shape { name, expected, found } => {
                let found = found.as_ref().map_or("none".into(), |shape| format!("{shape:?}"));
                write!(f, "tensor {name}: expected shape {expected:?}, found {found}")
            }
            Problem::Metadata { key } => write!(f, "expected metadata {key}, found none"),
        }
    }
}

impl std::error::Error for CheckpointError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        if let Problem::Io { source, .. } = &self.problem { Some(source) } else { None }
    }
}

/// Puts what `write` writes in the place of a file, at once or not at all.
fn replace(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<(), Problem> {
    let folder =
        path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // The process id alone may come back: in a restarted container it does.
    let (process, random) = (std::process::id(), RandomState::new().hash_one(0));
    let temporary = folder.join(format!(".checkpoint-{process}-{random:016x}.tmp"));
    let create = Problem::io("create a temporary file beside it");
    let mut file = File::create_new(&temporary).map_err(create)?;
    let written = write(&mut file).and_then(|()| file.sync_all());
    drop(file);
    let replaced = written
        .map_err(Problem::io("write a temporary file beside it"))
        .and_then(|()| fs::rename(&temporary, path).map_err(Problem::io("replace it")));
    if replaced.is_err() {
        let _ = fs::remove_file(&temporary);
    } else if cfg!(unix) {
        // Some file systems refuse. The new file is in its place nevertheless; only a loss of power
        // may bring back the old one.
        let _ = File::open(folder).and_then(|folder| folder.sync_all());
    }
    replaced
}

/// The size of a file.
fn check_limits(header_size: u64, data_size: u64) -> Result<u64, Problem> {
    let size = PREFIX_SIZE.saturating_add(header_size).saturating_add(data_size);
    for (of, limit, found) in [("header", MAX_HEADER_SIZE, header_size), ("file", MAX_SIZE, size)] {
        if found > limit {
            return Err(Problem::Limit { of, limit, found });
        }
    }
    Ok(size)
}

fn read(mut reader: impl Read) -> Result<(Vec<Tensor>, BTreeMap<String, String>), Problem> {
    let mut at = 0;
    // The next `size` bytes of at least `expected` in all. Memory grows with what is really there.
    let mut next = |size: u64, expected: u64| {
        let mut bytes = Vec::new();
        let result = reader.by_ref().take(size).read_to_end(&mut bytes);
        at += result.map_err(Problem::io("read it"))? as u64;
        let complete = bytes.len() as u64 == size;
        if complete { Ok(bytes) } else { Err(Problem::Size { expected, found: at }) }
    };
    let header_size = next(PREFIX_SIZE, PREFIX_SIZE)?;
    let header_size = header_size.iter().rev().fold(0, |size, &byte| size << 8 | u64::from(byte));
    let header = next(header_size, check_limits(header_size, 0)?)?;
    if let Some(key) = duplicate(&header) {
        return Err(Problem::Header { found: format!("the key {key:?} twice") });
    }
    let header: Metadata = serde_json::from_slice(&header)
        .map_err(|error| Problem::Header { found: error.to_string() })?;
    let size = check_limits(header_size, header.data_len() as u64)?;
    let mut infos: Vec<_> = header.tensors().into_iter().collect();
    infos.sort_by(|(a, x), (b, y)| (x.data_offsets, a).cmp(&(y.data_offsets, b)));
    if let Some((name, info)) = infos.iter().find(|(_, info)| info.dtype != Dtype::F32) {
        return Err(Problem::tensor(name, "F32", &info.dtype.to_string()));
    }
    let mut tensors = Vec::new();
    for (name, info) in infos {
        // The parser made sure of it: no gaps between tensors, and each has the size of its shape.
        let bytes = next((info.data_offsets.1 - info.data_offsets.0) as u64, size)?;
        let value = |word: &[u8]| f32::from_le_bytes([word[0], word[1], word[2], word[3]]);
        let values = bytes.chunks_exact(4).map(value).collect();
        tensors.push(Tensor { name, shape: info.shape.clone(), values });
    }
    let rest = io::copy(&mut reader.take(MAX_SIZE), &mut io::sink());
    match rest.map_err(Problem::io("read it"))? {
        0 => Ok((tensors, header.metadata().clone().into_iter().flatten().collect())),
        rest => Err(Problem::Size { expected: size, found: size + rest }),
    }
}

/// A key that an object of a JSON text has twice; a parser would keep the last, in silence. What is
/// no JSON is left to the parser.
fn duplicate(json: &[u8]) -> Option<String> {
    let mut objects = Vec::new();
    let mut rest = json;
    while let [first, after @ ..] = rest {
        let mut texts = Deserializer::from_slice(rest).into_iter::<String>();
        rest = after;
        match first {
            b'{' => objects.push(BTreeSet::new()),
            b'}' => drop(objects.pop()),
            b'"' => {
                let text = texts.next()?.ok()?;
                rest = &after[texts.byte_offset() - 1..];
                if rest.trim_ascii_start().starts_with(b":") {
                    if let Some(text) = objects.last_mut()?.replace(text) {
                        return Some(text);
                    }
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    use safetensors::SafeTensors;

    use super::*;

    /// A folder of one test, removed at its end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(test: &str) -> Self {
            let process = std::process::id();
            let dir = std::env::temp_dir().join(format!("digits-checkpoint-{process}-{test}"));
            let _ = fs::remove_dir_all(&dir);
            fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }

        fn file(&self) -> PathBuf {
            self.0.join("model.safetensors")
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(&self.0).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn tensor(name: &str, shape: &[usize], values: Vec<f32>) -> Tensor {
        Tensor { name: name.into(), shape: shape.into(), values }
    }

    fn small() -> Checkpoint {
        let metadata = [("epoch", "3"), ("a key", "a value")];
        let tensors = vec![
            tensor("conv.weight", &[2, 1, 2], vec![1.0, -2.0, f32::NAN, 0.5]),
            tensor("bias", &[3], vec![0.1, 0.2, 0.3]),
        ];
        Checkpoint::new(tensors, metadata.map(|(key, value)| (key.into(), value.into())).into())
    }

    fn bytes(checkpoint: &Checkpoint) -> Vec<u8> {
        let mut bytes = checkpoint.header().unwrap();
        let values = checkpoint.tensors.iter().flat_map(|tensor| &tensor.values);
        bytes.extend(values.flat_map(|value| value.to_le_bytes()));
        bytes
    }

    /// A file of this header and data.
    fn raw(header: &str, data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
    }

    type Content = (Vec<(String, Vec<usize>, Vec<u32>)>, BTreeMap<String, String>);

    /// All of it, and values by their bits.
    fn content(tensors: &[Tensor], metadata: &BTreeMap<String, String>) -> Content {
        let tensors = tensors.iter().map(|Tensor { name, shape, values }| {
            (name.clone(), shape.clone(), values.iter().map(|value| value.to_bits()).collect())
        });
        (tensors.collect(), metadata.clone())
    }

    fn all(checkpoint: &Checkpoint) -> Content {
        content(&checkpoint.tensors, &checkpoint.metadata)
    }

    #[test]
    fn every_bit_comes_back() {
        let folder = Folder::new("bits");
        let special = [
            0x0000_0000, // 0
            0x8000_0000, // −0
            0x0000_0001, // denormals
            0x807f_ffff,
            0x7f80_0000, // infinities
            0xff80_0000,
            0x7f80_0001, // NaN: signalling, quiet, with payloads
            0x7fc0_0000,
            0xffc1_2345,
            0xffff_ffff,
        ];
        let mut random = fastrand::Rng::with_seed(1);
        let noise = (0..6000).map(|_| f32::from_bits(random.u32(..))).collect();
        let tensors = vec![
            tensor("special", &[2, 5], special.map(f32::from_bits).into()),
            tensor("noise", &[10, 20, 30], noise),
            tensor("scalar", &[], vec![-1.5]),
            tensor("empty", &[3, 0, usize::MAX], vec![]),
            tensor("größe/尺寸/📏", &[1], vec![2.0]),
            tensor("", &[1], vec![3.0]),
            tensor("\"\\\n\0{:", &[1], vec![4.0]),
        ];
        let metadata = [("", ""), ("größe", "\"尺寸\"\n"), ("special", "no tensor's key")];
        let metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        for checkpoint in
            [small(), Checkpoint::new(tensors, metadata), Checkpoint::new(vec![], [].into())]
        {
            let path = folder.0.join("modèle 模型.safetensors");
            checkpoint.save(&path).unwrap();
            let loaded = Checkpoint::load(&path).unwrap();
            assert_eq!(all(&loaded), all(&checkpoint));
            let found = fs::read(&path).unwrap();
            assert_eq!(found, bytes(&loaded), "equal checkpoints make equal files");
            let others = SafeTensors::deserialize(&found).unwrap();
            assert_eq!(others.len(), checkpoint.tensors.len());
            for Tensor { name, shape, values } in &checkpoint.tensors {
                let view = others.tensor(name).unwrap();
                assert_eq!((view.dtype(), view.shape()), (Dtype::F32, &shape[..]));
                assert_eq!(view.data().len(), 4 * values.len());
            }
            assert_eq!(folder.names().len(), 1, "{:?}", folder.names());
        }
    }

    #[test]
    fn files_of_other_programs_are_read_in_the_order_of_their_values() {
        let header = r#" {"b" : {"shape":[1],"dtype":"F32","data_offsets":[4,8]},
            "\u0061":{"dtype":"F32","shape":[],"data_offsets":[0,4],"more":1} } "#;
        let (tensors, metadata) = read(&raw(header, &[0, 0, 128, 63, 0, 0, 0, 64])[..]).unwrap();
        let expected = [tensor("a", &[], vec![1.0]), tensor("b", &[1], vec![2.0])];
        assert_eq!(content(&tensors, &metadata), content(&expected, &[].into()));
    }

    #[test]
    fn what_is_asked_for_must_be_there() {
        let folder = Folder::new("ask");
        let path = folder.file();
        small().save(&path).unwrap();
        let loaded = Checkpoint::load(&path).unwrap();
        assert_eq!(loaded.tensor("bias", &[3]).unwrap(), [0.1, 0.2, 0.3]);
        assert_eq!(loaded.metadata("epoch").unwrap(), "3");
        for (error, expected) in [
            (loaded.tensor("bias", &[1, 3]).err(), "tensor bias: expected shape [1, 3], found [3]"),
            (loaded.tensor("beta", &[]).err(), "tensor beta: expected shape [], found none"),
            (loaded.metadata("epochs").err(), "expected metadata epochs, found none"),
        ] {
            assert_eq!(error.unwrap().to_string(), format!("{}: {expected}", path.display()));
        }
    }

    #[test]
    fn every_cut_is_found() {
        let whole = bytes(&small());
        let header_size = small().header().unwrap().len();
        assert!(read(&whole[..]).is_ok());
        for cut in 0..whole.len() {
            let wanted = match cut {
                0..8 => 8,
                _ if cut < header_size => header_size,
                _ => whole.len(),
            } as u64;
            let problem = read(&whole[..cut]).err();
            assert!(
                matches!(problem, Some(Problem::Size { expected, found })
                    if (expected, found) == (wanted, cut as u64)),
                "{cut}: {problem:?}"
            );
        }
    }

    #[test]
    fn no_byte_of_a_header_can_do_harm() {
        let whole = bytes(&small());
        let (mut refused, mut read_on) = (0, 0);
        for at in 0..small().header().unwrap().len() {
            for flip in 1..=255 {
                let mut bytes = whole.clone();
                bytes[at] ^= flip;
                let Ok((tensors, _)) = read(&bytes[..]) else {
                    refused += 1;
                    continue;
                };
                read_on += 1;
                for Tensor { name, shape, values } in tensors {
                    assert_eq!(shape.iter().product::<usize>(), values.len(), "{at} {flip} {name}");
                }
            }
        }
        // Another letter in a name, say, makes a good file.
        assert!(refused > 0 && read_on > 0, "{refused} refused, {read_on} read");
    }

    #[test]
    fn broken_files_say_what_is_wrong() {
        let info = |dtype: &str, shape: &str, begin: u64, end: u64| {
            format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
        };
        let a = |info: String| raw(&format!(r#"{{"a":{info}}}"#), &[0; 8]);
        let good = info("F32", "[2]", 0, 8);
        let json = |json: &str| raw(json, &[0; 8]);
        // Each alone is a possible tensor; where the last one ends is `u64::MAX - 31`.
        let vast = (0..8).map(|i| {
            let size = (1 << 61) - 4;
            format!(
                r#""{i}":{}"#,
                info("F32", &format!("[{}]", size / 4), i * size, (i + 1) * size)
            )
        });
        let vast = vast.collect::<Vec<_>>().join(",");
        let deep = "[".repeat(100_000);
        #[rustfmt::skip]
        let cases: Vec<(Vec<u8>, &str)> = vec![
            (vec![], "expected 8 bytes, found 0"),
            (b"PK\x03\x04\0\0\0\0".into(), "expected a safetensors header of at most 1048576 bytes, found 67324752"),
            (b"<!DOCTYPE html>".into(), "expected a safetensors header of at most 1048576 bytes, found 5789751444030890300"),
            (vec![255; 100], "expected a safetensors header of at most 1048576 bytes, found 18446744073709551615"),
            ([&(1u64 << 20).to_le_bytes(), &b"{}"[..]].concat(), "expected 1048584 bytes, found 10"),
            (vec![0; 100], "expected a safetensors header, found: EOF while parsing"),
            (json("{"), "expected a safetensors header, found: EOF while parsing"),
            (json("[]"), "expected a safetensors header, found: invalid type"),
            (json("{}{}"), "expected a safetensors header, found: trailing characters"),
            (json(r#"{"a"#), "expected a safetensors header, found: EOF while parsing"),
            (json(r#""a":1"#), "expected a safetensors header, found: invalid type"),
            (json(r#"{"a":1}"#), "expected a safetensors header, found: invalid type"),
            (json(r#"{"__metadata__":{"epoch":3}}"#), "expected a safetensors header, found: invalid type"),
            (json(&format!(r#"{{"a":{deep}"#)), "expected a safetensors header, found: recursion limit"),
            (raw("{\"\u{1}\":1}", &[]), "expected a safetensors header, found: control character"),
            ([&[2, 0, 0, 0, 0, 0, 0, 0][..], b"{\xff"].concat(), "expected a safetensors header, found: key must be a string"),
            (a(info("F31", "[2]", 0, 8)), "expected a safetensors header, found: unknown variant `F31`"),
            (a(info("F32", "[2.0]", 0, 8)), "expected a safetensors header, found: invalid type"),
            (a(info("F32", "[-2]", 0, 8)), "expected a safetensors header, found: invalid value"),
            (a(info("F32", "[3]", 0, 8)), "expected a safetensors header, found: invalid shape, data type, or offset"),
            (a(info("F32", "[0]", 0, 8)), "expected a safetensors header, found: invalid shape, data type, or offset"),
            (a(info("F32", "[4294967296,4294967296]", 0, 0)), "expected a safetensors header, found: overflow"),
            (a(info("F32", "[1]", 4, 8)), "expected a safetensors header, found: invalid offset for tensor `a`"),
            (a(info("F32", "[2]", 8, 0)), "expected a safetensors header, found: invalid offset for tensor `a`"),
            (a(r#"{"dtype":"F32","shape":[2]}"#.into()), "expected a safetensors header, found: missing field `data_offsets`"),
            (a(info("F32", "[1]", 0, 4)), "expected 66 bytes, found 70"),
            (a(info("F32", "[4]", 0, 16)), "expected 79 bytes, found 71"),
            (a(info("F32", "[268435456]", 0, 1 << 30)), "expected a safetensors file of at most 1073741824 bytes, found 1073741903"),
            (json(&format!("{{{vast}}}")), "expected a safetensors file of at most 1073741824 bytes, found 18446744073709551615"),
            (a(info("F16", "[4]", 0, 8)), "tensor a: expected F32, found F16"),
            (a(info("I64", "[1]", 0, 8)), "tensor a: expected F32, found I64"),
            (json(&format!(r#"{{"a":{good},"a":{good}}}"#)), r#"expected a safetensors header, found: the key "a" twice"#),
            (json(&format!(r#"{{"a":{good},"\u0061" :{good}}}"#)), r#"expected a safetensors header, found: the key "a" twice"#),
            (json(r#"{"__metadata__":{},"__metadata__":{}}"#), r#"expected a safetensors header, found: the key "__metadata__" twice"#),
            (json(r#"{"__metadata__":{"epoch":"3","epoch":"4"}}"#), r#"expected a safetensors header, found: the key "epoch" twice"#),
            (a(good.replace("{", r#"{"shape":[3],"#)), r#"expected a safetensors header, found: the key "shape" twice"#),
        ];
        let folder = Folder::new("broken");
        let path = folder.file();
        for (bytes, expected) in cases {
            fs::write(&path, bytes).unwrap();
            let error = Checkpoint::load(&path).unwrap_err();
            let expected = format!("{}: {expected}", path.display());
            assert!(error.to_string().starts_with(&expected), "{error} is not {expected}");
        }
        for path in [folder.0.join("other"), folder.0.clone()] {
            let error = Checkpoint::load(&path).unwrap_err();
            assert!(matches!(error.problem, Problem::Io { .. }), "{error:?}");
            assert!(error.to_string().starts_with(&path.display().to_string()), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_saved_leaves_the_old_file() {
        let folder = Folder::new("unsaved");
        let path = folder.file();
        small().save(&path).unwrap();
        let old = fs::read(&path).unwrap();
        let with = |tensors: &[Tensor]| Checkpoint::new(tensors.into(), [].into());
        let x = |shape: &[usize], count| tensor("x", shape, vec![0.0; count]);
        let long = [("long".into(), "long".repeat(1 << 18))].into();
        for (checkpoint, expected) in [
            (with(&[x(&[2], 3)]), "tensor x: expected the values of shape [2], found 3"),
            (with(&[x(&[], 0)]), "tensor x: expected the values of shape [], found 0"),
            (with(&[x(&[usize::MAX, 2], 3)]), "tensor x: expected the values of shape ["),
            (with(&[x(&[1], 1), x(&[2], 2)]), "tensor x: expected a name of its own, found one"),
            (with(&[tensor("__metadata__", &[0], vec![])]), "tensor __metadata__: expected a name"),
            (Checkpoint::new(vec![], long), "expected a safetensors header of at most 1048576"),
        ] {
            let error = checkpoint.save(&path).unwrap_err();
            let expected = format!("{}: {expected}", path.display());
            assert!(error.to_string().starts_with(&expected), "{error} is not {expected}");
        }

        // A disk that is full halfway, a folder in the way, and no folder.
        let problem = replace(&path, |file| {
            file.write_all(&old[..old.len() / 2])?;
            Err(io::ErrorKind::StorageFull.into())
        });
        assert!(
            matches!(problem, Err(Problem::Io { action, .. }) if action.starts_with("write")),
            "{problem:?}"
        );
        for (path, action) in [(folder.0.clone(), "replace"), (path.join("x"), "create")] {
            let error = small().save(&path).unwrap_err();
            assert!(error.to_string().contains(&format!("cannot {action}")), "{error}");
        }
        let missing = folder.0.join("missing").join("model.safetensors");
        let error = small().save(&missing).unwrap_err();
        assert!(
            matches!(&error.problem, Problem::Io { source, .. }
                if source.kind() == io::ErrorKind::NotFound),
            "{error:?}"
        );
        assert_eq!((folder.names().len(), fs::read(&path).unwrap()), (1, old));
    }

    const KILLED: &str = "DIGITS_CHECKPOINT_KILLED";

    /// What the killed process saves in turn.
    fn large() -> [Checkpoint; 2] {
        [(1, 300_000), (2, 200_000)].map(|(seed, count)| {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut values = || (0..count).map(|_| random.f32()).collect();
            let tensors = vec![tensor("a", &[count], values()), tensor("b", &[count], values())];
            Checkpoint::new(tensors, [("seed".into(), seed.to_string())].into())
        })
    }

    /// A process that does not outlive the test.
    struct Process(Child);

    impl Drop for Process {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn a_kill_leaves_one_file_or_the_other() {
        let start = Instant::now();
        let folder = Folder::new("kill");
        let path = folder.file();
        let expected = large().map(|checkpoint| all(&checkpoint));
        let child = format!("{}::saves_until_killed", module_path!().split_once("::").unwrap().1);
        let mut random = fastrand::Rng::new();
        let mut kills = 0;
        while kills < 20 && start.elapsed() < Duration::from_secs(2) {
            let _ = fs::remove_file(&path);
            let mut process = Process(
                Command::new(std::env::current_exe().unwrap())
                    .args([&child, "--exact"])
                    .env(KILLED, &path)
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn()
                    .unwrap(),
            );
            while !path.exists() {
                assert_eq!(process.0.try_wait().unwrap(), None, "the child ended");
                std::thread::sleep(Duration::from_millis(1));
            }
            std::thread::sleep(Duration::from_micros(random.u64(..30_000)));
            process.0.kill().unwrap();
            drop(process);
            let found = Checkpoint::load(&path).unwrap_or_else(|error| panic!("{error}"));
            assert!(expected.contains(&all(&found)), "neither, of seed {:?}", found.metadata);
            kills += 1;
        }
        let torn = folder.names().len() - 1;
        println!("{kills} kills, {torn} within a save");
        assert!(kills < 10 || torn > 0, "no kill met a save");
    }

    /// The process that `a_kill_leaves_one_file_or_the_other` kills; alone, it has nothing to do.
    #[test]
    fn saves_until_killed() {
        let Some(path) = std::env::var_os(KILLED) else { return };
        let start = Instant::now();
        for checkpoint in large().iter().cycle() {
            checkpoint.save(Path::new(&path)).unwrap();
            if start.elapsed() > Duration::from_secs(10) {
                break;
            }
        }
    }
}
