// What of a row may be chosen: masks, top-k and top-p without sorting the vocabulary. sampling.py is the specification.
//
// A value that enough tokens are known to reach cuts the row down to few survivors; buckets find the exact threshold
// among them. Sums are of integers, so that their order is free.
#pragma once
#include <algorithm>
#include <climits>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "team.h"

#include "exact.h"

namespace ol {

constexpr int kBlock = 64;  // tokens of a block; its maximum decides whether the block is looked at again
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr int kWeightBits = 40;  // a weight of 1 is 2^40

// ln(2)^n / n!: 2^f for |f| <= 1/2 to 1e-11.
constexpr double kTaylor[10] = {
    1.0,
    0.6931471805599453,
    0.24022650695910072,
    0.055504108664821576,
    0.009618129107628477,
    0.0013333558146428441,
    0.0001540353039338161,
    1.5252733804059838e-05,
    1.3215486790144305e-06,
    1.0178086009239699e-07,
};
constexpr double kLog2e = 1.4426950408889634;

// floor(2^40 e^s) as the specification rounds it, for s <= 0.
inline __m256i weight4(__m128 s) {
  const __m256d y = _mm256_mul_pd(_mm256_cvtps_pd(s), _mm256_set1_pd(kLog2e));
  const __m256d n = _mm256_round_pd(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m256d f = _mm256_sub_pd(y, n);
  __m256d p = _mm256_set1_pd(kTaylor[9]);
  for (int i = 8; i >= 0; --i) p = _mm256_add_pd(_mm256_mul_pd(p, f), _mm256_set1_pd(kTaylor[i]));
  // 2^(n + 40) from its exponent bits; n below -41 gives weight 0 whatever the bits are.
  const __m256d magic = _mm256_set1_pd(0x1.8p52);
  const __m256i exponent = _mm256_sub_epi64(
      _mm256_castpd_si256(_mm256_add_pd(_mm256_max_pd(n, _mm256_set1_pd(-64)), magic)), _mm256_castpd_si256(magic));
  const __m256d scale =
      _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_add_epi64(exponent, _mm256_set1_epi64x(1023 + kWeightBits)), 52));
  const __m256d value = _mm256_floor_pd(_mm256_mul_pd(p, scale));
  const __m256d positive = _mm256_and_pd(value, _mm256_cmp_pd(y, _mm256_set1_pd(-(kWeightBits + 2)), _CMP_GT_OQ));
  const __m256d whole = _mm256_set1_pd(0x1p52);
  return _mm256_xor_si256(_mm256_castpd_si256(_mm256_add_pd(positive, whole)), _mm256_castpd_si256(whole));
}

// The tokens that may still be chosen, in order of id. A key holds the bits of |s|: the smaller, the likelier.
struct Survivors {
  std::vector<uint32_t> keys;
  std::vector<int32_t> tokens;
  std::vector<uint64_t> weights;  // filled on demand
  int64_t count = 0;
};

// What a thread keeps between rows; as large as the largest vocabulary seen.
struct Scratch {
  std::vector<float> masked, block_max, order;
  Survivors survivors;
  std::vector<uint32_t> keys;
  std::vector<uint64_t> weights;
};

inline float bits_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t key_of(float s) {
  uint32_t bits;
  std::memcpy(&bits, &s, sizeof bits);
  return bits & 0x7fffffff;
}

inline float horizontal_max(__m256 v) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

// s of a logit.
struct Scale {
  float max, temperature;
  float operator()(float logit) const { return (logit - max) / temperature; }
  __m256 operator()(__m256 logits) const {
    return _mm256_div_ps(_mm256_sub_ps(logits, _mm256_set1_ps(max)), _mm256_set1_ps(temperature));
  }
};

// A row in blocks of 64, the last one filled up with -inf, with each block's maximum.
class View {
 public:
  View(const float* row, int64_t vocab, Scratch& scratch) : vocab_(vocab), blocks_((vocab + kBlock - 1) / kBlock) {
    row_ = row;
    std::fill(tail_, tail_ + kBlock, -kInf);
    const int64_t whole = vocab / kBlock * kBlock;
    std::copy(row + whole, row + vocab, tail_);
    full_ = vocab / kBlock;
    scratch.block_max.resize(blocks_);
    block_max_ = scratch.block_max.data();
    scan();
  }
  const float* block(int64_t b) const { return b < full_ ? row_ + b * kBlock : tail_; }
  float block_max(int64_t b) const { return block_max_[b]; }
  int64_t blocks() const { return blocks_; }
  int64_t vocab() const { return vocab_; }
  float max() const { return max_; }
  bool not_finite() const { return not_finite_; }  // a NaN or +inf somewhere

  int32_t argmax() const {
    int64_t b = 0;
    while (block_max_[b] != max_) ++b;
    const float* values = block(b);
    int i = 0;
    while (values[i] != max_) ++i;
    return int32_t(b * kBlock + i);
  }

 private:
  void scan() {
    const __m256 inf = _mm256_set1_ps(kInf);
    __m256 bad = _mm256_setzero_ps();
    for (int64_t b = 0; b < blocks_; ++b) {
      const float* values = block(b);
      __m256 most = _mm256_set1_ps(-kInf);
      for (int i = 0; i < kBlock; i += 8) {
        const __m256 v = _mm256_loadu_ps(values + i);
        bad = _mm256_or_ps(bad, _mm256_cmp_ps(v, inf, _CMP_NLT_UQ));
        most = _mm256_max_ps(most, v);
      }
      block_max_[b] = horizontal_max(most);
      max_ = std::max(max_, block_max_[b]);
    }
    not_finite_ = _mm256_movemask_ps(bad) != 0;
  }

  const float* row_;
  float* block_max_;
  int64_t vocab_, blocks_, full_;
  float tail_[kBlock];
  float max_ = -kInf;
  bool not_finite_ = false;
};

// Copy with -inf where the mask's bit is 0. Returns whether the row had a NaN or +inf anywhere, masked or not.
inline bool apply_mask(const float* row, int64_t vocab, const uint32_t* mask, float* out) {
  const __m256i select = _mm256_set_epi32(128, 64, 32, 16, 8, 4, 2, 1);
  const __m256 inf = _mm256_set1_ps(kInf), never = _mm256_set1_ps(-kInf);
  __m256 bad = _mm256_setzero_ps();
  int64_t i = 0;
  for (; i + 8 <= vocab; i += 8) {
    const int byte = (mask[i >> 5] >> (i & 31)) & 0xff;
    const __m256i on = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(byte), select), select);
    const __m256 v = _mm256_loadu_ps(row + i);
    bad = _mm256_or_ps(bad, _mm256_cmp_ps(v, inf, _CMP_NLT_UQ));
    _mm256_storeu_ps(out + i, _mm256_blendv_ps(never, v, _mm256_castsi256_ps(on)));
  }
  bool tail_bad = false;
  for (; i < vocab; ++i) {
    tail_bad |= !(row[i] < kInf);
    out[i] = (mask[i >> 5] >> (i & 31)) & 1 ? row[i] : -kInf;
  }
  return tail_bad || _mm256_movemask_ps(bad) != 0;
}

// For each 8-bit mask, the lanes of its set bits, in front.
struct Compress {
  alignas(32) int32_t lanes[256][8];
  constexpr Compress() : lanes() {
    for (int mask = 0; mask < 256; ++mask)
      for (int bit = 0, front = 0; bit < 8; ++bit)
        if (mask >> bit & 1) lanes[mask][front++] = bit;
  }
};
constexpr Compress kCompress;

// Tokens with s >= least that are possible at all.
inline void collect(const View& view, const Scale& scale, float least, Survivors& out) {
  out.keys.resize(view.vocab() + 8);  // whole vectors are written at the end
  out.tokens.resize(view.vocab() + 8);
  least = std::max(least, std::numeric_limits<float>::lowest());
  const __m256 bound = _mm256_set1_ps(least), magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  const __m256i steps = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
  int64_t count = 0;
  for (int64_t b = 0; b < view.blocks(); ++b) {
    if (!(scale(view.block_max(b)) >= least)) continue;
    const float* values = view.block(b);
    for (int i = 0; i < kBlock; i += 8) {
      const __m256 s = scale(_mm256_loadu_ps(values + i));
      const int hits = _mm256_movemask_ps(_mm256_cmp_ps(s, bound, _CMP_GE_OQ));
      if (!hits) continue;
      const __m256i order = _mm256_load_si256(reinterpret_cast<const __m256i*>(kCompress.lanes[hits]));
      const __m256i tokens = _mm256_add_epi32(_mm256_set1_epi32(int(b * kBlock + i)), steps);
      _mm256_storeu_ps(reinterpret_cast<float*>(&out.keys[count]),
                       _mm256_permutevar8x32_ps(_mm256_and_ps(s, magnitude), order));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(&out.tokens[count]),
                          _mm256_permutevar8x32_epi32(tokens, order));
      count += __builtin_popcount(unsigned(hits));
    }
  }
  out.count = count;
}

// Fills in the survivors' weights and returns their sum.
inline uint64_t weigh(Survivors& survivors) {
  survivors.weights.resize(survivors.keys.size());
  const __m128 sign = _mm_set1_ps(-0.0f);
  uint64_t total = 0;
  for (int64_t i = 0; i < survivors.count; i += 4) {
    const __m128 s = _mm_or_ps(_mm_loadu_ps(reinterpret_cast<const float*>(&survivors.keys[i])), sign);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(&survivors.weights[i]), weight4(s));
  }
  for (int64_t i = 0; i < survivors.count; ++i) total += survivors.weights[i];
  return total;
}

inline uint64_t total_weight(const View& view, const Scale& scale) {
  __m256i sum = _mm256_setzero_si256();
  for (int64_t b = 0; b < view.blocks(); ++b) {
    const float* values = view.block(b);
    for (int i = 0; i < kBlock; i += 8) {
      const __m256 s = scale(_mm256_loadu_ps(values + i));
      sum = _mm256_add_epi64(sum, weight4(_mm256_castps256_ps128(s)));
      sum = _mm256_add_epi64(sum, weight4(_mm256_extractf128_ps(s, 1)));
    }
  }
  alignas(32) uint64_t lanes[4];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), sum);
  return lanes[0] + lanes[1] + lanes[2] + lanes[3];
}

constexpr int kBuckets = 1024;

// Narrows `count` items to those of the bucket where `need` falls, into scratch; takes what lies before off `need`.
template <bool kWeighted, class Bucket>
int64_t narrow(const uint32_t* keys, const uint64_t* weights, int64_t count, const Bucket& bucket, uint64_t& need,
               Scratch& scratch) {
  uint64_t mass[kBuckets] = {};
  for (int64_t i = 0; i < count; ++i) mass[bucket(keys[i])] += kWeighted ? weights[i] : 1;
  int found = 0;
  while (mass[found] < need) need -= mass[found++];
  int64_t kept = 0;
  for (int64_t i = 0; i < count; ++i) {
    scratch.keys[kept] = keys[i];
    if (kWeighted) scratch.weights[kept] = weights[i];
    kept += bucket(keys[i]) == found;
  }
  return kept;
}

// The smallest key t such that the survivors with key <= t weigh (or number) at least `need`, 1 <= need <= their total.
// At most four passes of narrowing, whatever the values are: the first by equal steps of s, the others by bits.
template <bool kWeighted>
uint32_t threshold(const Survivors& survivors, uint64_t need, Scratch& scratch) {
  scratch.keys.resize(survivors.keys.size());
  scratch.weights.resize(survivors.keys.size());
  const uint32_t* keys = survivors.keys.data();
  const uint64_t* weights = survivors.weights.data();
  int64_t count = survivors.count;
  for (bool first = true;; first = false, keys = scratch.keys.data(), weights = scratch.weights.data()) {
    uint32_t low = UINT32_MAX, high = 0;
    for (int64_t i = 0; i < count; ++i) low = std::min(low, keys[i]), high = std::max(high, keys[i]);
    if (low == high) return low;
    const float steps = (kBuckets - 1) / bits_float(high);
    if (first && steps < 1e6f) {
      const auto by_value = [&](uint32_t key) { return int(bits_float(key) * steps); };
      count = narrow<kWeighted>(keys, weights, count, by_value, need, scratch);
    } else {
      const int shift = std::max(0, 32 - __builtin_clz(high - low) - 10);
      const auto by_bits = [&](uint32_t key) { return int((key - low) >> shift); };
      count = narrow<kWeighted>(keys, weights, count, by_bits, need, scratch);
    }
  }
}

inline void keep_up_to(Survivors& survivors, uint32_t key) {
  int64_t kept = 0;
  for (int64_t i = 0; i < survivors.count; ++i) {
    survivors.keys[kept] = survivors.keys[i];
    survivors.tokens[kept] = survivors.tokens[i];
    kept += survivors.keys[i] <= key;
  }
  survivors.count = kept;
}

// A value that at least k tokens reach: the k-th largest of the blocks' maxima.
inline float reached_by(const View& view, int64_t k, Scratch& scratch) {
  if (k > view.blocks()) return -kInf;
  scratch.order.assign(scratch.block_max.begin(), scratch.block_max.begin() + view.blocks());
  std::nth_element(scratch.order.begin(), scratch.order.begin() + (k - 1), scratch.order.end(), std::greater<float>());
  return scratch.order[k - 1];
}

inline void keep_top_k(const View& view, const Scale& scale, int64_t k, Scratch& scratch) {
  Survivors& survivors = scratch.survivors;
  collect(view, scale, scale(reached_by(view, k, scratch)), survivors);
  keep_up_to(survivors, threshold<false>(survivors, uint64_t(std::min(k, survivors.count)), scratch));
}

inline void keep_top_p(const View& view, const Scale& scale, double p, bool collected, Scratch& scratch) {
  Survivors& survivors = scratch.survivors;
  const uint64_t total = collected ? weigh(survivors) : total_weight(view, scale);
  const uint64_t need = std::min(total, uint64_t(std::ceil(p * double(total))));
  if (!collected) {
    // Tokens lighter than (total - need) / V weigh less than total - need together, so the others reach `need`.
    const uint64_t least = std::max<uint64_t>(1, (total - need) / uint64_t(view.vocab()));
    const double ln2 = 0.6931471805599453;
    collect(view, scale, float(std::log(double(least)) - kWeightBits * ln2 - 1e-3), survivors);
    weigh(survivors);
  }
  keep_up_to(survivors, threshold<true>(survivors, need, scratch));
}

}  // namespace ol
