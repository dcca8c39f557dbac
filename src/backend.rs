//! The host form on whichever a machine has: a hardware GPU, or its CPU.

use ndarray::{Array1, ArrayD, ArrayViewD};

use crate::config::{Config, Update};
use crate::cpu::{
    self, BackwardSlices, FrozenBackwardSlices, InferSlices, StatisticsSlices, TrainSlices,
};
use crate::geometry::Geometry;
use crate::host::{
    BackwardOutput, Gpu, HostError, Input, RunningStatistics, SavedStatistics, TrainOutput,
    check_length, check_shape, operations, shaped, standard, values,
};
use crate::moments::Moments;
use crate::plan::Slot;

/// A GPU, or the CPU: the same operations on `ndarray` views, async or blocking.
///
/// A software adapter computes on the CPU too, several times slower than [`Cpu`] does;
/// [`auto`](Self::auto) does not take it. Say `Backend::Gpu(Gpu::new_blocking()?)` to have it.
///
/// ```
/// use ndarray::ArrayD;
/// use wgpu_batchnorm::{Backend, ChannelAxis, Config, Input, RunningStatistics};
/// let backend = Backend::auto_blocking();
/// println!("computing on {}", backend.describe());
/// let x = ArrayD::from_shape_vec(vec![2, 1, 2], vec![1.0, 3.0, 1.0, 3.0])?;
/// let (input, mut running) = (Input::new(x.view(), ChannelAxis::First), RunningStatistics::new(1));
/// let out = backend.forward_train_blocking(&input, &mut running, &Config::pytorch())?;
/// assert_eq!(out.saved.mean[0], 2.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub enum Backend {
    /// A device found by [`Gpu`], or yours.
    Gpu(Gpu),
    /// The machine's cores.
    Cpu(Cpu),
}

impl Backend {
    /// A hardware GPU where there is one, found as [`Gpu::new`] does; else the CPU.
    /// [`describe`](Self::describe) says which, and why.
    pub async fn auto() -> Self {
        let why = match Gpu::find(|info| info.device_type != wgpu::DeviceType::Cpu).await {
            Ok(gpu) => return Self::Gpu(gpu),
            Err(HostError::NoAdapter { found, looked_for }) if found.is_empty() => {
                format!("no adapter was found ({looked_for})")
            }
            Err(HostError::NoAdapter { found, looked_for }) => {
                format!("there is no hardware GPU among: {} ({looked_for})", found.join("; "))
            }
            Err(error) => error.to_string(),
        };
        Self::Cpu(Cpu { why: Some(why) })
    }

    /// [`auto`](Self::auto), blocking.
    pub fn auto_blocking() -> Self {
        pollster::block_on(Self::auto())
    }

    /// The adapter, or the CPU, in words; where [`auto`](Self::auto) chose the CPU, why.
    pub fn describe(&self) -> String {
        match self {
            Self::Gpu(gpu) => gpu.describe(),
            Self::Cpu(cpu) => cpu.describe(),
        }
    }
}

/// The machine's cores: the host form without a device, on the [`cpu`] path.
///
/// The async methods compute before they return; nothing is waited for. Work goes to rayon's
/// threads: to the global pool, or to the pool that the call runs in.
#[derive(Debug, Clone, Default)]
pub struct Cpu {
    /// Why not a GPU, where nobody asked for the CPU.
    why: Option<String>,
}

impl Cpu {
    /// The CPU, because you want it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Threads and instructions in words; where [`Backend::auto`] chose the CPU, why.
    pub fn describe(&self) -> String {
        let threads = rayon::current_num_threads();
        let cpu = format!("CPU ({threads} threads, {})", cpu::instructions());
        match &self.why {
            Some(why) => format!("{cpu}, as {why}"),
            None => cpu,
        }
    }

    /// [`Gpu::forward_train`] on the CPU.
    ///
    /// # Errors
    /// [`HostError`]: a bad shape, config or length.
    pub fn forward_train_blocking(
        &self,
        input: &Input<'_>,
        running: &mut RunningStatistics,
        config: &Config,
    ) -> Result<TrainOutput, HostError> {
        let (geometry, config) = input.prepare(config)?;
        let channels = geometry.channels() as usize;
        running.validate_moving(channels)?;
        let [gamma, beta] = parameter_values(input, channels)?;
        let mut y = vec![0.0; input.x.len()];
        let mut saved = vec![0.0; 4 * channels];
        let (mut mean, mut var) = (running.mean.to_vec(), running.var.to_vec());
        let mut batches = running.batches;
        let updates = config.update != Update::None;
        let x_values = standard(input.x.view());
        let slices = TrainSlices {
            x: values(&x_values),
            y: &mut y,
            gamma: gamma.as_deref(),
            beta: beta.as_deref(),
            saved: &mut saved,
            running_mean: updates.then_some(&mut mean),
            running_var: updates.then_some(&mut var),
            batches: (config.update == Update::Cumulative).then_some(&mut batches),
        };
        cpu::train(geometry, &config, slices)?;
        let y = shaped(input.x.shape(), y)?;
        if updates && !geometry.is_empty() {
            let batches = running.batches.saturating_add(1);
            *running = RunningStatistics { mean: mean.into(), var: var.into(), batches };
        }
        Ok(TrainOutput { y, saved: SavedStatistics::from_values(saved, channels, false) })
    }

    /// [`Gpu::forward_infer`] on the CPU.
    ///
    /// # Errors
    /// [`HostError`]: a bad shape, config, length or running variance.
    pub fn forward_infer_blocking(
        &self,
        input: &Input<'_>,
        running: &RunningStatistics,
        config: &Config,
    ) -> Result<ArrayD<f32>, HostError> {
        let (geometry, config) = input.prepare(config)?;
        let channels = geometry.channels() as usize;
        running.validate(channels)?;
        let [gamma, beta] = parameter_values(input, channels)?;
        let mut y = vec![0.0; input.x.len()];
        let (mean, var) = (running.mean.to_vec(), running.var.to_vec());
        let x_values = standard(input.x.view());
        let slices = InferSlices {
            x: values(&x_values),
            y: &mut y,
            gamma: gamma.as_deref(),
            beta: beta.as_deref(),
            running_mean: &mean,
            running_var: &var,
        };
        cpu::infer(geometry, &config, slices)?;
        shaped(input.x.shape(), y)
    }

    /// [`Gpu::backward`] on the CPU.
    ///
    /// # Errors
    /// [`HostError`]: a bad shape, config or length.
    pub fn backward_blocking(
        &self,
        input: &Input<'_>,
        dy: ArrayViewD<'_, f32>,
        saved: &SavedStatistics,
        config: &Config,
    ) -> Result<BackwardOutput, HostError> {
        let (geometry, config) = input.prepare(config)?;
        let channels = geometry.channels() as usize;
        for values in [&saved.mean, &saved.rest, &saved.inv_std, &saved.count] {
            check_length(Slot::Saved, values.len(), channels)?;
        }
        check_shape(Slot::Dy, &dy, &input.x)?;
        let [gamma, _] = parameter_values(input, channels)?;
        let mut gradients = Gradients::new(geometry, &config);
        let saved = saved.to_values();
        let (x_values, dy_values) = (standard(input.x.view()), standard(dy.view()));
        let slices = BackwardSlices {
            x: values(&x_values),
            dy: values(&dy_values),
            dx: gradients.dx.as_deref_mut(),
            gamma: gamma.as_deref(),
            dgamma: gradients.dgamma.as_deref_mut(),
            dbeta: gradients.dbeta.as_deref_mut(),
            saved: &saved,
        };
        cpu::backward(geometry, &config, slices)?;
        gradients.into_output(input.x.shape())
    }

    /// [`Gpu::frozen_backward`] on the CPU.
    ///
    /// # Errors
    /// [`HostError`]: a bad shape, config, length or running variance.
    pub fn frozen_backward_blocking(
        &self,
        input: &Input<'_>,
        dy: ArrayViewD<'_, f32>,
        running: &RunningStatistics,
        config: &Config,
    ) -> Result<BackwardOutput, HostError> {
        let (geometry, config) = input.prepare(config)?;
        let channels = geometry.channels() as usize;
        running.validate(channels)?;
        check_shape(Slot::Dy, &dy, &input.x)?;
        let [gamma, _] = parameter_values(input, channels)?;
        let mut gradients = Gradients::new(geometry, &config);
        let (mean, var) = (running.mean.to_vec(), running.var.to_vec());
        let (x_values, dy_values) = (standard(input.x.view()), standard(dy.view()));
        let slices = FrozenBackwardSlices {
            x: Some(values(&x_values)),
            dy: values(&dy_values),
            dx: gradients.dx.as_deref_mut(),
            gamma: gamma.as_deref(),
            dgamma: gradients.dgamma.as_deref_mut(),
            dbeta: gradients.dbeta.as_deref_mut(),
            running_mean: &mean,
            running_var: &var,
        };
        cpu::frozen_backward(geometry, &config, slices)?;
        gradients.into_output(input.x.shape())
    }

    /// [`Gpu::statistics`] on the CPU.
    ///
    /// # Errors
    /// [`HostError`]: a bad shape.
    pub fn statistics_blocking(&self, input: &Input<'_>) -> Result<Moments, HostError> {
        // No number of a config matters.
        let (geometry, config) = input.prepare(&Config::pytorch())?;
        let config = Config { residual: false, ..config };
        let mut moments = vec![0.0; 4 * geometry.channels() as usize];
        let x_values = standard(input.x.view());
        let slices = StatisticsSlices { x: values(&x_values), moments: &mut moments };
        cpu::statistics(geometry, &config, slices)?;
        let count = geometry.values_per_channel() as f64;
        Ok(Moments::from_slot(&moments)?.with_count(count)?)
    }
}

/// Gamma and beta in order.
fn parameter_values(
    input: &Input<'_>,
    channels: usize,
) -> Result<[Option<Vec<f32>>; 2], HostError> {
    let (gamma, beta) = (input.gamma, input.beta);
    for (slot, values) in [(Slot::Gamma, gamma), (Slot::Beta, beta)] {
        values.map_or(Ok(()), |values| check_length(slot, values.len(), channels))?;
    }
    Ok([gamma, beta].map(|values| values.map(|values| values.to_vec())))
}

/// Memory for the gradients that a config asks for.
struct Gradients {
    dx: Option<Vec<f32>>,
    dgamma: Option<Vec<f32>>,
    dbeta: Option<Vec<f32>>,
}

impl Gradients {
    fn new(geometry: Geometry, config: &Config) -> Self {
        let Config { gradients, affine, .. } = config;
        let zeros = |asked: bool, count: u64| asked.then(|| vec![0.0; count as usize]);
        Self {
            dx: zeros(gradients.x, geometry.len()),
            dgamma: zeros(gradients.gamma && affine.gamma, geometry.channels()),
            dbeta: zeros(gradients.beta && affine.beta, geometry.channels()),
        }
    }

    fn into_output(self, shape: &[usize]) -> Result<BackwardOutput, HostError> {
        Ok(BackwardOutput {
            dx: self.dx.map(|dx| shaped(shape, dx)).transpose()?,
            dgamma: self.dgamma.map(Array1::from),
            dbeta: self.dbeta.map(Array1::from),
            dz: None,
        })
    }
}

macro_rules! dispatch {
    ($(
        $(#[$doc:meta])*
        $twin:ident($($name:ident: $ty:ty),*) -> $out:ty = $of:ident;
    )*) => {
        impl Backend {$(
            #[doc = concat!("[`Gpu::", stringify!($of), "`] on this backend.")]
            ///
            /// # Errors
            /// [`HostError`], as there.
            pub async fn $of(&self, $($name: $ty),*) -> Result<$out, HostError> {
                match self {
                    Self::Gpu(gpu) => gpu.$of($($name),*).await,
                    Self::Cpu(cpu) => cpu.$twin($($name),*),
                }
            }

            $(#[$doc])*
            ///
            /// # Errors
            /// As its async twin.
            pub fn $twin(&self, $($name: $ty),*) -> Result<$out, HostError> {
                pollster::block_on(self.$of($($name),*))
            }
        )*}

        impl Cpu {$(
            #[doc = concat!("[`Gpu::", stringify!($of), "`] on the CPU, without a wait.")]
            ///
            /// # Errors
            /// As its blocking twin.
            pub async fn $of(&self, $($name: $ty),*) -> Result<$out, HostError> {
                self.$twin($($name),*)
            }
        )*}
    };
}

operations!(dispatch);
