/** How a download is told of on the terminal. */
import { excerpt } from '../errors.ts'
import type { DownloadOptions } from '../weights/hub/resolve-model.ts'
import type { Terminal } from './terminal.ts'

/** A line for each tenth of the bytes. */
export function downloading(download: boolean | undefined, terminal: Terminal): DownloadOptions {
  let told = -1
  return {
    download: download === true,
    onDownload({ file, receivedBytes, totalBytes }) {
      const tenth = Math.floor((10 * receivedBytes) / Math.max(1, totalBytes))
      if (tenth === told) return
      told = tenth
      terminal.note(`download: ${(receivedBytes / 1e6).toFixed(1)} of ${(totalBytes / 1e6).toFixed(1)} MB (${excerpt(file)})`)
    },
  }
}
