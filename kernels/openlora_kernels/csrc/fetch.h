// Memory that the phase after a GEMM will read, fetched into the caches while the GEMM computes.
//
// From about 12 rows on a GEMM is bound by FMAs and leaves half of the memory's bandwidth idle, while LoRA and
// attention over many short contexts do little else than wait for memory. Measured at 32 decode rows of 100 tokens under
// 16 adapters of rank 16 (SmolLM2-135M, 30 layers): LoRA 12 -> 7 ms, attention 15 -> 9.5 ms a step, GEMMs 1 to 4 slower.
#pragma once
#include "team.h"

namespace ol {

constexpr i64 LINE = 64;

// A list of ranges, addressed by the running number of a cache line.
class Fetch {
 public:
  static constexpr i64 MAX_BYTES = 8 << 20;  // more would only push itself out of the last level

  // `memory`: scratch for at most `capacity` ranges, bytes(capacity) long.
  static i64 bytes(i64 capacity) { return ceil_div(capacity * static_cast<i64>(sizeof(Range)), 64) * 64; }
  void place(void* memory, i64 capacity) {
    ranges_ = static_cast<Range*>(memory);
    capacity_ = capacity;
    count_ = lines_ = 0;
  }

  void add(const void* begin, i64 bytes) {
    if (bytes <= 0 || count_ == capacity_ || lines_ * LINE >= MAX_BYTES) return;
    ranges_[count_++] = {static_cast<const char*>(begin), lines_};
    lines_ += ceil_div(bytes, LINE);
  }

  i64 lines() const { return lines_; }

  // Reads the lines [begin, end) in pieces that lie together.
  class Cursor {
   public:
    Cursor() = default;
    Cursor(const Fetch& list, i64 begin, i64 end) : list_(&list), at_(begin), end_(end) {
      while (range_ + 1 < list.count_ && list.ranges_[range_ + 1].first <= begin) range_++;
    }
    // The next at most `count` lines: sets `line`, returns how many follow each other there.
    i64 next(i64 count, const char*& line) {
      if (at_ >= end_) return 0;
      if (range_ + 1 < list_->count_ && list_->ranges_[range_ + 1].first <= at_) range_++;
      const Range& range = list_->ranges_[range_];
      const i64 range_end = range_ + 1 < list_->count_ ? list_->ranges_[range_ + 1].first : list_->lines_;
      const i64 n = std::min(count, std::min(end_, range_end) - at_);
      line = range.begin + (at_ - range.first) * LINE;
      at_ += n;
      return n;
    }

   private:
    const Fetch* list_ = nullptr;
    i64 at_ = 0, end_ = 0, range_ = 0;
  };

 private:
  struct Range {
    const char* begin;
    i64 first;  // number of its first line
  };
  Range* ranges_ = nullptr;
  i64 capacity_ = 0, count_ = 0, lines_ = 0;
};

}  // namespace ol
