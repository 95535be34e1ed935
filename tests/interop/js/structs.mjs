// Signed structs as docs/protocol.md, sections 2 to 4, describes them: packed bytes, EIP-712 digests, signatures.
// Values are plain objects: bigint for integers, Uint8Array for bytes, string, arrays. No value is taken from test vectors.
import { secp256k1 } from '@noble/curves/secp256k1.js'
import { keccak_256 } from '@noble/hashes/sha3.js'

const TYPES = [
  'Quote(address payer,bytes32 node,bytes32 pipelineId,uint128 inputRate,uint128 outputRate,Royalty[] royalties,uint128 settlementCharge,uint64 issuedAt,uint64 expiresAt)Royalty(bytes32 artifact,uint32 termsVersion,uint128 rate,address owner)',
  'Request(address payer,bytes32 node,bytes32 pipelineId,bytes32 quoteDigest,bytes32 bodyHash,uint128 maxFee,uint64 maxTokens,bytes32 nonce,uint64 issuedAt,uint64 expiresAt)',
  'Voucher(address payer,bytes32 node,bytes32 pipelineId,uint64 cumulativeTokens,uint128 cumulativeCompute,bytes32 referenceDigest)',
  'Receipt(bytes32 requestDigest,address payer,bytes32 node,bytes32 pipelineId,uint8 status,bytes32 engineDigest,uint64 promptTokens,uint64 completionTokens,bytes32 outputHash,bytes32 attributionRoot,bytes32 commitmentRoot,uint128 compute,uint128 royalties,uint64 startedAt,uint64 finishedAt,uint64 seq,bytes32 previous)',
  'NodeAdvert(bytes32 node,uint64 seq,uint64 issuedAt,uint64 expiresAt,uint8 state,uint8 reach,bytes32[] baseModels,bytes32 filterDigest,uint32 adapterCount,uint128 inputRate,uint128 outputRate,uint32 queueDepth,uint32 tokensPerSecond,uint32 maxContext,string device,uint32 memoryTotal,uint32 memoryFree,string dtype,string version,string[] addresses)',
  'Pipeline(bytes32 base,uint32 baseTermsVersion,Adapter[] adapters,uint8 method)Adapter(bytes32 id,uint32 termsVersion,int32 weight)'
]

const structs = new Map() // name → { text, fields: [{ type, name }] }
for (const text of TYPES) {
  for (const [, name, fields] of text.matchAll(/(\w+)\(([^)]*)\)/g)) {
    const whole = text.startsWith(`${name}(`) ? text : `${name}(${fields})`
    structs.set(name, { text: whole, fields: fields.split(',').map(field => { const [type, name] = field.split(' '); return { type, name } }) })
  }
}

export const utf8 = text => new TextEncoder().encode(text)
export const hex = bytes => Buffer.from(bytes).toString('hex')
export const unhex = text => new Uint8Array(Buffer.from(text.replace(/^0x/, ''), 'hex'))
export const keccak = bytes => keccak_256(bytes)
export const join = parts => new Uint8Array(Buffer.concat(parts))
export const same = (a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)) === 0

export function integer (value, width) {
  const bits = BigInt(width * 8)
  let rest = BigInt.asUintN(Number(bits), BigInt(value)) // two's complement for negative weights
  const bytes = new Uint8Array(width)
  for (let place = width - 1; place >= 0; place--) { bytes[place] = Number(rest & 255n); rest >>= 8n }
  return bytes
}

export function number (bytes, signed = false) {
  const value = bytes.reduce((sum, byte) => (sum << 8n) | BigInt(byte), 0n)
  return signed ? BigInt.asIntN(bytes.length * 8, value) : value
}

// --- packed form ------------------------------------------------------------------------------------------------------

function packValue (type, value) {
  if (type.endsWith('[]')) return join([integer(value.length, 2), ...value.map(item => packValue(type.slice(0, -2), item))])
  if (structs.has(type)) return pack(type, value)
  if (type === 'string') { const bytes = utf8(value); return join([integer(bytes.length, 2), bytes]) }
  const [, kind, bits] = /^(uint|int)(\d+)$/.exec(type) ?? []
  return kind ? integer(value, Number(bits) / 8) : value
}

export function pack (name, value) {
  return join(structs.get(name).fields.map(field => packValue(field.type, value[field.name])))
}

class Reader {
  constructor (bytes) { this.bytes = bytes; this.place = 0 }

  take (count) {
    if (this.place + count > this.bytes.length) throw new Error('bytes are missing')
    return this.bytes.slice(this.place, this.place += count)
  }

  value (type) {
    if (type.endsWith('[]')) return Array.from({ length: Number(number(this.take(2))) }, () => this.value(type.slice(0, -2)))
    if (structs.has(type)) return this.struct(type)
    if (type === 'string') return new TextDecoder('utf-8', { fatal: true }).decode(this.take(Number(number(this.take(2)))))
    if (type === 'address') return this.take(20)
    if (type === 'bytes32') return this.take(32)
    const [, kind, bits] = /^(uint|int)(\d+)$/.exec(type)
    return number(this.take(Number(bits) / 8), kind === 'int')
  }

  struct (name) {
    return Object.fromEntries(structs.get(name).fields.map(field => [field.name, this.value(field.type)]))
  }
}

// A signed struct is the packed struct ‖ the 65-byte signature, with nothing left over.
export function unpackSigned (name, bytes) {
  const reader = new Reader(bytes)
  const value = reader.struct(name)
  const signature = reader.take(65)
  if (reader.place !== bytes.length) throw new Error('bytes are left over')
  return { value, signature }
}

// --- EIP-712 ----------------------------------------------------------------------------------------------------------

function word (type, value) {
  if (type.endsWith('[]')) return keccak(join(value.map(item => word(type.slice(0, -2), item))))
  if (structs.has(type)) return structHash(type, value)
  if (type === 'string') return keccak(utf8(value))
  if (type === 'bytes32') return value
  if (type === 'address') return join([new Uint8Array(12), value])
  return integer(value, 32)
}

export function structHash (name, value) {
  const { text, fields } = structs.get(name)
  return keccak(join([keccak(utf8(text)), ...fields.map(field => word(field.type, value[field.name]))]))
}

export function separator (chainId, verifyingContract) {
  const type = 'EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)'
  return keccak(join([keccak(utf8(type)), keccak(utf8('OpenLoRA')), keccak(utf8('1')), integer(chainId, 32), word('address', verifyingContract)]))
}

export const digest = (domain, name, value) => keccak(join([unhex('1901'), domain, structHash(name, value)]))

// --- signatures -------------------------------------------------------------------------------------------------------

export const addressOf = secret => addressOfPoint(secp256k1.getPublicKey(secret, false))
export const addressOfPoint = point => keccak(point.slice(1)).slice(12)
export const uncompressed = point => secp256k1.Point.fromBytes(point).toBytes(false)

export function sign (domain, name, value, secret) {
  const [recovery, ...rs] = secp256k1.sign(digest(domain, name, value), secret, { prehash: false, format: 'recovered' })
  return join([pack(name, value), new Uint8Array(rs), integer(27 + recovery, 1)])
}

const HALF_ORDER = secp256k1.Point.Fn.ORDER >> 1n

export function signerOf (domain, name, { value, signature }) {
  const v = signature[64]
  if (v !== 27 && v !== 28) throw new Error('v is 27 or 28')
  if (number(signature.slice(32, 64)) > HALF_ORDER) throw new Error('s is above half the order')
  const recovered = join([integer(v - 27, 1), signature.slice(0, 64)])
  const point = secp256k1.recoverPublicKey(recovered, digest(domain, name, value), { prehash: false })
  return addressOfPoint(uncompressed(point))
}
