// Runs the cases that tests/webgpu.rs writes on Dawn: node run.mjs CASES
//
// Dawn's Tint must accept the WGSL of every variant, and every case's results must be within the
// oracle's bounds, while nothing else in memory changes. Limits are WebGPU's defaults. Anything that
// does not go right is a failure, and so is a list that is empty or shorter than its first line says.
//
// Items are handed out one at a time to processes with a device each (device.mjs): what kills one, or
// keeps it silent, fails by name, and the rest still runs.
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { createReadStream } from 'node:fs';
import { availableParallelism } from 'node:os';
import process from 'node:process';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

const SECONDS_FOR_AN_ITEM = 120;
// The operations of a case.
const NEIGHBOURS = 11;

/** The next message of a child, or how it died instead. */
function answer(child) {
  const death = () => ({ death: `its process died of ${child.signalCode ?? `code ${child.exitCode}`}` });
  if (child.exitCode !== null || child.signalCode !== null) return Promise.resolve(death());
  return new Promise((resolve) => {
    const dead = () => resolve(death());
    child.once('exit', dead);
    child.once('message', (message) => {
      child.off('exit', dead);
      resolve({ message });
    });
  });
}

/** A child with a device. */
async function start() {
  const child = fork(fileURLToPath(new URL('device.mjs', import.meta.url)));
  const { message, death } = await answer(child);
  if (death) throw new Error(`no device: ${death}`);
  console.log(message);
  return child;
}

async function ask(child, item) {
  let late = false;
  const timer = setTimeout(() => {
    late = true;
    child.kill('SIGKILL');
  }, 1000 * SECONDS_FOR_AN_ITEM);
  // Where it is dead already, `answer` says so.
  child.send(item, () => {});
  const { message, death } = await answer(child);
  clearTimeout(timer);
  const problem = late ? `no answer in ${SECONDS_FOR_AN_ITEM} s` : death;
  return message ?? { problems: [problem], worst: 0, death };
}

let failed = 0;
function report(name, problems) {
  console.log(`${problems.length ? 'FAILED' : 'ok'} ${name}`);
  for (const problem of problems.slice(0, 3)) console.log(`  ${problem}`);
  if (problems.length) failed += 1;
}

const input = createInterface({ input: createReadStream(process.argv[2]) });
const lines = input[Symbol.asyncIterator]();
const promised = JSON.parse((await lines.next()).value);
const done = { module: 0, case: 0 };
const pipelines = new Set();
let largest = 0;

/** A worker's items: neighbours, which share pipelines. */
async function* items() {
  for (;;) {
    const next = await Promise.all(Array.from({ length: NEIGHBOURS }, () => lines.next()));
    for (const line of next) {
      if (line.done) return;
      yield line;
    }
  }
}

/** Asks one child after another, each until it dies, as long as there are items. */
async function worker() {
  let child;
  for await (const line of items()) {
    const { kind, name, stages = [] } = JSON.parse(line.value);
    for (const { wgsl, constants } of stages) pipelines.add(JSON.stringify([wgsl, constants]));
    child ??= await start();
    const { problems, worst, death } = await ask(child, line.value);
    if (death) child = undefined;
    done[kind] += 1;
    largest = Math.max(largest, worst);
    if (kind === 'case' || problems.length) report(`${kind} ${name}`, problems);
  }
  if (!child) return;
  const end = once(child, 'exit');
  child.disconnect();
  const [code, signal] = await end;
  if (code !== 0) report('the end of a process', [`${signal ?? `code ${code}`}`]);
}
await Promise.all(Array.from({ length: availableParallelism() }, worker));
for (const kind of ['module', 'case']) {
  if (done[kind] === 0 || done[kind] !== promised[kind]) {
    report(`every ${kind}`, [`${done[kind]} ran, of ${promised[kind]}`]);
  }
}
console.log(
  `${done.case} cases, ${pipelines.size} pipelines, ${done.module} modules: ` +
    `${failed} failures; largest error ${largest.toFixed(3)} of its bound`,
);
process.exitCode = failed === 0 ? 0 : 1;
