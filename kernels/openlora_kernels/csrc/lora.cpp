// Grouped LoRA: rows of a batch, each segment under its own adapter. Bound by memory in decode (each adapter's weights
// are read once for a row or two), by FMAs in prefill.
//
// A row's result depends on its x and its adapter alone: a rank's dot product runs over k in eight lanes and one fixed
// reduction, a column's sum over the ranks in order; tiles and threads never meet in one sum.
#include "lora.h"

namespace ol {
namespace {

constexpr i64 TILES_AHEAD = 3;  // of columns; 2 and 4 measured the same, 1 was 3% slower from cold memory
constexpr i64 ROW_BLOCK = 48, RANK_BLOCK = 8, COLUMN_BLOCK = 384;  // of one work item

#define UNROLL _Pragma("GCC unroll 12")
// Keeps GCC from reading an operand again for every FMA.
#define IN_REGISTER(x) __asm__("" : "+x"(x))

i64 total_rank(const LoraGroup& g, i64 slot) {
  i64 total = 0;
  for (i64 j = 0; j < g.num_targets; j++) total += g.ranks[slot * g.ranks_stride + j];
  return total;
}

i64 column_blocks(const LoraGroup& g, i64 slot) {
  i64 blocks = 0;
  for (i64 j = 0; j < g.num_targets; j++)
    if (g.ranks[slot * g.ranks_stride + j]) blocks += ceil_div(g.out_features[j], COLUMN_BLOCK);
  return blocks;
}

template <class W>
inline void fetch(const W* p) {
  _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0);
}

// h[i][j] = scale[j] * <x_i, a_j> for ROWS rows and RANKS ranks.
template <class W, int ROWS, int RANKS>
void dots(const float* const* x, const W* a, i64 K, const float* scale, float* h, i64 ldh) {
  __m256 sum[ROWS][RANKS];
  UNROLL for (int i = 0; i < ROWS; i++) UNROLL for (int j = 0; j < RANKS; j++) sum[i][j] = _mm256_setzero_ps();
  const auto step = [&](i64 k) {
    __m256 v[ROWS];
    UNROLL for (int i = 0; i < ROWS; i++) v[i] = load8(x[i] + k);
    UNROLL for (int j = 0; j < RANKS; j++) {
      __m256 w = load8(a + j * K + k);
      IN_REGISTER(w);
      UNROLL for (int i = 0; i < ROWS; i++) sum[i][j] = _mm256_fmadd_ps(v[i], w, sum[i][j]);
    }
  };
  constexpr i64 LINE_OF = LINE / sizeof(W);
  i64 k = 0;
  for (; k + LINE_OF <= K; k += LINE_OF) {
    UNROLL for (int j = 0; j < RANKS; j++) fetch(a + (RANKS + j) * K + k);
    UNROLL for (i64 u = 0; u < LINE_OF; u += 8) step(k + u);
  }
  for (; k + 8 <= K; k += 8) step(k);
  if (k < K) {
    UNROLL for (int j = 0; j < RANKS; j++) {
      const __m256 w = load_tail(a + j * K + k, K - k);
      UNROLL for (int i = 0; i < ROWS; i++) sum[i][j] = _mm256_fmadd_ps(load_tail(x[i] + k, K - k), w, sum[i][j]);
    }
  }
  UNROLL for (int i = 0; i < ROWS; i++) {
    if constexpr (RANKS == 4) {
      const __m128 total = sum8_of_4(sum[i][0], sum[i][1], sum[i][2], sum[i][3]);
      _mm_storeu_ps(h + i * ldh, _mm_mul_ps(total, _mm_loadu_ps(scale)));
    } else {
      h[i * ldh] = sum8(sum[i][0]) * scale[0];
    }
  }
}

template <class W, int RANKS>
void shrink_rows(const float* const* x, i64 rows, const W* a, i64 K, const float* scale, float* h, i64 ldh) {
  i64 i = 0;
  for (; i + 3 <= rows; i += 3) dots<W, 3, RANKS>(x + i, a, K, scale, h + i * ldh, ldh);
  if (rows - i == 2) dots<W, 2, RANKS>(x + i, a, K, scale, h + i * ldh, ldh);
  if (rows - i == 1) dots<W, 1, RANKS>(x + i, a, K, scale, h + i * ldh, ldh);
}

template <class W>
void shrink(const float* const* x, i64 rows, const W* a, i64 ranks, i64 K, const float* scale, float* h, i64 ldh) {
  i64 j = 0;
  for (; j + 4 <= ranks; j += 4) shrink_rows<W, 4>(x, rows, a + j * K, K, scale + j, h + j, ldh);
  for (; j < ranks; j++) shrink_rows<W, 1>(x, rows, a + j * K, K, scale + j, h + j, ldh);
}

// y_i[0 : 8 VEC] += sum over ranks of h[i][r] * b[r][...], summed from zero.
template <class W, int ROWS, int VEC>
void axpys(float* const* y, const float* h, i64 ldh, const W* b, i64 ldb, i64 ranks) {
  __m256 sum[ROWS][VEC];
  UNROLL for (int i = 0; i < ROWS; i++) UNROLL for (int j = 0; j < VEC; j++) sum[i][j] = _mm256_setzero_ps();
  for (i64 r = 0; r < ranks; r++, b += ldb) {
    for (i64 ahead = 0; ahead < 8 * VEC; ahead += LINE / sizeof(W)) fetch(b + 8 * VEC * TILES_AHEAD + ahead);
    __m256 v[ROWS];
    UNROLL for (int i = 0; i < ROWS; i++) v[i] = _mm256_broadcast_ss(h + i * ldh + r);
    UNROLL for (int j = 0; j < VEC; j++) {
      __m256 w = load8(b + 8 * j);
      IN_REGISTER(w);
      UNROLL for (int i = 0; i < ROWS; i++) sum[i][j] = _mm256_fmadd_ps(v[i], w, sum[i][j]);
    }
  }
  UNROLL for (int i = 0; i < ROWS; i++) UNROLL for (int j = 0; j < VEC; j++) {
    float* p = y[i] + 8 * j;
    _mm256_storeu_ps(p, _mm256_add_ps(load8(p), sum[i][j]));
  }
}

// The last 1..7 columns.
template <class W>
void axpy_tail(float* y, const float* h, const W* b, i64 ldb, i64 ranks, i64 columns) {
  __m256 sum = _mm256_setzero_ps();
  for (i64 r = 0; r < ranks; r++, b += ldb)
    sum = _mm256_fmadd_ps(_mm256_broadcast_ss(h + r), load_tail(b, columns), sum);
  store_tail(y, _mm256_add_ps(load_tail(y, columns), sum), columns);
}

template <class W, int ROWS, int VEC>
void expand_rows(float* const* y, const float* h, i64 ldh, const W* b, i64 ldb, i64 ranks, i64 columns) {
  float* at[ROWS];
  const auto shift = [&](i64 n) {
    for (int i = 0; i < ROWS; i++) at[i] = y[i] + n;
  };
  i64 n = 0;
  for (; n + 8 * VEC <= columns; n += 8 * VEC) shift(n), axpys<W, ROWS, VEC>(at, h, ldh, b + n, ldb, ranks);
  for (; n + 8 <= columns; n += 8) shift(n), axpys<W, ROWS, 1>(at, h, ldh, b + n, ldb, ranks);
  if (n < columns)
    for (int i = 0; i < ROWS; i++) axpy_tail(y[i] + n, h + i * ldh, b + n, ldb, ranks, columns - n);
}

template <class W>
void expand(float* const* y, i64 rows, const float* h, i64 ldh, const W* b, i64 ldb, i64 ranks, i64 columns) {
  i64 i = 0;
  for (; i + 3 <= rows; i += 3) expand_rows<W, 3, 4>(y + i, h + i * ldh, ldh, b, ldb, ranks, columns);
  switch (rows - i) {
    case 2: return expand_rows<W, 2, 6>(y + i, h + i * ldh, ldh, b, ldb, ranks, columns);
    case 1: return expand_rows<W, 1, 8>(y + i, h + i * ldh, ldh, b, ldb, ranks, columns);
  }
}

// One work item of shrink: ROW_BLOCK rows of a segment, RANK_BLOCK ranks of its adapter.
template <class W>
void shrink_item(const Lora& job, const LoraPlan& plan, i64 s, i64 item) {
  const LoraGroup& g = *job.group;
  const i64 slot = job.segments->slots[s], total = total_rank(g, slot), blocks = ceil_div(total, RANK_BLOCK);
  const i64 first = job.segments->offsets[s], count = job.segments->offsets[s + 1] - first;
  const i64 i0 = item / blocks * ROW_BLOCK, r0 = item % blocks * RANK_BLOCK, rows = std::min(ROW_BLOCK, count - i0);
  const float* x[ROW_BLOCK];
  for (i64 i = 0; i < rows; i++) x[i] = job.x + job.segments->rows[first + i0 + i] * job.ldx;
  shrink(x, rows, reinterpret_cast<const W*>(g.a[slot]) + r0 * g.in_features, std::min(RANK_BLOCK, total - r0),
         g.in_features, reinterpret_cast<const float*>(g.scale[slot]) + r0, plan.shrunk + plan.at[s] + i0 * total + r0,
         total);
}

// One work item of expand: ROW_BLOCK rows of a segment, COLUMN_BLOCK columns of one target.
template <class W>
void expand_item(const Lora& job, const LoraPlan& plan, i64 s, i64 item) {
  const LoraGroup& g = *job.group;
  const i64 slot = job.segments->slots[s], total = total_rank(g, slot), blocks = column_blocks(g, slot);
  const i64 first = job.segments->offsets[s], count = job.segments->offsets[s + 1] - first;
  const i64 i0 = item / blocks * ROW_BLOCK, rows = std::min(ROW_BLOCK, count - i0);
  i64 block = item % blocks, rank0 = 0, column0 = 0;
  const W* b = reinterpret_cast<const W*>(g.b[slot]);
  for (i64 j = 0; j < g.num_targets; j++) {
    const i64 rank = g.ranks[slot * g.ranks_stride + j], N = g.out_features[j];
    const i64 here = rank ? ceil_div(N, COLUMN_BLOCK) : 0;
    if (block < here) {
      const i64 n = block * COLUMN_BLOCK;
      float* y[ROW_BLOCK];
      for (i64 i = 0; i < rows; i++) y[i] = job.y + job.segments->rows[first + i0 + i] * job.ldy + column0 + n;
      const float* h = plan.shrunk + plan.at[s] + i0 * total + rank0;
      expand(y, rows, h, total, b + n, N, rank, std::min(COLUMN_BLOCK, N - n));
      return;
    }
    block -= here;
    rank0 += rank;
    column0 += N;
    b += rank * N;
  }
}

template <class F>
void share_items(Team& team, const i64* first, i64 segments, F body) {
  team.share(first[segments], 1, [&](i64 begin, i64 end) {
    i64 s = std::upper_bound(first, first + segments, begin) - first - 1;
    for (i64 item = begin; item < end; item++) {
      while (item >= first[s + 1]) s++;
      body(s, item - first[s]);
    }
  });
}

template <class W>
void run_lora(Team& team, const Lora& job, const LoraPlan& plan) {
  const i64 count = job.segments->count;
  share_items(team, plan.shrink, count, [&](i64 s, i64 item) { shrink_item<W>(job, plan, s, item); });
  team.barrier();
  share_items(team, plan.expand, count, [&](i64 s, i64 item) { expand_item<W>(job, plan, s, item); });
}

}  // namespace

bool valid(const Segments& segments, i64 tokens, i64 num_slots) {
  if (segments.offsets[0] != 0) return false;
  for (i64 s = 0; s < segments.count; s++) {
    if (segments.slots[s] < 0 || segments.slots[s] >= num_slots) return false;
    if (segments.offsets[s + 1] < segments.offsets[s]) return false;
  }
  for (i64 i = 0; i < segments.offsets[segments.count]; i++)
    if (segments.rows[i] < 0 || segments.rows[i] >= tokens) return false;
  return true;
}

i64 lora_scratch(const LoraGroup& group, const Segments& segments) {
  i64 floats = 0;
  for (i64 s = 0; s < segments.count; s++)
    floats += (segments.offsets[s + 1] - segments.offsets[s]) * total_rank(group, segments.slots[s]);
  return ceil_div(3 * (segments.count + 1) * 8 + floats * 4, 64) * 64;
}

void lora_plan(const LoraGroup& group, const Segments& segments, void* scratch, LoraPlan& plan) {
  const i64 length = segments.count + 1;
  plan.shrink = static_cast<i64*>(scratch);
  plan.expand = plan.shrink + length;
  plan.at = plan.expand + length;
  plan.shrunk = reinterpret_cast<float*>(plan.at + length);
  plan.shrink[0] = plan.expand[0] = plan.at[0] = 0;
  for (i64 s = 0; s < segments.count; s++) {
    const i64 slot = segments.slots[s], rows = segments.offsets[s + 1] - segments.offsets[s];
    const i64 total = total_rank(group, slot), row_blocks = ceil_div(rows, ROW_BLOCK);
    plan.shrink[s + 1] = plan.shrink[s] + row_blocks * ceil_div(total, RANK_BLOCK);
    plan.expand[s + 1] = plan.expand[s] + row_blocks * column_blocks(group, slot);
    plan.at[s + 1] = plan.at[s] + rows * total;
  }
}

void lora_fetch(const LoraGroup& g, const Segments& segments, Fetch& fetch) {
  const i64 width = g.dtype == 0 ? 4 : 2;
  for (i64 s = 0; s < segments.count; s++) {
    const i64 slot = segments.slots[s];
    i64 b = 0;
    for (i64 j = 0; j < g.num_targets; j++) b += g.ranks[slot * g.ranks_stride + j] * g.out_features[j];
    fetch.add(reinterpret_cast<const void*>(g.a[slot]), total_rank(g, slot) * g.in_features * width);
    fetch.add(reinterpret_cast<const void*>(g.b[slot]), b * width);
  }
}

void lora(Team& team, const Lora& job, const LoraPlan& plan) {
  switch (job.group->dtype) {
    case 0: return run_lora<float>(team, job, plan);
    case 1: return run_lora<half>(team, job, plan);
    default: return run_lora<bfloat>(team, job, plan);
  }
}

}  // namespace ol

OL_API int ol_lora_apply(float* y, ol::i64 ldy, const float* x, ol::i64 ldx, const ol::i32* rows,
                         const ol::i32* offsets, const ol::i32* slots, const ol::LoraGroup* group, ol::i64 count,
                         ol::i64 tokens, ol::i64 threads) {
  using namespace ol;
  static thread_local Arena arena;
  const Segments segments{rows, offsets, slots, count};
  if (!valid(segments, tokens, group->num_slots)) return BAD_ARGUMENT;
  void* scratch = arena.get<char>(lora_scratch(*group, segments));
  if (!scratch) return OUT_OF_MEMORY;
  LoraPlan plan;
  lora_plan(*group, segments, scratch, plan);
  const Lora job{group, &segments, x, ldx, y, ldy};
  run(threads, [&](Team& team) { lora(team, job, plan); });
  return OK;
}
