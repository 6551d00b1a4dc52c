/** What the environment says about the Hub: the variables that Hugging Face's own libraries read. */
import { homedir } from 'node:os'
import { join, resolve } from 'node:path'
import { checkedEndpoint, type HubSettings } from './model-name.ts'

/**
 * `HF_HUB_CACHE` (or `HUGGINGFACE_HUB_CACHE`), `HF_HOME`, `XDG_CACHE_HOME`, `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE`. An empty variable counts as none.
 *
 * @throws ModalignError `HUB_ENDPOINT`
 * @example
 * hubSettings({ HF_HOME: '/big/hf' }).cacheFolder // '/big/hf/hub'
 */
export function hubSettings(environment: NodeJS.ProcessEnv = process.env): HubSettings {
  const { HF_HUB_CACHE, HUGGINGFACE_HUB_CACHE, HF_HOME, XDG_CACHE_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE } = environment
  const home = HF_HOME || join(XDG_CACHE_HOME || join(homedir(), '.cache'), 'huggingface')
  return {
    cacheFolder: expanded(HF_HUB_CACHE || HUGGINGFACE_HUB_CACHE || join(home, 'hub')),
    endpoint: checkedEndpoint(HF_ENDPOINT || 'https://huggingface.co'),
    token: HF_TOKEN?.trim() || undefined,
    offline: /^(?:1|true|yes|on)$/i.test(HF_HUB_OFFLINE ?? ''),
    ownServer: Boolean(HF_ENDPOINT),
  }
}

function expanded(path: string): string {
  return resolve(path.replace(/^~(?=$|[/\\])/, () => homedir()))
}
