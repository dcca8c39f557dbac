"""Times the CPU path and its peers in turns, and prints the table. `run` sets up and calls this."""

import argparse
import atexit
import json
import math
import os
import platform
import signal
import statistics
import subprocess
import sys

SHAPES = """8x64x112x112 8x64x56x56 8x256x56x56 8x512x28x28 8x1024x14x14 8x2048x7x7 32x64x56x56
32x512x28x28 1024x512 65536x64 8x16x4x4 4x1x1024x1024 2x32x16x56x56""".split()
LAYOUTS = {"nchw": "channels first", "nhwc": "channels last"}
OPERATIONS = ["forward", "inference", "backward"]


class Peer:
    """A program that answers lines."""

    def __init__(self, name, command, threads):
        # PyTorch's allocator keeps its pages, as the others keep their memory.
        keep = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 36)}
        own = {"OMP_NUM_THREADS": str(threads), "RAYON_NUM_THREADS": str(threads)}
        environment = os.environ | own | (keep if name == "PyTorch" else {})
        self.name = name
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, env=environment
        )

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended: {self.process.wait()}")
        return json.loads(line)

    def run(self, case, operation, count):
        """Stopped meanwhile are the others, whose threads would spin for some time after their work."""
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.write(f"{case} {operation} {count}\n")
        self.process.stdin.flush()
        answer = self.read()
        self.process.send_signal(signal.SIGSTOP)
        return answer

    def end(self):
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.close()
        self.process.wait()


def compare(case, operation, answers):
    """All peers have computed the same, as well as f32 sums of millions do (oneDNN: 1e-3)."""
    for values in zip(*(answer["samples"] for answer in answers)):
        apart = max(values) - min(values)
        if not apart <= 5e-3 * (1 + max(map(abs, values))):
            sys.exit(f"{case} {operation}: the peers disagree: {values}")


def measure(peers, case, options):
    """Milliseconds of every round: operation → one list for each peer."""
    times = {}
    for operation in options.operations:
        first = [peer.run(case, operation, 1) for peer in peers]
        compare(case, operation, first)
        once = [peer.run(case, operation, 1)["seconds"] for peer in peers]
        counts = [min(max(int(options.batch * 1e-3 / max(s, 1e-6)), 1), 2000) for s in once]
        runs = list(zip(peers, counts))
        rounds = [
            [peer.run(case, operation, count)["seconds"] * 1e3 for peer, count in runs]
            for _ in range(options.rounds)
        ]
        times[operation] = list(zip(*rounds))
    return times


def number(milliseconds):
    return f"{milliseconds:.3g}" if milliseconds < 10 else f"{milliseconds:.1f}"


def geometric_mean(ratios):
    return math.exp(statistics.fmean(map(math.log, ratios)))


def cpu_name():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    return f"{names[0]} ({len(names)} processors)" if names else platform.processor()


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, prog="run")
    parser.add_argument("--threads", type=int, default=1, choices=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=float, default=15, help="milliseconds of calls in a round")
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="such as 8x64x56x56")
    parser.add_argument("--layouts", nargs="+", default=list(LAYOUTS), choices=list(LAYOUTS))
    parser.add_argument("--operations", nargs="+", default=OPERATIONS, choices=OPERATIONS)
    parser.add_argument("--peers", required=True, nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    options = arguments()
    ours, python, onednn = options.peers
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "torch_peer.py")
    commands = {"ours": [ours, "--serve"], "PyTorch": [python, script], "oneDNN": [onednn]}
    peers = [Peer(name, command, options.threads) for name, command in commands.items()]
    versions = [peer.read()["version"] for peer in peers]
    for peer in peers:
        atexit.register(peer.end)
    print(f"{cpu_name()}, {options.threads} thread(s) each; {'; '.join(versions)}.")
    print("Milliseconds of ours / PyTorch / oneDNN, medians (minima) of", end=" ")
    print(f"{options.rounds} interleaved rounds.\n")
    print(f"| shape | layout | {' | '.join(options.operations)} |")
    print("|---" * (2 + len(options.operations)) + "|")
    ratios = {}
    for shape in options.shapes:
        for layout in options.layouts:
            flat = shape.count("x") == 1
            if flat and layout == "nhwc":
                continue
            order = "[N, C]" if flat else LAYOUTS[layout]
            cells = []
            for operation, times in measure(peers, f"{shape} {layout}", options).items():
                both = [list(map(pick, times)) for pick in (statistics.median, min)]
                medians, minima = (" / ".join(map(number, times)) for times in both)
                cells.append(f"{medians} ({minima})")
                ratio = [
                    [min(others) / own] + [other / own for other in others]
                    for own, *others in both
                ]
                for key in ((order, operation), ("all", operation)):
                    ratios.setdefault(key, []).append(ratio)
            print(f"| {shape.replace('x', '×')} | {order} | {' | '.join(cells)} |", flush=True)
    print("\nGeometric means of their time over ours: the better of the two, PyTorch, oneDNN; of")
    print("medians (of minima).\n")
    print(f"| | {' | '.join(options.operations)} |")
    print("|---" * (1 + len(options.operations)) + "|")
    for order in dict.fromkeys(order for order, _ in ratios if order != "all") | {"all": None}:
        cells = []
        for operation in options.operations:
            of_both = zip(*ratios[order, operation])
            means = [" / ".join(f"{geometric_mean(r):.2f}" for r in zip(*each)) for each in of_both]
            cells.append(f"{means[0]} ({means[1]})")
        print(f"| {order} | {' | '.join(cells)} |")


main()
