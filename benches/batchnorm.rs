//! Criterion's view of the same operations: the kernels and the CPU path, with the memcpy kernel as
//! the limit. Throughput counts the bytes of a streaming implementation. For ratios measured
//! side by side, see ratios.rs.

#[allow(dead_code, reason = "the other benchmarks use the rest")]
mod common;

use common::{Kind, Operation, Shape, Subject};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

fn shapes() -> Vec<Shape> {
    let shape =
        |logical: &[usize], channels_last| Shape { logical: logical.to_vec(), channels_last };
    vec![
        shape(&[8, 64, 56, 56], false),
        shape(&[8, 64, 56, 56], true),
        shape(&[8, 16, 4, 4], false),
        shape(&[1024, 512], false),
        shape(&[1, 1, 1024, 1024], false),
    ]
}

fn benchmarks(criterion: &mut Criterion) {
    let Some(gpu) = common::gpu() else { return };
    for shape in shapes() {
        let mut subject = match Subject::new(&gpu, &shape, Kind::F32) {
            Ok(subject) => subject,
            Err(error) => {
                println!("{} not run: {error}", shape.name());
                continue;
            }
        };
        let mut group = criterion.benchmark_group("memcpy");
        group.throughput(Throughput::Bytes(2 * subject.on_gpu.tensor_size));
        group.bench_function(BenchmarkId::new("gpu", shape.name()), |bencher| {
            bencher.iter_custom(|count| subject.on_gpu.run_copy(count as u32));
        });
        group.finish();
        for operation in Operation::ALL {
            let mut group = criterion.benchmark_group(operation.name());
            group.throughput(Throughput::Bytes(
                operation.tensors(Kind::F32) * subject.on_gpu.tensor_size,
            ));
            group.bench_function(BenchmarkId::new("gpu", shape.name()), |bencher| {
                bencher.iter_custom(|count| subject.on_gpu.run(operation, count as u32));
            });
            if cfg!(feature = "cpu") {
                group.bench_function(BenchmarkId::new("cpu", shape.name()), |bencher| {
                    bencher.iter_custom(|count| {
                        subject.run_cpu(operation, count as u32).expect("the feature is there")
                    });
                });
            }
            group.finish();
        }
    }
}

criterion_group! {
    name = group;
    config = Criterion::default().sample_size(10);
    targets = benchmarks
}
criterion_main!(group);
