import { ModalignError } from '../../errors.ts'

/**
 * The names that patterns choose, in the order of `names`. `*` stands for any characters but dots, `**` for any characters, everything else for itself.
 *
 * @throws ADAPTER_TARGET for a pattern that chooses nothing.
 * @example
 * matchingWeights(['model.layers.*.mlp.**'], names) // 'model.layers.0.mlp.gate_proj.weight', ...
 */
export function matchingWeights(patterns: 'all' | readonly string[], names: readonly string[]): readonly string[] {
  if (patterns === 'all') return names
  const found = new Set<string>()
  for (const pattern of patterns) {
    const expression = patternExpression(pattern)
    const own = names.filter((name) => expression.test(name))
    if (own.length === 0) throw noMatch(pattern, 'unfreeze', names)
    for (const name of own) found.add(name)
  }
  return names.filter((name) => found.has(name))
}

/** One star never lies beside another in what is compiled, so that matching takes no more than the product of the two lengths for each star. */
function patternExpression(pattern: string): RegExp {
  const parts = pattern
    .split(/(\*+)/)
    .map((part) => (part === '*' ? '[^.]*' : part.startsWith('*') ? '.*' : part.replace(/[\\^$.|?+()[\]{}]/g, '\\$&')))
  return new RegExp(`^${parts.join('')}$`, 'su')
}

/**
 * The modules that `targets` choose, as PEFT's lists do: a name is the whole path or what follows one of its dots.
 *
 * @throws ADAPTER_TARGET for a name that chooses nothing.
 */
export function matchingModules(targets: 'all-linear' | readonly string[], modules: readonly string[]): readonly string[] {
  if (targets === 'all-linear') return modules
  const chooses = (target: string, module: string): boolean => module === target || module.endsWith(`.${target}`)
  for (const target of targets) if (!modules.some((module) => chooses(target, module))) throw noMatch(target, 'lora/targets', modules)
  return modules.filter((module) => targets.some((target) => chooses(target, module)))
}

function noMatch(wanted: string, field: string, names: readonly string[]): ModalignError {
  const endings = new Set(names.map((name) => name.replace(/^.*\.\d+\./, '*.')))
  return new ModalignError({
    code: 'ADAPTER_TARGET',
    field: `/${field}`,
    got: `${JSON.stringify(wanted)}, which is none of this model's`,
    expected: `for example ${[...endings].slice(0, 12).join(', ')}`,
  })
}
