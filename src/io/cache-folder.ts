import { homedir } from 'node:os'
import { join, resolve } from 'node:path'

/**
 * Where modalign keeps what it can make again: `MODALIGN_CACHE`, or `modalign` in the system's folder for such files (`XDG_CACHE_HOME` or `~/.cache`; on macOS
 * `~/Library/Caches`; on Windows `LOCALAPPDATA`). Everything in it may be deleted while no program uses it.
 *
 * @example
 * cacheFolder({ MODALIGN_CACHE: '/big/disk' }) // '/big/disk'
 */
export function cacheFolder(environment: NodeJS.ProcessEnv = process.env, platform: NodeJS.Platform = process.platform): string {
  const { MODALIGN_CACHE: own, XDG_CACHE_HOME: xdg, LOCALAPPDATA: local } = environment
  if (own) return resolve(own)
  if (platform === 'win32') return join(local || join(homedir(), 'AppData', 'Local'), 'modalign', 'Cache')
  if (platform === 'darwin') return join(homedir(), 'Library', 'Caches', 'modalign')
  return join(xdg || join(homedir(), '.cache'), 'modalign')
}
