/** The memory that this thread's programs for pictures share: what one of them makes, the next one reads where it lies. */

let memory: WebAssembly.Memory | undefined
let kept = 0

export function pictureMemory(): WebAssembly.Memory {
  memory ??= new WebAssembly.Memory({ initial: 1 })
  return memory
}

/** What lies before this address stays as it is until the next picture is decoded. */
export function keptBytes(): number {
  return kept
}

/** @param end behind the pixels of the picture that was decoded last */
export function keepBytes(end: number): void {
  kept = end
}
