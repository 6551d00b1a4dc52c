/** Text in charts as outlines, so that it looks the same everywhere and a picture made on a machine without fonts has its words. */
import { glyphs } from './chart-glyphs.ts'

export interface TextStyle {
  /** Pixels an em. */
  readonly size: number
  /** CSS class that gives the fill. */
  readonly className: string
  readonly anchor?: 'start' | 'middle' | 'end'
  readonly bold?: boolean
}

/** Extra stroke of bold text, in units of 1/1000 em. */
const boldStroke = 55

/** Characters that XML 1.0 has no place for. */
const notXml = /[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\u{10000}-\u{10ffff}]/gu

export function escapeXml(text: string): string {
  const entities: Readonly<Record<string, string>> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;', "'": '&#39;' }
  return text.replace(notXml, '').replace(/[&<>"']/g, (character) => entities[character] ?? character)
}

/** Width of a text in pixels; characters without an outline count as wide as an `m`. */
export function textWidth(text: string, size: number): number {
  const unknown = glyphs.get('m')?.[0] ?? 0
  return [...text].reduce((sum, character) => sum + (glyphs.get(character)?.[0] ?? unknown), 0) * (size / 1000)
}

/** Draws text and remembers which outlines it needs, to be defined once in the picture. */
export class OutlinedText {
  private readonly used = new Set<string>()

  /** A text with its baseline at (x, y). One with characters that have no outline is left to the fonts of the viewer. */
  draw(x: number, y: number, text: string, { size, className, anchor = 'start', bold = false }: TextStyle): string {
    const characters = [...text]
    const left = anchor === 'start' ? x : x - textWidth(text, size) / (anchor === 'middle' ? 2 : 1)
    if (characters.some((character) => !glyphs.has(character))) {
      const weight = bold ? ' font-weight="600"' : ''
      return `<text class="${className}" x="${round(x)}" y="${round(y)}" font-family="system-ui, sans-serif" font-size="${size}" text-anchor="${anchor}"${weight}>${escapeXml(text)}</text>`
    }
    let advance = 0
    const uses = characters.map((character) => {
      const at = advance
      advance += glyphs.get(character)?.[0] ?? 0
      if (character === ' ') return ''
      this.used.add(character)
      return `<use href="#${idOf(character)}" x="${at}"/>`
    })
    const stroke = bold ? ` stroke-width="${boldStroke}" stroke-linejoin="round"` : ''
    const classes = bold ? `${className} ${className}-stroke` : className
    return `<g class="${classes}"${stroke} transform="translate(${round(left)} ${round(y)}) scale(${size / 1000})">${uses.join('')}</g>`
  }

  definitions(): string {
    return `<defs>${[...this.used].map((character) => `<path id="${idOf(character)}" d="${glyphs.get(character)?.[1]}"/>`).join('')}</defs>`
  }
}

const idOf = (character: string): string => `glyph-${character.codePointAt(0)?.toString(16)}`

/** Two decimals are a fiftieth of a pixel on the densest screens. */
export const round = (value: number): number => Math.round(value * 100) / 100
