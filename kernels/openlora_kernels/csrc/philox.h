// The noise of sampling: Philox4x32-10 words and their Gumbel variables. philox.py is the specification.
//
// The noise is rounded so coarsely (2^-18) that the last bits of a logarithm never reach it.
#pragma once
#include <immintrin.h>

#include <cmath>
#include <cstdint>

#include "exact.h"

namespace ol {

constexpr uint32_t kMul0 = 0xD2511F53, kMul1 = 0xCD9E8D57, kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;
constexpr uint32_t kDomain = 0x4F4C5331;  // "OLS1"
constexpr int kRounds = 10;

// What the words of one choice at one step have in common.
struct Noise {
  uint32_t key0, key1, step, stream;
  Noise(uint64_t seed, uint32_t step, uint32_t stream)
      : key0(uint32_t(seed)), key1(uint32_t(seed >> 32)), step(step), stream(stream) {}
};

// The word of one token.
inline uint32_t word_of(const Noise& noise, uint32_t token) {
  uint32_t x[4] = {token >> 2, noise.step, noise.stream, kDomain};
  uint32_t k0 = noise.key0, k1 = noise.key1;
  for (int round = 0; round < kRounds; ++round, k0 += kWeyl0, k1 += kWeyl1) {
    const uint64_t p0 = uint64_t(kMul0) * x[0], p1 = uint64_t(kMul1) * x[2];
    x[0] = uint32_t(p1 >> 32) ^ x[1] ^ k0;
    x[1] = uint32_t(p1);
    x[2] = uint32_t(p0 >> 32) ^ x[3] ^ k1;
    x[3] = uint32_t(p0);
  }
  return x[token & 3];
}

// Words of tokens first … first + 31 (first % 4 == 0). Counters lie in 64-bit lanes: the multiplications read the low
// halves only, so the upper halves may hold anything.
inline void words_of(const Noise& noise, uint32_t first, uint32_t* words) {
  const __m256i m0 = _mm256_set1_epi64x(kMul0), m1 = _mm256_set1_epi64x(kMul1);
  const __m256i base = _mm256_add_epi64(_mm256_set1_epi64x(first >> 2), _mm256_set_epi64x(3, 2, 1, 0));
  __m256i x0[2] = {base, _mm256_add_epi64(base, _mm256_set1_epi64x(4))}, x1[2], x2[2], x3[2];
  for (int half = 0; half < 2; ++half) {
    x1[half] = _mm256_set1_epi64x(noise.step);
    x2[half] = _mm256_set1_epi64x(noise.stream);
    x3[half] = _mm256_set1_epi64x(kDomain);
  }
  uint32_t k0 = noise.key0, k1 = noise.key1;
  for (int round = 0; round < kRounds; ++round, k0 += kWeyl0, k1 += kWeyl1) {
    const __m256i key0 = _mm256_set1_epi64x(k0), key1 = _mm256_set1_epi64x(k1);
    for (int half = 0; half < 2; ++half) {
      const __m256i p0 = _mm256_mul_epu32(x0[half], m0), p1 = _mm256_mul_epu32(x2[half], m1);
      x0[half] = _mm256_xor_si256(_mm256_srli_epi64(p1, 32), _mm256_xor_si256(x1[half], key0));
      x2[half] = _mm256_xor_si256(_mm256_srli_epi64(p0, 32), _mm256_xor_si256(x3[half], key1));
      x1[half] = p1;
      x3[half] = p0;
    }
  }
  const __m256i low = _mm256_set1_epi64x(0xFFFFFFFF);
  for (int half = 0; half < 2; ++half) {
    const __m256i w01 = _mm256_or_si256(_mm256_and_si256(x0[half], low), _mm256_slli_epi64(x1[half], 32));
    const __m256i w23 = _mm256_or_si256(_mm256_and_si256(x2[half], low), _mm256_slli_epi64(x3[half], 32));
    const __m256i even = _mm256_unpacklo_epi64(w01, w23), odd = _mm256_unpackhi_epi64(w01, w23);
    auto* target = reinterpret_cast<__m256i*>(words + 16 * half);
    _mm256_storeu_si256(target, _mm256_permute2x128_si256(even, odd, 0x20));
    _mm256_storeu_si256(target + 1, _mm256_permute2x128_si256(even, odd, 0x31));
  }
}

inline float gumbel(uint32_t word) {
  const double u = (double(word >> 8) + 0.5) * 0x1p-24;
  return float(std::nearbyint(-std::log(-std::log(u)) * 0x1p18) * 0x1p-18);
}

static const float kLargestGumbel = gumbel(0xFFFFFFFF);

// At least gumbel(word), without a logarithm: -ln(-ln u) <= -ln(1 - u), and a float's bits read as an integer bound its
// log2 from below (the chord lies below the curve). 1e-4 covers every rounding; a test goes through all 2^24 values.
inline __m256 gumbel_bound(__m256i words) {
  const __m256i bits = _mm256_srli_epi32(words, 8);
  const __m256i rest = _mm256_sub_epi32(_mm256_set1_epi32((1 << 25) - 1), _mm256_slli_epi32(bits, 1));
  const __m256i log2 = _mm256_sub_epi32(_mm256_castps_si256(_mm256_cvtepi32_ps(rest)), _mm256_set1_epi32(0x3f800000));
  constexpr double ln2 = 0.6931471805599453;
  return _mm256_sub_ps(_mm256_set1_ps(float(25 * ln2 + 1e-4)),
                       _mm256_mul_ps(_mm256_cvtepi32_ps(log2), _mm256_set1_ps(float(ln2 * 0x1p-23))));
}

}  // namespace ol
