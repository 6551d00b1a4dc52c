/** Media inside their own URL. */
import { ModalignError } from '../errors.ts'

/**
 * The bytes of a `data:` URL (RFC 2397), strictly: base64 in its standard alphabet with its padding and without white space, or percent-encoded bytes. The size is
 * checked before anything is decoded. The media type is not believed: what the bytes are, they say themselves.
 *
 * @param tooLargeCode the code of the error for more than `maxBytes`. Default `DATA_URL_TOO_LARGE`.
 * @throws {ModalignError} `DATA_URL_INVALID`, `tooLargeCode`.
 *
 * @example
 * decodeDataUrl('data:image/gif;base64,R0lGODlh', { maxBytes: 100 }) // the six bytes of "GIF89a"
 */
export function decodeDataUrl(
  url: string,
  { maxBytes, tooLargeCode = 'DATA_URL_TOO_LARGE' }: { readonly maxBytes: number; readonly tooLargeCode?: string | undefined },
): Uint8Array {
  const comma = url.indexOf(',')
  const refuse = (got: string, expected: string): ModalignError => new ModalignError({ code: 'DATA_URL_INVALID', got, expected })
  if (!/^data:/i.test(url)) throw refuse(url.slice(0, 40), 'a URL that begins with data:')
  // A media type is short; without the limit a comma far away would make one of a whole file.
  if (comma < 0 || comma > 1000) throw refuse('no comma after the media type', 'data:<media type>;base64,<data>')
  const length = url.length - comma - 1
  const isBase64 = /;\s*base64$/i.test(url.slice(5, comma))
  const most = isBase64 ? Math.ceil((maxBytes + 2) / 3) * 4 : maxBytes * 3
  if (length > most) {
    throw new ModalignError({ code: tooLargeCode, got: `a data URL of ${url.length} characters`, expected: `at most ${maxBytes} bytes` })
  }
  const data = url.slice(comma + 1)
  const bytes = isBase64 ? fromBase64(data, refuse) : fromPercent(data, refuse)
  if (bytes.length > maxBytes)
    throw new ModalignError({ code: tooLargeCode, got: `${bytes.length} bytes`, expected: `at most ${maxBytes} bytes` })
  return bytes
}

type Refuse = (got: string, expected: string) => ModalignError

function fromBase64(data: string, refuse: Refuse): Uint8Array {
  const alphabet = 'base64 of A-Z, a-z, 0-9, + and /'
  const odd = /[^A-Za-z0-9+/=]/.exec(data)?.[0]
  if (odd !== undefined) {
    if (/\s/.test(odd)) throw refuse('white space in the data', 'base64 without white space')
    throw refuse(`the character ${JSON.stringify(odd)}`, odd === '-' || odd === '_' ? `${alphabet}, not its URL-safe variant` : alphabet)
  }
  const padding = data.indexOf('=')
  if (padding >= 0 && !/^={1,2}$/.test(data.slice(padding))) throw refuse('"=" inside the data', 'padding at the end only')
  if (data.length % 4 !== 0) throw refuse(`${data.length} characters`, 'whole groups of four, padded with "="')
  const bytes = Buffer.from(data, 'base64')
  return new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.length)
}

function fromPercent(data: string, refuse: Refuse): Uint8Array {
  const odd = /%(?![0-9a-f]{2})|[^ -~]/i.exec(data)?.[0]
  if (odd !== undefined) throw refuse(`the character ${JSON.stringify(odd)}`, 'printable ASCII, all else as %00 to %FF')
  const bytes = new Uint8Array(data.length)
  let end = 0
  for (let at = 0; at < data.length; at++) {
    const code = data.charCodeAt(at)
    if (code === 37) {
      bytes[end++] = Number.parseInt(data.slice(at + 1, at + 3), 16)
      at += 2
    } else bytes[end++] = code
  }
  return bytes.slice(0, end)
}
