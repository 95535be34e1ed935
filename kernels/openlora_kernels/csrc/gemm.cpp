// Packed float32 GEMM for 1 to some hundred rows, where MKL is far from both roofs (compute and memory).
//
// A row's result depends on the row, K and N alone: the blocks of K are cut by K only, every block is summed from zero
// in order of k and then added to y. Rows, threads and tiles never meet in one sum.
#include "gemm.h"

namespace ol {
namespace {

constexpr i64 MR = 4;
// A block of a panel (K_BLOCK x NR floats, 36 KB) is reused by all row tiles. Longer blocks mean fewer passes over y;
// 384 measured best of 192, 256, 384 although it exceeds L1 a little.
constexpr i64 K_BLOCK = 384;
constexpr i64 ROW_BLOCK_BYTES = 256 << 10;  // of x: stays in L2 while the panels go by

#define UNROLL _Pragma("GCC unroll 8")
// Without it GCC 12 folds the loads into the FMAs and reads B four times (91 instead of 170 GF/s at 512 rows).
#define IN_REGISTER(x) __asm__("" : "+x"(x))

template <int ROWS>
inline __attribute__((always_inline)) void step(__m256 (&sum)[ROWS][3], const float* a, i64 lda, const float* b) {
  __m256 b0 = load8(b), b1 = load8(b + 8), b2 = load8(b + 16);
  IN_REGISTER(b0);
  IN_REGISTER(b1);
  IN_REGISTER(b2);
  UNROLL for (int i = 0; i < ROWS; i++) {
    __m256 v = _mm256_broadcast_ss(a + i * lda);
    IN_REGISTER(v);
    sum[i][0] = _mm256_fmadd_ps(v, b0, sum[i][0]);
    sum[i][1] = _mm256_fmadd_ps(v, b1, sum[i][1]);
    sum[i][2] = _mm256_fmadd_ps(v, b2, sum[i][2]);
  }
}

// Cache lines that tiles fetch, at most so many for every four k: the weights' next block, and what Gemm::fetch asks.
struct Ahead {
  const char* line;
  int rate;
  const char* other;
  i64 others;
  int other_rate;
};

struct Tile {
  const float* a;
  i64 lda;
  const float* b;
  i64 k;
  float* c;
  i64 ldc;
  const float* bias;  // NR values or nullptr
  bool add;           // to what c holds
};

template <int ROWS>
void compute(const Tile& t, Ahead& ahead) {
  __m256 sum[ROWS][3];
  UNROLL for (int i = 0; i < ROWS; i++) UNROLL for (int j = 0; j < 3; j++) sum[i][j] = _mm256_setzero_ps();
  const float *a = t.a, *b = t.b;
  const i64 lda = t.lda;
  const char *line = ahead.line, *other = ahead.other;
  const char* const other_end = other + ahead.others * LINE;
  i64 k = t.k;
  for (; k >= 4; k -= 4, a += 4) {
    for (int i = 0; i < ahead.rate; i++, line += LINE) _mm_prefetch(line, _MM_HINT_T0);
    for (int i = 0; i < ahead.other_rate && other < other_end; i++, other += LINE) _mm_prefetch(other, _MM_HINT_T1);
    UNROLL for (int u = 0; u < 4; u++, b += NR) step<ROWS>(sum, a + u, lda, b);
  }
  for (; k > 0; k--, a++, b += NR) step<ROWS>(sum, a, lda, b);
  ahead.line = line;
  UNROLL for (int i = 0; i < ROWS; i++) UNROLL for (int j = 0; j < 3; j++) {
    float* c = t.c + i * t.ldc + 8 * j;
    __m256 v = sum[i][j];
    if (t.bias) v = _mm256_add_ps(v, load8(t.bias + 8 * j));
    if (t.add) v = _mm256_add_ps(v, load8(c));
    _mm256_storeu_ps(c, v);
  }
}

void compute(i64 rows, const Tile& tile, Ahead& ahead) {
  switch (rows) {
    case 4: return compute<4>(tile, ahead);
    case 3: return compute<3>(tile, ahead);
    case 2: return compute<2>(tile, ahead);
    default: return compute<1>(tile, ahead);
  }
}

// A tile of the last panel where N ends within it: through a buffer, so that nothing beyond column N is touched.
void compute_narrow(i64 rows, i64 columns, const Tile& tile, Ahead& ahead) {
  float c[MR * NR] = {}, bias[NR] = {};
  Tile narrow = tile;
  narrow.c = c;
  narrow.ldc = NR;
  if (tile.bias) {
    std::memcpy(bias, tile.bias, sizeof(float) * columns);
    narrow.bias = bias;
  }
  if (tile.add)
    for (i64 i = 0; i < rows; i++) std::memcpy(c + i * NR, tile.c + i * tile.ldc, sizeof(float) * columns);
  compute(rows, narrow, ahead);
  for (i64 i = 0; i < rows; i++) std::memcpy(tile.c + i * tile.ldc, c + i * NR, sizeof(float) * columns);
}

// Rows [m0, m0 + m) of one panel. While a block of it is used, the one after it comes into the cache; a single row tile
// only streams, and the hardware's prefetcher alone does that best (measured 5% above any software distance).
void panel(const Gemm& g, i64 p, i64 m0, i64 m, i64 KB, bool last) {
  const i64 columns = std::min(NR, g.N - p * NR), tiles = ceil_div(m, MR);
  Fetch::Cursor cursor;
  i64 others = 0;  // lines of g.fetch a tile: every panel has its share of them
  if (g.fetch && m0 == 0) {
    const i64 panels = ceil_div(g.N, NR), lines = g.fetch->lines();
    const i64 begin = lines * p / panels, end = lines * (p + 1) / panels;
    cursor = Fetch::Cursor(*g.fetch, begin, end);
    others = ceil_div(end - begin, tiles * ceil_div(g.K, KB));
  }
  for (i64 k0 = 0; k0 < g.K; k0 += KB) {
    const i64 kb = std::min(KB, g.K - k0), steps = std::max<i64>(1, kb / 4);
    const float* b = g.packed + (p * g.K + k0) * NR;
    Ahead ahead{};
    if (tiles > 1 && !(last && k0 + kb == g.K)) {
      ahead.line = reinterpret_cast<const char*>(b + kb * NR);
      ahead.rate = static_cast<int>(ceil_div(ceil_div(kb * NR * 4, LINE), tiles * steps));
    }
    ahead.other_rate = static_cast<int>(ceil_div(others, steps));
    for (i64 i = 0; i < m; i += MR) {
      Tile tile{};
      tile.a = g.x + (m0 + i) * g.ldx + k0;
      tile.lda = g.ldx;
      tile.b = b;
      tile.k = kb;
      tile.c = g.y + (m0 + i) * g.ldy + p * NR;
      tile.ldc = g.ldy;
      tile.bias = g.bias && k0 == 0 ? g.bias + p * NR : nullptr;
      tile.add = g.accumulate || k0 > 0;
      if (others) ahead.others = cursor.next(others, ahead.other);
      const i64 rows = std::min(MR, m - i);
      columns == NR ? compute(rows, tile, ahead) : compute_narrow(rows, columns, tile, ahead);
    }
  }
}

}  // namespace

void gemm(Team& team, const Gemm& g) {
  const i64 blocks = ceil_div(g.K, K_BLOCK), KB = ceil_div(ceil_div(g.K, blocks), 4) * 4;
  const i64 MB = std::max<i64>(32, ROW_BLOCK_BYTES / 4 / g.K / MR * MR);
  team.share(ceil_div(g.N, NR), 1, [&](i64 p0, i64 p1) {
    for (i64 m0 = 0; m0 < g.M; m0 += MB)
      for (i64 p = p0; p < p1; p++) panel(g, p, m0, std::min(MB, g.M - m0), KB, p + 1 == p1);
  });
}

void gemm_pack(Team& team, const float* weight, i64 ldw, float* packed, i64 K, i64 N) {
  team.share(ceil_div(N, NR), 4, [&](i64 p0, i64 p1) {
    for (i64 p = p0; p < p1; p++)
      for (i64 j = 0; j < NR; j++)
        for (i64 k = 0; k < K; k++)
          packed[(p * K + k) * NR + j] = p * NR + j < N ? weight[(p * NR + j) * ldw + k] : 0.0f;
  });
}

}  // namespace ol

using ol::i64;

OL_API int ol_gemm(const float* packed, const float* bias, const float* x, i64 ldx, float* y, i64 ldy, i64 M, i64 K,
                   i64 N, i64 accumulate, i64 threads) {
  const ol::Gemm job{packed, bias, x, ldx, y, ldy, M, K, N, accumulate != 0};
  ol::run(threads, [&](ol::Team& team) { ol::gemm(team, job); });
  return ol::OK;
}

OL_API int ol_gemm_pack(const float* weight, i64 ldw, float* packed, i64 K, i64 N, i64 threads) {
  ol::run(threads, [&](ol::Team& team) { ol::gemm_pack(team, weight, ldw, packed, K, N); });
  return ol::OK;
}
