// Small row-wise ops: RMSNorm, rotary embedding, gated activations, writing keys and values to the paged cache.
#include "ops.h"

namespace ol {
namespace {

// body(offset, load, store) for eight columns at a time, the last ones masked.
template <class F, class G>
void columns(i64 K, F whole, G tail) {
  i64 k = 0;
  for (; k + 8 <= K; k += 8) whole(k);
  if (k < K) tail(k, K - k);
}

template <class F>
void map_row(i64 K, F value, float* out) {
  columns(
      K, [&](i64 k) { _mm256_storeu_ps(out + k, value(k, [k](const float* p) { return load8(p + k); })); },
      [&](i64 k, i64 n) { store_tail(out + k, value(k, [k, n](const float* p) { return load_tail(p + k, n); }), n); });
}

inline __m256 silu8(__m256 x) {
  const __m256 one = _mm256_set1_ps(1.0f);
  return _mm256_div_ps(x, _mm256_add_ps(one, exp8(_mm256_sub_ps(_mm256_setzero_ps(), x))));
}

// 0.5 x (1 + tanh(u)) = x / (1 + e^-2u), u = sqrt(2/pi) (x + 0.044715 x^3)
inline __m256 gelu_tanh8(__m256 x) {
  const __m256 one = _mm256_set1_ps(1.0f), x2 = _mm256_mul_ps(x, x);
  const __m256 inner = _mm256_mul_ps(x, _mm256_fmadd_ps(_mm256_set1_ps(0.044715f), x2, one));
  return _mm256_div_ps(x, _mm256_add_ps(one, exp8(_mm256_mul_ps(_mm256_set1_ps(-2.0f * 0.7978845608028654f), inner))));
}

}  // namespace

void rms_norm_row(const float* x, const float* weight, float* y, i64 K, float eps) {
  __m256 sums[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  const auto square = [&](i64 k, __m256 v) {
    __m256& sum = sums[k / 8 % 2];
    sum = _mm256_fmadd_ps(v, v, sum);
  };
  columns(K, [&](i64 k) { square(k, load8(x + k)); }, [&](i64 k, i64 n) { square(k, load_tail(x + k, n)); });
  const float mean = sum8(_mm256_add_ps(sums[0], sums[1])) / static_cast<float>(K);
  const __m256 inverse = _mm256_set1_ps(1.0f / std::sqrt(mean + eps));
  map_row(K, [&](i64, auto load) { return _mm256_mul_ps(load(weight), _mm256_mul_ps(load(x), inverse)); }, y);
}

void rms_norm(Team& team, const float* x, i64 ldx, const float* weight, float* y, i64 ldy, i64 T, i64 K, float eps) {
  team.share(T, 4, [&](i64 begin, i64 end) {
    for (i64 i = begin; i < end; i++) rms_norm_row(x + i * ldx, weight, y + i * ldy, K, eps);
  });
}

void add_scaled(Team& team, float* x, i64 ldx, const float* weight, float eps, float multiplier, float* y, i64 ldy,
                i64 T, i64 K) {
  const __m256 factor = _mm256_set1_ps(multiplier);
  team.share(T, 4, [&](i64 begin, i64 end) {
    for (i64 i = begin; i < end; i++) {
      float *row = x + i * ldx, *to = y + i * ldy;
      if (weight) rms_norm_row(row, weight, row, K, eps);
      map_row(K, [&](i64, auto load) { return _mm256_fmadd_ps(load(row), factor, load(to)); }, to);
    }
  });
}

void gated(Team& team, const float* gate_up, i64 ldx, float* out, i64 ldo, i64 T, i64 width, i64 activation) {
  team.share(T, 1, [&](i64 begin, i64 end) {
    for (i64 i = begin; i < end; i++) {
      const float *gate = gate_up + i * ldx, *up = gate + width;
      if (activation == SILU)
        map_row(width, [&](i64, auto load) { return _mm256_mul_ps(silu8(load(gate)), load(up)); }, out + i * ldo);
      else
        map_row(width, [&](i64, auto load) { return _mm256_mul_ps(gelu_tanh8(load(gate)), load(up)); }, out + i * ldo);
    }
  });
}

void rope_row(float* x, i64 heads, i64 D, const float* cos, const float* sin, i64 rotary_dim) {
  const i64 half = rotary_dim / 2;
  for (i64 h = 0; h < heads; h++) {
    float *first = x + h * D, *second = first + half;
    const auto rotate = [&](i64 k, auto load, auto store) {
      const __m256 a = load(first + k), b = load(second + k), c = load(cos + k), s = load(sin + k);
      store(first + k, _mm256_fnmadd_ps(b, s, _mm256_mul_ps(a, c)));
      store(second + k, _mm256_fmadd_ps(a, s, _mm256_mul_ps(b, c)));
    };
    columns(
        half,
        [&](i64 k) {
          rotate(k, [](const float* p) { return load8(p); }, [](float* p, __m256 v) { _mm256_storeu_ps(p, v); });
        },
        [&](i64 k, i64 n) {
          rotate(k, [n](const float* p) { return load_tail(p, n); }, [n](float* p, __m256 v) { store_tail(p, v, n); });
        });
  }
}

bool valid_slots(const i64* slots, i64 T, i64 capacity) {
  return std::all_of(slots, slots + T, [=](i64 slot) { return slot >= 0 && slot < capacity; });
}

}  // namespace ol

using ol::i64;

OL_API int ol_rms_norm(const float* x, i64 ldx, const float* weight, float* y, i64 ldy, i64 T, i64 K, float eps,
                       i64 threads) {
  ol::run(std::min(threads, ol::ceil_div(T * K, 8192)),
          [&](ol::Team& team) { ol::rms_norm(team, x, ldx, weight, y, ldy, T, K, eps); });
  return ol::OK;
}

OL_API int ol_gated(const float* gate_up, i64 ldx, float* out, i64 ldo, i64 T, i64 width, i64 activation, i64 threads) {
  ol::run(std::min(threads, ol::ceil_div(T * width, 4096)),
          [&](ol::Team& team) { ol::gated(team, gate_up, ldx, out, ldo, T, width, activation); });
  return ol::OK;
}

OL_API int ol_rope(float* x, i64 ldx, const float* cos, const float* sin, i64 ld_table, i64 T, i64 heads, i64 D,
                   i64 rotary_dim, i64 threads) {
  if (rotary_dim < 0 || rotary_dim > D || rotary_dim % 2) return ol::BAD_ARGUMENT;
  ol::run(std::min(threads, ol::ceil_div(T * heads * D, 8192)), [&](ol::Team& team) {
    team.share(T, 4, [&](i64 begin, i64 end) {
      for (i64 i = begin; i < end; i++)
        ol::rope_row(x + i * ldx, heads, D, cos + i * ld_table, sin + i * ld_table, rotary_dim);
    });
  });
  return ol::OK;
}

OL_API int ol_write_kv(const float* key, i64 ldk, const float* value, i64 ldv, float* k_cache, float* v_cache,
                       const i64* slots, i64 T, i64 width, i64 capacity, i64 threads) {
  if (!ol::valid_slots(slots, T, capacity)) return ol::BAD_ARGUMENT;
  ol::run(std::min(threads, ol::ceil_div(T * width, 16384)), [&](ol::Team& team) {
    team.share(T, 4, [&](i64 begin, i64 end) {
      for (i64 i = begin; i < end; i++) {
        std::memcpy(k_cache + slots[i] * width, key + i * ldk, sizeof(float) * width);
        std::memcpy(v_cache + slots[i] * width, value + i * ldv, sizeof(float) * width);
      }
    });
  });
  return ol::OK;
}
