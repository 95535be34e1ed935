// Paged attention: a tile of query rows (tokens x the heads that share a key-value head) against blocks of 128 keys,
// read where they lie. FlashAttention's online softmax (arXiv 2205.14135), the split over keys of Flash-Decoding.
//
// A row's result depends on its query and its keys alone: blocks of keys are cut at absolute positions, each gives a
// partial result (maximum, sum, weighted values) summed from zero, and partials are merged in order of position. So
// neither tile, chunk, split nor thread count changes a bit; keys that a row may not see add exact zeros.
#include "attention.h"

#include <limits>

namespace ol {
namespace {

constexpr i64 KEYS = 128;      // of a block; scores of a tile and its K or V share L1 and L2
constexpr i64 TILE_ROWS = 48;  // tokens x heads of a group
constexpr i64 AHEAD = 12;       // keys fetched before their use
constexpr i64 MAX_SPLIT_BYTES = 64 << 20;
constexpr float NEVER = -std::numeric_limits<float>::infinity();

#define UNROLL _Pragma("GCC unroll 12")

// A tile's place and its scratch on the thread's stack.
struct Tile {
  const Attention* job;
  i64 s, kv_head, token0, tokens, rows, group, first_position;
  i64 lowest, highest;  // keys [lowest, highest) are seen by some row
};

Tile tile_at(const Attention& a, const AttentionPlan& plan, i64 s, i64 number, i64 kv_head) {
  Tile t{};
  t.job = &a;
  t.s = s;
  t.kv_head = kv_head;
  t.group = a.H / a.KV;
  const i64 start = a.cu_seqlens[s], count = a.cu_seqlens[s + 1] - start;
  const i64 offset = number * plan.tile;
  t.token0 = start + offset;
  t.tokens = std::min(plan.tile, count - offset);
  t.rows = t.tokens * t.group;
  t.first_position = a.seq_lens[s] - count + offset;
  t.highest = t.first_position + t.tokens;
  t.lowest = a.window ? std::max<i64>(0, t.first_position - a.window + 1) : 0;
  return t;
}

i64 first_block(const Tile& t) { return t.lowest / KEYS; }
i64 end_block(const Tile& t) { return ceil_div(t.highest, KEYS); }

// Scaled queries of the tile, [rows][D].
void load_queries(const Tile& t, float* q) {
  const Attention& a = *t.job;
  const __m256 scale = _mm256_set1_ps(a.scale);
  for (i64 i = 0; i < t.tokens; i++) {
    const float* from = a.q + (t.token0 + i) * a.ldq + t.kv_head * t.group * a.D;
    for (i64 d = 0; d < t.group * a.D; d += 8, q += 8) _mm256_storeu_ps(q, _mm256_mul_ps(scale, load8(from + d)));
  }
}

// Offsets of keys [begin, begin + count) of sequence s within the cache.
void locate(const Tile& t, i64 begin, i64 count, i64* offsets) {
  const Attention& a = *t.job;
  const i32* table = a.block_tables + t.s * a.max_blocks;
  const i64 stride = a.KV * a.D;
  i64 block = begin / a.block_size, within = begin % a.block_size;
  for (i64 j = 0; j < count; block++, within = 0)
    for (; within < a.block_size && j < count; within++, j++)
      offsets[j] = (table[block] * a.block_size + within) * stride + t.kv_head * a.D;
}

template <int ROWS>
void scores4(const float* q, i64 D, const float* const* k, float* s) {
  __m256 sum[ROWS][4];
  UNROLL for (int i = 0; i < ROWS; i++) UNROLL for (int j = 0; j < 4; j++) sum[i][j] = _mm256_setzero_ps();
  for (i64 d = 0; d < D; d += 8) {
    __m256 v[ROWS];
    UNROLL for (int i = 0; i < ROWS; i++) v[i] = load8(q + i * D + d);
    UNROLL for (int j = 0; j < 4; j++) {
      __m256 w = load8(k[j] + d);
      __asm__("" : "+x"(w));  // else GCC reads it once a row
      UNROLL for (int i = 0; i < ROWS; i++) sum[i][j] = _mm256_fmadd_ps(v[i], w, sum[i][j]);
    }
  }
  UNROLL for (int i = 0; i < ROWS; i++)
    _mm_storeu_ps(s + i * KEYS, sum8_of_4(sum[i][0], sum[i][1], sum[i][2], sum[i][3]));
}

void fetch(const float* p, i64 count) {
  for (i64 d = 0; d < count; d += 16) _mm_prefetch(reinterpret_cast<const char*>(p + d), _MM_HINT_T0);
}

// s [rows][KEYS] = q k^T for the first `count` keys, rounded up to four by repeating the last. Fetches keys ahead and
// the values that weighted_values is about to read: the hardware does not see through the stride between tokens.
void scores(const Tile& t, const float* q, const i64* offsets, i64 count, float* s) {
  const i64 D = t.job->D;
  for (i64 j = 0; j < count; j += 4) {
    const float* k[4];
    for (i64 u = j; u < std::min(j + 4, count); u++) {
      fetch(t.job->k_cache + offsets[std::min(u + AHEAD, count - 1)], D);
      fetch(t.job->v_cache + offsets[u], D);
    }
    for (i64 u = 0; u < 4; u++) k[u] = t.job->k_cache + offsets[std::min(j + u, count - 1)];
    i64 i = 0;
    for (; i + 3 <= t.rows; i += 3) scores4<3>(q + i * D, D, k, s + i * KEYS + j);
    if (t.rows - i == 2) scores4<2>(q + i * D, D, k, s + i * KEYS + j);
    if (t.rows - i == 1) scores4<1>(q + i * D, D, k, s + i * KEYS + j);
  }
}

// Scores to weights e^(s - max) in place, zeros where the row may not see; returns the row's maximum and sum.
void weigh(const Attention& a, float* s, i64 low, i64 high, i64 count, float& maximum, float& sum) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const auto visible = [&](i64 j) {
    const __m256i index = _mm256_add_epi32(lanes, _mm256_set1_epi32(static_cast<int>(j)));
    return _mm256_castsi256_ps(
        _mm256_and_si256(_mm256_cmpgt_epi32(index, _mm256_set1_epi32(static_cast<int>(low) - 1)),
                         _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(high)), index)));
  };
  __m256 top = _mm256_set1_ps(NEVER);
  i64 plain = 0;  // scores that need no mask and no cap
  if (low <= 0 && a.softcap == 0.0f)
    for (; plain < std::min(high, count) / 8 * 8; plain += 8) top = _mm256_max_ps(top, load8(s + plain));
  for (i64 j = plain; j < count; j += 8) {
    __m256 v = load8(s + j);
    if (a.softcap != 0.0f)
      v = _mm256_mul_ps(_mm256_set1_ps(a.softcap), tanh8(_mm256_div_ps(v, _mm256_set1_ps(a.softcap))));
    v = _mm256_blendv_ps(_mm256_set1_ps(NEVER), v, visible(j));
    _mm256_storeu_ps(s + j, v);
    top = _mm256_max_ps(top, v);
  }
  maximum = max8(top);
  __m256 total = _mm256_setzero_ps();
  if (maximum == NEVER) {
    for (i64 j = 0; j < count; j += 8) _mm256_storeu_ps(s + j, total);
    sum = 0.0f;
    return;
  }
  for (i64 j = 0; j < count; j += 8) {
    const __m256 e = exp8(_mm256_sub_ps(load8(s + j), _mm256_set1_ps(maximum)));
    _mm256_storeu_ps(s + j, e);
    total = _mm256_add_ps(total, e);
  }
  sum = sum8(total);
}

template <int ROWS, int VEC>
void values(const float* p, const float* v_cache, const i64* offsets, i64 begin, i64 end, float* out, i64 D) {
  __m256 sum[ROWS][VEC];
  UNROLL for (int i = 0; i < ROWS; i++) UNROLL for (int c = 0; c < VEC; c++) sum[i][c] = _mm256_setzero_ps();
  for (i64 j = begin; j < end; j++) {
    const float* v = v_cache + offsets[j];
    __m256 w[VEC];
    UNROLL for (int c = 0; c < VEC; c++) {
      w[c] = load8(v + 8 * c);
      __asm__("" : "+x"(w[c]));
    }
    UNROLL for (int i = 0; i < ROWS; i++) {
      const __m256 weight = _mm256_broadcast_ss(p + i * KEYS + j);
      UNROLL for (int c = 0; c < VEC; c++) sum[i][c] = _mm256_fmadd_ps(weight, w[c], sum[i][c]);
    }
  }
  UNROLL for (int i = 0; i < ROWS; i++) UNROLL for (int c = 0; c < VEC; c++)
    _mm256_storeu_ps(out + i * D + 8 * c, sum[i][c]);
}

template <int ROWS, int VEC>
void value_columns(const float* p, const float* v_cache, const i64* offsets, i64 begin, i64 end, float* out, i64 D) {
  i64 d = 0;
  for (; d + 8 * VEC <= D; d += 8 * VEC) values<ROWS, VEC>(p, v_cache + d, offsets, begin, end, out + d, D);
  for (; d < D; d += 8) values<ROWS, 1>(p, v_cache + d, offsets, begin, end, out + d, D);
}

// out [rows][D] = weights times values of keys [begin, end) of the block.
void weighted_values(const Tile& t, const float* p, const i64* offsets, i64 begin, i64 end, float* out) {
  const float* v = t.job->v_cache;
  const i64 D = t.job->D;
  i64 i = 0;
  for (; i + 6 <= t.rows; i += 6) value_columns<6, 2>(p + i * KEYS, v, offsets, begin, end, out + i * D, D);
  switch (t.rows - i) {
    case 5: return value_columns<5, 2>(p + i * KEYS, v, offsets, begin, end, out + i * D, D);
    case 4: return value_columns<4, 2>(p + i * KEYS, v, offsets, begin, end, out + i * D, D);
    case 3: return value_columns<3, 4>(p + i * KEYS, v, offsets, begin, end, out + i * D, D);
    case 2: return value_columns<2, 4>(p + i * KEYS, v, offsets, begin, end, out + i * D, D);
    case 1: return value_columns<1, 8>(p + i * KEYS, v, offsets, begin, end, out + i * D, D);
  }
}

// What one block of keys gives a tile: per row its maximum and sum, and the weighted values [rows][D].
struct Partial {
  float *maximum, *sum, *out;
  static i64 floats(i64 rows, i64 D) { return 2 * rows + rows * D; }
  static Partial at(float* memory, i64 rows) { return {memory, memory + rows, memory + 2 * rows}; }
};

void attend_block(const Tile& t, const float* q, i64 block, float* s, Partial result) {
  const i64 base = block * KEYS, end = std::min(t.highest - base, KEYS), begin = std::max<i64>(0, t.lowest - base);
  i64 offsets[KEYS];
  locate(t, base, end, offsets);
  scores(t, q, offsets, end, s);
  for (i64 i = 0; i < t.rows; i++) {
    const i64 position = t.first_position + i / t.group - base;
    const i64 low = t.job->window ? std::max<i64>(0, position - t.job->window + 1) : 0;
    weigh(*t.job, s + i * KEYS, low, position + 1, end, result.maximum[i], result.sum[i]);
  }
  weighted_values(t, s, offsets, begin, end, result.out);
}

void start(const Tile& t, Partial total) {
  std::fill(total.maximum, total.maximum + t.rows, NEVER);
  std::fill(total.sum, total.sum + t.rows, 0.0f);
  std::fill(total.out, total.out + t.rows * t.job->D, 0.0f);
}

void merge(const Tile& t, Partial total, Partial block) {
  const i64 D = t.job->D;
  for (i64 i = 0; i < t.rows; i++) {
    if (block.maximum[i] == NEVER) continue;
    const float maximum = std::max(total.maximum[i], block.maximum[i]);
    const float before = exp1(total.maximum[i] - maximum), now = exp1(block.maximum[i] - maximum);
    total.maximum[i] = maximum;
    total.sum[i] = total.sum[i] * before + block.sum[i] * now;
    const __m256 before8 = _mm256_set1_ps(before), now8 = _mm256_set1_ps(now);
    for (i64 d = 0; d < D; d += 8) {
      float* out = total.out + i * D + d;
      const __m256 added = _mm256_mul_ps(load8(block.out + i * D + d), now8);
      _mm256_storeu_ps(out, _mm256_fmadd_ps(load8(out), before8, added));
    }
  }
}

void finish(const Tile& t, Partial total) {
  const Attention& a = *t.job;
  for (i64 i = 0; i < t.rows; i++) {
    const i64 head = t.kv_head * t.group + i % t.group;
    float factor = 1.0f, sum = total.sum[i];
    if (a.sinks) {
      const float maximum = std::max(total.maximum[i], a.sinks[head]);
      factor = exp1(total.maximum[i] - maximum);
      sum = sum * factor + exp1(a.sinks[head] - maximum);
    }
    const __m256 inverse = _mm256_set1_ps(factor / sum);
    float* out = a.out + (t.token0 + i / t.group) * a.ldo + head * a.D;
    for (i64 d = 0; d < a.D; d += 8) _mm256_storeu_ps(out + d, _mm256_mul_ps(load8(total.out + i * a.D + d), inverse));
  }
}

// Scratch of one thread for one tile: queries, scores, a block's partial result and the running one.
i64 tile_floats(const Attention& a, i64 tile_tokens) {
  const i64 rows = tile_tokens * (a.H / a.KV);
  return rows * a.D + rows * KEYS + 2 * Partial::floats(rows, a.D);
}

struct TileScratch {
  float *q, *s;
  Partial block, total;
  TileScratch(float* memory, i64 rows, i64 D)
      : q(memory),
        s(q + rows * D),
        block(Partial::at(s + rows * KEYS, rows)),
        total(Partial::at(s + rows * KEYS + Partial::floats(rows, D), rows)) {}
};

i64 tile_tokens(const Attention& a) { return std::max<i64>(1, TILE_ROWS / (a.H / a.KV)); }

i64 tiles_of(const Attention& a, i64 s) { return ceil_div(a.cu_seqlens[s + 1] - a.cu_seqlens[s], tile_tokens(a)); }

i64 find(const i64* first, i64 count, i64 item) { return std::upper_bound(first, first + count + 1, item) - first - 1; }

Tile tile_number(const Attention& a, const AttentionPlan& plan, i64 number, i64 kv_head) {
  const i64 s = find(plan.tiles, a.S, number);
  return tile_at(a, plan, s, number - plan.tiles[s], kv_head);
}

void attend_whole(Team& team, const Attention& a, const AttentionPlan& plan) {
  TileScratch scratch(plan.scratch + team.rank * tile_floats(a, plan.tile), plan.tile * (a.H / a.KV), a.D);
  team.share(plan.tiles[a.S] * a.KV, 1, [&](i64 begin, i64 end) {
    for (i64 item = begin; item < end; item++) {
      const Tile t = tile_number(a, plan, item / a.KV, item % a.KV);
      load_queries(t, scratch.q);
      start(t, scratch.total);
      for (i64 block = first_block(t); block < end_block(t); block++) {
        attend_block(t, scratch.q, block, scratch.s, scratch.block);
        merge(t, scratch.total, scratch.block);
      }
      finish(t, scratch.total);
    }
  });
}

void attend_split(Team& team, const Attention& a, const AttentionPlan& plan) {
  const i64 tiles = plan.tiles[a.S], rows = plan.tile * (a.H / a.KV), stride = Partial::floats(rows, a.D);
  TileScratch scratch(plan.scratch + team.rank * tile_floats(a, plan.tile), rows, a.D);
  const auto partial = [&](i64 block, i64 kv) {
    return Partial::at(plan.partial + (block * a.KV + kv) * stride, rows);
  };
  team.share(plan.blocks[tiles] * a.KV, 1, [&](i64 begin, i64 end) {
    for (i64 item = begin; item < end; item++) {
      const i64 block = item / a.KV, n = find(plan.blocks, tiles, block);
      const Tile t = tile_number(a, plan, n, item % a.KV);
      load_queries(t, scratch.q);
      attend_block(t, scratch.q, first_block(t) + block - plan.blocks[n], scratch.s, partial(block, item % a.KV));
    }
  });
  team.barrier();
  team.share(tiles * a.KV, 1, [&](i64 begin, i64 end) {
    for (i64 item = begin; item < end; item++) {
      const Tile t = tile_number(a, plan, item / a.KV, item % a.KV);
      start(t, scratch.total);
      for (i64 block = plan.blocks[item / a.KV]; block < plan.blocks[item / a.KV + 1]; block++)
        merge(t, scratch.total, partial(block, item % a.KV));
      finish(t, scratch.total);
    }
  });
}

// Blocks of keys over all tiles.
i64 count_blocks(const Attention& a, AttentionPlan& plan) {
  i64 blocks = 0;
  for (i64 s = 0; s < a.S; s++)
    for (i64 n = 0; n < tiles_of(a, s); n++) {
      const Tile t = tile_at(a, plan, s, n, 0);
      blocks += end_block(t) - first_block(t);
    }
  return blocks;
}

// Sizes, then pointers: called with nullptr for the sizes alone. Returns bytes.
i64 lay_out(const Attention& a, i64 threads, char* memory, AttentionPlan& plan) {
  plan.tile = tile_tokens(a);
  i64 tiles = 0;
  for (i64 s = 0; s < a.S; s++) tiles += tiles_of(a, s);
  plan.split = false;
  i64 partial = 0;
  if (threads > 1 && tiles * a.KV < 4 * threads) {
    partial = count_blocks(a, plan) * a.KV * Partial::floats(plan.tile * (a.H / a.KV), a.D) * 4;
    plan.split = partial <= MAX_SPLIT_BYTES;
  }
  const i64 tables = ceil_div((a.S + 1 + tiles + 1) * 8, 64) * 64, scratch = threads * tile_floats(a, plan.tile) * 4;
  plan.tiles = reinterpret_cast<i64*>(memory);
  plan.blocks = plan.tiles + a.S + 1;
  plan.scratch = reinterpret_cast<float*>(memory + tables);
  plan.partial = reinterpret_cast<float*>(memory + tables + scratch);
  return tables + scratch + (plan.split ? partial : 0);
}

}  // namespace

bool valid(const Attention& a) {
  if (a.cu_seqlens[0] != 0 || a.cu_seqlens[a.S] != a.T || a.H % a.KV || a.D % 8) return false;
  for (i64 s = 0; s < a.S; s++) {
    const i64 count = a.cu_seqlens[s + 1] - a.cu_seqlens[s], length = a.seq_lens[s];
    if (count < 0 || length < count || ceil_div(length, a.block_size) > a.max_blocks) return false;
    for (i64 i = 0; i < ceil_div(length, a.block_size); i++) {
      const i64 block = a.block_tables[s * a.max_blocks + i];
      if (block < 0 || block >= a.num_blocks) return false;
    }
  }
  return true;
}

void attention_fetch(const Attention& a, const float* cache, Fetch& fetch) {
  const i64 token = a.KV * a.D, block_tokens = a.block_size;
  for (i64 s = 0; s < a.S; s++)
    for (i64 begin = 0; begin < a.seq_lens[s]; begin += block_tokens) {
      const i64 block = a.block_tables[s * a.max_blocks + begin / block_tokens];
      const i64 tokens = std::min<i64>(block_tokens, a.seq_lens[s] - begin);
      fetch.add(cache + block * block_tokens * token, tokens * token * 4);
    }
}

i64 attention_scratch(const Attention& a, i64 threads) {
  AttentionPlan plan;
  return lay_out(a, threads, nullptr, plan);
}

void attention_plan(const Attention& a, i64 threads, void* memory, AttentionPlan& plan) {
  lay_out(a, threads, static_cast<char*>(memory), plan);
  plan.tiles[0] = 0;
  for (i64 s = 0; s < a.S; s++) plan.tiles[s + 1] = plan.tiles[s] + tiles_of(a, s);
  if (!plan.split) return;
  plan.blocks[0] = 0;
  for (i64 n = 0; n < plan.tiles[a.S]; n++) {
    const Tile t = tile_number(a, plan, n, 0);
    plan.blocks[n + 1] = plan.blocks[n] + end_block(t) - first_block(t);
  }
}

void attention(Team& team, const Attention& job, const AttentionPlan& plan) {
  plan.split ? attend_split(team, job, plan) : attend_whole(team, job, plan);
}

}  // namespace ol

using ol::i32;
using ol::i64;

OL_API int ol_paged_attention(const float* q, i64 ldq, float* out, i64 ldo, const float* k_cache, const float* v_cache,
                              const i32* cu_seqlens, const i32* seq_lens, const i32* block_tables, const float* sinks,
                              i64 S, i64 T, i64 max_blocks, i64 num_blocks, i64 block_size, i64 H, i64 KV, i64 D,
                              i64 window, float scale, float softcap, i64 threads) {
  using namespace ol;
  static thread_local Arena arena;
  const Attention job{q,  ldq, out,        ldo,        k_cache,    v_cache, cu_seqlens, seq_lens, block_tables, sinks,
                      S,  T,   max_blocks, num_blocks, block_size, H,       KV,         D,        window,       scale,
                      softcap};
  if (!valid(job)) return BAD_ARGUMENT;
  void* memory = arena.get<char>(attention_scratch(job, threads));
  if (!memory) return OUT_OF_MEMORY;
  AttentionPlan plan;
  attention_plan(job, threads, memory, plan);
  run(threads, [&](Team& team) { attention(team, job, plan); });
  return OK;
}
