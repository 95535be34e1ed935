// Causal attention over a paged cache [num_blocks, block_size, KV, D] for a ragged batch.
#pragma once
#include "fetch.h"

namespace ol {

struct Attention {
  const float* q;  // [T, H, D], rows ldq apart
  i64 ldq;
  float* out;  // [T, H, D], rows ldo apart
  i64 ldo;
  const float *k_cache, *v_cache;
  const i32* cu_seqlens;    // [S + 1]
  const i32* seq_lens;      // [S]
  const i32* block_tables;  // [S, max_blocks]
  const float* sinks;       // [H] or nullptr
  i64 S, T, max_blocks, num_blocks, block_size, H, KV, D;
  i64 window;  // 0: none
  float scale;
  float softcap;  // 0: none
};

// How a call's work is cut: sequence s has tiles [tiles[s], tiles[s + 1]) of `tile` tokens. Where tiles are fewer than
// threads can use, the blocks of keys are shared out too: tile n has blocks [blocks[n], blocks[n + 1]).
struct AttentionPlan {
  i64 *tiles, *blocks;
  i64 tile;
  bool split;
  float *scratch, *partial;  // of each thread; of each block and key-value head
};

bool valid(const Attention& job);
// The part of a cache (this layer's or another's of the same shape) that the batch will read.
void attention_fetch(const Attention& job, const float* cache, Fetch& fetch);
i64 attention_scratch(const Attention& job, i64 threads);  // bytes
void attention_plan(const Attention& job, i64 threads, void* scratch, AttentionPlan& plan);
void attention(Team& team, const Attention& job, const AttentionPlan& plan);

}  // namespace ol
