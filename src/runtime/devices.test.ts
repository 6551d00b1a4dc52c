import { describe, expect, onTestFinished, test, vi } from 'vitest'
import { ModalignError } from '../errors.ts'
import { type Attempts, deviceHint, devicesOf, negotiate, ortSessionOptions, type Platform, reasonOf, runFailure } from './devices.ts'
import { expectedDevice, nativeObstacle, nativeReservation, thisPlatform } from './native.ts'
import { type Device, devices, type SessionOptions } from './session.ts'
import { parseSessionOptions } from './session-options.ts'

const platforms = {
  'linux/x64': { os: 'linux', arch: 'x64' },
  'linux/arm64': { os: 'linux', arch: 'arm64' },
  'win32/x64': { os: 'win32', arch: 'x64' },
  'win32/arm64': { os: 'win32', arch: 'arm64' },
  'darwin/arm64': { os: 'darwin', arch: 'arm64' },
  'darwin/x64': { os: 'darwin', arch: 'x64' },
  'freebsd/x64': { os: 'freebsd', arch: 'x64' },
  browser: { os: 'browser', arch: '' },
} as const satisfies Record<string, Platform>

const cpuOptions = {
  executionProviders: ['cpu'],
  executionMode: 'sequential',
  graphOptimizationLevel: 'all',
  enableCpuMemArena: true,
  enableMemPattern: true,
  logSeverityLevel: 4,
}

describe('which devices a platform has', () => {
  test.each([
    ['linux/x64', ['cuda', 'webgpu', 'cpu', 'wasm']],
    ['linux/arm64', ['cpu', 'wasm']],
    ['win32/x64', ['directml', 'webgpu', 'cpu', 'wasm']],
    ['win32/arm64', ['directml', 'webgpu', 'cpu', 'wasm']],
    ['darwin/arm64', ['coreml', 'webgpu', 'cpu', 'wasm']],
    ['darwin/x64', ['wasm']],
    ['freebsd/x64', ['wasm']],
    ['browser', ['webgpu', 'wasm']],
  ] as const)('%s: %o', (name, expected) => {
    expect(devicesOf(platforms[name])).toEqual(expected)
  })

  test('every device has advice on every platform', () => {
    for (const platform of Object.values(platforms)) for (const device of devices) expect(deviceHint(device, platform)).toMatch(/\w{3}/)
    expect(deviceHint('cuda', platforms['linux/x64'])).toMatch(/npm run setup:cuda/)
    expect(deviceHint('cuda', platforms['darwin/arm64'])).toBe('on darwin/arm64 there are: coreml, webgpu, cpu, wasm')
  })
})

describe('the option object of each device', () => {
  test.each(['linux/x64', 'linux/arm64', 'win32/x64', 'win32/arm64', 'darwin/arm64'] as const)('cpu on %s', (name) => {
    expect(ortSessionOptions('cpu', {}, platforms[name])).toEqual(cpuOptions)
  })

  test('cuda on linux/x64', () => {
    expect(ortSessionOptions('cuda', {}, platforms['linux/x64'])).toEqual({
      ...cpuOptions,
      executionProviders: [{ name: 'cuda', deviceId: 0 }],
    })
  })

  test.each(['win32/x64', 'win32/arm64'] as const)('directml on %s: sequential, no memory pattern, and no way to ask for one', (name) => {
    expect(ortSessionOptions('directml', {}, platforms[name])).toEqual({
      ...cpuOptions,
      executionProviders: [{ name: 'dml', deviceId: 0 }],
      executionMode: 'sequential',
      enableMemPattern: false,
    })
    expect(() => ortSessionOptions('directml', { memoryPattern: true }, platforms[name])).toThrow('RUNTIME_OPTIONS: /memoryPattern')
  })

  test('coreml on darwin/arm64: an ML program, which keeps float32', () => {
    expect(ortSessionOptions('coreml', {}, platforms['darwin/arm64'])).toEqual({
      ...cpuOptions,
      executionProviders: [{ name: 'coreml', coreMlFlags: 0x10 }],
    })
  })

  test.each(['linux/x64', 'win32/x64', 'win32/arm64', 'darwin/arm64', 'browser'] as const)('webgpu on %s', (name) => {
    expect(ortSessionOptions('webgpu', {}, platforms[name])).toEqual({ ...cpuOptions, executionProviders: ['webgpu'] })
  })

  test.each(Object.keys(platforms) as (keyof typeof platforms)[])(
    'wasm on %s: threads are not an option of its sessions, profiles are refused',
    (name) => {
      expect(ortSessionOptions('wasm', { threads: 4 }, platforms[name])).toEqual({ ...cpuOptions, executionProviders: ['wasm'] })
      expect(() => ortSessionOptions('wasm', { profile: 'p' }, platforms[name])).toThrow('RUNTIME_OPTIONS: /profile')
    },
  )

  test('a device that the platform lacks has no options', () => {
    for (const [name, platform] of Object.entries(platforms))
      for (const device of devices)
        if (!devicesOf(platform).includes(device))
          expect(() => ortSessionOptions(device, {}, platform), name).toThrow('RUNTIME_DEVICE_UNAVAILABLE')
  })

  test('every option has its place; keys of `extra` are nested and their values strings', () => {
    const options: Required<SessionOptions> = {
      device: 'cpu',
      threads: 3,
      optimization: 'basic',
      memoryPattern: false,
      prepacking: false,
      profile: '/tmp/run',
      disabledOptimizers: ['CommonSubexpressionElimination', 'GeluFusion'],
      spinning: false,
    }
    expect(ortSessionOptions('cpu', options, platforms['linux/x64'], '/models')).toEqual({
      ...cpuOptions,
      graphOptimizationLevel: 'basic',
      enableMemPattern: false,
      intraOpNumThreads: 3,
      enableProfiling: true,
      profileFilePrefix: '/tmp/run',
      extra: {
        session: { disable_prepacking: '1', intra_op: { allow_spinning: '0' }, model_external_initializers_file_folder_path: '/models' },
        optimization: { disable_specified_optimizers: 'CommonSubexpressionElimination;GeluFusion' },
      },
    })
  })
})

describe('options are strict', () => {
  test.each([
    [{ devise: 'cpu' }, '/devise'],
    [{ device: 'gpu' }, '/device'],
    [{ threads: 0 }, '/threads'],
    [{ threads: 1.5 }, '/threads'],
    [{ disabledOptimizers: ['a;b'] }, '/disabledOptimizers/0'],
    [{ prepacking: 'no' }, '/prepacking'],
    ['cpu', ''],
  ])('%o is refused at %s', (options, field) => {
    expect(() => parseSessionOptions(options)).toThrow(ModalignError)
    try {
      parseSessionOptions(options)
    } catch (error) {
      expect((error as ModalignError).details).toMatchObject({ code: 'RUNTIME_OPTIONS', field })
    }
  })

  test('undefined is as good as absent', () => {
    expect(parseSessionOptions({ threads: undefined, device: 'cpu' })).toEqual({ device: 'cpu' })
    expect(parseSessionOptions()).toEqual({})
  })
})

/** Attempts that work on the given devices only. */
const working = (works: readonly Device[], changes: Partial<Attempts<string>> = {}): Attempts<string> & { readonly tried: Device[] } => {
  const tried: Device[] = []
  return {
    tried,
    obstacle: () => undefined,
    reservation: () => undefined,
    async attempt(device) {
      tried.push(device)
      if (works.includes(device)) return `a session on ${device}`
      throw new Error(`${device} is broken`)
    },
    sound: async (device) => works.includes(device),
    ...changes,
  }
}

describe('negotiation', () => {
  test('auto takes the first that works and says why it passed the others over', async () => {
    const attempts = working(['webgpu', 'cpu'])
    expect(await negotiate('auto', platforms['win32/x64'], attempts)).toEqual({
      device: 'webgpu',
      passedOver: [{ device: 'directml', reason: 'directml is broken' }],
      value: 'a session on webgpu',
    })
    expect(attempts.tried).toEqual(['directml', 'webgpu'])
  })

  test('auto does not try what is known not to work, or is not to be taken unasked', async () => {
    const attempts = working(['cuda', 'webgpu', 'cpu'], {
      obstacle: (device) => (device === 'cuda' ? 'not installed' : undefined),
      reservation: (device) => (device === 'webgpu' ? 'perhaps software' : undefined),
    })
    expect(await negotiate('auto', platforms['linux/x64'], attempts)).toMatchObject({
      device: 'cpu',
      passedOver: [
        { device: 'cuda', reason: 'not installed' },
        { device: 'webgpu', reason: 'perhaps software' },
      ],
    })
    expect(attempts.tried).toEqual(['cpu'])
    // By name, a reservation does not count and an obstacle does.
    expect(await negotiate('webgpu', platforms['linux/x64'], attempts)).toMatchObject({ device: 'webgpu', passedOver: [] })
    await expect(negotiate('cuda', platforms['linux/x64'], attempts)).rejects.toMatchObject({ code: 'RUNTIME_DEVICE_UNAVAILABLE' })
  })

  test('auto never ends on wasm where there is a native cpu; without one it does, and says so', async () => {
    const attempts = working(['wasm'])
    await expect(negotiate('auto', platforms['linux/arm64'], attempts)).rejects.toMatchObject({ code: 'RUNTIME_MODEL_INVALID' })
    expect(attempts.tried).toEqual(['cpu'])
    expect(await negotiate('auto', platforms['darwin/x64'], working(['wasm']))).toMatchObject({
      device: 'wasm',
      passedOver: [{ device: 'cpu', reason: 'onnxruntime-node has no binary for darwin/x64' }],
    })
  })

  test('a named device never falls back; a bad model is told from a bad device', async () => {
    await expect(negotiate('cuda', platforms['linux/x64'], working(['cpu']))).rejects.toMatchObject({
      code: 'RUNTIME_DEVICE_UNAVAILABLE',
      details: { field: '/device', got: 'cuda: cuda is broken', hint: expect.stringMatching(/npm run setup:cuda.*npx modalign doctor/) },
    })
    await expect(negotiate('cuda', platforms['linux/x64'], working(['cpu'], { sound: async () => true }))).rejects.toMatchObject({
      code: 'RUNTIME_MODEL_INVALID',
    })
    await expect(negotiate('directml', platforms['linux/x64'], working(['cpu']))).rejects.toMatchObject({
      code: 'RUNTIME_DEVICE_UNAVAILABLE',
      details: { got: 'directml: not available on linux/x64' },
    })
  })

  test('what is already an error of ours passes as it is', async () => {
    const refused = new ModalignError({ code: 'RUNTIME_MODEL_TYPE' })
    const attempts = working([], { attempt: () => Promise.reject(refused) })
    await expect(negotiate('cpu', platforms['linux/x64'], attempts)).rejects.toBe(refused)
    await expect(negotiate('auto', platforms['linux/x64'], attempts)).rejects.toBe(refused)
  })
})

describe('what the files and the environment tell', () => {
  test('platforms without a binary', () => {
    expect(nativeObstacle('cpu', platforms['darwin/x64'])).toBe('onnxruntime-node has no binary for darwin/x64')
    expect(nativeObstacle('wasm', platforms['darwin/x64'])).toBeUndefined()
    expect(nativeObstacle('cpu', platforms['win32/arm64'])).toBeUndefined()
  })

  test('webgpu is taken unasked only where hardware can be seen', () => {
    expect(nativeReservation('webgpu', platforms['darwin/arm64'], {})).toBeUndefined()
    expect(nativeReservation('webgpu', platforms['win32/x64'], {})).toMatch(/by name/)
    expect(nativeReservation('webgpu', platforms['linux/x64'], { VK_DRIVER_FILES: '/usr/lib/chromium/vk_swiftshader_icd.json' })).toMatch(
      /software Vulkan driver/,
    )
    expect(nativeReservation('cuda', platforms['linux/x64'], {})).toBeUndefined()
  })
})

describe('the device that a request is expected to get', () => {
  test.each(devices)('%s is itself by name, wherever', (device) => {
    for (const platform of Object.values(platforms)) expect(expectedDevice(device, platform)).toBe(device)
  })

  test.each([
    // Binaries for every platform come with the package; CUDA's libraries and GPUs do not.
    ['linux/arm64', 'cpu'],
    ['darwin/arm64', 'coreml'],
    ['win32/x64', 'directml'],
    ['win32/arm64', 'directml'],
    // No native binary.
    ['darwin/x64', 'wasm'],
  ] as const)('auto on %s: %s', (name, device) => {
    expect(expectedDevice('auto', platforms[name])).toBe(device)
    expect(expectedDevice(undefined, platforms[name])).toBe(device)
  })

  test('is the one that auto takes here, where every device that may work does', async () => {
    const { device } = await negotiate('auto', thisPlatform, {
      obstacle: nativeObstacle,
      reservation: nativeReservation,
      attempt: async () => 'opened',
      sound: async () => true,
    })
    expect(expectedDevice()).toBe(device)
  })

  test('passes over a GPU that only a software driver draws on', () => {
    vi.stubEnv('VK_DRIVER_FILES', '/usr/share/vulkan/icd.d/lvp_icd.x86_64.json')
    onTestFinished(() => void vi.unstubAllEnvs())
    const cuda = nativeObstacle('cuda', platforms['linux/x64']) === undefined
    expect(expectedDevice('auto', platforms['linux/x64'])).toBe(cuda ? 'cuda' : 'cpu')
  })
})

describe('ONNX Runtime’s words', () => {
  test.each([
    [
      "Non-zero status code returned while running MatMul node. Name:'product' Status Message: matmul_helper.h:141 Compute MatMul dimension mismatch",
      "MatMul 'product': matmul_helper.h:141 Compute MatMul dimension mismatch",
    ],
    [
      '/onnxruntime_src/onnxruntime/core/providers/webgpu/webgpu_context.cc:136 onnxruntime::webgpu::WebGpuContext::Initialize(const onnxruntime::webgpu::WebGpuContextConfig&)::<lambda()> adapter_result.status == wgpu::RequestAdapterStatus::Success was false. Failed to get a WebGPU adapter: No supported adapters\n',
      'Failed to get a WebGPU adapter: No supported adapters',
    ],
    ['Failed to load model because protobuf parsing failed.', 'Failed to load model because protobuf parsing failed.'],
  ])('%s', (message, expected) => {
    expect(reasonOf(new Error(message))).toBe(expected)
  })

  test('memory that ran out has a code of its own', () => {
    expect(runFailure(new Error('std::bad_alloc')).code).toBe('RUNTIME_OUT_OF_MEMORY')
    expect(runFailure(new Error('anything else')).code).toBe('RUNTIME_RUN_FAILED')
  })
})
