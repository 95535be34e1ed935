// One decoder layer of the llama family in one parallel region, composed of the other files' functions.
#include "attention.h"
#include "gemm.h"
#include "lora.h"
#include "ops.h"

namespace ol {
namespace {

struct Linear {
  const float *packed, *bias;
  i64 in_features, out_features;
};

// decoder.py: _NativeLayer. A norm that is nullptr is left out.
struct Layer {
  Linear qkv, o, gate_up, down;
  const float *attention_norm, *attention_post_norm, *mlp_norm, *mlp_post_norm, *q_norm, *k_norm, *sinks;
  i64 heads, kv_heads, head_dim, rotary_dim, window, activation;
  float eps, scale, softcap, residual_multiplier;
};

// decoder.py: DecoderWorkspace. Rows are as wide as the layer at hand needs them.
struct Workspace {
  float *normed, *projected, *qkv, *attended, *gate_up, *gated;
  i64 max_tokens;
};

struct Batch {
  const i64* slot_mapping;
  const float *cos, *sin;  // [T, ld_table]
  i64 ld_table, T;
};

struct Adapters {
  const Segments* segments;  // nullptr: none in this batch
  const LoraGroup* groups[4];
  LoraPlan plans[4];
  Fetch fetch[4];  // for each projection's GEMM: its adapters, and keys and values of the next layer
};

constexpr i64 FETCH_FROM = 12;  // rows from which a GEMM leaves bandwidth idle

enum Projection { QKV, O, GATE_UP, DOWN };

struct Run {
  Team& team;
  const Layer& layer;
  const Workspace& work;
  const Batch& batch;
  const Adapters& adapters;
  float *hidden, *k_cache, *v_cache;
  const Attention& attention_job;
  const AttentionPlan& attention_plan;

  // y = or += x W^T and LoRA; complete after the next barrier. Shrink reads x alone, so it needs no barrier before it.
  void project(const Linear& linear, Projection which, const float* x, float* y, bool accumulate) {
    gemm(team, {linear.packed, linear.bias, x, linear.in_features, y, linear.out_features, batch.T, linear.in_features,
                linear.out_features, accumulate, &adapters.fetch[which]});
    if (adapters.segments)
      lora(team, {adapters.groups[which], adapters.segments, x, linear.in_features, y, linear.out_features},
           adapters.plans[which]);
  }

  // hidden += multiplier * norm(x W^T and LoRA), without a detour where there is neither norm nor multiplier.
  void project_to_hidden(const Linear& linear, Projection which, const float* x, const float* post_norm) {
    const bool direct = !post_norm && layer.residual_multiplier == 1.0f;
    project(linear, which, x, direct ? hidden : work.projected, direct);
    team.barrier();
    if (direct) return;
    const i64 width = linear.out_features;
    add_scaled(team, work.projected, width, post_norm, layer.eps, layer.residual_multiplier, hidden, width, batch.T,
               width);
    team.barrier();
  }

  const float* normed(const float* weight) {
    if (!weight) return hidden;
    const i64 width = layer.qkv.in_features;
    rms_norm(team, hidden, width, weight, work.normed, width, batch.T, width, layer.eps);
    team.barrier();
    return work.normed;
  }

  // Norm per head, rotate, and put keys and values into the cache.
  void place_heads() {
    const i64 D = layer.head_dim, width = layer.qkv.out_features, kv = layer.kv_heads * D;
    team.share(batch.T, 2, [&](i64 begin, i64 end) {
      for (i64 i = begin; i < end; i++) {
        float *q = work.qkv + i * width, *k = q + layer.heads * D, *v = k + kv;
        if (layer.q_norm)
          for (i64 h = 0; h < layer.heads; h++) rms_norm_row(q + h * D, layer.q_norm, q + h * D, D, layer.eps);
        if (layer.k_norm)
          for (i64 h = 0; h < layer.kv_heads; h++) rms_norm_row(k + h * D, layer.k_norm, k + h * D, D, layer.eps);
        const i64 row = i * batch.ld_table;
        rope_row(q, layer.heads + layer.kv_heads, D, batch.cos + row, batch.sin + row, layer.rotary_dim);
        std::memcpy(k_cache + batch.slot_mapping[i] * kv, k, sizeof(float) * kv);
        std::memcpy(v_cache + batch.slot_mapping[i] * kv, v, sizeof(float) * kv);
      }
    });
  }

  void operator()() {
    project(layer.qkv, QKV, normed(layer.attention_norm), work.qkv, false);
    team.barrier();
    place_heads();
    team.barrier();
    attention(team, attention_job, attention_plan);
    team.barrier();
    project_to_hidden(layer.o, O, work.attended, layer.attention_post_norm);
    project(layer.gate_up, GATE_UP, normed(layer.mlp_norm), work.gate_up, false);
    team.barrier();
    const i64 width = layer.down.in_features;
    gated(team, work.gate_up, 2 * width, work.gated, width, batch.T, width, layer.activation);
    team.barrier();
    project_to_hidden(layer.down, DOWN, work.gated, layer.mlp_post_norm);
  }
};

bool fits(const LoraGroup& group, const Linear& linear) {
  i64 out_features = 0;
  for (i64 j = 0; j < group.num_targets; j++) out_features += group.out_features[j];
  return group.in_features == linear.in_features && out_features == linear.out_features;
}

}  // namespace
}  // namespace ol

using ol::i32;
using ol::i64;

OL_API int ol_decoder_layer(const ol::Layer* layer, const ol::Workspace* work, float* hidden, float* k_cache,
                            float* v_cache, const float* next_k_cache, const float* next_v_cache, i64 num_blocks,
                            i64 block_size, const i32* cu_seqlens, const i32* seq_lens, const i32* block_tables,
                            const i64* slot_mapping, i64 S, i64 T, i64 max_blocks, const float* cos, const float* sin,
                            i64 ld_table, const i32* rows, const i32* offsets, const i32* slots, i64 segment_count,
                            const ol::LoraGroup* qkv, const ol::LoraGroup* o, const ol::LoraGroup* gate_up,
                            const ol::LoraGroup* down, i64 threads) {
  using namespace ol;
  static thread_local Arena arena;
  const Attention attention_job{
      work->qkv,      layer->qkv.out_features, work->attended, layer->o.in_features, k_cache,      v_cache,
      cu_seqlens,     seq_lens,                block_tables,   layer->sinks,         S,            T,
      max_blocks,     num_blocks,              block_size,     layer->heads,         layer->kv_heads, layer->head_dim,
      layer->window,  layer->scale,            layer->softcap};
  const Segments segments{rows, offsets, slots, segment_count};
  Adapters adapters{segment_count ? &segments : nullptr, {qkv, o, gate_up, down}, {}, {}};
  if (T > work->max_tokens || !valid(attention_job) || !valid_slots(slot_mapping, T, num_blocks * block_size))
    return BAD_ARGUMENT;
  const Linear* linears[4] = {&layer->qkv, &layer->o, &layer->gate_up, &layer->down};
  for (int i = 0; i < 4 && adapters.segments; i++)
    if (!fits(*adapters.groups[i], *linears[i]) || !valid(segments, T, adapters.groups[i]->num_slots))
      return BAD_ARGUMENT;

  const i64 attention_bytes = ceil_div(attention_scratch(attention_job, threads), 64) * 64;
  const i64 ranges = T >= FETCH_FROM ? 2 * segment_count + 64 + 8 * S : 0;
  i64 bytes = attention_bytes + 4 * Fetch::bytes(ranges), at[4];
  for (int i = 0; i < 4 && adapters.segments; i++) {
    at[i] = bytes;
    bytes += lora_scratch(*adapters.groups[i], segments);
  }
  char* memory = arena.get<char>(bytes);
  if (!memory) return OUT_OF_MEMORY;
  AttentionPlan plan;
  attention_plan(attention_job, threads, memory, plan);
  for (int i = 0; i < 4 && adapters.segments; i++)
    lora_plan(*adapters.groups[i], segments, memory + at[i], adapters.plans[i]);

  for (int i = 0; i < 4; i++) {
    Fetch& fetch = adapters.fetch[i];
    fetch.place(memory + attention_bytes + i * Fetch::bytes(ranges), ranges);
    if (adapters.segments) lora_fetch(*adapters.groups[i], segments, fetch);
    if (next_k_cache && i >= GATE_UP) attention_fetch(attention_job, i == GATE_UP ? next_k_cache : next_v_cache, fetch);
  }
  const Batch batch{slot_mapping, cos, sin, ld_table, T};
  run(threads, [&](Team& team) {
    Run{team, *layer, *work, batch, adapters, hidden, k_cache, v_cache, attention_job, plan}();
  });
  return OK;
}
