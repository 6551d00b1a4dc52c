/** Which addresses belong to the public internet. Everything else (this machine, its network, its cloud's metadata) is no place that a stranger's URL may lead to. */
import { BlockList, isIPv4, isIPv6 } from 'node:net'

/** IANA's special-purpose IPv4 blocks, multicast and the reserved top. */
const special4: readonly (readonly [string, number])[] = [
  ['0.0.0.0', 8],
  ['10.0.0.0', 8],
  ['100.64.0.0', 10],
  ['127.0.0.0', 8],
  ['169.254.0.0', 16],
  ['172.16.0.0', 12],
  ['192.0.0.0', 24],
  ['192.0.2.0', 24],
  ['192.88.99.0', 24],
  ['192.168.0.0', 16],
  ['198.18.0.0', 15],
  ['198.51.100.0', 24],
  ['203.0.113.0', 24],
  ['224.0.0.0', 4],
  ['240.0.0.0', 4],
]
/** Of IPv6 only global unicast is public, without the blocks that carry an IPv4 address or are for documents. */
const global6: readonly [string, number] = ['2000::', 3]
const special6: readonly (readonly [string, number])[] = [
  ['2001::', 23],
  ['2001:db8::', 32],
  ['2002::', 16],
  ['3fff::', 20],
]

const blocked4 = new BlockList()
for (const [address, prefix] of special4) blocked4.addSubnet(address, prefix, 'ipv4')
const allowed6 = new BlockList()
allowed6.addSubnet(...global6, 'ipv6')
const blocked6 = new BlockList()
for (const [address, prefix] of special6) blocked6.addSubnet(address, prefix, 'ipv6')

/**
 * Whether an IP address (as text, IPv6 without brackets) is a host's of the public internet. IPv4 addresses inside IPv6 ones (`::ffff:`, NAT64, 6to4, Teredo) are
 * not: nobody needs them to reach a public host.
 *
 * @example
 * isPublicAddress('93.184.216.34') // true
 * isPublicAddress('169.254.169.254') // false: a cloud's metadata service
 */
export function isPublicAddress(address: string): boolean {
  if (isIPv4(address)) return !blocked4.check(address, 'ipv4')
  const [plain = ''] = address.split('%')
  return isIPv6(plain) && allowed6.check(plain, 'ipv6') && !blocked6.check(plain, 'ipv6')
}
