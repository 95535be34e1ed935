// The threads of one call, and scratch memory that outlives it. One parallel region a call, barriers between phases.
#pragma once
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>

#include "simd.h"

#define OL_API extern "C" __attribute__((visibility("default")))

namespace ol {

enum Code : int { OK = 0, BAD_ARGUMENT = -1, OUT_OF_MEMORY = -2 };

inline i64 ceil_div(i64 a, i64 b) { return (a + b - 1) / b; }

// What the threads of a region share: one work counter a phase.
struct Phases {
  static constexpr int COUNT = 64;
  std::atomic<i64> next[COUNT] = {};
};

// One thread's view of the region. All threads call the same functions in the same order.
class Team {
 public:
  Team(Phases& phases, int rank, int size) : rank(rank), size(size), phases_(phases) {}

  // Hand out [0, count) in shrinking pieces of at least `grain`: a core that another process steals takes fewer. Which
  // thread computes an item never changes its result.
  template <class F>
  void share(i64 count, i64 grain, F body) {
    if (size == 1) {
      if (count > 0) body(i64{0}, count);
      return;
    }
    std::atomic<i64>& next = phases_.next[phase_++];
    i64 begin = next.load(std::memory_order_relaxed);
    while (begin < count) {
      const i64 piece = std::max(grain, (count - begin) / (2 * size));
      if (next.compare_exchange_weak(begin, begin + piece, std::memory_order_relaxed)) {
        body(begin, std::min(count, begin + piece));
        begin = next.load(std::memory_order_relaxed);
      }
    }
  }

  void barrier() {
    if (size > 1) {
#pragma omp barrier
    }
  }

  const int rank, size;

 private:
  Phases& phases_;
  int phase_ = 0;
};

// Run body(Team&) on `threads` threads of the OpenMP pool that torch uses too.
template <class F>
void run(i64 threads, F body) {
  Phases phases;
  if (threads <= 1) {
    Team team(phases, 0, 1);
    body(team);
    return;
  }
#pragma omp parallel num_threads(static_cast<int>(threads))
  {
    Team team(phases, omp_get_thread_num(), omp_get_num_threads());
    body(team);
  }
}

// Scratch of the calling thread: grows to the largest call and stays. nullptr when there is no memory.
class Arena {
 public:
  ~Arena() { std::free(memory_); }
  template <class T>
  T* get(i64 count) {
    const std::size_t bytes = (static_cast<std::size_t>(count) * sizeof(T) + 4095) / 4096 * 4096;
    if (bytes > size_) {
      std::free(memory_);
      memory_ = std::aligned_alloc(4096, bytes);
      size_ = memory_ ? bytes : 0;
    }
    return static_cast<T*>(memory_);
  }

 private:
  void* memory_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace ol
