//! Batch normalization of an array on the GPU.

use ndarray::{Array1, ArrayD};
use wgpu_batchnorm::{ChannelAxis, Config, Gpu, Input, RunningStatistics};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let gpu = Gpu::new_blocking()?;
    println!("on {}", gpu.describe());

    let x = ArrayD::from_shape_fn(vec![8, 2, 4, 4], |i| (10 * i[1] + i[0] + i[2] * i[3]) as f32);
    let (gamma, beta) = (Array1::ones(2), Array1::zeros(2));
    let (gamma, beta) = (Some(gamma.view()), Some(beta.view()));
    let input = Input { gamma, beta, ..Input::new(x.view(), ChannelAxis::First) };
    let config = Config::pytorch();
    let mut running = RunningStatistics::new(2);

    let out = gpu.forward_train_blocking(&input, &mut running, &config)?;
    let back = gpu.backward_blocking(&input, x.view(), &out.saved, &config)?;
    let y = gpu.forward_infer_blocking(&input, &running, &config)?;

    println!("batch mean {}, running mean {}", out.saved.mean, running.mean);
    println!("in training x[0] becomes {}, in inference {}", out.y[[0; 4]], y[[0; 4]]);
    println!("dbeta {}", back.dbeta.ok_or("not asked for")?);
    Ok(())
}
