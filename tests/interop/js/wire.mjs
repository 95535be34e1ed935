// Frames and messages of a stream: docs/protocol.md, section 9. A frame is a LEB128 length (1 to 4 bytes) and a msgpack map.
import { Decoder, Encoder } from '@msgpack/msgpack'

const encoder = new Encoder({ useBigInt64: true })
const decoder = new Decoder({ useBigInt64: true })

function frame (payload) {
  const head = []
  for (let rest = payload.length; ; rest >>= 7) {
    if (rest < 128) { head.push(rest); break }
    head.push((rest & 127) | 128)
  }
  return Buffer.concat([Buffer.from(head), payload])
}

// One stream of messages over a libp2p stream.
export class Messages {
  constructor (stream, maxFrame) {
    this.stream = stream
    this.maxFrame = maxFrame
    this.chunks = stream[Symbol.asyncIterator]()
    this.buffer = Buffer.alloc(0)
  }

  async send (message) {
    const bytes = frame(Buffer.from(encoder.encode(message)))
    if (bytes.length > this.maxFrame + 4) throw new Error('the frame is too large')
    if (!this.stream.send(bytes)) await this.stream.onDrain({ signal: AbortSignal.timeout(10_000) })
  }

  async more () {
    const { value, done } = await this.chunks.next()
    if (done) return false
    this.buffer = Buffer.concat([this.buffer, value.subarray()])
    return true
  }

  // The next message, null at the end of the stream.
  async receive () {
    for (;;) {
      const head = this.length()
      if (head && this.buffer.length >= head.size + head.width) {
        const payload = this.buffer.subarray(head.width, head.width + head.size)
        this.buffer = this.buffer.subarray(head.width + head.size)
        return decoder.decode(payload)
      }
      if (!await this.more()) {
        if (this.buffer.length) throw new Error('the stream ended within a frame')
        return null
      }
    }
  }

  length () {
    let size = 0
    for (let width = 1; width <= 4 && width <= this.buffer.length; width++) {
      const byte = this.buffer[width - 1]
      size += (byte & 127) * 2 ** (7 * (width - 1))
      if (byte < 128) {
        if (size === 0 || size > this.maxFrame || (width > 1 && byte === 0)) throw new Error(`a frame of ${size} bytes`)
        return { size, width }
      }
    }
    if (this.buffer.length >= 4) throw new Error('a length has at most 4 bytes')
    return null
  }

  async close () { await this.stream.close({ signal: AbortSignal.timeout(5_000) }) }
}
