//! Labelled images of 28×28: the handwritten digits shipped beside this file, or a folder in the
//! format of MNIST and Fashion-MNIST.
//!
//! A file is not believed before it is read: its header never decides an allocation, and every way
//! it can be wrong is a [`DataError`] that names the file, the byte, what was expected and what was
//! found.

use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

/// Rows of an image, and columns.
pub const SIDE: usize = 28;
/// Labels are 0 to 9.
pub const CLASSES: usize = 10;

const PIXELS: usize = SIDE * SIDE;
/// More than the largest set of this format and classes (EMNIST Digits: 240,000) has in one file.
const MAX_IMAGES: u32 = 500_000;

const DIGITS: &[u8] = include_bytes!("data/digits.csv.gz");
/// The usual split, without a shuffle across the two: the tail is other handwriting.
const DIGITS_TRAIN: usize = 1437;
const DIGITS_TEST: usize = 360;
const DIGITS_SIDE: usize = 8;
const DIGITS_SCALE: usize = 3;
const DIGITS_PADDING: usize = 2;
/// Twice what the shipped file unpacks to.
const DIGITS_LIMIT: u64 = 1 << 19;

/// Images and their labels.
#[derive(Debug, Clone, PartialEq)]
pub struct Images {
    /// `len · SIDE · SIDE` values, row by row, each in `0.0..=1.0` (see [`Shift::Noise`] for the
    /// exception): 0 is the background, 1 is ink.
    pub pixels: Vec<f32>,
    /// `len` labels below [`CLASSES`].
    pub labels: Vec<u8>,
}

/// Images to learn from, and images to be judged by.
#[derive(Debug, Clone, PartialEq)]
pub struct DataSet {
    /// For titles: `digits`, or the folder's name.
    pub name: String,
    pub train: Images,
    pub test: Images,
}

/// How a camera or a scanner may change under a trained network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shift {
    /// `1 − p`: dark on light.
    Invert,
    /// `p` + a normal deviate of standard deviation 0.3. Not clamped, which would move the mean of
    /// the background: pixels leave `0.0..=1.0`.
    Noise,
    /// `0.5·p + 0.5`: too much light, half the contrast.
    Bright,
}

impl Images {
    /// The number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// The `SIDE · SIDE` pixels of image `i`, row by row.
    pub fn image(&self, i: usize) -> &[f32] {
        &self.pixels[i * PIXELS..(i + 1) * PIXELS]
    }

    /// The same images and labels under a shift. `seed` decides the noise, and nothing else.
    pub fn shifted(&self, shift: Shift, seed: u64) -> Images {
        let mut random = SplitMix(seed);
        let shifted = |&p: &f32| match shift {
            Shift::Invert => 1.0 - p,
            Shift::Noise => p + 0.3 * random.normal() as f32,
            Shift::Bright => 0.5 * p + 0.5,
        };
        Images { pixels: self.pixels.iter().map(shifted).collect(), labels: self.labels.clone() }
    }
}

/// The shipped digits: 1,437 to train and 360 to test, each 8×8 image enlarged three times and
/// framed by two zeros on every side.
///
/// # Errors
/// [`DataError::Csv`], [`DataError::Gzip`], when somebody changed the shipped file.
pub fn digits() -> Result<DataSet, DataError> {
    let mut train = read_csv("digits.csv.gz", DIGITS)?;
    let test = Images {
        pixels: train.pixels.split_off(DIGITS_TRAIN * PIXELS),
        labels: train.labels.split_off(DIGITS_TRAIN),
    };
    Ok(DataSet { name: "digits".into(), train, test })
}

/// A folder with the four files of MNIST, Fashion-MNIST or a set of their shape:
/// `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and
/// `t10k-labels-idx1-ubyte`. Each may have a dot before `idx`, and each may be packed as `.gz`;
/// where several are there, the unpacked one is read.
///
/// # Errors
/// Any [`DataError`] but [`DataError::Csv`].
pub fn idx_folder(dir: &Path) -> Result<DataSet, DataError> {
    let name = dir.file_name().unwrap_or(dir.as_os_str()).to_string_lossy().into_owned();
    Ok(DataSet { name, train: read_images(dir, "train")?, test: read_images(dir, "t10k")? })
}

/// Why images could not be read. Offsets count unpacked bytes.
#[derive(Debug)]
pub enum DataError {
    /// There is no such file under any of its four names. The only error without an offset.
    Missing { file: PathBuf },
    /// The system could not open or read a file.
    Io { place: Place, source: io::Error },
    /// A packed file is cut, damaged, followed by something else, or no gzip at all.
    Gzip { place: Place, source: io::Error },
    /// An IDX file has the wrong type of element or number of dimensions, or is no IDX file.
    Magic { place: Place, expected: u32, found: u32 },
    /// A header claims no images, or more than any such set has.
    Count { place: Place, found: u32 },
    /// Images are not 28×28.
    Side { place: Place, found: u32 },
    /// A file ends before its header said, or inside its header.
    Truncated { place: Place, expected: u64 },
    /// A file goes on after its header said.
    Trailing { place: Place },
    /// A label that is no class.
    Label { place: Place, found: u8 },
    /// A labels file and its images file are not of one set.
    Pairing { place: Place, images: usize, labels: usize },
    /// The shipped digits are not as they were shipped.
    Csv { place: Place, expected: &'static str, found: String },
}

/// Where in which file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub file: PathBuf,
    /// Bytes from the beginning of the unpacked file.
    pub at: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unpacked = if is_packed(&self.file) { "unpacked " } else { "" };
        write!(f, "{}, {unpacked}byte {}", self.file.display(), self.at)
    }
}

impl fmt::Display for DataError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { file } => write!(
                f,
                "{}: expected this file, or it with a dot before `idx`, or either with `.gz`, \
                 found none",
                file.display()
            ),
            Self::Io { place, source } => {
                write!(f, "{place}: expected to read on, found: {source}")
            }
            Self::Gzip { place, source } => {
                write!(f, "{place}: expected an intact gzip stream, found: {source}")
            }
            Self::Magic { place, expected, found } => {
                write!(
                    f,
                    "{place}: expected the magic number {expected:#010x}, found {found:#010x}"
                )
            }
            Self::Count { place, found } => {
                write!(f, "{place}: expected a count of 1 to {MAX_IMAGES}, found {found}")
            }
            Self::Side { place, found } => {
                write!(f, "{place}: expected {SIDE} rows and columns, found {found}")
            }
            Self::Truncated { place, expected } => {
                write!(f, "{place}: expected {expected} bytes, found the end of the file")
            }
            Self::Trailing { place } => {
                write!(f, "{place}: expected the end of the file, found more bytes")
            }
            Self::Label { place, found } => {
                write!(f, "{place}: expected a label below {CLASSES}, found {found}")
            }
            Self::Pairing { place, images, labels } => {
                write!(f, "{place}: expected {images} labels, one per image, found {labels}")
            }
            Self::Csv { place, expected, found } => {
                write!(f, "{place}: expected {expected}, found `{found}`")
            }
        }
    }
}

impl std::error::Error for DataError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } | Self::Gzip { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// A file being read, unpacked on the way when its name says so.
struct Source<'a> {
    file: PathBuf,
    reader: Box<dyn Read + 'a>,
    at: u64,
}

impl<'a> Source<'a> {
    fn new(file: PathBuf, reader: impl Read + 'a) -> Self {
        // The Multi decoder, because the other one ignores what follows the first stream.
        let reader: Box<dyn Read + 'a> = match is_packed(&file) {
            true => Box::new(MultiGzDecoder::new(reader)),
            false => Box::new(reader),
        };
        Self { file, reader, at: 0 }
    }

    /// Opens the first of a file's names that is there.
    fn open(dir: &Path, stem: &str, ending: &str) -> Result<Self, DataError> {
        for packing in ["", ".gz"] {
            for separator in ["-", "."] {
                let file = dir.join(format!("{stem}{separator}{ending}{packing}"));
                match File::open(&file) {
                    Ok(reader) => return Ok(Self::new(file, reader)),
                    Err(source) if source.kind() == ErrorKind::NotFound => {}
                    Err(source) => {
                        return Err(DataError::Io { place: Place { file, at: 0 }, source });
                    }
                }
            }
        }
        Err(DataError::Missing { file: dir.join(format!("{stem}-{ending}")) })
    }

    /// The next `limit` bytes, or fewer at the end. Memory grows with what is really there.
    fn read(&mut self, limit: u64) -> Result<Vec<u8>, DataError> {
        let mut bytes = Vec::new();
        let result = self.reader.by_ref().take(limit).read_to_end(&mut bytes);
        self.at += bytes.len() as u64;
        result.map_err(|source| {
            let place = self.place(self.at);
            match source.kind() {
                ErrorKind::InvalidInput | ErrorKind::InvalidData | ErrorKind::UnexpectedEof
                    if is_packed(&self.file) =>
                {
                    DataError::Gzip { place, source }
                }
                _ => DataError::Io { place, source },
            }
        })?;
        Ok(bytes)
    }

    fn place(&self, at: u64) -> Place {
        Place { file: self.file.clone(), at }
    }
}

fn is_packed(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "gz")
}

/// The images and labels of one half of an IDX folder.
fn read_images(dir: &Path, half: &str) -> Result<Images, DataError> {
    let mut source = Source::open(dir, &format!("{half}-images"), "idx3-ubyte")?;
    let bytes = read_idx(&mut source, 2)?;

    let mut source = Source::open(dir, &format!("{half}-labels"), "idx1-ubyte")?;
    let labels = read_idx(&mut source, 0)?;
    if labels.len() * PIXELS != bytes.len() {
        let (images, labels) = (bytes.len() / PIXELS, labels.len());
        return Err(DataError::Pairing { place: source.place(4), images, labels });
    }
    if let Some(i) = labels.iter().position(|&label| usize::from(label) >= CLASSES) {
        return Err(DataError::Label { place: source.place(8 + i as u64), found: labels[i] });
    }
    Ok(Images { pixels: bytes.iter().map(|&byte| f32::from(byte) / 255.0).collect(), labels })
}

/// The elements of an IDX file of bytes: a magic number, the count of items, `sides` times the
/// number 28, all big-endian; then the items, and not one byte more.
fn read_idx(source: &mut Source<'_>, sides: usize) -> Result<Vec<u8>, DataError> {
    let header_size = 8 + 4 * sides as u64;
    let header = source.read(header_size)?;
    let field = |i: usize| {
        let word = header.get(4 * i..).and_then(|rest| rest.first_chunk());
        let place = source.place(if word.is_some() { 4 * i as u64 } else { source.at });
        match word {
            Some(&word) => Ok((place, u32::from_be_bytes(word))),
            None => Err(DataError::Truncated { place, expected: header_size }),
        }
    };

    // 0x08 is the type "unsigned byte", then comes the number of dimensions.
    let expected = 0x0800 + 1 + sides as u32;
    let (place, found) = field(0)?;
    if found != expected {
        return Err(DataError::Magic { place, expected, found });
    }
    let (place, count) = field(1)?;
    if !(1..=MAX_IMAGES).contains(&count) {
        return Err(DataError::Count { place, found: count });
    }
    for i in 0..sides {
        let (place, found) = field(2 + i)?;
        if found != SIDE as u32 {
            return Err(DataError::Side { place, found });
        }
    }

    // One byte more than there should be shows what trails, and reads the checksum of a packed
    // file.
    let size = u64::from(count) * (SIDE as u64).pow(sides as u32);
    let items = source.read(size + 1)?;
    match (items.len() as u64).cmp(&size) {
        std::cmp::Ordering::Equal => Ok(items),
        std::cmp::Ordering::Less => {
            let expected = header_size + size;
            Err(DataError::Truncated { place: source.place(source.at), expected })
        }
        std::cmp::Ordering::Greater => {
            Err(DataError::Trailing { place: source.place(header_size + size) })
        }
    }
}

/// The shipped digits, all of them: lines of 64 pixels 0 to 16 and a label.
fn read_csv(file: &str, packed: &[u8]) -> Result<Images, DataError> {
    const FIELDS: usize = DIGITS_SIDE * DIGITS_SIDE + 1;
    let mut source = Source::new(file.into(), packed);
    let text = source.read(DIGITS_LIMIT)?;
    let wrong = |at: usize, expected, found: &[u8]| {
        let found = String::from_utf8_lossy(found).into_owned();
        DataError::Csv { place: source.place(at as u64), expected, found }
    };

    let mut images = Images { pixels: Vec::new(), labels: Vec::new() };
    let mut at = 0;
    for line in text.split_inclusive(|&byte| byte == b'\n') {
        let end = at + line.len();
        let line = line.trim_ascii_end();
        let mut values = [0; FIELDS];
        let mut fields = line.split(|&byte| byte == b',');
        for (i, value) in values.iter_mut().enumerate() {
            let (max, expected) = match i {
                0..64 => (16, "64 pixels of 0 to 16"),
                _ => (9, "a label of 0 to 9"),
            };
            let field = fields.next().ok_or_else(|| wrong(at, "64 pixels and a label", line))?;
            let number = str::from_utf8(field).ok().and_then(|field| field.parse().ok());
            *value = number.filter(|&n| n <= max).ok_or_else(|| wrong(at, expected, field))?;
            at += field.len() + 1;
        }
        if let Some(field) = fields.next() {
            return Err(wrong(at, "the end of the line", field));
        }
        let (pixels, label) = values.split_at(FIELDS - 1);
        enlarge(pixels, &mut images.pixels);
        images.labels.push(label[0]);
        at = end;
    }
    if images.len() != DIGITS_TRAIN + DIGITS_TEST {
        let found = format!("{} lines", images.len());
        return Err(wrong(at, "1797 lines", found.as_bytes()));
    }
    Ok(images)
}

/// Appends an 8×8 image of 0 to 16 as 28×28: every pixel becomes 3×3, in a frame of two zeros.
fn enlarge(small: &[u8], pixels: &mut Vec<f32>) {
    const { assert!(DIGITS_SIDE * DIGITS_SCALE + 2 * DIGITS_PADDING == SIDE) };
    let inside = DIGITS_PADDING..SIDE - DIGITS_PADDING;
    for row in 0..SIDE {
        for column in 0..SIDE {
            pixels.push(if inside.contains(&row) && inside.contains(&column) {
                let row = (row - DIGITS_PADDING) / DIGITS_SCALE;
                let column = (column - DIGITS_PADDING) / DIGITS_SCALE;
                f32::from(small[row * DIGITS_SIDE + column]) / 16.0
            } else {
                0.0
            });
        }
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, and the same on every machine.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// In `0.0..1.0`, a multiple of 2⁻⁵³.
    fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal, by Box and Muller.
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    /// A folder of one test, removed at its end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(test: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("digits-{}-{test}", std::process::id()));
            let _ = fs::remove_dir_all(&dir);
            fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }

        /// With a correct set of 3 images to train and 2 to test, all files plain.
        fn good(test: &str) -> Self {
            let folder = Self::new(test);
            for (half, count) in [("train", 3), ("t10k", 2)] {
                folder.write(&format!("{half}-images-idx3-ubyte"), &images(count));
                folder.write(&format!("{half}-labels-idx1-ubyte"), &labels(count));
            }
            folder
        }

        fn write(&self, name: &str, bytes: &[u8]) {
            fs::write(self.0.join(name), bytes).unwrap();
        }

        fn remove(&self, name: &str) {
            fs::remove_file(self.0.join(name)).unwrap();
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn pixel(i: usize) -> u8 {
        (i * 7 + i / 256) as u8
    }

    fn header(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_be_bytes()).collect()
    }

    fn images(count: usize) -> Vec<u8> {
        let mut bytes = header(&[0x803, count as u32, 28, 28]);
        bytes.extend((0..count * 784).map(pixel));
        bytes
    }

    fn labels(count: usize) -> Vec<u8> {
        let mut bytes = header(&[0x801, count as u32]);
        bytes.extend((0..count).map(|i| 9 - i as u8));
        bytes
    }

    fn gz(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn sum(pixels: &[f32]) -> f64 {
        pixels.iter().map(|&pixel| f64::from(pixel)).sum()
    }

    #[test]
    fn the_shipped_digits_are_complete() {
        let set = digits().unwrap();
        assert_eq!(set.name, "digits");
        // Computed from the CSV by other means: the sum of all 0..=16 values, and the labels.
        let expected = [
            (&set.train, 1437, 449_372.0, [143, 146, 142, 146, 144, 145, 144, 143, 141, 143]),
            (&set.test, 360, 112_346.0, [35, 36, 35, 37, 37, 37, 37, 36, 33, 37]),
        ];
        for (images, count, total, histogram) in expected {
            assert_eq!((images.len(), images.pixels.len()), (count, count * 784));
            let found: [usize; CLASSES] = std::array::from_fn(|class| {
                images.labels.iter().filter(|&&label| usize::from(label) == class).count()
            });
            assert_eq!(found, histogram);
            // Each value stands on 9 pixels, in sixteenths: the sums are exact.
            assert_eq!(sum(&images.pixels), total * 9.0 / 16.0);
            assert!(images.pixels.iter().all(|pixel| (0.0..=1.0).contains(pixel)));
        }
        for (images, i, total, label) in
            [(&set.train, 0, 294.0, 0), (&set.test, 0, 347.0, 2), (&set.test, 359, 392.0, 8)]
        {
            assert_eq!((sum(images.image(i)), images.labels[i]), (total * 9.0 / 16.0, label));
        }
    }

    #[test]
    fn a_digit_is_enlarged_upright_in_a_frame_of_zeros() {
        let set = digits().unwrap();
        for images in [&set.train, &set.test] {
            for i in 0..images.len() {
                for (at, &pixel) in images.image(i).iter().enumerate() {
                    let framed = [at / SIDE, at % SIDE].iter().any(|&x| !(2..26).contains(&x));
                    assert!(!framed || pixel == 0.0, "image {i} row {} {}", at / SIDE, at % SIDE);
                }
            }
        }
        // The first two lines of the first image's 8×8.
        for (y, line) in
            [[0, 0, 5, 13, 9, 1, 0, 0], [0, 0, 13, 15, 10, 15, 5, 0]].iter().enumerate()
        {
            for (row, x) in (0..9).map(|i| (2 + 3 * y + i / 3, i % 3)) {
                let found: Vec<f32> =
                    (0..8).map(|i| 16.0 * set.train.image(0)[row * SIDE + 2 + 3 * i + x]).collect();
                assert_eq!(found, line.map(|value| value as f32), "row {row}, {x} of 3");
            }
        }
    }

    #[test]
    fn a_changed_csv_is_refused() {
        let mut text = Vec::new();
        MultiGzDecoder::new(DIGITS).read_to_end(&mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        let cases = [
            (text.replacen(",13,", ",17,", 1), "byte 6: expected 64 pixels of 0 to 16, found `17`"),
            (text.replacen(",13,", ",,", 1), "byte 6: expected 64 pixels of 0 to 16, found ``"),
            (text.replacen(",13,", ",é,", 1), "byte 6: expected 64 pixels of 0 to 16, found `é`"),
            (text.replacen(",0\n", ",10\n", 1), "byte 143: expected a label of 0 to 9, found `10`"),
            (
                text.replacen(",0\n", ",0,5\n", 1),
                "byte 145: expected the end of the line, found `5`",
            ),
            (
                text.replacen(",0\n", "\n", 1),
                "byte 143: expected 64 pixels and a label, found `0,0,5",
            ),
            (text[145..].into(), "byte 264567: expected 1797 lines, found `1796 lines`"),
            (String::new(), "byte 0: expected 1797 lines, found `0 lines`"),
        ];
        for (text, expected) in cases {
            let error = read_csv("a.gz", &gz(text.as_bytes())).unwrap_err();
            assert!(matches!(error, DataError::Csv { .. }), "{error:?}");
            let expected = format!("a.gz, unpacked {expected}");
            assert!(error.to_string().starts_with(&expected), "{error} is not {expected}");
        }
        assert!(matches!(read_csv("a.gz", &DIGITS[..9000]), Err(DataError::Gzip { .. })));
    }

    #[test]
    fn idx_folders_are_read_in_every_spelling() {
        for (test, separator, packed) in
            [("plain", "-", false), ("gz", "-", true), ("dot", ".", false), ("dot-gz", ".", true)]
        {
            let folder = Folder::new(test);
            for (half, count) in [("train", 3), ("t10k", 2)] {
                for (stem, bytes) in
                    [("images-idx3", images(count)), ("labels-idx1", labels(count))]
                {
                    let name = format!("{half}-{}-ubyte", stem.replace('-', separator));
                    match packed {
                        true => folder.write(&format!("{name}.gz"), &gz(&bytes)),
                        false => folder.write(&name, &bytes),
                    }
                }
            }
            let set = idx_folder(&folder.0).unwrap();
            assert!(set.name.ends_with(test), "{}", set.name);
            for (images, count) in [(&set.train, 3), (&set.test, 2)] {
                assert_eq!(images.labels, labels(count)[8..], "{test}");
                assert_eq!(images.len(), count, "{test}");
                let expected: Vec<f32> =
                    (0..count * 784).map(|i| pixel(i) as f32 / 255.0).collect();
                assert_eq!(images.pixels, expected, "{test}");
                assert_eq!(images.image(1), &expected[784..1568], "{test}");
            }
        }
    }

    #[test]
    fn names_may_mix_the_plain_file_wins_and_streams_may_follow_each_other() {
        let folder = Folder::good("mixed");
        folder.write("train-images-idx3-ubyte.gz", b"not read");
        folder.remove("t10k-images-idx3-ubyte");
        let bytes = images(2);
        let streams = [gz(&bytes[..700]), gz(&bytes[700..])].concat();
        folder.write("t10k-images.idx3-ubyte.gz", &streams);
        let set = idx_folder(&folder.0).unwrap();
        assert_eq!((set.train.len(), set.test.len()), (3, 2));
        assert_eq!(set.test.pixels, set.train.pixels[..2 * 784]);
    }

    /// An error's variant, by name.
    fn variant(error: &DataError) -> String {
        let text = format!("{error:?}");
        text[..text.find(' ').unwrap()].into()
    }

    #[test]
    fn broken_files_are_named_with_byte_and_expectation() {
        const IMAGES: &str = "train-images-idx3-ubyte";
        const LABELS: &str = "train-labels-idx1-ubyte";
        const PACKED: &str = "train-images-idx3-ubyte.gz";
        let (image, label) = (images(3), labels(3));
        let packed = gz(&image);
        let with = |bytes: &[u8], at: usize, new: &[u8]| {
            let mut bytes = bytes.to_vec();
            bytes[at..at + new.len()].copy_from_slice(new);
            bytes
        };
        let and = |bytes: &[u8], more: &[u8]| [bytes, more].concat();
        let word = |value: u32| value.to_be_bytes();
        let huge = header(&[0x803, u32::MAX, 28, 28]);
        let bomb = gz(&and(&image, &vec![0; 1 << 26]));
        let end = packed.len();

        // What is written, then the variant and what the message says after the file's name.
        #[rustfmt::skip]
        let cases: Vec<(&str, Vec<u8>, &str, &str)> = vec![
            (IMAGES, vec![], "Truncated", "byte 0: expected 16 bytes, found the end"),
            (IMAGES, image[..3].into(), "Truncated", "byte 3: expected 16 bytes, found the end"),
            (IMAGES, image[..10].into(), "Truncated", "byte 10: expected 16 bytes, found the end"),
            (IMAGES, image[..16].into(), "Truncated", "byte 16: expected 2368 bytes, found the end"),
            (IMAGES, image[..2367].into(), "Truncated", "byte 2367: expected 2368 bytes, found the end"),
            (IMAGES, with(&image, 4, &word(500_000)), "Truncated", "byte 2368: expected 392000016 bytes"),
            (IMAGES, and(&image, &[0]), "Trailing", "byte 2368: expected the end of the file, found more"),
            (IMAGES, label.clone(), "Magic", "byte 0: expected the magic number 0x00000803, found 0x00000801"),
            (IMAGES, b"<!DOCTYPE html>".into(), "Magic", "byte 0: expected the magic number 0x00000803, found 0x3c21444f"),
            (IMAGES, with(&image, 0, &[3, 8, 0, 0]), "Magic", "byte 0: expected the magic number 0x00000803, found 0x03080000"),
            (IMAGES, with(&image, 2, &[0x0d]), "Magic", "byte 0: expected the magic number 0x00000803, found 0x00000d03"),
            (IMAGES, packed.clone(), "Magic", "byte 0: expected the magic number 0x00000803, found 0x1f8b08"),
            (IMAGES, huge.clone(), "Count", "byte 4: expected a count of 1 to 500000, found 4294967295"),
            (IMAGES, with(&image, 4, &word(500_001)), "Count", "byte 4: expected a count of 1 to 500000, found 500001"),
            (IMAGES, with(&image, 4, &word(0)), "Count", "byte 4: expected a count of 1 to 500000, found 0"),
            (IMAGES, with(&image, 8, &word(27)), "Side", "byte 8: expected 28 rows and columns, found 27"),
            (IMAGES, with(&image, 12, &word(u32::MAX)), "Side", "byte 12: expected 28 rows and columns, found 4294967295"),
            (LABELS, label[..5].into(), "Truncated", "byte 5: expected 8 bytes, found the end"),
            (LABELS, label[..10].into(), "Truncated", "byte 10: expected 11 bytes, found the end"),
            (LABELS, and(&label, b"\n"), "Trailing", "byte 11: expected the end of the file, found more"),
            (LABELS, image.clone(), "Magic", "byte 0: expected the magic number 0x00000801, found 0x00000803"),
            (LABELS, with(&label, 4, &word(u32::MAX)), "Count", "byte 4: expected a count of 1 to 500000, found 4294967295"),
            (LABELS, with(&label, 9, &[10]), "Label", "byte 9: expected a label below 10, found 10"),
            (LABELS, with(&label, 10, &[255]), "Label", "byte 10: expected a label below 10, found 255"),
            (LABELS, labels(2), "Pairing", "byte 4: expected 3 labels, one per image, found 2"),
            (LABELS, labels(4), "Pairing", "byte 4: expected 3 labels, one per image, found 4"),
            (PACKED, vec![], "Gzip", "unpacked byte 0: expected an intact gzip stream, found: "),
            (PACKED, image.clone(), "Gzip", "unpacked byte 0: expected an intact gzip stream, found: "),
            (PACKED, packed[..5].into(), "Gzip", "unpacked byte 0: expected an intact gzip stream, found: "),
            (PACKED, packed[..end - 8].into(), "Gzip", "unpacked byte 2368: expected an intact gzip stream, found: "),
            (PACKED, packed[..end - 1].into(), "Gzip", "unpacked byte 2368: expected an intact gzip stream, found: "),
            (PACKED, with(&packed, end - 6, &[1, 2]), "Gzip", "unpacked byte 2368: expected an intact gzip stream, found: "),
            (PACKED, and(&packed, b"\r\n"), "Gzip", "unpacked byte 2368: expected an intact gzip stream, found: "),
            (PACKED, and(&packed, &gz(&[0])), "Trailing", "unpacked byte 2368: expected the end of the file, found more"),
            (PACKED, gz(&image[..2000]), "Truncated", "unpacked byte 2000: expected 2368 bytes, found the end"),
            (PACKED, gz(&huge), "Count", "unpacked byte 4: expected a count of 1 to 500000, found 4294967295"),
            (PACKED, gz(&with(&image, 8, &word(32))), "Side", "unpacked byte 8: expected 28 rows and columns, found 32"),
            (PACKED, bomb, "Trailing", "unpacked byte 2368: expected the end of the file, found more"),
        ];
        let folder = Folder::new("broken");
        for half in ["train", "t10k"] {
            folder.write(&format!("{half}-images-idx3-ubyte"), &image);
            folder.write(&format!("{half}-labels-idx1-ubyte"), &label);
        }
        for half in ["train", "t10k"] {
            for (name, bytes, expected, message) in &cases {
                let name = name.replace("train", half);
                let plain = name.trim_end_matches(".gz");
                folder.remove(plain);
                folder.write(&name, bytes);
                let error = idx_folder(&folder.0).unwrap_err();
                folder.remove(&name);
                folder.write(plain, if name.contains("images") { &image } else { &label });

                assert_eq!(variant(&error), *expected, "{name}: {error}");
                let text = error.to_string();
                let message = format!("{}, {message}", folder.0.join(&name).display());
                assert!(text.starts_with(&message), "{text}\nis not\n{message}");
            }
        }
        idx_folder(&folder.0).unwrap();
    }

    #[test]
    fn a_missing_file_and_a_folder_in_its_place_are_named() {
        let folder = Folder::good("missing");
        folder.remove("t10k-labels-idx1-ubyte");
        let error = idx_folder(&folder.0).unwrap_err();
        assert_eq!(variant(&error), "Missing");
        let file = folder.0.join("t10k-labels-idx1-ubyte");
        assert!(error.to_string().starts_with(&format!("{}: expected", file.display())), "{error}");

        for name in ["t10k-labels.idx1-ubyte.gz", "t10k-labels-idx1-ubyte"] {
            fs::create_dir(folder.0.join(name)).unwrap();
            let error = idx_folder(&folder.0).unwrap_err();
            assert_eq!(variant(&error), "Io");
            assert!(error.to_string().contains(&format!("{name}, ")), "{error}");
            assert!(error.to_string().contains("byte 0: expected to read on, found: "), "{error}");
            assert!(std::error::Error::source(&error).is_some());
        }
        let error = idx_folder(&folder.0.join("no such folder")).unwrap_err();
        assert_eq!(variant(&error), "Missing");
    }

    #[test]
    fn every_prefix_of_a_file_is_an_error() {
        let (plain, packed) = (images(1), gz(&images(1)));
        for (file, bytes) in [("a", &plain), ("a.gz", &packed)] {
            for end in 0..=bytes.len() {
                let result = read_idx(&mut Source::new(file.into(), &bytes[..end]), 2);
                assert_eq!(result.is_ok(), end == bytes.len(), "{file} cut at {end}");
            }
        }
    }

    #[test]
    fn no_more_is_read_than_the_header_claims_and_one_byte() {
        let start = images(2);
        let mut read = 0;
        let endless = start.chain(io::repeat(0)).take(u64::MAX);
        let mut source = Source::new("endless".into(), Counted(endless, &mut read));
        let error = read_idx(&mut source, 2).unwrap_err();
        drop(source);
        assert_eq!(variant(&error), "Trailing");
        assert_eq!(read, 16 + 2 * 784 + 1);
    }

    struct Counted<'a, R>(R, &'a mut usize);

    impl<R: Read> Read for Counted<'_, R> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.0.read(buffer)?;
            *self.1 += count;
            Ok(count)
        }
    }

    #[test]
    fn inverted_and_bright_are_exact() {
        let images = Images { pixels: [0.0, 0.25, 0.5, 1.0].repeat(PIXELS / 4), labels: vec![7] };
        for (shift, expected) in
            [(Shift::Invert, [1.0, 0.75, 0.5, 0.0]), (Shift::Bright, [0.5, 0.625, 0.75, 1.0])]
        {
            let shifted = images.shifted(shift, 1);
            assert_eq!(shifted.pixels, expected.repeat(PIXELS / 4), "{shift:?}");
            assert_eq!(shifted.labels, [7]);
            assert_eq!(shifted, images.shifted(shift, 2), "{shift:?} takes no seed");
        }
    }

    #[test]
    fn noise_is_normal_and_decided_by_its_seed() {
        // The published first outputs of SplitMix64 from 1234567.
        let mut random = SplitMix(1_234_567);
        assert_eq!(random.next(), 6_457_827_717_110_365_317);
        assert_eq!(random.next(), 3_203_168_211_198_807_973);

        let images = digits().unwrap().test;
        let noisy = images.shifted(Shift::Noise, 5);
        assert_eq!(noisy, images.shifted(Shift::Noise, 5));
        assert_ne!(noisy, images.shifted(Shift::Noise, 6));
        assert_eq!(noisy.labels, images.labels);

        // Six standard errors of each figure over n deviates; rounding to f32 is far below.
        let n = images.pixels.len() as f64;
        let noise: Vec<f64> = (noisy.pixels.iter().zip(&images.pixels))
            .map(|(&a, &b)| f64::from(a) - f64::from(b))
            .collect();
        let mean = noise.iter().sum::<f64>() / n;
        let variance = noise.iter().map(|v| v * v).sum::<f64>() / n;
        let within = noise.iter().filter(|v| v.abs() < 0.3).count() as f64 / n;
        assert!(mean.abs() < 6.0 * 0.3 / n.sqrt(), "mean {mean}");
        assert!((variance - 0.09).abs() < 6.0 * 0.09 * (2.0 / n).sqrt(), "variance {variance}");
        let share = 0.682_689_5;
        let error = 6.0 * (share * (1.0 - share) / n).sqrt();
        assert!((within - share).abs() < error, "{within} within one deviation");
    }
}
