// Fees of one ledger, cumulative and rounded down once: docs/protocol.md, section 5. All bigint.
const MICRO = 1_000_000n
const WEIGHT_ONE = 10_000n

// Sum over the pipeline's artifacts of rate × 10,000 (base) or rate × min(|weight|, 10,000) (adapters).
export function numerators (pipeline, quote) {
  const weights = [WEIGHT_ONE, ...pipeline.adapters.map(({ weight }) => { const size = weight < 0n ? -weight : weight; return size < WEIGHT_ONE ? size : WEIGHT_ONE })]
  return quote.royalties.reduce((sum, royalty, place) => sum + royalty.rate * weights[place], 0n)
}

// The ledger after one more response, and what that response costs.
export function charge (before, pipeline, quote, promptTokens, completionTokens) {
  const first = before.tokens === 0n && before.computeMicro === 0n ? quote.settlementCharge * MICRO : 0n
  const computeMicro = before.computeMicro + promptTokens * quote.inputRate + completionTokens * quote.outputRate + first
  const tokens = before.tokens + promptTokens + completionTokens
  const royalties = count => count * numerators(pipeline, quote) / (WEIGHT_ONE * MICRO)
  return {
    after: { tokens, computeMicro },
    compute: computeMicro / MICRO - before.computeMicro / MICRO,
    royalties: royalties(tokens) - royalties(before.tokens)
  }
}

const ceil = (value, by) => (value + by - 1n) / by

export function maxFee (pipeline, quote, promptTokens, maxTokens) {
  return ceil(promptTokens * quote.inputRate + maxTokens * quote.outputRate, MICRO) + quote.settlementCharge +
    ceil((promptTokens + maxTokens) * numerators(pipeline, quote), WEIGHT_ONE * MICRO)
}
