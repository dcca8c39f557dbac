"""PyTorch's batch norm on the cases of stdin: its native kernels and cuDNN's, by CUDA events around CUDA
graphs of calls.

Each line of stdin is a shape (32×64×56×56), a layout (NCHW, NHWC) and an element (f32, f16, bf16), with
tabs between them. Each line of stdout is an operation, the case, and microseconds of the native kernels and
of cuDNN ("-" where it refuses). Exit status 3: no PyTorch, or no CUDA device.
"""

import statistics
import sys
import time

try:
    import torch
except ImportError:
    sys.exit(print("PyTorch is not installed: nothing to compare with", file=sys.stderr) or 3)
if not torch.cuda.is_available():
    sys.exit(print("PyTorch finds no CUDA device: nothing to compare with", file=sys.stderr) or 3)

ROUNDS = 9
# Calls in a CUDA graph.
GRAPH = 20
EPSILON, RATE = 1e-5, 0.1
ELEMENTS = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
aten = torch.ops.aten


def together(work):
    """Many calls that the host launches at once, and how many: small ones would wait for it else."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for _ in range(GRAPH):
                work()
    except RuntimeError as error:
        print(f"no CUDA graph: {str(error).splitlines()[0]}", file=sys.stderr)
        return work, 1
    return graph.replay, GRAPH


def by_events(call):
    """Microseconds of one call among many on the device's clock, median over rounds."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    work, calls = together(call)
    work()
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    count = int(min(500, max(5, 0.01 / max(time.perf_counter() - start, 1e-6))))
    samples = []
    for _ in range(ROUNDS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(count):
            work()
        end.record()
        end.synchronize()
        samples.append(begin.elapsed_time(end) * 1e3 / (count * calls))
    return statistics.median(samples)


def by_wall(step):
    """Microseconds of a step that is waited for."""
    samples = []
    for _ in range(3 * ROUNDS + 3):
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        samples.append((time.perf_counter() - start) * 1e6)
    return statistics.median(samples[3:])


def native(x, dy, weight, bias, mean, var):
    def forward(training):
        return aten.native_batch_norm(x, weight, bias, mean, var, training, RATE, EPSILON)

    _, saved_mean, saved_inv_std = forward(True)
    return {
        "forward": lambda: forward(True),
        "inference": lambda: forward(False),
        "backward": lambda: aten.native_batch_norm_backward(
            dy, x, weight, mean, var, saved_mean, saved_inv_std, True, EPSILON, [True] * 3
        ),
    }


def cudnn(x, dy, weight, bias, mean, var):
    def forward(training):
        return aten.cudnn_batch_norm(x, weight, bias, mean, var, training, RATE, EPSILON)

    _, saved_mean, saved_var, reserve = forward(True)
    return {
        "forward": lambda: forward(True),
        "inference": lambda: forward(False),
        "backward": lambda: aten.cudnn_batch_norm_backward(
            x, dy, weight, mean, var, saved_mean, saved_var, EPSILON, reserve
        ),
    }


def step(x, dy, weight, bias, mean, var):
    leaves = [tensor.detach().requires_grad_() for tensor in (x, weight, bias)]

    def run():
        y = torch.nn.functional.batch_norm(
            leaves[0], mean, var, leaves[1], leaves[2], True, RATE, EPSILON
        )
        torch.autograd.grad(y, leaves, dy)

    return run


def measured(measure, work):
    """The figure, or why there is none."""
    try:
        return f"{measure(work()):.3f}"
    except (RuntimeError, NotImplementedError) as error:
        print(f"{type(error).__name__}: {str(error).splitlines()[0]}", file=sys.stderr)
        return "-"


def main():
    name = torch.cuda.get_device_name()
    versions = f"PyTorch {torch.__version__}, CUDA {torch.version.cuda}"
    print(f"# {versions}, cuDNN {torch.backends.cudnn.version()}, {name}; CUDA events around CUDA graphs", flush=True)
    for line in sys.stdin:
        case = line.rstrip("\n").split("\t")
        shape, layout, element = case
        shape = [int(size) for size in shape.split("×")]
        order = torch.channels_last if layout == "NHWC" else torch.contiguous_format

        def tensor():
            values = torch.randn(shape, device="cuda", dtype=ELEMENTS[element])
            return values.contiguous(memory_format=order)

        channels = shape[1]
        per_channel = [torch.rand(channels, device="cuda") + 0.5 for _ in range(4)]
        arguments = [tensor(), tensor(), *per_channel]
        rows = {row: [] for row in ("forward", "inference", "backward", "step (wall)")}
        for kernels, enabled in ((native, False), (cudnn, True)):
            for row in ("forward", "inference", "backward"):
                rows[row].append(measured(by_events, lambda: kernels(*arguments)[row]))
            with torch.backends.cudnn.flags(enabled=enabled):
                rows["step (wall)"].append(measured(by_wall, lambda: step(*arguments)))
        for row, figures in rows.items():
            print("\t".join([row, *case, *figures]), flush=True)
        del arguments
        torch.cuda.empty_cache()


main()
