// Runs on Dawn what run.mjs sends it, an item at a time, and answers with what is wrong.
import process from 'node:process';
import { create, globals } from 'webgpu';

Object.assign(globalThis, globals);

// Kept: where this object is collected as garbage, Dawn's next event ends the process.
globalThis.gpu = create(process.platform === 'linux' ? ['backend=vulkan'] : []);
const adapter = await globalThis.gpu.requestAdapter();
if (!adapter) throw new Error('Dawn finds no adapter');
const device = await adapter.requestDevice();
let stray = [];
device.addEventListener('uncapturederror', ({ error }) => stray.push(`uncaptured: ${error.message}`));

// Dawn asks for news as often as it can while something is awaited, which would take a core from the
// driver that compiles.
const never = new Int32Array(new SharedArrayBuffer(4));
let waiting = false;
function nap() {
  if (!waiting) return;
  Atomics.wait(never, 0, 0, 1);
  setImmediate(nap);
}
async function patiently(promise) {
  waiting = true;
  nap();
  try {
    return await promise;
  } finally {
    waiting = false;
  }
}

/** Runs `work` and gives what Dawn says against it. */
async function complaints(work) {
  const filters = ['validation', 'out-of-memory', 'internal'];
  for (const filter of filters) device.pushErrorScope(filter);
  const problems = [];
  try {
    problems.push(...((await work()) ?? []));
  } catch (error) {
    problems.push(error.message);
  }
  for (const _ of filters) {
    const error = await device.popErrorScope();
    if (error) problems.push(error.message);
  }
  return problems;
}

/** Words as fixed-length hexadecimal numbers. */
function words(hex) {
  const bytes = Buffer.from(hex, 'hex').swap32();
  return new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
}

function doubles(hex) {
  const bytes = Buffer.from(hex, 'hex').swap64();
  return Array.from({ length: bytes.length / 8 }, (_, i) => bytes.readDoubleLE(8 * i));
}

function buffer(content, usage) {
  const made = device.createBuffer({ size: content.byteLength, usage, mappedAtCreation: true });
  new Uint32Array(made.getMappedRange()).set(content);
  made.unmap();
  return made;
}

/** A half's value: IEEE's, or the upper half of an f32. */
function widened(half, element) {
  const sign = half & 0x8000 ? -1 : 1;
  const [fraction, bias] = element === 'f16' ? [10, 15] : [7, 127];
  const exponent = (half & 0x7fff) >> fraction;
  const rest = (half & ((1 << fraction) - 1)) / 2 ** fraction;
  if (exponent === 2 * bias + 1) return rest ? NaN : sign * Infinity;
  return sign * (exponent ? (1 + rest) * 2 ** (exponent - bias) : rest * 2 ** (1 - bias));
}

/** `count` values from a word on. */
function numbers(memory, begin, count, element) {
  if (element === 'f32') return new Float32Array(memory.buffer, 4 * begin, count);
  const half = (i) => (memory[begin + (i >> 1)] >>> (16 * (i & 1))) & 0xffff;
  return Array.from({ length: count }, (_, i) => widened(half(i), element));
}

// Cases share pipelines, as the crate's users do.
const pipelines = new Map();
function pipeline(stage) {
  const key = JSON.stringify([stage.wgsl, stage.constants]);
  if (!pipelines.has(key)) {
    const entries = stage.bindings.map(({ number, read_only }) => ({
      binding: number,
      visibility: GPUShaderStage.COMPUTE,
      buffer: { type: read_only ? 'read-only-storage' : 'storage' },
    }));
    const size = stage.params.length / 2;
    entries.push({
      binding: 0,
      visibility: GPUShaderStage.COMPUTE,
      buffer: { type: 'uniform', minBindingSize: size },
    });
    const layout = device.createBindGroupLayout({ entries });
    const made = device.createComputePipeline({
      layout: device.createPipelineLayout({ bindGroupLayouts: [layout] }),
      compute: {
        module: device.createShaderModule({ code: stage.wgsl }),
        entryPoint: stage.entry,
        constants: stage.constants,
      },
    });
    pipelines.set(key, { pipeline: made, layout });
  }
  return pipelines.get(key);
}

/** Runs a case's stages in one pass and gives every buffer's words afterwards. */
async function execute({ buffers, slots, stages }) {
  const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC;
  const memory = buffers.map((hex) => buffer(words(hex), usage));
  const trash = [...memory];
  const encoder = device.createCommandEncoder();
  const pass = encoder.beginComputePass();
  for (const stage of stages) {
    const { pipeline: compiled, layout } = pipeline(stage);
    const params = buffer(words(stage.params), GPUBufferUsage.UNIFORM);
    trash.push(params);
    const entries = stage.bindings.map(({ number, slot }) => {
      const { buffer: index, begin, count } = slots[slot];
      const resource = { buffer: memory[index], offset: 4 * begin, size: 4 * count };
      return { binding: number, resource };
    });
    entries.push({ binding: 0, resource: { buffer: params } });
    pass.setPipeline(compiled);
    pass.setBindGroup(0, device.createBindGroup({ layout, entries }));
    pass.dispatchWorkgroups(...stage.grid);
  }
  pass.end();
  const copies = memory.map((from) => {
    const to = device.createBuffer({
      size: from.size,
      usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST,
    });
    encoder.copyBufferToBuffer(from, 0, to, 0, from.size);
    trash.push(to);
    return to;
  });
  device.queue.submit([encoder.finish()]);
  await patiently(Promise.all(copies.map((copy) => copy.mapAsync(GPUMapMode.READ))));
  const results = copies.map((copy) => new Uint32Array(copy.getMappedRange().slice(0)));
  for (const old of trash) old.destroy();
  return results;
}

/** What is wrong, and the largest error in units of its bound. */
function compare({ buffers, slots, expected }, results) {
  const problems = [];
  let compared = 0;
  let worst = 0;
  for (const { slot, begin, rest, element, values, bounds } of expected) {
    const place = slots[slot];
    const limits = doubles(bounds);
    const now = results[place.buffer];
    const floats = numbers(now, place.begin + begin, limits.length + rest, element);
    if (element !== 'f32' && limits.length % 2 === 1) {
      const last = place.begin + (limits.length >> 1);
      const before = words(buffers[place.buffer])[last];
      if (now[last] >>> 16 !== before >>> 16) problems.push(`the half past the end of ${slot} changed`);
    }
    doubles(values).forEach((value, i) => {
      const actual = floats[i] + (rest ? floats[i + rest] : 0);
      const error = Math.abs(actual - value);
      compared += 1;
      if (error > 0) worst = Math.max(worst, error / limits[i]);
      // Not `error > limit`, which a NaN would pass.
      if (!(error <= limits[i])) {
        problems.push(`${slot}[${begin + i}] = ${actual}, not ${value} within ${limits[i]}`);
      }
    });
  }
  if (compared === 0) problems.push('nothing was compared');
  results.forEach((now, index) => {
    const free = new Uint8Array(now.length);
    for (const { buffer: own, begin, count, written } of Object.values(slots)) {
      if (own === index && written) free.fill(1, begin, begin + count);
    }
    const start = words(buffers[index]);
    const at = now.findIndex((word, i) => !free[i] && word !== start[i]);
    if (at >= 0) problems.push(`word ${at} of buffer ${index} changed, which no slot may write`);
  });
  return { problems, worst };
}

/** A comparison that cannot fail would prove nothing. */
function blindness(one, results) {
  const { slot, begin } = one.expected[0];
  const place = one.slots[slot];
  const problems = [];
  const notices = (what, index, change) => {
    const bad = results.map((result) => result.slice());
    bad[place.buffer][index] = change(bad[place.buffer][index]);
    if (compare(one, bad).problems.length === 0) problems.push(`the comparison misses ${what}`);
  };
  notices('a wrong value', place.begin + begin, (word) => word ^ 0x40000000);
  notices('a NaN', place.begin + begin, () => 0x7fc00000);
  notices('a write before the slot', place.begin - 1, (word) => word + 1);
  notices('a write after the slot', place.begin + place.count, (word) => word + 1);
  return problems;
}

async function compile({ wgsl }) {
  const { messages } = await device.createShaderModule({ code: wgsl }).getCompilationInfo();
  return messages.map(({ type, lineNum, message }) => `${type} in line ${lineNum}: ${message}`);
}

process.on('message', async (text) => {
  const item = JSON.parse(text);
  let worst = 0;
  const problems = await complaints(async () => {
    if (item.kind === 'module') return compile(item);
    const results = await execute(item);
    const compared = compare(item, results);
    worst = compared.worst;
    return [...compared.problems, ...blindness(item, results)];
  });
  problems.push(...stray);
  stray = [];
  process.send({ problems, worst });
});
process.on('disconnect', () => process.exit(0));
const { vendor, architecture, description } = adapter.info;
process.send(`Dawn on ${[vendor, architecture, description].filter(Boolean).join(', ')}`);
