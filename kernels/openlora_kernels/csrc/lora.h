// y += (scale * (x A^T)) B for rows grouped by adapter: real ranks, targets of one fused projection together.
#pragma once
#include "fetch.h"

namespace ol {

// One fused projection of a model and where each slot's weights for it lie. lora.py: _NativeGroup.
struct LoraGroup {
  const i64 *a, *b, *scale;  // [num_slots] addresses: A [R, K]; B_0 [r_0, N_0], B_1 ...; float [R]
  const i32* ranks;          // [num_slots, ranks_stride], 0 = absent
  const i64* out_features;   // [num_targets]
  i64 in_features, num_targets, ranks_stride, num_slots;
  i64 dtype;  // 0 float, 1 half, 2 bfloat
};

// rows[offsets[s] : offsets[s + 1]] belong to slots[s].
struct Segments {
  const i32 *rows, *offsets, *slots;
  i64 count;
};

struct Lora {
  const LoraGroup* group;
  const Segments* segments;
  const float* x;  // [T, K]
  i64 ldx;
  float* y;  // [T, sum N]
  i64 ldy;
};

// How a call's work is cut: items of segment s are [first[s], first[s + 1]), its activations begin at shrunk[at[s]].
struct LoraPlan {
  i64 *shrink, *expand, *at;
  float* shrunk;
};

bool valid(const Segments& segments, i64 tokens, i64 num_slots);
i64 lora_scratch(const LoraGroup& group, const Segments& segments);  // bytes
void lora_fetch(const LoraGroup& group, const Segments& segments, Fetch& fetch);
void lora_plan(const LoraGroup& group, const Segments& segments, void* scratch, LoraPlan& plan);
// Two phases with a barrier between; y must be complete before, and is complete after the caller's next barrier.
void lora(Team& team, const Lora& job, const LoraPlan& plan);

}  // namespace ol
