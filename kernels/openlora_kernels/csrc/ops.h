// Small row-wise ops of a decoder layer.
#pragma once
#include "team.h"

namespace ol {

enum Activation : i64 { SILU = 0, GELU_TANH = 1 };  // activation.py: ACTIVATIONS

void rms_norm_row(const float* x, const float* weight, float* y, i64 K, float eps);
void rms_norm(Team& team, const float* x, i64 ldx, const float* weight, float* y, i64 ldy, i64 T, i64 K, float eps);
// y += multiplier * x, x normed with weight first where it is given; x [T, K] is overwritten then.
void add_scaled(Team& team, float* x, i64 ldx, const float* weight, float eps, float multiplier, float* y, i64 ldy,
                i64 T, i64 K);
void gated(Team& team, const float* gate_up, i64 ldx, float* out, i64 ldo, i64 T, i64 width, i64 activation);
// Rotate dims [0, rotary_dim) of heads [D] that follow each other, with half-width tables.
void rope_row(float* x, i64 heads, i64 D, const float* cos, const float* sin, i64 rotary_dim);
bool valid_slots(const i64* slots, i64 T, i64 capacity);

}  // namespace ol
