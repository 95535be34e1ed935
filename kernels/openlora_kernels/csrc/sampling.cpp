// Choosing one token a row: Gumbel-max over what truncation keeps. sampling.py is the specification; same tokens.
//
// A bound of the noise that needs no logarithm (philox.h) spares the exact noise of almost every token.
#include <new>
#include <utility>

#include "truncation.h"

#include "philox.h"

namespace ol {
namespace {

constexpr int kNotFinite = -1, kNothingAllowed = -2;  // results of a row that are no token

// One row to sample; sampling.py ROW is the same layout.
struct Row {
  uint64_t seed;
  double top_p;        // 1: off
  int32_t row;         // index into logits
  uint32_t step;
  uint32_t stream;
  float temperature;   // 0: greedy
  int32_t top_k;       // 0: off
  float min_s;         // ln(min_p); -inf: off
  int32_t mask;        // index into masks, -1: none
  int32_t unused;
};
static_assert(sizeof(Row) == 48, "sampling.py ROW has this layout");

struct Best {
  float score;
  int32_t token;
  void offer(float candidate, int32_t id) {
    if (candidate > score || (candidate == score && id < token)) score = candidate, token = id;
  }
};

int32_t best_of_survivors(const Noise& noise, const Survivors& survivors, Best best) {
  for (int64_t i = 0; i < survivors.count; ++i) {
    const float s = -bits_float(survivors.keys[i]);
    const int32_t token = survivors.tokens[i];
    if (s + kLargestGumbel >= best.score) best.offer(s + gumbel(word_of(noise, uint32_t(token))), token);
  }
  return best.token;
}

// Best of all tokens with s >= least.
int32_t best_of_all(const View& view, const Scale& scale, const Noise& noise, float least, Best best) {
  alignas(32) uint32_t words[32];
  alignas(32) float s[8];
  const __m256 bound = _mm256_set1_ps(least);
  for (int64_t b = 0; b < view.blocks(); ++b) {
    const float most = scale(view.block_max(b));
    if (!(most >= least) || most + kLargestGumbel < best.score) continue;
    const float* values = view.block(b);
    for (int half = 0; half < kBlock; half += 32) {
      words_of(noise, uint32_t(b * kBlock + half), words);
      for (int i = 0; i < 32; i += 8) {
        const __m256 v = scale(_mm256_loadu_ps(values + half + i));
        const __m256i word = _mm256_load_si256(reinterpret_cast<__m256i*>(words + i));
        const __m256 most8 = _mm256_add_ps(v, gumbel_bound(word));
        const __m256 may_win = _mm256_cmp_ps(most8, _mm256_set1_ps(best.score), _CMP_GE_OQ);
        unsigned hits = unsigned(_mm256_movemask_ps(_mm256_and_ps(_mm256_cmp_ps(v, bound, _CMP_GE_OQ), may_win)));
        if (!hits) continue;
        _mm256_store_ps(s, v);
        for (; hits; hits &= hits - 1) {
          const int lane = __builtin_ctz(hits);
          best.offer(s[lane] + gumbel(words[i + lane]), int32_t(b * kBlock + half + i + lane));
        }
      }
    }
  }
  return best.token;
}

int32_t sample_row(const float* logits, int64_t vocab, const Row& row, const uint32_t* mask, Scratch& scratch) {
  bool not_finite = false;
  if (mask) {
    scratch.masked.resize(vocab);
    not_finite = apply_mask(logits, vocab, mask, scratch.masked.data());
    logits = scratch.masked.data();
  }
  const View view(logits, vocab, scratch);
  if (not_finite || view.not_finite()) return kNotFinite;
  if (view.max() == -kInf) return mask ? kNothingAllowed : kNotFinite;
  const int32_t top = view.argmax();
  if (row.temperature == 0) return top;

  const Scale scale{view.max(), row.temperature};
  const Noise noise(row.seed, row.step, row.stream);
  const Best first{gumbel(word_of(noise, uint32_t(top))), top};  // the likeliest token is always kept; its s is 0
  const bool cuts_k = row.top_k > 0 && row.top_k < vocab, cuts_p = row.top_p < 1;
  if (!cuts_k && !cuts_p) return best_of_all(view, scale, noise, row.min_s, first);
  if (cuts_k) keep_top_k(view, scale, row.top_k, scratch);
  if (cuts_p) keep_top_p(view, scale, row.top_p, cuts_k, scratch);
  if (row.min_s > -kInf) keep_up_to(scratch.survivors, key_of(row.min_s));
  const Survivors& survivors = scratch.survivors;
  if (survivors.count * 32 < vocab) return best_of_survivors(noise, survivors, first);
  const uint32_t last = *std::max_element(survivors.keys.begin(), survivors.keys.begin() + survivors.count);
  return best_of_all(view, scale, noise, -bits_float(last), first);
}

// ln sum e^logit, and the `count` likeliest tokens: by value, then by id. A row that is not finite gives NaN.
double logprobs_row(const float* logits, int64_t vocab, int64_t count, int32_t* tokens, Scratch& scratch) {
  const View view(logits, vocab, scratch);
  if (view.not_finite() || view.max() == -kInf) return std::numeric_limits<double>::quiet_NaN();
  const Scale scale{view.max(), 1.0f};
  if (count > 0) {
    keep_top_k(view, scale, count, scratch);
    Survivors& survivors = scratch.survivors;
    std::vector<std::pair<uint32_t, int32_t>> found;
    for (int64_t i = 0; i < survivors.count; ++i) found.emplace_back(survivors.keys[i], survivors.tokens[i]);
    const int64_t number = std::min(count, survivors.count);
    std::partial_sort(found.begin(), found.begin() + number, found.end());
    for (int64_t i = 0; i < number; ++i) tokens[i] = found[i].second;
  }
  return double(view.max()) + std::log(double(total_weight(view, scale)) * 0x1p-40);
}

// Run work(row, scratch) for each row on the pool; false when memory ran out.
template <class Work>
bool each_row(int64_t rows, int64_t threads, const Work& work) {
  bool complete = true;
#pragma omp parallel for schedule(dynamic, 1) num_threads(int(std::min(rows, threads))) if (rows > 1 && threads > 1)
  for (int64_t i = 0; i < rows; ++i) {
    thread_local Scratch scratch;
    try {
      work(i, scratch);
    } catch (const std::bad_alloc&) {
#pragma omp atomic write
      complete = false;
    }
  }
  return complete;
}

}  // namespace

// logits [.., vocab] with `stride` floats a row; masks uint32 [.., mask_stride], bit t of a row set = token t allowed;
// tokens int32 [count]: the token, or -1 (row holds NaN or +inf, or nothing but -inf), -2 (the mask allows nothing).
OL_API int ol_sample(const float* logits, int64_t stride, int64_t num_rows, int64_t vocab, const Row* rows,
                     int64_t count, const uint32_t* masks, int64_t mask_stride, int64_t num_masks, int32_t* tokens,
                     int64_t threads) {
  if (vocab < 1 || vocab > INT32_MAX - kBlock || threads < 1 || (num_masks > 0 && mask_stride * 32 < vocab))
    return BAD_ARGUMENT;
  for (int64_t i = 0; i < count; ++i) {
    const Row& row = rows[i];
    const bool sound = row.row >= 0 && row.row < num_rows && row.mask < num_masks && row.temperature >= 0 &&
                       row.temperature < kInf && row.top_p > 0 && row.top_k >= 0 && row.min_s <= 0;
    if (!sound) return BAD_ARGUMENT;
  }
  const bool complete = each_row(count, threads, [&](int64_t i, Scratch& scratch) {
    const Row& row = rows[i];
    const uint32_t* mask = row.mask < 0 ? nullptr : masks + row.mask * mask_stride;
    tokens[i] = sample_row(logits + row.row * stride, vocab, row, mask, scratch);
  });
  return complete ? OK : OUT_OF_MEMORY;
}

// For row rows[i]: totals[i] = ln sum e^logit, tokens[i, :counts[i]] = the likeliest tokens (left as they are past the
// tokens that are possible). tokens int32 [count, width].
OL_API int ol_logprobs(const float* logits, int64_t stride, int64_t num_rows, int64_t vocab, const int32_t* rows,
                       const int32_t* counts, int64_t count, int64_t width, int32_t* tokens, double* totals,
                       int64_t threads) {
  if (vocab < 1 || vocab > INT32_MAX - kBlock || threads < 1) return BAD_ARGUMENT;
  for (int64_t i = 0; i < count; ++i)
    if (rows[i] < 0 || rows[i] >= num_rows || counts[i] < 0 || counts[i] > width) return BAD_ARGUMENT;
  const bool complete = each_row(count, threads, [&](int64_t i, Scratch& scratch) {
    totals[i] = logprobs_row(logits + rows[i] * stride, vocab, counts[i], tokens + i * width, scratch);
  });
  return complete ? OK : OUT_OF_MEMORY;
}

}  // namespace ol
