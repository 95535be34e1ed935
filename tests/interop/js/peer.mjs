// A third party's peer: js-libp2p and docs/protocol.md, nothing of this project's code. Driven by JSON lines on standard
// input, one command each: {"do": NAME, ...}; answers {"ok": …} or {"failed": text} on standard output, in order.
import { createInterface } from 'node:readline'
import { randomBytes } from 'node:crypto'
import { createLibp2p } from 'libp2p'
import { tcp } from '@libp2p/tcp'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { identify } from '@libp2p/identify'
import { ping } from '@libp2p/ping'
import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import { gossipsub } from '@libp2p/gossipsub'
import { privateKeyFromRaw } from '@libp2p/crypto/keys'
import { peerIdFromString } from '@libp2p/peer-id'
import { multiaddr } from '@multiformats/multiaddr'
import { CID } from 'multiformats/cid'
import * as raw from 'multiformats/codecs/raw'
import { create as createDigest } from 'multiformats/hashes/digest'
import { charge, maxFee } from './fees.mjs'
import { leadsTo, readLeaves, split } from './leaves.mjs'
import { addressOf, addressOfPoint, digest, hex, integer, join, keccak, number, pack, same, separator, sign, signerOf, structHash, uncompressed, unhex, unpackSigned, utf8 } from './structs.mjs'
import { Messages } from './wire.mjs'

const INFER = '/openlora/infer/1'
const INFER_MAX_FRAME = 1_114_112
const within = ms => ({ signal: AbortSignal.timeout(ms) })
const now = () => BigInt(Math.floor(Date.now() / 1000))

let host
const gossip = [] // what pubsub delivered: { topic, data }
const waiting = new Set() // of functions that look at `gossip`

async function start ({ secret, topics = [] }) {
  host = await createLibp2p({
    privateKey: privateKeyFromRaw(unhex(secret)),
    addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
    transports: [tcp()],
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
    connectionGater: { denyDialMultiaddr: () => false },
    services: {
      identify: identify(),
      ping: ping(),
      dht: kadDHT({
        protocol: '/openlora/kad/1',
        clientMode: false,
        peerInfoMapper: passthroughMapper,
        allowQueryWithZeroPeers: true,
        validators: { openlora: async () => {} },
        selectors: { openlora: () => 0 }
      }),
      pubsub: gossipsub({ allowPublishToZeroTopicPeers: true, emitSelf: false })
    }
  })
  host.services.pubsub.addEventListener('message', ({ detail }) => {
    gossip.push({ topic: detail.topic, data: detail.data })
    for (const look of waiting) look()
  })
  for (const topic of topics) host.services.pubsub.subscribe(topic)
  await host.start()
  return { peer: host.peerId.toString(), address: host.getMultiaddrs()[0].toString() }
}

async function dial ({ address }) {
  const connection = await host.dial(multiaddr(address), within(15_000))
  await host.services.ping.ping(connection.remotePeer, within(10_000))
  return { peer: connection.remotePeer.toString(), encryption: connection.encryption, multiplexer: connection.multiplexer }
}

// What identify told about a connected peer; it may still be under way when the connection is up.
async function identified ({ peer }) {
  const id = peerIdFromString(peer)
  const known = await host.peerStore.get(id).catch(() => null)
  if (known?.protocols.length) return describe(known)
  return await new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error('identify never ran')), 10_000)
    host.addEventListener('peer:identify', ({ detail }) => {
      if (!detail.peerId.equals(id)) return
      clearTimeout(timer)
      resolve({ protocols: detail.protocols, agent: detail.agentVersion })
    })
  })
}

const describe = known => ({ protocols: known.protocols, agent: new TextDecoder().decode(known.metadata.get('AgentVersion') ?? new Uint8Array()) })

// The first advert of a node that gossip brings, verified: signed by the key inside the peer id of the node.
async function advert ({ domain, node, peer, timeout = 20_000 }) {
  const separatorBytes = domainOf(domain)
  const look = () => {
    for (const { topic, data } of gossip) {
      const signed = unpackSigned('NodeAdvert', data)
      if (!same(signed.value.node, unhex(node)) || !topic.startsWith('/openlora/adverts/1/')) continue
      const key = addressOfPeer(peer)
      if (!same(signerOf(separatorBytes, 'NodeAdvert', signed), key)) throw new Error('signed by another key')
      return signed.value
    }
    return null
  }
  const found = look() ?? await new Promise((resolve, reject) => {
    const timer = setTimeout(() => { waiting.delete(again); reject(new Error('no advert came')) }, timeout)
    const again = () => {
      let value = null
      try { value = look() } catch (error) { waiting.delete(again); clearTimeout(timer); reject(error); return }
      if (value) { waiting.delete(again); clearTimeout(timer); resolve(value) }
    }
    waiting.add(again)
  })
  return { state: Number(found.state), bases: found.baseModels.map(hex), inputRate: String(found.inputRate), addresses: found.addresses }
}

// The compressed point inside a secp256k1 peer id, uncompressed and hashed.
function addressOfPeer (peer) {
  return addressOfPoint(uncompressed(peerIdFromString(peer).publicKey.raw))
}

// A directory fills up by and by: ask until something is found.
async function eventually (look, timeout) {
  for (const end = Date.now() + timeout; ;) {
    const found = await look()
    if (found) return found
    if (Date.now() > end) throw new Error('nothing was found')
    await new Promise(resolve => setTimeout(resolve, 300))
  }
}

// The provider of a base model: its id as a sha2-256 multihash.
async function findProvider ({ base, peer, timeout = 30_000 }) {
  const id = CID.createV1(raw.code, createDigest(0x12, unhex(base)))
  return await eventually(async () => {
    for await (const event of host.services.dht.findProviders(id, within(10_000))) {
      if (event.name !== 'PROVIDER') continue
      const found = event.providers.find(provider => provider.id.toString() === peer)
      if (found) return { peer, addresses: found.multiaddrs.map(String) }
    }
    return null
  }, timeout)
}

// A node's own record in the directory: a signed NodeAdvert in state JOINING.
async function findRecord ({ domain, node, peer, timeout = 30_000 }) {
  return await eventually(async () => {
    for await (const event of host.services.dht.get(utf8(`/openlora/${node}`), within(10_000))) {
      if (event.name !== 'VALUE') continue
      const signed = unpackSigned('NodeAdvert', event.value)
      if (!same(signerOf(domainOf(domain), 'NodeAdvert', signed), addressOfPeer(peer))) throw new Error('signed by another key')
      return { state: Number(signed.value.state), addresses: signed.value.addresses }
    }
    return null
  }, timeout)
}

// One paid inference from quote to settled voucher.
async function infer ({ domain, node, peer, secret, pipeline, body, promptTokens, maxTokens, chainTerms }) {
  const separatorBytes = domainOf(domain)
  const key = unhex(secret)
  const payer = addressOf(key)
  const nodeId = unhex(node)
  const plan = {
    base: unhex(pipeline.base),
    baseTermsVersion: BigInt(pipeline.baseTermsVersion),
    adapters: pipeline.adapters.map(({ id, termsVersion, weight }) => ({ id: unhex(id), termsVersion: BigInt(termsVersion), weight: BigInt(weight) })),
    method: BigInt(pipeline.method)
  }
  const pipelineId = structHash('Pipeline', plan)
  const packedPlan = pack('Pipeline', plan)
  const stream = await host.dialProtocol(peerIdFromString(peer), INFER, within(10_000))
  const messages = new Messages(stream, INFER_MAX_FRAME)
  const next = async () => {
    const message = await messages.receive()
    if (message === null) throw new Error('the node ended the stream')
    if (message.t === 'error') throw new Error(`${message.code}: ${message.message}`)
    return message
  }
  const expect = async kind => {
    const message = await next()
    if (message.t !== kind) throw new Error(`${kind} expected, ${message.t} came`)
    return message
  }

  await messages.send({ t: 'ask', id: 1, payer, pipeline: packedPlan })
  const quoted = unpackSigned('Quote', (await expect('quote')).quote)
  const quote = quoted.value
  const nodeKey = addressOfPeer(peer)
  if (!same(signerOf(separatorBytes, 'Quote', quoted), nodeKey)) throw new Error('the quote is signed by another key')
  if (!same(quote.payer, payer) || !same(quote.node, nodeId) || !same(quote.pipelineId, pipelineId)) throw new Error('a quote for something else')
  if (chainTerms.some(({ rate }, place) => quote.royalties[place].rate !== BigInt(rate))) throw new Error('royalties that the chain does not name')

  const bytes = utf8(body)
  const before = { tokens: 0n, computeMicro: 0n }
  const request = {
    payer, node: nodeId, pipelineId,
    quoteDigest: digest(separatorBytes, 'Quote', quote),
    bodyHash: keccak(bytes),
    maxFee: maxFee(plan, quote, BigInt(promptTokens), BigInt(maxTokens)),
    maxTokens: BigInt(maxTokens),
    nonce: new Uint8Array(randomBytes(32)),
    issuedAt: now(),
    expiresAt: now() + 120n
  }
  const requestDigest = digest(separatorBytes, 'Request', request)
  const voucher = (ledger, reference) => sign(separatorBytes, 'Voucher', {
    payer, node: nodeId, pipelineId, cumulativeTokens: ledger.tokens, cumulativeCompute: ledger.computeMicro / 1_000_000n, referenceDigest: reference
  }, key)
  const opening = voucher(charge(before, plan, quote, BigInt(promptTokens), 0n).after, requestDigest)
  await messages.send({ t: 'infer', id: 2, request: sign(separatorBytes, 'Request', request, key), pipeline: packedPlan, body: bytes, voucher: opening })

  const accepted = await expect('accepted')
  if (Number(accepted.prompt_tokens) !== promptTokens) throw new Error('the node counts another prompt')
  const tokens = []
  let text = ''
  let pauses = 0
  let message
  for (message = await next(); message.t !== 'done'; message = await next()) {
    if (message.t === 'paused') {
      pauses += 1
      const wanted = { tokens: BigInt(message.cumulative_tokens), computeMicro: number(message.cumulative_compute) * 1_000_000n }
      const received = charge(before, plan, quote, BigInt(promptTokens), BigInt(tokens.length)).after
      if (wanted.tokens > received.tokens) throw new Error('the node asks for more than it sent')
      await messages.send({ t: 'pay', id: 2, voucher: voucher(received, requestDigest) })
    } else if (message.t === 'tokens') {
      if (Number(message.start) !== tokens.length) throw new Error('a frame was lost')
      tokens.push(...message.token_ids.map(Number))
      text += message.text
    } else if (message.t !== 'settled') throw new Error(`${message.t} was not expected`)
  }

  const signed = unpackSigned('Receipt', message.receipt)
  const receipt = signed.value
  const cost = charge(before, plan, quote, BigInt(promptTokens), BigInt(tokens.length))
  if (!same(signerOf(separatorBytes, 'Receipt', signed), nodeKey)) throw new Error('the receipt is signed by another key')
  const stated = [
    same(receipt.requestDigest, requestDigest), same(receipt.payer, payer), same(receipt.node, nodeId), same(receipt.pipelineId, pipelineId),
    receipt.status === 0n, receipt.promptTokens === BigInt(promptTokens), receipt.completionTokens === BigInt(tokens.length),
    same(receipt.outputHash, keccak(join(tokens.map(token => integer(token, 4))))),
    receipt.compute === cost.compute, receipt.royalties === cost.royalties
  ]
  if (stated.includes(false)) throw new Error(`the receipt contradicts what arrived: ${stated}`)
  const leaves = readLeaves(message.evidence)
  const divided = split(leaves)
  const proven = [
    leadsTo(leaves.attribution, message.salt, receipt.attributionRoot), leadsTo(leaves.commitment, message.salt, receipt.commitmentRoot),
    divided.compute === cost.compute, divided.royalties === cost.royalties, same(leaves.attribution.get('base'), plan.base)
  ]
  if (proven.includes(false)) throw new Error(`the leaves do not prove the receipt: ${proven}`)

  const receiptDigest = digest(separatorBytes, 'Receipt', receipt)
  const closing = voucher(cost.after, receiptDigest)
  await messages.send({ t: 'pay', id: 2, voucher: closing })
  const settled = await expect('settled')
  if (BigInt(settled.cumulative_tokens) !== cost.after.tokens) throw new Error('the closing voucher does not stand')
  await messages.close()
  return {
    text, tokens, pauses, finish: message.finish_reason, receipt: hex(receiptDigest), pipelineId: hex(pipelineId),
    compute: String(cost.compute), royalties: String(cost.royalties), closing: hex(closing), leaves: leaves.attribution.size
  }
}

const domainOf = ({ chainId, verifyingContract }) => separator(BigInt(chainId), unhex(verifyingContract))

async function stop () { await host?.stop(); return null }

const commands = { start, dial, identified, advert, findProvider, findRecord, infer, stop }

for await (const line of createInterface({ input: process.stdin })) {
  const { do: name, ...options } = JSON.parse(line)
  let answer
  try {
    answer = { ok: await commands[name](options) ?? null }
  } catch (error) {
    answer = { failed: `${error.name}: ${error.message}` }
  }
  process.stdout.write(JSON.stringify(answer) + '\n')
  if (name === 'stop') process.exit(0)
}
