// y = x W^T: weights packed in panels of NR columns, [ceil(N / NR)][K][NR], zeros behind column N.
#pragma once
#include "fetch.h"

namespace ol {

constexpr i64 NR = 24;

struct Gemm {
  const float* packed;
  const float* bias;  // [N] or nullptr
  const float* x;     // [M, K], rows ldx apart
  i64 ldx;
  float* y;  // [M, N], rows ldy apart
  i64 ldy;
  i64 M, K, N;
  bool accumulate;               // y += instead of y =
  const Fetch* fetch = nullptr;  // read along the way for what follows
};

void gemm(Team& team, const Gemm& job);
void gemm_pack(Team& team, const float* weight, i64 ldw, float* packed, i64 K, i64 N);

}  // namespace ol
