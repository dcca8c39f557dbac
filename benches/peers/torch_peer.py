"""PyTorch's CPU batch norm as a peer: see main.rs for the protocol."""

import json
import os
import sys
import time

import numpy
import torch

SAMPLES = 16

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
torch.set_grad_enabled(False)


def values(count, seed):
    mixed = numpy.arange(count, dtype=numpy.uint32) * numpy.uint32(2_654_435_761)
    mixed = (mixed + numpy.uint32(seed)) >> numpy.uint32(8)
    return torch.from_numpy(mixed.astype(numpy.float32) / numpy.float32(1 << 20) - numpy.float32(7))


class Case:
    def __init__(self, shape, layout):
        sizes = [int(size) for size in shape.split("x")]
        channels = sizes[1]
        self.last = layout == "nhwc"

        def tensor(seed):
            flat = values(numpy.prod(sizes), seed)
            if not self.last:
                return flat.view(sizes)
            return flat.view([sizes[0], *sizes[2:], channels]).movedim(-1, 1)

        part = torch.arange(channels) / channels
        x, dy, gamma, beta = tensor(0), tensor(0x9E3779B9), 1 + part, part - 0.5
        mean, var = torch.full([channels], 0.5), torch.full([channels], 2.0)
        moved = mean.clone(), var.clone()
        _, save_mean, save_inv = torch.native_batch_norm(x, gamma, beta, *moved, True, 0.1, 1e-5)
        every = [True, True, True]
        self.calls = {
            "forward": lambda: torch.native_batch_norm(
                x, gamma, beta, *moved, True, 0.1, 1e-5
            )[:1],
            "inference": lambda: torch.native_batch_norm(
                x, gamma, beta, mean, var, False, 0.1, 1e-5
            )[:1],
            "backward": lambda: torch.ops.aten.native_batch_norm_backward(
                dy, x, gamma, *moved, save_mean, save_inv, True, 1e-5, every
            ),
        }

    def samples(self, written):
        return [value for tensor in written for value in self.samples_of(tensor)]

    def samples_of(self, tensor):
        flat = (tensor.movedim(1, -1) if self.last and tensor.dim() > 1 else tensor).reshape(-1)
        places = [i * (flat.numel() - 1) // (SAMPLES - 1) for i in range(SAMPLES)]
        return flat[places].tolist()


def main():
    print(json.dumps({"version": f"PyTorch {torch.__version__}"}), flush=True)
    name, case = None, None
    for line in sys.stdin:
        shape, layout, operation, count = line.split()
        if name != (shape, layout):
            case = None
            name, case = (shape, layout), Case(shape, layout)
        call, count = case.calls[operation], int(count)
        out = call()
        start = time.perf_counter()
        for _ in range(count):
            # Its memory is that of the next one.
            out = None
            out = call()
        seconds = (time.perf_counter() - start) / count
        print(json.dumps({"seconds": seconds, "samples": case.samples(out)}), flush=True)


main()
