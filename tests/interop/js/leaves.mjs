// The leaves behind a receipt's two roots: docs/protocol.md, sections 7 and 9. Written from the page alone.
import { decode } from '@msgpack/msgpack'
import { join, keccak, same, utf8 } from './structs.mjs'

const ZERO = new Uint8Array(32)

// [name, value] with values of 32 bytes: { attribution: Map, commitment: Map }.
export function readLeaves (packed) {
  const [attribution, commitment] = decode(packed).map(group => {
    const names = group.map(([name]) => name)
    if (names.join('\n') !== [...new Set(names)].sort().join('\n')) throw new Error('names are not ascending, each once')
    return new Map(group.map(([name, value]) => [name, join([new Uint8Array(32 - value.length), value])]))
  })
  return { attribution, commitment }
}

// Root over named leaves whose salts come out of the receipt's.
export function namedRoot (leaves, salt) {
  if (leaves.size === 0) return ZERO
  const hashes = [...leaves].map(([name, value]) => {
    const hash = keccak(utf8(name))
    return keccak(keccak(join([hash, keccak(join([salt, hash])), value])))
  })
  return rootOf(hashes)
}

function rootOf (hashes) {
  const sorted = hashes.sort((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)))
  const nodes = [...new Array(sorted.length - 1), ...sorted.reverse()]
  for (let place = sorted.length - 2; place >= 0; place--) nodes[place] = pair(nodes[2 * place + 1], nodes[2 * place + 2])
  return nodes[0]
}

const pair = (a, b) => keccak(Buffer.compare(Buffer.from(a), Buffer.from(b)) < 0 ? join([a, b]) : join([b, a]))

// What the leaves divide: { compute, royalties }.
export function split ({ attribution }) {
  const wei = name => BigInt.asIntN(256, BigInt('0x' + Buffer.from(attribution.get(name)).toString('hex')))
  const parts = [...attribution.keys()].filter(name => /^(base|adapter\/\d+)\/royalty$/.test(name))
  return { compute: wei('operator/compute'), royalties: parts.reduce((sum, name) => sum + wei(name), wei('royalties/undivided')) }
}

export const leadsTo = (leaves, salt, root) => same(namedRoot(leaves, salt), root)
