//! Why an operation cannot be planned.

use std::fmt;

use super::slots::Slot;
use super::stages::Kernel;
use crate::config::ConfigError;
use crate::geometry::Geometry;

/// Why an operation cannot be planned.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum PlanError {
    /// A number in the config.
    Config(ConfigError),
    /// One value per channel, in training, under [`SingleValue::Error`](crate::SingleValue::Error).
    SingleValue {
        /// The geometry.
        geometry: Geometry,
    },
    /// Groups that do not part the channels evenly.
    Groups {
        /// The number of groups.
        groups: u64,
        /// The number of channels.
        channels: u64,
    },
    /// Weights in group normalization, which has none.
    Weights,
    /// A slot larger than one storage binding of the device.
    TooLarge {
        /// The slot.
        slot: Slot,
        /// Bytes it needs.
        size: u64,
        /// Bytes a binding can have.
        limit: u64,
    },
    /// More workgroups than the device can be given in two dimensions.
    Grid {
        /// Workgroups needed.
        workgroup_count: u64,
        /// The limit.
        max: u64,
    },
    /// More storage buffers in one dispatch than the device can bind.
    Buffers {
        /// The kernel.
        kernel: Kernel,
        /// Buffers needed.
        needed: u32,
        /// The limit.
        limit: u32,
    },
    /// A tuning under which one invocation would loop more often than every adapter can.
    Iterations {
        /// The kernel.
        kernel: Kernel,
        /// How often it would loop.
        iterations: u64,
        /// How often it may.
        max: u32,
    },
    /// A workgroup size that is no power of two, below 4 or over the limit: the device's, or 65,536.
    Tuning {
        /// The size asked for.
        workgroup_size: u32,
        /// The limit.
        max: u32,
    },
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) => error.fmt(f),
            Self::SingleValue { geometry } => write!(
                f,
                "training needs more than one value per channel, but [outer {}, channels {}, inner {}] \
                 has one (set Config::single_value to SingleValue::Allow to get y = beta)",
                geometry.outer(),
                geometry.channels(),
                geometry.inner()
            ),
            Self::Groups { groups, channels } => {
                write!(f, "{channels} channels cannot be parted into {groups} groups of equal size")
            }
            Self::Weights => {
                f.write_str("group normalization takes no weights, but Config::weights is set")
            }
            Self::TooLarge { slot, size, limit } => write!(
                f,
                "{slot} needs {size} bytes, more than the {limit} that the device can bind \
                 (raise max_storage_buffer_binding_size in request_device where the adapter allows it)"
            ),
            Self::Grid { workgroup_count, max } => {
                write!(f, "{workgroup_count} workgroups are needed, the device can be given {max}")
            }
            Self::Buffers { kernel, needed, limit } => write!(
                f,
                "{} needs {needed} storage buffers, the device can bind {limit} \
                 (raise max_storage_buffers_per_shader_stage in request_device where the adapter allows it)",
                kernel.name()
            ),
            Self::Iterations { kernel, iterations, max } => write!(
                f,
                "{} would loop {iterations} times in one invocation under this tuning, more than {max}",
                kernel.name()
            ),
            Self::Tuning { workgroup_size, max } => {
                write!(f, "workgroup size {workgroup_size} must be a power of two from 4 to {max}")
            }
        }
    }
}

impl std::error::Error for PlanError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Config(error) => Some(error),
            _ => None,
        }
    }
}

impl From<ConfigError> for PlanError {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}
