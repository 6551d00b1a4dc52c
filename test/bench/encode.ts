/**
 * Encoding a folder of JPEGs (640 x 480) into a feature store: 1,000 through MobileNetV2, fewer through ViT-B/16's shape. Beside it stand the bound (CPU seconds of
 * decoding, preprocessing and inference, each measured alone with one thread and no spinning, over the cores; once with our own decoding, once with libvips's), the same
 * sessions fed from memory, bare libvips, and transformers.js on the same ONNX file. The folder goes through several times with the bound measured before and after each, and the
 * middle ratio counts, because other work on the machine changes what a second of its CPU does. `MODALIGN_BENCH_PEERS=0` leaves transformers.js out, which is installed from npm
 * into a temporary folder.
 */
import { execFile } from 'node:child_process'
import { existsSync } from 'node:fs'
import { copyFile, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { availableParallelism, loadavg, tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import sharp from 'sharp'
import { z } from 'zod'
import { mobilenetV2Preprocessing } from '../../encoders/mobilenet-v2.ts'
import { type OnnxImageEncoder, type OnnxImageOptions, onnxImage } from '../../encoders/onnx-image.ts'
import { encodeJob, encoderThreads } from '../../src/jobs/encode.ts'
import { inputItems } from '../../src/jobs/inputs.ts'
import { createImageDecoder, type ImageDecoder } from '../../src/media/child-decoder.ts'
import { decodeImage } from '../../src/media/image.ts'
import { preprocessImage } from '../../src/media/preprocess.ts'
import { decodingReader } from '../../src/model/media-reader.ts'
import { createLocalSession } from '../../src/runtime/local.ts'
import { float32Tensor, type NamedTensors } from '../../src/tensors.ts'
import { openFeatureStore } from '../../src/training/feature-store.ts'
import { inputName, outputName, writeMobilenet, writeVit } from './encode-models.ts'
import { writePictures } from './encode-pictures.ts'
import { median } from './median.ts'

const run = promisify(execFile)
/** What V8 takes to compile everything well. */
const [warmUpPictures, warmUpMs] = [512, 1000]
const measuredMs = 1000
const cores = availableParallelism()
const preprocessing = mobilenetV2Preprocessing
/** Fewer for a quick look. */
const count = Number(process.env.MODALIGN_BENCH_IMAGES ?? 1000)

export interface EncodeFigures extends Readonly<Record<string, number>> {
  readonly cores: number
  /** Of the machine in the last minute, when the bench began: what else it was doing. */
  readonly loadBefore: number
  readonly imagesPerSecond: number
  readonly boundImagesPerSecond: number
  readonly ratioToBound: number
}

export async function benchEncode(): Promise<EncodeFigures> {
  const folder = await mkdtemp(join(tmpdir(), 'modalign-bench-'))
  const loadBefore = loadavg()[0] ?? 0
  try {
    const pictures = join(folder, 'pictures')
    const files = await writePictures(pictures, count)
    const few = join(folder, 'few')
    await writePictures(few, 48, 2)
    const hub = join(folder, 'hub', 'encoder', 'onnx')
    await mkdir(hub, { recursive: true })
    const mobilenet = join(hub, 'model.onnx')
    await writeMobilenet(fromRepository('examples/tiny/encoder.onnx'), mobilenet)
    const vitFolder = join(folder, 'vit')
    await mkdir(vitFolder)
    const vit = await writeVit(vitFolder)

    await using decoder = createImageDecoder()
    const small = await measured({ folder, pictures, decoder, model: mobilenet, prefixTokens: 0, batchSize: 4, passes: 5 })
    const libvips = await libvipsRate(files.slice(0, 300))
    const peer = process.env.MODALIGN_BENCH_PEERS === '0' ? undefined : await transformersJs(folder, files.slice(0, 192))
    const large = await measured({ folder, pictures: few, decoder, model: vit, prefixTokens: 1, batchSize: 4, passes: 3 })
    return {
      cores,
      loadBefore,
      ...small,
      bareLibvipsImagesPerSecond: libvips,
      ...(peer !== undefined && {
        transformersJsImagesPerSecond: peer,
        ratioToTransformersJs: small.imagesPerSecond / peer,
      }),
      ...prefixed('vit', large),
    }
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

interface Measurement {
  readonly folder: string
  readonly pictures: string
  readonly decoder: ImageDecoder
  readonly model: string
  readonly prefixTokens: number
  readonly batchSize: number
  /** How often the folder goes through. */
  readonly passes: number
}

type Measured = Readonly<Record<'imagesPerSecond' | 'boundImagesPerSecond' | 'ratioToBound' | 'fromMemoryImagesPerSecond', number>>

async function measured(measurement: Measurement): Promise<Measured & Readonly<Record<string, number>>> {
  const { model, prefixTokens, pictures, batchSize } = measurement
  const shared = encoderThreads()
  const options: OnnxImageOptions = {
    model,
    output: outputName,
    preprocessing,
    device: 'cpu',
    batch: batchSize,
    ...shared,
    ...(prefixTokens > 0 && { prefixTokens }),
  }
  const encoder = await onnxImage(options)
  try {
    const { items } = await inputItems(pictures)
    const files: string[] = []
    for await (const { path } of items) files.push(path)
    const sample = files.slice(0, 32)
    // The first pass starts the decoding processes and has V8 compile every code path well, as it has for what is measured alone; its store is thrown away.
    await encoded(measurement, encoder, asItems(files.slice(0, warmUpPictures)), shared.sessions + 2)
    const passes: Pass[] = []
    let before = await secondsAlone(model, sample, batchSize)
    for (let pass = 0; pass < measurement.passes; pass++) {
      const [started, cpuStarted] = [performance.now(), await cpuTaken(measurement.decoder)]
      await encoded(measurement, encoder, asItems(files), shared.sessions + 2)
      const seconds = (performance.now() - started) / 1000 / files.length
      const cpuMs = ((await cpuTaken(measurement.decoder)) - cpuStarted) / files.length
      const after = await secondsAlone(model, sample, batchSize)
      passes.push({ seconds, cpuMs, ...mean(before, after) })
      before = after
    }
    const of = (figure: (pass: Pass) => number): number => median(passes.map(figure))
    const bound = ({ decode, preprocess, inference }: Pass): number => (decode + preprocess + inference) / cores
    const libvipsBound = ({ libvips, preprocess, inference }: Pass): number => (libvips + preprocess + inference) / cores
    return {
      imagesPerSecond: of(({ seconds }) => 1 / seconds),
      boundImagesPerSecond: of((pass) => 1 / bound(pass)),
      ratioToBound: of((pass) => bound(pass) / pass.seconds),
      lowestRatioToBound: Math.min(...passes.map((pass) => bound(pass) / pass.seconds)),
      highestRatioToBound: Math.max(...passes.map((pass) => bound(pass) / pass.seconds)),
      libvipsBoundImagesPerSecond: of((pass) => 1 / libvipsBound(pass)),
      ratioToLibvipsBound: of((pass) => libvipsBound(pass) / pass.seconds),
      fromMemoryImagesPerSecond: await memoryRate(encoder, sample, batchSize, shared.sessions + 2),
      ...(process.platform === 'linux' && {
        cpuMs: of(({ cpuMs }) => cpuMs),
        ratioToBoundCpu: of((pass) => (bound(pass) * cores * 1000) / pass.cpuMs),
      }),
      decodeCpuMs: of(({ decode }) => decode * 1000),
      libvipsDecodeCpuMs: of(({ libvips }) => libvips * 1000),
      preprocessCpuMs: of(({ preprocess }) => preprocess * 1000),
      inferenceCpuMs: of(({ inference }) => inference * 1000),
    }
  } finally {
    await encoder.dispose()
  }
}

type Alone = Readonly<Record<'decode' | 'libvips' | 'preprocess' | 'inference', number>>

/** The folder once, by the picture, and the parts alone around it. */
interface Pass extends Alone {
  readonly seconds: number
  readonly cpuMs: number
}

function mean(a: Alone, b: Alone): Alone {
  return {
    decode: (a.decode + b.decode) / 2,
    libvips: (a.libvips + b.libvips) / 2,
    preprocess: (a.preprocess + b.preprocess) / 2,
    inference: (a.inference + b.inference) / 2,
  }
}

/** CPU milliseconds of this process and the decoding ones, by Linux's count of hundredths; unlike the rate, they do not hang on what else the machine does. */
async function cpuTaken({ processIds }: ImageDecoder): Promise<number> {
  const { user, system } = process.cpuUsage()
  let hundredths = 0
  if (process.platform === 'linux') {
    for (const pid of processIds) {
      const fields = (await readFile(`/proc/${pid}/stat`, 'utf8')).replace(/^.*\) /, '').split(' ')
      hundredths += Number(fields[11]) + Number(fields[12])
    }
  }
  return (user + system) / 1000 + hundredths * 10
}

async function* asItems(files: readonly string[]) {
  for (const path of files) yield { id: path, source: path, path }
}

async function encoded(
  { folder, decoder, batchSize }: Measurement,
  encoder: OnnxImageEncoder,
  items: Parameters<typeof encodeJob>[0]['items'],
  batchesAtOnce: number,
): Promise<void> {
  const cache = await mkdtemp(join(folder, 'store-'))
  {
    await using store = await openFeatureStore(cache)
    const { bad } = await encodeJob({
      items,
      encoder,
      reader: decodingReader(decoder),
      store,
      batchSize,
      batchesAtOnce,
      onBad: 'fail',
    })
    if (bad > 0) throw new Error(`${bad} generated pictures are bad`)
  }
  await rm(cache, { recursive: true })
}

/** The same sessions, of tensors that are there already. */
async function memoryRate(encoder: OnnxImageEncoder, files: readonly string[], batchSize: number, atOnce: number): Promise<number> {
  const inputs: NamedTensors[] = []
  for (const file of files) inputs.push(await encoder.preprocess(await decodeImage(file)))
  const batches = Array.from({ length: Math.ceil(inputs.length / batchSize) }, (_, at) =>
    inputs.slice(at * batchSize, (at + 1) * batchSize),
  )
  const work = [...batches, ...batches, ...batches]
  const images = work.reduce((sum, batch) => sum + batch.length, 0)
  const started = performance.now()
  await Promise.all(
    Array.from({ length: atOnce }, async () => {
      for (let batch = work.pop(); batch !== undefined; batch = work.pop()) await encoder.encode(batch)
    }),
  )
  return (images * 1000) / (performance.now() - started)
}

/** CPU seconds a picture of each part, one after another in this process. */
async function secondsAlone(model: string, files: readonly string[], batchSize: number): Promise<Alone> {
  const before = sharp.concurrency()
  sharp.concurrency(1)
  sharp.cache(false)
  await using session = await createLocalSession(
    { bytes: await readFile(model), externalRoot: dirname(model) },
    { device: 'cpu', threads: 1, spinning: false },
  )
  const [image] = await Promise.all(files.slice(0, 1).map((file) => decodeImage(file)))
  if (image === undefined) throw new Error('no picture')
  const picture = preprocessImage(image, preprocessing)
  if (picture.dtype !== 'float32') throw new Error('pixels are float32')
  const data = new Float32Array(batchSize * picture.data.length)
  for (let at = 0; at < batchSize; at++) data.set(picture.data, at * picture.data.length)
  const feeds = { [inputName]: float32Tensor(data, [batchSize, 3, 224, 224]) }
  try {
    return {
      decode: await cpuSeconds(files.length, async (index) => void (await decodeImage(files[index] ?? '', { inThisThread: true }))),
      libvips: await cpuSeconds(files.length, async (index) => void (await decodeImage(files[index] ?? ''))),
      preprocess: await cpuSeconds(files.length, async () => void preprocessImage(image, preprocessing)),
      inference: (await cpuSeconds(1, async () => void (await session.run(feeds)))) / batchSize,
    }
  } finally {
    sharp.concurrency(before)
  }
}

/** Of one call, one of so many different ones: all of them again and again for as long as a clock of hundredths and a restless machine need. */
async function cpuSeconds(different: number, call: (index: number) => Promise<void>): Promise<number> {
  const round = async (): Promise<void> => {
    for (let index = 0; index < different; index++) await call(index)
  }
  const warmUntil = performance.now() + warmUpMs
  do await round()
  while (performance.now() < warmUntil)
  const [started, until] = [process.cpuUsage(), performance.now() + measuredMs]
  let rounds = 0
  do {
    await round()
    rounds++
  } while (performance.now() < until)
  const { user, system } = process.cpuUsage(started)
  return (user + system) / 1e6 / (rounds * different)
}

/** Decoded and resized by libvips alone, a picture a core at a time. */
async function libvipsRate(files: readonly string[]): Promise<number> {
  const before = sharp.concurrency()
  sharp.concurrency(1)
  const left = [...files]
  const started = performance.now()
  await Promise.all(
    Array.from({ length: cores }, async () => {
      for (let file = left.pop(); file !== undefined; file = left.pop())
        await sharp(file).resize(224, 224, { fit: 'fill', kernel: 'linear', fastShrinkOnLoad: false }).raw().toBuffer()
    }),
  )
  sharp.concurrency(before)
  return (files.length * 1000) / (performance.now() - started)
}

const peerResult = z.object({ imagesPerSecond: z.number() })

/** Its better batch size counts. */
async function transformersJs(folder: string, files: readonly string[]): Promise<number> {
  const place = join(folder, 'npm')
  await mkdir(place)
  await writeFile(join(place, 'package.json'), '{"private":true,"type":"module"}')
  await run('npm', ['install', '--ignore-scripts', '@huggingface/transformers@4'], { cwd: place })
  const program = 'transformers-js-encode.mjs'
  await copyFile(fromRepository(`test/bench/peers/${program}`), join(place, program))
  const hub = join(folder, 'hub')
  await writeFile(join(hub, 'encoder', 'config.json'), JSON.stringify({ model_type: 'vit' }))
  const processor = {
    image_processor_type: 'ViTImageProcessor',
    do_resize: true,
    size: { height: 224, width: 224 },
    resample: 2,
    do_rescale: true,
    rescale_factor: 1 / 255,
    do_normalize: true,
    image_mean: [0.5, 0.5, 0.5],
    image_std: [0.5, 0.5, 0.5],
  }
  await writeFile(join(hub, 'encoder', 'preprocessor_config.json'), JSON.stringify(processor))
  const rates: number[] = []
  for (const batch of [1, 8]) {
    const { stdout } = await run(process.execPath, [program, hub, String(batch), ...files], { cwd: place, maxBuffer: 2 ** 26 })
    rates.push(peerResult.parse(JSON.parse(stdout.trim().split('\n').at(-1) ?? '')).imagesPerSecond)
  }
  return Math.max(...rates)
}

/** Run from the sources or from dist. */
function fromRepository(path: string): string {
  const here = fileURLToPath(new URL('.', import.meta.url))
  const found = ['../..', '../../..'].map((up) => join(here, up, path)).find((file) => existsSync(file))
  if (found === undefined) throw new Error(`no ${path}`)
  return found
}

function prefixed(name: string, figures: Readonly<Record<string, number>>): Readonly<Record<string, number>> {
  return Object.fromEntries(Object.entries(figures).map(([key, value]) => [`${name}${key.charAt(0).toUpperCase()}${key.slice(1)}`, value]))
}
