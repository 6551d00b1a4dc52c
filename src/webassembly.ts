/** Programs of our own in WebAssembly. The module that uses one keeps it as text: assembled, in base64, from the `.wat` file beside it. */

/** A program at work. */
export interface Program<Name extends string> {
  readonly memory: WebAssembly.Memory
  readonly run: Readonly<Record<Name, (...given: number[]) => number>>
}

export interface Programs<Name extends string> {
  /**
   * One of its own, in a memory of its own, or in the one given, where it imports `shared.memory`. Undefined in programs that may not make code: Node's `--jitless`, pages whose
   * content security policy forbids it.
   */
  start(memory?: () => WebAssembly.Memory): Program<Name> | undefined
  /** The one that this thread started first, or starts now; otherwise as {@link Programs.start}. */
  ofThread(memory?: () => WebAssembly.Memory): Program<Name> | undefined
}

/**
 * A program that is compiled when it is first started.
 *
 * @param text the module in base64
 * @param names of the functions that it exports
 * @example
 * const planes = webAssembly(text, ['planes'])
 * planes.ofThread()?.run.planes(0, 1024, 4096, 16)
 */
export function webAssembly<const Name extends string>(text: string, names: readonly Name[]): Programs<Name> {
  let module: WebAssembly.Module | 'absent' | undefined
  let first: Program<Name> | 'absent' | undefined
  const start: Programs<Name>['start'] = (given) => {
    module ??= compiled(text)
    if (module === 'absent') return undefined
    const { exports } = new WebAssembly.Instance(module, given && { shared: { memory: given() } })
    const { memory } = exports
    if (!(memory instanceof WebAssembly.Memory)) throw new Error('internal: the program exports its memory')
    const functions = names.map((name) => {
      const found = exports[name]
      if (typeof found !== 'function') throw new Error(`internal: the program exports ${name}`)
      return [name, (...numbers: number[]) => Number(found(...numbers))]
    })
    // Each name has its function.
    return { memory, run: Object.fromEntries(functions) as Program<Name>['run'] }
  }
  return {
    start,
    ofThread(memory) {
      first ??= start(memory) ?? 'absent'
      return first === 'absent' ? undefined : first
    },
  }
}

function compiled(text: string): WebAssembly.Module | 'absent' {
  if (typeof WebAssembly === 'undefined') return 'absent'
  try {
    return new WebAssembly.Module(Uint8Array.from(atob(text), (character) => character.charCodeAt(0)))
  } catch (error) {
    if (error instanceof WebAssembly.CompileError) return 'absent'
    throw error
  }
}

const pageBytes = 65_536

/** The memory's buffer, grown to at least so many bytes: another one than before where it grew. */
export function grown(memory: WebAssembly.Memory, bytes: number): ArrayBuffer {
  const missing = bytes - memory.buffer.byteLength
  if (missing > 0) memory.grow(Math.ceil(missing / pageBytes))
  return memory.buffer
}
