/** JPEGs of 640 x 480 that differ: gradients of many directions under noise of many sizes, about 90 kB each, as photographs of that size are. */
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import sharp from 'sharp'

const [width, height] = [640, 480]

export async function writePictures(folder: string, count: number, seed = 1): Promise<readonly string[]> {
  await mkdir(folder, { recursive: true })
  let state = seed
  const draw = (): number => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) & 0x7fffffff
    return state / 0x7fffffff
  }
  // Noise is drawn once and laid over each picture at another place.
  const noise = Uint8Array.from({ length: width * height * 3 + 65_536 }, () => Math.floor(draw() * 256))
  const files: string[] = []
  for (let index = 0; index < count; index++) {
    const [across, down, start, strength] = [draw() * 0.8 - 0.4, draw() * 0.8 - 0.4, draw() * 128, 0.1 + draw() * 0.15]
    const offset = Math.floor(draw() * 65_536)
    const pixels = Buffer.alloc(width * height * 3)
    for (let y = 0, at = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const light = start + x * across + y * down
        for (let channel = 0; channel < 3; channel++, at++)
          pixels[at] = (Math.abs(light + channel * 20) + strength * (noise[offset + at] ?? 0)) & 255
      }
    }
    const file = join(folder, `${String(index).padStart(6, '0')}.jpg`)
    await sharp(pixels, { raw: { width, height, channels: 3 } })
      .jpeg({ quality: 85 })
      .toFile(file)
    files.push(file)
  }
  return files
}
